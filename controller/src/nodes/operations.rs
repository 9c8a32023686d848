//! What a host is asked to do and answers once: a volume's directory, images.
//!
//! An answer counts only from the session that was asked: with its end everything that was asked in it has
//! failed, and whoever asked decides whether to ask again.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use berth_proto::controller_message::Message;
use berth_proto::prefetch::Image;
use berth_proto::{OperationResult, Prefetch, RegistryAuth, VolumeOperation};
use tokio::sync::oneshot;

use super::{Forget, NodeError, Nodes, lock};

/// A directory is made or gone by then.
const VOLUME: Duration = Duration::from_secs(60);
/// Images are pulled by then, or asked for again: the pull goes on meanwhile.
const IMAGES: Duration = Duration::from_secs(10 * 60);

/// Operations that are not answered yet, by their id.
#[derive(Default)]
pub(super) struct Operations(Mutex<HashMap<u64, Waiting>>);

struct Waiting {
    /// The session's id.
    session: u64,
    answer: oneshot::Sender<Result<(), String>>,
}

impl Operations {
    /// An answer came in a session.
    pub fn answered(&self, session: u64, result: OperationResult) {
        let mut waiting = lock(&self.0);
        if waiting.get(&result.operation_id).is_none_or(|w| w.session != session) {
            return;
        }
        if let Some(one) = waiting.remove(&result.operation_id) {
            let outcome = if result.error.is_empty() { Ok(()) } else { Err(result.error) };
            let _ = one.answer.send(outcome);
        }
    }

    /// A session is over: its answers will not come any more.
    pub fn ended(&self, session: u64) {
        lock(&self.0).retain(|_, waiting| waiting.session != session);
    }
}

impl Nodes {
    /// Makes, archives or removes a volume's directory on a host. `operation_id` is chosen here.
    pub async fn volume(&self, node: &str, operation: VolumeOperation) -> Result<(), NodeError> {
        self.operate(node, VOLUME, |operation_id| {
            Message::Volume(VolumeOperation { operation_id, ..operation })
        })
        .await
    }

    /// Has images on a host, unpacked, before a pod needs them.
    pub async fn prefetch(
        &self,
        node: &str,
        images: Vec<Image>,
        registry_auth: Vec<RegistryAuth>,
    ) -> Result<(), NodeError> {
        self.operate(node, IMAGES, |operation_id| {
            Message::Prefetch(Prefetch { operation_id, images, registry_auth })
        })
        .await
    }

    async fn operate(
        &self,
        node: &str,
        limit: Duration,
        message: impl FnOnce(u64) -> Message,
    ) -> Result<(), NodeError> {
        let away = || NodeError::Away(node.to_owned());
        let id = self.next_id();
        let (sender, answer) = oneshot::channel();
        let out = {
            // Noted while the session is certain to be there: its end finds the note.
            let sessions = self.sessions();
            let handle = sessions.get(node).ok_or_else(away)?;
            let waiting = Waiting { session: handle.id, answer: sender };
            lock(&self.inner.operations.0).insert(id, waiting);
            handle.out.clone()
        };
        let _forget = Forget(|| drop(lock(&self.inner.operations.0).remove(&id)));
        let asked = async {
            out.send(Ok(message(id).into())).await.map_err(|_| away())?;
            // The sender goes with the session.
            answer.await.map_err(|_| away())?.map_err(NodeError::Failed)
        };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(NodeError::Late(node.to_owned())))
    }
}
