//! The runtime's own vocabulary: plain data, nothing of containerd or OCI in it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;

/// How to reach containerd, and where to keep what belongs to it.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// containerd's socket, e.g. /run/containerd/containerd.sock.
    pub address: PathBuf,
    /// containerd's namespace for everything of ours: `berth`.
    pub namespace: String,
    /// Where images come from, to begin with.
    pub sources: ImageSources,
    /// The berth-log-writer binary (absolute).
    pub log_writer: PathBuf,
    /// For the FIFOs of execs; on a tmpfs, e.g. /run/berth/exec. Emptied when the runtime is made.
    pub state_dir: PathBuf,
    /// `overlayfs` unless the operator says otherwise.
    pub snapshotter: String,
    /// `io.containerd.runc.v2`.
    pub shim: String,
    /// How many images may be pulled at a time.
    pub parallel_pulls: usize,
    /// runc asks systemd for cgroups: containers' cgroup paths are in its words then.
    pub systemd_cgroups: bool,
}

impl RuntimeConfig {
    /// The usual configuration.
    pub fn new(
        address: impl Into<PathBuf>,
        log_writer: impl Into<PathBuf>,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        RuntimeConfig {
            address: address.into(),
            namespace: "berth".into(),
            sources: ImageSources::default(),
            log_writer: log_writer.into(),
            state_dir: state_dir.into(),
            snapshotter: "overlayfs".into(),
            shim: "io.containerd.runc.v2".into(),
            parallel_pulls: 3,
            systemd_cgroups: false,
        }
    }
}

/// Where images come from. It may change while the runtime is in use.
#[derive(Debug, Clone)]
pub struct ImageSources {
    /// Other namespaces whose images may be used, e.g. `default`, `k8s.io`.
    pub namespaces: Vec<String>,
    /// Registries (host or host:port) spoken to by plain HTTP. Those on a loopback address or `localhost`
    /// always are.
    pub insecure_registries: Vec<String>,
    /// (registry, mirror): where to ask first for that registry's images, e.g. (docker.io, mirror.lan:5000).
    pub registry_mirrors: Vec<(String, String)>,
}

impl Default for ImageSources {
    fn default() -> Self {
        ImageSources {
            namespaces: vec!["default".into(), "k8s.io".into()],
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
        }
    }
}

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// docker.io, registry.example:5000
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl From<berth_proto::RegistryAuth> for RegistryCredentials {
    fn from(auth: berth_proto::RegistryAuth) -> RegistryCredentials {
        RegistryCredentials { registry: auth.registry, username: auth.username, password: auth.password }
    }
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryCredentials({} as {})", self.registry, self.username)
    }
}

/// An image that is here and unpacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Normalised: docker.io/library/busybox:latest.
    pub name: String,
    /// As a container status shows it: docker.io/library/busybox@sha256:... (the manifest's or index's digest).
    pub id: String,
    /// Digest of the index or manifest that the name stands for.
    pub digest: String,
    /// The top snapshot.
    pub chain_id: String,
    /// Bytes of its configuration and layers, as the registry has them.
    pub size: u64,
    /// What the image says about its process.
    pub config: ImageProcess,
    /// Its users and groups.
    pub accounts: Arc<super::Accounts>,
}

/// What an image says about its process.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct ImageProcess {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    /// As written: `1000`, `redis`, `1000:1000`, `redis:redis`, or empty.
    pub user: String,
    pub working_dir: String,
    /// As written: `SIGQUIT`, `3`, or empty.
    pub stop_signal: String,
}

