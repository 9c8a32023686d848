//! Volumes' directories: what hosts are asked to do with them, and what they say of them.

use berth_controller_core::claims::{Location, Nfs, UNUSED};
use berth_controller_core::kinds::persistent_volume::PERSISTENT_VOLUME;
use berth_controller_core::kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
use berth_proto::volume_operation::{Source, Verb};

use super::*;
use crate::reconcile::{End, Hosts as _};

/// What the host is asked to do with a directory of a server; it answers with this error, or that it is done.
async fn asked(agent: &mut Agent, error: &str) -> (Verb, String) {
    let Down::Volume(operation) = agent.next().await else { panic!("no volume operation") };
    let Some(Source::Nfs(source)) = &operation.source else { panic!("{operation:?}") };
    let asked = (operation.verb(), format!("{}:{}/{}", source.server, source.share, source.sub_dir));
    let operation_id = operation.operation_id;
    agent.say(Up::OperationResult(OperationResult { operation_id, error: error.into() })).await;
    asked
}

#[tokio::test]
async fn a_directory_of_a_server_is_archived_by_the_first_host_that_reaches_it() {
    let controller = Controller::start().await;
    let (mut n1, mut n2) = (controller.agent("n1").await, controller.agent("n2").await);
    let nfs =
        Nfs { server: "nas".into(), share: "/export".into(), sub_dir: "team/a".into(), ..Nfs::default() };
    let end = || {
        let (nodes, location) = (controller.nodes.clone(), Location::Nfs(Box::new(nfs.clone())));
        async move { nodes.end(None, location, End::Archive).await }
    };
    let expected = (Verb::Archive, "nas:/export/team/a".to_owned());
    let ((first, second), done) =
        tokio::join!(async { (asked(&mut n1, "no route to host").await, asked(&mut n2, "").await) }, end());
    assert_eq!((first, second, done), (expected.clone(), expected, Ok(())));
    let (_, failed) =
        tokio::join!(async { (asked(&mut n1, "a").await, asked(&mut n2, "it is squashed").await) }, end());
    assert!(failed.unwrap_err().contains("it is squashed"), "why it cannot be done is told");
}

#[tokio::test]
async fn a_claim_says_whether_its_size_is_enforced_and_what_is_used() {
    let controller = Controller::start().await;
    let mut n1 = controller.agent("n1").await;
    let options = Options::default();
    let volume = json!({
        "metadata": {"name": "v", "annotations": {UNUSED: "true"}},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "nfs": {"server": "nas", "path": "/x"},
        },
    });
    controller.objects.create(&PERSISTENT_VOLUME, "", volume, &options).await.unwrap();
    let mut bound = claim("c");
    bound["spec"]["storageClassName"] = "".into();
    bound["spec"]["volumeName"] = "v".into();
    controller.objects.create(&PERSISTENT_VOLUME_CLAIM, "default", bound, &options).await.unwrap();
    let mount = json!({"name": "data", "persistentVolumeClaim": {"claimName": "c"}});
    controller.create_pod("p", json!({"volumes": [mount]})).await;
    let pod = n1.assigned().await.pod;
    let report = VolumeUsage {
        pod,
        claim: "c".into(),
        enforced: true,
        limit_bytes: 100 << 20,
        used_bytes: (20 << 20) + 1,
    };
    let shown = |annotations: Value| {
        let controller = &controller;
        async move {
            controller
                .until("the claim says so", || {
                    let claim = controller.get("persistentvolumeclaims", "c")?;
                    let shown = |name: &str| claim["metadata"]["annotations"][name].clone();
                    let now = json!([
                        shown("berth.dev/size-enforced"),
                        shown("berth.dev/limit"),
                        shown("berth.dev/used")
                    ]);
                    (now == annotations).then_some(())
                })
                .await;
        }
    };
    n1.say(Up::VolumeUsage(report.clone())).await;
    shown(json!(["true", "100Mi", "21Mi"])).await;
    // From now on a missing directory is lost data, and not one that is yet to be made.
    let volume = controller.store.get(&Key::new("persistentvolumes", "", "v")).unwrap().value();
    assert!(volume["metadata"]["annotations"][UNUSED].is_null());
    n1.say(Up::VolumeUsage(VolumeUsage { enforced: false, ..report })).await;
    shown(json!(["false", null, null])).await;
}
