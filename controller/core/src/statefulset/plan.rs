//! The order of things: what is done for a set now, and what waits for what.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::naming::pod_name;
use super::pod;
use super::progress::{self, Progress};
use super::revision::{self, Revisions, Template};
use super::set::{Claim, Owner, Phase, Pod, Revision, Set, Strategy};
use super::status::{self, Counts};

/// One thing to do. Actions are independent of each other, apart from their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateRevision(Value),
    /// An earlier revision is in use again: it gets the highest number.
    RenumberRevision {
        name: String,
        uid: String,
        number: i64,
    },
    AdoptRevision {
        name: String,
        uid: String,
        owner: Value,
    },
    DeleteRevision {
        name: String,
        uid: String,
    },
    AdoptPod {
        name: String,
        uid: String,
        owner: Value,
    },
    /// It no longer belongs to the set: the set's owner reference goes, the pod stays.
    ReleasePod {
        name: String,
        uid: String,
    },
    LabelPod {
        name: String,
        uid: String,
        labels: Vec<(&'static str, String)>,
    },
    /// Claims that an existing pod waits for.
    CreateClaims {
        pod: String,
        claims: Vec<Value>,
    },
    /// A pod with the claims it lacks.
    CreatePod {
        name: String,
        pod: Value,
        claims: Vec<Value>,
    },
    DeletePod {
        name: String,
        uid: String,
    },
    /// A pod makes way for one of another revision: it is deleted, but not before the images of its
    /// successor are on its host.
    ReplacePod {
        name: String,
        uid: String,
        /// None: it is on no host yet, and nothing is to be waited for.
        node: Option<String>,
        /// What its successor is made from.
        revision: String,
        successor: Value,
    },
    /// The claim's owners, as the set's retention policy wants them.
    OwnClaim {
        name: String,
        uid: String,
        /// Uids of owners that it loses.
        disown: Vec<String>,
        owner: Option<Value>,
    },
    /// What has changed in the claim's template, and may reach a claim that is there.
    ChangeClaim {
        name: String,
        uid: String,
        /// More than it asks for now.
        storage: Option<Value>,
        /// To be added, or to say something else.
        labels: Map<String, Value>,
        annotations: Map<String, Value>,
    },
    /// All pods are Ready at this revision: one could return to it.
    MarkRevision {
        name: String,
        uid: String,
    },
    /// Worth an event on the set.
    Warn {
        reason: &'static str,
        message: String,
    },
    /// Nothing can be done about this pod until something else changes; worth an event.
    CannotCreate {
        name: String,
        why: String,
    },
}

/// What is to be done for one set.
#[derive(Clone, Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// The status once the actions are carried out: written together with them.
    pub status: Value,
    /// The status if no pod can be created.
    pub status_without_creations: Value,
    /// The revision that was given up, which an annotation on the set is to name (and none otherwise).
    pub rejected: Option<String>,
    /// Time alone changes something then, at the earliest; otherwise the next event does.
    pub wake_at: Option<Timestamp>,
}

