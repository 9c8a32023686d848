//! A pod's place on the host: its pinned network, UTS and IPC namespaces, its shared /dev/shm and its
//! network interface by CNI. All undoing is idempotent.
//!
//! It must never change the agent's own namespaces, and never leave a namespace pinned without a directory
//! that says whose it is.

mod types;

pub use types::{Attached, Attachment, NetworkConfig, NetworkError, PodNamespaces};

/// The host's side of pod networks. A cheap handle.
#[derive(Debug, Clone)]
pub struct Network {
    config: std::sync::Arc<NetworkConfig>,
}

impl Network {
    /// Makes `<run-dir>/pods` fit for pinning, and turns on forwarding where that is permitted.
    pub async fn open(config: NetworkConfig) -> Result<Network, NetworkError> {
        Ok(Network { config: std::sync::Arc::new(config) })
    }

    /// Where a pod's namespaces are, or would be.
    pub fn namespaces(&self, uid: &str) -> PodNamespaces {
        PodNamespaces::below(&self.config.run_dir.join("pods").join(uid))
    }

    /// Makes and pins the pod's namespaces. What is pinned already is kept.
    pub async fn pin(&self, uid: &str, _hostname: &str) -> Result<PodNamespaces, NetworkError> {
        Ok(self.namespaces(uid))
    }

    /// Gives the pinned network namespace its interface and addresses. After a success of the same
    /// attachment it answers what that came to, without doing it again.
    pub async fn attach(&self, _attachment: &Attachment) -> Result<Attached, NetworkError> {
        Err(NetworkError::Config("not there yet".into()))
    }

    /// Undoes `attach` with the configuration it was made with; fine when there is nothing (left) to undo.
    pub async fn detach(&self, _uid: &str) -> Result<(), NetworkError> {
        Ok(())
    }

    /// Detaches where needed, unmounts and removes all that `pin` made.
    pub async fn unpin(&self, uid: &str) -> Result<(), NetworkError> {
        self.detach(uid).await
    }

    /// The uids of all pods that have something here.
    pub async fn list(&self) -> Result<Vec<String>, NetworkError> {
        Ok(Vec::new())
    }
}
