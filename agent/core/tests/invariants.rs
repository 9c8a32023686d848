//! What holds for every pod, whatever fails, ends or is ordered when.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use berth_agent_core::container::{Container, Phase};
use berth_agent_core::step::{Exit, Fault, Outcome, Probed, Step};
use berth_agent_core::{Found, FoundState, Time};
use berth_proto::handler::{self, Handler as Kind};
use berth_proto::{Assignment, Files, Handler, Probe, volume::Source};
use proptest::prelude::*;
use world::{World, container, pod_with};

/// What happens to the pod from outside.
#[derive(Clone, Debug)]
enum Happening {
    /// One of the steps under way ends (well, or with a failure).
    Ends {
        which: usize,
        well: bool,
    },
    /// A running container ends.
    Exits {
        which: usize,
        code: i32,
    },
    Passes {
        millis: u64,
    },
    Stop {
        grace: u64,
    },
    /// The agent is killed and comes back; `reboot`: with the host.
    Restart {
        reboot: bool,
    },
    Assigned {
        image: u8,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        30 => (any::<usize>(), prop::bool::weighted(0.85)).prop_map(|(which, well)| Happening::Ends { which, well }),
        4 => (any::<usize>(), prop_oneof![Just(0), Just(1), Just(137)])
            .prop_map(|(which, code)| Happening::Exits { which, code }),
        8 => (1u64..20_000).prop_map(|millis| Happening::Passes { millis }),
        1 => (0u64..40).prop_map(|grace| Happening::Stop { grace }),
        1 => prop::bool::weighted(0.2).prop_map(|reboot| Happening::Restart { reboot }),
        1 => (0u8..3).prop_map(|image| Happening::Assigned { image }),
    ]
}

fn assignment() -> impl Strategy<Value = Assignment> {
    let probe = Probe {
        handler: Some(Handler { handler: Some(Kind::Sleep(handler::Sleep { seconds: 0 })) }),
        period_seconds: 2,
        failure_threshold: 2,
        success_threshold: 1,
        ..Probe::default()
    };
    let hook = Handler { handler: Some(Kind::Sleep(handler::Sleep { seconds: 1 })) };
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    (0usize..3, 1usize..3, policy, prop::array::uniform6(any::<bool>())).prop_map(
        move |(inits, apps, policy, [ready, live, startup, pre_stop, post_start, always])| {
            let names = ["a", "b"];
            let mut pod = pod_with(&names[..apps], vec![("files", Source::Files(Files::default()))]);
            pod.init_containers = ["i", "j"][..inits].iter().map(|name| container(name)).collect();
            pod.restart_policy = policy.into();
            for spec in &mut pod.containers {
                spec.readiness = ready.then(|| probe.clone());
                spec.liveness = live.then(|| probe.clone());
                spec.startup = startup.then(|| probe.clone());
                spec.pre_stop = pre_stop.then(|| hook.clone());
                spec.post_start = post_start.then(|| hook.clone());
                if always {
                    spec.image_pull_policy = "Always".into();
                }
            }
            pod
        },
    )
}

/// The simulated containerd: what is really there.
#[derive(Default)]
struct Host {
    made: BTreeSet<(String, u32)>,
    runs: BTreeSet<(String, u32)>,
    sandbox: bool,
    connected: bool,
    mounted: bool,
    files: bool,
    stopped: bool,
    inits_done: BTreeSet<String>,
    /// When an instance ended and how many times running this container was restarted.
    restarts: Vec<(String, Time)>,
}

impl Host {
    /// What must hold when a step is begun.
    fn may_begin(&self, step: &Step, pod: &Assignment) -> Result<(), TestCaseError> {
        let app = |name: &String| pod.containers.iter().any(|spec| spec.name == *name);
        match step {
            Step::Create { container, attempt } => {
                prop_assert!(!self.stopped, "made after the stop");
                prop_assert!(self.sandbox && self.mounted && self.files, "made before its surroundings");
                prop_assert!(!self.made.contains(&(container.clone(), *attempt)), "made twice");
                prop_assert!(!self.runs.iter().any(|(name, _)| name == container), "made while one runs");
                if app(container) {
                    prop_assert_eq!(self.inits_done.len(), pod.init_containers.len(), "before the inits");
                }
            }
            Step::Start { container, attempt } => {
                prop_assert!(!self.stopped, "started after the stop");
                prop_assert!(self.connected, "started without network");
                prop_assert!(self.made.contains(&(container.clone(), *attempt)), "started before it is made");
            }
            Step::Unmount { .. } | Step::Disconnect => {
                prop_assert!(self.runs.is_empty() && self.made.is_empty(), "undone under a container");
            }
            Step::RemoveSandbox => {
                prop_assert!(!self.connected && !self.mounted && self.made.is_empty(), "undone out of order");
            }
            _ => {}
        }
        Ok(())
    }

