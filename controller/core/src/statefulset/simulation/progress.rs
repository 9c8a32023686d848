//! Deadlines and the way back; who owns claims; reserved ordinals.

use super::*;

impl World {
    fn asking(replicas: u32, auto_rollback: bool) -> World {
        let mut world = World::new(false, 0, replicas);
        world.set["metadata"]["annotations"] = json!({
            annotations::PROGRESS_DEADLINE: "60", annotations::AUTO_ROLLBACK: auto_rollback.to_string(),
        });
        world.settle();
        world
    }

    fn said(&self, kind: &str) -> Value {
        let conditions = self.set["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().find(|c| c["type"] == kind).cloned().unwrap_or_default()
    }

    fn progressing(&self) -> [String; 2] {
        ["status", "reason"].map(|f| self.said("Progressing")[f].as_str().unwrap_or_default().to_owned())
    }

    fn rejected(&self) -> Option<&str> {
        object::annotation(&self.set, annotations::REJECTED_REVISION)
    }

    /// `web-1` is replaced by a pod that does not become Ready.
    fn breaks(&mut self) {
        self.take(&Step::Template(4));
        self.reconcile(None);
        self.stopped("web-1");
        self.reconcile(None);
        self.reconcile(None);
    }

    fn owner(&self, claim: &str) -> Option<(&str, &str)> {
        let owner = object::controller_ref(&self.claims[claim])?;
        Some((owner["kind"].as_str()?, owner["name"].as_str()?))
    }
}

#[test]
fn a_set_that_does_not_ask_has_no_condition() {
    let world = World::ready(1);
    assert_eq!(world.set["status"]["conditions"], Value::Null);
}

#[test]
fn a_roll_out_is_told_while_it_lasts_and_when_it_is_done() {
    let mut world = World::asking(2, false);
    assert_eq!(world.progressing(), ["True", "NewRevisionAvailable"]);
    world.take(&Step::Template(1));
    world.reconcile(None);
    assert_eq!(world.progressing(), ["True", "RollingOut"]);
    world.settle();
    assert_eq!(world.progressing(), ["True", "NewRevisionAvailable"]);
    // What happens to a pod later is no matter of the roll-out.
    world.condition("web-1", false);
    world.take(&Step::Passes(1000));
    world.reconcile(None);
    assert_eq!(world.progressing(), ["True", "NewRevisionAvailable"]);
}

#[test]
fn a_pod_that_is_not_ready_in_time_stops_the_roll_out_and_time_alone_tells() {
    let mut world = World::asking(2, false);
    world.breaks();
    assert_eq!(world.plan().wake_at, Some(world.now + SignedDuration::from_secs(60)));
    world.take(&Step::Passes(59));
    world.reconcile(None);
    assert_eq!((world.progressing()[0].as_str(), &world.told[..]), ("True", &[][..]));
    world.take(&Step::Passes(1));
    world.reconcile(None);
    world.reconcile(None);
    assert_eq!(world.progressing(), ["False", "ProgressDeadlineExceeded"]);
    assert_eq!(world.told, ["ProgressDeadlineExceeded"], "once");
    let message = world.said("Progressing")["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("pod web-1 of revision web-") && message.contains("not Ready in 60 s"),
        "{message}"
    );
    assert_eq!(world.rejected(), None);
    world.take(&Step::Runs(1));
    world.condition("web-1", true);
    world.reconcile(None);
    assert_eq!(world.progressing(), ["True", "RollingOut"], "late is better than never");
}

#[test]
fn with_auto_rollback_the_pods_return_and_the_revision_is_not_tried_again() {
    let mut world = World::asking(2, true);
    let current = world.set["status"]["currentRevision"].clone();
    world.breaks();
    let update = world.set["status"]["updateRevision"].as_str().unwrap().to_owned();
    world.take(&Step::Passes(60));
    world.settle();
    assert_eq!(world.images(), ["v0", "v0"]);
    assert_eq!(world.rejected(), Some(update.as_str()));
    assert_eq!(world.told, ["RevisionRejected", "ProgressDeadlineExceeded"]);
    assert_eq!(world.said("RevisionRejected")["status"], "True");
    assert_eq!(world.progressing(), ["False", "ProgressDeadlineExceeded"]);
    let status = &world.set["status"];
    assert_eq!([&status["currentRevision"], &status["updateRevision"]], [&current, &update.clone().into()]);
    assert_eq!([&status["currentReplicas"], &status["updatedReplicas"]], [&json!(2), &Value::Null]);
    assert_eq!(
        world.set["spec"]["template"]["spec"]["containers"][0]["image"], "v4",
        "the spec is the user's"
    );
    // Neither time nor a pod's death tries it again.
    world.take(&Step::Passes(10_000));
    world.delete_pod("web-1");
    world.settle();
    assert_eq!(world.images(), ["v0", "v0"]);
    // Another template does.
    world.take(&Step::Template(1));
    world.settle();
    assert_eq!(world.images(), ["v1", "v1"]);
    assert_eq!((world.rejected(), world.said("RevisionRejected")), (None, Value::Null));
    assert_eq!(world.progressing(), ["True", "NewRevisionAvailable"]);
}

/// What was given up stays given up, also if all pods are at it and Ready before one could return.
#[test]
fn a_rejected_revision_that_is_ready_too_late_does_not_become_the_current_one() {
    let mut world = World::asking(1, true);
    let current = world.set["status"]["currentRevision"].clone();
    world.template(1);
    world.reconcile(None);
    world.stopped("web-0");
    world.reconcile(None);
    world.take(&Step::Runs(0));
    world.images = false;
    world.take(&Step::Passes(60));
    world.reconcile(None);
    assert!(world.rejected().is_some());
    world.condition("web-0", true);
    world.reconcile(None);
    assert_eq!(world.set["status"]["currentRevision"], current);
    world.settle();
    assert_eq!(world.images(), ["v0"]);
}

#[test]
fn without_a_revision_that_was_ready_there_is_no_way_back() {
    let mut world = World::new(false, 0, 2);
    world.set["metadata"]["annotations"] = json!({annotations::AUTO_ROLLBACK: "true"});
    world.take(&Step::Template(4));
    world.reconcile(None);
    world.take(&Step::Template(5));
    world.settle();
    assert_eq!(
        world.progressing(),
        ["False", "ProgressDeadlineExceeded"],
        "after the default of ten minutes"
    );
    assert_eq!(world.rejected(), None);
    assert_eq!(world.images(), ["v5"]);
}

/// Only what works is spared: what is broken already, of whatever revision, is replaced (or made again) as ever.
#[test]
fn a_roll_out_that_has_stopped_still_frees_what_is_broken() {
    let mut world = World::asking(4, false);
    world.template(4);
    world.settle();
    assert_eq!(world.images(), ["v0", "v0", "v0", "v4"], "web-3 was late, and nobody follows it");
    assert_eq!(world.progressing(), ["False", "ProgressDeadlineExceeded"]);
    assert_eq!(world.replaced(), [""; 0]);
    // Of the old revision, and it will not be made again before web-0 is Ready.
    world.take(&Step::Ends(2));
    world.condition("web-0", false);
    assert_eq!(world.replaced(), ["web-2"]);
    world.reconcile(None);
    world.stopped("web-2");
    assert_eq!(world.replaced(), [""; 0], "web-0 runs, and may recover");
    world.condition("web-0", true);
    world.reconcile(None);
    assert_eq!(world.image("web-2"), "v4", "who comes back is of the new revision, as above any partition");
}

#[test]
fn a_roll_out_that_has_stopped_takes_no_pod_that_works_though_more_might_be_unavailable() {
    let mut world = World::asking(4, false);
    world.template(1);
    world.reconcile(None);
    world.stopped("web-3");
    world.reconcile(None);
    world.take(&Step::Runs(3));
    world.reconcile(None);
    world.take(&Step::MaxUnavailable(json!(2)));
    assert_eq!(world.replaced(), ["web-2"]);
    world.take(&Step::Passes(60));
    assert_eq!(world.replaced(), [""; 0], "web-3 is late");
    world.condition("web-3", true);
    assert_eq!(world.replaced(), ["web-2", "web-1"], "late is better than never");
}

/// Nothing is put at risk any more.
#[test]
fn a_set_that_goes_gives_no_revision_up() {
    let mut world = World::asking(2, true);
    world.breaks();
    world.take(&Step::PersonDeletesSet);
    world.take(&Step::Passes(1000));
    world.reconcile(None);
    assert_eq!(world.progressing(), ["True", "RollingOut"], "as it was");
    assert_eq!((world.rejected(), &world.told[..]), (None, &[][..]));
}

/// `kubectl wait --for=condition=Progressing` works with either strategy; but who deletes the pods decides when, and
/// what becomes of them.
#[test]
fn on_delete_the_pods_that_came_back_have_a_deadline_and_those_that_wait_for_a_person_have_none() {
    let mut world = World::asking(2, true);
    world.take(&Step::OnDelete);
    world.template(4);
    world.take(&Step::Passes(1000));
    world.reconcile(None);
    world.take(&Step::Passes(1000));
    world.reconcile(None);
    assert_eq!(world.progressing(), ["True", "RollingOut"]);
    let message = world.said("Progressing")["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("0 pods are of revision") && message.contains("when somebody deletes them"),
        "{message}"
    );
    world.delete_pod("web-1");
    world.settle();
    assert_eq!(world.images(), ["v0", "v4"]);
    assert_eq!(world.progressing(), ["False", "ProgressDeadlineExceeded"]);
    assert_eq!(world.told, ["ProgressDeadlineExceeded"]);
    assert_eq!(world.rejected(), None, "nothing returns by itself");
    world.template(1);
    for pod in ["web-0", "web-1"] {
        world.delete_pod(pod);
        world.settle();
    }
    assert_eq!(world.progressing(), ["True", "NewRevisionAvailable"]);
}

#[test]
fn a_roll_out_that_waits_for_images_is_late_until_that_pod_makes_way_whoever_waits_beside_it() {
    let mut world = World::asking(3, false);
    world.take(&Step::MaxUnavailable(json!(2)));
    world.images = false;
    world.template(1);
    world.reconcile(None);
    world.reconcile(None);
    world.take(&Step::Passes(61));
    world.reconcile(None);
    let late = world.said("Progressing");
    assert!(late["message"].as_str().unwrap().starts_with("pod web-2 could not make way"), "{late}");
    world.crashes("web-1");
    assert_eq!(world.replaced(), ["web-1", "web-2"], "another one comes before it now");
    world.take(&Step::Passes(1));
    world.reconcile(None);
    assert_eq!(world.said("Progressing"), late);
    world.settle();
    assert_eq!(world.progressing(), ["True", "NewRevisionAvailable"]);
}

#[test]
fn images_that_cannot_be_had_miss_the_deadline_too() {
    let mut world = World::asking(2, true);
    world.images = false;
    world.take(&Step::Template(1));
    world.reconcile(None);
    world.reconcile(None);
    world.take(&Step::Passes(59));
    world.reconcile(None);
    assert_eq!(world.progressing(), ["True", "RollingOut"]);
    world.take(&Step::Passes(2));
    world.reconcile(None);
    assert!(world.rejected().is_some());
    assert!(
        world.said("Progressing")["message"].as_str().unwrap().contains("its images are not on its host")
    );
    world.settle();
    assert_eq!(world.images(), ["v0", "v0"]);
}

#[test]
fn by_default_a_claim_has_no_owner() {
    let mut world = World::ready(2);
    world.scale(1);
    world.settle();
    assert!(world.claims.values().all(|c| object::controller_ref(c).is_none()));
    assert_eq!(world.claims.len(), 2);
}

#[test]
fn when_deleted_the_set_owns_its_claims_also_those_that_were_there_before() {
    let mut world = World::ready(1);
    world.take(&Step::Retention(true, false));
    world.scale(2);
    world.settle();
    for claim in ["data-web-0", "data-web-1"] {
        assert_eq!(world.owner(claim), Some(("StatefulSet", "web")));
    }
    world.take(&Step::Retention(false, false));
    world.settle();
    assert!(world.claims.values().all(|c| object::controller_ref(c).is_none()));
}

#[test]
fn when_scaled_the_pod_that_goes_takes_its_claim_along() {
    for (when_deleted, kept) in [(false, None), (true, Some(("StatefulSet", "web")))] {
        let mut world = World::new(false, 0, 2);
        world.take(&Step::Retention(when_deleted, true));
        world.settle();
        assert_eq!(world.owner("data-web-1"), kept);
        world.scale(1);
        let actions = world.plan().actions;
        let owns = actions.iter().position(|a| matches!(a, Action::OwnClaim { .. }));
        let deletes = actions.iter().position(|a| matches!(a, Action::DeletePod { .. }));
        assert!(owns.unwrap() < deletes.unwrap(), "before it goes");
        world.reconcile(None);
        assert_eq!(world.owner("data-web-1"), Some(("Pod", "web-1")));
        assert_eq!(world.owner("data-web-0"), kept);
        // Wanted again before it is gone: the data stays.
        world.scale(2);
        world.reconcile(None);
        assert_eq!(world.owner("data-web-1"), kept);
    }
}

#[test]
fn no_pod_is_made_on_a_claim_that_goes_with_an_earlier_pod() {
    let mut world = World::new(false, 0, 2);
    world.take(&Step::Retention(false, true));
    world.settle();
    world.scale(1);
    world.reconcile(None);
    world.pods.remove("web-1");
    world.scale(2);
    assert!(matches!(&world.plan().actions[..], [Action::CannotCreate { .. }]));
    world.claims.remove("data-web-1");
    world.settle();
    assert_eq!(world.names(), ["web-0", "web-1"]);
}

#[test]
fn reserved_ordinals_are_left_out_and_nobody_else_is_renumbered() {
    let mut world = World::ready(3);
    let uid = object::uid(&world.pods["web-2"]).to_owned();
    world.set["metadata"]["annotations"] = json!({annotations::RESERVE_ORDINALS: "1,3-5"});
    world.settle();
    assert_eq!(world.names(), ["web-0", "web-2", "web-6"]);
    assert_eq!(object::uid(&world.pods["web-2"]), uid);
}
