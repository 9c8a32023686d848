//! Certificates that are renewed, and those that count no more.

use berth_proto::RenewRequest;

use super::*;

fn request(key: &rcgen::KeyPair) -> String {
    let params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.serialize_request(key).unwrap().pem().unwrap()
}

impl Controller {
    /// A connection with a certificate of this key.
    async fn with(&self, certificate: &str, key: &rcgen::KeyPair) -> Channel {
        let identity = Identity::from_pem(certificate, key.serialize_pem());
        self.endpoint(ClientTlsConfig::new().identity(identity)).connect().await.unwrap()
    }

    /// The certificate that a machine with this key gets for a token.
    async fn certificate(&self, token: &str, node: &str, key: &rcgen::KeyPair) -> String {
        let stranger = self.endpoint(ClientTlsConfig::new()).connect().await.unwrap();
        let certificate_request = request(key);
        let asked = JoinRequest { token: token.into(), node_name: node.into(), certificate_request };
        NodeClient::new(stranger).join(asked).await.unwrap().into_inner().certificate
    }
}

fn hello(node: &str) -> Hello {
    Hello { node_name: node.into(), node: Some(host()), ..Hello::default() }
}

/// What a session is refused with.
async fn refusal(channel: Channel, node: &str) -> tonic::Status {
    let (up, messages) = mpsc::channel(16);
    up.send(AgentMessage { message: Some(Up::Hello(hello(node))) }).await.unwrap();
    let session = NodeClient::new(channel).session(ReceiverStream::new(messages)).await;
    session.expect_err("a refusal")
}

#[tokio::test]
async fn a_host_renews_its_certificate_with_the_one_it_has_and_for_its_own_key_only() {
    let controller = Controller::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let first = controller.certificate("good", "n1", &key).await;
    let channel = controller.with(&first, &key).await;
    let mut agent = Agent::open(channel.clone(), hello("n1")).await;
    agent.synced().await;

    let mut client = NodeClient::new(channel);
    let renewed = client.renew(RenewRequest { certificate_request: request(&key) }).await.unwrap();
    let renewed = renewed.into_inner();
    assert_eq!(renewed.authority, controller.pki.authority_pem());
    assert_ne!(renewed.certificate, first);
    // The session knows nothing of it, and the next one may use either.
    controller.create_pod("web-0", json!({"nodeName": "n1"})).await;
    agent.assigned().await;
    let channel = controller.with(&renewed.certificate, &key).await;
    Agent::open(channel, hello("n1")).await.synced().await;

    let other = rcgen::KeyPair::generate().unwrap();
    let refused = client.renew(RenewRequest { certificate_request: request(&other) }).await.unwrap_err();
    assert!(refused.message().contains("another key"), "{refused}");
    let stranger = controller.endpoint(ClientTlsConfig::new()).connect().await.unwrap();
    let asked = RenewRequest { certificate_request: request(&key) };
    let refused = NodeClient::new(stranger).renew(asked).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn deleting_a_node_revokes_its_certificate_until_the_host_joins_again() {
    let controller = Controller::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let token = controller.tokens.create(Some("n1"), PATIENCE).await.unwrap();
    let certificate = controller.certificate(&token, "n1", &key).await;
    let channel = controller.with(&certificate, &key).await;
    let mut agent = Agent::open(channel.clone(), hello("n1")).await;
    agent.synced().await;
    controller.create_pod("web-0", json!({"nodeName": "n1"})).await;
    let life = agent.assigned().await.pod.unwrap();
    let mut bystander = controller.agent("n2").await;

    controller.objects.delete(&NODE, "", "n1", &DeleteOptions::default()).await.unwrap();
    let why = agent.ended().await;
    assert!(why.contains("was deleted") && why.contains("token create --node n1"), "{why}");
    // Neither a session nor a renewal, on this connection or another.
    for channel in [channel.clone(), controller.with(&certificate, &key).await] {
        let refused = refusal(channel.clone(), "n1").await;
        assert_eq!((refused.code(), refused.message()), (tonic::Code::PermissionDenied, &*why));
        let asked = RenewRequest { certificate_request: request(&key) };
        assert!(NodeClient::new(channel).renew(asked).await.is_err());
    }
    // What the old token is answered with helps no more.
    let again = controller.certificate(&token, "n1", &key).await;
    refusal(controller.with(&again, &key).await, "n1").await;
    assert!(controller.get("nodes", "n1").is_none());
    assert!(controller.record("web-0").is_some(), "its pods' names stay held");

    let token = controller.tokens.create(Some("n1"), PATIENCE).await.unwrap();
    let certificate = controller.certificate(&token, "n1", &key).await;
    let line = PodInventory { pod: Some(life), stopped: false, status: None };
    let hello = Hello { pods: vec![line], ..hello("n1") };
    let mut agent = Agent::open(controller.with(&certificate, &key).await, hello).await;
    let said = agent.synced().await;
    assert!(said.iter().all(|m| !matches!(m, Down::Stop(_))), "{said:?}");
    assert!(controller.get("nodes", "n1").is_some());
    // Nobody else was disturbed.
    controller.create_pod("web-1", json!({"nodeName": "n2"})).await;
    bystander.assigned().await;
}
