//! The controller's own certificate authority: made at the first start, it vouches for the controller, the
//! administrator and the agents, and for nobody else.
//!
//! A certificate and its key are one file (`<data-dir>/pki/*.pem`, mode 0600), replaced as a whole: no
//! crash leaves a key without its certificate. An authority that cannot be read is never replaced. Certificates
//! other than the authority's are short-lived: [`Pki::renew`] replaces them when a third of their life is left,
//! under servers that go on.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::files::{make_private_directory, write_atomically};

/// The administrator's name and group, as Kubernetes' own bootstrap has them.
pub const ADMIN: &str = "berth-admin";
pub const ADMIN_GROUP: &str = "system:masters";
/// An agent is `system:node:<name>`, of this group.
pub const NODE_PREFIX: &str = "system:node:";
pub const NODE_GROUP: &str = "system:nodes";

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How long certificates are good for. They are renewed when a third of it is left, so a host may be away for
/// four months and still be known.
pub const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path}: {error}", path = .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "{path}: {reason}; it was left untouched: restore it (all agents and kubeconfigs rest on it)",
        path = .path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("certificates: {0}")]
    Crypto(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate signing request that is refused; the reason is for whoever sent it.
#[derive(Debug, thiserror::Error)]
#[error("the certificate signing request is refused: {0}")]
pub struct RequestError(String);

/// Under which names and addresses clients and agents may reach the controller.
#[derive(Clone, Debug, Default)]
pub struct ServerNames(BTreeSet<String>);

impl ServerNames {
    /// Those every controller has (loopback, the host's name and addresses, Kubernetes' in-cluster names)
    /// and those of the configuration.
    pub fn of_this_host(cluster_domain: &str, advertised: &[String]) -> ServerNames {
        let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        let base = "kubernetes.default.svc";
        names.extend(["kubernetes", "kubernetes.default", base].map(str::to_owned));
        names.insert(format!("{base}.{cluster_domain}"));
        let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        names.extend(hostname.filter(|name| name.is_ascii() && !name.is_empty()));
        let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        for address in interfaces.filter_map(|interface| interface.address) {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            let v6 = address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
            names.extend(v4.or(v6).filter(|ip| !link_local(ip)).map(|ip| ip.to_string()));
        }
        names.extend(advertised.iter().cloned());
        ServerNames(names)
    }
}

/// Nobody dials these without a scope, which no certificate can hold.
fn link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Who a client certificate (already verified) speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    /// None if the certificate names nobody.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Identity> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let user = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = parsed.subject().iter_organization().filter_map(|o| o.as_str().ok());
        Some(Identity { groups: groups.map(str::to_owned).collect(), user })
    }

    /// The node whose agent this is, if it is one's.
    pub fn node(&self) -> Option<&str> {
        self.groups.iter().find(|g| *g == NODE_GROUP)?;
        self.user.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty())
    }
}

/// As [`AgentRequest::key_hash`], of the certificate made for such a request.
pub fn key_hash(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(hex(&Sha256::digest(&parsed.public_key().subject_public_key.data)))
}

/// The authority and what it has issued to the controller itself.
pub struct Pki {
    data_dir: PathBuf,
    authority: Authority,
    listen: SocketAddr,
    wanted: Mutex<Wanted>,
    server: Arc<Server>,
}

/// What the operator may change while it serves.
#[derive(Clone)]
struct Wanted {
    names: ServerNames,
    life: Duration,
}

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
struct Pair {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    key_pem: String,
    renew_at: Timestamp,
}

