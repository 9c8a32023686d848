//! The fence around a pod's name (DESIGN D5): who holds it, who may take it, when it is free again.
//!
//! For each (namespace, pod name) there is at most one [`Record`]. It is written in the transaction that
//! binds the pod, and it outlives the pod's object: only the host that holds that life can end it, by
//! reporting that nothing of it is left. Everything the controller does with records is one of the functions
//! here, so that the property tests beside this file exercise the rules themselves.
//!
//! Why never two lives of one name run: a life starts only by an assignment, assignments are made only from
//! records, a record is written only where none is ([`bind`]), and it goes only by [`stopped`] of that very
//! life. Epochs grow with every binding, so of two reports the later life is known, even by a controller
//! whose store is older than the world ([`report`], [`Restore`]).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::object;

#[cfg(test)]
mod tests;

/// The records' place in the store; namespace and name are the pod's.
pub const RESOURCE: &str = "identities.berth.dev";

/// In a record's JSON: the names of the volumes that its life has. They are written with the binding, and given up when
/// the host says that no write can still arrive at them, which may be before the name is free.
pub const VOLUMES: &str = "volumes";

/// Where the epoch counter is: this resource, no namespace, the name `epoch`; `{"last": n}`.
pub const COUNTERS: &str = "counters.berth.dev";

/// Where [`Restore`] is: this resource, no namespace, the name `restore`; absent in normal life.
pub const RESTORE: &str = "restore.berth.dev";

/// The taint by which a person vouches that a host is down: its records are freed without its report.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Who holds a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The pod's uid.
    pub uid: String,
    pub node: String,
    pub epoch: u64,
    /// The pod's address with its prefix length (`10.42.0.7/24`); empty if the host chooses it.
    pub address: String,
}

impl Record {
    /// None: not a record (nothing but the controller writes them).
    pub fn read(value: &Value) -> Option<Record> {
        Some(Record {
            uid: value["uid"].as_str()?.to_owned(),
            node: value["node"].as_str()?.to_owned(),
            epoch: value["epoch"].as_u64()?,
            address: value["address"].as_str().unwrap_or_default().to_owned(),
        })
    }

    pub fn write(&self) -> Value {
        json!({
            "metadata": {}, "uid": self.uid, "node": self.node, "epoch": self.epoch, "address": self.address,
        })
    }

    /// Whether a message is about this very life.
    pub fn is(&self, node: &str, uid: &str, epoch: u64) -> bool {
        self.node == node && self.uid == uid && self.epoch == epoch
    }
}

/// The volumes a record lists; None: written by somebody who did not know them.
pub fn volumes(record: &Value) -> Option<Vec<&str>> {
    Some(record[VOLUMES].as_array()?.iter().filter_map(Value::as_str).collect())
}

/// The epoch after `last`. Mixed with the clock (Unix milliseconds) so that a counter restored from a
/// back-up does not hand out an epoch a second time; a clock that is wrong only makes it a plain counter.
pub fn next_epoch(last: u64, now_ms: u64) -> u64 {
    last.saturating_add(1).max(now_ms)
}

/// What of a pod's object matters here.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Life {
    pub uid: String,
    /// `spec.nodeName`, empty if unbound.
    pub node: String,
    /// Deletion was asked for: seconds that are left of the grace period.
    pub deleting: Option<i64>,
    /// Its phase is Succeeded or Failed.
    pub ended: bool,
    /// Its condition PodScheduled says that it was bound: a node's name alone may be its maker's wish.
    pub scheduled: bool,
}

impl Life {
    pub fn of(pod: &Value, now: jiff::Timestamp) -> Life {
        Life {
            uid: object::uid(pod).to_owned(),
            node: pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
            deleting: object::deleting(pod).then(|| grace_left(pod, now)),
            ended: matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")),
            scheduled: pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "PodScheduled" && c["status"] == "True"),
        }
    }
}

/// Whole seconds of grace left, rounded up: `deletionTimestamp` (when the grace period ends) has no fraction.
fn grace_left(pod: &Value, now: jiff::Timestamp) -> i64 {
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0).max(0);
    let until = pod["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    let Some(until) = until else { return grace };
    let left = (until.as_millisecond() - now.as_millisecond() + 999).div_euclid(1000);
    left.clamp(0, grace)
}

/// Why a pod cannot have its name now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another life holds the name (or this very one is bound already).
    #[error("the name is still held by an earlier pod (uid {}) on node {:?}, which has not reported that it has stopped", .0.uid, .0.node)]
    Held(Record),
    #[error("the pod is being deleted")]
    Deleting,
    #[error("the pod has ended")]
    Ended,
    /// After a restore: hosts whose inventory is still awaited.
    #[error("the controller's state was restored from a copy: waiting for the inventory of {}", .0.iter().cloned().collect::<Vec<_>>().join(", "))]
    Restoring(BTreeSet<String>),
}

