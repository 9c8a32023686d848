//! Revisions: one ControllerRevision for each template a set has had.
//!
//! `data` is what kubectl's `rollout undo` sends back verbatim as a strategic merge patch, and a revision's
//! name is made as Kubernetes makes it, from the same bytes: the same template has the same revision here
//! and there.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::plan::Action;
use super::pod::owner_reference;
use super::set::{Owner, Pod, Revision, Set};
use crate::object;

pub const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// A revision as pods are made from it.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub revision: String,
    pub template: Value,
    /// All pods were Ready at it once.
    pub was_ready: bool,
}

/// What [`resolve`] found.
#[derive(Debug)]
pub(super) struct Revisions {
    /// What the set is coming from: the last revision all its pods were at.
    pub current: Template,
    /// What it is going to: the template as it is now.
    pub update: Template,
    /// The update's revision in the store; None while it is being made.
    pub update_uid: Option<String>,
    pub collision_count: i64,
    pub actions: Vec<Action>,
}

/// Finds the current and the update revision, and what is to be created, re-used, adopted or dropped for it.
pub(super) fn resolve(set: &Set, pods: &[&Pod], revisions: &[Revision]) -> Revisions {
    let mut actions = Vec::new();
    let mut own: Vec<&Revision> = Vec::new();
    for revision in revisions.iter().filter(|r| !r.deleting) {
        match revision.owner(set) {
            Owner::This => own.push(revision),
            Owner::Nobody if revision.selected_by(set) && !set.deleting => {
                actions.push(Action::AdoptRevision {
                    name: revision.name.clone(),
                    uid: revision.uid.clone(),
                    owner: owner_reference(set),
                });
                own.push(revision);
            }
            Owner::Nobody | Owner::Another => {}
        }
    }
    own.sort_by(|a, b| (a.number, &a.name).cmp(&(b.number, &b.name)));
    let next = own.last().map_or(1, |r| r.number + 1);
    let mut collision_count = set.status["collisionCount"].as_i64().unwrap_or_default();

    let data = data(&set.template);
    let equal = own.iter().rev().find(|r| r.data == data);
    let update_uid = equal.map(|r| r.uid.clone());
    let was_ready = equal.is_some_and(|r| r.was_ready);
    let update = match equal {
        Some(found) => {
            if own.last().is_some_and(|last| last.name != found.name) && !set.deleting {
                actions.push(Action::RenumberRevision {
                    name: found.name.clone(),
                    uid: found.uid.clone(),
                    number: next,
                });
            }
            found.name.clone()
        }
        None => {
            let name = loop {
                let name = name(&set.name, &hash(&data, collision_count));
                if !revisions.iter().any(|r| r.name == name) {
                    break name;
                }
                collision_count += 1;
            };
            if !set.deleting {
                let revision = make(set, &name, &hash(&data, collision_count), &data, next);
                actions.push(Action::CreateRevision(revision));
            }
            name
        }
    };
    let update = Template { revision: update, template: set.template.clone(), was_ready };
    let current = set.status["currentRevision"]
        .as_str()
        .and_then(|name| own.iter().find(|r| r.name == name))
        .map(|r| Template { revision: r.name.clone(), template: template(&r.data), was_ready: r.was_ready })
        .unwrap_or_else(|| update.clone());

    if !set.deleting {
        let live: HashSet<&str> = pods
            .iter()
            .map(|p| p.revision.as_str())
            .chain([current.revision.as_str(), update.revision.as_str()])
            .collect();
        let past: Vec<&&Revision> = own.iter().filter(|r| !live.contains(r.name.as_str())).collect();
        for revision in &past[..past.len().saturating_sub(set.history_limit)] {
            actions.push(Action::DeleteRevision { name: revision.name.clone(), uid: revision.uid.clone() });
        }
    }
    Revisions { current, update, update_uid, collision_count, actions }
}

/// The strategic merge patch that puts this template back.
fn data(template: &Value) -> Value {
    let mut template = template.clone();
    if let Value::Object(map) = &mut template {
        map.insert("$patch".to_owned(), "replace".into());
    }
    json!({"spec": {"template": template}})
}

/// The template a revision's data puts back.
fn template(data: &Value) -> Value {
    let mut template = data["spec"]["template"].clone();
    if let Value::Object(map) = &mut template {
        map.remove("$patch");
    }
    template
}

fn make(set: &Set, name: &str, hash: &str, data: &Value, number: i64) -> Value {
    let mut labels = set.template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.into());
    let mut revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": name, "namespace": set.namespace, "labels": Value::Object(labels),
            "ownerReferences": [owner_reference(set)],
        },
        "data": data,
        "revision": number,
    });
    // `kubectl rollout history` shows kubernetes.io/change-cause from here.
    if set.annotations.as_object().is_some_and(|a| !a.is_empty()) {
        object::metadata_mut(&mut revision).insert("annotations".to_owned(), set.annotations.clone());
    }
    revision
}

fn name(set: &str, hash: &str) -> String {
    let end = (0..=set.len().min(223)).rev().find(|i| set.is_char_boundary(*i)).unwrap_or_default();
    format!("{}-{hash}", &set[..end])
}

