//! Topology spread constraints: no part of the cluster has too many more of the meant pods than another.

use std::collections::HashMap;

use serde_json::Value;

use super::node::{Selectable as _, list};
use super::wanted::Wanted;
use super::world::{Host, Labels, World};
use crate::selector::Selector;

const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

#[derive(Clone, Debug)]
pub struct Constraint {
    topology_key: String,
    max_skew: i64,
    /// whenUnsatisfiable: DoNotSchedule.
    hard: bool,
    min_domains: usize,
    selector: Selector,
    /// Whether the pod's node affinity, and its missing tolerations, decide which nodes count.
    honours_affinity: bool,
    honours_taints: bool,
}

impl Constraint {
    pub(super) fn of(constraint: &Value, labels: &Labels) -> Constraint {
        let mut selector =
            Selector::from_object(&constraint["labelSelector"]).unwrap_or_else(|_| Selector::nothing());
        for key in list(&constraint["matchLabelKeys"]).filter_map(Value::as_str) {
            selector = labels.get(key).map(|value| selector.clone().and(key, value)).unwrap_or(selector);
        }
        let min = constraint["minDomains"].as_u64().and_then(|n| usize::try_from(n).ok());
        Constraint {
            topology_key: constraint["topologyKey"].as_str().unwrap_or_default().to_owned(),
            max_skew: constraint["maxSkew"].as_i64().unwrap_or(1),
            hard: constraint["whenUnsatisfiable"] != "ScheduleAnyway",
            min_domains: min.unwrap_or(1),
            selector,
            honours_affinity: constraint["nodeAffinityPolicy"] != "Ignore",
            honours_taints: constraint["nodeTaintsPolicy"] == "Honor",
        }
    }
}

/// The constraints of one pod, and how things stand.
pub(super) struct Spread<'a> {
    constraints: Vec<Standing<'a>>,
}

struct Standing<'a> {
    constraint: &'a Constraint,
    /// How many of the meant pods each part has.
    counts: HashMap<&'a str, i64>,
    /// What the emptiest part has.
    least: i64,
    /// The pod itself is one of those meant.
    own: i64,
}

impl<'a> Spread<'a> {
    pub fn of(pod: &'a Wanted, world: &'a World) -> Spread<'a> {
        let hard: Vec<&str> = pod.spread.iter().filter(|c| c.hard).map(|c| c.topology_key.as_str()).collect();
        let constraints = pod.spread.iter().map(|constraint| {
            let counts_here = |host: &Host| {
                (!constraint.hard || hard.iter().all(|key| host.label(key).is_some()))
                    && (!constraint.honours_affinity || pod.selects(host))
                    && (!constraint.honours_taints || host.untolerated(pod).is_none())
            };
            let mut counts: HashMap<&str, i64> = HashMap::new();
            for host in world.hosts().filter(|host| counts_here(host)) {
                if let Some(domain) = host.label(&constraint.topology_key) {
                    counts.entry(domain).or_default();
                }
            }
            for there in world.selected(&pod.namespace, &constraint.selector).filter(|p| !p.terminating) {
                let host = world.host(&there.node).filter(|host| counts_here(host));
                let domain = host.and_then(|host| host.label(&constraint.topology_key));
                if let Some(count) = domain.and_then(|domain| counts.get_mut(domain)) {
                    *count += 1;
                }
            }
            let least = match counts.len() < constraint.min_domains {
                true => 0,
                false => counts.values().copied().min().unwrap_or(0),
            };
            let own = i64::from(constraint.selector.matches_with(|key| pod.labels.get(key)));
            Standing { constraint, counts, least, own }
        });
        Spread { constraints: constraints.collect() }
    }

    pub fn against(&self, host: &Host) -> Option<&'static str> {
        for standing in self.constraints.iter().filter(|s| s.constraint.hard) {
            let Some(domain) = host.label(&standing.constraint.topology_key) else { return Some(NO_LABEL) };
            let there = standing.counts.get(domain).copied().unwrap_or(0);
            if there + standing.own - standing.least > standing.constraint.max_skew {
                return Some(UNEVEN);
            }
        }
        None
    }

    /// How crowded the parts are that the node is in, for the constraints that are only wishes.
    pub fn score(&self, host: &Host) -> i64 {
        let wishes = self.constraints.iter().filter(|s| !s.constraint.hard);
        wishes
            .map(|standing| {
                // Parts of which there are many count for more, as in Kubernetes: ln(parts + 2), in thousandths.
                let parts = u32::try_from(standing.counts.len() + 2).unwrap_or(u32::MAX);
                #[allow(clippy::cast_possible_truncation, reason = "a small number, rounded")]
                let weight = (f64::from(parts).ln() * 1000.0) as i64;
                let domain = host.label(&standing.constraint.topology_key);
                let most = standing.counts.values().copied().max().unwrap_or(0) + 1;
                let there = domain.map_or(most, |d| standing.counts.get(d).copied().unwrap_or(0));
                there * weight + standing.constraint.max_skew - 1
            })
            .sum()
    }
}
