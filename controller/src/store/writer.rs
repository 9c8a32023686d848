//! The one writer: takes whatever transactions wait, decides them in order, puts them on disk together,
//! then makes them visible, then answers. While the disk is busy the next batch gathers: under load one
//! sync serves many writers, and a lone writer waits for nothing.
//!
//! Memory never shows what is not on disk. After a disk error the writers of that batch are refused, and
//! the next batch first finds out what the disk holds ([`Disk::recover`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::cache::{Cache, Staged, Staging};
use super::disk::Disk;
use super::error::CommitError;
use super::model::{Committed, Prepared};

/// Transactions put on disk together at most.
const BATCH: usize = 256;
/// Transactions waiting at most; more callers wait to be queued.
const QUEUE: usize = 256;

pub(super) type Answer = Result<Committed, CommitError>;

pub(super) enum Request {
    Write(Prepared, oneshot::Sender<Answer>),
    /// Copies the database into a file that is there and empty.
    Copy(PathBuf, oneshot::Sender<Result<(), String>>),
    /// Answered when the database is closed.
    Close(oneshot::Sender<()>),
}

pub(super) fn start(disk: Disk, cache: Arc<Cache>) -> std::io::Result<mpsc::Sender<Request>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = Writer::new(disk, cache);
    thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(receiver))?;
    Ok(sender)
}

pub(super) struct Writer {
    disk: Disk,
    cache: Arc<Cache>,
    /// The batch of which it is unknown whether it got onto the disk.
    doubt: Option<Vec<Staged>>,
}

impl Writer {
    pub fn new(disk: Disk, cache: Arc<Cache>) -> Writer {
        Writer { disk, cache, doubt: None }
    }

    #[cfg(test)]
    pub fn into_disk(self) -> Disk {
        self.disk
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut closing = None;
        let mut batch = Vec::new();
        let mut copies = Vec::new();
        while closing.is_none()
            && let Some(first) = requests.blocking_recv()
        {
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Write(transaction, answer) => batch.push((transaction, answer)),
                    Request::Copy(path, answer) => copies.push((path, answer)),
                    Request::Close(closed) => {
                        closing = Some(closed);
                        break;
                    }
                }
                next = if batch.len() < BATCH { requests.try_recv().ok() } else { None };
            }
            self.write(&mut batch);
            for (path, answer) in copies.drain(..) {
                let copied =
                    self.resolve_doubt().and_then(|()| self.disk.copy(&path).map_err(|e| e.to_string()));
                // Whoever asked may have gone.
                let _ = answer.send(copied);
            }
        }
        drop(self.disk);
        if let Some(closed) = closing {
            // Nobody waits any more: nothing to tell.
            let _ = closed.send(());
        }
    }

    pub fn write(&mut self, batch: &mut Vec<(Prepared, oneshot::Sender<Answer>)>) {
        if let Err(reason) = self.resolve_doubt() {
            return refuse(batch.drain(..).map(|(_, answer)| answer), &reason);
        }
        let mut staging = Staging::new(&self.cache);
        let mut staged = Vec::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        for (transaction, answer) in batch.drain(..) {
            match staging.stage(transaction) {
                Ok(change) => {
                    answers.push((answer, Ok(change.committed())));
                    staged.push(change);
                }
                // Told only after the commit: it may rest on a change of this very batch.
                Err(conflict) => answers.push((answer, Err(conflict))),
            }
        }
        let revision = staging.revision();
        if revision > self.cache.revision() {
            let events = staged.iter().flat_map(|change| change.events());
            if let Err(e) = self.disk.apply(events, revision) {
                error!(error = %e, "the store cannot write; writes are refused until it can");
                self.doubt = Some(staged);
                return refuse(answers.into_iter().map(|(answer, _)| answer), &e.to_string());
            }
            self.cache.publish(staged);
        }
        for (answer, result) in answers {
            // A caller that stopped waiting has given up the answer, not the write.
            let _ = answer.send(result);
        }
    }

    /// Before anything is decided, memory must be what is on disk.
    fn resolve_doubt(&mut self) -> Result<(), String> {
        let Some(doubt) = self.doubt.take() else { return Ok(()) };
        let newest = doubt.last().map_or(self.cache.revision(), Staged::revision);
        match self.disk.recover() {
            Ok(found) if found == self.cache.revision() => {
                info!(revision = found, "the store can be written again");
                Ok(())
            }
            Ok(found) if found == newest => {
                info!(revision = found, "the store can be written again; the last writes had been kept");
                self.cache.publish(doubt);
                Ok(())
            }
            Ok(found) => {
                self.doubt = Some(doubt);
                Err(format!("the database is at revision {found}: somebody else has written to it"))
            }
            Err(e) => {
                self.doubt = Some(doubt);
                Err(e.to_string())
            }
        }
    }
}

fn refuse(answers: impl Iterator<Item = oneshot::Sender<Answer>>, reason: &str) {
    for answer in answers {
        let _ = answer.send(Err(CommitError::Unavailable(reason.to_owned())));
    }
}
