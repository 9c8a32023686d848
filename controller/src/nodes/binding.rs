//! The scheduler's writing half: from a pod that waits to the transaction that binds it.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use berth_controller_core::claims::{self, Binding, Standing, Storage};
use berth_controller_core::identity::{self, Life, Record, Refusal};
use berth_controller_core::kinds::persistent_volume::PERSISTENT_VOLUME;
use berth_controller_core::object;
use berth_controller_core::place::{self, Candidate, Reasons};
use berth_controller_core::resolve::resources::{Request, qos_class};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::world::{self, Name};
use super::{Nodes, Range, pod_status, records};
use crate::store::{Key, Scope, Store, Transaction};

pub const CLAIMS: &str = "persistentvolumeclaims";
pub const VOLUMES: &str = "persistentvolumes";
pub const CLASSES: &str = "storageclasses.storage.k8s.io";

/// What is on a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub pods: u64,
    pub requested: Request,
}

/// One attempt to bind some pods at once: everything it is decided from is read when it is made.
pub struct Attempt<'a> {
    nodes: &'a Nodes,
    store: &'a Store,
    objects: Vec<Value>,
    usage: HashMap<String, Usage>,
    used: BTreeSet<Ipv4Addr>,
    last: HashMap<String, Ipv4Addr>,
    /// All volumes and classes; read when a claim that is not bound needs them.
    storage: Option<(Vec<Value>, Vec<Value>)>,
    claimed: BTreeSet<Key>,
    epoch: u64,
    first_epoch: u64,
    pub transaction: Transaction,
    pub bound: Vec<Bound>,
}

/// A binding that is part of an [`Attempt`].
pub struct Bound {
    pub name: Name,
    pub pod: Value,
    pub node: String,
    pub address: Ipv4Addr,
    pub request: Request,
}

/// What is to be done with a pod that waits.
pub enum Outcome {
    /// Part of the transaction.
    Staged,
    /// It waits no more: bound already, gone, or going.
    Over,
    /// Together with what is staged already it cannot be decided: in the next attempt.
    Later,
    /// Not as things are; the text for its event and condition.
    No(String),
}

/// The claims of a pod.
struct Wanted {
    /// The volumes of those that have one.
    volumes: Vec<Value>,
    /// To be bound now, wherever the pod goes.
    now: Vec<(Claim, Binding)>,
    /// To be bound where the pod goes.
    with_pod: Vec<Claim>,
}

struct Claim {
    key: Key,
    revision: u64,
    value: Value,
}

