//! The loops: each reads the cache, asks core what is to be done, and writes the answer.
//!
//! They are driven by what the store says has changed and by the times that core names; nothing polls.
//! What they know outlives no process: after a restart each looks at everything once.

pub mod events;
pub mod queue;
