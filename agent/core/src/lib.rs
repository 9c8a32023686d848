//! What happens to a pod on its host, decided without doing anything: no clock, no file, no containerd.
//!
//! The driver of a pod holds an [`Observed`] and asks [`lifecycle`] which [`Step`]s to begin now and when to
//! ask again. It tells `Observed` what it has begun and how that ended, and so on until nothing of the pod
//! is left. Back-off, probes, termination and the words of statuses and events live here.
//!
//! What this crate must never do: read a clock (time is an argument), block, or panic on any input.

pub mod backoff;
pub mod container;
pub mod fence;
pub mod lifecycle;
pub mod network;
pub mod observed;
pub mod probe;
pub mod remember;
pub mod server;
pub mod status;
pub mod step;
pub mod time;

pub use fence::{Admission, Fence};
pub use lifecycle::{Steps, lifecycle};
pub use observed::{Event, Observed};
pub use remember::{Found, FoundState, Remembered};
pub use status::{Publisher, status};
pub use step::{Exit, Fault, Outcome, Probed, Step};
pub use time::Time;
