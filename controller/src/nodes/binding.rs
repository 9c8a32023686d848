//! The scheduler's writing half: from a pod that waits to the transaction that binds it.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use berth_controller_core::claims::{self, Binding, Provisioners, Standing, Storage};
use berth_controller_core::identity::{self, Life, Record, Refusal};
use berth_controller_core::kinds::persistent_volume::PERSISTENT_VOLUME;
use berth_controller_core::object;
use berth_controller_core::place::{self, Placed, Reasons, Wanted, World};
use berth_controller_core::resolve::resources::qos_class;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::holders::Holders;
use super::world::{self, Name};
use super::{Nodes, Range, pod_status, records};
use crate::store::{Key, Scope, Store, Transaction};

pub const CLAIMS: &str = "persistentvolumeclaims";
pub const VOLUMES: &str = "persistentvolumes";
pub const CLASSES: &str = "storageclasses.storage.k8s.io";

/// Where a set's pod was last: this resource, under the pod's namespace and name, `{"node": ...}`. Apart from the
/// identity record, which goes when the pod has stopped, and from its claims, which not every set has.
pub const LAST_NODE: &str = "lastnodes.berth.dev";

/// What bindings are decided from and change: a digest of the store.
#[derive(Default)]
pub struct Board {
    pub world: World,
    /// Addresses that are held by a record.
    pub used: HashSet<Ipv4Addr>,
    /// The address given out last, per node.
    pub last: HashMap<String, Ipv4Addr>,
    pub holders: Holders,
}

/// One attempt to bind some pods at once. What it stages is on the board at once, so that the next pod sees it;
/// [`Attempt::undo`] takes it off again.
pub struct Attempt<'a> {
    nodes: &'a Nodes,
    store: &'a Store,
    board: &'a mut Board,
    /// All volumes and classes; read when a claim that is not bound needs them.
    storage: Option<(Vec<Value>, Vec<Value>)>,
    claimed: BTreeSet<Key>,
    epoch: u64,
    first_epoch: u64,
    transaction: Transaction,
    pub bound: Vec<Bound>,
}

/// A binding that is part of an [`Attempt`].
pub struct Bound {
    pub name: Name,
    pub pod: Value,
    pub node: String,
    /// None: the host's own.
    pub address: Option<Ipv4Addr>,
}

/// What is to be done with a pod that waits.
pub enum Outcome {
    /// Part of the transaction.
    Staged,
    /// It waits no more: bound already, gone, or going.
    Over,
    /// Together with what is staged already it cannot be decided: in the next attempt.
    Later,
    /// Not as things are; the text for its event and condition. Where other pods are may be what it waits for.
    No { why: String, others: bool },
}

impl Outcome {
    fn no(why: impl Into<String>) -> Outcome {
        Outcome::No { why: why.into(), others: false }
    }
}

/// The claims of a pod.
struct Claims {
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
    pub fn new(nodes: &'a Nodes, board: &'a mut Board) -> Attempt<'a> {
        let store = &nodes.inner.store;
        let epoch = records::last_epoch(store);
        Attempt {
            nodes,
            store,
            board,
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
            Err(refusal) => return Outcome::no(refusal.to_string()),
        }
        let claims = match self.claims(&pod) {
            Ok(Some(claims)) => claims,
            Ok(None) => return Outcome::Later,
            Err(why) => {
                return Outcome::no(Reasons::general(self.board.world.hosts().len(), why).to_string());
            }
        };
        let last_node = LastNode::of(self.store, name, &pod);
        let mut wanted = Wanted::of(&pod);
        wanted.last_node = last_node.as_ref().map(|l| l.node.clone()).unwrap_or_default();
        let in_use = Cell::new(false);
        let node = match self.node_for(&mut wanted, &life, &claims, &in_use) {
            Ok(node) => node,
            Err(why) => return Outcome::No { why, others: wanted.depends_on_others() || in_use.get() },
        };
        let node_name = object::name(&node).to_owned();
        let range: Option<Range> = node["spec"]["podCIDR"].as_str().and_then(|r| r.parse().ok());
        let of_host = pod["spec"]["hostNetwork"] == true;
        let last = self.board.last.get(&node_name).copied();
        let address = match range.and_then(|range| Some((range, range.next(last, &self.board.used)?))) {
            _ if of_host => None,
            None => return Outcome::no(format!("no pod address is free on node {node_name:?}")),
            free => free,
        };
        let mut volumes: Vec<String> = claims.volumes.iter().map(|v| object::name(v).to_owned()).collect();
        match self.write_bindings(claims, &node) {
            Ok(bound) => volumes.extend(bound),
            Err(why) => return Outcome::no(why),
        }
        self.epoch = identity::next_epoch(self.epoch, now.as_millisecond().try_into().unwrap_or(0));
        let record = Record {
            uid: life.uid,
            node: node_name.clone(),
            epoch: self.epoch,
            address: address.map(|(range, address)| range.with_prefix(address)).unwrap_or_default(),
        };
        let mut record = record.write();
        record[identity::VOLUMES] = volumes.as_slice().into();
        bind(&mut pod, &node_name, now);
        let mut transaction = std::mem::take(&mut self.transaction)
            .absent(name.record_key())
            .put(name.record_key(), record)
            .unchanged(object.key.clone(), object.revision)
            .put(object.key.clone(), pod.clone());
        if let Some(last_node) = last_node.filter(|last| last.node != node_name) {
            transaction = last_node.write(transaction, &node_name);
        }
        self.transaction = transaction;
        let address = address.map(|(_, address)| address);
        if let Some(address) = address {
            self.board.used.insert(address);
            self.board.last.insert(node_name.clone(), address);
        }
        self.board.holders.hold(name, &node_name, volumes);
        let placed = Placed::new(&wanted, &node_name);
        self.board.world.set_pod(&name.namespace, &name.name, Some(placed));
        self.bound.push(Bound { name: name.clone(), pod, node: node_name, address });
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

