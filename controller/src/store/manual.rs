//! A store whose writes happen one by one, when a test says so: all the code of the real one, without its
//! writer's thread. Each handle has a queue of its own, so that the test knows who wrote what.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::cache::Cache;
use super::disk::Disk;
use super::model::{Event, Prepared};
use super::writer::{Answer, Request, Writer};
use super::{CommitError, Store};

pub struct Manual {
    writer: Writer,
    cache: Arc<Cache>,
}

/// The writes that wait behind one handle.
pub struct Waiting(mpsc::Receiver<Request>);

/// One of them.
pub struct Waits {
    transaction: Prepared,
    answer: oneshot::Sender<Answer>,
}

impl Manual {
    pub fn new() -> Manual {
        Manual::on(Disk::in_memory().unwrap().0)
    }

    fn on(disk: Disk) -> Manual {
        let (objects, revision) = disk.content().unwrap();
        let cache = Arc::new(Cache::new(revision));
        objects.into_iter().for_each(|object| cache.load(object));
        Manual { writer: Writer::new(disk, cache.clone()), cache }
    }

    /// What another process would find: the objects as SQLite has them, and no history. Earlier handles are
    /// dead.
    pub fn reopened(self) -> Manual {
        Manual::on(self.writer.into_disk())
    }

    pub fn handle(&self) -> (Store, Waiting) {
        let (queue, waiting) = mpsc::channel(1024);
        (Store { cache: self.cache.clone(), queue }, Waiting(waiting))
    }

    /// Every watch that has not seen all there is finds that it has expired.
    pub fn forget_history(&self) {
        self.cache.forget_history();
    }

    /// Decides and writes it, and lets its writer know (`heard`), or find that the store did not answer in
    /// time. What has changed.
    pub fn carry_out(&mut self, waits: Waits, heard: bool) -> Vec<Event> {
        let Waits { transaction, answer } = waits;
        let before = self.cache.revision();
        let (own, mut done) = oneshot::channel();
        self.writer.write(&mut vec![(transaction, own)]);
        let decided = done.try_recv().expect("the writer has answered");
        let written = match &decided {
            Ok(committed) if committed.revision > before => self.cache.written_at(committed.revision),
            _ => Vec::new(),
        };
        let unheard = Err(CommitError::Unavailable("the disk does not answer in time".to_owned()));
        // Whoever asked may have stopped waiting.
        let _ = answer.send(if heard { decided } else { unheard });
        written
    }
}

impl Waiting {
    pub fn next(&mut self) -> Option<Waits> {
        match self.0.try_recv().ok()? {
            Request::Write(transaction, answer) => Some(Waits { transaction, answer }),
            Request::Close(_) | Request::Copy(..) => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Waits {
    /// Nothing is written.
    pub fn refuse(self, why: CommitError) {
        let _ = self.answer.send(Err(why));
    }

    /// As if somebody else had just changed what it rests on.
    pub fn conflict(self) {
        let key = self.transaction.checks.first().map(|check| match check {
            super::Check::Absent(key) | super::Check::Present(key) | super::Check::Unchanged(key, _) => {
                key.clone()
            }
        });
        match key {
            Some(key) => self.refuse(CommitError::Conflict { key, found: None }),
            None => self.refuse(CommitError::Unavailable("on purpose".to_owned())),
        }
    }
}
