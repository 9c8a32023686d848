//! What must hold whatever happens: for each write, judged by what its writer had seen, and at the end.
//!
//! It is said here a second time, and plainly, what a StatefulSet is to do. Nothing here asks the code that
//! is tried, except for names.

use std::cell::OnceCell;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::store::{EventKind, Owner};

/// What a pass of the loop began with.
pub struct Snapshot {
    set: Arc<Object>,
    pods: Vec<Arc<Object>>,
    now: Timestamp,
    read: OnceCell<Seen>,
    /// Available pods that this pass has taken.
    taken: Vec<u32>,
}

/// The same, as the rules need it.
pub struct Seen {
    spec: Value,
    status: Value,
    annotations: Value,
    uid: String,
    deleting: bool,
    pods: Vec<Pod>,
}

pub struct Pod {
    pub name: String,
    uid: String,
    ordinal: Option<u32>,
    revision: String,
    image: String,
    deleting: bool,
    ended: bool,
    ready_since: Option<Timestamp>,
    bound: bool,
    owner: Option<String>,
    selected: bool,
    claims: Vec<String>,
}

impl Snapshot {
    pub fn of(store: &Store, set: &str, now: Timestamp) -> Option<Snapshot> {
        let set = store.get(&Key::new("statefulsets.apps", "default", set))?;
        let pods = store.list(&Scope::all("pods")).objects;
        Some(Snapshot { set, pods, now, read: OnceCell::new(), taken: Vec::new() })
    }

    fn seen(&self) -> &Seen {
        self.read.get_or_init(|| Seen::of(&self.set.value(), self.pods.iter().map(|p| p.value())))
    }
}

impl Seen {
    fn of(set: &Value, pods: impl Iterator<Item = Value>) -> Seen {
        Seen {
            spec: set["spec"].clone(),
            status: set["status"].clone(),
            annotations: set["metadata"]["annotations"].clone(),
            uid: object::uid(set).to_owned(),
            deleting: object::deleting(set),
            pods: pods.map(|pod| Pod::of(&pod)).collect(),
        }
    }

    fn ordered(&self) -> bool {
        self.spec["podManagementPolicy"] != "Parallel"
    }

    /// The ordinals there are to be, ascending.
    fn wanted(&self) -> Vec<u32> {
        let reserved = self.annotations["berth.dev/reserve-ordinals"].as_str().unwrap_or_default();
        let reserved: Vec<u32> = reserved.split(',').filter_map(|o| o.parse().ok()).collect();
        let start = self.spec["ordinals"]["start"].as_u64().unwrap_or_default() as u32;
        let replicas = self.spec["replicas"].as_u64().unwrap() as usize;
        (start..).filter(|o| !reserved.contains(o)).take(replicas).collect()
    }

    /// None: OnDelete.
    fn partition(&self) -> Option<usize> {
        let strategy = &self.spec["updateStrategy"];
        let partition = strategy["rollingUpdate"]["partition"].as_u64().unwrap_or_default();
        (strategy["type"] == "RollingUpdate").then_some(partition as usize)
    }

    fn max_unavailable(&self) -> usize {
        match &self.spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"] {
            Value::Null => 1,
            Value::String(percent) => {
                let percent: usize = percent.trim_end_matches('%').parse().unwrap();
                (percent * self.wanted().len() / 100).max(1)
            }
            number => number.as_u64().unwrap() as usize,
        }
    }

    /// Pods that are the set's, or that it is to adopt.
    fn members(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| {
            let belongs = pod.ordinal.is_some() && pod.selected;
            match &pod.owner {
                Some(owner) => *owner == self.uid && (belongs || pod.deleting || self.deleting),
                None => belongs && !pod.deleting && !self.deleting,
            }
        })
    }

    fn member(&self, ordinal: u32) -> Option<&Pod> {
        self.members().find(|p| p.ordinal == Some(ordinal))
    }

    fn is_available(&self, ordinal: u32, now: Timestamp) -> bool {
        self.member(ordinal).is_some_and(|p| !p.deleting && self.available(p, now))
    }

    fn available(&self, pod: &Pod, now: Timestamp) -> bool {
        let rest = SignedDuration::from_secs(self.spec["minReadySeconds"].as_i64().unwrap_or_default());
        pod.ready_since.is_some_and(|since| since + rest <= now)
    }

    fn retains(&self, when: &str) -> bool {
        self.spec["persistentVolumeClaimRetentionPolicy"][when] != "Delete"
    }
}

