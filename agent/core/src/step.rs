//! What a driver is asked to do, and what it answers.

use std::time::Duration;

use crate::probe::Kind;
use crate::time::Time;

/// One thing to begin now. Every step but the container's own (`Create` ... `Signal`) is idempotent: after a
/// crash it is simply done again. A step may take its time and runs beside others; its end is reported with
/// [`crate::Observed::record`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Directories, the cgroup, and the namespaces with the hostname. Undone by `RemoveSandbox`.
    MakeSandbox,
    /// Connects the pod's network namespace. Undone by `Disconnect`.
    Connect,
    /// Makes a volume ready to be bind-mounted. Undone by `Unmount`.
    Mount { volume: String },
    /// A volume of files has new content: replaces it atomically, under the running containers.
    Refresh { volume: String },
    /// Writes hosts, hostname and resolv.conf, in place if they are there.
    WriteFiles,
    /// Looks whether the image is here, unpacked. Answer: `Image` or `NoImage`. Looking for or pulling an
    /// image takes the place of whatever look or pull is under way for that container: see
    /// [`Step::supersedes`].
    FindImage { container: String, image: String },
    /// Gets the image from its registry. Answer: `Image`.
    PullImage { container: String, image: String },
    /// Makes the container and its task, not yet running. Answer: `Done`; undone by `Remove`.
    Create { container: String, attempt: u32 },
    /// Runs it. Answer: `Started`.
    Start { container: String, attempt: u32 },
    /// Waits for its end. Answer: `Exited`.
    Wait { container: String, attempt: u32 },
    /// The postStart handler.
    PostStart { container: String, attempt: u32 },
    /// The preStop handler, for at most `within`.
    PreStop { container: String, attempt: u32, within: Duration },
    /// One probe. Answer: `Probed`.
    Probe { container: String, attempt: u32, kind: Kind },
    /// The stop signal (the image's, else TERM), or KILL.
    Signal { container: String, attempt: u32, kill: bool },
    /// Removes container, task and snapshot, killing what still runs.
    Remove { container: String, attempt: u32 },
    /// Undoes `Mount`.
    Unmount { volume: String },
    /// Undoes `Connect`.
    Disconnect,
    /// Undoes `MakeSandbox`: answers only when the cgroup is empty and gone, and the namespaces and
    /// directories too.
    RemoveSandbox,
}

impl Step {
    /// Whether `other`, under way, is to be dropped when this step begins: its outcome is of no interest.
    pub fn supersedes(&self, other: &Step) -> bool {
        self.image_of().is_some() && self.image_of() == other.image_of()
    }

    fn image_of(&self) -> Option<&str> {
        match self {
            Step::FindImage { container, .. } | Step::PullImage { container, .. } => Some(container),
            _ => None,
        }
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It could not be done.
    Failed(Fault),
    /// The network is there, with these addresses.
    Connected { ips: Vec<String> },
    /// The image is here.
    Image { id: String, pulled: Option<Pull> },
    /// The image is not here.
    NoImage,
    /// The container runs since.
    Started { at: Time },
    /// The container has ended.
    Exited(Exit),
    /// A probe's answer.
    Probed(Probed),
}

impl Outcome {
    /// A failure in words.
    pub fn failed(message: impl Into<String>) -> Self {
        Outcome::Failed(Fault { reason: None, message: message.into() })
    }
}

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A waiting reason in place of the usual one (InvalidImageName, CreateContainerConfigError ...).
    pub reason: Option<&'static str>,
    /// For people: what, and what to do about it.
    pub message: String,
}

/// What a pull took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    pub took: Duration,
    /// Bytes, as stored; 0: unknown.
    pub size: u64,
}

/// The end of a container.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    pub code: i32,
    pub started: Time,
    pub at: Time,
    /// Killed by the kernel for its memory.
    pub oom: bool,
    /// Nobody saw it end; the code is 255.
    pub unknown: bool,
    /// The termination message.
    pub message: String,
}

/// What a probe answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    Success,
    /// The container's fault: counts. With the probe's output.
    Failure(String),
    /// The probe itself could not be made: does not count.
    Error(String),
}
