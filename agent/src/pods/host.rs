//! Doing a step: from the lifecycle's words to the host's modules. Every step has a deadline, and what blocks
//! runs off the async threads, so that one pod's dead disk or server stalls nothing but that pod.
//!
//! | step | made by | idempotent | undone by |
//! |---|---|---|---|
//! | MakeSandbox | cgroup, network, directories | yes: keeps what is there | RemoveSandbox |
//! | Connect | network | yes: the network remembers its success | Disconnect |
//! | Mount, Refresh | volumes | yes | Unmount |
//! | WriteFiles | etc | yes, in place | RemoveSandbox |
//! | Create, Start | runtime | a half-made one is cleared first | Remove |

use std::collections::HashMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_agent_core::container;
use berth_agent_core::observed::find;
use berth_agent_core::probe::Kind;
use berth_agent_core::step::Pull;
use berth_agent_core::{Exit, Fault, Outcome, Probed, Step, Time};
use berth_proto::volume::Source;
use berth_proto::{Assignment, Container, Handler, PodRef};
use tokio::time::{Instant, timeout};

use super::clock::Clock;
use super::etc::Etc;
use super::terms::{addresses, container_spec, hostname, limits, on_host_network, on_nfs};
use crate::cgroup::Cgroups;
use crate::logs;
use crate::network::{Attachment, Network};
use crate::probes::{self, Subject};
use crate::runtime::{
    ContainerSpec, Image, ImageError, Mount, RegistryCredentials, Runtime, RuntimeError, Target, TaskState,
    Terminal,
};
use crate::volumes::nfs::{Of, Process};
use crate::volumes::{Volumes, remove_tree};

/// The most of a termination message.
const MESSAGE: usize = 4096;
/// The end of the log in place of a termination message: lines and bytes.
const LOG_MESSAGE: (usize, usize) = (80, 2048);
/// A pull is given this long in all.
const PULL: Duration = Duration::from_secs(30 * 60);
/// What should take milliseconds is given this long.
const STEP: Duration = Duration::from_secs(60);
/// A pod's processes are given this long to end after KILL, each time it is tried.
const EMPTY: Duration = Duration::from_secs(10);

/// The outcome of a step, to come.
pub type Doing = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What a step is done for.
#[derive(Clone)]
pub struct Subjects {
    pub assignment: Arc<Assignment>,
    /// The assignment has the content of its files.
    pub complete: bool,
    pub ips: Vec<String>,
}

/// A container found on the host, ours by its labels.
#[derive(Clone, Debug)]
pub struct FoundContainer {
    pub pod: PodRef,
    pub found: berth_agent_core::Found,
}

/// What does the steps. The real one is [`RealHost`]; the driver's tests use one that only remembers.
pub trait Host: Send + Sync + 'static {
    /// Does a step. Dropping the future gives the step up half-way, which the next try copes with.
    fn perform(self: Arc<Self>, step: Step, subjects: Subjects) -> Doing;

    /// All that is on this host of any pod: containers, and uids that have something else.
    fn survey(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Result<Survey, String>> + Send>>;

    /// Forgets what is kept in memory and on disk for a pod that is gone, its logs with it.
    fn forget(self: Arc<Self>, pod: PodRef) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// See [`Host::survey`].
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub containers: Vec<FoundContainer>,
    pub uids: Vec<String>,
}

/// containerd, CNI, cgroups and the disk.
pub struct RealHost {
    pub runtime: Runtime,
    pub network: Network,
    pub cgroups: Cgroups,
    pub volumes: Volumes,
    pub data_dir: PathBuf,
    pub clock: Clock,
    /// The addresses of pods on the host's network.
    host_ips: Arc<[String]>,
    images: Mutex<HashMap<(String, String), Arc<Image>>>,
}

