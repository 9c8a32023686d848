//! What an agent says of a pod, as the pod's `status`. Pure.

use berth_controller_core::resolve::resources::qos_class;
use berth_proto::{Condition, ContainerState, ContainerStatus, PodStatus, container_state};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The order Kubernetes shows them in.
const ORDER: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The pod's new `status`, or None if the report says nothing that may be taken over: a pod that has ended
/// stays ended.
pub fn status(pod: &Value, report: &PodStatus, now: Timestamp) -> Option<Value> {
    let old = &pod["status"];
    let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
    if old["phase"].as_str().is_some_and(ended) && !ended(&report.phase) {
        return None;
    }
    let mut status = Map::new();
    status.insert("phase".into(), report.phase.as_str().into());
    optional(&mut status, "reason", &report.reason);
    optional(&mut status, "message", &report.message);
    if report.observed_generation > 0 {
        status.insert("observedGeneration".into(), report.observed_generation.into());
    }
    status.insert("conditions".into(), conditions(pod, report, now));
    if !report.host_ip.is_empty() {
        status.insert("hostIP".into(), report.host_ip.as_str().into());
        status.insert("hostIPs".into(), json!([{"ip": report.host_ip}]));
    }
    if let Some(first) = report.pod_ips.first() {
        status.insert("podIP".into(), first.as_str().into());
        let all: Vec<Value> = report.pod_ips.iter().map(|ip| json!({"ip": ip})).collect();
        status.insert("podIPs".into(), all.into());
    }
    // A pod starts once.
    match (&old["startTime"], report.start_time_ms) {
        (Value::String(start), _) => status.insert("startTime".into(), start.as_str().into()),
        (_, 0) => None,
        (_, ms) => status.insert("startTime".into(), time(ms).into()),
    };
    if !report.init_containers.is_empty() {
        status.insert("initContainerStatuses".into(), containers(&report.init_containers));
    }
    if !report.containers.is_empty() {
        status.insert("containerStatuses".into(), containers(&report.containers));
    }
    let qos = old["qosClass"].as_str().unwrap_or_else(|| qos_class(pod));
    status.insert("qosClass".into(), qos.into());
    Some(Value::Object(status))
}

/// A condition as it is to be written: the time of its last transition moves only if its status does.
/// `at` is that time if it does.
pub fn condition(old: &Value, kind: &str, status: &str, reason: &str, message: &str, at: String) -> Value {
    let before = old.as_array().into_iter().flatten().find(|c| c["type"] == kind);
    let kept = before
        .filter(|c| c["status"] == status)
        .and_then(|c| c["lastTransitionTime"].as_str().map(str::to_owned));
    let mut condition = json!({
        "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": kept.unwrap_or(at),
    });
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    condition
}

/// Puts a condition in the place of the one of its type, or where Kubernetes has it.
pub fn set_condition(status: &mut Value, new: Value) {
    let Some(fields) = status.as_object_mut() else { return };
    let slot = fields.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = slot.as_array_mut() else { return };
    match conditions.iter_mut().find(|c| c["type"] == new["type"]) {
        Some(there) => *there = new,
        None => conditions.push(new),
    }
    sort(conditions);
}

fn sort(conditions: &mut [Value]) {
    let rank = |c: &Value| ORDER.iter().position(|t| c["type"] == **t).unwrap_or(ORDER.len());
    conditions.sort_by_key(rank);
}

