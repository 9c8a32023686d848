//! The hosts' side over real gRPC and TLS, with agents that are played by the test.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_controller_core::claims::Provisioners;
use berth_controller_core::identity::{self, Record};
use berth_controller_core::kinds::config_map::CONFIG_MAP;
use berth_controller_core::kinds::namespace::NAMESPACE;
use berth_controller_core::kinds::node::NODE;
use berth_controller_core::kinds::pod::POD;
use berth_controller_core::kinds::service::SERVICE;
use berth_controller_schema::Schema;
use berth_proto::agent_message::Message as Up;
use berth_proto::controller_message::Message as Down;
use berth_proto::node_client::NodeClient;
use berth_proto::*;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{Join, JoinRefused, Joined, Nodes, NodesConfig};
use crate::objects::{DeleteOptions, Objects, Options};
use crate::pki::{AgentRequest, Pki, ServerNames};
use crate::reconcile::events::{Events, Recorded};
use crate::services::{Allocations, Services};
use crate::store::{Key, Store};
use crate::tokens::{Revoking, Tokens};

mod access;
mod certificates;
mod images;
mod played;
mod restore;
mod silence;
mod volumes;

use played::*;

#[tokio::test]
async fn a_host_that_says_hello_becomes_a_node() {
    let controller = Controller::start().await;
    let _one = controller.agent("n1").await;
    let mut two = controller.agent_with("n2", vec![]).await;
    let said = two.synced().await;
    let Some(Down::Welcome(welcome)) = said.first() else { panic!("{said:?}") };
    assert_eq!(welcome.pod_cidr, "10.42.1.0/24");
    let node = controller.get("nodes", "n2").unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n2");
    assert_eq!(node["spec"]["podCIDR"], "10.42.1.0/24");
    assert_eq!(
        node["status"]["capacity"],
        json!({
            "cpu": "2", "memory": "4Gi", "ephemeral-storage": "16Gi", "pods": "110",
        })
    );
    assert_eq!(node["status"]["addresses"][0], json!({"type": "InternalIP", "address": "192.0.2.7"}));
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "containerd://1.6.20");
    assert_eq!(berth_controller_core::place::ready(&node), "True");
}

#[tokio::test]
async fn a_node_whose_containerd_is_away_is_not_ready_and_says_so() {
    let controller = Controller::start().await;
    let agent = controller.agent("n1").await;
    let away = NodeStatus { runtime_ready: false, runtime_message: "containerd: gone".into(), ..host() };
    agent.say(Up::NodeStatus(away)).await;
    let condition = controller
        .until("not ready", || {
            let node = controller.get("nodes", "n1")?;
            let ready =
                node["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
            (ready["status"] == "False").then_some(ready)
        })
        .await;
    assert_eq!(condition["message"], "containerd: gone");
    controller.create_pod("p", json!({})).await;
    let why = controller
        .until("why it waits", || {
            let pod = controller.get("pods", "p")?;
            let condition = pod["status"]["conditions"].as_array()?.first()?.clone();
            Some(condition["message"].as_str()?.to_owned())
        })
        .await;
    assert_eq!(
        why,
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
    );
}

#[tokio::test]
async fn a_pod_is_bound_with_its_identity_and_assigned_with_its_address() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let pod = controller.create_pod("web-0", json!({})).await;
    let assignment = agent.assigned().await;
    let life = assignment.pod.clone().unwrap();
    assert_eq!(life.uid, pod["metadata"]["uid"].as_str().unwrap());
    assert_eq!(assignment.network.unwrap().addresses, ["10.42.0.2/24"]);
    let record = controller.record("web-0").unwrap();
    assert!(record.is("n1", &life.uid, life.epoch));
    let pod = controller.get("pods", "web-0").unwrap();
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");

    agent.running(&life).await;
    let pod = controller
        .until("running", || controller.get("pods", "web-0").filter(|p| phase(p) == Some("Running")))
        .await;
    let types: Vec<&str> =
        pod["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Initialized", "Ready", "ContainersReady", "PodScheduled"]);
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "10.42.0.2"}]));
    assert_eq!(pod["status"]["hostIP"], "192.0.2.7");
    assert_eq!(pod["status"]["startTime"], "2026-09-21T14:13:20Z");
}

