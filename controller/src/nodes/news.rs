//! What happens in the store, read once and passed on to the sessions it concerns.
//!
//! ```text
//! store ─ watches ─▶ follow, once for all ─┬─ a record or a pod: the session of the node that holds (or held) the name
//!                                          ├─ a ConfigMap, a claim...: sessions that made an assignment of it
//!                                          └─ a Node: its own session
//! ```
//! With hundreds of sessions, anything that each of them does for each event is done for nobody. A letter says only
//! what to look at again; what is there now is read from the store by whoever gets it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use berth_controller_core::identity::{self, Record};
use berth_controller_core::resolve::Use;
use futures_util::{FutureExt as _, future};
use tokio::sync::Notify;

use super::lock;
use super::world::{self, Name};
use crate::store::{Event, EventKind, Expired, Key, Scope, Store, Watch};

/// What [`berth_controller_core::resolve`] looks up.
const SOURCES: [&str; 4] = ["configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes"];

/// Everything that any session depends on. Records come before pods: they say whom a pod concerns.
fn resources() -> impl Iterator<Item = &'static str> {
    [identity::RESOURCE, world::PODS, world::NODES, identity::RESTORE].into_iter().chain(SOURCES)
}

/// Passes on the news. Clones share it.
#[derive(Clone, Default)]
pub struct News(Arc<Mutex<Index>>);

#[derive(Default)]
struct Index {
    /// The newest session of each node.
    sessions: HashMap<String, Arc<Inbox>>,
    /// The node that holds a name, or held it last while there is a pod of that name.
    holders: HashMap<Name, String>,
    /// Whose assignments were made from what.
    users: HashMap<Use, BTreeSet<String>>,
}

#[derive(Default)]
struct Inbox {
    letters: Mutex<Letters>,
    wake: Notify,
}

/// What a session is to look at again.
#[derive(Debug, Default)]
pub struct Letters {
    pub names: BTreeSet<Name>,
    pub sources: BTreeSet<Use>,
    /// Its own Node.
    pub node: bool,
    /// All of it: what happened is not known in full.
    pub everything: bool,
}

impl Letters {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.sources.is_empty() && !self.node && !self.everything
    }
}

impl Inbox {
    fn put(&self, write: impl FnOnce(&mut Letters)) {
        write(&mut lock(&self.letters));
        self.wake.notify_one();
    }
}

/// A session's letters. Whatever happens after it was opened is in them.
pub struct Mail {
    news: News,
    node: String,
    inbox: Arc<Inbox>,
}

impl Mail {
    /// Waits until there are some. May be dropped at any time.
    pub async fn next(&self) -> Letters {
        loop {
            let letters = std::mem::take(&mut *lock(&self.inbox.letters));
            if !letters.is_empty() {
                return letters;
            }
            self.inbox.wake.notified().await;
        }
    }

    /// From now on this object's changes are wanted.
    pub fn follow(&self, source: Use) {
        lock(&self.news.0).users.entry(source).or_default().insert(self.node.clone());
    }

    /// They are not wanted any more.
    pub fn leave(&self, source: &Use) {
        let mut index = lock(&self.news.0);
        if let Some(nodes) = index.users.get_mut(source) {
            nodes.remove(&self.node);
            if nodes.is_empty() {
                index.users.remove(source);
            }
        }
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        let mut index = lock(&self.news.0);
        // The session that took over follows what it needs by itself.
        if index.sessions.get(&self.node).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            index.sessions.remove(&self.node);
            index.users.retain(|_, nodes| {
                nodes.remove(&self.node);
                !nodes.is_empty()
            });
        }
    }
}

impl News {
    /// The letters of a node's session, in place of those of the session before.
    pub fn open(&self, node: &str) -> Mail {
        let inbox = Arc::<Inbox>::default();
        lock(&self.0).sessions.insert(node.to_owned(), inbox.clone());
        Mail { news: self.clone(), node: node.to_owned(), inbox }
    }

