use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn budget(spec: Value) -> Value {
    let mut budget = json!({
        "metadata": {"name": "web", "namespace": "shop", "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
    });
    for (field, value) in spec.as_object().unwrap() {
        budget["spec"][field] = value.clone();
    }
    budget
}

fn pods(healthy: usize, sick: usize) -> Vec<Pod> {
    let owner = Owner { kind: "StatefulSet".into(), name: "web".into(), uid: "u".into() };
    (0..healthy + sick)
        .map(|n| Pod {
            name: format!("web-{n}"),
            deleting: false,
            healthy: n < healthy,
            owner: Some(owner.clone()),
        })
        .collect()
}

fn counted(spec: Value, pods: &[Pod], scale: i64) -> (i64, i64, i64, i64) {
    let assessment = assess(&budget(spec), pods, &|_| Some(scale), at(0));
    let number = |field: &str| assessment.status[field].as_i64().unwrap();
    (number("currentHealthy"), number("desiredHealthy"), number("expectedPods"), number("disruptionsAllowed"))
}

#[test]
fn a_number_available_counts_the_pods_there_are() {
    assert_eq!(counted(json!({"minAvailable": 2}), &pods(3, 0), 9), (3, 2, 3, 1));
    assert_eq!(counted(json!({"minAvailable": 2}), &pods(1, 2), 9), (1, 2, 3, 0));
    assert_eq!(counted(json!({"minAvailable": 0}), &pods(0, 0), 9), (0, 0, 0, 0));
}

#[test]
fn a_percentage_or_a_number_unavailable_counts_what_the_set_is_to_have() {
    assert_eq!(counted(json!({"minAvailable": "50%"}), &pods(3, 0), 3), (3, 2, 3, 1));
    assert_eq!(counted(json!({"maxUnavailable": 1}), &pods(3, 0), 3), (3, 2, 3, 1));
    assert_eq!(counted(json!({"maxUnavailable": "30%"}), &pods(3, 0), 3), (3, 2, 3, 1));
    assert_eq!(counted(json!({"maxUnavailable": 1}), &pods(2, 0), 3), (2, 2, 3, 0), "one is missing already");
    assert_eq!(counted(json!({"maxUnavailable": 5}), &pods(3, 0), 3), (3, 0, 3, 3));
    assert_eq!(counted(json!({"maxUnavailable": 0}), &pods(3, 0), 3), (3, 3, 3, 0));
}

#[test]
fn pods_on_their_way_out_are_not_counted() {
    let mut three = pods(3, 0);
    three[0].deleting = true;
    assert_eq!(counted(json!({"maxUnavailable": 1}), &three, 3), (2, 2, 3, 0));
}

#[test]
fn pods_nobody_controls_are_told_of_and_those_of_an_unknown_controller_allow_nothing() {
    let mut mixed = pods(2, 0);
    mixed[0].owner = None;
    let most = budget(json!({"maxUnavailable": 1}));
    assert!(assess(&most, &mixed, &|_| Some(2), at(0)).unmanaged);
    let failed = assess(&most, &mixed, &|_| None, at(0));
    assert_eq!(failed.failure.as_deref(), Some("found no controllers for pod \"web-1\""));
    assert_eq!(failed.status["disruptionsAllowed"], 0);
    assert_eq!(failed.status["conditions"][0]["reason"], "SyncFailed");
    let least = budget(json!({"minAvailable": 1}));
    assert!(!assess(&least, &mixed, &|_| None, at(0)).unmanaged, "a number needs no controller");
}

#[test]
fn each_eviction_takes_one_of_the_disruptions_there_are() {
    let mut web = budget(json!({"maxUnavailable": 1}));
    web["status"] = assess(&web, &pods(3, 0), &|_| Some(3), at(0)).status;
    assert_eq!(web["status"]["conditions"][0]["status"], "True");
    web["status"] = take(&web, at(5)).unwrap();
    assert_eq!(web["status"]["disruptionsAllowed"], 0);
    assert_eq!(web["status"]["conditions"][0]["reason"], "InsufficientPods");
    assert_eq!(web["status"]["conditions"][0]["lastTransitionTime"], "2026-09-21T14:13:25Z");
    let refused = take(&web, at(6)).unwrap_err();
    assert_eq!((refused.code, refused.reason), (429, "TooManyRequests"));
    assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(
        refused.details,
        json!({"causes": [{"reason": "DisruptionBudget",
            "message": "The disruption budget web needs 2 healthy pods and has 3 currently"}]})
    );
}

#[test]
fn a_budget_whose_change_was_not_counted_yet_grants_nothing() {
    let mut web = budget(json!({"maxUnavailable": 1}));
    web["status"] = assess(&web, &pods(3, 0), &|_| Some(3), at(0)).status;
    web["metadata"]["generation"] = json!(2);
    let refused = take(&web, at(1)).unwrap_err();
    assert_eq!(refused.code, 429);
    assert_eq!(refused.details["retryAfterSeconds"], 10);
    assert_eq!(
        refused.details["causes"][0]["message"],
        "The disruption budget web is still being processed by the server."
    );
}

fn pod(phase: &str, ready: bool) -> Value {
    json!({
        "metadata": {"name": "web-0", "labels": {"app": "web"}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

#[test]
fn what_an_eviction_needs() {
    let web = [budget(json!({"maxUnavailable": 1}))];
    assert_eq!(needs(&pod("Running", true), &web), Ok(Needs::Disruption(&web[0])));
    assert_eq!(needs(&pod("Running", true), &[]), Ok(Needs::Nothing));
    assert_eq!(needs(&pod("Succeeded", false), &web), Ok(Needs::Nothing));
    assert_eq!(needs(&pod("Pending", false), &web), Ok(Needs::Nothing));
    let mut going = pod("Running", true);
    going["metadata"]["deletionTimestamp"] = json!("2026-09-21T14:13:25Z");
    assert_eq!(needs(&going, &web), Ok(Needs::Nothing));
    let mut other = pod("Running", true);
    other["metadata"]["labels"]["app"] = json!("other");
    assert_eq!(needs(&other, &web), Ok(Needs::Nothing));
    let two = [web[0].clone(), budget(json!({"minAvailable": 1}))];
    assert_eq!(needs(&pod("Running", true), &two).unwrap_err().code, 500);
}

#[test]
fn an_unhealthy_pod_may_go_when_the_others_are_enough_or_the_budget_says_always() {
    let mut web = [budget(json!({"maxUnavailable": 1}))];
    let sick = pod("Running", false);
    for (healthy, free) in [(2, true), (1, false)] {
        web[0]["status"] = assess(&web[0], &pods(healthy, 3 - healthy), &|_| Some(3), at(0)).status;
        let wanted = if free { Needs::Nothing } else { Needs::Disruption(&web[0]) };
        assert_eq!(needs(&sick, &web), Ok(wanted));
    }
    web[0]["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
    assert_eq!(needs(&sick, &web), Ok(Needs::Nothing));
}

proptest! {
    /// Evictions in any interleaving with counting: never fewer healthy pods stay than the budget wants.
    #[test]
    fn granted_evictions_never_leave_fewer_than_the_budget_wants(
        replicas in 1usize..8,
        least in 0i64..8,
        steps in prop::collection::vec((0usize..8, any::<bool>()), 1..40),
    ) {
        let mut web = budget(json!({"minAvailable": least}));
        let mut all = pods(replicas, 0);
        web["status"] = assess(&web, &all, &|_| Some(8), at(0)).status;
        for (n, evict) in steps {
            if !evict {
                web["status"] = assess(&web, &all, &|_| Some(8), at(0)).status;
            } else if let Some(pod) = all.get_mut(n).filter(|pod| !pod.deleting)
                && let Ok(status) = take(&web, at(0))
            {
                web["status"] = status;
                pod.deleting = true;
            }
            let stay = i64::try_from(all.iter().filter(|pod| !pod.deleting).count()).unwrap();
            prop_assert!(stay >= least.min(i64::try_from(replicas).unwrap()), "{} stay of {}", stay, replicas);
        }
    }
}
