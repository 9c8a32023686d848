//! One agent's session: Hello, what its inventory means, Welcome; then diffs one way and reports the other.
//!
//! ```text
//! Hello ─▶ inventory against records ─▶ Node ─▶ Welcome, the network, Assign/Stop/Forget..., Synced ─┬▶ tell: what changes
//!                                                                                                   └▶ hear: what happens
//! ```
//! Both halves run until one of them ends, the agent falls silent, or another session of the same node
//! takes over. Nothing here outlives the session but what was written to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_controller_core::identity::{Finding, Reported};
use berth_proto::agent_message::Message as FromAgent;
use berth_proto::controller_message::Message as ToAgent;
use berth_proto::{AgentMessage, Heartbeat, Hello, PodEvent, PodRef, PodStatus, Synced, Welcome};
use futures_util::{FutureExt, StreamExt, future};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::ledger::Ledger;
use super::news::{self, Mail};
use super::records::{self, Freed, Reporter};
use super::wire::Outgoing;
use super::world::{self, Name};
use super::{Handle, Nodes, Out, pod_status, usage};
use crate::reconcile::events::{EventType, ObjectRef, Occurrence};
use crate::services::Told;
use crate::store::{CommitError, Key, Store};
use crate::tokens;

/// How often each side says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// An agent that has said nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(35);
/// An agent that takes nothing for so long is gone too.
const STUCK: Duration = Duration::from_secs(30);
/// How long the session before this one may take to end.
const TAKEOVER: Duration = Duration::from_secs(5);
/// Statuses taken together.
const BATCH: usize = 256;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent ended it")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(Status),
    #[error("the agent fell silent")]
    Silent,
    #[error("the agent takes no messages")]
    Stuck,
    #[error("a newer session of this node took over")]
    Replaced,
    #[error("{0}")]
    Store(String),
    #[error("refused: {0}")]
    Refused(String),
}

impl Ended {
    fn to_status(&self) -> Option<Status> {
        match self {
            Ended::Closed | Ended::Broken(_) | Ended::Stuck => None,
            Ended::Silent => Some(Status::deadline_exceeded("no heartbeat came")),
            Ended::Replaced => Some(Status::aborted(self.to_string())),
            Ended::Store(why) => Some(Status::unavailable(why.clone())),
            Ended::Refused(why) => Some(Status::permission_denied(why.clone())),
        }
    }
}

/// What the hearing half passes on to the telling half.
enum Note {
    /// A life of which nothing is left.
    Stopped { name: Name, uid: String, epoch: u64 },
}

/// The whole of a session; `node` is whom the certificate names.
pub(super) async fn run(nodes: Nodes, node: String, mut inbound: Streaming<AgentMessage>, out: Out) {
    let hello = match greet(&node, &mut inbound).await {
        Ok(hello) => hello,
        Err(ended) => {
            tracing::warn!(node, reason = %ended, "session refused");
            if let Some(status) = ended.to_status() {
                let _ = out.send(Err(status)).await;
            }
            return;
        }
    };
    let id = nodes.next_id();
    let cancel = nodes.inner.shutdown.child_token();
    let (_open, done) = watch::channel(());
    let handle = Handle { id, out: out.clone(), cancel: cancel.clone(), done };
    let before = nodes.sessions().insert(node.clone(), handle);
    if let Some(before) = before {
        before.cancel.cancel();
        let mut done = before.done;
        // Closed, not changed, is what is waited for.
        let _ = tokio::time::timeout(TAKEOVER, done.changed()).await;
    }
    tracing::info!(node, pods = hello.pods.len(), version = %hello.agent_version, "session opened");
    if tokens::is_revoked(&nodes.inner.store, &node) {
        cancel.cancel();
    }
    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => match tokens::is_revoked(&nodes.inner.store, &node) {
            true => Ended::Refused(tokens::revoked_because(&node)),
            false => Ended::Replaced,
        },
        ended = hold(&nodes, &node, id, hello, inbound, &out) => ended,
    };
    nodes.inner.operations.ended(id);
    tracing::info!(node, reason = %ended, "session ended");
    if let Some(status) = ended.to_status() {
        let _ = tokio::time::timeout(Duration::from_secs(1), out.send(Err(status))).await;
    }
    let mut sessions = nodes.sessions();
    if sessions.get(&node).is_some_and(|h| h.id == id) {
        sessions.remove(&node);
        drop(sessions);
        nodes.watch_absence(&node, ended.to_string());
    }
}