impl<'a> Attempt<'a> {
    pub fn new(
        nodes: &'a Nodes,
        usage: HashMap<String, Usage>,
        used: BTreeSet<Ipv4Addr>,
        last: HashMap<String, Ipv4Addr>,
    ) -> Attempt<'a> {
        let store = &nodes.inner.store;
        let epoch = records::last_epoch(store);
        Attempt {
            nodes,
            store,
            objects: values(store, world::NODES),
            usage,
            used,
            last,
            storage: None,
            claimed: BTreeSet::new(),
            epoch,
            first_epoch: epoch,
            transaction: Transaction::new(),
            bound: Vec::new(),
        }
    }

    /// Decides on one pod and adds its binding to the transaction.
    pub fn stage(&mut self, name: &Name, now: Timestamp) -> Outcome {
        let held = world::held(self.store, name);
        let Some(object) = held.pod else { return Outcome::Over };
        let mut pod = object.value();
        let life = Life::of(&pod, now);
        match identity::bind(held.record.as_ref(), &life, &world::restore(self.store)) {
            Ok(()) => {}
            Err(Refusal::Held(record)) if record.uid == life.uid => return Outcome::Over,
            Err(Refusal::Deleting | Refusal::Ended) => return Outcome::Over,
            Err(refusal) => return Outcome::No(refusal.to_string()),
        }
        let wanted = match self.claims(&pod) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return Outcome::Later,
            Err(why) => return Outcome::No(Reasons::general(self.objects.len(), why).to_string()),
        };
        let node = match self.node_for(&pod, &life, &wanted) {
            Ok(node) => node,
            Err(why) => return Outcome::No(why),
        };
        let node_name = object::name(&node).to_owned();
        let range: Option<Range> = node["spec"]["podCIDR"].as_str().and_then(|r| r.parse().ok());
        let last = self.last.get(&node_name).copied();
        let Some((range, address)) = range.and_then(|r| Some((r, r.next(last, &self.used)?))) else {
            return Outcome::No(format!("no pod address is free on node {node_name:?}"));
        };
        let transaction = match self.write_bindings(wanted, &node) {
            Ok(transaction) => transaction,
            Err(why) => return Outcome::No(why),
        };
        self.epoch = identity::next_epoch(self.epoch, now.as_millisecond().try_into().unwrap_or(0));
        let record = Record {
            uid: life.uid,
            node: node_name.clone(),
            epoch: self.epoch,
            address: range.with_prefix(address),
        };
        bind(&mut pod, &node_name, now);
        self.transaction = transaction
            .absent(name.record_key())
            .put(name.record_key(), record.write())
            .unchanged(object.key.clone(), object.revision)
            .put(object.key.clone(), pod.clone());
        self.used.insert(address);
        self.last.insert(node_name.clone(), address);
        let request = Request::of_pod(&pod);
        let usage = self.usage.entry(node_name.clone()).or_default();
        usage.pods += 1;
        usage.requested = usage.requested.plus(request);
        self.bound.push(Bound { name: name.clone(), pod, node: node_name, address, request });
        Outcome::Staged
    }

    /// The whole, with the epochs that it hands out.
    pub fn finish(&mut self) -> Transaction {
        let transaction = std::mem::take(&mut self.transaction);
        if self.epoch == self.first_epoch {
            return transaction;
        }
        records::raise_epoch(self.store, transaction, self.epoch)
    }

    fn node_for(&self, pod: &Value, life: &Life, wanted: &Wanted) -> Result<Value, String> {
        let storage = self.storage();
        let storage = storage.lend();
        let fits = |node: &Value| {
            if !wanted.volumes.iter().all(|volume| place::reaches(volume, node)) {
                return Err(place::VOLUME_CONFLICT.to_owned());
            }
            let bindings = wanted.now.iter().map(|(_, binding)| &binding.volume);
            if !bindings.into_iter().all(|volume| place::reaches(volume, node)) {
                return Err(place::VOLUME_CONFLICT.to_owned());
            }
            wanted.with_pod.iter().try_for_each(|c| claims::bind_on(&c.value, node, &storage).map(|_| ()))
        };
        if !life.node.is_empty() {
            let node = self.objects.iter().find(|n| object::name(n) == life.node);
            let node = node.ok_or_else(|| format!("node {:?} not found", life.node))?;
            fits(node)?;
            return Ok(node.clone());
        }
        let candidates: Vec<Candidate> = self
            .objects
            .iter()
            .map(|node| {
                let usage = self.usage.get(object::name(node)).copied().unwrap_or_default();
                Candidate { node, pods: usage.pods, requested: usage.requested }
            })
            .collect();
        let name = place::place(pod, &candidates, &fits).map_err(|reasons| reasons.to_string())?;
        let node = self.objects.iter().find(|n| object::name(n) == name);
        node.cloned().ok_or_else(|| format!("node {name:?} not found"))
    }

    /// None: a claim that is part of this attempt already.
    fn claims(&mut self, pod: &Value) -> Result<Option<Wanted>, String> {
        const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
        let mut wanted = Wanted { volumes: Vec::new(), now: Vec::new(), with_pod: Vec::new() };
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let Some(name) = volume["persistentVolumeClaim"]["claimName"].as_str() else { continue };
            let key = Key::new(CLAIMS, object::namespace(pod), name);
            if self.claimed.contains(&key) {
                return Ok(None);
            }
            let object =
                self.store.get(&key).ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
            if object.meta.deleting {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            let mut value = object.value();
            // The usual case, without a look at all the volumes there are.
            if let Some(volume) = bound_volume(self.store, &value) {
                wanted.volumes.push(volume);
                continue;
            }
            if self.storage.is_none() {
                self.storage = Some((values(self.store, VOLUMES), values(self.store, CLASSES)));
            }
            let held = self.storage();
            let storage = held.lend();
            if claims::wants_default_class(&value)
                && let Some(class) = claims::default_class(storage.classes)
            {
                object::map_mut(&mut value, "spec").insert("storageClassName".into(), class.into());
            }
            let standing = claims::standing(&value, &storage);
            let claim = Claim { key, revision: object.revision, value };
            match standing {
                Standing::Bound { volume } => {
                    let bound = storage.volumes.iter().find(|v| object::name(v) == volume);
                    wanted.volumes.extend(bound.map(|v| Value::clone(v)));
                }
                Standing::Now(binding) => {
                    let name = object::name(&binding.volume);
                    if wanted.now.iter().any(|(_, other)| object::name(&other.volume) == name) {
                        // One volume for two claims of this pod: the second waits for its own turn.
                        return Err(UNBOUND.to_owned());
                    }
                    wanted.now.push((claim, *binding));
                }
                Standing::WithPod => wanted.with_pod.push(claim),
                Standing::Waits { .. } => return Err(UNBOUND.to_owned()),
                Standing::Lost { .. } => {
                    return Err(format!("persistentvolumeclaim {name:?} has lost its volume"));
                }
            }
        }
        Ok(Some(wanted))
    }

    fn storage(&self) -> Lists<'_> {
        let (volumes, classes) = match &self.storage {
            Some((volumes, classes)) => (volumes.as_slice(), classes.as_slice()),
            None => (&[][..], &[][..]),
        };
        Lists { nodes: self.nodes, volumes: volumes.iter().collect(), classes: classes.iter().collect() }
    }

    /// The transaction so far with the bindings of a pod's claims, or without any of them.
    fn write_bindings(&mut self, wanted: Wanted, node: &Value) -> Result<Transaction, String> {
        let mut transaction = self.transaction.clone();
        let now = wanted.now.into_iter().map(|(claim, binding)| (claim, Some(binding)));
        let with_pod = wanted.with_pod.into_iter().map(|claim| (claim, None));
        for (claim, binding) in now.chain(with_pod) {
            let binding = match binding {
                Some(binding) => binding,
                // One after the other: what the last one took is not there for the next.
                None => claims::bind_on(&claim.value, node, &self.storage().lend())?,
            };
            let volume_name = object::name(&binding.volume).to_owned();
            let key = Key::new(VOLUMES, "", &volume_name);
            let volume = if binding.new {
                transaction = transaction.absent(key.clone());
                let staged =
                    self.nodes.inner.objects.stage_create(&PERSISTENT_VOLUME, "", binding.volume.clone());
                let mut staged = staged.map_err(|status| status.message)?;
                // Creation resets what only a binding may say.
                staged["status"] = binding.volume["status"].clone();
                staged
            } else {
                let there = self.store.get(&key);
                let there = there.ok_or_else(|| format!("persistentvolume {volume_name:?} not found"))?;
                transaction = transaction.unchanged(key.clone(), there.revision);
                binding.volume
            };
            // The next pod of this attempt must not get it too.
            let (volumes, _) = self.storage.get_or_insert_default();
            match volumes.iter_mut().find(|v| object::name(v) == volume_name) {
                Some(there) => *there = volume.clone(),
                None => volumes.push(volume.clone()),
            }
            self.claimed.insert(claim.key.clone());
            transaction = transaction
                .put(key, volume)
                .unchanged(claim.key.clone(), claim.revision)
                .put(claim.key, binding.claim);
        }
        Ok(transaction)
    }
}

