//! A host as its Node object. Pure.

use berth_controller_core::quantity::Quantity;
use berth_proto::NodeStatus;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::pod_status::{text, time};

/// Labels Kubernetes' kubelet gives its node.
pub fn labels(name: &str, status: &NodeStatus) -> Map<String, Value> {
    let info = status.info.clone().unwrap_or_default();
    let mut labels = Map::new();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), info.operating_system.as_str().into());
        labels.insert(format!("{prefix}/arch"), info.architecture.as_str().into());
    }
    // Not the host's own name: volumes are pinned by this label, so it must be unique.
    labels.insert("kubernetes.io/hostname".into(), name.into());
    labels
}

/// A new Node.
pub fn new(name: &str, status: &NodeStatus, pod_cidr: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels(name, status)},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
    })
}

/// Whether the host can run pods, as its Ready condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    Yes,
    /// The agent is there, what it needs is not: reason and message.
    No(String, String),
    /// There is no session, and why.
    Unknown(String),
}

impl Ready {
    /// Status, reason and message.
    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Ready::Yes => ("True", "KubeletReady", "the agent is connected and containerd answers"),
            Ready::No(reason, why) => ("False", reason, why),
            Ready::Unknown(why) => ("Unknown", "NodeStatusUnknown", why),
        }
    }
}

/// The Node's `status` made from its agent's report.
pub fn status(node: &Value, report: &NodeStatus, version: &str, now: Timestamp) -> Value {
    let old = &node["status"];
    let mut status = old.as_object().cloned().unwrap_or_default();
    let capacity = json!({
        "cpu": Quantity::millis(clamp(report.cpu_millis)).to_string(),
        "memory": Quantity::bytes(clamp(report.memory_bytes) / 1024 * 1024).to_string(),
        "ephemeral-storage": Quantity::bytes(clamp(report.ephemeral_storage_bytes) / 1024 * 1024).to_string(),
        "pods": report.max_pods.to_string(),
    });
    status.insert("allocatable".into(), capacity.clone());
    status.insert("capacity".into(), capacity);
    let mut addresses: Vec<Value> =
        report.internal_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    addresses.push(json!({"type": "Hostname", "address": report.hostname}));
    status.insert("addresses".into(), addresses.into());
    if let Some(info) = &report.info {
        status.insert(
            "nodeInfo".into(),
            json!({
                "machineID": info.machine_id, "systemUUID": info.system_uuid, "bootID": info.boot_id,
                "kernelVersion": info.kernel_version, "osImage": info.os_image,
                "containerRuntimeVersion": info.container_runtime_version, "kubeletVersion": version,
                "kubeProxyVersion": "", "operatingSystem": info.operating_system,
                "architecture": info.architecture,
            }),
        );
    }
    status.insert("daemonEndpoints".into(), json!({"kubeletEndpoint": {"Port": 0}}));
    let said = |said: &str, otherwise: &str| (if said.is_empty() { otherwise } else { said }).to_owned();
    let ready = match report.runtime_ready {
        true => Ready::Yes,
        false => Ready::No(
            said(&report.not_ready_reason, "KubeletNotReady"),
            said(&report.runtime_message, "containerd does not answer"),
        ),
    };
    let mut conditions: Vec<Value> = report
        .conditions
        .iter()
        .map(|c| {
            let at = if c.last_transition_ms > 0 { time(c.last_transition_ms) } else { text(now) };
            condition(&old["conditions"], &c.r#type, &c.status, &c.reason, &c.message, at, now)
        })
        .collect();
    conditions.push(ready_condition(&old["conditions"], &ready, now));
    status.insert("conditions".into(), conditions.into());
    Value::Object(status)
}

/// The Node's `status` when its session has ended: only its conditions change, all to Unknown.
pub fn status_unknown(node: &Value, why: &str, now: Timestamp) -> Value {
    let old = &node["status"]["conditions"];
    let unknown = Ready::Unknown(format!("{why}; its pods run on if the host does"));
    let (_, reason, message) = unknown.parts();
    let mut conditions: Vec<Value> = old
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| c["type"] != "Ready")
        .map(|c| {
            condition(old, c["type"].as_str().unwrap_or_default(), "Unknown", reason, message, text(now), now)
        })
        .collect();
    conditions.push(ready_condition(old, &unknown, now));
    let mut status = node["status"].as_object().cloned().unwrap_or_default();
    status.insert("conditions".into(), conditions.into());
    Value::Object(status)
}

fn ready_condition(old: &Value, ready: &Ready, now: Timestamp) -> Value {
    let (status, reason, message) = ready.parts();
    condition(old, "Ready", status, reason, message, text(now), now)
}

fn condition(
    old: &Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    at: String,
    now: Timestamp,
) -> Value {
    let mut condition = super::pod_status::condition(old, kind, status, reason, message, at);
    if let Some(fields) = condition.as_object_mut() {
        fields.remove("lastProbeTime");
        // Moves on only when something else does: a heartbeat is no reason to write.
        fields.insert("lastHeartbeatTime".into(), text(now).into());
    }
    condition
}

fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Whether two statuses say the same, heartbeat times apart.
pub fn same(a: &Value, b: &Value) -> bool {
    let bare = |v: &Value| {
        let mut v = v.clone();
        for c in v["conditions"].as_array_mut().into_iter().flatten() {
            if let Some(fields) = c.as_object_mut() {
                fields.remove("lastHeartbeatTime");
            }
        }
        v
    };
    bare(a) == bare(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> NodeStatus {
        NodeStatus { cpu_millis: 1500, memory_bytes: 1 << 30, runtime_ready: true, ..NodeStatus::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_heartbeat_alone_is_no_news() {
        let mut node = new("n", &report(), "10.42.0.0/24");
        node["status"] = status(&node, &report(), "v", at(10));
        let later = status(&node, &report(), "v", at(20));
        assert!(same(&node["status"], &later));
        let away = NodeStatus { runtime_ready: false, ..report() };
        assert!(!same(&node["status"], &status(&node, &away, "v", at(20))));
    }

    #[test]
    fn a_host_that_is_not_ready_says_in_its_own_words_why() {
        let node = new("n", &report(), "10.42.0.0/24");
        let ready = |report: &NodeStatus| status(&node, report, "v", at(10))["conditions"][0].clone();
        let told = NodeStatus {
            runtime_ready: false,
            not_ready_reason: "NetworkPluginNotReady".to_owned(),
            runtime_message: "no ptp".to_owned(),
            ..report()
        };
        let condition = ready(&told);
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("NetworkPluginNotReady"))
        );
        assert_eq!(condition["message"], "no ptp");
        let silent = ready(&NodeStatus { runtime_ready: false, ..report() });
        assert_eq!(silent["reason"], "KubeletNotReady");
    }

    #[test]
    fn without_a_session_all_conditions_are_unknown_since_then() {
        let mut node = new("n", &report(), "10.42.0.0/24");
        node["status"] = status(&node, &report(), "v", at(10));
        node["status"] = status_unknown(&node, "the agent fell silent", at(60));
        let ready = &node["status"]["conditions"][0];
        assert_eq!((&ready["status"], &ready["reason"]), (&json!("Unknown"), &json!("NodeStatusUnknown")));
        assert_eq!(ready["message"], "the agent fell silent; its pods run on if the host does");
        assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:01:00Z");
        assert_eq!(node["status"]["capacity"]["cpu"], "1500m");
        assert!(same(&node["status"], &status_unknown(&node, "the agent fell silent", at(90))));
    }
}
