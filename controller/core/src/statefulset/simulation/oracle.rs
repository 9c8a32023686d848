//! What a StatefulSet is to do, said a second time and plainly. Each plan is judged by it: nothing in it that the
//! specification forbids, nothing missing that the specification wants now, and a status that is right to the last
//! field. Nothing here asks the code that is tried, except for the hash in a revision's name.

use super::world::of_pod;
use super::*;

/// A pod, from its JSON.
pub struct Seen {
    name: String,
    uid: String,
    ordinal: Option<u32>,
    revision: String,
    deleting: bool,
    pending: bool,
    ended: bool,
    ready_since: Option<Timestamp>,
    /// It runs, was Ready, and is not now.
    alive: bool,
    /// Since when it is not Ready, if it is not.
    unready_since: Timestamp,
    /// It is the set's, or to be adopted.
    member: bool,
}

/// What a plan was made from.
pub struct View<'a> {
    world: &'a World,
    deleting: bool,
    wanted: Vec<u32>,
    pods: Vec<Seen>,
    /// Its revisions, also those that it is to adopt.
    revisions: Vec<&'a Value>,
    current: String,
    update: String,
    /// The plan's word for it, checked like all others.
    rejected: bool,
}

fn time(text: &Value) -> Timestamp {
    text.as_str().unwrap().parse().unwrap()
}

fn noted<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["annotations"][key].as_str().unwrap_or_default()
}

/// The ordinals a set is to have: from the start on, without the reserved ones.
fn wanted(set: &Value) -> Vec<u32> {
    let reserved: Vec<(u32, u32)> = noted(set, "berth.dev/reserve-ordinals")
        .split(',')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('-').unwrap_or((part, part)))
        .map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()))
        .collect();
    let start = set["spec"]["ordinals"]["start"].as_u64().unwrap_or_default() as u32;
    let replicas = set["spec"]["replicas"].as_u64().unwrap() as usize;
    let free = |o: &u32| !reserved.iter().any(|(first, last)| first <= o && o <= last);
    (start..).filter(free).take(replicas).collect()
}

/// Whose revisions they are, and which could be.
fn own_revisions(world: &World) -> Vec<&Value> {
    let uid = object::uid(&world.set);
    let own = |r: &&Value| match object::controller_ref(r) {
        Some(owner) => owner["uid"] == *uid,
        None => object::label(r, "app") == Some("web") && !object::deleting(&world.set),
    };
    world.revisions.values().filter(own).collect()
}

