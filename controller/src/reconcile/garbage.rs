//! Owner references: what has lost all its owners goes; what waits for its dependents waits.
//!
//! Background: an owner is gone, its dependents follow. Foreground (`foregroundDeletion` holds the owner):
//! its dependents go first, and it goes with the last of them that blocks it. Orphan (`orphan` holds the
//! owner): its dependents lose the reference, then it goes. An owner is whatever has its uid: one of the
//! same name and another uid is somebody else. Owners of kinds that Berth does not know are left alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use berth_controller_core::kinds::{self, Kind};
use berth_controller_core::object;
use futures_util::future::{BoxFuture, join_all};
use serde_json::Value;
use tokio::sync::Notify;

use super::Context;
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use crate::objects::{DeleteOptions, Propagation, key};
use crate::store::{Event, EventKind, Key, Object, Owner, Scope, Store};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const WORKERS: usize = 8;

/// Who depends on whom, by uid. It may lag behind the store: it only tells whom to look at.
#[derive(Default)]
struct Graph(Mutex<HashMap<Box<str>, BTreeSet<Key>>>);

impl Graph {
    fn update(&self, key: &Key, before: &[Owner], after: &[Owner]) {
        let mut graph = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for owner in before {
            if let Some(dependents) = graph.get_mut(&owner.uid) {
                dependents.remove(key);
                if dependents.is_empty() {
                    graph.remove(&owner.uid);
                }
            }
        }
        for owner in after {
            graph.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
    }

    fn dependents(&self, uid: &str) -> Vec<Key> {
        let graph = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        graph.get(uid).into_iter().flatten().cloned().collect()
    }
}

pub async fn run(context: Context) {
    let collector = Arc::new(Collector::new(context));
    let work = collector.queue.clone().run("garbage", WORKERS, |key| {
        let collector = collector.clone();
        async move { collector.collect(key).await }
    });
    tokio::join!(work, join_all(collector.feeds()));
}

pub(super) struct Collector {
    context: Context,
    pub(super) queue: Queue<Key>,
    graph: Graph,
    /// Everything is worth a look.
    unseen: Notify,
}

impl Collector {
    pub(super) fn new(context: Context) -> Collector {
        let queue = Queue::timed(context.objects.clock().clone());
        Collector { context, queue, graph: Graph::default(), unseen: Notify::new() }
    }

    /// What brings objects into the queue, each for ever.
    pub(super) fn feeds(self: &Arc<Self>) -> Vec<BoxFuture<'static, ()>> {
        let kinds = kinds::ALL.iter().filter(|k| k.plural != "events");
        let feed = |kind: &&'static Kind| -> BoxFuture<'static, ()> {
            let (collector, scope) = (self.clone(), Scope::all(key(kind, "", "").resource));
            Box::pin(async move {
                follow(collector.context.objects.store(), scope, |seen| match seen {
                    Seen::All(objects) => collector.all(objects),
                    Seen::Changed(event) => collector.changed(event),
                })
                .await;
            })
        };
        let collector = self.clone();
        let unseen: BoxFuture<'static, ()> = Box::pin(async move {
            loop {
                collector.unseen.notified().await;
                collector.look_at_all();
            }
        });
        kinds.map(feed).chain([unseen]).collect()
    }

    /// All of one kind. Until now some may have gone unseen: whoever they owned, and whoever waited for them,
    /// may be of any kind.
    fn all(&self, objects: &[Arc<Object>]) {
        for object in objects {
            self.graph.update(&object.key, &[], &object.meta.owners);
        }
        self.unseen.notify_one();
    }

    fn look_at_all(&self) {
        for kind in kinds::ALL {
            let all = self.context.objects.store().list(&Scope::all(key(kind, "", "").resource));
            for object in all.objects.iter().filter(|o| worth_a_look(o)) {
                self.queue.add(object.key.clone());
            }
        }
    }

    fn changed(&self, event: &Event) {
        let Collector { queue, graph, .. } = self;
        let object = &event.object;
        let before = event.previous.as_ref().map(|p| &p.meta);
        let owners_before = before.map_or(&[][..], |m| &m.owners);
        if event.kind == EventKind::Deleted {
            graph.update(&object.key, owners_before, &[]);
            // Its dependents have lost an owner; an owner may have waited for it.
            graph.dependents(&object.meta.uid).into_iter().for_each(|d| queue.add(d));
            object.meta.owners.iter().for_each(|o| {
                if let Some(key) = place_of(o, &object.key.namespace) {
                    queue.add(key);
                }
            });
            return;
        }
        if owners_before != &*object.meta.owners {
            graph.update(&object.key, owners_before, &object.meta.owners);
        }
        let same = before.is_some_and(|m| {
            m.owners == object.meta.owners
                && m.deleting == object.meta.deleting
                && m.finalizers == object.meta.finalizers
        });
        if !same && worth_a_look(object) {
            queue.add(object.key.clone());
        }
        // One that no longer blocks its owner.
        if before.is_some_and(|m| m.owners != object.meta.owners) {
            for owner in owners_before {
                place_of(owner, &object.key.namespace).into_iter().for_each(|k| queue.add(k));
            }
        }
    }

    pub(super) async fn collect(&self, key: Key) -> Outcome {
        collect(&self.context, &self.graph, &self.queue, key).await
    }
}

