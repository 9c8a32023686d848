//! The rules one by one, and then all of them against a model of a world that does its worst: messages that
//! are late, lost with their connection, or said twice; agents and controllers that restart; a controller
//! restored from a copy of its store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

fn record(uid: &str, node: &str, epoch: u64) -> Record {
    Record { uid: uid.into(), node: node.into(), epoch, address: String::new() }
}

fn life(uid: &str, node: &str) -> Life {
    Life { uid: uid.into(), node: node.into(), ..Life::default() }
}

#[test]
fn a_name_is_bound_only_once_nobody_holds_it() {
    let none = Restore::default();
    assert_eq!(bind(None, &life("a", ""), &none), Ok(()));
    let held = record("old", "n1", 3);
    let refusal = bind(Some(&held), &life("a", ""), &none).unwrap_err();
    assert_eq!(refusal, Refusal::Held(held));
    assert!(refusal.to_string().contains("still held by an earlier pod (uid old) on node \"n1\""));
}

#[test]
fn a_pod_that_goes_or_is_over_is_not_bound() {
    let none = Restore::default();
    assert_eq!(bind(None, &Life { deleting: Some(3), ..life("a", "") }, &none), Err(Refusal::Deleting));
    assert_eq!(bind(None, &Life { ended: true, ..life("a", "") }, &none), Err(Refusal::Ended));
}

#[test]
fn a_forced_deletion_stops_the_life_at_once_and_leaves_its_record() {
    let held = record("a", "n1", 1);
    assert_eq!(desired(&held, None, true, &Restore::default()), Desired::Stop(0));
    // Its successor's object is there already: the same.
    assert_eq!(desired(&held, Some(&life("b", "")), true, &Restore::default()), Desired::Stop(0));
    assert!(matches!(bind(Some(&held), &life("b", ""), &Restore::default()), Err(Refusal::Held(_))));
}

#[test]
fn a_graceful_deletion_leaves_the_rest_of_the_grace_period() {
    let pod = json!({"metadata": {
        "uid": "a", "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30,
    }});
    let at = |text: &str| Life::of(&pod, text.parse().unwrap()).deleting;
    assert_eq!(at("2026-01-01T00:00:00.2Z"), Some(30));
    assert_eq!(at("2026-01-01T00:00:10Z"), Some(20));
    assert_eq!(at("2026-01-01T00:01:00Z"), Some(0));
    // A clock that was set back does not lengthen it.
    assert_eq!(at("2025-01-01T00:00:00Z"), Some(30));
}

#[test]
fn only_the_report_of_the_very_life_frees_its_record() {
    let held = record("a", "n1", 4);
    assert_eq!(stopped(Some(&held), "n1", "a", 4), Stopped::Free);
    for (node, uid, epoch) in [("n2", "a", 4), ("n1", "b", 4), ("n1", "a", 3), ("n1", "a", 5)] {
        assert_eq!(stopped(Some(&held), node, uid, epoch), Stopped::Unknown);
    }
    assert_eq!(stopped(None, "n1", "a", 4), Stopped::Unknown);
}

#[test]
fn a_pod_that_has_ended_is_not_run_again_on_an_empty_host() {
    let held = record("a", "n1", 4);
    let ended = Life { ended: true, ..life("a", "n1") };
    assert_eq!(desired(&held, Some(&ended), true, &Restore::default()), Desired::Run);
    assert_eq!(desired(&held, Some(&ended), false, &Restore::default()), Desired::Stop(0));
}

#[test]
fn what_runs_unknown_gets_its_name_back_unless_something_newer_has_it() {
    let runs = Reported { node: "n1", uid: "a", epoch: 5, stopped: false };
    assert_eq!(report(None, &runs), Finding::Adopt);
    assert_eq!(report(Some(&record("old", "n2", 3)), &runs), Finding::Adopt);
    assert_eq!(report(Some(&record("new", "n2", 9)), &runs), Finding::Stop);
    assert_eq!(report(Some(&record("a", "n1", 5)), &runs), Finding::InForce);
    let over = Reported { stopped: true, ..runs };
    assert_eq!(report(Some(&record("a", "n1", 5)), &over), Finding::Free);
    assert_eq!(report(None, &over), Finding::Forget);
    assert_eq!(report(Some(&record("new", "n2", 9)), &over), Finding::Forget);
}

