//! The nodes and the pods on them, with the indexes that let one pod be placed among thousands in well under a
//! millisecond. Kept up to date by whoever follows the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::affinity::{PodTerm, Weighted};
use super::node::{Selectable, list};
use super::wanted::{HostPort, Wanted};
use crate::object;
use crate::resolve::resources::{Request, Room, allocatable};
use crate::selector::Selector;
use crate::taints;

/// Labels with a value of their own for every pod of a set: nobody looks for pods by them.
const UNIQUE: [&str; 2] = ["statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"];
const ZONE: &str = "topology.kubernetes.io/zone";

/// Labels, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn of(map: &Value) -> Labels {
        let entries = map.as_object().into_iter().flatten();
        let entries = entries.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()));
        let mut entries: Vec<(Box<str>, Box<str>)> = entries.collect();
        entries.sort();
        Labels(entries.into())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }
}

/// A node and what is on it.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    object: Value,
    labels: Labels,
    taints: Vec<(String, String, String)>,
    pub(super) unschedulable: bool,
    pub(super) deleting: bool,
    room: Room,
    on: On,
}

/// What pods take of a node.
#[derive(Clone, Debug, Default)]
struct On {
    pods: u64,
    requested: Request,
    ports: Vec<HostPort>,
}

impl Selectable for Host {
    fn name(&self) -> &str {
        &self.name
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)
    }
}

impl PartialEq for Host {
    fn eq(&self, other: &Host) -> bool {
        self.name == other.name
    }
}

impl Eq for Host {}

impl PartialOrd for Host {
    fn partial_cmp(&self, other: &Host) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Host {
    fn cmp(&self, other: &Host) -> std::cmp::Ordering {
        self.name.cmp(&other.name)
    }
}

impl Host {
    fn new(name: &str, node: &Value, on: On) -> Host {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut taints: Vec<(String, String, String)> = list(&node["spec"]["taints"])
            .map(|t| (text(&t["key"]), text(&t["value"]), text(&t["effect"])))
            .collect();
        // Whatever else has not been written yet: a node that is not Ready takes nothing.
        if let Some(key) = taints::of_ready(node)
            && !taints.iter().any(|(k, _, effect)| k == key && effect == "NoSchedule")
        {
            taints.push((key.to_owned(), String::new(), "NoSchedule".to_owned()));
        }
        let mut slim = node.clone();
        if let Some(status) = slim["status"].as_object_mut() {
            status.retain(|field, _| matches!(field.as_str(), "allocatable" | "conditions" | "addresses"));
        }
        Host {
            name: name.to_owned(),
            labels: Labels::of(&node["metadata"]["labels"]),
            taints,
            unschedulable: node["spec"]["unschedulable"] == true,
            deleting: object::deleting(node),
            room: allocatable(node),
            object: slim,
            on,
        }
    }

    /// Whether both take the same pods, what is on them apart.
    fn is_as_good_as(&self, other: &Host) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.deleting == other.deleting
            && self.room == other.room
            && self.object["spec"]["podCIDR"] == other.object["spec"]["podCIDR"]
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Node, as far as placing needs it.
    pub fn object(&self) -> &Value {
        &self.object
    }

    pub(super) fn pods(&self) -> u64 {
        self.on.pods
    }

    /// The first taint that keeps the pod away.
    pub(super) fn untolerated(&self, pod: &Wanted) -> Option<(&str, &str)> {
        let away = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        let found = self
            .taints
            .iter()
            .find(|(key, value, effect)| away(effect) && !pod.tolerates(key, value, effect));
        found.map(|(key, value, _)| (key.as_str(), value.as_str()))
    }

    /// How many taints ask the pod to stay away if it can.
    pub(super) fn discouraged(&self, pod: &Wanted) -> i64 {
        let soft = |(key, value, effect): &&(String, String, String)| {
            effect == "PreferNoSchedule" && !pod.tolerates(key, value, effect)
        };
        self.taints.iter().filter(soft).fold(0, |n, _| n + 1)
    }

    pub(super) fn ports_free(&self, ports: &[HostPort]) -> bool {
        !ports.iter().any(|wanted| self.on.ports.iter().any(|taken| taken.collides(wanted)))
    }

    pub(super) fn short_of(&self, request: &Request) -> [Option<&'static str>; 3] {
        let (used, room) = (&self.on.requested, &self.room);
        let short = |wanted: u64, used: u64, room: u64| wanted > 0 && used.saturating_add(wanted) > room;
        [
            (self.on.pods + 1 > room.pods).then_some("Too many pods"),
            short(request.cpu_millis, used.cpu_millis, room.request.cpu_millis).then_some("Insufficient cpu"),
            short(request.memory_bytes, used.memory_bytes, room.request.memory_bytes)
                .then_some("Insufficient memory"),
        ]
    }

