//! The pods of this host: one driver task a pod, which asks `berth-agent-core` what comes next, does it
//! through the host's modules, and publishes what is.
//!
//! What this module must never do: start a life of a pod that is older than one it has seen, report a pod
//! as stopped while anything of it is left, or let one pod's trouble hold up another pod.

mod adopt;
mod clock;
mod driver;
mod etc;
mod farewell;
mod host;
mod outbox;
mod target;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use berth_agent_core::{Admission, Fence, Observed};
use berth_proto::volume_operation::Source as Operand;
use berth_proto::{
    Assignment, OperationResult, PodEvent, PodInventory, PodRef, PodStatus, Stop, VolumeOperation,
    VolumeUsage, Welcome,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use clock::Clock;
use driver::{Driver, Shared, Surroundings};
pub use farewell::Farewell;
pub use host::{FoundContainer, Host, RealHost, Subjects, Survey, labels};
pub use outbox::Outbox;
use target::Target;
pub use target::{AttachTarget, ExecTarget, LogTarget, TargetError};

use crate::cgroup::Cgroups;
use crate::network::{HostPorts, Network};
use crate::runtime::Runtime;
use crate::state::{State, StateError};
use crate::volumes::nfs::News;
use crate::volumes::{NfsConfig, Volumes};
use crate::waiting::Standing;

/// A volume operation is given this long.
const OPERATION: Duration = Duration::from_secs(120);

/// Where things are and what this host is called.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// Survives reboots: `state.json`, `pods/<uid>/`, `volumes/`, `logs/`.
    pub data_dir: PathBuf,
    /// Gone after a reboot: `pods/<uid>/ns/`.
    pub run_dir: PathBuf,
    /// `status.hostIP` of every pod; the first is the main one.
    pub host_ips: Vec<IpAddr>,
    /// Told which ports of the host lead to its pods.
    pub host_ports: HostPorts,
    /// How shares of NFS servers are mounted.
    pub nfs: NfsConfig,
}

/// Why the pods of this host cannot be taken care of.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// A directory.
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
    /// What runs here cannot be listed.
    #[error("what runs on this host cannot be told: {0}")]
    Survey(String),
}

/// The pods of this host. A cheap handle; all methods return at once and never wait for a pod. When the last
/// handle is dropped, the drivers end where they are: the pods themselves run on.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    config: PodsConfig,
    volumes: Volumes,
    around: Surroundings,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    fence: Fence,
    /// By uid: everything this host holds anything of.
    pods: BTreeMap<String, Life>,
    /// By (namespace, name): the next life, waiting for the former to be gone.
    behind: HashMap<(String, String), Assignment>,
    /// By uid, among `pods`: those that were found and that nothing is known of, with what the controller has
    /// said of them since. It is done when they are gone.
    unknown: BTreeMap<String, Option<Wanted>>,
}

enum Wanted {
    Run(Box<Assignment>),
    Stopped(PodRef),
}

struct Life {
    shared: Arc<Shared>,
    driver: AbortHandle,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Pods {
    /// Takes up what this host holds: waits for containerd, adopts what runs, and cleans what nobody knows.
    pub async fn open(
        config: PodsConfig,
        runtime: Runtime,
        network: Network,
        cgroups: Cgroups,
    ) -> Result<Pods, OpenError> {
        let clock = Clock::start();
        let host_ips = config.host_ips.iter().map(ToString::to_string).collect();
        let volumes = Volumes::new(&config.data_dir, config.nfs.clone());
        let data_dir = config.data_dir.clone();
        let host = RealHost::new(runtime, network, cgroups, volumes.clone(), data_dir, host_ips, clock);
        Pods::take_up(config, Arc::new(host), volumes, clock).await
    }

    /// As [`Pods::open`], with another host to do the steps.
    pub async fn open_with(config: PodsConfig, host: Arc<dyn Host>, clock: Clock) -> Result<Pods, OpenError> {
        let volumes = Volumes::new(&config.data_dir, config.nfs.clone());
        Pods::take_up(config, host, volumes, clock).await
    }

    async fn take_up(
        config: PodsConfig,
        host: Arc<dyn Host>,
        volumes: Volumes,
        clock: Clock,
    ) -> Result<Pods, OpenError> {
        let io = |path: PathBuf| move |cause| OpenError::Io { path, cause };
        for part in ["pods", "logs", "volumes"] {
            let path = config.data_dir.join(part);
            tokio::fs::create_dir_all(&path).await.map_err(io(path))?;
        }
        let opened = State::open(config.data_dir.join("state.json")).await?;
        let around = Surroundings {
            host: host.clone(),
            state: opened.state,
            outbox: Arc::default(),
            clock,
            host_ips: config.host_ips.iter().map(ToString::to_string).collect(),
            host_ports: config.host_ports.clone(),
            changes: watch::Sender::new(0),
        };
        let survey = host.survey().await.map_err(OpenError::Survey)?;
        let held = Held { fence: opened.fence, ..Held::default() };
        let pods = Pods { inner: Arc::new(Inner { config, volumes, around, held: Mutex::new(held) }) };
        pods.inner.volumes.nfs().listen(Listener(Arc::downgrade(&pods.inner)));
        pods.adopt(opened.pods, survey, opened.rebooted);
        Ok(pods)
    }

    /// What goes out to the controller: statuses (latest wins), stopped reports and events.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.inner.around.outbox.clone()
    }

