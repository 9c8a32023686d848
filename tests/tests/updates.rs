//! A set's template changes: what people see of updates, canaries, roll-backs and maintenance, on real containerd.

#![allow(clippy::unwrap_used)]

use berth_tests::cluster::Cluster;
use berth_tests::scenario::{SOON, set};
use berth_tests::wait;

const IMAGES: &str = "jsonpath={.items[*].spec.containers[0].image}";

/// A set of busybox pods without claims, so that they may run on any host.
fn roaming(name: &str, replicas: usize) -> String {
    let manifest = set(name, replicas, "");
    let (before, _) = manifest.split_once("        volumeMounts").unwrap();
    before.to_owned()
}

fn images(cluster: &Cluster) -> String {
    cluster.kubectl.args(&["get", "pods", "-o", IMAGES]).unwrap()
}

fn rolled_out(cluster: &Cluster) {
    cluster.kubectl.run("rollout status sts/web --timeout=60s").unwrap();
}

fn partition(cluster: &Cluster, ordinal: u32) {
    let patch = format!(r#"{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"partition":{ordinal}}}}}}}}}"#);
    cluster.kubectl.args(&["patch", "sts", "web", "-p", &patch]).unwrap();
}

/// A revision whose pods never become ready, and waits until its first one runs.
fn broken(cluster: &Cluster, file: &str) {
    let probe = serde_json::json!({"exec": {"command": ["test", "-e", file]}, "periodSeconds": 1});
    let patch = serde_json::json!({"spec": {"template": {"spec": {"containers": [
        {"name": "main", "readinessProbe": probe},
    ]}}}});
    cluster.kubectl.args(&["patch", "sts", "web", "-p", &patch.to_string()]).unwrap();
    cluster.becomes("pod web-1", ".spec.containers[0].readinessProbe.exec.command[2]", file).unwrap();
    cluster.becomes("pod web-1", ".status.containerStatuses[0].started", "true").unwrap();
    cluster.event("web-1", "Unhealthy", "Readiness probe failed").unwrap();
}

fn container_ids(cluster: &Cluster, pods: &[&str]) -> Vec<String> {
    pods.iter().map(|pod| cluster.container_id(pod).unwrap()).collect()
}

#[test]
fn an_update_goes_from_the_highest_down_each_ready_before_the_next_and_undo_goes_back() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 3, "")).unwrap();
    cluster.settled("web", 3).unwrap();
    cluster.sh("web-1", "echo kept > /data/x").unwrap();

    kubectl.run("set image sts/web main=busybox:2").unwrap();
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox:2 busybox:2 busybox:2");
    for (first, then) in [("web-2", "web-1"), ("web-1", "web-0")] {
        let ready = ".status.conditions[?(@.type==\"Ready\")].lastTransitionTime";
        let ready = kubectl.field(&format!("pod {first}"), ready).unwrap();
        let made = kubectl.field(&format!("pod {then}"), ".metadata.creationTimestamp").unwrap();
        assert!(ready <= made, "{first} Ready at {ready}, {then} made at {made}");
    }
    assert_eq!(cluster.sh("web-1", "cat /data/x").unwrap(), "kept");
    let status = kubectl.json("get sts web").unwrap()["status"].clone();
    for field in ["replicas", "readyReplicas", "updatedReplicas", "currentReplicas", "availableReplicas"] {
        assert_eq!(status[field], 3, "{field}: {status}");
    }
    assert_eq!(status["currentRevision"], status["updateRevision"]);

    kubectl.run("rollout undo sts/web").unwrap();
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox busybox busybox");
    assert_eq!(kubectl.run("get controllerrevisions -o name").unwrap().lines().count(), 2);
    kubectl.run("rollout undo sts/web --to-revision=2").unwrap();
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox:2 busybox:2 busybox:2");
    assert_eq!(cluster.sh("web-1", "cat /data/x").unwrap(), "kept");
}

