//! The one connection to the controller: dialled again and again, with pods running on in between.
//!
//! ```text
//! dial ─▶ Hello (all that runs here) ─▶ read: assignments, stops │ write: statuses, events, the node
//!   ▲                                                            │
//!   └────────── back-off with jitter ◀──── silence, error, end ──┘
//! ```
//! Nothing is decided here. What the controller says goes to the pods, what the pods say goes to it; what
//! cannot be said now waits in the outbox, which keeps the latest only.

use std::time::Duration;

use berth_proto::agent_message::Message as ToController;
use berth_proto::controller_message::Message as FromController;
use berth_proto::node_client::NodeClient;
use berth_proto::{AgentMessage, ControllerMessage, Heartbeat, Hello, NodeStatus, OperationResult};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::config::Settings;
use crate::join::{Credentials, words};
use crate::network::Known;
use crate::pods::Pods;
use crate::prefetch;
use crate::runtime::Runtime;
use crate::streams;

/// How often each side says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A controller that has said nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(35);
/// A controller that takes nothing for so long is gone too.
const STUCK: Duration = Duration::from_secs(30);
const DIAL: Duration = Duration::from_secs(10);
const SOONEST: Duration = Duration::from_millis(200);
const LATEST: Duration = Duration::from_secs(15);
/// A session that lasted so long was a good one: the next attempt is made at once.
const LASTED: Duration = Duration::from_secs(20);
/// Assignments carry the content of ConfigMaps and Secrets.
const LARGEST: usize = 64 << 20;

/// All that a session needs.
#[derive(Clone)]
pub struct Session {
    /// `host:port`
    pub controller: String,
    /// Who we are.
    pub credentials: Credentials,
    /// Among them the token with which this host joins again if its certificate is revoked.
    pub settings: watch::Receiver<Settings>,
    /// The node's name.
    pub node: String,
    /// Whose statuses go out and whose assignments come in.
    pub pods: Pods,
    /// For exec.
    pub runtime: Runtime,
    /// Who the other hosts are, and what is behind the Services.
    pub network: Known,
    /// The host, as it is now.
    pub status: watch::Receiver<NodeStatus>,
}

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("it closed the session")]
    Closed,
    #[error("{0}")]
    Refused(String),
    /// Whatever this host says: its certificate counts no more.
    #[error("{0}")]
    Unwelcome(String),
    #[error("it fell silent")]
    Silent,
    #[error("it takes no messages")]
    Stuck,
}

