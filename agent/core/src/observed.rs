//! All that is known of one life of a pod on this host, and how steps and their ends change it.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_proto::{Assignment, Container as Spec, volume::Source};

use crate::container::{Container, Ended, Made, Phase, Progress, Running, Stopping, Work};
use crate::probe::{Kind, Probe};
use crate::step::{Fault, Outcome, Probed, Step};
use crate::time::{Time, words};

/// Sandbox, network, volumes: 500 ms doubling to about two minutes.
const SETUP_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
/// Images and containers: 10 s doubling to five minutes.
const LAUNCH_RETRY: (Duration, Duration) = (crate::backoff::FIRST, crate::backoff::LONGEST);
/// What cleans up or watches: it must not wait long once its obstacle is gone.
const CLEANUP_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// After preStop a container has at least this long between the stop signal and KILL.
pub(crate) const LEAST_AFTER_PRE_STOP: Duration = Duration::from_secs(2);

/// What is known of a pod. Made by [`Observed::new`] or [`Observed::restore`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When this host took the pod on: `status.startTime`.
    pub began: Time,
    /// The assignment has the content of its files (after a restart of the agent it comes again with the
    /// controller; contents are not kept on disk).
    pub complete: bool,
    /// The controller wants it to run; false after a reboot until it has said so again.
    pub confirmed: bool,
    pub sandbox: Work,
    pub network: Work,
    pub ips: Vec<String>,
    pub files: Work,
    pub volumes: BTreeMap<String, Mount>,
    /// Init containers and containers.
    pub containers: BTreeMap<String, Container>,
    /// All init containers have succeeded in this sandbox.
    pub initialized: bool,
    pub stop: Option<Stop>,
    /// It has come to its own end (Succeeded or Failed) and is never started again.
    pub finished: bool,
    pub disconnect: Work,
    pub remove_sandbox: Work,
    /// Nothing of it is left on this host.
    pub gone: bool,
    pub(crate) events: Vec<Event>,
}

/// A volume of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub mount: Work,
    /// New content is to be put in place.
    pub refresh: Work,
    pub unmount: Work,
}

/// The pod is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stop {
    pub begun: Time,
    /// Whatever still runs then is killed.
    pub deadline: Time,
}

/// Something worth an Event on the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
    /// The container it is about.
    pub container: Option<String>,
}

impl Observed {
    /// A pod that has just been assigned.
    pub fn new(assignment: &Assignment, now: Time) -> Self {
        let mut observed = Observed {
            began: now,
            complete: true,
            confirmed: true,
            initialized: assignment.init_containers.is_empty(),
            ..Observed::default()
        };
        observed.cover(assignment);
        observed
    }

    /// Sees to it that every container and volume of the assignment has its entry.
    pub(crate) fn cover(&mut self, assignment: &Assignment) {
        for spec in assignment.init_containers.iter().chain(&assignment.containers) {
            let pull = spec.image_pull_policy == "Always";
            self.containers
                .entry(spec.name.clone())
                .or_insert_with(|| Container { pull, ..Container::default() });
        }
        for volume in &assignment.volumes {
            let mount = self.volumes.entry(volume.name.clone()).or_default();
            if mount.refresh.is_todo() {
                mount.refresh.succeed();
            }
        }
    }

    /// What there is to tell since this was last asked.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The pod is to end within `grace`. Said again, only a shorter time takes effect.
    pub fn stop(&mut self, assignment: &Assignment, grace: Duration, now: Time) {
        let mut deadline = now + grace;
        let mut begun = now;
        if let Some(stop) = self.stop {
            deadline = deadline.min(stop.deadline);
            begun = stop.begun;
        }
        self.stop = Some(Stop { begun, deadline });
        for spec in assignment.init_containers.iter().chain(&assignment.containers) {
            self.end_container(spec, deadline, now);
        }
    }

    /// Stops the container because the pod ends.
    pub(crate) fn end_container(&mut self, spec: &Spec, deadline: Time, now: Time) {
        let message = format!("Stopping container {}", spec.name);
        let Some(container) = self.containers.get_mut(&spec.name) else { return };
        let Phase::Running(running) = &mut container.phase else { return };
        match &mut running.stopping {
            Some(stopping) => stopping.deadline = stopping.deadline.min(deadline),
            None => {
                running.stopping = Some(stopping(spec, deadline, false, None, now));
                self.tell(false, "Killing", message, Some(&spec.name));
            }
        }
    }

