//! The scheduler: binds each new pod to a node, its name to that life of it, and the claims that waited for
//! it, in one transaction (DESIGN D5).
//!
//! One task, driven by what happens in the store. It holds no state that it could not read again: what it
//! keeps of pods and addresses is a digest of the store, updated by the watches, and every binding is
//! conditional on what it was decided from.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use berth_controller_core::identity::{self, Life, Record, Unheld};
use berth_controller_core::object;
use berth_controller_core::place::Placed;
use berth_controller_core::statefulset::parent_and_ordinal;
use futures_util::{FutureExt as _, future};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::binding::{self, Attempt, Board, Bound, CLAIMS, CLASSES, LAST_NODE, Outcome, VOLUMES};
use super::holders::volumes_of;
use super::registration::address_of;
use super::world::{self, Name};
use super::{Nodes, records};
use crate::reconcile::events::{EventType, ObjectRef};
use crate::store::{CommitError, Event, EventKind, Expired, Key, Scope, Store, Transaction, Watch};

const NAMESPACES: &str = "namespaces";
/// Who says so in events.
const COMPONENT: &str = "default-scheduler";
/// Bindings written together, at most.
const TOGETHER: usize = 32;
/// After a write that failed for no conflict.
const PAUSE: Duration = Duration::from_millis(500);

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
    generation: i64,
}

#[derive(Default)]
struct Scheduler {
    pods: HashMap<Name, Seen>,
    addresses: HashMap<Name, Ipv4Addr>,
    board: Board,
    /// Pods without a node, deletion not asked for.
    waiting: BTreeSet<Name>,
    /// Of these, those to be looked at now...
    due: BTreeSet<Name>,
    /// ...and those that may be waiting for where other pods are.
    hopeful: BTreeSet<Name>,
    /// Bound pods to be checked for a life that is gone.
    suspects: BTreeSet<Name>,
}

/// Everything bindings are decided from, watched.
struct Watches {
    all: Vec<Watch>,
}

impl Watches {
    /// What is written before another is named before it.
    const RESOURCES: [&'static str; 8] = [
        world::NODES,
        NAMESPACES,
        identity::RESTORE,
        identity::RESOURCE,
        CLAIMS,
        VOLUMES,
        CLASSES,
        world::PODS,
    ];

    fn new(store: &Store) -> Result<Watches, Expired> {
        let now = store.revision();
        let all = Watches::RESOURCES.map(|resource| store.watch(&Scope::all(resource), now));
        Ok(Watches { all: all.into_iter().collect::<Result<_, _>>()? })
    }

    /// All that has happened, once anything has: whoever sees a pod sees what was written before it, a cordon say.
    async fn next(&mut self) -> Result<Vec<Event>, Expired> {
        let waiting = self.all.iter_mut().map(|watch| watch.next().boxed());
        let (first, _, _) = future::select_all(waiting).await;
        let mut events = first?.events;
        events.extend(self.poll()?);
        Ok(events)
    }

    /// All that has happened already. They are not read in one moment: pods first, so that what was written before a
    /// pod is there once the pod is.
    fn poll(&mut self) -> Result<Vec<Event>, Expired> {
        let mut batches = Vec::new();
        for watch in self.all.iter_mut().rev() {
            while let Some(batch) = watch.poll()? {
                batches.push(batch.events);
            }
        }
        Ok(batches.concat())
    }
}

impl Scheduler {
    async fn forever(nodes: &Nodes) {
        loop {
            let watches = Watches::new(&nodes.inner.store);
            let Ok(watches) = watches else { continue };
            let mut scheduler = Scheduler::default();
            scheduler.load(&nodes.inner.store);
            forget_last_nodes(&nodes.inner.store).await;
            for node in nodes.inner.store.list(&Scope::all(world::NODES)).objects {
                free_lost(nodes, &node.key.name, &node.value()).await;
            }
            let Err(expired) = scheduler.follow(nodes, watches).await;
            tracing::debug!(%expired, "the scheduler reads everything again");
        }
    }

