use super::*;
use crate::store::Event;

fn all_ready(count: usize) -> impl Fn(&World) -> bool {
    move |world| world.ready().len() == count && world.names(PODS).len() == count
}

fn available(count: usize) -> impl Fn(&World) -> bool {
    move |world| world.get(SETS, "web")["status"]["availableReplicas"] == count
}

#[tokio::test]
async fn an_ordered_set_starts_in_order_and_its_status_says_how_far_it_is() {
    let world = World::new().await;
    world.orders.unready.lock().unwrap().insert("web-1".to_owned());
    world.create(SETS, "default", set("web", 3)).await;
    world.until("web-1 exists", |w| w.names(PODS).len() == 2).await;
    world.rest().await;
    assert_eq!(world.names(PODS), ["web-0", "web-1"]);
    let status = &world.get(SETS, "web")["status"];
    assert_eq!((&status["replicas"], &status["readyReplicas"]), (&json!(2), &json!(1)));
    world.orders.unready.lock().unwrap().clear();
    world.delete(PODS, "web-1", None).await;
    world.until("three are ready", all_ready(3)).await;
    world.until("the status says so", available(3)).await;
    world.until("the events are written", |w| w.events("SuccessfulCreate").len() == 6).await;
    let set = world.get(SETS, "web");
    let status = &set["status"];
    for field in ["replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"] {
        assert_eq!(status[field], 3, "{field}");
    }
    assert_eq!(status["observedGeneration"], set["metadata"]["generation"]);
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    assert_eq!(world.names(&kinds::controller_revision::CONTROLLER_REVISION).len(), 1);
    let claims = world.names(CLAIMS);
    assert_eq!(claims, ["data-web-0", "data-web-1", "data-web-2"]);
    assert_eq!(world.get(CLAIMS, "data-web-0")["spec"]["storageClassName"], "local", "the default class");
    let said = world.events("SuccessfulCreate");
    assert!(said.contains(&"create Pod web-0 in StatefulSet web successful".to_owned()), "{said:?}");
    assert!(said.contains(&"create Claim data-web-0 Pod web-0 in StatefulSet web success".to_owned()));
}

/// "StatefulSet with podManagementPolicy: Parallel should create pods in parallel": Kubernetes makes a request for each
/// pod, and at first one after the other. Here they are one write, whatever their number.
#[tokio::test]
async fn issue_117071_the_pods_of_a_parallel_set_are_made_in_one_write() {
    let world = World::new().await;
    let mut pods =
        world.objects.store().watch(&Scope::all("pods"), world.objects.store().revision()).unwrap();
    let mut value = set("web", 50);
    value["spec"]["podManagementPolicy"] = "Parallel".into();
    world.create(SETS, "default", value).await;
    let mut made = Vec::new();
    while made.len() < 50 {
        let events = pods.next().await.unwrap().events;
        made.extend(events.into_iter().filter(|e| e.previous.is_none()));
    }
    let together = |e: &Event| e.object.revision == made[0].object.revision;
    assert!(made.iter().all(together), "each of them is seen by whoever sees one");
    world.until("the status says so", |w| w.get(SETS, "web")["status"]["replicas"] == 50).await;
}

#[tokio::test]
async fn scaling_down_goes_from_the_highest_and_keeps_the_claims_and_scaling_up_finds_them_again() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 3)).await;
    world.until("three are ready", all_ready(3)).await;
    let volume = world.get(CLAIMS, "data-web-2")["spec"]["volumeName"].clone();
    world.orders.stuck.lock().unwrap().insert("web-2".to_owned());
    world.scale("web", 1).await;
    world.until("web-2 terminates", |w| object::deleting(&w.get(PODS, "web-2"))).await;
    world.rest().await;
    assert_eq!(world.ready(), ["web-0", "web-1"], "web-1 waits for web-2 to be gone");
    world.orders.stuck.lock().unwrap().clear();
    let uid = object::uid(&world.get(PODS, "web-2")).to_owned();
    world.objects.remove(PODS, "default", "web-2", &uid).await.unwrap();
    world.until("one is left", all_ready(1)).await;
    world.scale("web", 3).await;
    world.until("three again", all_ready(3)).await;
    assert_eq!(world.get(CLAIMS, "data-web-2")["spec"]["volumeName"], volume);
    world.until("both deletions are told", |w| w.events("SuccessfulDelete").len() == 2).await;
}

