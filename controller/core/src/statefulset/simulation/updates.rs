//! Updates, one rule a test.

use super::*;

impl World {
    fn partition(&mut self, n: u32) {
        self.take(&Step::Partition(n));
    }

    fn max_unavailable(&mut self, value: Value) {
        self.take(&Step::MaxUnavailable(value));
    }

    /// A pod's containers run, but it does not become Ready.
    fn runs(&mut self, name: &str) {
        self.pods.get_mut(name).unwrap()["status"]["phase"] = "Running".into();
        self.condition(name, false);
        let ready = &mut self.pods.get_mut(name).unwrap()["status"]["conditions"][1];
        ready["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
    }

    /// The outdated pod is replaced, and the new one runs.
    fn replace(&mut self, name: &str) {
        self.reconcile(None);
        self.stopped(name);
        self.reconcile(None);
        self.runs(name);
    }

    fn status(&self, field: &str) -> Value {
        self.plan().status[field].clone()
    }

    /// A revision that never becomes Ready has got as far as it can: to the highest ordinal.
    fn stuck(replicas: u32) -> World {
        let mut world = World::ready(replicas);
        world.template(4);
        world.settle();
        assert_eq!(world.images().last(), Some(&"v4"));
        world
    }
}

#[test]
fn an_update_goes_from_the_highest_down_each_ready_before_the_next() {
    let mut world = World::ready(3);
    world.template(1);
    for name in ["web-2", "web-1", "web-0"] {
        assert_eq!(world.replaced(), [name]);
        world.replace(name);
        assert_eq!(world.image(name), "v1");
        assert_eq!(world.replaced(), [""; 0], "{name} is not ready yet");
        world.condition(name, true);
    }
    assert_eq!(world.replaced(), [""; 0]);
}

#[test]
fn a_replaced_pod_is_available_before_the_next_goes() {
    let mut world = World::new(false, 10, 2);
    world.settle();
    world.template(1);
    world.replace("web-1");
    world.condition("web-1", true);
    assert_eq!(world.replaced(), [""; 0], "ready, but not for long enough");
    assert_eq!(world.plan().wake_at, Some(world.now + SignedDuration::from_secs(10)));
    world.take(&Step::Passes(10));
    assert_eq!(world.replaced(), ["web-0"]);
}

#[test]
fn the_status_is_right_at_every_step_and_the_end_moves_the_current_revision() {
    let mut world = World::ready(2);
    let first = world.status("currentRevision");
    world.template(1);
    let counts = |world: &World| {
        ["replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"]
            .map(|field| world.status(field).as_u64().unwrap_or_default())
    };
    assert_eq!(counts(&world), [2, 2, 2, 2, 0]);
    let second = world.status("updateRevision");
    assert_ne!(first, second);
    world.reconcile(None);
    assert_eq!(counts(&world), [2, 2, 2, 1, 0], "web-1 terminates, and is of no revision");
    world.stopped("web-1");
    assert_eq!(counts(&world), [2, 1, 1, 1, 1], "with the pod that this very plan makes");
    world.reconcile(None);
    world.take(&Step::Runs(1));
    world.condition("web-1", true);
    assert_eq!(counts(&world), [2, 2, 2, 1, 1]);
    assert_eq!([world.status("currentRevision"), world.status("updateRevision")], [first, second.clone()]);
    world.settle();
    assert_eq!(counts(&world), [2, 2, 2, 2, 2]);
    assert_eq!([world.status("currentRevision"), world.status("updateRevision")], [second.clone(), second]);
    assert_eq!(world.status("collisionCount"), 0);
}

#[test]
fn below_the_partition_nothing_is_replaced_and_lowering_it_goes_on() {
    let mut world = World::ready(4);
    world.partition(3);
    world.template(1);
    world.settle();
    assert_eq!(world.images(), ["v0", "v0", "v0", "v1"], "a canary");
    assert_ne!(world.status("currentRevision"), world.status("updateRevision"));
    world.partition(1);
    world.settle();
    assert_eq!(world.images(), ["v0", "v1", "v1", "v1"]);
    world.partition(0);
    world.settle();
    assert_eq!(world.images(), ["v1"; 4]);
    assert_eq!(world.status("currentRevision"), world.status("updateRevision"));
}

#[test]
fn a_pod_that_dies_comes_back_at_the_revision_of_its_side_of_the_partition() {
    let mut world = World::ready(3);
    world.partition(2);
    world.template(1);
    world.settle();
    for name in ["web-0", "web-2"] {
        world.delete_pod(name);
        world.settle();
    }
    assert_eq!(world.images(), ["v0", "v0", "v1"]);
}

#[test]
fn a_partition_counts_from_the_first_ordinal() {
    let mut world = World::new(false, 0, 3);
    world.take(&Step::Start(5));
    world.settle();
    world.partition(2);
    world.template(1);
    world.settle();
    assert_eq!(world.images(), ["v0", "v0", "v1"]);
}

#[test]
fn as_many_as_max_unavailable_are_replaced_at_once_with_either_policy() {
    for parallel in [false, true] {
        for (max_unavailable, first) in [
            (json!(2), vec!["web-4", "web-3"]),
            (json!("60%"), vec!["web-4", "web-3", "web-2"]),
            (json!("1%"), vec!["web-4"]),
        ] {
            let mut world = World::new(parallel, 0, 5);
            world.max_unavailable(max_unavailable);
            world.settle();
            world.template(1);
            assert_eq!(world.replaced(), first);
            world.reconcile(None);
            assert_eq!(world.replaced(), [""; 0], "these are under way");
            world.settle();
            assert_eq!(world.images(), ["v1"; 5]);
        }
    }
}

#[test]
fn with_max_unavailable_the_next_goes_as_soon_as_one_is_available() {
    let mut world = World::ready(4);
    world.max_unavailable(json!(2));
    world.template(1);
    world.reconcile(None);
    world.stopped("web-3");
    world.stopped("web-2");
    world.reconcile(None);
    world.runs("web-2");
    world.condition("web-2", true);
    assert!(!world.names().contains(&"web-3".to_owned()));
    assert_eq!(world.replaced(), ["web-1"], "though web-3 is only being made");
}

#[test]
fn what_is_unavailable_for_another_reason_counts() {
    let mut world = World::new(true, 0, 3);
    world.settle();
    world.partition(1);
    world.template(1);
    world.condition("web-0", false);
    assert_eq!(world.replaced(), [""; 0], "web-0 is below the partition and is waited for");
    world.condition("web-0", true);
    assert_eq!(world.replaced(), ["web-2"]);
}

#[test]
fn on_delete_only_what_a_person_deletes_is_updated() {
    let mut world = World::ready(2);
    let before = world.status("currentRevision");
    world.take(&Step::OnDelete);
    world.template(1);
    world.settle();
    assert_eq!(world.images(), ["v0", "v0"]);
    world.delete_pod("web-0");
    world.settle();
    assert_eq!(world.images(), ["v1", "v0"]);
    assert_eq!(world.status("updatedReplicas"), 1);
    assert_eq!(world.status("currentRevision"), before);
}

#[test]
fn scaling_comes_before_updating() {
    let mut world = World::ready(3);
    world.template(1);
    world.scale(2);
    assert_eq!(world.deletions(), ["web-2"]);
    assert_eq!(world.replaced(), [""; 0]);
    world.reconcile(None);
    world.stopped("web-2");
    assert_eq!(world.replaced(), ["web-1"]);
}

#[test]
fn a_new_pod_of_a_growing_set_is_of_the_new_revision() {
    let mut world = World::ready(1);
    world.template(1);
    world.scale(2);
    world.reconcile(None);
    assert_eq!(world.images(), ["v0", "v1"]);
}

#[test]
fn without_the_images_the_old_pods_run_on() {
    let mut world = World::ready(2);
    world.template(1);
    world.images = false;
    world.reconcile(None);
    assert!(!world.reconcile(None));
    assert_eq!(world.images(), ["v0", "v0"]);
    world.template(2);
    world.settle();
    assert_eq!(world.images(), ["v2", "v2"], "v1 was never started");
}

#[test]
fn a_set_whose_first_template_is_broken_is_healed_by_a_good_one() {
    for parallel in [false, true] {
        let mut world = World::new(parallel, 0, 3);
        world.template(4);
        world.settle();
        assert_eq!(world.names().len(), if parallel { 3 } else { 1 });
        world.template(1);
        world.settle();
        assert_eq!(world.images(), ["v1"; 3]);
    }
}

/// Nothing that is available is given up for it, so there is nothing to wait for. (Waiting for the first to
/// be Ready would be for ever where readiness needs a quorum.)
#[test]
fn all_pods_that_never_were_ready_are_replaced_at_once() {
    let mut world = World::new(true, 0, 3);
    world.template(4);
    world.settle();
    world.template(1);
    assert_eq!(world.replaced(), ["web-2", "web-1", "web-0"]);
}

#[test]
fn a_broken_pod_stays_as_long_as_the_template_does() {
    let world = World::stuck(2);
    assert!(world.plan().actions.is_empty());
}

#[test]
fn pods_that_run_and_lost_their_readiness_are_replaced_one_after_the_other() {
    let mut world = World::new(true, 0, 3);
    world.settle();
    for name in ["web-0", "web-1", "web-2"] {
        world.condition(name, false);
    }
    world.template(1);
    assert_eq!(world.replaced(), ["web-2"]);
    world.replace("web-2");
    assert_eq!(world.replaced(), [""; 0], "web-1 may recover, and may be needed");
    world.condition("web-2", true);
    assert_eq!(world.replaced(), ["web-1"]);
}

#[test]
fn in_an_ordered_set_a_pod_that_could_not_come_back_yet_is_not_taken() {
    let mut world = World::ready(3);
    world.condition("web-0", false);
    world.condition("web-2", false);
    world.template(1);
    assert_eq!(world.replaced(), ["web-0"], "web-2 could not be made again before web-0 is ready");
    world.settle();
    assert_eq!(world.images(), ["v1"; 3]);
}

#[test]
fn below_the_partition_a_broken_pod_of_a_forgotten_revision_returns_to_the_current_one() {
    let mut world = World::stuck(3);
    world.scale(4);
    world.partition(3);
    world.template(1);
    assert_eq!(world.replaced(), ["web-2"]);
    world.settle();
    assert_eq!(world.images(), ["v0", "v0", "v0", "v1"]);
}
