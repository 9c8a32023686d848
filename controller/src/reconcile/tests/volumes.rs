use super::*;

fn claim(name: &str, class: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

fn static_volume(name: &str, class: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "hostPath": {"path": format!("/mnt/{name}")},
        },
    })
}

fn phase(value: &Value) -> &str {
    value["status"]["phase"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_claim_in_use_goes_when_its_pod_does_and_its_directory_is_removed_on_that_host() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 1)).await;
    world.until("web-0 is ready", |w| w.ready() == ["web-0"]).await;
    let volume = world.get(CLAIMS, "data-web-0")["spec"]["volumeName"].as_str().unwrap().to_owned();
    let directory = Directory { root: String::new(), name: format!("default-data-web-0-{volume}") };
    world.delete(CLAIMS, "data-web-0", None).await;
    world.rest().await;
    assert!(object::deleting(&world.get(CLAIMS, "data-web-0")), "web-0 uses it");
    world.scale("web", 0).await;
    world
        .until("claim and volume are gone", |w| w.names(CLAIMS).is_empty() && w.names(VOLUMES).is_empty())
        .await;
    let ended = (Some("a".to_owned()), Location::Directory(directory), End::Remove);
    assert_eq!(*world.hosts.ended.lock().unwrap(), [ended]);
}

#[tokio::test]
async fn a_host_that_cannot_remove_the_directory_now_is_asked_again() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 1)).await;
    world.until("web-0 is ready", |w| w.ready() == ["web-0"]).await;
    *world.hosts.refuse.lock().unwrap() = Some("the host does not answer".to_owned());
    world.scale("web", 0).await;
    world.until("no pod", |w| w.names(PODS).is_empty()).await;
    world.delete(CLAIMS, "data-web-0", None).await;
    world.until("it is told", |w| !w.events("VolumeFailedDelete").is_empty()).await;
    let volume = world.names(VOLUMES)[0].clone();
    assert_eq!(phase(&world.get(VOLUMES, &volume)), "Failed");
    *world.hosts.refuse.lock().unwrap() = None;
    world.until("the volume is gone", |w| w.names(VOLUMES).is_empty()).await;
}

