//! What outlives the agent: which lives of which pods this host holds, how far they are, and the highest
//! epoch seen of each name. One small file, replaced as a whole and fsynced; writes that come while one is
//! under way share the next.
//!
//! It must never hold a Secret volume's content, and never be half-written.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_agent_core::{Fence, Remembered};
use berth_proto::volume::Source;
use berth_proto::{Assignment, PodStatus};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

/// The format this agent writes. A newer one is refused, not guessed at.
const FORMAT: u32 = 1;
/// What need not be on disk at once is gathered for this long.
const LEISURE: Duration = Duration::from_millis(500);

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
    /// The file is damaged.
    #[error(
        "{path} is damaged ({cause}). Move it away to start without it: pods that run here are then stopped and assigned anew"
    )]
    Damaged { path: PathBuf, cause: String },
    /// A newer agent wrote it.
    #[error("{path} has format {found}, this agent knows up to {FORMAT}: run a newer agent")]
    Newer { path: PathBuf, found: u32 },
    /// Not written in time.
    #[error("the agent's state cannot be written: {0}")]
    NotWritten(String),
}

/// One pod as it is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Without the contents of its files.
    pub assignment: Assignment,
    pub remembered: Remembered,
    /// The last one published.
    pub status: Option<PodStatus>,
}

/// The state file. A cheap handle.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    content: Mutex<Content>,
    signals: Arc<Signals>,
    written: watch::Sender<Written>,
}

/// What wakes the writer; apart, so that waiting does not keep the state alive.
#[derive(Default)]
struct Signals {
    changed: Notify,
    hurry: Notify,
}

#[derive(Default)]
struct Content {
    boot: String,
    fence: Vec<SeenEpoch>,
    pods: BTreeMap<String, Saved>,
    version: u64,
}

#[derive(Clone, Default)]
struct Written {
    version: u64,
    /// Why the last try failed.
    trouble: Option<String>,
}

#[derive(Deserialize)]
struct File {
    /// The machine's boot id: what ran in another boot runs no more.
    boot: String,
    #[serde(default)]
    seen: Vec<SeenEpoch>,
    #[serde(default)]
    pods: BTreeMap<String, Saved>,
}

/// [`File`], to be written.
#[derive(Serialize)]
struct Borrowed<'a> {
    format: u32,
    boot: &'a str,
    seen: &'a [SeenEpoch],
    pods: &'a BTreeMap<String, Saved>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SeenEpoch {
    namespace: String,
    name: String,
    epoch: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Saved {
    /// protobuf, base64.
    assignment: String,
    remembered: Remembered,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    status: String,
}

/// What [`State::open`] found.
pub struct Opened {
    pub state: State,
    pub fence: Fence,
    pub pods: Vec<Record>,
    /// The host has been rebooted since the state was written.
    pub rebooted: bool,
}

impl State {
    /// Reads the state and starts its writer (in the current tokio runtime).
    pub async fn open(path: PathBuf) -> Result<Opened, StateError> {
        let read = tokio::task::spawn_blocking({
            let path = path.clone();
            move || read(&path)
        });
        let file = read.await.unwrap_or_else(|panic| {
            Err(StateError::Damaged { path: path.clone(), cause: panic.to_string() })
        })?;
        let boot = boot_id();
        let rebooted = !file.boot.is_empty() && file.boot != boot;
        let mut pods = Vec::new();
        for saved in file.pods.values() {
            pods.push(saved.record().map_err(|cause| StateError::Damaged { path: path.clone(), cause })?);
        }
        let seen = file.seen.iter().map(|s| ((s.namespace.clone(), s.name.clone()), s.epoch));
        let fence = Fence::restore(seen);
        let content = Content { boot, fence: file.seen, pods: file.pods, version: 0 };
        let shared = Arc::new(Shared {
            path,
            content: Mutex::new(content),
            signals: Arc::default(),
            written: watch::Sender::new(Written::default()),
        });
        tokio::spawn(write_on_change(shared.signals.clone(), Arc::downgrade(&shared)));
        Ok(Opened { state: State { shared }, fence, pods, rebooted })
    }