fn worth_a_look(object: &Object) -> bool {
    !object.meta.owners.is_empty() || (object.meta.deleting && object.meta.finalizers)
}

/// The kind that an owner reference names. (The group does not matter: no two kinds share a name.)
fn kind_of(owner: &Owner) -> Option<&'static Kind> {
    kinds::ALL.iter().copied().find(|k| k.kind == &*owner.kind)
}

fn place_of(owner: &Owner, namespace: &str) -> Option<Key> {
    kind_of(owner).map(|kind| key(kind, namespace, &owner.name))
}

fn kind_at(key: &Key) -> Option<&'static Kind> {
    kinds::ALL.iter().copied().find(|k| k.resource() == key.resource)
}

async fn collect(context: &Context, graph: &Graph, queue: &Queue<Key>, key: Key) -> Outcome {
    let store = context.objects.store();
    let (Some(stored), Some(kind)) = (store.get(&key), kind_at(&key)) else { return Ok(Next::Event) };
    if stored.meta.deleting {
        if stored.meta.finalizers {
            let value = stored.value();
            if has_finalizer(&value, ORPHAN) {
                orphan_dependents(context, &stored).await?;
                drop_finalizer(context, kind, &stored, ORPHAN).await?;
            } else if has_finalizer(&value, FOREGROUND) {
                let dependents = dependents(store, &stored);
                let blocks = |d: &&Arc<Object>| {
                    d.meta.owners.iter().any(|o| o.uid == stored.meta.uid && o.block_owner_deletion)
                };
                if dependents.iter().any(|d| blocks(&d)) {
                    dependents.iter().for_each(|d| queue.add(d.key.clone()));
                } else {
                    drop_finalizer(context, kind, &stored, FOREGROUND).await?;
                    dependents.iter().for_each(|d| queue.add(d.key.clone()));
                }
            }
        }
        return Ok(Next::Event);
    }
    if stored.meta.owners.is_empty() {
        return Ok(Next::Event);
    }
    delete_unless_owned(context, graph, kind, &stored).await
}

/// How an owner stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Solid,
    /// It goes in the foreground: it waits for this dependent.
    Waiting,
    Gone,
}

