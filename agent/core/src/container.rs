//! What is known of one container of a pod, through all its instances ("attempts").

use std::collections::BTreeMap;
use std::time::Duration;

use berth_proto::{Container as Spec, POD_IP, POD_IPS};

use crate::backoff::{self, Restarts};
use crate::probe::Probe;
use crate::step::{Exit, Fault};
use crate::time::Time;

/// Something to be done once, retried with growing pauses when it fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub state: Progress,
    pub failures: u32,
    /// What it was begun with has changed since: it is to be done once more.
    again: bool,
}

/// How far a [`Work`] is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    #[default]
    Todo,
    Doing,
    Done,
    /// To be tried again, not before.
    Failed {
        fault: Fault,
        at: Time,
        retry: Time,
    },
}

impl Work {
    /// Nothing is left to do.
    pub fn done() -> Self {
        Work { state: Progress::Done, ..Work::default() }
    }

    /// What it works with has changed: to be done (again), after the one under way if there is one.
    pub fn redo(&mut self) {
        match self.state {
            Progress::Doing => self.again = true,
            _ => *self = Work::default(),
        }
    }

    /// It was begun and has not ended.
    pub fn is_doing(&self) -> bool {
        self.state == Progress::Doing
    }

    /// It is done.
    pub fn is_done(&self) -> bool {
        self.state == Progress::Done
    }

    /// Neither begun nor failed.
    pub fn is_todo(&self) -> bool {
        self.state == Progress::Todo
    }

    /// The failure it waits to retry after.
    pub fn fault(&self) -> Option<&Fault> {
        match &self.state {
            Progress::Failed { fault, .. } => Some(fault),
            _ => None,
        }
    }

    /// When to begin: none if it is begun or done.
    pub fn due(&self) -> Option<Time> {
        match &self.state {
            Progress::Todo => Some(Time(i64::MIN)),
            Progress::Failed { retry, .. } => Some(*retry),
            Progress::Doing | Progress::Done => None,
        }
    }

    /// It begins.
    pub fn begin(&mut self) {
        self.state = Progress::Doing;
        self.again = false;
    }

    /// It is done.
    pub fn succeed(&mut self) {
        *self = if self.again { Work::default() } else { Work::done() };
    }

    /// It failed; the next try comes after `first`, doubling to `longest`.
    pub fn fail(&mut self, fault: Fault, now: Time, first: Duration, longest: Duration) {
        self.failures = self.failures.saturating_add(1);
        let retry = now + backoff::retry(first, longest, self.failures);
        self.state = Progress::Failed { fault, at: now, retry: if self.again { now } else { retry } };
    }
}

/// A container of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Number of the instance in `phase`; if there is none, of the next one. Counts from 0.
    pub attempt: u32,
    pub phase: Phase,
    /// How the instance before ended.
    pub last: Option<Ended>,
    pub restarts: Restarts,
    /// The image's presence; `pull` says whether the registry is to be asked.
    pub image: Work,
    pub pull: bool,
    pub image_id: String,
    /// Making and starting the next instance.
    pub launch: Work,
    /// Instances that have ended (or were never started) and are still to be removed from containerd.
    pub remains: BTreeMap<u32, Work>,
}

/// Where the current instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Absent,
    Creating(Made),
    Created(Made),
    Starting(Made),
    Running(Box<Running>),
    Ended(Ended),
}

/// What an instance was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// As the spec named it.
    pub image: String,
    pub image_id: String,
}

/// An instance that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub made: Made,
    pub since: Time,
    pub wait: Work,
    pub post_start: Work,
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    pub startup: Option<Probe>,
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
    pub stopping: Option<Stopping>,
}

/// An instance that is being stopped: preStop, the stop signal, and KILL at the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopping {
    pub begun: Time,
    pub deadline: Time,
    /// Whatever the restart policy says, it is started again.
    pub again: bool,
    /// Shown as waiting reason until it is started again.
    pub shown: Option<Fault>,
    pub pre_stop: Work,
    pub term: Work,
    pub kill: Work,
    /// The last KILL; repeated while it does not help.
    pub killed: Option<Time>,
}

/// An instance that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub attempt: u32,
    pub made: Made,
    pub exit: Exit,
    /// Whatever the restart policy says, it is started again.
    pub again: bool,
    pub shown: Option<Fault>,
}

