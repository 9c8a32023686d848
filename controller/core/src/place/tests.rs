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

fn in_zone(name: &str, zone: &str) -> Value {
    let mut node = node(name);
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone.into();
    node["status"]["allocatable"]["pods"] = "100".into();
    node
}

fn world(nodes: &[Value]) -> World {
    let mut world = World::default();
    world.set_namespace("d", Some(&json!({"team": "a"})));
    for node in nodes {
        world.set_node(crate::object::name(node), Some(node));
    }
    world
}

/// A pod of the set `app`.
fn pod(app: &str, spec: Value) -> Value {
    json!({
        "metadata": {"namespace": "d", "labels": {"app": app},
                     "ownerReferences": [{"controller": true, "uid": format!("set-{app}"), "kind": "StatefulSet"}]},
        "spec": spec,
    })
}

fn any(_: &Value) -> Result<(), String> {
    Ok(())
}

/// Where the pod goes, or why it goes nowhere.
fn try_place(world: &World, pod: &Value) -> Result<String, String> {
    place(&Wanted::of(pod), world, &any).map_err(|reasons| reasons.to_string())
}

fn put(world: &mut World, name: &str, pod: &Value, node: &str) {
    world.set_pod("d", name, Some(Placed::new(&Wanted::of(pod), node)));
}

/// Places and stays.
fn settle(world: &mut World, name: &str, pod: &Value) -> Result<String, String> {
    let node = try_place(world, pod)?;
    put(world, name, pod, &node);
    Ok(node)
}

fn refused(pod: &Value, node: &Value) -> String {
    try_place(&world(std::slice::from_ref(node)), pod).unwrap_err()
}

#[test]
fn a_set_is_spread_over_the_nodes_and_others_go_where_there_is_most_room() {
    let mut world = world(&[node("a"), node("b"), node("c")]);
    let web = pod("web", json!({}));
    let went: Vec<String> = (0..6).map(|n| settle(&mut world, &format!("web-{n}"), &web).unwrap()).collect();
    assert_eq!(went, ["a", "b", "c", "a", "b", "c"]);
    world.set_pod("d", "web-1", None);
    world.set_pod("d", "web-4", None);
    assert_eq!(try_place(&world, &pod("db", json!({}))).unwrap(), "b");
}

#[test]
fn a_set_is_spread_over_zones_among_nodes_that_are_equal() {
    let mut world = world(&[in_zone("a", "x"), in_zone("b", "x"), in_zone("c", "y")]);
    let web = pod("web", json!({}));
    let went: Vec<String> = (0..3).map(|n| settle(&mut world, &format!("web-{n}"), &web).unwrap()).collect();
    assert_eq!(went, ["a", "c", "b"]);
}

#[test]
fn an_ordinal_returns_to_the_node_it_was_last_on_while_that_can_take_it() {
    let mut nodes = [node("a"), node("b")];
    let mut wanted = Wanted::of(&pod("web", json!({})));
    wanted.last_node = "b".to_owned();
    let mut there = world(&nodes);
    put(&mut there, "web-7", &pod("web", json!({})), "b");
    assert_eq!(place(&wanted, &there, &any).unwrap(), "b", "though another of its set is there");
    nodes[1]["spec"]["unschedulable"] = true.into();
    assert_eq!(place(&wanted, &world(&nodes), &any).unwrap(), "a");
}

#[test]
fn a_cordoned_node_takes_no_pods() {
    let mut node = node("a");
    node["spec"]["unschedulable"] = true.into();
    assert_eq!(refused(&json!({}), &node), "0/1 nodes are available: 1 node(s) were unschedulable.");
    let tolerant = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
    assert_eq!(try_place(&world(&[node]), &tolerant).unwrap(), "a");
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
fn taints_need_tolerations_and_soft_ones_only_discourage() {
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
        assert!(try_place(&world(std::slice::from_ref(&tainted)), &pod).is_ok());
    }
    let wrong = json!({"spec": {"tolerations": [{"key": "disk", "value": "hdd"}]}});
    assert!(try_place(&world(std::slice::from_ref(&tainted)), &wrong).is_err());
    tainted["spec"]["taints"][0]["effect"] = "PreferNoSchedule".into();
    assert_eq!(try_place(&world(std::slice::from_ref(&tainted)), &json!({})).unwrap(), "a");
    assert_eq!(try_place(&world(&[tainted, node("b")]), &json!({})).unwrap(), "b");
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
    assert!(try_place(&world(&[there]), &pod).is_ok());
}

