//! What the host's own people and units ask the daemons: whether a pod is ready, and whether all is well here.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Duration;

use berth_tests::cluster::Cluster;
use berth_tests::kubectl::finish;
use berth_tests::scenario::{STAY, pod};
use berth_tests::{tools, wait};
use nix::sys::signal::Signal;

/// `berth-agent` on the cluster's host, ready to be started.
fn agent(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = cluster.host().unwrap().command(&tools::own("berth-agent").unwrap()).unwrap();
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_unit_waits_for_a_pod_also_without_controller_and_over_a_restart_of_the_agent() {
    let cluster = Cluster::for_test().unwrap();
    let host = cluster.host().unwrap();
    let run_dir = host.run_dir().display().to_string();
    let wait_ready = |pod: &str, timeout: &str| {
        agent(&cluster, &["wait-ready", pod, "--timeout", timeout, "--run-dir", &run_dir]).spawn().unwrap()
    };
    let ended = |child| finish(child, "wait-ready", Duration::from_secs(60)).unwrap();

    let out = ended(wait_ready("default/db", "100ms"));
    assert!(!out.ok && out.stderr.contains("not within 100ms: it is not on this host"), "{out:?}");
    assert!(ended(wait_ready("nonsense", "1s")).stderr.contains("is not NAMESPACE/POD"));

    let mut early = wait_ready("default/db", "60s");
    let probe = "    readinessProbe: {exec: {command: [test, -e, /tmp/go]}, periodSeconds: 1}";
    cluster.kubectl.apply(&pod("db", STAY, probe, "")).unwrap();
    cluster.becomes("pod db", ".status.phase", "Running").unwrap();
    let out = ended(wait_ready("default/db", "100ms"));
    assert!(out.stderr.contains("it is Running, and not Ready"), "{out:?}");
    assert!(early.try_wait().unwrap().is_none(), "it waits on");
    cluster.sh("db", "touch /tmp/go").unwrap();
    assert!(ended(early).ok);

    // The controller is away, and the agent starts again: what this host knows is enough.
    cluster.signal_controller(Signal::SIGKILL).unwrap();
    host.signal("agent", Signal::SIGKILL).unwrap();
    let mut waiting = wait_ready("default/db", "60s");
    std::thread::sleep(Duration::from_millis(100));
    assert!(waiting.try_wait().unwrap().is_none(), "there is no agent");
    cluster.start_agent(0).unwrap();
    let out = ended(waiting);
    assert!(out.ok && out.stderr.contains("the agent does not run"), "{out:?}");
}

#[test]
fn check_says_what_a_host_lacks_and_how_to_mend_it() {
    let cluster = Cluster::for_test().unwrap();
    let host = cluster.host().unwrap();
    let data_dir = host.data_dir().display().to_string();
    let socket = host.containerd_socket().display().to_string();
    let run_dir = host.run_dir().display().to_string();
    let controller = std::fs::read_to_string(host.dir.join("controller")).unwrap();
    let check = |containerd: &str, controller: &str| {
        let args = ["check", "--controller", controller, "--node-name", "node1", "--data-dir", &data_dir];
        let more = ["--run-dir", &run_dir, "--containerd", containerd];
        let child = agent(&cluster, &[&args[..], &more[..]].concat()).spawn().unwrap();
        finish(child, "check", Duration::from_secs(60)).unwrap()
    };
    wait::until_true("joined", Duration::from_secs(60), || {
        Ok(host.data_dir().join("pki/agent.pem").exists())
    })
    .unwrap();
    let well = check(&socket, &controller);
    assert!(well.ok, "{}", well.stdout);
    for fine in [
        "containerd: 1",
        "nftables: nft works",
        "ports: an agent runs here",
        "it answers, and knows",
        "agrees with the controller's",
    ] {
        assert!(well.stdout.contains(fine), "{fine}: {}", well.stdout);
    }
    // One that has yet to join asks the controller that its token knows.
    let token = host.dir.join("token").display().to_string();
    let (new, run) =
        (host.dir.join("new").display().to_string(), host.dir.join("new-run").display().to_string());
    let args = ["check", "--controller", &controller, "--token-file", &token, "--data-dir", &new];
    let more = ["--run-dir", &run, "--containerd", &socket];
    let child = agent(&cluster, &[&args[..], &more[..]].concat()).spawn().unwrap();
    let new = finish(child, "check", Duration::from_secs(60)).unwrap();
    for fine in ["this host joins at its start", "agrees with the controller's"] {
        assert!(new.stdout.contains(fine), "{fine}: {}", new.stdout);
    }
    let lacking = check("/no/such.sock", "127.0.0.1:1");
    assert!(!lacking.ok);
    for fault in [
        "WRONG    containerd: does not answer on /no/such.sock",
        "apt-get install containerd",
        "127.0.0.1:1:",
    ] {
        assert!(lacking.stdout.contains(fault), "{fault}: {}", lacking.stdout);
    }

    let mut command = Command::new(tools::own("berth-controller").unwrap());
    command.args(["check", "--data-dir"]).arg(cluster.dir.join("controller"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = finish(command.spawn().unwrap(), "check", Duration::from_secs(60)).unwrap();
    assert!(out.ok, "{}", out.stdout);
    assert!(out.stdout.contains("a controller runs here") && out.stdout.contains("server.pem is good for"));
    cluster.signal_controller(Signal::SIGKILL).unwrap();
    std::fs::write(cluster.dir.join("controller/pki/server.pem"), "x").unwrap();
    let mut command = Command::new(tools::own("berth-controller").unwrap());
    command.args(["check", "--pod-cidr", "127.0.0.0/8", "--data-dir"]).arg(cluster.dir.join("controller"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = finish(command.spawn().unwrap(), "check", Duration::from_secs(60)).unwrap();
    assert!(!out.ok);
    for fault in ["127.0.0.1 of lo would be mistaken", "server.pem: there is no private key in it"] {
        assert!(out.stdout.contains(fault), "{fault}: {}", out.stdout);
    }
}
