//! Images from a real registry, with and without credentials.

use berth_tests::cluster::Cluster;
use berth_tests::registry::{ADDRESS, PASSWORD, USER};
use berth_tests::scenario::{SOON, STAY, pod};
use berth_tests::wait;

#[test]
fn an_image_comes_from_a_private_registry_with_its_credentials_and_only_with_them() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let host = cluster.host().unwrap();
    host.start_registry(true).unwrap();
    host.push("docker.io/library/busybox:latest", "fleet/tool:1").unwrap();
    let image = format!("image: {ADDRESS}/fleet/tool:1");

    kubectl.apply(&pod("refused", STAY, "", "").replace("image: busybox", &image)).unwrap();
    wait::until_true("a refusal", SOON, || {
        let reason = kubectl.field("pod refused", ".status.containerStatuses[0].state.waiting.reason")?;
        Ok(["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()))
    })
    .unwrap();
    cluster.event("refused", "Failed", "credentials").unwrap();

    let server = format!("--docker-server={ADDRESS}");
    let (user, password) = (format!("--docker-username={USER}"), format!("--docker-password={PASSWORD}"));
    kubectl.args(&["create", "secret", "docker-registry", "key", &server, &user, &password]).unwrap();
    let manifest =
        pod("allowed", STAY, "", "  imagePullSecrets: [{name: key}]").replace("image: busybox", &image);
    kubectl.apply(&manifest).unwrap();
    cluster.ready("allowed").unwrap();
    cluster.event("allowed", "Pulled", "Successfully pulled image").unwrap();
    let pulled = "involvedObject.name=allowed,reason=Pulled";
    let pulled =
        kubectl.args(&["get", "events", "--field-selector", pulled, "-o", "jsonpath={..message}"]).unwrap();
    let size = pulled.split("Image size: ").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(size.is_some_and(|size| size.parse().is_ok_and(|bytes: u64| bytes > 100_000)), "{pulled}");
    let id = kubectl.field("pod allowed", ".status.containerStatuses[0].imageID").unwrap();
    assert!(id.contains("@sha256:"), "{id}");

    // With the policy Never only what is there counts.
    let never = pod("never", STAY, "", "")
        .replace("image: busybox", "image: busybox:none")
        .replace("IfNotPresent", "Never");
    kubectl.apply(&never).unwrap();
    cluster
        .becomes("pod never", ".status.containerStatuses[0].state.waiting.reason", "ErrImageNeverPull")
        .unwrap();
}
