//! What a set's status says.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::progress::Progress;
use super::revision::Revisions;
use super::set::{Pod, Set, Strategy};

/// Counts pods as Kubernetes' status does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub replicas: u32,
    pub ready: u32,
    pub available: u32,
    pub current: u32,
    pub updated: u32,
}

impl Counts {
    /// The pods that are there. A terminating pod is a replica still, but of no revision.
    pub fn of(set: &Set, pods: &[&Pod], revisions: &Revisions, now: Timestamp) -> Counts {
        let mut counts = Counts::default();
        for pod in pods {
            counts.replicas += 1;
            counts.ready += u32::from(pod.ready());
            counts.available += u32::from(pod.available(set.min_ready_seconds, now));
            if !pod.deleting {
                counts.at(&pod.revision, revisions);
            }
        }
        counts
    }

    /// A pod that is about to be created.
    pub fn add_new(&mut self, revision: &str, revisions: &Revisions) {
        self.replicas += 1;
        self.at(revision, revisions);
    }

    fn at(&mut self, revision: &str, revisions: &Revisions) {
        self.current += u32::from(revision == revisions.current.revision);
        self.updated += u32::from(revision == revisions.update.revision);
    }
}

/// Whether every replica wanted is at the update's revision, Ready, and nothing else is left.
pub(super) fn complete(set: &Set, counts: Counts) -> bool {
    let wanted = set.ordinals.replicas;
    matches!(set.strategy, Strategy::RollingUpdate { .. })
        && counts.updated == wanted
        && counts.ready == wanted
        && counts.replicas == wanted
}

/// The status to write.
pub(super) fn make(set: &Set, mut counts: Counts, revisions: &Revisions, progress: &Progress) -> Value {
    let mut current = &revisions.current.revision;
    if complete(set, counts) && !progress.rejected {
        counts.current = counts.updated;
        current = &revisions.update.revision;
    }
    let mut status = Map::new();
    status.insert("observedGeneration".to_owned(), set.generation.into());
    status.insert("replicas".to_owned(), counts.replicas.into());
    status.insert("availableReplicas".to_owned(), counts.available.into());
    for (field, count) in [
        ("readyReplicas", counts.ready),
        ("currentReplicas", counts.current),
        ("updatedReplicas", counts.updated),
    ] {
        if count > 0 {
            status.insert(field.to_owned(), count.into());
        }
    }
    status.insert("currentRevision".to_owned(), current.clone().into());
    status.insert("updateRevision".to_owned(), revisions.update.revision.clone().into());
    status.insert("collisionCount".to_owned(), revisions.collision_count.into());
    let conditions = progress.conditions(set);
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), conditions.into());
    }
    Value::Object(status)
}
