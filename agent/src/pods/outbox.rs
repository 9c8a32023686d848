//! What the agent has to tell the controller about its pods. Bounded whatever the controller's speed: of a
//! status only the latest is kept per pod, a stopped report once per pod, and of events the newest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_proto::agent_message::Message;
use berth_proto::{AgentMessage, PodEvent, PodRef, PodStatus, Stopped, VolumeUsage};
use tokio::sync::Notify;

/// Events beyond this are dropped, oldest first: they tell people what happened, nothing depends on them.
const EVENTS: usize = 1000;

/// Filled by the pods, drained by the session. Kept while there is no session; `Hello` carries the statuses
/// anyway, so a message taken by a session that then breaks is not missed.
#[derive(Default)]
pub struct Outbox {
    content: Mutex<Content>,
    filled: Notify,
}

#[derive(Default)]
struct Content {
    statuses: BTreeMap<String, PodStatus>,
    stopped: BTreeMap<String, PodRef>,
    events: VecDeque<PodEvent>,
    /// By pod and claim.
    usages: BTreeMap<(String, String), VolumeUsage>,
}

impl Outbox {
    /// The next message; waits until there is one. Safe to cancel. One consumer at a time.
    pub async fn next(&self) -> AgentMessage {
        loop {
            let filled = self.filled.notified();
            if let Some(message) = self.take() {
                return AgentMessage { message: Some(message) };
            }
            filled.await;
        }
    }

    /// The next message, if there is one now. Statuses go first: a pod's last status is sent before the
    /// report that it has stopped.
    pub fn take(&self) -> Option<Message> {
        let mut content = self.lock();
        if let Some((_, status)) = content.statuses.pop_first() {
            return Some(Message::PodStatus(status));
        }
        if let Some((_, pod)) = content.stopped.pop_first() {
            return Some(Message::Stopped(Stopped { pod: Some(pod) }));
        }
        if let Some(event) = content.events.pop_front() {
            return Some(Message::Event(event));
        }
        content.usages.pop_first().map(|(_, usage)| Message::VolumeUsage(usage))
    }

    pub(crate) fn status(&self, status: PodStatus) {
        let Some(uid) = status.pod.as_ref().map(|pod| pod.uid.clone()) else { return };
        self.lock().statuses.insert(uid, status);
        self.filled.notify_one();
    }

    pub(crate) fn stopped(&self, pod: PodRef) {
        self.lock().stopped.insert(pod.uid.clone(), pod);
        self.filled.notify_one();
    }

    pub(crate) fn event(&self, event: PodEvent) {
        let mut content = self.lock();
        if content.events.len() == EVENTS {
            content.events.pop_front();
        }
        content.events.push_back(event);
        drop(content);
        self.filled.notify_one();
    }

    pub(crate) fn usage(&self, usage: VolumeUsage) {
        let uid = usage.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default();
        self.lock().usages.insert((uid, usage.claim.clone()), usage);
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Nothing in here panics half-way through a change.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
