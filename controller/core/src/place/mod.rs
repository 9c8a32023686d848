//! Which node a pod goes to, and in Kubernetes' words why none will do.
//!
//! ```text
//! nodes, bound pods ─▶ World (indexes, kept up to date)      pod ─▶ Wanted (read once)
//!                              └──────────── place ───────────────┘
//!    filters: node, taints, affinity, ports, room, volumes, spread, other pods ─▶ what speaks against each node
//!    among the rest: last host, preferences, fewest of its own set, most room, name
//! ```
//! A set's ordinals are spread over the nodes, and an ordinal returns to the node it was last on while that node
//! can take it: these two come from Berth, all else behaves as Kubernetes' own scheduler with its defaults.

mod affinity;
mod node;
mod spread;
mod wanted;
mod world;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use serde_json::Value;

pub use node::{reaches, ready};
pub use wanted::{HostPort, Wanted};
pub use world::{Host, Placed, World};

use affinity::Neighbours;
use spread::Spread;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

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

/// A bound volume that this node does not reach ([`reaches`]).
pub const VOLUME_CONFLICT: &str = "node(s) had volume node affinity conflict";
const UNSCHEDULABLE: &str = "node(s) were unschedulable";
const OTHER_NAME: &str = "node(s) didn't match the requested node name";
const NOT_SELECTED: &str = "node(s) didn't match Pod's node affinity/selector";
const NO_PORTS: &str = "node(s) didn't have free ports for the requested pod ports";

/// The name of the node for this pod. `volumes` says whether the pod's claims that have no volume yet could get
/// one on a node, or why not; it is asked for the nodes that are wanted most first.
pub fn place(
    pod: &Wanted,
    world: &World,
    volumes: &dyn Fn(&Value) -> Result<(), String>,
) -> Result<String, Reasons> {
    let spread = Spread::of(pod, world);
    let neighbours = Neighbours::of(pod, world);
    let mut reasons = Reasons { nodes: world.hosts().len(), ..Reasons::default() };
    let mut count = |why: &str| match reasons.by_node.get_mut(why) {
        Some(n) => *n += 1,
        None => drop(reasons.by_node.insert(why.to_owned(), 1)),
    };
    let mut fit: Vec<Fit> = Vec::new();
    for host in world.hosts() {
        match unfit(pod, host, &spread, &neighbours) {
            Unfit::Not => fit.push(Fit::new(pod, host, &spread, &neighbours)),
            Unfit::Why(why) => count(why),
            Unfit::Taint(key, value) => count(&format!("node(s) had untolerated taint {{{key}: {value}}}")),
            Unfit::Room(short) => short.iter().flatten().for_each(|why| count(why)),
        }
    }
    let mut ranked = rank(pod, world, fit);
    while let Some((_, host)) = ranked.pop() {
        match volumes(host.object()) {
            Ok(()) => return Ok(host.name().to_owned()),
            Err(why) => count(&why),
        }
    }
    Err(reasons)
}

/// What speaks against a node: the first filter that fails, as in Kubernetes; only room is told in full.
enum Unfit<'a> {
    Not,
    Why(&'static str),
    Taint(&'a str, &'a str),
    Room([Option<&'static str>; 3]),
}

fn unfit<'a>(pod: &Wanted, host: &'a Host, spread: &Spread, neighbours: &Neighbours) -> Unfit<'a> {
    if host.deleting {
        return Unfit::Why("node(s) were being deleted");
    }
    if host.unschedulable && !pod.tolerates("node.kubernetes.io/unschedulable", "", "NoSchedule") {
        return Unfit::Why(UNSCHEDULABLE);
    }
    if !pod.node_name.is_empty() && pod.node_name != host.name() {
        return Unfit::Why(OTHER_NAME);
    }
    if let Some((key, value)) = host.untolerated(pod) {
        return Unfit::Taint(key, value);
    }
    if !pod.selects(host) {
        return Unfit::Why(NOT_SELECTED);
    }
    if !host.ports_free(&pod.ports) {
        return Unfit::Why(NO_PORTS);
    }
    let short = host.short_of(&pod.request);
    if short.iter().any(Option::is_some) {
        return Unfit::Room(short);
    }
    if !pod.volumes.iter().all(|volume| volume.matches(host)) {
        return Unfit::Why(VOLUME_CONFLICT);
    }
    match spread.against(host).or_else(|| neighbours.against(host)) {
        Some(why) => Unfit::Why(why),
        None => Unfit::Not,
    }
}

/// A node that would do, and what speaks for it before all are compared.
struct Fit<'a> {
    host: &'a Host,
    /// Taints that ask to stay away.
    discouraged: i64,
    preferred: i64,
    near: i64,
    /// Higher is more crowded.
    crowded: i64,
}

impl<'a> Fit<'a> {
    fn new(pod: &Wanted, host: &'a Host, spread: &Spread, neighbours: &Neighbours) -> Fit<'a> {
        Fit {
            host,
            discouraged: host.discouraged(pod),
            preferred: pod.preference(host),
            near: neighbours.score(host),
            crowded: spread.score(host),
        }
    }
}

/// What decides between nodes that would do, the most important first; the least is best.
type Rank<'a> = (bool, Reverse<i64>, u32, u32, u64, u64, &'a str);

fn rank<'a>(pod: &Wanted, world: &World, fit: Vec<Fit<'a>>) -> BinaryHeap<(Reverse<Rank<'a>>, &'a Host)> {
    // Each preference counts from 0 to 100 between the nodes that would do, times Kubernetes' weights.
    let scaled = |of: fn(&Fit) -> i64, weight: i64| {
        let (least, most) = (fit.iter().map(of).min().unwrap_or(0), fit.iter().map(of).max().unwrap_or(0));
        move |fit: &Fit| match most - least {
            0 => 0,
            range => weight * 100 * (of(fit) - least) / range,
        }
    };
    let discouraged = scaled(|f| f.discouraged, -3);
    let preferred = scaled(|f| f.preferred, 2);
    let near = scaled(|f| f.near, 2);
    let crowded = scaled(|f| f.crowded, -2);
    let siblings = world.siblings(pod);
    fit.into_iter()
        .map(|fit| {
            let score = discouraged(&fit) + preferred(&fit) + near(&fit) + crowded(&fit);
            let host = fit.host;
            let (own, own_zone) = siblings.on(host);
            let last = pod.last_node == host.name();
            let rank =
                (!last, Reverse(score), own, own_zone, host.load(&pod.request), host.pods(), host.name());
            (Reverse(rank), host)
        })
        .collect()
}
