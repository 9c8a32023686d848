//! Taints and tolerations: what a node keeps away, and when a pod that is there already must go. Pure.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Kept on a node for as long as it is cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

const NO_EXECUTE: &str = "NoExecute";

/// Whether one toleration covers a taint.
pub fn covers(toleration: &Value, key: &str, value: &str, effect: &str) -> bool {
    let field = |name: &str| toleration[name].as_str().unwrap_or_default();
    let exists = field("operator") == "Exists";
    (field("effect").is_empty() || field("effect") == effect)
        && (field("key") == key || (field("key").is_empty() && exists))
        && (exists || field("value") == value)
}

/// The node's taints that drive pods out.
pub fn evicting(node: &Value) -> impl Iterator<Item = &Value> {
    node["spec"]["taints"].as_array().into_iter().flatten().filter(|taint| taint["effect"] == NO_EXECUTE)
}

/// Gives every evicting taint the time it was put there, if nobody has noted that; whether any lacked it.
pub fn note_time(node: &mut Value, now: Timestamp) -> bool {
    let mut noted = false;
    for taint in node["spec"]["taints"].as_array_mut().into_iter().flatten() {
        if taint["effect"] == NO_EXECUTE && taint["timeAdded"].is_null() {
            taint["timeAdded"] = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
            noted = true;
        }
    }
    noted
}

/// When a pod must leave its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing drives it out, or it tolerates all that would, for ever.
    Never,
    /// From then on.
    At(Timestamp),
}