async fn greet(node: &str, inbound: &mut Streaming<AgentMessage>) -> Result<Hello, Ended> {
    match tokio::time::timeout(SILENCE, inbound.message()).await {
        Err(_) => Err(Ended::Silent),
        Ok(Err(status)) => Err(Ended::Broken(status)),
        Ok(Ok(None)) => Err(Ended::Closed),
        Ok(Ok(Some(AgentMessage { message: Some(FromAgent::Hello(hello)) }))) if hello.node_name == node => {
            Ok(hello)
        }
        Ok(Ok(Some(AgentMessage { message: Some(FromAgent::Hello(hello)) }))) => Err(Ended::Refused(
            format!("the certificate is node {node:?}'s, and the agent says it is {:?}", hello.node_name),
        )),
        Ok(Ok(Some(_))) => Err(Ended::Refused("a session begins with Hello".to_owned())),
    }
}

/// From Hello to the end.
async fn hold(
    nodes: &Nodes,
    node: &str,
    id: u64,
    hello: Hello,
    inbound: Streaming<AgentMessage>,
    out: &Out,
) -> Ended {
    let version = hello.agent_version.clone();
    let mut teller = match open(nodes, node, hello).await {
        Ok(teller) => teller,
        Err(ended) => return ended,
    };
    let (notes, heard) = mpsc::channel(64);
    let telling = async { teller.run(nodes, out, heard).await };
    let hearing = hear(nodes, node, id, &version, inbound, notes);
    tokio::select! {
        Err(ended) = telling => ended,
        Err(ended) = hearing => ended,
        else => Ended::Closed,
    }
}

/// Takes the inventory, so that from here on the records say what is, and registers the node.
async fn open(nodes: &Nodes, node: &str, hello: Hello) -> Result<Teller, Ended> {
    let store = &nodes.inner.store;
    // From before anything is read: what changes meanwhile is looked at once more.
    let mail = nodes.inner.news.open(node);
    let mut ledger = Ledger::new(node);
    let report = hello.node.clone().unwrap_or_default();
    if let Err(status) = nodes.register(node, &report, &hello.agent_version).await {
        return Err(Ended::Store(status.message));
    }
    let range = nodes.range_of(node);
    let prefix = range.split_once('/').map_or("24", |(_, prefix)| prefix);
    let restored = world::restore(store).awaited.contains(node);
    let mut there = BTreeSet::new();
    for line in &hello.pods {
        let Some(pod) = &line.pod else { continue };
        let name = Name::new(&pod.namespace, &pod.name);
        let held = world::held(store, &name);
        // The last status goes before the record: it counts only while the life holds it.
        if let (Some(status), Some(true)) =
            (&line.status, held.record.map(|r| r.is(node, &pod.uid, pod.epoch)))
        {
            write_status(nodes, node, status).await?;
        }
        let reported = Reported { node, uid: &pod.uid, epoch: pod.epoch, stopped: line.stopped };
        let address = line.status.as_ref().and_then(|s| s.pod_ips.first());
        let address = address.map(|ip| format!("{ip}/{prefix}")).unwrap_or_default();
        let finding = records::reported(store, &name, &reported, &address)
            .await
            .map_err(|e| Ended::Store(e.to_string()))?;
        if finding != Finding::InForce {
            tracing::info!(pod = %name, node, uid = %pod.uid, epoch = pod.epoch, ?finding, "found on the host");
        }
        there.insert((name.clone(), pod.epoch));
        ledger.reported(&name, &pod.uid, pod.epoch, line.stopped);
        if let (Finding::Adopt, Some(status)) = (&finding, &line.status) {
            write_status(nodes, node, status).await?;
        }
    }
    if restored {
        // What the host held when the copy was made and holds no more has ended since, and was freed in a history
        // that this store has lost: the host would not start that life again.
        for (name, record) in world::records_of(store, node) {
            if there.contains(&(name.clone(), record.epoch)) {
                continue;
            }
            let from = Reporter { node, uid: &record.uid, epoch: record.epoch };
            let freed =
                records::stopped(store, &name, &from).await.map_err(|e| Ended::Store(e.to_string()))?;
            tracing::warn!(pod = %name, node, uid = %record.uid, ?freed, "ended since the backup was made");
            if freed == Freed::PodLeft {
                let over = nodes.grace_is_over(&name, &record.uid).await;
                over.map_err(|status| Ended::Store(status.message))?;
            }
        }
    }
    records::inventory_taken(store, node).await.map_err(|e| Ended::Store(e.to_string()))?;
    Ok(Teller { node: node.to_owned(), ledger, mail })
}

