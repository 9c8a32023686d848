//! The pod's status as Kubernetes words it.

use std::time::Duration;

use berth_proto::container_state::{self, Running, Terminated, Waiting};
use berth_proto::{Assignment, Condition, Container as Spec, ContainerState, ContainerStatus, PodStatus};

use crate::container::{self, Container, Ended, Phase, Progress};
use crate::observed::{Observed, wants_restart};
use crate::time::{Time, words};

/// A failed pull is shown as such for so long, then as the back-off it waits in.
pub(crate) const ERROR_SHOWN: Duration = Duration::from_secs(5);

/// The status now. `conditions[].last_transition_ms` is `now`: [`Publisher`] keeps the former ones.
/// `host_ip` is the driver's to fill in.
pub fn status(assignment: &Assignment, observed: &Observed, now: Time) -> PodStatus {
    let inits = containers(assignment, observed, &assignment.init_containers, true, now);
    let apps = containers(assignment, observed, &assignment.containers, false, now);
    let phase = phase(assignment, observed, &apps);
    let conditions = conditions(observed, phase, &inits, &apps, now);
    PodStatus {
        pod: assignment.pod.clone(),
        phase: phase.to_owned(),
        pod_ips: observed.ips.clone(),
        start_time_ms: observed.began.0,
        init_containers: inits,
        containers: apps,
        conditions,
        observed_generation: assignment.generation,
        released: observed.gone && observed.stop.is_none(),
        ..PodStatus::default()
    }
}

fn phase(assignment: &Assignment, observed: &Observed, apps: &[ContainerStatus]) -> &'static str {
    let ended = |status: &&ContainerStatus| {
        let state = status.state.as_ref().and_then(|state| state.state.as_ref());
        match state {
            Some(container_state::State::Terminated(terminated)) => Some(terminated.exit_code),
            Some(container_state::State::Waiting(_)) => {
                status.last_state.as_ref().and_then(|state| state.state.as_ref()).and_then(
                    |state| match state {
                        container_state::State::Terminated(terminated) => Some(terminated.exit_code),
                        _ => None,
                    },
                )
            }
            _ => None,
        }
    };
    let running = apps.iter().filter(|status| is_running(status)).count();
    let codes: Vec<i32> = apps.iter().filter_map(|status| ended(&status)).collect();
    let waiting = apps.len() - running - codes.len();
    let over = observed.finished || (observed.stop.is_some() && running == 0 && waiting == 0);
    if !observed.initialized {
        return if observed.finished { "Failed" } else { "Pending" };
    }
    if over && !codes.is_empty() {
        return if codes.iter().all(|code| *code == 0) { "Succeeded" } else { "Failed" };
    }
    match (waiting, running) {
        (0, _) if !apps.is_empty() => "Running",
        _ if assignment.containers.is_empty() && observed.gone => "Failed",
        _ => "Pending",
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref().and_then(|state| state.state.as_ref());
    matches!(state, Some(container_state::State::Running(_)))
}

fn containers(
    assignment: &Assignment,
    observed: &Observed,
    specs: &[Spec],
    init: bool,
    now: Time,
) -> Vec<ContainerStatus> {
    let uid = assignment.pod.as_ref().map_or("", |pod| pod.uid.as_str());
    let one = |spec: &Spec| {
        let container = observed.containers.get(&spec.name)?;
        Some(container_status(assignment, observed, spec, container, uid, init, now))
    };
    specs.iter().filter_map(one).collect()
}

fn container_status(
    assignment: &Assignment,
    observed: &Observed,
    spec: &Spec,
    container: &Container,
    uid: &str,
    init: bool,
    now: Time,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone(),
        restart_count: container.restart_count(),
        ..ContainerStatus::default()
    };
    let named = |attempt| format!("containerd://{}", container::id(uid, &spec.name, attempt));
    let mut last = container.last.as_ref();
    let waiting = |fault: (String, String)| {
        container_state::State::Waiting(Waiting { reason: fault.0, message: fault.1 })
    };
    let usual = || {
        let after_inits = init || !assignment.init_containers.is_empty();
        let reason = if after_inits { "PodInitializing" } else { "ContainerCreating" };
        (reason.to_owned(), String::new())
    };
    let ending = observed.stop.is_some() || observed.finished;
    let state = match &container.phase {
        Phase::Running(running) if running.post_start.is_done() || running.stopping.is_some() => {
            status.image.clone_from(&running.made.image);
            status.image_id.clone_from(&running.made.image_id);
            status.container_id = named(container.attempt);
            status.started = running.started;
            status.ready = running.ready() && !init;
            container_state::State::Running(Running { started_at_ms: running.since.0 })
        }
        Phase::Ended(ended) => {
            status.image_id.clone_from(&ended.made.image_id);
            status.container_id = named(ended.attempt);
            status.ready = init && ended.exit.code == 0;
            let pod = assignment.pod.as_ref();
            match why_waiting(assignment, container, ended, init, now).filter(|_| !ending) {
                Some((reason, message)) => {
                    last = Some(ended);
                    let pod = pod
                        .map_or(String::new(), |pod| format!("{}_{}({})", pod.name, pod.namespace, pod.uid));
                    let message = message.replace("{pod}", &pod).replace("{container}", &spec.name);
                    waiting((reason, message))
                }
                None => container_state::State::Terminated(terminated(ended, uid, &spec.name)),
            }
        }
        _ => {
            if let Some(last) = last {
                status.image_id.clone_from(&last.made.image_id);
                status.container_id = named(last.attempt);
            }
            match (trouble(spec, container, now).filter(|_| !ending), last) {
                (Some(trouble), _) => waiting(trouble),
                // Until the next one runs, how the last one ended is all there is to say.
                (None, Some(ended)) => {
                    last = None;
                    container_state::State::Terminated(terminated(ended, uid, &spec.name))
                }
                (None, None) => waiting(usual()),
            }
        }
    };
    status.state = Some(ContainerState { state: Some(state) });
    status.last_state = last.map(|ended| ContainerState {
        state: Some(container_state::State::Terminated(terminated(ended, uid, &spec.name))),
    });
    status
}

