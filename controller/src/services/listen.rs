//! One listener's place among the revisions of the view.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{Inner, State, Told};

/// Who is told everything once, and then what changes. Holds a place, not a queue: a slow one costs nothing, and
/// is told everything again once it is too far behind.
pub struct Listener {
    inner: Arc<Inner>,
    /// All up to this revision has been told; 0: nothing yet.
    after: u64,
    wake: watch::Receiver<u64>,
}

impl Listener {
    pub(super) fn new(inner: Arc<Inner>) -> Listener {
        inner.listeners.fetch_add(1, Ordering::Relaxed);
        let wake = inner.newest.subscribe();
        Listener { inner, after: 0, wake }
    }

    /// What is to be told next, in order; waits until there is something. May be dropped at any time.
    pub async fn next(&mut self) -> Vec<Told> {
        loop {
            self.wake.mark_unchanged();
            let (revision, updates) = self.inner.state().after(self.after);
            if revision > self.after {
                self.after = revision;
                return updates;
            }
            if self.wake.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.inner.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    /// What was said after a revision, and up to which.
    fn after(&mut self, after: u64) -> (u64, Vec<Told>) {
        // A revision may have several parts: one that is cut off by the log's end is not there.
        let whole = self.log.front().is_some_and(|(first, _)| *first <= after);
        if after > 0 && (whole || self.revision == after) {
            let start = self.log.partition_point(|(revision, _)| *revision <= after);
            return (self.revision, self.log.range(start..).map(|(_, update)| update.clone()).collect());
        }
        (self.revision, if self.revision == 0 { Vec::new() } else { self.everything() })
    }

    fn everything(&mut self) -> Vec<Told> {
        if let Some((revision, all)) = &self.snapshot
            && *revision == self.revision
        {
            return all.to_vec();
        }
        let all: Arc<[Told]> = self.view.snapshot().into_iter().map(Told::new).collect();
        self.snapshot = Some((self.revision, all.clone()));
        all.to_vec()
    }
}
