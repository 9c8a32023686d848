//! What one session has told its agent, and what is still to be said.
//!
//! The ledger compares what the records ask for with what it said last, name by name, so that it may be
//! asked about any name at any time: a change that changes nothing for the agent says nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_controller_core::identity::{self, Desired, Life};
use berth_controller_core::resolve::{self, Place, Use};
use berth_proto::controller_message::Message;
use berth_proto::{Assignment, PodRef, Stop};
use jiff::Timestamp;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::world::{self, Held, Name, ServiceLinks, Stored};
use crate::store::Store;

/// The lives that this agent holds or was told of.
pub struct Ledger {
    node: String,
    lives: BTreeMap<Name, Vec<Entry>>,
    /// Whose assignment was made from what.
    users: HashMap<Use, BTreeSet<Name>>,
    /// Of these, what has come since [`Ledger::take_fresh`].
    fresh: Vec<Use>,
}

struct Entry {
    uid: String,
    epoch: u64,
    /// The agent has said that it holds it, or was told to in this session.
    reported: bool,
    /// The agent has said that nothing is left of it.
    stopped: bool,
    said: Said,
    uses: BTreeSet<Use>,
}

#[derive(PartialEq)]
enum Said {
    Nothing,
    /// The assignment's digest.
    Assign([u8; 32]),
    /// When the grace period ends (the pod's deletionTimestamp; empty: at once).
    Stop(String),
}

impl Ledger {
    pub fn new(node: impl Into<String>) -> Ledger {
        Ledger { node: node.into(), lives: BTreeMap::new(), users: HashMap::new(), fresh: Vec::new() }
    }

    /// The agent holds this life.
    pub fn reported(&mut self, name: &Name, uid: &str, epoch: u64, stopped: bool) {
        let entry = self.entry(name, uid, epoch);
        entry.reported = true;
        entry.stopped |= stopped;
    }

    /// The agent has said `Stopped` (again) and is to be answered.
    pub fn stopped(&mut self, name: &Name, uid: &str, epoch: u64) {
        self.reported(name, uid, epoch, true);
    }

