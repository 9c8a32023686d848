use super::*;

fn pod(spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec});
    (POD.default)(&mut pod);
    (POD.prepare_create)(&mut pod);
    pod
}

fn simple() -> Value {
    pod(json!({"containers": [{"name": "c", "image": "busybox"}]}))
}

/// The errors of a pod whose one container has these fields on top.
fn container_errors(fields: Value) -> Vec<String> {
    let mut container = json!({"name": "c", "image": "i:1"});
    for (key, value) in fields.as_object().unwrap() {
        container[key] = value.clone();
    }
    errors(json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]}))
}

fn errors(spec: Value) -> Vec<String> {
    (POD.validate)(&pod(spec)).iter().map(ToString::to_string).collect()
}

fn spec_errors(fields: Value) -> Vec<String> {
    let mut spec = json!({"containers": [{"name": "c", "image": "i:1"}]});
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
    }
    errors(spec)
}

fn update(old: &Value, change: impl Fn(&mut Value)) -> Vec<String> {
    let mut new = old.clone();
    change(&mut new);
    (POD.validate_update)(old, &new).iter().map(ToString::to_string).collect()
}

#[test]
fn a_simple_pod_is_valid_pending_and_best_effort() {
    let pod = simple();
    assert_eq!((POD.validate)(&pod), []);
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
}

#[test]
fn a_pod_needs_containers_with_names_and_images() {
    assert_eq!(errors(json!({})), ["spec.containers: Required value"]);
    assert_eq!(
        errors(json!({"containers": [{}]})),
        ["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"]
    );
    assert_eq!(
        errors(json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]})),
        [r#"spec.containers[1].name: Duplicate value: "a""#]
    );
    assert!(container_errors(json!({"name": "Web"}))[0].starts_with(
        r#"spec.containers[0].name: Invalid value: "Web": a lowercase RFC 1123 label must consist of"#
    ));
}

#[test]
fn volume_names_are_unique_and_mounts_must_find_one() {
    let volume = json!({"name": "v", "emptyDir": {}});
    assert_eq!(
        spec_errors(json!({"volumes": [volume, volume]})),
        [r#"spec.volumes[1].name: Duplicate value: "v""#]
    );
    assert_eq!(
        container_errors(json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]})),
        [r#"spec.containers[0].volumeMounts[0].name: Not found: "x""#]
    );
    let twice = json!([{"name": "v", "mountPath": "/x"}, {"name": "v", "mountPath": "/x"}]);
    assert_eq!(
        container_errors(json!({"volumeMounts": twice})),
        [r#"spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/x": must be unique"#]
    );
    assert_eq!(
        spec_errors(json!({"volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}]})),
        ["spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type"]
    );
    assert_eq!(
        spec_errors(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {}}]})),
        ["spec.volumes[0].persistentVolumeClaim.claimName: Required value"]
    );
}

