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
    Action, Claim, Plan, Pod, Revision as PastRevision, Set, annotations, parent_and_ordinal, plan,
};
use berth_controller_core::status::Status;
use futures_util::future::{BoxFuture, join_all};
use serde_json::Value;

use super::Context;
use super::events::{EventType, ObjectRef};
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use super::volumes;
use crate::objects::{DeleteOptions, key, meta};
use crate::store::{CommitError, Event, EventKind, Key, Object, Revision, Scope, Transaction};
use prefetch::{Gate, Prefetches, Wanted};

const SETS: &Kind = &kinds::stateful_set::STATEFUL_SET;
const COMPONENT: &str = "statefulset-controller";
/// Sets worked on at once.
const WORKERS: usize = 8;

/// Namespace and name of a set.
type SetKey = (String, String);

pub async fn run(context: Context) {
    let sets = Arc::new(Loop::new(context));
    let work = sets.queue.clone().run("statefulset", WORKERS, |key| {
        let sets = sets.clone();
        async move { sets.reconcile(key).await }
    });
    tokio::join!(work, join_all(sets.feeds()));
}

/// What the loop works with, and what it remembers.
pub(super) struct Loop {
    context: Context,
    pub(super) queue: Queue<SetKey>,
    memory: Memory,
    prefetches: Arc<Prefetches>,
}

impl Loop {
    pub(super) fn new(context: Context) -> Loop {
        let clock = context.objects.clock().clone();
        Loop {
            queue: Queue::timed(clock.clone()),
            memory: Memory::default(),
            prefetches: Arc::new(Prefetches::new(clock)),
            context,
        }
    }

