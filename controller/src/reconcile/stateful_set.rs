//! The StatefulSet loop: hands core what there is of a set, and carries out its plan.
//!
//! What one pass creates, and the status that says so, is one transaction: from a pod's readiness to the
//! next pod's existence there is one write, and a crash leaves no half of it.

mod prefetch;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_controller_core::kinds;
use berth_controller_core::kinds::Kind;
use berth_controller_core::object;
use berth_controller_core::statefulset::{
    Action, Claim, Plan, Pod, Revision, Set, annotations, parent_and_ordinal, plan,
};
use berth_controller_core::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::events::{EventType, ObjectRef};
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use super::volumes;
use crate::objects::{DeleteOptions, key};
use crate::store::{EventKind, Key, Object, Scope, Transaction};
use prefetch::{Gate, Prefetches, Wanted};

const SETS: &Kind = &kinds::stateful_set::STATEFUL_SET;
const COMPONENT: &str = "statefulset-controller";
/// Sets worked on at once.
const WORKERS: usize = 8;

/// Namespace and name of a set.
type SetKey = (String, String);

pub async fn run(context: Context) {
    let queue: Queue<SetKey> = Queue::new();
    let store = context.objects.store().clone();
    let sets = Scope::all(key(SETS, "", "").resource);
    let add_all = || {
        for set in store.list(&sets).objects {
            queue.add((set.key.namespace.clone(), set.key.name.clone()));
        }
    };
    let add_if_set = |namespace: &str, name: &str| {
        if store.get(&key(SETS, namespace, name)).is_some() {
            queue.add((namespace.to_owned(), name.to_owned()));
        }
    };
    let work_on = Arc::new(Loop {
        context,
        queue: queue.clone(),
        memory: Memory::default(),
        prefetches: Arc::default(),
    });
    let work = {
        let work_on = work_on.clone();
        queue.clone().run("statefulset", WORKERS, move |key| {
            let work_on = work_on.clone();
            async move { reconcile(&work_on, key).await }
        })
    };
    tokio::join!(
        work,
        follow(&store, sets.clone(), |seen| match seen {
            Seen::All(_) => add_all(),
            Seen::Changed(event) if event.kind == EventKind::Deleted => {
                let key = (event.object.key.namespace.clone(), event.object.key.name.clone());
                work_on.memory.forget(&key);
                work_on.prefetches.keep(&key, &HashSet::new());
            }
            Seen::Changed(event) => {
                queue.add((event.object.key.namespace.clone(), event.object.key.name.clone()));
            }
        }),
        follow(&store, Scope::all("pods"), |seen| match seen {
            Seen::All(_) => add_all(),
            Seen::Changed(event) => {
                let pod = &event.object;
                for owned in [Some(pod), event.previous.as_ref()].into_iter().flatten() {
                    for owner in
                        owned.meta.owners.iter().filter(|o| o.controller && &*o.kind == "StatefulSet")
                    {
                        queue.add((pod.key.namespace.clone(), owner.name.to_string()));
                    }
                }
                // Also whoever's name it bears: it may be adopted, or have stood in the way.
                if let Some((parent, _)) = parent_and_ordinal(&pod.key.name) {
                    add_if_set(&pod.key.namespace, parent);
                }
            }
        }),
        // A claim that is gone is wanted back, or no longer in the way.
        follow(&store, Scope::all("persistentvolumeclaims"), |seen| match seen {
            Seen::All(_) => add_all(),
            Seen::Changed(event) if event.kind == EventKind::Deleted => {
                let claim = &event.object.key;
                if let Some((parent, _)) = parent_and_ordinal(&claim.name) {
                    for (dash, _) in parent.match_indices('-') {
                        add_if_set(&claim.namespace, &parent[dash + 1..]);
                    }
                }
            }
            Seen::Changed(_) => {}
        }),
        follow(&store, Scope::all("controllerrevisions.apps"), |seen| match seen {
            Seen::All(_) => add_all(),
            Seen::Changed(event) if event.kind == EventKind::Deleted => {
                for owner in event.object.meta.owners.iter().filter(|o| o.controller) {
                    add_if_set(&event.object.key.namespace, &owner.name);
                }
            }
            Seen::Changed(_) => {}
        }),
    );
}

