//! What operators do to a cluster that runs: certificates that renew, hosts that leave and come back, backups. Pods
//! notice none of it.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_tests::cluster::Cluster;
use berth_tests::scenario::{SOON, STAY, pod, set};
use berth_tests::{image, tools, wait};
use nix::sys::signal::Signal;

/// A pod that stays on a host.
fn pinned(name: &str, host: &str) -> String {
    pod(name, STAY, "", &format!("  nodeName: {host}"))
}

/// Adds a host with the busybox image; waits until it is Ready.
fn add(cluster: &mut Cluster, name: &str) {
    cluster.add_host(name, 0).unwrap();
    let archive = image::busybox(&berth_tests::cluster::images_dir().unwrap()).unwrap();
    cluster.host_named(name).unwrap().import(&archive).unwrap();
    cluster.becomes(&format!("node {name}"), READY, "True").unwrap();
}

/// A second host with the pod `db`; answers the id of its container.
fn with_db_on_node2() -> (Cluster, String) {
    let mut cluster = Cluster::for_test().unwrap();
    add(&mut cluster, "node2");
    cluster.kubectl.apply(&pinned("db", "node2")).unwrap();
    cluster.ready("db").unwrap();
    let container = cluster.container_id("db").unwrap();
    (cluster, container)
}

const READY: &str = ".status.conditions[?(@.type==\"Ready\")].status";

fn log(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

fn logged(file: PathBuf, text: &str) {
    wait::until_true(&format!("{text:?} in {}", file.display()), SOON, || Ok(log(&file).contains(text)))
        .unwrap();
}

fn configure(cluster: &Cluster, line: &str) {
    let path = cluster.dir.join("controller.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, format!("{line}\n{text}")).unwrap();
}

#[test]
fn certificates_renew_themselves_under_sessions_that_go_on() {
    let mut cluster = Cluster::for_test().unwrap();
    configure(&cluster, "certificate-life = '12s'");
    cluster.signal_controller(Signal::SIGTERM).unwrap();
    for file in ["server.pem", "admin.pem"] {
        std::fs::remove_file(cluster.dir.join("controller/pki").join(file)).unwrap();
    }
    cluster.start_controller().unwrap();
    add(&mut cluster, "node2");
    cluster.kubectl.apply(&pinned("db", "node2")).unwrap();
    cluster.ready("db").unwrap();

    let certificate = cluster.host_named("node2").unwrap().data_dir().join("pki/agent.pem");
    let server = cluster.dir.join("controller/pki/server.pem");
    let before = [&certificate, &server, &cluster.kubectl.kubeconfig].map(|path| log(path));
    let sessions = || log(&cluster.dir.join("controller.log")).matches("session opened").count();
    let opened = sessions();
    // Longer than any of them is good for.
    std::thread::sleep(Duration::from_secs(13));
    let after = [&certificate, &server, &cluster.kubectl.kubeconfig].map(|path| log(path));
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before, after);
    }
    assert_eq!(sessions(), opened, "no session ended");
    // New connections, of clients and of the host's agent, go by the new ones.
    assert_eq!(cluster.sh("db", "hostname").unwrap(), "db");
    cluster.host_named("node2").unwrap().signal("agent", Signal::SIGKILL).unwrap();
    cluster.start_agent(1).unwrap();
    wait::until_true("a new session", SOON, || Ok(sessions() > opened)).unwrap();
    assert_eq!(cluster.kubectl.field("pod db", ".status.containerStatuses[0].restartCount").unwrap(), "0");
}

