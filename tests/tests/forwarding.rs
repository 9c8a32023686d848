//! Names of the world and large answers, asked for by a pod: the resolver of its host is a real name server on another
//! host. (That C libraries come again over TCP by themselves is shown in the agent's own tests.)

#![allow(clippy::unwrap_used)]

use berth_tests::cluster::{self, Cluster};
use berth_tests::names::{ADDRESS, Asker, TEXT};
use berth_tests::scenario::{SOON, STAY, pod};
use berth_tests::{fabric, image, wait};
use nix::sys::signal::Signal;

/// dnsmasq on its host's network, which says what it is asked: `one.example`, `other.example`, and `big.example`, whose
/// texts take more than two thousand bytes.
fn name_server() -> String {
    let text = "x".repeat(200);
    let texts = vec![text; 10].join(",");
    let address = fabric::address(1, 2);
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: world}}
spec:
  hostNetwork: true
  nodeName: node3
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: dnsmasq:2
    imagePullPolicy: Never
    command: [dnsmasq, --keep-in-foreground, --user=root, --group=root, --no-hosts, --no-resolv, --no-daemon]
    args:
    - --log-queries
    - --local-ttl=60
    - --local=/example/
    - --listen-address={address}
    - --bind-interfaces
    - --host-record=one.example,192.0.2.1
    - --host-record=other.example,192.0.2.2
    - "--txt-record=big.example,{texts}"
"#
    )
}

/// Sixty addresses behind one name, which somebody keeps by hand.
fn many() -> String {
    let ips: Vec<String> = (1..=60).map(|n| format!("{{ip: 198.51.100.{n}}}")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: many}}\nspec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: many}}\nsubsets: [{{addresses: [{}], ports: [{{port: 80}}]}}]\n",
        ips.join(", ")
    )
}

#[test]
fn names_of_the_world_are_forwarded_once_and_large_answers_come_over_tcp_also_without_the_controller() {
    let cluster = Cluster::of_three().unwrap();
    let node3 = cluster.host_named("node3").unwrap();
    node3.import(&image::dnsmasq(&cluster::images_dir().unwrap()).unwrap()).unwrap();
    cluster.kubectl.apply(&name_server()).unwrap();
    cluster.kubectl.apply(&many()).unwrap();
    cluster
        .kubectl
        .apply(&pod("asker", STAY, "", "  nodeSelector: {kubernetes.io/hostname: node1}"))
        .unwrap();
    for pod in ["world", "asker"] {
        cluster.ready(pod).unwrap();
    }
    // The one resolver of the asker's host from here on.
    let node1 = cluster.host_named("node1").unwrap();
    let resolv = node1.dir.join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {}\n", fabric::address(1, 2))).unwrap();
    node1.run("mount", &["--bind", resolv.to_str().unwrap(), "/etc/resolv.conf"]).unwrap();

    let asker = Asker::within(&cluster, "asker").unwrap();
    let finds = |name: &str, address: &str| {
        wait::until_true(&format!("{name} is {address}"), SOON, || {
            Ok(asker.ask(name).is_ok_and(|found| found.is_some_and(|ip| ip.to_string() == address)))
        })
        .unwrap();
    };
    // How often the name server was asked for it.
    let asked = |name: &str| {
        let log = cluster.kubectl.run("logs world").unwrap();
        log.lines().filter(|line| line.contains("query[") && line.contains(&format!(" {name} "))).count()
    };
    finds("one.example", "192.0.2.1");
    let before = asked("one.example");
    assert!(before > 0, "{}", cluster.kubectl.run("logs world").unwrap());
    for _ in 0..5 {
        finds("one.example", "192.0.2.1");
        assert_eq!(asker.count("one.example", ADDRESS, true).unwrap().0, 1, "over TCP as well");
    }
    assert_eq!(asked("one.example"), before, "remembered");
    assert!(cluster.sh("asker", "nslookup one.example").unwrap().contains("192.0.2.1"));
    // What is not there, is not; and the world is not asked for the cluster's own names.
    assert_eq!(asker.ask("none.example").unwrap(), None);
    assert_eq!(asker.ask("none.default.svc.cluster.local").unwrap(), None);
    assert_eq!(asked("none.default.svc.cluster.local"), 0);

    let large = |when: &str| {
        let many = "many.default.svc.cluster.local";
        for (name, kind, whole) in [("big.example", TEXT, 1), (many, ADDRESS, 60)] {
            let (_, more, length) = asker.count(name, kind, false).unwrap();
            assert!(more && length <= 512, "{name}, {when}: {length} bytes");
            let (answers, more, length) = asker.count(name, kind, true).unwrap();
            assert!(answers == whole && !more && length > 512, "{name}, {when}: {answers} in {length} bytes");
        }
    };
    wait::until_true("the Endpoints are known", SOON, || {
        Ok(asker.count("many.default.svc.cluster.local", ADDRESS, true)?.0 == 60)
    })
    .unwrap();
    large("with the controller");

    cluster.signal_controller(Signal::SIGKILL).unwrap();
    large("without the controller");
    // What nobody has asked for yet goes its way, too.
    finds("other.example", "192.0.2.2");
    assert_eq!(asker.count("one.example", ADDRESS, true).unwrap().0, 1);
}