/// The telling half.
struct Teller {
    node: String,
    ledger: Ledger,
    mail: Mail,
}

impl Teller {
    async fn run(&mut self, nodes: &Nodes, out: &Out, mut heard: mpsc::Receiver<Note>) -> Result<(), Ended> {
        let store = &nodes.inner.store;
        let mut place = nodes.place_of(&self.node).unwrap_or_default();
        let welcome = Welcome {
            pod_cidr: nodes.range_of(&self.node),
            cluster_domain: place.cluster_domain.clone(),
            epoch_floor: records::last_epoch(store),
            service_cidr: nodes.inner.config.service_cidr.to_string(),
        };
        send(out, ToAgent::Welcome(welcome)).await?;
        let mut network = nodes.inner.services.listen();
        // Before any pod: who starts must find the others.
        send_network(out, network.next().await).await?;
        let mut dirty = self.everything(store);
        self.review(&mut dirty, &mut heard, nodes, out, &place).await?;
        send(out, ToAgent::Synced(Synced {})).await?;

        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = heartbeat.tick() => send(out, ToAgent::Heartbeat(Heartbeat {})).await?,
                note = heard.recv() => match note {
                    None => return Ok(()),
                    Some(note) => self.heard(note, &mut dirty),
                },
                updates = network.next() => send_network(out, updates).await?,
                letters = self.mail.next() => {
                    dirty.extend(letters.names);
                    for source in letters.sources {
                        let users = self.ledger.users(&source);
                        if users.is_empty() {
                            self.mail.leave(&source);
                        }
                        dirty.extend(users);
                    }
                    // A Node that a person has deleted changes nothing for what runs on it.
                    let moved = (letters.node || letters.everything)
                        .then(|| nodes.place_of(&self.node))
                        .flatten()
                        .filter(|now| *now != place);
                    let all = letters.everything || moved.is_some();
                    place = moved.unwrap_or(place);
                    if all {
                        dirty = self.everything(store);
                    }
                }
            }
            self.review(&mut dirty, &mut heard, nodes, out, &place).await?;
        }
    }

    fn heard(&mut self, note: Note, dirty: &mut BTreeSet<Name>) {
        let Note::Stopped { name, uid, epoch } = note;
        self.ledger.stopped(&name, &uid, epoch);
        dirty.insert(name);
    }

    /// Every name this node may have to hear about.
    fn everything(&self, store: &Store) -> BTreeSet<Name> {
        let records = world::records_of(store, &self.node).into_iter().map(|(name, _)| name);
        records.chain(self.ledger.names().cloned()).collect()
    }

    async fn review(
        &mut self,
        dirty: &mut BTreeSet<Name>,
        heard: &mut mpsc::Receiver<Note>,
        nodes: &Nodes,
        out: &Out,
        place: &berth_controller_core::resolve::Place,
    ) -> Result<(), Ended> {
        let store = &nodes.inner.store;
        while let Some(name) = dirty.pop_first() {
            let read_at = store.revision();
            let held = world::held(store, &name);
            // A note is passed on before the record goes: whoever has seen the record gone finds it here.
            while let Ok(note) = heard.try_recv() {
                self.heard(note, dirty);
            }
            for message in
                self.ledger.review(&name, &held, store, &nodes.inner.links, place, Timestamp::now())
            {
                send(out, message).await?;
            }
            for source in self.ledger.take_fresh() {
                let key = news::key_of(&source);
                self.mail.follow(source);
                // What has changed before anybody knew that it matters.
                if store.get(&key).is_some_and(|object| object.revision > read_at) {
                    dirty.insert(name.clone());
                }
            }
        }
        Ok(())
    }
}