    /// What is mounted of a volume is gone: it is mounted anew, and the containers that have it start anew on it.
    pub fn volume_lost(&mut self, assignment: &Assignment, volume: &str, why: &str, now: Time) {
        if self.stop.is_some() || self.finished {
            return;
        }
        self.volume(volume, |mount| mount.mount.redo());
        let deadline = now + grace(assignment);
        for spec in assignment.init_containers.iter().chain(&assignment.containers) {
            if !spec.mounts.iter().any(|mount| mount.volume == volume) {
                continue;
            }
            let Some(running) = self.running(&spec.name).filter(|running| running.stopping.is_none()) else {
                continue;
            };
            running.stopping = Some(stopping(spec, deadline, true, None, now));
            let message = format!("Volume {volume}: {why}; container {} will be restarted", spec.name);
            self.tell(true, "VolumeLost", message, Some(&spec.name));
        }
    }

    /// Another assignment for this life has come; says what of the old one is out of date.
    pub fn assigned(&mut self, old: &Assignment, new: &Assignment, now: Time) {
        let was_complete = std::mem::replace(&mut self.complete, true);
        self.confirmed = true;
        self.cover(new);
        for volume in &new.volumes {
            let before = old.volumes.iter().find(|other| other.name == volume.name);
            let Some(mount) = self.volumes.get_mut(&volume.name) else { continue };
            if before == Some(volume) && was_complete {
                continue;
            }
            if mount.mount.is_done() {
                if matches!(volume.source, Some(Source::Files(_))) {
                    mount.refresh.redo();
                }
            } else {
                mount.mount.redo();
            }
        }
        if old.host_aliases != new.host_aliases || old.dns != new.dns || old.network != new.network {
            self.files.redo();
        }
        let credentials = old.registry_auth != new.registry_auth;
        let inits = new.init_containers.len();
        for (n, spec) in new.init_containers.iter().chain(&new.containers).enumerate() {
            let mut specs = old.init_containers.iter().chain(&old.containers);
            let before = specs.find(|other| other.name == spec.name);
            let Some(container) = self.containers.get_mut(&spec.name) else { continue };
            let image = before.is_some_and(|before| before.image != spec.image);
            if image || (credentials && container.image.fault().is_some()) {
                container.image = Work::default();
                container.pull = spec.image_pull_policy == "Always";
            }
            if before.is_some_and(|before| before != spec) {
                container.launch = Work::default();
            }
            if image {
                container.restarts = Default::default();
                if n >= inits && self.stop.is_none() {
                    self.change_image(spec, new, now);
                }
            }
        }
    }

    /// A running container whose image is another one now is restarted with it.
    fn change_image(&mut self, spec: &Spec, assignment: &Assignment, now: Time) {
        let deadline = now + grace(assignment);
        let Some(running) = self.running(&spec.name) else { return };
        if running.made.image == spec.image || running.stopping.is_some() {
            return;
        }
        running.stopping = Some(stopping(spec, deadline, true, None, now));
        let message = format!("Container {} definition changed, will be restarted", spec.name);
        self.tell(false, "Killing", message, Some(&spec.name));
    }

