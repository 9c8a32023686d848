//! What the store holds in memory: the objects as they are now, and per resource the most recent events.
//!
//! The writer alone changes it, in whole batches: a reader never sees half a transaction. Never does I/O.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use super::error::{CommitError, Expired};
use super::model::{
    Check, Committed, Event, EventKind, Key, List, Object, Prepared, PreparedWrite, Revision, Scope,
};

/// How much history a resource keeps: bytes in events, besides half as many as its objects have, so that a
/// small cluster stays small and a big one's watchers have time; but always the newest few events.
const RING_BYTES: usize = 2 << 20;
const RING_MIN: usize = 16;

pub(super) struct Cache(RwLock<State>);

struct State {
    revision: Revision,
    /// The revision found when the store was opened: no history before it.
    opened: Revision,
    resources: HashMap<&'static str, Resource>,
}

struct Resource {
    /// One leaked copy of each resource's name (there are a few dozen) instead of one an object.
    name: &'static str,
    objects: BTreeSet<Entry>,
    /// The objects that each controller owns, by its uid.
    owned: HashMap<Box<str>, BTreeSet<Entry>>,
    object_bytes: usize,
    ring: VecDeque<Event>,
    ring_bytes: usize,
    /// All events after this revision are in the ring.
    floor: Revision,
    /// The revision of the newest event: what wakes watchers.
    newest: watch::Sender<Revision>,
}

impl Cache {
    pub fn new(revision: Revision) -> Cache {
        Cache(RwLock::new(State { revision, opened: revision, resources: HashMap::new() }))
    }

    /// Adds an object found on disk; only before the store is in use.
    pub fn load(&self, mut object: Object) {
        let mut state = self.state_mut();
        let resource = state.resource(&object.key.resource);
        object.key.resource = resource.name.into();
        resource.object_bytes += object.weight();
        let object = Arc::new(object);
        resource.own(&object);
        resource.objects.insert(Entry(object));
    }

    pub fn revision(&self) -> Revision {
        self.state().revision
    }

    pub fn newest(&self, resource: &str) -> Revision {
        let state = self.state();
        state.resources.get(resource).map_or(state.opened, |resource| *resource.newest.borrow())
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.state().resources.get(&*key.resource)?.get(&key.namespace, &key.name).cloned()
    }

    pub fn list(&self, scope: &Scope) -> List {
        let state = self.state();
        let objects = match state.resources.get(&*scope.resource) {
            Some(resource) => resource.range(scope, None).cloned().collect(),
            None => Vec::new(),
        };
        List { revision: state.revision, objects, remaining: 0 }
    }

    /// The objects of a namespace that this controller owns, and those whose names begin so; by name.
    pub fn kin(&self, resource: &str, namespace: &str, owner: &str, prefix: &str) -> Vec<Arc<Object>> {
        let state = self.state();
        let Some(resource) = state.resources.get(resource) else { return Vec::new() };
        let from = (namespace, prefix);
        let named = resource
            .objects
            .range::<dyn Named, _>((Bound::Included(&from as &dyn Named), Bound::Unbounded))
            .take_while(|e| e.0.key.namespace == namespace && e.0.key.name.starts_with(prefix));
        let owned = resource.owned.get(owner).into_iter().flatten();
        let owned = owned.filter(|e| e.0.key.namespace == namespace && !e.0.key.name.starts_with(prefix));
        let mut kin: Vec<Arc<Object>> = named.chain(owned).map(|e| e.0.clone()).collect();
        kin.sort_by(|a, b| a.key.name.cmp(&b.key.name));
        kin
    }