    /// A session is open. What may start is said by the assignments that follow.
    pub fn welcome(&self, welcome: &Welcome) {
        if let Some(highest) = self.inner.held().fence.ahead_of(welcome.epoch_floor) {
            tracing::warn!(
                controller = welcome.epoch_floor,
                seen = highest,
                "the controller knows only older epochs than this host has seen: was it restored from a back-up? \
                 Pods it assigns with older epochs are not started"
            );
        }
    }

    /// Runs this life of the pod, or takes over what has changed in its assignment.
    pub fn apply(&self, assignment: Assignment) {
        self.admit(&mut self.inner.held(), assignment);
    }

    fn admit(&self, held: &mut Held, assignment: Assignment) {
        let Some(pod) = assignment.pod.clone() else { return };
        if let Some(wanted) = held.unknown.get_mut(&pod.uid) {
            *wanted = Some(Wanted::Run(Box::new(assignment)));
            return;
        }
        let same_name = held.lives_of(&pod);
        let refs: Vec<&PodRef> = same_name.iter().map(|shared| &shared.pod).collect();
        let admission = held.fence.admit(&pod, refs);
        match admission {
            Admission::Update => {
                if let Some(life) = held.pods.get(&pod.uid) {
                    life.shared.apply(assignment);
                }
            }
            Admission::Start => {
                self.inner.around.state.put_fence(&held.fence);
                self.start(held, assignment);
            }
            Admission::Behind => {
                self.inner.around.state.put_fence(&held.fence);
                for former in same_name {
                    // The controller has moved on: whatever it was that kept it from saying so.
                    if !former.view().stopping {
                        tracing::warn!(namespace = %pod.namespace, pod = %pod.name, former = %former.pod.uid,
                            "a newer life of this pod is assigned: the former is stopped");
                        former.stop(grace(assignment.termination_grace_seconds));
                    }
                }
                held.behind.insert((pod.namespace.clone(), pod.name.clone()), assignment);
                self.inner.next(held, self, &pod);
            }
            Admission::Refused { seen } => {
                tracing::warn!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, epoch = pod.epoch, seen,
                    "an assignment older than what this host has seen is not started");
            }
        }
    }

    /// Ends this life of the pod; `Stopped` goes out when nothing of it is left. A pod this host does not
    /// hold (any more) is answered with `Stopped` at once.
    pub fn stop(&self, stop: Stop) {
        let Some(pod) = stop.pod else { return };
        let mut held = self.inner.held();
        let key = (pod.namespace.clone(), pod.name.clone());
        if held.behind.get(&key).and_then(|next| next.pod.as_ref()).is_some_and(|next| next.uid == pod.uid) {
            held.behind.remove(&key);
        }
        if let Some(wanted) = held.unknown.get_mut(&pod.uid) {
            *wanted = Some(Wanted::Stopped(pod.clone()));
            if let Some(life) = held.pods.get(&pod.uid) {
                life.shared.stop(grace(stop.grace_seconds));
            }
            return;
        }
        match held.pods.get(&pod.uid) {
            Some(life) if life.shared.pod.epoch == pod.epoch => life.shared.stop(grace(stop.grace_seconds)),
            Some(life) => {
                tracing::warn!(pod = %pod.name, epoch = pod.epoch, held = life.shared.pod.epoch,
                    "a stop for another epoch is ignored");
            }
            None => {
                held.fence.ended(&pod);
                self.inner.around.state.put_fence(&held.fence);
                self.inner.around.outbox.stopped(pod);
            }
        }
    }

    /// The controller has freed the pod's record: forgets a stopped pod, its logs with it.
    pub fn forget(&self, pod: PodRef) {
        let mut held = self.inner.held();
        let Some(life) = held.pods.get(&pod.uid) else {
            // Of a life before the state was lost, say: its logs may still be there.
            tokio::spawn(self.inner.around.host.clone().forget(pod));
            return;
        };
        if life.shared.pod.epoch != pod.epoch {
            return;
        }
        if !life.shared.view().gone {
            // Its record is freed although something is left of it: that must not stay.
            tracing::warn!(pod = %pod.name, uid = %pod.uid, "the controller forgets a pod that is still here: it is stopped");
            life.shared.stop(Duration::ZERO);
            return;
        }
        held.pods.remove(&pod.uid);
        self.inner.around.changed();
        held.fence.ended(&pod);
        self.inner.around.state.put_fence(&held.fence);
        self.inner.around.state.remove(&pod.uid);
        self.inner.next(&mut held, self, &pod);
        drop(held);
        tokio::spawn(self.inner.around.host.clone().forget(pod));
    }

    /// Every pod this host holds anything of, for `Hello`.
    pub fn inventory(&self) -> Vec<PodInventory> {
        let held = self.inner.held();
        let one = |life: &Life| {
            let view = life.shared.view();
            PodInventory {
                pod: Some(life.shared.pod.clone()),
                // One that came to its own end is kept (for its logs) until it is told to stop.
                stopped: view.gone && view.stopping,
                status: Some(PodStatus { pod: Some(life.shared.pod.clone()), ..view.status.clone() }),
            }
        };
        // Of some nothing but a directory was found: they have no name to be reported by.
        held.pods.values().filter(|life| !life.shared.pod.name.is_empty()).map(one).collect()
    }

    /// Told when anything changes that [`Pods::standing`] says.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.around.changes.subscribe()
    }

    /// Whether the pod of this name is Ready here; None: this host holds nothing of it.
    pub fn standing(&self, namespace: &str, pod: &str) -> Option<Standing> {
        let name = PodRef { namespace: namespace.to_owned(), name: pod.to_owned(), ..PodRef::default() };
        let lives = self.inner.held().lives_of(&name);
        let life = lives.iter().max_by_key(|life| life.pod.epoch)?;
        let view = life.view();
        if view.gone || view.stopping {
            return Some(Standing::not_ready("it is stopping"));
        }
        let ready = view.status.conditions.iter().find(|condition| condition.r#type == "Ready");
        let phase = &view.status.phase;
        Some(match ready {
            Some(ready) if ready.status == "True" => Standing::ready("it is Ready"),
            Some(ready) => Standing::not_ready(format!("it is {phase}, and not Ready: {}", ready.message)),
            None => Standing::not_ready(format!("it is {phase}, and not Ready")),
        })
    }

    /// The running container to exec into.
    pub fn exec_target(&self, pod: &PodRef, container: &str) -> Result<ExecTarget, TargetError> {
        Target::find(&self.inner.held().pods, pod, container)?.exec()
    }

    /// The running container to attach to.
    pub fn attach_target(&self, pod: &PodRef, container: &str) -> Result<AttachTarget, TargetError> {
        Target::find(&self.inner.held().pods, pod, container)?.attach(&self.inner.config.data_dir)
    }

    /// The log of the container's current (or, with `previous`, its previous) instance.
    pub fn log_target(
        &self,
        pod: &PodRef,
        container: &str,
        previous: bool,
    ) -> Result<LogTarget, TargetError> {
        Target::find(&self.inner.held().pods, pod, container)?.log(&self.inner.config.data_dir, previous)
    }

    /// Makes, removes or archives a volume's directory.
    pub async fn volume(&self, operation: VolumeOperation) -> OperationResult {
        let operation_id = operation.operation_id;
        let volumes = self.inner.volumes.clone();
        if let Some(Operand::Nfs(source)) = &operation.source {
            let work = volumes.nfs().operate(operation.verb(), source);
            let error = match tokio::time::timeout(OPERATION, work).await {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => error.to_string(),
                // It goes on; asked again, it is waited for again.
                Err(_) => format!("not done within {OPERATION:?}"),
            };
            return OperationResult { operation_id, error };
        }
        let work = tokio::task::spawn_blocking(move || volumes.operate(&operation));
        let error = match tokio::time::timeout(OPERATION, work).await {
            Ok(Ok(Ok(()))) => String::new(),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(panic)) => format!("a bug in the agent: {panic}"),
            Err(_) => format!("not done within {OPERATION:?}"),
        };
        OperationResult { operation_id, error }
    }

    fn start(&self, held: &mut Held, assignment: Assignment) {
        let observed = Observed::new(&assignment, self.inner.around.clock.now());
        self.drive(held, assignment, observed, None, false);
    }

    fn drive(
        &self,
        held: &mut Held,
        assignment: Assignment,
        observed: Observed,
        status: Option<PodStatus>,
        unknown: bool,
    ) {
        let pod = assignment.pod.clone().unwrap_or_default();
        let shared = Arc::new(Shared::new(pod.clone()));
        let around = self.inner.around.clone();
        let driver = Driver::new(shared.clone(), around, assignment, observed, status, unknown);
        // Weak: a driver must not keep alive what would end it.
        let inner = Arc::downgrade(&self.inner);
        let uid = pod.uid.clone();
        let gone = move || {
            if let Some(inner) = inner.upgrade() {
                Pods { inner }.gone(&pod);
            }
        };
        let driver = tokio::spawn(driver.run(gone)).abort_handle();
        held.pods.insert(uid, Life { shared, driver });
        self.inner.around.changed();
    }
}

