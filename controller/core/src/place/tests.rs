use serde_json::json;

use super::*;

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn on(node: &Value, pods: u64) -> Candidate<'_> {
    Candidate { node, pods, requested: Request::default() }
}

fn any(_: &Value) -> Result<(), String> {
    Ok(())
}

fn refused(pod: &Value, node: &Value) -> String {
    place(pod, &[on(node, 0)], &any).unwrap_err().to_string()
}

#[test]
fn the_node_with_the_fewest_pods_is_chosen_then_the_first_by_name() {
    let (a, b, c) = (node("a"), node("b"), node("c"));
    let pod = json!({});
    assert_eq!(place(&pod, &[on(&a, 1), on(&c, 0), on(&b, 0)], &any).unwrap(), "b");
}

#[test]
fn a_cordoned_node_takes_no_pods() {
    let mut node = node("a");
    node["spec"]["unschedulable"] = true.into();
    assert_eq!(refused(&json!({}), &node), "0/1 nodes are available: 1 node(s) were unschedulable.");
    let tolerant = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
    assert_eq!(place(&tolerant, &[on(&node, 0)], &any).unwrap(), "a");
}

#[test]
fn a_node_that_is_not_ready_takes_no_pods() {
    let mut node = node("a");
    node["status"]["conditions"][0]["status"] = "Unknown".into();
    assert_eq!(
        refused(&json!({}), &node),
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }."
    );
}

#[test]
fn taints_need_tolerations() {
    let mut tainted = node("a");
    tainted["spec"]["taints"] = json!([{"key": "disk", "value": "ssd", "effect": "NoSchedule"}]);
    assert_eq!(
        refused(&json!({}), &tainted),
        "0/1 nodes are available: 1 node(s) had untolerated taint {disk: ssd}."
    );
    for toleration in [
        json!({"key": "disk", "value": "ssd"}),
        json!({"key": "disk", "operator": "Exists", "effect": "NoSchedule"}),
    ] {
        let pod = json!({"spec": {"tolerations": [toleration]}});
        assert!(place(&pod, &[on(&tainted, 0)], &any).is_ok());
    }
    let wrong = json!({"spec": {"tolerations": [{"key": "disk", "value": "hdd"}]}});
    assert!(place(&wrong, &[on(&tainted, 0)], &any).is_err());
    tainted["spec"]["taints"][0]["effect"] = "PreferNoSchedule".into();
    assert!(place(&json!({}), &[on(&tainted, 0)], &any).is_ok());
}

#[test]
fn a_node_selector_must_match() {
    let pod = json!({"spec": {"nodeSelector": {"zone": "x"}}});
    let mut there = node("a");
    assert_eq!(
        refused(&pod, &there),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    );
    there["metadata"]["labels"]["zone"] = "x".into();
    assert!(place(&pod, &[on(&there, 0)], &any).is_ok());
}

#[test]
fn what_is_requested_must_be_there() {
    let there = node("a");
    let ask = |cpu: &str, memory: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
    assert!(place(&ask("2", "1Gi"), &[on(&there, 0)], &any).is_ok());
    assert_eq!(
        refused(&ask("2001m", "2Gi"), &there),
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
    );
    let used = Candidate { requested: Request { cpu_millis: 1500, memory_bytes: 0 }, ..on(&there, 1) };
    assert!(place(&ask("600m", "0"), &[used], &any).is_err());
    let full = place(&json!({}), &[on(&there, 3)], &any).unwrap_err();
    assert_eq!(full.to_string(), "0/1 nodes are available: 1 Too many pods.");
}

#[test]
fn reasons_are_counted_over_all_nodes() {
    let (a, mut b, mut c) = (node("a"), node("b"), node("c"));
    b["spec"]["unschedulable"] = true.into();
    c["spec"]["unschedulable"] = true.into();
    let none = |_: &Value| Err(VOLUME_CONFLICT.to_owned());
    let reasons = place(&json!({}), &[on(&a, 0), on(&b, 0), on(&c, 0)], &none).unwrap_err();
    assert_eq!(
        reasons.to_string(),
        "0/3 nodes are available: 1 node(s) had volume node affinity conflict, 2 node(s) were unschedulable."
    );
    assert_eq!(Reasons::default().to_string(), "no nodes available to schedule pods");
    assert_eq!(
        Reasons::general(1, "persistentvolumeclaim \"x\" not found").to_string(),
        "0/1 nodes are available: persistentvolumeclaim \"x\" not found."
    );
}

#[test]
fn a_volume_reaches_the_nodes_its_affinity_names() {
    let node = node("a");
    let with = |expressions: Value| json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}}});
    let hostname = |operator: &str, values: Value| {
        with(json!([{"key": "kubernetes.io/hostname", "operator": operator, "values": values}]))
    };
    assert!(reaches(&json!({}), &node));
    assert!(reaches(&hostname("In", json!(["b", "a"])), &node));
    assert!(!reaches(&hostname("In", json!(["b"])), &node));
    assert!(!reaches(&hostname("NotIn", json!(["a"])), &node));
    assert!(reaches(&hostname("Exists", json!([])), &node));
    assert!(!reaches(&hostname("DoesNotExist", json!([])), &node));
    // A term that says nothing matches nothing.
    assert!(!reaches(&with(json!([])), &node));
}
