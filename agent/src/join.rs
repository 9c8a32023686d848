//! How a host gets its certificate: once, with a token, from a controller that it knows by the token's pin.
//!
//! The token's second half is the hash of the controller's authority, so the agent knows whom it talks to
//! before it says the secret half. What it gets is kept in `<data-dir>/pki`, readable by nobody else; from
//! then on no token is needed: the certificate is renewed with itself ([`Credentials::renew`]) long before it
//! runs out. The key stays the host's: by it the controller knows which machine has a node's name.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use berth_proto::node_client::NodeClient;
use berth_proto::{JoinRequest, JoinResponse, RenewRequest};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName};
use sha2::{Digest as _, Sha256};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::tls::{self, Shown};

const LIMIT: Duration = Duration::from_secs(15);

/// Why a host has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file of ours, or the token's.
    #[error("{path}: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// This host has not joined, and nobody gave it a token.
    #[error(
        "this host has not joined yet: make a token with `berth-controller token create --node {0}` on the \
         controller's host, and give its file with --token-file"
    )]
    NoToken(String),
    /// The certificate of another node.
    #[error("{dir} holds the certificate of node {there:?}, not {wanted:?}: use that name, or another --data-dir", dir = .dir.display())]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        there: String,
        /// Who we are.
        wanted: String,
    },
    /// Not of the form `<secret>.<pin>`.
    #[error("{0}: this is not a join token")]
    NotAToken(PathBuf),
    /// The controller did not answer, or is another one than the token's.
    #[error("the controller at {controller}: {reason}")]
    Controller {
        /// Its address.
        controller: String,
        /// Why.
        reason: String,
        /// Trying again may help.
        passing: bool,
    },
    /// Making a key or a request.
    #[error("certificates: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl JoinError {
    /// Whether to try again is worth it.
    pub fn passing(&self) -> bool {
        matches!(self, JoinError::Controller { passing: true, .. })
    }
}

/// What a host proves who it is with. Clones share it: what is renewed counts for all, from the next connection on.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    node: String,
    pem: RwLock<Pem>,
}

#[derive(Clone, PartialEq)]
struct Pem {
    authority: String,
    certificate: String,
    key: String,
}

impl Credentials {
    fn new(directory: &Path, node: &str, pem: Pem) -> Credentials {
        let (directory, node) = (directory.to_owned(), node.to_owned());
        Credentials { shared: Arc::new(Shared { directory, node, pem: RwLock::new(pem) }) }
    }

    fn pem(&self) -> Pem {
        self.shared.pem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is another.
    fn set(&self, pem: Pem) -> bool {
        let mut current = self.shared.pem.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *current != pem;
        *current = pem;
        changed
    }

    /// A connection to be opened to the controller, `host:port`.
    pub fn endpoint(&self, controller: &str) -> Result<Endpoint, tonic::transport::Error> {
        let Pem { authority, certificate, key } = self.pem();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority))
            .identity(Identity::from_pem(certificate, key));
        endpoint(controller, tls)
    }

    /// When the certificate should be renewed: when a third of its life is left. Unix time, seconds.
    pub fn renew_at(&self) -> i64 {
        use rustls::pki_types::pem::PemObject as _;
        use x509_parser::prelude::{FromDer as _, X509Certificate};
        let read = || {
            let der = CertificateDer::from_pem_slice(self.pem().certificate.as_bytes()).ok()?;
            let (_, parsed) = X509Certificate::from_der(&der).ok()?;
            let validity = parsed.validity();
            let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
            Some(to - (to - from) / 3)
        };
        // What cannot be read is past mending here; the controller will say so.
        read().unwrap_or(i64::MAX)
    }

    /// Exchanges the certificate for a new one of the same key and name.
    pub async fn renew(&self, controller: &str) -> Result<(), JoinError> {
        let failed = |reason: String, passing| JoinError::Controller {
            controller: controller.to_owned(),
            reason,
            passing,
        };
        let unreachable = |e: tonic::transport::Error| failed(words(&e), true);
        let before = self.pem();
        let certificate_request = request(&KeyPair::from_pem(&before.key)?, &self.shared.node)?;
        let endpoint = self.endpoint(controller).map_err(unreachable)?;
        let channel = endpoint.timeout(LIMIT).connect().await.map_err(unreachable)?;
        let answer = NodeClient::new(channel).renew(RenewRequest { certificate_request }).await;
        let answer = answer.map_err(|status| failed(status.message().to_owned(), true))?.into_inner();
        write(&self.shared.directory.join("agent.pem"), &answer.certificate)?;
        self.set(Pem { certificate: answer.certificate, ..before });
        Ok(())
    }

    /// Joins (again) with a token, because the certificate counts no more.
    pub async fn rejoin(&self, controller: &str, token_file: &Path) -> Result<(), JoinError> {
        let Shared { directory, node, .. } = &*self.shared;
        let pem = join(directory, controller, node, token_file).await?;
        self.set(pem);
        Ok(())
    }

    /// Reads the files again; whether they say anything new.
    pub fn reload(&self) -> Result<bool, JoinError> {
        let there = existing(&self.shared.directory, &self.shared.node)?;
        Ok(there.is_some_and(|pem| self.set(pem)))
    }
}

