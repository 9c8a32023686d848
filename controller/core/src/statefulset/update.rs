//! The update: which pods make way for one of another revision now, and which wait.
//!
//! A pod that is available is only taken while fewer than maxUnavailable of the wanted pods are unavailable,
//! from the highest ordinal down to the partition: that is Kubernetes' rule. Taking a pod that is not
//! available makes nothing less available, so it waits for less:
//! - one that is broken (it never was Ready, or its containers do not run) waits for nothing. Here Kubernetes
//!   waits for it to become Ready, which it never will (kubernetes/kubernetes#67250, #141095);
//! - one that runs and was Ready once may recover and may hold what its peers need: of these, and of those
//!   that were replaced and are not available yet, at most maxUnavailable are under way at once. In an
//!   OrderedReady set it is taken only if nothing lower is unavailable, since it could not come back before.
//!
//! When the update's revision was rejected, the same rules take its pods back to the current one, on both
//! sides of the partition.
//!
//! Below the partition, and with OnDelete, nothing is taken; except, below it, a broken pod of a revision
//! that is neither the current one nor the update's, which nothing else would ever free.

use super::naming::pod_name;
use super::plan::{Action, Planner};
use super::pod;
use super::set::{Phase, Pod, Strategy};

/// How an outdated pod stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Broken,
    /// Alive and not available.
    Unavailable,
    Available,
}

impl Planner<'_> {
    pub(super) fn update(&mut self) {
        let Strategy::RollingUpdate { partition, max_unavailable } = self.set.strategy else { return };
        let set = self.set;
        let mut unavailable = 0;
        // Of the unavailable ones, those that are becoming available, as far as this set's plan goes.
        let mut under_way = 0;
        let mut lowest_unavailable = None;
        let mut outdated = Vec::new();
        for ordinal in set.ordinals.iter() {
            let pod = self.by_ordinal.get(&ordinal).copied();
            let live = pod.filter(|p| !p.deleting && !self.deletes(p));
            let available = live.is_some_and(|p| p.available(self.set.min_ready_seconds, self.now));
            if !available {
                unavailable += 1;
                lowest_unavailable.get_or_insert(ordinal);
            }
            // Before all lower ones are available it is not made.
            let blocked = !self.set.parallel && lowest_unavailable != Some(ordinal);
            match live {
                Some(pod) if self.outdated(ordinal, pod, partition) => {
                    let standing = match (available, pod.broken()) {
                        (true, _) => Standing::Available,
                        (false, true) => Standing::Broken,
                        (false, false) => Standing::Unavailable,
                    };
                    outdated.push((ordinal, pod, standing));
                }
                // What is to be made (again) and cannot be yet is no reason to wait.
                Some(pod) if pod.phase == Phase::Ended && blocked => {}
                None if pod.is_none() && blocked => {}
                _ => under_way += u32::from(!available),
            }
        }
        for (ordinal, pod, _) in outdated.iter().rev().filter(|o| o.2 == Standing::Broken) {
            self.replace(*ordinal, pod);
            under_way += 1;
        }
        // What is broken already is not put at risk.
        if self.progress.halted && !self.progress.rejected {
            return;
        }
        for (ordinal, pod, _) in outdated.iter().rev().filter(|o| o.2 == Standing::Unavailable) {
            let in_turn = self.set.parallel || lowest_unavailable == Some(*ordinal);
            if in_turn && under_way < max_unavailable {
                self.replace(*ordinal, pod);
                under_way += 1;
            }
        }
        for (ordinal, pod, _) in outdated.iter().rev().filter(|o| o.2 == Standing::Available) {
            if unavailable >= max_unavailable {
                break;
            }
            self.replace(*ordinal, pod);
            unavailable += 1;
        }
    }

    /// Whether the update is to replace this pod, sooner or later.
    fn outdated(&self, ordinal: u32, pod: &Pod, partition: u32) -> bool {
        if pod.revision == self.template_for(ordinal).revision {
            return false;
        }
        if self.set.ordinals.position(ordinal) >= partition {
            return true;
        }
        let (current, update) = (&self.revisions.current.revision, &self.revisions.update.revision);
        if self.progress.rejected && pod.revision == *update {
            return true;
        }
        pod.broken() && pod.revision != *current && pod.revision != *update
    }

    /// Whether this very plan deletes it.
    fn deletes(&self, pod: &Pod) -> bool {
        self.actions.iter().any(|a| matches!(a, Action::DeletePod { uid, .. } if *uid == pod.uid))
    }

    fn replace(&mut self, ordinal: u32, old: &Pod) {
        let template = self.template_for(ordinal);
        self.actions.push(Action::ReplacePod {
            name: pod_name(&self.set.name, ordinal),
            uid: old.uid.clone(),
            node: old.node.clone(),
            revision: template.revision.clone(),
            successor: pod::make(self.set, template, ordinal),
        });
    }
}