#[test]
fn a_canary_is_what_the_partition_lets_through_also_when_pods_die_and_phases_widen_it() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 3, "")).unwrap();
    cluster.settled("web", 3).unwrap();
    partition(&cluster, 2);
    kubectl.run("set image sts/web main=busybox:2").unwrap();
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox busybox busybox:2");

    // Whoever dies comes back at the revision of its side.
    for pod in ["web-0", "web-2"] {
        let before = cluster.uid(&format!("pod {pod}")).unwrap();
        kubectl.run(&format!("delete pod {pod}")).unwrap();
        cluster.settled("web", 3).unwrap();
        assert_ne!(cluster.uid(&format!("pod {pod}")).unwrap(), before);
    }
    assert_eq!(images(&cluster), "busybox busybox busybox:2");
    let status = kubectl.json("get sts web").unwrap()["status"].clone();
    assert_eq!((&status["updatedReplicas"], &status["currentReplicas"]), (&1.into(), &2.into()), "{status}");
    assert_ne!(status["currentRevision"], status["updateRevision"]);

    let lowest = cluster.container_id("web-0").unwrap();
    partition(&cluster, 1);
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox busybox:2 busybox:2");
    assert_eq!(cluster.container_id("web-0").unwrap(), lowest);
    partition(&cluster, 0);
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox:2 busybox:2 busybox:2");
}

#[test]
fn a_broken_revision_stops_at_its_first_pod_and_a_change_of_the_template_heals_it() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();
    let lowest = cluster.container_id("web-0").unwrap();

    broken(&cluster, "/data/never");
    assert!(kubectl.run("rollout status sts/web --timeout=1s").is_err());
    // Forward, to another broken one: it takes the place of the first, and goes no further either.
    broken(&cluster, "/data/neither");
    assert_eq!(cluster.container_id("web-0").unwrap(), lowest);
    // Back: nobody has to delete a pod.
    kubectl.run("rollout undo sts/web --to-revision=1").unwrap();
    rolled_out(&cluster);
    cluster.settled("web", 2).unwrap();
    assert_eq!(cluster.container_id("web-0").unwrap(), lowest, "a pod that was never updated runs on");
}

#[test]
fn an_image_that_cannot_be_had_takes_no_pod_down() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();
    let before = container_ids(&cluster, &["web-0", "web-1"]);
    kubectl.run("set image sts/web main=localhost:1/no/such:1").unwrap();
    cluster.event("web", "FailedPrefetch", "localhost:1/no/such:1").unwrap();
    cluster.event("web", "FailedPrefetch", "node1").unwrap();
    cluster.settled("web", 2).unwrap();
    assert_eq!(container_ids(&cluster, &["web-0", "web-1"]), before);
    // A template changed meanwhile does not wait for it.
    kubectl.run("set image sts/web main=busybox:2").unwrap();
    rolled_out(&cluster);
    assert_eq!(images(&cluster), "busybox:2 busybox:2");
}

/// A set whose roll-outs have a deadline of so many seconds.
fn with_deadline(replicas: usize, annotations: &str) -> String {
    let manifest = roaming("web", replicas);
    manifest.replacen("name: web}", &format!("name: web, annotations: {{{annotations}}}}}"), 1)
}

/// Makes a revision whose pods never become ready; does not wait for them.
fn never_ready(cluster: &Cluster) {
    let probe = serde_json::json!({"exec": {"command": ["false"]}, "periodSeconds": 1});
    let containers = serde_json::json!([{"name": "main", "readinessProbe": probe}]);
    let patch = serde_json::json!({"spec": {"template": {"spec": {"containers": containers}}}});
    cluster.kubectl.args(&["patch", "sts", "web", "-p", &patch.to_string()]).unwrap();
}

/// The status, reason and message of a set's condition.
fn condition(cluster: &Cluster, kind: &str) -> (String, String, String) {
    let field = |field: &str| {
        let path = format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
        cluster.kubectl.field("sts web", &path).unwrap()
    };
    (field("status"), field("reason"), field("message"))
}

