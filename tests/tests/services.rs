//! Services and addresses on three hosts with real pods: node1 and node2 on one segment, node3 behind a router,
//! with one pod of the set `who` on each. A client in a pod is busybox's wget; each server answers who it is and
//! from where it was asked.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use berth_tests::cluster::Cluster;
use berth_tests::fabric;
use berth_tests::scenario::SOON;
use berth_tests::wait;
use serde_json::json;

/// Answers `<its host name> <who asks>` over HTTP on 8080, and with the same greeting what it is sent on 7001.
/// It is ready unless /tmp/unready is there.
const WHO: &str = "\
mkdir -p /www/cgi-bin; \
printf '#!/bin/sh\\necho; echo $HOSTNAME $REMOTE_ADDR\\n' > /www/cgi-bin/who; \
printf '#!/bin/sh\\necho $HOSTNAME; exec cat\\n' > /tmp/echo; \
chmod +x /www/cgi-bin/who /tmp/echo; \
httpd -p 0.0.0.0:8080 -h /www; nc -ll -p 7001 -e /tmp/echo & \
trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

const PODS: [&str; 3] = ["who-0", "who-1", "who-2"];

/// One pod on each host; `labels` and `spec` are merged into the template.
fn who(name: &str, spec: serde_json::Value) -> String {
    let mut template = json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", WHO],
            "ports": [{"name": "web", "containerPort": 8080}, {"name": "echo", "containerPort": 7001}],
            "readinessProbe": {"exec": {"command": ["test", "!", "-e", "/tmp/unready"]}, "periodSeconds": 1},
            "env": [{"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        }],
    });
    if let (Some(all), Some(more)) = (template.as_object_mut(), spec.as_object()) {
        all.extend(more.clone());
    }
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": 3, "serviceName": name, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template},
        },
    })
    .to_string()
}

/// A Service in front of them; `spec` is merged into its own.
fn service(name: &str, spec: serde_json::Value) -> String {
    let mut all = json!({
        "selector": {"app": "who"},
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "echo", "port": 7, "targetPort": 7001}],
    });
    if let (Some(all), Some(more)) = (all.as_object_mut(), spec.as_object()) {
        all.extend(more.clone());
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": all}).to_string()
}

/// Asks so many times from a pod; `<who> <from where>` of each answer.
fn ask(cluster: &Cluster, from: &str, whom: &str, times: u32) -> Vec<(String, String)> {
    let line = format!("for i in $(seq {times}); do wget -qO- http://{whom}/cgi-bin/who; done");
    let text = cluster.sh(from, &line).unwrap();
    answers(&text)
}

fn answers(text: &str) -> Vec<(String, String)> {
    let split = |line: &str| line.split_once(' ').map(|(who, whence)| (who.to_owned(), whence.to_owned()));
    text.lines().map(|line| split(line).unwrap_or_else(|| panic!("{text}"))).collect()
}

/// Who answers, if one asks so often that nobody is left out by chance.
fn all_of(cluster: &Cluster, from: &str, whom: &str) -> BTreeSet<String> {
    ask(cluster, from, whom, 40).into_iter().map(|(who, _)| who).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_services_address_leads_from_every_pod_and_host_to_the_pods_that_are_ready() {
    let cluster = Cluster::of_three().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&who("who", json!({}))).unwrap();
    kubectl.apply(&service("who", json!({"clusterIP": "None"}))).unwrap();
    kubectl.apply(&service("front", json!({"type": "NodePort"}))).unwrap();
    kubectl.apply(&service("sticky", json!({"sessionAffinity": "ClientIP"}))).unwrap();
    let one = json!({"selector": {"statefulset.kubernetes.io/pod-name": "who-1"}});
    kubectl.apply(&service("one", one)).unwrap();
    kubectl.apply(&service("all", json!({"clusterIP": "None", "publishNotReadyAddresses": true}))).unwrap();
    cluster.settled("who", 3).unwrap();
    let hosts: BTreeSet<String> = PODS.iter().map(|pod| cluster.host_of(pod).unwrap().name.clone()).collect();
    assert_eq!(hosts.len(), 3, "one on each host");

    pods_see_each_others_addresses(&cluster);
    by_name_and_by_number(&cluster);
    from_hosts_by_their_ports(&cluster);
    affinity(&cluster);
    oneself(&cluster);
    the_world_sees_the_host(&cluster);
    those_that_are_not_ready(&cluster);
}

fn pods_see_each_others_addresses(cluster: &Cluster) {
    for from in PODS {
        let own = cluster.ip(from).unwrap();
        for to in PODS {
            assert_eq!(ask(cluster, from, &format!("{to}.who:8080"), 1), [(to.to_owned(), own.clone())]);
            // Also through a Service, unless it leads back to oneself.
            for (who, whence) in ask(cluster, from, "front", 5) {
                assert!(whence == own || who == from, "{who} saw {whence} in place of {own}");
            }
        }
    }
}