#[test]
fn after_a_restore_nothing_starts_before_every_host_has_spoken() {
    let restore = Restore { awaited: BTreeSet::from(["n2".to_owned()]) };
    let refusal = bind(None, &life("a", ""), &restore).unwrap_err();
    assert!(refusal.to_string().ends_with("waiting for the inventory of n2"), "{refusal}");
    let held = record("a", "n1", 1);
    assert_eq!(desired(&held, Some(&life("a", "n1")), false, &restore), Desired::Wait);
    assert_eq!(desired(&held, Some(&life("a", "n1")), true, &restore), Desired::Run);
    assert_eq!(desired(&held, None, false, &restore), Desired::Stop(0));
    assert_eq!(Restore::read(&restore.write()), restore);
}

#[test]
fn an_object_without_a_life_is_removed_or_failed() {
    let bound = Life { scheduled: true, ..life("a", "n1") };
    assert_eq!(unheld(Some(&record("a", "n1", 1)), &bound), Unheld::Fine);
    assert_eq!(unheld(None, &bound), Unheld::Fail);
    assert_eq!(unheld(None, &Life { ended: true, ..bound.clone() }), Unheld::Fine);
    assert_eq!(unheld(None, &Life { deleting: Some(9), ..bound }), Unheld::Remove);
    // Its maker named a node, and it has not been bound yet.
    assert_eq!(unheld(None, &life("a", "n1")), Unheld::Fine);
    assert_eq!(unheld(None, &life("a", "")), Unheld::Fine);
}

#[test]
fn records_survive_the_store() {
    let there = Record { address: "10.42.0.7/24".into(), ..record("a", "n1", 1_790_000_000_000) };
    assert_eq!(Record::read(&there.write()), Some(there));
    assert_eq!(Record::read(&json!({"uid": "a"})), None);
}

proptest! {
    #[test]
    fn epochs_only_grow(last in any::<u32>(), clocks in prop::collection::vec(any::<u32>(), 1..20)) {
        let mut last = u64::from(last);
        for clock in clocks {
            let next = next_epoch(last, u64::from(clock));
            prop_assert!(next > last);
            last = next;
        }
    }
}

// ------------------------------------------------------------------------------------------- the world

const NAMES: usize = 2;
const NODES: usize = 3;

/// What a host really has.
#[derive(Clone, Debug, Default)]
struct Host {
    /// (name, uid, epoch) that it holds; true: nothing runs of it any more.
    held: BTreeMap<(usize, u64, u64), bool>,
    /// Lives it was told to stop.
    stopping: BTreeSet<(usize, u64, u64)>,
    /// The session's number, if one is open.
    session: Option<u64>,
    /// The controller's messages on that session, not yet read.
    inbox: VecDeque<Down>,
}

#[derive(Clone, Debug, PartialEq)]
enum Down {
    Assign(usize, u64, u64),
    Stop(usize, u64, u64),
    Forget(usize, u64, u64),
}

#[derive(Clone, Debug)]
struct Up {
    node: usize,
    life: (usize, u64, u64),
}

/// What the controller has stored.
#[derive(Clone, Debug, Default)]
struct Stored {
    pods: BTreeMap<usize, Life>,
    records: BTreeMap<usize, Record>,
    epoch: u64,
    restore: Restore,
}

