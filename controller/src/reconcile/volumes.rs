//! Claims and volumes: binding what needs no pod, phases, protection, and what becomes of a released volume.
//!
//! A claim whose volume depends on its pod's host is bound by whoever places the pod, in that same
//! transaction: [`Shelf`] and [`stage_binding`] are for that.

use std::collections::HashSet;

use berth_controller_core::claims::{
    self, Binding, Growth, OnDelete, Provisioners, Reclaim, Standing, Storage,
};
use berth_controller_core::identity;
use berth_controller_core::kinds::{self, Kind};
use berth_controller_core::object;
use berth_controller_core::status::Status;
use serde_json::Value;

use super::events::{EventType, ObjectRef};
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use super::{Context, End};
use crate::objects::{DeleteOptions, Objects, key};
use crate::store::{CommitError, EventKind, Key, Object, Revision, Scope, Store, Transaction};

const CLAIMS: &Kind = &kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
const VOLUMES: &Kind = &kinds::persistent_volume::PERSISTENT_VOLUME;
const CLASSES: &str = "storageclasses.storage.k8s.io";
const COMPONENT: &str = "persistentvolume-controller";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
const WORKERS: usize = 8;
/// Directories that are ended at the same time.
const DISPOSERS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Claim { namespace: String, name: String },
    Volume(String),
}

/// What may matter to one claim: the classes, and the volumes that it could be bound to.
pub struct Shelf {
    volumes: Vec<Value>,
    classes: Vec<Value>,
}

impl Shelf {
    /// Read at once, as things are. Volumes that are bound to other claims are not even parsed.
    pub fn of(store: &Store, claim: &Value) -> Shelf {
        let own = [
            claim["spec"]["volumeName"].as_str().unwrap_or_default().to_owned(),
            format!("pvc-{}", object::uid(claim)),
        ];
        let classes: Vec<Value> =
            store.list(&Scope::all(CLASSES)).objects.iter().map(|o| o.value()).collect();
        let class = classes.iter().find(|class| object::name(class) == claims::class_name(claim));
        // Its directory may be another volume's too.
        let all = own[0].is_empty() && class.is_some_and(claims::patterned);
        let volumes = store.list(&Scope::all(VOLUMES.plural)).objects;
        let concerns = |o: &&std::sync::Arc<Object>| all || own.contains(&o.key.name) || !mentions(o, BOUND);
        Shelf { volumes: volumes.iter().filter(concerns).map(|o| o.value()).collect(), classes }
    }

    /// Calls `decide` with it.
    pub fn with<T>(&self, provisioners: &Provisioners, decide: impl FnOnce(&Storage) -> T) -> T {
        let volumes: Vec<&Value> = self.volumes.iter().collect();
        let classes: Vec<&Value> = self.classes.iter().collect();
        decide(&Storage { volumes: &volumes, classes: &classes, provisioners })
    }
}

const BOUND: &str = r#""phase":"Bound""#;
const FAILED: &str = r#""phase":"Failed""#;

