//! A set, its pods, claims and revisions as JSON; the plan is carried out on them, and hosts and people do the rest.
//! Every plan is judged by the rules of [`oracle`](super::oracle) before it is carried out.

use super::kubernetes::Rule;
use super::oracle::View;
use super::*;

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// The loop runs; it is interrupted after so many actions (and then writes no status).
    Reconcile(Option<usize>),
    /// The garbage collector runs.
    Collect,
    Runs(usize),
    Ready(usize),
    LosesReadiness(usize),
    /// Its containers do not run, over and over again.
    Crashes(usize),
    Ends(usize),
    /// A stopped pod goes.
    Gone(usize),
    PersonDeletesPod(usize),
    PersonDeletesClaim(usize),
    PersonRelabels(usize),
    /// The set goes, and its pods with it; once they are gone, people make it again.
    PersonDeletesSet,
    /// The set goes alone, and people make it again.
    PersonOrphansPods,
    Scale(u32),
    Template(u8),
    Start(u32),
    Partition(u32),
    MaxUnavailable(Value),
    OnDelete,
    /// `persistentVolumeClaimRetentionPolicy`: delete when the set is deleted, when it is scaled.
    Retention(bool, bool),
    HistoryLimit(u32),
    /// An annotation of the set, or none of it.
    Asks(&'static str, Option<&'static str>),
    /// Somebody else's revision has the name that the next one would get.
    Collision,
    /// Whether the hosts have every image.
    Images(bool),
    Passes(i64),
}

pub struct World {
    pub set: Value,
    pub pods: BTreeMap<String, Value>,
    pub claims: BTreeMap<String, Value>,
    pub revisions: BTreeMap<String, Value>,
    pub now: Timestamp,
    pub images: bool,
    /// Reasons of the events on the set.
    pub told: Vec<&'static str>,
    /// Pods that do not become Ready, whatever their image.
    pub sick: BTreeSet<String>,
    pub rule: Rule,
    uids: u32,
}

/// Pods of these images never become Ready.
const BROKEN: [&str; 2] = ["v4", "v5"];
const DELETED: &str = "2027-01-01T00:00:00Z";