/// The server's certificate, as handshakes take it: the one in force at that moment.
struct Server(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl ResolvesServerCert for Server {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What [`Pki::renew`] has found.
#[derive(Debug)]
pub struct Renewed {
    /// The server's certificate is another one.
    pub server: bool,
    /// The administrator's certificate, or admin.kubeconfig around it, is another one.
    pub admin: bool,
    /// When the next certificate is due.
    pub next: Timestamp,
}

impl Pki {
    /// As [`Pki::open_with`], with certificates that are good for [`LIFE`].
    pub fn open(data_dir: &Path, names: &ServerNames, listen: SocketAddr) -> Result<Pki, PkiError> {
        Pki::open_with(data_dir, names, listen, LIFE)
    }

    /// Reads what there is under `<data_dir>/pki`, makes what is missing, and renews what runs out or (the
    /// server's) no longer bears the names it should. Writes `<data_dir>/admin.kubeconfig`, which points
    /// at `listen` (at loopback, where that is a wildcard).
    pub fn open_with(
        data_dir: &Path,
        names: &ServerNames,
        listen: SocketAddr,
        life: Duration,
    ) -> Result<Pki, PkiError> {
        let directory = data_dir.join("pki");
        make_private_directory(&directory).map_err(|e| at(&directory, e))?;
        let now = Timestamp::now();
        let authority = Authority::open(&directory, now)?;
        let pair = server_pair(&directory, &authority, names, now, life)?;
        let server = Arc::new(Server(RwLock::new(certified(&pair, &authority)?)));
        let wanted = Mutex::new(Wanted { names: names.clone(), life });
        let pki = Pki { data_dir: data_dir.to_owned(), authority, listen, wanted, server };
        pki.renew(now)?;
        Ok(pki)
    }

    /// Reads the certificates again, renews what is due, and has the servers use what is new from their next
    /// connection on. Nobody's connection ends.
    pub fn renew(&self, now: Timestamp) -> Result<Renewed, PkiError> {
        let directory = self.data_dir.join("pki");
        let Wanted { names, life } = self.wanted().clone();
        let pair = server_pair(&directory, &self.authority, &names, now, life)?;
        let fresh = certified(&pair, &self.authority)?;
        let server = {
            let mut current = self.server.0.write().unwrap_or_else(PoisonError::into_inner);
            let changed = current.cert != fresh.cert;
            *current = fresh;
            changed
        };
        let issue = || {
            let usage = ExtendedKeyUsagePurpose::ClientAuth;
            self.authority.issue(leaf(now, life, ADMIN, Some(ADMIN_GROUP), usage)?)
        };
        let admin = Pair::open(&directory.join("admin.pem"), now, |_| true, issue)?;
        refresh(&directory.join("ca.crt"), self.authority.pem.as_bytes(), 0o644)?;
        let kubeconfig = kubeconfig(&self.authority.pem, &admin, self.listen);
        let rewritten = refresh(&self.data_dir.join("admin.kubeconfig"), kubeconfig.as_bytes(), 0o600)?;
        Ok(Renewed { server, admin: rewritten, next: pair.renew_at.min(admin.renew_at) })
    }

    /// From the next [`Pki::renew`] on the server's certificate bears these names; what is made from now on is good
    /// for `life`.
    pub fn set(&self, names: ServerNames, life: Duration) {
        *self.wanted() = Wanted { names, life };
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority's certificate: public.
    pub fn authority_pem(&self) -> &str {
        &self.authority.pem
    }

    /// What a join token pins: SHA-256 of the authority's certificate (DER), in hexadecimal.
    pub fn authority_pin(&self) -> String {
        hex(&Sha256::digest(&self.authority.der))
    }

    /// TLS for a server that knows its clients by certificates of this authority, but lets others connect
    /// too (they are nobody). `protocols` in order of preference, for ALPN.
    pub fn server_config(&self, protocols: &[&str]) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der.clone())?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.server.clone());
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A further certificate (PEM) for a node that has one for this key (its hash).
    pub fn renew_agent(&self, node: &str, key: &str, request_pem: &str) -> Result<String, RenewError> {
        let request = AgentRequest::from_pem(request_pem)?;
        if request.key_hash() != key {
            return Err(RequestError("it is for another key than the certificate's".to_owned()).into());
        }
        Ok(self.sign_agent(&request, node)?)
    }

    /// A client certificate (PEM) for a node's agent. Of the request only the public key counts, and that
    /// its sender holds the key: whatever else it asks for is ignored.
    pub fn sign_agent(&self, request: &AgentRequest, node: &str) -> Result<String, PkiError> {
        let user = format!("{NODE_PREFIX}{node}");
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let params = leaf(Timestamp::now(), self.wanted().life, &user, Some(NODE_GROUP), usage)?;
        let certificate = params.signed_by(&request.0.public_key, &self.authority.issuer)?;
        Ok(certificate.pem())
    }
}

fn server_pair(
    directory: &Path,
    authority: &Authority,
    names: &ServerNames,
    now: Timestamp,
    life: Duration,
) -> Result<Pair, PkiError> {
    let issue = || {
        let mut params = leaf(now, life, ADMIN_SERVER, None, ExtendedKeyUsagePurpose::ServerAuth)?;
        params.subject_alt_names = names.to_alternatives()?;
        authority.issue(params)
    };
    Pair::open(&directory.join("server.pem"), now, |old| names.borne_by(old), issue)
}

/// The server's certificate and the authority's, so that an agent that knows only the pin can check.
fn certified(pair: &Pair, authority: &Authority) -> Result<Arc<CertifiedKey>, PkiError> {
    let chain = vec![pair.certificate.clone(), authority.der.clone()];
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?))
}

