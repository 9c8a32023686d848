//! The controller of Berth: the API that kubectl speaks, the loops that make it true, and the side that the
//! agents dial. `main.rs` is the only file that knows every part.

mod files;

pub mod api;
pub mod pki;
pub mod store;