fn endpoint(controller: &str, tls: ClientTlsConfig) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("https://{controller}"))?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(15)))
}

/// This host's credentials: those it has, or new ones for its token.
pub async fn credentials(
    data_dir: &Path,
    controller: &str,
    node: &str,
    token_file: Option<&Path>,
) -> Result<Credentials, JoinError> {
    let directory = data_dir.join("pki");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(at(&directory))?;
    if let Some(there) = existing(&directory, node)? {
        return Ok(Credentials::new(&directory, node, there));
    }
    let token_file = token_file.ok_or_else(|| JoinError::NoToken(node.to_owned()))?;
    let pem = join(&directory, controller, node, token_file).await?;
    Ok(Credentials::new(&directory, node, pem))
}

/// A connection to the controller that the token knows. The token itself, which is answered too, is not said.
pub async fn by_token(controller: &str, token_file: &Path) -> Result<(Channel, String), JoinError> {
    let token = fs::read_to_string(token_file).map_err(at(token_file))?;
    let token = token.trim();
    let pin = token.split_once('.').map(|(_, pin)| pin).filter(|pin| pin.len() == 64);
    let pin = pin.ok_or_else(|| JoinError::NotAToken(token_file.to_owned()))?.to_owned();
    let unreachable =
        |reason: String| JoinError::Controller { controller: controller.to_owned(), reason, passing: true };
    let address = controller.to_owned();
    let learning = tokio::task::spawn_blocking(move || authority(&address, &pin));
    let authority = learning.await.map_err(|e| unreachable(e.to_string()))?;
    let authority = authority.map_err(|e| unreachable(e.to_string()))?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(&authority)));
    let channel: Channel = endpoint(controller, tls)
        .map_err(|e| unreachable(words(&e)))?
        .timeout(LIMIT)
        .connect()
        .await
        .map_err(|e| unreachable(words(&e)))?;
    Ok((channel, token.to_owned()))
}

/// What time it is for the controller: the date of an answer, which it gives to anybody (Unix time, seconds).
pub async fn time_of(mut channel: Channel) -> Option<i64> {
    use tonic::client::GrpcService as _;
    // It knows no such call, and says so.
    let request = tonic::codegen::http::Request::post("/").body(tonic::body::Body::empty()).ok()?;
    std::future::poll_fn(|context| channel.poll_ready(context)).await.ok()?;
    let answer = channel.call(request).await.ok()?;
    let date = answer.headers().get("date")?.to_str().ok()?;
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok().map(jiff::Timestamp::as_second)
}

async fn join(directory: &Path, controller: &str, node: &str, token_file: &Path) -> Result<Pem, JoinError> {
    let key = key(directory)?;
    let request = request(&key, node)?;
    let (channel, token) = by_token(controller, token_file).await?;
    let asked = JoinRequest { token, node_name: node.to_owned(), certificate_request: request };
    let answer = NodeClient::new(channel).join(asked).await.map_err(|status| JoinError::Controller {
        controller: controller.to_owned(),
        reason: status.message().to_owned(),
        passing: !matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::InvalidArgument),
    })?;
    let answer: JoinResponse = answer.into_inner();
    write(&directory.join("ca.pem"), &answer.authority)?;
    write(&directory.join("node-name"), node)?;
    // Last: it is what says that this host has joined.
    write(&directory.join("agent.pem"), &answer.certificate)?;
    tracing::info!(node, controller, "joined");
    Ok(Pem { authority: answer.authority, certificate: answer.certificate, key: key.serialize_pem() })
}