impl Pod {
    pub fn of(pod: &Value) -> Pod {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready" && c["status"] == "True");
        let name = object::name(pod).to_owned();
        Pod {
            uid: object::uid(pod).to_owned(),
            ordinal: name.strip_prefix("web-").and_then(|o| o.parse().ok()),
            revision: object::label(pod, "controller-revision-hash").unwrap_or_default().to_owned(),
            image: pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned(),
            deleting: object::deleting(pod),
            ended: pod["status"]["phase"] == "Failed",
            ready_since: ready.map(|c| c["lastTransitionTime"].as_str().unwrap().parse().unwrap()),
            bound: pod["spec"]["nodeName"].is_string(),
            owner: object::controller_ref(pod).map(|o| o["uid"].as_str().unwrap().to_owned()),
            selected: object::label(pod, "app") == Some("web"),
            claims: world::claims_of(pod).collect(),
            name,
        }
    }
}

pub fn is_ready(pod: &Value) -> bool {
    Pod::of(pod).ready_since.is_some()
}

/// What a reader of the story wants to know of an object.
pub fn brief(object: &Object) -> String {
    let value = object.value();
    match &*object.key.resource {
        "pods" => {
            let pod = Pod::of(&value);
            let phase = value["status"]["phase"].as_str().unwrap_or("new").to_owned();
            let ready = if pod.ready_since.is_some() { " ready" } else { "" };
            let owner = if pod.owner.is_some() { "" } else { " without owner" };
            let Pod { image, revision, .. } = pod;
            format!("({image} of {revision}, {phase}{ready}{owner})")
        }
        "statefulsets.apps" => {
            let (spec, status) = (&value["spec"], &value["status"]);
            let image = &spec["template"]["spec"]["containers"][0]["image"];
            let strategy = &spec["updateStrategy"];
            let retention = &spec["persistentVolumeClaimRetentionPolicy"];
            let ordinals = (&spec["replicas"], &spec["ordinals"]["start"], &value["metadata"]["annotations"]);
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let reasons: Vec<&Value> = conditions.map(|c| &c["reason"]).collect();
            let counts =
                ["replicas", "readyReplicas", "availableReplicas", "updatedReplicas", "currentReplicas"];
            let counts = counts.map(|field| status[field].as_u64().unwrap_or_default());
            let revisions = (&status["currentRevision"], &status["updateRevision"]);
            format!("({image} {ordinals:?} {strategy} {retention}; {counts:?} {revisions:?} {reasons:?})")
        }
        "persistentvolumeclaims" => {
            let owners: Vec<_> =
                object.meta.owners.iter().map(|o| format!("{}/{}", o.kind, o.name)).collect();
            format!("(owners {owners:?})")
        }
        _ => String::new(),
    }
}

/// What of the event matters most: an object is made, is asked to go (or goes at once), goes, changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Made,
    Taken,
    Gone,
    Changed,
}

fn how(event: &Event) -> How {
    let was_deleting = event.previous.as_ref().is_some_and(|p| p.meta.deleting);
    match (event.kind, &event.previous) {
        (EventKind::Deleted, _) if was_deleting => How::Gone,
        (EventKind::Deleted, _) => How::Taken,
        (EventKind::Put, None) => How::Made,
        (EventKind::Put, Some(_)) if event.object.meta.deleting && !was_deleting => How::Taken,
        (EventKind::Put, Some(_)) => How::Changed,
    }
}