#[derive(Debug, Default)]
struct World {
    stored: Stored,
    copy: Option<Stored>,
    hosts: Vec<Host>,
    /// `Stopped` reports under way; they survive their session (a late task of the controller's).
    late: Vec<Up>,
    /// What each open session has said it holds, or was assigned.
    reported: BTreeSet<(usize, usize, u64, u64)>,
    uids: u64,
    clock: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Delete(usize),
    ForceDelete(usize),
    Bind(usize, usize),
    /// (Re)connects a host; what was under way to it is lost.
    Connect(usize),
    Disconnect(usize),
    /// The session looks at one name again.
    Review(usize, usize),
    /// The host reads its next message.
    Read(usize),
    /// One of the host's stopping lives has ended, and it says so.
    Stopped(usize, usize),
    /// It says so again.
    Repeat(usize, usize),
    /// One of the late reports arrives, or arrives a second time.
    Arrive(usize, bool),
    ControllerRestart,
    Copy,
    RestoreCopy,
    /// A pod's phase becomes Succeeded.
    End(usize),
    Settle(usize),
}

fn node(n: usize) -> String {
    format!("n{n}")
}

impl World {
    fn new() -> World {
        World { hosts: vec![Host::default(); NODES], ..World::default() }
    }

    fn step(&mut self, step: &Step) {
        self.clock += 1;
        match *step {
            Step::Create(name) => {
                self.uids += 1;
                let life = Life { uid: self.uids.to_string(), ..Life::default() };
                self.stored.pods.entry(name).or_insert(life);
            }
            Step::Delete(name) => {
                let bound = self.stored.pods.get(&name).is_some_and(|p| !p.node.is_empty());
                if !bound {
                    self.stored.pods.remove(&name);
                } else if let Some(pod) = self.stored.pods.get_mut(&name) {
                    pod.deleting = Some(30);
                }
            }
            Step::ForceDelete(name) => drop(self.stored.pods.remove(&name)),
            Step::Bind(name, to) => self.bind(name, to),
            Step::Connect(n) => self.connect(n),
            Step::Disconnect(n) => self.disconnect(n),
            Step::Review(n, name) => self.review(n, name),
            Step::Read(n) => self.read(n),
            Step::Stopped(n, which) => {
                let host = &mut self.hosts[n];
                let running: Vec<_> =
                    host.stopping.iter().filter(|l| host.held.get(*l) == Some(&false)).copied().collect();
                if let Some(life) = running.get(which % running.len().max(1)) {
                    host.held.insert(*life, true);
                    self.late.push(Up { node: n, life: *life });
                }
            }
            Step::Repeat(n, which) => {
                let over: Vec<_> =
                    self.hosts[n].held.iter().filter(|(_, over)| **over).map(|(l, _)| *l).collect();
                if let Some(life) = over.get(which % over.len().max(1)) {
                    self.late.push(Up { node: n, life: *life });
                }
            }
            Step::Arrive(which, twice) => {
                if self.late.is_empty() {
                    return;
                }
                let at = which % self.late.len();
                let up = if twice { self.late[at].clone() } else { self.late.remove(at) };
                self.heard_stopped(&up);
            }
            Step::ControllerRestart => (0..NODES).for_each(|n| self.disconnect(n)),
            Step::Copy => self.copy = Some(self.stored.clone()),
            Step::RestoreCopy => {
                let Some(copy) = self.copy.clone() else { return };
                // Nothing of the former process is left, its late tasks neither.
                (0..NODES).for_each(|n| self.disconnect(n));
                self.late.clear();
                self.stored = copy;
                self.stored.restore = Restore { awaited: (0..NODES).map(node).collect() };
            }
            Step::End(name) => {
                if let Some(pod) = self.stored.pods.get_mut(&name).filter(|p| !p.node.is_empty()) {
                    pod.ended = true;
                }
            }
            Step::Settle(name) => {
                let Some(pod) = self.stored.pods.get_mut(&name) else { return };
                match unheld(self.stored.records.get(&name), pod) {
                    Unheld::Fine => {}
                    Unheld::Remove => drop(self.stored.pods.remove(&name)),
                    Unheld::Fail => pod.ended = true,
                }
            }
        }
    }

    fn bind(&mut self, name: usize, to: usize) {
        let Some(pod) = self.stored.pods.get_mut(&name) else { return };
        if !pod.node.is_empty() || bind(self.stored.records.get(&name), pod, &self.stored.restore).is_err() {
            return;
        }
        self.stored.epoch = next_epoch(self.stored.epoch, self.clock);
        pod.node = node(to);
        pod.scheduled = true;
        self.stored.records.insert(name, record(&pod.uid, &node(to), self.stored.epoch));
    }

