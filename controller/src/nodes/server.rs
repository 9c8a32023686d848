//! The gRPC server: TLS, who the caller is, and the three calls of `node.proto`.

use std::sync::Arc;
use std::time::Duration;

use berth_proto::node_server::{Node, NodeServer};
use berth_proto::stream_up::Message as Up;
use berth_proto::{
    AgentMessage, ControllerMessage, JoinRequest, JoinResponse, RenewRequest, StreamDown, StreamUp,
};
use futures_util::future;
use http_body_util::Limited;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as _;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::streams::AgentStream;
use super::wire::{Outgoing, SESSION, SessionCodec};
use super::{Join, JoinRefused, Joined, Nodes, session, world};
use crate::pki::{self, Identity};
use crate::store::Scope;
use crate::tokens;

/// A caller that has not finished its handshake by then is hung up on.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time: they cost CPU before anybody is known.
const HANDSHAKES: usize = 64;
/// Connections that have not ended by then are dropped.
const FAREWELL: Duration = Duration::from_secs(3);
/// Inventories of hosts with many pods are bigger than tonic's default of 4 MiB.
const LARGEST: usize = 64 << 20;
/// What somebody without a certificate may send: a token and a certificate signing request.
const STRANGER: usize = 64 << 10;
/// Messages that may wait for an agent.
const WAITING: usize = 256;
/// Chunks that may wait in an interactive stream.
const CHUNKS: usize = 4;

/// Serves until `shutdown`. `tls` must ask for (and may not require) client certificates of the
/// controller's own authority, and offer `h2`.
pub(super) async fn serve(
    nodes: Nodes,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    join: Arc<dyn Join>,
    shutdown: CancellationToken,
) {
    for node in nodes.inner.store.list(&Scope::all(world::NODES)).objects {
        nodes.await_arrival(&node.key.name);
    }
    let service = NodeServer::new(Service { nodes: nodes.clone(), join })
        .max_decoding_message_size(LARGEST)
        .max_encoding_message_size(LARGEST);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(end_revoked(nodes.clone())));
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: it passes, but not at once.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().acquire_owned().await else { break };
        let (acceptor, service, shutdown) = (acceptor.clone(), service.clone(), shutdown.clone());
        let sessions = Sessions(nodes.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            let done = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
            drop(permit);
            if let Ok(Ok(stream)) = done {
                connection(stream, service, sessions, shutdown).await;
            }
        });
    }
    // Streams do not end by themselves: the sessions are ended first.
    nodes.close();
    connections.close();
    let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Peer {
    /// The node whose agent it is; None: somebody without a certificate of an agent.
    node: Option<String>,
    /// Hash of its key.
    key: Option<String>,
}

/// Says when an answer was given: hosts compare their clocks with it. hyper would say it too, but holds on to what it
/// said last while the clock is behind that, for an hour once it was set back by one.
fn dated<B>(mut answer: http::Response<B>, now: jiff::Timestamp) -> http::Response<B> {
    let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
    if let Some(date) = text.ok().and_then(|text| http::HeaderValue::try_from(text).ok()) {
        answer.headers_mut().insert(http::header::DATE, date);
    }
    answer
}

async fn connection(
    stream: TlsStream<TcpStream>,
    service: NodeServer<Service>,
    sessions: Sessions,
    shutdown: CancellationToken,
) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|all| all.first());
    let node = certificate.and_then(Identity::of).and_then(|who| who.node().map(str::to_owned));
    let peer = Peer { node, key: certificate.and_then(pki::key_hash) };
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let stranger = peer.node.is_none();
        request.extensions_mut().insert(peer.clone());
        let request = request.map(|body| match stranger {
            true => tonic::body::Body::new(Limited::new(body, STRANGER)),
            false => tonic::body::Body::new(body),
        });
        let (mut service, mut sessions) = (service.clone(), sessions.clone());
        async move {
            let answer = match request.uri().path() == SESSION {
                true => Ok(sessions.call(request).await),
                false => service.call(request).await,
            };
            answer.map(|answer| dated(answer, jiff::Timestamp::now()))
        }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(15))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        // An agent that goes away does not say good-bye: nothing to tell.
        _ = &mut served => return,
        () = shutdown.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(FAREWELL, served).await;
}

#[derive(Clone)]
struct Service {
    nodes: Nodes,
    join: Arc<dyn Join>,
}

/// The node a call comes from, by its certificate. A certificate of the machine that had the name before counts no
/// more.
fn caller<T>(nodes: &Nodes, request: &Request<T>) -> Result<String, Status> {
    let peer = request.extensions().get::<Peer>();
    let Some((node, key)) = peer.and_then(|peer| Some((peer.node.clone()?, &peer.key))) else {
        return Err(Status::unauthenticated("an agent's client certificate is needed"));
    };
    match tokens::key_of(&nodes.inner.store, &node) {
        Some(joined) if joined.is_empty() => Err(Status::permission_denied(tokens::revoked_because(&node))),
        Some(joined) if key.as_ref() != Some(&joined) => Err(Status::permission_denied(format!(
            "another machine has joined as node {node:?} since: stop this one's agent, or let it join under another name"
        ))),
        _ => Ok(node),
    }
}