/// Judges one transaction. `pass`: what the loop had seen, if it writes.
pub fn check(simulation: &Simulation, writer: Writer, events: &[Event], pass: Option<&mut Snapshot>) {
    for event in events {
        let (object, previous) = (&event.object, event.previous.as_ref());
        let name = &object.key;
        must(previous.is_none_or(|p| p.meta.uid == object.meta.uid), format!("{name} is another's now"));
        let controllers = |o: &Object| -> Vec<String> {
            o.meta.owners.iter().filter(|o| o.controller).map(|o| o.uid.to_string()).collect()
        };
        let (before, now) = (previous.map(|p| controllers(p)).unwrap_or_default(), controllers(object));
        must(now.len() <= 1, format!("{name} has two controllers"));
        let taken_over = &*name.resource == "pods" && !before.is_empty() && !now.is_empty() && before != now;
        must(!taken_over, format!("{name} was taken from its controller"));
    }
    match (writer, pass) {
        (Writer::World, _) => {}
        (Writer::Garbage, _) => events.iter().for_each(|event| collected(simulation, event)),
        // Refused, or nothing had to be written.
        (Writer::Sets, _) if events.is_empty() => {}
        (Writer::Sets, Some(pass)) => {
            let set = simulation.set().unwrap_or_default();
            let same = object::uid(&set) == pass.seen().uid && set["spec"] == pass.seen().spec;
            must(same, "the loop acts for a set that is another by now");
            must(object::deleting(&set) == pass.seen().deleting, "the loop acts for a set that goes by now");
            for event in events {
                match &*event.object.key.resource {
                    "pods" => pod(simulation, event, pass),
                    "persistentvolumeclaims" => claim(event, pass),
                    "controllerrevisions.apps" => revision(simulation, event, pass),
                    "statefulsets.apps" => status(event, events, pass),
                    other => panic!("the loop writes {other}"),
                }
            }
        }
        (Writer::Sets, None) => panic!("the loop writes without having looked"),
    }
}

/// The collector takes what has had owners and has lost them all; nothing that was to stay.
fn collected(simulation: &Simulation, event: &Event) {
    if how(event) != How::Taken {
        return;
    }
    let name = &event.object.key;
    let owners = &event.previous.as_ref().unwrap().meta.owners;
    must(!owners.is_empty(), format!("{name} never had an owner, and is collected"));
    for owner in owners.iter() {
        must(!stands(simulation, owner), format!("{name} is collected, and its owner {} stands", owner.name));
        let orphaned = simulation.orphaning.contains(&*owner.uid);
        must(!orphaned, format!("{name} is collected, and was to be left without an owner"));
    }
}

