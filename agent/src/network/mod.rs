//! A pod's place on the host: its pinned network, UTS and IPC namespaces, its shared /dev/shm and its
//! network interface by CNI. All undoing is idempotent.
//!
//! It must never change the agent's own namespaces, and never leave a namespace pinned without a directory
//! that says whose it is.

mod cni;
pub mod dns;
mod known;
mod netlink;
mod pin;
mod ports;
mod routes;
mod services;
mod types;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use cni::operators_file;
pub use known::Known;
pub use ports::HostPorts;
pub use routes::Routes;
pub use services::Services;
use tokio::sync::watch;
pub use types::{Attached, Attachment, NetworkConfig, NetworkError, PodNamespaces};

/// The host's side of pod networks. A cheap handle.
#[derive(Debug, Clone)]
pub struct Network {
    config: Arc<NetworkConfig>,
    mtu: Arc<watch::Sender<Option<u32>>>,
}

impl Network {
    /// Makes `<run-dir>/pods`, and turns on forwarding where that is permitted.
    pub async fn open(config: NetworkConfig) -> Result<Network, NetworkError> {
        let pods = config.run_dir.join("pods");
        tokio::fs::create_dir_all(&pods)
            .await
            .map_err(|e| NetworkError::system(format!("making {}", pods.display()), e))?;
        forward().await;
        Ok(Network { config: Arc::new(config), mtu: Arc::default() })
    }

    /// Whether pods can have a network here: the configuration can be read, and its plugins are there.
    pub async fn ready(&self) -> Result<(), NetworkError> {
        let list = match cni::operators(&self.config.cni_conf_dir).await? {
            Some(list) => list,
            None => cni::embedded(&Attachment::default(), None),
        };
        let missing = cni::missing(&self.config, &list).await;
        if missing.is_empty() {
            return Ok(());
        }
        let dirs: Vec<String> =
            self.config.cni_bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        Err(NetworkError::Config(format!(
            "plugins {} are not in {}: install containernetworking-plugins",
            missing.join(", "),
            dirs.join(", ")
        )))
    }

    /// Where [`Routes`] says how large a packet between hosts may be; pods attached from then on keep to it.
    pub fn mtu_sender(&self) -> Arc<watch::Sender<Option<u32>>> {
        self.mtu.clone()
    }

    fn mtu(&self) -> Option<u32> {
        *self.mtu.borrow()
    }

    /// Where a pod's namespaces are, or would be.
    pub fn namespaces(&self, uid: &str) -> PodNamespaces {
        PodNamespaces::below(&self.dir(uid))
    }

    fn dir(&self, uid: &str) -> PathBuf {
        self.config.run_dir.join("pods").join(uid)
    }

    fn record(&self, uid: &str) -> PathBuf {
        self.dir(uid).join("cni.json")
    }

    /// Makes and pins the pod's namespaces. What is pinned already is kept.
    pub async fn pin(&self, uid: &str, hostname: &str) -> Result<PodNamespaces, NetworkError> {
        self.pin_with(uid, hostname, true).await
    }

    /// As [`Network::pin`], with this host's network in place of one of its own: there is nothing to attach then.
    pub async fn pin_on_host(&self, uid: &str, hostname: &str) -> Result<PodNamespaces, NetworkError> {
        self.pin_with(uid, hostname, false).await
    }

    async fn pin_with(&self, uid: &str, hostname: &str, own: bool) -> Result<PodNamespaces, NetworkError> {
        check(uid)?;
        let (dir, names, hostname) = (self.dir(uid), self.namespaces(uid), hostname.to_owned());
        let pinned = names.clone();
        blocking(move || pin::pin(&dir, &names, &hostname, own)).await?;
        Ok(pinned)
    }

    /// Whether all the pod's namespaces are pinned.
    pub async fn is_pinned(&self, uid: &str) -> bool {
        let (dir, names) = (self.dir(uid), self.namespaces(uid));
        tokio::task::spawn_blocking(move || pin::is_pinned(&dir, &names)).await.unwrap_or(false)
    }

    /// Gives the pinned network namespace its interface and addresses. After a success of the same
    /// attachment it answers what that came to, without doing it again.
    pub async fn attach(&self, attachment: &Attachment) -> Result<Attached, NetworkError> {
        check(&attachment.uid)?;
        let path = self.record(&attachment.uid);
        if let Some(before) = cni::Record::load(&path).await? {
            if let Some(attached) = before.attached(attachment) {
                return Ok(attached);
            }
            self.detach(&attachment.uid).await?;
        }
        let mut record =
            cni::Record::of(cni::choose(&self.config, attachment, self.mtu()).await?, attachment);
        // Before it begins, so that an agent that dies in between knows what to undo.
        record.store(&path).await?;
        match record.add(&self.config, &self.namespaces(&attachment.uid).net).await {
            Ok(attached) => {
                record.store(&path).await?;
                Ok(attached)
            }
            Err(error) => {
                // As the specification asks: what a failed ADD has made is undone by DEL.
                if let Err(error) = self.detach(&attachment.uid).await {
                    tracing::debug!(pod = attachment.name, %error, "undoing a failed attachment");
                }
                Err(error)
            }
        }
    }

    /// Undoes `attach` with the configuration it was made with; fine when there is nothing (left) to undo.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        check(uid)?;
        let path = self.record(uid);
        let Some(record) = cni::Record::load(&path).await? else { return Ok(()) };
        let net = self.namespaces(uid).net;
        // A plugin must not be sent into a file that is no namespace; without one it frees what it holds on the host.
        let netns =
            tokio::task::spawn_blocking(move || pin::is_namespace(&net).then_some(net)).await.ok().flatten();
        record.del(&self.config, netns.as_deref()).await?;
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::system(format!("removing {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Detaches where needed, unmounts and removes all that `pin` made.
    pub async fn unpin(&self, uid: &str) -> Result<(), NetworkError> {
        self.detach(uid).await?;
        let (dir, names) = (self.dir(uid), self.namespaces(uid));
        blocking(move || pin::unpin(&dir, &names)).await
    }

    /// The uids of all pods that have something here.
    pub async fn list(&self) -> Result<Vec<String>, NetworkError> {
        let pods = self.config.run_dir.join("pods");
        let failed = |e: io::Error| NetworkError::system(format!("reading {}", pods.display()), e);
        let mut entries = match tokio::fs::read_dir(&pods).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut uids = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            uids.extend(entry.file_name().into_string().ok());
        }
        Ok(uids)
    }
}

/// A uid becomes a directory's name.
fn check(uid: &str) -> Result<(), NetworkError> {
    let fine =
        !uid.is_empty() && uid.len() <= 128 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fine { Ok(()) } else { Err(NetworkError::Config(format!("{uid:?} is not a pod's uid"))) }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), NetworkError> + Send + 'static,
) -> Result<(), NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(NetworkError::system("a blocking task", e)))
}

/// Pods are routed: without forwarding they reach nobody but this host.
async fn forward() {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    if tokio::fs::read(path).await.is_ok_and(|now| now.starts_with(b"1")) {
        return;
    }
    if let Err(error) = tokio::fs::write(path, "1").await {
        tracing::warn!(%error, "net.ipv4.ip_forward cannot be set: pods will reach only this host");
    }
}
