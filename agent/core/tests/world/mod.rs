//! A host that exists only in time: every step takes none unless it is held, and fails on demand.

#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use berth_agent_core::container::Container as State;
use berth_agent_core::probe::Kind;
use berth_agent_core::step::{Exit, Fault, Outcome, Probed, Pull, Step};
use berth_agent_core::{Event, Found, Observed, Remembered, Time, lifecycle, status};
use berth_proto::container_state::State as Shown;
use berth_proto::{Assignment, Container, PodRef, PodStatus, Volume, volume};

pub const BEGIN: Time = Time(1_000_000);

pub fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        image: "busybox".into(),
        image_pull_policy: "IfNotPresent".into(),
        ..Container::default()
    }
}

pub fn pod(containers: &[&str]) -> Assignment {
    pod_with(containers, vec![])
}

pub fn pod_with(containers: &[&str], volumes: Vec<(&str, volume::Source)>) -> Assignment {
    Assignment {
        pod: Some(PodRef {
            namespace: "default".into(),
            name: "web-0".into(),
            uid: "uid-1".into(),
            epoch: 1,
        }),
        restart_policy: "Always".into(),
        termination_grace_seconds: 30,
        containers: containers.iter().map(|name| container(name)).collect(),
        volumes: volumes
            .into_iter()
            .map(|(name, source)| Volume { name: name.into(), source: Some(source), ..Volume::default() })
            .collect(),
        ..Assignment::default()
    }
}

pub struct World {
    pub assignment: Assignment,
    pub observed: Observed,
    pub now: Time,
    pub log: Vec<(Time, Step)>,
    pub events: Vec<Event>,
    /// Begun and not answered yet.
    pub pending: Vec<Step>,
    pub hold: fn(&Step) -> bool,
    pub fail: fn(&Step) -> Option<Fault>,
    pub probe: fn(Kind, Time) -> Probed,
    pub image_missing: bool,
    pub pull_fails: bool,
    pub obeys_term: bool,
    wake: Option<Time>,
}

impl World {
    pub fn new(assignment: Assignment) -> Self {
        World {
            observed: Observed::new(&assignment, BEGIN),
            assignment,
            now: BEGIN,
            log: vec![],
            events: vec![],
            pending: vec![],
            hold: |_| false,
            fail: |_| None,
            probe: |_, _| Probed::Success,
            image_missing: false,
            pull_fails: false,
            obeys_term: true,
            wake: None,
        }
    }

    /// Begins what is to be begun now.
    pub fn begin(&mut self) -> Vec<Step> {
        let steps = lifecycle(&self.assignment, &self.observed, self.now);
        if let Some(wake) = steps.wake {
            assert!(wake > self.now, "asked to be woken in the past");
        }
        self.wake = steps.wake;
        for step in &steps.begin {
            self.observed.begin(step, &self.assignment, self.now);
            self.log.push((self.now, step.clone()));
            self.pending.retain(|other| !step.supersedes(other));
            self.pending.push(step.clone());
        }
        self.events.append(&mut self.observed.take_events());
        steps.begin
    }

    pub fn record(&mut self, step: &Step, outcome: Outcome) {
        self.pending.retain(|other| other != step);
        self.observed.record(step, outcome, &self.assignment, self.now);
        self.events.append(&mut self.observed.take_events());
    }

    fn answer(&mut self, step: &Step) -> Option<Outcome> {
        if (self.hold)(step) || matches!(step, Step::Wait { .. }) {
            return None;
        }
        if let Some(fault) = (self.fail)(step) {
            return Some(Outcome::Failed(fault));
        }
        Some(match step {
            Step::Connect => Outcome::Connected { ips: vec!["10.42.0.7".into()] },
            Step::FindImage { .. } if self.image_missing => Outcome::NoImage,
            Step::PullImage { .. } if self.pull_fails => Outcome::failed("no such registry"),
            Step::PullImage { .. } => Outcome::Image {
                id: "sha256:1".into(),
                pulled: Some(Pull { took: Duration::from_millis(1200), size: 7 }),
            },
            Step::FindImage { .. } => Outcome::Image { id: "sha256:1".into(), pulled: None },
            Step::Create { container, .. } => {
                let spec = self.assignment.containers.iter().find(|spec| spec.name == *container);
                match spec.filter(|spec| !spec.config_error.is_empty()) {
                    Some(spec) => Outcome::Failed(Fault {
                        reason: Some("CreateContainerConfigError"),
                        message: spec.config_error.clone(),
                    }),
                    None => Outcome::Done,
                }
            }
            Step::Start { .. } => Outcome::Started { at: self.now },
            Step::Probe { kind, .. } => Outcome::Probed((self.probe)(*kind, self.now)),
            _ => Outcome::Done,
        })
    }

