//! The loops: each reads the cache, asks core what is to be done, and writes the answer.
//!
//! They are driven by what the store says has changed and by the times that core names; nothing polls.
//! What they know outlives no process: after a restart each looks at everything once.

mod disruption;
pub mod events;
mod feed;
mod first_start;
mod garbage;
mod hosts;
mod namespaces;
pub mod queue;
mod stateful_set;
mod taints;
pub mod volumes;

use std::sync::Arc;

use berth_controller_core::claims::{Location, Provisioners};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::watch;

use crate::objects::Objects;
use events::{Events, Recorded};

pub use first_start::first_start;

/// The end of a volume's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With all in it.
    Remove,
    /// Renamed to `archived-<name>`.
    Archive,
}

/// Asks a host to do something to volumes' directories.
pub trait Hosts: Send + Sync {
    /// Ends a volume's directory; done already is success. `node` is the Node's name; None: whichever host can.
    /// Fails, in words, if that host cannot be asked now.
    fn end(&self, node: Option<String>, location: Location, end: End) -> BoxFuture<'_, Result<(), String>>;
}

/// Has what a pod needs on its host before it is made.
pub trait Images: Send + Sync {
    /// All images of this pod (as it is about to be made) are on that node, unpacked. Fails, in words that
    /// name image and node, when one cannot be had now. Dropped, nobody waits for it any more.
    fn ensure(&self, node: &str, pod: &Value) -> BoxFuture<'static, Result<(), String>>;
}

/// What the loops work with.
#[derive(Clone)]
pub struct Context {
    pub objects: Objects,
    pub events: Events,
    pub provisioners: watch::Receiver<Provisioners>,
    pub hosts: Arc<dyn Hosts>,
    pub images: Arc<dyn Images>,
}

/// Runs all loops, for ever; they end when this is dropped.
pub async fn run(context: Context, recorded: Recorded) {
    tokio::join!(
        stateful_set::run(context.clone()),
        garbage::run(context.clone()),
        namespaces::run(context.clone()),
        volumes::run(context.clone()),
        disruption::run(context.clone()),
        taints::run(context.clone()),
        events::run(context.objects, recorded),
    );
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