    fn load(&mut self, store: &Store) {
        for node in store.list(&Scope::all(world::NODES)).objects {
            self.board.world.set_node(&node.key.name, Some(&node.value()));
        }
        for namespace in store.list(&Scope::all(NAMESPACES)).objects {
            self.namespace(&namespace.key.name, Some(&namespace.value()));
        }
        for record in store.list(&Scope::all(identity::RESOURCE)).objects {
            self.record(store, &Name::of(&record.key), Some(&record.value()));
        }
        for pod in store.list(&Scope::all(world::PODS)).objects {
            self.pod(&Name::of(&pod.key), Some(&pod.value()));
        }
        self.suspects = self.pods.keys().cloned().collect();
        self.due = self.waiting.clone();
    }

    async fn follow(
        &mut self,
        nodes: &Nodes,
        mut watches: Watches,
    ) -> Result<std::convert::Infallible, Expired> {
        let mut provisioners = nodes.inner.config.provisioners.clone();
        loop {
            self.sweep(nodes).await;
            self.bind_due(nodes).await;
            if !self.due.is_empty() || !self.suspects.is_empty() {
                // Something could not be written: not at once again.
                tokio::time::sleep(PAUSE).await;
            }
            let again = !self.due.is_empty() || !self.suspects.is_empty();
            let events = match again {
                true => watches.poll()?,
                false => tokio::select! {
                    events = watches.next() => events?,
                    // What a claim asks for may be had now.
                    Ok(()) = provisioners.changed() => {
                        self.due = self.waiting.clone();
                        continue;
                    }
                },
            };
            for event in events {
                self.changed(nodes, &event).await;
            }
        }
    }

    async fn changed(&mut self, nodes: &Nodes, event: &Event) {
        match &*event.object.key.resource {
            world::NODES => self.node_changed(nodes, event).await,
            world::PODS => self.pod_changed(event),
            identity::RESOURCE => self.record_changed(&nodes.inner.store, event),
            NAMESPACES => {
                let namespace = (event.kind == EventKind::Put).then(|| event.object.value());
                self.namespace(&event.object.key.name, namespace.as_ref());
                self.due.extend(self.hopeful.iter().cloned());
            }
            _ => self.due = self.waiting.clone(),
        }
    }

    async fn node_changed(&mut self, nodes: &Nodes, event: &Event) {
        let name = &event.object.key.name;
        let node = (event.kind == EventKind::Put).then(|| event.object.value());
        // Most of what is written about nodes changes nothing for pods that wait.
        if self.board.world.set_node(name, node.as_ref()) {
            self.due = self.waiting.clone();
        }
        if let Some(node) = node {
            free_lost(nodes, name, &node).await;
        }
    }

