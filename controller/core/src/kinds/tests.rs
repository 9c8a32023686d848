//! What holds for every kind: that odd input is refused and never panics, that defaults settle at once, and
//! that the manifests people start from are valid.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The manifests of the README and of common tutorials, one of each shape Berth is made for.
fn manifests() -> Vec<Value> {
    let claim = |name: &str, class: Value, mode: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "storageClassName": class, "accessModes": [mode], "resources": {"requests": {"storage": "100Mi"}}}})
    };
    let set = |name: &str, service: &str, app: &str, pod: Value, claims: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
            "spec": {
                "serviceName": service, "replicas": 3, "selector": {"matchLabels": {"app": app}},
                "template": {"metadata": {"labels": {"app": app}}, "spec": pod},
                "volumeClaimTemplates": claims,
            },
        })
    };
    let container = |name: &str, image: &str, port: Value, mounts: Value| json!({"containers": [{"name": name, "image": image, "ports": [port], "volumeMounts": mounts}]});
    let mut httpd = set(
        "statefulset-test",
        "headless-svc",
        "headless-pod",
        container(
            "myhttpd",
            "httpd",
            json!({"containerPort": 80, "name": "httpd"}),
            json!([{"mountPath": "/mnt", "name": "test"}]),
        ),
        json!([claim("test", Value::Null, "ReadWriteOnce")]),
    );
    let template = &mut httpd["spec"]["volumeClaimTemplates"][0]["metadata"];
    template["annotations"] = json!({persistent_volume_claim::CLASS_ANNOTATION: "stateful-nfs"});
    let mut nginx = container(
        "nginx",
        "nginx",
        json!({"containerPort": 80, "name": "web"}),
        json!([{"name": "www", "mountPath": "/usr/share/nginx/html"}]),
    );
    nginx["terminationGracePeriodSeconds"] = json!(10);

    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "xgp-lll"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kubia-svc"}, "spec": {
            "clusterIP": "None", "selector": {"app": "kubia"}, "ports": [{"name": "http", "targetPort": 8080, "port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "redis-svc"}, "spec": {
            "selector": {"app": "redis-sts"}, "ports": [{"port": 6379, "protocol": "TCP", "targetPort": 6379}]}}),
        set(
            "kubia",
            "kubia-svc",
            "kubia",
            container(
                "kubia-ctr",
                "luksa/kubia-pet",
                json!({"name": "http", "containerPort": 8080}),
                json!([{"name": "data", "mountPath": "/var/data"}]),
            ),
            json!([{"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "1Mi"}}, "accessModes": ["ReadWriteOnce"]}}]),
        ),
        httpd,
        set(
            "redis-pv-sts",
            "redis-pv-svc",
            "redis-pv-sts",
            container(
                "redis",
                "redis:5-alpine",
                json!({"containerPort": 6379}),
                json!([{"name": "redis-100m-pvc", "mountPath": "/data"}]),
            ),
            json!([claim("redis-100m-pvc", json!("nfs-client"), "ReadWriteMany")]),
        ),
        set(
            "redis-sts",
            "redis-svc",
            "redis-sts",
            container("redis", "redis:5-alpine", json!({"containerPort": 6379}), json!([])),
            json!([]),
        ),
        set(
            "web",
            "nginx",
            "nginx",
            nginx,
            json!([claim("www", json!("managed-nfs-storage"), "ReadWriteOnce")]),
        ),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "stateful-nfs"},
            "provisioner": "bdqn", "reclaimPolicy": "Retain"}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nfs-provisioner"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "nfs-provisioner-runner"},
            "rules": [{"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": ["get"]},
                      {"apiGroups": ["extensions"], "resources": ["podsecuritypolicies"], "resourceNames": ["nfs-provisioner"], "verbs": ["use"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "run-nfs-provisioner"},
            "subjects": [{"kind": "ServiceAccount", "name": "nfs-provisioner", "namespace": "default"}],
            "roleRef": {"kind": "ClusterRole", "name": "nfs-provisioner-runner", "apiGroup": "rbac.authorization.k8s.io"}}),
    ]
}

