//! The plan carried out in a small world with random pods, failures, interruptions and people, and what must
//! hold in it whatever happens.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

mod claims;
mod progress;
mod updates;

use super::*;
use crate::object;

#[derive(Clone, Debug)]
enum Step {
    /// The loop runs; it is interrupted after so many actions (and then writes no status).
    Reconcile(Option<usize>),
    Runs(usize),
    Ready(usize),
    LosesReadiness(usize),
    Ends(usize),
    /// A stopped pod goes.
    Gone(usize),
    PersonDeletesPod(usize),
    PersonDeletesClaim(usize),
    PersonRelabels(usize),
    Scale(u32),
    Template(u8),
    Start(u32),
    Partition(u32),
    MaxUnavailable(Value),
    OnDelete,
    /// Whether the hosts have every image.
    Images(bool),
    Passes(i64),
}

struct World {
    set: Value,
    pods: BTreeMap<String, Value>,
    claims: BTreeMap<String, Value>,
    revisions: BTreeMap<String, Value>,
    now: Timestamp,
    uids: u32,
    images: bool,
    told: Vec<&'static str>,
}

/// Pods of these images never become Ready.
const BROKEN: [&str; 2] = ["v4", "v5"];

impl World {
    fn new(parallel: bool, min_ready: i64, replicas: u32) -> World {
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "set", "generation": 1},
            "spec": {
                "replicas": replicas, "serviceName": "web", "minReadySeconds": min_ready,
                "podManagementPolicy": if parallel { "Parallel" } else { "OrderedReady" },
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "v0"}]},
                },
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            },
        });
        World {
            set,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            revisions: BTreeMap::new(),
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            uids: 0,
            images: true,
            told: Vec::new(),
        }
    }

    fn plan(&self) -> (Set, Vec<Pod>, Plan) {
        let set = Set::read(&self.set);
        let pods: Vec<Pod> = self.pods.values().map(Pod::read).collect();
        let claims: Vec<Claim> = self.claims.values().map(Claim::read).collect();
        let revisions: Vec<Revision> = self.revisions.values().map(Revision::read).collect();
        let plan = plan(&set, &pods, &claims, &revisions, self.now);
        (set, pods, plan)
    }

    /// Runs the loop once and checks each thing it does. Whether it did anything.
    fn reconcile(&mut self, interrupted: Option<usize>) -> bool {
        let (set, pods, plan) = self.plan();
        let ordered = !set.parallel;
        let available = |ordinal: u32| {
            pods.iter().any(|p| {
                p.ordinal == Some(ordinal) && !p.deleting && p.available(set.min_ready_seconds, self.now)
            })
        };
        let kept_available = set.ordinals.iter().all(available);
        let scaling = |a: &&Action| matches!(a, Action::CreatePod { .. } | Action::DeletePod { .. });
        if ordered {
            assert!(plan.actions.iter().filter(scaling).count() <= 1, "one at a time: {:?}", plan.actions);
        }
        for action in plan.actions.iter().filter(scaling) {
            match action {
                Action::CreatePod { name, .. } => {
                    let (_, ordinal) = parent_and_ordinal(name).unwrap();
                    assert!(set.ordinals.contains(ordinal), "{name} is wanted");
                    let before = set.ordinals.iter().take_while(|o| *o < ordinal);
                    assert!(
                        !ordered || before.into_iter().all(available),
                        "{name} comes after its predecessors"
                    );
                }
                Action::DeletePod { name, .. } => {
                    let pod = pods.iter().find(|p| p.name == *name).unwrap();
                    assert!(!pod.deleting, "{name} is asked once");
                    let ordinal = pod.ordinal.unwrap();
                    if set.ordinals.contains(ordinal) {
                        assert_eq!(pod.phase, super::set::Phase::Ended, "{name} is wanted and alive");
                    } else if ordered {
                        let condemned =
                            |p: &&Pod| self.ours(p) && p.ordinal.is_some_and(|o| !set.ordinals.contains(o));
                        let last = pods.iter().filter(condemned).all(|p| p.ordinal <= Some(ordinal));
                        assert!(last, "{name} goes after its successors");
                        assert!(kept_available, "{name} goes while all that stay are available");
                    }
                }
                _ => {}
            }
        }
        self.replacements_keep_the_rules(&set, &pods, &plan);
        let acts = |a: &Action| match a {
            Action::CannotCreate { .. } => false,
            Action::ReplacePod { .. } => self.images,
            _ => true,
        };
        let acted = plan.actions.iter().any(acts);
        let count = interrupted.unwrap_or(usize::MAX).min(plan.actions.len());
        for action in &plan.actions[..count] {
            self.carry_out(action);
        }
        if count == plan.actions.len() {
            self.set["status"] = plan.status.clone();
            self.set["metadata"]["annotations"][annotations::REJECTED_REVISION] =
                plan.rejected.clone().into();
            self.status_is_right(&plan.status);
        }
        acted
    }

    /// Only outdated pods make way; of the available ones no more than maxUnavailable allows, the highest
    /// first.
    fn replacements_keep_the_rules(&self, set: &Set, pods: &[Pod], plan: &Plan) {
        let replaced: Vec<&str> = plan
            .actions
            .iter()
            .filter_map(|a| match a {
                Action::ReplacePod { name, successor, revision, .. } => {
                    let pod = pods.iter().find(|p| p.name == *name).unwrap();
                    assert!(
                        !pod.deleting && pod.revision != *revision,
                        "{name} makes way for another revision"
                    );
                    assert_eq!(object::label(successor, REVISION_LABEL), Some(revision.as_str()));
                    Some(name.as_str())
                }
                _ => None,
            })
            .collect();
        let super::set::Strategy::RollingUpdate { partition, max_unavailable } = set.strategy else {
            assert!(replaced.is_empty(), "nothing is replaced OnDelete");
            return;
        };
        let update = plan.status["updateRevision"].as_str().unwrap();
        // Also those that this very plan adopts.
        let selected = |p: &&Pod| object::label(&self.pods[&p.name], "app") == Some("web");
        let of = |ordinal: u32| pods.iter().filter(selected).find(|p| p.ordinal == Some(ordinal));
        let available = |p: &Pod| !p.deleting && p.available(set.min_ready_seconds, self.now);
        let wanted: Vec<u32> = set.ordinals.iter().collect();
        let mut unavailable = wanted.iter().filter(|o| !of(**o).is_some_and(available)).count();
        let mut waiting_above = None;
        for ordinal in wanted.iter().rev() {
            let Some(pod) = of(*ordinal).filter(|p| available(p)) else { continue };
            let replaced = replaced.contains(&pod.name.as_str());
            let above = set.ordinals.position(*ordinal) >= partition;
            if replaced {
                assert!(above, "{} is below the partition", pod.name);
                assert_eq!(waiting_above, None, "{} goes after its successors", pod.name);
                unavailable += 1;
            } else if above && pod.revision != update {
                waiting_above = Some(pod.name.clone());
            }
        }
        let taken = wanted
            .iter()
            .filter_map(|o| of(*o))
            .filter(|p| available(p) && replaced.contains(&p.name.as_str()));
        if taken.count() > 0 {
            assert!(unavailable <= max_unavailable as usize, "{unavailable} unavailable: {replaced:?}");
        }
    }

    fn ours(&self, pod: &Pod) -> bool {
        object::controller_ref(&self.pods[&pod.name]).is_some()
            && object::label(&self.pods[&pod.name], "app") == Some("web")
    }

    fn carry_out(&mut self, action: &Action) {
        match action {
            Action::CreateRevision(value) => {
                let name = object::name(value).to_owned();
                assert!(self.revisions.insert(name, value.clone()).is_none(), "no revision is overwritten");
            }
            Action::RenumberRevision { name, number, .. } => {
                self.revisions.get_mut(name).unwrap()["revision"] = (*number).into();
            }
            Action::AdoptRevision { name, owner, .. } => {
                self.revisions.get_mut(name).unwrap()["metadata"]["ownerReferences"] = json!([owner]);
            }
            Action::DeleteRevision { name, .. } => {
                assert!(self.revisions.remove(name).is_some());
            }
            Action::AdoptPod { name, owner, .. } => {
                self.pods.get_mut(name).unwrap()["metadata"]["ownerReferences"] = json!([owner]);
            }
            Action::ReleasePod { name, .. } => {
                object::metadata_mut(self.pods.get_mut(name).unwrap()).remove("ownerReferences");
            }
            Action::LabelPod { name, labels, .. } => {
                for (key, value) in labels {
                    self.pods.get_mut(name).unwrap()["metadata"]["labels"][*key] = value.clone().into();
                }
            }
            Action::CreateClaims { claims, .. } => self.create_claims(claims),
            Action::CreatePod { name, pod, claims } => {
                self.create_claims(claims);
                for claim in Set::read(&self.set).claims_of(parent_and_ordinal(name).unwrap().1) {
                    assert!(!object::deleting(&self.claims[&claim]), "a claim that goes is not taken");
                }
                let mut pod = pod.clone();
                self.uids += 1;
                pod["metadata"]["uid"] = self.uids.to_string().into();
                pod["status"] = json!({"phase": "Pending"});
                pod["metadata"]["creationTimestamp"] = self.now.to_string().into();
                assert!(self.pods.insert(name.clone(), pod).is_none(), "two pods of one ordinal");
            }
            Action::DeletePod { name, .. } => self.delete_pod(name),
            Action::ReplacePod { name, .. } if self.images => self.delete_pod(name),
            // It waits for its images.
            Action::ReplacePod { .. } => {}
            Action::OwnClaim { name, disown, owner, .. } => {
                let claim = self.claims.get_mut(name).unwrap();
                let owners =
                    object::metadata_mut(claim).entry("ownerReferences").or_insert_with(|| json!([]));
                let owners = owners.as_array_mut().unwrap();
                owners.retain(|o| !disown.iter().any(|uid| o["uid"] == **uid));
                owners.extend(owner.clone());
            }
            Action::ChangeClaim { name, storage, labels, annotations, .. } => {
                let claim = self.claims.get_mut(name).unwrap();
                if let Some(storage) = storage {
                    claim["spec"]["resources"]["requests"]["storage"] = storage.clone();
                }
                object::map_mut(&mut claim["metadata"], "labels").extend(labels.clone());
                object::map_mut(&mut claim["metadata"], "annotations").extend(annotations.clone());
            }
            Action::MarkRevision { name, .. } => {
                let revision = self.revisions.get_mut(name).unwrap();
                revision["metadata"]["annotations"] = json!({annotations::WAS_READY: "true"});
            }
            Action::Warn { reason, .. } => self.told.push(*reason),
            Action::CannotCreate { name, .. } => {
                let held = self.pods.contains_key(name);
                assert!(held || self.claims.values().any(object::deleting), "{name} could be created");
            }
        }
    }

    fn create_claims(&mut self, claims: &[Value]) {
        for claim in claims {
            let name = object::name(claim).to_owned();
            assert!(self.claims.insert(name, claim.clone()).is_none(), "no claim is overwritten");
        }
    }

    fn delete_pod(&mut self, name: &str) {
        if let Some(pod) = self.pods.get_mut(name) {
            pod["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into();
        }
    }

    fn status_is_right(&self, status: &Value) {
        let owned = self.pods.values().filter(|p| object::controller_ref(p).is_some());
        let pods: Vec<Pod> = owned.map(Pod::read).collect();
        let count = |f: &dyn Fn(&&Pod) -> bool| pods.iter().filter(f).count() as u64;
        let said = |field: &str| status[field].as_u64().unwrap_or_default();
        assert_eq!(said("readyReplicas"), count(&|p| p.ready()));
        assert!(said("updatedReplicas") <= said("replicas") && said("currentReplicas") <= said("replicas"));
        assert!(said("availableReplicas") <= said("readyReplicas"));
        assert_eq!(status["observedGeneration"], self.set["metadata"]["generation"]);
        for revision in ["currentRevision", "updateRevision"] {
            assert!(self.revisions.contains_key(status[revision].as_str().unwrap()), "{revision} exists");
        }
    }

    fn pick(&self, index: usize) -> Option<String> {
        self.pods.keys().nth(index % self.pods.len().max(1)).cloned()
    }

    fn condition(&mut self, name: &str, ready: bool) {
        let now = self.now.to_string();
        let pod = self.pods.get_mut(name).unwrap();
        if pod["status"]["phase"] == "Running" {
            pod["status"]["conditions"] = json!([
                {"type": "Initialized", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now},
            ]);
            pod["status"]["containerStatuses"] = json!([{"state": {"running": {}}}]);
        }
    }

    fn take(&mut self, step: &Step) {
        let pod = match step {
            Step::Runs(i)
            | Step::Ready(i)
            | Step::LosesReadiness(i)
            | Step::Ends(i)
            | Step::Gone(i)
            | Step::PersonDeletesPod(i)
            | Step::PersonRelabels(i) => match self.pick(*i) {
                Some(name) => name,
                None => return,
            },
            _ => String::new(),
        };
        let change = |set: &mut Value| {
            let generation = object::generation(set) + 1;
            set["metadata"]["generation"] = generation.into();
        };
        match step {
            Step::Reconcile(interrupted) => {
                self.reconcile(*interrupted);
            }
            Step::Runs(_) => {
                let phase = &mut self.pods.get_mut(&pod).unwrap()["status"]["phase"];
                if *phase == "Pending" {
                    *phase = "Running".into();
                }
            }
            Step::Ready(_) => self.condition(&pod, true),
            Step::LosesReadiness(_) => self.condition(&pod, false),
            Step::Ends(_) => self.pods.get_mut(&pod).unwrap()["status"] = json!({"phase": "Failed"}),
            Step::Gone(_) => self.stopped(&pod),
            Step::PersonDeletesPod(_) => self.delete_pod(&pod),
            Step::PersonRelabels(_) => {
                let labels = &mut self.pods.get_mut(&pod).unwrap()["metadata"]["labels"];
                labels["app"] = if labels["app"] == "web" { "else".into() } else { "web".into() };
            }
            Step::PersonDeletesClaim(i) => {
                let name = self.claims.keys().nth(i % self.claims.len().max(1)).cloned();
                if let Some(claim) = name.and_then(|n| self.claims.get_mut(&n)) {
                    claim["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into();
                }
            }
            Step::Scale(n) => {
                self.set["spec"]["replicas"] = (*n).into();
                change(&mut self.set);
            }
            Step::Template(n) => {
                self.set["spec"]["template"]["spec"]["containers"][0]["image"] = format!("v{n}").into();
                change(&mut self.set);
            }
            Step::Start(n) => {
                self.set["spec"]["ordinals"] = json!({"start": n});
                change(&mut self.set);
            }
            Step::Partition(n) => {
                let at_once = self.set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].clone();
                self.set["spec"]["updateStrategy"] = json!({
                    "type": "RollingUpdate", "rollingUpdate": {"partition": n, "maxUnavailable": at_once},
                });
                change(&mut self.set);
            }
            Step::MaxUnavailable(value) => {
                self.set["spec"]["updateStrategy"] =
                    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": value}});
                change(&mut self.set);
            }
            Step::OnDelete => {
                self.set["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
                change(&mut self.set);
            }
            Step::Images(there) => self.images = *there,
            Step::Passes(seconds) => self.now += SignedDuration::from_secs(*seconds),
        }
    }

    fn stopped(&mut self, name: &str) {
        if self.pods.get(name).is_some_and(object::deleting) {
            self.pods.remove(name);
            // What protected the claim of the pod is gone.
            self.claims.retain(|claim, v| !object::deleting(v) || !claim.ends_with(&format!("-{name}")));
        }
    }

    /// Everything that can go well does, until nothing more is to be done.
    fn settle(&mut self) {
        self.images = true;
        for _ in 0..300 {
            // People are done: a pod that was relabelled away is taken away by them.
            let strays: Vec<String> = self
                .pods
                .iter()
                .filter(|(_, p)| {
                    object::label(p, "app") != Some("web") && object::controller_ref(p).is_none()
                })
                .map(|(name, _)| name.clone())
                .collect();
            for name in strays {
                self.pods.remove(&name);
            }
            let acted = self.reconcile(None);
            let names: Vec<String> = self.pods.keys().cloned().collect();
            let mut moved = false;
            for name in names {
                let pod = Pod::read(&self.pods[&name]);
                if pod.deleting {
                    self.stopped(&name);
                    moved = true;
                } else if pod.phase == super::set::Phase::Pending {
                    self.take(&Step::Runs(self.pods.keys().position(|n| *n == name).unwrap()));
                    moved = true;
                } else if pod.phase == super::set::Phase::Running && !pod.ready() && !self.is_broken(&name) {
                    self.condition(&name, true);
                    moved = true;
                }
            }
            let unused: Vec<String> = self
                .claims
                .iter()
                .filter(|(n, c)| {
                    object::deleting(c) && !self.pods.keys().any(|p| n.ends_with(&format!("-{p}")))
                })
                .map(|(n, _)| n.clone())
                .collect();
            for name in unused {
                self.claims.remove(&name);
                moved = true;
            }
            let waits = self.plan().2.wake_at;
            if let Some(at) = waits.filter(|_| !acted && !moved) {
                assert!(at > self.now, "waking up for the past");
                self.now = at;
            }
            if !acted && !moved && waits.is_none() {
                return;
            }
        }
        panic!("never at rest: {:?}", self.plan().2.actions);
    }

    fn is_broken(&self, pod: &str) -> bool {
        BROKEN.contains(&self.image(pod))
    }

    fn image(&self, pod: &str) -> &str {
        self.pods[pod]["spec"]["containers"][0]["image"].as_str().unwrap()
    }

    fn images(&self) -> Vec<&str> {
        self.pods.keys().map(|pod| self.image(pod)).collect()
    }

    /// At rest only where the specification says so: for the readiness of a pod that is at the revision it is
    /// to be at, for a person (OnDelete), or for the pods that maxUnavailable and the order keep from going.
    fn rests_for_a_reason(&self) {
        let (set, pods, plan) = self.plan();
        assert!(plan.actions.is_empty(), "{:?}", plan.actions);
        let current = plan.status["currentRevision"].as_str().unwrap();
        let update = plan.status["updateRevision"].as_str().unwrap();
        let (partition, at_once) = match set.strategy {
            super::set::Strategy::OnDelete => (u32::MAX, 0),
            super::set::Strategy::RollingUpdate { partition, max_unavailable } => {
                (partition, max_unavailable)
            }
        };
        let mut unavailable = 0;
        for ordinal in set.ordinals.iter() {
            let name = pod_name("web", ordinal);
            let Some(pod) = pods.iter().find(|p| p.name == name) else {
                assert!(!set.parallel && unavailable > 0, "{name} could be made");
                unavailable += 1;
                continue;
            };
            if pod.ready() {
                continue;
            }
            if pod.phase == super::set::Phase::Ended {
                assert!(!set.parallel && unavailable > 0, "{name} could be made again");
                unavailable += 1;
                continue;
            }
            unavailable += 1;
            assert!(self.is_broken(&name), "{name} could be ready");
            if partition != u32::MAX {
                let right = if set.ordinals.position(ordinal) >= partition {
                    pod.revision == update
                } else {
                    pod.revision == update || pod.revision == current
                };
                // One that runs and may recover is left alone while others are on their way.
                let others = pods.iter().any(|p| p.name != name && !p.ready());
                let below = set.ordinals.position(ordinal) < partition;
                let may_wait = pod.lost_readiness && (below || others || !set.parallel && unavailable > 1);
                assert!(right || may_wait, "{name} is broken and nobody replaces it");
            }
        }
        let above = |p: &&Pod| {
            p.ordinal.is_some_and(|o| set.ordinals.contains(o) && set.ordinals.position(o) >= partition)
        };
        if pods.iter().filter(above).any(|p| p.revision != update) {
            assert!(unavailable >= at_once, "{unavailable} unavailable, and the update does not go on");
        }
        let halted = set.ordinals.replicas == 0 && pods.iter().any(|p| p.lost_readiness);
        if unavailable == 0 && !halted {
            assert_eq!(pods.len(), set.ordinals.replicas as usize, "nothing else is left");
        }
    }

    fn names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// Pods `web-0..n`, Ready.
    fn ready(replicas: u32) -> World {
        let mut world = World::new(false, 0, replicas);
        world.settle();
        world
    }

    fn deletions(&self) -> Vec<String> {
        let plan = self.plan().2;
        let names = plan.actions.into_iter().filter_map(|a| match a {
            Action::DeletePod { name, .. } => Some(name),
            _ => None,
        });
        names.collect()
    }

    fn scale(&mut self, replicas: u32) {
        self.take(&Step::Scale(replicas));
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::option::weighted(0.3, 0..4usize).prop_map(Step::Reconcile),
        3 => (0..8usize).prop_map(Step::Runs),
        3 => (0..8usize).prop_map(Step::Ready),
        1 => (0..8usize).prop_map(Step::LosesReadiness),
        1 => (0..8usize).prop_map(Step::Ends),
        3 => (0..8usize).prop_map(Step::Gone),
        1 => (0..8usize).prop_map(Step::PersonDeletesPod),
        1 => (0..8usize).prop_map(Step::PersonDeletesClaim),
        1 => (0..8usize).prop_map(Step::PersonRelabels),
        1 => (0..6u32).prop_map(Step::Scale),
        2 => (0..6u8).prop_map(Step::Template),
        1 => (0..3u32).prop_map(Step::Start),
        1 => (0..4u32).prop_map(Step::Partition),
        1 => prop_oneof![Just(json!(1)), Just(json!(2)), Just(json!("40%"))].prop_map(Step::MaxUnavailable),
        1 => Just(Step::OnDelete),
        1 => any::<bool>().prop_map(Step::Images),
        1 => (0..20i64).prop_map(Step::Passes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens on the way: never two pods of one ordinal, order kept, and in the end exactly what
    /// was asked for, at rest.
    #[test]
    fn every_history_keeps_the_rules_and_ends_as_specified(
        parallel: bool,
        min_ready in prop_oneof![Just(0i64), Just(10i64)],
        replicas in 0..5u32,
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut world = World::new(parallel, min_ready, replicas);
        for step in &steps {
            world.take(step);
        }
        world.settle();
        world.rests_for_a_reason();
        // Whatever was broken on the way, a good template heals it, and nobody deletes a pod.
        world.take(&Step::Template(1));
        world.take(&Step::Partition(0));
        world.settle();
        prop_assert!(world.images().iter().all(|i| *i == "v1"), "{:?}", world.images());
        let set = Set::read(&world.set);
        let wanted: Vec<String> = set.ordinals.iter().map(|o| pod_name("web", o)).collect();
        prop_assert_eq!(world.names(), wanted);
        let status = &world.set["status"];
        prop_assert_eq!(status["availableReplicas"].as_u64(), Some(u64::from(set.ordinals.replicas)));
        prop_assert_eq!(&status["currentRevision"], &status["updateRevision"]);
        prop_assert!(world.revisions.len() <= 10 + 2 + world.pods.len());
        // At rest: another look changes nothing.
        let plan = world.plan().2;
        prop_assert!(plan.actions.is_empty(), "{:?}", plan.actions);
        prop_assert_eq!(&plan.status, status);
    }
}

#[test]
fn pods_are_created_in_order_each_after_the_one_before_is_ready() {
    let mut world = World::new(false, 0, 3);
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0"]);
    assert_eq!(world.set["status"]["replicas"], 1, "the status says so in the same write");
    assert!(!world.reconcile(None), "nothing to do until web-0 is ready");
    world.take(&Step::Runs(0));
    assert!(!world.reconcile(None));
    world.take(&Step::Ready(0));
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0", "web-1"]);
    assert!(world.claims.contains_key("data-web-0") && world.claims.contains_key("data-web-1"));
}

#[test]
fn a_parallel_set_creates_and_deletes_all_at_once() {
    let mut world = World::new(true, 0, 4);
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0", "web-1", "web-2", "web-3"]);
    world.scale(1);
    assert_eq!(world.deletions(), ["web-3", "web-2", "web-1"]);
}

#[test]
fn a_pod_is_available_after_min_ready_seconds_and_that_wakes_the_loop() {
    let mut world = World::new(false, 10, 2);
    world.reconcile(None);
    world.take(&Step::Runs(0));
    world.take(&Step::Ready(0));
    let plan = world.plan().2;
    assert!(plan.actions.is_empty());
    assert_eq!(plan.wake_at, Some(world.now + SignedDuration::from_secs(10)));
    assert_eq!((&plan.status["readyReplicas"], &plan.status["availableReplicas"]), (&json!(1), &json!(0)));
    world.take(&Step::Passes(10));
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0", "web-1"]);
}

#[test]
fn scaling_down_goes_from_the_highest_one_at_a_time() {
    let mut world = World::ready(4);
    world.scale(1);
    assert_eq!(world.deletions(), ["web-3"]);
    world.reconcile(None);
    assert_eq!(world.deletions(), [""; 0], "web-3 is not gone yet");
    world.stopped("web-3");
    assert_eq!(world.deletions(), ["web-2"]);
}

#[test]
fn scaling_down_waits_for_an_unhealthy_lower_ordinal() {
    let mut world = World::ready(3);
    world.condition("web-0", false);
    world.scale(1);
    assert_eq!(world.deletions(), [""; 0]);
    world.condition("web-0", true);
    assert_eq!(world.deletions(), ["web-2"]);
}

#[test]
fn a_condemned_pods_own_unreadiness_never_delays_its_deletion() {
    let mut world = World::ready(3);
    world.condition("web-1", false);
    world.condition("web-2", false);
    world.scale(1);
    assert_eq!(world.deletions(), ["web-2"]);
    world.reconcile(None);
    world.stopped("web-2");
    assert_eq!(world.deletions(), ["web-1"]);
}

/// kubernetes/kubernetes#57865
#[test]
fn pods_that_never_became_ready_are_removed_when_scaling_to_zero() {
    let mut world = World::ready(2);
    for name in ["web-0", "web-1"] {
        world.pods.get_mut(name).unwrap()["status"] = json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
        });
    }
    world.scale(0);
    assert_eq!(world.deletions(), ["web-1"]);
}

/// As Kubernetes' conformance test "Scaling should happen in predictable order and halt if any stateful pod
/// is unhealthy" wants it.
#[test]
fn scaling_to_zero_halts_while_all_members_are_alive_but_lost_their_readiness() {
    let mut world = World::ready(3);
    for name in ["web-0", "web-1", "web-2"] {
        world.condition(name, false);
    }
    world.scale(0);
    assert_eq!(world.deletions(), [""; 0]);
    world.condition("web-2", true);
    assert_eq!(world.deletions(), ["web-2"]);
}

#[test]
fn a_terminating_pod_is_never_treated_as_missing() {
    for parallel in [false, true] {
        let mut world = World::new(parallel, 0, 2);
        world.settle();
        world.delete_pod("web-0");
        assert!(world.plan().2.actions.is_empty());
        world.stopped("web-0");
        world.reconcile(None);
        assert_eq!(world.names(), ["web-0", "web-1"]);
    }
}

#[test]
fn a_pod_that_ended_is_deleted_and_made_again_with_its_claim() {
    let mut world = World::ready(2);
    let uid = object::uid(&world.pods["web-0"]).to_owned();
    world.take(&Step::Ends(0));
    world.settle();
    let again = &world.pods["web-0"];
    assert_ne!(object::uid(again), uid);
    assert_eq!(again["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-0");
    assert_eq!(world.claims.len(), 2);
}

#[test]
fn below_the_partition_a_replaced_pod_gets_the_current_revision() {
    let mut world = World::ready(2);
    world.take(&Step::Partition(1));
    world.take(&Step::Template(1));
    world.delete_pod("web-0");
    world.delete_pod("web-1");
    world.settle();
    assert_eq!(world.pods["web-0"]["spec"]["containers"][0]["image"], "v0");
    assert_eq!(world.pods["web-1"]["spec"]["containers"][0]["image"], "v1");
}

#[test]
fn scaling_to_none_and_moving_the_start_keep_every_claim() {
    let mut world = World::ready(3);
    world.scale(0);
    world.settle();
    world.take(&Step::Start(2));
    world.scale(2);
    world.settle();
    assert_eq!(world.names(), ["web-2", "web-3"]);
    assert_eq!(world.claims.len(), 4);
}

#[test]
fn a_pod_whose_labels_stop_matching_is_released_and_a_matching_orphan_is_adopted() {
    let mut world = World::ready(1);
    world.take(&Step::PersonRelabels(0));
    world.reconcile(None);
    assert!(object::controller_ref(&world.pods["web-0"]).is_none());
    assert!(matches!(&world.plan().2.actions[..], [Action::CannotCreate { .. }]), "its name is taken");
    world.take(&Step::PersonRelabels(0));
    world.reconcile(None);
    assert!(object::controller_ref(&world.pods["web-0"]).is_some());
    assert!(world.plan().2.actions.is_empty());
}

#[test]
fn a_set_made_again_adopts_its_orphans_and_restarts_none() {
    let mut world = World::ready(2);
    for orphan in world.pods.values_mut().chain(world.revisions.values_mut()) {
        object::metadata_mut(orphan).remove("ownerReferences");
    }
    world.set["metadata"]["uid"] = "another".into();
    object::map_mut(&mut world.set, "status").clear();
    let uids: Vec<String> = world.pods.values().map(|p| object::uid(p).to_owned()).collect();
    world.settle();
    assert_eq!(world.pods.values().map(|p| object::uid(p).to_owned()).collect::<Vec<_>>(), uids);
    assert!(world.pods.values().all(|p| object::controller_ref(p).unwrap()["uid"] == "another"));
    assert_eq!(world.revisions.len(), 1);
}

#[test]
fn a_set_that_is_being_deleted_only_keeps_its_status() {
    let mut world = World::ready(2);
    world.set["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into();
    world.pods.remove("web-1");
    let plan = world.plan().2;
    assert!(plan.actions.is_empty());
    assert_eq!(plan.status["replicas"], 1);
}

#[test]
fn the_claim_that_a_pending_pod_lacks_is_created() {
    let mut world = World::new(false, 0, 1);
    world.reconcile(None);
    world.claims.clear();
    world.reconcile(None);
    assert!(world.claims.contains_key("data-web-0"));
}
