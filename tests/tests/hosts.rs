//! Several hosts: where ordinals go and come back to, what a host's silence means, how hosts leave; and pods that
//! share their host's network.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use berth_tests::cluster::Cluster;
use berth_tests::scenario::{STAY, pod, set};
use berth_tests::{fabric, wait};

/// A host counts as silent after 35 s, and as NotReady 10 s later.
const SILENCE: Duration = Duration::from_secs(120);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

/// A set of busybox pods without claims, so that they may run on any host.
fn roaming(name: &str, replicas: usize) -> String {
    let manifest = set(name, replicas, "  podManagementPolicy: Parallel");
    let (before, _) = manifest.split_once("        volumeMounts").unwrap();
    before.to_owned()
}

/// Where each pod is.
fn places(cluster: &Cluster) -> BTreeMap<String, String> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{\"\\n\"}{end}";
    let text = cluster.kubectl.args(&["get", "pods", "-o", path]).unwrap();
    text.lines()
        .filter_map(|l| l.split_once(' '))
        .map(|(pod, node)| (pod.to_owned(), node.to_owned()))
        .collect()
}

fn ready_condition(cluster: &Cluster, node: &str) -> (String, String) {
    let field = |field: &str| {
        let path = format!(".status.conditions[?(@.type==\"Ready\")].{field}");
        cluster.kubectl.field(&format!("node {node}"), &path).unwrap()
    };
    (field("status"), field("message"))
}

fn becomes_silent(cluster: &Cluster, node: &str) {
    wait::until_true(&format!("{node} NotReady"), SILENCE, || {
        Ok(ready_condition(cluster, node).0 == "Unknown")
    })
    .unwrap();
}

/// How many tasks containerd has on a host.
fn tasks(cluster: &Cluster, node: &str) -> usize {
    let list = cluster.host_named(node).unwrap().ctr(&["tasks", "ls", "-q"]).unwrap();
    list.lines().filter(|line| !line.is_empty()).count()
}

#[test]
fn ordinals_are_spread_return_to_their_hosts_and_leave_a_host_that_leaves() {
    let cluster = Cluster::of_three().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&roaming("web", 6)).unwrap();
    cluster.settled("web", 6).unwrap();
    let first = places(&cluster);
    for node in ["node1", "node2", "node3"] {
        assert_eq!(first.values().filter(|n| *n == node).count(), 2, "{first:?}");
    }
    kubectl.run("delete pod web-0 web-3 web-5").unwrap();
    cluster.settled("web", 6).unwrap();
    assert_eq!(places(&cluster), first);

    kubectl.run("drain node2 --ignore-daemonsets --delete-emptydir-data --timeout=60s").unwrap();
    cluster.settled("web", 6).unwrap();
    let drained = places(&cluster);
    assert!(drained.values().all(|node| node != "node2"), "{drained:?}");
    for (pod, node) in &first {
        assert!(node == "node2" || drained[pod] == *node, "{pod} stayed where it was: {drained:?}");
    }
    cluster.host_named("node2").unwrap().signal("agent", nix::sys::signal::Signal::SIGTERM).unwrap();
    kubectl.run("delete node node2").unwrap();
    kubectl.run("scale sts web --replicas=8").unwrap();
    cluster.settled("web", 8).unwrap();
    assert_eq!(kubectl.run("get nodes -o name").unwrap(), "node/node1\nnode/node3\n");
    assert!(places(&cluster).values().all(|node| node != "node2"));
    // Its certificate went with its Node: it comes back with a token.
    std::fs::write(cluster.host_named("node2").unwrap().dir.join("token"), cluster.token("node2").unwrap())
        .unwrap();
    cluster.start_agent(1).unwrap();
    cluster.becomes("node node2", ".status.conditions[?(@.type==\"Ready\")].status", "True").unwrap();
    kubectl.run("scale sts web --replicas=9").unwrap();
    cluster.settled("web", 9).unwrap();
    assert_eq!(places(&cluster)["web-8"], "node2");
}

#[test]
fn a_host_that_is_cut_off_keeps_its_names_until_it_is_back_or_declared_down() {
    let cluster = Cluster::of_three().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&roaming("web", 3)).unwrap();
    cluster.settled("web", 3).unwrap();
    let at = places(&cluster);
    let on = |node: &str| at.iter().find(|(_, n)| *n == node).unwrap().0.clone();
    let (waits, moves) = (on("node2"), on("node3"));
    for node in ["node2", "node3"] {
        cluster.fabric.cut(cluster.host_named(node).unwrap()).unwrap();
    }
    for node in ["node2", "node3"] {
        becomes_silent(&cluster, node);
        let (_, why) = ready_condition(&cluster, node);
        assert!(why.ends_with("its pods run on if the host does"), "{why}");
        let taints = kubectl.field(&format!("node {node}"), ".spec.taints[*].key").unwrap();
        assert!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
    }
    // Neither silence nor force frees a name.
    assert_eq!(places(&cluster), at);
    kubectl.args(&["delete", "pod", &waits, "--force", "--grace-period=0"]).unwrap();
    cluster.event(&waits, "FailedScheduling", "the name is still held by an earlier pod").unwrap();
    assert_eq!(kubectl.field(&format!("pod {waits}"), ".spec.nodeName").unwrap(), "");
    assert_eq!(tasks(&cluster, "node2"), 1);

    // A person's word does, and only there.
    kubectl.run(&format!("taint node node3 {OUT_OF_SERVICE}")).unwrap();
    cluster.becomes(&format!("pod {moves}"), ".spec.nodeName", "node1").unwrap();
    cluster.ready(&moves).unwrap();
    assert_eq!(kubectl.field(&format!("pod {waits}"), ".spec.nodeName").unwrap(), "");

    // Back again, each stops what has lost its name, and only then does the name start anew.
    let new = cluster.container_id(&moves).unwrap();
    for node in ["node2", "node3"] {
        cluster.fabric.mend(cluster.host_named(node).unwrap()).unwrap();
    }
    wait::until_true("node3 has stopped what moved", SILENCE, || Ok(tasks(&cluster, "node3") == 0)).unwrap();
    wait::until_true("node2 runs the new pod", SILENCE, || {
        Ok(kubectl.field(&format!("pod {waits}"), ".spec.nodeName")? == "node2")
    })
    .unwrap();
    cluster.settled("web", 3).unwrap();
    assert_eq!(tasks(&cluster, "node2"), 1);
    assert_eq!(cluster.container_id(&moves).unwrap(), new);
}