/// References to what a [`Storage`] wants, and their owner.
struct Lists<'a> {
    nodes: &'a Nodes,
    volumes: Vec<&'a Value>,
    classes: Vec<&'a Value>,
}

impl Lists<'_> {
    fn lend(&self) -> Storage<'_> {
        Storage {
            volumes: &self.volumes,
            classes: &self.classes,
            provisioners: &self.nodes.inner.config.provisioners,
        }
    }
}

fn values(store: &Store, resource: &'static str) -> Vec<Value> {
    store.list(&Scope::all(resource)).objects.iter().map(|o| o.value()).collect()
}

/// The volume of a claim whose binding is complete on both sides.
fn bound_volume(store: &Store, claim: &Value) -> Option<Value> {
    let name = claim["spec"]["volumeName"].as_str().filter(|name| !name.is_empty())?;
    let volume = store.get(&Key::new(VOLUMES, "", name))?.value();
    let complete = claim["status"]["phase"] == "Bound" && volume["status"]["phase"] == "Bound";
    (complete && volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]).then_some(volume)
}

/// The pod as it is once bound.
fn bind(pod: &mut Value, node: &str, now: Timestamp) {
    object::map_mut(pod, "spec").insert("nodeName".into(), node.into());
    let qos = qos_class(pod);
    let at = pod_status::text(now);
    object::map_mut(pod, "status").entry("qosClass").or_insert_with(|| qos.into());
    let status = &mut pod["status"];
    if status["phase"].is_null() {
        status["phase"] = "Pending".into();
    }
    let scheduled = pod_status::condition(&status["conditions"], "PodScheduled", "True", "", "", at);
    pod_status::set_condition(status, scheduled);
}

/// The pod's status once it is known that it cannot be bound, if that is news.
pub fn unschedulable(pod: &Value, why: &str, now: Timestamp) -> Option<Value> {
    let conditions = &pod["status"]["conditions"];
    let known = conditions
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodScheduled" && c["status"] == "False" && c["message"] == why);
    if known {
        return None;
    }
    let mut status = if pod["status"].is_object() { pod["status"].clone() } else { json!({}) };
    let at = pod_status::text(now);
    let condition = pod_status::condition(conditions, "PodScheduled", "False", "Unschedulable", why, at);
    pod_status::set_condition(&mut status, condition);
    Some(status)
}
