//! What a host knows of the others, and what follows from it: names, routes, service rules. All of it is
//! decided here and done in the agent's `network` module.
//!
//! What this must never do: forget something because the controller is away, or trust a size from outside.

pub mod paths;
pub mod range;
pub mod rules;
pub mod view;
pub mod wire;
pub mod zone;

pub use range::Range;
pub use view::{Changed, Entry, View};
