//! After a restore: what the hosts hold is learnt before anything is bound.

use super::super::world;
use super::*;
use crate::store::Transaction;

/// The store came out of a backup, and this host has not spoken since.
async fn restored(controller: &Controller, awaited: &str) {
    let restore = identity::Restore { awaited: [awaited.to_owned()].into() };
    let gate = Transaction::new().put(world::restore_key(), restore.write());
    controller.store.commit(gate).await.unwrap();
}

#[tokio::test]
async fn after_a_restore_nothing_is_bound_before_every_host_has_spoken() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    restored(&controller, "n2").await;
    controller.create_pod("web-0", json!({})).await;
    controller
        .until("why it waits", || {
            let pod = controller.get("pods", "web-0")?;
            let why = pod["status"]["conditions"][0]["message"].as_str()?.to_owned();
            why.contains("waiting for the inventory of n2").then_some(())
        })
        .await;
    // It runs there: the name is that life's.
    let elsewhere = PodRef { namespace: "default".into(), name: "web-0".into(), uid: "old".into(), epoch: 3 };
    let line = PodInventory { pod: Some(elsewhere.clone()), stopped: false, status: None };
    let mut two = controller.agent_with("n2", vec![line]).await;
    let said = two.synced().await;
    assert!(said.iter().any(|m| matches!(m, Down::Stop(s) if s.pod.as_ref() == Some(&elsewhere))));
    assert!(controller.record("web-0").unwrap().is("n2", "old", 3));
    two.stopped(&elsewhere).await;
    // Only now, and wherever.
    let bound = controller.until("bound", || controller.record("web-0").filter(|r| r.uid != "old")).await;
    let agent = if bound.node == "n1" { &mut one } else { &mut two };
    loop {
        if let Down::Assign(assignment) = agent.next().await {
            assert_eq!(assignment.pod.unwrap().epoch, bound.epoch);
            break;
        }
    }
}

#[tokio::test]
async fn after_a_restore_a_host_that_is_declared_down_is_not_waited_for() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    restored(&controller, "n2").await;
    controller.create_pod("web-0", json!({})).await;
    let taint = json!({"key": identity::OUT_OF_SERVICE, "value": "gone", "effect": "NoExecute"});
    let node = json!({"metadata": {"name": "n2"}, "spec": {"taints": [taint]}});
    controller.objects.create(&NODE, "", node, &Options::default()).await.unwrap();
    assert_eq!(one.assigned().await.pod.unwrap().name, "web-0");
}

#[tokio::test]
async fn after_a_restore_what_a_host_holds_no_more_is_over() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    controller.create_pod("web-0", json!({})).await;
    one.assigned().await;
    drop(one);
    restored(&controller, "n1").await;
    let _one = controller.agent("n1").await;
    let over = || controller.get("pods", "web-0").filter(|pod| pod["status"]["reason"] == "IdentityLost");
    controller.until("its object says so", over).await;
    assert!(controller.record("web-0").is_none());
}
