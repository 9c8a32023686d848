use proptest::prelude::*;
use serde_json::json;

use super::*;

const SET: &str = "io.k8s.api.apps.v1.StatefulSet";
const POD: &str = "io.k8s.api.core.v1.Pod";
const SERVICE: &str = "io.k8s.api.core.v1.Service";

fn merged(kind: &str, original: Value, patch: Value) -> Value {
    Schema::get().strategic_merge(kind, &original, &patch).unwrap()
}

fn refused(kind: &str, original: Value, patch: Value) -> PatchError {
    Schema::get().strategic_merge(kind, &original, &patch).unwrap_err()
}

fn pod(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

#[test]
fn objects_merge_and_null_deletes() {
    assert_eq!(
        merged(
            POD,
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "x", "hostname": "h"}}),
            json!({"metadata": {"labels": {"b": null, "c": "3"}}, "spec": {"nodeName": null, "subdomain": null}}),
        ),
        json!({"metadata": {"labels": {"a": "1", "c": "3"}}, "spec": {"hostname": "h"}})
    );
}

#[test]
fn containers_merge_by_name_and_their_environment_too() {
    assert_eq!(
        merged(
            POD,
            pod(json!([
                {"name": "web", "image": "nginx:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                {"name": "log", "image": "busybox"},
            ])),
            pod(json!([
                {"name": "web", "image": "nginx:2", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]},
            ])),
        ),
        pod(json!([
            {"name": "web", "image": "nginx:2",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]},
            {"name": "log", "image": "busybox"},
        ]))
    );
}

#[test]
fn ports_merge_by_number_mounts_by_path_and_services_by_port() {
    assert_eq!(
        merged(
            POD,
            pod(
                json!([{"name": "c", "ports": [{"containerPort": 80}], "volumeMounts": [{"mountPath": "/a", "name": "v"}]}])
            ),
            pod(json!([{"name": "c", "ports": [{"containerPort": 80, "name": "web"}],
                "volumeMounts": [{"mountPath": "/a", "name": "w"}, {"mountPath": "/b", "name": "v"}]}])),
        ),
        pod(json!([{"name": "c", "ports": [{"containerPort": 80, "name": "web"}],
            "volumeMounts": [{"mountPath": "/a", "name": "w"}, {"mountPath": "/b", "name": "v"}]}]))
    );
    assert_eq!(
        merged(
            SERVICE,
            json!({"spec": {"ports": [{"port": 80}, {"port": 443}]}}),
            json!({"spec": {"ports": [{"port": 443, "$patch": "delete"}]}}),
        ),
        json!({"spec": {"ports": [{"port": 80}]}})
    );
}

#[test]
fn lists_that_do_not_merge_are_replaced() {
    assert_eq!(
        merged(
            POD,
            json!({"spec": {"tolerations": [{"key": "a"}], "containers": [{"name": "c", "args": ["x", "y"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "c", "args": ["z"]}]}}),
        ),
        json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "c", "args": ["z"]}]}})
    );
}

#[test]
fn an_element_a_list_and_an_object_can_be_deleted_or_replaced() {
    let original = || pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]));
    assert_eq!(
        merged(POD, original(), pod(json!([{"name": "a", "$patch": "delete"}]))),
        pod(json!([{"name": "b", "image": "2"}]))
    );
    assert_eq!(
        merged(POD, original(), pod(json!([{"$patch": "replace"}, {"name": "c", "image": "3"}]))),
        pod(json!([{"name": "c", "image": "3"}]))
    );
    let limits = |limits: Value| pod(json!([{"name": "a", "resources": limits}]));
    assert_eq!(
        merged(
            POD,
            limits(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}})),
            limits(json!({"limits": {"$patch": "replace", "cpu": "2"}, "requests": {"$patch": "delete"}})),
        ),
        limits(json!({"limits": {"cpu": "2"}, "requests": {}}))
    );
}

#[test]
fn a_rollback_replaces_the_template_as_its_revision_says() {
    let original = json!({"spec": {"replicas": 3, "template": {"metadata": {"labels": {"a": "new"}}, "spec": {"hostname": "x"}}}});
    let revision = json!({"spec": {"template": {"$patch": "replace", "metadata": {"labels": {"a": "old"}}}}});
    assert_eq!(
        merged(SET, original, revision),
        json!({"spec": {"replicas": 3, "template": {"metadata": {"labels": {"a": "old"}}}}})
    );
}

