//! HTTP as Kubernetes speaks it. Names no kind: all it knows of one comes from its
//! [`Kind`](berth_controller_core::kinds::Kind), and all rules are those of [`Objects`].

mod accept;
mod body;
pub mod connect;
pub mod discovery;
mod documents;
mod health;
mod list;
mod protobuf;
pub mod query;
pub mod remote_command;
pub mod respond;
mod reviews;
mod route;
mod select;
mod server;
pub mod table;
mod verbs;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use berth_controller_core::status::Status;
use berth_controller_schema::openapi::OpenApi;
use http::Method;
use tokio_util::sync::CancellationToken;

use crate::objects::Objects;

pub use body::delete_options_of;
pub use connect::{Connect, Connection};
pub use query::Query;
pub use server::serve;

/// What is served: the objects, and what `main` adds.
#[derive(Clone)]
pub struct Api {
    objects: Objects,
    connects: Arc<[Connect]>,
    routes: Router,
}

/// What requests share.
struct State {
    objects: Objects,
    connects: Arc<[Connect]>,
    openapi: OpenApi,
    /// Ends the watches.
    stop: CancellationToken,
}

impl Api {
    /// `routes` are further paths, served to the administrator; the request's extensions hold the
    /// [`Identity`](crate::pki::Identity).
    pub fn new(objects: Objects, connects: Vec<Connect>, routes: Router) -> Api {
        Api { objects, connects: connects.into(), routes }
    }

    fn router(self, stop: CancellationToken) -> Router {
        let openapi = documents::openapi(self.objects.schema());
        let state = Arc::new(State { objects: self.objects, connects: self.connects, openapi, stop });
        self.routes.fallback(move |request: Request| {
            let state = state.clone();
            async move { answer(&state, request).await }
        })
    }
}

async fn answer(state: &State, request: Request) -> Response {
    match dispatch(state, request).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    }
}

async fn dispatch(state: &State, request: Request) -> Result<Response, Status> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    if let Some(response) = health::answer(request.uri().path(), &query) {
        return Ok(response);
    }
    let request = match reviews::serve(request).await {
        Ok(answer) => return answer,
        Err(request) => request,
    };
    match route::target(request.uri().path()) {
        route::Target::Objects(place) => verbs::serve(state, place, request).await,
        target => documents::serve(&state.openapi, &target, &request),
    }
}

/// Whether a request stays as long as its client does: a watch, or a connect subresource.
fn is_stream(request: &Request) -> bool {
    if let route::Target::Objects(place) = route::target(request.uri().path()) {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let watches = request.method() == Method::GET && query.flag("watch");
        watches
            || place
                .subresource
                .is_some_and(|sub| !["status", "scale", "finalize", "eviction"].contains(&sub.as_str()))
    } else {
        false
    }
}