#[test]
fn ports_have_a_number_in_range_and_a_name_of_their_own() {
    let ports = |ports: Value| container_errors(json!({"ports": ports}));
    assert_eq!(
        ports(json!([{"containerPort": 80, "name": "http"}, {"containerPort": 81, "name": "web"}])),
        [""; 0]
    );
    assert_eq!(
        ports(json!([{"containerPort": 80, "name": "web"}, {"containerPort": 81, "name": "web"}])),
        [r#"spec.containers[0].ports[1].name: Duplicate value: "web""#]
    );
    assert_eq!(
        ports(json!([{"containerPort": 70000}])),
        [
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"
        ]
    );
    assert_eq!(ports(json!([{}])), ["spec.containers[0].ports[0].containerPort: Required value"]);
    assert_eq!(
        ports(json!([{"containerPort": 80, "protocol": "HTTP"}])),
        [
            r#"spec.containers[0].ports[0].protocol: Unsupported value: "HTTP": supported values: "SCTP", "TCP", "UDP""#
        ]
    );
}

#[test]
fn an_environment_variable_has_one_source() {
    let env = |variable: Value| container_errors(json!({"env": [variable]}));
    for fine in [
        json!({"name": "A", "value": "b"}),
        json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a.b/c']"}}}),
        json!({"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}}),
    ] {
        assert_eq!(env(fine), [""; 0]);
    }
    let at = "spec.containers[0].env[0]";
    assert_eq!(env(json!({"value": "b"})), [format!("{at}.name: Required value")]);
    assert_eq!(
        env(json!({"name": "A", "valueFrom": {}})),
        [format!(
            "{at}.valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
             `configMapKeyRef` or `secretKeyRef`"
        )]
    );
    assert_eq!(
        env(json!({"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
        [format!("{at}.valueFrom: Invalid value: \"\": may not be specified when `value` is not empty")]
    );
    assert_eq!(
        env(json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.nam"}}})),
        [format!(
            "{at}.valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.nam\": error converting fieldPath: \
             field label not supported: metadata.nam"
        )]
    );
    assert!(env(json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}))[0].starts_with(
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\""
    ));
}

#[test]
fn requests_stay_within_limits() {
    let resources = |r: Value| container_errors(json!({"resources": r}));
    assert_eq!(
        resources(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "500m"}})),
        [
            r#"spec.containers[0].resources.requests: Invalid value: "1": must be less than or equal to cpu limit of 500m"#
        ]
    );
    assert_eq!(
        resources(json!({"limits": {"memory": "-1Mi"}}))[0],
        r#"spec.containers[0].resources.limits[memory]: Invalid value: "-1Mi": must be greater than or equal to 0"#
    );
    assert_eq!(
        resources(json!({"requests": {"cpus": "1"}})),
        [
            r#"spec.containers[0].resources.requests[cpus]: Invalid value: "cpus": must be a standard resource type or fully qualified"#,
            r#"spec.containers[0].resources.requests[cpus]: Invalid value: "cpus": must be a standard resource for containers"#,
        ]
    );
}

#[test]
fn a_probe_has_one_handler_and_sensible_numbers() {
    let probe = |kind: &str, probe: Value| container_errors(json!({kind: probe}));
    assert_eq!(
        probe("readinessProbe", json!({})),
        ["spec.containers[0].readinessProbe: Required value: must specify a handler type"]
    );
    assert_eq!(
        probe("livenessProbe", json!({"exec": {"command": ["a"]}, "successThreshold": 2})),
        ["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"]
    );
    assert_eq!(
        probe("readinessProbe", json!({"exec": {}, "tcpSocket": {"port": "80"}})),
        [
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            "spec.containers[0].readinessProbe.exec.command: Required value",
            r#"spec.containers[0].readinessProbe.tcpSocket.port: Invalid value: "80": must contain at least one letter (a-z)"#,
        ]
    );
    assert_eq!(
        probe("startupProbe", json!({"httpGet": {"port": 0}, "periodSeconds": -1})),
        [
            "spec.containers[0].startupProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.containers[0].startupProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ]
    );
    let sleep = json!({"preStop": {"sleep": {"seconds": 40}}});
    assert_eq!(
        container_errors(json!({"lifecycle": sleep})),
        [
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 40: must be non-negative and less than terminationGracePeriodSeconds (30)"
        ]
    );
}

#[test]
fn what_berth_does_not_implement_is_refused_with_its_path() {
    let refused = |path: &str| vec![format!("{path}: Forbidden: not supported by Berth yet")];
    for (fields, path) in [
        (json!({"hostPID": true}), "spec.hostPID"),
        (json!({"activeDeadlineSeconds": 5}), "spec.activeDeadlineSeconds"),
        (json!({"schedulerName": "mine"}), "spec.schedulerName"),
        (json!({"priority": 100}), "spec.priority"),
        (json!({"automountServiceAccountToken": true}), "spec.automountServiceAccountToken"),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "spec.volumes[0].hostPath"),
        (json!({"securityContext": {"sysctls": [{"name": "a"}]}}), "spec.securityContext.sysctls"),
        (
            json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
            "spec.securityContext.seccompProfile.type",
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "i", "restartPolicy": "Always"}]}),
            "spec.initContainers[0].restartPolicy",
        ),
    ] {
        assert_eq!(spec_errors(fields), refused(path));
    }
    let c = "spec.containers[0]";
    for (fields, path) in [
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "b"}]}),
            "volumeMounts[0].subPath",
        ),
        (json!({"resources": {"limits": {"example.com/gpu": "1"}}}), "resources.limits[example.com/gpu]"),
        (json!({"livenessProbe": {"grpc": {"port": 1}}}), "livenessProbe.grpc"),
        (json!({"lifecycle": {"preStop": {"tcpSocket": {"port": 1}}}}), "lifecycle.preStop.tcpSocket"),
        (
            json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}),
            "env[0].valueFrom.resourceFieldRef",
        ),
    ] {
        let errors = container_errors(fields);
        assert_eq!(errors[0], format!("{c}.{path}: Forbidden: not supported by Berth yet"), "{errors:?}");
    }
    assert_eq!(
        container_errors(json!({"stdin": true})),
        [format!("{c}.stdin: Forbidden: not supported by Berth yet unless tty is true")]
    );
    assert_eq!(
        container_errors(json!({"stdin": true, "stdinOnce": true, "tty": true})),
        Vec::<String>::new()
    );
}