/// Whether an owner is there and does not wait for its dependents to go first.
fn stands(simulation: &Simulation, owner: &Owner) -> bool {
    let kind = [SETS, PODS].into_iter().find(|k| k.kind == &*owner.kind).unwrap();
    let found = simulation.world.store().get(&crate::objects::key(kind, "default", &owner.name));
    found.is_some_and(|found| {
        let waits = found.value()["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| all.iter().any(|f| f == "foregroundDeletion"));
        found.meta.uid == owner.uid && !(found.meta.deleting && waits)
    })
}

/// The revisions that count, by name: the current one, the update's, and whether the update's was given up.
struct Revisions {
    current: String,
    update: String,
    rejected: bool,
}

impl Revisions {
    /// As they are in the store, for the template that was seen.
    fn of(simulation: &Simulation, seen: &Seen) -> Revisions {
        let all: Vec<Value> = simulation.all(REVISIONS).iter().map(|o| o.value()).collect();
        let mut own = all.iter().filter(|r| object::controller_ref(r).is_some_and(|o| o["uid"] == *seen.uid));
        let exists = |name: &&str| all.iter().any(|r| object::name(r) == *name);
        let update = own.find(|r| {
            let mut template = r["data"]["spec"]["template"].clone();
            template.as_object_mut().unwrap().remove("$patch");
            template == seen.spec["template"]
        });
        let update = update.map(object::name).unwrap_or_default().to_owned();
        must(!update.is_empty(), "no revision has the set's template");
        let current = seen.status["currentRevision"].as_str().filter(exists).unwrap_or(&update).to_owned();
        let set = simulation.set().unwrap_or_default();
        let noted = object::annotation(&set, "berth.dev/rejected-revision");
        Revisions { rejected: noted == Some(&update), current, update }
    }

    /// What a pod of this place in the set is to be made from.
    fn target(&self, seen: &Seen, place: usize) -> &str {
        let below = seen.partition().is_some_and(|partition| place < partition);
        if self.rejected || below { &self.current } else { &self.update }
    }
}

fn pod(simulation: &Simulation, event: &Event, pass: &mut Snapshot) {
    let now = pass.now;
    let pod = Pod::of(&event.object.value());
    let name = pod.name.clone();
    let seen = pass.seen();
    let wanted = seen.wanted();
    let place = wanted.iter().position(|o| Some(*o) == pod.ordinal);
    match how(event) {
        How::Made => {
            let Some(place) = place else { panic!("{name} is made, and not wanted") };
            must(!seen.deleting, format!("{name} is made for a set that goes"));
            must(pod.owner.as_deref() == Some(&seen.uid), format!("{name} is not the set's"));
            if seen.ordered() {
                for lower in &wanted[..place] {
                    must(
                        seen.is_available(*lower, now),
                        format!("{name} is made before web-{lower} is available"),
                    );
                }
            }
            let revisions = Revisions::of(simulation, seen);
            must(pod.revision == revisions.target(seen, place), format!("{name} is of the wrong revision"));
            for template in seen.spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
                let claim = format!("{}-{name}", object::name(template));
                let found = simulation.world.store().get(&Key::new(
                    "persistentvolumeclaims",
                    "default",
                    claim.as_str(),
                ));
                must(found.is_some(), format!("{name} is made without its claim {claim}"));
            }
        }
        How::Taken => {
            let before = seen.pods.iter().find(|p| p.uid == pod.uid);
            let Some(before) = before else { panic!("{name} was not seen, and is deleted") };
            must(!seen.deleting, format!("{name} is deleted by a set that goes"));
            must(
                seen.members().any(|p| p.uid == pod.uid),
                format!("{name} is not the set's, and is deleted"),
            );
            let ordinal = pod.ordinal.unwrap();
            let Some(place) = place else {
                if seen.ordered() {
                    let condemned = seen.members().filter_map(|p| p.ordinal).filter(|o| !wanted.contains(o));
                    must(condemned.max() == Some(ordinal), format!("{name} goes before a higher one"));
                    let all = wanted.iter().all(|o| seen.is_available(*o, now));
                    must(all, format!("{name} goes before all that stay are available"));
                }
                return;
            };
            if before.ended {
                return;
            }
            let Some(partition) = seen.partition() else { panic!("{name} is replaced OnDelete") };
            let revisions = Revisions::of(simulation, seen);
            let target = revisions.target(seen, place);
            must(before.revision != target, format!("{name} is as it should be, and is replaced"));
            let Revisions { current, update, rejected } = &revisions;
            let superseded =
                before.ready_since.is_none() && before.revision != *current && before.revision != *update;
            let may = place >= partition || *rejected && before.revision == *update || superseded;
            must(may, format!("{name} is below the partition, and is replaced"));
            let image = simulation.image_of(target);
            must(
                !before.bound || simulation.images.contains(&image),
                format!("{name} goes before {image} is there"),
            );
            if seen.available(before, now) {
                let available = |o: &&u32| seen.is_available(**o, now) && !pass.taken.contains(o);
                let unavailable = wanted.len() - wanted.iter().filter(available).count();
                must(
                    unavailable < seen.max_unavailable(),
                    format!("{name} goes, and {unavailable} are unavailable"),
                );
                let outdated_above = wanted[place + 1..].iter().enumerate().any(|(above, o)| {
                    let target = revisions.target(seen, place + 1 + above);
                    available(&o) && seen.member(*o).is_some_and(|p| p.revision != target)
                });
                must(!outdated_above, format!("{name} goes before a higher one"));
                pass.taken.push(ordinal);
            }
        }
        How::Changed => {
            let previous = Pod::of(&event.previous.as_ref().unwrap().value());
            if previous.owner.is_none() && pod.owner.is_some() {
                let set = simulation.set().unwrap_or_default();
                let lives = object::uid(&set) == seen.uid && !object::deleting(&set);
                must(lives, format!("{name} is adopted by a set that is gone"));
            }
            if previous.owner.is_some() && pod.owner.is_none() {
                must(!previous.selected, format!("{name} is released, and belongs to the set"));
            }
        }
        How::Gone => panic!("{name}: pods are removed by their host"),
    }
}

