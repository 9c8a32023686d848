//! What `kubectl get pods` prints: a pod's life in one word, its restarts, and where it is.

use jiff::Timestamp;
use serde_json::Value;

use super::Column;
use super::columns::{self, list, or_none, text};
use crate::object;

pub const COLUMNS: &[Column] = &[
    columns::NAME,
    text("Ready", "The aggregate readiness state of this pod for accepting traffic.", |pod, _| {
        format!("{}/{}", Summary::of(pod).ready, list(&pod["spec"]["containers"]).len()).into()
    }),
    text("Status", "The aggregate status of the containers in this pod.", |pod, _| {
        Summary::of(pod).reason.into()
    }),
    text("Restarts", "How often containers were restarted, and how long ago one last was.", |pod, now| {
        restarts(pod, now).into()
    }),
    columns::AGE,
    text("IP", "The pod's address.", |pod, _| {
        let status = &pod["status"];
        or_none(list(&status["podIPs"]).first().map_or(&status["podIP"], |first| &first["ip"]))
    })
    .wide(),
    text("Node", "The node the pod is bound to.", |pod, _| or_none(&pod["spec"]["nodeName"])).wide(),
    text("Nominated Node", "The node that space is being made on for the pod.", |pod, _| {
        or_none(&pod["status"]["nominatedNodeName"])
    })
    .wide(),
    text("Readiness Gates", "How many of the pod's readiness gates are met.", |pod, _| {
        readiness_gates(pod).into()
    })
    .wide(),
];

