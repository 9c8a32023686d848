//! Pods that want to be near others, or apart from them.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::node::{Selectable as _, list};
use super::wanted::Wanted;
use super::world::{Host, Labels, Placed, World};
use crate::object;
use crate::selector::Selector;

const NOT_NEAR: &str = "node(s) didn't match pod affinity rules";
const NOT_APART: &str = "node(s) didn't match pod anti-affinity rules";
const UNWELCOME: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// Who is meant, and within which part of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTerm {
    pub(super) selector: Selector,
    topology_key: String,
    /// Named ones; the pod's own if neither they nor a selector are given.
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
}

/// A term that counts for or (with a weight below zero) against a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted {
    weight: i64,
    pub(super) term: PodTerm,
}

impl PodTerm {
    /// A pod's required terms of one field of `affinity`.
    pub(super) fn required(pod: &Value, field: &str, labels: &Labels) -> Vec<PodTerm> {
        let terms = &pod["spec"]["affinity"][field]["requiredDuringSchedulingIgnoredDuringExecution"];
        list(terms).map(|term| PodTerm::of(term, object::namespace(pod), labels)).collect()
    }

    fn of(term: &Value, own_namespace: &str, labels: &Labels) -> PodTerm {
        let mut selector =
            Selector::from_object(&term["labelSelector"]).unwrap_or_else(|_| Selector::nothing());
        for key in list(&term["matchLabelKeys"]).filter_map(Value::as_str) {
            selector = labels.get(key).map(|value| selector.clone().and(key, value)).unwrap_or(selector);
        }
        for key in list(&term["mismatchLabelKeys"]).filter_map(Value::as_str) {
            selector = labels.get(key).map(|value| selector.clone().and_not(key, value)).unwrap_or(selector);
        }
        let mut namespaces: BTreeSet<String> =
            list(&term["namespaces"]).filter_map(|n| n.as_str().map(str::to_owned)).collect();
        let by_labels = &term["namespaceSelector"];
        if namespaces.is_empty() && by_labels.is_null() {
            namespaces.insert(own_namespace.to_owned());
        }
        PodTerm {
            selector,
            topology_key: term["topologyKey"].as_str().unwrap_or_default().to_owned(),
            namespaces,
            namespace_selector: (!by_labels.is_null())
                .then(|| Selector::from_object(by_labels).unwrap_or_else(|_| Selector::nothing())),
        }
    }

    fn means(&self, world: &World, namespace: &str, labels: &Labels) -> bool {
        let here = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| world.namespace_matches(namespace, s));
        here && self.selector.matches_with(|key| labels.get(key))
    }

    /// The pods on nodes that are meant.
    fn meant<'a>(&'a self, world: &'a World) -> impl Iterator<Item = &'a Placed> {
        let mut namespaces: BTreeSet<&str> = self.namespaces.iter().map(String::as_str).collect();
        if let Some(selector) = &self.namespace_selector {
            namespaces.extend(world.namespaces(selector));
        }
        namespaces.into_iter().flat_map(|namespace| world.selected(namespace, &self.selector))
    }

    /// The part of the cluster a pod is in.
    fn domain<'a>(&self, world: &'a World, pod: &Placed) -> Option<&'a str> {
        world.host(&pod.node)?.label(&self.topology_key)
    }
}

impl Weighted {
    pub(super) fn of_pod(pod: &Value, labels: &Labels) -> Vec<Weighted> {
        let field = "preferredDuringSchedulingIgnoredDuringExecution";
        let mut all = Vec::new();
        for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
            all.extend(list(&pod["spec"]["affinity"][kind][field]).map(|weighted| Weighted {
                weight: sign * weighted["weight"].as_i64().unwrap_or(0),
                term: PodTerm::of(&weighted["podAffinityTerm"], object::namespace(pod), labels),
            }));
        }
        all
    }
}

/// What the pods that are placed already mean for one that is not.
pub(super) struct Neighbours<'a> {
    pod: &'a Wanted,
    /// For each required term: the parts of the cluster where somebody it means is.
    near: Vec<HashSet<&'a str>>,
    /// Nobody is there for the pod to be near, and it is one of those it means: the first of them.
    is_first: bool,
    apart: Vec<HashSet<&'a str>>,
    /// Topology key and value where somebody does not want it.
    unwelcome: HashSet<(&'a str, &'a str)>,
    score: HashMap<(&'a str, &'a str), i64>,
}

impl<'a> Neighbours<'a> {
    pub fn of(pod: &'a Wanted, world: &'a World) -> Neighbours<'a> {
        // Only who is meant by all terms counts for any, as in Kubernetes.
        let everybody: Vec<&Placed> = match pod.near.first() {
            None => Vec::new(),
            Some(first) => first
                .meant(world)
                .filter(|there| pod.near[1..].iter().all(|t| t.means(world, &there.namespace, &there.labels)))
                .collect(),
        };
        let domains = |term: &PodTerm, pods: &[&Placed]| {
            pods.iter().filter_map(|there| term.domain(world, there)).collect::<HashSet<&str>>()
        };
        let near: Vec<HashSet<&str>> = pod.near.iter().map(|term| domains(term, &everybody)).collect();
        let alone = near.iter().all(HashSet::is_empty);
        let is_first = alone && pod.near.iter().all(|t| t.means(world, &pod.namespace, &pod.labels));
        let apart =
            pod.apart.iter().map(|term| domains(term, &term.meant(world).collect::<Vec<_>>())).collect();
        let mut unwelcome = HashSet::new();
        let mut score: HashMap<(&str, &str), i64> = HashMap::new();
        for name in world.wary_of(&pod.labels) {
            let Some(there) = world.pod(name) else { continue };
            for term in there.apart.iter().filter(|t| t.means(world, &pod.namespace, &pod.labels)) {
                unwelcome.extend(term.domain(world, there).map(|d| (term.topology_key.as_str(), d)));
            }
            for Weighted { weight, term } in &there.prefers {
                if let Some(domain) = term.domain(world, there)
                    && term.means(world, &pod.namespace, &pod.labels)
                {
                    *score.entry((term.topology_key.as_str(), domain)).or_default() += weight;
                }
            }
        }
        for Weighted { weight, term } in &pod.prefers {
            for domain in term.meant(world).filter_map(|there| term.domain(world, there)) {
                *score.entry((term.topology_key.as_str(), domain)).or_default() += weight;
            }
        }
        Neighbours { pod, near, is_first, apart, unwelcome, score }
    }

    pub fn against(&self, host: &Host) -> Option<&'static str> {
        let domain = |term: &PodTerm| host.label(&term.topology_key);
        for (term, there) in self.pod.near.iter().zip(&self.near) {
            match domain(term) {
                Some(domain) if self.is_first || there.contains(domain) => {}
                _ => return Some(NOT_NEAR),
            }
        }
        let taken =
            |(term, there): (&PodTerm, &HashSet<&str>)| domain(term).is_some_and(|d| there.contains(d));
        if self.pod.apart.iter().zip(&self.apart).any(taken) {
            return Some(NOT_APART);
        }
        let unwelcome = |(key, value): &(&str, &str)| host.label(key) == Some(*value);
        if !self.unwelcome.is_empty() && self.unwelcome.iter().any(unwelcome) {
            return Some(UNWELCOME);
        }
        None
    }

    pub fn score(&self, host: &Host) -> i64 {
        let there = |((key, value), _): &(&(&str, &str), &i64)| host.label(key) == Some(*value);
        self.score.iter().filter(there).map(|(_, weight)| weight).sum()
    }
}
