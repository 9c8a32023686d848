//! Which node a pod goes to, and in Kubernetes' words why none will do.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::object;
use crate::resolve::resources::{Request, allocatable};
use crate::taints;

#[cfg(test)]
mod tests;

/// A node, and what is on it already.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The Node object.
    pub node: &'a Value,
    /// Pods bound to it that have not ended.
    pub pods: u64,
    /// The sum of what they request.
    pub requested: Request,
}

/// Why a pod stays unscheduled: the text of the FailedScheduling event and of the PodScheduled condition.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Reasons {
    /// How many nodes there are.
    pub nodes: usize,
    /// Reason and the number of nodes it rules out.
    pub by_node: BTreeMap<String, usize>,
    /// What rules out all of them at once, e.g. `persistentvolumeclaim "data-web-0" not found`.
    pub general: Option<String>,
}

impl Reasons {
    pub fn general(nodes: usize, reason: impl Into<String>) -> Reasons {
        Reasons { nodes, by_node: BTreeMap::new(), general: Some(reason.into()) }
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(general) = &self.general {
            return write!(f, "0/{} nodes are available: {general}.", self.nodes);
        }
        if self.nodes == 0 {
            return write!(f, "no nodes available to schedule pods");
        }
        // Kubernetes sorts the phrases, number included.
        let mut phrases: Vec<String> = self.by_node.iter().map(|(why, n)| format!("{n} {why}")).collect();
        phrases.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, phrases.join(", "))
    }
}

/// The name of the node for this pod: of those that fit, the one with the fewest pods (then by name).
/// `volumes` says whether the pod's claims can be had on a node, or why not ([`VOLUME_CONFLICT`]).
pub fn place(
    pod: &Value,
    nodes: &[Candidate],
    volumes: &dyn Fn(&Value) -> Result<(), String>,
) -> Result<String, Reasons> {
    let request = Request::of_pod(pod);
    let mut reasons = Reasons { nodes: nodes.len(), ..Reasons::default() };
    let mut best: Option<&Candidate> = None;
    for candidate in nodes {
        let why = unfit(pod, candidate, &request, volumes);
        if why.is_empty() {
            let better = best.is_none_or(|b| {
                (candidate.pods, object::name(candidate.node)) < (b.pods, object::name(b.node))
            });
            if better {
                best = Some(candidate);
            }
        }
        for reason in why {
            *reasons.by_node.entry(reason).or_default() += 1;
        }
    }
    best.map(|b| object::name(b.node).to_owned()).ok_or(reasons)
}

/// A bound volume that this node does not reach ([`reaches`]).
pub const VOLUME_CONFLICT: &str = "node(s) had volume node affinity conflict";

/// What speaks against a node. The first filter that fails decides, as in Kubernetes; only resources are
/// listed together.
fn unfit(
    pod: &Value,
    candidate: &Candidate,
    request: &Request,
    volumes: &dyn Fn(&Value) -> Result<(), String>,
) -> Vec<String> {
    let node = candidate.node;
    if object::deleting(node) {
        return vec!["node(s) were being deleted".to_owned()];
    }
    if node["spec"]["unschedulable"] == true
        && !tolerates(pod, "node.kubernetes.io/unschedulable", "", "NoSchedule")
    {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if let Some(wanted) = pod["spec"]["nodeName"].as_str()
        && !wanted.is_empty()
        && wanted != object::name(node)
    {
        return vec!["node(s) didn't match the requested node name".to_owned()];
    }
    if let Some((key, value)) = untolerated(pod, node) {
        return vec![format!("node(s) had untolerated taint {{{key}: {value}}}")];
    }
    if !selected(pod, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    let short = insufficient(candidate, request);
    if !short.is_empty() {
        return short;
    }
    volumes(node).err().into_iter().collect()
}

fn insufficient(candidate: &Candidate, request: &Request) -> Vec<String> {
    let room = allocatable(candidate.node);
    let mut short = Vec::new();
    if candidate.pods + 1 > room.pods {
        short.push("Too many pods".to_owned());
    }
    if request.cpu_millis > 0 && candidate.requested.cpu_millis + request.cpu_millis > room.request.cpu_millis
    {
        short.push("Insufficient cpu".to_owned());
    }
    if request.memory_bytes > 0
        && candidate.requested.memory_bytes + request.memory_bytes > room.request.memory_bytes
    {
        short.push("Insufficient memory".to_owned());
    }
    short
}

/// The first taint that keeps the pod away. A node that is not Ready counts as tainted the way Kubernetes'
/// node controller would taint it.
fn untolerated(pod: &Value, node: &Value) -> Option<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    for taint in node["spec"]["taints"].as_array().into_iter().flatten() {
        let (key, value, effect) = (text(&taint["key"]), text(&taint["value"]), text(&taint["effect"]));
        if matches!(effect.as_str(), "NoSchedule" | "NoExecute") && !tolerates(pod, &key, &value, &effect) {
            return Some((key, value));
        }
    }
    let key = match ready(node) {
        "True" => return None,
        "False" => "node.kubernetes.io/not-ready",
        _ => "node.kubernetes.io/unreachable",
    };
    (!tolerates(pod, key, "", "NoSchedule")).then(|| (key.to_owned(), String::new()))
}

/// The status of the node's Ready condition; `Unknown` if there is none.
pub fn ready(node: &Value) -> &str {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
    ready.and_then(|c| c["status"].as_str()).unwrap_or("Unknown")
}

fn tolerates(pod: &Value, key: &str, value: &str, effect: &str) -> bool {
    let mut tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
    tolerations.any(|toleration| taints::covers(toleration, key, value, effect))
}

fn selected(pod: &Value, node: &Value) -> bool {
    pod["spec"]["nodeSelector"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| object::label(node, key) == value.as_str())
}

/// Whether a PersistentVolume can be used on this node.
pub fn reaches(volume: &Value, node: &Value) -> bool {
    let required = &volume["spec"]["nodeAffinity"]["required"];
    if required.is_null() {
        return true;
    }
    // The terms are alternatives, the expressions of one must all hold; an empty term matches nothing.
    required["nodeSelectorTerms"].as_array().into_iter().flatten().any(|term| {
        let labels = term["matchExpressions"].as_array().into_iter().flatten();
        let fields = term["matchFields"].as_array().into_iter().flatten();
        let mut all = labels
            .map(|e| expression(e, object::label(node, e["key"].as_str().unwrap_or_default())))
            .chain(fields.map(|e| expression(e, (e["key"] == "metadata.name").then(|| object::name(node)))))
            .peekable();
        all.peek().is_some() && all.all(|holds| holds)
    })
}

fn expression(requirement: &Value, actual: Option<&str>) -> bool {
    let mut values = requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut compare = |test: fn(i64, i64) -> bool| {
        let wanted = values.next().and_then(|v| v.parse::<i64>().ok());
        let there = actual.and_then(|v| v.parse::<i64>().ok());
        matches!((there, wanted), (Some(a), Some(b)) if test(a, b))
    };
    match requirement["operator"].as_str() {
        Some("Gt") => compare(|a, b| a > b),
        Some("Lt") => compare(|a, b| a < b),
        Some("In") => actual.is_some_and(|a| values.any(|v| v == a)),
        Some("NotIn") => actual.is_none_or(|a| values.all(|v| v != a)),
        Some("Exists") => actual.is_some(),
        Some("DoesNotExist") => actual.is_none(),
        _ => false,
    }
}
