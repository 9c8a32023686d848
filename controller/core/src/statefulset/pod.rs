//! How a set's new pod and its claims look.

use serde_json::{Map, Value, json};

use super::naming::{claim_name, pod_name};
use super::revision::Template;
use super::set::Set;
use super::{POD_INDEX_LABEL, POD_NAME_LABEL, REVISION_LABEL};
use crate::object;

/// What makes an object the set's.
pub(super) fn owner_reference(set: &Set) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": set.name, "uid": set.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The pod of one ordinal, made from one revision.
pub(super) fn make(set: &Set, from: &Template, ordinal: u32) -> Value {
    let name = pod_name(&set.name, ordinal);
    let described = &from.template["metadata"];
    let mut labels = described["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(REVISION_LABEL.to_owned(), from.revision.clone().into());
    labels.insert(POD_NAME_LABEL.to_owned(), name.clone().into());
    labels.insert(POD_INDEX_LABEL.to_owned(), ordinal.to_string().into());
    let mut metadata = json!({
        "name": name, "namespace": set.namespace, "generateName": format!("{}-", set.name),
        "labels": Value::Object(labels),
        "ownerReferences": [owner_reference(set)],
    });
    for carried in ["annotations", "finalizers"] {
        if !described[carried].is_null() {
            metadata[carried] = described[carried].clone();
        }
    }
    let mut spec = from.template["spec"].clone();
    if !spec.is_object() {
        spec = Value::Object(Map::new());
    }
    spec["hostname"] = name.into();
    if !set.service_name.is_empty() {
        spec["subdomain"] = set.service_name.clone().into();
    } else if let Some(spec) = spec.as_object_mut() {
        // Without a service there is no domain to be in, whatever the template says.
        spec.remove("subdomain");
    }
    let volumes = volumes(set, &spec, ordinal);
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// The claims first, then what the template has of its own; a claim takes the place of a volume of its name.
fn volumes(set: &Set, spec: &Value, ordinal: u32) -> Vec<Value> {
    let claimed =
        |volume: &&Value| set.claim_templates.iter().any(|t| t["metadata"]["name"] == volume["name"]);
    let own = spec["volumes"].as_array().into_iter().flatten().filter(|v| !claimed(v)).cloned();
    set.claim_templates
        .iter()
        .map(|template| {
            let name = object::name(template);
            let claim = claim_name(name, &set.name, ordinal);
            json!({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        })
        .chain(own)
        .collect()
}

/// The claims of one ordinal, one for each template. They have no owner, so that nothing that happens to the
/// set takes its data away, unless the set wants them to go with it.
pub(super) fn claims(set: &Set, ordinal: u32) -> impl Iterator<Item = Value> {
    set.claim_templates.iter().map(move |template| {
        let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        for (key, value) in set.match_labels.as_object().into_iter().flatten() {
            labels.insert(key.clone(), value.clone());
        }
        let mut metadata = json!({
            "name": claim_name(object::name(template), &set.name, ordinal), "namespace": set.namespace,
        });
        if !labels.is_empty() {
            metadata["labels"] = Value::Object(labels);
        }
        if set.retention.delete_when_deleted {
            metadata["ownerReferences"] = json!([owner_reference(set)]);
        }
        if !template["metadata"]["annotations"].is_null() {
            metadata["annotations"] = template["metadata"]["annotations"].clone();
        }
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": metadata, "spec": template["spec"],
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Set {
        Set::read(&json!({
            "metadata": {"name": "web", "namespace": "prod", "uid": "u"},
            "spec": {
                "replicas": 2, "serviceName": "nginx", "selector": {"matchLabels": {"app": "web"}},
                "template": {},
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data", "labels": {"tier": "gold"}, "annotations": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"},
                    "status": {"phase": "Pending"},
                }],
            },
        }))
    }

    fn template() -> Template {
        Template {
            revision: "web-abc".to_owned(),
            was_ready: false,
            template: json!({
                "metadata": {"labels": {"app": "web"}, "annotations": {"note": "x"}},
                "spec": {
                    "containers": [{"name": "c", "image": "nginx"}],
                    "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
                },
            }),
        }
    }

    #[test]
    fn a_pod_carries_its_identity_in_name_hostname_labels_and_volumes() {
        assert_eq!(
            make(&set(), &template(), 1),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "web-1", "namespace": "prod", "generateName": "web-",
                    "annotations": {"note": "x"},
                    "labels": {
                        "app": "web", "controller-revision-hash": "web-abc",
                        "statefulset.kubernetes.io/pod-name": "web-1", "apps.kubernetes.io/pod-index": "1",
                    },
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u",
                        "controller": true, "blockOwnerDeletion": true,
                    }],
                },
                "spec": {
                    "containers": [{"name": "c", "image": "nginx"}],
                    "hostname": "web-1", "subdomain": "nginx",
                    "volumes": [
                        {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-1"}},
                        {"name": "tmp", "emptyDir": {}},
                    ],
                },
            })
        );
    }

    #[test]
    fn a_claim_has_the_templates_labels_and_the_sets_and_no_owner() {
        let claims: Vec<_> = claims(&set(), 1).collect();
        assert_eq!(
            claims,
            [json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {
                    "name": "data-web-1", "namespace": "prod",
                    "labels": {"tier": "gold", "app": "web"}, "annotations": {"a": "b"},
                },
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"},
            })]
        );
    }
}