fn conditions(pod: &Value, report: &PodStatus, now: Timestamp) -> Value {
    let old = &pod["status"]["conditions"];
    // Conditions that others keep (PodScheduled, readiness gates, DisruptionTarget) stay.
    let mut all: Vec<Value> = old
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| !report.conditions.iter().any(|r| c["type"] == r.r#type))
        .cloned()
        .collect();
    for Condition { r#type, status, reason, message, last_transition_ms } in &report.conditions {
        let at = if *last_transition_ms > 0 { time(*last_transition_ms) } else { text(now) };
        all.push(condition(old, r#type, status, reason, message, at));
    }
    if !all.iter().any(|c| c["type"] == "PodScheduled") {
        all.push(condition(old, "PodScheduled", "True", "", "", text(now)));
    }
    sort(&mut all);
    all.into()
}

fn containers(statuses: &[ContainerStatus]) -> Value {
    statuses
        .iter()
        .map(|c| {
            let mut status = json!({
                "name": c.name, "image": c.image, "imageID": c.image_id, "ready": c.ready,
                "restartCount": c.restart_count, "started": c.started,
                "state": state(c.state.as_ref()), "lastState": state(c.last_state.as_ref()),
            });
            if !c.container_id.is_empty() {
                status["containerID"] = c.container_id.as_str().into();
            }
            status
        })
        .collect::<Vec<Value>>()
        .into()
}

fn state(state: Option<&ContainerState>) -> Value {
    let mut fields = Map::new();
    let kind = match state.and_then(|s| s.state.as_ref()) {
        None => return json!({}),
        Some(container_state::State::Waiting(waiting)) => {
            optional(&mut fields, "reason", &waiting.reason);
            optional(&mut fields, "message", &waiting.message);
            "waiting"
        }
        Some(container_state::State::Running(running)) => {
            fields.insert("startedAt".into(), time(running.started_at_ms).into());
            "running"
        }
        Some(container_state::State::Terminated(end)) => {
            fields.insert("exitCode".into(), end.exit_code.into());
            if end.signal != 0 {
                fields.insert("signal".into(), end.signal.into());
            }
            optional(&mut fields, "reason", &end.reason);
            optional(&mut fields, "message", &end.message);
            for (field, ms) in [("startedAt", end.started_at_ms), ("finishedAt", end.finished_at_ms)] {
                let at = if ms > 0 { Value::from(time(ms)) } else { Value::Null };
                fields.insert(field.into(), at);
            }
            optional(&mut fields, "containerID", &end.container_id);
            "terminated"
        }
    };
    let mut outer = Map::new();
    outer.insert(kind.into(), fields.into());
    outer.into()
}

fn optional(fields: &mut Map<String, Value>, name: &str, text: &str) {
    if !text.is_empty() {
        fields.insert(name.into(), text.into());
    }
}

/// metav1.Time of a Unix time in milliseconds.
pub fn time(ms: i64) -> String {
    text(Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// metav1.Time: whole seconds, UTC.
pub fn text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(phase: &str, conditions: &[(&str, &str, i64)]) -> PodStatus {
        PodStatus {
            phase: phase.to_owned(),
            start_time_ms: 1_000,
            conditions: conditions
                .iter()
                .map(|(kind, status, at)| Condition {
                    r#type: (*kind).to_owned(),
                    status: (*status).to_owned(),
                    last_transition_ms: *at,
                    ..Condition::default()
                })
                .collect(),
            ..PodStatus::default()
        }
    }

    fn after(pod: &mut Value, report: &PodStatus) -> bool {
        match status(pod, report, Timestamp::UNIX_EPOCH) {
            Some(status) => {
                pod["status"] = status;
                true
            }
            None => false,
        }
    }

    #[test]
    fn a_transition_time_moves_only_with_its_status() {
        let mut pod = json!({"spec": {}});
        after(&mut pod, &report("Running", &[("Ready", "False", 1_000)]));
        after(&mut pod, &report("Running", &[("Ready", "False", 9_000)]));
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:01Z");
        after(&mut pod, &report("Running", &[("Ready", "True", 9_000)]));
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:09Z");
    }

    #[test]
    fn conditions_of_others_stay_and_the_order_is_kubernetes() {
        let mut pod = json!({"spec": {}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"},
            {"type": "example.org/ready", "status": "True"},
        ]}});
        after(&mut pod, &report("Running", &[("ContainersReady", "True", 1), ("Ready", "True", 1)]));
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let types: Vec<&str> = conditions.iter().map(|c| c["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["Ready", "ContainersReady", "PodScheduled", "example.org/ready"]);
    }

    #[test]
    fn what_has_ended_stays_ended_and_what_has_started_started_once() {
        let mut pod = json!({"spec": {}});
        after(&mut pod, &report("Running", &[]));
        let late = PodStatus { start_time_ms: 50_000, ..report("Succeeded", &[]) };
        after(&mut pod, &late);
        assert_eq!(pod["status"]["startTime"], "1970-01-01T00:00:01Z");
        assert!(!after(&mut pod, &report("Running", &[])));
        assert_eq!(pod["status"]["phase"], "Succeeded");
    }

    #[test]
    fn container_states_are_kubernetes() {
        let terminated = container_state::Terminated {
            exit_code: 3,
            reason: "Error".into(),
            finished_at_ms: 2_000,
            ..Default::default()
        };
        let waiting = container_state::Waiting { reason: "CrashLoopBackOff".into(), message: String::new() };
        let container = ContainerStatus {
            name: "c".into(),
            restart_count: 2,
            state: Some(ContainerState { state: Some(container_state::State::Waiting(waiting)) }),
            last_state: Some(ContainerState { state: Some(container_state::State::Terminated(terminated)) }),
            ..ContainerStatus::default()
        };
        let made = &containers(&[container])[0];
        assert_eq!(made["state"], json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        assert_eq!(
            made["lastState"],
            json!({"terminated": {
                "exitCode": 3, "reason": "Error", "startedAt": null, "finishedAt": "1970-01-01T00:00:02Z",
            }})
        );
        assert_eq!((&made["restartCount"], &made["containerID"]), (&json!(2), &Value::Null));
    }
}
