//! The kernel's notices that files have changed (inotify), awaited.
//!
//! A notice says only that something may have changed: who waits looks at the state itself, before waiting (with
//! the watch already in place) and after.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

/// Changes of files and directories since [`Changes::watch`].
pub(crate) struct Changes {
    inotify: Inotify,
    ready: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Watches nothing yet. Needs a tokio runtime.
    pub fn new() -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let own = std::os::fd::AsFd::as_fd(&inotify).try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by the AsyncFd, and is what it was for as long as that lives.
        #[allow(unsafe_code)]
        let ready = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
        Ok(Changes { inotify, ready })
    }

    /// Watches a file's content, or a directory's entries.
    pub fn watch(&self, path: &Path) -> io::Result<()> {
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        self.inotify.add_watch(path, events)?;
        Ok(())
    }

    /// Waits until something has changed. Cancel-safe.
    pub async fn next(&self) {
        let Ok(mut guard) = self.ready.readable().await else { return };
        // What they say does not matter; they only must not be there the next time.
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        guard.clear_ready();
    }
}
