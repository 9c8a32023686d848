//! What comes next in a pod's life.
//!
//! ```text
//!   images ─────────────────────────────┐
//!   sandbox ─┬─ volumes, files ─────────┼─► create ─► start ─► postStart ─► probes
//!            └─ network ────────────────┼────────────►   (init containers one by one, then the others)
//!                                       │
//!   stop, or the pod's own end:  preStop ─► TERM ─► KILL ─► remove ─► volumes, network ─► sandbox ─► gone
//! ```
//! What needs nothing of one another goes on at the same time; what was done is undone in reverse.

use std::time::Duration;

use berth_proto::{Assignment, Container as Spec};

use crate::container::{Container, Phase, Progress, Running, Work, wants_addresses};
use crate::observed::{LEAST_AFTER_PRE_STOP, Observed, wants_restart};
use crate::probe::Kind;
use crate::step::Step;
use crate::time::Time;

/// KILL is sent again after this long if the container still runs.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// What to begin now, and when to ask again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    pub begin: Vec<Step>,
    pub wake: Option<Time>,
}

impl Steps {
    fn wake(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Begins the step if its work is due, and sees that it is asked for again when it is not yet.
    fn work(&mut self, work: &Work, now: Time, step: impl FnOnce() -> Step) {
        match work.due() {
            Some(at) if at <= now => self.begin.push(step()),
            Some(at) => self.wake(at),
            None => {}
        }
    }
}

/// The steps to begin now, given what is to be and what is. The caller reports each with
/// [`Observed::begin`] before it asks again.
pub fn lifecycle(assignment: &Assignment, observed: &Observed, now: Time) -> Steps {
    let mut steps = Steps::default();
    if observed.gone {
        return steps;
    }
    let plan = Plan { assignment, observed, now };
    for spec in plan.specs() {
        plan.tend(spec, &mut steps);
    }
    if observed.stop.is_some() || observed.finished {
        plan.wind_down(&mut steps);
    } else if observed.confirmed {
        plan.set_up(&mut steps);
        plan.launch(&mut steps);
    }
    plan.clear(&mut steps);
    steps
}

struct Plan<'a> {
    assignment: &'a Assignment,
    observed: &'a Observed,
    now: Time,
}