#[tokio::test]
async fn a_deleted_and_a_failed_pod_come_back_with_their_name_and_claim() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 2)).await;
    world.until("two are ready", all_ready(2)).await;
    let before = [world.get(PODS, "web-0"), world.get(PODS, "web-1")];
    world.delete(PODS, "web-0", None).await;
    world
        .objects
        .modify(PODS, Some(kinds::Subresource::Status), "default", "web-1", |pod| {
            pod["status"] = json!({"phase": "Failed"});
            Ok(())
        })
        .await
        .unwrap();
    world
        .until("both are other pods and ready", |w| {
            let now = [w.get(PODS, "web-0"), w.get(PODS, "web-1")];
            now.iter().zip(&before).all(|(n, b)| object::uid(n) != object::uid(b)) && all_ready(2)(w)
        })
        .await;
    assert_eq!(world.names(CLAIMS).len(), 2);
    assert_eq!(world.names(VOLUMES).len(), 2);
}

#[tokio::test]
async fn a_restarted_controller_goes_on_where_the_last_one_ended() {
    let mut world = World::new().await;
    world.create(SETS, "default", set("web", 4)).await;
    world.until("two are ready", |w| w.ready().len() >= 2).await;
    world.stop();
    world.scale("web", 3).await;
    world.start();
    world.until("three are ready", all_ready(3)).await;
    world.until("the status says so", available(3)).await;
    assert!(world.path.exists());
}

#[tokio::test]
async fn at_rest_nothing_is_written() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 2)).await;
    world.until("two are ready", all_ready(2)).await;
    world.rest().await;
}

#[tokio::test]
async fn somebody_elses_pod_of_that_name_is_told_and_waited_for() {
    let world = World::new().await;
    let pod = json!({
        "metadata": {"name": "web-0"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    });
    world.create(PODS, "default", pod).await;
    world.create(SETS, "default", set("web", 1)).await;
    let told = "create Pod web-0 in StatefulSet web failed error: pods \"web-0\" already exists";
    world.until("it is told", |w| w.events("FailedCreate").contains(&told.to_owned())).await;
    world.delete(PODS, "web-0", None).await;
    world.until("it is the set's", |w| object::controller_ref(&w.get(PODS, "web-0")).is_some()).await;
}

#[tokio::test]
async fn on_delete_a_changed_template_makes_a_revision_and_only_a_deleted_pod_gets_it() {
    let world = World::new().await;
    let mut value = set("web", 2);
    value["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    world.create(SETS, "default", value).await;
    world.until("two are ready", all_ready(2)).await;
    let uid = object::uid(&world.get(PODS, "web-1")).to_owned();
    let image = |value: &mut Value| {
        value["spec"]["template"]["spec"]["containers"][0]["image"] = "busybox:2".into();
    };
    world.change(SETS, "web", image).await;
    world
        .until("a second revision", |w| w.names(&kinds::controller_revision::CONTROLLER_REVISION).len() == 2)
        .await;
    world.delete(PODS, "web-0", None).await;
    world
        .until("web-0 is new", |w| {
            w.get(PODS, "web-0")["spec"]["containers"][0]["image"] == "busybox:2" && all_ready(2)(w)
        })
        .await;
    assert_eq!(object::uid(&world.get(PODS, "web-1")), uid);
}

#[tokio::test]
async fn writers_that_get_in_between_only_cost_another_try() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 6)).await;
    for round in 0..200 {
        world
            .change(SETS, "web", |set| {
                set["metadata"]["annotations"] = json!({"round": round.to_string()});
            })
            .await;
        tokio::task::yield_now().await;
    }
    world.until("six are ready", all_ready(6)).await;
    world.until("the status says so", available(6)).await;
}

