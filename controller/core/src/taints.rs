//! Taints and tolerations: what a node keeps away, and when a pod that is there already must go. Pure.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::object;
use crate::place::ready;

/// Kept on a node for as long as it is cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Kept on a node for as long as it is not Ready: its agent says that it cannot run pods...
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// ...or says nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long pods bear either that do not say so themselves. Kubernetes writes it into each pod.
const PATIENCE: i64 = 300;

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

/// The taint that a node's Ready condition asks for.
pub fn of_ready(node: &Value) -> Option<&'static str> {
    match ready(node) {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    }
}

/// Makes the taints of a node that is not Ready follow its condition; whether they did not.
pub fn follow_ready(node: &mut Value, now: Timestamp) -> bool {
    let wanted = of_ready(node).map(|key| ["NoSchedule", NO_EXECUTE].map(|effect| (key, effect)));
    let wanted = wanted.as_ref().map(<[_; 2]>::as_slice).unwrap_or_default();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let is_ours = |taint: &Value| taint["key"] == NOT_READY || taint["key"] == UNREACHABLE;
    let (ours, mut taints): (Vec<Value>, Vec<Value>) = taints.into_iter().partition(is_ours);
    let there =
        |(key, effect): &(&str, &str)| ours.iter().any(|t| t["key"] == *key && t["effect"] == *effect);
    if ours.len() == wanted.len() && wanted.iter().all(there) {
        return false;
    }
    let since = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    taints
        .extend(wanted.iter().map(|(key, effect)| json!({"key": key, "effect": effect, "timeAdded": since})));
    set_taints(node, taints)
}

/// Whether there was a spec to set them in.
fn set_taints(node: &mut Value, taints: Vec<Value>) -> bool {
    let Some(spec) = node.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    if taints.is_empty() {
        spec.remove("taints");
    } else {
        spec.insert("taints".to_owned(), taints.into());
    }
    true
}

/// Whether a pod's name may run on no other host before this one has reported. For a set's pod it is of no use to
/// be deleted from a silent host, then: it would only lose what still runs.
fn stays(pod: &Value) -> bool {
    object::controller_ref(pod).is_some_and(|owner| owner["kind"] == "StatefulSet")
}

/// When this pod, bound to this node, must leave it. A toleration's seconds run from the later of the taint's
/// time and the pod's own binding: a pod that comes to a tainted node gets all of them.
pub fn leave(node: &Value, pod: &Value, now: Timestamp) -> Leave {
    let tolerations = pod["spec"]["tolerations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bound = bound_since(pod);
    let mut leave = Leave::Never;
    for taint in evicting(node) {
        let text = |field: &str| taint[field].as_str().unwrap_or_default();
        let of_silence = [NOT_READY, UNREACHABLE].contains(&text("key"));
        if of_silence && stays(pod) {
            continue;
        }
        let mut tolerated = false;
        let mut seconds: Option<i64> = None;
        for toleration in tolerations.iter().filter(|t| covers(t, text("key"), text("value"), NO_EXECUTE)) {
            tolerated = true;
            if let Some(limit) = toleration["tolerationSeconds"].as_i64() {
                seconds = Some(seconds.map_or(limit, |least| least.min(limit)).max(0));
            }
        }
        if of_silence && !tolerated {
            (tolerated, seconds) = (true, Some(PATIENCE));
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
    let is_ours = |taint: &Value| taint["key"] == UNSCHEDULABLE && taint["effect"] == "NoSchedule";
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    if taints.iter().any(is_ours) == cordoned {
        return;
    }
    let mut taints: Vec<Value> = taints.into_iter().filter(|taint| !is_ours(taint)).collect();
    if cordoned {
        taints.push(json!({"key": UNSCHEDULABLE, "effect": "NoSchedule"}));
    }
    set_taints(node, taints);
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_node_is_tainted_for_as_long_as_it_is_not_ready_and_keeps_what_others_put_there() {
        let other = json!({"key": "a", "effect": "NoSchedule"});
        let mut node = node(json!([other]));
        let mut become_ready = |status: &str, second: i64| {
            node["status"] = json!({"conditions": [{"type": "Ready", "status": status}]});
            (follow_ready(&mut node, at(second)), node["spec"]["taints"].clone())
        };
        let both = |key: &str, since: i64| {
            let taint = |effect: &str| json!({"key": key, "effect": effect, "timeAdded": text(since)});
            json!([other, taint("NoSchedule"), taint("NoExecute")])
        };
        assert_eq!(become_ready("Unknown", 10), (true, both(UNREACHABLE, 10)));
        assert_eq!(become_ready("Unknown", 20), (false, both(UNREACHABLE, 10)));
        assert_eq!(become_ready("False", 30), (true, both(NOT_READY, 30)));
        assert_eq!(become_ready("True", 40), (true, json!([other])));
        assert_eq!(become_ready("True", 50), (false, json!([other])));
    }

    #[test]
    fn a_silent_host_keeps_the_pods_of_sets_and_others_for_five_minutes_or_as_they_say() {
        for key in [NOT_READY, UNREACHABLE] {
            let node = node(json!([{"key": key, "effect": "NoExecute", "timeAdded": text(100)}]));
            let when = |pod: &Value| leave(&node, pod, at(100));
            assert_eq!(when(&pod(json!([]))), Leave::At(at(400)));
            let hasty = pod(json!([{"key": key, "operator": "Exists", "tolerationSeconds": 5}]));
            assert_eq!(when(&hasty), Leave::At(at(105)));
            assert_eq!(when(&pod(json!([{"operator": "Exists"}]))), Leave::Never);
            let mut of_set = hasty;
            of_set["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "controller": true}]);
            assert_eq!(when(&of_set), Leave::Never);
        }
    }
}