/// The patch that puts the set's template back.
fn data(world: &World) -> Value {
    let mut template = world.set["spec"]["template"].clone();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

impl Seen {
    fn of(pod: &Value, set: &Value) -> Seen {
        let status = &pod["status"];
        let condition = |kind: &str| {
            let all = status["conditions"].as_array().into_iter().flatten();
            all.into_iter().find(|c| c["type"] == kind)
        };
        let changed = condition("Ready").map(|c| time(&c["lastTransitionTime"]));
        let running = status["phase"] == "Running";
        let ready = running && condition("Ready").is_some_and(|c| c["status"] == "True");
        let initialized = condition("Initialized").map(|c| time(&c["lastTransitionTime"]));
        let was_ready = changed.is_some() && changed > initialized;
        let containers = status["containerStatuses"].as_array().into_iter().flatten();
        let runs = running && containers.into_iter().all(|c| c["state"]["running"].is_object());
        let deleting = object::deleting(pod);
        let name = object::name(pod).to_owned();
        let ordinal = name.strip_prefix("web-").and_then(|o| o.parse().ok());
        let belongs = ordinal.is_some() && object::label(pod, "app") == Some("web");
        let set_goes = object::deleting(set);
        Seen {
            uid: object::uid(pod).to_owned(),
            revision: object::label(pod, "controller-revision-hash").unwrap_or_default().to_owned(),
            pending: status["phase"] == "Pending",
            ended: status["phase"] == "Failed",
            ready_since: changed.filter(|_| ready),
            alive: runs && !ready && was_ready,
            unready_since: changed
                .filter(|_| was_ready)
                .unwrap_or_else(|| time(&pod["metadata"]["creationTimestamp"])),
            member: match object::controller_ref(pod) {
                Some(owner) => owner["uid"] == *object::uid(set) && (belongs || deleting || set_goes),
                None => belongs && !deleting && !set_goes,
            },
            name,
            ordinal,
            deleting,
        }
    }

    fn broken(&self) -> bool {
        self.ready_since.is_none() && !self.alive
    }
}

impl<'a> View<'a> {
    pub fn of(world: &'a World, plan: &Plan) -> View<'a> {
        let (set, revisions) = (&world.set, own_revisions(world));
        let data = data(world);
        let newest = |r: &&&Value| (r["revision"].as_i64(), object::name(r).to_owned());
        let same = revisions.iter().filter(|r| r["data"] == data).max_by_key(newest);
        let update = match same {
            Some(revision) => object::name(revision).to_owned(),
            // It is made by this very plan, or not at all any more.
            None => plan.status["updateRevision"].as_str().unwrap().to_owned(),
        };
        let current = set["status"]["currentRevision"].as_str();
        let current = current.filter(|name| revisions.iter().any(|r| object::name(r) == *name));
        View {
            deleting: object::deleting(set),
            wanted: wanted(set),
            pods: world.pods.values().map(|pod| Seen::of(pod, set)).collect(),
            current: current.unwrap_or(&update).to_owned(),
            rejected: plan.rejected.is_some(),
            world,
            revisions,
            update,
        }
    }

    /// All of it.
    pub fn judge(&self, plan: &Plan) {
        self.status(&plan.status, &made(plan));
        self.status(&plan.status_without_creations, &[]);
        self.conditions(plan);
        self.wakes_up(plan);
        if self.deleting {
            assert!(plan.actions.is_empty(), "a set that goes does {:?}", plan.actions);
            return;
        }
        self.scaling(plan);
        self.replacing(plan);
        self.claims(plan);
        self.revisions(plan);
    }

    fn ordered(&self) -> bool {
        self.world.set["spec"]["podManagementPolicy"] != "Parallel"
    }

    fn members(&self) -> impl Iterator<Item = &Seen> {
        self.pods.iter().filter(|p| p.member)
    }

    fn member(&self, ordinal: u32) -> Option<&Seen> {
        self.members().find(|p| p.ordinal == Some(ordinal))
    }

    fn available_at(&self, pod: &Seen) -> Option<Timestamp> {
        let rest = self.world.set["spec"]["minReadySeconds"].as_i64().unwrap();
        Some(pod.ready_since? + SignedDuration::from_secs(rest))
    }

    fn available(&self, pod: &Seen) -> bool {
        self.available_at(pod).is_some_and(|at| at <= self.world.now)
    }

    fn stands(&self, ordinal: u32) -> bool {
        self.member(ordinal).is_some_and(|p| !p.deleting && self.available(p))
    }

    /// All lower ordinals are available, or nobody has to wait for them.
    fn in_turn(&self, ordinal: u32) -> bool {
        !self.ordered() || self.wanted.iter().take_while(|o| **o < ordinal).all(|o| self.stands(*o))
    }

    fn condemned(&self) -> Vec<&Seen> {
        let mut condemned: Vec<&Seen> =
            self.members().filter(|p| !self.wanted.contains(&p.ordinal.unwrap())).collect();
        condemned.sort_by_key(|p| std::cmp::Reverse(p.ordinal));
        condemned
    }

    /// None: OnDelete.
    fn partition(&self) -> Option<usize> {
        let strategy = &self.world.set["spec"]["updateStrategy"];
        let partition = strategy["rollingUpdate"]["partition"].as_u64().unwrap_or_default();
        (strategy["type"] != "OnDelete").then_some(partition as usize)
    }

    fn max_unavailable(&self) -> usize {
        match &self.world.set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] {
            Value::Null => 1,
            Value::String(percent) => {
                let percent: usize = percent.trim_end_matches('%').parse().unwrap();
                (percent * self.wanted.len() / 100).max(1)
            }
            number => number.as_u64().unwrap() as usize,
        }
    }

    /// The revision of whoever has this place in the set.
    fn target(&self, place: usize) -> &str {
        let below = self.partition().is_some_and(|partition| place < partition);
        if self.rejected || below { &self.current } else { &self.update }
    }

    fn outdated(&self, place: usize, pod: &Seen) -> bool {
        let superseded = pod.revision != self.current && pod.revision != self.update;
        let reached = self.partition().is_some_and(|partition| place >= partition)
            || self.rejected && pod.revision == self.update
            || pod.broken() && superseded;
        pod.revision != self.target(place) && reached
    }

    fn claims_of(&self, ordinal: u32) -> Vec<String> {
        let templates = self.world.set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
        templates.map(|t| format!("{}-web-{ordinal}", object::name(t))).collect()
    }

    /// It goes with an earlier pod or set of that name.
    fn stale(&self, claim: &Value, ordinal: u32) -> bool {
        let pod = self.member(ordinal).map(|p| p.uid.as_str());
        let owners = claim["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.into_iter().any(|owner| match owner["kind"].as_str() {
            Some("Pod") => owner["name"] == format!("web-{ordinal}") && owner["uid"].as_str() != pod,
            _ => owner["uid"] != *object::uid(&self.world.set),
        })
    }

    /// Pods that are made and deleted: what is wanted from the lowest up, what is not from the highest down, and
    /// unless the set is Parallel one at a time, each after the one before.
    fn scaling(&self, plan: &Plan) {
        let (mut made, mut deleted, mut impossible) = (Vec::new(), Vec::new(), Vec::new());
        for action in &plan.actions {
            match action {
                Action::CreatePod { name, pod, claims } => made.push((name.as_str(), pod, claims)),
                Action::DeletePod { name, .. } => deleted.push(name.as_str()),
                Action::CannotCreate { name, .. } => impossible.push(name.as_str()),
                _ => {}
            }
        }
        if self.ordered() {
            assert!(made.len() + deleted.len() <= 1, "one at a time: {:?}", plan.actions);
        }
        let kept_stand = self.wanted.iter().all(|o| self.stands(*o));
        for (place, ordinal) in self.wanted.iter().enumerate() {
            let name = format!("web-{ordinal}");
            let creation = made.iter().find(|(n, ..)| *n == name);
            let Some(pod) = self.member(*ordinal) else {
                let claims = self.claims_of(*ordinal);
                let held = |c: &String| {
                    let claim = self.world.claims.get(c);
                    claim.is_some_and(|c| object::deleting(c) || self.stale(c, *ordinal))
                };
                let blocked = self.world.pods.contains_key(&name) || claims.iter().any(held);
                let turn = self.in_turn(*ordinal);
                assert_eq!(creation.is_some(), turn && !blocked, "{name} is made when it is its turn");
                assert_eq!(
                    impossible.contains(&name.as_str()),
                    turn && blocked,
                    "{name}: it is told why not"
                );
                if let Some((_, pod, with)) = creation {
                    let revision = object::label(pod, "controller-revision-hash");
                    assert_eq!(revision, Some(self.target(place)), "{name}'s revision");
                    let there = |c: &String| {
                        with.iter().any(|w| object::name(w) == c) != self.world.claims.contains_key(c)
                    };
                    assert!(claims.iter().all(there), "{name} has its claims");
                }
                continue;
            };
            assert!(creation.is_none(), "{name} is there, and made");
            let again = pod.ended && !pod.deleting && self.in_turn(*ordinal);
            assert_eq!(
                deleted.contains(&name.as_str()),
                again,
                "{name} is wanted, and deleted only if it ended"
            );
            let lacks = self.claims_of(*ordinal).into_iter().any(|c| !self.world.claims.contains_key(&c));
            let claimed =
                plan.actions.iter().any(|a| matches!(a, Action::CreateClaims { pod, .. } if *pod == name));
            let waits = pod.pending && !pod.deleting && lacks && self.in_turn(*ordinal);
            assert_eq!(claimed, waits, "{name} waits for a claim");
        }
        let condemned = self.condemned();
        for (place, pod) in condemned.iter().enumerate() {
            let first = place == 0 && kept_stand;
            // Scaling to zero halts at members that are alive; nobody else waits for a condemned pod.
            let below = &condemned[place + 1..];
            let halts = self.wanted.is_empty()
                && pod.ready_since.is_none()
                && below.iter().any(|p| p.alive && p.revision == self.update);
            let goes = !pod.deleting && (!self.ordered() || first && !halts);
            assert_eq!(deleted.contains(&pod.name.as_str()), goes, "{} is not wanted", pod.name);
        }
        let places = self.wanted.len() + condemned.len();
        assert!(made.len() + deleted.len() <= places, "somebody else's pod: {:?}", plan.actions);
    }

    /// Pods that make way: only outdated ones; what is broken at once, what is available as far as maxUnavailable
    /// goes and from the highest down.
    fn replacing(&self, plan: &Plan) {
        let mut replaced = Vec::new();
        for action in &plan.actions {
            let Action::ReplacePod { name, uid, revision, successor, .. } = action else { continue };
            let pod = self.members().find(|p| p.name == *name && p.uid == *uid && !p.deleting).unwrap();
            let place = self.wanted.iter().position(|o| Some(*o) == pod.ordinal).unwrap();
            assert!(self.partition().is_some(), "{name} is replaced OnDelete");
            assert!(self.outdated(place, pod), "{name} is as it should be, or below the partition");
            assert_eq!(revision, self.target(place), "{name}'s successor");
            assert_eq!(object::label(successor, "controller-revision-hash"), Some(revision.as_str()));
            replaced.push(name.as_str());
        }
        if self.partition().is_none() {
            return;
        }
        let unavailable = self.wanted.iter().filter(|o| !self.stands(**o)).count();
        let lowest = self.wanted.iter().find(|o| !self.stands(**o));
        // Candidates, from the highest down.
        let mut available = Vec::new();
        let mut alive = Vec::new();
        for (place, ordinal) in self.wanted.iter().enumerate().rev() {
            let Some(pod) = self.member(*ordinal).filter(|p| !p.deleting && self.outdated(place, p)) else {
                continue;
            };
            if self.available(pod) {
                available.push(pod.name.as_str());
            } else if pod.broken() {
                let deleted = plan
                    .actions
                    .iter()
                    .any(|a| matches!(a, Action::DeletePod { uid, .. } if *uid == pod.uid));
                assert!(deleted != replaced.contains(&pod.name.as_str()), "{} is broken and stays", pod.name);
            } else {
                alive.push(pod);
            }
        }
        let (taken, revived): (Vec<&str>, Vec<&str>) = replaced
            .iter()
            .copied()
            .filter(|name| available.contains(name) || alive.iter().any(|p| p.name == **name))
            .partition(|name| available.contains(name));
        let max = self.max_unavailable();
        let halted = self.late().is_some() && !self.rejected && !self.done();
        // While pods that are not wanted go, in order, no other is taken.
        let reached = !self.ordered() || self.condemned().is_empty() || unavailable > 0;
        let room = if halted || !reached { 0 } else { max.saturating_sub(unavailable) };
        assert_eq!(taken, available[..room.min(available.len())], "{unavailable} are unavailable, of {max}");
        assert!(revived.len() <= max, "{revived:?} at once");
        assert!(!halted || revived.is_empty(), "a roll-out that has stopped takes {revived:?}");
        let turn = |p: &&&Seen| !self.ordered() || p.ordinal.as_ref() == lowest;
        assert!(
            alive.iter().filter(|p| revived.contains(&p.name.as_str())).all(|p| turn(&p)),
            "{revived:?} could not come back before a lower one"
        );
        // If nothing else can make this set whole again, it is one of them.
        if !halted && unavailable == alive.len() && alive.iter().any(|p| turn(&p)) {
            assert!(!revived.is_empty(), "nobody makes way, and {unavailable} stay unavailable");
        }
    }

    /// Who owns the claims: by default nobody.
    fn claims(&self, plan: &Plan) {
        let policy = &self.world.set["spec"]["persistentVolumeClaimRetentionPolicy"];
        let uid = object::uid(&self.world.set);
        for (name, claim) in &self.world.claims {
            let ordinal = name.rsplit_once('-').unwrap().1.parse().unwrap();
            let (pod, wanted) = (self.member(ordinal), self.wanted.contains(&ordinal));
            let action =
                plan.actions.iter().position(|a| matches!(a, Action::OwnClaim { name: n, .. } if n == name));
            let theirs = self.stale(claim, ordinal) || !wanted && pod.is_none();
            if object::deleting(claim) || theirs {
                assert_eq!(action, None, "{name} is none of this set's business");
                continue;
            }
            let right = match pod {
                Some(pod) if !wanted && policy["whenScaled"] == "Delete" => vec![pod.uid.as_str()],
                _ if policy["whenDeleted"] == "Delete" => vec![uid],
                _ => vec![],
            };
            let owners = claim["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            let mut owners: Vec<&str> = owners.map(|o| o["uid"].as_str().unwrap()).collect();
            if let Some(Action::OwnClaim { disown, owner, .. }) = action.map(|at| &plan.actions[at]) {
                assert_ne!(owners, right, "{name} has the right owners already");
                owners.retain(|o| !disown.iter().any(|uid| uid == o));
                owners.extend(owner.iter().map(|o| o["uid"].as_str().unwrap()));
            }
            assert_eq!(owners, right, "{name}'s owners");
            let goes = plan
                .actions
                .iter()
                .position(|a| matches!(a, Action::DeletePod { name: n, .. } if of_pod(name, n)));
            assert!(
                action.is_none() || goes.is_none() || action < goes,
                "{name} is owned before its pod goes"
            );
        }
    }

    /// None that is in use is dropped; one at which all pods are Ready is remembered as such.
    fn revisions(&self, plan: &Plan) {
        let mut marked = None;
        for action in &plan.actions {
            match action {
                Action::DeleteRevision { name, .. } => {
                    let used = self.members().any(|p| p.revision == *name);
                    assert!(!used && *name != self.current && *name != self.update, "{name} is in use");
                }
                Action::CreateRevision(value) => {
                    assert_eq!(value["data"], data(self.world));
                    assert!(self.revisions.iter().all(|r| r["data"] != value["data"]), "it is there already");
                    assert!(
                        self.revisions.iter().all(|r| r["revision"].as_i64() < value["revision"].as_i64())
                    );
                }
                Action::MarkRevision { name, .. } => marked = Some(name.as_str()),
                _ => {}
            }
        }
        let stored = self.revisions.iter().find(|r| object::name(r) == self.update);
        let new = stored.is_some_and(|r| noted(r, "berth.dev/was-ready") != "true");
        let proven = new && self.complete(&[]) && !self.wanted.is_empty();
        assert_eq!(marked, proven.then_some(self.update.as_str()), "all pods are Ready at it, or not");
    }

    /// All that is wanted is at the update's revision and Ready, and there is nothing else.
    fn complete(&self, made: &[&str]) -> bool {
        let at_update = self.members().filter(|p| !p.deleting && p.revision == self.update).count();
        let ready = self.members().filter(|p| p.ready_since.is_some()).count();
        let counts = [at_update, ready, self.members().count()];
        self.partition().is_some() && !self.rejected && made.is_empty() && counts == [self.wanted.len(); 3]
    }

    fn status(&self, status: &Value, made: &[&str]) {
        let at = |revision: &str| {
            let there = self.members().filter(|p| !p.deleting && p.revision == revision).count();
            there + made.iter().filter(|r| **r == revision).count()
        };
        let current = if self.complete(made) { &self.update } else { &self.current };
        let mut right = json!({
            "observedGeneration": self.world.set["metadata"]["generation"],
            "replicas": self.members().count() + made.len(),
            "readyReplicas": self.members().filter(|p| p.ready_since.is_some()).count(),
            "availableReplicas": self.members().filter(|p| self.available(p)).count(),
            "currentReplicas": at(current), "currentRevision": current,
            "updatedReplicas": at(&self.update), "updateRevision": self.update,
            "collisionCount": self.collisions(),
        });
        let mut said = status.clone();
        let said = said.as_object_mut().unwrap();
        said.remove("conditions");
        // Kubernetes leaves these out where they are 0.
        let optional = ["readyReplicas", "currentReplicas", "updatedReplicas"];
        right
            .as_object_mut()
            .unwrap()
            .retain(|field, count| !optional.contains(&field.as_str()) || *count != 0);
        assert_eq!(json!(said), right);
    }

    /// How often the name of a new revision was taken, counting on from what was said before.
    fn collisions(&self) -> i64 {
        let said = self.world.set["status"]["collisionCount"].as_i64().unwrap_or_default();
        let data = data(self.world);
        if self.revisions.iter().any(|r| r["data"] == data) {
            return said;
        }
        let taken = |count: &i64| {
            let name = format!("web-{}", super::hash(&data, *count));
            self.world.revisions.contains_key(&name)
        };
        (said..).find(|count| !taken(count)).unwrap()
    }
}

/// The revisions of the pods that a plan makes.
fn made(plan: &Plan) -> Vec<&str> {
    let pods = plan.actions.iter().filter_map(|a| match a {
        Action::CreatePod { pod, .. } => object::label(pod, "controller-revision-hash"),
        _ => None,
    });
    pods.collect()
}

/// Deadlines, and what is said of them.
impl View<'_> {
    fn said(&self, kind: &str) -> Option<&Value> {
        let status = &self.world.set["status"];
        condition(status, kind).filter(|_| status["updateRevision"] == *self.update)
    }

    fn deadline(&self) -> Option<SignedDuration> {
        let asked = noted(&self.world.set, "berth.dev/progress-deadline-seconds").parse().ok();
        let default = (noted(&self.world.set, "berth.dev/auto-rollback") == "true").then_some(600);
        asked.or(default).map(SignedDuration::from_secs)
    }

    /// The pods that are to be of the new revision, where there are any.
    fn in_scope(&self) -> impl Iterator<Item = Option<&Seen>> {
        let wanted = self.wanted.iter().skip(self.partition().unwrap_or(0));
        wanted.map(|o| self.member(*o).filter(|p| !p.deleting))
    }

    fn updated(&self) -> impl Iterator<Item = &Seen> {
        self.in_scope().flatten().filter(|p| p.revision == self.update)
    }

    /// The roll-out is over: what becomes of its pods later is no matter of it.
    fn done(&self) -> bool {
        let all = self.in_scope().all(|p| p.is_some_and(|p| p.revision == self.update && self.available(p)));
        let was = self.said("Progressing").is_some_and(|c| c["reason"] == "NewRevisionAvailable");
        all || was && self.in_scope().flatten().all(|p| p.revision == self.update)
    }

    /// A pod of the new revision that was not Ready in time.
    fn late(&self) -> Option<&Seen> {
        let deadline = self.deadline()?;
        self.updated().find(|p| p.ready_since.is_none() && p.unready_since + deadline <= self.world.now)
    }

    /// A pod has been able to make way for that long, and has not. (How long is counted from the last step.)
    fn held(&self, plan: &Plan) -> bool {
        let Some(deadline) = self.deadline() else { return false };
        let Some(said) = self.said("Progressing") else { return false };
        let message = said["message"].as_str().unwrap();
        let mut waiting = plan.actions.iter().filter_map(|a| match a {
            Action::ReplacePod { name, revision, .. } if *revision == self.update => Some(name),
            _ => None,
        });
        let available = self.updated().filter(|p| self.available(p)).count();
        let step = format!(
            "{} pods are of revision {}, {available} of them available",
            self.updated().count(),
            self.update
        );
        let long = message == step && time(&said["lastTransitionTime"]) + deadline <= self.world.now;
        // If the revision was given up for it, its pods are not to make way for it any more.
        let found = |pod: &String| message.starts_with(&format!("pod {pod} could not make way"));
        waiting.any(|pod| long || found(pod))
            || self.rejected && (long || message.contains("could not make way"))
    }

    fn conditions(&self, plan: &Plan) {
        let now = |kind: &str| condition(&plan.status, kind);
        let told = |reason: &str| {
            plan.actions.iter().any(|a| matches!(a, Action::Warn { reason: r, .. } if *r == reason))
        };
        assert_eq!(plan.rejected.as_deref(), self.rejected.then_some(self.update.as_str()));
        assert_eq!(now("RevisionRejected").is_some(), self.rejected);
        let was_rejected = self.said("RevisionRejected").is_some();
        if was_rejected || self.deleting {
            // Until the template changes nothing changes that; and a set that goes rolls out nothing any more.
            assert_eq!(self.rejected, was_rejected);
            assert_eq!(
                [now("Progressing"), now("RevisionRejected")],
                [self.said("Progressing"), self.said("RevisionRejected")]
            );
            return;
        }
        let Some(progressing) = now("Progressing") else {
            assert_eq!(self.deadline(), None, "a set that asks is told");
            return;
        };
        assert!(self.deadline().is_some(), "a set that does not ask has no condition");
        let failed = self.late().is_some() || self.held(plan);
        let right = match (self.done(), failed) {
            (true, _) => ["True", "NewRevisionAvailable"],
            (false, true) => ["False", "ProgressDeadlineExceeded"],
            (false, false) => ["True", "RollingOut"],
        };
        assert_eq!([&progressing["status"], &progressing["reason"]], right);
        let failed = right[0] == "False";
        let before = self.said("Progressing").is_some_and(|c| c["status"] == "False");
        assert_eq!(told("ProgressDeadlineExceeded"), failed && !before, "one event for each failure");
        let proven = self.revisions.iter().any(|r| {
            object::name(r) == self.current
                && self.current != self.update
                && noted(r, "berth.dev/was-ready") == "true"
        });
        let asks = noted(&self.world.set, "berth.dev/auto-rollback") == "true" && self.partition().is_some();
        assert_eq!(self.rejected, failed && asks && proven, "back to {}, by itself", self.current);
        assert_eq!(told("RevisionRejected"), self.rejected);
    }

    /// Whatever time alone changes, the loop wakes up for it.
    fn wakes_up(&self, plan: &Plan) {
        let wake = plan.wake_at;
        assert!(wake.is_none_or(|at| at > self.world.now), "waking up for the past");
        let by = |at: Timestamp, what: &str| {
            assert!(
                at <= self.world.now || wake.is_some_and(|wake| wake <= at),
                "{what} at {at}, and nobody looks"
            );
        };
        self.members().filter_map(|p| self.available_at(p)).for_each(|at| by(at, "a pod is available"));
        if let Some(deadline) = self.deadline().filter(|_| !self.rejected && !self.deleting && !self.done()) {
            let unready = self.updated().filter(|p| p.ready_since.is_none());
            unready.for_each(|p| by(p.unready_since + deadline, "a pod is late"));
        }
    }

    /// At rest only where the specification says so: for the readiness of a pod that is at the revision it is to be
    /// at, for a person (OnDelete, a roll-out that has stopped), or for what the order and maxUnavailable keep back.
    pub fn rests_for_a_reason(&self) {
        let stopped = self.partition().is_none() || self.late().is_some() && !self.rejected;
        let mut unavailable = 0;
        for (place, ordinal) in self.wanted.iter().enumerate() {
            if self.stands(*ordinal) {
                continue;
            }
            unavailable += 1;
            let there = self.member(*ordinal).filter(|p| !p.ended);
            let Some(pod) = there else {
                assert!(self.ordered() && unavailable > 1, "web-{ordinal} could be made");
                continue;
            };
            assert!(self.world.is_broken(&pod.name), "{} could be ready", pod.name);
            if self.outdated(place, pod) && !stopped {
                let others = self.wanted.iter().any(|o| o != ordinal && !self.stands(*o));
                assert!(pod.alive && others, "{} is broken and nobody replaces it", pod.name);
            }
        }
        let left = |(place, o): (usize, &u32)| {
            self.member(*o).is_some_and(|p| self.available(p) && self.outdated(place, p))
        };
        if self.wanted.iter().enumerate().any(left) && !stopped {
            assert!(unavailable >= self.max_unavailable(), "{unavailable} unavailable, and the update stops");
        }
        let halted = self.wanted.is_empty() && self.members().any(|p| p.alive);
        if unavailable == 0 && !halted {
            let there: Vec<u32> = self.members().filter_map(|p| p.ordinal).collect();
            assert_eq!(there.len(), self.wanted.len(), "nothing else is left: {there:?}");
        }
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// What holds after each pass that was not interrupted.
pub fn everything_is_in_line(world: &World) {
    let set = &world.set;
    if object::deleting(set) {
        return;
    }
    for pod in world.pods.values().filter(|p| !object::deleting(p)) {
        let selected = object::label(pod, "app") == Some("web");
        let ours = object::controller_ref(pod).is_some_and(|o| o["uid"] == *object::uid(set));
        assert_eq!(ours, selected, "{} is adopted or let go", object::name(pod));
    }
    let own = own_revisions(world);
    let distinct: BTreeSet<String> = own.iter().map(|r| r["data"].to_string()).collect();
    assert_eq!(distinct.len(), own.len(), "a template has one revision");
    assert!(own.iter().all(|r| object::controller_ref(r).is_some()), "revisions are adopted");
    let newest = own.iter().max_by_key(|r| r["revision"].as_i64()).unwrap();
    assert_eq!(newest["data"], data(world), "the set's template has the highest number");
    let used = |name: &str| {
        let revisions = ["currentRevision", "updateRevision"].map(|field| set["status"][field] == *name);
        let pods = world.pods.values().any(|p| object::label(p, "controller-revision-hash") == Some(name));
        pods || revisions.contains(&true)
    };
    let limit = set["spec"]["revisionHistoryLimit"].as_u64().unwrap_or(10) as usize;
    let past = own.iter().filter(|r| !used(object::name(r))).count();
    // The current one becomes a past one with the status that this pass has written.
    assert!(past <= limit + 1, "{past} past revisions");
}
