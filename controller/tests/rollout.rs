//! `kubectl rollout`, `set`, `edit` and `patch` on a StatefulSet, against the API and its loops. The hosts are
//! played (see `served::cluster`).

#![allow(clippy::unwrap_used)]

mod served;

use std::path::Path;

use berth_controller::store::Scope;
use berth_controller_core::object;
use serde_json::{Value, json};
use served::cluster::Cluster;
use served::kubectl::{Kubectl, WEB, lines};

async fn web() -> Cluster {
    let cluster = Cluster::start(&["one"]).await;
    cluster.kubectl.ok("apply -f WEB").await;
    cluster.ready(3).await;
    cluster
}

fn template(cluster: &Cluster) -> Value {
    let kind = &berth_controller_core::kinds::stateful_set::STATEFUL_SET;
    let set = cluster.kubectl.server.objects.get(kind, "default", "web").unwrap();
    set.value()["spec"]["template"].clone()
}

/// The set's revisions, oldest first.
fn revisions(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.kubectl.server.objects.store().list(&Scope::all("controllerrevisions.apps"));
    let mut all: Vec<Value> = list.objects.iter().map(|o| o.value()).collect();
    all.sort_by_key(|revision| revision["revision"].as_i64());
    all
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap()
}

/// Waits until the roll-out is over, and all pods have this image.
async fn rolled_out(cluster: &Cluster, wanted: &str) {
    let told = cluster.kubectl.ok("rollout status sts/web --timeout=25s").await;
    assert!(told.ends_with("..."), "{told}");
    assert!(cluster.pods().iter().all(|pod| image(pod) == wanted), "{told}: {:#?}", cluster.pods());
}

