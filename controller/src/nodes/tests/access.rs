//! Access modes are kept to, whoever asks.

use berth_controller_core::kinds::persistent_volume::PERSISTENT_VOLUME;
use berth_controller_core::kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;

use super::*;

/// A claim bound to an NFS volume, which any host reaches.
async fn bound_claim(controller: &Controller, mode: &str) {
    let options = Options::default();
    let volume = json!({
        "metadata": {"name": "v"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": [mode], "nfs": {"server": "nas", "path": "/x"}},
    });
    controller.objects.create(&PERSISTENT_VOLUME, "", volume, &options).await.unwrap();
    let mut claim = claim("c");
    claim["spec"]["accessModes"] = json!([mode]);
    claim["spec"]["storageClassName"] = "".into();
    claim["spec"]["volumeName"] = "v".into();
    controller.objects.create(&PERSISTENT_VOLUME_CLAIM, "default", claim, &options).await.unwrap();
}

fn using(node: &str) -> Value {
    let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
    json!({"volumes": [volume], "nodeSelector": {"kubernetes.io/hostname": node}})
}

async fn refused(controller: &Controller, pod: &str, why: &str) {
    let what = format!("{pod} waits: {why}");
    let look = || {
        let pod = controller.get("pods", pod)?;
        pod["status"]["conditions"][0]["message"].as_str()?.contains(why).then_some(())
    };
    controller.until(&what, look).await;
}

#[tokio::test]
async fn a_read_write_once_volume_is_on_one_host_until_that_host_says_that_its_pod_has_stopped() {
    let controller = Controller::start().await;
    let (mut n1, mut n2) = (controller.agent("n1").await, controller.agent("n2").await);
    bound_claim(&controller, "ReadWriteOnce").await;
    controller.create_pod("first", using("n1")).await;
    let first = n1.assigned().await.pod.unwrap();
    controller.create_pod("beside", using("n1")).await;
    let beside = n1.assigned().await.pod.unwrap();
    controller.create_pod("elsewhere", using("n2")).await;
    refused(&controller, "elsewhere", "is ReadWriteOnce and in use on \"n1\"").await;
    // Not even by force: the host has not said so.
    controller.delete_pod("first", Some(0)).await;
    controller.delete_pod("beside", Some(0)).await;
    n1.stopped(&beside).await;
    controller.until("one is free", || controller.record("beside").is_none().then_some(())).await;
    refused(&controller, "elsewhere", "by pod default/first").await;
    n1.stopped(&first).await;
    assert_eq!(n2.assigned().await.pod.unwrap().name, "elsewhere");
}

/// What a host says of a pod that has come to its own end.
fn over(pod: &PodRef, phase: &str, released: bool) -> Up {
    Up::PodStatus(PodStatus { phase: phase.into(), released, ..running(pod) })
}

#[tokio::test]
async fn a_pod_that_has_ended_has_its_volume_until_its_host_says_that_its_last_write_has_arrived() {
    let controller = Controller::start().await;
    let (mut n1, mut n2) = (controller.agent("n1").await, controller.agent("n2").await);
    bound_claim(&controller, "ReadWriteOnce").await;
    controller.create_pod("job", merged(using("n1"), json!({"restartPolicy": "Never"}))).await;
    let job = n1.assigned().await.pod.unwrap();
    n1.say(over(&job, "Succeeded", false)).await;
    controller
        .until("it is over", || controller.get("pods", "job").filter(|p| phase(p) == Some("Succeeded")))
        .await;
    controller.create_pod("elsewhere", using("n2")).await;
    refused(&controller, "elsewhere", "is ReadWriteOnce and in use on \"n1\" by pod default/job").await;
    n1.say(over(&job, "Succeeded", true)).await;
    assert_eq!(n2.assigned().await.pod.unwrap().name, "elsewhere");
    assert!(controller.record("job").is_some(), "its name stays held, and its logs are kept");
}

#[tokio::test]
async fn a_pod_that_is_being_stopped_has_its_volume_until_it_has_stopped_whatever_its_phase_says() {
    let controller = Controller::start().await;
    let (mut n1, mut n2) = (controller.agent("n1").await, controller.agent("n2").await);
    bound_claim(&controller, "ReadWriteOnce").await;
    controller.create_pod("first", using("n1")).await;
    let first = n1.assigned().await.pod.unwrap();
    controller.delete_pod("first", None).await;
    n1.say(over(&first, "Failed", false)).await;
    controller
        .until("it has ended", || controller.get("pods", "first").filter(|p| phase(p) == Some("Failed")))
        .await;
    controller.create_pod("elsewhere", using("n2")).await;
    refused(&controller, "elsewhere", "by pod default/first").await;
    n1.stopped(&first).await;
    assert_eq!(n2.assigned().await.pod.unwrap().name, "elsewhere");
}

fn merged(mut spec: Value, more: Value) -> Value {
    let fields = more.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(fields);
    spec
}

#[tokio::test]
async fn a_read_write_once_pod_volume_is_one_pods() {
    let controller = Controller::start().await;
    let mut n1 = controller.agent("n1").await;
    bound_claim(&controller, "ReadWriteOncePod").await;
    controller.create_pod("first", using("n1")).await;
    let first = n1.assigned().await.pod.unwrap();
    controller.create_pod("second", using("n1")).await;
    refused(&controller, "second", "is ReadWriteOncePod and in use by pod default/first").await;
    controller.delete_pod("first", Some(0)).await;
    n1.stopped(&first).await;
    loop {
        if let Down::Assign(assignment) = n1.next().await {
            assert_eq!(assignment.pod.unwrap().name, "second");
            return;
        }
    }
}

#[tokio::test]
async fn a_volume_for_many_is_everywhere() {
    let controller = Controller::start().await;
    let (mut n1, mut n2) = (controller.agent("n1").await, controller.agent("n2").await);
    bound_claim(&controller, "ReadWriteMany").await;
    controller.create_pod("first", using("n1")).await;
    n1.assigned().await;
    controller.create_pod("second", using("n2")).await;
    n2.assigned().await;
}
