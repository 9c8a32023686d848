//! Every manifest in examples/ applies as it is and runs.

use berth_tests::cluster::Cluster;
use berth_tests::wait;

#[test]
fn the_examples_apply_unchanged_and_each_pod_keeps_its_own_page() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    cluster.offer_the_examples_images().unwrap();
    let names = ["httpd.yaml", "namespace.yaml", "redis-service.yaml", "redis-claims.yaml", "nginx.yaml"];
    cluster.apply_examples(&["classes.yaml", "httpd-class.yaml", "httpd-rbac.yaml", "kubia.yaml"]).unwrap();
    cluster.apply_examples(&names).unwrap();
    for (set, replicas) in
        [("kubia", 3), ("statefulset-test", 3), ("redis-sts", 2), ("redis-pv-sts", 2), ("web", 3)]
    {
        cluster.settled(set, replicas).unwrap();
    }
    wait::until_true("the set in the namespace", berth_tests::scenario::SOON, || {
        let path = "jsonpath={.status.readyReplicas}";
        Ok(kubectl.args(&["get", "sts", "-n", "xgp-lll", "statefulset-test", "-o", path])? == "3")
    })
    .unwrap();

    // A page of its own per pod, which outlives the pod.
    for ordinal in 0..3 {
        let pod = format!("web-{ordinal}");
        cluster.sh(&pod, "echo page of $HOSTNAME > /usr/share/nginx/html/index.html").unwrap();
    }
    kubectl.run("delete pod web-1").unwrap();
    cluster.settled("web", 3).unwrap();
    for ordinal in 0..3 {
        let pod = format!("web-{ordinal}");
        let page = cluster.sh(&pod, "wget -qO- http://127.0.0.1/").unwrap();
        assert_eq!(page, format!("page of {pod}"));
    }
    // The mapped provisioner's directory is named as nfs-subdir-external-provisioner names it.
    let claim = kubectl.json("get pvc www-web-0").unwrap();
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    let directory = cluster.dir.join("nfs-client").join(format!("default-www-web-0-{volume}"));
    assert_eq!(std::fs::read_to_string(directory.join("index.html")).unwrap().trim(), "page of web-0");

    assert_eq!(cluster.sh("redis-pv-sts-0", "redis-cli set k v && redis-cli get k").unwrap(), "OK\nv");
    cluster.apply_examples(&["redis.yaml"]).unwrap();
    cluster.settled("redis", 2).unwrap();
    // Applying again changes nothing. (kubectl says "configured": it compares with the defaults filled in.)
    let before = cluster.kubectl.field("sts web", ".metadata.resourceVersion").unwrap();
    cluster.apply_examples(&["nginx.yaml"]).unwrap();
    assert_eq!(cluster.kubectl.field("sts web", ".metadata.resourceVersion").unwrap(), before);
}