    fn namespace(&mut self, name: &str, namespace: Option<&Value>) {
        self.board.world.set_namespace(name, namespace.map(|n| &n["metadata"]["labels"]));
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
        let value = event.object.value();
        let known = self.pods.get(&name).map(|seen| seen.generation);
        let fresh = !self.waiting.contains(&name) || known != Some(object::generation(&value));
        self.pod(&name, Some(&value));
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

    fn record_changed(&mut self, store: &Store, event: &Event) {
        let name = Name::of(&event.object.key);
        if event.kind == EventKind::Deleted {
            self.record(store, &name, None);
            if self.waiting.contains(&name) {
                self.due.insert(name.clone());
            }
            self.suspects.insert(name);
        } else {
            let changed = event.previous.is_some();
            self.record(store, &name, Some(&event.object.value()));
            if changed {
                self.suspects.insert(name);
            }
        }
    }

    fn pod(&mut self, name: &Name, pod: Option<&Value>) {
        let Some(pod) = pod else {
            self.pods.remove(name);
            self.waits_no_more(name);
            self.board.world.set_pod(&name.namespace, &name.name, None);
            self.due.extend(self.hopeful.iter().cloned());
            return;
        };
        let life = Life::of(pod, Timestamp::UNIX_EPOCH);
        // A pod whose node is named by whoever made it is bound like any other.
        if !life.scheduled && life.deleting.is_none() && !life.ended && ours(pod) {
            self.waiting.insert(name.clone());
        } else {
            self.waits_no_more(name);
        }
        // One whose node is only its maker's wish takes no room yet.
        let placed = (!life.node.is_empty() && life.scheduled && !life.ended).then(|| Placed::of(pod));
        if self.board.world.set_pod(&name.namespace, &name.name, placed) {
            self.due.extend(self.hopeful.iter().cloned());
        }
        let seen = Seen { node: life.node, ended: life.ended, generation: object::generation(pod) };
        self.pods.insert(name.clone(), seen);
    }

    fn waits_no_more(&mut self, name: &Name) {
        self.waiting.remove(name);
        self.due.remove(name);
        self.hopeful.remove(name);
    }

    fn record(&mut self, store: &Store, name: &Name, value: Option<&Value>) {
        let record = value.and_then(Record::read);
        let holders = &mut self.board.holders;
        let given_up = match (value, &record) {
            (Some(value), Some(record)) => holders.hold(name, &record.node, volumes_of(store, name, value)),
            _ => holders.release(name),
        };
        if given_up {
            self.due.extend(self.hopeful.iter().cloned());
        }
        let address = record.as_ref().and_then(address_of);
        let before = match address {
            Some(address) => self.addresses.insert(name.clone(), address),
            None => self.addresses.remove(name),
        };
        if let Some(before) = before.filter(|before| Some(*before) != address) {
            self.board.used.remove(&before);
        }
        self.board.used.extend(address);
    }
}

/// The parts that write.
impl Scheduler {
    /// Binds what is due. What is left in `due` could not be written.
    async fn bind_due(&mut self, nodes: &Nodes) {
        let mut together = TOGETHER;
        // Every conflict means that somebody else got on with something; this bounds a wrong reasoning.
        for _ in 0..1000 {
            let names: Vec<Name> = self.due.iter().take(together).cloned().collect();
            if names.is_empty() {
                return;
            }
            let mut attempt = Attempt::new(nodes, &mut self.board);
            let mut refused = Vec::new();
            let mut over = Vec::new();
            for name in &names {
                match attempt.stage(name, Timestamp::now()) {
                    Outcome::Staged | Outcome::Later => {}
                    Outcome::Over => over.push(name),
                    Outcome::No { why, others } => refused.push((name, why, others)),
                }
            }
            let transaction = attempt.finish();
            let bound = attempt.bound;
            over.into_iter().for_each(|name| self.waits_no_more(name));
            for (name, why, others) in refused {
                self.due.remove(name);
                if others {
                    self.hopeful.insert(name.clone());
                }
                refuse(nodes, name, &why).await;
            }
            if bound.is_empty() {
                continue;
            }
            match nodes.inner.store.commit(transaction).await {
                Ok(_) => {
                    together = TOGETHER;
                    for one in bound {
                        self.bound(nodes, one);
                    }
                }
                // One of many has changed: one by one, so that it holds up itself only.
                Err(CommitError::Conflict { key, .. }) => {
                    binding::undo(&mut self.board, bound);
                    tracing::debug!(%key, pods = names.len(), "changed while it was being bound");
                    together = 1;
                }
                Err(CommitError::Unavailable(why)) => {
                    binding::undo(&mut self.board, bound);
                    tracing::error!(why, "pods cannot be bound");
                    return;
                }
            }
        }
    }

    fn bound(&mut self, nodes: &Nodes, one: Bound) {
        let Bound { name, pod, node, address } = one;
        tracing::info!(pod = %name, node, ?address, "bound");
        let message = format!("Successfully assigned {name} to {node}");
        nodes.inner.events.record(&ObjectRef::of(&pod), EventType::Normal, "Scheduled", &message, COMPONENT);
        self.waits_no_more(&name);
        if let Some(address) = address {
            self.addresses.insert(name.clone(), address);
        }
        let generation = object::generation(&pod);
        self.pods.insert(name, Seen { node, ended: false, generation });
        self.due.extend(self.hopeful.iter().cloned());
    }