impl Container {
    /// The number of the instance that would be made next.
    pub fn next_attempt(&self) -> u32 {
        match self.phase {
            Phase::Ended(_) => self.attempt.saturating_add(1),
            _ => self.attempt,
        }
    }

    /// Containers made and not yet removed: something of it may hold on to the pod's volumes and network.
    pub fn holds(&self) -> bool {
        !self.remains.is_empty()
            || matches!(
                self.phase,
                Phase::Creating(_) | Phase::Created(_) | Phase::Starting(_) | Phase::Running(_)
            )
    }

    /// The running instance.
    pub fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(crate) fn running_mut(&mut self, attempt: u32) -> Option<&mut Running> {
        match &mut self.phase {
            Phase::Running(running) if self.attempt == attempt => Some(running),
            _ => None,
        }
    }

    /// How the current instance ended.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.phase {
            Phase::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// As in `status.containerStatuses[].restartCount`.
    pub fn restart_count(&self) -> u32 {
        match &self.phase {
            Phase::Running(_) | Phase::Ended(_) => self.attempt,
            _ => self.last.as_ref().map_or(0, |last| last.attempt),
        }
    }
}

impl Running {
    /// Counts as ready: through its startup and not found unready.
    pub fn ready(&self) -> bool {
        self.started
            && self.post_start.is_done()
            && self.readiness.as_ref().is_none_or(|probe| probe.verdict() == Some(true))
    }
}

/// The longest id containerd takes.
const LONGEST_ID: usize = 76;

/// The id of an instance in containerd: `<uid>-<container>-<attempt>`, the name shortened if need be.
pub fn id(uid: &str, container: &str, attempt: u32) -> String {
    let id = format!("{uid}-{container}-{attempt}");
    if id.len() <= LONGEST_ID {
        return id;
    }
    // FNV-1a: enough to tell the containers of one pod apart.
    let hash = container
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let room = LONGEST_ID.saturating_sub(uid.len() + attempt.to_string().len() + 11);
    let short: String = container.chars().take(room).collect();
    format!("{uid}-{}.{hash:08x}-{attempt}", short.trim_end_matches(['-', '.', '_']))
}

/// Whether it can only be made once the pod's addresses are known.
pub fn wants_addresses(spec: &Spec) -> bool {
    let values = spec.env.iter().map(|variable| &variable.value);
    spec.command.iter().chain(&spec.args).chain(values).any(|text| text.contains('\0'))
}

/// The container as it is to be made, now that the pod's addresses are known.
pub fn addressed(spec: &Spec, ips: &[String]) -> Spec {
    let mut spec = spec.clone();
    if wants_addresses(&spec) {
        let (first, all) = (ips.first().map_or("", String::as_str), ips.join(","));
        let values = spec.env.iter_mut().map(|variable| &mut variable.value);
        for text in spec.command.iter_mut().chain(&mut spec.args).chain(values) {
            *text = text.replace(POD_IP, first).replace(POD_IPS, &all);
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use berth_proto::EnvVar;

    use super::*;

    #[test]
    fn the_addresses_that_the_network_gave_are_filled_in_wherever_they_are_referred_to() {
        let ips = ["10.1.2.3".to_owned(), "fd00::3".to_owned()];
        let spec = Spec {
            args: vec!["--announce".to_owned(), format!("{POD_IP}:6379")],
            command: vec!["serve".to_owned()],
            env: vec![EnvVar { name: "ALL".to_owned(), value: format!("<{POD_IPS}>") }],
            ..Spec::default()
        };
        let made = addressed(&spec, &ips);
        assert_eq!((made.command, made.args[1].as_str()), (spec.command, "10.1.2.3:6379"));
        assert_eq!(made.env[0].value, "<10.1.2.3,fd00::3>");
    }

    const UID: &str = "0e1a2b3c-1111-2222-3333-444455556666";

    #[test]
    fn an_id_is_readable_and_fits_containerd() {
        assert_eq!(id(UID, "redis", 3), format!("{UID}-redis-3"));
        let long = id(UID, &"a-".repeat(31), 4_000_000_000);
        assert!(long.len() <= LONGEST_ID, "{long}");
        assert!(!long.contains("-."), "{long}");
        let (a, b) = ("x".repeat(62) + "a", "x".repeat(62) + "b");
        assert_ne!(id(UID, &a, 0), id(UID, &b, 0));
    }
}