struct Loop {
    context: Context,
    queue: Queue<SetKey>,
    memory: Memory,
    prefetches: Arc<Prefetches>,
}

/// What was read of each set's pods and revisions, by the version it was read from: in a large set each
/// pass reads only what has changed.
#[derive(Default)]
struct Memory {
    sets: Mutex<HashMap<SetKey, SetMemory>>,
}

#[derive(Default)]
struct SetMemory {
    pods: Read<Pod>,
    revisions: Read<Revision>,
}

type Read<T> = HashMap<String, (u64, T)>;

impl Memory {
    fn take(&self, key: &SetKey) -> SetMemory {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner).remove(key).unwrap_or_default()
    }

    fn keep(&self, key: SetKey, memory: SetMemory) {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner).insert(key, memory);
    }

    fn forget(&self, key: &SetKey) {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// The typed views of these objects, read anew only where the object is another version.
fn read_all<'a, T: Clone>(
    memory: &mut Read<T>,
    objects: impl Iterator<Item = &'a Arc<Object>>,
    read: fn(&Value) -> T,
) -> Vec<T> {
    let mut now = Read::new();
    let mut all = Vec::new();
    for object in objects {
        let name = &object.key.name;
        let view = match memory.remove(name) {
            Some((revision, view)) if revision == object.revision => view,
            _ => read(&object.value()),
        };
        all.push(view.clone());
        now.insert(name.clone(), (object.revision, view));
    }
    *memory = now;
    all
}

async fn reconcile(on: &Loop, (namespace, name): SetKey) -> Outcome {
    let Loop { context, memory, .. } = on;
    let store = context.objects.store();
    let Some(stored) = store.get(&key(SETS, &namespace, &name)) else { return Ok(Next::Event) };
    let value = stored.value();
    let mut set = Set::read(&value);
    set.held = on.prefetches.failures(&(namespace.clone(), name.clone()));
    let mut held = memory.take(&(namespace.clone(), name.clone()));
    let plan = {
        let uid = &*stored.meta.uid;
        let owned = |o: &Object| o.meta.owners.iter().any(|r| r.controller && &*r.uid == uid);
        let listed =
            |resource: &'static str| store.list(&Scope::namespaced(resource, namespace.as_str())).objects;
        let prefix = format!("{name}-");
        let pods = store.kin("pods", &namespace, uid, &prefix);
        let of_name = |o: &Object| parent_and_ordinal(&o.key.name).is_some_and(|(parent, _)| parent == name);
        let pods = read_all(&mut held.pods, pods.iter().filter(|o| owned(o) || of_name(o)), Pod::read);
        let claims = listed("persistentvolumeclaims");
        let suffix = format!("-{name}");
        let of_set = |o: &&Arc<Object>| {
            parent_and_ordinal(&o.key.name).is_some_and(|(parent, _)| parent.ends_with(&suffix))
        };
        let claims: Vec<Claim> = claims.iter().filter(of_set).map(|o| Claim::read(&o.value())).collect();
        let revisions = store.kin("controllerrevisions.apps", &namespace, uid, &prefix);
        let revisions = read_all(&mut held.revisions, revisions.iter(), Revision::read);
        plan(&set, &pods, &claims, &revisions, Timestamp::now())
    };
    let done = carry_out(on, &set, &stored, value, plan).await;
    if store.get(&stored.key).is_some() {
        memory.keep((namespace, name), held);
    }
    done
}

