//! How much of an application may be taken away at once: a PodDisruptionBudget's arithmetic, and what an
//! eviction needs of it. Pure; Kubernetes' rules.
//!
//! Two evictions at once are safe because each takes one of the allowed disruptions out of the budget's status
//! ([`take`]), in the transaction that marks the pod as deleted and on condition that nobody else wrote the
//! budget. From then on the pod does not count. (Kubernetes has two writes there, and so keeps a list of what it
//! granted and has not seen deleted, `disruptedPods`. There is no such gap here, and the list stays empty.)

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object;
use crate::selector::Selector;
use crate::status::Status;

#[cfg(test)]
mod tests;

const BUDGETS: &str = "poddisruptionbudgets.policy";

/// What matters of a pod that a budget selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    /// Deletion was asked for.
    pub deleting: bool,
    /// Its condition Ready is True.
    pub healthy: bool,
    /// Its controller.
    pub owner: Option<Owner>,
}

/// A pod's controller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub kind: String,
    pub name: String,
    pub uid: String,
}

/// Whether a pod's condition Ready is True.
pub fn healthy(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The budget's selector. One that does not parse, or none, selects nothing; an empty one everything.
pub fn selector(budget: &Value) -> Selector {
    Selector::from_object(&budget["spec"]["selector"]).unwrap_or_else(|_| Selector::nothing())
}

/// A budget's status as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    pub status: Value,
    /// Why its pods could not be counted; no disruption is allowed then.
    pub failure: Option<String>,
    /// Pods without a controller, which a percentage or `maxUnavailable` cannot count.
    pub unmanaged: bool,
}

/// Counts. `pods` are those that the budget selects; `scale` is how many pods a controller is to have, None if
/// there is no such controller.
pub fn assess(
    budget: &Value,
    pods: &[Pod],
    scale: &dyn Fn(&Owner) -> Option<i64>,
    now: Timestamp,
) -> Assessment {
    let old = &budget["status"];
    let expected = match expect(&budget["spec"], pods, scale) {
        Ok(expected) => expected,
        Err(failure) => {
            // What was counted last stays; what is known to be wrong must not allow anything.
            let mut status = if old.is_object() { old.clone() } else { json!({}) };
            for field in ["currentHealthy", "desiredHealthy", "expectedPods"] {
                if status[field].is_null() {
                    status[field] = 0.into();
                }
            }
            status["disruptionsAllowed"] = 0.into();
            set_condition(&mut status, "SyncFailed", &failure, now);
            return Assessment { status, failure: Some(failure), unmanaged: false };
        }
    };
    let current = count(pods.iter().filter(|pod| pod.healthy && !pod.deleting));
    let allowed = if expected.pods > 0 { (current - expected.healthy).max(0) } else { 0 };
    let mut status = json!({
        "currentHealthy": current, "desiredHealthy": expected.healthy, "expectedPods": expected.pods,
        "disruptionsAllowed": allowed, "observedGeneration": object::generation(budget),
    });
    status["conditions"] = old["conditions"].as_array().cloned().unwrap_or_default().into();
    tell(&mut status, now);
    Assessment { status, failure: None, unmanaged: expected.unmanaged }
}

struct Expected {
    pods: i64,
    healthy: i64,
    unmanaged: bool,
}

fn expect(spec: &Value, pods: &[Pod], scale: &dyn Fn(&Owner) -> Option<i64>) -> Result<Expected, String> {
    let (most, least) = (&spec["maxUnavailable"], &spec["minAvailable"]);
    if most.is_null()
        && let Some(healthy) = least.as_i64()
    {
        return Ok(Expected { pods: count(pods.iter()), healthy, unmanaged: false });
    }
    if most.is_null() && least.is_null() {
        return Ok(Expected { pods: 0, healthy: 0, unmanaged: false });
    }
    let owners: BTreeSet<&Owner> = pods.iter().filter_map(|p| p.owner.as_ref()).collect();
    let unmanaged = pods.iter().any(|pod| pod.owner.is_none());
    let mut total = 0;
    for owner in owners {
        total += scale(owner).ok_or_else(|| {
            let pod = pods.iter().find(|p| p.owner.as_ref() == Some(owner));
            format!("found no controllers for pod {:?}", pod.map_or("", |p| p.name.as_str()))
        })?;
    }
    let healthy = if most.is_null() { share(least, total) } else { (total - share(most, total)).max(0) };
    Ok(Expected { pods: total, healthy, unmanaged })
}