    fn connect(&mut self, n: usize) {
        self.disconnect(n);
        let held: Vec<_> = self.hosts[n].held.clone().into_iter().collect();
        self.hosts[n].session = Some(self.clock);
        let mut forget = Vec::new();
        for ((name, uid, epoch), over) in held {
            let uid_text = uid.to_string();
            let line = Reported { node: &node(n), uid: &uid_text, epoch, stopped: over };
            match report(self.stored.records.get(&name), &line) {
                Finding::InForce | Finding::Stop => {}
                Finding::Free => self.free(name),
                Finding::Adopt => {
                    self.stored.records.insert(name, record(&uid_text, &node(n), epoch));
                    self.stored.epoch = self.stored.epoch.max(epoch);
                    if let Some(pod) = self.stored.pods.get_mut(&name).filter(|p| p.uid == uid_text)
                        && pod.node.is_empty()
                    {
                        pod.node = node(n);
                        pod.scheduled = true;
                    }
                }
                Finding::Forget => forget.push((name, uid, epoch)),
            }
            self.reported.insert((n, name, uid, epoch));
        }
        for (name, uid, epoch) in forget {
            self.hosts[n].inbox.push_back(Down::Forget(name, uid, epoch));
        }
        self.stored.restore.awaited.remove(&node(n));
        (0..NAMES).for_each(|name| self.review(n, name));
    }

    fn disconnect(&mut self, n: usize) {
        self.hosts[n].session = None;
        self.hosts[n].inbox.clear();
        self.reported.retain(|(node, ..)| *node != n);
    }

    /// As the session's ledger, without its memory of what was said: it may say everything again.
    fn review(&mut self, n: usize, name: usize) {
        if self.hosts[n].session.is_none() {
            return;
        }
        let held = self.stored.records.get(&name).filter(|r| r.node == node(n)).cloned();
        if let Some(record) = &held {
            let (uid, epoch) = (record.uid.parse().unwrap(), record.epoch);
            let reported = self.reported.contains(&(n, name, uid, epoch));
            match desired(record, self.stored.pods.get(&name), reported, &self.stored.restore) {
                Desired::Run => {
                    self.reported.insert((n, name, uid, epoch));
                    self.hosts[n].inbox.push_back(Down::Assign(name, uid, epoch));
                }
                Desired::Stop(_) => self.hosts[n].inbox.push_back(Down::Stop(name, uid, epoch)),
                Desired::Wait => {}
            }
        }
        let others: Vec<_> = self
            .reported
            .iter()
            .filter(|(node, at, uid, epoch)| {
                let mine = held.as_ref().is_some_and(|r| r.uid == uid.to_string() && r.epoch == *epoch);
                *node == n && *at == name && !mine
            })
            .map(|(_, _, uid, epoch)| Down::Stop(name, *uid, *epoch))
            .collect();
        self.hosts[n].inbox.extend(others);
    }

    /// A host starts whatever it is assigned, unless it holds that very life already: the rules must do
    /// without the agent's own fence.
    fn read(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        match host.inbox.pop_front() {
            Some(Down::Assign(name, uid, epoch)) => {
                host.held.entry((name, uid, epoch)).or_insert(false);
            }
            Some(Down::Stop(name, uid, epoch)) => {
                let life = (name, uid, epoch);
                match host.held.get(&life) {
                    Some(false) => drop(host.stopping.insert(life)),
                    // It knows nothing of it, or it is over: it says so.
                    _ => self.late.push(Up { node: n, life }),
                }
            }
            Some(Down::Forget(name, uid, epoch)) => {
                let life = (name, uid, epoch);
                if host.held.get(&life) == Some(&true) {
                    host.held.remove(&life);
                    host.stopping.remove(&life);
                }
            }
            None => {}
        }
    }