    /// A step is begun.
    pub fn begin(&mut self, step: &Step, assignment: &Assignment, now: Time) {
        match step {
            Step::MakeSandbox => self.sandbox.begin(),
            Step::Connect => self.network.begin(),
            Step::WriteFiles => self.files.begin(),
            Step::Mount { volume } => self.volume(volume, |mount| mount.mount.begin()),
            Step::Refresh { volume } => self.volume(volume, |mount| mount.refresh.begin()),
            Step::Unmount { volume } => self.volume(volume, |mount| mount.unmount.begin()),
            Step::Disconnect => self.disconnect.begin(),
            Step::RemoveSandbox => self.remove_sandbox.begin(),
            Step::FindImage { container, .. } => self.container(container, |c| c.image.begin()),
            Step::PullImage { container, image } => {
                self.container(container, |c| c.image.begin());
                self.tell(false, "Pulling", format!("Pulling image \"{image}\""), Some(container));
            }
            Step::Create { container, attempt } => {
                let image = find(assignment, container).map_or(String::new(), |spec| spec.image.clone());
                let again = self.complete_restart(container, now);
                self.container(container, |c| {
                    if let Some(ended) = again {
                        c.last = Some(ended);
                    }
                    c.attempt = *attempt;
                    c.launch.begin();
                    c.phase = Phase::Creating(Made { image, image_id: c.image_id.clone() });
                });
            }
            Step::Start { container, .. } => self.container(container, |c| {
                if let Phase::Created(made) = &c.phase {
                    c.phase = Phase::Starting(made.clone());
                }
            }),
            Step::Remove { container, attempt } => self.container(container, |c| {
                if matches!(c.phase, Phase::Created(_)) && c.attempt == *attempt {
                    c.phase = Phase::Absent;
                    c.launch = Work::default();
                }
                c.remains.entry(*attempt).or_default().begin();
            }),
            Step::Wait { container, attempt } => {
                self.instance(container, *attempt, |running| running.wait.begin());
            }
            Step::PostStart { container, attempt } => {
                self.instance(container, *attempt, |running| running.post_start.begin());
            }
            Step::PreStop { container, attempt, .. } => self.stopping(container, *attempt, |s| {
                s.pre_stop.begin();
            }),
            Step::Signal { container, attempt, kill } => {
                self.stopping(container, *attempt, |s| if *kill { s.kill.begin() } else { s.term.begin() })
            }
            Step::Probe { container, attempt, kind } => {
                self.instance(container, *attempt, |running| {
                    if let Some(probe) = slot(running, *kind) {
                        probe.ask();
                    }
                });
            }
        }
    }

    /// The instance that ended is followed by another one: its end counts for the back-off.
    fn complete_restart(&mut self, container: &str, now: Time) -> Option<Ended> {
        let container = self.containers.get_mut(container)?;
        let ended = container.ended()?.clone();
        container.restarts.restarted(ended.exit.at, now);
        Some(ended)
    }

    /// Says so when a container that is to run again has to wait for it.
    fn held_back(&mut self, name: &str, assignment: &Assignment, now: Time) {
        let Some(container) = self.containers.get(name) else { return };
        let Some(ended) = container.ended() else { return };
        let init = assignment.init_containers.iter().any(|c| c.name == name);
        let again = self.stop.is_none() && wants_restart(&assignment.restart_policy, init, ended);
        if !again || container.restarts.allowed(ended.exit.at).0 <= now {
            return;
        }
        let pod = assignment.pod.clone().unwrap_or_default();
        let message = format!(
            "Back-off restarting failed container {name} in pod {}_{}({})",
            pod.name, pod.namespace, pod.uid
        );
        self.tell(true, "BackOff", message, Some(name));
    }

