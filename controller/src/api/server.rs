//! Connections: TLS, who the client is, limits and deadlines, and an orderly end.

use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use berth_controller_core::status::Status;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use super::{Api, health, respond};
use crate::pki::{ADMIN_GROUP, Identity};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 2048;
/// Requests worked on at a time; watches and streams count apart. More get 429.
const REQUESTS: usize = 400;
/// Watches, logs and commands at a time.
const STREAMS: usize = 4000;
/// How long a request may wait for its turn.
const TURN: Duration = Duration::from_secs(5);
/// The longest a request may take that is no stream.
const REQUEST: Duration = Duration::from_secs(60);
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(20);
/// Given to requests when the server ends.
const FAREWELL: Duration = Duration::from_secs(3);

struct Shared {
    router: axum::Router,
    requests: Semaphore,
    streams: Arc<Semaphore>,
}

/// Serves until `stop`; then lets requests finish for a moment and closes what is left.
/// `tls` asks for client certificates and does not require them (`Pki::server_config`).
pub async fn serve(api: Api, listener: TcpListener, tls: Arc<ServerConfig>, stop: CancellationToken) {
    let shared = Arc::new(Shared {
        router: api.router(stop.clone()),
        requests: Semaphore::new(REQUESTS),
        streams: Arc::new(Semaphore::new(STREAMS)),
    });
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let tracker = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                // Never closed: the semaphore lives as long as this function.
                let slot = slots.clone().acquire_owned().await;
                (slot, listener.accept().await)
            } => accepted,
        };
        let (slot, (socket, peer)) = match accepted {
            (Ok(slot), Ok(connection)) => (slot, connection),
            (_, Err(error)) => {
                // Out of descriptors, or the client is gone already: neither ends the server.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            (Err(_), _) => break,
        };
        let connection = connection(shared.clone(), acceptor.clone(), socket, peer, stop.clone());
        let abort = abort.clone();
        tracker.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                () = connection => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(FAREWELL, tracker.wait()).await.is_err() {
        abort.cancel();
        tracker.wait().await;
    }
}

async fn connection(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    socket: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    tune(&socket);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(%peer, "TLS handshake took too long"),
    };
    let (_, session) = stream.get_ref();
    let identity = session.peer_certificates().and_then(|chain| Identity::of(chain.first()?)).map(Arc::new);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (shared, identity) = (shared.clone(), identity.clone());
        async move { Ok::<_, Infallible>(request_of(shared, identity, request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%peer, %error, "connection ended");
    }
}

/// Small answers at once; a peer that vanished is noticed.
fn tune(socket: &TcpStream) {
    let tuned = socket.set_nodelay(true).map_err(|e| e.to_string()).and_then(|()| {
        setsockopt(socket, sockopt::KeepAlive, &true)
            .and_then(|()| setsockopt(socket, sockopt::TcpKeepIdle, &60))
            .and_then(|()| setsockopt(socket, sockopt::TcpKeepInterval, &15))
            .map_err(|e| e.to_string())
    });
    if let Err(error) = tuned {
        debug!(error, "socket options");
    }
}

/// One request: who may, how many, how long, and that a bug in one handler is only that request's end.
async fn request_of(shared: Arc<Shared>, identity: Option<Arc<Identity>>, mut request: Request) -> Response {
    let path = request.uri().path();
    if !health::is_public(path) {
        match &identity {
            None => return respond::status(&Status::new(401, "Unauthorized", "Unauthorized")),
            Some(identity) if !identity.groups.iter().any(|g| g == ADMIN_GROUP) => {
                let message = format!(
                    "forbidden: User {:?} cannot {} path {path:?}",
                    identity.user,
                    request.method().as_str().to_lowercase()
                );
                return respond::status(&Status::new(403, "Forbidden", message));
            }
            Some(identity) => {
                let identity = Identity::clone(identity);
                request.extensions_mut().insert(identity);
            }
        }
    }
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let begun = std::time::Instant::now();
    let streams = super::is_stream(&request);
    let work = async {
        if streams {
            let Ok(permit) = shared.streams.clone().try_acquire_owned() else { return too_many() };
            let response = dispatch(&shared, request).await;
            return respond::hold(response, permit);
        }
        let turn = tokio::time::timeout(TURN, shared.requests.acquire()).await;
        let Ok(Ok(_permit)) = turn else { return too_many() };
        match tokio::time::timeout(REQUEST, dispatch(&shared, request)).await {
            Ok(response) => response,
            Err(_) => respond::status(&Status::new(
                504,
                "Timeout",
                "Timeout: request did not complete within the allotted timeout",
            )),
        }
    };
    let response = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            error!(%method, %uri, panic = told(&*panic), "a request handler panicked: please report this");
            respond::status(&Status::internal("this request hit a bug in the server; its log says more"))
        }
    };
    debug!(%method, %uri, status = response.status().as_u16(), took = ?begun.elapsed(), "request");
    response
}

async fn dispatch(shared: &Shared, request: Request) -> Response {
    match TowerToHyperService::new(shared.router.clone()).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn too_many() -> Response {
    let mut status = Status::new(429, "TooManyRequests", "Too many requests, please try again later.");
    status.details = serde_json::json!({"retryAfterSeconds": 1});
    respond::status(&status)
}

fn told(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