/// Kubernetes' hash of a revision's data: FNV-1 over its JSON as Go writes it and the collision count, in
/// the alphabet that spells no words.
pub fn hash(data: &Value, collision_count: i64) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash: u32 = 2_166_136_261;
    for byte in go_json(data).bytes().chain(collision_count.to_string().bytes()) {
        hash = hash.wrapping_mul(16_777_619) ^ u32::from(byte);
    }
    let digits = hash.to_string();
    digits.bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// JSON with sorted keys and Go's escapes.
fn go_json(value: &Value) -> String {
    sorted(value)
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// The same value with its keys inserted in order, whichever map serde_json was built with.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let ordered: Map<String, Value> =
                keys.into_iter().map(|k| (k.clone(), sorted(&map[k.as_str()]))).collect();
            Value::Object(ordered)
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(image: &str) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "set-uid", "generation": 1,
                "annotations": {"kubernetes.io/change-cause": "first"}},
            "spec": {
                "replicas": 1, "serviceName": "web", "revisionHistoryLimit": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": image}]},
                },
            },
        })
    }

    fn created(revisions: &Revisions) -> Vec<&Value> {
        revisions
            .actions
            .iter()
            .filter_map(|a| match a {
                Action::CreateRevision(value) => Some(value),
                _ => None,
            })
            .collect()
    }

    /// Kubernetes 1.34 named the revision of this template `test-776999688b` (its compatibility test data).
    #[test]
    fn the_same_template_has_the_revision_name_that_kubernetes_gives_it() {
        let template = json!({
            "metadata": {"annotations": {"test": "value"}, "labels": {"app": "foo"}},
            "spec": {
                "containers": [{
                    "image": "test", "imagePullPolicy": "Always", "name": "test", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30,
            },
        });
        assert_eq!(name("test", &hash(&data(&template), 0)), "test-776999688b");
    }

    #[test]
    fn a_revision_is_what_kubectl_rollout_expects() {
        let set = Set::read(&set("nginx:1"));
        let resolved = resolve(&set, &[], &[]);
        let revision = created(&resolved)[0];
        assert_eq!(
            *revision,
            json!({
                "apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {
                    "name": resolved.update.revision, "namespace": "default",
                    "annotations": {"kubernetes.io/change-cause": "first"},
                    "labels": {"app": "web", HASH_LABEL: hash(&revision["data"], 0)},
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set-uid",
                        "controller": true, "blockOwnerDeletion": true,
                    }],
                },
                "data": {"spec": {"template": {
                    "$patch": "replace",
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": "nginx:1"}]},
                }}},
                "revision": 1,
            })
        );
        assert_eq!(resolved.current.revision, resolved.update.revision);
    }

    #[test]
    fn returning_to_an_earlier_template_reuses_its_revision_with_the_next_number() {
        let first = Set::read(&set("nginx:1"));
        let one = Revision::read(created(&resolve(&first, &[], &[]))[0]);
        let second = Set::read(&set("nginx:2"));
        let revisions = [one];
        let resolved = resolve(&second, &[], &revisions);
        let two = Revision::read(created(&resolved)[0]);
        assert_eq!(two.number, 2);
        let [one] = revisions;
        let back = resolve(&first, &[], &[one.clone(), two]);
        assert_eq!(back.update.revision, one.name);
        assert!(back.actions.contains(&Action::RenumberRevision {
            name: one.name.clone(),
            uid: one.uid.clone(),
            number: 3
        }));
    }

    #[test]
    fn a_name_taken_by_anothers_revision_counts_as_a_collision() {
        let set = Set::read(&set("nginx:1"));
        let mut taken = created(&resolve(&set, &[], &[]))[0].clone();
        taken["metadata"]["ownerReferences"][0]["uid"] = "another".into();
        let resolved = resolve(&set, &[], &[Revision::read(&taken)]);
        assert_eq!(resolved.collision_count, 1);
        assert_ne!(resolved.update.revision, taken["metadata"]["name"]);
        assert_eq!(created(&resolved).len(), 1);
    }

    #[test]
    fn the_oldest_revisions_beyond_the_limit_are_dropped_unless_a_pod_is_at_them() {
        let mut revisions = Vec::new();
        for number in 1..=4 {
            let set = Set::read(&set(&format!("nginx:{number}")));
            let resolved = resolve(&set, &[], &revisions);
            let made = Revision::read(created(&resolved)[0]);
            revisions.push(made);
        }
        let set = Set::read(&set("nginx:4"));
        let pod = Pod::read(&json!({"metadata": {"name": "web-0", "labels": {
            "controller-revision-hash": revisions[0].name,
        }}}));
        let dropped: Vec<_> = resolve(&set, &[&pod], &revisions)
            .actions
            .into_iter()
            .filter_map(|a| match a {
                Action::DeleteRevision { name, .. } => Some(name),
                _ => None,
            })
            .collect();
        assert_eq!(dropped, [revisions[1].name.clone()]);
    }

    #[test]
    fn go_escapes_what_go_escapes() {
        assert_eq!(go_json(&json!({"b": "<&>", "a": 1})), r#"{"a":1,"b":"\u003c\u0026\u003e"}"#);
    }
}