#[tokio::test]
async fn min_ready_seconds_hold_the_next_pod_back_and_need_no_event_to_end() {
    let world = World::new().await;
    let mut value = set("web", 2);
    value["spec"]["minReadySeconds"] = 2.into();
    world.create(SETS, "default", value).await;
    world.until("web-0 is ready", |w| w.ready() == ["web-0"]).await;
    let ready = std::time::Instant::now();
    world.until("both are ready", all_ready(2)).await;
    assert!(ready.elapsed() > Duration::from_millis(900), "times are whole seconds");
}

fn image(world: &World, pod: &str) -> Value {
    world.get(PODS, pod)["spec"]["containers"][0]["image"].clone()
}

fn images(world: &World) -> Vec<Value> {
    world.names(PODS).iter().map(|pod| image(world, pod)).collect()
}

async fn set_image(world: &World, image: &str) {
    world
        .change(SETS, "web", |set| {
            set["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        })
        .await;
}

#[tokio::test]
async fn an_update_replaces_every_pod_from_the_highest_down_and_then_is_complete() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 3)).await;
    world.until("three are ready", all_ready(3)).await;
    world.orders.unready.lock().unwrap().insert("web-1".to_owned());
    set_image(&world, "busybox:2").await;
    world.until("web-1 is new", |w| image(w, "web-1") == "busybox:2").await;
    world.rest().await;
    assert_eq!(images(&world), ["busybox", "busybox:2", "busybox:2"], "web-0 waits for web-1");
    world.orders.unready.lock().unwrap().clear();
    let uid = object::uid(&world.get(PODS, "web-1")).to_owned();
    world.delete(PODS, "web-1", None).await;
    world.until("web-1 is another", |w| object::uid(&w.get(PODS, "web-1")) != uid).await;
    world.until("it is complete", |w| w.get(SETS, "web")["status"]["currentReplicas"] == 3).await;
    world.until("all are ready", all_ready(3)).await;
    assert_eq!(images(&world), ["busybox:2"; 3]);
    let status = &world.get(SETS, "web")["status"];
    assert_eq!(
        (&status["currentRevision"], &status["updatedReplicas"]),
        (&status["updateRevision"], &json!(3))
    );
}

#[tokio::test]
async fn a_pod_runs_on_until_its_successors_image_is_on_its_host() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 2)).await;
    world.until("two are ready", all_ready(2)).await;
    let before = [world.get(PODS, "web-0"), world.get(PODS, "web-1")];
    world.images.missing.lock().unwrap().insert("busybox:2".to_owned());
    set_image(&world, "busybox:2").await;
    let told = "update of Pod web-1 in StatefulSet web waits for its images, and the pod runs on: \
                image busybox:2 on host a: not found";
    world.until("it is told", |w| w.events("FailedPrefetch").contains(&told.to_owned())).await;
    for pod in &before {
        assert_eq!(object::uid(&world.get(PODS, object::name(pod))), object::uid(pod));
    }
    assert_eq!(world.ready(), ["web-0", "web-1"]);
    // It is tried again without anybody asking.
    world.images.missing.lock().unwrap().clear();
    world.until("both are new", |w| images(w) == ["busybox:2"; 2] && all_ready(2)(w)).await;
}

#[tokio::test]
async fn a_broken_update_is_healed_by_another_template_and_nobody_deletes_a_pod() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 2)).await;
    world.until("two are ready", all_ready(2)).await;
    world.orders.unready.lock().unwrap().insert("web-1".to_owned());
    set_image(&world, "broken").await;
    world.until("web-1 is broken", |w| image(w, "web-1") == "broken").await;
    world.rest().await;
    assert_eq!(world.ready(), ["web-0"]);
    world.orders.unready.lock().unwrap().clear();
    set_image(&world, "busybox:3").await;
    world.until("both are new", |w| images(w) == ["busybox:3"; 2] && all_ready(2)(w)).await;
}

