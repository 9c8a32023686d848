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
use tokio::sync::mpsc;
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
mod silence;

const PATIENCE: Duration = Duration::from_secs(20);

/// A controller without its API.
struct Controller {
    nodes: Nodes,
    objects: Objects,
    store: Store,
    pki: Arc<Pki>,
    tokens: Tokens,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
    _recorded: Recorded,
}

/// Lets in who has one of the tokens; `good` is a new one.
struct Anybody(Arc<Pki>, Tokens);

impl Join for Anybody {
    fn join<'a>(
        &'a self,
        token: &'a str,
        node: &'a str,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Joined, JoinRefused>> {
        Box::pin(async move {
            let request = AgentRequest::from_pem(request).map_err(|e| JoinRefused::Request(e.to_string()))?;
            let fresh = match token {
                "good" => self.1.create(Some(node), Duration::from_secs(60)).await.unwrap(),
                other => other.to_owned(),
            };
            let redeemed = self.1.redeem(&fresh, node, &request.key_hash()).await;
            redeemed.map_err(|e| JoinRefused::Token(e.to_string()))?;
            let certificate =
                self.0.sign_agent(&request, node).map_err(|e| JoinRefused::Unavailable(e.to_string()))?;
            Ok(Joined { certificate, authority: self.0.authority_pem().to_owned() })
        })
    }

    fn renew(&self, node: &str, key: &str, request: &str) -> Result<Joined, JoinRefused> {
        let renewed = self.0.renew_agent(node, key, request);
        let certificate = renewed.map_err(|e| JoinRefused::Request(e.to_string()))?;
        Ok(Joined { certificate, authority: self.0.authority_pem().to_owned() })
    }
}

impl Controller {
    async fn start() -> Controller {
        let directory = tempfile::tempdir().unwrap();
        let pki = pki(directory.path());
        let store = Store::in_memory().unwrap();
        let service_cidr = "10.43.0.0/16".parse().unwrap();
        let allocations = Allocations::new(store.clone(), service_cidr);
        let objects = Objects::new(store.clone(), Schema::get()).with(Arc::new(Revoking(allocations)));
        let services = Services::new(objects.clone());
        let (events, recorded) = Events::new();
        let config = NodesConfig {
            pod_cidr: super::Range::cluster("10.42.0.0/16").unwrap(),
            service_cidr,
            cluster_domain: "cluster.local".to_owned(),
            provisioners: Provisioners::new([]),
            grace: Duration::from_millis(100),
        };
        let nodes = Nodes::new(objects.clone(), services.clone(), events, config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let tls = pki.server_config(&["h2"]).unwrap();
        let tokens = Tokens::new(store.clone(), pki.authority_pin());
        let join = Arc::new(Anybody(pki.clone(), tokens.clone()));
        let (serving, scheduling) = (nodes.clone(), nodes.clone());
        let (stop, also) = (shutdown.clone(), shutdown.clone());
        tokio::spawn(async move { serving.serve(listener, tls, join, stop).await });
        tokio::spawn(async move { scheduling.schedule(also).await });
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(services.run()));
        let namespace = json!({"metadata": {"name": "default"}});
        objects.create(&NAMESPACE, "", namespace, &Options::default()).await.unwrap();
        Controller {
            nodes,
            objects,
            store,
            pki,
            tokens,
            address,
            shutdown,
            _directory: directory,
            _recorded: recorded,
        }
    }

    fn endpoint(&self, tls: ClientTlsConfig) -> Endpoint {
        let tls = tls.ca_certificate(Certificate::from_pem(self.pki.authority_pem()));
        Endpoint::from_shared(format!("https://{}", self.address)).unwrap().tls_config(tls).unwrap()
    }

    async fn channel(&self, node: &str) -> Channel {
        self.join("good", node).await.unwrap()
    }

    /// A connection of a machine that joins with a key of its own.
    async fn join(&self, token: &str, node: &str) -> Result<Channel, tonic::Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        let request = request.serialize_request(&key).unwrap().pem().unwrap();
        let stranger = self.endpoint(ClientTlsConfig::new()).connect().await.unwrap();
        let asked = JoinRequest { token: token.into(), node_name: node.into(), certificate_request: request };
        let joined = NodeClient::new(stranger).join(asked).await?.into_inner();
        let identity = Identity::from_pem(joined.certificate, key.serialize_pem());
        Ok(self.endpoint(ClientTlsConfig::new().identity(identity)).connect().await.unwrap())
    }

    async fn agent(&self, node: &str) -> Agent {
        let mut agent = self.agent_with(node, vec![]).await;
        agent.synced().await;
        agent
    }

    async fn agent_with(&self, node: &str, pods: Vec<PodInventory>) -> Agent {
        let channel = self.channel(node).await;
        let hello = Hello { node_name: node.into(), node: Some(host()), pods, agent_version: "test".into() };
        Agent::open(channel, hello).await
    }

    fn get(&self, resource: &'static str, name: &str) -> Option<Value> {
        let namespace = if resource == "nodes" { "" } else { "default" };
        self.store.get(&Key::new(resource, namespace, name)).map(|o| o.value())
    }

    fn record(&self, name: &str) -> Option<Record> {
        Record::read(&self.get(identity::RESOURCE, name)?)
    }

    async fn create_pod(&self, name: &str, spec: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
        });
        for (field, value) in spec.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        self.objects.create(&POD, "default", pod, &Options::default()).await.unwrap().value()
    }

    async fn delete_pod(&self, name: &str, grace: Option<i64>) {
        let options = DeleteOptions { grace, ..DeleteOptions::default() };
        self.objects.delete(&POD, "default", name, &options).await.unwrap();
    }

    /// Waits until something holds, driven by what happens in the store.
    async fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = look() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("never: {what}"),
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn pki(directory: &Path) -> Arc<Pki> {
    let names = ServerNames::of_this_host("cluster.local", &[]);
    Arc::new(Pki::open(directory, &names, "127.0.0.1:6443".parse().unwrap()).unwrap())
}