    /// Every name there may be something to say about.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.lives.keys()
    }

    /// The names whose assignments were made from this object.
    pub fn users(&self, of: &Use) -> Vec<Name> {
        self.users.get(of).into_iter().flatten().cloned().collect()
    }

    /// What assignments are made from since the last time that none was made from before.
    pub fn take_fresh(&mut self) -> Vec<Use> {
        std::mem::take(&mut self.fresh)
    }

    /// What is to be said about a name now, in order; `held` is what is stored under it.
    pub fn review(
        &mut self,
        name: &Name,
        held: &Held,
        store: &Store,
        links: &ServiceLinks,
        place: &Place,
        now: Timestamp,
    ) -> Vec<Message> {
        let restore = world::restore(store);
        let pod = held.pod.as_ref().map(|o| o.value());
        let life = pod.as_ref().map(|p| Life::of(p, now));
        let mut messages = Vec::new();
        let record = held.record.as_ref().filter(|r| r.node == self.node);
        if let Some(record) = record {
            let node_said = self.lives.get(name).into_iter().flatten();
            let reported = node_said.into_iter().any(|e| e.uid == record.uid && e.reported);
            match (identity::desired(record, life.as_ref(), reported, &restore), &pod) {
                (Desired::Run, Some(pod)) => {
                    let resolved = resolve::resolve(pod, record, place, &Stored(store, links));
                    let digest = digest(&resolved.assignment);
                    self.note_uses(name, &record.uid, record.epoch, resolved.uses);
                    let entry = self.entry(name, &record.uid, record.epoch);
                    // What was assigned is the agent's, whether it has answered yet or not.
                    entry.reported = true;
                    if entry.said != Said::Assign(digest) && !matches!(entry.said, Said::Stop(_)) {
                        entry.said = Said::Assign(digest);
                        messages.push(Message::Assign(resolved.assignment));
                    }
                }
                (Desired::Stop(grace), pod) => {
                    let until = pod
                        .as_ref()
                        .filter(|_| grace > 0)
                        .and_then(|p| p["metadata"]["deletionTimestamp"].as_str())
                        .unwrap_or_default()
                        .to_owned();
                    let reason = if until.is_empty() { "removed" } else { "deleted" };
                    let (uid, epoch) = (record.uid.clone(), record.epoch);
                    messages.extend(self.say_stop(name, &uid, epoch, grace, until, reason));
                }
                (Desired::Run | Desired::Wait, _) => {}
            }
        }
        self.review_others(name, held, life.as_ref(), &mut messages);
        messages
    }

    /// Lives of that name that hold no record here: strangers are stopped, what is over is forgotten.
    fn review_others(&mut self, name: &Name, held: &Held, life: Option<&Life>, messages: &mut Vec<Message>) {
        let mine = |e: &Entry| held.record.as_ref().is_some_and(|r| r.is(&self.node, &e.uid, e.epoch));
        let others: Vec<(String, u64, bool)> = self
            .lives
            .get(name)
            .into_iter()
            .flatten()
            .filter(|e| !mine(e))
            .map(|e| (e.uid.clone(), e.epoch, e.stopped))
            .collect();
        for (uid, epoch, stopped) in others {
            if !stopped {
                messages.extend(self.say_stop(name, &uid, epoch, 0, String::new(), "not held"));
            } else if held.record.is_some() || life.is_none_or(|l| l.uid != uid) {
                // A pod that has ended by itself keeps its logs for as long as its object is there.
                messages.push(Message::Forget(reference(name, &uid, epoch)));
                self.drop_entry(name, &uid);
            }
        }
    }

    fn say_stop(
        &mut self,
        name: &Name,
        uid: &str,
        epoch: u64,
        grace: i64,
        until: String,
        reason: &str,
    ) -> Option<Message> {
        let entry = self.entry(name, uid, epoch);
        if entry.said == Said::Stop(until.clone()) {
            return None;
        }
        entry.said = Said::Stop(until);
        let pod = Some(reference(name, uid, epoch));
        Some(Message::Stop(Stop { pod, grace_seconds: grace, reason: reason.to_owned() }))
    }

    fn entry(&mut self, name: &Name, uid: &str, epoch: u64) -> &mut Entry {
        let entries = self.lives.entry(name.clone()).or_default();
        let at = match entries.iter().position(|e| e.uid == uid && e.epoch == epoch) {
            Some(at) => at,
            None => {
                entries.push(Entry {
                    uid: uid.to_owned(),
                    epoch,
                    reported: false,
                    stopped: false,
                    said: Said::Nothing,
                    uses: BTreeSet::new(),
                });
                entries.len() - 1
            }
        };
        &mut entries[at]
    }

    fn note_uses(&mut self, name: &Name, uid: &str, epoch: u64, uses: BTreeSet<Use>) {
        let entry = self.entry(name, uid, epoch);
        if entry.uses == uses {
            return;
        }
        let before = std::mem::replace(&mut entry.uses, uses.clone());
        self.forget_uses(name, &before);
        for used in uses {
            if !self.users.contains_key(&used) {
                self.fresh.push(used.clone());
            }
            self.users.entry(used).or_default().insert(name.clone());
        }
    }

    fn forget_uses(&mut self, name: &Name, uses: &BTreeSet<Use>) {
        for used in uses {
            if let Some(users) = self.users.get_mut(used) {
                users.remove(name);
                if users.is_empty() {
                    self.users.remove(used);
                }
            }
        }
    }

    fn drop_entry(&mut self, name: &Name, uid: &str) {
        let Some(entries) = self.lives.get_mut(name) else { return };
        let gone: Vec<BTreeSet<Use>> = entries.extract_if(.., |e| e.uid == uid).map(|e| e.uses).collect();
        let kept: Vec<BTreeSet<Use>> = entries.iter().map(|e| e.uses.clone()).collect();
        if entries.is_empty() {
            self.lives.remove(name);
        }
        for uses in gone {
            self.forget_uses(name, &uses);
        }
        for used in kept.into_iter().flatten() {
            self.users.entry(used).or_default().insert(name.clone());
        }
    }
}

pub fn reference(name: &Name, uid: &str, epoch: u64) -> PodRef {
    PodRef { namespace: name.namespace.clone(), name: name.name.clone(), uid: uid.to_owned(), epoch }
}

/// Of everything in an assignment. Its maps are encoded in no particular order, so they are taken apart.
fn digest(assignment: &Assignment) -> [u8; 32] {
    let mut rest = assignment.clone();
    let labels: BTreeMap<_, _> = std::mem::take(&mut rest.labels).into_iter().collect();
    let annotations: BTreeMap<_, _> = std::mem::take(&mut rest.annotations).into_iter().collect();
    let mut hash = Sha256::new();
    hash.update(rest.encode_to_vec());
    for map in [labels, annotations] {
        for (key, value) in map {
            for text in [key, value] {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
        }
        hash.update([0xff]);
    }
    hash.finalize().into()
}
