//! A set's existing claims: who owns them, and what of their templates reaches them.
//!
//! Owners are set as Kubernetes sets them for `persistentVolumeClaimRetentionPolicy`: by default none, and
//! then nothing that happens to the set takes its data away. `whenDeleted: Delete` makes the set the owner;
//! `whenScaled: Delete` makes the pod of an ordinal that is not wanted any more the owner, before it goes.
//! A claim that another controller owns is not taken from it; one that refers to a pod or set of these names
//! that is gone is about to be collected, and no new pod is put on it.
//!
//! A template that asks for more storage, or has other labels and annotations, is followed by its claims
//! (kubernetes/kubernetes#68737, KEP-4650). What a template does not name (any more) stays as it is.

use serde_json::{Map, Value, json};

use super::naming::{parent_and_ordinal, pod_name};
use super::plan::{Action, Planner};
use super::pod::{self, owner_reference};
use super::set::{Claim, ClaimOwner, Set};
use crate::object;
use crate::quantity::Quantity;

impl Planner<'_> {
    /// Brings the claims of all ordinals in line.
    pub(super) fn existing_claims(&mut self, claims: &[Claim]) {
        for claim in claims.iter().filter(|c| !c.deleting) {
            let Some(ordinal) = ordinal_of(self.set, &claim.name) else { continue };
            let pod = self.by_ordinal.get(&ordinal).map(|p| (p.name.as_str(), p.uid.as_str()));
            let wanted = self.set.ordinals.contains(ordinal);
            let concerned = (wanted || pod.is_some()) && !self.is_stale(claim, ordinal);
            if concerned && self.owners(claim, pod, wanted) {
                self.follows_template(claim, ordinal);
            }
        }
    }

    /// Whether it refers to an earlier pod of this ordinal, or to an earlier set of this name.
    pub(super) fn is_stale(&self, claim: &Claim, ordinal: u32) -> bool {
        let pod = self.by_ordinal.get(&ordinal).map(|p| p.uid.as_str());
        let name = pod_name(&self.set.name, ordinal);
        claim.owners.iter().any(|owner| match owner.kind.as_str() {
            "Pod" => owner.name == name && Some(owner.uid.as_str()) != pod,
            "StatefulSet" => owner.name == self.set.name && owner.uid != self.set.uid,
            _ => false,
        })
    }

    /// Sees to its owners; whether it is the set's to change otherwise.
    fn owners(&mut self, claim: &Claim, pod: Option<(&str, &str)>, wanted: bool) -> bool {
        let ours = |o: &&ClaimOwner| o.uid == self.set.uid || pod.is_some_and(|(_, uid)| o.uid == uid);
        let held: Vec<&ClaimOwner> = claim.owners.iter().filter(ours).collect();
        let others = claim.owners.iter().any(|o| o.controller && !ours(&o));
        let retention = self.set.retention;
        let owner = match pod {
            _ if others => None,
            Some((name, uid)) if !wanted && retention.delete_when_scaled => Some(pod_reference(name, uid)),
            _ if retention.delete_when_deleted => Some(owner_reference(self.set)),
            _ => None,
        };
        let right = match (&owner, &held[..]) {
            (None, []) => true,
            (Some(owner), [held]) => held.controller && owner["uid"] == held.uid,
            _ => false,
        };
        if !right {
            self.actions.push(Action::OwnClaim {
                name: claim.name.clone(),
                uid: claim.uid.clone(),
                disown: held.iter().map(|o| o.uid.clone()).collect(),
                owner,
            });
        }
        !others
    }

    fn follows_template(&mut self, claim: &Claim, ordinal: u32) {
        let made_now = pod::claims(self.set, ordinal).find(|c| object::name(c) == claim.name);
        let Some(made_now) = made_now else { return };
        let missing = |field: &str, has: &Value| -> Map<String, Value> {
            let wanted = made_now["metadata"][field].as_object().into_iter().flatten();
            let wanted = wanted.filter(|(key, value)| has[key.as_str()] != **value);
            wanted.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let labels = missing("labels", &claim.labels);
        let annotations = missing("annotations", &claim.annotations);
        let storage = &made_now["spec"]["resources"]["requests"]["storage"];
        let more = claim.bound && Quantity::or_zero(storage) > Quantity::or_zero(&claim.storage);
        let storage = more.then(|| storage.clone());
        if storage.is_some() || !labels.is_empty() || !annotations.is_empty() {
            let (name, uid) = (claim.name.clone(), claim.uid.clone());
            self.actions.push(Action::ChangeClaim { name, uid, storage, labels, annotations });
        }
    }
}

/// The ordinal whose claim has this name.
fn ordinal_of(set: &Set, claim: &str) -> Option<u32> {
    let (_, ordinal) = parent_and_ordinal(claim)?;
    set.claims_of(ordinal).any(|name| name == claim).then_some(ordinal)
}

fn pod_reference(name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}