fn claim(event: &Event, pass: &Snapshot) {
    let seen = pass.seen();
    let claim = &event.object;
    let name = claim.key.name.as_str();
    let mut templates = seen.spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    let template = templates.find(|t| name.starts_with(&format!("{}-web-", object::name(t))));
    let Some(template) = template else { panic!("{name} has no template") };
    let (_, ordinal) = name.rsplit_once('-').unwrap();
    let wanted = ordinal.parse().is_ok_and(|ordinal| seen.wanted().contains(&ordinal));
    match how(event) {
        How::Made | How::Changed => {
            let before = event.previous.as_ref().map(|p| &p.meta.owners[..]).unwrap_or_default();
            for owner in claim.meta.owners.iter().filter(|o| !before.contains(o)) {
                match &*owner.kind {
                    "StatefulSet" => {
                        must(!seen.retains("whenDeleted"), format!("{name} is to stay, and the set owns it"))
                    }
                    "Pod" => must(
                        !seen.retains("whenScaled") && !wanted,
                        format!("{name} is to stay, and a pod owns it"),
                    ),
                    other => panic!("{name} gets an owner {other}"),
                }
            }
        }
        How::Taken | How::Gone => panic!("{name} is deleted by the loop"),
    }
    if let Some(previous) = &event.previous {
        let (before, mut now) = (previous.value(), claim.value());
        if now["spec"] != before["spec"] {
            must(before["status"]["phase"] == "Bound", format!("{name} grows without a volume"));
            let more = storage(&now);
            must(more == storage(template) && more > storage(&before), format!("{name} asks for {more}"));
            now["spec"]["resources"] = before["spec"]["resources"].clone();
            must(now["spec"] == before["spec"], format!("{name} changes"));
        }
    }
}

/// (All are of one digit and one unit.)
fn storage(claim: &Value) -> String {
    claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap_or_default().to_owned()
}

fn revision(simulation: &Simulation, event: &Event, pass: &Snapshot) {
    let seen = pass.seen();
    let name = event.object.key.name.as_str();
    let set = simulation.set().unwrap_or_default();
    match how(event) {
        How::Made => {
            let number = |r: &Value| r["revision"].as_i64().unwrap();
            let own = simulation.all(REVISIONS).iter().map(|o| o.value()).collect::<Vec<_>>();
            let same: Vec<&Value> = own
                .iter()
                .filter(|r| object::controller_ref(r).is_some_and(|o| o["uid"] == *seen.uid))
                .collect();
            let newest = same.iter().map(|r| number(r)).max();
            must(newest == Some(number(&event.object.value())), format!("{name} has not the highest number"));
            let data = event.object.value()["data"].clone();
            must(same.iter().filter(|r| r["data"] == data).count() == 1, format!("{name} is there already"));
        }
        How::Changed => {
            if event.previous.as_ref().unwrap().meta.owners.is_empty() && !event.object.meta.owners.is_empty()
            {
                let lives = object::uid(&set) == seen.uid && !object::deleting(&set);
                must(lives, format!("{name} is adopted by a set that is gone"));
            }
        }
        How::Taken => {
            let used = simulation
                .all(PODS)
                .iter()
                .map(|o| Pod::of(&o.value()))
                .any(|p| p.revision == name && p.owner.as_deref() == Some(&seen.uid));
            must(!used, format!("{name} is dropped, and a pod is at it"));
            for field in ["currentRevision", "updateRevision"] {
                let in_use = object::uid(&set) == seen.uid && set["status"][field] == *name;
                must(!in_use, format!("{name} is dropped, and is the {field}"));
            }
        }
        How::Gone => {}
    }
}

/// What the status says is what was seen and what this very transaction makes.
fn status(event: &Event, events: &[Event], pass: &Snapshot) {
    let seen = pass.seen();
    let (value, previous) = (event.object.value(), event.previous.as_ref().unwrap().value());
    must(value["spec"] == previous["spec"], "the loop changes the spec");
    let made =
        events.iter().filter(|e| &*e.object.key.resource == "pods").map(|e| Pod::of(&e.object.value()));
    let made: Vec<Pod> = made.collect();
    let is = |field: &str, count: usize| {
        let said = value["status"][field].as_u64().unwrap_or_default();
        must(said == count as u64, format!("{field} says {said} and there are {count}"));
    };
    let at = |field: &str| {
        let revision = value["status"][field].as_str().unwrap_or_default().to_owned();
        let there = seen.members().filter(|p| !p.deleting && p.revision == revision).count();
        there + made.iter().filter(|p| p.revision == revision).count()
    };
    is("replicas", seen.members().count() + made.len());
    is("readyReplicas", seen.members().filter(|p| p.ready_since.is_some()).count());
    is("availableReplicas", seen.members().filter(|p| seen.available(p, pass.now)).count());
    is("updatedReplicas", at("updateRevision"));
    is("currentReplicas", at("currentRevision"));
    must(
        value["status"]["observedGeneration"] == value["metadata"]["generation"],
        "it speaks of another generation",
    );
}

