//! The side of the controller that hosts talk to (DESIGN D3, D5): join, one session a node, interactive
//! streams; and the scheduler, which is the only one to bind a pod to a node.
//!
//! What this module must never do: tell a host to start a life that has no identity record, free a record
//! without its host's word, or hold up one node's session for another's.

mod addresses;
mod binding;
mod holders;
mod images;
mod ledger;
mod news;
mod node_object;
mod operations;
mod pod_status;
mod records;
mod registration;
mod scheduler;
mod server;
mod session;
mod streams;
mod usage;
mod wire;
mod world;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_controller_core::claims::Provisioners;
use berth_controller_core::services::allocate::AddressRange;
use berth_proto::controller_message::Message;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use addresses::{Range, RangeError};
use wire::Outgoing;

use crate::objects::Objects;
use crate::reconcile::events::Events;
use crate::services::Services;
use crate::store::Store;

#[cfg(test)]
mod tests;

/// What the operator chooses.
#[derive(Clone, Debug)]
pub struct NodesConfig {
    /// Every node gets a /24 of it.
    pub pod_cidr: Range,
    /// Services' addresses.
    pub service_cidr: AddressRange,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Where volumes of claims that wait for their pod are made.
    pub provisioners: watch::Receiver<Provisioners>,
    /// How long a node without a session keeps its Ready condition ([`GRACE`]).
    pub grace: Duration,
}

/// An agent's restart is no news.
pub const GRACE: Duration = Duration::from_secs(10);

/// Exchanges join tokens for certificates.
pub trait Join: Send + Sync + 'static {
    fn join<'a>(
        &'a self,
        token: &'a str,
        node: &'a str,
        request_pem: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Joined, JoinRefused>> + Send + 'a>>;

    /// A further certificate for a node that has joined with this key (its hash).
    fn renew(&self, node: &str, key: &str, request_pem: &str) -> Result<Joined, JoinRefused> {
        let _ = (node, key, request_pem);
        Err(JoinRefused::Unavailable("certificates are not renewed here".to_owned()))
    }
}

/// What an agent gets for its token, PEM.
#[derive(Clone, Debug)]
pub struct Joined {
    pub certificate: String,
    pub authority: String,
}

/// Why an agent may not join; the text is for the person at the host.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JoinRefused {
    /// Unknown, used up, expired, or for another node.
    #[error("{0}")]
    Token(String),
    #[error("{0}")]
    Request(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// The hosts' side of the controller. Clones share it.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    objects: Objects,
    services: Services,
    events: Events,
    config: NodesConfig,
    sessions: Mutex<HashMap<String, Handle>>,
    next_id: AtomicU64,
    news: news::News,
    links: world::ServiceLinks,
    streams: streams::Hub,
    operations: operations::Operations,
    flights: images::Flights,
    /// Held while a node gets its range: no two may get the same.
    registering: tokio::sync::Mutex<()>,
    /// Ends everything that was spawned here.
    shutdown: CancellationToken,
}

/// A session that is open.
#[derive(Clone)]
struct Handle {
    id: u64,
    out: Out,
    cancel: CancellationToken,
    /// Closed when the session's task is over.
    done: watch::Receiver<()>,
}

/// The way to an agent. Bounded: who cannot keep up loses the session.
type Out = mpsc::Sender<Result<Outgoing, tonic::Status>>;

/// Why a host could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("node {0:?} has no session with the controller now")]
    Away(String),
    #[error("node {0:?} did not answer in time")]
    Late(String),
    /// The agent's own words.
    #[error("{0}")]
    Failed(String),
}

impl Nodes {
    pub fn new(objects: Objects, services: Services, events: Events, config: NodesConfig) -> Nodes {
        let inner = Inner {
            store: objects.store().clone(),
            objects,
            services,
            events,
            config,
            sessions: Mutex::default(),
            next_id: AtomicU64::new(1),
            news: news::News::default(),
            links: world::ServiceLinks::default(),
            streams: streams::Hub::default(),
            operations: operations::Operations::default(),
            flights: images::Flights::default(),
            registering: tokio::sync::Mutex::default(),
            shutdown: CancellationToken::new(),
        };
        Nodes { inner: Arc::new(inner) }
    }

    /// Binds pods to nodes until `shutdown`.
    pub async fn schedule(&self, shutdown: CancellationToken) {
        scheduler::run(self.clone(), shutdown).await;
    }

    /// Serves the agents until `shutdown`. `tls` must know the agents' certificates, let others connect too
    /// (they may only join), and offer `h2`.
    pub async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        tls: Arc<rustls::ServerConfig>,
        join: Arc<dyn Join>,
        shutdown: CancellationToken,
    ) {
        tokio::select! {
            () = self.inner.news.follow(&self.inner.store) => {}
            () = server::serve(self.clone(), listener, tls, join, shutdown) => {}
        }
    }

    /// Whether this node's agent is connected.
    pub fn connected(&self, node: &str) -> bool {
        self.sessions().contains_key(node)
    }

    /// The nodes whose agents are connected, for what any of them may be able to do.
    pub fn all_connected(&self) -> Vec<String> {
        let mut all: Vec<String> = self.sessions().keys().cloned().collect();
        all.sort();
        all
    }

    /// Says something to a node's agent.
    async fn tell(&self, node: &str, message: Message) -> Result<(), NodeError> {
        let away = || NodeError::Away(node.to_owned());
        let out = self.sessions().get(node).map(|handle| handle.out.clone()).ok_or_else(away)?;
        out.send(Ok(Outgoing::from(message))).await.map_err(|_| away())
    }

    fn next_id(&self) -> u64 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        lock(&self.inner.sessions)
    }
}

/// None of what is locked here can be left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs when it goes out of scope, however that comes about.
struct Forget<F: FnMut()>(F);

impl<F: FnMut()> Drop for Forget<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
