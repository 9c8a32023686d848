//! What can go wrong, in words for whoever operates the controller.

use std::path::PathBuf;

use super::model::{Key, Revision};

/// Why a database was not opened. It is left exactly as it was found.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: in use by another process; only one controller may run on a data directory", path = .0.display())]
    Locked(PathBuf),
    #[error(
        "{path}: damaged: {reason}; it was left untouched: restore a copy, or move it away to start empty",
        path = .path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: not a database of Berth; it was left untouched", path = .0.display())]
    Foreign(PathBuf),
    #[error(
        "{path}: written by a newer Berth (format {found}, this one reads up to {known}); it was left untouched: run that version or restore an older copy",
        path = .path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{path}: {reason}", path = .path.display())]
    Io { path: PathBuf, reason: String },
}

/// Why a transaction was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A check did not hold: nothing was written.
    #[error("{key} has changed")]
    Conflict {
        key: Key,
        /// What is there instead; None: nothing.
        found: Option<Revision>,
    },
    /// The store cannot write (now). Nothing is visible in memory; the reason is for a person.
    #[error("the store cannot write: {0}")]
    Unavailable(String),
}

/// The history that was asked for is gone (or lies in the future): list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    pub asked: Revision,
    /// What would have been possible.
    pub oldest: Revision,
}