    pub fn list_page(
        &self,
        scope: &Scope,
        at: Option<Revision>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<List, Expired> {
        let state = self.state();
        let revision = at.unwrap_or(state.revision);
        state.check_reach(&scope.resource, revision)?;
        let Some(resource) = state.resources.get(&*scope.resource) else {
            return Ok(List { revision, objects: Vec::new(), remaining: 0 });
        };
        // What has changed since, as it was then: the `previous` of each object's first event.
        let mut then: BTreeMap<(&str, &str), Option<&Arc<Object>>> = BTreeMap::new();
        for event in resource.since(revision).filter(|e| scope.has(&e.object.key)) {
            then.entry(name_of(&event.object)).or_insert(event.previous.as_ref());
        }
        let mut objects: Vec<&Arc<Object>> =
            resource.range(scope, after).filter(|o| !then.contains_key(&name_of(o))).collect();
        if !then.is_empty() {
            let restored = then.iter().filter(|(name, _)| after.is_none_or(|a| **name > a));
            objects.extend(restored.filter_map(|(_, previous)| *previous));
            objects.sort_by_key(|o| name_of(o));
        }
        let remaining = objects.len().saturating_sub(limit);
        let objects = objects.into_iter().take(limit).cloned().collect();
        Ok(List { revision, objects, remaining })
    }

    pub fn oldest(&self, scope: &Scope) -> Revision {
        let state = self.state();
        state.floor(&scope.resource)
    }

    /// Starts a watch: what wakes it.
    pub fn subscribe(&self, scope: &Scope, after: Revision) -> Result<watch::Receiver<Revision>, Expired> {
        let mut state = self.state_mut();
        state.check_reach(&scope.resource, after)?;
        Ok(state.resource(&scope.resource).newest.subscribe())
    }

    /// Up to `limit` events of a scope after a revision, and the revision up to which they are complete.
    pub fn events(
        &self,
        scope: &Scope,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Event>, Revision), Expired> {
        let state = self.state();
        state.check_reach(&scope.resource, after)?;
        let mut events: Vec<Event> = Vec::new();
        if let Some(resource) = state.resources.get(&*scope.resource) {
            for event in resource.since(after).filter(|e| scope.has(&e.object.key)) {
                // A revision is never split: the watch goes on after a revision.
                if let Some(last) = events.last()
                    && events.len() >= limit
                    && last.revision != event.revision
                {
                    let complete = last.revision;
                    return Ok((events, complete));
                }
                events.push(event.clone());
            }
        }
        Ok((events, state.revision))
    }

    /// Makes transactions visible, in order, all at once.
    pub fn publish(&self, staged: Vec<Staged>) {
        let mut state = self.state_mut();
        let mut touched: Vec<&'static str> = Vec::new();
        for event in staged.into_iter().flat_map(|s| s.events) {
            state.revision = event.revision;
            let resource = state.resource(&event.object.key.resource);
            resource.apply(event);
            if !touched.contains(&resource.name) {
                touched.push(resource.name);
            }
        }
        let revision = state.revision;
        for name in touched {
            state.resource(name).newest.send_replace(revision);
        }
    }

    #[cfg(test)]
    pub fn forget_history(&self) {
        let mut state = self.state_mut();
        let revision = state.revision;
        for resource in state.resources.values_mut() {
            resource.ring.clear();
            resource.ring_bytes = 0;
            resource.floor = revision;
        }
    }

    /// The events of one revision.
    #[cfg(test)]
    pub fn written_at(&self, revision: Revision) -> Vec<Event> {
        let state = self.state();
        let mut events: Vec<Event> =
            state.resources.values().flat_map(|r| r.since(revision - 1)).cloned().collect();
        events.sort_by(|a, b| a.object.key.cmp(&b.object.key));
        events
    }

    // A panic while the lock was held can only come from an allocation failure, which aborts: a poisoned
    // lock does not occur, and would still guard a state that is changed in whole steps.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn resource(&mut self, name: &str) -> &mut Resource {
        let name = match self.resources.get(name) {
            Some(resource) => resource.name,
            None => Box::leak(name.to_owned().into_boxed_str()),
        };
        let floor = self.opened;
        self.resources.entry(name).or_insert_with(|| Resource {
            name,
            objects: BTreeSet::new(),
            owned: HashMap::new(),
            object_bytes: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            floor,
            newest: watch::Sender::new(floor),
        })
    }

    fn floor(&self, resource: &str) -> Revision {
        self.resources.get(resource).map_or(self.opened, |r| r.floor)
    }

    /// Whether history after this revision is complete.
    fn check_reach(&self, resource: &str, asked: Revision) -> Result<(), Expired> {
        let oldest = self.floor(resource);
        if asked < oldest || asked > self.revision { Err(Expired { asked, oldest }) } else { Ok(()) }
    }
}

impl Resource {
    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&(namespace, name) as &dyn Named).map(|e| &e.0)
    }

    /// The objects of a scope, after a name.
    fn range(&self, scope: &Scope, after: Option<(&str, &str)>) -> impl Iterator<Item = &Arc<Object>> {
        let namespace = scope.namespace.as_deref();
        let first = (namespace.unwrap_or_default(), "");
        let from = match &after {
            Some(name) if *name >= first => Bound::Excluded(name as &dyn Named),
            _ => Bound::Included(&first as &dyn Named),
        };
        self.objects
            .range::<dyn Named, _>((from, Bound::Unbounded))
            .map(|e| &e.0)
            .take_while(move |o| namespace.is_none_or(|n| n == o.key.namespace))
    }

    fn since(&self, after: Revision) -> impl Iterator<Item = &Event> {
        let start = self.ring.partition_point(|e| e.revision <= after);
        self.ring.range(start..)
    }

    fn own(&mut self, object: &Arc<Object>) {
        for owner in object.meta.owners.iter().filter(|owner| owner.controller) {
            self.owned.entry(owner.uid.clone()).or_default().replace(Entry(object.clone()));
        }
    }

    fn disown(&mut self, object: &Object) {
        for owner in object.meta.owners.iter().filter(|owner| owner.controller) {
            if let Some(owned) = self.owned.get_mut(&owner.uid) {
                owned.remove(&name_of(object) as &dyn Named);
                if owned.is_empty() {
                    self.owned.remove(&owner.uid);
                }
            }
        }
    }

    fn apply(&mut self, event: Event) {
        if let Some(previous) = &event.previous {
            self.disown(previous);
        }
        match event.kind {
            EventKind::Put => {
                self.object_bytes += event.object.weight();
                self.own(&event.object);
                self.objects.replace(Entry(event.object.clone()));
            }
            EventKind::Deleted => {
                self.objects.remove(&name_of(&event.object) as &dyn Named);
            }
        }
        self.object_bytes -= event.previous.as_ref().map_or(0, |o| o.weight());
        self.ring_bytes += event.object.weight();
        self.ring.push_back(event);
        while self.ring.len() > RING_MIN && self.ring_bytes > RING_BYTES + self.object_bytes / 2 {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.object.weight();
            self.floor = oldest.revision;
        }
    }
}