#[tokio::test]
async fn many_pods_are_bound_each_with_its_own_address_and_epoch() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    for n in 0..50 {
        controller.create_pod(&format!("p{n}"), json!({})).await;
    }
    let mut addresses = std::collections::BTreeSet::new();
    let mut epochs = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let assignment = agent.assigned().await;
        addresses.insert(assignment.network.unwrap().addresses[0].clone());
        epochs.insert(assignment.pod.unwrap().epoch);
    }
    assert_eq!((addresses.len(), epochs.len()), (50, 50));
}

#[tokio::test]
async fn a_deleted_pod_goes_when_its_host_says_that_it_has_stopped() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    controller.create_pod("web-0", json!({"terminationGracePeriodSeconds": 7})).await;
    let life = agent.assigned().await.pod.unwrap();
    controller.delete_pod("web-0", None).await;
    let Down::Stop(stop) = agent.next().await else { panic!("no stop") };
    assert_eq!((stop.pod, stop.grace_seconds), (Some(life.clone()), 7));
    assert!(controller.get("pods", "web-0").is_some());
    agent.stopped(&life).await;
    assert_eq!(agent.next().await, Down::Forget(life));
    assert_eq!(controller.get("pods", "web-0"), None);
    assert_eq!(controller.record("web-0"), None);
}

#[tokio::test]
async fn insisting_shortens_the_grace_period() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    controller.create_pod("web-0", json!({})).await;
    agent.assigned().await;
    controller.delete_pod("web-0", None).await;
    let Down::Stop(first) = agent.next().await else { panic!("no stop") };
    controller.delete_pod("web-0", Some(1)).await;
    let Down::Stop(second) = agent.next().await else { panic!("no second stop") };
    assert_eq!(first.grace_seconds, 30);
    assert!(second.grace_seconds <= 1);
}

#[tokio::test]
async fn after_a_forced_deletion_the_next_pod_of_that_name_waits_for_the_host() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    controller.create_pod("web-0", json!({})).await;
    let first = agent.assigned().await.pod.unwrap();
    controller.delete_pod("web-0", Some(0)).await;
    assert_eq!(controller.get("pods", "web-0"), None);
    let Down::Stop(stop) = agent.next().await else { panic!("no stop") };
    assert_eq!((stop.pod, stop.grace_seconds), (Some(first.clone()), 0));

    controller.create_pod("web-0", json!({})).await;
    let why = controller
        .until("why it waits", || {
            let pod = controller.get("pods", "web-0")?;
            Some(pod["status"]["conditions"][0]["message"].as_str()?.to_owned())
        })
        .await;
    assert!(why.starts_with("the name is still held by an earlier pod (uid "), "{why}");
    agent.stopped(&first).await;
    let mut said = vec![agent.next().await, agent.next().await];
    said.sort_by_key(|m| matches!(m, Down::Assign(_)));
    assert_eq!(said[0], Down::Forget(first.clone()));
    let Down::Assign(second) = &said[1] else { panic!("{said:?}") };
    let second = second.pod.clone().unwrap();
    assert!(second.epoch > first.epoch && second.uid != first.uid);
}

#[tokio::test]
async fn a_finalizer_holds_the_object_and_not_the_name() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    controller.create_pod("web-0", json!({})).await;
    let life = agent.assigned().await.pod.unwrap();
    controller
        .objects
        .modify(&POD, None, "default", "web-0", |pod| {
            pod["metadata"]["finalizers"] = json!(["example.org/hold"]);
            Ok(())
        })
        .await
        .unwrap();
    controller.delete_pod("web-0", None).await;
    assert!(matches!(agent.next().await, Down::Stop(_)));
    agent.stopped(&life).await;
    controller.until("freed", || controller.record("web-0").is_none().then_some(())).await;
    assert!(controller.get("pods", "web-0").is_some());
    let released = controller
        .objects
        .modify(&POD, None, "default", "web-0", |pod| {
            pod["metadata"]["finalizers"] = json!([]);
            Ok(())
        })
        .await;
    released.unwrap();
    controller.until("gone", || controller.get("pods", "web-0").is_none().then_some(())).await;
    assert_eq!(agent.next().await, Down::Forget(life));
}