/// Why an agent gets no further certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Common name of the server's certificate; clients look at the alternative names.
const ADMIN_SERVER: &str = "berth-controller";

/// An agent's certificate signing request whose signature is right.
pub struct AgentRequest(CertificateSigningRequestParams);

impl AgentRequest {
    pub fn from_pem(pem: &str) -> Result<AgentRequest, RequestError> {
        if pem.len() > 16 << 10 {
            return Err(RequestError("it is too long".to_owned()));
        }
        CertificateSigningRequestParams::from_pem(pem)
            .map(AgentRequest)
            .map_err(|e| RequestError(e.to_string()))
    }

    /// SHA-256 of the public key, in hexadecimal: the same when an agent asks again.
    pub fn key_hash(&self) -> String {
        hex(&Sha256::digest(self.0.public_key.der_bytes()))
    }
}

impl Authority {
    fn open(directory: &Path, now: Timestamp) -> Result<Authority, PkiError> {
        let path = directory.join("ca.pem");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let text = Authority::make(now)?;
                write_atomically(&path, text.as_bytes(), 0o600).map_err(|e| at(&path, e))?;
                text
            }
            Err(e) => return Err(at(&path, e)),
        };
        let damaged = |reason: String| PkiError::Damaged { path: path.clone(), reason };
        let pair = Pair::parse(&text).map_err(damaged)?;
        let key = KeyPair::from_pem(&pair.key_pem).map_err(|e| damaged(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&pair.certificate).map_err(|e| damaged(e.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(damaged("certificate and key do not belong together".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&pair.certificate, key).map_err(|e| damaged(e.to_string()))?;
        Ok(Authority { pem: pair.certificate_pem, der: pair.certificate, issuer })
    }

    fn make(now: Timestamp) -> Result<String, PkiError> {
        let mut params = validity(now, AUTHORITY_LIFE)?;
        // Unlike any other authority's name, so that certificates of two clusters are never mixed up.
        let serial = uuid::Uuid::new_v4().simple().to_string();
        params.distinguished_name.push(DnType::CommonName, format!("berth-ca-{}", &serial[..8]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        Ok(format!("{}{}", params.self_signed(&key)?.pem(), key.serialize_pem()))
    }

    fn issue(&self, params: CertificateParams) -> Result<String, PkiError> {
        let key = KeyPair::generate()?;
        Ok(format!("{}{}", params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

impl Pair {
    /// What is at `path` if it can still be used, or a new one made by `issue`.
    fn open(
        path: &Path,
        now: Timestamp,
        fits: impl FnOnce(&X509Certificate<'_>) -> bool,
        issue: impl FnOnce() -> Result<String, PkiError>,
    ) -> Result<Pair, PkiError> {
        let parse = |text: String| Pair::parse(&text).ok();
        if let Some(pair) = fs::read_to_string(path).ok().and_then(parse)
            && let Ok((_, parsed)) = X509Certificate::from_der(&pair.certificate)
            && now < pair.renew_at
            && fits(&parsed)
        {
            return Ok(pair);
        }
        let text = issue()?;
        write_atomically(path, text.as_bytes(), 0o600).map_err(|e| at(path, e))?;
        Pair::parse(&text).map_err(|reason| PkiError::Damaged { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Pair, String> {
        let key_at = text.find("-----BEGIN PRIVATE KEY").ok_or("there is no private key in it")?;
        let (certificate_pem, key_pem) = text.split_at(key_at);
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| format!("there is no certificate in it: {e}"))?;
        KeyPair::from_pem(key_pem).map_err(|e| format!("its key cannot be read: {e}"))?;
        let (from, to) = validity_in(&certificate)?;
        let renew_at = Timestamp::from_second(renewal(from, to)).map_err(|e| e.to_string())?;
        let (certificate_pem, key_pem) = (certificate_pem.to_owned(), key_pem.to_owned());
        Ok(Pair { certificate_pem, certificate, key_pem, renew_at })
    }
}

/// When a certificate is to be renewed that is good between these (Unix seconds).
pub fn renewal(from: i64, to: i64) -> i64 {
    to - (to - from) / 3
}

fn validity(now: Timestamp, life: Duration) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let moment = |t: Timestamp| {
        let since = Duration::from_secs(u64::try_from(t.as_second()).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1) + since
    };
    let life = SignedDuration::try_from(life).unwrap_or(SignedDuration::MAX);
    let day = SignedDuration::try_from(DAY).unwrap_or(SignedDuration::ZERO);
    // From a day ago: agents' clocks may be behind. Not more than its life: see `renewal`.
    params.not_before = moment(now.saturating_sub(day.min(life)).unwrap_or(now));
    params.not_after = moment(now.saturating_add(life).unwrap_or(Timestamp::MAX));
    params.distinguished_name = DistinguishedName::new();
    let mut serial = uuid::Uuid::new_v4().into_bytes();
    // Positive, and of constant length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn leaf(
    now: Timestamp,
    life: Duration,
    name: &str,
    group: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, PkiError> {
    let mut params = validity(now, life)?;
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

impl ServerNames {
    fn to_alternatives(&self) -> Result<Vec<SanType>, PkiError> {
        let alternative = |name: &String| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
        };
        self.0.iter().map(alternative).collect()
    }

    fn borne_by(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok(Some(extension)) = certificate.subject_alternative_name() else { return false };
        let borne: BTreeSet<String> = extension.value.general_names.iter().filter_map(name_text).collect();
        self.0.is_subset(&borne)
    }
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}

/// What kubectl needs to be the administrator; everything embedded, so that the file can be copied away.
fn kubeconfig(authority: &str, admin: &Pair, listen: SocketAddr) -> String {
    let address = match listen.ip() {
        ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        ip => ip,
    };
    let server = SocketAddr::new(address, listen.port());
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: berth
  cluster:
    server: https://{server}
    certificate-authority-data: {}
users:
- name: {ADMIN}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: berth
  context:
    cluster: berth
    user: {ADMIN}
current-context: berth
",
        BASE64.encode(authority),
        BASE64.encode(&admin.certificate_pem),
        BASE64.encode(&admin.key_pem),
    )
}

/// Writes a file unless it says so already; whether it did.
fn refresh(path: &Path, content: &[u8], mode: u32) -> Result<bool, PkiError> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    write_atomically(path, content, mode).map_err(|e| at(path, e))?;
    Ok(true)
}

fn at(path: &Path, error: io::Error) -> PkiError {
    PkiError::Io { path: path.to_owned(), error }
}

/// From when to when a certificate is good, in Unix seconds; `text` is one of `pki/*.pem`.
pub fn validity_of(text: &str) -> Result<(i64, i64), String> {
    validity_in(&Pair::parse(text)?.certificate)
}

fn validity_in(certificate: &CertificateDer<'_>) -> Result<(i64, i64), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