/// When this pod, bound to this node, must leave it. A toleration's seconds run from the later of the taint's
/// time and the pod's own binding: a pod that comes to a tainted node gets all of them.
pub fn leave(node: &Value, pod: &Value, now: Timestamp) -> Leave {
    let tolerations = pod["spec"]["tolerations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bound = bound_since(pod);
    let mut leave = Leave::Never;
    for taint in evicting(node) {
        let text = |field: &str| taint[field].as_str().unwrap_or_default();
        let mut tolerated = false;
        let mut seconds: Option<i64> = None;
        for toleration in tolerations.iter().filter(|t| covers(t, text("key"), text("value"), NO_EXECUTE)) {
            tolerated = true;
            if let Some(limit) = toleration["tolerationSeconds"].as_i64() {
                seconds = Some(seconds.map_or(limit, |least| least.min(limit)).max(0));
            }
        }
        let added = text("timeAdded").parse::<Timestamp>().unwrap_or(now);
        let at = match (tolerated, seconds) {
            (false, _) => added,
            (true, None) => continue,
            (true, Some(seconds)) => {
                let from = bound.map_or(added, |bound| bound.max(added));
                from.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
            }
        };
        leave = match leave {
            Leave::At(earlier) => Leave::At(earlier.min(at)),
            Leave::Never => Leave::At(at),
        };
    }
    leave
}

/// Since when a pod is on its node.
fn bound_since(pod: &Value) -> Option<Timestamp> {
    let conditions = pod["status"]["conditions"].as_array();
    let scheduled = conditions.into_iter().flatten().find(|c| c["type"] == "PodScheduled");
    let since = scheduled.map_or(&pod["metadata"]["creationTimestamp"], |c| &c["lastTransitionTime"]);
    since.as_str()?.parse().ok()
}

/// Makes the taint of a cordoned node follow `spec.unschedulable`.
pub fn follow_cordon(node: &mut Value) {
    let cordoned = node["spec"]["unschedulable"] == true;
    let Some(spec) = node.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let is_ours = |taint: &Value| taint["key"] == UNSCHEDULABLE && taint["effect"] == "NoSchedule";
    let taints = spec.get("taints").and_then(Value::as_array).cloned().unwrap_or_default();
    if taints.iter().any(is_ours) == cordoned {
        return;
    }
    let mut taints: Vec<Value> = taints.into_iter().filter(|taint| !is_ours(taint)).collect();
    if cordoned {
        taints.push(serde_json::json!({"key": UNSCHEDULABLE, "effect": "NoSchedule"}));
    }
    if taints.is_empty() {
        spec.remove("taints");
    } else {
        spec.insert("taints".to_owned(), taints.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn text(second: i64) -> String {
        at(second).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn node(taints: Value) -> Value {
        json!({"spec": {"taints": taints}})
    }

    fn pod(tolerations: Value) -> Value {
        json!({
            "metadata": {"creationTimestamp": text(0)}, "spec": {"tolerations": tolerations},
            "status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": text(50)}]},
        })
    }

    #[test]
    fn only_no_execute_drives_out_and_only_who_does_not_tolerate_it() {
        let taint =
            |effect: &str| json!([{"key": "disk", "value": "bad", "effect": effect, "timeAdded": text(100)}]);
        let when = |taints: Value, tolerations: Value| leave(&node(taints), &pod(tolerations), at(100));
        assert_eq!(when(taint("NoSchedule"), json!([])), Leave::Never);
        assert_eq!(when(taint("NoExecute"), json!([])), Leave::At(at(100)));
        let other = json!([{"key": "disk", "value": "slow"}]);
        assert_eq!(when(taint("NoExecute"), other), Leave::At(at(100)));
        for tolerations in [
            json!([{"operator": "Exists"}]),
            json!([{"key": "disk", "operator": "Exists"}]),
            json!([{"key": "disk", "value": "bad", "effect": "NoExecute"}]),
        ] {
            assert_eq!(when(taint("NoExecute"), tolerations), Leave::Never);
        }
    }

    #[test]
    fn a_tolerations_seconds_run_from_the_taint_or_from_the_binding_whichever_is_later() {
        let tolerant =
            |seconds: i64| pod(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": seconds}]));
        let since =
            |second: i64| node(json!([{"key": "a", "effect": "NoExecute", "timeAdded": text(second)}]));
        assert_eq!(leave(&since(100), &tolerant(30), at(100)), Leave::At(at(130)));
        assert_eq!(leave(&since(10), &tolerant(30), at(100)), Leave::At(at(80)), "bound at 50");
        assert_eq!(leave(&since(100), &tolerant(-5), at(100)), Leave::At(at(100)));
        // Several taints: the first that ends decides; one tolerated for ever does not shorten another.
        let two = node(json!([
            {"key": "a", "effect": "NoExecute", "timeAdded": text(100)},
            {"key": "b", "effect": "NoExecute", "timeAdded": text(100)},
        ]));
        let both = pod(json!([
            {"key": "a", "operator": "Exists", "tolerationSeconds": 60}, {"key": "b", "operator": "Exists"},
        ]));
        assert_eq!(leave(&two, &both, at(100)), Leave::At(at(160)));
    }

    #[test]
    fn the_time_of_a_taint_is_noted_once() {
        let mut node = node(json!([
            {"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute", "timeAdded": text(1)},
            {"key": "c", "effect": "NoSchedule"},
        ]));
        assert!(note_time(&mut node, at(9)));
        assert!(!note_time(&mut node, at(20)));
        let times: Vec<&Value> =
            node["spec"]["taints"].as_array().unwrap().iter().map(|t| &t["timeAdded"]).collect();
        assert_eq!(times, [&json!(text(9)), &json!(text(1)), &Value::Null]);
    }

    #[test]
    fn a_cordon_is_also_a_taint_for_as_long_as_it_lasts() {
        let mut node =
            json!({"spec": {"unschedulable": true, "taints": [{"key": "a", "effect": "NoSchedule"}]}});
        follow_cordon(&mut node);
        let tainted = node.clone();
        assert_eq!(node["spec"]["taints"][1], json!({"key": UNSCHEDULABLE, "effect": "NoSchedule"}));
        follow_cordon(&mut node);
        assert_eq!(node, tainted);
        node["spec"].as_object_mut().unwrap().remove("unschedulable");
        follow_cordon(&mut node);
        assert_eq!(node["spec"]["taints"], json!([{"key": "a", "effect": "NoSchedule"}]));
        let mut bare = json!({"spec": {"taints": [{"key": UNSCHEDULABLE, "effect": "NoSchedule"}]}});
        follow_cordon(&mut bare);
        assert_eq!(bare, json!({"spec": {}}));
    }
}