#[test]
fn retained_keys_clear_the_others() {
    let volumes = |volume: Value| json!({"spec": {"volumes": [volume]}});
    assert_eq!(
        merged(
            POD,
            volumes(json!({"name": "v", "emptyDir": {}})),
            volumes(json!({"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}})),
        ),
        volumes(json!({"name": "v", "hostPath": {"path": "/x"}}))
    );
    let error = refused(
        POD,
        volumes(json!({"name": "v", "emptyDir": {}})),
        volumes(json!({"$retainKeys": ["name"], "name": "v", "hostPath": {"path": "/x"}})),
    );
    assert_eq!((error.code(), error.to_string().as_str()), (400, "invalid patch format of retainKeys"));
}

#[test]
fn finalizers_are_a_set_and_single_ones_can_go() {
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    assert_eq!(
        merged(SET, finalizers(json!(["a", "b"])), finalizers(json!(["b", "c"]))),
        finalizers(json!(["a", "b", "c"]))
    );
    assert_eq!(
        merged(
            SET,
            finalizers(json!(["a", "b", "c"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}})
        ),
        finalizers(json!(["a", "c"]))
    );
    assert_eq!(
        merged(SET, finalizers(json!(["a"])), json!({"metadata": {"finalizers": null}})),
        json!({"metadata": {}})
    );
}

#[test]
fn the_order_asked_for_is_kept_and_unnamed_elements_stay_where_they_were() {
    let names = |value: Value| -> Vec<String> {
        let list = value["spec"]["containers"].as_array().unwrap().clone();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    let order = |names: &[&str]| -> Value { names.iter().map(|n| json!({"name": n})).collect() };
    let original = pod(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}]));
    let patch = json!({"spec": {
        "$setElementOrder/containers": order(&["b", "new", "a"]),
        "containers": [{"name": "b", "image": "x"}, {"name": "new"}],
    }});
    assert_eq!(names(merged(POD, original.clone(), patch)), ["server", "b", "new", "a"]);
    let only_order = json!({"spec": {"$setElementOrder/containers": order(&["b", "a"])}});
    assert_eq!(names(merged(POD, original.clone(), only_order)), ["server", "b", "a"]);
    let contradiction = json!({"spec": {
        "$setElementOrder/containers": order(&["a"]),
        "containers": [{"name": "b"}],
    }});
    assert!(refused(POD, original, contradiction).to_string().starts_with("The order in patch list:"));
}

#[test]
fn a_patch_that_does_not_fit_says_why() {
    let original = || pod(json!([{"name": "a"}]));
    let cases = [
        (pod(json!([{"image": "x"}])), "map: map[image:x] does not contain declared merge key: name"),
        (
            pod(json!([{"name": "a", "$patch": "foo"}])),
            "unknown patch type: foo in map: map[$patch:foo name:a]",
        ),
        (
            pod(json!([{"name": "a", "$patch": "merge"}])),
            "merging lists cannot yet be specified in the patch",
        ),
        (pod(json!(["x"])), "list element types are not identical: [[map[name:a]] [x]]"),
        (pod(json!([["x"]])), "list element types are not identical: [[map[name:a]] [[x]]]"),
        (
            json!({"spec": {"$setElementOrder/containers": "x"}}),
            "expected a []interface {}, but received a string",
        ),
        (json!({"spec": {"$setElementOrder": []}}), "invalid patch format of setElementOrder list"),
        (json!({"spec": {"$deleteFromPrimitiveList": []}}), "invalid patch format of primitive list"),
        (
            json!({"spec": {"$setElementOrder/foo": []}}),
            "unable to find api field in struct PodSpec for the json field \"foo\"",
        ),
    ];
    for (patch, message) in cases {
        assert_eq!(refused(POD, original(), patch).to_string(), message);
    }
    assert_eq!(refused(POD, json!({}), json!([])).code(), 400);
    assert_eq!(refused("io.k8s.api.apps.v1.Deployment", json!({}), json!({})).code(), 500);
}

/// Anything that looks a little like a pod or a patch of one.
fn arbitrary() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        Just(json!("a")),
        Just(json!("replace")),
        Just(json!("delete")),
        Just(json!(80)),
        Just(json!(true)),
    ];
    let key = prop_oneof![
        Just("spec"),
        Just("metadata"),
        Just("containers"),
        Just("name"),
        Just("env"),
        Just("ports"),
        Just("containerPort"),
        Just("finalizers"),
        Just("labels"),
        Just("volumes"),
        Just("emptyDir"),
        Just("foo"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$setElementOrder/finalizers"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("$setElementOrder"),
        Just("$deleteFromPrimitiveList/foo"),
    ];
    let value = leaf.prop_recursive(6, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    });
    value.prop_map(|v| json!({"spec": v.clone(), "metadata": v}))
}

proptest! {
    #[test]
    fn no_patch_makes_it_panic(original in arbitrary(), patch in arbitrary()) {
        let _ = Schema::get().strategic_merge(POD, &original, &patch);
    }

    #[test]
    fn an_empty_patch_changes_nothing(original in arbitrary()) {
        prop_assert_eq!(merged(POD, original.clone(), json!({})), original);
    }

    #[test]
    fn applying_a_patch_without_directives_again_changes_nothing(
        before in proptest::collection::btree_map("[a-c]", "[x-z]", 0..4),
        after in proptest::collection::btree_map("[a-c]", proptest::option::of("[x-z]"), 0..4),
        finalizers in proptest::collection::vec("[a-d]", 0..4),
        more in proptest::collection::vec("[a-d]", 0..4),
    ) {
        let env = |m: &std::collections::BTreeMap<String, String>| -> Value {
            m.iter().map(|(k, v)| json!({"name": k, "value": v})).collect()
        };
        let original = json!({
            "metadata": {"labels": before, "finalizers": finalizers},
            "spec": {"containers": [{"name": "c", "env": env(&before)}]},
        });
        let changed = after.iter().filter_map(|(k, v)| v.clone().map(|v| (k.clone(), v))).collect();
        let patch = json!({
            "metadata": {"labels": after, "finalizers": more},
            "spec": {"containers": [{"name": "c", "env": env(&changed)}]},
        });
        let once = merged(POD, original, patch.clone());
        prop_assert_eq!(merged(POD, once.clone(), patch), once);
    }
}