fn by_name_and_by_number(cluster: &Cluster) {
    let address = cluster.kubectl.field("svc front", ".spec.clusterIP").unwrap();
    for from in PODS {
        assert_eq!(all_of(cluster, from, "front"), set(&PODS), "from {from}");
        assert_eq!(all_of(cluster, from, &address), set(&PODS), "from {from}");
    }
    // What it does not offer is refused, not swallowed.
    let begun = Instant::now();
    let refused = cluster.sh(PODS[0], "wget -qO- http://front:81/ 2>&1; true").unwrap();
    assert!(refused.contains("refused") && begun.elapsed() < Duration::from_secs(5), "{refused}");
}

fn from_hosts_by_their_ports(cluster: &Cluster) {
    let port = cluster.kubectl.field("svc front", ".spec.ports[?(@.name==\"http\")].nodePort").unwrap();
    let address = cluster.kubectl.field("svc front", ".spec.clusterIP").unwrap();
    let line = |at: &str| format!("for i in $(seq 30); do busybox wget -qO- http://{at}/cgi-bin/who; done");
    let found = |text: String| answers(&text).into_iter().map(|(who, _)| who).collect::<BTreeSet<_>>();
    // From beyond the router, to each host's address, whichever host the pod is on.
    for (index, segment) in [(0, 0), (1, 0), (2, 1)] {
        let at = format!("{}:{port}", fabric::address(segment, index));
        let text = cluster.fabric.run("sh", &["-c", &line(&at)]).unwrap();
        assert_eq!(found(text), set(&PODS), "{at}");
    }
    // On a host: its own port, another host's, the cluster address.
    let host = cluster.host_named("node3").unwrap();
    for at in
        [format!("{}:{port}", fabric::address(1, 2)), format!("{}:{port}", fabric::address(0, 0)), address]
    {
        let text = host.run("sh", &["-c", &line(&at)]).unwrap();
        assert_eq!(found(text), set(&PODS), "{at}");
    }
}

fn affinity(cluster: &Cluster) {
    for from in PODS {
        assert_eq!(all_of(cluster, from, "sticky").len(), 1, "from {from}");
    }
}

fn oneself(cluster: &Cluster) {
    for from in PODS {
        assert_eq!(all_of(cluster, from, "one"), set(&["who-1"]), "from {from}");
    }
}

fn the_world_sees_the_host(cluster: &Cluster) {
    let server = "mkdir -p cgi-bin; printf '#!/bin/sh\\necho; echo world $REMOTE_ADDR\\n' > cgi-bin/who; \
                  chmod +x cgi-bin/who; exec busybox httpd -f -p 0.0.0.0:8080";
    cluster.fabric.daemon("world", "sh", &["-c", server]).unwrap();
    wait::until_true("the world's server", SOON, || {
        Ok(cluster.fabric.run("ss", &["-Htln"])?.contains(":8080 "))
    })
    .unwrap();
    for from in PODS {
        let host = cluster.kubectl.field(&format!("pod {from}"), ".status.hostIP").unwrap();
        let seen = ask(cluster, from, &format!("{}:8080", fabric::OUTSIDE), 1);
        assert_eq!(seen, [("world".to_owned(), host)], "from {from}");
    }
}

/// Its own name is there; the Service's name and address leave it out, unless they are told not to.
fn those_that_are_not_ready(cluster: &Cluster) {
    let address = cluster.ip("who-2").unwrap();
    let named = |service: &str| {
        let line = format!("nslookup {service}.default.svc.cluster.local");
        cluster.sh("who-0", &line).unwrap().lines().any(|l| l == format!("Address: {address}"))
    };
    assert!(named("who") && named("all"));
    cluster.sh("who-2", "touch /tmp/unready").unwrap();
    wait::until_true("the Service's name without it", SOON, || Ok(!named("who"))).unwrap();
    assert!(named("all") && named("who-2.who"));
    assert_eq!(all_of(cluster, "who-2", "front"), set(&["who-0", "who-1"]));
    assert_eq!(ask(cluster, "who-0", "who-2.who:8080", 1)[0].0, "who-2");
    cluster.sh("who-2", "rm /tmp/unready").unwrap();
    wait::until_true("the Service's name with it", SOON, || Ok(named("who"))).unwrap();
    assert_eq!(all_of(cluster, "who-0", "front"), set(&PODS));
}