async fn delete_unless_owned(
    context: &Context,
    graph: &Graph,
    kind: &'static Kind,
    stored: &Object,
) -> Outcome {
    let store = context.objects.store();
    let namespace = stored.key.namespace.as_str();
    let standings: Vec<Standing> =
        stored.meta.owners.iter().map(|o| standing(store, kind, o, namespace)).collect();
    let any = |wanted| standings.contains(&wanted);
    if any(Standing::Solid) {
        if any(Standing::Gone) || any(Standing::Waiting) {
            let stale: Vec<&str> = stored
                .meta
                .owners
                .iter()
                .zip(&standings)
                .filter(|(_, s)| **s != Standing::Solid)
                .map(|(o, _)| &*o.uid)
                .collect();
            drop_owners(context, kind, stored, &stale).await?;
        }
        return Ok(Next::Event);
    }
    // What its own deleter had asked for is kept; below a foreground deletion it goes on in the foreground.
    let propagation = if any(Standing::Waiting) && !graph.dependents(&stored.meta.uid).is_empty() {
        Some(Propagation::Foreground)
    } else {
        None
    };
    let options = DeleteOptions {
        uid: Some(stored.meta.uid.to_string()),
        resource_version: Some(stored.revision.to_string()),
        propagation,
        ..DeleteOptions::default()
    };
    match context.objects.delete(kind, namespace, &stored.key.name, &options).await {
        Ok(_) => Ok(Next::Event),
        Err(status) if status.code == 404 => Ok(Next::Event),
        // It has changed since: another look (it may have an owner again).
        Err(status) => Err(status.into()),
    }
}

fn standing(store: &Store, dependent: &Kind, owner: &Owner, namespace: &str) -> Standing {
    let Some(kind) = kind_of(owner) else { return Standing::Solid };
    if kind.namespaced && !dependent.namespaced {
        // Nothing that such a reference could mean.
        return Standing::Solid;
    }
    match store.get(&key(kind, namespace, &owner.name)) {
        Some(found) if found.meta.uid == owner.uid => {
            if found.meta.deleting && found.meta.finalizers && has_finalizer(&found.value(), FOREGROUND) {
                Standing::Waiting
            } else {
                Standing::Solid
            }
        }
        _ => Standing::Gone,
    }
}

/// Everything that names this object as an owner, now. Exact, unlike the graph: a finalizer depends on it.
fn dependents(store: &Store, owner: &Object) -> Vec<Arc<Object>> {
    let mut found = Vec::new();
    for kind in kinds::ALL {
        let scope = Scope {
            resource: key(kind, "", "").resource,
            namespace: (kind.namespaced && !owner.key.namespace.is_empty())
                .then(|| owner.key.namespace.clone()),
        };
        let objects = store.list(&scope).objects;
        found.extend(objects.into_iter().filter(|o| o.meta.owners.iter().any(|r| r.uid == owner.meta.uid)));
    }
    found
}

async fn orphan_dependents(
    context: &Context,
    owner: &Object,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    for dependent in dependents(context.objects.store(), owner) {
        if let Some(kind) = kind_at(&dependent.key) {
            drop_owners(context, kind, &dependent, &[&owner.meta.uid]).await?;
        }
    }
    Ok(())
}

async fn drop_owners(
    context: &Context,
    kind: &'static Kind,
    dependent: &Object,
    uids: &[&str],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let dropped =
        context.objects.modify(kind, None, &dependent.key.namespace, &dependent.key.name, |value| {
            if let Some(owners) = value["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|o| !o["uid"].as_str().is_some_and(|uid| uids.contains(&uid)));
            }
            Ok(())
        });
    match dropped.await {
        Err(status) if status.code != 404 => Err(status.into()),
        _ => Ok(()),
    }
}

async fn drop_finalizer(
    context: &Context,
    kind: &'static Kind,
    stored: &Object,
    finalizer: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let uid = &stored.meta.uid;
    let dropped = context.objects.modify(kind, None, &stored.key.namespace, &stored.key.name, |value| {
        if object::uid(value) == &**uid
            && let Some(finalizers) = value["metadata"]["finalizers"].as_array_mut()
        {
            finalizers.retain(|f| f != finalizer);
        }
        Ok(())
    });
    match dropped.await {
        Err(status) if status.code != 404 => Err(status.into()),
        _ => Ok(()),
    }
}

fn has_finalizer(value: &Value, finalizer: &str) -> bool {
    value["metadata"]["finalizers"].as_array().is_some_and(|all| all.iter().any(|f| f == finalizer))
}