#[tokio::test]
async fn a_host_that_comes_back_is_told_what_has_changed_meanwhile() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    for name in ["stays", "goes", "over"] {
        controller.create_pod(name, json!({})).await;
    }
    let mut lives = std::collections::HashMap::new();
    for _ in 0..3 {
        let life = agent.assigned().await.pod.unwrap();
        lives.insert(life.name.clone(), life);
    }
    drop(agent);
    controller.delete_pod("goes", None).await;
    controller.delete_pod("over", None).await;
    let line = |name: &str, stopped| PodInventory {
        pod: Some(lives[name].clone()),
        stopped,
        status: Some(running(&lives[name])),
    };
    let stranger = PodRef { namespace: "default".into(), name: "stranger".into(), uid: "x".into(), epoch: 1 };
    let inventory = vec![
        line("stays", false),
        line("goes", false),
        line("over", true),
        PodInventory { pod: Some(stranger.clone()), stopped: false, status: None },
    ];
    let mut agent = controller.agent_with("n1", inventory).await;
    let said = agent.synced().await;
    let assigned =
        |name: &str| said.iter().any(|m| matches!(m, Down::Assign(a) if a.pod.as_ref() == lives.get(name)));
    let stopped =
        |life: &PodRef| said.iter().any(|m| matches!(m, Down::Stop(s) if s.pod.as_ref() == Some(life)));
    assert!(assigned("stays") && !assigned("goes") && !assigned("over"), "{said:?}");
    assert!(stopped(&lives["goes"]) && stopped(&stranger), "{said:?}");
    assert!(said.contains(&Down::Forget(lives["over"].clone())), "{said:?}");
    assert_eq!(controller.get("pods", "over"), None);
    assert_eq!(phase(&controller.get("pods", "stays").unwrap()), Some("Running"));
    // The stranger's name is held until it has stopped.
    assert!(controller.record("stranger").is_some());
    agent.stopped(&stranger).await;
    assert_eq!(agent.next().await, Down::Forget(stranger));
    assert_eq!(controller.record("stranger"), None);
}

#[tokio::test]
async fn a_report_about_another_life_changes_nothing() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let mut other = controller.agent("n2").await;
    controller.create_pod("web-0", json!({"nodeName": "n1"})).await;
    let life = agent.assigned().await.pod.unwrap();
    let older = PodRef { epoch: life.epoch - 1, ..life.clone() };
    agent.running(&older).await;
    agent.stopped(&older).await;
    assert_eq!(agent.next().await, Down::Forget(older));
    other.running(&life).await;
    other.stopped(&life).await;
    assert_eq!(other.next().await, Down::Forget(life.clone()));
    assert!(controller.record("web-0").is_some());
    assert_ne!(phase(&controller.get("pods", "web-0").unwrap()), Some("Running"));
}

#[tokio::test]
async fn a_changed_config_map_sends_the_assignment_again() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]});
    controller.create_pod("web-0", spec).await;
    let first = agent.assigned().await;
    assert!(first.volumes[0].error.contains("configmap \"cm\" not found"));
    let map = json!({"metadata": {"name": "cm"}, "data": {"k": "1"}});
    controller.objects.create(&CONFIG_MAP, "default", map, &Options::default()).await.unwrap();
    let second = agent.assigned().await;
    assert_eq!((second.volumes[0].error.as_str(), &second.pod), ("", &first.pod));
}