#[test]
fn a_reload_takes_over_what_it_can_and_ends_nothing() {
    let cluster = Cluster::for_test().unwrap();
    let shown = || {
        let output = cluster.dir.join("controller/pki/server.pem");
        log(&output)
    };
    let before = shown();
    let text = log(&cluster.dir.join("controller.toml"));
    std::fs::write(
        cluster.dir.join("controller.toml"),
        text.replace("advertise = [", "advertise = [\"berth.example\", "),
    )
    .unwrap();
    cluster.signal_controller(Signal::SIGHUP).unwrap();
    wait::until_true("a new certificate", SOON, || Ok(shown() != before)).unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.run("get nodes --tls-server-name=berth.example").unwrap();
    // A claim gets its volume as soon as its provisioner is mapped; a range stays until the restart.
    kubectl
        .apply(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: later}\nprovisioner: later.example\n\
             ---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: waits}\n\
             spec: {storageClassName: later, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n",
        )
        .unwrap();
    cluster.event("waits", "ExternalProvisioning", "later.example").unwrap();
    let path = cluster.dir.join("controller.toml");
    let mapped = "\n[[provisioner]]\nname = 'later.example'\nserver = 'nas'\nshare = '/export'\n";
    std::fs::write(&path, format!("cluster-domain = 'other.example'\n{}{mapped}", log(&path))).unwrap();
    cluster.signal_controller(Signal::SIGHUP).unwrap();
    cluster.becomes("pvc waits", ".status.phase", "Bound").unwrap();
    logged(cluster.dir.join("controller.log"), "cluster-domain");
    // What is wrong is told, and what was in force stays in force.
    configure(&cluster, "listen = 'nonsense'");
    cluster.signal_controller(Signal::SIGHUP).unwrap();
    logged(cluster.dir.join("controller.log"), "nothing was taken over");
    kubectl.run("get nodes --tls-server-name=berth.example").unwrap();
    let host = cluster.host().unwrap();
    std::fs::write(host.dir.join("agent.toml"), "max-pods = 7\nsnapshotter = 'native'\n").unwrap();
    host.signal("agent", Signal::SIGHUP).unwrap();
    logged(host.dir.join("agent.log"), "were read again");
    cluster.becomes("nodes", ".items[0].status.capacity.pods", "7").unwrap();
    // What cannot be taken over while it runs is named.
    let named = |file: PathBuf, setting: &str| {
        let told = |line: &str| line.contains(setting) && line.contains("counts from the next start on");
        assert!(log(&file).lines().any(told), "{setting} in {}", file.display());
    };
    named(host.dir.join("agent.log"), "snapshotter");
    let controller = log(&cluster.dir.join("controller.log"));
    assert_eq!(controller.matches("session opened").count(), 1, "{controller}");
}

#[test]
fn a_deleted_nodes_host_is_refused_until_it_has_a_new_token_and_its_pods_run_on() {
    let (cluster, container) = with_db_on_node2();
    let host = cluster.host_named("node2").unwrap();
    let agent_log = host.dir.join("agent.log");

    cluster.kubectl.run("delete node node2").unwrap();
    logged(agent_log.clone(), "berth-controller token create --node node2");
    cluster.gone("node node2").unwrap();
    // Nor after a restart of the agent.
    host.signal("agent", Signal::SIGKILL).unwrap();
    std::fs::remove_file(&agent_log).unwrap();
    cluster.start_agent(1).unwrap();
    logged(agent_log, "was deleted, and its certificate revoked");
    assert!(cluster.kubectl.run("get node node2").is_err());
    let id = container.replace("containerd://", "");
    assert!(host.ctr(&["task", "ls"]).unwrap().lines().any(|l| l.contains(&id) && l.contains("RUNNING")));

    std::fs::write(host.dir.join("token"), cluster.token("node2").unwrap()).unwrap();
    cluster.becomes("node node2", READY, "True").unwrap();
    cluster.ready("db").unwrap();
    assert_eq!(cluster.container_id("db").unwrap(), container);
    assert_eq!(cluster.sh("db", "hostname").unwrap(), "db");
}

