//! Writing identity records: everything [`berth_controller_core::identity`] decides, as transactions.
//!
//! Each function reads, asks core, and writes under the condition that what it read still holds; a
//! conflict means reading again. (Binding is the scheduler's, see `scheduler`.)

use berth_controller_core::identity::{self, Finding, Record, Reported};
use berth_controller_core::object;
use berth_controller_core::status::Status;
use serde_json::json;

use super::world::{self, Held, Name};
use crate::store::{CommitError, Store, Transaction};

/// Conflicts in a row after which a write is given up (its cause is tried again by the next session).
const ATTEMPTS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the store cannot write now: {0}")]
    Unavailable(String),
    #[error("{0} keeps changing")]
    Busy(Name),
}

impl From<RecordError> for Status {
    fn from(error: RecordError) -> Status {
        Status::new(503, "ServiceUnavailable", error.to_string())
    }
}

/// A life, as an agent names it.
#[derive(Clone, Debug)]
pub struct Reporter<'a> {
    pub node: &'a str,
    pub uid: &'a str,
    pub epoch: u64,
}

/// What became of a record that was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// The record and (if it was being deleted and had no finalizers) the pod are gone.
    Yes,
    /// As `Yes`; the pod's object is left to its finalizers: its grace period is over.
    PodLeft,
    /// That life held nothing.
    NotHeld,
}

/// A host reports that nothing of a life is left.
pub async fn stopped(store: &Store, name: &Name, from: &Reporter<'_>) -> Result<Freed, RecordError> {
    for _ in 0..ATTEMPTS {
        let held = world::held(store, name);
        let record_object = match (
            identity::stopped(held.record.as_ref(), from.node, from.uid, from.epoch),
            held.record_object,
        ) {
            (identity::Stopped::Free, Some(object)) => object,
            _ => return Ok(Freed::NotHeld),
        };
        let mut tx = Transaction::new()
            .unchanged(record_object.key.clone(), record_object.revision)
            .delete(record_object.key.clone());
        let mut left = Freed::Yes;
        if let Some(pod) = held.pod.filter(|pod| *pod.meta.uid == *from.uid && pod.meta.deleting) {
            if pod.meta.finalizers {
                left = Freed::PodLeft;
            } else {
                tx = tx.unchanged(pod.key.clone(), pod.revision).delete(pod.key.clone());
            }
        }
        if commit(store, tx).await? {
            return Ok(left);
        }
    }
    Err(RecordError::Busy(name.clone()))
}

/// Has a record list no volumes any more: no write of that life can still arrive at them. The name stays held. None:
/// it lists none.
pub fn without_volumes(held: &Held) -> Option<Transaction> {
    let object = held.record_object.as_ref()?;
    let mut record = object.value();
    if identity::volumes(&record).is_some_and(|volumes| volumes.is_empty()) {
        return None;
    }
    record[identity::VOLUMES] = json!([]);
    Some(Transaction::new().unchanged(object.key.clone(), object.revision).put(object.key.clone(), record))
}

/// A line of a host's inventory: what it means, with the record written or freed as that demands.
/// `address` is the pod's, for a record that has to be made.
pub async fn reported(
    store: &Store,
    name: &Name,
    line: &Reported<'_>,
    address: &str,
) -> Result<Finding, RecordError> {
    // What the host found of a pod and cannot name any more: nobody's, and the host clears it away.
    if name.name.is_empty() || line.uid.is_empty() {
        return Ok(if line.stopped { Finding::Forget } else { Finding::Stop });
    }
    for _ in 0..ATTEMPTS {
        let held = world::held(store, name);
        let finding = identity::report(held.record.as_ref(), line);
        match finding {
            Finding::Free => {
                let from = Reporter { node: line.node, uid: line.uid, epoch: line.epoch };
                stopped(store, name, &from).await?;
                return Ok(Finding::Free);
            }
            Finding::Adopt => {
                let record = Record {
                    uid: line.uid.to_owned(),
                    node: line.node.to_owned(),
                    epoch: line.epoch,
                    address: address.to_owned(),
                };
                let key = name.record_key();
                let mut tx = match &held.record_object {
                    Some(object) => Transaction::new().unchanged(key.clone(), object.revision),
                    None => Transaction::new().absent(key.clone()),
                };
                tx = tx.put(key, record.write());
                tx = raise_epoch(store, tx, line.epoch);
                // A store older than the binding: the pod is bound where it runs.
                if let Some(pod) = held.pod.filter(|pod| *pod.meta.uid == *line.uid) {
                    let mut value = pod.value();
                    if value["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
                        object::map_mut(&mut value, "spec").insert("nodeName".into(), line.node.into());
                        tx = tx.unchanged(pod.key.clone(), pod.revision).put(pod.key.clone(), value);
                    }
                }
                if commit(store, tx).await? {
                    tracing::warn!(pod = %name, node = line.node, epoch = line.epoch,
                        "a host runs a pod that this store knows nothing of: its name is held for it");
                    return Ok(Finding::Adopt);
                }
            }
            Finding::InForce | Finding::Stop | Finding::Forget => return Ok(finding),
        }
    }
    Err(RecordError::Busy(name.clone()))
}

/// After a restore: this node's inventory has been taken.
pub async fn inventory_taken(store: &Store, node: &str) -> Result<(), RecordError> {
    for _ in 0..ATTEMPTS {
        let key = world::restore_key();
        let Some(object) = store.get(&key) else { return Ok(()) };
        let mut restore = world::restore(store);
        if !restore.awaited.remove(node) {
            return Ok(());
        }
        let tx = Transaction::new().unchanged(key.clone(), object.revision);
        let tx = if restore.awaited.is_empty() { tx.delete(key) } else { tx.put(key, restore.write()) };
        if commit(store, tx).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Frees every record of a node that a person has declared down.
pub async fn out_of_service(store: &Store, node: &str) -> Result<usize, RecordError> {
    let mut freed = 0;
    for (name, record) in world::records_of(store, node) {
        let from = Reporter { node, uid: &record.uid, epoch: record.epoch };
        if stopped(store, &name, &from).await? != Freed::NotHeld {
            tracing::warn!(pod = %name, node, "freed without its host's word: the node is out of service");
            freed += 1;
        }
    }
    Ok(freed)
}

/// The last epoch handed out.
pub fn last_epoch(store: &Store) -> u64 {
    store.get(&world::epoch_key()).and_then(|o| o.value()["last"].as_u64()).unwrap_or(0)
}

/// Adds to a transaction that `epoch` has been handed out, if the counter is behind it.
pub fn raise_epoch(store: &Store, tx: Transaction, epoch: u64) -> Transaction {
    let key = world::epoch_key();
    let (last, tx) = match store.get(&key) {
        Some(object) => {
            let last = object.value()["last"].as_u64().unwrap_or(0);
            if last >= epoch {
                return tx;
            }
            (last, tx.unchanged(key.clone(), object.revision))
        }
        None => (0, tx.absent(key.clone())),
    };
    tx.put(key, json!({"metadata": {}, "last": epoch.max(last)}))
}

/// False: somebody else wrote first.
async fn commit(store: &Store, tx: Transaction) -> Result<bool, RecordError> {
    match store.commit(tx).await {
        Ok(_) => Ok(true),
        Err(CommitError::Conflict { .. }) => Ok(false),
        Err(CommitError::Unavailable(why)) => Err(RecordError::Unavailable(why)),
    }
}
