//! The network's vocabulary.

use serde::{Deserialize, Serialize};

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Where namespaces are pinned and CNI is found.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// e.g. /run/berth; on a tmpfs, since namespaces do not outlive the machine either.
    pub run_dir: PathBuf,
    /// The operator's configuration takes precedence: /etc/cni/net.d.
    pub cni_conf_dir: PathBuf,
    /// Searched in order: /opt/cni/bin, /usr/lib/cni.
    pub cni_bin_dirs: Vec<PathBuf>,
}

impl NetworkConfig {
    /// The usual directories.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        NetworkConfig {
            run_dir: run_dir.into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

/// Where a pod's pinned namespaces are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PodNamespaces {
    pub net: PathBuf,
    pub uts: PathBuf,
    pub ipc: PathBuf,
    /// A tmpfs: /dev/shm of all the pod's containers.
    pub shm: PathBuf,
}

impl PodNamespaces {
    /// The paths below a pod's directory.
    pub fn below(dir: &Path) -> Self {
        let ns = dir.join("ns");
        PodNamespaces { net: ns.join("net"), uts: ns.join("uts"), ipc: ns.join("ipc"), shm: dir.join("shm") }
    }
}

/// A pod to be connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Attachment {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// With prefix length, e.g. 10.42.3.7/24.
    pub addresses: Vec<String>,
    pub gateway: Option<IpAddr>,
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Primary first.
    pub addresses: Vec<IpAddr>,
    /// The network's name: `berth`, or the operator's.
    pub network: String,
}

/// Why a pod has no network.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetworkError {
    /// A system call, with what was being done.
    #[error("{what}: {cause}")]
    System {
        /// What was being done, with its path.
        what: String,
        /// The system's words.
        cause: String,
    },
    /// A plugin that is not there, or a configuration that cannot be read.
    #[error("CNI configuration: {0}")]
    Config(String),
    /// A plugin said no.
    #[error("CNI plugin {plugin} failed ({command}): {message}")]
    Plugin {
        /// Its type, e.g. ptp.
        plugin: String,
        /// ADD or DEL.
        command: &'static str,
        /// Its message and details.
        message: String,
    },
    /// A plugin that does not end.
    #[error("CNI plugin {plugin} did not end within {seconds} s ({command})")]
    Timeout {
        /// Its type.
        plugin: String,
        /// ADD or DEL.
        command: &'static str,
        /// The deadline.
        seconds: u64,
    },
}

impl NetworkError {
    pub(crate) fn system(what: impl Into<String>, cause: impl ToString) -> Self {
        NetworkError::System { what: what.into(), cause: cause.to_string() }
    }
}
