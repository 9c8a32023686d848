//! Bugs of Kubernetes that are none here. Each test is a history that is lived through under both rules, and says what
//! becomes of it under Kubernetes': there the same expectation fails.

use super::kubernetes::Rule;
use super::*;

/// The same history under Kubernetes' rule and under Berth's.
fn both(start: impl Fn() -> World, history: impl Fn(&mut World)) -> [World; 2] {
    [Rule::Kubernetes, Rule::Berth].map(|rule| {
        let mut world = start();
        world.rule = rule;
        history(&mut world);
        world
    })
}

/// "StatefulSet - can't rollback from a broken state": Kubernetes waits for the broken pod to become Ready before it
/// looks at what the template says by now; a person has to delete the pod.
#[test]
fn issue_67250_a_broken_revision_is_left_by_changing_the_template_again() {
    for next in [0, 2] {
        let [kubernetes, berth] = both(
            || World::ready(3),
            |world| {
                world.template(4);
                world.settle();
                assert_eq!(world.images(), ["v0", "v0", "v4"], "it has got as far as it can");
                world.template(next);
                world.settle();
            },
        );
        assert_eq!(kubernetes.images(), ["v0", "v0", "v4"], "for ever");
        assert_eq!(berth.images(), vec![format!("v{next}"); 3]);
        let status = &berth.set["status"];
        assert_eq!(status["currentRevision"], status["updateRevision"]);
    }
}

/// "StatefulSet update stuck at the previous error": the broken pod does not even run, since its image cannot be had;
/// Kubernetes goes on trying to pull it after the image was corrected.
#[test]
fn issue_141095_a_pod_whose_image_cannot_be_had_is_replaced_when_the_image_is_corrected() {
    let [kubernetes, berth] = both(
        || World::ready(3),
        |world| {
            world.template(4);
            world.reconcile(None);
            world.stopped("web-2");
            world.reconcile(None);
            world.pods.get_mut("web-2").unwrap()["status"] = json!({
                "phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}],
            });
            world.template(1);
            world.settle();
        },
    );
    assert_eq!(kubernetes.images(), ["v0", "v0", "v4"], "for ever");
    assert_eq!(berth.images(), ["v1"; 3]);
}

/// "Cannot scale down statefulset if pods keep CrashLoopBackOff": Kubernetes waits for each lower pod to be Ready before
/// it deletes the highest, also where none of them ever will be.
#[test]
fn issue_57865_pods_that_never_became_ready_are_removed_when_scaling_to_zero() {
    let [kubernetes, berth] = both(
        || World::ready(2),
        |world| {
            for name in ["web-0", "web-1"] {
                world.sick.insert(name.to_owned());
                world.crashes(name);
            }
            world.scale(0);
            world.settle();
        },
    );
    assert_eq!(kubernetes.names(), ["web-0", "web-1"], "for ever");
    assert_eq!(berth.names(), [""; 0]);
}

/// "Scale in StatefulSet at an arbitrary position": in Kubernetes it is always the highest ordinal that goes, whichever
/// host is to be freed.
#[test]
fn issue_83224_any_one_ordinal_can_go_and_the_others_stay_as_they_are() {
    let [kubernetes, berth] = both(
        || World::ready(3),
        |world| {
            let before = world.uids();
            world.take(&Step::Asks(annotations::RESERVE_ORDINALS, Some("1")));
            world.scale(2);
            world.settle();
            assert!(world.uids().iter().all(|uid| before.contains(uid)), "who stays is not restarted");
        },
    );
    assert_eq!(kubernetes.names(), ["web-0", "web-1"]);
    assert_eq!(berth.names(), ["web-0", "web-2"]);
    assert_eq!(berth.claims.len(), 3, "the data of web-1 is kept");
}

/// "StatefulSet with podManagementPolicy: Parallel should create pods in parallel": Kubernetes made one pod after the
/// other, a request each (six a second in a large cluster; since 1.28 in batches, still a request each). Here one
/// plan has them all, and the loop makes them in one write (see the loop's test of the same number).
#[test]
fn issue_117071_one_plan_makes_all_pods_of_a_parallel_set() {
    let mut world = World::new(true, 0, 50);
    world.reconcile(None);
    assert_eq!(world.names().len(), 50);
    assert_eq!(world.set["status"]["replicas"], 50, "and says so in the same write");
}

/// "StatefulSet: support resize pvc storage" (KEP-4650): in Kubernetes the edit is refused, and where it is not, no claim
/// follows it.
#[test]
fn issue_68737_a_larger_request_reaches_the_claims_that_are_there_and_restarts_no_pod() {
    let [kubernetes, berth] = both(claims::bound, |world| {
        let before = world.uids();
        claims::templates(world, |t| t[0]["spec"] = claims::request("2Gi"));
        world.settle();
        assert_eq!(world.uids(), before);
    });
    assert_eq!(claims::requests(&kubernetes), ["1Gi", "1Gi"]);
    assert_eq!(claims::requests(&berth), ["2Gi", "2Gi"]);
}
