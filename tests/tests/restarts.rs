//! When agent, controller or containerd die, pods run on; nothing is restarted, no exit is missed.

use std::time::Duration;

use berth_tests::cluster::Cluster;
use berth_tests::scenario::{STAY, pod, set};
use berth_tests::wait;
use nix::sys::signal::Signal;

#[test]
fn a_killed_agent_finds_its_pods_running_and_learns_what_happened_meanwhile() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();
    kubectl
        .apply(&pod(
            "once",
            "while ! test -e /tmp/go; do sleep 0.1; done; exit 7",
            "",
            "  restartPolicy: Never",
        ))
        .unwrap();
    kubectl.apply(&pod("goner", STAY, "", "")).unwrap();
    cluster.ready("once").unwrap();
    cluster.ready("goner").unwrap();
    let before: Vec<String> = ["web-0", "web-1"].iter().map(|p| cluster.container_id(p).unwrap()).collect();
    let host = cluster.host().unwrap();

    host.signal("agent", Signal::SIGKILL).unwrap();
    // Meanwhile one container ends, and one pod is deleted. (No exec without an agent: containerd does it.)
    let id = cluster.container_id("once").unwrap().replace("containerd://", "");
    host.ctr(&["task", "exec", "--exec-id", "go", &id, "touch", "/tmp/go"]).unwrap();
    wait::until_true("the end of the task", Duration::from_secs(20), || {
        let tasks = host.ctr(&["task", "ls"])?;
        Ok(tasks.lines().any(|l| l.contains(&id) && l.contains("STOPPED")))
    })
    .unwrap();
    kubectl.run("delete pod goner --wait=false").unwrap();

    cluster.start_agent(0).unwrap();
    cluster.becomes("pod once", ".status.containerStatuses[0].state.terminated.exitCode", "7").unwrap();
    cluster.becomes("pod once", ".status.phase", "Failed").unwrap();
    cluster.gone("pod/goner").unwrap();
    cluster.settled("web", 2).unwrap();
    let after: Vec<String> = ["web-0", "web-1"].iter().map(|p| cluster.container_id(p).unwrap()).collect();
    assert_eq!(before, after);
    assert_eq!(kubectl.field("pod web-0", ".status.containerStatuses[0].restartCount").unwrap(), "0");
    // And it is in charge again.
    assert_eq!(cluster.sh("web-1", "hostname").unwrap(), "web-1");
    kubectl.run("delete pod web-1").unwrap();
    cluster.settled("web", 2).unwrap();
}

#[test]
fn a_killed_controller_comes_back_to_what_runs() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();
    let before: Vec<String> = ["web-0", "web-1"].iter().map(|p| cluster.container_id(p).unwrap()).collect();
    let uid = cluster.uid("pod web-0").unwrap();
    cluster.signal_controller(Signal::SIGKILL).unwrap();
    cluster.start_controller().unwrap();
    assert_eq!(cluster.uid("pod web-0").unwrap(), uid);
    // The agent is back in session: exec works, and so does everything else.
    wait::until_true("the agent's new session", Duration::from_secs(60), || {
        Ok(cluster.sh("web-0", "hostname").is_ok_and(|h| h == "web-0"))
    })
    .unwrap();
    let after: Vec<String> = ["web-0", "web-1"].iter().map(|p| cluster.container_id(p).unwrap()).collect();
    assert_eq!(before, after);
    kubectl.run("scale sts web --replicas=3").unwrap();
    cluster.settled("web", 3).unwrap();
}

#[test]
fn a_killed_containerd_comes_back_and_no_container_was_restarted() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();
    let before: Vec<String> = ["web-0", "web-1"].iter().map(|p| cluster.container_id(p).unwrap()).collect();
    let host = cluster.host().unwrap();
    host.signal("containerd", Signal::SIGKILL).unwrap();
    host.start_containerd().unwrap();
    wait::until_true("exec after containerd's return", Duration::from_secs(60), || {
        Ok(cluster.sh("web-0", "hostname").is_ok_and(|h| h == "web-0"))
    })
    .unwrap();
    kubectl.run("scale sts web --replicas=3").unwrap();
    cluster.settled("web", 3).unwrap();
    let after: Vec<String> = ["web-0", "web-1"].iter().map(|p| cluster.container_id(p).unwrap()).collect();
    assert_eq!(before, after);
    // An exit after the restart is seen.
    kubectl.run("delete pod web-0").unwrap();
    cluster.settled("web", 3).unwrap();
}