    /// How full the node would be, in thousandths of what it has least of.
    pub(super) fn load(&self, request: &Request) -> u64 {
        let (used, room) = (self.on.requested.plus(*request), &self.room.request);
        let part = |used: u64, room: u64| {
            u64::try_from(u128::from(used) * 1000 / u128::from(room.max(1))).unwrap_or(u64::MAX)
        };
        part(used.cpu_millis, room.cpu_millis).max(part(used.memory_bytes, room.memory_bytes))
    }
}

/// A pod on a node that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub node: String,
    pub(super) namespace: String,
    pub(super) labels: Labels,
    request: Request,
    ports: Vec<HostPort>,
    owner: String,
    pub(super) terminating: bool,
    pub(super) apart: Vec<PodTerm>,
    pub(super) prefers: Vec<Weighted>,
}

impl Placed {
    pub fn of(pod: &Value) -> Placed {
        let wanted = Wanted::of(pod);
        let node = wanted.node_name.clone();
        Placed { terminating: object::deleting(pod), ..Placed::new(&wanted, &node) }
    }

    /// Where a pod is about to be.
    pub fn new(pod: &Wanted, node: &str) -> Placed {
        Placed {
            node: node.to_owned(),
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            request: pod.request,
            ports: pod.ports.clone(),
            owner: pod.owner.clone(),
            terminating: false,
            apart: pod.apart.clone(),
            prefers: pod.prefers.clone(),
        }
    }

    /// What others of its namespace and this label pair find it by.
    fn places(&self) -> impl Iterator<Item = (String, String, String)> {
        let pairs = self.labels.pairs().filter(|(key, _)| !UNIQUE.contains(key));
        pairs.map(|(key, value)| (self.namespace.clone(), key.to_owned(), value.to_owned()))
    }

    fn terms(&self) -> impl Iterator<Item = &PodTerm> {
        self.apart.iter().chain(self.prefers.iter().map(|w| &w.term))
    }
}

/// Namespace and name.
type Named = (String, String);

#[derive(Clone, Debug, Default)]
pub struct World {
    hosts: BTreeMap<String, Host>,
    pods: HashMap<Named, Placed>,
    /// Labels of the namespaces, for terms that select by them.
    namespaces: BTreeMap<String, Labels>,
    by_label: HashMap<(String, String, String), HashSet<Named>>,
    by_namespace: HashMap<String, HashSet<Named>>,
    /// Pods that say who may be near them, by a label pair of whom they mean...
    wary: HashMap<(String, String), BTreeSet<Named>>,
    /// ...or, if there is none that they all have, here.
    wary_of_any: BTreeSet<Named>,
    /// How many pods of a set each node has.
    sets: HashMap<String, BTreeMap<String, u32>>,
}