    fn did(&mut self, step: &Step) {
        match step {
            Step::MakeSandbox => self.sandbox = true,
            Step::Connect => self.connected = true,
            Step::Mount { .. } => self.mounted = true,
            Step::WriteFiles => self.files = true,
            Step::Create { container, attempt } => {
                self.made.insert((container.clone(), *attempt));
            }
            Step::Start { container, attempt } => {
                self.runs.insert((container.clone(), *attempt));
            }
            Step::Remove { container, attempt } => {
                self.made.remove(&(container.clone(), *attempt));
                self.runs.remove(&(container.clone(), *attempt));
            }
            Step::Unmount { .. } => self.mounted = false,
            Step::Disconnect => self.connected = false,
            Step::RemoveSandbox => self.sandbox = false,
            _ => {}
        }
    }
}

struct Run {
    world: World,
    host: Host,
}

impl Run {
    fn begin(&mut self) -> Result<(), TestCaseError> {
        for round in 0..20 {
            let before = self.world.pending.clone();
            let begun = self.world.begin();
            for step in &begun {
                let twice = before.contains(step) && !step.supersedes(step);
                prop_assert!(!twice, "{step:?} begun while it is under way");
                self.host.may_begin(step, &self.world.assignment)?;
            }
            if begun.is_empty() {
                return Ok(());
            }
            prop_assert!(round < 19, "begins without end: {begun:?}");
        }
        Ok(())
    }

    fn end(&mut self, step: &Step, well: bool) -> Result<(), TestCaseError> {
        let outcome = match step {
            Step::Wait { .. } => return Ok(()),
            Step::Probe { .. } => {
                Outcome::Probed(if well { Probed::Success } else { Probed::Failure("no".into()) })
            }
            _ if !well => Outcome::Failed(Fault { reason: None, message: "no".into() }),
            Step::FindImage { .. } | Step::PullImage { .. } => {
                Outcome::Image { id: "sha256:1".into(), pulled: None }
            }
            Step::Start { .. } => Outcome::Started { at: self.world.now },
            Step::Connect => Outcome::Connected { ips: vec![] },
            _ => Outcome::Done,
        };
        if well {
            self.host.did(step);
        }
        self.world.record(step, outcome);
        if let Step::Signal { container, attempt, kill: true } = step
            && well
        {
            self.exit(container, *attempt, 137);
        }
        self.begin()
    }

    fn exit(&mut self, name: &str, attempt: u32, code: i32) {
        self.host.runs.remove(&(name.to_owned(), attempt));
        let wait = Step::Wait { container: name.to_owned(), attempt };
        if !self.world.pending.contains(&wait) {
            return;
        }
        if code == 0 && self.world.assignment.init_containers.iter().any(|spec| spec.name == name) {
            self.host.inits_done.insert(name.to_owned());
        }
        self.host.restarts.push((name.to_owned(), self.world.now));
        let now = self.world.now;
        let exit = Exit { code, started: now, at: now, oom: false, unknown: false, message: String::new() };
        self.world.record(&wait, Outcome::Exited(exit));
    }

    fn restart(&mut self, reboot: bool) -> Result<(), TestCaseError> {
        if reboot {
            self.host.runs.clear();
            self.host.sandbox = false;
            self.host.connected = false;
            self.host.mounted = false;
            self.host.files = false;
            self.host.inits_done.clear();
        } else {
            // What was under way may have been done.
            let pending = std::mem::take(&mut self.world.pending);
            for (n, step) in pending.iter().enumerate() {
                if n % 2 == 0
                    && !matches!(step, Step::Unmount { .. } | Step::Disconnect | Step::RemoveSandbox)
                {
                    self.host.did(step);
                }
            }
        }
        let memory = self.world.observed.remember();
        let found: Vec<Found> = self
            .host
            .made
            .iter()
            .map(|(name, attempt)| Found {
                container: name.clone(),
                attempt: *attempt,
                image: "busybox".into(),
                created: Time(0),
                state: match self.host.runs.contains(&(name.clone(), *attempt)) {
                    true => FoundState::Started,
                    false => FoundState::Made,
                },
            })
            .collect();
        let waited: Vec<(String, u32)> = self.host.runs.iter().cloned().collect();
        self.world.restore(&memory, &found, reboot);
        for (name, attempt) in waited {
            let state = &self.world.observed.containers[&name];
            let adopted = state.running().is_some() && state.attempt == attempt;
            prop_assert!(adopted || state.remains.contains_key(&attempt), "a running container is lost");
        }
        Ok(())
    }