#[test]
fn a_pod_on_its_hosts_network_is_the_host_and_a_host_port_leads_to_its_pod() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let page = |text: &str, port: u16| {
        format!("mkdir -p /www; echo {text} > /www/index.html; httpd -p {port} -h /www; {STAY}")
    };
    let ports = |ports: &str| format!("    ports: [{ports}]");
    let of_host = "  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet";
    kubectl.apply(&pod("host", &page("host", 8090), &ports("{containerPort: 8090}"), of_host)).unwrap();
    let porter = ports("{containerPort: 80, hostPort: 8091}");
    kubectl.apply(&pod("porter", &page("porter", 80), &porter, "")).unwrap();
    cluster.ready("host").unwrap();
    cluster.ready("porter").unwrap();

    let address = fabric::address(0, 0).to_string();
    assert_eq!(kubectl.field("pod host", ".status.podIP").unwrap(), address);
    assert_eq!(kubectl.field("pod host", ".status.hostIP").unwrap(), address);
    assert_eq!(cluster.sh("host", "hostname").unwrap(), "node1");
    let resolv = cluster.sh("host", "cat /etc/resolv.conf").unwrap();
    assert!(resolv.contains("default.svc.cluster.local"), "{resolv}");
    let found = cluster.sh("host", "nslookup kubernetes.default.svc.cluster.local").unwrap();
    assert!(found.contains("10.43.0.1"), "{found}");

    let get =
        |port: u16| cluster.fabric.run("curl", &["-sS", "-m", "5", &format!("http://{address}:{port}/")]);
    wait::until_true("the host's port", Duration::from_secs(30), || {
        Ok(get(8091).is_ok_and(|page| page == "porter\n"))
    })
    .unwrap();
    assert_eq!(get(8090).unwrap(), "host\n");
    assert_eq!(cluster.sh("host", "wget -qO- http://127.0.0.1:8090/").unwrap(), "host");

    // A port of a host is one pod's.
    for (name, ports) in
        [("a", "{containerPort: 1, hostPort: 8090}"), ("b", "{containerPort: 1, hostPort: 8091}")]
    {
        kubectl.apply(&pod(name, STAY, &format!("    ports: [{ports}]"), "")).unwrap();
        cluster.event(name, "FailedScheduling", "1 node(s) didn't have free ports").unwrap();
    }
    kubectl.run("delete pod porter").unwrap();
    cluster.ready("b").unwrap();
    wait::until_true("the port leads there no more", Duration::from_secs(30), || Ok(get(8091).is_err()))
        .unwrap();
}

#[test]
fn a_host_without_the_plugins_of_its_network_is_not_ready_until_they_are_there() {
    let cluster = Cluster::for_test().unwrap();
    let host = cluster.host().unwrap();
    let ready = |field: &str| format!(".status.conditions[?(@.type==\"Ready\")].{field}");
    let dirs: Vec<&str> = ["/opt/cni/bin", "/usr/lib/cni"]
        .into_iter()
        .filter(|dir| std::path::Path::new(dir).is_dir())
        .collect();
    // Hidden on this host, and nowhere else. It looks for them every ten seconds.
    for dir in &dirs {
        host.run("mount", &["-t", "tmpfs", "tmpfs", dir]).unwrap();
    }
    cluster.becomes("node node1", &ready("reason"), "NetworkPluginNotReady").unwrap();
    let (status, why) = ready_condition(&cluster, "node1");
    assert_eq!(status, "False");
    assert!(why.contains("ptp") && why.contains("install containernetworking-plugins"), "{why}");
    cluster.kubectl.apply(&pod("waits", STAY, "", "")).unwrap();
    cluster.event("waits", "FailedScheduling", "node(s)").unwrap();
    assert_eq!(cluster.kubectl.field("pod waits", ".spec.nodeName").unwrap(), "");
    for dir in &dirs {
        host.run("umount", &[dir]).unwrap();
    }
    cluster.becomes("node node1", &ready("status"), "True").unwrap();
    cluster.ready("waits").unwrap();
}