fn refused(error: JoinRefused) -> Status {
    match error {
        JoinRefused::Token(why) => Status::permission_denied(why),
        JoinRefused::Request(why) => Status::invalid_argument(why),
        JoinRefused::Unavailable(why) => Status::unavailable(why),
    }
}

/// Ends the sessions of hosts whose certificates are revoked, as that happens.
async fn end_revoked(nodes: Nodes) {
    let store = &nodes.inner.store;
    loop {
        let Ok(mut watch) = store.watch(&Scope::all(tokens::KEYS), store.revision()) else { continue };
        // What has happened before the watch.
        let open: Vec<String> = nodes.sessions().keys().cloned().collect();
        for node in open.iter().filter(|node| tokens::is_revoked(store, node)) {
            nodes.end_session(node);
        }
        while let Ok(batch) = watch.next().await {
            for event in batch.events {
                let node = &event.object.key.name;
                if tokens::is_revoked(store, node) {
                    nodes.end_session(node);
                }
            }
        }
    }
}

/// The one call that is not the generated service's, for its codec.
#[derive(Clone)]
struct Sessions(Nodes);

impl Sessions {
    async fn call(&mut self, request: http::Request<tonic::body::Body>) -> http::Response<tonic::body::Body> {
        tonic::server::Grpc::new(SessionCodec)
            .apply_max_message_size_config(Some(LARGEST), Some(LARGEST))
            .streaming(self.clone(), request)
            .await
    }
}

impl StreamingService<AgentMessage> for Sessions {
    type Response = Outgoing;
    type ResponseStream = ReceiverStream<Result<Outgoing, Status>>;
    type Future = future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<AgentMessage>>) -> Self::Future {
        let node = match caller(&self.0, &request) {
            Ok(node) => node,
            Err(status) => return future::ready(Err(status)),
        };
        let (out, messages) = mpsc::channel(WAITING);
        tokio::spawn(session::run(self.0.clone(), node, request.into_inner(), out));
        future::ready(Ok(Response::new(ReceiverStream::new(messages))))
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let JoinRequest { token, node_name, certificate_request } = request.into_inner();
        match self.join.join(&token, &node_name, &certificate_request).await {
            Ok(joined) => {
                tracing::info!(node = %node_name, "joined");
                Ok(Response::new(JoinResponse {
                    certificate: joined.certificate,
                    authority: joined.authority,
                }))
            }
            Err(error) => {
                tracing::warn!(node = %node_name, %error, "a host may not join");
                Err(refused(error))
            }
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinResponse>, Status> {
        let node = caller(&self.nodes, &request)?;
        let peer = request.extensions().get::<Peer>();
        let key = peer.and_then(|peer| peer.key.clone()).unwrap_or_default();
        match self.join.renew(&node, &key, &request.into_inner().certificate_request) {
            Ok(Joined { certificate, authority }) => {
                tracing::info!(node, "its certificate is renewed");
                Ok(Response::new(JoinResponse { certificate, authority }))
            }
            Err(error) => {
                tracing::warn!(node, %error, "its certificate is not renewed");
                Err(refused(error))
            }
        }
    }

    type SessionStream = ReceiverStream<Result<ControllerMessage, Status>>;

    /// [`Sessions`] answers it before it comes here.
    async fn session(
        &self,
        _: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("a session is served elsewhere"))
    }

    type StreamStream = ReceiverStream<Result<StreamDown, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<StreamUp>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let node = caller(&self.nodes, &request)?;
        let mut up = request.into_inner();
        let first = tokio::time::timeout(HANDSHAKE, up.message()).await;
        let Ok(Ok(Some(StreamUp { message: Some(Up::Open(id)) }))) = first else {
            return Err(Status::invalid_argument("a stream begins with its id"));
        };
        let (down, messages) = mpsc::channel(CHUNKS);
        if self.nodes.inner.streams.opened(&id, &node, AgentStream { up, down }) {
            Ok(Response::new(ReceiverStream::new(messages)))
        } else {
            Err(Status::not_found("nobody waits for this stream (any more)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_the_time_of_the_clock_as_it_is_now() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let answer = dated(http::Response::new(()), now);
        assert_eq!(answer.headers()[http::header::DATE], "Fri, 15 Jan 2027 08:00:00 GMT");
        let set_back = dated(answer, now - jiff::SignedDuration::from_hours(1));
        assert_eq!(set_back.headers()[http::header::DATE], "Fri, 15 Jan 2027 07:00:00 GMT");
    }
}
