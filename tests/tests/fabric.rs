//! The harness itself: what joins its hosts can be cut, mended and slowed, and hosts live with that.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use berth_tests::cluster::Cluster;
use berth_tests::scenario::{SOON, STAY, pod};
use berth_tests::{fabric, wait};

#[test]
fn a_host_can_be_cut_off_and_slowed_and_its_cluster_lives_with_it() {
    let cluster = Cluster::of_three().unwrap();
    let (near, far) = (cluster.host_named("node1").unwrap(), cluster.host_named("node3").unwrap());
    let address = fabric::address(1, 2).to_string();
    let reached = || near.run("busybox", &["ping", "-c", "1", "-W", "1", &address]).is_ok();
    assert!(reached());
    cluster.fabric.cut(far).unwrap();
    assert!(!reached());
    cluster.fabric.mend(far).unwrap();
    wait::until_true("the way to node3", SOON, || Ok(reached())).unwrap();

    // 200 kB at 400 kbit/s take 4 s, less what goes through at once.
    let page = "head -c 200000 /dev/zero > page; exec busybox httpd -f -p 0.0.0.0:8080";
    cluster.fabric.daemon("page", "sh", &["-c", page]).unwrap();
    wait::until_true("the page", SOON, || Ok(cluster.fabric.run("ss", &["-Htln"])?.contains(":8080 ")))
        .unwrap();
    let url = format!("http://{}:8080/page", fabric::OUTSIDE);
    let fetched = || {
        let begun = Instant::now();
        far.run("busybox", &["wget", "-qO", "/dev/null", &url]).unwrap();
        begun.elapsed()
    };
    let free = fetched();
    cluster.fabric.slow(far, Some("400kbit")).unwrap();
    let slowed = fetched();
    assert!(slowed > Duration::from_secs(2) && free < slowed, "{free:?}, then {slowed:?}");
    // A slow host is a host.
    cluster.kubectl.apply(&pod("far", STAY, "", "  nodeSelector: {kubernetes.io/hostname: node3}")).unwrap();
    cluster.ready("far").unwrap();
    cluster.fabric.slow(far, None).unwrap();
    assert!(fetched() < slowed);
}
