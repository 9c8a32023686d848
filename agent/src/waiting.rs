//! `berth-agent wait-ready`: something of the host (a systemd unit, a script) waits for a pod.
//!
//! The agent listens on a socket in its run directory and says of a pod whether it is Ready, and again whenever
//! that changes. What it says comes from what this host knows: its own pods, and those of other hosts that a
//! Service selects. So it works while the controller is away. Nothing can be changed through this socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::network::Known;
use crate::notify::Changes;
use crate::pods::Pods;

const SOCKET: &str = "agent.sock";
/// Who waits at a time; more wait for their turn.
const WAITERS: usize = 256;
const LONGEST: u64 = 4 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    namespace: String,
    pod: String,
}

/// How a pod stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub ready: bool,
    /// In words.
    pub says: String,
}

impl Standing {
    pub(crate) fn ready(says: impl Into<String>) -> Standing {
        Standing { ready: true, says: says.into() }
    }

    pub(crate) fn not_ready(says: impl Into<String>) -> Standing {
        Standing { ready: false, says: says.into() }
    }
}

/// What answers.
#[derive(Clone)]
pub struct Answering {
    pub pods: Pods,
    pub network: Known,
}

impl Answering {
    /// Serves until `shutdown`. Only the run directory's owner can ask.
    pub async fn run(self, run_dir: PathBuf, shutdown: CancellationToken) {
        let (listener, _directory) = match bind(&run_dir) {
            Ok(bound) => bound,
            Err(error) => {
                tracing::warn!(run_dir = %run_dir.display(), %error, "wait-ready does not work: no socket");
                return;
            }
        };
        let turns = Arc::new(Semaphore::new(WAITERS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = async {
                    // Never closed: it lives as long as this function.
                    let turn = turns.clone().acquire_owned().await;
                    (turn, listener.accept().await)
                } => accepted,
            };
            match accepted {
                (Ok(turn), Ok((connection, _))) => {
                    let (answering, shutdown) = (self.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        // Whoever asked has gone: nobody to tell.
                        let _ = shutdown.run_until_cancelled(answering.answer(connection)).await;
                        drop(turn);
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "the agent's socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                (Err(_), _) => return,
            }
        }
    }

    async fn answer(&self, connection: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = connection.into_split();
        let mut reader = BufReader::new(reader.take(LONGEST));
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let Question { namespace, pod } = serde_json::from_str(&line)?;
        let (mut pods, mut network) = (self.pods.changes(), self.network.services());
        let mut said = None;
        let mut end = [0; 1];
        loop {
            pods.mark_unchanged();
            network.mark_unchanged();
            let standing = self.standing(&namespace, &pod);
            if said.as_ref() != Some(&standing) {
                let mut text = serde_json::to_string(&standing)?;
                text.push('\n');
                writer.write_all(text.as_bytes()).await?;
                said = Some(standing.clone());
            }
            if standing.ready {
                return Ok(());
            }
            tokio::select! {
                changed = pods.changed() => if changed.is_err() { return Ok(()) },
                changed = network.changed() => if changed.is_err() { return Ok(()) },
                // It says nothing more: this is its end.
                _ = reader.read(&mut end) => return Ok(()),
            }
        }
    }

    fn standing(&self, namespace: &str, pod: &str) -> Standing {
        if let Some(standing) = self.pods.standing(namespace, pod) {
            return standing;
        }
        let elsewhere = self.network.look(|view| {
            let services = view.services().filter(|(service_namespace, ..)| *service_namespace == namespace);
            let mut endpoints = services.filter_map(|(.., endpoints)| endpoints.get(pod));
            endpoints.next().map(|endpoint| (endpoint.ready, endpoint.node_name.clone()))
        });
        match elsewhere {
            Some((true, node)) => Standing::ready(format!("it is Ready on host {node}")),
            Some((false, node)) => Standing::not_ready(format!("it is not Ready on host {node}")),
            None => Standing::not_ready("it is not on this host, and no Service has it as an endpoint"),
        }
    }
}

/// The socket, there from the moment it can be connected to. The directory must stay open with it.
fn bind(run_dir: &Path) -> io::Result<(UnixListener, File)> {
    let directory = File::open(run_dir)?;
    let fresh = short(&directory, ".agent.sock.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, short(&directory, SOCKET))?;
    Ok((listener, directory))
}

/// A file of the directory by way of its descriptor: a socket's address holds some hundred bytes only.
fn short(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Whether an agent runs on this directory.
pub async fn answers(run_dir: &Path) -> bool {
    let Ok(directory) = File::open(run_dir) else { return false };
    UnixStream::connect(short(&directory, SOCKET)).await.is_ok()
}

/// Waits until a pod is Ready, also over restarts of the agent and until it first runs. `told` hears how it
/// stands meanwhile. The last word if it is not Ready in time.
pub async fn wait_ready(
    run_dir: &Path,
    namespace: &str,
    pod: &str,
    limit: Duration,
    mut told: impl FnMut(&str),
) -> Result<(), String> {
    let mut last = String::new();
    let mut hear = |says: &str| {
        if says != last {
            told(says);
            last = says.to_owned();
        }
    };
    let waiting = async {
        loop {
            let ended = attempt(run_dir, namespace, pod, &mut hear).await;
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(format!("waiting for the agent: {error}")),
            }
        }
    };
    let deadline = Instant::now().checked_add(limit);
    let waited = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, waiting).await,
        None => Ok(waiting.await),
    };
    waited.unwrap_or_else(|_| Err(format!("not within {limit:?}: {last}")))
}

/// One connection. False: try again, now.
async fn attempt(
    run_dir: &Path,
    namespace: &str,
    pod: &str,
    hear: &mut impl FnMut(&str),
) -> io::Result<bool> {
    // Watched before it is looked at, so that nothing is missed in between.
    let changes = Changes::new()?;
    let there = run_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    changes.watch(there)?;
    let connection = async {
        let directory = File::open(run_dir)?;
        UnixStream::connect(short(&directory, SOCKET)).await
    };
    let connection = match connection.await {
        Ok(connection) => connection,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        Err(_) => {
            hear("the agent does not run");
            // A directory that came between the look and the watch is seen the next time.
            if there == run_dir || !run_dir.is_dir() {
                changes.next().await;
            }
            return Ok(false);
        }
    };
    let (reader, mut writer) = connection.into_split();
    let question = Question { namespace: namespace.to_owned(), pod: pod.to_owned() };
    let asked = format!("{}\n", serde_json::to_string(&question)?);
    let mut lines = BufReader::new(reader).lines();
    if writer.write_all(asked.as_bytes()).await.is_ok() {
        while let Ok(Some(line)) = lines.next_line().await {
            let standing: Standing = serde_json::from_str(&line)?;
            hear(&standing.says);
            if standing.ready {
                return Ok(true);
            }
        }
    }
    // It has ended. Its successor puts a socket of its own there; should it already have, the look ahead of
    // the next wait finds it.
    hear("the agent does not run");
    Ok(false)
}

#[cfg(test)]
mod tests;
