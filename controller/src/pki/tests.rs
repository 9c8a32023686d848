use std::os::unix::fs::PermissionsExt;

use super::*;

fn names(advertised: &[&str]) -> ServerNames {
    let advertised: Vec<String> = advertised.iter().map(|s| (*s).to_owned()).collect();
    ServerNames::of_this_host("cluster.local", &advertised)
}

fn open(directory: &Path) -> Pki {
    Pki::open(directory, &names(&[]), "0.0.0.0:6443".parse().unwrap()).unwrap()
}

/// The certificate that the next connection is shown.
fn server_certificate(pki: &Pki) -> CertificateDer<'static> {
    pki.server.0.read().unwrap().cert[0].clone()
}

fn request(name: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, ADMIN_GROUP);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[test]
fn a_restart_keeps_the_authority_the_certificates_and_the_kubeconfig() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let kubeconfig = fs::read_to_string(directory.path().join("admin.kubeconfig")).unwrap();
    let second = open(directory.path());
    assert_eq!(first.authority_pin(), second.authority_pin());
    assert_eq!(server_certificate(&first), server_certificate(&second));
    assert_eq!(fs::read_to_string(directory.path().join("admin.kubeconfig")).unwrap(), kubeconfig);
    assert!(kubeconfig.contains("server: https://127.0.0.1:6443\n"));
}

#[test]
fn keys_are_the_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let mode = |path: &str| fs::metadata(directory.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("pki"), 0o700);
    for private in ["pki/ca.pem", "pki/server.pem", "pki/admin.pem", "admin.kubeconfig"] {
        assert_eq!(mode(private), 0o600, "{private}");
    }
}

#[test]
fn a_new_name_renews_the_servers_certificate_and_keeps_the_authority() {
    let directory = tempfile::tempdir().unwrap();
    let before = open(directory.path());
    let listen = "10.0.0.5:7000".parse().unwrap();
    let after = Pki::open(directory.path(), &names(&["berth.example"]), listen).unwrap();
    assert_eq!(before.authority_pem(), after.authority_pem());
    let certificate = server_certificate(&after);
    assert_ne!(server_certificate(&before), certificate);
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert!(names(&["berth.example", "127.0.0.1", "::1", "localhost"]).borne_by(&parsed));
    let kubeconfig = fs::read_to_string(directory.path().join("admin.kubeconfig")).unwrap();
    assert!(kubeconfig.contains("server: https://10.0.0.5:7000\n"));
}

#[test]
fn a_certificate_is_renewed_when_a_third_of_its_life_is_left_and_servers_go_on_with_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let pki = open(directory.path());
    // Made of the configuration before: what it resolves to changes under it.
    let _server = pki.server_config(&["h2"]).unwrap();
    let (first, kubeconfig) = (server_certificate(&pki), directory.path().join("admin.kubeconfig"));
    let administrators = fs::read_to_string(&kubeconfig).unwrap();
    let now = Timestamp::now();
    let after = |share: u32| now.checked_add(SignedDuration::try_from(LIFE * share / 12).unwrap()).unwrap();

    let early = pki.renew(after(7)).unwrap();
    assert!(!early.server && !early.admin && early.next > after(7) && early.next < after(9));
    assert_eq!(server_certificate(&pki), first);
    let due = pki.renew(after(9)).unwrap();
    assert!(due.server && due.admin && due.next > after(12));
    assert_ne!(server_certificate(&pki), first);
    assert_ne!(fs::read_to_string(&kubeconfig).unwrap(), administrators);
    assert!(fs::read_to_string(directory.path().join("pki/server.pem")).unwrap().contains("PRIVATE KEY"));
}

#[test]
fn short_lives_are_not_renewed_all_the_time() {
    let directory = tempfile::tempdir().unwrap();
    let life = Duration::from_secs(30);
    let pki = Pki::open_with(directory.path(), &names(&[]), "0.0.0.0:6443".parse().unwrap(), life).unwrap();
    let next = pki.renew(Timestamp::now()).unwrap().next;
    let wait = next.as_second() - Timestamp::now().as_second();
    assert!((5..=15).contains(&wait), "{wait}");
}

#[test]
fn what_is_put_in_place_of_the_servers_certificate_is_taken_over() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (pki, _) = (open(directory.path()), open(other.path()));
    let place = directory.path().join("pki/server.pem");
    fs::copy(other.path().join("pki/server.pem"), &place).unwrap();
    assert!(pki.renew(Timestamp::now()).unwrap().server);
    // Another name is another certificate, at once.
    pki.set(names(&["berth.example"]), LIFE);
    assert!(pki.renew(Timestamp::now()).unwrap().server);
    let certificate = server_certificate(&pki);
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert!(names(&["berth.example"]).borne_by(&parsed));
}

