//! The records of what Services hold: one for each address and node port, written and deleted in the transaction
//! that writes the Service, so that no two ever hold the same, whoever writes at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use berth_controller_core::kinds::Kind;
use berth_controller_core::kinds::service::SERVICE;
use berth_controller_core::object;
use berth_controller_core::services::allocate::{self, AddressRange, Item, Refusal};
use berth_controller_core::status::Status;
use serde_json::{Value, json};

use crate::objects::{Allocate, Objects};
use crate::store::{CommitError, Key, Scope, Store, Transaction};

/// The records' place in the store; the name is the item's.
const RESOURCE: &str = "serviceallocations.berth.dev";

/// Gives Services their addresses and node ports.
pub struct Allocations {
    store: Store,
    range: AddressRange,
}

impl Allocations {
    pub fn new(store: Store, range: AddressRange) -> Allocations {
        Allocations { store, range }
    }
}

impl Allocate for Allocations {
    fn allocate(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: Option<&mut Value>,
        mut transaction: Transaction,
    ) -> Result<Transaction, Status> {
        if kind.kind != SERVICE.kind || !kind.group.is_empty() {
            return Ok(transaction);
        }
        let before = old.map(allocate::holds).unwrap_or_default();
        let after = match new {
            None => BTreeSet::new(),
            Some(new) => {
                let taken = |item: &Item| self.store.get(&key(item)).is_some();
                allocate::complete(self.range, old, new, &taken, seed(new)).map_err(|why| match why {
                    Refusal::Invalid(errors) => {
                        Status::invalid(kind.kind, kind.group, object::name(new), &errors)
                    }
                    Refusal::Full(why) => Status::internal(why),
                })?;
                let after = allocate::holds(new);
                for item in after.difference(&before) {
                    transaction = transaction.absent(key(item)).put(key(item), record(new));
                }
                after
            }
        };
        for item in before.difference(&after) {
            // A record that is another's (in a store from before there were any) stays.
            let own = self.store.get(&key(item)).filter(|r| old.is_some_and(|old| is_of(&r.value(), old)));
            if let Some(own) = own {
                transaction = transaction.unchanged(own.key.clone(), own.revision).delete(own.key.clone());
            }
        }
        Ok(transaction)
    }
}

fn key(item: &Item) -> Key {
    Key::new(RESOURCE, "", item.to_string())
}

fn record(service: &Value) -> Value {
    json!({
        "metadata": {}, "namespace": object::namespace(service), "name": object::name(service),
        "uid": object::uid(service),
    })
}

fn is_of(record: &Value, service: &Value) -> bool {
    record["uid"].as_str() == Some(object::uid(service))
}

/// Where the search for something free begins: by a uid, so that two writers seldom try for the same.
fn seed(service: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object::uid(service).hash(&mut hasher);
    hasher.finish()
}

/// Brings the records in line with the Services that are stored (by an older version, say), and gives what they
/// need to those that have it not. Before anything else writes Services.
pub async fn repair(objects: &Objects) -> Result<(), Status> {
    let store = objects.store();
    let services = store.list(&Scope::all(SERVICE.plural)).objects;
    let mut owners: BTreeMap<Item, Value> = BTreeMap::new();
    for service in &services {
        let service = service.value();
        for item in allocate::holds(&service) {
            if let Some(first) = owners.get(&item) {
                let (first, second) = (object::name(first), object::name(&service));
                tracing::error!(%item, first, second, "two Services hold the same: delete one of them");
                continue;
            }
            owners.insert(item, service.clone());
        }
    }
    let mut transaction = Transaction::new();
    let mut recorded = BTreeSet::new();
    for found in store.list(&Scope::all(RESOURCE)).objects {
        let owner = owners.iter().find(|(item, _)| item.to_string() == found.key.name);
        match owner.filter(|(_, service)| is_of(&found.value(), service)) {
            Some((item, _)) => drop(recorded.insert(*item)),
            None => transaction = transaction.delete(found.key.clone()),
        }
    }
    for (item, service) in owners.iter().filter(|(item, _)| !recorded.contains(item)) {
        transaction = transaction.put(key(item), record(service));
    }
    if !transaction.is_empty() {
        store.commit(transaction).await.map_err(|e: CommitError| Status::internal(e.to_string()))?;
    }
    for service in services {
        let (namespace, name) = (&service.key.namespace, &service.key.name);
        // Writing it is enough: what it lacks is added.
        match objects.modify(&SERVICE, None, namespace, name, |_| Ok(())).await {
            Err(status) if status.code != 404 => {
                tracing::error!(namespace, name, why = status.message, "a Service cannot have what it needs");
            }
            _ => {}
        }
    }
    Ok(())
}
