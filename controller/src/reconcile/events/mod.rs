//! Events: what happened, for `kubectl describe` and `kubectl events`.
//!
//! Anybody records ([`Events::record`], which never waits and never fails); one task merges, bounds and
//! writes. Losing an event when there are too many is fine; holding up the work it speaks of is not.

mod correlate;
mod writer;

use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::objects::Objects;

pub use correlate::{EventType, ObjectRef, Occurrence, time};

/// Occurrences that may wait to be written.
const WAITING: usize = 4096;

/// Where to say that something happened. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Occurrence>,
}

/// The other end, for the task that writes.
#[derive(Debug)]
pub struct Recorded {
    receiver: mpsc::Receiver<Occurrence>,
}

impl Events {
    pub fn new() -> (Events, Recorded) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Events { sender }, Recorded { receiver })
    }

    /// `component` says so about `object`, now.
    pub fn record(
        &self,
        object: &ObjectRef,
        r#type: EventType,
        reason: &str,
        message: &str,
        component: &str,
    ) {
        self.occurred(Occurrence {
            object: object.clone(),
            r#type,
            reason: reason.to_owned(),
            message: message.to_owned(),
            component: component.to_owned(),
            host: String::new(),
            at: Timestamp::now(),
        });
    }

    /// The same with all that may be said, e.g. what an agent reports of its host.
    pub fn occurred(&self, occurrence: Occurrence) {
        if let Err(error) = self.sender.try_send(occurrence) {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

/// Writes what is recorded, and removes it after an hour; for ever.
pub(super) async fn run(objects: Objects, recorded: Recorded) {
    tokio::join!(writer::write(&objects, recorded), writer::expire(&objects));
}
