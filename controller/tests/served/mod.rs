//! The API served from a store in a temporary directory, and a client for it.

#![allow(clippy::unwrap_used, dead_code)]

pub mod cluster;
pub mod kubectl;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_controller::api::{self, Api, Connect};
use berth_controller::objects::{Objects, Options};
use berth_controller::pki::{Pki, ServerNames};
use berth_controller::store::Store;
use berth_controller_core::kinds;
use berth_controller_schema::Schema;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Served {
    pub objects: Objects,
    pub pki: Arc<Pki>,
    address: std::net::SocketAddr,
    directory: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts a server with a namespace `default`, on a store of its own.
pub async fn start(connects: Vec<Connect>) -> Served {
    start_with(|_| connects).await
}

/// As [`start`], with subresources that work on the objects.
pub async fn start_with(connects: impl FnOnce(&Objects) -> Vec<Connect>) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("berth.db")).unwrap();
    let objects = Objects::new(store, Schema::get());
    let namespaces = kinds::by_resource("", "v1", "namespaces").unwrap();
    let namespace = json!({"metadata": {"name": "default"}});
    objects.create(namespaces, "", namespace, &Options::default()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let names = ServerNames::of_this_host("cluster.local", &[]);
    let pki = Arc::new(Pki::open(directory.path(), &names, address).unwrap());
    let stop = CancellationToken::new();
    let tls = pki.server_config(&["h2", "http/1.1"]).unwrap();
    let api = Api::new(objects.clone(), connects(&objects), Router::new());
    tokio::spawn(api::serve(api, listener, tls, stop.clone()));
    Served { objects, pki, address, directory, stop }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The message of a Status, with its code.
    #[track_caller]
    pub fn refused(&self, code: u16) -> String {
        let body = self.json();
        assert_eq!(self.status, code, "{body}");
        assert_eq!((&body["kind"], &body["code"]), (&json!("Status"), &json!(code)));
        body["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!(self.status < 300, "{}: {:?}", self.status, self.body);
        self.json()
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next event; None at the end.
    pub async fn next(&mut self) -> Option<Value> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = self.rest.drain(..=end).collect();
                    return Some(serde_json::from_slice(&line).unwrap());
                }
                let frame = self.body.frame().await?.unwrap();
                self.rest.extend_from_slice(&frame.into_data().unwrap());
            }
        })
        .await
        .expect("an event in time")
    }

    /// The next event as (type, name).
    pub async fn short(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

impl Served {
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("admin.kubeconfig")
    }

    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The administrator's certificate and key, out of the kubeconfig.
    fn admin(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let data = |field: &str| {
            let line = text.lines().find(|l| l.contains(field)).unwrap();
            let encoded = line.split_once(':').unwrap().1.trim().trim_matches('"');
            BASE64.decode(encoded).unwrap()
        };
        let pem = data("client-certificate-data");
        let chain = CertificateDer::pem_slice_iter(&pem);
        let key = PrivateKeyDer::from_pem_slice(&data("client-key-data")).unwrap();
        (chain.map(Result::unwrap).collect(), key)
    }

    pub async fn send_as(
        &self,
        client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        request: http::Request<Full<Bytes>>,
    ) -> http::Response<Incoming> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.authority_pem().as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        };
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()
    }

    pub async fn request(&self, request: http::Request<Full<Bytes>>) -> Answer {
        read(self.send_as(Some(self.admin()), request).await).await
    }

    pub async fn anonymous(&self, path: &str) -> Answer {
        read(self.send_as(None, build("GET", path, "", Bytes::new())).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(build("GET", path, "", Bytes::new())).await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Answer {
        let mut request = build("GET", path, "", Bytes::new());
        request.headers_mut().insert("accept", accept.parse().unwrap());
        self.request(request).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(build("POST", path, "application/json", body.to_string().into())).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.request(build("PUT", path, "application/json", body.to_string().into())).await
    }

    pub async fn delete(&self, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.request(build("DELETE", path, "application/json", body)).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let media = format!("application/{kind}");
        self.request(build("PATCH", path, &media, body.to_string().into())).await
    }

    pub async fn watch(&self, path: &str) -> Lines {
        self.watch_as(path, "application/json").await
    }

    pub async fn watch_as(&self, path: &str, accept: &str) -> Lines {
        let mut request = build("GET", path, "", Bytes::new());
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let response = self.send_as(Some(self.admin()), request).await;
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), rest: Vec::new() }
    }
}

pub fn build(method: &str, path: &str, media: &str, body: Bytes) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1")
        .body(Full::new(body))
        .unwrap();
    if !media.is_empty() {
        request.headers_mut().insert("content-type", media.parse().unwrap());
    }
    request
}

async fn read(response: http::Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// A ConfigMap.
pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

/// A pod.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    })
}
