//! The revisioned object store (DESIGN D9): key/value, one increasing revision, compare-and-swap, watch
//! from a revision. Reads and watches are answered from memory; a write is answered only after it is on
//! disk and memory shows it, so nobody ever acts on a state older than their own write.
//!
//! The store knows nothing of kinds: an object is JSON with `metadata`, of which it reads the few fields
//! in [`Meta`] and writes one, `metadata.resourceVersion`.

mod cache;
mod disk;
mod error;
#[cfg(test)]
pub(crate) mod manual;
mod model;
#[cfg(test)]
mod tests;
mod watch;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use error::{CommitError, Expired, OpenError};
pub use model::{
    Batch, Check, Committed, Event, EventKind, Key, Labels, List, Meta, Object, Owner, Revision, Scope,
    Transaction, Write,
};
pub use watch::Watch;

use cache::Cache;
use disk::Disk;
use writer::Request;

/// A disk that takes longer is as good as none; the write may still be carried out.
const PATIENCE: Duration = Duration::from_secs(30);

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Store {
    cache: Arc<Cache>,
    queue: mpsc::Sender<Request>,
}

impl Store {
    /// Opens the database at `path`, made if absent (its directory must exist).
    ///
    /// Nothing is ever overwritten: a file that is no database of ours, is damaged, was written by a newer
    /// Berth, or is in use by another process is refused with the reason.
    pub fn open(path: &Path) -> Result<Store, OpenError> {
        let mut objects = Vec::new();
        let (disk, revision) = Disk::open(path, |object| objects.push(object))?;
        let cache = Cache::new(revision);
        objects.into_iter().for_each(|object| cache.load(object));
        Store::start(disk, cache).map_err(|e| OpenError::Io { path: path.to_owned(), reason: e.to_string() })
    }

    /// A store that is gone with its last handle: for tests.
    pub fn in_memory() -> Result<Store, OpenError> {
        let (disk, revision) = Disk::in_memory()?;
        Store::start(disk, Cache::new(revision))
            .map_err(|e| OpenError::Io { path: ":memory:".into(), reason: e.to_string() })
    }

    fn start(disk: Disk, cache: Cache) -> std::io::Result<Store> {
        let cache = Arc::new(cache);
        let queue = writer::start(disk, cache.clone())?;
        Ok(Store { cache, queue })
    }

    /// Copies everything that was written before into a file that is there and empty, as a database of its own.
    /// Writes wait meanwhile.
    pub async fn copy(&self, path: &Path) -> Result<(), String> {
        let (answer, wait) = oneshot::channel();
        let closed = || "the store is shutting down".to_owned();
        self.queue.send(Request::Copy(path.to_owned(), answer)).await.map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
    }

    /// Carries out what is queued, then closes the database. Later writes are refused; reads go on.
    pub async fn close(&self) {
        let (closed, wait) = oneshot::channel();
        if self.queue.send(Request::Close(closed)).await.is_ok() {
            // An error means that it is closed already.
            let _ = timeout(PATIENCE, wait).await;
        }
    }

    /// Applies a transaction and answers once it is on disk and visible to every reader and watcher.
    /// A write that was begun is carried out even if the caller stops waiting.
    pub async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        self.write(transaction).await.map(|done| done.revision)
    }

    /// As [`Store::commit`], with the objects as they were written.
    pub async fn write(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        let closed = || CommitError::Unavailable("it is shutting down".to_owned());
        let prepared = model::Prepared::new(transaction)?;
        let (answer, wait) = oneshot::channel();
        let written = timeout(PATIENCE, async {
            self.queue.send(Request::Write(prepared, answer)).await.map_err(|_| closed())?;
            wait.await.map_err(|_| closed())?
        });
        written
            .await
            .unwrap_or_else(|_| Err(CommitError::Unavailable("the disk does not answer in time".to_owned())))
    }

    /// The object as last written.
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.cache.get(key)
    }

    /// All objects of a scope at one revision, ordered by namespace and name.
    pub fn list(&self, scope: &Scope) -> List {
        self.cache.list(scope)
    }

    /// The objects of a namespace that the controller with this uid owns, and those whose names begin with `prefix`;
    /// ordered by name. Costs what it finds, however many others there are.
    pub fn kin(&self, resource: &str, namespace: &str, owner: &str, prefix: &str) -> Vec<Arc<Object>> {
        self.cache.kin(resource, namespace, owner, prefix)
    }

    /// One page: up to `limit` objects after `after` (namespace, name; None: from the start), as they were
    /// at revision `at` (None: now). The list's `remaining` says how many follow. A page of an older
    /// revision is exact as long as history reaches back to it; after that it is [`Expired`].
    pub fn list_page(
        &self,
        scope: &Scope,
        at: Option<Revision>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<List, Expired> {
        self.cache.list_page(scope, at, after, limit)
    }

    /// The revision of the newest write; never goes back, also over restarts.
    pub fn revision(&self) -> Revision {
        self.cache.revision()
    }

    /// The revision of the newest change of a kind of object.
    pub fn newest(&self, resource: &str) -> Revision {
        self.cache.newest(resource)
    }

    /// The oldest revision that a watch of this scope may start after.
    pub fn oldest(&self, scope: &Scope) -> Revision {
        self.cache.oldest(scope)
    }

    /// Everything that happens in a scope after a revision, in order, each once.
    ///
    /// [`Expired`] if history does not reach back so far (it does not outlive the process, and is bounded),
    /// or if the revision was never reached: the caller lists again.
    pub fn watch(&self, scope: &Scope, after: Revision) -> Result<Watch, Expired> {
        Watch::new(self.cache.clone(), scope.clone(), after)
    }
}
