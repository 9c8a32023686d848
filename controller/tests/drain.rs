//! Emptying a host as people do it: budgets, evictions, `kubectl drain`, `cordon` and `taint`, against the API and
//! its loops. The hosts are played (see `served::cluster`).

#![allow(clippy::unwrap_used)]

mod served;

use berth_controller_core::object;
use serde_json::{Value, json};
use served::Answer;
use served::cluster::Cluster;
use served::kubectl::lines;

const EVICT: &str = "/api/v1/namespaces/default/pods/web-0/eviction";

fn eviction(pod: &str) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}})
}

async fn evict(cluster: &Cluster, pod: &str) -> Answer {
    let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
    cluster.kubectl.server.post(&path, eviction(pod)).await
}

/// A set of three and a budget for it, as `kubectl create pdb` takes it.
async fn web(nodes: &[&str], budget: &str) -> Cluster {
    let cluster = Cluster::start(nodes).await;
    cluster.kubectl.ok("apply -f WEB").await;
    if !budget.is_empty() {
        cluster.kubectl.ok(&format!("create pdb web --selector=app=nginx {budget}")).await;
    }
    cluster.ready(3).await;
    cluster
}

/// Minimum, maximum and what may be evicted now, once that is counted.
async fn allowed(cluster: &Cluster, count: i64) -> Value {
    cluster
        .until("so many disruptions are allowed", |c| {
            let status = &budget(c)["status"];
            status["disruptionsAllowed"] == count && status["observedGeneration"] == 1
        })
        .await;
    budget(cluster)["status"].clone()
}