/// Decides what is next.
///
/// `pods` are those of the namespace that the set owns or that bear the name of one of its ordinals, `claims`
/// likewise; `revisions` those it owns, those its selector selects, and those whose name begins with its own.
pub fn plan(set: &Set, pods: &[Pod], claims: &[Claim], revisions: &[Revision], now: Timestamp) -> Plan {
    let mut actions = Vec::new();
    let members = membership(set, pods, &mut actions);
    let mut revisions = revision::resolve(set, &members, revisions);
    actions.append(&mut revisions.actions);
    let counts = Counts::of(set, &members, &revisions, now);
    let mut progress = progress::judge(set, &members, &revisions, &[], now);
    let carry_on = |progress: &Progress| {
        let mut planner = Planner {
            set,
            now,
            by_ordinal: members.iter().filter_map(|p| Some((p.ordinal?, *p))).collect(),
            // Whatever is no member but has the name of one stands in its way.
            names: pods.iter().map(|p| p.name.as_str()).collect(),
            claims: claims.iter().map(|c| (c.name.as_str(), c)).collect(),
            after: counts,
            revisions: &revisions,
            progress,
            actions: Vec::new(),
        };
        if !set.deleting {
            // Before a pod goes, its claims have the owners that decide what becomes of them.
            planner.existing_claims(claims);
            planner.replicas_then_condemned_then_outdated();
        }
        (planner.actions, planner.after)
    };
    let (mut steps, mut after) = carry_on(&progress);
    // Only now is it known whether a pod could make way; if that has taken too long, all is decided again.
    let waits = |a: &Action| match a {
        Action::ReplacePod { name, revision, .. } if *revision == revisions.update.revision => {
            Some(name.clone())
        }
        _ => None,
    };
    let held: Vec<String> = steps.iter().filter_map(waits).collect();
    if !held.is_empty() && !progress.rejected {
        let held: Vec<&str> = held.iter().map(String::as_str).collect();
        progress = progress::judge(set, &members, &revisions, &held, now);
        if progress.rejected {
            (steps, after) = carry_on(&progress);
        }
    }
    actions.append(&mut steps);
    if let Some(uid) = &revisions.update_uid
        && status::complete(set, counts)
        && !progress.rejected
        && !revisions.update.was_ready
        && set.ordinals.replicas > 0
        && !set.deleting
    {
        actions.push(Action::MarkRevision { name: revisions.update.revision.clone(), uid: uid.clone() });
    }
    actions.append(&mut progress.events);
    let available = members.iter().filter_map(|p| p.available_at(set.min_ready_seconds));
    Plan {
        status: status::make(set, after, &revisions, &progress),
        status_without_creations: status::make(set, counts, &revisions, &progress),
        actions,
        rejected: progress.rejected.then(|| revisions.update.revision.clone()),
        wake_at: available.filter(|at| *at > now).chain(progress.wake_at).min(),
    }
}

/// The pods that are the set's, after adopting and releasing.
fn membership<'a>(set: &Set, pods: &'a [Pod], actions: &mut Vec<Action>) -> Vec<&'a Pod> {
    let mut members = Vec::new();
    for pod in pods {
        let belongs = pod.ordinal.is_some_and(|o| pod.name == pod_name(&set.name, o)) && pod.selected_by(set);
        let (name, uid) = (pod.name.clone(), pod.uid.clone());
        match pod.owner(set) {
            Owner::This if belongs || pod.deleting || set.deleting => members.push(pod),
            Owner::This => actions.push(Action::ReleasePod { name, uid }),
            Owner::Nobody if belongs && !pod.deleting && !set.deleting => {
                actions.push(Action::AdoptPod { name, uid, owner: pod::owner_reference(set) });
                members.push(pod);
            }
            Owner::Nobody | Owner::Another => {}
        }
    }
    members
}

pub(super) struct Planner<'a> {
    pub set: &'a Set,
    pub now: Timestamp,
    pub by_ordinal: BTreeMap<u32, &'a Pod>,
    names: HashSet<&'a str>,
    claims: HashMap<&'a str, &'a Claim>,
    after: Counts,
    pub revisions: &'a Revisions,
    pub progress: &'a Progress,
    pub actions: Vec<Action>,
}

impl<'a> Planner<'a> {
    /// First every ordinal that is wanted, from the lowest up; then those that are not, from the highest
    /// down; then those of an older revision. Unless the set is Parallel, each step waits for the one
    /// before it.
    fn replicas_then_condemned_then_outdated(&mut self) {
        let set = self.set;
        for ordinal in set.ordinals.iter() {
            if !self.replica(ordinal) && !self.set.parallel {
                // What is broken and outdated would block for ever: an update goes on from here.
                return self.update();
            }
        }
        let condemned: Vec<&Pod> = self
            .by_ordinal
            .iter()
            .rev()
            .filter(|(ordinal, _)| !self.set.ordinals.contains(**ordinal))
            .map(|(_, pod)| *pod)
            .collect();
        for (place, pod) in condemned.iter().enumerate() {
            let halted = !self.set.parallel && self.halts(pod, &condemned[place + 1..]);
            if !pod.deleting && !halted {
                self.delete(pod);
            }
            if !self.set.parallel {
                return;
            }
        }
        self.update();
    }