async fn carry_out(on: &Loop, set: &Set, stored: &Object, value: Value, plan: Plan) -> Outcome {
    let context = &on.context;
    let about = Say { context, set, object: ObjectRef::of(&value) };
    let mut changes = Vec::new();
    let mut creations = Vec::new();
    let mut deletions = Vec::new();
    let mut replacements = Vec::new();
    for action in plan.actions {
        match action {
            Action::CreateRevision(_) | Action::CreateClaims { .. } | Action::CreatePod { .. } => {
                creations.push(action);
            }
            Action::DeletePod { .. } | Action::DeleteRevision { .. } => deletions.push(action),
            replacement @ Action::ReplacePod { .. } => replacements.push(replacement),
            Action::Warn { reason, message } => about.record(EventType::Warning, reason, &message),
            Action::CannotCreate { name, why } => about.pod("create", &name, Err(&why)),
            change => changes.push(change),
        }
    }
    for change in changes {
        apply_change(context, set, change).await?;
    }
    let home = context.objects.store().get(&Key::new("namespaces", "", set.namespace.as_str()));
    if home.is_none_or(|namespace| namespace.meta.deleting) {
        // All of it goes soon, the set too.
        write_status(context, stored, &value, &plan.status_without_creations, plan.rejected.as_deref())
            .await?;
        return Ok(Next::Event);
    }
    let mut first_error: Option<Box<dyn std::error::Error + Send + Sync>> = None;
    if let Err(error) =
        create(context, &about, stored, &value, creations, &plan.status, plan.rejected.as_deref()).await
    {
        // What cannot be created must not keep the status from being told, nor pods from being deleted.
        write_status(context, stored, &value, &plan.status_without_creations, plan.rejected.as_deref())
            .await?;
        first_error = Some(error);
    }
    // After the status: the images of a revision that is not written yet are nobody's.
    let (gone_for_update, retry) = gate(on, &about, replacements);
    deletions.extend(gone_for_update);
    for deletion in deletions {
        if let Err(error) = delete(context, &about, deletion).await {
            first_error.get_or_insert(error.into());
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    let planned = plan.wake_at.map(|at| {
        let wait = at.duration_since(Timestamp::now());
        Duration::try_from(wait).unwrap_or_default()
    });
    Ok(planned.into_iter().chain(retry).min().map_or(Next::Event, Next::After))
}

/// The deletions of those pods whose successors' images are on their hosts; and when to ask again for others.
fn gate(on: &Loop, about: &Say<'_>, replacements: Vec<Action>) -> (Vec<Action>, Option<Duration>) {
    let key = (about.set.namespace.clone(), about.set.name.clone());
    let mut deletions = Vec::new();
    let mut retry: Option<Duration> = None;
    let mut asked = HashSet::new();
    for replacement in replacements {
        let Action::ReplacePod { name, uid, node, revision, successor } = replacement else { continue };
        let gate = match node {
            Some(node) => {
                asked.insert(name.clone());
                let (pod, uid) = (name.clone(), uid.clone());
                let wanted = Wanted { pod, uid, node, revision, successor };
                on.prefetches.ask(&on.context.images, &on.queue, &key, wanted, Instant::now())
            }
            None => Gate::Open,
        };
        match gate {
            Gate::Open => deletions.push(Action::DeletePod { name, uid }),
            Gate::Fetching => {}
            Gate::Failed { why, again, news } => {
                if news {
                    about.held_back(&name, &why);
                }
                retry = Some(retry.map_or(again, |r| r.min(again)));
            }
        }
    }
    on.prefetches.keep(&key, &asked);
    (deletions, retry)
}

/// One transaction for all that is new, and the status.
async fn create(
    context: &Context,
    about: &Say<'_>,
    stored: &Object,
    value: &Value,
    creations: Vec<Action>,
    status: &Value,
    rejected: Option<&str>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if creations.is_empty() {
        return Ok(write_status(context, stored, value, status, rejected).await?);
    }
    let objects = &context.objects;
    let namespace = stored.key.namespace.as_str();
    let mut staging = Staging { context, namespace, transaction: Transaction::new() };
    let mut made: Vec<(String, Vec<String>, bool)> = Vec::new();
    for creation in creations {
        match creation {
            Action::CreateRevision(revision) => {
                staging.add(&kinds::controller_revision::CONTROLLER_REVISION, revision)?;
            }
            Action::CreateClaims { pod, claims } => {
                let names =
                    staging.claims(&claims).inspect_err(|e| about.pod("create", &pod, Err(&e.message)))?;
                made.push((pod, names, false));
            }
            Action::CreatePod { name, pod, claims } => {
                let staged = staging.claims(&claims).and_then(|names| {
                    staging.add(&kinds::pod::POD, pod)?;
                    Ok(names)
                });
                let names = staged.inspect_err(|e| about.pod("create", &name, Err(&e.message)))?;
                made.push((name, names, true));
            }
            _ => {}
        }
    }
    let mut transaction = staging.transaction.unchanged(stored.key.clone(), stored.revision);
    // Nothing is made in a namespace whose deletion was asked for since.
    let home = Key::new("namespaces", "", namespace);
    if let Some(home) = objects.store().get(&home) {
        transaction = transaction.unchanged(home.key.clone(), home.revision);
    }
    transaction = transaction.put(stored.key.clone(), with_status(value, status, rejected));
    objects.store().commit(transaction).await?;
    for (pod, claims, created) in made {
        for claim in claims {
            let message = format!("create Claim {claim} Pod {pod} in StatefulSet {} success", about.set.name);
            about.record(EventType::Normal, "SuccessfulCreate", &message);
        }
        if created {
            about.pod("create", &pod, Ok(()));
        }
    }
    Ok(())
}

struct Staging<'a> {
    context: &'a Context,
    namespace: &'a str,
    transaction: Transaction,
}

impl Staging<'_> {
    fn add(&mut self, kind: &'static Kind, value: Value) -> Result<(), Status> {
        let value = self.context.objects.stage_create(kind, self.namespace, value)?;
        let key = key(kind, self.namespace, object::name(&value));
        let transaction = std::mem::take(&mut self.transaction);
        self.transaction = transaction.absent(key.clone()).put(key, value);
        Ok(())
    }

    /// Their names.
    fn claims(&mut self, claims: &[Value]) -> Result<Vec<String>, Status> {
        let mut names = Vec::new();
        for claim in claims {
            let mut claim = claim.clone();
            volumes::give_default_class(self.context.objects.store(), &mut claim);
            names.push(object::name(&claim).to_owned());
            self.add(&kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM, claim)?;
        }
        Ok(names)
    }
}