    /// A step has ended.
    pub fn record(&mut self, step: &Step, outcome: Outcome, assignment: &Assignment, now: Time) {
        match (step, outcome) {
            (Step::MakeSandbox, Outcome::Failed(fault)) => {
                self.sandbox_failed(&fault);
                self.sandbox.fail(fault, now, SETUP_RETRY.0, SETUP_RETRY.1);
            }
            (Step::MakeSandbox, _) => self.sandbox.succeed(),
            (Step::Connect, Outcome::Failed(fault)) => {
                self.sandbox_failed(&fault);
                self.network.fail(fault, now, SETUP_RETRY.0, SETUP_RETRY.1);
            }
            (Step::Connect, outcome) => {
                if let Outcome::Connected { ips } = outcome {
                    self.ips = ips;
                }
                self.network.succeed();
            }
            (Step::WriteFiles, Outcome::Failed(fault)) => {
                self.sandbox_failed(&fault);
                self.files.fail(fault, now, SETUP_RETRY.0, SETUP_RETRY.1);
            }
            (Step::WriteFiles, _) => self.files.succeed(),
            (Step::Mount { volume }, Outcome::Failed(fault)) => {
                self.mount_failed(volume, &fault);
                self.volume(volume, |mount| {
                    mount.refresh.succeed();
                    mount.mount.fail(fault, now, SETUP_RETRY.0, SETUP_RETRY.1);
                });
            }
            (Step::Mount { volume }, _) => self.volume(volume, |mount| mount.mount.succeed()),
            (Step::Refresh { volume }, outcome) => {
                let fault = match outcome {
                    Outcome::Failed(fault) => Some(fault),
                    _ => None,
                };
                if let Some(fault) = &fault {
                    self.mount_failed(volume, fault);
                }
                self.volume(volume, |mount| match fault {
                    Some(fault) => mount.refresh.fail(fault, now, SETUP_RETRY.0, SETUP_RETRY.1),
                    None => mount.refresh.succeed(),
                });
            }
            (Step::Unmount { volume }, outcome) => {
                let first = self.volumes.get(volume).is_some_and(|mount| mount.unmount.failures == 0);
                if let Outcome::Failed(fault) = &outcome
                    && first
                {
                    let message = format!("The pod waits for its volume {volume:?}: {}", fault.message);
                    self.tell(true, "FailedUnMount", message, None);
                }
                self.volume(volume, |mount| settle(&mut mount.unmount, outcome, now));
            }
            (Step::Disconnect, outcome) => settle(&mut self.disconnect, outcome, now),
            (Step::RemoveSandbox, outcome) => {
                settle(&mut self.remove_sandbox, outcome, now);
                self.gone = self.remove_sandbox.is_done();
            }
            (Step::FindImage { container, image } | Step::PullImage { container, image }, outcome) => {
                let pulling = matches!(step, Step::PullImage { .. });
                self.image(container, image, pulling, outcome, assignment, now);
            }
            (Step::Create { container, attempt } | Step::Start { container, attempt }, outcome) => {
                self.launched(container, *attempt, outcome, assignment, now);
            }
            (Step::Wait { container, attempt }, Outcome::Exited(exit)) => {
                let pull = find(assignment, container).is_some_and(|s| s.image_pull_policy == "Always");
                self.container(container, |c| c.end(*attempt, exit, pull));
                self.held_back(container, assignment, now);
            }
            (Step::Wait { container, attempt }, outcome) => {
                self.instance(container, *attempt, |running| match outcome {
                    Outcome::Failed(fault) => {
                        running.wait.fail(fault, now, CLEANUP_RETRY.0, CLEANUP_RETRY.1);
                    }
                    _ => running.wait = Work::default(),
                });
            }
            (Step::PostStart { container, attempt }, outcome) => {
                self.post_started(container, *attempt, outcome, assignment, now);
            }
            (Step::PreStop { container, attempt, .. }, outcome) => {
                if let Outcome::Failed(fault) = outcome {
                    let message = format!("PreStopHook failed: {}", fault.message);
                    self.tell(true, "FailedPreStopHook", message, Some(container));
                }
                self.stopping(container, *attempt, |stopping| {
                    stopping.pre_stop.succeed();
                    if stopping.deadline > stopping.begun {
                        stopping.deadline = stopping.deadline.max(now + LEAST_AFTER_PRE_STOP);
                    }
                });
            }
            (Step::Signal { container, attempt, kill }, outcome) => {
                self.stopping(container, *attempt, |stopping| {
                    if *kill {
                        stopping.killed = Some(now);
                    }
                    settle(if *kill { &mut stopping.kill } else { &mut stopping.term }, outcome, now);
                });
            }
            (Step::Probe { container, attempt, kind }, outcome) => {
                self.probed(container, *attempt, *kind, outcome, assignment, now);
            }
            (Step::Remove { container, attempt }, outcome) => self.container(container, |c| {
                let work = c.remains.entry(*attempt).or_default();
                settle(work, outcome, now);
                if work.is_done() {
                    c.remains.remove(attempt);
                }
            }),
        }
        self.conclude(assignment);
    }