    /// Ends what is left over: objects whose life has no record any more. What could not be written stays a
    /// suspect.
    async fn sweep(&mut self, nodes: &Nodes) {
        for name in std::mem::take(&mut self.suspects) {
            if let Err(error) = settle(nodes, &name).await {
                tracing::warn!(pod = %name, %error, "a pod whose life is over could not be settled");
                self.suspects.insert(name);
            }
        }
    }
}

/// Frees the records of a node that a person has declared down.
async fn free_lost(nodes: &Nodes, name: &str, node: &Value) {
    if !identity::out_of_service(node) || nodes.connected(name) {
        return;
    }
    let store = &nodes.inner.store;
    let freed = async {
        records::out_of_service(store, name).await?;
        // Nor is it awaited any more, if the store was restored from a copy.
        records::inventory_taken(store, name).await
    };
    if let Err(error) = freed.await {
        tracing::warn!(node = name, %error, "its pods' names could not be freed");
    }
}

/// Where the pods of sets were that are gone: kept for as long as the set may be made again soon, which is until
/// the next start.
async fn forget_last_nodes(store: &Store) {
    let mut transaction = Transaction::new();
    for last in store.list(&Scope::all(LAST_NODE)).objects {
        let set = parent_and_ordinal(&last.key.name).map(|(set, _)| set);
        let is_there = |set| store.get(&Key::new("statefulsets.apps", &last.key.namespace, set)).is_some();
        if !set.is_some_and(is_there) {
            transaction = transaction.delete(last.key.clone());
        }
    }
    if let Err(error) = store.commit(transaction).await {
        tracing::debug!(%error, "where pods of sets were that are gone could not be forgotten");
    }
}

async fn settle(nodes: &Nodes, name: &Name) -> Result<(), berth_controller_core::status::Status> {
    let held = world::held(&nodes.inner.store, name);
    let Some(pod) = held.pod else { return Ok(()) };
    let mut value = pod.value();
    match identity::unheld(held.record.as_ref(), &Life::of(&value, Timestamp::now())) {
        Unheld::Fine => Ok(()),
        Unheld::Remove => nodes.grace_is_over(name, &pod.meta.uid).await,
        Unheld::Fail => {
            let status = object::map_mut(&mut value, "status");
            status.insert("phase".into(), "Failed".into());
            status.insert("reason".into(), "IdentityLost".into());
            let message = "No host runs this pod any more: the controller's state was restored from a copy, \
                           or its node was declared out of service.";
            status.insert("message".into(), message.into());
            nodes.inner.events.record(
                &ObjectRef::of(&value),
                EventType::Warning,
                "IdentityLost",
                message,
                COMPONENT,
            );
            let transaction = Transaction::new()
                .absent(name.record_key())
                .unchanged(pod.key.clone(), pod.revision)
                .put(pod.key.clone(), value);
            match nodes.inner.store.commit(transaction).await {
                // Changed: looked at again with that change's own event.
                Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
                Err(CommitError::Unavailable(why)) => Err(records::RecordError::Unavailable(why).into()),
            }
        }
    }
}

/// Says on the pod why it waits.
async fn refuse(nodes: &Nodes, name: &Name, why: &str) {
    let store = &nodes.inner.store;
    let Some(pod) = store.get(&name.pod_key()) else { return };
    let mut value = pod.value();
    let Some(status) = binding::unschedulable(&value, why, Timestamp::now()) else { return };
    value["status"] = status;
    let about = ObjectRef::of(&value);
    nodes.inner.events.record(&about, EventType::Warning, "FailedScheduling", why, COMPONENT);
    let transaction = Transaction::new().unchanged(pod.key.clone(), pod.revision).put(pod.key.clone(), value);
    if let Err(error) = store.commit(transaction).await {
        tracing::debug!(pod = %name, %error, "why it waits could not be written on it");
    }
}

/// Whether the pod asks for this scheduler.
fn ours(pod: &Value) -> bool {
    matches!(pod["spec"]["schedulerName"].as_str(), None | Some("" | "default-scheduler"))
}