/// Why a container that ended and is to run again does not yet.
fn why_waiting(
    assignment: &Assignment,
    container: &Container,
    ended: &Ended,
    init: bool,
    now: Time,
) -> Option<(String, String)> {
    if !wants_restart(&assignment.restart_policy, init, ended) {
        return None;
    }
    if let Some(shown) = &ended.shown {
        return Some((shown.reason.unwrap_or("Error").to_owned(), shown.message.clone()));
    }
    let (at, delay) = container.restarts.allowed(ended.exit.at);
    if now < at {
        let delay = words(delay);
        let message = format!("back-off {delay} restarting failed container={{container}} pod={{pod}}");
        return Some(("CrashLoopBackOff".to_owned(), message));
    }
    image_trouble(container, now)
}

/// What keeps the next instance from being made.
fn trouble(spec: &Spec, container: &Container, now: Time) -> Option<(String, String)> {
    if let Some(fault) = container.launch.fault() {
        return Some((fault.reason.unwrap_or("CreateContainerError").to_owned(), fault.message.clone()));
    }
    image_trouble(container, now).map(|(reason, message)| {
        let message = match reason.as_str() {
            "ImagePullBackOff" => {
                format!("Back-off pulling image \"{}\": ErrImagePull: {message}", spec.image)
            }
            _ => message,
        };
        (reason, message)
    })
}

fn image_trouble(container: &Container, now: Time) -> Option<(String, String)> {
    let Progress::Failed { fault, at, retry } = &container.image.state else { return None };
    let reason = match fault.reason {
        Some(reason) => reason,
        None if now.since(*at) < ERROR_SHOWN || *retry <= now => "ErrImagePull",
        None => "ImagePullBackOff",
    };
    Some((reason.to_owned(), fault.message.clone()))
}

fn terminated(ended: &Ended, uid: &str, name: &str) -> Terminated {
    let exit = &ended.exit;
    let reason = match exit.code {
        _ if exit.oom => "OOMKilled",
        _ if exit.unknown => "Unknown",
        0 => "Completed",
        _ => "Error",
    };
    Terminated {
        exit_code: exit.code,
        signal: 0,
        reason: reason.to_owned(),
        message: exit.message.clone(),
        started_at_ms: exit.started.0,
        finished_at_ms: exit.at.0,
        container_id: format!("containerd://{}", container::id(uid, name, ended.attempt)),
    }
}

fn conditions(
    observed: &Observed,
    phase: &str,
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
    now: Time,
) -> Vec<Condition> {
    let condition = |kind: &str, holds: bool, why: (&str, String)| Condition {
        r#type: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: if holds && kind != "Initialized" { String::new() } else { why.0.to_owned() },
        message: if holds { String::new() } else { why.1 },
        last_transition_ms: now.0,
    };
    let unready = |statuses: &[ContainerStatus]| {
        let names: Vec<&str> =
            statuses.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        names.join(" ")
    };
    let connected = observed.sandbox.is_done() && observed.network.is_done() && !observed.gone;
    let not_ready = unready(apps);
    let why = match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => ("ContainersNotReady", format!("containers with unready status: [{not_ready}]")),
    };
    let ready = not_ready.is_empty() && !apps.is_empty() && phase == "Running";
    let incomplete = format!("containers with incomplete status: [{}]", unready(inits));
    let initialized = if observed.initialized {
        (if phase == "Succeeded" { "PodCompleted" } else { "" }, String::new())
    } else {
        ("ContainersNotInitialized", incomplete)
    };
    vec![
        condition("PodReadyToStartContainers", connected, ("", String::new())),
        condition("Initialized", observed.initialized, initialized),
        condition("ContainersReady", ready, why.clone()),
        condition("Ready", ready, why),
    ]
}

/// Remembers what was published last, so that only changes go out and a condition keeps the time it last
/// changed at.
#[derive(Clone, Debug, Default)]
pub struct Publisher {
    last: Option<PodStatus>,
}

impl Publisher {
    /// Goes on from what was published before the agent restarted.
    pub fn restore(last: Option<PodStatus>) -> Self {
        Publisher { last }
    }

    /// The status to send, if it says anything new.
    pub fn publish(&mut self, mut status: PodStatus) -> Option<PodStatus> {
        if let Some(last) = &self.last {
            for condition in &mut status.conditions {
                let before = last.conditions.iter().find(|other| other.r#type == condition.r#type);
                if let Some(before) = before.filter(|before| before.status == condition.status) {
                    condition.last_transition_ms = before.last_transition_ms;
                }
            }
            if *last == status {
                return None;
            }
        }
        self.last = Some(status.clone());
        Some(status)
    }

    /// The last one published.
    pub fn last(&self) -> Option<&PodStatus> {
        self.last.as_ref()
    }
}