fn host() -> NodeStatus {
    NodeStatus {
        cpu_millis: 2000,
        memory_bytes: 4 << 30,
        ephemeral_storage_bytes: 1 << 34,
        max_pods: 110,
        hostname: "host".into(),
        internal_ips: vec!["192.0.2.7".into()],
        info: Some(NodeInfo {
            container_runtime_version: "containerd://1.6.20".into(),
            operating_system: "linux".into(),
            architecture: "amd64".into(),
            ..NodeInfo::default()
        }),
        conditions: vec![],
        runtime_ready: true,
        runtime_message: String::new(),
    }
}

/// An agent's end of a session.
struct Agent {
    channel: Channel,
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<ControllerMessage>,
    /// What it was told of the network on the way to other messages, and the other way round.
    heard: Vec<NetworkUpdate>,
    kept: VecDeque<Down>,
}

impl Agent {
    async fn open(channel: Channel, hello: Hello) -> Agent {
        let (up, messages) = mpsc::channel(16);
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut client = NodeClient::new(channel.clone());
        let down = client.session(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Agent { channel, up, down, heard: Vec::new(), kept: VecDeque::new() }
    }

    /// The next message that is no heartbeat and not about the network ([`Agent::network`]).
    async fn next(&mut self) -> Down {
        if let Some(kept) = self.kept.pop_front() {
            return kept;
        }
        loop {
            let message = tokio::time::timeout(PATIENCE, self.down.message()).await;
            match message.expect("a message in time").expect("a session").expect("no end").message {
                Some(Down::Heartbeat(_)) | None => {}
                Some(Down::Network(update)) => self.heard.push(update),
                Some(message) => return message,
            }
        }
    }

    /// The next update of the network.
    async fn network(&mut self) -> NetworkUpdate {
        loop {
            if !self.heard.is_empty() {
                return self.heard.remove(0);
            }
            let message = tokio::time::timeout(PATIENCE, self.down.message()).await;
            match message.expect("a message in time").expect("a session").expect("no end").message {
                Some(Down::Heartbeat(_)) | None => {}
                Some(Down::Network(update)) => return update,
                Some(message) => self.kept.push_back(message),
            }
        }
    }

    /// Everything up to Synced.
    async fn synced(&mut self) -> Vec<Down> {
        let mut said = Vec::new();
        loop {
            match self.next().await {
                Down::Synced(_) => return said,
                message => said.push(message),
            }
        }
    }

    async fn assigned(&mut self) -> Assignment {
        match self.next().await {
            Down::Assign(assignment) => assignment,
            other => panic!("not an assignment: {other:?}"),
        }
    }

    async fn say(&self, message: Up) {
        self.up.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn running(&self, pod: &PodRef) {
        self.say(Up::PodStatus(running(pod))).await;
    }

    async fn stopped(&self, pod: &PodRef) {
        self.say(Up::Stopped(Stopped { pod: Some(pod.clone()) })).await;
    }

    /// The session ends with an error or at once.
    async fn ended(&mut self) -> String {
        loop {
            match tokio::time::timeout(PATIENCE, self.down.message()).await.expect("an end in time") {
                Ok(None) => return String::new(),
                Ok(Some(_)) => {}
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}

fn running(pod: &PodRef) -> PodStatus {
    let ready = |kind: &str| Condition {
        r#type: kind.into(),
        status: "True".into(),
        last_transition_ms: 1_790_000_000_000,
        ..Condition::default()
    };
    PodStatus {
        pod: Some(pod.clone()),
        phase: "Running".into(),
        host_ip: "192.0.2.7".into(),
        pod_ips: vec!["10.42.0.2".into()],
        start_time_ms: 1_790_000_000_000,
        containers: vec![ContainerStatus {
            name: "c".into(),
            image: "busybox".into(),
            ready: true,
            started: true,
            ..ContainerStatus::default()
        }],
        conditions: vec![ready("ContainersReady"), ready("Ready"), ready("Initialized")],
        ..PodStatus::default()
    }
}

fn phase(pod: &Value) -> Option<&str> {
    pod["status"]["phase"].as_str()
}

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

#[tokio::test]
async fn after_a_restore_nothing_is_bound_before_every_host_has_spoken() {
    let controller = Controller::start().await;
    let mut one = controller.agent("n1").await;
    let restore = identity::Restore { awaited: ["n2".to_owned()].into() };
    let key = super::world::restore_key();
    controller.store.commit(crate::store::Transaction::new().put(key, restore.write())).await.unwrap();
    controller.create_pod("web-0", json!({})).await;
    controller
        .until("why it waits", || {
            let pod = controller.get("pods", "web-0")?;
            eprintln!("{pod}");
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
    let restore = identity::Restore { awaited: ["n2".to_owned()].into() };
    let key = super::world::restore_key();
    controller.store.commit(crate::store::Transaction::new().put(key, restore.write())).await.unwrap();
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
    let restore = identity::Restore { awaited: ["n1".to_owned()].into() };
    let key = super::world::restore_key();
    controller.store.commit(crate::store::Transaction::new().put(key, restore.write())).await.unwrap();
    let _one = controller.agent("n1").await;
    let over = || controller.get("pods", "web-0").filter(|pod| pod["status"]["reason"] == "IdentityLost");
    controller.until("its object says so", over).await;
    assert!(controller.record("web-0").is_none());
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
            eprintln!("{pod}");
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