/// What one transaction changes, decided but not visible yet.
pub(super) struct Staged {
    revision: Revision,
    events: Vec<Event>,
}

impl Staged {
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn committed(&self) -> Committed {
        let puts = self.events.iter().filter(|e| e.kind == EventKind::Put);
        Committed { revision: self.revision, objects: puts.map(|e| e.object.clone()).collect() }
    }
}

/// Decides a batch of transactions one after another, each seeing those before it.
pub(super) struct Staging<'a> {
    cache: &'a Cache,
    revision: Revision,
    changed: HashMap<Key, Option<Arc<Object>>>,
}

impl<'a> Staging<'a> {
    pub fn new(cache: &'a Cache) -> Staging<'a> {
        Staging { cache, revision: cache.revision(), changed: HashMap::new() }
    }

    /// The revision of the newest transaction staged (of the cache, if there is none).
    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn stage(&mut self, transaction: Prepared) -> Result<Staged, CommitError> {
        for check in &transaction.checks {
            let (key, holds): (_, fn(Option<Revision>, Revision) -> bool) = match check {
                Check::Absent(key) => (key, |found, _| found.is_none()),
                Check::Present(key) => (key, |found, _| found.is_some()),
                Check::Unchanged(key, _) => (key, |found, wanted| found == Some(wanted)),
            };
            let wanted = if let Check::Unchanged(_, revision) = check { *revision } else { 0 };
            let found = self.current(key).map(|o| o.revision);
            if !holds(found, wanted) {
                return Err(CommitError::Conflict { key: key.clone(), found });
            }
        }
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(transaction.writes.len());
        for write in transaction.writes {
            match write {
                PreparedWrite::Put(mut key, template, meta) => {
                    key.resource = self.cache.state_mut().resource(&key.resource).name.into();
                    let previous = self.current(&key);
                    let bytes = template.stamp(revision);
                    let object = Arc::new(Object { key, revision, bytes, meta });
                    events.push(Event { revision, kind: EventKind::Put, object, previous });
                }
                PreparedWrite::Delete(key) => {
                    let Some(previous) = self.current(&key) else { continue };
                    let object = Arc::new(previous.at(revision));
                    events.push(Event {
                        revision,
                        kind: EventKind::Deleted,
                        object,
                        previous: Some(previous),
                    });
                }
            }
        }
        if events.is_empty() {
            return Ok(Staged { revision: self.revision, events });
        }
        for event in &events {
            let now = (event.kind == EventKind::Put).then(|| event.object.clone());
            self.changed.insert(event.object.key.clone(), now);
        }
        self.revision = revision;
        Ok(Staged { revision, events })
    }

    fn current(&self, key: &Key) -> Option<Arc<Object>> {
        match self.changed.get(key) {
            Some(changed) => changed.clone(),
            None => self.cache.get(key),
        }
    }
}

/// An object ordered by namespace and name, which it is also found by: the names are held once.
struct Entry(Arc<Object>);

trait Named {
    fn names(&self) -> (&str, &str);
}

fn name_of(object: &Object) -> (&str, &str) {
    (&object.key.namespace, &object.key.name)
}

impl Named for Entry {
    fn names(&self) -> (&str, &str) {
        name_of(&self.0)
    }
}

impl Named for (&str, &str) {
    fn names(&self) -> (&str, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Named + 'a> for Entry {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

impl Ord for dyn Named + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.names().cmp(&other.names())
    }
}

impl PartialOrd for dyn Named + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.names() == other.names()
    }
}

impl Eq for dyn Named + '_ {}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.names().cmp(&other.names())
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.names() == other.names()
    }
}

impl Eq for Entry {}
