//! Taking up the pods of this host after the agent was away: from the state file and from what is there.
//!
//! * Running containers are waited for and probed again; what ended meanwhile gets its exit.
//! * Half-made ones are removed and made again.
//! * What the state knows nothing of is stopped and cleaned.
//! * After a reboot nothing starts before the controller has confirmed it.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_agent_core::{Found, FoundState, Observed, Remembered};
use berth_proto::{Assignment, Container, PodRef};

use super::Pods;
use super::host::Survey;
use crate::state::Record;

/// What nobody knows is given this long to end.
const UNKNOWN: Duration = Duration::from_secs(30);

impl Pods {
    pub(super) fn adopt(&self, records: Vec<Record>, survey: Survey, rebooted: bool) {
        let now = self.inner.around.clock.now();
        let mut found: BTreeMap<String, (PodRef, Vec<Found>)> = BTreeMap::new();
        for container in survey.containers {
            let entry = found.entry(container.pod.uid.clone());
            entry.or_insert_with(|| (container.pod, Vec::new())).1.push(container.found);
        }
        let mut held = self.inner.held();
        for record in records {
            let Record { assignment, remembered, status } = record;
            let Some(pod) = assignment.pod.clone() else { continue };
            let containers = found.remove(&pod.uid).map_or(Vec::new(), |(_, containers)| containers);
            let remains = survey.uids.contains(&pod.uid) || !containers.is_empty();
            let remembered = Remembered { gone: remembered.gone && !remains, ..remembered };
            let observed = Observed::restore(&assignment, &remembered, &containers, rebooted, now);
            tracing::info!(namespace = %pod.namespace, pod = %pod.name, containers = containers.len(), rebooted,
                "taken up again");
            self.drive(&mut held, assignment, observed, status, false);
        }
        for uid in survey.uids {
            if !held.pods.contains_key(&uid) && !found.contains_key(&uid) {
                found.insert(uid.clone(), (PodRef { uid, ..PodRef::default() }, Vec::new()));
            }
        }
        for (uid, (pod, containers)) in found {
            tracing::warn!(namespace = %pod.namespace, pod = %pod.name, %uid, containers = containers.len(),
                "nothing is known of this pod: it is stopped and cleaned");
            let assignment = stand_in(pod, &containers);
            let mut observed =
                Observed::restore(&assignment, &Remembered::default(), &containers, rebooted, now);
            observed.began = now;
            observed.stop(&assignment, UNKNOWN, now);
            held.unknown.insert(uid, None);
            self.drive(&mut held, assignment, observed, None, true);
        }
    }
}

/// An assignment for a pod of which only its containers are known.
fn stand_in(pod: PodRef, found: &[Found]) -> Assignment {
    let mut containers: Vec<Container> = Vec::new();
    for found in found.iter().filter(|found| found.state == FoundState::Started) {
        if !containers.iter().any(|container| container.name == found.container) {
            let (name, image) = (found.container.clone(), found.image.clone());
            containers.push(Container { name, image, ..Container::default() });
        }
    }
    Assignment { pod: Some(pod), containers, restart_policy: "Never".to_owned(), ..Assignment::default() }
}
