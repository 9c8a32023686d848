//! One cgroup per pod, on plain cgroupfs v1 or v2. Containers' cgroups are made by runc below it.
//!
//! It must never touch a cgroup outside its own parent.

use std::time::Duration;

/// What went wrong, with the path.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct CgroupError {
    what: String,
    cause: String,
}

/// Limits of a whole pod; 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PodLimits {
    pub cpu_request_millis: u64,
    pub cpu_limit_millis: u64,
    pub memory_limit_bytes: u64,
}

/// All pods' cgroups on this host. A cheap handle.
#[derive(Debug, Clone)]
pub struct Cgroups {
    parent: std::sync::Arc<str>,
}

impl Cgroups {
    /// `parent`: a path below the cgroup root, e.g. `/berth`.
    pub async fn open(parent: &str) -> Result<Cgroups, CgroupError> {
        Ok(Cgroups { parent: parent.trim_end_matches('/').into() })
    }

    /// The cgroup path of a container, for [`crate::runtime::ContainerSpec::cgroup_path`].
    pub fn container_path(&self, uid: &str, container_id: &str) -> String {
        format!("{}/pod{uid}/{container_id}", self.parent)
    }

    /// Makes the pod's cgroup, or sets the limits of the one that is there.
    pub async fn make(&self, _uid: &str, _limits: &PodLimits) -> Result<(), CgroupError> {
        Ok(())
    }

    /// SIGKILL to every process in it, containers' included. Fine when it is not there.
    pub async fn kill_all(&self, _uid: &str) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Whether no process is left in it (or it is not there).
    pub async fn is_empty(&self, _uid: &str) -> Result<bool, CgroupError> {
        Ok(true)
    }

    /// Waits until it is empty; false when it is not within `limit`.
    pub async fn wait_empty(&self, _uid: &str, _limit: Duration) -> Result<bool, CgroupError> {
        Ok(true)
    }

    /// Removes it and what runc may have left below it. Fine when it is not there; an error while it holds processes.
    pub async fn remove(&self, _uid: &str) -> Result<(), CgroupError> {
        Ok(())
    }

    /// The uids of all pods that have a cgroup here.
    pub async fn list(&self) -> Result<Vec<String>, CgroupError> {
        Ok(Vec::new())
    }
}

/// Whether the kernel killed a process of this container for want of memory.
pub(crate) async fn oom_killed(_container_path: &str) -> bool {
    false
}
