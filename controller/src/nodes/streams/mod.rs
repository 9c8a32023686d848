//! Interactive streams: the controller asks in the session, the agent dials back, the two ends are joined.
//!
//! Nothing is buffered here beyond a few chunks: who reads slowly is waited for, at both ends. A stream
//! ends with whichever of its ends goes first.

mod exec;
mod log;
mod target;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use berth_controller_core::object;
use berth_controller_core::status::Status;
use berth_proto::controller_message::Message;
use berth_proto::stream_request::Request;
use berth_proto::{PodRef, StreamDown, StreamEnd, StreamRequest, StreamUp};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;

use super::world::{self, Name};
use super::{Forget, NodeError, Nodes, ledger, lock};
use crate::api::Connect;

/// How long the agent may take to dial back.
const DIAL_BACK: Duration = Duration::from_secs(10);

/// The agent's end of a stream.
pub struct AgentStream {
    pub up: Streaming<StreamUp>,
    pub down: mpsc::Sender<Result<StreamDown, tonic::Status>>,
}

/// Streams that were asked for and are not there yet.
#[derive(Default)]
pub struct Hub {
    awaited: Mutex<HashMap<String, Awaited>>,
}

struct Awaited {
    node: String,
    sender: oneshot::Sender<AgentStream>,
}

impl Hub {
    /// An agent has dialled back. False: nobody waits for that id from that node.
    pub fn opened(&self, id: &str, node: &str, stream: AgentStream) -> bool {
        let mut awaited = lock(&self.awaited);
        if awaited.get(id).is_none_or(|a| a.node != node) {
            return false;
        }
        awaited.remove(id).is_some_and(|a| a.sender.send(stream).is_ok())
    }
}

impl Nodes {
    /// Asks a node's agent for a stream.
    pub(super) async fn open_stream(
        &self,
        node: &str,
        pod: PodRef,
        container: &str,
        request: Request,
    ) -> Result<AgentStream, NodeError> {
        // Not to be guessed: another agent must not be able to answer.
        let id = uuid::Uuid::new_v4().to_string();
        let (sender, opened) = oneshot::channel();
        lock(&self.inner.streams.awaited).insert(id.clone(), Awaited { node: node.to_owned(), sender });
        let _forget = Forget(|| drop(lock(&self.inner.streams.awaited).remove(&id)));
        let request = StreamRequest {
            stream_id: id.clone(),
            pod: Some(pod),
            container: container.to_owned(),
            request: Some(request),
        };
        let opening = async {
            self.tell(node, Message::Stream(request)).await?;
            opened.await.map_err(|_| NodeError::Away(node.to_owned()))
        };
        tokio::time::timeout(DIAL_BACK, opening).await.unwrap_or(Err(NodeError::Late(node.to_owned())))
    }
}

impl Nodes {
    /// The handlers of `pods/log`, `pods/exec` and `pods/attach`, for the API's registry.
    pub fn connects(&self) -> Vec<Connect> {
        let (logs, execs, attaches) = (self.clone(), self.clone(), self.clone());
        vec![
            Connect::new("pods", "log", "Pod", &["get"], move |connection| {
                log::serve(logs.clone(), connection)
            }),
            Connect::new("pods", "exec", "PodExecOptions", &["create", "get"], move |connection| {
                exec::exec(execs.clone(), connection)
            }),
            Connect::new("pods", "attach", "PodAttachOptions", &["create", "get"], move |connection| {
                exec::attach(attaches.clone(), connection)
            }),
        ]
    }

    /// The node of a bound pod, and its life there.
    fn life_of(&self, pod: &Value) -> Option<(String, PodRef)> {
        let name = Name::new(object::namespace(pod), object::name(pod));
        let held = world::held(&self.inner.store, &name);
        let record = held.record.filter(|record| record.uid == object::uid(pod));
        // A pod that has ended may hold no record any more, but its host keeps its logs.
        let node = match (&record, pod["spec"]["nodeName"].as_str()) {
            (Some(record), _) => record.node.clone(),
            (None, Some(node)) if !node.is_empty() => node.to_owned(),
            (None, _) => return None,
        };
        Some((node, ledger::reference(&name, object::uid(pod), record.map_or(0, |r| r.epoch))))
    }
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Status {
        match error {
            NodeError::Away(_) => Status::new(503, "ServiceUnavailable", error.to_string()),
            NodeError::Late(_) => Status::new(504, "Timeout", error.to_string()),
            NodeError::Failed(why) => Status::internal(why),
        }
    }
}

/// Why the agent could not do what it was asked for, if it could not.
fn failure(end: &StreamEnd) -> Option<Status> {
    if end.error.is_empty() {
        return None;
    }
    let message = end.error.clone();
    Some(match end.error_reason.as_str() {
        "NotFound" => Status::new(404, "NotFound", message),
        "BadRequest" => Status::bad_request(message),
        _ => Status::internal(message),
    })
}