/// A number, or a percentage of `total`, rounded up.
fn share(of: &Value, total: i64) -> i64 {
    match of.as_str() {
        None => of.as_i64().unwrap_or_default(),
        Some(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            percent.saturating_mul(total).saturating_add(99) / 100
        }
    }
}

fn count<'a>(pods: impl Iterator<Item = &'a Pod>) -> i64 {
    i64::try_from(pods.count()).unwrap_or(i64::MAX)
}

/// The condition that follows from `disruptionsAllowed`.
fn tell(status: &mut Value, now: Timestamp) {
    let reason = if status["disruptionsAllowed"] == 0 { "InsufficientPods" } else { "SufficientPods" };
    set_condition(status, reason, "", now);
}

fn set_condition(status: &mut Value, reason: &str, message: &str, now: Timestamp) {
    const TYPE: &str = "DisruptionAllowed";
    let holds = if reason == "SufficientPods" { "True" } else { "False" };
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let before = conditions.iter().find(|c| c["type"] == TYPE && c["status"] == holds);
    let since = before.map_or_else(|| time(now).into(), |c| c["lastTransitionTime"].clone());
    let condition = json!({
        "type": TYPE, "status": holds, "reason": reason, "message": message, "lastTransitionTime": since,
        "observedGeneration": status["observedGeneration"].as_i64().unwrap_or_default(),
    });
    let mut all: Vec<Value> = conditions.into_iter().filter(|c| c["type"] != TYPE).collect();
    all.push(condition);
    status["conditions"] = all.into();
}

/// What lets a pod be evicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Needs<'a> {
    /// Nothing more than being as it is: it has not begun or has ended, is going already, is not healthy and its
    /// budget lets such pods go, or no budget covers it.
    Nothing,
    /// One of the disruptions that this budget allows.
    Disruption(&'a Value),
}

/// Decides on an eviction, for the pod as it is now; `budgets` are those of the pod's namespace.
pub fn needs<'a>(pod: &Value, budgets: &'a [Value]) -> Result<Needs<'a>, Status> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Pending" | "Succeeded" | "Failed") || object::deleting(pod) {
        return Ok(Needs::Nothing);
    }
    let mut covering = budgets.iter().filter(|budget| selector(budget).matches(&pod["metadata"]["labels"]));
    let Some(budget) = covering.next() else { return Ok(Needs::Nothing) };
    if covering.next().is_some() {
        let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, "InternalError", message));
    }
    if !healthy(pod) {
        let number = |field: &str| budget["status"][field].as_i64().unwrap_or_default();
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let enough = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
        if always || enough {
            return Ok(Needs::Nothing);
        }
    }
    Ok(Needs::Disruption(budget))
}

/// The budget's status with one disruption less to give; or Kubernetes' refusal.
pub fn take(budget: &Value, now: Timestamp) -> Result<Value, Status> {
    let name = object::name(budget);
    let mut status = budget["status"].clone();
    if status["observedGeneration"].as_i64().unwrap_or_default() < object::generation(budget) {
        return Err(being_processed(name));
    }
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or_default();
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden(BUDGETS, name, "pdb disruptions allowed is negative"));
    }
    if allowed == 0 {
        let (needed, there) = (number("desiredHealthy"), number("currentHealthy"));
        let why =
            format!("The disruption budget {name} needs {needed} healthy pods and has {there} currently");
        return Err(too_many(&why, None));
    }
    status["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        tell(&mut status, now);
    }
    Ok(status)
}

/// Its last change has not been counted yet: the client is to ask again.
fn being_processed(budget: &str) -> Status {
    too_many(&format!("The disruption budget {budget} is still being processed by the server."), Some(10))
}

fn too_many(why: &str, again_after: Option<u32>) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status::new(429, "TooManyRequests", message);
    status.details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
    if let Some(seconds) = again_after {
        status.details["retryAfterSeconds"] = seconds.into();
    }
    status
}

/// Says on a pod that it is taken away, and why: its condition DisruptionTarget.
pub fn target(pod: &mut Value, reason: &str, message: &str, now: Timestamp) {
    const TYPE: &str = "DisruptionTarget";
    let slot = object::map_mut(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = slot.as_array_mut() else { return };
    if conditions.iter().any(|c| c["type"] == TYPE && c["status"] == "True" && c["reason"] == reason) {
        return;
    }
    conditions.retain(|c| c["type"] != TYPE);
    conditions.push(json!({
        "type": TYPE, "status": "True", "reason": reason, "message": message, "lastProbeTime": null,
        "lastTransitionTime": time(now),
    }));
}

/// metav1.Time
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