#[test]
fn node_affinity_rules_out_and_prefers() {
    let expression = |op: &str, values: Value| json!({"matchExpressions": [{"key": "disk", "operator": op, "values": values}]});
    let required = |terms: Value| json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}});
    let mut fast = node("b");
    fast["metadata"]["labels"]["disk"] = "ssd".into();
    fast["metadata"]["labels"]["size"] = "7".into();
    let both = world(&[node("a"), fast]);
    assert_eq!(try_place(&both, &required(json!([expression("In", json!(["ssd"]))]))).unwrap(), "b");
    assert_eq!(try_place(&both, &required(json!([expression("DoesNotExist", json!([]))]))).unwrap(), "a");
    let larger = json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["6"]}]});
    assert_eq!(try_place(&both, &required(json!([larger]))).unwrap(), "b");
    let by_name = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]});
    assert_eq!(try_place(&both, &required(json!([expression("In", json!(["hdd"])), by_name]))).unwrap(), "b");
    assert_eq!(
        try_place(&both, &required(json!([{}]))).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
    );
    let preferred = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": expression("In", json!(["ssd"]))}]}}}});
    assert_eq!(try_place(&both, &preferred).unwrap(), "b");
}

fn affinity(kind: &str, terms: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn of_app(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[test]
fn a_pod_that_must_be_near_others_follows_them_and_the_first_of_a_kind_goes_anywhere() {
    let mut there = world(&[in_zone("a", "x"), in_zone("b", "y"), in_zone("c", "y")]);
    let near_db = pod("web", affinity("podAffinity", json!([of_app("db", ZONE)])));
    assert_eq!(
        try_place(&there, &near_db).unwrap_err(),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    put(&mut there, "db-0", &pod("db", json!({})), "c");
    assert_eq!(try_place(&there, &near_db).unwrap(), "b");
    let near_itself = pod("web", affinity("podAffinity", json!([of_app("web", ZONE)])));
    assert_eq!(settle(&mut there, "web-0", &near_itself).unwrap(), "a", "nobody is there to be near");
    assert_eq!(settle(&mut there, "web-1", &near_itself).unwrap(), "a");
    assert!(try_place(&world(&[node("a")]), &near_itself).is_err(), "a node without that label is nowhere");
}

#[test]
fn pods_that_must_be_apart_are_whichever_comes_first() {
    let mut there = world(&[node("a"), node("b")]);
    let apart = pod("db", affinity("podAntiAffinity", json!([of_app("db", HOST), of_app("web", HOST)])));
    assert_eq!(settle(&mut there, "db-0", &apart).unwrap(), "a");
    assert_eq!(settle(&mut there, "db-1", &apart).unwrap(), "b");
    assert_eq!(
        try_place(&there, &apart).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    // Who says nothing itself is kept away by what those who are there say.
    assert_eq!(
        try_place(&there, &pod("web", json!({}))).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    assert!(try_place(&there, &pod("other", json!({}))).is_ok());
    there.set_pod("d", "db-1", None);
    assert_eq!(try_place(&there, &pod("web", json!({}))).unwrap(), "b");
}

#[test]
fn preferences_for_and_against_others_decide_between_nodes_that_would_do() {
    let mut there = world(&[in_zone("a", "x"), in_zone("b", "x"), in_zone("c", "y")]);
    put(&mut there, "db-0", &pod("db", json!({})), "c");
    let prefer = |kind: &str| {
        let term = json!([{"weight": 50, "podAffinityTerm": of_app("db", ZONE)}]);
        pod("web", json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": term}}}))
    };
    assert_eq!(try_place(&there, &prefer("podAffinity")).unwrap(), "c");
    assert_eq!(try_place(&there, &prefer("podAntiAffinity")).unwrap(), "a");
    // And the other way round: who is there would rather not have it.
    put(&mut there, "web-0", &prefer("podAntiAffinity"), "a");
    assert_eq!(try_place(&there, &pod("db", json!({}))).unwrap(), "c");
}

#[test]
fn terms_reach_the_namespaces_they_name_or_select() {
    let mut there = world(&[node("a"), node("b")]);
    there.set_namespace("other", Some(&json!({"team": "b"})));
    let mut db = pod("db", json!({}));
    db["metadata"]["namespace"] = "other".into();
    there.set_pod("other", "db-0", Some(Placed::new(&Wanted::of(&db), "a")));
    for n in 0..2 {
        put(&mut there, &format!("x-{n}"), &pod("x", json!({})), "b");
    }
    // By room alone it goes to a.
    let apart = |more: Value| {
        let mut term = of_app("db", HOST);
        more.as_object().unwrap().iter().for_each(|(k, v)| term[k] = v.clone());
        try_place(&there, &pod("web", affinity("podAntiAffinity", json!([term])))).unwrap()
    };
    assert_eq!(apart(json!({})), "a");
    assert_eq!(apart(json!({"namespaces": ["other"]})), "b");
    assert_eq!(apart(json!({"namespaceSelector": {}})), "b");
    assert_eq!(apart(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})), "b");
    assert_eq!(apart(json!({"namespaceSelector": {"matchLabels": {"team": "c"}}})), "a");
}

fn spread(key: &str, when: &str, more: Value) -> Value {
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}},
    });
    more.as_object().unwrap().iter().for_each(|(k, v)| constraint[k] = v.clone());
    pod("web", json!({"topologySpreadConstraints": [constraint]}))
}

