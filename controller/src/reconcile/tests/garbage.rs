use berth_controller_core::identity;

use super::*;

async fn started(replicas: u32) -> World {
    let world = World::new().await;
    world.create(SETS, "default", set("web", replicas)).await;
    world.until("all are ready", move |w| w.ready().len() == replicas as usize).await;
    world.rest().await;
    world
}

fn all_gone(world: &World) -> bool {
    world.names(SETS).is_empty()
        && world.names(PODS).is_empty()
        && world.names(&kinds::controller_revision::CONTROLLER_REVISION).is_empty()
}

#[tokio::test]
async fn in_the_background_the_pods_follow_their_set_and_the_claims_stay() {
    let world = started(3).await;
    world.delete(SETS, "web", Some(Propagation::Background)).await;
    assert!(world.names(SETS).is_empty());
    world.until("all is gone", all_gone).await;
    world.rest().await;
    assert_eq!(world.names(CLAIMS).len(), 3);
    assert_eq!(world.get(CLAIMS, "data-web-0")["status"]["phase"], "Bound");
}

#[tokio::test]
async fn in_the_foreground_the_set_goes_last() {
    let world = started(2).await;
    world.orders.stuck.lock().unwrap().insert("web-0".to_owned());
    world.delete(SETS, "web", Some(Propagation::Foreground)).await;
    world.until("web-1 is gone", |w| w.names(PODS) == ["web-0"]).await;
    world.rest().await;
    assert!(object::deleting(&world.get(SETS, "web")), "the set waits for web-0");
    let uid = object::uid(&world.get(PODS, "web-0")).to_owned();
    world.objects.remove(PODS, "default", "web-0", &uid).await.unwrap();
    world.until("all is gone", all_gone).await;
}

/// The pod waits for the claim that goes with it, and the claim for the pod that uses it: it is the host's word that
/// ends this.
#[tokio::test]
async fn a_pod_that_goes_in_the_foreground_takes_the_claim_it_owns_along_once_its_host_has_let_go() {
    let world = World::new().await;
    let mut value = set("web", 2);
    value["spec"]["persistentVolumeClaimRetentionPolicy"] =
        json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    world.create(SETS, "default", value).await;
    world.until("all are ready", |w| w.ready().len() == 2).await;
    world.orders.stuck.lock().unwrap().insert("web-1".to_owned());
    let uid = object::uid(&world.get(PODS, "web-1")).to_owned();
    let record = Key::new(identity::RESOURCE, "default", "web-1");
    let held =
        json!({"metadata": {"name": "web-1", "namespace": "default"}, "uid": uid, "node": "a", "epoch": 1});
    world.objects.store().commit(Transaction::new().put(record.clone(), held)).await.unwrap();
    world.scale("web", 1).await;
    let owner = |w: &World| w.get(CLAIMS, "data-web-1")["metadata"]["ownerReferences"][0]["name"].clone();
    world.until("the pod owns its claim", |w| owner(w) == "web-1").await;
    world.delete(PODS, "web-1", Some(Propagation::Foreground)).await;
    world.until("the claim is to go", |w| object::deleting(&w.get(CLAIMS, "data-web-1"))).await;
    world.rest().await;
    assert_eq!(world.names(CLAIMS).len(), 2, "web-1 still has it mounted");
    world.objects.store().commit(Transaction::new().delete(record)).await.unwrap();
    world.objects.remove(PODS, "default", "web-1", &uid).await.unwrap();
    world.until("both are gone", |w| w.names(PODS) == ["web-0"] && w.names(CLAIMS) == ["data-web-0"]).await;
}

