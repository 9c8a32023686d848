//! What hosts say of the directories behind claims: shown on the claim, and remembered of the volume.

use berth_controller_core::claims;
use berth_controller_core::object;
use berth_proto::VolumeUsage;
use serde_json::{Value, json};

use super::Nodes;
use super::binding::{CLAIMS, VOLUMES};
use super::world::{self, Name};
use crate::store::{CommitError, Key, Transaction};

/// On a claim: whether its directory has a limit of its own.
const ENFORCED: &str = "berth.dev/size-enforced";
/// On a claim whose size is enforced: the limit, and how much of it is used.
const LIMIT: &str = "berth.dev/limit";
const USED: &str = "berth.dev/used";

const ATTEMPTS: usize = 8;

/// Takes a report, if it is about a life that holds its name. What cannot be written now comes again.
pub(super) async fn report(nodes: &Nodes, node: &str, usage: &VolumeUsage) {
    let Some(life) = &usage.pod else { return };
    let name = Name::new(&life.namespace, &life.name);
    let store = &nodes.inner.store;
    let held = world::held(store, &name);
    if !held.record.is_some_and(|record| record.is(node, &life.uid, life.epoch)) {
        return;
    }
    for _ in 0..ATTEMPTS {
        let key = Key::new(CLAIMS, &name.namespace, &usage.claim);
        let Some(claim) = store.get(&key) else { return };
        let mut value = claim.value();
        let mut transaction = Transaction::new().unchanged(key.clone(), claim.revision);
        let volume = Key::new(VOLUMES, "", value["spec"]["volumeName"].as_str().unwrap_or_default());
        if let Some(stored) = store.get(&volume)
            && let mut volume_value = stored.value()
            && object::annotation(&volume_value, claims::UNUSED).is_some()
        {
            annotate(&mut volume_value, claims::UNUSED, None);
            transaction = transaction.unchanged(volume.clone(), stored.revision).put(volume, volume_value);
        }
        let shown = |bytes| usage.enforced.then(|| mebibytes(bytes));
        annotate(&mut value, ENFORCED, Some(usage.enforced.to_string()));
        annotate(&mut value, LIMIT, shown(usage.limit_bytes));
        annotate(&mut value, USED, shown(usage.used_bytes));
        if value != claim.value() {
            transaction = transaction.put(key, value);
        }
        if transaction.writes.is_empty() {
            return;
        }
        match store.commit(transaction).await {
            Ok(_) => return,
            Err(CommitError::Conflict { .. }) => {}
            Err(CommitError::Unavailable(why)) => {
                tracing::debug!(pod = %name, why, "what its volume uses could not be written");
                return;
            }
        }
    }
}

/// Rounded up, so that little comes and goes without a write.
fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}

fn annotate(target: &mut Value, key: &str, value: Option<String>) {
    let annotations = object::metadata_mut(target).entry("annotations").or_insert_with(|| json!({}));
    let Some(annotations) = annotations.as_object_mut() else { return };
    match value {
        Some(value) => drop(annotations.insert(key.to_owned(), value.into())),
        None => drop(annotations.remove(key)),
    }
}