    fn heard_stopped(&mut self, up: &Up) {
        let (name, uid, epoch) = up.life;
        let held = self.stored.records.get(&name);
        if stopped(held, &node(up.node), &uid.to_string(), epoch) == Stopped::Free {
            self.free(name);
        }
        if self.hosts[up.node].session.is_some() {
            self.hosts[up.node].inbox.push_back(Down::Forget(name, uid, epoch));
        }
    }

    fn free(&mut self, name: usize) {
        let Some(record) = self.stored.records.remove(&name) else { return };
        if self.stored.pods.get(&name).is_some_and(|p| p.uid == record.uid && p.deleting.is_some()) {
            self.stored.pods.remove(&name);
        }
    }

    /// How many lives of a name run at this moment.
    fn running(&self, name: usize) -> Vec<(usize, u64, u64)> {
        let lives = self.hosts.iter().enumerate().flat_map(|(n, host)| {
            host.held
                .iter()
                .filter(|(_, over)| !**over)
                .map(move |((name, uid, epoch), _)| (*name, (n, *uid, *epoch)))
        });
        lives.filter(|(at, _)| *at == name).map(|(_, life)| life).collect()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES;
    let host = 0..NODES;
    let step = prop_oneof![
        4 => name.clone().prop_map(Step::Create),
        3 => name.clone().prop_map(Step::Delete),
        2 => name.clone().prop_map(Step::ForceDelete),
        6 => (name.clone(), host.clone()).prop_map(|(a, b)| Step::Bind(a, b)),
        4 => host.clone().prop_map(Step::Connect),
        1 => host.clone().prop_map(Step::Disconnect),
        5 => (host.clone(), name.clone()).prop_map(|(a, b)| Step::Review(a, b)),
        9 => host.clone().prop_map(Step::Read),
        4 => (host.clone(), 0..4usize).prop_map(|(a, b)| Step::Stopped(a, b)),
        1 => (host, 0..4usize).prop_map(|(a, b)| Step::Repeat(a, b)),
        5 => (0..4usize, any::<bool>()).prop_map(|(a, b)| Step::Arrive(a, b)),
        1 => Just(Step::ControllerRestart),
        1 => Just(Step::Copy),
        1 => Just(Step::RestoreCopy),
        1 => name.clone().prop_map(Step::End),
        2 => name.prop_map(Step::Settle),
    ];
    prop::collection::vec(step, 1..160)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn never_two_lives_of_one_name(steps in steps()) {
        let mut world = World::new();
        for (at, step) in steps.iter().enumerate() {
            world.step(step);
            for name in 0..NAMES {
                let running = world.running(name);
                prop_assert!(
                    running.len() <= 1,
                    "after step {at} {step:?}: {running:?} of name {name} run in {world:#?}"
                );
            }
        }
    }

    /// Nothing is stuck: once every host is connected and says all it has to say, every pod that was
    /// deleted is gone with its record, and a new pod of the name can be bound.
    #[test]
    fn whatever_happened_a_name_becomes_free_again(steps in steps()) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        for name in 0..NAMES {
            world.step(&Step::Delete(name));
        }
        for _ in 0..4 {
            (0..NODES).for_each(|n| world.step(&Step::Connect(n)));
            for n in 0..NODES {
                (0..NAMES).for_each(|name| world.step(&Step::Review(n, name)));
                while !world.hosts[n].inbox.is_empty() {
                    world.step(&Step::Read(n));
                }
                for which in 0..8 {
                    world.step(&Step::Stopped(n, which));
                }
                while !world.late.is_empty() {
                    world.step(&Step::Arrive(0, false));
                }
            }
            for name in 0..NAMES {
                world.step(&Step::Settle(name));
                world.step(&Step::Delete(name));
            }
        }
        for name in 0..NAMES {
            prop_assert_eq!(world.stored.pods.get(&name), None);
            prop_assert_eq!(world.stored.records.get(&name), None);
            world.step(&Step::Create(name));
            world.step(&Step::Bind(name, 0));
            prop_assert!(world.stored.records.contains_key(&name));
        }
    }
}