#[test]
fn an_agent_gets_a_further_certificate_for_its_own_key_only() {
    let directory = tempfile::tempdir().unwrap();
    let pki = open(directory.path());
    let (_, pem) = request("x");
    let key = AgentRequest::from_pem(&pem).unwrap().key_hash();
    let issued = pki.renew_agent("host-1", &key, &pem).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.as_bytes()).unwrap();
    assert_eq!(Identity::of(&certificate).unwrap().node(), Some("host-1"));
    let (_, other) = request("x");
    assert!(matches!(pki.renew_agent("host-1", &key, &other), Err(RenewError::Request(_))));
}

#[test]
fn an_authority_that_cannot_be_read_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let path = directory.path().join("pki/ca.pem");
    let sound = fs::read_to_string(&path).unwrap();
    let other = tempfile::tempdir().unwrap();
    open(other.path());
    let foreign = fs::read_to_string(other.path().join("pki/ca.pem")).unwrap();
    let key_at = |text: &str| text.find("-----BEGIN PRIVATE KEY").unwrap();
    let mixed = format!("{}{}", &sound[..key_at(&sound)], &foreign[key_at(&foreign)..]);
    for damaged in [&sound[..100], "", mixed.as_str()] {
        fs::write(&path, damaged).unwrap();
        let refused = Pki::open(directory.path(), &names(&[]), "0.0.0.0:1".parse().unwrap()).err().unwrap();
        assert!(matches!(refused, PkiError::Damaged { .. }), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
}

#[test]
fn an_agent_gets_its_own_name_whatever_it_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let pki = open(directory.path());
    let (key, pem) = request("berth-admin");
    let request = AgentRequest::from_pem(&pem).unwrap();
    let issued = pki.sign_agent(&request, "host-1").unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.as_bytes()).unwrap();
    let identity = Identity::of(&certificate).unwrap();
    assert_eq!(identity.node(), Some("host-1"));
    assert_eq!(identity.groups, [NODE_GROUP]);
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    assert!(parsed.subject_alternative_name().unwrap().is_none());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    assert!(!parsed.is_ca());
    let again = AgentRequest::from_pem(&pem).unwrap();
    assert_eq!(request.key_hash(), again.key_hash());
}

#[test]
fn a_broken_request_is_refused() {
    let (_, pem) = request("x");
    let mut tampered = pem.clone();
    tampered.replace_range(100..104, "AAAA");
    for bad in ["", "x", tampered.as_str(), &"x".repeat(1 << 20)] {
        assert!(AgentRequest::from_pem(bad).is_err());
    }
}

#[test]
fn the_administrator_is_who_kubernetes_expects() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let admin = Pair::parse(&fs::read_to_string(directory.path().join("pki/admin.pem")).unwrap()).unwrap();
    let identity = Identity::of(&admin.certificate).unwrap();
    assert_eq!((identity.user.as_str(), identity.groups.as_slice()), (ADMIN, &[ADMIN_GROUP.to_owned()][..]));
    assert_eq!(identity.node(), None);
}

#[tokio::test]
async fn tls_knows_its_clients_by_their_certificates_and_lets_others_be_nobody() {
    use rustls_pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    let directory = tempfile::tempdir().unwrap();
    let pki = open(directory.path());
    let acceptor = TlsAcceptor::from(pki.server_config(&["h2", "http/1.1"]).unwrap());
    let admin = Pair::parse(&fs::read_to_string(directory.path().join("pki/admin.pem")).unwrap()).unwrap();
    for with_certificate in [true, false] {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.authority_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let client = if with_certificate {
            let key = PrivateKeyDer::from_pem_slice(admin.key_pem.as_bytes()).unwrap();
            client.with_client_auth_cert(vec![admin.certificate.clone()], key).unwrap()
        } else {
            client.with_no_client_auth()
        };
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let (server, client) = tokio::join!(acceptor.accept(near), connector.connect(name, far));
        client.unwrap();
        let server = server.unwrap();
        let user = server.get_ref().1.peer_certificates().and_then(|c| Identity::of(&c[0]));
        assert_eq!(user.map(|u| u.user), with_certificate.then(|| ADMIN.to_owned()));
    }
}
