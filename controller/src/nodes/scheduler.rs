//! The scheduler: binds each new pod to a node, its name to that life of it, and the claims that waited for
//! it, in one transaction (DESIGN D5).
//!
//! One task, driven by what happens in the store. It holds no state that it could not read again: what it
//! keeps of pods and addresses is a digest of the store, updated by the watches, and every binding is
//! conditional on what it was decided from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use berth_controller_core::claims::{self, Binding, Standing, Storage};
use berth_controller_core::identity::{self, Life, Record, Refusal, Unheld};
use berth_controller_core::place::{self, Candidate, Reasons};
use berth_controller_core::resolve::resources::Request;
use berth_controller_core::{kinds, object};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::registration::address_of;
use super::world::{self, Name};
use super::{Nodes, Range, pod_status, records};
use crate::reconcile::events::{EventType, ObjectRef};
use crate::store::{CommitError, Event, EventKind, Expired, Key, Scope, Store, Transaction, Watch};

/// Who says so in events.
const COMPONENT: &str = "default-scheduler";
const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
const CLASSES: &str = "storageclasses.storage.k8s.io";
/// Bindings written together, at most.
const TOGETHER: usize = 32;

/// Schedules until `shutdown`.
pub(super) async fn run(nodes: Nodes, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = Scheduler::forever(&nodes) => {}
    }
}

/// What is kept of a pod.
struct Seen {
    node: String,
    /// It takes no room any more.
    ended: bool,
    request: Request,
}

#[derive(Default)]
struct Scheduler {
    pods: HashMap<Name, Seen>,
    addresses: BTreeMap<Name, Ipv4Addr>,
    /// The address given out last, per node.
    last: HashMap<String, Ipv4Addr>,
    /// Pods without a node, deletion not asked for.
    waiting: BTreeSet<Name>,
    /// Of these, those to be looked at now.
    due: BTreeSet<Name>,
    /// Bound pods to be checked for a life that is gone.
    suspects: BTreeSet<Name>,
}

struct Watches {
    pods: Watch,
    records: Watch,
    nodes: Watch,
    claims: Watch,
    volumes: Watch,
    classes: Watch,
    restore: Watch,
}

impl Watches {
    fn new(store: &Store) -> Result<Watches, Expired> {
        let now = store.revision();
        let watch = |resource: &'static str| store.watch(&Scope::all(resource), now);
        Ok(Watches {
            pods: watch(world::PODS)?,
            records: watch(identity::RESOURCE)?,
            nodes: watch(world::NODES)?,
            claims: watch(CLAIMS)?,
            volumes: watch(VOLUMES)?,
            classes: watch(CLASSES)?,
            restore: watch(identity::RESTORE)?,
        })
    }
}

impl Scheduler {
    async fn forever(nodes: &Nodes) {
        loop {
            let watches = Watches::new(&nodes.inner.store);
            let Ok(watches) = watches else { continue };
            let mut scheduler = Scheduler::default();
            scheduler.load(&nodes.inner.store);
            let Err(expired) = scheduler.follow(nodes, watches).await;
            tracing::debug!(%expired, "the scheduler reads everything again");
        }
    }

    fn load(&mut self, store: &Store) {
        for pod in store.list(&Scope::all(world::PODS)).objects {
            self.pod(&Name::of(&pod.key), Some(&pod.value()));
        }
        for record in store.list(&Scope::all(identity::RESOURCE)).objects {
            self.record(&Name::of(&record.key), Record::read(&record.value()).as_ref());
        }
        self.suspects = self.pods.keys().cloned().collect();
        self.due = self.waiting.clone();
    }

    async fn follow(
        &mut self,
        nodes: &Nodes,
        mut watches: Watches,
    ) -> Result<std::convert::Infallible, Expired> {
        loop {
            self.sweep(nodes).await;
            self.bind_due(nodes).await;
            if !self.due.is_empty() || !self.suspects.is_empty() {
                // Something could not be written: not at once again.
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            tokio::select! {
                batch = watches.pods.next() => for event in batch?.events { self.pod_changed(&event) },
                batch = watches.records.next() => for event in batch?.events { self.record_changed(&event) },
                batch = watches.nodes.next() => {
                    if batch?.events.iter().any(matters) {
                        self.due = self.waiting.clone();
                    }
                }
                batch = watches.claims.next() => { batch?; self.due = self.waiting.clone() }
                batch = watches.volumes.next() => { batch?; self.due = self.waiting.clone() }
                batch = watches.classes.next() => { batch?; self.due = self.waiting.clone() }
                batch = watches.restore.next() => { batch?; self.due = self.waiting.clone() }
                () = std::future::ready(()), if !self.due.is_empty() || !self.suspects.is_empty() => {}
            }
        }
    }

    fn pod_changed(&mut self, event: &Event) {
        let name = Name::of(&event.object.key);
        if event.kind == EventKind::Deleted {
            let freed = self.pods.get(&name).is_some_and(|seen| !seen.node.is_empty());
            self.pod(&name, None);
            if freed {
                self.due = self.waiting.clone();
            }
            return;
        }
        let before = self.pods.get(&name).map(|seen| seen.ended);
        let fresh = !self.waiting.contains(&name);
        self.pod(&name, Some(&event.object.value()));
        if fresh && self.waiting.contains(&name) {
            self.due.insert(name.clone());
        }
        let ended = self.pods.get(&name).is_some_and(|seen| seen.ended);
        if ended && before == Some(false) {
            self.due = self.waiting.clone();
        }
        if event.object.meta.deleting {
            self.suspects.insert(name);
        }
    }

    fn record_changed(&mut self, event: &Event) {
        let name = Name::of(&event.object.key);
        if event.kind == EventKind::Deleted {
            self.record(&name, None);
            if self.waiting.contains(&name) {
                self.due.insert(name.clone());
            }
            self.suspects.insert(name);
        } else {
            let changed = event.previous.is_some();
            self.record(&name, Record::read(&event.object.value()).as_ref());
            if changed {
                self.suspects.insert(name);
            }
        }
    }

    fn pod(&mut self, name: &Name, pod: Option<&Value>) {
        let Some(pod) = pod else {
            self.pods.remove(name);
            self.waiting.remove(name);
            self.due.remove(name);
            return;
        };
        let life = Life::of(pod, Timestamp::UNIX_EPOCH);
        let held = self.addresses.contains_key(name);
        // A pod whose node is named by whoever made it is bound like any other.
        let unbound = if life.node.is_empty() { true } else { !held && pod["status"]["phase"] == "Pending" };
        if unbound && life.deleting.is_none() && !life.ended && ours(pod) {
            self.waiting.insert(name.clone());
        } else {
            self.waiting.remove(name);
            self.due.remove(name);
        }
        let seen = Seen { node: life.node, ended: life.ended, request: Request::of_pod(pod) };
        self.pods.insert(name.clone(), seen);
    }

    fn record(&mut self, name: &Name, record: Option<&Record>) {
        match record {
            Some(record) => {
                let address = address_of(record).unwrap_or(Ipv4Addr::UNSPECIFIED);
                self.addresses.insert(name.clone(), address);
            }
            None => drop(self.addresses.remove(name)),
        }
    }
}