#[test]
fn where_an_operator_configures_the_network_names_lead_to_the_addresses_it_gives() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let host = cluster.host().unwrap();
    std::fs::create_dir_all(host.cni_conf_dir()).unwrap();
    let leases = host.dir.join("leases");
    let network = json!({
        "cniVersion": "0.4.0", "name": "operators", "plugins": [{
            "type": "ptp", "ipMasq": true,
            "ipam": {"type": "host-local", "subnet": "10.88.0.0/24", "dataDir": leases, "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    });
    std::fs::write(host.cni_conf_dir().join("10-own.conflist"), network.to_string()).unwrap();
    // The host is looked at every ten seconds.
    let path = ".status.conditions[?(@.type==\"OperatorNetwork\")].status";
    cluster.becomes("node node1", path, "True").unwrap();

    kubectl.apply(&service("who", json!({"clusterIP": "None"}))).unwrap();
    kubectl.apply(&service("front", json!({}))).unwrap();
    kubectl.apply(&who("who", json!({}))).unwrap();
    cluster.settled("who", 3).unwrap();
    // A Service that is there before a pod is in its environment, as are its ports.
    let front = kubectl.field("svc front", ".spec.clusterIP").unwrap();
    let said =
        cluster.sh("who-0", "echo $FRONT_SERVICE_HOST $FRONT_SERVICE_PORT_ECHO $KUBERNETES_SERVICE_HOST");
    assert_eq!(said.unwrap(), format!("{front} 7 10.43.0.1"));
    for pod in PODS {
        let ip = cluster.ip(pod).unwrap();
        assert!(ip.starts_with("10.88.0."), "{ip}");
        // Also where the pod itself is told of it.
        assert_eq!(cluster.sh(pod, "echo $MY_IP").unwrap(), ip);
        let said = cluster.sh("who-0", &format!("nslookup {pod}.who.default.svc.cluster.local")).unwrap();
        assert!(said.contains(&format!("Address: {ip}")), "{said}");
        assert_eq!(ask(&cluster, "who-0", &format!("{pod}.who:8080"), 1)[0].0, pod);
    }
    assert_eq!(all_of(&cluster, "who-1", "front"), set(&PODS));
    // A pod gives its address back as it goes.
    kubectl.run("delete sts who").unwrap();
    kubectl.run("wait --for=delete pod -l app=who --timeout=60s").unwrap();
    let left = std::fs::read_dir(leases.join("operators")).unwrap().flatten().map(|e| e.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("10.88")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A connection from a pod, held open.
struct Connection {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Connection {
    fn open(cluster: &Cluster, from: &str, to: &str) -> Connection {
        let mut command = cluster.kubectl.command();
        command.args(["exec", "-i", from, "--", "sh", "-c", &format!("nc {to}; echo ended")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Connection { child, stdin, stdout }
    }

    /// What arrives next.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn say(&mut self, word: &str) -> String {
        writeln!(self.stdin, "{word}").unwrap();
        self.line()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn connections_to_a_pod_that_is_gone_end_at_once_also_when_its_host_cannot_say_so() {
    let cluster = Cluster::of_three().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&who("who", json!({}))).unwrap();
    kubectl.apply(&service("front", json!({}))).unwrap();
    cluster.settled("who", 3).unwrap();
    let far = PODS.into_iter().find(|pod| cluster.host_of(pod).unwrap().name == "node3").unwrap();
    let near = PODS.into_iter().find(|pod| *pod != far).unwrap();

    // Until there is one to each.
    let mut connections: Vec<(String, Connection)> = Vec::new();
    wait::until_true("connections to all pods", SOON, || {
        let mut connection = Connection::open(&cluster, near, "front 7");
        let whom = connection.line();
        if !connections.iter().any(|(to, _)| *to == whom) {
            connections.push((whom, connection));
        }
        Ok(connections.len() == 3)
    })
    .unwrap();
    for (to, connection) in &mut connections {
        assert_eq!(connection.say("hello"), "hello", "by {to}");
    }

    // Its host is silent: nobody there can end the connection.
    let host = cluster.host_named("node3").unwrap();
    cluster.fabric.cut(host).unwrap();
    kubectl.run(&format!("delete pod {far} --force --grace-period=0 --wait=false")).unwrap();
    let begun = Instant::now();
    for (to, connection) in &mut connections {
        if to == far {
            // The first word is answered with a refusal, or the connection has ended before it was said.
            let _ = writeln!(connection.stdin, "anybody there?");
            assert_eq!(connection.line(), "ended");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    for (to, connection) in connections.iter_mut().filter(|(to, _)| to != far) {
        assert_eq!(connection.say("still there?"), "still there?", "by {to}");
    }
    let left: Vec<&str> = PODS.into_iter().filter(|pod| *pod != far).collect();
    assert_eq!(all_of(&cluster, near, "front"), set(&left), "nobody is sent to the host that is gone");

    // The name comes back on it, and only there: it may be running still.
    assert_eq!(cluster.kubectl.field(&format!("pod {far}"), ".status.podIP").unwrap_or_default(), "");
    cluster.fabric.mend(host).unwrap();
    cluster.settled("who", 3).unwrap();
    assert_eq!(all_of(&cluster, near, "front"), set(&PODS));
}