#[tokio::test]
async fn a_second_session_of_a_node_takes_over() {
    let controller = Controller::start().await;
    let mut first = controller.agent("n1").await;
    let mut second = controller.agent("n1").await;
    assert!(first.ended().await.contains("took over"));
    controller.create_pod("web-0", json!({})).await;
    second.assigned().await;
    assert!(controller.nodes.connected("n1"));
}

#[tokio::test]
async fn nobody_speaks_for_a_node_without_its_certificate() {
    let controller = Controller::start().await;
    let stranger = controller.endpoint(ClientTlsConfig::new()).connect().await.unwrap();
    let (_up, messages) = mpsc::channel::<AgentMessage>(1);
    let refused = NodeClient::new(stranger).session(ReceiverStream::new(messages)).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_eq!(controller.join("bad", "n1").await.unwrap_err().code(), tonic::Code::PermissionDenied);

    let channel = controller.channel("n1").await;
    let hello = Hello { node_name: "n2".into(), ..Hello::default() };
    let mut agent = Agent::open(channel, hello).await;
    assert!(agent.ended().await.contains("the certificate is node \"n1\"'s"));
    assert_eq!(controller.get("nodes", "n2"), None);
}

#[tokio::test]
async fn a_cordoned_node_gets_the_pod_once_it_is_free_again() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let cordon = |on: bool| {
        let objects = controller.objects.clone();
        async move {
            let done = objects.modify(&NODE, None, "", "n1", |node| {
                node["spec"]["unschedulable"] = on.into();
                Ok(())
            });
            done.await.unwrap();
        }
    };
    cordon(true).await;
    controller.create_pod("web-0", json!({})).await;
    controller
        .until("why it waits", || {
            let pod = controller.get("pods", "web-0")?;
            let why = pod["status"]["conditions"][0]["message"].as_str()?.to_owned();
            (why == "0/1 nodes are available: 1 node(s) were unschedulable.").then_some(())
        })
        .await;
    cordon(false).await;
    agent.assigned().await;
}

#[tokio::test]
async fn a_stream_reaches_only_the_node_that_was_asked() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let other = controller.agent("n2").await;
    let life = PodRef { name: "web-0".into(), ..PodRef::default() };
    let nodes = controller.nodes.clone();
    let request = stream_request::Request::Log(LogRequest::default());
    let opening = tokio::spawn(async move { nodes.open_stream("n1", life, "c", request).await });
    let Down::Stream(asked) = agent.next().await else { panic!("no request") };
    let dial = |channel: Channel, id: String| async move {
        let (up, messages) = mpsc::channel(4);
        up.send(StreamUp { message: Some(stream_up::Message::Open(id)) }).await.unwrap();
        let down = NodeClient::new(channel).stream(ReceiverStream::new(messages)).await;
        down.map(|down| (up, down.into_inner()))
    };
    assert!(dial(other.channel.clone(), asked.stream_id.clone()).await.is_err());
    let (up, mut down) = dial(agent.channel.clone(), asked.stream_id.clone()).await.unwrap();
    let mut stream = opening.await.unwrap().unwrap();
    up.send(StreamUp { message: Some(stream_up::Message::Stdout(b"hi".to_vec())) }).await.unwrap();
    let first = stream.up.message().await.unwrap().unwrap();
    assert_eq!(first.message, Some(stream_up::Message::Stdout(b"hi".to_vec())));
    drop(stream);
    assert!(!matches!(tokio::time::timeout(PATIENCE, down.message()).await.unwrap(), Ok(Some(_))));
    // An id is good once.
    assert!(dial(agent.channel.clone(), asked.stream_id).await.is_err());
}

