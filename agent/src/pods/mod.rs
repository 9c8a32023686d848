//! The pods of this host: one driver task a pod, which asks `berth-agent-core` what comes next, does it
//! through the host's modules, and publishes what is.
//!
//! What this module must never do: start a life of a pod that is older than one it has seen, report a pod
//! as stopped while anything of it is left, or let one pod's trouble hold up another pod.

mod outbox;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use berth_proto::{Assignment, PodInventory, PodRef, Stop, VolumeOperation, VolumeResult, Welcome};

pub use outbox::Outbox;

/// Where things are and what this host is called.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// Survives reboots: `state.json`, `pods/<uid>/`, `volumes/`, `logs/`.
    pub data_dir: PathBuf,
    /// Gone after a reboot: `pods/<uid>/ns/`.
    pub run_dir: PathBuf,
    /// `status.hostIP` of every pod; the first is the main one.
    pub host_ips: Vec<IpAddr>,
}

/// What the agent must know of a pod to attach to one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecTarget {
    /// The container's id in containerd.
    pub container_id: String,
}

/// Where the log of a container's instance is.
#[derive(Clone, Debug)]
pub struct LogTarget {
    /// `<data-dir>/logs/<ns>_<name>_<uid>/<container>/<attempt>.log`
    pub path: PathBuf,
    /// Becomes true when the instance has ended (is true if it has): until then `follow` has something to
    /// wait for. See [`crate::logs::LogRequest::ended`].
    pub ended: watch::Receiver<bool>,
}

/// Why a container cannot be attached to; the text is for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// This host does not hold that pod (or holds another life of it).
    #[error("pod {0:?} is not on this node")]
    NoPod(String),
    /// The pod has no container of that name.
    #[error("container {container:?} not found in pod {pod:?}")]
    NoContainer { pod: String, container: String },
    /// It has never started (or not a second time, for a previous log), or does not run any more.
    #[error("container {container:?} in pod {pod:?} {why}")]
    NotThere { pod: String, container: String, why: String },
}

/// The pods of this host. A cheap handle; all methods return at once and never wait for a pod.
#[derive(Clone)]
pub struct Pods {
    outbox: Arc<Outbox>,
}

impl Pods {
    /// What goes out to the controller: statuses (latest wins), stopped reports and events.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.outbox.clone()
    }

    /// A session is open: pods found after a reboot may start again once their assignment comes.
    pub fn welcome(&self, _welcome: &Welcome) {}

    /// Runs this life of the pod, or takes over what has changed in its assignment.
    pub fn apply(&self, _assignment: Assignment) {}

    /// Ends this life of the pod; `Stopped` goes out when nothing of it is left. A pod this host does not
    /// hold (any more) is answered with `Stopped` at once.
    pub fn stop(&self, _stop: Stop) {}

    /// The controller has freed the pod's record: forgets a stopped pod, its logs with it.
    pub fn forget(&self, _pod: PodRef) {}

    /// Every pod this host holds anything of, for `Hello`.
    pub fn inventory(&self) -> Vec<PodInventory> {
        Vec::new()
    }

    /// The running container to exec into.
    pub fn exec_target(&self, pod: &PodRef, _container: &str) -> Result<ExecTarget, TargetError> {
        Err(TargetError::NoPod(pod.name.clone()))
    }

    /// The log of the container's current (or, with `previous`, its previous) instance.
    pub fn log_target(
        &self,
        pod: &PodRef,
        _container: &str,
        _previous: bool,
    ) -> Result<LogTarget, TargetError> {
        Err(TargetError::NoPod(pod.name.clone()))
    }

    /// Makes, removes or archives a volume's directory.
    pub async fn volume(&self, operation: VolumeOperation) -> VolumeResult {
        VolumeResult { operation_id: operation.operation_id, error: "volumes are not there yet".to_owned() }
    }
}