    /// Keeps a pod. `urgent`: it is about to be acted on; see [`Ticket`].
    pub fn put(&self, uid: &str, record: &Record, urgent: bool) -> Ticket {
        let saved = Saved::of(record);
        self.change(urgent, |content| {
            content.pods.insert(uid.to_owned(), saved);
        })
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        self.change(false, |content| {
            content.pods.remove(uid);
        });
    }

    /// Keeps the epochs seen.
    pub fn put_fence(&self, fence: &Fence) {
        let seen = fence.seen().map(|((namespace, name), epoch)| SeenEpoch {
            namespace: namespace.clone(),
            name: name.clone(),
            epoch: *epoch,
        });
        let seen: Vec<SeenEpoch> = seen.collect();
        self.change(true, |content| content.fence = seen);
    }

    fn change(&self, urgent: bool, change: impl FnOnce(&mut Content)) -> Ticket {
        let version = {
            let mut content = self.shared.lock();
            change(&mut content);
            content.version += 1;
            content.version
        };
        self.shared.signals.changed.notify_one();
        if urgent {
            self.shared.signals.hurry.notify_one();
        }
        Ticket { version, written: self.shared.written.subscribe() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The writer finds that nobody holds the state any more.
        self.signals.changed.notify_one();
    }
}

/// A promise that something will be on disk.
#[derive(Clone)]
pub struct Ticket {
    version: u64,
    written: watch::Receiver<Written>,
}

impl Ticket {
    /// Waits until it is on disk, at most `limit`.
    pub async fn durable(mut self, limit: Duration) -> Result<(), StateError> {
        let version = self.version;
        let wait = self.written.wait_for(|written| written.version >= version);
        let waited = match tokio::time::timeout(limit, wait).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => "the agent is ending".to_owned(),
            Err(_) => format!("not done after {limit:?}"),
        };
        let trouble = self.written.borrow().trouble.clone();
        Err(StateError::NotWritten(trouble.unwrap_or(waited)))
    }
}

impl Saved {
    fn of(record: &Record) -> Saved {
        let mut assignment = record.assignment.clone();
        for volume in &mut assignment.volumes {
            if let Some(Source::Files(files)) = &mut volume.source {
                for file in &mut files.files {
                    file.content.clear();
                }
            }
        }
        let status = record.status.as_ref().map(|status| BASE64.encode(status.encode_to_vec()));
        Saved {
            assignment: BASE64.encode(assignment.encode_to_vec()),
            remembered: record.remembered.clone(),
            status: status.unwrap_or_default(),
        }
    }

    fn record(&self) -> Result<Record, String> {
        let bytes = BASE64.decode(self.assignment.as_bytes()).map_err(|e| e.to_string())?;
        let assignment = Assignment::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
        let status = match self.status.is_empty() {
            true => None,
            false => {
                let bytes = BASE64.decode(self.status.as_bytes()).map_err(|e| e.to_string())?;
                Some(PodStatus::decode(bytes.as_slice()).map_err(|e| e.to_string())?)
            }
        };
        Ok(Record { assignment, remembered: self.remembered.clone(), status })
    }
}