fn condition_is_true(pod: &Value, kind: &str) -> bool {
    list(&pod["status"]["conditions"]).iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// A pod's containers put together.
struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Summary {
        let status = &pod["status"];
        let phase = status["phase"].as_str().unwrap_or_default();
        let reason = status["reason"].as_str().filter(|r| !r.is_empty()).unwrap_or(phase).to_owned();
        let mut summary = Summary { reason, ready: 0, restarts: 0, last_restart: None };
        let initializing = summary.init_containers(pod);
        if !initializing || condition_is_true(pod, "Initialized") {
            summary.restarts = 0;
            summary.last_restart = None;
            summary.containers(pod);
        }
        if object::deleting(pod) {
            if status["reason"] == "NodeLost" {
                summary.reason = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    /// Whether an init container has still to succeed; the reason then tells which.
    fn init_containers(&mut self, pod: &Value) -> bool {
        let total = list(&pod["spec"]["initContainers"]).len();
        for (i, container) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
            self.count(container);
            let (waiting, ended) = (&container["state"]["waiting"], &container["state"]["terminated"]);
            if ended.is_object() && ended["exitCode"].as_i64().unwrap_or_default() == 0 {
                continue;
            }
            self.reason = if ended.is_object() {
                format!("Init:{}", ending(ended))
            } else {
                match waiting["reason"].as_str().unwrap_or_default() {
                    "" | "PodInitializing" => format!("Init:{i}/{total}"),
                    reason => format!("Init:{reason}"),
                }
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        for container in list(&pod["status"]["containerStatuses"]).iter().rev() {
            self.count(container);
            let state = &container["state"];
            let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if state["terminated"].is_object() {
                self.reason = ending(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        // One container is done and another still runs.
        if self.reason == "Completed" && running {
            self.reason = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }

    fn count(&mut self, container: &Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or_default();
        let finished = container["lastState"]["terminated"]["finishedAt"].as_str();
        let finished = finished.and_then(|t| t.parse::<Timestamp>().ok());
        self.last_restart = self.last_restart.max(finished);
    }
}

/// Why a container ended: the runtime's reason, or else the signal or exit code.
fn ending(ended: &Value) -> String {
    match ended["reason"].as_str().unwrap_or_default() {
        "" => match ended["signal"].as_i64().unwrap_or_default() {
            0 => format!("ExitCode:{}", ended["exitCode"].as_i64().unwrap_or_default()),
            signal => format!("Signal:{signal}"),
        },
        reason => reason.to_owned(),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let summary = Summary::of(pod);
    match summary.last_restart {
        Some(when) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, columns::since(when, now))
        }
        _ => summary.restarts.to_string(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let met =
        gates.iter().filter(|g| condition_is_true(pod, g["conditionType"].as_str().unwrap_or_default()));
    format!("{}/{}", met.count(), gates.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(pod: Value) -> String {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let cells = COLUMNS.iter().filter(|c| c.priority == 0).map(|c| match (c.cell)(&pod, now) {
            Value::String(text) => text,
            other => other.to_string(),
        });
        cells.collect::<Vec<_>>().join(" | ")
    }

    fn pod(status: Value) -> Value {
        json!({
            "metadata": {"name": "web-0", "creationTimestamp": "2026-11-21T09:55:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
            "status": status,
        })
    }

    fn running(ready: bool, restarts: i64) -> Value {
        json!({"ready": ready, "restartCount": restarts, "state": {"running": {}}})
    }

    #[test]
    fn a_fresh_pod_is_pending_and_a_ready_one_is_running() {
        assert_eq!(row(pod(json!({"phase": "Pending"}))), "web-0 | 0/2 | Pending | 0 | 5m");
        let status = json!({"phase": "Running", "containerStatuses": [running(true, 0), running(true, 0)]});
        assert_eq!(row(pod(status)), "web-0 | 2/2 | Running | 0 | 5m");
    }

    #[test]
    fn a_crash_loop_shows_its_reason_and_when_it_last_restarted() {
        let crashing = json!({"ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2026-11-21T09:57:00Z"}}});
        let status = json!({"phase": "Running", "containerStatuses": [crashing, running(true, 0)]});
        assert_eq!(row(pod(status)), "web-0 | 1/2 | CrashLoopBackOff | 2 (3m ago) | 5m");
    }

    #[test]
    fn init_containers_show_how_far_they_are_or_why_they_failed() {
        let init = |state: Value| {
            pod(json!({"phase": "Pending", "initContainerStatuses": [{"state": state, "restartCount": 0}]}))
        };
        assert_eq!(row(init(json!({"running": {}}))), "web-0 | 0/2 | Init:0/1 | 0 | 5m");
        assert_eq!(
            row(init(json!({"terminated": {"exitCode": 3, "reason": "Error"}}))),
            "web-0 | 0/2 | Init:Error | 0 | 5m"
        );
        assert_eq!(
            row(init(json!({"terminated": {"exitCode": 3}}))),
            "web-0 | 0/2 | Init:ExitCode:3 | 0 | 5m"
        );
        assert_eq!(
            row(init(json!({"waiting": {"reason": "ImagePullBackOff"}}))),
            "web-0 | 0/2 | Init:ImagePullBackOff | 0 | 5m"
        );
    }

    #[test]
    fn a_deleted_pod_is_terminating_unless_it_has_ended() {
        let mut deleted =
            pod(json!({"phase": "Running", "containerStatuses": [running(true, 0), running(true, 0)]}));
        deleted["metadata"]["deletionTimestamp"] = "2026-11-21T09:59:00Z".into();
        assert_eq!(row(deleted.clone()), "web-0 | 2/2 | Terminating | 0 | 5m");
        deleted["status"] = json!({"phase": "Succeeded", "containerStatuses": [
            {"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]});
        assert_eq!(row(deleted), "web-0 | 0/2 | Completed | 0 | 5m");
    }

    #[test]
    fn one_finished_container_beside_a_running_one_is_no_completed_pod() {
        let done = json!({"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let status = json!({"phase": "Running", "containerStatuses": [done, running(true, 0)]});
        assert_eq!(row(pod(status)), "web-0 | 1/2 | NotReady | 0 | 5m");
    }

    #[test]
    fn anything_at_all_can_be_printed() {
        for odd in [
            json!(null),
            json!([]),
            json!({"status": {"containerStatuses": [1, {"state": 2}]}, "metadata": 3}),
        ] {
            row(odd);
        }
    }
}