/// Where a pod's logs are: `<data-dir>/logs/<ns>_<name>_<uid>`.
pub fn log_directory(data_dir: &Path, pod: &PodRef) -> PathBuf {
    data_dir.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

/// The FIFO that leads to the stdin of one instance, where it has one.
pub fn stdin_path(data_dir: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    data_dir.join("pods").join(uid).join("stdin").join(format!("{container}-{attempt}"))
}

/// The log of one instance.
pub fn log_path(data_dir: &Path, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
    log_directory(data_dir, pod).join(container).join(format!("{attempt}.log"))
}

impl RealHost {
    pub fn new(
        runtime: Runtime,
        network: Network,
        cgroups: Cgroups,
        volumes: Volumes,
        data_dir: PathBuf,
        host_ips: Arc<[String]>,
        clock: Clock,
    ) -> RealHost {
        RealHost { runtime, network, cgroups, volumes, data_dir, clock, host_ips, images: Mutex::default() }
    }

    fn directory(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    fn message_file(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.directory(uid).join("termination").join(format!("{container}-{attempt}"))
    }

    async fn step(&self, step: &Step, subjects: &Subjects) -> Result<Outcome, Fault> {
        let assignment = &subjects.assignment;
        let pod = assignment.pod.clone().unwrap_or_default();
        let uid = pod.uid.as_str();
        match step {
            Step::MakeSandbox => self.make_sandbox(uid, assignment).await?,
            Step::Connect => return self.connect(&pod, assignment).await,
            Step::Mount { volume } | Step::Refresh { volume } => {
                let Some(volume) = assignment.volumes.iter().find(|v| v.name == *volume).cloned() else {
                    return Ok(Outcome::Done);
                };
                let (volumes, uid, complete) = (self.volumes.clone(), uid.to_owned(), subjects.complete);
                let security = assignment.security.clone().unwrap_or_default();
                if let (Some(Source::Nfs(source)), "") = (&volume.source, volume.error.as_str()) {
                    let place = volumes.place(&uid, &volume.name);
                    let of = Of { pod: &pod, volume: &volume.name, claim: &volume.claim, place: &place };
                    let mounted = volumes.nfs().mount(&of, source, &security, volume.read_only).await;
                    return mounted.map(|()| Outcome::Done).map_err(in_words);
                }
                if let (Some(Source::Directory(source)), false) = (&volume.source, volume.claim.is_empty()) {
                    let place = volumes.source(&uid, &volume);
                    let of = Of { pod: &pod, volume: &volume.name, claim: &volume.claim, place: &place };
                    volumes.nfs().follow(&of, &volumes.root(&source.root));
                }
                off_thread(move || volumes.mount(&uid, &volume, &security, complete)).await?;
            }
            Step::Unmount { volume } => {
                let spec = assignment.volumes.iter().find(|v| v.name == *volume);
                if let Some(Source::Nfs(source)) = spec.and_then(|spec| spec.source.as_ref()) {
                    let place = self.volumes.place(uid, volume);
                    let of = Of { pod: &pod, volume, claim: "", place: &place };
                    self.volumes.nfs().unmount(&of, source).await.map_err(in_words)?;
                    return Ok(Outcome::Done);
                }
                self.volumes.nfs().leave_alone(&pod, volume);
                let (volumes, uid, volume) = (self.volumes.clone(), uid.to_owned(), volume.clone());
                off_thread(move || volumes.unmount(&uid, &volume)).await?;
            }
            Step::WriteFiles => {
                let (etc, assignment) = (Etc::of(&self.directory(uid)), assignment.clone());
                let ips = addresses(subjects);
                off_thread(move || etc.write(&assignment, &hostname(&assignment), &ips)).await?;
            }
            Step::FindImage { container, image } => {
                let (runtime, name) = (self.runtime.clone(), image.clone());
                let find = move || {
                    let (runtime, name) = (runtime.clone(), name.clone());
                    async move { runtime.find_image(&name).await }
                };
                let found = self.insist(|| to_its_end(find())).await.map_err(image_fault)?;
                return Ok(match found {
                    Some(image) => self.here(uid, container, image, None),
                    None => Outcome::NoImage,
                });
            }
            Step::PullImage { container, image } => {
                let begun = Instant::now();
                let credentials: Vec<RegistryCredentials> =
                    assignment.registry_auth.iter().cloned().map(Into::into).collect();
                let (runtime, name) = (self.runtime.clone(), image.clone());
                let pull = async move { runtime.pull_image(&name, &credentials).await };
                let image = to_its_end(pull).await.map_err(image_fault)?;
                let pull = Pull { took: begun.elapsed(), size: image.size };
                return Ok(self.here(uid, container, image, Some(pull)));
            }
            Step::Create { container, attempt } => {
                self.create(&pod, subjects, container, *attempt).await?;
            }
            Step::Start { container, attempt } => {
                let id = container::id(uid, container, *attempt);
                self.insist(|| self.runtime.start(&id)).await.map_err(fault)?;
                return Ok(Outcome::Started { at: self.clock.now() });
            }
            Step::Wait { container, attempt } => {
                return self.wait(&pod, assignment, container, *attempt).await;
            }
            Step::Signal { container, attempt, kill } => {
                let id = container::id(uid, container, *attempt);
                let runtime = &self.runtime;
                match kill {
                    true => self.insist(|| runtime.kill(&id, nix::libc::SIGKILL, Target::All)).await,
                    false => self.insist(|| runtime.terminate(&id)).await,
                }
                .map_err(fault)?;
            }
            Step::PostStart { container, attempt } => {
                let hook = find(assignment, container).and_then(|spec| spec.post_start.as_ref());
                self.hook(uid, subjects, container, *attempt, hook, STEP * 60).await?;
            }
            Step::PreStop { container, attempt, within } => {
                let hook = find(assignment, container).and_then(|spec| spec.pre_stop.as_ref());
                self.hook(uid, subjects, container, *attempt, hook, *within).await?;
            }
            Step::Probe { container, attempt, kind } => {
                return Ok(self.probe(uid, subjects, container, *attempt, *kind).await);
            }
            Step::Remove { container, attempt } => {
                let id = container::id(uid, container, *attempt);
                self.insist(|| self.runtime.remove(&id)).await.map_err(fault)?;
                for file in [
                    self.message_file(uid, container, *attempt),
                    stdin_path(&self.data_dir, uid, container, *attempt),
                ] {
                    let _ = tokio::fs::remove_file(file).await;
                }
            }
            Step::Disconnect => self.network.detach(uid).await.map_err(in_words)?,
            Step::RemoveSandbox => self.remove_sandbox(uid).await?,
        }
        Ok(Outcome::Done)
    }

    async fn make_sandbox(&self, uid: &str, assignment: &Assignment) -> Result<(), Fault> {
        let directory = self.directory(uid);
        let directories = off_thread(move || {
            std::fs::create_dir_all(directory.join("termination"))?;
            std::fs::create_dir_all(directory.join("volumes"))?;
            // Containers' users pass through, and nobody else looks around.
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711))
        });
        let limits = limits(assignment);
        let cgroup = async { self.cgroups.make(uid, &limits).await.map_err(in_words) };
        let namespaces = async {
            let hostname = hostname(assignment);
            let pinned = match on_host_network(assignment) {
                true => self.network.pin_on_host(uid, &hostname).await,
                false => self.network.pin(uid, &hostname).await,
            };
            pinned.map(drop).map_err(in_words)
        };
        let (directories, cgroup, namespaces) = tokio::join!(directories, cgroup, namespaces);
        directories.and(cgroup).and(namespaces)
    }

    async fn connect(&self, pod: &PodRef, assignment: &Assignment) -> Result<Outcome, Fault> {
        if on_host_network(assignment) {
            return Ok(Outcome::Connected { ips: self.host_ips.to_vec() });
        }
        let network = assignment.network.clone().unwrap_or_default();
        let gateway = match network.gateway.as_str() {
            "" => None,
            gateway => Some(gateway.parse().map_err(|_| words(format!("{gateway:?} is no gateway")))?),
        };
        let attachment = Attachment {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            addresses: network.addresses,
            gateway,
        };
        let attached = self.network.attach(&attachment).await.map_err(in_words)?;
        Ok(Outcome::Connected { ips: attached.addresses.iter().map(ToString::to_string).collect() })
    }

    fn here(&self, uid: &str, container: &str, image: Arc<Image>, pulled: Option<Pull>) -> Outcome {
        let id = image.id.clone();
        self.images().insert((uid.to_owned(), container.to_owned()), image);
        Outcome::Image { id, pulled }
    }

    fn images(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Arc<Image>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create(&self, pod: &PodRef, subjects: &Subjects, name: &str, attempt: u32) -> Result<(), Fault> {
        let assignment = &subjects.assignment;
        let uid = pod.uid.as_str();
        let Some(spec) = find(assignment, name) else {
            return Err(words(format!("container {name} is not in the assignment")));
        };
        if !spec.config_error.is_empty() {
            return Err(Fault {
                reason: Some("CreateContainerConfigError"),
                message: spec.config_error.clone(),
            });
        }
        let image = self.images().get(&(uid.to_owned(), name.to_owned())).cloned();
        let image = image.ok_or_else(|| words("its image has not been looked for"))?;
        let message_file = self.message_file(uid, name, attempt);
        let log = log_path(&self.data_dir, pod, name, attempt);
        let stdin = spec.stdin.then(|| stdin_path(&self.data_dir, uid, name, attempt));
        off_thread({
            let (message_file, log, stdin) = (message_file.clone(), log.clone(), stdin.clone());
            move || prepare_files(&message_file, &log, stdin.as_deref(), attempt)
        })
        .await?;
        let terminal = spec.tty.then_some(Terminal { stdin });
        let mounts = self.mounts(uid, assignment, spec, message_file)?;
        let id = container::id(uid, name, attempt);
        let written: Vec<&str> =
            spec.mounts.iter().filter(|m| !m.read_only).map(|m| m.volume.as_str()).collect();
        let spec = container_spec(
            pod,
            assignment,
            &container::addressed(spec, &subjects.ips),
            attempt,
            id,
            image,
            mounts,
            &self.cgroups,
            log,
        );
        let spec = ContainerSpec { namespaces: self.network.namespaces(uid), terminal, ..spec };
        self.insist(|| self.runtime.create(&spec)).await.map_err(fault)?;
        let identity = spec.identity().map_err(fault)?;
        for volume in written {
            let groups = identity.groups.clone();
            let process = Process { user: identity.uid, group: identity.gid, groups };
            self.volumes.nfs().try_group(pod, volume, process);
        }
        Ok(())
    }

    fn mounts(
        &self,
        uid: &str,
        assignment: &Assignment,
        spec: &Container,
        message_file: PathBuf,
    ) -> Result<Vec<Mount>, Fault> {
        let mut mounts = Vec::new();
        for mount in &spec.mounts {
            let Some(volume) = assignment.volumes.iter().find(|volume| volume.name == mount.volume) else {
                return Err(words(format!("volume {:?} is not in the assignment", mount.volume)));
            };
            let files = matches!(volume.source, Some(Source::Files(_)));
            let read_only = mount.read_only || volume.read_only || files;
            let source = self.volumes.source(uid, volume);
            mounts.push(Mount { source, destination: mount.mount_path.clone(), read_only });
        }
        let etc = Etc::of(&self.directory(uid));
        let message_path = match spec.termination_message_path.as_str() {
            "" => "/dev/termination-log",
            path => path,
        };
        let own = [
            (etc.hosts, "/etc/hosts"),
            (etc.hostname, "/etc/hostname"),
            (etc.resolv, "/etc/resolv.conf"),
            (message_file, message_path),
        ];
        for (source, destination) in own {
            // What the pod itself mounts there is what it wants.
            if !mounts.iter().any(|mount| mount.destination.trim_end_matches('/') == destination) {
                mounts.push(Mount { source, destination: destination.to_owned(), read_only: false });
            }
        }
        Ok(mounts)
    }

    async fn wait(
        &self,
        pod: &PodRef,
        assignment: &Assignment,
        name: &str,
        attempt: u32,
    ) -> Result<Outcome, Fault> {
        let id = container::id(&pod.uid, name, attempt);
        let exit = self.runtime.wait(&id).await.map_err(fault)?;
        let file = self.message_file(&pod.uid, name, attempt);
        let read = tokio::task::spawn_blocking(move || read_message(&file));
        let mut message = match timeout(STEP, read).await {
            Ok(Ok(message)) => message,
            _ => String::new(),
        };
        let from_log = find(assignment, name)
            .is_some_and(|spec| spec.termination_message_policy == "FallbackToLogsOnError");
        if message.is_empty() && from_log && exit.code != 0 {
            let log = log_path(&self.data_dir, pod, name, attempt);
            let words = logs::last_words(&log, LOG_MESSAGE.0, LOG_MESSAGE.1);
            message = timeout(STEP, words).await.unwrap_or_default();
        }
        let at = if exit.unknown { self.clock.now() } else { Time(exit.at.as_millisecond()) };
        Ok(Outcome::Exited(Exit {
            code: exit.code,
            // The driver knows when it began.
            started: at,
            at,
            oom: exit.oom_killed,
            unknown: exit.unknown,
            message,
        }))
    }

    async fn hook(
        &self,
        uid: &str,
        subjects: &Subjects,
        container: &str,
        attempt: u32,
        handler: Option<&Handler>,
        limit: Duration,
    ) -> Result<(), Fault> {
        let Some(handler) = handler else { return Ok(()) };
        let id = container::id(uid, container, attempt);
        let ips = addresses(subjects);
        let ip = ips.first().map_or("", String::as_str);
        let subject = Subject { runtime: &self.runtime, container_id: &id, ip };
        probes::hook(&subject, handler, limit).await.map_err(words)
    }

    async fn probe(
        &self,
        uid: &str,
        subjects: &Subjects,
        container: &str,
        attempt: u32,
        kind: Kind,
    ) -> Outcome {
        let spec = find(&subjects.assignment, container);
        let probe = spec.and_then(|spec| match kind {
            Kind::Startup => spec.startup.as_ref(),
            Kind::Liveness => spec.liveness.as_ref(),
            Kind::Readiness => spec.readiness.as_ref(),
        });
        let Some((probe, handler)) = probe.and_then(|probe| Some((probe, probe.handler.as_ref()?))) else {
            return Outcome::Probed(Probed::Error("the assignment has no such probe any more".into()));
        };
        let id = container::id(uid, container, attempt);
        let ips = addresses(subjects);
        let ip = ips.first().map_or("", String::as_str);
        let subject = Subject { runtime: &self.runtime, container_id: &id, ip };
        let limit = Duration::from_secs(probe.timeout_seconds.max(1).into());
        Outcome::Probed(probes::probe(&subject, handler, limit).await)
    }

    async fn remove_sandbox(&self, uid: &str) -> Result<(), Fault> {
        let cgroup = async {
            self.cgroups.kill_all(uid).await.map_err(in_words)?;
            if !self.cgroups.wait_empty(uid, EMPTY).await.map_err(in_words)? {
                return Err(words("processes of the pod do not end although they are killed"));
            }
            self.cgroups.remove(uid).await.map_err(in_words)
        };
        let namespaces = async { self.network.unpin(uid).await.map_err(in_words) };
        let (cgroup, namespaces) = tokio::join!(cgroup, namespaces);
        cgroup.and(namespaces)?;
        let directory = self.directory(uid);
        // Of a pod that nothing is known of any more.
        self.volumes.nfs().clear(&directory).await.map_err(in_words)?;
        off_thread(move || remove_tree(&directory)).await?;
        self.images().retain(|(of, _), _| of != uid);
        Ok(())
    }

    /// Does it again once containerd is back, if it was away.
    async fn insist<T, E, F, Fut>(&self, call: F) -> Result<T, E>
    where
        E: MaybeAway,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        loop {
            match call().await {
                Err(error) if error.away() => {
                    self.runtime.up().await;
                    // containerd may answer and fall again: not in a tight circle.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }
}

trait MaybeAway {
    fn away(&self) -> bool;
}

impl MaybeAway for RuntimeError {
    fn away(&self) -> bool {
        self.is_away()
    }
}

impl MaybeAway for ImageError {
    fn away(&self) -> bool {
        matches!(self, ImageError::Runtime(error) if error.is_away())
    }
}

impl Host for RealHost {
    fn perform(self: Arc<Self>, step: Step, subjects: Subjects) -> Doing {
        Box::pin(async move {
            let limit = match &step {
                Step::Wait { .. } => None,
                // These keep to the server's patience, and may have a large directory to go through.
                Step::Mount { volume } | Step::Unmount { volume } if on_nfs(&subjects.assignment, volume) => {
                    None
                }
                Step::PullImage { .. } => Some(PULL),
                // They keep to their own.
                Step::PostStart { .. } | Step::PreStop { .. } | Step::Probe { .. } => None,
                _ => Some(STEP),
            };
            let doing = self.step(&step, &subjects);
            let outcome = match limit {
                None => doing.await,
                Some(limit) => timeout(limit, doing).await.unwrap_or_else(|_| {
                    Err(words(format!("not done within {}", berth_agent_core::time::words(limit))))
                }),
            };
            if let (Step::Create { .. }, Err(fault)) = (&step, &outcome)
                && let Some(pod) = &subjects.assignment.pod
            {
                tracing::warn!(pod = %pod.name, fault = %fault.message, "a container is not made");
                // Given up half-way it may have left a shim that would hold up the next try.
                if let Err(error) = self.runtime.clear_stray_shims(Some(&pod.uid)).await {
                    tracing::debug!(%error, "its shim is not cleared");
                }
            }
            outcome.unwrap_or_else(Outcome::Failed)
        })
    }

    fn survey(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Result<Survey, String>> + Send>> {
        Box::pin(async move {
            // Nothing of an agent before is under way any more (the second: lease times are whole seconds).
            let before = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
            if let Err(error) = self.insist(|| self.runtime.clear_leftovers(before)).await {
                tracing::warn!(%error, "what unfinished pulls have left is not cleared");
            }
            if let Err(error) = self.insist(|| self.runtime.clear_stray_shims(None)).await {
                tracing::warn!(%error, "shims that nobody knows are not cleared");
            }
            let list = self.insist(|| self.runtime.list(&[])).await.map_err(|e| e.to_string())?;
            let mut uids = self.network.list().await.map_err(|e| e.to_string())?;
            uids.extend(self.cgroups.list().await.map_err(|e| e.to_string())?);
            if let Ok(entries) = std::fs::read_dir(self.data_dir.join("pods")) {
                uids.extend(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()));
            }
            uids.sort();
            uids.dedup();
            let containers = list.into_iter().filter_map(found).collect();
            Ok(Survey { containers, uids })
        })
    }

    fn forget(self: Arc<Self>, pod: PodRef) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            self.images().retain(|(of, _), _| *of != pod.uid);
            let directory = log_directory(&self.data_dir, &pod);
            let removed = tokio::task::spawn_blocking(move || remove_tree(&directory)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(pod = %pod.name, uid = %pod.uid, %error, "logs of a pod that is gone stay");
            }
        })
    }
}

fn found(info: crate::runtime::ContainerInfo) -> Option<FoundContainer> {
    let label = |name: &str| info.labels.get(name).cloned();
    let pod = PodRef {
        namespace: label(labels::NAMESPACE)?,
        name: label(labels::NAME)?,
        uid: label(labels::UID)?,
        epoch: label(labels::EPOCH)?.parse().ok()?,
    };
    let state = match info.state {
        TaskState::Running(_) | TaskState::Stopped => berth_agent_core::FoundState::Started,
        TaskState::Created => berth_agent_core::FoundState::Made,
        TaskState::None => berth_agent_core::FoundState::Nothing,
    };
    let found = berth_agent_core::Found {
        container: label(labels::CONTAINER)?,
        attempt: label(labels::ATTEMPT)?.parse().ok()?,
        image: info.image,
        created: Time(info.created_at.as_millisecond()),
        state,
    };
    Some(FoundContainer { pod, found })
}

/// What a container carries in containerd, so that it can be told whose it is.
pub mod labels {
    pub const NAMESPACE: &str = "berth.dev/pod.namespace";
    pub const NAME: &str = "berth.dev/pod.name";
    pub const UID: &str = "berth.dev/pod.uid";
    pub const EPOCH: &str = "berth.dev/pod.epoch";
    pub const CONTAINER: &str = "berth.dev/container";
    pub const ATTEMPT: &str = "berth.dev/attempt";
}

fn prepare_files(message_file: &Path, log: &Path, stdin: Option<&Path>, attempt: u32) -> std::io::Result<()> {
    if let Some(fifo) = stdin {
        std::fs::create_dir_all(fifo.parent().unwrap_or(fifo))?;
        match nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR) {
            // A former try's.
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let file = std::fs::File::create(message_file)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
    let Some(directory) = log.parent() else { return Ok(()) };
    std::fs::create_dir_all(directory)?;
    // The current log and the one before are kept.
    for entry in std::fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split('.').next()?.parse::<u32>().ok());
        if number.is_some_and(|number| number.saturating_add(1) < attempt) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// A container's termination message, written by whoever it is: no link followed, no more read than counts.
fn read_message(path: &Path) -> String {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let Ok(file) = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) else {
        return String::new();
    };
    let mut bytes = Vec::new();
    let _ = file.take(MESSAGE as u64).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs what blocks off the async threads. What never returns (a dead disk) costs one thread and this pod.
async fn off_thread<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Fault>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(in_words),
        Err(panic) => Err(words(format!("a bug in the agent: {panic}"))),
    }
}

/// Does it on a task of its own, which goes on when this is dropped: half an image would be left otherwise.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ImageError>> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        let message = format!("a bug in the agent: {error}");
        Err(ImageError::Runtime(RuntimeError::Failed { operation: "image", message }))
    })
}

fn words(message: impl Into<String>) -> Fault {
    Fault { reason: None, message: message.into() }
}

fn in_words(error: impl std::fmt::Display) -> Fault {
    words(error.to_string())
}

fn fault(error: RuntimeError) -> Fault {
    let reason = match &error {
        RuntimeError::Config(_) => Some("CreateContainerConfigError"),
        _ => None,
    };
    Fault { reason, message: error.to_string() }
}

fn image_fault(error: ImageError) -> Fault {
    let reason = match error.reason() {
        "ErrImagePull" => None,
        reason => Some(reason),
    };
    Fault { reason, message: error.to_string() }
}