impl<'a> Plan<'a> {
    fn specs(&self) -> impl Iterator<Item = &'a Spec> {
        self.assignment.init_containers.iter().chain(&self.assignment.containers)
    }

    fn container(&self, name: &str) -> Option<&'a Container> {
        self.observed.containers.get(name)
    }

    /// Removes what has ended. Not while a container is made: they share a shim, which ends with the last of
    /// its containers, and one that is on its way must not come upon a shim on its way out. So a restart
    /// makes the new one first, on the shim that is there.
    fn clear(&self, steps: &mut Steps) {
        let making = |container: &Container| matches!(container.phase, Phase::Creating(_));
        if self.observed.containers.values().any(making)
            || steps.begin.iter().any(|step| matches!(step, Step::Create { .. }))
        {
            return;
        }
        for (name, container) in &self.observed.containers {
            for (attempt, work) in &container.remains {
                let step = || Step::Remove { container: name.clone(), attempt: *attempt };
                steps.work(work, self.now, step);
            }
        }
    }

    fn clearing(&self) -> bool {
        let mut remains = self.observed.containers.values().flat_map(|container| container.remains.values());
        remains.any(Work::is_doing)
    }

    /// What a running container needs: to be waited for, its hooks, its probes, its end.
    fn tend(&self, spec: &Spec, steps: &mut Steps) {
        let Some(container) = self.container(&spec.name) else { return };
        let Some(running) = container.running() else { return };
        let (name, attempt) = (&spec.name, container.attempt);
        steps.work(&running.wait, self.now, || Step::Wait { container: name.clone(), attempt });
        if running.stopping.is_none() {
            let step = || Step::PostStart { container: name.clone(), attempt };
            steps.work(&running.post_start, self.now, step);
        }
        if running.post_start.is_done() {
            self.probes(name, attempt, running, steps);
        }
        self.end(name, attempt, running, steps);
    }

    fn probes(&self, name: &str, attempt: u32, running: &Running, steps: &mut Steps) {
        for probe in [&running.startup, &running.liveness, &running.readiness].into_iter().flatten() {
            // A pod that ends is still asked whether it is ready: its endpoints depend on it.
            if running.stopping.is_some() && probe.kind() != Kind::Readiness {
                continue;
            }
            match probe.due() {
                Some(at) if at <= self.now => {
                    let container = name.to_owned();
                    steps.begin.push(Step::Probe { container, attempt, kind: probe.kind() });
                }
                Some(at) => steps.wake(at),
                None => {}
            }
        }
    }

    fn end(&self, name: &str, attempt: u32, running: &Running, steps: &mut Steps) {
        let Some(stopping) = &running.stopping else { return };
        let container = || name.to_owned();
        let insisted = stopping.deadline <= stopping.begun;
        // While preStop runs into its own limit, the container still gets its moment after it.
        let kill_at = if stopping.pre_stop.is_doing() && !insisted {
            stopping.deadline + LEAST_AFTER_PRE_STOP
        } else {
            stopping.deadline
        };
        if kill_at <= self.now {
            let again = stopping.killed.map(|killed| killed + KILL_AGAIN);
            match again {
                Some(again) if stopping.kill.is_done() && again <= self.now => {
                    steps.begin.push(Step::Signal { container: container(), attempt, kill: true });
                }
                Some(again) if stopping.kill.is_done() => steps.wake(again),
                _ => steps.work(&stopping.kill, self.now, || Step::Signal {
                    container: container(),
                    attempt,
                    kill: true,
                }),
            }
            return;
        }
        steps.wake(kill_at);
        if stopping.pre_stop.is_todo() {
            let within = stopping.deadline.since(self.now);
            steps.begin.push(Step::PreStop { container: container(), attempt, within });
        } else if stopping.pre_stop.is_done() {
            steps.work(&stopping.term, self.now, || Step::Signal {
                container: container(),
                attempt,
                kill: false,
            });
        }
    }

    /// Sandbox, network, volumes and files.
    fn set_up(&self, steps: &mut Steps) {
        let observed = self.observed;
        steps.work(&observed.sandbox, self.now, || Step::MakeSandbox);
        if !observed.sandbox.is_done() {
            return;
        }
        steps.work(&observed.network, self.now, || Step::Connect);
        steps.work(&observed.files, self.now, || Step::WriteFiles);
        for volume in &self.assignment.volumes {
            let Some(mount) = observed.volumes.get(&volume.name) else { continue };
            let volume = || volume.name.clone();
            steps.work(&mount.mount, self.now, || Step::Mount { volume: volume() });
            if mount.mount.is_done() && observed.complete {
                steps.work(&mount.refresh, self.now, || Step::Refresh { volume: volume() });
            }
        }
    }

    fn ready_to_create(&self) -> bool {
        let observed = self.observed;
        let mounted = |mount: Option<&crate::observed::Mount>| mount.is_some_and(|m| m.mount.is_done());
        observed.sandbox.is_done()
            && observed.files.is_done()
            && self.assignment.volumes.iter().all(|volume| mounted(observed.volumes.get(&volume.name)))
    }

    /// Images for all; then the containers whose turn it is.
    fn launch(&self, steps: &mut Steps) {
        for spec in self.specs() {
            self.image(spec, steps);
        }
        let current = self.assignment.init_containers.iter().find(|spec| !self.succeeded(spec));
        match current {
            Some(spec) if !self.observed.initialized => self.start(std::slice::from_ref(spec), steps),
            _ => self.start(&self.assignment.containers, steps),
        }
    }

    fn succeeded(&self, spec: &Spec) -> bool {
        let ended = self.container(&spec.name).and_then(Container::ended);
        ended.is_some_and(|ended| ended.exit.code == 0)
    }

    fn is_init(&self, name: &str) -> bool {
        self.assignment.init_containers.iter().any(|spec| spec.name == name)
    }

    /// When the next instance may be launched: none if none is wanted.
    fn launch_at(&self, spec: &Spec, container: &Container) -> Option<Time> {
        let due = container.launch.due().unwrap_or(self.now);
        match &container.phase {
            Phase::Absent => Some(due),
            Phase::Ended(ended) => {
                let init = self.is_init(&spec.name);
                let wanted = wants_restart(&self.assignment.restart_policy, init, ended)
                    && !(init && self.observed.initialized);
                wanted.then(|| container.restarts.allowed(ended.exit.at).0.max(due))
            }
            _ => None,
        }
    }

    fn image(&self, spec: &Spec, steps: &mut Steps) {
        let Some(container) = self.container(&spec.name) else { return };
        let Some(at) = self.launch_at(spec, container) else { return };
        if at > self.now {
            return steps.wake(at);
        }
        if let Progress::Failed { at, .. } = &container.image.state {
            // The status changes with time alone.
            let shown = *at + crate::status::ERROR_SHOWN;
            if shown > self.now {
                steps.wake(shown);
            }
        }
        let (name, image) = (spec.name.clone(), spec.image.clone());
        steps.work(&container.image, self.now, || match container.pull {
            true => Step::PullImage { container: name, image },
            false => Step::FindImage { container: name, image },
        });
    }

    fn start(&self, specs: &[Spec], steps: &mut Steps) {
        let ready = self.ready_to_create() && !self.clearing();
        // One is made at a time (the first brings up the shim they share), and they start in their order.
        let mut making = false;
        let mut starting = false;
        for spec in specs {
            let Some(container) = self.container(&spec.name) else { continue };
            let attempt = container.next_attempt();
            let name = || spec.name.clone();
            match &container.phase {
                Phase::Creating(_) => {
                    making = true;
                    starting = true;
                }
                Phase::Created(_) => {
                    if self.observed.network.is_done() && !starting {
                        steps.begin.push(Step::Start { container: name(), attempt });
                    }
                    starting = true;
                }
                Phase::Starting(_) => starting = true,
                Phase::Running(running) => {
                    starting |= !running.post_start.is_done() && running.stopping.is_none();
                }
                Phase::Absent | Phase::Ended(_) => {
                    let Some(at) = self.launch_at(spec, container) else { continue };
                    // Made while the network is (that takes milliseconds), unless it is to be told the address.
                    let known = self.observed.network.is_done() || !wants_addresses(spec);
                    let here = ready && container.image.is_done() && known;
                    if at > self.now || !here || making || container.remains.contains_key(&attempt) {
                        continue;
                    }
                    steps.begin.push(Step::Create { container: name(), attempt });
                    making = true;
                    starting = true;
                }
            }
        }
    }

    /// Nothing is started any more; what was done is undone once no container is left.
    fn wind_down(&self, steps: &mut Steps) {
        let observed = self.observed;
        for (name, container) in &observed.containers {
            if matches!(container.phase, Phase::Created(_)) {
                let step = Step::Remove { container: name.clone(), attempt: container.attempt };
                steps.begin.push(step);
            }
        }
        if observed.containers.values().any(Container::holds) {
            return;
        }
        let mut undone = true;
        for (name, mount) in &observed.volumes {
            if mount.mount.is_doing() || mount.refresh.is_doing() {
                undone = false;
                continue;
            }
            steps.work(&mount.unmount, self.now, || Step::Unmount { volume: name.clone() });
            undone &= mount.unmount.is_done();
        }
        let setting_up =
            observed.sandbox.is_doing() || observed.network.is_doing() || observed.files.is_doing();
        if setting_up {
            return;
        }
        steps.work(&observed.disconnect, self.now, || Step::Disconnect);
        if undone && observed.disconnect.is_done() {
            steps.work(&observed.remove_sandbox, self.now, || Step::RemoveSandbox);
        }
    }
}
