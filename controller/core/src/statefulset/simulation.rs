//! The plan carried out in a small world with random pods, failures, interruptions and people, and what must
//! hold in it whatever happens.
//!
//! - [`world`]: the set, what happens to it, and the carrying out;
//! - [`oracle`]: what must hold, said a second time;
//! - [`histories`]: random ones;
//! - [`bugs`]: Kubernetes' bugs that are none here, each beside what Kubernetes' rule ([`kubernetes`]) makes of it;
//! - the rest: one rule a test; below, those of scaling and of belonging.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

mod bugs;
mod claims;
mod histories;
mod kubernetes;
mod oracle;
mod progress;
mod updates;
mod world;

use super::*;
use crate::object;
use world::{Step, World};

#[test]
fn pods_are_created_in_order_each_after_the_one_before_is_ready() {
    let mut world = World::new(false, 0, 3);
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0"]);
    assert_eq!(world.set["status"]["replicas"], 1, "the status says so in the same write");
    assert!(!world.reconcile(None), "nothing to do until web-0 is ready");
    world.take(&Step::Runs(0));
    assert!(!world.reconcile(None));
    world.take(&Step::Ready(0));
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0", "web-1"]);
    assert!(world.claims.contains_key("data-web-0") && world.claims.contains_key("data-web-1"));
}

#[test]
fn a_parallel_set_creates_and_deletes_all_at_once() {
    let mut world = World::new(true, 0, 4);
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0", "web-1", "web-2", "web-3"]);
    world.scale(1);
    assert_eq!(world.deletions(), ["web-3", "web-2", "web-1"]);
}

#[test]
fn a_pod_is_available_after_min_ready_seconds_and_that_wakes_the_loop() {
    let mut world = World::new(false, 10, 2);
    world.reconcile(None);
    world.take(&Step::Runs(0));
    world.take(&Step::Ready(0));
    let plan = world.plan();
    assert!(plan.actions.is_empty());
    assert_eq!(plan.wake_at, Some(world.now + SignedDuration::from_secs(10)));
    assert_eq!((&plan.status["readyReplicas"], &plan.status["availableReplicas"]), (&json!(1), &json!(0)));
    world.take(&Step::Passes(10));
    world.reconcile(None);
    assert_eq!(world.names(), ["web-0", "web-1"]);
}

#[test]
fn scaling_down_goes_from_the_highest_one_at_a_time() {
    let mut world = World::ready(4);
    world.scale(1);
    assert_eq!(world.deletions(), ["web-3"]);
    world.reconcile(None);
    assert_eq!(world.deletions(), [""; 0], "web-3 is not gone yet");
    world.stopped("web-3");
    assert_eq!(world.deletions(), ["web-2"]);
}

#[test]
fn scaling_down_waits_for_an_unhealthy_lower_ordinal() {
    let mut world = World::ready(3);
    world.condition("web-0", false);
    world.scale(1);
    assert_eq!(world.deletions(), [""; 0]);
    world.condition("web-0", true);
    assert_eq!(world.deletions(), ["web-2"]);
}

#[test]
fn a_condemned_pods_own_unreadiness_never_delays_its_deletion() {
    let mut world = World::ready(3);
    world.condition("web-1", false);
    world.condition("web-2", false);
    world.scale(1);
    assert_eq!(world.deletions(), ["web-2"]);
    world.reconcile(None);
    world.stopped("web-2");
    assert_eq!(world.deletions(), ["web-1"]);
}

/// As Kubernetes' conformance test "Scaling should happen in predictable order and halt if any stateful pod
/// is unhealthy" wants it.
#[test]
fn scaling_to_zero_halts_while_all_members_are_alive_but_lost_their_readiness() {
    let mut world = World::ready(3);
    for name in ["web-0", "web-1", "web-2"] {
        world.condition(name, false);
    }
    world.scale(0);
    assert_eq!(world.deletions(), [""; 0]);
    world.condition("web-2", true);
    assert_eq!(world.deletions(), ["web-2"]);
}

#[test]
fn a_terminating_pod_is_never_treated_as_missing() {
    for parallel in [false, true] {
        let mut world = World::new(parallel, 0, 2);
        world.settle();
        world.delete_pod("web-0");
        assert!(world.plan().actions.is_empty());
        world.stopped("web-0");
        world.reconcile(None);
        assert_eq!(world.names(), ["web-0", "web-1"]);
    }
}

#[test]
fn a_pod_that_ended_is_deleted_and_made_again_with_its_claim() {
    let mut world = World::ready(2);
    let uid = object::uid(&world.pods["web-0"]).to_owned();
    world.take(&Step::Ends(0));
    world.settle();
    let again = &world.pods["web-0"];
    assert_ne!(object::uid(again), uid);
    assert_eq!(again["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-0");
    assert_eq!(world.claims.len(), 2);
}

#[test]
fn below_the_partition_a_replaced_pod_gets_the_current_revision() {
    let mut world = World::ready(2);
    world.take(&Step::Partition(1));
    world.take(&Step::Template(1));
    world.delete_pod("web-0");
    world.delete_pod("web-1");
    world.settle();
    assert_eq!(world.pods["web-0"]["spec"]["containers"][0]["image"], "v0");
    assert_eq!(world.pods["web-1"]["spec"]["containers"][0]["image"], "v1");
}

#[test]
fn scaling_to_none_and_moving_the_start_keep_every_claim() {
    let mut world = World::ready(3);
    world.scale(0);
    world.settle();
    world.take(&Step::Start(2));
    world.scale(2);
    world.settle();
    assert_eq!(world.names(), ["web-2", "web-3"]);
    assert_eq!(world.claims.len(), 4);
}

#[test]
fn a_pod_whose_labels_stop_matching_is_released_and_a_matching_orphan_is_adopted() {
    let mut world = World::ready(1);
    world.take(&Step::PersonRelabels(0));
    world.reconcile(None);
    assert!(object::controller_ref(&world.pods["web-0"]).is_none());
    assert!(matches!(&world.plan().actions[..], [Action::CannotCreate { .. }]), "its name is taken");
    world.take(&Step::PersonRelabels(0));
    world.reconcile(None);
    assert!(object::controller_ref(&world.pods["web-0"]).is_some());
    assert!(world.plan().actions.is_empty());
}

#[test]
fn a_set_made_again_adopts_its_orphans_and_restarts_none() {
    let mut world = World::ready(2);
    let before = world.uids();
    world.take(&Step::PersonOrphansPods);
    assert!(world.pods.values().all(|p| object::controller_ref(p).is_none()));
    world.settle();
    assert_eq!(world.uids(), before);
    assert!(
        world.pods.values().all(|p| object::controller_ref(p).unwrap()["uid"] == *object::uid(&world.set))
    );
    assert_eq!(world.revisions.len(), 1);
}

#[test]
fn a_set_that_is_being_deleted_only_keeps_its_status() {
    let mut world = World::ready(2);
    world.set["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into();
    world.pods.remove("web-1");
    let plan = world.plan();
    assert!(plan.actions.is_empty());
    assert_eq!(plan.status["replicas"], 1);
}

#[test]
fn the_claim_that_a_pending_pod_lacks_is_created() {
    let mut world = World::new(false, 0, 1);
    world.reconcile(None);
    world.claims.clear();
    world.reconcile(None);
    assert!(world.claims.contains_key("data-web-0"));
}
