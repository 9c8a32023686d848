//! The controller of Berth: the API that kubectl speaks, the loops that make it true, and the side that the
//! agents dial. `main.rs` is the only file that knows every part.

mod files;

pub use files::make_private_directory;

pub mod api;
pub mod backup;
pub mod certificates;
pub mod check;
pub mod clock;
pub mod config;
pub mod control;
pub mod eviction;
pub mod nodes;
pub mod objects;
pub mod pki;
pub mod reconcile;
pub mod services;
pub mod store;
pub mod tokens;
