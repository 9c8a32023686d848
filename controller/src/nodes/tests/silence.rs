//! Hosts that fall silent, and what becomes of the names of their pods: each way of DESIGN D5.

use super::*;

impl Controller {
    /// A pod of the set `web`.
    async fn create_ordinal(&self, name: &str) -> Value {
        let pod = json!({
            "metadata": {"name": name, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
        });
        self.objects.create(&POD, "default", pod, &Options::default()).await.unwrap().value()
    }

    /// Waits until a node is known not to answer, and gives it as it is then.
    async fn unreachable(&self, name: &str) -> Value {
        let tainted = |node: &Value| node["spec"]["taints"].as_array().is_some_and(|all| !all.is_empty());
        self.until("it is unreachable", || self.get("nodes", name).filter(tainted)).await
    }

    async fn set_taints(&self, name: &str, taints: Value) {
        let change = |node: &mut Value| {
            node["spec"]["taints"] = taints.clone();
            Ok(())
        };
        self.objects.modify(&NODE, None, "", name, change).await.unwrap();
    }

    async fn why_it_waits(&self, pod: &str) -> String {
        self.until("why it waits", || {
            let pod = self.get("pods", pod)?;
            Some(pod["status"]["conditions"][0]["message"].as_str()?.to_owned())
        })
        .await
    }
}

fn out_of_service() -> Value {
    json!([{"key": identity::OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}])
}

fn line(pod: &PodRef) -> PodInventory {
    PodInventory { pod: Some(pod.clone()), stopped: false, status: Some(running(pod)) }
}

#[tokio::test]
async fn a_silent_host_is_not_ready_says_why_takes_nothing_and_keeps_its_pods_until_it_is_back() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    controller.create_ordinal("web-0").await;
    let life = agent.assigned().await.pod.unwrap();
    agent.running(&life).await;
    controller
        .until("it runs", || controller.get("pods", "web-0").filter(|p| phase(p) == Some("Running")))
        .await;
    drop(agent);
    let node = controller.unreachable("n1").await;
    let ready =
        node["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("Unknown"), &json!("NodeStatusUnknown")));
    let message = ready["message"].as_str().unwrap();
    assert!(message.ends_with("; its pods run on if the host does"), "{message}");
    let taints: Vec<(&str, &str)> = (node["spec"]["taints"].as_array().unwrap().iter())
        .map(|t| (t["key"].as_str().unwrap(), t["effect"].as_str().unwrap()))
        .collect();
    let key = "node.kubernetes.io/unreachable";
    assert_eq!(taints, [(key, "NoSchedule"), (key, "NoExecute")]);

    controller.create_pod("other", json!({})).await;
    assert_eq!(
        controller.why_it_waits("other").await,
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }."
    );
    assert_eq!(controller.record("web-0").unwrap().epoch, life.epoch);
    assert_eq!(phase(&controller.get("pods", "web-0").unwrap()), Some("Running"));

    let mut agent = controller.agent_with("n1", vec![line(&life)]).await;
    let said = agent.synced().await;
    assert!(said.iter().all(|m| !matches!(m, Down::Stop(_))), "{said:?}");
    let other = controller.until("it is bound", || controller.record("other")).await;
    assert_eq!(other.node, "n1");
    assert_eq!(controller.get("nodes", "n1").unwrap()["spec"]["taints"], Value::Null);
}

#[tokio::test]
async fn a_pod_deleted_from_a_silent_host_is_stopped_there_before_its_name_is_used_again() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    controller.create_ordinal("web-0").await;
    let first = agent.assigned().await.pod.unwrap();
    drop(agent);
    controller.unreachable("n1").await;
    let mut elsewhere = controller.agent("n2").await;
    controller.delete_pod("web-0", Some(0)).await;
    controller.create_ordinal("web-0").await;
    let why = controller.why_it_waits("web-0").await;
    assert!(why.starts_with("the name is still held by an earlier pod (uid "), "{why}");

    let mut agent = controller.agent_with("n1", vec![line(&first)]).await;
    let said = agent.synced().await;
    let [Down::Welcome(_), Down::Stop(stop)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((stop.pod.as_ref(), stop.grace_seconds), (Some(&first), 0));
    assert_eq!(controller.record("web-0").unwrap().uid, first.uid);
    agent.stopped(&first).await;
    // It was n1's, so that is where it returns to.
    let mut said = vec![agent.next().await, agent.next().await];
    said.sort_by_key(|m| matches!(m, Down::Assign(_)));
    assert_eq!(said[0], Down::Forget(first.clone()));
    let Down::Assign(second) = &said[1] else { panic!("{said:?}") };
    assert!(second.pod.as_ref().unwrap().epoch > first.epoch);
    controller.create_pod("last", json!({"nodeName": "n2"})).await;
    assert_eq!(elsewhere.assigned().await.pod.unwrap().name, "last", "and nothing before it");
}