#[test]
fn a_revision_that_misses_its_deadline_is_left_by_itself_and_not_tried_again() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let annotations = r#"berth.dev/progress-deadline-seconds: "2", berth.dev/auto-rollback: "true""#;
    kubectl.apply(&with_deadline(2, annotations)).unwrap();
    kubectl.run("wait sts/web --for=condition=Progressing=true --timeout=60s").unwrap();
    cluster.settled("web", 2).unwrap();
    let revision = |field: &str| kubectl.field("sts web", &format!(".status.{field}Revision")).unwrap();
    let good = revision("update");
    cluster.becomes("sts web", ".status.currentRevision", &good).unwrap();
    let lowest = cluster.container_id("web-0").unwrap();

    never_ready(&cluster);
    kubectl.run("wait sts/web --for=condition=Progressing=false --timeout=60s").unwrap();
    let bad = revision("update");
    assert_ne!(bad, good);
    let (_, reason, message) = condition(&cluster, "Progressing");
    assert_eq!(reason, "ProgressDeadlineExceeded");
    assert!(message.contains("web-1") && message.contains("not Ready in 2 s"), "{message}");
    kubectl.run("wait sts/web --for=condition=RevisionRejected --timeout=60s").unwrap();
    cluster.event("web", "RevisionRejected", &bad).unwrap();
    cluster.becomes("sts web", ".metadata.annotations.berth\\.dev/rejected-revision", &bad).unwrap();

    // The pods are back; the one that was never updated never noticed.
    let at = |pod: &str| kubectl.field(&format!("pod {pod}"), ".metadata.labels.controller-revision-hash");
    cluster.becomes("pod web-1", ".metadata.labels.controller-revision-hash", &good).unwrap();
    cluster.settled("web", 2).unwrap();
    assert_eq!(cluster.container_id("web-0").unwrap(), lowest);
    let wide = kubectl.run("get sts web -o wide").unwrap();
    assert!(wide.contains("REJECTED") && wide.contains(&bad), "{wide}");
    // What was applied stays as it was applied.
    let probe = ".spec.template.spec.containers[0].readinessProbe.exec.command[0]";
    assert_eq!(kubectl.field("sts web", probe).unwrap(), "false");

    // Nothing that happens to pods or controller makes it try again.
    cluster.signal_controller(nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.start_controller().unwrap();
    kubectl.run("delete pod web-1").unwrap();
    cluster.settled("web", 2).unwrap();
    assert_eq!(at("web-1").unwrap(), good);
    assert_eq!(condition(&cluster, "RevisionRejected").0, "True");

    // Another template is another matter.
    kubectl.run("rollout undo sts/web").unwrap();
    kubectl.run("set image sts/web main=busybox:2").unwrap();
    rolled_out(&cluster);
    kubectl.run("wait sts/web --for=condition=Progressing=true --timeout=60s").unwrap();
    assert_eq!(images(&cluster), "busybox:2 busybox:2");
    cluster.becomes("sts web", ".metadata.annotations.berth\\.dev/rejected-revision", "").unwrap();
    assert_eq!(condition(&cluster, "RevisionRejected").0, "");
}

#[test]
fn a_deadline_alone_stops_the_rollout_and_says_why() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&with_deadline(2, r#"berth.dev/progress-deadline-seconds: "2""#)).unwrap();
    cluster.settled("web", 2).unwrap();
    let lowest = cluster.container_id("web-0").unwrap();
    never_ready(&cluster);
    kubectl.run("wait sts/web --for=condition=Progressing=false --timeout=60s").unwrap();
    let (_, reason, message) = condition(&cluster, "Progressing");
    assert_eq!(reason, "ProgressDeadlineExceeded");
    assert!(message.contains("web-1"), "{message}");
    cluster.event("web", "ProgressDeadlineExceeded", "web-1").unwrap();
    // It waits there for a person: the pod can be looked into, the other ones serve.
    assert!(!kubectl.run("get pod web-1").unwrap().contains("Terminating"));
    assert_eq!(condition(&cluster, "RevisionRejected").0, "");
    assert_eq!(cluster.container_id("web-0").unwrap(), lowest);
    kubectl.run("rollout undo sts/web").unwrap();
    rolled_out(&cluster);
    kubectl.run("wait sts/web --for=condition=Progressing=true --timeout=60s").unwrap();
    assert_eq!(condition(&cluster, "Progressing").1, "NewRevisionAvailable");
    assert_eq!(cluster.container_id("web-0").unwrap(), lowest);
}