async fn send_network(out: &Out, updates: Vec<Told>) -> Result<(), Ended> {
    for update in updates {
        pass(out, Outgoing::Encoded(update.encoded)).await?;
    }
    Ok(())
}

async fn send(out: &Out, message: ToAgent) -> Result<(), Ended> {
    pass(out, message.into()).await
}

async fn pass(out: &Out, message: Outgoing) -> Result<(), Ended> {
    match tokio::time::timeout(STUCK, out.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::Closed),
        Err(_) => Err(Ended::Stuck),
    }
}

/// The hearing half.
async fn hear(
    nodes: &Nodes,
    node: &str,
    id: u64,
    version: &str,
    mut inbound: Streaming<AgentMessage>,
    notes: mpsc::Sender<Note>,
) -> Result<(), Ended> {
    loop {
        let mut next = match tokio::time::timeout(SILENCE, inbound.message()).await {
            Err(_) => return Err(Ended::Silent),
            Ok(Err(status)) => return Err(Ended::Broken(status)),
            Ok(Ok(None)) => return Err(Ended::Closed),
            Ok(Ok(Some(message))) => message.message,
        };
        // Statuses that are here already are written side by side, the latest of each pod.
        let mut statuses: BTreeMap<String, PodStatus> = BTreeMap::new();
        while let Some(FromAgent::PodStatus(status)) = next {
            let uid = status.pod.as_ref().map(|p| p.uid.clone()).unwrap_or_default();
            statuses.insert(uid, status);
            if statuses.len() >= BATCH {
                next = None;
                break;
            }
            next = match inbound.next().now_or_never() {
                Some(Some(Ok(message))) => message.message,
                // Seen again, and for good, at the top.
                _ => None,
            };
        }
        let written = statuses.values().map(|status| write_status(nodes, node, status));
        future::try_join_all(written).await?;
        match next {
            Some(FromAgent::Stopped(stopped)) => {
                if let Some(pod) = stopped.pod {
                    free(nodes, node, pod, &notes).await?;
                }
            }
            Some(FromAgent::Event(event)) => occurred(nodes, node, event),
            Some(FromAgent::NodeStatus(report)) => {
                if let Err(status) = nodes.report_node(node, &report, version).await {
                    return Err(Ended::Store(status.message));
                }
            }
            Some(FromAgent::OperationResult(result)) => {
                nodes.inner.operations.answered(id, result);
            }
            Some(FromAgent::VolumeUsage(report)) => usage::report(nodes, node, &report).await,
            Some(FromAgent::Hello(_)) => return Err(Ended::Refused("Hello comes once".to_owned())),
            Some(FromAgent::Heartbeat(_) | FromAgent::PodStatus(_)) | None => {}
        }
    }
}