    /// `in_use` is set if a volume was refused somewhere because of who has it now.
    fn node_for(
        &self,
        pod: &mut Wanted,
        life: &Life,
        claims: &Claims,
        in_use: &Cell<bool>,
    ) -> Result<Value, String> {
        let storage = self.storage();
        let storage = storage.lend();
        let now = claims.now.iter().map(|(_, binding)| &binding.volume);
        let volumes: Vec<&Value> = claims.volumes.iter().chain(now).collect();
        let with_pod = |node: &Value| {
            let refused = |volume: &&Value| self.board.holders.refusal(volume, object::name(node));
            if let Some(why) = volumes.iter().find_map(refused) {
                in_use.set(true);
                return Err(why);
            }
            claims.with_pod.iter().try_for_each(|c| claims::bind_on(&c.value, node, &storage).map(|_| ()))
        };
        let world = &self.board.world;
        let not_found = |name: &str| format!("node {name:?} not found");
        if !life.node.is_empty() {
            let node = world.host(&life.node).ok_or_else(|| not_found(&life.node))?.object();
            if !volumes.iter().all(|volume| place::reaches(volume, node)) {
                return Err(place::VOLUME_CONFLICT.to_owned());
            }
            with_pod(node)?;
            return Ok(node.clone());
        }
        volumes.iter().for_each(|volume| pod.has_volume(volume));
        let name = place::place(pod, world, &with_pod).map_err(|reasons| reasons.to_string())?;
        world.host(&name).map(|host| host.object().clone()).ok_or_else(|| not_found(&name))
    }

    /// None: a claim that is part of this attempt already.
    fn claims(&mut self, pod: &Value) -> Result<Option<Claims>, String> {
        const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
        let mut wanted = Claims { volumes: Vec::new(), now: Vec::new(), with_pod: Vec::new() };
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
        let provisioners = self.nodes.inner.config.provisioners.borrow();
        Lists { provisioners, volumes: volumes.iter().collect(), classes: classes.iter().collect() }
    }

    /// Adds the bindings of a pod's claims to the transaction, or none of them; says which volumes they are.
    fn write_bindings(&mut self, wanted: Claims, node: &Value) -> Result<Vec<String>, String> {
        let mut transaction = Transaction::new();
        let mut names = Vec::new();
        let now = wanted.now.into_iter().map(|(claim, binding)| (claim, Some(binding)));
        let with_pod = wanted.with_pod.into_iter().map(|claim| (claim, None));
        for (claim, binding) in now.chain(with_pod) {
            let binding = match binding {
                Some(binding) => binding,
                // One after the other: what the last one took is not there for the next.
                None => claims::bind_on(&claim.value, node, &self.storage().lend())?,
            };
            let volume_name = object::name(&binding.volume).to_owned();
            names.push(volume_name.clone());
            for (name, revision) in &binding.beside {
                // One of this very attempt has no revision yet, and is not on its way out.
                if let Ok(revision) = revision.parse() {
                    transaction = transaction.unchanged(Key::new(VOLUMES, "", name), revision);
                }
            }
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
        self.transaction.checks.extend(transaction.checks);
        self.transaction.writes.extend(transaction.writes);
        Ok(names)
    }
}

/// Takes what was staged off the board, since it was not written.
pub fn undo(board: &mut Board, bound: Vec<Bound>) {
    for one in bound {
        board.world.set_pod(&one.name.namespace, &one.name.name, None);
        board.holders.release(&one.name);
        if let Some(address) = one.address {
            board.used.remove(&address);
        }
    }
}

/// Where a set's pod was last.
struct LastNode {
    key: Key,
    node: String,
}

impl LastNode {
    /// None for pods of no set: theirs are names nobody comes back under.
    fn of(store: &Store, name: &Name, pod: &Value) -> Option<LastNode> {
        object::controller_ref(pod).filter(|owner| owner["kind"] == "StatefulSet")?;
        let key = Key::new(LAST_NODE, &name.namespace, &name.name);
        let node = store.get(&key).and_then(|o| o.value()["node"].as_str().map(str::to_owned));
        Some(LastNode { key, node: node.unwrap_or_default() })
    }

    fn write(self, transaction: Transaction, node: &str) -> Transaction {
        transaction.put(self.key, json!({"metadata": {}, "node": node}))
    }
}

/// References to what a [`Storage`] wants, and their owner.
struct Lists<'a> {
    provisioners: watch::Ref<'a, Provisioners>,
    volumes: Vec<&'a Value>,
    classes: Vec<&'a Value>,
}

impl Lists<'_> {
    fn lend(&self) -> Storage<'_> {
        Storage { volumes: &self.volumes, classes: &self.classes, provisioners: &self.provisioners }
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
