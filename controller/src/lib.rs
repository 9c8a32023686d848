pub mod reconcile;
pub mod store;
