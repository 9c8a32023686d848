//! The host's view of the network, shared by all who need it: names, routes, service rules. Kept in memory,
//! and in a file so that an agent that starts while the controller is away goes on as before.
//!
//! The file is a convenience: a damaged one is left out, since the controller says everything again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use berth_agent_core::network::{Changed, View};
use berth_proto::{NetworkUpdate, Welcome};
use bytes::Buf;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What comes within this time is written at once. Nothing waits for the file.
const LEISURE: Duration = Duration::from_secs(1);
/// What the file begins with; a newer format begins with something else.
const MAGIC: &[u8] = b"berth-network-1\n";

/// The view. A cheap handle.
#[derive(Clone)]
pub struct Known {
    shared: Arc<Shared>,
}

struct Shared {
    /// The last Welcome, which `view` has taken over, for the file.
    state: RwLock<(Welcome, View)>,
    peers: watch::Sender<u64>,
    services: watch::Sender<u64>,
}

impl Known {
    /// Nothing is known, and nothing is kept.
    pub fn empty() -> Known {
        Known::with(Welcome::default(), View::default())
    }

    fn with(welcome: Welcome, view: View) -> Known {
        let shared = Shared {
            state: RwLock::new((welcome, view)),
            peers: watch::Sender::new(0),
            services: watch::Sender::new(0),
        };
        Known { shared: Arc::new(shared) }
    }

    /// As it was before, from the file. Blocks.
    pub fn load(path: &Path) -> Known {
        let read = match std::fs::read(path) {
            Ok(bytes) => decode(&bytes).ok_or_else(|| "it is damaged, or of a newer agent".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Known::empty(),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok((welcome, picture)) => {
                let mut view = View::default();
                view.welcome(&welcome);
                view.apply(picture);
                Known::with(welcome, view)
            }
            Err(cause) => {
                tracing::warn!(path = %path.display(), cause, "what was known of the network is not taken up");
                Known::empty()
            }
        }
    }

    /// Keeps the file up to date until `shutdown`.
    pub async fn keep(self, path: PathBuf, shutdown: CancellationToken) {
        let (mut peers, mut services) = (self.shared.peers.subscribe(), self.shared.services.subscribe());
        // What was changed before this task began is news too.
        let mut seen = (0, 0);
        let mut told = String::new();
        loop {
            let now = (*peers.borrow_and_update(), *services.borrow_and_update());
            if now == seen {
                tokio::select! {
                    _ = peers.changed() => {}
                    _ = services.changed() => {}
                    () = shutdown.cancelled() => return,
                }
                continue;
            }
            // On the way out what came last is still written.
            tokio::select! {
                () = tokio::time::sleep(LEISURE) => {}
                () = shutdown.cancelled() => {}
            }
            seen = (*peers.borrow_and_update(), *services.borrow_and_update());
            let (known, to) = (self.clone(), path.clone());
            let write = tokio::task::spawn_blocking(move || replace(&to, &known.encode()));
            let outcome = write.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
            if let Err(error) = outcome {
                let cause = error.to_string();
                if cause != told {
                    tracing::warn!(path = %path.display(), cause, "what is known of the network is not kept");
                    told = cause;
                }
            }
        }
    }

    /// A session is open.
    pub fn welcome(&self, welcome: &Welcome) {
        let changed = {
            let mut state = self.write();
            state.0.clone_from(welcome);
            state.1.welcome(welcome)
        };
        self.tell(changed);
    }

    /// Takes over what the controller says.
    pub fn apply(&self, update: NetworkUpdate) {
        let changed = self.write().1.apply(update);
        self.tell(changed);
    }

    /// Looks at the view; whoever holds this holds up whoever changes it.
    pub fn look<T>(&self, at: impl FnOnce(&View) -> T) -> T {
        at(&self.read().1)
    }

    /// Told when hosts or ranges change.
    pub fn peers(&self) -> watch::Receiver<u64> {
        self.shared.peers.subscribe()
    }

    /// Told when Services or what is behind them changes.
    pub fn services(&self) -> watch::Receiver<u64> {
        self.shared.services.subscribe()
    }

    fn tell(&self, changed: Changed) {
        for (changed, sender) in
            [(changed.peers, &self.shared.peers), (changed.services, &self.shared.services)]
        {
            if changed {
                sender.send_modify(|version| *version += 1);
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        let state = self.read();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(state.0.encode_length_delimited_to_vec());
        bytes.extend(state.1.picture().encode_length_delimited_to_vec());
        bytes
    }

    fn read(&self) -> RwLockReadGuard<'_, (Welcome, View)> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, (Welcome, View)> {
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(bytes: &[u8]) -> Option<(Welcome, NetworkUpdate)> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let welcome = Welcome::decode_length_delimited(&mut rest).ok()?;
    let picture = NetworkUpdate::decode_length_delimited(&mut rest).ok()?;
    (!rest.has_remaining()).then_some((welcome, picture))
}

/// The old content or the new, also after a crash of the agent; after one of the machine nothing of it counts.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::Peer;

    fn update(complete: bool, names: &[&str]) -> NetworkUpdate {
        let peer = |name: &&str| Peer { node_name: (*name).to_owned(), ..Peer::default() };
        NetworkUpdate {
            reset: true,
            complete,
            peers: names.iter().map(peer).collect(),
            ..NetworkUpdate::default()
        }
    }

    #[tokio::test]
    async fn what_was_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network");
        let known = Known::load(&path);
        let shutdown = CancellationToken::new();
        let keeping = tokio::spawn(known.clone().keep(path.clone(), shutdown.clone()));
        known.welcome(&Welcome { cluster_domain: "cluster.local".into(), ..Welcome::default() });
        known.apply(update(true, &["a", "b"]));
        // Nothing that was said is lost on the way out.
        shutdown.cancel();
        keeping.await.unwrap();
        let again = Known::load(&path);
        again.look(|view| {
            assert_eq!(view.peers().len(), 2);
            assert_eq!(view.settings().cluster_domain, "cluster.local");
        });
        // And a new session's picture replaces it.
        again.apply(update(true, &["b"]));
        assert_eq!(again.look(|view| view.peers().len()), 1);
    }

    #[test]
    fn a_damaged_file_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network");
        for bytes in [&b""[..], b"berth-network-1\n", b"berth-network-2\nx", b"berth-network-1\n\0\x05ab"] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Known::load(&path).look(|view| view.peers().len()), 0);
        }
    }
}
