//! A controller without its API, and agents that are played by the test.

use super::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A controller without its API.
pub(super) struct Controller {
    pub(super) nodes: Nodes,
    pub(super) objects: Objects,
    pub(super) store: Store,
    pub(super) mapping: watch::Sender<Provisioners>,
    pub(super) pki: Arc<Pki>,
    pub(super) tokens: Tokens,
    pub(super) address: std::net::SocketAddr,
    pub(super) shutdown: CancellationToken,
    pub(super) _directory: tempfile::TempDir,
    pub(super) _recorded: Recorded,
}

/// Lets in who has one of the tokens; `good` is a new one.
pub(super) struct Anybody(Arc<Pki>, Tokens);

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
    pub(super) async fn start() -> Controller {
        let directory = tempfile::tempdir().unwrap();
        let pki = pki(directory.path());
        let store = Store::in_memory().unwrap();
        let service_cidr = "10.43.0.0/16".parse().unwrap();
        let allocations = Allocations::new(store.clone(), service_cidr);
        let objects = Objects::new(store.clone(), Schema::get()).with(Arc::new(Revoking(allocations)));
        let services = Services::new(objects.clone());
        let (events, recorded) = Events::new();
        let mapping = watch::Sender::new(Provisioners::new([]));
        let config = NodesConfig {
            pod_cidr: super::super::Range::cluster("10.42.0.0/16").unwrap(),
            service_cidr,
            cluster_domain: "cluster.local".to_owned(),
            provisioners: mapping.subscribe(),
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
            mapping,
            pki,
            tokens,
            address,
            shutdown,
            _directory: directory,
            _recorded: recorded,
        }
    }

    pub(super) fn endpoint(&self, tls: ClientTlsConfig) -> Endpoint {
        let tls = tls.ca_certificate(Certificate::from_pem(self.pki.authority_pem()));
        Endpoint::from_shared(format!("https://{}", self.address)).unwrap().tls_config(tls).unwrap()
    }

    pub(super) async fn channel(&self, node: &str) -> Channel {
        self.join("good", node).await.unwrap()
    }

    /// A connection of a machine that joins with a key of its own.
    pub(super) async fn join(&self, token: &str, node: &str) -> Result<Channel, tonic::Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        let request = request.serialize_request(&key).unwrap().pem().unwrap();
        let stranger = self.endpoint(ClientTlsConfig::new()).connect().await.unwrap();
        let asked = JoinRequest { token: token.into(), node_name: node.into(), certificate_request: request };
        let joined = NodeClient::new(stranger).join(asked).await?.into_inner();
        let identity = Identity::from_pem(joined.certificate, key.serialize_pem());
        Ok(self.endpoint(ClientTlsConfig::new().identity(identity)).connect().await.unwrap())
    }

    pub(super) async fn agent(&self, node: &str) -> Agent {
        let mut agent = self.agent_with(node, vec![]).await;
        agent.synced().await;
        agent
    }

    pub(super) async fn agent_with(&self, node: &str, pods: Vec<PodInventory>) -> Agent {
        let channel = self.channel(node).await;
        let hello = Hello { node_name: node.into(), node: Some(host()), pods, agent_version: "test".into() };
        Agent::open(channel, hello).await
    }

    pub(super) fn get(&self, resource: &'static str, name: &str) -> Option<Value> {
        let namespace = if resource == "nodes" { "" } else { "default" };
        self.store.get(&Key::new(resource, namespace, name)).map(|o| o.value())
    }

    pub(super) fn record(&self, name: &str) -> Option<Record> {
        Record::read(&self.get(identity::RESOURCE, name)?)
    }

    pub(super) async fn create_pod(&self, name: &str, spec: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
        });
        for (field, value) in spec.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        self.objects.create(&POD, "default", pod, &Options::default()).await.unwrap().value()
    }

    pub(super) async fn delete_pod(&self, name: &str, grace: Option<i64>) {
        let options = DeleteOptions { grace, ..DeleteOptions::default() };
        self.objects.delete(&POD, "default", name, &options).await.unwrap();
    }

    /// Waits until something holds, driven by what happens in the store.
    pub(super) async fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
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

pub(super) fn pki(directory: &Path) -> Arc<Pki> {
    let names = ServerNames::of_this_host("cluster.local", &[]);
    Arc::new(Pki::open(directory, &names, "127.0.0.1:6443".parse().unwrap()).unwrap())
}

pub(super) fn host() -> NodeStatus {
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
        not_ready_reason: String::new(),
    }
}

/// An agent's end of a session.
pub(super) struct Agent {
    pub(super) channel: Channel,
    pub(super) up: mpsc::Sender<AgentMessage>,
    pub(super) down: Streaming<ControllerMessage>,
    /// What it was told of the network on the way to other messages, and the other way round.
    pub(super) heard: Vec<NetworkUpdate>,
    pub(super) kept: VecDeque<Down>,
}

impl Agent {
    pub(super) async fn open(channel: Channel, hello: Hello) -> Agent {
        let (up, messages) = mpsc::channel(16);
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut client = NodeClient::new(channel.clone());
        let down = client.session(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Agent { channel, up, down, heard: Vec::new(), kept: VecDeque::new() }
    }

    /// The next message that is no heartbeat and not about the network ([`Agent::network`]).
    pub(super) async fn next(&mut self) -> Down {
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
    pub(super) async fn network(&mut self) -> NetworkUpdate {
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
    pub(super) async fn synced(&mut self) -> Vec<Down> {
        let mut said = Vec::new();
        loop {
            match self.next().await {
                Down::Synced(_) => return said,
                message => said.push(message),
            }
        }
    }

    pub(super) async fn assigned(&mut self) -> Assignment {
        match self.next().await {
            Down::Assign(assignment) => assignment,
            other => panic!("not an assignment: {other:?}"),
        }
    }

    pub(super) async fn say(&self, message: Up) {
        self.up.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn running(&self, pod: &PodRef) {
        self.say(Up::PodStatus(running(pod))).await;
    }

    pub(super) async fn stopped(&self, pod: &PodRef) {
        self.say(Up::Stopped(Stopped { pod: Some(pod.clone()) })).await;
    }

    /// The session ends with an error or at once.
    pub(super) async fn ended(&mut self) -> String {
        loop {
            match tokio::time::timeout(PATIENCE, self.down.message()).await.expect("an end in time") {
                Ok(None) => return String::new(),
                Ok(Some(_)) => {}
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}

pub(super) fn running(pod: &PodRef) -> PodStatus {
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

pub(super) fn phase(pod: &Value) -> Option<&str> {
    pod["status"]["phase"].as_str()
}