    /// Brings one ordinal closer to being available; whether it is.
    fn replica(&mut self, ordinal: u32) -> bool {
        let Some(pod) = self.by_ordinal.get(&ordinal).copied() else {
            self.create(ordinal);
            return false;
        };
        let labels = pod.missing_labels(ordinal);
        if !labels.is_empty() && !pod.deleting {
            let (name, uid) = (pod.name.clone(), pod.uid.clone());
            self.actions.push(Action::LabelPod { name, uid, labels });
        }
        match pod.phase {
            // Its name is free once it is gone, and not before.
            Phase::Ended => {
                if !pod.deleting {
                    self.delete(pod);
                }
                return false;
            }
            Phase::Pending if !pod.deleting => {
                let claims = self.missing_claims(ordinal);
                if !claims.is_empty() {
                    self.actions.push(Action::CreateClaims { pod: pod.name.clone(), claims });
                }
            }
            Phase::Pending | Phase::Running => {}
        }
        !pod.deleting && pod.available(self.set.min_ready_seconds, self.now)
    }

    fn create(&mut self, ordinal: u32) {
        let name = pod_name(&self.set.name, ordinal);
        if self.names.contains(name.as_str()) {
            let why = format!("pods {name:?} already exists");
            self.actions.push(Action::CannotCreate { name, why });
            return;
        }
        // A new pod on a claim that is going away would keep it from going.
        let going =
            self.set.claims_of(ordinal).find(|c| self.claims.get(c.as_str()).is_some_and(|c| c.deleting));
        if let Some(claim) = going {
            let why = format!("pvc {claim} is being deleted");
            self.actions.push(Action::CannotCreate { name, why });
            return;
        }
        let stale = |c: &String| self.claims.get(c.as_str()).is_some_and(|c| self.is_stale(c, ordinal));
        if let Some(claim) = self.set.claims_of(ordinal).find(stale) {
            let why = format!("pvc {claim} belongs to an earlier pod or set of that name and goes with it");
            self.actions.push(Action::CannotCreate { name, why });
            return;
        }
        let template = self.template_for(ordinal);
        let pod = pod::make(self.set, template, ordinal);
        self.after.add_new(&template.revision, self.revisions);
        let claims = self.missing_claims(ordinal);
        self.actions.push(Action::CreatePod { name, pod, claims });
    }

    /// The revision a pod of this ordinal is made from: the update's, except below the partition.
    pub fn template_for(&self, ordinal: u32) -> &'a Template {
        match self.set.strategy {
            _ if self.progress.rejected => &self.revisions.current,
            Strategy::RollingUpdate { partition, .. } if self.set.ordinals.position(ordinal) < partition => {
                &self.revisions.current
            }
            Strategy::RollingUpdate { .. } | Strategy::OnDelete => &self.revisions.update,
        }
    }

    fn missing_claims(&self, ordinal: u32) -> Vec<Value> {
        pod::claims(self.set, ordinal).filter(|c| !self.claims.contains_key(crate::object::name(c))).collect()
    }

    /// Whether a condemned pod waits for lower ones that are condemned too. (Every pod that is kept is
    /// available when this is asked.)
    ///
    /// It never does while any pod is kept. Scaling to zero, Kubernetes halts at members that are alive but
    /// have lost their readiness (its conformance tests want that); those that never were ready, do not run,
    /// or are of a superseded revision hold nobody up (kubernetes/kubernetes#57865).
    fn halts(&self, pod: &Pod, lower: &[&Pod]) -> bool {
        let holds = |p: &&Pod| p.lost_readiness && p.revision == self.revisions.update.revision;
        self.set.ordinals.replicas == 0 && !pod.ready() && lower.iter().any(holds)
    }

    fn delete(&mut self, pod: &Pod) {
        self.actions.push(Action::DeletePod { name: pod.name.clone(), uid: pod.uid.clone() });
    }
}
