//! Pod: one life of one name. Its spec's rules are in [`pod_spec`](super::pod_spec), since templates share them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{self, At, Errors, same};
use super::columns::list;
use super::{FieldSelector, Kind, Subresource, default, pod_columns, pod_spec};
use crate::quantity::Quantity;

pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Pod",
    subresources: &[
        Subresource::Status,
        Subresource::Connect("eviction"),
        Subresource::Connect("exec"),
        Subresource::Connect("attach"),
        Subresource::Connect("log"),
    ],
    has_status: true,
    has_generation: true,
    default: |pod| pod_spec::defaults::pod(default::map(pod, "spec")),
    prepare_create,
    validate: |pod| pod_spec::validate(&At::root(pod).get("spec"), &BTreeSet::new()),
    validate_update,
    graceful_deletion,
    columns: pod_columns::COLUMNS,
    fields: &[
        FieldSelector { path: "spec.nodeName", value: |pod| text(&pod["spec"]["nodeName"]) },
        FieldSelector { path: "spec.restartPolicy", value: |pod| text(&pod["spec"]["restartPolicy"]) },
        FieldSelector { path: "spec.schedulerName", value: |pod| text(&pod["spec"]["schedulerName"]) },
        FieldSelector {
            path: "spec.serviceAccountName",
            value: |pod| text(&pod["spec"]["serviceAccountName"]),
        },
        FieldSelector {
            path: "spec.hostNetwork",
            value: |pod| (pod["spec"]["hostNetwork"] == true).to_string(),
        },
        FieldSelector { path: "status.phase", value: |pod| text(&pod["status"]["phase"]) },
        FieldSelector { path: "status.podIP", value: |pod| text(&pod["status"]["podIP"]) },
        FieldSelector {
            path: "status.podIPs",
            value: |pod| {
                let ips = list(&pod["status"]["podIPs"]).iter();
                super::columns::joined(ips.filter_map(|ip| ip["ip"].as_str()))
            },
        },
        FieldSelector {
            path: "status.nominatedNodeName",
            value: |pod| text(&pod["status"]["nominatedNodeName"]),
        },
    ],
    ..Kind::COMMON
};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn prepare_create(pod: &mut Value) {
    let spec = default::map(pod, "spec");
    default::if_zero(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    default::if_zero(spec, "serviceAccount", account);
    let class = quality_of_service(spec);
    if let Some(pod) = pod.as_object_mut() {
        pod.insert("status".into(), json!({"phase": "Pending", "qosClass": class}));
    }
}

/// Kubernetes' quality of service of a pod, from what its containers request and are limited to.
pub fn quality_of_service(spec: &Value) -> &'static str {
    let containers: Vec<&Value> =
        ["containers", "initContainers"].iter().flat_map(|field| list(&spec[field])).collect();
    let amount = |container: &Value, kind: &str, resource: &str| {
        Quantity::or_zero(&container["resources"][kind][resource])
    };
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        for resource in pod_spec::QOS_RESOURCES {
            let limit = amount(container, "limits", resource);
            let request = amount(container, "requests", resource);
            any |= limit.is_positive() || request.is_positive();
            guaranteed &= limit.is_positive() && (request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A pod that runs somewhere is given its grace period. One that is bound nowhere, or has ended, goes at once.
fn graceful_deletion(pod: &Value) -> Option<i64> {
    let bound = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    (bound && !ended).then_some(if grace < 0 { 1 } else { grace })
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    const MAY_CHANGE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,\
        `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
        `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    let (old, new) = (At::root(old).get("spec"), At::root(new).get("spec"));
    let mut errors = Errors::new();
    for field in ["containers", "initContainers"] {
        if old.get(field).len() != new.get(field).len() {
            errors.push(new.get(field).forbidden("pod updates may not add or remove containers"));
            return errors;
        }
    }
    errors.extend(only_added_tolerations(&old.get("tolerations"), &new.get("tolerations")));

    // What may change is put back; then nothing may differ.
    let mut rest = new.value.clone();
    for field in ["containers", "initContainers"] {
        for (container, before) in default::each(&mut rest, field).zip(list(&old.value[field])) {
            container["image"] = before["image"].clone();
        }
    }
    let mut put_back = |field: &str| {
        if let Some(rest) = rest.as_object_mut() {
            rest.insert(field.to_owned(), old.get(field).value.clone());
        }
    };
    put_back("tolerations");
    let grace = "terminationGracePeriodSeconds";
    if old.get(grace).int().is_some_and(|n| n < 0) && new.get(grace).int() == Some(1) {
        put_back(grace);
    }
    let changed = check::differences(&old.path, old.value, &rest);
    if !changed.is_empty() {
        errors.push(new.forbidden(format!(
            "pod updates may not change fields other than {MAY_CHANGE}\nchanged: {}",
            changed.join(", ")
        )));
    }
    errors
}

fn only_added_tolerations(old: &At, new: &At) -> Errors {
    let apart_from_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let kept = |before: At| {
        let before = apart_from_seconds(before.value);
        new.items().any(|after| same(&before, &apart_from_seconds(after.value)))
    };
    if old.items().all(kept) {
        Errors::new()
    } else {
        vec![new.forbidden("existing toleration can not be modified except its tolerationSeconds")]
    }
}

#[cfg(test)]
mod tests;