/// Objects with about every field that something here looks at.
fn full_objects() -> Vec<Value> {
    let probe =
        json!({"httpGet": {"port": "web", "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 2});
    let pod_spec = json!({
        "initContainers": [{"name": "i", "image": "i", "command": ["true"]}],
        "containers": [{
            "name": "c", "image": "c:1", "env": [
                {"name": "A", "value": "a"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
            "ports": [{"containerPort": 80, "name": "web"}],
            "resources": {"limits": {"cpu": 1, "memory": "64Mi"}, "requests": {"cpu": "10m"}},
            "volumeMounts": [{"name": "e", "mountPath": "/e", "readOnly": true}],
            "readinessProbe": probe, "livenessProbe": {"exec": {"command": ["x"]}}, "startupProbe": {"tcpSocket": {"port": 80}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"exec": {"command": ["y"]}}},
            "securityContext": {"privileged": true, "runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"]}},
        }],
        "volumes": [{"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "m", "configMap": {"name": "m", "items": [{"key": "k", "path": "a/b", "mode": 256}]}},
            {"name": "s", "secret": {"secretName": "s"}}, {"name": "p", "persistentVolumeClaim": {"claimName": "p"}}],
        "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}],
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]},
        "hostAliases": [{"ip": "10.0.0.2", "hostnames": ["x"]}], "nodeSelector": {"a": "b"}, "imagePullSecrets": [{"name": "r"}],
        "securityContext": {"fsGroup": 1, "supplementalGroups": [2], "seccompProfile": {"type": "Unconfined"}},
    });
    let meta = |name: &str| {
        json!({"name": name, "namespace": "default", "labels": {"a": "b"}, "annotations": {"x/y": "z"}, "finalizers": ["a.b/c"],
               "creationTimestamp": "2026-11-21T08:00:00Z",
               "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "w", "uid": "u", "controller": true}]})
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("p"), "spec": pod_spec, "status": {
            "phase": "Running", "podIPs": [{"ip": "10.0.0.3"}], "conditions": [{"type": "Ready", "status": "True"}],
            "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [{"name": "c", "ready": true, "restartCount": 1, "state": {"running": {}},
                "lastState": {"terminated": {"finishedAt": "2026-11-21T08:00:00Z"}}}]}}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta("w"), "spec": {
            "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec}, "ordinals": {"start": 1},
            "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]},
            "status": {"readyReplicas": 1}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta("v"), "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/d"}, "claimRef": {"name": "c", "namespace": "d"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "In", "values": ["n"]}]}]}}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta("c"), "spec": {"volumeName": "v",
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}, "status": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": meta("n"), "spec": {"podCIDRs": ["10.0.0.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]},
            "status": {"capacity": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("s"), "stringData": {"a": "b"}, "data": {"c": "eA=="}, "type": "Opaque"}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("m"), "data": {"a": "b"}, "binaryData": {"c": "eA=="}, "immutable": true}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": meta("e"), "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "count": 2,
            "series": {"count": 3, "lastObservedTime": "2026-11-21T08:00:00.000000Z"}, "source": {"component": "c"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("s"), "spec": {"clusterIP": "10.0.0.9", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b", "targetPort": "web"}], "selector": {"a": "b"}, "externalIPs": ["1.2.3.4"]}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": meta("r"), "data": {"spec": {}}, "revision": 1}),
    ]
}

fn kind_of(object: &Value) -> &'static Kind {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    by_kind(text("apiVersion"), text("kind")).unwrap_or(&pod::POD)
}

fn created(object: &Value) -> Value {
    let kind = kind_of(object);
    let mut object = object.clone();
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = "default".into();
    }
    if !kind.namespaced {
        object["metadata"].as_object_mut().map(|m| m.remove("namespace"));
    }
    (kind.default)(&mut object);
    (kind.prepare_create)(&mut object);
    object
}

#[test]
fn the_manifests_people_start_from_are_valid() {
    for manifest in manifests().iter().chain(&full_objects()) {
        let (kind, object) = (kind_of(manifest), created(manifest));
        assert_eq!(meta::validate(kind, &object), [], "{manifest}");
        assert_eq!((kind.validate)(&object), [], "{manifest}");
        assert_eq!((kind.validate_update)(&object, &object), [], "{manifest}");
    }
}

#[test]
fn a_pod_made_from_a_valid_template_is_valid() {
    for set in manifests().iter().chain(&full_objects()).filter(|m| m["kind"] == "StatefulSet") {
        let set = created(set);
        let template = &set["spec"]["template"];
        let mut spec = template["spec"].clone();
        let claims = set["spec"]["volumeClaimTemplates"].as_array().unwrap().iter().map(|claim| {
            let name = &claim["metadata"]["name"];
            json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{}-web-0", name.as_str().unwrap())}})
        });
        let volumes: Vec<Value> =
            spec["volumes"].as_array().cloned().unwrap_or_default().into_iter().chain(claims).collect();
        spec["volumes"] = volumes.into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0"}, "spec": spec});
        assert_eq!((pod::POD.validate)(&created(&pod)), []);
    }
}