/// Revision numbers and causes as `rollout history` shows them.
async fn history(k: &Kubectl) -> Vec<String> {
    let shown = k.ok("rollout history sts/web").await;
    let mut lines = shown.lines();
    assert_eq!(lines.next().map(str::trim), Some("statefulset.apps/web"));
    assert_eq!(lines.next(), Some("REVISION  CHANGE-CAUSE"));
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// What a file beside this one says; BERTH_GOLDEN=write makes it say what is.
fn golden(name: &str, is: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BERTH_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, is).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), is, "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_image_is_rolled_out_listed_and_undone() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    let first = template(&cluster);
    assert_eq!(k.ok("set image sts/web nginx=nginx:2").await, "statefulset.apps/web image updated");
    rolled_out(&cluster, "nginx:2").await;
    assert_eq!(history(k).await, ["1 <none>", "2 <none>"]);
    // From 1.33 on kubectl names the ports too.
    let shown = k.ok("rollout history sts/web --revision=2").await.replace("/TCP (web)", "/TCP");
    golden("history-revision-2.txt", &(shown + "\n"));

    assert!(k.ok("rollout undo sts/web --dry-run=server").await.contains("server dry run"));
    assert_eq!(image(&json!({"spec": template(&cluster)["spec"]})), "nginx:2");
    assert_eq!(k.ok("rollout undo sts/web").await, "statefulset.apps/web rolled back");
    rolled_out(&cluster, "nginx").await;
    assert_eq!(template(&cluster), first);
    assert_eq!(history(k).await, ["2 <none>", "3 <none>"], "the earlier revision is the newest one again");

    assert_eq!(k.ok("rollout undo sts/web --to-revision=2").await, "statefulset.apps/web rolled back");
    rolled_out(&cluster, "nginx:2").await;
    assert_eq!(revisions(&cluster).len(), 2, "nothing new was made");
    let unknown = k.fails("rollout undo sts/web --to-revision=9").await;
    assert!(unknown.contains("unable to find specified revision 9 in history"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_undo_sends_is_the_revision_as_kubernetes_writes_it() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    let first = template(&cluster);
    let mut revision = revisions(&cluster).remove(0);
    golden("revision-data.json", &(serde_json::to_string_pretty(&revision["data"]).unwrap() + "\n"));
    let metadata = revision["metadata"].as_object_mut().unwrap();
    for changing in ["uid", "resourceVersion", "creationTimestamp"] {
        assert!(metadata.remove(changing).is_some(), "{changing}");
    }
    metadata["ownerReferences"][0].as_object_mut().unwrap().remove("uid");
    metadata.remove("annotations");
    golden("revision-metadata.json", &(serde_json::to_string_pretty(&revision["metadata"]).unwrap() + "\n"));

    // Whatever has become of the template: labels, a further container, lists that merge by key.
    let more = json!({"spec": {"template": {
        "metadata": {"labels": {"more": "1"}, "annotations": {"note": "x"}},
        "spec": {
            "terminationGracePeriodSeconds": 1, "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "containers": [
                {"name": "nginx", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 81, "name": "more"}]},
                {"name": "other", "image": "busybox"},
            ],
        },
    }}});
    let path = "/apis/apps/v1/namespaces/default/statefulsets/web";
    k.server.patch(path, "strategic-merge-patch+json", more).await.ok();
    assert_ne!(template(&cluster), first);
    k.server.patch(path, "strategic-merge-patch+json", revision["data"].clone()).await.ok();
    assert_eq!(template(&cluster), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_change_a_template_makes_a_revision_that_reaches_the_pods() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    let container = "{.items[*].spec.containers[0]";
    let of_pods = async |path: &str| k.ok(&format!("get pods -o jsonpath={container}{path}}}")).await;
    k.ok("set env sts/web COLOUR=blue").await;
    rolled_out(&cluster, "nginx").await;
    assert_eq!(of_pods(".env[0].value").await, "blue blue blue");
    assert!(k.ok("set env sts/web --list").await.ends_with("COLOUR=blue"));
    k.ok("set resources sts web --limits=memory=64Mi --requests=cpu=10m").await;
    rolled_out(&cluster, "nginx").await;
    assert_eq!(of_pods(".resources.limits.memory").await, "64Mi 64Mi 64Mi");
    assert_eq!(
        k.edited("edit sts web", "s/image:.nginx$/image:\\ nginx:3/").await,
        "statefulset.apps/web edited"
    );
    rolled_out(&cluster, "nginx:3").await;
    let grace = "'{\"spec\":{\"template\":{\"spec\":{\"terminationGracePeriodSeconds\":3}}}}'";
    k.ok(&format!("patch sts web -p {grace}")).await;
    rolled_out(&cluster, "nginx:3").await;
    assert!(cluster.pods().iter().all(|pod| pod["spec"]["terminationGracePeriodSeconds"] == 3));
    k.ok("annotate sts/web kubernetes.io/change-cause=harbour").await;
    k.ok("set env sts/web COLOUR-").await;
    rolled_out(&cluster, "nginx:3").await;
    let shown = history(k).await;
    assert_eq!(shown.len(), 6, "{shown:?}");
    assert_eq!(shown[5], "6 harbour");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_replaces_every_pod() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    let before: Vec<Value> = cluster.pods().iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    assert_eq!(k.ok("rollout restart sts/web").await, "statefulset.apps/web restarted");
    rolled_out(&cluster, "nginx").await;
    cluster.ready(3).await;
    for pod in cluster.pods() {
        assert!(!before.contains(&pod["metadata"]["uid"]));
        assert!(pod["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_rollout_is_waited_for_and_undone_without_a_hand_on_any_pod() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    k.ok("set image sts/web nginx=nginx:broken").await;
    let waits = k.fails("rollout status sts/web --timeout=1s").await;
    assert!(waits.contains("timed out waiting for the condition"), "{waits}");
    let told = k.command("rollout status sts/web --watch=false");
    let (_, out, _) = k.run(told).await;
    assert!(out.contains("Waiting for"), "{out}");
    assert_eq!(cluster.pods().iter().filter(|pod| image(pod) == "nginx:broken").count(), 1);
    k.ok("rollout undo sts/web").await;
    rolled_out(&cluster, "nginx").await;
    cluster.ready(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_a_canary_that_status_explains() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    let partition = |n: u32| {
        format!(
            "patch sts web -p '{{\"spec\":{{\"updateStrategy\":{{\"rollingUpdate\":{{\"partition\":{n}}}}}}}}}'"
        )
    };
    k.ok(&partition(2)).await;
    k.ok("set image sts/web nginx=nginx:2").await;
    let told = k.ok("rollout status sts/web --timeout=25s").await;
    assert!(told.ends_with("partitioned roll out complete: 1 new pods have been updated..."), "{told}");
    let images = k.ok("get pods -o jsonpath={.items[*].spec.containers[0].image}").await;
    assert_eq!(images, "nginx nginx nginx:2");
    k.ok(&partition(0)).await;
    rolled_out(&cluster, "nginx:2").await;
    assert_eq!(lines(&k.ok("get controllerrevisions").await).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_as_max_unavailable_make_way_at_once_with_either_policy_and_a_number_or_a_percentage() {
    for (policy, at_once) in [("OrderedReady", "2"), ("Parallel", "\"67%\"")] {
        let cluster = Cluster::start(&["one"]).await;
        let k = &cluster.kubectl;
        let manifest = k.server.directory().join("set.yaml");
        let policy = format!("  replicas: 3\n  podManagementPolicy: {policy}");
        std::fs::write(&manifest, WEB.replace("  replicas: 3", &policy)).unwrap();
        k.ok(&format!("apply -f {}", manifest.display())).await;
        cluster.ready(3).await;
        let patch = format!(
            r#"'{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"maxUnavailable":{at_once}}}}}}}}}'"#
        );
        k.ok(&format!("patch sts web -p {patch}")).await;
        cluster.hold();
        k.ok("set image sts/web nginx=nginx:2").await;
        let going = |c: &Cluster| {
            let pods = c.pods();
            let going = pods.iter().filter(|pod| object::deleting(pod)).map(object::name);
            going.map(str::to_owned).collect::<Vec<_>>()
        };
        cluster.until("two are asked to go", |c| going(c).len() == 2).await;
        k.ok("wait --for=jsonpath={.status.currentReplicas}=1 sts/web --timeout=20s").await;
        assert_eq!(going(&cluster), ["web-1", "web-2"], "{at_once} {policy}");
        cluster.release();
        rolled_out(&cluster, "nginx:2").await;
    }
}

/// `kubectl rollout status` knows no roll-out there; conditions and the status do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_delete_people_decide_when_and_the_status_says_how_far_they_are() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    k.ok("annotate sts web berth.dev/progress-deadline-seconds=600").await;
    k.ok("patch sts web -p '{\"spec\":{\"updateStrategy\":{\"type\":\"OnDelete\",\"rollingUpdate\":null}}}'")
        .await;
    let done =
        "wait --for=jsonpath={.status.conditions[0].reason}=NewRevisionAvailable sts/web --timeout=20s";
    k.ok(done).await;
    k.ok("set image sts/web nginx=nginx:2").await;
    let waits = "jsonpath={.status.conditions[?(@.type==\"Progressing\")].message}";
    k.ok("wait --for=jsonpath={.status.conditions[0].reason}=RollingOut sts/web --timeout=20s").await;
    let told = k.ok(&format!("get sts web -o '{waits}'")).await;
    assert!(told.ends_with("the others are updated when somebody deletes them"), "{told}");
    let refused = k.fails("rollout status sts/web --timeout=20s").await;
    assert!(refused.contains("only available for RollingUpdate"), "{refused}");
    for deleted in 1..=3 {
        // kubectl would wait for its going in two looks, and may take the new pod for the old.
        k.ok(&format!("delete pod web-{} --wait=false", 3 - deleted)).await;
        k.ok(&format!("wait --for=jsonpath={{.status.updatedReplicas}}={deleted} sts/web --timeout=20s"))
            .await;
        cluster.ready(3).await;
    }
    assert!(cluster.pods().iter().all(|pod| image(pod) == "nginx:2"));
    k.ok(done).await;
    k.ok("wait --for=condition=Progressing sts/web --timeout=20s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_as_long_as_the_set_says() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    k.ok("patch sts web -p '{\"spec\":{\"revisionHistoryLimit\":1}}'").await;
    for tag in ["2", "3", "4"] {
        k.ok(&format!("set image sts/web nginx=nginx:{tag}")).await;
        rolled_out(&cluster, &format!("nginx:{tag}")).await;
    }
    cluster.until("one past revision is left", |c| revisions(c).len() == 2).await;
    assert_eq!(history(k).await, ["3 <none>", "4 <none>"]);
}

/// KEP-4650: Kubernetes refuses each of these edits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_68737_claim_templates_are_edited_where_that_is_harmless_and_the_claims_follow() {
    let cluster = web().await;
    let k = &cluster.kubectl;
    for ordinal in 0..3 {
        let bound = r#"'{"status":{"phase":"Bound"}}'"#;
        k.ok(&format!("patch pvc www-web-{ordinal} --subresource=status -p {bound}")).await;
    }
    let uids = k.ok("get pods -o jsonpath={.items[*].metadata.uid}").await;
    assert_eq!(k.edited("edit sts web", "s/1Gi$/2Gi/").await, "statefulset.apps/web edited");
    let kind = &berth_controller_core::kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
    let asks = |cluster: &Cluster, storage: &str| {
        (0..3).all(|ordinal| {
            let claim = cluster.kubectl.server.objects.get(kind, "default", &format!("www-web-{ordinal}"));
            claim.unwrap().value()["spec"]["resources"]["requests"]["storage"] == storage
        })
    };
    cluster.until("the claims ask for more", |c| asks(c, "2Gi")).await;
    let larger = k.server.directory().join("larger.yaml");
    std::fs::write(&larger, WEB.replace("storage: 1Gi", "storage: 3Gi")).unwrap();
    k.ok(&format!("apply -f {}", larger.display())).await;
    cluster.until("the claims ask for more", |c| asks(c, "3Gi")).await;
    let refused = k.fails("apply -f WEB").await;
    let why = "spec.volumeClaimTemplates[0].spec.resources.requests.storage: Forbidden: \
               may not be less than 3Gi: volumes do not shrink. Add a template of another name";
    assert!(refused.contains(why), "{refused}");
    let none = r#"'[{"op":"remove","path":"/spec/volumeClaimTemplates/0"},
        {"op":"remove","path":"/spec/template/spec/containers/0/volumeMounts"}]'"#;
    let refused = k.fails(&format!("patch sts web --type=json -p {none}")).await;
    assert!(refused.contains("may not be removed or renamed"), "{refused}");
    assert_eq!(k.ok("get pods -o jsonpath={.items[*].metadata.uid}").await, uids, "no pod was touched");
}