impl World {
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = &Host> {
        self.hosts.values()
    }

    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.get(name)
    }

    /// A Node, or None: it is gone. The pods on it stay known. Whether that may matter to a pod that waits.
    pub fn set_node(&mut self, name: &str, node: Option<&Value>) -> bool {
        let before = self.hosts.remove(name);
        let Some(node) = node else { return before.is_some() };
        let (before, on) = match before {
            Some(mut host) => {
                let on = std::mem::take(&mut host.on);
                (Some(host), on)
            }
            None => (None, self.on(name)),
        };
        let host = Host::new(name, node, on);
        let changed = before.is_none_or(|before| !before.is_as_good_as(&host));
        self.hosts.insert(name.to_owned(), host);
        changed
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<&Value>) {
        match labels {
            None => drop(self.namespaces.remove(name)),
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), Labels::of(labels))),
        }
    }

    /// A pod that takes room on a node, or None: it does not (any more). Whether that is news.
    pub fn set_pod(&mut self, namespace: &str, name: &str, placed: Option<Placed>) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        let placed = placed.filter(|p| !p.node.is_empty());
        if self.pods.get(&key) == placed.as_ref() {
            return false;
        }
        if let Some(before) = self.pods.remove(&key) {
            self.unlist(&key, &before);
        }
        if let Some(placed) = placed {
            self.list(&key, &placed);
            self.pods.insert(key, placed);
        }
        true
    }

    pub(super) fn pod(&self, name: &Named) -> Option<&Placed> {
        self.pods.get(name)
    }

    fn on(&self, node: &str) -> On {
        let mut on = On::default();
        self.pods.values().filter(|pod| pod.node == node).for_each(|pod| on.add(pod));
        on
    }

    fn list(&mut self, key: &Named, pod: &Placed) {
        if let Some(host) = self.hosts.get_mut(&pod.node) {
            host.on.add(pod);
        }
        for place in pod.places() {
            self.by_label.entry(place).or_default().insert(key.clone());
        }
        self.by_namespace.entry(pod.namespace.clone()).or_default().insert(key.clone());
        for term in pod.terms() {
            match term.selector.pair() {
                Some((k, v)) => {
                    self.wary.entry((k.to_owned(), v.to_owned())).or_default().insert(key.clone());
                }
                None => {
                    self.wary_of_any.insert(key.clone());
                }
            }
        }
        if !pod.owner.is_empty() {
            let there = self.sets.entry(pod.owner.clone()).or_default();
            *there.entry(pod.node.clone()).or_default() += 1;
        }
    }

    fn unlist(&mut self, key: &Named, pod: &Placed) {
        if let Some(host) = self.hosts.get_mut(&pod.node) {
            host.on.remove(pod);
        }
        for place in pod.places() {
            forget(
                &mut self.by_label,
                &place,
                |pods| {
                    pods.remove(key);
                },
                HashSet::is_empty,
            );
        }
        forget(
            &mut self.by_namespace,
            &pod.namespace,
            |pods| {
                pods.remove(key);
            },
            HashSet::is_empty,
        );
        for term in pod.terms() {
            match term.selector.pair() {
                Some((k, v)) => {
                    let pair = (k.to_owned(), v.to_owned());
                    forget(
                        &mut self.wary,
                        &pair,
                        |pods| {
                            pods.remove(key);
                        },
                        BTreeSet::is_empty,
                    );
                }
                None => {
                    self.wary_of_any.remove(key);
                }
            }
        }
        let one_less = |nodes: &mut BTreeMap<String, u32>| {
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
        };
        forget(&mut self.sets, &pod.owner, one_less, BTreeMap::is_empty);
    }

    /// The pods of one namespace that a selector means.
    pub(super) fn selected<'a>(
        &'a self,
        namespace: &str,
        selector: &'a Selector,
    ) -> impl Iterator<Item = &'a Placed> + use<'a> {
        let candidates = match selector.pair().filter(|(key, _)| !UNIQUE.contains(key)) {
            _ if selector.is_nothing() => None,
            Some((key, value)) => {
                self.by_label.get(&(namespace.to_owned(), key.to_owned(), value.to_owned()))
            }
            None => self.by_namespace.get(namespace),
        };
        let pods = candidates.into_iter().flatten().filter_map(|name| self.pods.get(name));
        pods.filter(|pod| selector.matches_with(|key| pod.labels.get(key)))
    }

    /// The namespaces whose labels a selector matches.
    pub(super) fn namespaces<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a str> {
        let all = self.namespaces.iter();
        all.filter(|(_, labels)| selector.matches_with(|key| labels.get(key))).map(|(name, _)| name.as_str())
    }

    pub(super) fn namespace_matches(&self, name: &str, selector: &Selector) -> bool {
        self.namespaces.get(name).is_some_and(|labels| selector.matches_with(|key| labels.get(key)))
    }

    /// The pods on nodes whose terms may be about a pod with these labels.
    pub(super) fn wary_of(&self, labels: &Labels) -> BTreeSet<&Named> {
        if self.wary.is_empty() && self.wary_of_any.is_empty() {
            return BTreeSet::new();
        }
        let pairs = labels.pairs().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let by_pair = pairs.filter_map(|pair| self.wary.get(&pair)).flatten();
        by_pair.chain(&self.wary_of_any).collect()
    }

    /// Where the pods of the same set are.
    pub(super) fn siblings<'a>(&'a self, pod: &Wanted) -> Siblings<'a> {
        let Some(nodes) = self.sets.get(&pod.owner).filter(|_| !pod.owner.is_empty()) else {
            return Siblings::default();
        };
        let mut zones: HashMap<&str, u32> = HashMap::new();
        for (node, count) in nodes {
            if let Some(zone) = self.hosts.get(node).and_then(|host| host.label(ZONE)) {
                *zones.entry(zone).or_default() += count;
            }
        }
        Siblings { nodes: Some(nodes), zones }
    }
}

/// How many pods of one set there are on each node and in each zone.
#[derive(Default)]
pub(super) struct Siblings<'a> {
    nodes: Option<&'a BTreeMap<String, u32>>,
    zones: HashMap<&'a str, u32>,
}

impl Siblings<'_> {
    pub fn on(&self, host: &Host) -> (u32, u32) {
        let Some(nodes) = self.nodes else { return (0, 0) };
        let in_zone = host.label(ZONE).and_then(|zone| self.zones.get(zone)).copied();
        (nodes.get(host.name()).copied().unwrap_or(0), in_zone.unwrap_or(0))
    }
}

impl On {
    fn add(&mut self, pod: &Placed) {
        self.pods += 1;
        self.requested = self.requested.plus(pod.request);
        self.ports.extend(pod.ports.iter().cloned());
    }

    fn remove(&mut self, pod: &Placed) {
        self.pods = self.pods.saturating_sub(1);
        self.requested = self.requested.minus(pod.request);
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}

/// Takes something out of an entry, and the entry away when nothing is left in it.
fn forget<K: std::hash::Hash + Eq, V>(
    map: &mut HashMap<K, V>,
    key: &K,
    take: impl FnOnce(&mut V),
    is_empty: fn(&V) -> bool,
) {
    if let Some(entry) = map.get_mut(key) {
        take(entry);
        if is_empty(entry) {
            map.remove(key);
        }
    }
}