#[tokio::test]
async fn a_retained_volume_is_released_and_its_directory_stays() {
    let world = World::new().await;
    world.create(VOLUMES, "", static_volume("disk", "manual")).await;
    world.until("it is available", |w| phase(&w.get(VOLUMES, "disk")) == "Available").await;
    world.create(CLAIMS, "default", claim("mine", "manual")).await;
    world.until("they are bound", |w| phase(&w.get(CLAIMS, "mine")) == "Bound").await;
    assert_eq!(phase(&world.get(VOLUMES, "disk")), "Bound");
    assert_eq!(world.get(CLAIMS, "mine")["status"]["capacity"]["storage"], "2Gi");
    world.delete(VOLUMES, "disk", None).await;
    world.rest().await;
    assert!(object::deleting(&world.get(VOLUMES, "disk")), "a bound volume is protected");
    world.delete(CLAIMS, "mine", None).await;
    world.until("both are gone", |w| w.names(VOLUMES).is_empty() && w.names(CLAIMS).is_empty()).await;
    assert!(world.hosts.ended.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_claim_that_came_first_is_bound_when_its_volume_or_class_comes() {
    let world = World::new().await;
    world.create(CLAIMS, "default", claim("mine", "manual")).await;
    world.until("it is told", |w| !w.events("ProvisioningFailed").is_empty()).await;
    assert_eq!(phase(&world.get(CLAIMS, "mine")), "Pending");
    world.create(VOLUMES, "", static_volume("disk", "manual")).await;
    world.until("it is bound", |w| phase(&w.get(CLAIMS, "mine")) == "Bound").await;
}

#[tokio::test]
async fn a_claim_is_bound_once_its_provisioner_is_mapped() {
    let world = World::new().await;
    let class = json!({"metadata": {"name": "later"}, "provisioner": "later.example"});
    world.create(&kinds::storage_class::STORAGE_CLASS, "", class).await;
    world.create(CLAIMS, "default", claim("mine", "later")).await;
    world.until("it is told", |w| !w.events("ExternalProvisioning").is_empty()).await;
    let export = Export { server: "nas".into(), share: "/later".into(), ..Export::default() };
    let mapped = ("later.example".to_owned(), Backend::Export(export));
    world.mapping.send_replace(Provisioners::new([mapped]));
    world.until("it is bound", |w| phase(&w.get(CLAIMS, "mine")) == "Bound").await;
}

#[tokio::test]
async fn a_claim_without_a_class_gets_the_default_one() {
    let world = World::new().await;
    let mut value = claim("mine", "");
    value["spec"].as_object_mut().unwrap().remove("storageClassName");
    world.create(CLAIMS, "default", value).await;
    world.until("it has its class", |w| w.get(CLAIMS, "mine")["spec"]["storageClassName"] == "local").await;
    world.until("it waits for a pod", |w| !w.events("WaitForFirstConsumer").is_empty()).await;
}

#[tokio::test]
async fn a_bound_claim_whose_volume_is_gone_is_lost() {
    let world = World::new().await;
    world.create(VOLUMES, "", static_volume("disk", "manual")).await;
    world.create(CLAIMS, "default", claim("mine", "manual")).await;
    world.until("they are bound", |w| phase(&w.get(CLAIMS, "mine")) == "Bound").await;
    world.delete(VOLUMES, "disk", None).await;
    world.change(VOLUMES, "disk", |v| v["metadata"]["finalizers"] = json!([])).await;
    world.until("it is lost", |w| phase(&w.get(CLAIMS, "mine")) == "Lost").await;
}

#[tokio::test]
async fn a_pod_removed_by_force_keeps_its_claims_until_its_host_says_it_has_stopped() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 1)).await;
    world.until("web-0 is ready", |w| w.ready() == ["web-0"]).await;
    let pod = world.get(PODS, "web-0");
    let identity = Key::new("identities.berth.dev", "default", "web-0");
    let record = json!({"metadata": {}, "uid": object::uid(&pod), "node": "a", "epoch": 1});
    let store = world.objects.store();
    store.commit(Transaction::new().put(identity.clone(), record)).await.unwrap();
    world.scale("web", 0).await;
    world.until("no pod", |w| w.names(PODS).is_empty()).await;
    world.delete(CLAIMS, "data-web-0", None).await;
    world.rest().await;
    assert_eq!(world.names(CLAIMS), ["data-web-0"]);
    assert!(world.hosts.ended.lock().unwrap().is_empty());
    store.commit(Transaction::new().delete(identity)).await.unwrap();
    world
        .until("claim and volume are gone", |w| w.names(CLAIMS).is_empty() && w.names(VOLUMES).is_empty())
        .await;
}

#[tokio::test]
async fn a_claim_that_asks_for_more_gets_it() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 1)).await;
    world.until("web-0 is ready", |w| w.ready() == ["web-0"]).await;
    let more = |claim: &mut Value| claim["spec"]["resources"]["requests"]["storage"] = "3Gi".into();
    world.change(CLAIMS, "data-web-0", more).await;
    world
        .until("it has more", |w| w.get(CLAIMS, "data-web-0")["status"]["capacity"]["storage"] == "3Gi")
        .await;
    assert_eq!(world.get(VOLUMES, &world.names(VOLUMES)[0])["spec"]["capacity"]["storage"], "3Gi");
}

fn nfs_class(name: &str, provisioner: &str, parameters: Value) -> Value {
    json!({"metadata": {"name": name}, "provisioner": provisioner, "parameters": parameters})
}

fn nfs_claim(name: &str, class: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}},
                 "storageClassName": class},
    })
}