    /// Lets everything happen that happens now.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "it never comes to rest: {:?}", &self.log[self.log.len() - 5..]);
            let begun = self.begin();
            let mut answered = false;
            for step in self.pending.clone() {
                let Some(outcome) = self.answer(&step) else { continue };
                answered = true;
                self.record(&step, outcome);
                if let Step::Signal { container, kill, .. } = &step
                    && (*kill || self.obeys_term)
                {
                    let code = if *kill { 137 } else { 143 };
                    self.exit(&container.clone(), code);
                }
            }
            if begun.is_empty() && !answered {
                return;
            }
        }
    }

    /// Goes on through time, from one thing to do to the next.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.settle();
        while let Some(wake) = self.wake.filter(|wake| *wake <= end) {
            self.now = wake;
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    pub fn exit(&mut self, container: &str, code: i32) {
        let step = self
            .pending
            .iter()
            .find(|step| matches!(step, Step::Wait { container: name, .. } if name == container));
        let Some(step) = step.cloned() else { return };
        let exit = Exit {
            code,
            started: self.now,
            at: self.now,
            oom: false,
            unknown: false,
            message: String::new(),
        };
        self.record(&step, Outcome::Exited(exit));
    }

    pub fn stop(&mut self, grace: u64) {
        self.observed.stop(&self.assignment, Duration::from_secs(grace), self.now);
    }

    pub fn assign(&mut self, assignment: Assignment) {
        self.observed.assigned(&self.assignment, &assignment, self.now);
        self.assignment = assignment;
    }

    pub fn restore(&mut self, memory: &Remembered, found: &[Found], rebooted: bool) {
        self.pending.clear();
        self.observed = Observed::restore(&self.assignment, memory, found, rebooted, self.now);
    }

    pub fn container(&self, name: &str) -> &State {
        &self.observed.containers[name]
    }

    pub fn status(&self) -> PodStatus {
        status(&self.assignment, &self.observed, self.now)
    }

    pub fn condition(&self, kind: &str) -> String {
        self.status().conditions.into_iter().find(|c| c.r#type == kind).unwrap().status
    }

    pub fn waiting(&self, name: &str) -> (String, String) {
        let status = self.status();
        let all = status.init_containers.iter().chain(&status.containers);
        let container = all.into_iter().find(|status| status.name == name).unwrap();
        match container.state.clone().unwrap().state.unwrap() {
            Shown::Waiting(waiting) => (waiting.reason, waiting.message),
            other => panic!("{name} does not wait: {other:?}"),
        }
    }

    /// The containers a kind of step was begun for, in order.
    pub fn order(&self, kind: &str) -> Vec<String> {
        self.log
            .iter()
            .filter_map(|(_, step)| match step {
                Step::Create { container, .. } if kind == "Create" => Some(container.clone()),
                Step::Start { container, .. } if kind == "Start" => Some(container.clone()),
                Step::Remove { container, .. } if kind == "Remove" => Some(container.clone()),
                _ => None,
            })
            .collect()
    }

    pub fn times(&self, of: impl Fn(&Step) -> bool) -> Vec<i64> {
        self.log.iter().filter(|(_, step)| of(step)).map(|(at, _)| at.0).collect()
    }

    pub fn reasons(&self) -> Vec<&'static str> {
        self.events.iter().map(|event| event.reason).collect()
    }

    pub fn messages(&self) -> Vec<String> {
        self.events.iter().map(|event| event.message.clone()).collect()
    }
}