    fn happen(&mut self, happening: &Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Ends { which, well } => {
                let pending: Vec<Step> =
                    self.world.pending.iter().filter(|s| !matches!(s, Step::Wait { .. })).cloned().collect();
                if !pending.is_empty() {
                    let step = pending[which % pending.len()].clone();
                    self.end(&step, *well)?;
                }
            }
            Happening::Exits { which, code } => {
                let runs: Vec<(String, u32)> = self.host.runs.iter().cloned().collect();
                if !runs.is_empty() {
                    let (name, attempt) = runs[which % runs.len()].clone();
                    let known = self.world.pending.contains(&Step::Wait { container: name.clone(), attempt });
                    if known {
                        self.exit(&name, attempt, *code);
                    }
                }
            }
            Happening::Passes { millis } => self.world.now = self.world.now + Duration::from_millis(*millis),
            Happening::Stop { grace } => {
                self.world.stop(*grace);
                self.host.stopped = true;
            }
            Happening::Restart { reboot } => self.restart(*reboot)?,
            Happening::Assigned { image } => {
                let mut pod = self.world.assignment.clone();
                pod.containers[0].image = format!("busybox:{image}");
                self.world.assign(pod);
            }
        }
        self.begin()?;
        let _ = self.world.status();
        Ok(())
    }

    /// Everything ends well from here on: a stopped pod must vanish, another one must come to rest.
    fn conclude(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..4000 {
            let pending: Vec<Step> =
                self.world.pending.iter().filter(|s| !matches!(s, Step::Wait { .. })).cloned().collect();
            for step in &pending {
                self.end(step, true)?;
            }
            self.begin()?;
            if self.world.observed.gone {
                prop_assert!(self.host.made.is_empty() && self.host.runs.is_empty());
                prop_assert!(!self.host.connected && !self.host.mounted && !self.host.sandbox);
                return Ok(());
            }
            if pending.is_empty() {
                self.world.now = self.world.now + Duration::from_secs(3);
                self.begin()?;
            }
        }
        prop_assert!(false, "never gone: {:#?}", self.world.observed);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_pod_is_made_in_order_never_twice_and_leaves_nothing(
        assignment in assignment(),
        happenings in prop::collection::vec(happening(), 0..150),
    ) {
        let mut run = Run { world: World::new(assignment), host: Host::default() };
        run.begin()?;
        for happening in &happenings {
            run.happen(happening)?;
        }
        run.happen(&Happening::Stop { grace: 5 })?;
        run.conclude()?;
    }

    #[test]
    fn restarts_keep_to_the_back_off(codes in prop::collection::vec((0i32..3, 0u64..700_000), 1..20)) {
        let mut run = Run { world: World::new(pod_with(&["a"], vec![])), host: Host::default() };
        run.host.mounted = true;
        run.begin()?;
        let mut expected = 0u64;
        let mut set = None::<Time>;
        for (code, ran) in codes {
            while !matches!(run.world.observed.containers["a"].phase, Phase::Running(_)) {
                let pending: Vec<Step> =
                    run.world.pending.iter().filter(|s| !matches!(s, Step::Wait { .. })).cloned().collect();
                for step in &pending {
                    run.end(step, true)?;
                }
                if pending.is_empty() {
                    run.world.now = run.world.now + Duration::from_secs(1);
                    run.begin()?;
                }
            }
            run.world.now = run.world.now + Duration::from_millis(ran);
            let attempt = run.world.observed.containers["a"].attempt;
            let ended = run.world.now;
            run.exit("a", attempt, code);
            // The back-off is forgotten after ten minutes without a restart.
            if set.is_none_or(|set| ended.since(set) > Duration::from_secs(600)) {
                expected = 0;
            }
            let state: &Container = &run.world.observed.containers["a"];
            prop_assert_eq!(state.restarts.allowed(ended).1.as_secs(), expected);
            let was = expected;
            run.begin()?;
            expected = if expected == 0 { 10 } else { (expected * 2).min(300) };
            // On to the restart: not before its time, and at once when that has come.
            while run.world.times(|step| matches!(step, Step::Create { .. })).len() <= attempt as usize + 1 {
                run.world.now = run.world.now + Duration::from_secs(1);
                run.begin()?;
                for step in run.world.pending.clone() {
                    run.end(&step, true)?;
                }
            }
            let restarted = *run.world.times(|step| matches!(step, Step::Create { .. })).last().unwrap();
            prop_assert!(Time(restarted) >= ended + Duration::from_secs(was));
            prop_assert!(Time(restarted) <= ended + Duration::from_secs(was + 1));
            set = Some(Time(restarted));
        }
    }
}