#[test]
fn a_hosts_key_is_changed_under_its_running_pods() {
    let (cluster, container) = with_db_on_node2();
    let host = cluster.host_named("node2").unwrap();
    let pki = host.data_dir().join("pki");
    let before = log(&pki.join("agent.key"));
    let sessions = || log(&cluster.dir.join("controller.log")).matches("session opened").count();
    let opened = sessions();
    // As docs/operate.md says.
    std::fs::write(host.dir.join("token"), cluster.token("node2").unwrap()).unwrap();
    host.signal("agent", Signal::SIGTERM).unwrap();
    for file in ["agent.key", "agent.pem"] {
        std::fs::remove_file(pki.join(file)).unwrap();
    }
    cluster.start_agent(1).unwrap();
    wait::until_true("a session with the new key", SOON, || Ok(sessions() > opened)).unwrap();
    assert_ne!(log(&pki.join("agent.key")), before);
    assert_eq!(cluster.container_id("db").unwrap(), container);
    assert_eq!(cluster.kubectl.field("pod db", ".status.containerStatuses[0].restartCount").unwrap(), "0");
    assert_eq!(cluster.sh("db", "hostname").unwrap(), "db");
}

fn controller(args: &[&str], data_dir: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(tools::own("berth-controller")?);
    command.args(args).arg("--data-dir").arg(data_dir);
    tools::output(command)
}

#[test]
fn a_restored_controller_adopts_what_runs_and_starts_nothing_before_every_host_has_spoken() {
    let mut cluster = Cluster::for_test().unwrap();
    add(&mut cluster, "node2");
    let data_dir = cluster.dir.join("controller");
    let backup = cluster.dir.join("backup").display().to_string();
    // node2 has a pod of its own, the set is on node1.
    cluster.kubectl.run("cordon node2").unwrap();
    cluster.kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.kubectl.apply(&pinned("there", "node2")).unwrap();
    cluster.kubectl.apply(&pinned("ends", "node1")).unwrap();
    cluster.settled("web", 2).unwrap();
    for pod in ["there", "ends"] {
        cluster.ready(pod).unwrap();
    }
    controller(&["backup", &backup], &data_dir).unwrap();

    // The world goes on: a pod is made, another is deleted.
    cluster.kubectl.run("scale sts web --replicas=3").unwrap();
    cluster.settled("web", 3).unwrap();
    cluster.kubectl.run("delete pod ends").unwrap();
    let pods = ["web-0", "web-1", "there"];
    let before = pods.map(|pod| cluster.container_id(pod).unwrap());
    let made_since = cluster.container_id("web-2").unwrap().replace("containerd://", "");
    cluster.host_named("node2").unwrap().signal("agent", Signal::SIGKILL).unwrap();
    cluster.signal_controller(Signal::SIGKILL).unwrap();
    let refused = controller(&["restore", &backup], &data_dir).unwrap_err().to_string();
    assert!(refused.contains("is not empty"), "{refused}");
    std::fs::remove_dir_all(&data_dir).unwrap();
    let told = controller(&["restore", &backup], &data_dir).unwrap();
    assert!(told.contains("node1, node2"), "{told}");
    cluster.start_controller().unwrap();

    // One host has spoken: what runs there is adopted, what the store knows nothing of ends.
    cluster.settled("web", 2).unwrap();
    wait::until_true("the end of what was made since", SOON, || {
        let tasks = cluster.host()?.ctr(&["task", "ls"])?;
        Ok(!tasks.contains(&made_since))
    })
    .unwrap();
    cluster.becomes("pod ends", ".status.reason", "IdentityLost").unwrap();
    // The other has not: nothing new starts anywhere.
    cluster.kubectl.run("delete pod ends").unwrap();
    cluster.kubectl.apply(&pinned("ends", "node1")).unwrap();
    cluster.event("ends", "FailedScheduling", "waiting for the inventory of node2").unwrap();
    cluster.start_agent(1).unwrap();
    cluster.ready("ends").unwrap();
    cluster.ready("there").unwrap();
    assert_eq!(pods.map(|pod| cluster.container_id(pod).unwrap()), before, "nothing was restarted");
    cluster.kubectl.run("scale sts web --replicas=3").unwrap();
    cluster.settled("web", 3).unwrap();
    // A backup of a controller that does not run.
    cluster.signal_controller(Signal::SIGTERM).unwrap();
    std::fs::File::create(&backup).unwrap().write_all(b"old").unwrap();
    controller(&["backup", &backup], &data_dir).unwrap();
    cluster.start_controller().unwrap();
    cluster.settled("web", 3).unwrap();
}