#[tokio::test]
async fn a_revision_that_misses_its_deadline_is_left_again_and_named() {
    let mut world = World::new().await;
    let mut value = set("web", 2);
    value["metadata"]["annotations"] =
        json!({"berth.dev/progress-deadline-seconds": "1", "berth.dev/auto-rollback": "true"});
    world.create(SETS, "default", value).await;
    world.until("two are ready", all_ready(2)).await;
    let condition = |world: &World, kind: &str| {
        let set = world.get(SETS, "web");
        let conditions = set["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == kind).unwrap_or_default()
    };
    world.until("it says so", |w| condition(w, "Progressing")["reason"] == "NewRevisionAvailable").await;
    world.orders.unready.lock().unwrap().insert("web-1".to_owned());
    set_image(&world, "broken").await;
    world
        .until("web-1 is broken", |w| {
            image(w, "web-1") == "broken" && w.get(PODS, "web-1")["status"]["phase"] == "Running"
        })
        .await;
    world.orders.unready.lock().unwrap().clear();
    world.until("web-1 is back", |w| images(w) == ["busybox"; 2] && all_ready(2)(w)).await;
    assert_eq!(condition(&world, "Progressing")["reason"], "ProgressDeadlineExceeded");
    assert_eq!(condition(&world, "RevisionRejected")["status"], "True");
    let rejected = world.get(SETS, "web")["status"]["updateRevision"].clone();
    assert_eq!(world.get(SETS, "web")["metadata"]["annotations"]["berth.dev/rejected-revision"], rejected);
    world.until("the event is written", |w| w.events("RevisionRejected").len() == 1).await;
    // A restart forgets nothing.
    world.stop();
    world.start();
    world.delete(PODS, "web-0", None).await;
    world.until("web-0 is another", |w| w.ready() == ["web-0", "web-1"]).await;
    world.rest().await;
    assert_eq!(images(&world), ["busybox"; 2]);
    set_image(&world, "busybox:3").await;
    world.until("both are new", |w| images(w) == ["busybox:3"; 2] && all_ready(2)(w)).await;
    world
        .until("the rejected one is forgotten", |w| {
            w.get(SETS, "web")["metadata"]["annotations"]["berth.dev/rejected-revision"].is_null()
        })
        .await;
}

/// KEP-4650: Kubernetes refuses the edit.
#[tokio::test]
async fn issue_68737_a_set_that_asks_for_more_storage_gets_larger_volumes_and_keeps_its_pods() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 2)).await;
    world.until("two are ready", all_ready(2)).await;
    let before = [world.get(PODS, "web-0"), world.get(PODS, "web-1")];
    world
        .change(SETS, "web", |set| {
            let template = &mut set["spec"]["volumeClaimTemplates"][0];
            template["spec"]["resources"]["requests"]["storage"] = "3Gi".into();
            template["metadata"]["labels"] = json!({"tier": "gold"});
        })
        .await;
    for claim in ["data-web-0", "data-web-1"] {
        let capacity = |w: &World| w.get(CLAIMS, claim)["status"]["capacity"]["storage"].clone();
        world.until("the claim has more", |w| capacity(w) == "3Gi").await;
        let claim = world.get(CLAIMS, claim);
        assert_eq!(object::label(&claim, "tier"), Some("gold"));
        let volume = world.get(VOLUMES, claim["spec"]["volumeName"].as_str().unwrap());
        assert_eq!(volume["spec"]["capacity"]["storage"], "3Gi");
    }
    world.rest().await;
    for pod in &before {
        assert_eq!(object::uid(&world.get(PODS, object::name(pod))), object::uid(pod));
    }
}

#[tokio::test]
async fn claims_go_with_the_pod_or_the_set_only_where_the_set_wants_it() {
    let world = World::new().await;
    let mut value = set("web", 2);
    value["spec"]["persistentVolumeClaimRetentionPolicy"] =
        json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    world.create(SETS, "default", value).await;
    world.until("two are ready", all_ready(2)).await;
    world.scale("web", 1).await;
    world.until("the claim went along", |w| w.names(CLAIMS) == ["data-web-0"]).await;
    world.delete(SETS, "web", Some(Propagation::Background)).await;
    world.until("the pods are gone", |w| w.names(PODS).is_empty()).await;
    world.rest().await;
    assert_eq!(world.names(CLAIMS), ["data-web-0"], "retained");
}