fn claim(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

#[tokio::test]
async fn claims_that_wait_for_their_pod_are_bound_with_it() {
    use berth_controller_core::claims::local_class;
    use berth_controller_core::kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
    use berth_controller_core::kinds::storage_class::STORAGE_CLASS;
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let options = Options::default();
    controller.objects.create(&STORAGE_CLASS, "", local_class(), &options).await.unwrap();
    let mount = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
    controller.create_pod("web-0", json!({"volumes": [mount("a"), mount("b")]})).await;
    controller
        .until("why it waits", || {
            let pod = controller.get("pods", "web-0")?;
            let why = pod["status"]["conditions"][0]["message"].as_str()?.to_owned();
            (why == "0/1 nodes are available: persistentvolumeclaim \"a\" not found.").then_some(())
        })
        .await;
    for name in ["a", "b"] {
        controller.objects.create(&PERSISTENT_VOLUME_CLAIM, "default", claim(name), &options).await.unwrap();
    }
    let assignment = agent.assigned().await;
    let volumes: Vec<String> = ["a", "b"]
        .iter()
        .map(|name| {
            let claim = controller.get("persistentvolumeclaims", name).unwrap();
            claim["spec"]["volumeName"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_ne!(volumes[0], volumes[1]);
    for (volume, assigned) in volumes.iter().zip(&assignment.volumes) {
        let stored = controller.store.get(&Key::new("persistentvolumes", "", volume)).unwrap().value();
        assert_eq!(berth_controller_core::claims::pinned_to(&stored), Some("n1"));
        assert_eq!(assigned.error, "");
        assert!(matches!(assigned.source, Some(volume::Source::Directory(_))));
    }
}

#[tokio::test]
async fn a_provisioner_that_is_mapped_later_lets_pods_go_that_waited_for_it() {
    use berth_controller_core::claims::{Backend, Directories};
    use berth_controller_core::kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
    use berth_controller_core::kinds::storage_class::STORAGE_CLASS;
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let options = Options::default();
    let class = json!({
        "metadata": {"name": "later"}, "provisioner": "bdqn", "volumeBindingMode": "WaitForFirstConsumer",
    });
    controller.objects.create(&STORAGE_CLASS, "", class, &options).await.unwrap();
    let mut wanted = claim("a");
    wanted["spec"]["storageClassName"] = "later".into();
    controller.objects.create(&PERSISTENT_VOLUME_CLAIM, "default", wanted, &options).await.unwrap();
    let mount = json!({"name": "a", "persistentVolumeClaim": {"claimName": "a"}});
    controller.create_pod("web-0", json!({"volumes": [mount]})).await;
    controller
        .until("it waits", || {
            let pod = controller.get("pods", "web-0")?;
            (pod["status"]["conditions"][0]["reason"] == "Unschedulable").then_some(())
        })
        .await;
    let backend = Backend::Directories(Directories { root: "/srv/bdqn".into(), shared: false });
    controller.mapping.send_replace(Provisioners::new([("bdqn".to_owned(), backend)]));
    let Some(volume::Source::Directory(directory)) = agent.assigned().await.volumes.remove(0).source else {
        panic!("not a directory")
    };
    assert_eq!(directory.root, "/srv/bdqn");
}

#[tokio::test]
async fn a_deleted_node_keeps_its_pods_and_comes_back_with_its_range() {
    let controller = Controller::start().await;
    let _first = controller.agent("n0").await;
    let mut agent = controller.agent("n1").await;
    controller.create_pod("web-0", json!({"nodeName": "n1"})).await;
    let life = agent.assigned().await.pod.unwrap();
    controller.objects.delete(&NODE, "", "n1", &DeleteOptions::default()).await.unwrap();
    // Nothing is said about what runs; a new pod shows that the session goes on.
    let map = json!({"metadata": {"name": "cm"}});
    controller.objects.create(&CONFIG_MAP, "default", map, &Options::default()).await.unwrap();
    assert!(controller.record("web-0").is_some());
    let line = PodInventory { pod: Some(life.clone()), stopped: false, status: None };
    let mut agent = controller.agent_with("n1", vec![line]).await;
    let said = agent.synced().await;
    assert!(said.iter().all(|m| !matches!(m, Down::Stop(_))), "{said:?}");
    assert_eq!(controller.get("nodes", "n1").unwrap()["spec"]["podCIDR"], "10.42.1.0/24");
}

#[tokio::test]
async fn a_stranger_may_not_send_much() {
    let controller = Controller::start().await;
    let stranger = controller.endpoint(ClientTlsConfig::new()).connect().await.unwrap();
    let asked = JoinRequest { token: "x".repeat(1 << 20), ..JoinRequest::default() };
    assert_ne!(
        NodeClient::new(stranger).join(asked).await.unwrap_err().code(),
        tonic::Code::PermissionDenied
    );
}

#[tokio::test]
async fn a_host_hears_of_the_others_before_its_pods_and_of_every_change_after() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    let first = one.network().await;
    assert!(first.reset && first.complete, "{first:?}");
    let _two = controller.agent("n2").await;
    let mut peers: Vec<Peer> = first.peers;
    while !peers.iter().any(|p| p.node_name == "n2" && !p.internal_ips.is_empty()) {
        peers.extend(one.network().await.peers);
    }
    let two = peers.iter().rfind(|p| p.node_name == "n2").unwrap();
    assert_eq!((&two.pod_cidrs[0][..], &two.internal_ips[0][..]), ("10.42.1.0/24", "192.0.2.7"));

    let service = json!({"metadata": {"name": "web"}, "spec": {
        "clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    controller.objects.create(&SERVICE, "default", service, &Options::default()).await.unwrap();
    let pod = json!({
        "metadata": {"name": "web-0", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "hostname": "web-0", "subdomain": "web", "containers": [
            {"name": "c", "image": "busybox", "ports": [{"name": "http", "containerPort": 8080}]}]},
    });
    controller.objects.create(&POD, "default", pod, &Options::default()).await.unwrap();
    // From its assignment on, long before it runs.
    let told = loop {
        if let Some(endpoints) = one.network().await.endpoints.into_iter().next() {
            break endpoints.endpoints[0].clone();
        }
    };
    assert_eq!((&*told.id, &*told.hostname, told.ready), ("web-0", "web-0", false));
    assert!(told.addresses[0].starts_with("10.42.0."), "{told:?}");
    assert_eq!(told.ports[0].port, 8080);
    let assignment = one.assigned().await;
    one.running(assignment.pod.as_ref().unwrap()).await;
    while !one.network().await.endpoints.iter().any(|e| e.endpoints.iter().any(|e| e.ready)) {}
    one.stopped(assignment.pod.as_ref().unwrap()).await;
    controller.delete_pod("web-0", Some(0)).await;
    while !one.network().await.endpoints.iter().any(|e| e.removed == ["web-0"]) {}
}

#[tokio::test]
async fn an_ordinal_returns_to_its_last_host_and_a_pod_that_waits_for_another_follows_it() {
    let controller = Controller::start().await;
    let _one = controller.agent("n1").await;
    let mut two = controller.agent("n2").await;
    let make = async |spec: Value| {
        let mut pod = json!({
            "metadata": {"name": "web-0", "labels": {"app": "web"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
        });
        spec.as_object().unwrap().iter().for_each(|(field, value)| pod["spec"][field] = value.clone());
        controller.objects.create(&POD, "default", pod, &Options::default()).await.unwrap();
    };
    // Its first host is chosen for it; by room and name alone the next would be n1.
    make(json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}})).await;
    let first = two.assigned().await.pod.unwrap();
    controller.delete_pod("web-0", Some(0)).await;
    two.stopped(&first).await;
    controller.until("the name is free", || controller.record("web-0").is_none().then_some(())).await;

    let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}});
    controller.create_pod("near", json!({"affinity": near})).await;
    let waits = controller.until("it says why it waits", || {
        let pod = controller.get("pods", "near")?;
        pod["status"]["conditions"][0]["message"].as_str().map(str::to_owned)
    });
    assert_eq!(waits.await, "0/2 nodes are available: 2 node(s) didn't match pod affinity rules.");
    make(json!({})).await;
    for pod in ["web-0", "near"] {
        let record = controller.until("it is bound", || controller.record(pod)).await;
        assert_eq!(record.node, "n2", "{pod}");
    }
}