/// A life is over: its record is freed, its object goes if it was being deleted, and the agent may forget.
async fn free(nodes: &Nodes, node: &str, pod: PodRef, notes: &mpsc::Sender<Note>) -> Result<(), Ended> {
    let name = Name::new(&pod.namespace, &pod.name);
    // First: what the record's end is to the other half depends on it.
    let note = Note::Stopped { name: name.clone(), uid: pod.uid.clone(), epoch: pod.epoch };
    if notes.send(note).await.is_err() {
        return Err(Ended::Closed);
    }
    let from = Reporter { node, uid: &pod.uid, epoch: pod.epoch };
    let freed =
        records::stopped(&nodes.inner.store, &name, &from).await.map_err(|e| Ended::Store(e.to_string()))?;
    tracing::debug!(pod = %name, node, uid = %pod.uid, epoch = pod.epoch, ?freed, "stopped");
    if freed == Freed::PodLeft {
        nodes.grace_is_over(&name, &pod.uid).await.map_err(|status| Ended::Store(status.message))?;
    }
    Ok(())
}

/// Writes what an agent says of a pod, if it is about the life that holds the name.
async fn write_status(nodes: &Nodes, node: &str, report: &PodStatus) -> Result<(), Ended> {
    let store = &nodes.inner.store;
    let Some(life) = &report.pod else { return Ok(()) };
    let name = Name::new(&life.namespace, &life.name);
    for _ in 0..32 {
        let held = world::held(store, &name);
        let (Some(pod), Some(record)) = (&held.pod, &held.record) else { return Ok(()) };
        if !record.is(node, &life.uid, life.epoch) || *pod.meta.uid != *life.uid {
            return Ok(());
        }
        let mut value = pod.value();
        let status = pod_status::status(&value, report, Timestamp::now());
        let status = status.filter(|status| value["status"] != *status);
        let given_up = if report.released { records::without_volumes(&held) } else { None };
        if status.is_none() && given_up.is_none() {
            return Ok(());
        }
        let mut tx = given_up.unwrap_or_default().unchanged(pod.key.clone(), pod.revision);
        if let Some(status) = status {
            value["status"] = status;
            tx = tx.put(pod.key.clone(), value);
        }
        match store.commit(tx).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Conflict { .. }) => {}
            Err(CommitError::Unavailable(why)) => return Err(Ended::Store(why)),
        }
    }
    // The agent says it again with its next change, or in its next Hello.
    tracing::warn!(pod = %name, "its status could not be written: it keeps changing");
    Ok(())
}

/// An agent's event about one of its own pods.
fn occurred(nodes: &Nodes, node: &str, event: PodEvent) {
    let Some(pod) = event.pod else { return };
    let name = Name::new(&pod.namespace, &pod.name);
    let Some(object) = nodes.inner.store.get(&Key::new(world::PODS, &name.namespace, &name.name)) else {
        return;
    };
    if *object.meta.uid != *pod.uid || object.value()["spec"]["nodeName"] != node {
        return;
    }
    let r#type = if event.r#type == "Warning" { EventType::Warning } else { EventType::Normal };
    let at = Timestamp::from_millisecond(event.at_ms).unwrap_or_else(|_| Timestamp::now());
    nodes.inner.events.occurred(Occurrence {
        object: ObjectRef {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: name.namespace,
            name: name.name,
            uid: pod.uid,
            field_path: event.field_path,
        },
        r#type,
        reason: event.reason,
        message: event.message,
        component: "berth-agent".to_owned(),
        host: node.to_owned(),
        at,
    });
}

impl Nodes {
    /// Ends a host's session, if it has one; its pods run on.
    pub(super) fn end_session(&self, node: &str) {
        if let Some(session) = self.sessions().get(node) {
            session.cancel.cancel();
        }
    }

    /// Ends all sessions; the hosts' pods run on.
    pub(super) fn close(&self) {
        self.inner.shutdown.cancel();
    }

    /// A deleted pod of which nothing is left, and whose object waits for finalizers only.
    pub(super) async fn grace_is_over(
        &self,
        name: &Name,
        uid: &str,
    ) -> Result<(), berth_controller_core::status::Status> {
        let kind = &berth_controller_core::kinds::pod::POD;
        self.inner.objects.remove(kind, &name.namespace, &name.name, uid).await
    }
}
