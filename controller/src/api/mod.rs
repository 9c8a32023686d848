//! HTTP as Kubernetes speaks it. Names no kind: all it knows of one comes from its
//! [`Kind`](berth_controller_core::kinds::Kind), and all rules are those of [`Objects`].

pub mod connect;
pub mod discovery;
pub mod query;
pub mod remote_command;
mod server;
pub mod table;

use std::sync::Arc;

use axum::Router;

use crate::objects::Objects;

pub use connect::{Connect, Connection};
pub use query::Query;
pub use server::{Authenticate, User, serve};

/// What is served: the objects, and what `main` adds.
#[derive(Clone)]
pub struct Api {
    objects: Objects,
    connects: Arc<[Connect]>,
    routes: Router,
}

impl Api {
    /// `routes` are further paths (such as for join tokens), served to whoever is authenticated; the
    /// request's extensions hold the [`User`].
    pub fn new(objects: Objects, connects: Vec<Connect>, routes: Router) -> Api {
        Api { objects, connects: connects.into(), routes }
    }
}