fn read(path: &Path) -> Result<File, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(File { boot: String::new(), seen: Vec::new(), pods: BTreeMap::new() });
        }
        Err(cause) => return Err(StateError::Io { path: path.to_owned(), cause }),
    };
    #[derive(Deserialize)]
    struct Header {
        format: u32,
    }
    let damaged =
        |cause: serde_json::Error| StateError::Damaged { path: path.to_owned(), cause: cause.to_string() };
    let header: Header = serde_json::from_slice(&bytes).map_err(damaged)?;
    if header.format > FORMAT {
        return Err(StateError::Newer { path: path.to_owned(), found: header.format });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

/// Writes whatever has changed, one write at a time, until the state is dropped. What cannot be written is
/// tried again every second: the ones waiting say so.
async fn write_on_change(signals: Arc<Signals>, shared: std::sync::Weak<Shared>) {
    let mut done = 0;
    loop {
        match shared.upgrade() {
            None => return,
            Some(state) if state.lock().version == done => {
                drop(state);
                signals.changed.notified().await;
                continue;
            }
            Some(_) => {}
        }
        let _ = tokio::time::timeout(LEISURE, signals.hurry.notified()).await;
        let Some(state) = shared.upgrade() else { return };
        let (bytes, version) = {
            let content = state.lock();
            let file =
                Borrowed { format: FORMAT, boot: &content.boot, seen: &content.fence, pods: &content.pods };
            (serde_json::to_vec(&file), content.version)
        };
        let path = state.path.clone();
        let write = tokio::task::spawn_blocking(move || {
            let bytes = bytes.map_err(std::io::Error::other)?;
            replace(&path, &bytes)
        });
        let outcome = write.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
        match outcome {
            Ok(()) => {
                done = version;
                state.written.send_replace(Written { version, trouble: None });
            }
            Err(error) => {
                let trouble = format!("{}: {error}", state.path.display());
                tracing::warn!(%trouble, "the agent's state cannot be written");
                state.written.send_modify(|written| written.trouble = Some(trouble));
                drop(state);
                tokio::time::sleep(Duration::from_secs(1)).await;
                signals.hurry.notify_one();
            }
        }
    }
}

/// Replaces a file: it holds the old content or the new, whatever happens.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let fresh = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    std::fs::File::open(directory)?.sync_all()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::{File as Content, Files, PodRef, Volume};
    use std::os::unix::fs::PermissionsExt;

    fn record(uid: &str) -> Record {
        let file = Content { path: "password".into(), content: b"hunter2".to_vec(), mode: 0o600 };
        let source = Some(Source::Files(Files { files: vec![file], secret: true }));
        Record {
            assignment: Assignment {
                pod: Some(PodRef { uid: uid.into(), epoch: 4, ..PodRef::default() }),
                volumes: vec![Volume { name: "secret".into(), source, ..Volume::default() }],
                ..Assignment::default()
            },
            remembered: Remembered { finished: true, ..Remembered::default() },
            status: Some(PodStatus { phase: "Running".into(), ..PodStatus::default() }),
        }
    }

    #[tokio::test]
    async fn what_is_durable_is_read_back_without_the_content_of_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let opened = State::open(path.clone()).await.unwrap();
        assert!(opened.pods.is_empty() && !opened.rebooted);
        let mut fence = Fence::default();
        fence.admit(record("a").assignment.pod.as_ref().unwrap(), []);
        opened.state.put_fence(&fence);
        opened.state.put("a", &record("a"), true).durable(Duration::from_secs(5)).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&BASE64.encode("hunter2")) && !text.contains("hunter2"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = State::open(path).await.unwrap();
        assert_eq!(again.fence, fence);
        assert_eq!(again.pods.len(), 1);
        assert_eq!(again.pods[0].remembered, record("a").remembered);
        assert_eq!(again.pods[0].status, record("a").status);
    }

    #[tokio::test]
    async fn a_damaged_or_newer_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::fs::write(&path, "{\"format\":1,\"bo").unwrap();
        assert!(matches!(State::open(path.clone()).await, Err(StateError::Damaged { .. })));
        std::fs::write(&path, "{\"format\":99}").unwrap();
        assert!(matches!(State::open(path).await, Err(StateError::Newer { found: 99, .. })));
    }

    #[tokio::test]
    async fn a_state_of_another_boot_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::fs::write(&path, "{\"format\":1,\"boot\":\"another\"}").unwrap();
        assert!(State::open(path).await.unwrap().rebooted);
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_told_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let opened = State::open(gone.join("state.json")).await.unwrap();
        let ticket = opened.state.put("a", &record("a"), true);
        let refused = ticket.clone().durable(Duration::from_millis(200)).await.unwrap_err();
        assert!(refused.to_string().contains("No such file"), "{refused}");
        std::fs::create_dir(&gone).unwrap();
        ticket.durable(Duration::from_secs(10)).await.unwrap();
    }
}