#[tokio::test]
async fn orphaned_pods_live_on_and_a_new_set_of_that_name_adopts_them() {
    let world = started(2).await;
    let uids = [
        object::uid(&world.get(PODS, "web-0")).to_owned(),
        object::uid(&world.get(PODS, "web-1")).to_owned(),
    ];
    world.delete(SETS, "web", Some(Propagation::Orphan)).await;
    world.until("the set is gone", |w| w.names(SETS).is_empty()).await;
    world.rest().await;
    assert_eq!(world.ready().len(), 2);
    assert!(object::controller_ref(&world.get(PODS, "web-0")).is_none());
    world.create(SETS, "default", set("web", 2)).await;
    world
        .until("adopted", |w| {
            ["web-0", "web-1"].iter().all(|p| object::controller_ref(&w.get(PODS, p)).is_some())
        })
        .await;
    world.rest().await;
    let now = [
        object::uid(&world.get(PODS, "web-0")).to_owned(),
        object::uid(&world.get(PODS, "web-1")).to_owned(),
    ];
    assert_eq!(now, uids);
    assert_eq!(world.names(&kinds::controller_revision::CONTROLLER_REVISION).len(), 1);
}

#[tokio::test]
async fn one_owner_is_enough_and_lost_ones_are_dropped() {
    let world = World::new().await;
    let owner = |name: &str| json!({"metadata": {"name": name}});
    let maps = &kinds::config_map::CONFIG_MAP;
    for name in ["one", "two"] {
        world.create(maps, "default", owner(name)).await;
    }
    let reference = |w: &World, name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": object::uid(&w.get(maps, name))});
    let owners = json!([reference(&world, "one"), reference(&world, "two")]);
    world.create(maps, "default", json!({"metadata": {"name": "both", "ownerReferences": owners}})).await;
    world.delete(maps, "one", None).await;
    world
        .until("the lost owner is dropped", |w| {
            w.get(maps, "both")["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.len() == 1)
        })
        .await;
    world.delete(maps, "two", None).await;
    world.until("it goes with its last owner", |w| w.get(maps, "both").is_null()).await;
}

#[tokio::test]
async fn an_owner_of_the_same_name_and_another_uid_is_no_owner() {
    let world = World::new().await;
    let maps = &kinds::config_map::CONFIG_MAP;
    world.create(maps, "default", json!({"metadata": {"name": "one"}})).await;
    let owners = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "one", "uid": "an-older-one"}]);
    world
        .create(maps, "default", json!({"metadata": {"name": "dependent", "ownerReferences": owners}}))
        .await;
    world.until("it is collected", |w| w.get(maps, "dependent").is_null()).await;
    assert!(!world.get(maps, "one").is_null());
}

#[tokio::test]
async fn a_namespace_has_a_default_account_is_emptied_and_goes() {
    let world = World::new().await;
    world.create(NAMESPACES, "", json!({"metadata": {"name": "prod"}})).await;
    let accounts = &kinds::service_account::SERVICE_ACCOUNT;
    let account = |w: &World| w.objects.store().get(&key(accounts, "prod", "default"));
    world.until("its account", |w| account(w).is_some()).await;
    let uid = account(&world).unwrap().meta.uid.clone();
    world.objects.delete(accounts, "prod", "default", &DeleteOptions::default()).await.unwrap();
    world.until("another account", |w| account(w).is_some_and(|a| a.meta.uid != uid)).await;
    world.create(SETS, "prod", set("web", 2)).await;
    world.until("two are ready", |w| w.ready().len() == 2).await;
    world.orders.stuck.lock().unwrap().insert("web-1".to_owned());
    world.delete(NAMESPACES, "prod", None).await;
    world.until("only web-1 holds it", |w| w.names(PODS) == ["web-1"]).await;
    world.rest().await;
    let namespace = world.get(NAMESPACES, "prod");
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let left = namespace["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "NamespaceContentRemaining")
        .unwrap();
    assert!(left["message"].as_str().unwrap().contains("pods has 1 resource instances"), "{left}");
    let pod = world.objects.store().get(&key(PODS, "prod", "web-1")).unwrap();
    world.objects.remove(PODS, "prod", "web-1", &pod.meta.uid).await.unwrap();
    world.until("it is gone", |w| w.get(NAMESPACES, "prod").is_null()).await;
    assert!(world.names(CLAIMS).is_empty());
}