    fn image(
        &mut self,
        container: &str,
        image: &str,
        pulling: bool,
        outcome: Outcome,
        assignment: &Assignment,
        now: Time,
    ) {
        let Some(spec) = find(assignment, container) else { return };
        if spec.image != image {
            // Another image is wanted by now, and has been looked for since.
            return;
        }
        let pull_policy = spec.image_pull_policy.as_str();
        let mut events: Vec<Event> = Vec::new();
        let mut tell = |warning, reason, message| {
            events.push(Event { warning, reason, message, container: Some(container.to_owned()) });
        };
        let Some(state) = self.containers.get_mut(container) else { return };
        match outcome {
            Outcome::Image { id, pulled } => {
                state.image.succeed();
                state.pull = false;
                state.image_id = id;
                tell(
                    false,
                    "Pulled",
                    match pulled {
                        None => format!("Container image \"{image}\" already present on machine"),
                        Some(pull) => format!(
                            "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size} bytes.",
                            took = words(pull.took),
                            size = pull.size
                        ),
                    },
                );
            }
            Outcome::NoImage if pull_policy == "Never" => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                tell(true, "ErrImageNeverPull", message.clone());
                tell(true, "Failed", "Error: ErrImageNeverPull".to_owned());
                let fault = Fault { reason: Some("ErrImageNeverPull"), message };
                state.image.fail(fault, now, LAUNCH_RETRY.0, LAUNCH_RETRY.1);
            }
            Outcome::NoImage => {
                state.pull = true;
                // The same try goes on with the pull: a failure count is kept.
                state.image.state = Progress::Todo;
            }
            Outcome::Failed(fault) => {
                let reason = fault.reason.unwrap_or("ErrImagePull");
                if pulling {
                    tell(true, "Failed", format!("Failed to pull image \"{image}\": {}", fault.message));
                }
                tell(true, "Failed", format!("Error: {reason}"));
                if pulling {
                    tell(false, "BackOff", format!("Back-off pulling image \"{image}\""));
                }
                state.image.fail(fault, now, LAUNCH_RETRY.0, LAUNCH_RETRY.1);
                // The next try looks again whether it is here by now.
                state.pull = pull_policy == "Always";
            }
            _ => state.image = Work::default(),
        }
        self.events.append(&mut events);
    }

    fn launched(&mut self, name: &str, attempt: u32, outcome: Outcome, assignment: &Assignment, now: Time) {
        let Some(spec) = find(assignment, name) else { return };
        let Some(container) = self.containers.get_mut(name) else { return };
        if container.attempt != attempt {
            return;
        }
        match (container.phase.clone(), outcome) {
            (phase @ (Phase::Creating(_) | Phase::Starting(_)), Outcome::Failed(mut fault)) => {
                let creating = matches!(phase, Phase::Creating(_));
                let usual = if creating { "CreateContainerError" } else { "RunContainerError" };
                fault.reason.get_or_insert(usual);
                container.phase = Phase::Absent;
                container.remains.insert(attempt, Work::default());
                // The image may have been removed under us.
                container.image.state = Progress::Todo;
                let message = format!("Error: {}", fault.message);
                container.launch.fail(fault, now, LAUNCH_RETRY.0, LAUNCH_RETRY.1);
                self.tell(true, "Failed", message, Some(name));
            }
            (Phase::Creating(made), _) => {
                container.phase = Phase::Created(made);
                self.tell(false, "Created", format!("Created container: {name}"), Some(name));
            }
            (Phase::Starting(made), outcome) => {
                let since = match outcome {
                    Outcome::Started { at } => at,
                    _ => now,
                };
                container.launch.succeed();
                let running = running(spec, made, since, None);
                container.phase = Phase::Running(Box::new(running));
                self.tell(false, "Started", format!("Started container {name}"), Some(name));
                match self.stop {
                    Some(stop) => self.end_container(spec, stop.deadline, now),
                    None => self.change_image(spec, assignment, now),
                }
            }
            _ => {}
        }
    }

    fn post_started(
        &mut self,
        name: &str,
        attempt: u32,
        outcome: Outcome,
        assignment: &Assignment,
        now: Time,
    ) {
        let Some(spec) = find(assignment, name) else { return };
        let again = assignment.restart_policy != "Never";
        let deadline = now + grace(assignment);
        let Some(running) = self.containers.get_mut(name).and_then(|c| c.running_mut(attempt)) else {
            return;
        };
        running.post_start.succeed();
        let Outcome::Failed(fault) = outcome else { return };
        let message = format!("PostStartHook failed: {}", fault.message);
        let shown = Fault { reason: Some("PostStartHookError"), message: message.clone() };
        if running.stopping.is_none() {
            running.stopping = Some(stopping(spec, deadline, again, Some(shown), now));
        }
        self.tell(true, "FailedPostStartHook", message, Some(name));
        self.tell(false, "Killing", "FailedPostStartHook".to_owned(), Some(name));
    }

    fn probed(
        &mut self,
        name: &str,
        attempt: u32,
        kind: Kind,
        outcome: Outcome,
        assignment: &Assignment,
        now: Time,
    ) {
        let Some(spec) = find(assignment, name) else { return };
        let probed = match outcome {
            Outcome::Probed(probed) => probed,
            Outcome::Failed(fault) => Probed::Error(fault.message),
            _ => return,
        };
        let Some(running) = self.containers.get_mut(name).and_then(|c| c.running_mut(attempt)) else {
            return;
        };
        let Some(probe) = slot(running, kind) else { return };
        let answer = probe.answer(&probed, now);
        let verdict = probe.verdict();
        let mut events = Vec::new();
        if answer.told && running.stopping.is_none() {
            let message = match &probed {
                Probed::Failure(output) => format!("{} probe failed: {output}", kind.title()),
                Probed::Error(error) => format!("{} probe errored: {error}", kind.title()),
                Probed::Success => String::new(),
            };
            events.push((true, "Unhealthy", message));
        }
        if answer.changed && kind == Kind::Startup && verdict == Some(true) {
            running.started = true;
            running.startup = None;
            let since = running.since;
            let ask = |probe: &Option<berth_proto::Probe>, kind| {
                probe.as_ref().map(|probe| Probe::new(kind, probe, since, now, None))
            };
            running.liveness = ask(&spec.liveness, Kind::Liveness);
            running.readiness = ask(&spec.readiness, Kind::Readiness);
        }
        if answer.changed && kind != Kind::Readiness && verdict == Some(false) && running.stopping.is_none() {
            let again = assignment.restart_policy != "Never";
            let probe = if kind == Kind::Liveness { &spec.liveness } else { &spec.startup };
            let grace = probe
                .as_ref()
                .and_then(|probe| probe.termination_grace_seconds)
                .map_or(grace(assignment), seconds);
            running.stopping = Some(stopping(spec, now + grace, again, None, now));
            let what = kind.title().to_lowercase();
            let rest = if again { ", will be restarted" } else { "" };
            events.push((false, "Killing", format!("Container {name} failed {what} probe{rest}")));
        }
        for (warning, reason, message) in events {
            self.tell(warning, reason, message, Some(name));
        }
    }

    /// Whether the init phase is over, and whether the pod has come to its own end.
    pub(crate) fn conclude(&mut self, assignment: &Assignment) {
        let done = |spec: &Spec| {
            self.containers.get(&spec.name).and_then(Container::ended).is_some_and(|e| e.exit.code == 0)
        };
        if !self.initialized {
            self.initialized = assignment.init_containers.iter().all(done);
        }
        let over = |spec: &Spec, init: bool| {
            self.containers
                .get(&spec.name)
                .and_then(Container::ended)
                .is_some_and(|ended| !wants_restart(&assignment.restart_policy, init, ended))
        };
        let failed_init = |spec: &Spec| over(spec, true) && !done(spec);
        if self.initialized {
            self.finished |= !assignment.containers.is_empty()
                && assignment.containers.iter().all(|spec| over(spec, false));
        } else {
            self.finished |= assignment.init_containers.iter().any(failed_init);
        }
    }

    fn sandbox_failed(&mut self, fault: &Fault) {
        let message = format!("Failed to create pod sandbox: {}", fault.message);
        self.tell(true, "FailedCreatePodSandBox", message, None);
    }

    fn mount_failed(&mut self, volume: &str, fault: &Fault) {
        let message = format!("MountVolume.SetUp failed for volume \"{volume}\" : {}", fault.message);
        self.tell(true, "FailedMount", message, None);
    }

    pub(crate) fn tell(
        &mut self,
        warning: bool,
        reason: &'static str,
        message: String,
        container: Option<&str>,
    ) {
        self.events.push(Event { warning, reason, message, container: container.map(str::to_owned) });
    }

    fn running(&mut self, name: &str) -> Option<&mut Running> {
        match &mut self.containers.get_mut(name)?.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        }
    }

    fn volume(&mut self, name: &str, change: impl FnOnce(&mut Mount)) {
        if let Some(mount) = self.volumes.get_mut(name) {
            change(mount);
        }
    }

    fn container(&mut self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.get_mut(name) {
            change(container);
        }
    }

    fn instance(&mut self, name: &str, attempt: u32, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.containers.get_mut(name).and_then(|c| c.running_mut(attempt)) {
            change(running);
        }
    }

    fn stopping(&mut self, name: &str, attempt: u32, change: impl FnOnce(&mut Stopping)) {
        self.instance(name, attempt, |running| {
            if let Some(stopping) = &mut running.stopping {
                change(stopping);
            }
        });
    }
}

