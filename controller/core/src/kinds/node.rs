//! Node: a host with an agent.

use std::collections::BTreeSet;

use serde_json::Value;

use super::check::{self, At, Errors, invalid_each, one_of};
use super::columns::{self, list, or, or_none, text};
use super::pod_spec::TAINT_EFFECTS;
use super::{FieldSelector, Kind, Subresource, default, names};
use crate::field::FieldError;
use crate::taints;

pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Node",
    subresources: &[Subresource::Status],
    has_status: true,
    default: |node| {
        default::empty_map(node, "spec");
        if let Some(status) = default::existing(node, "status") {
            default::quantities(status, "capacity");
            default::quantities(status, "allocatable");
            let capacity = status["capacity"].clone();
            if capacity.is_object() {
                default::if_absent(status, "allocatable", capacity);
            }
        }
    },
    prepare_create: taints::follow_cordon,
    prepare_update: |_, node| taints::follow_cordon(node),
    validate,
    validate_update,
    columns: &[
        columns::NAME,
        text("Status", "Whether the agent answers and its runtime works.", |node, _| status(node).into()),
        text("Roles", "The node's roles, by its labels.", |node, _| roles(node).into()),
        columns::AGE,
        text("Version", "The agent's version.", |node, _| {
            or(&node["status"]["nodeInfo"]["kubeletVersion"], "")
        }),
        text("Internal-IP", "The node's address.", |node, _| address(node, "InternalIP")).wide(),
        text("External-IP", "The node's public address.", |node, _| address(node, "ExternalIP")).wide(),
        text("OS-Image", "The operating system.", |node, _| info(node, "osImage")).wide(),
        text("Kernel-Version", "The kernel.", |node, _| info(node, "kernelVersion")).wide(),
        text("Container-Runtime", "The container runtime.", |node, _| info(node, "containerRuntimeVersion"))
            .wide(),
    ],
    fields: &[FieldSelector {
        path: "spec.unschedulable",
        value: |node| (node["spec"]["unschedulable"] == true).to_string(),
    }],
    ..Kind::COMMON
};

fn status(node: &Value) -> String {
    let ready = list(&node["status"]["conditions"]).iter().find(|c| c["type"] == "Ready");
    let mut status = match ready {
        None => "Unknown",
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".into() } else { columns::joined(roles.into_iter()) }
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list(&node["status"]["addresses"]).iter().find(|a| a["type"] == kind);
    or_none(found.map_or(&Value::Null, |a| &a["address"]))
}

fn info(node: &Value, field: &str) -> Value {
    or(&node["status"]["nodeInfo"][field], "<unknown>")
}

fn validate(node: &Value) -> Errors {
    let node = At::root(node);
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for taint in node.get("spec").get("taints").items() {
        let [key, value, effect] = ["key", "value", "effect"].map(|field| taint.get(field));
        errors.extend(
            names::qualified(key.str()).into_iter().map(|m| FieldError::invalid(&key.path, key.str(), m)),
        );
        errors.extend(invalid_each(&value, names::label_value(value.str())));
        errors.extend(one_of(&effect, TAINT_EFFECTS));
        if !seen.insert((key.str(), effect.str())) {
            errors.push(FieldError {
                detail: "taints must be unique by key and effect pair".into(),
                ..taint.duplicate()
            });
        }
    }
    for resources in ["capacity", "allocatable"] {
        let resources = node.get("status").get(resources);
        errors.extend(resources.entries().filter_map(|(_, amount)| check::quantity(&amount)));
    }
    for range in node.get("spec").get("podCIDRs").items().filter(|range| !is_cidr(range.str())) {
        errors.push(range.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
    }
    errors
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    match (address.parse::<std::net::IpAddr>(), length.parse::<u8>()) {
        (Ok(address), Ok(length)) => length <= if address.is_ipv4() { 32 } else { 128 },
        _ => false,
    }
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old).get("spec"), At::root(new).get("spec"));
    let mut errors = Errors::new();
    for (field, says) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let (before, after) = (old.get(field), new.get(field));
        if !before.is_empty() && !check::same(before.value, after.value) {
            errors.push(
                after.forbidden(format!("node updates may not change {says} except from \"\" to valid")),
            );
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_ready_if_it_says_so_and_cordoned_if_told() {
        let node = |status: Value, cordoned: bool| {
            super::status(&json!({"spec": {"unschedulable": cordoned}, "status": {"conditions": status}}))
        };
        assert_eq!(node(json!([]), false), "Unknown");
        assert_eq!(node(json!([{"type": "Ready", "status": "True"}]), false), "Ready");
        assert_eq!(
            node(json!([{"type": "Ready", "status": "Unknown"}]), true),
            "NotReady,SchedulingDisabled"
        );
    }

    #[test]
    fn a_taint_has_a_key_an_effect_and_no_twin() {
        let errors = |taints: Value| -> Vec<String> {
            validate(&json!({"spec": {"taints": taints}})).iter().map(ToString::to_string).collect()
        };
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        assert_eq!(errors(json!([taint])), [""; 0]);
        assert_eq!(
            errors(json!([taint, taint])),
            [
                r#"spec.taints[1]: Duplicate value: {"effect":"NoSchedule","key":"a"}: taints must be unique by key and effect pair"#
            ]
        );
        assert_eq!(errors(json!([{"key": "a"}])), ["spec.taints[0].effect: Required value"]);
    }

    #[test]
    fn the_range_of_pod_addresses_never_changes_once_given() {
        let (old, new) = (json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}), json!({"spec": {}}));
        assert_eq!(validate_update(&new, &old), []);
        assert_eq!(
            validate_update(&old, &new)[0].to_string(),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
    }
}
