//! A reader's place in the history of a scope.

use std::sync::Arc;

use tokio::sync::watch;

use super::cache::Cache;
use super::error::Expired;
use super::model::{Batch, Revision, Scope};

/// Events handed out at once, about (a transaction is never split): bounds the time the cache is locked.
const BATCH: usize = 256;

/// Everything in a scope after a revision, in order. Holds a place, not a queue: a slow reader costs
/// nothing, and finds [`Expired`] once history has moved past it.
pub struct Watch {
    cache: Arc<Cache>,
    scope: Scope,
    after: Revision,
    wake: watch::Receiver<Revision>,
}

impl Watch {
    pub(super) fn new(cache: Arc<Cache>, scope: Scope, after: Revision) -> Result<Watch, Expired> {
        let wake = cache.subscribe(&scope, after)?;
        Ok(Watch { cache, scope, after, wake })
    }

    /// Waits for the next events. May be dropped at any time without losing any.
    pub async fn next(&mut self) -> Result<Batch, Expired> {
        loop {
            self.wake.mark_unchanged();
            if let Some(batch) = self.poll()? {
                return Ok(batch);
            }
            // The sender lives as long as the cache, which this watch holds.
            if self.wake.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The events that are there already, if any.
    pub fn poll(&mut self) -> Result<Option<Batch>, Expired> {
        let (events, revision) = self.cache.events(&self.scope, self.after, BATCH)?;
        self.after = revision;
        Ok((!events.is_empty()).then_some(Batch { events, revision }))
    }

    /// The revision up to which everything has been handed out: what a bookmark may say. Moves on by
    /// itself while nothing happens in the scope.
    pub fn revision(&mut self) -> Revision {
        if let Ok((events, revision)) = self.cache.events(&self.scope, self.after, 1)
            && events.is_empty()
        {
            self.after = revision;
        }
        self.after
    }
}