    /// Follows the store, for ever.
    pub async fn follow(&self, store: &Store) {
        loop {
            let Ok(watches) = Watches::new(store) else { continue };
            self.begin(store);
            let Err(expired) = self.go_on(store, watches).await;
            tracing::debug!(%expired, "fell behind; every session looks at everything again");
        }
    }

    fn begin(&self, store: &Store) {
        let mut holders = HashMap::new();
        for pod in store.list(&Scope::all(world::PODS)).objects {
            if let Some(node) = pod.value()["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
                holders.insert(Name::of(&pod.key), node.to_owned());
            }
        }
        for record in store.list(&Scope::all(identity::RESOURCE)).objects {
            let node = Record::read(&record.value()).map(|record| record.node);
            holders.extend(node.map(|node| (Name::of(&record.key), node)));
        }
        let mut index = lock(&self.0);
        index.holders = holders;
        index.sessions.values().for_each(|inbox| inbox.put(|letters| letters.everything = true));
    }

    async fn go_on(&self, store: &Store, mut watches: Watches) -> Result<std::convert::Infallible, Expired> {
        loop {
            let events = watches.next().await?;
            let mut index = lock(&self.0);
            events.iter().for_each(|event| index.tell(event, store));
        }
    }
}

impl Index {
    fn tell(&mut self, event: &Event, store: &Store) {
        let key = &event.object.key;
        let gone = event.kind == EventKind::Deleted;
        match &*key.resource {
            identity::RESOURCE => {
                let name = Name::of(key);
                // Who loses a name has to hear of it as well as who gets it.
                self.tell_holder(&name);
                if !gone && let Some(record) = Record::read(&event.object.value()) {
                    let before = self.holders.insert(name.clone(), record.node.clone());
                    if before.as_ref() != Some(&record.node) {
                        self.tell_holder(&name);
                    }
                }
                if gone && store.get(&name.pod_key()).is_none() {
                    self.holders.remove(&name);
                }
            }
            world::PODS => {
                let name = Name::of(key);
                self.tell_holder(&name);
                if gone && store.get(&name.record_key()).is_none() {
                    self.holders.remove(&name);
                }
            }
            world::NODES => self.put(&key.name, |letters| letters.node = true),
            identity::RESTORE => {
                self.sessions.values().for_each(|inbox| inbox.put(|letters| letters.everything = true));
            }
            resource => {
                for resource in SOURCES.iter().filter(|source| **source == resource) {
                    let used = Use { resource, namespace: key.namespace.clone(), name: key.name.clone() };
                    for node in self.users.get(&used).into_iter().flatten() {
                        self.put(node, |letters| letters.sources.extend([used.clone()]));
                    }
                }
            }
        }
    }

    fn tell_holder(&self, name: &Name) {
        if let Some(node) = self.holders.get(name) {
            self.put(node, |letters| letters.names.extend([name.clone()]));
        }
    }

    fn put(&self, node: &str, write: impl FnOnce(&mut Letters)) {
        if let Some(inbox) = self.sessions.get(node) {
            inbox.put(write);
        }
    }
}

/// The key under which the store has it.
pub fn key_of(used: &Use) -> Key {
    Key::new(used.resource, &used.namespace, &used.name)
}

struct Watches {
    all: Vec<Watch>,
}

impl Watches {
    fn new(store: &Store) -> Result<Watches, Expired> {
        let now = store.revision();
        let all = resources().map(|resource| store.watch(&Scope::all(resource), now));
        Ok(Watches { all: all.collect::<Result<_, _>>()? })
    }

    /// All that has happened, once anything has; records first.
    async fn next(&mut self) -> Result<Vec<Event>, Expired> {
        let waiting = self.all.iter_mut().map(|watch| watch.next().boxed());
        let (first, of, _) = future::select_all(waiting).await;
        let mut events = Vec::new();
        let mut first = Some(first?.events);
        for (n, watch) in self.all.iter_mut().enumerate() {
            events.extend(first.take_if(|_| n == of).into_iter().flatten());
            while let Some(batch) = watch.poll()? {
                events.extend(batch.events);
            }
        }
        Ok(events)
    }
}