impl World {
    pub fn new(parallel: bool, min_ready: i64, replicas: u32) -> World {
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
            images: true,
            told: Vec::new(),
            sick: BTreeSet::new(),
            rule: Rule::Berth,
            uids: 0,
        }
    }

    /// Pods `web-0..n`, Ready.
    pub fn ready(replicas: u32) -> World {
        let mut world = World::new(false, 0, replicas);
        world.settle();
        world
    }

    pub fn plan(&self) -> Plan {
        let set = Set::read(&self.set);
        let pods: Vec<Pod> = self.pods.values().map(Pod::read).collect();
        let claims: Vec<Claim> = self.claims.values().map(Claim::read).collect();
        let revisions: Vec<Revision> = self.revisions.values().map(Revision::read).collect();
        let plan = plan(&set, &pods, &claims, &revisions, self.now);
        match self.rule {
            Rule::Berth => plan,
            Rule::Kubernetes => kubernetes::instead_of(plan, &set, &pods, &revisions, self.now),
        }
    }

    /// Runs the loop once. Whether it did anything.
    pub fn reconcile(&mut self, interrupted: Option<usize>) -> bool {
        let plan = self.plan();
        if self.rule == Rule::Berth {
            View::of(self, &plan).judge(&plan);
        }
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
            if self.rule == Rule::Berth {
                oracle::everything_is_in_line(self);
            }
        }
        acted
    }

    fn carry_out(&mut self, action: &Action) {
        match action {
            Action::CreateRevision(value) => {
                let name = object::name(value).to_owned();
                let mut value = value.clone();
                value["metadata"]["uid"] = self.uid().into();
                assert!(self.revisions.insert(name, value).is_none(), "no revision is overwritten");
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
                let mut pod = pod.clone();
                pod["metadata"]["uid"] = self.uid().into();
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
            Action::CannotCreate { .. } => {}
        }
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        self.uids.to_string()
    }

    fn create_claims(&mut self, claims: &[Value]) {
        for claim in claims {
            let name = object::name(claim).to_owned();
            assert!(self.claims.insert(name, claim.clone()).is_none(), "no claim is overwritten");
        }
    }

    pub fn delete_pod(&mut self, name: &str) {
        if let Some(pod) = self.pods.get_mut(name) {
            pod["metadata"]["deletionTimestamp"] = DELETED.into();
        }
    }

    /// A pod that was asked to has stopped, and is gone.
    pub fn stopped(&mut self, name: &str) {
        if self.pods.get(name).is_some_and(object::deleting) {
            self.pods.remove(name);
            // What protected the claim of the pod is gone.
            self.claims.retain(|claim, v| !object::deleting(v) || !of_pod(claim, name));
        }
    }

    pub fn condition(&mut self, name: &str, ready: bool) {
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

    pub fn crashes(&mut self, name: &str) {
        self.condition(name, false);
        self.pods.get_mut(name).unwrap()["status"]["containerStatuses"] =
            json!([{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
    }

    pub fn take(&mut self, step: &Step) {
        let pod = match step {
            Step::Runs(i)
            | Step::Ready(i)
            | Step::LosesReadiness(i)
            | Step::Crashes(i)
            | Step::Ends(i)
            | Step::Gone(i)
            | Step::PersonDeletesPod(i)
            | Step::PersonRelabels(i) => match self.pods.keys().nth(i % self.pods.len().max(1)) {
                Some(name) => name.clone(),
                None => return,
            },
            _ => String::new(),
        };
        match step {
            Step::Reconcile(interrupted) => {
                self.reconcile(*interrupted);
            }
            Step::Collect => drop(self.collect()),
            Step::Runs(_) => {
                let phase = &mut self.pods.get_mut(&pod).unwrap()["status"]["phase"];
                if *phase == "Pending" {
                    *phase = "Running".into();
                }
            }
            Step::Ready(_) => self.condition(&pod, true),
            Step::LosesReadiness(_) => self.condition(&pod, false),
            Step::Crashes(_) => self.crashes(&pod),
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
                    claim["metadata"]["deletionTimestamp"] = DELETED.into();
                }
            }
            Step::PersonDeletesSet => self.set["metadata"]["deletionTimestamp"] = DELETED.into(),
            Step::PersonOrphansPods if object::deleting(&self.set) => {}
            Step::PersonOrphansPods => {
                let uid = object::uid(&self.set).to_owned();
                let all = self.pods.values_mut().chain(self.claims.values_mut());
                for dependent in all.chain(self.revisions.values_mut()) {
                    let owners =
                        dependent.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut);
                    if let Some(owners) = owners {
                        owners.retain(|o| o["uid"] != *uid);
                    }
                }
                self.made_again();
            }
            Step::Scale(n) => self.edit(|set| set["spec"]["replicas"] = (*n).into()),
            Step::Template(n) => self.edit(|set| {
                set["spec"]["template"]["spec"]["containers"][0]["image"] = format!("v{n}").into();
            }),
            Step::Start(n) => self.edit(|set| set["spec"]["ordinals"] = json!({"start": n})),
            Step::Partition(n) => self.edit(|set| {
                let at_once = set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].clone();
                set["spec"]["updateStrategy"] = json!({
                    "type": "RollingUpdate", "rollingUpdate": {"partition": n, "maxUnavailable": at_once},
                });
            }),
            Step::MaxUnavailable(value) => self.edit(|set| {
                set["spec"]["updateStrategy"] =
                    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": value}});
            }),
            Step::OnDelete => self.edit(|set| set["spec"]["updateStrategy"] = json!({"type": "OnDelete"})),
            Step::Retention(deleted, scaled) => self.edit(|set| {
                let say = |delete: &bool| if *delete { "Delete" } else { "Retain" };
                set["spec"]["persistentVolumeClaimRetentionPolicy"] =
                    json!({"whenDeleted": say(deleted), "whenScaled": say(scaled)});
            }),
            Step::HistoryLimit(n) => self.edit(|set| set["spec"]["revisionHistoryLimit"] = (*n).into()),
            Step::Asks(key, value) => self.set["metadata"]["annotations"][*key] = (*value).into(),
            Step::Collision => self.collide(),
            Step::Images(there) => self.images = *there,
            Step::Passes(seconds) => self.now += SignedDuration::from_secs(*seconds),
        }
    }

    /// A change of the spec.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.set);
        let generation = object::generation(&self.set) + 1;
        self.set["metadata"]["generation"] = generation.into();
    }

    fn collide(&mut self) {
        let next = self.plan().actions.into_iter().find_map(|a| match a {
            Action::CreateRevision(value) => Some(value),
            _ => None,
        });
        if let Some(mut theirs) = next {
            theirs["metadata"]["ownerReferences"][0]["uid"] = "somebody else".into();
            self.revisions.insert(object::name(&theirs).to_owned(), theirs);
        }
    }

    /// The set of this name is another one, with nothing said of it yet.
    fn made_again(&mut self) {
        let uid = format!("set-{}", self.uid());
        let metadata = object::metadata_mut(&mut self.set);
        metadata.insert("uid".to_owned(), uid.into());
        metadata.remove("deletionTimestamp");
        object::map_mut(&mut self.set["metadata"], "annotations").remove(annotations::REJECTED_REVISION);
        object::map_mut(&mut self.set, "status").clear();
    }

    /// What the garbage collector does: what has lost all its owners goes, and a set that was deleted goes after its
    /// pods. Whether it did anything.
    fn collect(&mut self) -> bool {
        let uid = object::uid(&self.set).to_owned();
        let owned = |o: &Value| object::controller_ref(o).is_some_and(|r| r["uid"] == *uid);
        let going = object::deleting(&self.set);
        if going {
            self.revisions.retain(|_, revision| !owned(revision));
            let pods: Vec<String> =
                self.pods.iter().filter(|(_, p)| owned(p)).map(|(name, _)| name.clone()).collect();
            pods.iter().for_each(|pod| self.delete_pod(pod));
            if pods.is_empty() {
                self.made_again();
            }
        }
        let claims = self.claims.values().filter(|c| !object::deleting(c)).count();
        let set = object::uid(&self.set);
        let alive: BTreeSet<&str> =
            self.pods.values().map(object::uid).chain((set != uid || !going).then_some(set)).collect();
        let lost = |claim: &Value| {
            let owners = claim["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|o| {
                !o.is_empty() && o.iter().all(|o| !alive.contains(o["uid"].as_str().unwrap()))
            })
        };
        self.claims.retain(|name, claim| {
            if lost(claim) {
                claim["metadata"]["deletionTimestamp"] = DELETED.into();
            }
            !lost(claim) || self.pods.keys().any(|pod| of_pod(name, pod))
        });
        going || claims != self.claims.values().filter(|c| !object::deleting(c)).count()
    }

    /// Everything that can go well does, until nothing more is to be done.
    pub fn settle(&mut self) {
        self.images = true;
        for _ in 0..300 {
            // People are done: a pod that was relabelled away is taken away by them.
            self.pods
                .retain(|_, p| object::label(p, "app") == Some("web") || object::controller_ref(p).is_some());
            // What the loop writes on the set brings it back here, as any change does.
            let said = self.set["status"].clone();
            let mut moved = self.reconcile(None) || self.set["status"] != said;
            moved |= self.collect();
            let names: Vec<String> = self.pods.keys().cloned().collect();
            for name in names {
                let pod = &self.pods[&name];
                let (phase, seen) = (&pod["status"]["phase"], Pod::read(pod));
                if seen.deleting {
                    self.stopped(&name);
                } else if phase == "Pending" {
                    self.pods.get_mut(&name).unwrap()["status"]["phase"] = "Running".into();
                } else if phase == "Running" && !seen.ready() && !self.is_broken(&name) {
                    self.condition(&name, true);
                } else {
                    continue;
                }
                moved = true;
            }
            let claims = self.claims.len();
            self.claims.retain(|name, claim| {
                !object::deleting(claim) || self.pods.keys().any(|pod| of_pod(name, pod))
            });
            if moved || self.claims.len() != claims {
                continue;
            }
            match self.plan().wake_at {
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("never at rest: {:?}", self.plan().actions);
    }

    pub fn is_broken(&self, pod: &str) -> bool {
        BROKEN.contains(&self.image(pod)) || self.sick.contains(pod)
    }

    pub fn image(&self, pod: &str) -> &str {
        self.pods[pod]["spec"]["containers"][0]["image"].as_str().unwrap()
    }

    pub fn images(&self) -> Vec<&str> {
        self.pods.keys().map(|pod| self.image(pod)).collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    pub fn uids(&self) -> Vec<String> {
        self.pods.values().map(|pod| object::uid(pod).to_owned()).collect()
    }

    pub fn scale(&mut self, replicas: u32) {
        self.take(&Step::Scale(replicas));
    }

    pub fn template(&mut self, n: u8) {
        self.take(&Step::Template(n));
    }

    /// The pods that the next pass would delete.
    pub fn deletions(&self) -> Vec<String> {
        let names = self.plan().actions.into_iter().filter_map(|a| match a {
            Action::DeletePod { name, .. } => Some(name),
            _ => None,
        });
        names.collect()
    }

    /// The pods that the next pass would have make way for others.
    pub fn replaced(&self) -> Vec<String> {
        let names = self.plan().actions.into_iter().filter_map(|a| match a {
            Action::ReplacePod { name, .. } => Some(name),
            _ => None,
        });
        names.collect()
    }
}

/// Whether a claim is this pod's, by its name.
pub fn of_pod(claim: &str, pod: &str) -> bool {
    claim.strip_suffix(pod).is_some_and(|rest| rest.ends_with('-'))
}
