//! One server's lane: what is asked of it, by child processes that may hang.
//!
//! ```text
//! caller ─▶ job by key ─▶ permit ─▶ child ─▶ answer ─▶ everybody who asked for the same
//!                                     └ silent ─▶ killed ─▶ (told at once) ─▶ gone, at last: the permit is free
//! ```
//! A child that cannot even be killed, since it waits in the kernel for a dead server, keeps its permit and its key:
//! nothing is started beside it, however often it is asked for. So a dead server costs a few processes, and no other
//! server notices.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_agent_core::Time;
use berth_agent_core::server::{Change, Server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::super::worker::Reply;

/// Children at work for one server, at most: a slow directory must not hold up the others of its server.
const TOGETHER: usize = 4;
/// The most of a child's words.
const WORDS: u64 = 64 << 10;

/// What a child is to do.
pub struct Job {
    /// Two jobs of the same key are one.
    pub key: String,
    pub command: Command,
    /// For its standard input.
    pub input: Vec<u8>,
    /// A child that says nothing for so long is killed.
    pub silence: Duration,
    /// It speaks the worker's language; otherwise its exit status and words are all it says.
    pub worker: bool,
    /// It need not wait for the others.
    pub urgent: bool,
    /// Whether that answer came from the server. Much is answered by this host alone, out of what it remembers.
    pub proof: fn(&Reply) -> bool,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum Ended {
    Answer(Reply),
    /// No answer came: since when the server has not answered.
    Silent {
        since: Time,
    },
    /// The child could not be started or broke.
    Broken(String),
}

#[derive(Clone, Debug)]
enum State {
    Running,
    /// Told; the child may still be there.
    Ended(Ended),
}

pub struct Lane {
    permits: Arc<Semaphore>,
    jobs: Mutex<HashMap<String, watch::Receiver<State>>>,
    health: watch::Sender<Server>,
    now: Arc<dyn Fn() -> Time + Send + Sync>,
    changed: Arc<dyn Fn(Change) + Send + Sync>,
}

impl Lane {
    /// `changed` is called when the server falls silent or is back.
    pub fn new(
        now: Arc<dyn Fn() -> Time + Send + Sync>,
        changed: impl Fn(Change) + Send + Sync + 'static,
    ) -> Arc<Lane> {
        Arc::new(Lane {
            permits: Arc::new(Semaphore::new(TOGETHER)),
            jobs: Mutex::default(),
            health: watch::Sender::new(Server::default()),
            now,
            changed: Arc::new(changed),
        })
    }

    /// Since when the server has not answered.
    pub fn silent(&self) -> Option<Time> {
        self.health.borrow().silent()
    }

    /// Waits for the job, for as long as that takes; true: somebody else had begun it before. Dropped, the job goes on.
    pub async fn run(self: &Arc<Self>, job: Job) -> (Ended, bool) {
        let (mut state, joined) = {
            let mut jobs = self.jobs();
            match jobs.get(&job.key) {
                Some(state) => (state.clone(), true),
                None => {
                    let (sender, state) = watch::channel(State::Running);
                    jobs.insert(job.key.clone(), state.clone());
                    tokio::spawn(self.clone().conduct(job, sender));
                    (state, false)
                }
            }
        };
        let ended = match state.wait_for(|state| matches!(state, State::Ended(_))).await.as_deref() {
            Ok(State::Ended(ended)) => ended.clone(),
            _ => Ended::Broken("the agent is ending".to_owned()),
        };
        (ended, joined)
    }

    async fn conduct(self: Arc<Self>, job: Job, state: watch::Sender<State>) {
        let asked = (self.now)();
        let key = job.key.clone();
        let _gone = Forget { lane: &self, key };
        let tell = |ended: Ended| drop(state.send_replace(State::Ended(ended)));
        let permit = match job.urgent {
            true => None,
            false => match timeout(job.silence, self.permits.clone().acquire_owned()).await {
                Ok(permit) => permit.ok(),
                // Those before it hang.
                Err(_) => return tell(self.unanswered(asked)),
            },
        };
        let mut command = job.command;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(false);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let program = command.as_std().get_program().to_string_lossy().into_owned();
                return tell(Ended::Broken(format!("{program}: {error}")));
            }
        };
        let begun = (self.now)();
        match converse(&mut child, job.input, job.silence, job.worker).await {
            Some(ended) => {
                match &ended {
                    Ended::Answer(reply) if no_way(&reply.error) => drop(self.unanswered(begun)),
                    Ended::Answer(reply) if (job.proof)(reply) => self.answered(),
                    _ => {}
                }
                tell(ended);
            }
            None => {
                // It may not even hear this before the server answers.
                let _ = child.start_kill();
                tell(self.unanswered(begun));
            }
        }
        let _ = child.wait().await;
        drop(permit);
    }

    fn answered(&self) {
        self.change(|server, now| server.answered(now));
    }

    fn unanswered(&self, asked: Time) -> Ended {
        self.change(|server, _| server.unanswered(asked));
        Ended::Silent { since: self.silent().unwrap_or(asked) }
    }

    fn change(&self, change: impl FnOnce(&mut Server, Time) -> Option<Change>) {
        let now = (self.now)();
        let mut news = None;
        self.health.send_modify(|server| news = change(server, now));
        if let Some(news) = news {
            (self.changed)(news);
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<State>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Forget<'a> {
    lane: &'a Lane,
    key: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.lane.jobs().remove(&self.key);
    }
}

/// The child's answer; None: it has been silent for too long.
async fn converse(child: &mut Child, input: Vec<u8>, silence: Duration, worker: bool) -> Option<Ended> {
    if let Some(mut stdin) = child.stdin.take() {
        // A request is smaller than a pipe; what is not read is told by the child's end.
        let _ = timeout(silence, stdin.write_all(&input)).await;
    }
    let errors = child.stderr.take().map(|stderr| {
        tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = stderr.take(WORDS).read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        })
    });
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout.take(WORDS << 4)).lines();
        loop {
            match timeout(silence, lines.next_line()).await {
                Err(_) => return None,
                Ok(Ok(Some(line))) if line == "." => {}
                Ok(Ok(Some(line))) => answer = line,
                Ok(Ok(None) | Err(_)) => break,
            }
        }
    }
    let status = timeout(silence, child.wait()).await.ok()?;
    // A grandchild (statd) may keep the pipe: what was said by now counts.
    let said = match errors {
        Some(errors) => {
            timeout(Duration::from_secs(1), errors).await.ok().and_then(Result::ok).unwrap_or_default()
        }
        None => String::new(),
    };
    Some(match (worker, status) {
        (true, Ok(status)) => match serde_json::from_str(&answer) {
            Ok(reply) => Ended::Answer(reply),
            Err(_) => Ended::Broken(format!("the volume worker ended without an answer ({status}) {said}")),
        },
        (false, Ok(status)) if status.success() => Ended::Answer(Reply::default()),
        (false, Ok(status)) => {
            let error = if said.is_empty() { status.to_string() } else { said };
            Ended::Answer(Reply { error, ..Reply::default() })
        }
        (_, Err(error)) => Ended::Broken(error.to_string()),
    })
}

/// Whether mount.nfs says that nobody was there.
fn no_way(words: &str) -> bool {
    ["timed out", "No route to host", "refused", "unreachable", "not responding", "Host is down"]
        .iter()
        .any(|sign| words.contains(sign))
}