#[tokio::test]
async fn a_pod_that_has_ended_keeps_its_claim_until_its_last_write_has_arrived() {
    let world = World::new().await;
    world.create(SETS, "default", set("web", 1)).await;
    world.until("web-0 is ready", |w| w.ready() == ["web-0"]).await;
    let volume = world.get(CLAIMS, "data-web-0")["spec"]["volumeName"].clone();
    let identity = Key::new("identities.berth.dev", "default", "job");
    let used = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}]);
    let container = json!([{"name": "c", "image": "busybox"}]);
    let spec = json!({"nodeName": "a", "containers": container, "volumes": used});
    world.create(PODS, "default", json!({"metadata": {"name": "job"}, "spec": spec})).await;
    world.until("it runs", |w| w.ready().contains(&"job".to_owned())).await;
    let mut job = world.get(PODS, "job");
    job["status"]["phase"] = "Succeeded".into();
    let uid = object::uid(&job).to_owned();
    let record =
        |volumes: Value| json!({"metadata": {}, "uid": uid, "node": "a", "epoch": 1, "volumes": volumes});
    let store = world.objects.store();
    let ended = Transaction::new().put(key(PODS, "default", "job"), job);
    store.commit(ended.put(identity.clone(), record(json!([volume])))).await.unwrap();
    world.scale("web", 0).await;
    world.until("only the job is left", |w| w.names(PODS) == ["job"]).await;
    world.delete(CLAIMS, "data-web-0", None).await;
    world.rest().await;
    assert_eq!(world.names(CLAIMS), ["data-web-0"]);
    store.commit(Transaction::new().put(identity, record(json!([])))).await.unwrap();
    world
        .until("claim and volume are gone", |w| w.names(CLAIMS).is_empty() && w.names(VOLUMES).is_empty())
        .await;
    assert_eq!(world.hosts.ended.lock().unwrap().len(), 1);
}

/// The paths on servers of the directories that were ended, and how.
fn ended(world: &World) -> Vec<(String, End)> {
    let path = |location: &Location| match location {
        Location::Nfs(nfs) => format!("{}:{}", nfs.server, nfs.full_path()),
        Location::Directory(directory) => directory.name.clone(),
    };
    world.hosts.ended.lock().unwrap().iter().map(|(_, location, end)| (path(location), *end)).collect()
}

#[tokio::test]
async fn an_nfs_claim_is_bound_without_a_pod_and_its_directory_archived_by_any_host() {
    let world = World::new().await;
    let classes = &kinds::storage_class::STORAGE_CLASS;
    world.create(classes, "", nfs_class("nas", "subdir", json!({}))).await;
    world.create(CLAIMS, "default", nfs_claim("data", "nas")).await;
    world.until("it is bound", |w| phase(&w.get(CLAIMS, "data")) == "Bound").await;
    let volume = world.get(CLAIMS, "data")["spec"]["volumeName"].as_str().unwrap().to_owned();
    assert_eq!(world.get(VOLUMES, &volume)["spec"]["nfs"]["path"], format!("/export/default-data-{volume}"));
    world.delete(CLAIMS, "data", None).await;
    world.until("the volume is gone", |w| w.names(VOLUMES).is_empty()).await;
    assert_eq!(ended(&world), [(format!("nas:/export/default-data-{volume}"), End::Archive)]);
}

