//! What of a pod outlives the agent, and how a pod is taken up again from it and from what is found running.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_proto::Assignment;
use serde::{Deserialize, Serialize};

use crate::backoff::Restarts;
use crate::container::{Container, Ended, Made, Phase, Work};
use crate::observed::{LEAST_AFTER_PRE_STOP, Observed, Stop, find, running};
use crate::step::Exit;
use crate::time::Time;

/// The part of [`Observed`] that is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    pub began: Time,
    pub initialized: bool,
    pub finished: bool,
    pub gone: bool,
    pub stop: Option<Stop>,
    pub ips: Vec<String>,
    pub containers: BTreeMap<String, RememberedContainer>,
}

/// One container of a [`Remembered`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RememberedContainer {
    pub attempt: u32,
    /// It has been running since; none once its end is known.
    pub since: Option<Time>,
    pub image: String,
    pub image_id: String,
    pub started: bool,
    pub ready: bool,
    pub ended: Option<RememberedEnd>,
    pub last: Option<RememberedEnd>,
    /// The back-off in force (milliseconds) and when it was set.
    pub restarts: Option<(u64, Time)>,
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedEnd {
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub exit: Exit,
    #[serde(default)]
    pub again: bool,
}

/// A container of the pod found in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub container: String,
    pub attempt: u32,
    pub image: String,
    pub created: Time,
    pub state: FoundState,
}

/// What was found of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// It was started: it runs, or waiting for it tells how it ended.
    Started,
    /// It was made and never started.
    Made,
    /// There is no process: never made, or lost.
    Nothing,
}

impl Remembered {
    /// Without what may be lost without harm: it is written at leisure, the rest before it is acted on.
    pub fn urgent(&self) -> Remembered {
        let mut urgent = self.clone();
        urgent.ips.clear();
        for container in urgent.containers.values_mut() {
            container.image.clear();
            container.image_id.clear();
            container.started = false;
            container.ready = false;
        }
        urgent
    }
}

impl Observed {
    /// What to keep on disk.
    pub fn remember(&self) -> Remembered {
        Remembered {
            began: self.began,
            initialized: self.initialized,
            finished: self.finished,
            gone: self.gone,
            stop: self.stop,
            ips: self.ips.clone(),
            containers: self.containers.iter().map(|(name, c)| (name.clone(), c.remember())).collect(),
        }
    }

    /// Takes up a pod again. `found` is all of it that is in containerd. After a reboot of the host
    /// (`rebooted`) nothing runs any more and its sandbox is made anew.
    pub fn restore(
        assignment: &Assignment,
        remembered: &Remembered,
        found: &[Found],
        rebooted: bool,
        now: Time,
    ) -> Observed {
        let mut observed = Observed {
            began: remembered.began,
            complete: false,
            confirmed: !rebooted,
            initialized: remembered.initialized || assignment.init_containers.is_empty(),
            finished: remembered.finished,
            gone: remembered.gone && found.is_empty(),
            stop: remembered.stop,
            ips: if rebooted { Vec::new() } else { remembered.ips.clone() },
            ..Observed::default()
        };
        observed.cover(assignment);
        for (name, memory) in &remembered.containers {
            observed.containers.entry(name.clone()).or_default().recall(memory);
        }
        for found in found {
            observed.adopt(assignment, remembered, found, rebooted);
        }
        observed.account_for_the_lost(remembered, now);
        if rebooted && !observed.finished {
            observed.initialized = assignment.init_containers.is_empty();
            for container in observed.containers.values_mut() {
                container.start_over();
            }
        }
        if let Some(stop) = observed.stop {
            let grace = stop.deadline.since(now).max(LEAST_AFTER_PRE_STOP);
            let insisted = stop.deadline <= stop.begun;
            let deadline = now + if insisted { Duration::ZERO } else { grace };
            for spec in assignment.init_containers.iter().chain(&assignment.containers) {
                observed.end_container(spec, deadline, now);
            }
        }
        observed.conclude(assignment);
        observed.take_events();
        observed
    }

