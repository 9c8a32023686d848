//! The main job on real containerd: identity, order, claims.

#![allow(clippy::unwrap_used)]

use berth_tests::cluster::Cluster;
use berth_tests::scenario::set;
use serde_json::Value;

#[test]
fn pods_start_in_order_with_lasting_names_and_claims_and_come_back_with_both() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();

    // web-0 was Ready before web-1 was created.
    let ready =
        kubectl.field("pod web-0", ".status.conditions[?(@.type==\"Ready\")].lastTransitionTime").unwrap();
    let made = kubectl.field("pod web-1", ".metadata.creationTimestamp").unwrap();
    assert!(ready <= made, "web-0 Ready at {ready}, web-1 created at {made}");

    for ordinal in 0..2 {
        let pod = format!("web-{ordinal}");
        assert_eq!(
            cluster.sh(&pod, "hostname; echo $HOSTNAME; cat /etc/hostname").unwrap(),
            format!("{pod}\n{pod}\n{pod}")
        );
        let address = kubectl.field(&format!("pod {pod}"), ".status.podIP").unwrap();
        assert!(cluster.sh(&pod, "cat /etc/hosts").unwrap().contains(&address));
        assert!(cluster.sh(&pod, "ip addr show dev eth0").unwrap().contains(&address));
        let labels = kubectl.json(&format!("get pod {pod}")).unwrap()["metadata"]["labels"].clone();
        assert_eq!(labels["statefulset.kubernetes.io/pod-name"], Value::from(pod.clone()));
        assert_eq!(labels["apps.kubernetes.io/pod-index"], Value::from(ordinal.to_string()));
        assert!(labels["controller-revision-hash"].as_str().is_some_and(|h| h.starts_with("web-")));
        assert_eq!(kubectl.field(&format!("pvc data-{pod}"), ".status.phase").unwrap(), "Bound");
        cluster.sh(&pod, "echo mine-$HOSTNAME > /data/who").unwrap();
    }

    let before = cluster.uid("pod web-0").unwrap();
    kubectl.run("delete pod web-0").unwrap();
    cluster.settled("web", 2).unwrap();
    assert_ne!(cluster.uid("pod web-0").unwrap(), before);
    assert_eq!(cluster.sh("web-0", "cat /data/who").unwrap(), "mine-web-0");
    assert_eq!(cluster.sh("web-1", "cat /data/who").unwrap(), "mine-web-1");
    cluster.event("web", "SuccessfulCreate", "create Pod web-0 in StatefulSet web successful").unwrap();
    cluster.event("web-0", "Scheduled", "Successfully assigned default/web-0 to node1").unwrap();
    cluster.event("web-0", "Started", "Started container main").unwrap();
}

#[test]
fn scaling_keeps_order_and_claims() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 2, "")).unwrap();
    cluster.settled("web", 2).unwrap();
    kubectl.run("scale sts web --replicas=4").unwrap();
    cluster.settled("web", 4).unwrap();
    cluster.sh("web-3", "echo kept > /data/x").unwrap();

    kubectl.run("scale sts web --replicas=1").unwrap();
    cluster.settled("web", 1).unwrap();
    for pod in ["web-1", "web-2", "web-3"] {
        cluster.gone(&format!("pod/{pod}")).unwrap();
    }
    let claims = kubectl.run("get pvc -o name").unwrap();
    assert_eq!(claims.lines().count(), 4, "{claims}");

    kubectl.run("scale sts web --replicas=4").unwrap();
    cluster.settled("web", 4).unwrap();
    assert_eq!(cluster.sh("web-3", "cat /data/x").unwrap(), "kept");

    // From 4 to 0 and the set itself: nothing but the claims stays.
    kubectl.run("delete sts web").unwrap();
    for pod in ["web-0", "web-1", "web-2", "web-3"] {
        cluster.gone(&format!("pod/{pod}")).unwrap();
    }
    assert_eq!(kubectl.run("get pvc -o name").unwrap().lines().count(), 4);
    assert_eq!(kubectl.run("get controllerrevisions -o name").unwrap(), "");
}

#[test]
fn a_parallel_set_with_other_first_ordinal_starts_at_once() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 3, "  podManagementPolicy: Parallel\n  ordinals: {start: 5}")).unwrap();
    cluster.settled("web", 3).unwrap();
    let names = kubectl.run("get pods -o jsonpath={.items[*].metadata.name}").unwrap();
    assert_eq!(names, "web-5 web-6 web-7");
    assert_eq!(cluster.sh("web-7", "hostname").unwrap(), "web-7");
}