#[tokio::test]
async fn a_volume_of_another_cluster_is_taken_by_its_claim_and_archived_in_its_share() {
    let world = World::new().await;
    let classes = &kinds::storage_class::STORAGE_CLASS;
    world.create(classes, "", nfs_class("nas", "subdir", json!({}))).await;
    // As `kubectl get pv -o yaml` shows what nfs-subdir-external-provisioner made.
    let path = "/export/default-data-web-0-pvc-9";
    let moved = json!({
        "metadata": {"name": "pvc-9", "annotations": {"pv.kubernetes.io/provisioned-by": "subdir"}},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "nas",
            "persistentVolumeReclaimPolicy": "Delete", "nfs": {"server": "nas", "path": path},
            "claimRef": {"namespace": "default", "name": "data-web-0"},
        },
    });
    world.create(VOLUMES, "", moved).await;
    world.create(CLAIMS, "default", nfs_claim("data-web-0", "nas")).await;
    world.until("it is bound", |w| phase(&w.get(CLAIMS, "data-web-0")) == "Bound").await;
    assert_eq!(world.names(VOLUMES), ["pvc-9"], "no other was made");
    world.delete(CLAIMS, "data-web-0", None).await;
    world.until("the volume is gone", |w| w.names(VOLUMES).is_empty()).await;
    let done = world.hosts.ended.lock().unwrap().clone();
    let [(None, Location::Nfs(nfs), End::Archive)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((nfs.share.as_str(), nfs.sub_dir.as_str()), ("/export", "default-data-web-0-pvc-9"));
}

#[tokio::test]
async fn a_directory_that_two_volumes_have_goes_with_the_last_of_them() {
    let world = World::new().await;
    let classes = &kinds::storage_class::STORAGE_CLASS;
    let parameters = json!({"server": "nas", "share": "/", "subDir": "shared/${pvc.metadata.namespace}"});
    world.create(classes, "", nfs_class("one", "nfs.csi.k8s.io", parameters)).await;
    for name in ["first", "second"] {
        world.create(CLAIMS, "default", nfs_claim(name, "one")).await;
        world.until("it is bound", |w| phase(&w.get(CLAIMS, name)) == "Bound").await;
    }
    world.delete(CLAIMS, "first", None).await;
    world.until("its volume is gone", |w| w.names(VOLUMES).len() == 1).await;
    assert_eq!(ended(&world), []);
    world.until("it is told", |w| w.events("VolumeDirectoryKept").len() == 1).await;
    world.delete(CLAIMS, "second", None).await;
    world.until("its volume is gone too", |w| w.names(VOLUMES).is_empty()).await;
    assert_eq!(ended(&world), [("nas:/shared/default".to_owned(), End::Remove)]);
}

#[tokio::test]
async fn a_claim_is_not_given_a_directory_that_is_about_to_be_removed() {
    let world = World::new().await;
    let classes = &kinds::storage_class::STORAGE_CLASS;
    let parameters = json!({"server": "nas", "share": "/", "subDir": "${pvc.metadata.name}"});
    world.create(classes, "", nfs_class("named", "nfs.csi.k8s.io", parameters)).await;
    world.create(CLAIMS, "default", nfs_claim("data", "named")).await;
    world.until("it is bound", |w| phase(&w.get(CLAIMS, "data")) == "Bound").await;
    *world.hosts.refuse.lock().unwrap() = Some("the server does not answer".to_owned());
    world.delete(CLAIMS, "data", None).await;
    world.until("it is told", |w| !w.events("VolumeFailedDelete").is_empty()).await;
    world.create(CLAIMS, "default", nfs_claim("data", "named")).await;
    world
        .until("it waits", |w| w.events("ProvisioningFailed").iter().any(|m| m.contains("is being deleted")))
        .await;
    *world.hosts.refuse.lock().unwrap() = None;
    world.until("the next one is bound", |w| phase(&w.get(CLAIMS, "data")) == "Bound").await;
    assert_eq!(ended(&world).len(), 1);
}

#[tokio::test]
async fn a_class_that_cannot_be_carried_out_says_what_is_wrong_with_it() {
    let world = World::new().await;
    let classes = &kinds::storage_class::STORAGE_CLASS;
    let parameters = json!({"server": "nas", "share": "/", "subDir": "../${pvc.metadata.name}"});
    world.create(classes, "", nfs_class("bad", "nfs.csi.k8s.io", parameters)).await;
    world.create(CLAIMS, "default", nfs_claim("data", "bad")).await;
    world.until("it is told", |w| !w.events("ProvisioningFailed").is_empty()).await;
    assert!(world.events("ProvisioningFailed")[0].contains("below the share"));
    assert!(world.names(VOLUMES).is_empty());
}