    fn adopt(&mut self, assignment: &Assignment, remembered: &Remembered, found: &Found, rebooted: bool) {
        let memory = remembered.containers.get(&found.container);
        let spec = find(assignment, &found.container);
        let container = self.containers.entry(found.container.clone()).or_default();
        let known = memory.filter(|memory| memory.attempt == found.attempt);
        let over = container.attempt > found.attempt
            || container.ended().is_some_and(|ended| ended.attempt >= found.attempt);
        let started = match found.state {
            FoundState::Started => true,
            FoundState::Made => false,
            FoundState::Nothing => known.is_some_and(|memory| memory.since.is_some()),
        };
        let Some(spec) = spec.filter(|_| started && !over && !rebooted) else {
            container.remains.insert(found.attempt, Work::default());
            return;
        };
        if let Some(ended) = container.ended().cloned() {
            container.last = Some(ended);
        }
        let made = Made {
            image: known.map_or(&found.image, |memory| &memory.image).clone(),
            image_id: known.map_or(String::new(), |memory| memory.image_id.clone()),
        };
        let since = known.and_then(|memory| memory.since).unwrap_or(found.created);
        let probed = known.map_or((false, false), |memory| (memory.started, memory.ready));
        container.attempt = found.attempt;
        container.image_id.clone_from(&made.image_id);
        container.phase = Phase::Running(Box::new(running(spec, made, since, Some(probed))));
    }

    /// What is remembered as running and was not found has ended, nobody knows how.
    fn account_for_the_lost(&mut self, remembered: &Remembered, now: Time) {
        for (name, memory) in &remembered.containers {
            let Some(container) = self.containers.get_mut(name) else { continue };
            let Some(since) = memory.since else { continue };
            if matches!(container.phase, Phase::Absent) && container.attempt == memory.attempt {
                container.phase = Phase::Ended(Ended {
                    attempt: memory.attempt,
                    made: Made { image: memory.image.clone(), image_id: memory.image_id.clone() },
                    exit: Exit {
                        code: 255,
                        started: since,
                        at: now,
                        oom: false,
                        unknown: true,
                        message: String::new(),
                    },
                    again: false,
                    shown: None,
                });
            }
        }
    }
}

impl Container {
    fn remember(&self) -> RememberedContainer {
        let running = self.running();
        let made = running.map(|running| running.made.clone()).unwrap_or_default();
        RememberedContainer {
            attempt: self.attempt,
            since: running.map(|running| running.since),
            image: made.image,
            image_id: made.image_id,
            started: running.is_some_and(|running| running.started),
            ready: running.is_some_and(|running| running.ready()),
            ended: self.ended().map(RememberedEnd::from),
            last: self.last.as_ref().map(RememberedEnd::from),
            restarts: self
                .restarts
                .remembered()
                .map(|(delay, at)| (u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), at)),
        }
    }

    fn recall(&mut self, memory: &RememberedContainer) {
        self.attempt = memory.attempt;
        self.last = memory.last.clone().map(Ended::from);
        let restarts = memory.restarts.map(|(millis, at)| (Duration::from_millis(millis), at));
        self.restarts = Restarts::restore(restarts);
        if let Some(ended) = memory.ended.clone() {
            self.image_id.clone_from(&ended.image_id);
            self.phase = Phase::Ended(ended.into());
        }
    }

    /// After a reboot the next instance is a new one, in a new sandbox.
    fn start_over(&mut self) {
        if let Phase::Ended(ended) = std::mem::take(&mut self.phase) {
            self.attempt = ended.attempt.saturating_add(1);
            self.last = Some(ended);
        }
        self.restarts = Restarts::default();
    }
}

impl From<&Ended> for RememberedEnd {
    fn from(ended: &Ended) -> Self {
        RememberedEnd {
            attempt: ended.attempt,
            image: ended.made.image.clone(),
            image_id: ended.made.image_id.clone(),
            exit: ended.exit.clone(),
            again: ended.again,
        }
    }
}

impl From<RememberedEnd> for Ended {
    fn from(end: RememberedEnd) -> Self {
        Ended {
            attempt: end.attempt,
            made: Made { image: end.image, image_id: end.image_id },
            exit: end.exit,
            again: end.again,
            shown: None,
        }
    }
}