    /// What brings sets into the queue, each for ever: their own changes, and those of what they are made of.
    pub(super) fn feeds(self: &Arc<Self>) -> Vec<BoxFuture<'static, ()>> {
        vec![
            self.feed(Scope::all(key(SETS, "", "").resource), Loop::set_changed),
            self.feed(Scope::all("pods"), Loop::pod_changed),
            self.feed(Scope::all("persistentvolumeclaims"), Loop::claim_changed),
            self.feed(Scope::all("controllerrevisions.apps"), Loop::revision_changed),
        ]
    }

    fn feed(self: &Arc<Self>, scope: Scope, changed: fn(&Loop, &Event)) -> BoxFuture<'static, ()> {
        let sets = self.clone();
        Box::pin(async move {
            follow(sets.context.objects.store(), scope, |seen| match seen {
                Seen::All(_) => sets.add_all(),
                Seen::Changed(event) => changed(&sets, event),
            })
            .await;
        })
    }

    fn add_all(&self) {
        for set in self.context.objects.store().list(&Scope::all(key(SETS, "", "").resource)).objects {
            self.queue.add((set.key.namespace.clone(), set.key.name.clone()));
        }
    }

    fn add_if_set(&self, namespace: &str, name: &str) {
        if self.context.objects.store().get(&key(SETS, namespace, name)).is_some() {
            self.queue.add((namespace.to_owned(), name.to_owned()));
        }
    }

    fn set_changed(&self, event: &Event) {
        let key = (event.object.key.namespace.clone(), event.object.key.name.clone());
        if event.kind == EventKind::Deleted {
            self.memory.forget(&key);
            self.prefetches.keep(&key, &HashSet::new());
        } else {
            self.queue.add(key);
        }
    }

    fn pod_changed(&self, event: &Event) {
        let pod = &event.object;
        for owned in [Some(pod), event.previous.as_ref()].into_iter().flatten() {
            for owner in owned.meta.owners.iter().filter(|o| o.controller && &*o.kind == "StatefulSet") {
                self.queue.add((pod.key.namespace.clone(), owner.name.to_string()));
            }
        }
        // Also whoever's name it bears: it may be adopted, or have stood in the way.
        if let Some((parent, _)) = parent_and_ordinal(&pod.key.name) {
            self.add_if_set(&pod.key.namespace, parent);
        }
    }

    /// A claim that is gone is wanted back, or no longer in the way.
    fn claim_changed(&self, event: &Event) {
        let claim = &event.object.key;
        if event.kind != EventKind::Deleted {
            return;
        }
        if let Some((parent, _)) = parent_and_ordinal(&claim.name) {
            for (dash, _) in parent.match_indices('-') {
                self.add_if_set(&claim.namespace, &parent[dash + 1..]);
            }
        }
    }

    fn revision_changed(&self, event: &Event) {
        if event.kind == EventKind::Deleted {
            for owner in event.object.meta.owners.iter().filter(|o| o.controller) {
                self.add_if_set(&event.object.key.namespace, &owner.name);
            }
        }
    }

    /// Plans one set and carries the plan out.
    pub(super) async fn reconcile(&self, (namespace, name): SetKey) -> Outcome {
        let Loop { context, memory, .. } = self;
        let store = context.objects.store();
        let Some(stored) = store.get(&key(SETS, &namespace, &name)) else { return Ok(Next::Event) };
        let value = stored.value();
        let mut set = Set::read(&value);
        set.held = self.prefetches.failures(&(namespace.clone(), name.clone()));
        let mut held = memory.take(&(namespace.clone(), name.clone()));
        let plan = {
            let uid = &*stored.meta.uid;
            let owned = |o: &Object| o.meta.owners.iter().any(|r| r.controller && &*r.uid == uid);
            let listed =
                |resource: &'static str| store.list(&Scope::namespaced(resource, namespace.as_str())).objects;
            let prefix = format!("{name}-");
            let pods = store.kin("pods", &namespace, uid, &prefix);
            let of_name =
                |o: &Object| parent_and_ordinal(&o.key.name).is_some_and(|(parent, _)| parent == name);
            let pods = read_all(&mut held.pods, pods.iter().filter(|o| owned(o) || of_name(o)), Pod::read);
            let claims = listed("persistentvolumeclaims");
            let suffix = format!("-{name}");
            let of_set = |o: &&Arc<Object>| {
                parent_and_ordinal(&o.key.name).is_some_and(|(parent, _)| parent.ends_with(&suffix))
            };
            let claims: Vec<Claim> = claims.iter().filter(of_set).map(|o| Claim::read(&o.value())).collect();
            let revisions = store.kin("controllerrevisions.apps", &namespace, uid, &prefix);
            let revisions = read_all(&mut held.revisions, revisions.iter(), PastRevision::read);
            plan(&set, &pods, &claims, &revisions, context.objects.clock().now())
        };
        let done = carry_out(self, &set, &stored, value, plan).await;
        if store.get(&stored.key).is_some() {
            memory.keep((namespace, name), held);
        }
        done
    }
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
    revisions: Read<PastRevision>,
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
    // Everything here is done for the set as it was seen: not for one that was changed or deleted meanwhile.
    for change in changes {
        apply_change(context, stored, change).await?;
    }
    let home = context.objects.store().get(&Key::new("namespaces", "", set.namespace.as_str()));
    if home.is_none_or(|namespace| namespace.meta.deleting) {
        // All of it goes soon, the set too.
        let rejected = plan.rejected.as_deref();
        write_status(context, stored, &value, &plan.status_without_creations, rejected).await?;
        return Ok(Next::Event);
    }
    let mut first_error: Option<Box<dyn std::error::Error + Send + Sync>> = None;
    let seen;
    let rejected = plan.rejected.as_deref();
    let revisions: Vec<Action> =
        creations.iter().filter(|a| matches!(a, Action::CreateRevision(_))).cloned().collect();
    match create(context, &about, stored, &value, creations, &plan.status, rejected).await {
        Ok(revision) => seen = revision,
        Err(error) => {
            // A pod that cannot be created must not keep the status from being told, nor pods from being
            // deleted. The revision that the status names is there first.
            let status = &plan.status_without_creations;
            seen = create(context, &about, stored, &value, revisions, status, rejected).await?;
            first_error = Some(error);
        }
    }
    // After the status: the images of a revision that is not written yet are nobody's.
    let (gone_for_update, retry) = gate(on, &about, replacements);
    deletions.extend(gone_for_update);
    for deletion in deletions {
        if let Err(error) = delete(context, &about, (&stored.key, seen), deletion).await {
            first_error.get_or_insert(error.into());
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    let planned = plan.wake_at.map(|at| {
        let wait = at.duration_since(context.objects.clock().now());
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
    let now = on.context.objects.clock().instant();
    for replacement in replacements {
        let Action::ReplacePod { name, uid, node, revision, successor } = replacement else { continue };
        let gate = match node {
            Some(node) => {
                asked.insert(name.clone());
                let (pod, uid) = (name.clone(), uid.clone());
                let wanted = Wanted { pod, uid, node, revision, successor };
                on.prefetches.ask(&on.context.images, &on.queue, &key, wanted, now)
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

/// One transaction for all that is new, and the status; the set's revision after it.
async fn create(
    context: &Context,
    about: &Say<'_>,
    stored: &Object,
    value: &Value,
    creations: Vec<Action>,
    status: &Value,
    rejected: Option<&str>,
) -> Result<Revision, Box<dyn std::error::Error + Send + Sync>> {
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
                    staging.rests_on_claims_of(&pod);
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
    let revision = objects.store().commit(transaction).await?;
    for (pod, claims, created) in made {
        for claim in claims {
            let message = format!("create Claim {claim} Pod {pod} in StatefulSet {} success", about.set.name);
            about.record(EventType::Normal, "SuccessfulCreate", &message);
        }
        if created {
            about.pod("create", &pod, Ok(()));
        }
    }
    Ok(revision)
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

    /// The claims that this pod finds must still be there when it is made.
    fn rests_on_claims_of(&mut self, pod: &Value) {
        let kind = &kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() else { continue };
            let key = key(kind, self.namespace, claim);
            let made_with_it = self.transaction.writes.iter().any(|write| *write.key() == key);
            let found = self.context.objects.store().get(&key).is_some();
            if found && !made_with_it {
                self.transaction = std::mem::take(&mut self.transaction).present(key);
            }
        }
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

/// The set's revision after it.
async fn write_status(
    context: &Context,
    stored: &Object,
    value: &Value,
    status: &Value,
    rejected: Option<&str>,
) -> Result<Revision, CommitError> {
    let named = object::annotation(value, annotations::REJECTED_REVISION);
    if value["status"] == *status && named == rejected {
        return Ok(stored.revision);
    }
    let transaction = Transaction::new()
        .unchanged(stored.key.clone(), stored.revision)
        .put(stored.key.clone(), with_status(value, status, rejected));
    context.objects.store().commit(transaction).await
}

/// Changes to what is there. Rare, so each is a write of its own.
async fn apply_change(context: &Context, set: &Object, change: Action) -> Result<(), CommitError> {
    let pods = &kinds::pod::POD;
    let claims = &kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
    let revisions = &kinds::controller_revision::CONTROLLER_REVISION;
    let update = Update { context, set };
    match change {
        Action::AdoptPod { name, uid, owner } => update.of(pods, &name, &uid, |pod| adopt(pod, owner)).await,
        Action::AdoptRevision { name, uid, owner } => {
            update.of(revisions, &name, &uid, |revision| adopt(revision, owner)).await
        }
        Action::ReleasePod { name, uid } => {
            let release = |pod: &mut Value| owners(pod).retain(|o| o["uid"] != *set.meta.uid);
            update.of(pods, &name, &uid, release).await
        }
        Action::LabelPod { name, uid, labels } => {
            let label = |pod: &mut Value| {
                let all = object::map_mut(&mut pod["metadata"], "labels");
                all.extend(labels.into_iter().map(|(key, value)| (key.to_owned(), value.into())));
            };
            update.of(pods, &name, &uid, label).await
        }
        Action::OwnClaim { name, uid, disown, owner } => {
            let own = |claim: &mut Value| {
                let owners = owners(claim);
                owners.retain(|o| !disown.iter().any(|uid| o["uid"] == **uid));
                owners.extend(owner);
            };
            update.of(claims, &name, &uid, own).await
        }
        Action::ChangeClaim { name, uid, storage, labels, annotations } => {
            let follow = |claim: &mut Value| {
                if let Some(storage) = storage {
                    claim["spec"]["resources"]["requests"]["storage"] = storage;
                }
                for (field, more) in [("labels", labels), ("annotations", annotations)] {
                    if !more.is_empty() {
                        object::map_mut(&mut claim["metadata"], field).extend(more);
                    }
                }
            };
            update.of(claims, &name, &uid, follow).await
        }
        Action::MarkRevision { name, uid } => {
            let mark = |revision: &mut Value| {
                let marks = object::map_mut(&mut revision["metadata"], "annotations");
                marks.insert(annotations::WAS_READY.to_owned(), "true".into());
            };
            update.of(revisions, &name, &uid, mark).await
        }
        Action::RenumberRevision { name, uid, number } => {
            update.of(revisions, &name, &uid, |revision| revision["revision"] = number.into()).await
        }
        _ => Ok(()),
    }
}

/// A change to something of a set, for as long as the set is as it was seen.
struct Update<'a> {
    context: &'a Context,
    set: &'a Object,
}

impl Update<'_> {
    /// What is gone, or another of that name, needs nothing any more.
    async fn of(
        &self,
        kind: &'static Kind,
        name: &str,
        uid: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), CommitError> {
        let store = self.context.objects.store();
        let found = store.get(&key(kind, &self.set.key.namespace, name));
        let Some(stored) = found.filter(|o| *o.meta.uid == *uid) else { return Ok(()) };
        let mut value = stored.value();
        change(&mut value);
        meta::tidy(&mut value);
        let transaction = Transaction::new()
            .unchanged(self.set.key.clone(), self.set.revision)
            .unchanged(stored.key.clone(), stored.revision)
            .put(stored.key.clone(), value);
        store.commit(transaction).await.map(drop)
    }
}

fn owners(value: &mut Value) -> &mut Vec<Value> {
    let owners = &mut value["metadata"]["ownerReferences"];
    if !owners.is_array() {
        *owners = Value::Array(Vec::new());
    }
    match owners {
        Value::Array(owners) => owners,
        _ => unreachable!("made an array above"),
    }
}

/// Unless another controller was faster.
fn adopt(value: &mut Value, owner: Value) {
    if object::controller_ref(value).is_none() {
        owners(value).push(owner);
    }
}

async fn delete(
    context: &Context,
    about: &Say<'_>,
    (set, seen): (&Key, Revision),
    deletion: Action,
) -> Result<(), Status> {
    let (kind, name, uid) = match deletion {
        Action::DeletePod { name, uid } => (&kinds::pod::POD, name, uid),
        Action::DeleteRevision { name, uid } => (&kinds::controller_revision::CONTROLLER_REVISION, name, uid),
        _ => return Ok(()),
    };
    let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
    let store = context.objects.store();
    let for_this_set = |_: &mut Value| match store.get(set) {
        Some(found) if found.revision == seen => Ok(Transaction::new().unchanged(set.clone(), seen)),
        _ => Err(Status::modified(&SETS.resource(), &set.name)),
    };
    let namespace = &about.set.namespace;
    let deleted = context.objects.delete_with(kind, namespace, &name, &options, for_this_set).await;
    match (kind.plural, deleted) {
        // It is gone or another, or the set has changed, which brings it back here.
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
