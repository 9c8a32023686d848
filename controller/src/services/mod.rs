//! Services: what they hold, what stands behind them, and what every host must know of it.
//!
//! ```text
//! store ─ watches ─▶ follow: the View, once for all ─┬─ revisions of it ─▶ every session ([`Listener`])
//!                                                     └─ services touched ─▶ Endpoints, EndpointSlices
//! ```
//! Hosts hear of a pod from here, not from its Endpoints objects: names and rules wait for no object to be
//! written. What this module must never do is compute anything once for each host.

mod allocation;
mod endpoints;
mod follow;
pub mod kubernetes;
mod listen;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_controller_core::services::Named;
use berth_controller_core::services::view::View;
use berth_proto::controller_message::Message;
use berth_proto::{ControllerMessage, NetworkUpdate};
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::objects::Objects;
use crate::reconcile::queue::Queue;

pub use allocation::{Allocations, repair};
pub use listen::Listener;

#[cfg(test)]
mod tests;

/// How much is kept for listeners that are behind, in endpoints and services: who is further behind is told
/// everything again.
const LOG: usize = 20_000;

/// The services' side of the controller. Clones share it.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Objects,
    state: Mutex<State>,
    /// The view's revision; 0 until everything has been read once.
    newest: watch::Sender<u64>,
    listeners: AtomicUsize,
    /// Services whose objects may have to be written.
    queue: Queue<Named>,
    /// When the objects of each were written last.
    written: Mutex<HashMap<Named, Instant>>,
    /// Services that were seen to go: their Endpoints go too, whoever wrote them.
    gone: Mutex<HashSet<Named>>,
}

#[derive(Default)]
struct State {
    view: View,
    revision: u64,
    /// Revision and what was said with it, oldest first.
    log: VecDeque<(u64, Told)>,
    logged: usize,
    /// Everything, as it was said up to a revision; made when somebody asks.
    snapshot: Option<(u64, Arc<[Told]>)>,
}

/// An update as it goes to every host: encoded once. Clones share it.
#[derive(Clone, Debug)]
pub struct Told {
    /// The whole `ControllerMessage`.
    pub encoded: Bytes,
    /// How much it says, in endpoints and services.
    weight: usize,
}

impl Told {
    fn new(update: NetworkUpdate) -> Told {
        let endpoints: usize = update.endpoints.iter().map(|e| 1 + e.endpoints.len() + e.removed.len()).sum();
        let weight = 1 + endpoints + update.services.len() + update.peers.len();
        let message = ControllerMessage { message: Some(Message::Network(update)) };
        Told { encoded: message.encode_to_vec().into(), weight }
    }
}

impl Services {
    pub fn new(objects: Objects) -> Services {
        let inner = Inner {
            objects,
            state: Mutex::default(),
            newest: watch::Sender::new(0),
            listeners: AtomicUsize::new(0),
            queue: Queue::new(),
            written: Mutex::default(),
            gone: Mutex::default(),
        };
        Services { inner: Arc::new(inner) }
    }

    /// Follows the store and keeps the objects, for ever.
    pub async fn run(self) {
        tokio::join!(follow::run(&self), endpoints::run(&self));
    }

    /// Everything hosts must know, and every change of it.
    pub fn listen(&self) -> Listener {
        Listener::new(self.inner.clone())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// None of what is locked here can be left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