/// One container to be made.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// At most 76 characters of [a-zA-Z0-9._-].
    pub id: String,
    /// Kept on the container in containerd.
    pub labels: BTreeMap<String, String>,
    /// From [`super::Runtime::find_image`] or [`super::Runtime::pull_image`].
    pub image: Arc<Image>,
    /// The pod's uid: containers of one group share one shim.
    pub group: String,
    /// Kubernetes' `command`: replaces entrypoint and cmd. Empty: the image's.
    pub command: Vec<String>,
    /// Kubernetes' `args`: replaces cmd.
    pub args: Vec<String>,
    /// Over the image's environment.
    pub env: Vec<(String, String)>,
    /// Empty: the image's, or `/`.
    pub working_dir: String,
    /// Who it runs as.
    pub user: UserSpec,
    /// Bind mounts, in order (parents before children is seen to).
    pub mounts: Vec<Mount>,
    /// The pod's pinned namespaces and /dev/shm.
    pub namespaces: crate::network::PodNamespaces,
    /// Path below the cgroup root, e.g. /berth/pod<uid>/<id>; see [`crate::cgroup::Cgroups::container_path`].
    pub cgroup_path: String,
    /// Limits of this container.
    pub resources: Resources,
    /// oom_score_adj; lowered only where the agent may.
    pub oom_score_adj: Option<i32>,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// allowPrivilegeEscalation: false.
    pub no_new_privileges: bool,
    /// `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
    pub add_capabilities: Vec<String>,
    /// As above.
    pub drop_capabilities: Vec<String>,
    /// Its process has a terminal instead of pipes.
    pub terminal: Option<Terminal>,
    /// Where its output goes.
    pub log: LogTarget,
}

/// The terminal of a container's own process. What it says is logged as it comes, not line by line: whoever
/// attaches reads it from the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terminal {
    /// Where its input comes from: a FIFO that is there. None: it has no input.
    pub stdin: Option<PathBuf>,
}

/// Who a container runs as; `None`: as the image says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserSpec {
    /// runAsUser.
    pub uid: Option<u32>,
    /// runAsGroup.
    pub gid: Option<u32>,
    /// supplementalGroups and fsGroup; those of the image's /etc/group are added.
    pub groups: Vec<u32>,
    /// runAsNonRoot: refuse uid 0 ([`super::RuntimeError::Config`]).
    pub non_root: bool,
}

/// One bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host; a directory or a file.
    pub source: PathBuf,
    /// In the container, absolute.
    pub destination: String,
    /// Read-only.
    pub read_only: bool,
}

/// cpu and memory of a container; 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Resources {
    pub cpu_request_millis: u64,
    pub cpu_limit_millis: u64,
    pub memory_limit_bytes: u64,
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTarget {
    /// The current log file; rotated ones stand beside it as `.1` (youngest) and up. Its directory must exist.
    pub path: PathBuf,
    /// Bytes after which a file is rotated.
    pub max_size: u64,
    /// How many files there may be, the current one included.
    pub max_files: u32,
}

impl LogTarget {
    /// 10 MiB times five, as the kubelet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LogTarget { path: path.into(), max_size: 10 << 20, max_files: 5 }
    }
}

/// How a container or process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 128 + n for signal n; 255 when containerd lost it.
    pub code: i32,
    /// When.
    pub at: Timestamp,
    /// The kernel killed something in it for want of memory.
    pub oom_killed: bool,
    /// The end was missed (containerd was away): code and time are not known.
    pub unknown: bool,
}

/// What containerd knows of a container.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct ContainerInfo {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// Image name as given at creation.
    pub image: String,
    pub created_at: Timestamp,
    pub state: TaskState,
}

/// The state of a container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// No task: create did not get that far, or containerd lost it.
    None,
    /// Made and not started.
    Created,
    /// Running (or paused), with its pid on the host.
    Running(u32),
    /// Ended; [`super::Runtime::wait`] tells how.
    Stopped,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The container's first process.
    Init,
    /// Every process in it.
    All,
}

/// A process to run in a container.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
    /// Added to the container's own environment, e.g. TERM.
    pub env: Vec<(String, String)>,
}

/// What a probe or hook command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// None: it was killed at its deadline.
    pub exit_code: Option<i32>,
    /// The first bytes of stdout and stderr together.
    pub output: Vec<u8>,
}

/// How a captured process is bounded.
#[derive(Debug, Clone, Copy)]
pub struct CaptureLimits {
    /// Killed after this.
    pub timeout: Duration,
    /// Output kept, in bytes.
    pub output: usize,
}