/// The credentials this host has, if it has joined.
pub fn joined(data_dir: &Path, node: &str) -> Result<Option<Credentials>, JoinError> {
    let directory = data_dir.join("pki");
    Ok(existing(&directory, node)?.map(|pem| Credentials::new(&directory, node, pem)))
}

fn existing(directory: &Path, node: &str) -> Result<Option<Pem>, JoinError> {
    let read = |name: &str| {
        let path = directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at(&path)(e)),
        }
    };
    let (Some(certificate), Some(authority), Some(key)) =
        (read("agent.pem")?, read("ca.pem")?, read("agent.key")?)
    else {
        return Ok(None);
    };
    if let Some(there) = read("node-name")?.filter(|there| there.trim() != node) {
        return Err(JoinError::OtherNode {
            dir: directory.to_owned(),
            there: there.trim().to_owned(),
            wanted: node.to_owned(),
        });
    }
    Ok(Some(Pem { authority, certificate, key }))
}

/// The key, made once: the controller answers a second request with the same token only to the same key.
fn key(directory: &Path) -> Result<KeyPair, JoinError> {
    let path = directory.join("agent.key");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(KeyPair::from_pem(&text)?),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            write(&path, &key.serialize_pem())?;
            Ok(key)
        }
        Err(e) => Err(at(&path)(e)),
    }
}

fn request(key: &KeyPair, node: &str) -> Result<String, JoinError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    Ok(params.serialize_request(key)?.pem()?)
}

/// The controller's authority, taken from its handshake and known by its hash. Nothing is said beyond the
/// handshake.
fn authority(controller: &str, pin: &str) -> io::Result<CertificateDer<'static>> {
    let pin = pin.to_ascii_lowercase();
    let found = Arc::new(Mutex::new(None));
    let keep = found.clone();
    let accepted = move |shown: &Shown<'_>| {
        let authority = pinned(&pin, shown)?;
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority);
        Ok(())
    };
    let mut config = tls::client(accepted).map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = controller.rsplit_once(':').map_or(controller, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
    let mut last = io::Error::new(ErrorKind::NotFound, "its name has no address");
    for address in controller.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                let mut connection = rustls::ClientConnection::new(Arc::new(config.clone()), name.clone())
                    .map_err(io::Error::other)?;
                while connection.is_handshaking() {
                    connection.complete_io(&mut stream)?;
                }
                let found = found.lock().unwrap_or_else(PoisonError::into_inner).take();
                return found.ok_or_else(|| io::Error::other("it has shown no certificate"));
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The authority with this hash out of what a server shows, if what it shows is in order under it.
fn pinned(pin: &str, shown: &Shown<'_>) -> Result<CertificateDer<'static>, rustls::Error> {
    let hash = |der: &CertificateDer<'_>| -> String {
        Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect()
    };
    let authority = shown.intermediates.iter().find(|der| hash(der) == pin).ok_or_else(|| {
        rustls::Error::General("it is not the controller that the token was made by".to_owned())
    })?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), shown.provider.clone())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    verifier.verify_server_cert(shown.certificate, &[], shown.name, &[], shown.now)?;
    Ok(authority.clone().into_owned())
}

fn pem(der: &CertificateDer<'_>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Replaces a file as a whole, readable by its owner only.
fn write(path: &Path, text: &str) -> Result<(), JoinError> {
    let fresh = path.with_extension("new");
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    written.map_err(at(path))
}

fn at(path: &Path) -> impl Fn(io::Error) -> JoinError + '_ {
    |error| JoinError::File { path: path.to_owned(), error }
}

/// An error with its causes: tonic's own words are only "transport error".
pub fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
