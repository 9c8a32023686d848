//! Writes the events that were recorded, several in one transaction, and removes them after an hour.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use berth_controller_core::kinds::{self, Kind};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::correlate::{Correlator, Record};
use super::{Recorded, time};
use crate::objects::{Objects, key};
use crate::reconcile::feed::{Seen, follow};
use crate::store::{CommitError, EventKind, Key, Object, Scope, Transaction};

const EVENTS: &Kind = &kinds::event::EVENT;
/// What is recorded within this time is written together; it also lets the work itself go first.
const GATHER: Duration = Duration::from_millis(25);
const LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// Expired events are removed at most so often, all that are due together.
const SWEEP: Duration = Duration::from_secs(60);
/// Events written or removed in one transaction.
const BATCH: usize = 256;

/// Writes what is recorded, for ever.
pub(super) async fn write(objects: &Objects, mut recorded: Recorded) {
    let mut correlator = Correlator::default();
    let mut occurrences = Vec::new();
    while recorded.receiver.recv_many(&mut occurrences, BATCH).await > 0 {
        tokio::time::sleep(GATHER).await;
        while occurrences.len() < BATCH
            && let Ok(more) = recorded.receiver.try_recv()
        {
            occurrences.push(more);
        }
        let mut records: BTreeMap<(String, String), Record> = BTreeMap::new();
        for record in occurrences.drain(..).filter_map(|o| correlator.observe(o)) {
            records.insert((record.namespace.clone(), record.name.clone()), record);
        }
        if let Err(error) = commit(objects, records.values()).await {
            // Somebody else wrote one of them, or a namespace went: one by one then.
            tracing::debug!(%error, "events are written one by one");
            for record in records.values() {
                if let Err(error) = commit(objects, std::iter::once(record)).await {
                    tracing::debug!(%error, event = %record.name, "an event is lost");
                }
            }
        }
    }
}

async fn commit<'a>(objects: &Objects, records: impl Iterator<Item = &'a Record>) -> Result<(), CommitError> {
    let mut transaction = Transaction::new();
    for record in records {
        let key = key(EVENTS, &record.namespace, &record.name);
        match objects.store().get(&key) {
            Some(stored) => {
                let mut value = stored.value();
                value["count"] = record.count.into();
                value["message"] = record.message.clone().into();
                value["lastTimestamp"] = time(record.last).into();
                transaction = transaction.unchanged(key.clone(), stored.revision).put(key, value);
            }
            // (A namespace that is gone, or going, takes no new events.)
            None => match objects.stage_create(EVENTS, &record.namespace, record.json()) {
                Ok(value) => transaction = transaction.absent(key.clone()).put(key, value),
                Err(status) => tracing::debug!(%status, event = %record.name, "an event is refused"),
            },
        }
    }
    if transaction.is_empty() {
        return Ok(());
    }
    objects.store().commit(transaction).await.map(drop)
}

/// Removes events an hour after they were last seen, for ever.
pub(super) async fn expire(objects: &Objects) {
    let store = objects.store();
    let known: std::sync::Mutex<HashMap<Key, Timestamp>> = std::sync::Mutex::default();
    let with = |f: &mut dyn FnMut(&mut HashMap<Key, Timestamp>)| {
        f(&mut known.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    };
    let news = tokio::sync::Notify::new();
    let feed = follow(store, Scope::all(EVENTS.plural), |seen| {
        with(&mut |known| match &seen {
            Seen::All(objects) => {
                *known = objects.iter().map(|o| (o.key.clone(), last_seen(o))).collect();
            }
            Seen::Changed(event) if event.kind == EventKind::Deleted => {
                known.remove(&event.object.key);
            }
            Seen::Changed(event) => {
                known.insert(event.object.key.clone(), last_seen(&event.object));
            }
        });
        news.notify_one();
    });
    let sweep = async {
        loop {
            let mut next: Option<Timestamp> = None;
            let mut due: Vec<Key> = Vec::new();
            let now = Timestamp::now();
            with(&mut |known| {
                for (key, seen) in known.iter() {
                    let end = seen.checked_add(LIFETIME).unwrap_or(now);
                    if end <= now {
                        due.push(key.clone());
                    } else if next.is_none_or(|n| end < n) {
                        next = Some(end);
                    }
                }
            });
            for batch in due.chunks(BATCH) {
                let transaction = batch.iter().fold(Transaction::new(), |tx, key| tx.delete(key.clone()));
                if let Err(error) = store.commit(transaction).await {
                    tracing::debug!(%error, "expired events stay for now");
                }
            }
            match next {
                Some(at) => {
                    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    tokio::time::sleep(wait.max(SWEEP)).await;
                }
                None if due.is_empty() => news.notified().await,
                None => tokio::time::sleep(SWEEP).await,
            }
        }
    };
    tokio::join!(feed, sweep);
}

/// When an event was last seen: what it says, or when it was made.
fn last_seen(event: &Object) -> Timestamp {
    let value = event.value();
    let at = |v: &Value| v.as_str().and_then(|t| t.parse::<Timestamp>().ok());
    at(&value["lastTimestamp"])
        .or_else(|| at(&value["series"]["lastObservedTime"]))
        .or_else(|| at(&value["eventTime"]))
        .or_else(|| at(&value["metadata"]["creationTimestamp"]))
        .unwrap_or_else(Timestamp::now)
}