fn budget(cluster: &Cluster) -> Value {
    let kind = &berth_controller_core::kinds::pod_disruption_budget::POD_DISRUPTION_BUDGET;
    cluster.kubectl.server.objects.get(kind, "default", "web").unwrap().value()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_shows_what_may_be_evicted_and_follows_its_set() {
    let cluster = web(&["one"], "--max-unavailable=33%").await;
    let k = &cluster.kubectl;
    let status = allowed(&cluster, 1).await;
    assert_eq!(
        [&status["currentHealthy"], &status["desiredHealthy"], &status["expectedPods"]],
        [&json!(3), &json!(2), &json!(3)],
        "a percentage is rounded up"
    );
    assert_eq!(status["conditions"][0]["type"], "DisruptionAllowed");
    let table = k.ok("get pdb").await;
    assert_eq!(lines(&table)[0].join(" "), "NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE");
    assert_eq!(lines(&table)[1][..4], ["web", "N/A", "33%", "1"]);
    k.ok("wait --for=condition=DisruptionAllowed pdb/web --timeout=20s").await;
    k.ok("scale sts web --replicas=6").await;
    allowed(&cluster, 2).await;
    k.ok("scale sts web --replicas=1").await;
    cluster.ready(1).await;
    k.ok("wait --for=jsonpath={.status.expectedPods}=1 pdb/web --timeout=20s").await;
    assert!(k.ok("describe pdb web").await.contains("Allowed disruptions"));
    let both = k.fails("create pdb both --selector=a=b --min-available=1 --max-unavailable=1").await;
    assert!(both.contains("min-available and max-unavailable"), "{both}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_is_granted_as_far_as_the_budget_goes_and_refused_in_kubernetes_words() {
    let cluster = web(&["one"], "--min-available=3").await;
    allowed(&cluster, 0).await;
    let refused = evict(&cluster, "web-0").await;
    assert_eq!(refused.refused(429), "Cannot evict pod as it would violate the pod's disruption budget.");
    let body = refused.json();
    assert_eq!(body["reason"], "TooManyRequests");
    assert_eq!(
        body["details"]["causes"],
        json!([{"reason": "DisruptionBudget", "message": "The disruption budget web needs 3 healthy pods and has 3 currently"}])
    );
    assert_eq!(cluster.pods().len(), 3);

    cluster.kubectl.ok("patch pdb web -p '{\"spec\":{\"minAvailable\":2}}'").await;
    cluster.until("one may go", |c| budget(c)["status"]["disruptionsAllowed"] == 1).await;
    let before = uid(&cluster, "web-0");
    let dry = cluster.kubectl.server.post(&format!("{EVICT}?dryRun=All"), eviction("web-0")).await;
    assert_eq!((dry.status, budget(&cluster)["status"]["disruptionsAllowed"].as_i64()), (201, Some(1)));
    assert_eq!(uid(&cluster, "web-0"), before);

    let granted = evict(&cluster, "web-0").await;
    assert_eq!(
        (granted.status, granted.json()),
        (
            201,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
        )
    );
    cluster
        .until("web-0 is another one", |c| uid(c, "web-0").is_some_and(|u| Some(&u) != before.as_ref()))
        .await;
    cluster.ready(3).await;
    cluster.until("the next may go", |c| budget(c)["status"]["disruptionsAllowed"] == 1).await;
}

fn uid(cluster: &Cluster, pod: &str) -> Option<String> {
    cluster.pods().iter().find(|p| object::name(p) == pod).map(|p| object::uid(p).to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_evictions_at_once_no_more_are_granted_than_the_budget_allows() {
    let cluster = web(&["one"], "--min-available=2").await;
    allowed(&cluster, 1).await;
    cluster.hold();
    let server = &cluster.kubectl.server;
    let all = futures_util::future::join_all((0..3).map(|n| {
        let pod = format!("web-{n}");
        let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
        async move { server.post(&path, eviction(&pod)).await.status }
    }))
    .await;
    assert_eq!(all.iter().filter(|status| **status == 201).count(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|status| **status == 429).count(), 2, "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_takes_delete_options_and_must_be_about_the_pod() {
    let cluster = web(&["one"], "").await;
    let server = &cluster.kubectl.server;
    let mut other = eviction("web-0");
    other["deleteOptions"] = json!({"preconditions": {"uid": "another"}});
    assert!(server.post(EVICT, other).await.refused(409).contains("Precondition failed: UID"));
    let name = server.post(EVICT, eviction("web-1")).await.refused(400);
    assert_eq!(name, "name in URL does not match name in Eviction object");
    assert_eq!(server.post(EVICT, json!([])).await.status, 400);
    let path = "/api/v1/namespaces/default/pods/nobody/eviction";
    assert_eq!(server.post(path, eviction("nobody")).await.refused(404), "pods \"nobody\" not found");
    assert_eq!(server.get(EVICT).await.status, 405);
    let mut quick = eviction("web-0");
    quick["deleteOptions"] = json!({"gracePeriodSeconds": 0});
    let before = uid(&cluster, "web-0");
    assert_eq!(server.post(EVICT, quick).await.status, 201);
    cluster.until("it is replaced", |c| uid(c, "web-0").is_some_and(|u| Some(u) != before)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_empties_a_host_at_the_pace_the_budget_allows() {
    let cluster = web(&["one"], "--max-unavailable=2").await;
    let k = &cluster.kubectl;
    allowed(&cluster, 2).await;
    let node = json!({"metadata": {"name": "two", "labels": {"kubernetes.io/hostname": "two"}}});
    let nodes = &berth_controller_core::kinds::node::NODE;
    k.server.objects.create(nodes, "", node, &Default::default()).await.unwrap();
    let drained = k.ok("drain one --ignore-daemonsets --delete-emptydir-data --timeout=25s").await;
    assert!(drained.starts_with("node/one cordoned"), "{drained}");
    for pod in ["web-0", "web-1", "web-2"] {
        assert!(drained.contains(&format!("evicting pod default/{pod}")), "{drained}");
    }
    assert!(drained.ends_with("node/one drained"), "{drained}");
    assert_eq!(lines(&k.ok("get nodes").await)[1][1], "Unknown,SchedulingDisabled");
    cluster.ready(3).await;
    assert!(cluster.pods().iter().all(|pod| pod["spec"]["nodeName"] == "two"));
    let taints = k.ok("get node one -o jsonpath={.spec.taints}").await;
    assert_eq!(taints, r#"[{"effect":"NoSchedule","key":"node.kubernetes.io/unschedulable"}]"#);
    assert_eq!(k.ok("uncordon one").await, "node/one uncordoned");
    assert_eq!(k.ok("get node one -o jsonpath={.spec}").await, "{}");
    assert_eq!(k.ok("cordon one").await, "node/one cordoned");
    assert_eq!(k.ok("cordon one").await, "node/one already cordoned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_waits_for_a_budget_that_allows_nothing_and_says_so() {
    let cluster = web(&["one"], "--max-unavailable=0").await;
    allowed(&cluster, 0).await;
    let k = &cluster.kubectl;
    let refused = k.fails("drain one --ignore-daemonsets --delete-emptydir-data --timeout=1s").await;
    assert!(
        refused.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{refused}"
    );
    assert_eq!(cluster.pods().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taint_drives_out_who_does_not_tolerate_it_and_later_who_does_so_for_a_time() {
    let cluster = Cluster::start(&["one", "two"]).await;
    let k = &cluster.kubectl;
    let pod = |name: &str, tolerations: &str| {
        format!(
            "run {name} --image=busybox --overrides={{\"spec\":{{\"nodeName\":\"one\",\"tolerations\":[{tolerations}]}}}}"
        )
    };
    let tolerates =
        |more: &str| format!("{{\"key\":\"disk\",\"operator\":\"Exists\",\"effect\":\"NoExecute\"{more}}}");
    k.ok(&pod("never", "")).await;
    k.ok(&pod("always", &tolerates(""))).await;
    k.ok(&pod("awhile", &tolerates(",\"tolerationSeconds\":2"))).await;
    k.ok(&pod("longer", &tolerates(",\"tolerationSeconds\":600"))).await;
    cluster.ready(4).await;
    assert_eq!(k.ok("taint node one disk=bad:NoSchedule").await, "node/one tainted");
    assert_eq!(k.ok("taint node one disk=bad:NoExecute").await, "node/one tainted");
    cluster.until("who does not tolerate it is gone", |c| uid(c, "never").is_none()).await;
    let noted = k.ok("get node one -o jsonpath='{.spec.taints[?(@.effect==\"NoExecute\")].timeAdded}'").await;
    assert!(noted.ends_with('Z'), "when the taint came is noted: {noted:?}");
    cluster.until("so is, in time, who did for two seconds", |c| uid(c, "awhile").is_none()).await;
    assert!(uid(&cluster, "always").is_some() && uid(&cluster, "longer").is_some());
    let events =
        k.ok("get events --field-selector=reason=TaintManagerEviction -o jsonpath={.items[*].message}").await;
    assert!(events.contains("Marking for deletion Pod default/never"), "{events}");
    assert_eq!(k.ok("taint node one disk-").await, "node/one untainted");
    assert_eq!(k.ok("get node one -o jsonpath={.spec}").await, "{}");
}
