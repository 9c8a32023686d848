//! What is stored about pods and their identities, read in the one order that is safe.
//!
//! A pod's object is always read before its record: whoever finds a bound object and then no record knows
//! that the record is gone, not that it has yet to be written (both are written in one transaction).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use berth_controller_core::identity::{self, Record, Restore};
use berth_controller_core::resolve::{Link, Lookups, Use};
use serde_json::Value;

use crate::store::{Key, Object, Revision, Scope, Store};

pub const PODS: &str = "pods";
const SERVICES: &str = "services";
pub const NODES: &str = "nodes";

/// A pod's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Name {
        Name { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(key: &Key) -> Name {
        Name::new(&key.namespace, &key.name)
    }

    pub fn pod_key(&self) -> Key {
        Key::new(PODS, &self.namespace, &self.name)
    }

    pub fn record_key(&self) -> Key {
        Key::new(identity::RESOURCE, &self.namespace, &self.name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is there under one name.
pub struct Held {
    pub pod: Option<Arc<Object>>,
    pub record_object: Option<Arc<Object>>,
    pub record: Option<Record>,
}

/// Reads a name: pod first, record second.
pub fn held(store: &Store, name: &Name) -> Held {
    let pod = store.get(&name.pod_key());
    let record_object = store.get(&name.record_key());
    let record = record_object.as_ref().and_then(|o| Record::read(&o.value()));
    Held { pod, record_object, record }
}

pub fn restore_key() -> Key {
    Key::new(identity::RESTORE, "", "restore")
}

pub fn restore(store: &Store) -> Restore {
    store.get(&restore_key()).map(|o| Restore::read(&o.value())).unwrap_or_default()
}

pub fn epoch_key() -> Key {
    Key::new(identity::COUNTERS, "", "epoch")
}

/// All records of a node.
pub fn records_of(store: &Store, node: &str) -> Vec<(Name, Record)> {
    store
        .list(&Scope::all(identity::RESOURCE))
        .objects
        .iter()
        .filter_map(|o| Some((Name::of(&o.key), Record::read(&o.value())?)))
        .filter(|(_, record)| record.node == node)
        .collect()
}

/// Lookups out of the store.
pub struct Stored<'a>(pub &'a Store, pub &'a ServiceLinks);

impl Lookups for Stored<'_> {
    fn get(&self, wanted: &Use) -> Option<Value> {
        self.0.get(&Key::new(wanted.resource, &wanted.namespace, &wanted.name)).map(|o| o.value())
    }

    fn links(&self, namespace: &str) -> Arc<[Link]> {
        self.1.of(self.0, namespace)
    }
}

/// What pods are told of Services, read out of the store anew only when a Service has changed: it is asked for with
/// every pod that is resolved.
#[derive(Default)]
pub struct ServiceLinks(Mutex<ReadLinks>);

/// Up to which revision of Services, and those of each namespace that was asked for.
type ReadLinks = (Revision, HashMap<String, Arc<[Link]>>);

impl ServiceLinks {
    fn of(&self, store: &Store, namespace: &str) -> Arc<[Link]> {
        let newest = store.newest(SERVICES);
        let mut read = super::lock(&self.0);
        if read.0 != newest {
            *read = (newest, HashMap::new());
        }
        if let Some(links) = read.1.get(namespace) {
            return links.clone();
        }
        let services = store.list(&Scope::namespaced(SERVICES, namespace)).objects;
        let links: Arc<[Link]> = services.iter().filter_map(|service| Link::of(&service.value())).collect();
        read.1.insert(namespace.to_owned(), links.clone());
        links
    }
}
