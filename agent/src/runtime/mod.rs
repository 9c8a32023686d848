//! containerd, as the agent needs it: images, containers, processes in them. Works with containerd 1.6, 1.7
//! and 2.x through the services they have in common.
//!
//! Every call may be repeated: what is there already is success. Calls fail at once with
//! [`RuntimeError::Away`] while containerd is away; [`Runtime::up`] waits for it. Only [`Runtime::wait`] sits
//! through such times by itself.

mod error;
mod exec;
mod types;

use std::sync::Arc;

pub use error::{ImageError, RuntimeError};
pub use exec::{Exec, ExecControl};
use jiff::Timestamp;
use tokio::sync::watch;
pub use types::{
    CaptureLimits, Captured, ContainerInfo, ContainerSpec, ExecSpec, Exit, Image, ImageProcess, LogTarget,
    Mount, RegistryCredentials, Resources, RuntimeConfig, Target, TaskState, UserSpec,
};

/// Whether containerd answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// With its version, e.g. `1.6.20~ds1`.
    Up(String),
    /// With the reason.
    Away(String),
}

/// containerd. A cheap handle.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    #[allow(dead_code)]
    config: RuntimeConfig,
    health: watch::Receiver<Health>,
}

impl Runtime {
    /// Makes the runtime; containerd may still be away. Needs a tokio runtime.
    pub async fn connect(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        let (_, health) = watch::channel(Health::Away("not there yet".into()));
        Ok(Runtime { inner: Arc::new(Inner { config, health }) })
    }

    /// containerd's health as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// Waits until containerd answers.
    pub async fn up(&self) {
        let _ = self.health().wait_for(|health| matches!(health, Health::Up(_))).await;
    }

    /// The image of that name if it is here (in our namespace or one of `image_namespaces`), unpacked if need be.
    pub async fn find_image(&self, _name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        Ok(None)
    }

    /// Pulls the image from its registry. Concurrent pulls of one image are one.
    pub async fn pull_image(
        &self,
        name: &str,
        _credentials: &[RegistryCredentials],
    ) -> Result<Arc<Image>, ImageError> {
        Err(ImageError::Pull { name: name.into(), message: "not there yet".into() })
    }

    /// Makes the container up to the point where [`Runtime::start`] only has to let go of it: snapshot, record,
    /// shim, namespaces, mounts. May run at the same time as [`crate::network::Network::attach`]; namespaces and
    /// the pod's cgroup must be there. What a failed or interrupted attempt left is cleared first.
    pub async fn create(&self, _spec: &ContainerSpec) -> Result<(), RuntimeError> {
        Err(RuntimeError::failed("create", "not there yet"))
    }

    /// Starts a created container; answers its pid. Fine when it is started already.
    pub async fn start(&self, _id: &str) -> Result<u32, RuntimeError> {
        Err(RuntimeError::failed("start", "not there yet"))
    }

    /// Waits for the end of a container that was created. Sits through restarts of containerd. A container that
    /// has no task (any more) has ended: exit 255, unknown.
    pub async fn wait(&self, _id: &str) -> Result<Exit, RuntimeError> {
        Err(RuntimeError::failed("wait", "not there yet"))
    }

    /// Sends a signal. Fine when it has ended or is not there.
    pub async fn kill(&self, _id: &str, _signal: i32, _target: Target) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Sends the signal the image wants to be stopped with (SIGTERM unless it says otherwise).
    pub async fn terminate(&self, _id: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Removes the container: kills what runs in it, then deletes task, record and snapshot. Fine when some or all of it
    /// is gone.
    pub async fn remove(&self, _id: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// All our containers that carry these labels.
    pub async fn list(&self, _labels: &[(&str, &str)]) -> Result<Vec<ContainerInfo>, RuntimeError> {
        Ok(Vec::new())
    }

    /// One container; None when it is not there.
    pub async fn get(&self, _id: &str) -> Result<Option<ContainerInfo>, RuntimeError> {
        Ok(None)
    }

    /// Removes what pulls of an agent that died left: leases and unfinished snapshots older than `before`.
    pub async fn clear_leftovers(&self, _before: Timestamp) -> Result<(), RuntimeError> {
        Ok(())
    }
}