#[test]
fn on_delete_a_pod_is_updated_when_somebody_deletes_it() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "  updateStrategy: {type: OnDelete}")).unwrap();
    cluster.settled("web", 2).unwrap();
    kubectl.run("set image sts/web main=busybox:2").unwrap();
    let observed = kubectl.field("sts web", ".metadata.generation").unwrap();
    cluster.becomes("sts web", ".status.observedGeneration", &observed).unwrap();
    assert_eq!(images(&cluster), "busybox busybox");
    kubectl.run("delete pod web-0").unwrap();
    cluster.settled("web", 2).unwrap();
    assert_eq!(images(&cluster), "busybox:2 busybox");
    cluster.becomes("sts web", ".status.updatedReplicas", "1").unwrap();
}

#[test]
fn pods_of_a_set_that_is_deleted_alone_run_on_and_are_adopted_by_the_next() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let manifest = set("web", 2, "");
    kubectl.apply(&manifest).unwrap();
    cluster.settled("web", 2).unwrap();
    let pods = ["web-0", "web-1"];
    let before = container_ids(&cluster, &pods);
    kubectl.run("delete sts web --cascade=orphan").unwrap();
    for pod in pods {
        cluster.becomes(&format!("pod {pod}"), ".metadata.ownerReferences", "").unwrap();
    }
    kubectl.apply(&manifest).unwrap();
    cluster.settled("web", 2).unwrap();
    let uid = cluster.uid("sts web").unwrap();
    for pod in pods {
        cluster.becomes(&format!("pod {pod}"), ".metadata.ownerReferences[0].uid", &uid).unwrap();
    }
    assert_eq!(container_ids(&cluster, &pods), before, "no container was restarted");
    assert_eq!(kubectl.run("get controllerrevisions -o name").unwrap().lines().count(), 1);

    // One that stops matching is let go, and its place is taken by another as soon as its name is free.
    kubectl.run("label pod web-1 app=other --overwrite").unwrap();
    cluster.becomes("pod web-1", ".metadata.ownerReferences", "").unwrap();
    assert_eq!(cluster.container_id("web-1").unwrap(), before[1]);
    kubectl.run("delete pod web-1").unwrap();
    cluster.settled("web", 2).unwrap();
}

#[test]
fn a_drained_host_gives_its_pods_up_one_by_one_and_takes_new_ones_when_it_is_back() {
    let mut cluster = Cluster::for_test().unwrap();
    cluster.kubectl.apply(&roaming("web", 2)).unwrap();
    cluster.settled("web", 2).unwrap();
    cluster.add_host("node2", 0).unwrap();
    let archive = berth_tests::image::busybox(&berth_tests::cluster::images_dir().unwrap()).unwrap();
    cluster.host_named("node2").unwrap().import(&archive).unwrap();
    let kubectl = &cluster.kubectl;
    cluster.becomes("node node2", ".status.conditions[?(@.type==\"Ready\")].status", "True").unwrap();
    kubectl.run("create pdb web --selector=app=web --max-unavailable=1").unwrap();
    cluster.becomes("pdb web", ".status.disruptionsAllowed", "1").unwrap();

    let out = kubectl
        .output(&["drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"], None);
    let out = out.unwrap();
    assert!(out.ok, "{}{}", out.stdout, out.stderr);
    let budget = "Cannot evict pod as it would violate the pod's disruption budget";
    assert!(out.stderr.contains(budget), "both at once would be too many: {}", out.stderr);
    cluster.settled("web", 2).unwrap();
    let nodes = kubectl.args(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]).unwrap();
    assert_eq!(nodes, "node2 node2");
    assert!(kubectl.run("get node node1").unwrap().contains("Ready,SchedulingDisabled"));
    kubectl.run("uncordon node1").unwrap();

    // And the other way, by force: who does not tolerate the taint goes at once.
    kubectl.run("taint node node2 berth=careened:NoExecute").unwrap();
    wait::until_true("all on node1", SOON, || {
        let nodes = kubectl.args(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
        Ok(nodes == "node1 node1")
    })
    .unwrap();
    cluster.settled("web", 2).unwrap();
}