#[test]
fn names_by_which_kubectl_finds_a_kind_are_unique() {
    let mut seen = std::collections::BTreeSet::new();
    for kind in ALL {
        // (Endpoints is both one and many.)
        let names: std::collections::BTreeSet<&str> =
            kind.short_names.iter().copied().chain([kind.plural, kind.singular]).collect();
        for name in names {
            assert!(seen.insert(name), "{name}");
        }
        assert!(std::ptr::eq(by_resource(kind.group, kind.version, kind.plural).unwrap(), *kind));
        assert!(std::ptr::eq(by_kind(&kind.api_version(), kind.kind).unwrap(), *kind));
        assert_eq!(kind.singular, kind.kind.to_lowercase());
        assert!(kind.schema.ends_with(&format!(".{}", kind.kind)));
        assert_eq!(kind.has_status, kind.subresources.contains(&Subresource::Status));
    }
}

#[test]
fn the_kubernetes_names_of_metadata_faults() {
    let meta_errors = |kind: &Kind, metadata: Value| -> Vec<String> {
        meta::validate(kind, &json!({"metadata": metadata})).iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        meta_errors(&pod::POD, json!({"namespace": "default"})),
        ["metadata.name: Required value: name or generateName is required"]
    );
    let labels = json!({"name": "p", "namespace": "default", "labels": {"a b": "c", "d": "e f"}});
    let errors = meta_errors(&pod::POD, labels);
    assert!(
        errors[0]
            .starts_with(r#"metadata.labels: Invalid value: "a b": name part must consist of alphanumeric"#)
    );
    assert!(
        errors[1]
            .starts_with(r#"metadata.labels: Invalid value: "e f": a valid label must be an empty string"#)
    );
    assert_eq!(
        meta_errors(&node::NODE, json!({"name": "n", "namespace": "x"})),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
}

/// Anything that JSON can say, with the odd number and text.
fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9./:_=' \\[\\]é-]{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "None",
            "ClientIP",
            "ExternalName",
            "OnDelete",
            "name",
            "1e9999",
            "Block",
            "--",
            ""
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z/]{0,4}", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Every place in a value, to put junk in.
fn places(value: &Value, at: String, out: &mut Vec<String>) {
    out.push(at.clone());
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                places(inner, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                places(inner, format!("{at}/{i}"), out);
            }
        }
        _ => {}
    }
}

fn spoil(object: &Value, place: prop::sample::Index, with: Value) -> Value {
    let mut object = object.clone();
    let mut all = Vec::new();
    places(&object, String::new(), &mut all);
    if let Some(slot) = object.pointer_mut(&all[place.index(all.len())]) {
        *slot = with;
    }
    object
}

fn exercise(kind: &Kind, object: &Value, other: &Value) {
    let mut once = object.clone();
    (kind.default)(&mut once);
    let mut twice = once.clone();
    (kind.default)(&mut twice);
    assert_eq!(once, twice, "defaults of {} settle at once", kind.kind);

    let mut fresh = once.clone();
    (kind.prepare_create)(&mut fresh);
    for object in [object, &once, &fresh] {
        let _ = meta::validate(kind, object);
        let _ = meta::validate_update(other, object);
        let _ = (kind.validate)(object);
        let _ = (kind.validate_update)(object, other);
        let _ = (kind.validate_update)(other, object);
        let _ = (kind.warnings)(object);
        let _ = (kind.graceful_deletion)(object);
        let mut updated = object.clone();
        (kind.prepare_update)(other, &mut updated);
        for column in kind.columns {
            let _ = (column.cell)(object, Timestamp::UNIX_EPOCH);
        }
        for field in kind.fields {
            let _ = (field.value)(object);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_panics_on_an_object_spoilt_anywhere(
        which in any::<prop::sample::Index>(),
        faults in prop::collection::vec((any::<prop::sample::Index>(), junk()), 1..4),
    ) {
        let all: Vec<Value> = full_objects().into_iter().chain(manifests()).collect();
        let good = &all[which.index(all.len())];
        let kind = kind_of(good);
        let bad = faults.into_iter().fold(good.clone(), |object, (place, with)| spoil(&object, place, with));
        exercise(kind, &bad, good);
    }

    #[test]
    fn nothing_panics_on_anything_at_all(a in junk(), b in junk()) {
        for kind in ALL {
            exercise(kind, &a, &b);
        }
    }
}