/// The end: what was asked for, and nothing else.
pub fn at_rest(simulation: &Simulation) {
    let now = simulation.time.now();
    let Some(set) = simulation.set() else {
        for object in [PODS, CLAIMS, REVISIONS].iter().flat_map(|kind| simulation.all(kind)) {
            let left: Vec<_> = object.meta.owners.iter().filter(|o| !stands(simulation, o)).collect();
            must(left.is_empty(), format!("{} outlives its owner", object.key));
        }
        return;
    };
    if object::deleting(&set) {
        // It waits for its claims, and they for a pod that uses one and is not the set's.
        let held = simulation.all(CLAIMS).into_iter().any(|claim| {
            let own = claim.meta.owners.iter().any(|o| *o.uid == *object::uid(&set));
            own && claim.meta.deleting && simulation.is_used(&claim)
        });
        must(held, "a set that goes is still there");
        return;
    }
    let seen = Seen::of(&set, simulation.all(PODS).iter().map(|o| o.value()));
    let revisions = Revisions::of(simulation, &seen);
    let wanted = seen.wanted();
    let there: Vec<u32> = seen.members().filter_map(|p| p.ordinal).collect();
    must(there.len() == wanted.len(), format!("there are {there:?}, wanted are {wanted:?}"));
    for (place, ordinal) in wanted.iter().enumerate() {
        let Some(pod) = seen.member(*ordinal) else { panic!("web-{ordinal} is missing") };
        must(seen.is_available(*ordinal, now), format!("web-{ordinal} is not available"));
        must(pod.owner.is_some(), format!("web-{ordinal} is nobody's"));
        if let Some(partition) = seen.partition() {
            let (target, revision) = (revisions.target(&seen, place), &pod.revision);
            // Below the partition nothing that works is taken, whatever revision it is of.
            let right = revision == target || place < partition;
            must(right, format!("web-{ordinal} is of revision {revision}, and {target} is wanted"));
        }
        for template in seen.spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
            let claim = format!("{}-web-{ordinal}", object::name(template));
            let key = Key::new("persistentvolumeclaims", "default", claim.as_str());
            // (A pod that was adopted may do without.)
            if !pod.claims.contains(&claim) {
                continue;
            }
            let Some(found) = simulation.world.store().get(&key) else { panic!("{claim} is missing") };
            let enough = found.meta.deleting || storage(&found.value()) >= storage(template);
            must(enough, format!("{claim} asks for too little"));
            let owners = &found.meta.owners;
            let owned = owners.iter().any(|o| *o.uid == *seen.uid);
            let as_wanted = owned != seen.retains("whenDeleted") && owners.len() == usize::from(owned);
            must(found.meta.deleting || as_wanted, format!("{claim} has other owners than it should"));
        }
    }
    let status = &seen.status;
    let count = |field: &str| status[field].as_u64().unwrap_or_default() as usize;
    for field in ["replicas", "readyReplicas", "availableReplicas"] {
        must(count(field) == wanted.len(), format!("{field} says {}", count(field)));
    }
    let at = |revision: &str| seen.members().filter(|p| p.revision == revision).count();
    must(count("updatedReplicas") == at(&revisions.update), "updatedReplicas is wrong");
    must(count("currentReplicas") == at(&revisions.current), "currentReplicas is wrong");
    must(status["updateRevision"] == *revisions.update, "updateRevision is wrong");
    if seen.partition() == Some(0) && !revisions.rejected && !wanted.is_empty() {
        must(revisions.current == revisions.update, "the update is complete, and the status does not say so");
    }
    let used: Vec<String> = seen.members().map(|p| p.revision.clone()).collect();
    let unused = simulation.all(REVISIONS).into_iter().filter(|r| {
        let name = &r.key.name;
        !used.contains(name) && *name != revisions.current && *name != revisions.update
    });
    let limit = seen.spec["revisionHistoryLimit"].as_u64().unwrap() as usize;
    must(unused.count() <= limit, "more revisions than the limit are kept");
}