#[test]
fn an_unready_lower_ordinal_halts_the_start_and_not_the_deletion() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let manifest = set("web", 3, "").replace(
        "        volumeMounts",
        "        readinessProbe: {exec: {command: [test, -e, /data/ready]}, periodSeconds: 1}\n        volumeMounts",
    );
    kubectl.apply(&manifest).unwrap();
    cluster.becomes("pod web-0", ".status.phase", "Running").unwrap();
    cluster.event("web-0", "Unhealthy", "Readiness probe failed").unwrap();
    assert_eq!(kubectl.run("get pods -o name").unwrap().trim(), "pod/web-0");
    cluster.sh("web-0", "touch /data/ready").unwrap();
    cluster.ready("web-0").unwrap();
    cluster.becomes("pod web-1", ".status.phase", "Running").unwrap();
    assert!(!kubectl.run("get pods -o name").unwrap().contains("web-2"));
    // Never ready, condemned: it goes all the same.
    kubectl.run("scale sts web --replicas=0").unwrap();
    cluster.gone("pod/web-1").unwrap();
    cluster.gone("pod/web-0").unwrap();
}

/// The names of a set's claims.
fn claims(cluster: &Cluster) -> String {
    cluster.kubectl.args(&["get", "pvc", "-o", "jsonpath={.items[*].metadata.name}"]).unwrap()
}

#[test]
fn claims_outlive_their_set_unless_it_says_otherwise() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let policy = "  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Delete}";
    let (kept, tidy) = (set("kept", 2, ""), set("tidy", 2, policy));
    kubectl.apply(&format!("{kept}---\n{tidy}")).unwrap();
    for name in ["kept", "tidy"] {
        cluster.settled(name, 2).unwrap();
    }
    cluster.sh("kept-1", "echo here > /data/x").unwrap();
    cluster.sh("tidy-1", "echo gone > /data/x").unwrap();

    kubectl.run("scale sts kept tidy --replicas=1").unwrap();
    cluster.gone("pvc data-tidy-1").unwrap();
    cluster.settled("kept", 1).unwrap();
    assert_eq!(claims(&cluster), "data-kept-0 data-kept-1 data-tidy-0");
    // The next life of the ordinal finds what its policy says.
    kubectl.run("scale sts kept tidy --replicas=2").unwrap();
    for name in ["kept", "tidy"] {
        cluster.settled(name, 2).unwrap();
    }
    assert_eq!(cluster.sh("kept-1", "cat /data/x").unwrap(), "here");
    assert_eq!(cluster.sh("tidy-1", "ls /data").unwrap(), "");

    kubectl.run("delete sts kept tidy").unwrap();
    for claim in ["data-tidy-0", "data-tidy-1"] {
        cluster.gone(&format!("pvc {claim}")).unwrap();
    }
    for pod in ["kept-0", "kept-1"] {
        cluster.gone(&format!("pod {pod}")).unwrap();
    }
    assert_eq!(claims(&cluster), "data-kept-0 data-kept-1");
    kubectl.apply(&kept).unwrap();
    cluster.settled("kept", 2).unwrap();
    assert_eq!(cluster.sh("kept-1", "cat /data/x").unwrap(), "here");
}

#[test]
fn reserved_ordinals_are_left_out_and_the_others_keep_their_numbers() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let pods = || kubectl.args(&["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]).unwrap();
    kubectl.apply(&set("web", 3, "")).unwrap();
    cluster.settled("web", 3).unwrap();
    let before: Vec<String> = ["web-0", "web-2"].map(|pod| cluster.container_id(pod).unwrap()).into();

    kubectl.run("annotate sts web berth.dev/reserve-ordinals=1,4").unwrap();
    cluster.gone("pod web-1").unwrap();
    cluster.ready("web-3").unwrap();
    cluster.settled("web", 3).unwrap();
    assert_eq!(pods(), "web-0 web-2 web-3");
    kubectl.run("scale sts web --replicas=4").unwrap();
    cluster.ready("web-5").unwrap();
    cluster.settled("web", 4).unwrap();
    assert_eq!(pods(), "web-0 web-2 web-3 web-5");
    let after: Vec<String> = ["web-0", "web-2"].map(|pod| cluster.container_id(pod).unwrap()).into();
    assert_eq!(after, before, "pods that stay are not touched");

    kubectl.run("annotate sts web berth.dev/reserve-ordinals-").unwrap();
    cluster.gone("pod web-5").unwrap();
    cluster.ready("web-1").unwrap();
    cluster.settled("web", 4).unwrap();
    assert_eq!(pods(), "web-0 web-1 web-2 web-3");
    let wrong = kubectl.run("annotate sts web berth.dev/reserve-ordinals=x").unwrap_err().to_string();
    assert!(wrong.contains("must be ordinals and ranges of them"), "{wrong}");
}