/// The set with its status, and with the annotation that names the revision that was given up.
fn with_status(value: &Value, status: &Value, rejected: Option<&str>) -> Value {
    let mut value = value.clone();
    value["status"] = status.clone();
    if object::annotation(&value, annotations::REJECTED_REVISION) != rejected {
        let notes = object::map_mut(&mut value["metadata"], "annotations");
        match rejected {
            Some(revision) => drop(notes.insert(annotations::REJECTED_REVISION.to_owned(), revision.into())),
            None => drop(notes.remove(annotations::REJECTED_REVISION)),
        }
    }
    value
}

async fn write_status(
    context: &Context,
    stored: &Object,
    value: &Value,
    status: &Value,
    rejected: Option<&str>,
) -> Result<(), crate::store::CommitError> {
    let named = object::annotation(value, annotations::REJECTED_REVISION);
    if value["status"] == *status && named == rejected {
        return Ok(());
    }
    let transaction = Transaction::new()
        .unchanged(stored.key.clone(), stored.revision)
        .put(stored.key.clone(), with_status(value, status, rejected));
    context.objects.store().commit(transaction).await.map(drop)
}

/// Changes to what is there. Rare, so each is a write of its own.
async fn apply_change(context: &Context, set: &Set, change: Action) -> Result<(), Status> {
    let objects = &context.objects;
    let pods = &kinds::pod::POD;
    let claims = &kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
    let revisions = &kinds::controller_revision::CONTROLLER_REVISION;
    let modified = match change {
        Action::AdoptPod { name, uid, owner } => adopt(context, set, pods, &name, &uid, owner).await,
        Action::AdoptRevision { name, uid, owner } => {
            adopt(context, set, revisions, &name, &uid, owner).await
        }
        Action::ReleasePod { name, uid } => objects
            .modify(pods, None, &set.namespace, &name, |pod| {
                same_life(pods, pod, &uid)?;
                if let Some(owners) = pod["metadata"]["ownerReferences"].as_array_mut() {
                    owners.retain(|o| o["uid"] != *set.uid);
                }
                Ok(())
            })
            .await
            .map(drop),
        Action::LabelPod { name, uid, labels } => objects
            .modify(pods, None, &set.namespace, &name, |pod| {
                same_life(pods, pod, &uid)?;
                for (key, value) in &labels {
                    pod["metadata"]["labels"][*key] = value.clone().into();
                }
                Ok(())
            })
            .await
            .map(drop),
        Action::OwnClaim { name, uid, disown, owner } => objects
            .modify(claims, None, &set.namespace, &name, |claim| {
                same_life(claims, claim, &uid)?;
                let owners =
                    object::metadata_mut(claim).entry("ownerReferences").or_insert_with(|| json!([]));
                if let Some(owners) = owners.as_array_mut() {
                    owners.retain(|o| !disown.iter().any(|uid| o["uid"] == **uid));
                    owners.extend(owner.clone());
                }
                Ok(())
            })
            .await
            .map(drop),
        Action::MarkRevision { name, uid } => objects
            .modify(revisions, None, &set.namespace, &name, |revision| {
                same_life(revisions, revision, &uid)?;
                let marks = object::map_mut(&mut revision["metadata"], "annotations");
                marks.insert(annotations::WAS_READY.to_owned(), "true".into());
                Ok(())
            })
            .await
            .map(drop),
        Action::RenumberRevision { name, uid, number } => objects
            .modify(revisions, None, &set.namespace, &name, |revision| {
                same_life(revisions, revision, &uid)?;
                revision["revision"] = number.into();
                Ok(())
            })
            .await
            .map(drop),
        _ => Ok(()),
    };
    unless_gone(modified)
}

