//! A pod as placing reads it: everything its spec says about where it may and would like to be, read once.

use std::net::IpAddr;

use serde_json::Value;

use super::affinity::{PodTerm, Weighted};
use super::node::{self, NodeSelector, Selectable as _, Term, list};
use super::spread::Constraint;
use super::world::{Host, Labels};
use crate::object;
use crate::resolve::resources::Request;
use crate::taints;

#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub namespace: String,
    pub(super) labels: Labels,
    /// Only this node will do.
    pub(super) node_name: String,
    pub request: Request,
    /// As the spec has them ([`taints::covers`]).
    tolerations: Vec<Value>,
    node_selector: Vec<(String, String)>,
    required: Option<NodeSelector>,
    preferred: Vec<(i64, Term)>,
    /// Where the volumes that it has already can be used.
    pub(super) volumes: Vec<NodeSelector>,
    pub(super) ports: Vec<HostPort>,
    pub(super) near: Vec<PodTerm>,
    pub(super) apart: Vec<PodTerm>,
    pub(super) prefers: Vec<Weighted>,
    pub(super) spread: Vec<Constraint>,
    /// The uid of the set it belongs to, or nothing.
    pub(super) owner: String,
    /// Where it was last, or nothing.
    pub last_node: String,
}

/// A port a pod takes of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub protocol: String,
    pub port: u16,
    /// None: on every address.
    pub address: Option<IpAddr>,
}

impl HostPort {
    /// Whether both cannot be had at once.
    pub fn collides(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }

    pub fn of_pod(pod: &Value) -> Vec<HostPort> {
        let of_host = pod["spec"]["hostNetwork"] == true;
        let always = |c: &&Value| c["restartPolicy"] == "Always";
        let spec = &pod["spec"];
        let containers = list(&spec["containers"]).chain(list(&spec["initContainers"]).filter(always));
        let ports = containers.flat_map(|container| list(&container["ports"]));
        ports
            .filter_map(|port| {
                let own = &port["hostPort"];
                let number = own.as_u64().or_else(|| port["containerPort"].as_u64().filter(|_| of_host));
                let address = port["hostIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
                Some(HostPort {
                    protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
                    port: number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)?,
                    address: address.filter(|ip| !ip.is_unspecified()),
                })
            })
            .collect()
    }
}

impl Wanted {
    pub fn of(pod: &Value) -> Wanted {
        let spec = &pod["spec"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let labels = Labels::of(&pod["metadata"]["labels"]);
        let namespace = object::namespace(pod);
        let node_affinity = &spec["affinity"]["nodeAffinity"];
        let required = &node_affinity["requiredDuringSchedulingIgnoredDuringExecution"];
        let preferred = list(&node_affinity["preferredDuringSchedulingIgnoredDuringExecution"]);
        let constraints = list(&spec["topologySpreadConstraints"]);
        Wanted {
            node_name: text(&spec["nodeName"]),
            request: Request::of_pod(pod),
            tolerations: list(&spec["tolerations"]).cloned().collect(),
            node_selector: (spec["nodeSelector"].as_object().into_iter().flatten())
                .map(|(key, value)| (key.clone(), text(value)))
                .collect(),
            required: (!required.is_null()).then(|| NodeSelector::of(required)),
            preferred: preferred
                .map(|p| (p["weight"].as_i64().unwrap_or(0), Term::of(&p["preference"])))
                .collect(),
            volumes: Vec::new(),
            ports: HostPort::of_pod(pod),
            near: PodTerm::required(pod, "podAffinity", &labels),
            apart: PodTerm::required(pod, "podAntiAffinity", &labels),
            prefers: Weighted::of_pod(pod, &labels),
            spread: constraints.map(|c| Constraint::of(c, &labels)).collect(),
            owner: object::controller_ref(pod).map(|owner| text(&owner["uid"])).unwrap_or_default(),
            last_node: String::new(),
            namespace: namespace.to_owned(),
            labels,
        }
    }

    /// Whether it may fit as soon as other pods come or go, though no node has more room.
    pub fn depends_on_others(&self) -> bool {
        !self.near.is_empty() || !self.apart.is_empty() || !self.spread.is_empty()
    }

    /// It already has this PersistentVolume.
    pub fn has_volume(&mut self, volume: &Value) {
        self.volumes.extend(node::volume_affinity(volume));
    }

    pub(super) fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        self.tolerations.iter().any(|toleration| taints::covers(toleration, key, value, effect))
    }

    /// Its node selector and required node affinity.
    pub(super) fn selects(&self, host: &Host) -> bool {
        self.node_selector.iter().all(|(key, value)| host.label(key) == Some(value))
            && self.required.as_ref().is_none_or(|required| required.matches(host))
    }

    /// The sum of the weights of its preferences that the node meets.
    pub(super) fn preference(&self, host: &Host) -> i64 {
        self.preferred.iter().filter(|(_, term)| term.matches(host)).map(|(weight, _)| weight).sum()
    }
}