/// Whether this pod may take its name: `held` is the record there is. The caller writes the record with the
/// next epoch in the transaction that sets `spec.nodeName`, and makes the record's absence a condition of it.
pub fn bind(held: Option<&Record>, pod: &Life, restore: &Restore) -> Result<(), Refusal> {
    if let Some(record) = held {
        return Err(Refusal::Held(record.clone()));
    }
    if pod.deleting.is_some() {
        return Err(Refusal::Deleting);
    }
    if pod.ended {
        return Err(Refusal::Ended);
    }
    if !restore.awaited.is_empty() {
        return Err(Refusal::Restoring(restore.awaited.clone()));
    }
    Ok(())
}

/// What the host holding a record should do with that life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    Run,
    /// Seconds of grace.
    Stop(i64),
    /// Nothing is said until every host's inventory is known.
    Wait,
}

/// `pod` is the object of that name, if there is one; `reported`: the host has said in this session that it
/// holds this life.
pub fn desired(record: &Record, pod: Option<&Life>, reported: bool, restore: &Restore) -> Desired {
    match pod {
        // Removed by force, or already another pod of that name: this life has no object any more.
        None => Desired::Stop(0),
        Some(pod) if pod.uid != record.uid => Desired::Stop(0),
        Some(Life { deleting: Some(grace), .. }) => Desired::Stop(*grace),
        // A host that knows nothing of a pod that has ended (a new disk) must not run it again.
        Some(Life { ended: true, .. }) if !reported => Desired::Stop(0),
        Some(_) if !reported && !restore.awaited.is_empty() => Desired::Wait,
        Some(_) => Desired::Run,
    }
}

/// One line of a host's inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported<'a> {
    pub node: &'a str,
    pub uid: &'a str,
    pub epoch: u64,
    pub stopped: bool,
}

/// What a line of an inventory means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The life that holds the name: [`desired`] says what to do with it.
    InForce,
    /// It held the name and is gone: as [`stopped`].
    Free,
    /// It runs and nothing newer holds the name (the store is older than the world): it gets the record,
    /// with its own epoch, and only then does [`desired`] say what to do with it.
    Adopt,
    /// It runs, and does not hold the name: stop it at once, then forget it.
    Stop,
    /// Nothing of it is left and nothing is kept for it.
    Forget,
}

/// What to make of a reported life, given who holds the name.
pub fn report(held: Option<&Record>, it: &Reported) -> Finding {
    match held {
        Some(record) if record.is(it.node, it.uid, it.epoch) => {
            if it.stopped {
                Finding::Free
            } else {
                Finding::InForce
            }
        }
        _ if it.stopped => Finding::Forget,
        None => Finding::Adopt,
        // A later binding is the proof that the life in the record was freed before it, in a history that
        // this store has lost.
        Some(record) if it.epoch > record.epoch => Finding::Adopt,
        Some(_) => Finding::Stop,
    }
}

/// What a host's `Stopped` is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Free the record.
    Free,
    /// About a life that holds nothing: the host may forget it.
    Unknown,
}

/// `held` is the record of the name that `node` reports as stopped.
pub fn stopped(held: Option<&Record>, node: &str, uid: &str, epoch: u64) -> Stopped {
    match held {
        Some(record) if record.is(node, uid, epoch) => Stopped::Free,
        _ => Stopped::Unknown,
    }
}

/// A bound pod's object whose life has no record can never run again, and no host will report on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheld {
    /// As it should be.
    Fine,
    /// Being deleted, and nothing is left to wait for: remove the object.
    Remove,
    /// Its life was lost (a restored store): mark it Failed, so that its owner replaces it.
    Fail,
}

/// Whether an object is left over; `held` is the record of its name.
pub fn unheld(held: Option<&Record>, pod: &Life) -> Unheld {
    if pod.node.is_empty() || held.is_some_and(|record| record.uid == pod.uid) {
        return Unheld::Fine;
    }
    match (pod.deleting, pod.ended) {
        (Some(_), _) => Unheld::Remove,
        (None, false) if pod.scheduled => Unheld::Fail,
        (None, _) => Unheld::Fine,
    }
}

/// Whether a node's records may be freed without its report: a person says that the host is down.
pub fn out_of_service(node: &Value) -> bool {
    node["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|t| t["key"] == OUT_OF_SERVICE))
}

/// The state of a controller that was restored from a copy of its store.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Restore {
    /// Nodes whose inventory has not been taken since: until then nothing new is started anywhere.
    pub awaited: BTreeSet<String>,
}

impl Restore {
    pub fn read(value: &Value) -> Restore {
        let nodes = value["awaited"].as_array().into_iter().flatten();
        Restore { awaited: nodes.filter_map(|n| n.as_str().map(str::to_owned)).collect() }
    }

    pub fn write(&self) -> Value {
        json!({"metadata": {}, "awaited": self.awaited})
    }
}