impl Session {
    /// Keeps a session with the controller until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut pause = SOONEST;
        // The same trouble is told once, not every few seconds.
        let mut told = String::new();
        let mut tried = None;
        loop {
            let begun = Instant::now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.once(&shutdown) => ended,
            };
            let reason = ended.to_string();
            if reason != told {
                tracing::warn!(controller = %self.controller, reason, "no session with the controller; pods run on");
                told = reason;
            }
            if begun.elapsed() > LASTED {
                pause = SOONEST;
                told.clear();
            }
            if matches!(ended, Ended::Unwelcome(_)) && self.rejoin(&mut tried).await {
                pause = SOONEST;
                told.clear();
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(LATEST);
        }
    }

    /// Joins again, if there is a token that was not tried before.
    async fn rejoin(&self, tried: &mut Option<String>) -> bool {
        let token_file = self.settings.borrow().token_file.clone();
        let Some(token_file) = token_file else { return false };
        let token = tokio::fs::read_to_string(&token_file).await.ok();
        if token.is_none() || token == *tried {
            return false;
        }
        match self.credentials.rejoin(&self.controller, &token_file).await {
            Ok(()) => {
                *tried = token;
                tracing::info!(node = %self.node, "joined again");
                true
            }
            Err(error) => {
                if !error.passing() {
                    *tried = token;
                }
                tracing::warn!(%error, "this host cannot join again");
                false
            }
        }
    }

    async fn once(&mut self, shutdown: &CancellationToken) -> Ended {
        let endpoint = match self.credentials.endpoint(&self.controller) {
            Ok(endpoint) => endpoint,
            Err(e) => return Ended::Unreachable(words(&e)),
        };
        let channel = match tokio::time::timeout(DIAL, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Ended::Unreachable(words(&e)),
            Err(_) => return Ended::Unreachable("it does not answer".to_owned()),
        };
        let mut client = NodeClient::new(channel).max_decoding_message_size(LARGEST);
        let (out, messages) = mpsc::channel(64);
        let hello = Hello {
            node_name: self.node.clone(),
            node: Some(self.status.borrow_and_update().clone()),
            pods: self.pods.inventory(),
            agent_version: format!("berth {}", env!("CARGO_PKG_VERSION")),
        };
        // There is room: nothing has been sent yet.
        let _ = out.try_send(AgentMessage { message: Some(ToController::Hello(hello)) });
        let opening = client.session(ReceiverStream::new(messages));
        let inbound = match tokio::time::timeout(DIAL, opening).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return refused(&status),
            Err(_) => return Ended::Unreachable("it does not answer".to_owned()),
        };
        let reading = self.clone();
        tokio::select! {
            ended = reading.read(inbound, out.clone(), shutdown) => ended,
            ended = self.write(&out) => ended,
        }
    }

    async fn read(
        &self,
        mut inbound: Streaming<ControllerMessage>,
        out: mpsc::Sender<AgentMessage>,
        shutdown: &CancellationToken,
    ) -> Ended {
        // Streams outlive the session that asked for them, not the agent.
        loop {
            let message = match tokio::time::timeout(SILENCE, inbound.message()).await {
                Err(_) => return Ended::Silent,
                Ok(Ok(None)) => return Ended::Closed,
                Ok(Ok(Some(message))) => message.message,
                Ok(Err(status)) => return refused(&status),
            };
            match message {
                Some(FromController::Welcome(welcome)) => {
                    tracing::info!(controller = %self.controller, pod_cidr = %welcome.pod_cidr, "session open");
                    self.pods.welcome(&welcome);
                    self.network.welcome(&welcome);
                }
                Some(FromController::Assign(assignment)) => self.pods.apply(assignment),
                Some(FromController::Stop(stop)) => self.pods.stop(stop),
                Some(FromController::Forget(pod)) => self.pods.forget(pod),
                Some(FromController::Stream(request)) => {
                    let session = self.clone();
                    let shutdown = shutdown.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = streams::serve(&session, request) => {}
                        }
                    });
                }
                Some(FromController::Volume(operation)) => {
                    let (pods, out) = (self.pods.clone(), out.clone());
                    tokio::spawn(async move {
                        let result = pods.volume(operation).await;
                        answer(&out, result).await;
                    });
                }
                Some(FromController::Prefetch(request)) => {
                    let (runtime, out) = (self.runtime.clone(), out.clone());
                    tokio::spawn(async move {
                        let result = prefetch::prefetch(&runtime, request).await;
                        answer(&out, result).await;
                    });
                }
                Some(FromController::Network(update)) => self.network.apply(update),
                Some(FromController::Synced(_) | FromController::Heartbeat(_)) | None => {}
            }
        }
    }

    async fn write(&mut self, out: &mpsc::Sender<AgentMessage>) -> Ended {
        let outbox = self.pods.outbox();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // A message is taken only when there is room for it: until then newer ones replace it.
            let permit = match tokio::time::timeout(STUCK, out.reserve()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) => return Ended::Closed,
                Err(_) => return Ended::Stuck,
            };
            let message = tokio::select! {
                message = outbox.next() => message,
                changed = self.status.changed() => match changed {
                    Ok(()) => {
                        let status = self.status.borrow_and_update().clone();
                        AgentMessage { message: Some(ToController::NodeStatus(status)) }
                    }
                    // Whoever watches the host has ended: so does the agent.
                    Err(_) => return Ended::Closed,
                },
                _ = heartbeat.tick() => AgentMessage { message: Some(ToController::Heartbeat(Heartbeat {})) },
            };
            permit.send(message);
        }
    }
}

fn refused(status: &tonic::Status) -> Ended {
    match status.code() {
        tonic::Code::PermissionDenied => Ended::Unwelcome(status.message().to_owned()),
        _ => Ended::Refused(status.message().to_owned()),
    }
}

/// What came of an operation. Asked again in the next session if this one is over.
async fn answer(out: &mpsc::Sender<AgentMessage>, result: OperationResult) {
    let message = AgentMessage { message: Some(ToController::OperationResult(result)) };
    let _ = tokio::time::timeout(STUCK, out.send(message)).await;
}

/// Between three quarters and five quarters of it, so that many agents do not come back at one moment.
fn jittered(pause: Duration) -> Duration {
    let random = u32::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..4].try_into().unwrap_or_default());
    pause.mul_f64(0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}
