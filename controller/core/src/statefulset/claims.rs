//! A set's existing claims: who owns them.
//!
//! Owners are set as Kubernetes sets them for `persistentVolumeClaimRetentionPolicy`: by default none, and
//! then nothing that happens to the set takes its data away. `whenDeleted: Delete` makes the set the owner;
//! `whenScaled: Delete` makes the pod of an ordinal that is not wanted any more the owner, before it goes.
//! A claim that another controller owns is not taken from it; one that refers to a pod or set of these names
//! that is gone is about to be collected, and no new pod is put on it.

use serde_json::{Value, json};

use super::naming::{parent_and_ordinal, pod_name};
use super::plan::{Action, Planner};
use super::pod::owner_reference;
use super::set::{Claim, ClaimOwner, Set};

impl Planner<'_> {
    /// Brings the claims of all ordinals in line.
    pub(super) fn existing_claims(&mut self, claims: &[Claim]) {
        for claim in claims.iter().filter(|c| !c.deleting) {
            let Some(ordinal) = ordinal_of(self.set, &claim.name) else { continue };
            let pod = self.by_ordinal.get(&ordinal).map(|p| (p.name.as_str(), p.uid.as_str()));
            let wanted = self.set.ordinals.contains(ordinal);
            if (wanted || pod.is_some()) && !self.is_stale(claim, ordinal) {
                self.owners(claim, pod, wanted);
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

    fn owners(&mut self, claim: &Claim, pod: Option<(&str, &str)>, wanted: bool) {
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
