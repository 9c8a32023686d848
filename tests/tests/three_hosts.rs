//! The examples on three hosts: node1 and node2 on one segment, node3 behind a router. What they say of
//! themselves holds wherever the pods are.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use berth_tests::cluster::Cluster;
use berth_tests::scenario::SOON;
use berth_tests::wait;

#[test]
fn the_examples_behave_on_three_hosts_as_on_one() {
    let cluster = Cluster::of_three().unwrap();
    cluster.offer_the_examples_images().unwrap();
    cluster.apply_examples(&["classes.yaml", "httpd-class.yaml", "httpd-rbac.yaml", "kubia.yaml"]).unwrap();
    cluster.apply_examples(&["httpd.yaml", "namespace.yaml", "redis-service.yaml"]).unwrap();
    cluster.apply_examples(&["redis-claims.yaml", "redis.yaml", "nginx.yaml"]).unwrap();
    for (set, replicas) in [
        ("kubia", 3),
        ("statefulset-test", 3),
        ("redis-sts", 2),
        ("redis-pv-sts", 2),
        ("redis", 2),
        ("web", 3),
    ] {
        cluster.settled(set, replicas).unwrap();
    }
    for set in ["kubia", "web"] {
        let hosts: BTreeSet<String> =
            (0..3).map(|n| cluster.host_of(&format!("{set}-{n}")).unwrap().name.clone()).collect();
        assert_eq!(hosts.len(), 3, "one pod of {set} on each host");
    }
    every_pod_is_found_by_its_name_from_every_host(&cluster);
    a_page_of_its_own_per_pod(&cluster);
    the_plain_service_balances(&cluster);
    the_namespace_experiment(&cluster);
    every_redis_keeps_its_own_data(&cluster);
}

/// `nslookup`, `ping` and HTTP by `pod.service`.
fn every_pod_is_found_by_its_name_from_every_host(cluster: &Cluster) {
    for from in ["web-0", "web-1", "web-2"] {
        for (set, service) in [("web", "nginx"), ("kubia", "kubia-svc"), ("statefulset-test", "headless-svc")]
        {
            for pod in (0..3).map(|n| format!("{set}-{n}")) {
                let ip = cluster.ip(&pod).unwrap();
                // This nslookup takes a name with a dot for a whole one.
                let whole = format!("{pod}.{service}.default.svc.cluster.local");
                let said = cluster.sh(from, &format!("nslookup {whole}")).unwrap();
                assert!(said.contains(&format!("Name:\t{whole}\nAddress: {ip}")), "{said}");
                let back = cluster.sh(from, &format!("nslookup {ip}")).unwrap();
                assert!(back.contains(&format!("name = {whole}")), "{back}");
                let said = cluster.sh(from, &format!("ping -c 1 -W 5 {pod}.{service}")).unwrap();
                assert!(said.contains(&format!("({ip})")) && said.contains("1 packets received"), "{said}");
            }
        }
        let all = cluster.sh(from, "nslookup nginx.default.svc.cluster.local").unwrap();
        for pod in ["web-0", "web-1", "web-2"] {
            assert!(all.contains(&cluster.ip(pod).unwrap()), "{all}");
        }
    }
}

// Debian's busybox ends with a signal when its wget has a time limit: kubectl's own deadline is enough.
fn a_page_of_its_own_per_pod(cluster: &Cluster) {
    for (set, at) in [("web", "/usr/share/nginx/html"), ("kubia", "/var/data")] {
        for pod in (0..3).map(|n| format!("{set}-{n}")) {
            cluster.sh(&pod, &format!("echo page of $HOSTNAME > {at}/index.html")).unwrap();
        }
    }
    let pages = |from: &str| {
        for n in 0..3 {
            let page = cluster.sh(from, &format!("wget -qO- http://web-{n}.nginx")).unwrap();
            assert_eq!(page, format!("page of web-{n}"), "from {from}");
            let page = cluster.sh(from, &format!("wget -qO- http://kubia-{n}.kubia-svc:8080")).unwrap();
            assert_eq!(page, format!("page of kubia-{n}"), "from {from}");
        }
    };
    for from in ["web-0", "web-1", "web-2"] {
        pages(from);
    }
    // The page outlives its pod, and so does the name. (This web server does not heed TERM.)
    for n in 0..3 {
        cluster.kubectl.run(&format!("delete pod web-{n} kubia-{n} --grace-period=1")).unwrap();
    }
    cluster.settled("web", 3).unwrap();
    cluster.settled("kubia", 3).unwrap();
    pages("statefulset-test-0");
}

