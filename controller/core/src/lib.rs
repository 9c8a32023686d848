//! Berth's decisions, and nothing else: no I/O, no clock, no task. Everything here is a function of its
//! arguments, so that the order of pods, the fence around an identity and the meaning of a manifest can be
//! tested without a machine. The controller reads the store, asks this crate, and writes the answer.

pub mod claims;
pub mod disruption;
pub mod field;
pub mod identity;
pub mod kinds;
pub mod object;
pub mod place;
pub mod quantity;
pub mod resolve;
pub mod selector;
pub mod services;
pub mod statefulset;
pub mod status;
pub mod taints;
