//! Which life of a name may run on this host. The last line of "never two".

use std::collections::BTreeMap;

use berth_proto::PodRef;

/// More names than this are not remembered: it bounds the state file.
const NAMES: usize = 4096;

/// The highest epoch seen of each (namespace, name). Outlives the agent: nothing older is ever started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    seen: BTreeMap<(String, String), u64>,
}

/// What is to be done with an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// This life is held already: its assignment may have changed.
    Update,
    /// It may start at once.
    Start,
    /// It may start when the former life of that name is gone.
    Behind,
    /// Older than what was seen, or a second life with the same epoch: never started.
    Refused { seen: u64 },
}

impl Fence {
    /// As remembered.
    pub fn restore(seen: impl IntoIterator<Item = ((String, String), u64)>) -> Self {
        Fence { seen: seen.into_iter().collect() }
    }

    /// What to remember.
    pub fn seen(&self) -> impl Iterator<Item = (&(String, String), &u64)> {
        self.seen.iter()
    }

    /// The highest epoch waited for, if a controller that has handed out none above `last` may assign older ones: it
    /// was restored from a back-up.
    pub fn ahead_of(&self, last: u64) -> Option<u64> {
        // What has ended waits for the epoch after its own, the next that is handed out.
        self.seen.values().copied().max().filter(|highest| *highest > last.saturating_add(1))
    }

    /// Decides on an assignment. `held` are the lives of this name on this host, stopping ones included.
    pub fn admit<'a>(&mut self, pod: &PodRef, held: impl IntoIterator<Item = &'a PodRef>) -> Admission {
        let key = (pod.namespace.clone(), pod.name.clone());
        let seen = self.seen.get(&key).copied().unwrap_or(0);
        let mut other = false;
        let mut same = None;
        for life in held {
            if life.uid == pod.uid {
                same = Some(life.epoch);
            } else {
                other = true;
            }
        }
        if let Some(epoch) = same {
            return if epoch == pod.epoch { Admission::Update } else { Admission::Refused { seen } };
        }
        // Equal is fine when the host holds nothing of that name: a reboot, or a lost answer.
        if pod.epoch < seen || (other && pod.epoch == seen) {
            return Admission::Refused { seen };
        }
        self.see(key, pod.epoch);
        if other { Admission::Behind } else { Admission::Start }
    }

    /// This life is over, and has been reported so: it is never started again, only a newer one is.
    pub fn ended(&mut self, pod: &PodRef) {
        let key = (pod.namespace.clone(), pod.name.clone());
        let next = pod.epoch.saturating_add(1);
        if self.seen.get(&key).is_none_or(|seen| *seen < next) {
            self.see(key, next);
        }
    }

    fn see(&mut self, key: (String, String), epoch: u64) {
        self.seen.insert(key, epoch);
        if self.seen.len() > NAMES {
            // The longest ago: an assignment that old cannot still be on its way.
            let oldest = self.seen.iter().min_by_key(|(_, epoch)| **epoch).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.seen.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn life(uid: &str, epoch: u64) -> PodRef {
        PodRef { namespace: "default".into(), name: "web-0".into(), uid: uid.into(), epoch }
    }

    #[test]
    fn nothing_older_than_seen_is_started() {
        let mut fence = Fence::default();
        assert_eq!(fence.admit(&life("b", 7), []), Admission::Start);
        assert_eq!(fence.admit(&life("a", 6), []), Admission::Refused { seen: 7 });
        assert_eq!(fence.admit(&life("c", 8), []), Admission::Start);
    }

    #[test]
    fn the_same_name_with_another_uid_waits_for_the_former() {
        let mut fence = Fence::default();
        fence.admit(&life("a", 1), []);
        let former = life("a", 1);
        assert_eq!(fence.admit(&life("b", 2), [&former]), Admission::Behind);
        assert_eq!(fence.admit(&life("c", 1), [&former]), Admission::Refused { seen: 2 });
        assert_eq!(fence.admit(&life("a", 1), [&former]), Admission::Update);
    }

    #[test]
    fn the_same_life_may_be_assigned_again_after_a_reboot() {
        let mut fence = Fence::default();
        fence.admit(&life("a", 3), []);
        assert_eq!(fence.admit(&life("a", 3), []), Admission::Start);
    }

    #[test]
    fn what_has_been_reported_as_ended_is_not_started_again() {
        let mut fence = Fence::default();
        fence.admit(&life("a", 3), []);
        fence.ended(&life("a", 3));
        assert_eq!(fence.admit(&life("a", 3), []), Admission::Refused { seen: 4 });
        assert_eq!(fence.admit(&life("b", 4), []), Admission::Start);
        fence.ended(&life("a", 1));
        assert_eq!(fence.admit(&life("b", 4), []), Admission::Start);
    }

    #[test]
    fn a_controller_that_knows_of_all_lives_is_no_restored_one() {
        let mut fence = Fence::default();
        assert_eq!(fence.ahead_of(0), None);
        fence.admit(&life("a", 7), []);
        assert_eq!(fence.ahead_of(7), None);
        assert_eq!(fence.ahead_of(5), Some(7));
        // Its last life has ended.
        fence.ended(&life("a", 7));
        assert_eq!(fence.ahead_of(7), None);
        assert_eq!(fence.ahead_of(6), Some(8));
    }

    #[test]
    fn another_life_with_the_same_epoch_is_refused_while_one_is_held() {
        let mut fence = Fence::default();
        fence.admit(&life("a", 3), []);
        let held = life("a", 3);
        assert_eq!(fence.admit(&life("b", 3), [&held]), Admission::Refused { seen: 3 });
    }

    proptest! {
        #[test]
        fn started_epochs_never_decrease(epochs in prop::collection::vec(0u64..20, 1..50)) {
            let mut fence = Fence::default();
            let mut highest = 0;
            for (n, epoch) in epochs.into_iter().enumerate() {
                if fence.admit(&life(&n.to_string(), epoch), []) == Admission::Start {
                    prop_assert!(epoch >= highest);
                    highest = epoch;
                }
            }
        }
    }
}