impl Container {
    /// The running instance has ended.
    pub(crate) fn end(&mut self, attempt: u32, exit: crate::step::Exit, pull: bool) {
        if self.attempt != attempt {
            return;
        }
        let Phase::Running(running) = &mut self.phase else { return };
        let stopping = running.stopping.take();
        let exit = crate::step::Exit { started: running.since.min(exit.at), ..exit };
        self.phase = Phase::Ended(Ended {
            attempt,
            made: std::mem::take(&mut running.made),
            exit,
            again: stopping.as_ref().is_some_and(|stopping| stopping.again),
            shown: stopping.and_then(|stopping| stopping.shown),
        });
        self.remains.insert(attempt, Work::default());
        self.launch = Work::default();
        if pull {
            self.image = Work::default();
            self.pull = true;
        }
    }
}

/// A container that runs from now on.
pub(crate) fn running(spec: &Spec, made: Made, since: Time, known: Option<(bool, bool)>) -> Running {
    let (started, ready) = known.map_or((None, None), |(started, ready)| (Some(started), Some(ready)));
    let started = spec.startup.is_none() || started == Some(true);
    let ask = |probe: &Option<berth_proto::Probe>, kind, verdict| {
        probe.as_ref().map(|probe| Probe::new(kind, probe, since, since, verdict))
    };
    Running {
        made,
        since,
        wait: Work::default(),
        post_start: if spec.post_start.is_none() || known.is_some() { Work::done() } else { Work::default() },
        started,
        startup: if started { None } else { ask(&spec.startup, Kind::Startup, None) },
        liveness: if started { ask(&spec.liveness, Kind::Liveness, None) } else { None },
        readiness: if started { ask(&spec.readiness, Kind::Readiness, ready) } else { None },
        stopping: None,
    }
}