#[test]
fn a_port_of_the_host_is_one_containers_and_on_its_network_the_containers_own() {
    let ports = |of_host: bool, ports: Value| {
        spec_errors(
            json!({"hostNetwork": of_host, "containers": [{"name": "c", "image": "i", "ports": ports}]}),
        )
    };
    let at = "spec.containers[0].ports";
    assert_eq!(
        ports(false, json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"}])),
        [""; 0]
    );
    let twice = json!([
        {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8080},
        {"containerPort": 81, "hostPort": 8080, "protocol": "UDP"},
        {"containerPort": 81, "hostPort": 8080, "hostIP": "192.0.2.1"},
    ]);
    assert_eq!(ports(false, twice), [format!(r#"{at}[1].hostPort: Duplicate value: "TCP//8080""#)]);
    assert_eq!(
        ports(true, json!([{"containerPort": 80, "hostPort": 8080}])),
        [format!(
            "{at}[0].hostPort: Invalid value: 8080: must match `containerPort` when `hostNetwork` is true"
        )]
    );
    assert_eq!(ports(true, json!([{"containerPort": 80}])), [""; 0]);
    assert_eq!(
        ports(false, json!([{"containerPort": 80, "hostPort": 70000, "hostIP": "here"}])),
        [
            format!("{at}[0].hostPort: Invalid value: 70000: must be between 1 and 65535, inclusive"),
            format!(
                r#"{at}[0].hostIP: Invalid value: "here": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#
            ),
        ]
    );
    let fine =
        json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet", "setHostnameAsFQDN": true});
    assert_eq!(spec_errors(fine), [""; 0]);
}

#[test]
fn defaults_of_what_is_not_implemented_are_fine() {
    let defaults = json!({
        "hostNetwork": false, "affinity": {}, "topologySpreadConstraints": [], "priority": 0, "hostUsers": true,
        "automountServiceAccountToken": false, "os": {"name": "linux"}, "shareProcessNamespace": false,
        "securityContext": {"seccompProfile": {"type": "Unconfined"}}, "preemptionPolicy": "PreemptLowerPriority",
    });
    assert_eq!(spec_errors(defaults), [""; 0]);
}

#[test]
fn only_images_and_new_tolerations_of_a_pod_may_change() {
    let mut old = simple();
    old["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    assert_eq!(update(&old, |p| p["spec"]["containers"][0]["image"] = "busybox:2".into()), [""; 0]);
    let added = json!([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]);
    assert_eq!(update(&old, |p| p["spec"]["tolerations"] = added.clone()), [""; 0]);
    assert_eq!(update(&old, |p| p["metadata"]["labels"] = json!({"a": "b"})), [""; 0]);

    assert_eq!(
        update(&old, |p| p["spec"]["tolerations"] = json!([])),
        ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
    );
    assert_eq!(
        update(&old, |p| p["spec"]["containers"] = json!([])),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    let changed = update(&old, |p| p["spec"]["containers"][0]["command"] = json!(["x"]));
    assert!(
        changed[0].starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        ),
        "{changed:?}"
    );
    assert!(changed[0].ends_with("\nchanged: spec.containers[0].command"), "{changed:?}");
}

#[test]
fn a_bound_pod_gets_its_grace_period_and_others_go_at_once() {
    let mut pod = simple();
    assert_eq!((POD.graceful_deletion)(&pod), None);
    pod["spec"]["nodeName"] = "n1".into();
    assert_eq!((POD.graceful_deletion)(&pod), Some(30));
    pod["status"]["phase"] = "Failed".into();
    assert_eq!((POD.graceful_deletion)(&pod), None);
}

#[test]
fn quality_of_service_follows_requests_and_limits() {
    let class = |resources: Value| {
        pod(json!({"containers": [{"name": "c", "image": "i", "resources": resources}]}))["status"]["qosClass"].clone()
    };
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
}