async fn adopt(
    context: &Context,
    set: &Set,
    kind: &'static Kind,
    name: &str,
    uid: &str,
    owner: Value,
) -> Result<(), Status> {
    let adopted = context.objects.modify(kind, None, &set.namespace, name, |value| {
        same_life(kind, value, uid)?;
        if object::controller_ref(value).is_some() {
            return Err(Status::conflict(&kind.resource(), name, "it has another controller"));
        }
        let owners = object::metadata_mut(value).entry("ownerReferences").or_insert_with(|| json!([]));
        if let Some(owners) = owners.as_array_mut() {
            owners.push(owner.clone());
        }
        Ok(())
    });
    adopted.await.map(drop)
}

fn same_life(kind: &Kind, value: &Value, uid: &str) -> Result<(), Status> {
    if object::uid(value) == uid {
        Ok(())
    } else {
        Err(Status::not_found(&kind.resource(), object::name(value)))
    }
}

/// What is gone needs nothing any more.
fn unless_gone(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code == 404 => Ok(()),
        other => other,
    }
}

async fn delete(context: &Context, about: &Say<'_>, deletion: Action) -> Result<(), Status> {
    let (kind, name, uid) = match deletion {
        Action::DeletePod { name, uid } => (&kinds::pod::POD, name, uid),
        Action::DeleteRevision { name, uid } => (&kinds::controller_revision::CONTROLLER_REVISION, name, uid),
        _ => return Ok(()),
    };
    let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
    let deleted = context.objects.delete(kind, &about.set.namespace, &name, &options).await;
    match (kind.plural, deleted) {
        (_, Err(status)) if matches!(status.code, 404 | 409) => Ok(()),
        ("pods", Ok(_)) => {
            about.pod("delete", &name, Ok(()));
            Ok(())
        }
        (_, Ok(_)) => Ok(()),
        (_, Err(status)) => {
            about.pod("delete", &name, Err(&status.message));
            Err(status)
        }
    }
}

/// Says what happened, in Kubernetes' words.
struct Say<'a> {
    context: &'a Context,
    set: &'a Set,
    object: ObjectRef,
}

impl Say<'_> {
    fn pod(&self, verb: &str, pod: &str, result: Result<(), &str>) {
        let set = &self.set.name;
        let title = if verb == "create" { "Create" } else { "Delete" };
        match result {
            Ok(()) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {set} successful");
                self.record(EventType::Normal, &format!("Successful{title}"), &message);
            }
            Err(error) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {set} failed error: {error}");
                self.record(EventType::Warning, &format!("Failed{title}"), &message);
            }
        }
    }

    fn held_back(&self, pod: &str, why: &str) {
        let message = format!(
            "update of Pod {pod} in StatefulSet {} waits for its images, and the pod runs on: {why}",
            self.set.name
        );
        self.record(EventType::Warning, "FailedPrefetch", &message);
    }

    fn record(&self, r#type: EventType, reason: &str, message: &str) {
        self.context.events.record(&self.object, r#type, reason, message, COMPONENT);
    }
}