/// A container that is to end by `deadline`.
pub(crate) fn stopping(
    spec: &Spec,
    deadline: Time,
    again: bool,
    shown: Option<Fault>,
    now: Time,
) -> Stopping {
    Stopping {
        begun: now,
        deadline,
        again,
        shown,
        pre_stop: if spec.pre_stop.is_none() { Work::done() } else { Work::default() },
        term: Work::default(),
        kill: Work::default(),
        killed: None,
    }
}

/// Whether a container that ended so is started again.
pub fn wants_restart(policy: &str, init: bool, ended: &Ended) -> bool {
    if init && ended.exit.code == 0 {
        return false;
    }
    ended.again
        || match policy {
            "Never" => false,
            "OnFailure" => ended.exit.code != 0,
            _ => true,
        }
}

/// The container of that name in the assignment.
pub fn find<'a>(assignment: &'a Assignment, container: &str) -> Option<&'a Spec> {
    assignment.init_containers.iter().chain(&assignment.containers).find(|spec| spec.name == container)
}

fn slot(running: &mut Running, kind: Kind) -> Option<&mut Probe> {
    match kind {
        Kind::Startup => running.startup.as_mut(),
        Kind::Liveness => running.liveness.as_mut(),
        Kind::Readiness => running.readiness.as_mut(),
    }
}

fn settle(work: &mut Work, outcome: Outcome, now: Time) {
    match outcome {
        Outcome::Failed(fault) => work.fail(fault, now, CLEANUP_RETRY.0, CLEANUP_RETRY.1),
        _ => work.succeed(),
    }
}

fn grace(assignment: &Assignment) -> Duration {
    seconds(assignment.termination_grace_seconds)
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