#[test]
fn a_hard_spread_constraint_keeps_the_parts_even() {
    let mut there = world(&[in_zone("a", "x"), in_zone("b", "y"), node("c")]);
    let hard = |more: Value| spread(ZONE, "DoNotSchedule", more);
    for (n, zone) in ["a", "b", "a", "b"].iter().enumerate() {
        assert_eq!(settle(&mut there, &format!("web-{n}"), &hard(json!({}))).unwrap(), *zone);
    }
    put(&mut there, "web-4", &hard(json!({})), "a");
    let mut cordoned = in_zone("b", "y");
    cordoned["spec"]["unschedulable"] = true.into();
    there.set_node("b", Some(&cordoned));
    assert_eq!(
        try_place(&there, &hard(json!({}))).unwrap_err(),
        "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label), 1 node(s) were unschedulable."
    );
    assert_eq!(try_place(&there, &hard(json!({"maxSkew": 2}))).unwrap(), "a");
    // Who is going does not count.
    let mut going = Placed::new(&Wanted::of(&hard(json!({}))), "a");
    going.terminating = true;
    there.set_pod("d", "web-4", Some(going));
    assert_eq!(try_place(&there, &hard(json!({}))).unwrap(), "a");
}

#[test]
fn a_constraint_says_which_nodes_and_pods_count() {
    let mut there = world(&[in_zone("a", "x"), in_zone("b", "y")]);
    let hard = |more: Value| spread(ZONE, "DoNotSchedule", more);
    put(&mut there, "web-0", &hard(json!({})), "a");
    let only_x = |more: Value| {
        let mut pod = hard(more);
        pod["spec"]["nodeSelector"] = json!({ZONE: "x"});
        try_place(&there, &pod)
    };
    assert_eq!(only_x(json!({})).unwrap(), "a", "y is none of its parts");
    assert!(only_x(json!({"nodeAffinityPolicy": "Ignore"})).is_err());
    assert!(only_x(json!({"minDomains": 2})).is_err(), "too few parts: the least is none at all");
    // Pods of another revision do not count.
    let mut labelled = hard(json!({"matchLabelKeys": ["rev"]}));
    labelled["metadata"]["labels"]["rev"] = "2".into();
    labelled["spec"]["nodeSelector"] = json!({ZONE: "x"});
    labelled["spec"]["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = "Ignore".into();
    assert_eq!(try_place(&there, &labelled).unwrap(), "a");

    let mut tainted = in_zone("b", "y");
    tainted["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
    there.set_node("b", Some(&tainted));
    assert!(try_place(&there, &hard(json!({}))).is_err(), "y counts, though it cannot be used");
    assert_eq!(try_place(&there, &hard(json!({"nodeTaintsPolicy": "Honor"}))).unwrap(), "a");
}

#[test]
fn a_soft_spread_constraint_is_a_wish() {
    let mut there = world(&[in_zone("a", "x"), in_zone("b", "y")]);
    let soft = spread(ZONE, "ScheduleAnyway", json!({}));
    // By its set alone it would go to b, which has fewer.
    put(
        &mut there,
        "other-0",
        &{
            let mut p = pod("web", json!({}));
            p["metadata"]["ownerReferences"] = json!([]);
            p
        },
        "b",
    );
    assert_eq!(try_place(&there, &soft).unwrap(), "a");
    let mut cordoned = in_zone("a", "x");
    cordoned["spec"]["unschedulable"] = true.into();
    there.set_node("a", Some(&cordoned));
    assert_eq!(try_place(&there, &soft).unwrap(), "b");
}

#[test]
fn a_port_of_the_host_is_taken_once() {
    let with =
        |port: Value| json!({"metadata": {"namespace": "d"}, "spec": {"containers": [{"ports": [port]}]}});
    let mut there = world(&[node("a")]);
    put(
        &mut there,
        "x",
        &with(json!({"hostPort": 80, "containerPort": 80, "protocol": "TCP", "hostIP": "192.0.2.1"})),
        "a",
    );
    assert_eq!(
        try_place(&there, &with(json!({"hostPort": 80, "protocol": "TCP"}))).unwrap_err(),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
    assert!(try_place(&there, &with(json!({"hostPort": 80, "protocol": "UDP"}))).is_ok());
    assert!(
        try_place(&there, &with(json!({"hostPort": 80, "protocol": "TCP", "hostIP": "192.0.2.2"}))).is_ok()
    );
    assert!(try_place(&there, &with(json!({"containerPort": 80, "protocol": "TCP"}))).is_ok());
    let mut of_host = with(json!({"containerPort": 80, "protocol": "TCP"}));
    of_host["spec"]["hostNetwork"] = true.into();
    assert!(try_place(&there, &of_host).is_err(), "on the host's network every port is the host's");
}

#[test]
fn what_is_requested_must_be_there() {
    let ask = |cpu: &str, memory: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
    assert!(try_place(&world(&[node("a")]), &ask("2", "1Gi")).is_ok());
    assert_eq!(
        refused(&ask("2001m", "2Gi"), &node("a")),
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
    );
    let mut used = world(&[node("a")]);
    put(&mut used, "x", &ask("1500m", "0"), "a");
    assert!(try_place(&used, &ask("600m", "0")).is_err());
    assert!(try_place(&used, &ask("500m", "0")).is_ok());
    put(&mut used, "y", &json!({}), "a");
    put(&mut used, "z", &json!({}), "a");
    assert_eq!(try_place(&used, &json!({})).unwrap_err(), "0/1 nodes are available: 1 Too many pods.");
    used.set_pod("d", "z", None);
    assert!(try_place(&used, &json!({})).is_ok());
}

#[test]
fn what_is_on_a_node_outlives_its_object() {
    let mut there = world(&[node("a")]);
    for n in 0..3 {
        put(&mut there, &format!("x-{n}"), &json!({}), "a");
    }
    there.set_node("a", None);
    assert_eq!(try_place(&there, &json!({})).unwrap_err(), "no nodes available to schedule pods");
    there.set_node("a", Some(&node("a")));
    assert_eq!(try_place(&there, &json!({})).unwrap_err(), "0/1 nodes are available: 1 Too many pods.");
}

#[test]
fn reasons_are_counted_over_all_nodes() {
    let (mut b, mut c) = (node("b"), node("c"));
    b["spec"]["unschedulable"] = true.into();
    c["spec"]["unschedulable"] = true.into();
    let none = |_: &Value| Err("node(s) didn't find available persistent volumes to bind".to_owned());
    let reasons = place(&Wanted::of(&json!({})), &world(&[node("a"), b, c]), &none).unwrap_err();
    assert_eq!(
        reasons.to_string(),
        "0/3 nodes are available: 1 node(s) didn't find available persistent volumes to bind, 2 node(s) were unschedulable."
    );
    assert_eq!(
        Reasons::general(1, "persistentvolumeclaim \"x\" not found").to_string(),
        "0/1 nodes are available: persistentvolumeclaim \"x\" not found."
    );
}

#[test]
fn a_volume_reaches_the_nodes_its_affinity_names() {
    let node = node("a");
    let with = |expressions: Value| json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}}});
    let hostname =
        |operator: &str, values: Value| with(json!([{"key": HOST, "operator": operator, "values": values}]));
    assert!(reaches(&json!({}), &node));
    assert!(reaches(&hostname("In", json!(["b", "a"])), &node));
    assert!(!reaches(&hostname("In", json!(["b"])), &node));
    assert!(!reaches(&hostname("NotIn", json!(["a"])), &node));
    assert!(reaches(&hostname("Exists", json!([])), &node));
    assert!(!reaches(&hostname("DoesNotExist", json!([])), &node));
    // A term that says nothing matches nothing.
    assert!(!reaches(&with(json!([])), &node));
    let mut wanted = Wanted::of(&json!({}));
    wanted.has_volume(&hostname("In", json!(["b"])));
    assert_eq!(
        place(&wanted, &world(&[node]), &any).unwrap_err().to_string(),
        "0/1 nodes are available: 1 node(s) had volume node affinity conflict."
    );
}