fn the_plain_service_balances(cluster: &Cluster) {
    let ids = |from: &str, whom: &str, times: u32| -> BTreeSet<String> {
        let line = format!("for i in $(seq {times}); do redis-cli -h {whom} info server | grep run_id; done");
        let text = cluster.sh(from, &line).unwrap();
        assert_eq!(text.lines().count(), times as usize, "{text}");
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    let all: BTreeSet<String> =
        ["redis-sts-0", "redis-sts-1"].iter().flat_map(|pod| ids(pod, "127.0.0.1", 1)).collect();
    assert_eq!(all.len(), 2);
    for from in ["redis-sts-0", "redis-sts-1"] {
        assert_eq!(ids(from, "redis-svc", 30), all, "from {from}");
    }
    let address = cluster.kubectl.field("svc redis-svc", ".spec.clusterIP").unwrap();
    let said = cluster.sh("web-0", "nslookup redis-svc.default.svc.cluster.local").unwrap();
    assert!(said.contains(&format!("Address: {address}")), "{said}");
}

/// The Service is called headless and is not: by its name all pages are found, by a pod's name that pod's.
fn the_namespace_experiment(cluster: &Cluster) {
    let kubectl = &cluster.kubectl;
    wait::until_true("the set in the namespace", SOON, || {
        let path = "jsonpath={.status.readyReplicas}";
        Ok(kubectl.args(&["get", "sts", "-n", "xgp-lll", "statefulset-test", "-o", path])? == "3")
    })
    .unwrap();
    let sh = |pod: &str, line: &str| {
        kubectl.args(&["exec", "-n", "xgp-lll", pod, "--", "sh", "-c", line]).unwrap().trim().to_owned()
    };
    for n in 0..3 {
        let pod = format!("statefulset-test-{n}");
        sh(&pod, "echo $HOSTNAME > /usr/local/apache2/htdocs/index.html");
    }
    let pages = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let get = "for i in $(seq 40); do wget -qO- http://";
    let inside = pages(&sh("statefulset-test-1", &format!("{get}headless-svc; done")));
    assert_eq!(inside.len(), 3, "{inside:?}");
    let outside = cluster.sh("web-2", &format!("{get}headless-svc.xgp-lll; done")).unwrap();
    assert_eq!(pages(&outside), inside);
    // The namespace is part of the name: there is a pod of that name in `default` as well.
    let one = cluster.sh("web-2", "wget -qO- http://statefulset-test-1.headless-svc.xgp-lll").unwrap();
    assert_eq!(one, "statefulset-test-1");
    // A replaced pod has its page.
    kubectl.run("delete pod -n xgp-lll statefulset-test-1 --grace-period=1").unwrap();
    wait::until_true("its page again", SOON, || {
        let line = "wget -qO- http://statefulset-test-1.headless-svc.xgp-lll";
        Ok(cluster.sh("web-2", line).is_ok_and(|page| page == "statefulset-test-1"))
    })
    .unwrap();
}

/// Each pod has a claim of its own, and finds in it what it wrote there after it was replaced.
fn every_redis_keeps_its_own_data(cluster: &Cluster) {
    for (set, service) in [("redis-pv-sts", None), ("redis", Some("redis"))] {
        let pods = [0, 1].map(|n| format!("{set}-{n}"));
        let hosts: BTreeSet<_> = pods.iter().map(|pod| cluster.host_of(pod).unwrap().name.clone()).collect();
        assert_eq!(hosts.len(), 2, "{set}: {hosts:?}");
        for pod in &pods {
            assert_eq!(cluster.sh(pod, "redis-cli set who $HOSTNAME && redis-cli save").unwrap(), "OK\nOK");
        }
        cluster.kubectl.run(&format!("delete pod {}", pods.join(" "))).unwrap();
        cluster.settled(set, 2).unwrap();
        for pod in &pods {
            assert_eq!(&cluster.sh(pod, "redis-cli get who").unwrap(), pod);
            if let Some(service) = service {
                let line = format!("redis-cli -h {pod}.{service} get who");
                assert_eq!(&cluster.sh("redis-sts-1", &line).unwrap(), pod);
            }
        }
    }
}