#[tokio::test]
async fn out_of_service_frees_the_names_of_a_silent_host_and_never_of_one_that_speaks() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    controller.create_ordinal("web-0").await;
    let first = one.assigned().await.pod.unwrap();
    let mut two = controller.agent("n2").await;
    controller.set_taints("n1", out_of_service()).await;
    // What the scheduler has said of a later change shows that it has seen this one.
    controller.create_pod("after", json!({})).await;
    two.assigned().await;
    assert_eq!(controller.record("web-0").unwrap().uid, first.uid);
    drop(one);

    controller.until("it is freed", || controller.record("web-0").is_none().then_some(())).await;
    let lost = controller.until("it has failed", || {
        controller.get("pods", "web-0").filter(|pod| phase(pod) == Some("Failed"))
    });
    assert_eq!(lost.await["status"]["reason"], "IdentityLost");
    controller.delete_pod("web-0", None).await;
    controller.create_ordinal("web-0").await;
    let second = two.assigned().await.pod.unwrap();
    assert!(second.epoch > first.epoch && second.name == "web-0");

    // The host was not down after all: what it still runs has lost the name, and is stopped.
    let mut one = controller.agent_with("n1", vec![line(&first)]).await;
    let said = one.synced().await;
    let [Down::Welcome(_), Down::Stop(stop)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((stop.pod.as_ref(), stop.grace_seconds), (Some(&first), 0));
    one.stopped(&first).await;
    assert_eq!(one.next().await, Down::Forget(first));
    assert_eq!(controller.record("web-0").unwrap().uid, second.uid);
}

#[tokio::test]
async fn deleting_a_silent_hosts_node_frees_nothing_and_one_declared_down_in_its_place_does() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    controller.create_ordinal("web-0").await;
    let first = one.assigned().await.pod.unwrap();
    drop(one);
    controller.unreachable("n1").await;
    let mut two = controller.agent("n2").await;
    controller.objects.delete(&NODE, "", "n1", &DeleteOptions::default()).await.unwrap();
    controller.delete_pod("web-0", Some(0)).await;
    controller.create_ordinal("web-0").await;
    controller.why_it_waits("web-0").await;
    assert_eq!(controller.record("web-0").unwrap().uid, first.uid);

    let node = json!({"metadata": {"name": "n1"}, "spec": {"taints": out_of_service()}});
    controller.objects.create(&NODE, "", node, &Options::default()).await.unwrap();
    let second = two.assigned().await.pod.unwrap();
    assert!(second.epoch > first.epoch && second.name == "web-0");
}

#[tokio::test]
async fn an_impostor_is_refused_whatever_it_comes_with() {
    let controller = Controller::start().await;
    let hour = Duration::from_secs(3600);
    let token = async |node: Option<&str>| controller.tokens.create(node, hour).await.unwrap();
    let hello = || Hello { node_name: "n1".into(), node: Some(host()), ..Hello::default() };
    let used = token(None).await;
    let mine = controller.join(&used, "n1").await.unwrap();
    let mut agent = Agent::open(mine.clone(), hello()).await;
    agent.synced().await;

    for (token, why) in [
        (used, "was used for node \"n1\" already"),
        (token(None).await, "is another machine's name"),
        (token(Some("n2")).await, "is for node \"n2\""),
        ("made up".to_owned(), "is not valid"),
    ] {
        let refused = controller.join(&token, "n1").await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert!(refused.message().contains(why), "{refused}");
    }
    assert!(controller.nodes.connected("n1"));

    // Whom a person vouches for has the name from then on, and the machine before it has lost it.
    let new = controller.join(&token(Some("n1")).await, "n1").await.unwrap();
    Agent::open(new, hello()).await.synced().await;
    assert!(agent.ended().await.contains("took over"));
    let (_up, messages) = mpsc::channel::<AgentMessage>(1);
    let refused = NodeClient::new(mine).session(ReceiverStream::new(messages)).await.unwrap_err();
    assert!(refused.message().contains("another machine has joined as node \"n1\""), "{refused}");
}