impl Pods {
    /// Nothing is left of it: whoever waited for that goes on.
    fn gone(&self, pod: &PodRef) {
        let mut held = self.inner.held();
        let wanted = held.unknown.remove(&pod.uid);
        if wanted.is_some() {
            held.pods.remove(&pod.uid);
        }
        self.inner.next(&mut held, self, pod);
        match wanted.flatten() {
            Some(Wanted::Run(assignment)) => self.admit(&mut held, *assignment),
            Some(Wanted::Stopped(pod)) => {
                held.fence.ended(&pod);
                self.inner.around.state.put_fence(&held.fence);
                self.inner.around.outbox.stopped(pod);
            }
            None => {}
        }
    }
}

/// What is found out about volumes between two steps.
struct Listener(Weak<Inner>);

impl News for Listener {
    fn event(&self, pod: &PodRef, warning: bool, reason: &'static str, message: String) {
        let Some(inner) = self.0.upgrade() else { return };
        inner.around.outbox.event(PodEvent {
            pod: Some(pod.clone()),
            r#type: if warning { "Warning" } else { "Normal" }.to_owned(),
            reason: reason.to_owned(),
            message,
            field_path: String::new(),
            at_ms: inner.around.clock.now().0,
        });
    }

    fn lost(&self, pod: &PodRef, volume: &str, why: String) {
        let Some(inner) = self.0.upgrade() else { return };
        if let Some(life) = inner.held().pods.get(&pod.uid) {
            life.shared.lost(volume, why);
        }
    }

    fn usage(&self, usage: VolumeUsage) {
        if let Some(inner) = self.0.upgrade() {
            inner.around.outbox.usage(usage);
        }
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the life that waits for this name, if all former ones are gone.
    fn next(&self, held: &mut Held, pods: &Pods, pod: &PodRef) {
        if held.lives_of(pod).iter().any(|life| !life.view().gone) {
            return;
        }
        if let Some(assignment) = held.behind.remove(&(pod.namespace.clone(), pod.name.clone())) {
            pods.start(held, assignment);
        }
    }
}

impl Held {
    fn lives_of(&self, pod: &PodRef) -> Vec<Arc<Shared>> {
        let same =
            |life: &&Life| life.shared.pod.name == pod.name && life.shared.pod.namespace == pod.namespace;
        self.pods.values().filter(same).map(|life| life.shared.clone()).collect()
    }
}

fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