/// Whether this text occurs in the object's JSON: a cheap way not to parse what cannot matter.
fn mentions(object: &Object, text: &str) -> bool {
    object.bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

/// Adds the writes of a binding to a transaction, so that it holds only if the claim (of this revision) and
/// the volume are as they were.
pub fn stage_binding(
    objects: &Objects,
    transaction: Transaction,
    binding: Binding,
    claim_revision: Revision,
) -> Result<Transaction, Status> {
    let claim_key = key(CLAIMS, object::namespace(&binding.claim), object::name(&binding.claim));
    let volume_key = key(VOLUMES, "", object::name(&binding.volume));
    let mut transaction =
        transaction.unchanged(claim_key.clone(), claim_revision).put(claim_key, binding.claim);
    for (name, revision) in &binding.beside {
        transaction = transaction.unchanged(key(VOLUMES, "", name), revision.parse().unwrap_or_default());
    }
    if binding.new {
        let status = binding.volume["status"].clone();
        let mut volume = objects.stage_create(VOLUMES, "", binding.volume)?;
        volume["status"] = status;
        return Ok(transaction.absent(volume_key.clone()).put(volume_key, volume));
    }
    let revision = object_revision(&binding.volume);
    Ok(transaction.unchanged(volume_key.clone(), revision).put(volume_key, binding.volume))
}

fn object_revision(value: &Value) -> Revision {
    value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// Gives a claim that names no class the default one, if there is one.
pub fn give_default_class(store: &Store, claim: &mut Value) {
    if !claims::wants_default_class(claim) {
        return;
    }
    let classes: Vec<Value> = store.list(&Scope::all(CLASSES)).objects.iter().map(|o| o.value()).collect();
    let classes: Vec<&Value> = classes.iter().collect();
    if let Some(class) = claims::default_class(&classes) {
        claim["spec"]["storageClassName"] = class.into();
    }
}

pub(super) async fn run(context: Context) {
    let queue: Queue<Work> = Queue::new();
    let store = context.objects.store().clone();
    let add_claim = |namespace: &str, name: &str| {
        queue.add(Work::Claim { namespace: namespace.to_owned(), name: name.to_owned() });
    };
    let add_claims = || {
        for claim in store.list(&Scope::all(CLAIMS.plural)).objects {
            if !mentions(&claim, BOUND) {
                add_claim(&claim.key.namespace, &claim.key.name);
            }
        }
    };
    let add_deleted_claims = || {
        for claim in store.list(&Scope::all(CLAIMS.plural)).objects.iter().filter(|c| c.meta.deleting) {
            add_claim(&claim.key.namespace, &claim.key.name);
        }
    };
    let add_volumes = || {
        for volume in store.list(&Scope::all(VOLUMES.plural)).objects {
            queue.add(Work::Volume(volume.key.name.clone()));
        }
    };
    // Apart from the rest: a host or server that does not answer must not hold up anybody's claim.
    let released: Queue<String> = Queue::new();
    let disposals = {
        let context = context.clone();
        released.clone().run("released volumes", DISPOSERS, move |name| {
            let context = context.clone();
            async move { dispose(&context, &name).await }
        })
    };
    let work = {
        let context = context.clone();
        let released = released.clone();
        queue.clone().run("volumes", WORKERS, move |work| {
            let (context, released) = (context.clone(), released.clone());
            async move {
                match work {
                    Work::Claim { namespace, name } => claim(&context, &namespace, &name).await,
                    Work::Volume(name) => volume(&context, &released, &name).await,
                }
            }
        })
    };
    // Another configuration: it may have what a claim or a released volume waits for.
    let mut provisioners = context.provisioners.clone();
    let mapped = async {
        while provisioners.changed().await.is_ok() {
            add_claims();
            add_volumes();
        }
    };
    tokio::join!(
        work,
        disposals,
        mapped,
        follow(&store, Scope::all(CLAIMS.plural), |seen| match seen {
            Seen::All(claims) => {
                claims.iter().for_each(|c| add_claim(&c.key.namespace, &c.key.name));
                add_volumes();
            }
            Seen::Changed(event) => {
                let claim = &event.object;
                if event.kind != EventKind::Deleted {
                    add_claim(&claim.key.namespace, &claim.key.name);
                }
                if let Some(volume) = claim.value()["spec"]["volumeName"].as_str().filter(|v| !v.is_empty()) {
                    queue.add(Work::Volume(volume.to_owned()));
                }
            }
        }),
        follow(&store, Scope::all(VOLUMES.plural), |seen| match seen {
            Seen::All(_) => add_volumes(),
            Seen::Changed(event) => {
                let volume = event.object.value();
                let holder = &volume["spec"]["claimRef"];
                match (holder["namespace"].as_str(), holder["name"].as_str()) {
                    (Some(namespace), Some(name)) => add_claim(namespace, name),
                    // It may be what some claim waits for.
                    _ => add_claims(),
                }
                if event.kind != EventKind::Deleted {
                    queue.add(Work::Volume(event.object.key.name.clone()));
                }
            }
        }),
        follow(&store, Scope::all(CLASSES), |seen| match seen {
            Seen::All(_) => {}
            Seen::Changed(_) => add_claims(),
        }),
        // A host that is back can do what it could not be asked to do.
        follow(&store, Scope::all("nodes"), |seen| match seen {
            Seen::All(_) => {}
            Seen::Changed(event) => {
                let was_ready = event.previous.as_ref().is_some_and(|node| node_ready(&node.value()));
                if event.kind != EventKind::Deleted && !was_ready && node_ready(&event.object.value()) {
                    let volumes = store.list(&Scope::all(VOLUMES.plural)).objects;
                    for volume in volumes.iter().filter(|v| mentions(v, FAILED)) {
                        queue.add(Work::Volume(volume.key.name.clone()));
                    }
                }
            }
        }),
        // A pod that was removed by force has stopped after all, or one that has ended has given up its volumes.
        follow(&store, Scope::all(identity::RESOURCE), |seen| match seen {
            Seen::All(_) => add_deleted_claims(),
            Seen::Changed(event) if event.kind == EventKind::Deleted || event.previous.is_some() => {
                let scope = Scope::namespaced(CLAIMS.plural, event.object.key.namespace.as_str());
                for claim in store.list(&scope).objects.iter().filter(|c| c.meta.deleting) {
                    add_claim(&claim.key.namespace, &claim.key.name);
                }
            }
            Seen::Changed(_) => {}
        }),
        // A pod that is gone, or has ended, no longer keeps its claims.
        follow(&store, Scope::all("pods"), |seen| match seen {
            Seen::All(_) => add_deleted_claims(),
            Seen::Changed(event) => {
                let pod = &event.object;
                if event.kind == EventKind::Deleted || ended(pod) {
                    for name in claims_of(&pod.value()) {
                        add_claim(&pod.key.namespace, &name);
                    }
                }
            }
        }),
    );
}

fn node_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn ended(pod: &Object) -> bool {
    mentions(pod, r#""phase":"Succeeded""#) || mentions(pod, FAILED)
}

fn claims_of(pod: &Value) -> HashSet<String> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(|v| v["persistentVolumeClaim"]["claimName"].as_str()).map(str::to_owned).collect()
}

/// Whether a pod has, or may yet need, what is in this claim. One that is not placed (and cannot be, on a claim that
/// goes) does not, and one that has ended only until its host says that nothing of it can still arrive there.
///
/// A pod whose object was removed by force still runs as far as anybody knows, until its host has said
/// otherwise; what it has mounted is not known any more. It holds every claim of its namespace.
fn in_use(store: &Store, claim: &Object) -> bool {
    let name = &claim.key.name;
    let namespace = claim.key.namespace.as_str();
    let at_large = store.list(&Scope::namespaced(identity::RESOURCE, namespace)).objects.iter().any(|held| {
        let pod = store.get(&Key::new("pods", namespace, held.key.name.as_str()));
        pod.is_none_or(|pod| held.value()["uid"].as_str() != Some(&pod.meta.uid))
    });
    if at_large {
        return true;
    }
    let quoted = format!("\"claimName\":\"{name}\"");
    store
        .list(&Scope::namespaced("pods", claim.key.namespace.as_str()))
        .objects
        .iter()
        .filter(|pod| mentions(pod, &quoted) && !over(store, pod))
        .any(|pod| {
            let pod = pod.value();
            !pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() && claims_of(&pod).contains(name)
        })
}

/// Whether a pod needs its volumes no more: it has ended and its host has said that it has given them up, or nothing
/// of it is left and its object waits for its finalizers (maybe for this very claim, which it owns).
fn over(store: &Store, pod: &Object) -> bool {
    let (ended, waits) = (ended(pod), pod.meta.deleting && pod.meta.finalizers);
    if !ended && !waits {
        return false;
    }
    let record = Key::new(identity::RESOURCE, pod.key.namespace.as_str(), pod.key.name.as_str());
    let record = store.get(&record).map(|held| held.value());
    match record.filter(|record| record["uid"].as_str() == Some(&pod.meta.uid)) {
        None => true,
        Some(record) => ended && identity::volumes(&record).is_some_and(|volumes| volumes.is_empty()),
    }
}

async fn claim(context: &Context, namespace: &str, name: &str) -> Outcome {
    let objects = &context.objects;
    let store = objects.store();
    let Some(stored) = store.get(&key(CLAIMS, namespace, name)) else { return Ok(Next::Event) };
    if stored.meta.deleting {
        if stored.meta.finalizers && !in_use(store, &stored) {
            release(context, CLAIMS, &stored, CLAIM_PROTECTION).await?;
        }
        return Ok(Next::Event);
    }
    let mut value = stored.value();
    give_default_class(store, &mut value);
    let named_class = value != stored.value();
    let shelf = Shelf::of(store, &value);
    let standing = shelf.with(&context.provisioners.borrow(), |storage| claims::standing(&value, storage));
    let about = ObjectRef::of(&value);
    let say = |r#type, reason: &str, message: &str| {
        context.events.record(&about, r#type, reason, message, COMPONENT);
    };
    let phase = value["status"]["phase"].as_str().unwrap_or_default().to_owned();
    match standing {
        Standing::Bound { volume } => {
            let Some(held) = shelf.volumes.iter().find(|v| object::name(v) == volume) else {
                return Ok(Next::Event);
            };
            let growth =
                shelf.with(&context.provisioners.borrow(), |storage| claims::growth(&value, held, storage));
            let grown = match growth {
                Growth::None => None,
                Growth::To(volume) => Some(*volume),
                Growth::Refused(why) => {
                    say(EventType::Warning, "VolumeResizeFailed", &why);
                    None
                }
            };
            let mut transaction = Transaction::new().unchanged(stored.key.clone(), stored.revision);
            if let Some(grown) = &grown {
                let key = key(VOLUMES, "", &volume);
                transaction =
                    transaction.unchanged(key.clone(), object_revision(held)).put(key, grown.clone());
            }
            // A bound claim shows its volume's capacity and access modes.
            let held = grown.as_ref().unwrap_or(held);
            value["status"]["capacity"] = held["spec"]["capacity"].clone();
            value["status"]["accessModes"] = held["spec"]["accessModes"].clone();
            if grown.is_some() || value["status"] != stored.value()["status"] {
                store.commit(transaction.put(stored.key.clone(), value)).await?;
            }
        }
        Standing::Now(binding) => {
            let volume = object::name(&binding.volume).to_owned();
            let new = binding.new;
            let transaction = stage_binding(objects, Transaction::new(), *binding, stored.revision)?;
            store.commit(transaction).await?;
            if new {
                let message = format!("Successfully provisioned volume {volume}");
                say(EventType::Normal, "ProvisioningSucceeded", &message);
            }
        }
        Standing::WithPod => {
            if named_class || phase.is_empty() {
                set_phase(&mut value, "Pending");
                put(store, &stored, value).await?;
            } else if !mentioned_by_pod(store, namespace, name) {
                let message = "waiting for first consumer to be created before binding";
                say(EventType::Normal, "WaitForFirstConsumer", message);
            }
        }
        Standing::Waits { reason, message } => {
            if named_class || phase.is_empty() {
                set_phase(&mut value, "Pending");
                put(store, &stored, value).await?;
            } else {
                let r#type = if reason == "FailedBinding" || reason == "ExternalProvisioning" {
                    EventType::Normal
                } else {
                    EventType::Warning
                };
                say(r#type, reason, &message);
            }
        }
        Standing::Lost { message } => {
            if phase != "Lost" {
                set_phase(&mut value, "Lost");
                put(store, &stored, value).await?;
                say(EventType::Warning, "ClaimLost", &message);
            }
        }
    }
    Ok(Next::Event)
}

fn mentioned_by_pod(store: &Store, namespace: &str, claim: &str) -> bool {
    let quoted = format!("\"claimName\":\"{claim}\"");
    store.list(&Scope::namespaced("pods", namespace)).objects.iter().any(|pod| mentions(pod, &quoted))
}

async fn volume(context: &Context, released: &Queue<String>, name: &str) -> Outcome {
    let objects = &context.objects;
    let store = objects.store();
    let Some(stored) = store.get(&key(VOLUMES, "", name)) else { return Ok(Next::Event) };
    let mut value = stored.value();
    let holder = value["spec"]["claimRef"].clone();
    let text = |field: &str| holder[field].as_str().unwrap_or_default();
    let reserved = text("uid").is_empty();
    let held = !reserved
        && store
            .get(&key(CLAIMS, text("namespace"), text("name")))
            .is_some_and(|claim| *claim.meta.uid == *text("uid"));
    if stored.meta.deleting {
        if stored.meta.finalizers && !held {
            release(context, VOLUMES, &stored, VOLUME_PROTECTION).await?;
        }
        return Ok(Next::Event);
    }
    let phase = match (reserved, held) {
        (true, _) => "Available",
        (false, true) => "Bound",
        (false, false) => "Released",
    };
    let before = value["status"]["phase"].as_str().unwrap_or_default().to_owned();
    if before != phase && !(phase == "Released" && before == "Failed") {
        set_phase(&mut value, phase);
        put(store, &stored, value).await?;
        // Its own event brings it back here.
        return Ok(Next::Event);
    }
    if phase == "Released"
        && let Reclaim::Dispose(_) = claims::reclaim(&value, &context.provisioners.borrow())
    {
        released.add(stored.key.name.clone());
    }
    Ok(Next::Event)
}

/// Disposes of a released volume: first of the directory, on its host or one that reaches the server; then of the
/// object.
async fn dispose(context: &Context, name: &str) -> Outcome {
    let store = context.objects.store();
    let Some(stored) = store.get(&key(VOLUMES, "", name)) else { return Ok(Next::Event) };
    let mut value = stored.value();
    let Reclaim::Dispose(how) = claims::reclaim(&value, &context.provisioners.borrow()) else {
        return Ok(Next::Event);
    };
    let phase = value["status"]["phase"].as_str().unwrap_or_default();
    if stored.meta.deleting || !matches!(phase, "Released" | "Failed") {
        return Ok(Next::Event);
    }
    let about = ObjectRef::of(&value);
    let (end, doing) = match how {
        OnDelete::Delete => (Some(End::Remove), "removing"),
        OnDelete::Archive => (Some(End::Archive), "archiving"),
        OnDelete::Retain => (None, ""),
    };
    // From here on no claim is given this directory: whoever would be sees that the volume is Released.
    let volumes: Vec<Value> = match end {
        Some(_) => store.list(&Scope::all(VOLUMES.plural)).objects.iter().map(|o| o.value()).collect(),
        None => Vec::new(),
    };
    let volumes: Vec<&Value> = volumes.iter().collect();
    let done = match (end, claims::used_by_another(&value, &volumes)) {
        (None, _) => Ok(()),
        (Some(_), Some(other)) => {
            let message = format!("the directory stays as it is: volume {other:?} uses it");
            context.events.record(&about, EventType::Normal, "VolumeDirectoryKept", &message, COMPONENT);
            Ok(())
        }
        (Some(end), None) => {
            let node = match claims::pinned_to(&value) {
                None => Ok(None),
                Some(host) => {
                    node_of(store, host).map(Some).ok_or_else(|| format!("node {host:?} is not there"))
                }
            };
            let location = claims::end_of(&value, &context.provisioners.borrow());
            match (node, location) {
                (Ok(node), Ok(location)) => context.hosts.end(node, location, end).await,
                (Err(why), _) | (_, Err(why)) => Err(why),
            }
        }
    };
    if let Err(why) = done {
        let message = format!("{doing} the volume's directory: {why}");
        context.events.record(&about, EventType::Warning, "VolumeFailedDelete", &message, COMPONENT);
        if value["status"]["phase"] != "Failed" {
            set_phase(&mut value, "Failed");
            value["status"]["message"] = message.clone().into();
            put(store, &stored, value).await?;
        }
        return Err(message.into());
    }
    let options = DeleteOptions { uid: Some(stored.meta.uid.to_string()), ..DeleteOptions::default() };
    match context.objects.delete(VOLUMES, "", &stored.key.name, &options).await {
        Err(status) if status.code != 404 => Err(status.into()),
        _ => Ok(Next::Event),
    }
}

/// The Node that calls itself by this host name.
fn node_of(store: &Store, host: &str) -> Option<String> {
    let nodes = store.list(&Scope::all("nodes")).objects;
    let found = nodes.iter().find(|n| n.meta.labels.get(claims::HOSTNAME) == Some(host));
    found.or_else(|| nodes.iter().find(|n| n.key.name == host)).map(|n| n.key.name.clone())
}

async fn release(
    context: &Context,
    kind: &'static Kind,
    stored: &Object,
    finalizer: &str,
) -> Result<(), Status> {
    let uid = &stored.meta.uid;
    let released = context.objects.modify(kind, None, &stored.key.namespace, &stored.key.name, |value| {
        if object::uid(value) == &**uid
            && let Some(finalizers) = value["metadata"]["finalizers"].as_array_mut()
        {
            finalizers.retain(|f| f != finalizer);
        }
        Ok(())
    });
    match released.await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

fn set_phase(value: &mut Value, phase: &str) {
    value["status"]["phase"] = phase.into();
}

async fn put(store: &Store, stored: &Object, value: Value) -> Result<(), CommitError> {
    let transaction =
        Transaction::new().unchanged(stored.key.clone(), stored.revision).put(stored.key.clone(), value);
    store.commit(transaction).await.map(drop)
}
