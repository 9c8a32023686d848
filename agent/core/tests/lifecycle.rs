//! The life of a pod, told as specifications, on a simulated host.

#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use berth_agent_core::container::Phase;
use berth_agent_core::probe::Kind;
use berth_agent_core::{Fault, Found, FoundState, Observed, Outcome, Probed, Step, Time};
use berth_proto::handler;
use berth_proto::{Container, EmptyDir, File, Files, Handler, Probe, Volume, VolumeMount, volume};
use world::{World, container, pod, pod_with};

fn probe(period: u32, failures: u32) -> Option<Probe> {
    let handler = Handler {
        handler: Some(handler::Handler::TcpSocket(handler::TcpSocket { host: String::new(), port: 80 })),
    };
    Some(Probe {
        handler: Some(handler),
        period_seconds: period,
        failure_threshold: failures,
        success_threshold: 1,
        timeout_seconds: 1,
        ..Probe::default()
    })
}

fn hook() -> Option<Handler> {
    Some(Handler { handler: Some(handler::Handler::Exec(handler::Exec { command: vec!["true".into()] })) })
}

#[test]
fn a_pod_starts_its_containers_in_order_and_becomes_ready() {
    let mut world = World::new(pod(&["a", "b"]));
    world.settle();
    assert_eq!(world.order("Create"), ["a", "b"]);
    assert_eq!(world.order("Start"), ["a", "b"]);
    assert_eq!(world.status().phase, "Running");
    assert_eq!(world.condition("Ready"), "True");
    assert_eq!(world.reasons(), ["Pulled", "Pulled", "Created", "Started", "Created", "Started"]);
}

#[test]
fn images_are_looked_for_while_the_sandbox_is_made() {
    let mut world = World::new(pod(&["a"]));
    let begun = world.begin();
    assert!(begun.contains(&Step::MakeSandbox));
    assert!(begun.iter().any(|step| matches!(step, Step::FindImage { .. })));
}

#[test]
fn a_container_is_made_while_the_network_is_connected_and_started_after() {
    let mut world = World::new(pod(&["a"]));
    world.hold = |step| matches!(step, Step::Connect);
    world.settle();
    assert!(matches!(world.container("a").phase, Phase::Created(_)));
    world.hold = |_| false;
    world.settle();
    assert!(world.container("a").running().is_some());
}

#[test]
fn a_container_that_is_told_the_pods_address_is_made_once_there_is_one() {
    let mut told = pod(&["a"]);
    told.containers[0].args = vec![format!("--announce={}", berth_proto::POD_IP)];
    let mut world = World::new(told);
    world.hold = |step| matches!(step, Step::Connect);
    world.settle();
    assert_eq!(world.container("a").phase, Phase::Absent);
    world.hold = |_| false;
    world.settle();
    assert!(world.container("a").running().is_some());
}

#[test]
fn init_containers_run_one_after_another_and_before_the_others() {
    let mut pod = pod(&["main"]);
    pod.init_containers = vec![container("first"), container("second")];
    let mut world = World::new(pod);
    world.settle();
    assert_eq!(world.waiting("main").0, "PodInitializing");
    assert_eq!(world.condition("Initialized"), "False");
    world.exit("first", 0);
    world.settle();
    assert_eq!(world.order("Start"), ["first", "second"]);
    world.exit("second", 0);
    world.settle();
    assert_eq!(world.order("Start"), ["first", "second", "main"]);
    assert_eq!(world.status().phase, "Running");
    assert_eq!(world.condition("Initialized"), "True");
}

#[test]
fn a_failing_init_container_is_repeated_unless_the_policy_says_never() {
    let mut repeated = pod(&["main"]);
    repeated.init_containers = vec![container("init")];
    let mut never = repeated.clone();
    never.restart_policy = "Never".into();

    let mut world = World::new(repeated);
    world.settle();
    world.exit("init", 1);
    world.settle();
    assert_eq!(world.container("init").restart_count(), 1);
    assert_eq!(world.status().phase, "Pending");

    let mut world = World::new(never);
    world.settle();
    world.exit("init", 1);
    world.settle();
    assert_eq!(world.status().phase, "Failed");
    assert!(world.observed.gone, "what it held is given back");
    assert!(
        !world.log.iter().any(|(_, step)| matches!(step, Step::Start{container, ..} if container == "main"))
    );
}

#[test]
fn a_crashing_container_is_restarted_at_once_then_with_back_off() {
    let mut world = World::new(pod(&["a"]));
    world.settle();
    world.exit("a", 1);
    world.settle();
    assert_eq!(world.container("a").restart_count(), 1, "the first restart is immediate");
    world.exit("a", 1);
    world.settle();
    let (reason, message) = world.waiting("a");
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(message, "back-off 10s restarting failed container=a pod=web-0_default(uid-1)");
    assert_eq!(world.status().phase, "Running");
    assert_eq!(world.condition("Ready"), "False");
    let ended = world.now;
    world.run_for(Duration::from_secs(11));
    assert_eq!(world.container("a").restart_count(), 2);
    let since = world.container("a").running().unwrap().since;
    assert_eq!(since.since(ended), Duration::from_secs(10));
    let last = world.status().containers[0].last_state.clone().unwrap();
    assert!(format!("{last:?}").contains("exit_code: 1"));
}

#[test]
fn a_completed_pod_gives_everything_back_but_its_status() {
    let mut pod = pod(&["a", "b"]);
    pod.restart_policy = "Never".into();
    let mut world = World::new(pod);
    world.settle();
    world.exit("a", 0);
    world.settle();
    assert_eq!(world.status().phase, "Running");
    world.exit("b", 0);
    world.settle();
    assert_eq!(world.status().phase, "Succeeded");
    assert!(world.observed.gone && world.status().released);
    let condition = world.status().conditions.into_iter().find(|c| c.r#type == "Ready").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "PodCompleted"));
}

#[test]
fn on_failure_restarts_only_what_failed() {
    let mut pod = pod(&["a", "b"]);
    pod.restart_policy = "OnFailure".into();
    let mut world = World::new(pod);
    world.settle();
    world.exit("a", 0);
    world.exit("b", 3);
    world.settle();
    assert_eq!(world.container("a").restart_count(), 0);
    assert_eq!(world.container("b").restart_count(), 1);
    world.exit("b", 0);
    world.settle();
    assert_eq!(world.status().phase, "Succeeded");
}

#[test]
fn a_missing_image_is_pulled_and_a_failing_pull_backs_off() {
    let mut world = World::new(pod(&["a"]));
    world.image_missing = true;
    world.pull_fails = true;
    world.settle();
    assert_eq!(world.waiting("a"), ("ErrImagePull".into(), "no such registry".into()));
    world.run_for(Duration::from_secs(6));
    let (reason, message) = world.waiting("a");
    assert_eq!(reason, "ImagePullBackOff");
    assert_eq!(message, "Back-off pulling image \"busybox\": ErrImagePull: no such registry");
    world.pull_fails = false;
    world.run_for(Duration::from_secs(6));
    assert_eq!(world.status().phase, "Running");
    let pulls: Vec<i64> = world.times(|step| matches!(step, Step::PullImage { .. }));
    assert_eq!(pulls[1] - pulls[0], 10_000);
    assert!(world.messages().contains(&"Pulling image \"busybox\"".to_owned()));
}

#[test]
fn never_pulled_means_never_pulled() {
    let mut pod = pod(&["a"]);
    pod.containers[0].image_pull_policy = "Never".into();
    let mut world = World::new(pod);
    world.image_missing = true;
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.waiting("a").0, "ErrImageNeverPull");
    assert!(world.times(|step| matches!(step, Step::PullImage { .. })).is_empty());
    world.image_missing = false;
    world.run_for(Duration::from_secs(300));
    assert_eq!(world.status().phase, "Running", "it recovers by itself");
}

#[test]
fn a_container_that_cannot_be_made_says_why_and_is_tried_again() {
    let mut world = World::new(pod(&["a"]));
    world.fail = |step| {
        matches!(step, Step::Create { .. })
            .then(|| Fault { reason: None, message: "exec: \"nosuch\": not found".into() })
    };
    world.settle();
    assert_eq!(world.waiting("a"), ("CreateContainerError".into(), "exec: \"nosuch\": not found".into()));
    assert!(world.messages().contains(&"Error: exec: \"nosuch\": not found".to_owned()));
    world.run_for(Duration::from_secs(5));
    assert!(world.container("a").remains.is_empty(), "what it left is removed");
    world.fail = |_| None;
    world.run_for(Duration::from_secs(6));
    assert_eq!(world.status().phase, "Running");
    assert_eq!(world.container("a").restart_count(), 0);
}

#[test]
fn a_container_that_waits_for_its_configuration_goes_on_when_the_assignment_has_it() {
    let mut broken = pod(&["a"]);
    broken.containers[0].config_error = "configmap \"settings\" not found".into();
    let mut world = World::new(broken.clone());
    world.settle();
    assert_eq!(
        world.waiting("a"),
        ("CreateContainerConfigError".into(), "configmap \"settings\" not found".into())
    );
    broken.containers[0].config_error.clear();
    world.assign(broken);
    world.settle();
    assert_eq!(world.status().phase, "Running");
}

#[test]
fn a_volume_that_cannot_be_had_is_told_and_tried_again() {
    let files = volume::Source::Files(Files::default());
    let mut world = World::new(pod_with(&["a"], vec![("data", files)]));
    world.fail = |step| {
        matches!(step, Step::Mount { .. }).then(|| Fault { reason: None, message: "disk on fire".into() })
    };
    world.settle();
    assert_eq!(world.waiting("a").0, "ContainerCreating");
    let told = "MountVolume.SetUp failed for volume \"data\" : disk on fire".to_owned();
    assert!(world.messages().contains(&told));
    world.fail = |_| None;
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.status().phase, "Running");
}

#[test]
fn changed_files_are_replaced_under_the_running_container() {
    let mut pod = pod_with(&["a"], vec![("conf", volume::Source::Files(Files::default()))]);
    let mut world = World::new(pod.clone());
    world.settle();
    let file = File { path: "a.conf".into(), content: b"x".to_vec(), mode: 0o644 };
    pod.volumes[0] = Volume {
        source: Some(volume::Source::Files(Files { files: vec![file], secret: false })),
        ..pod.volumes[0].clone()
    };
    world.assign(pod.clone());
    world.settle();
    assert_eq!(world.times(|step| matches!(step, Step::Refresh { .. })).len(), 1);
    world.assign(pod);
    world.settle();
    assert_eq!(world.times(|step| matches!(step, Step::Refresh { .. })).len(), 1, "only when it changed");
    assert_eq!(world.container("a").restart_count(), 0);
}

#[test]
fn a_new_image_restarts_its_container_and_no_other() {
    let mut pod = pod(&["a", "b"]);
    let mut world = World::new(pod.clone());
    world.settle();
    pod.containers[0].image = "busybox:2".into();
    world.assign(pod);
    world.settle();
    assert!(world.messages().contains(&"Container a definition changed, will be restarted".to_owned()));
    assert_eq!(world.container("a").restart_count(), 1);
    assert_eq!(world.container("a").running().unwrap().made.image, "busybox:2");
    assert_eq!(world.container("b").restart_count(), 0);
}

#[test]
fn a_lost_volume_is_mounted_anew_under_containers_that_start_anew() {
    let empty = || volume::Source::EmptyDir(EmptyDir::default());
    let mut pod = pod_with(&["a", "b"], vec![("data", empty()), ("other", empty())]);
    for (container, volume) in [(0, "data"), (1, "other")] {
        pod.containers[container].mounts =
            vec![VolumeMount { volume: volume.into(), mount_path: "/data".into(), ..VolumeMount::default() }];
    }
    let mut world = World::new(pod.clone());
    world.settle();
    world.observed.volume_lost(&pod, "data", "its directory is stale", world.now);
    world.settle();
    assert_eq!(world.container("a").restart_count(), 1);
    assert_eq!(world.container("b").restart_count(), 0, "it does not use it");
    assert_eq!(world.times(|step| matches!(step, Step::Mount { volume } if volume == "data")).len(), 2);
    let told = "Volume data: its directory is stale; container a will be restarted".to_owned();
    assert!(world.messages().contains(&told));
}

#[test]
fn a_container_is_ready_when_its_probe_says_so() {
    let mut pod = pod(&["a"]);
    pod.containers[0].readiness = probe(10, 3);
    let mut world = World::new(pod);
    world.probe = |_, at| {
        if at.0 < world::BEGIN.0 + 400 { Probed::Failure("refused".into()) } else { Probed::Success }
    };
    world.settle();
    assert_eq!(world.condition("Ready"), "False");
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.condition("Ready"), "True");
    let asked = world.times(|step| matches!(step, Step::Probe { .. }));
    let asked: Vec<i64> = asked.iter().map(|at| at - world::BEGIN.0).collect();
    assert_eq!(asked, [50, 100, 200, 400]);
}

#[test]
fn a_container_whose_liveness_probe_fails_is_restarted() {
    let mut pod = pod(&["a"]);
    pod.containers[0].liveness = probe(1, 3);
    let mut world = World::new(pod);
    world.probe = |_, _| Probed::Failure("HTTP probe failed with statuscode: 500".into());
    world.run_for(Duration::from_millis(3500));
    assert_eq!(world.container("a").restart_count(), 1);
    let messages = world.messages();
    let unhealthy = "Liveness probe failed: HTTP probe failed with statuscode: 500".to_owned();
    assert_eq!(messages.iter().filter(|message| **message == unhealthy).count(), 3);
    assert!(messages.contains(&"Container a failed liveness probe, will be restarted".to_owned()));
}

#[test]
fn other_probes_wait_for_the_startup_probe() {
    let mut pod = pod(&["a"]);
    pod.containers[0].startup = probe(1, 30);
    pod.containers[0].liveness = probe(1, 1);
    pod.containers[0].readiness = probe(1, 1);
    let mut world = World::new(pod);
    world.probe = |kind, at| match kind {
        Kind::Startup if at.0 < world::BEGIN.0 + 5_000 => Probed::Failure(String::new()),
        Kind::Liveness if at.0 < world::BEGIN.0 + 5_000 => panic!("asked before it has started"),
        _ => Probed::Success,
    };
    world.run_for(Duration::from_secs(4));
    assert!(!world.status().containers[0].started);
    world.run_for(Duration::from_secs(3));
    assert!(world.status().containers[0].started);
    assert_eq!(world.condition("Ready"), "True");
    assert_eq!(world.container("a").restart_count(), 0);
}

#[test]
fn a_pod_is_stopped_by_its_hook_then_the_signal_then_kill() {
    let mut pod = pod(&["a"]);
    pod.containers[0].pre_stop = hook();
    let mut world = World::new(pod);
    world.obeys_term = false;
    world.settle();
    world.stop(10);
    world.settle();
    let ending = |step: &Step| matches!(step, Step::PreStop { .. } | Step::Signal { .. });
    let begun = world.now.0;
    world.run_for(Duration::from_secs(11));
    let steps: Vec<(i64, bool)> = world
        .log
        .iter()
        .filter(|(_, step)| ending(step))
        .map(|(at, step)| (at.0 - begun, matches!(step, Step::Signal { kill: true, .. })))
        .collect();
    assert_eq!(steps, [(0, false), (0, false), (10_000, true)]);
    assert!(world.observed.gone);
    assert!(world.messages().contains(&"Stopping container a".to_owned()));
}

#[test]
fn a_shorter_grace_period_takes_effect_and_a_longer_one_does_not() {
    let mut world = World::new(pod(&["a"]));
    world.obeys_term = false;
    world.settle();
    world.stop(1000);
    world.run_for(Duration::from_secs(5));
    world.stop(2000);
    world.stop(3);
    world.run_for(Duration::from_millis(2900));
    assert!(!world.observed.gone);
    world.run_for(Duration::from_millis(200));
    assert!(world.observed.gone);
}

#[test]
fn no_grace_is_kill_at_once_without_the_hook() {
    let mut pod = pod(&["a"]);
    pod.containers[0].pre_stop = hook();
    let mut world = World::new(pod);
    world.obeys_term = false;
    world.settle();
    world.stop(0);
    world.settle();
    assert!(world.observed.gone);
    assert!(world.times(|step| matches!(step, Step::PreStop { .. })).is_empty());
}

#[test]
fn a_hook_that_takes_all_the_grace_leaves_two_seconds_for_the_signal() {
    let mut pod = pod(&["a"]);
    pod.containers[0].pre_stop = hook();
    let mut world = World::new(pod);
    world.obeys_term = false;
    world.settle();
    world.hold = |step| matches!(step, Step::PreStop { .. });
    world.stop(5);
    world.run_for(Duration::from_secs(5));
    world.hold = |_| false;
    let begun = world.now;
    world.run_for(Duration::from_millis(1900));
    assert!(!world.observed.gone);
    world.run_for(Duration::from_millis(200));
    assert!(world.observed.gone);
    assert!(world.now.since(begun) >= Duration::from_secs(2));
}

#[test]
fn a_pod_stopped_while_it_is_made_leaves_nothing() {
    let mut world = World::new(pod(&["a", "b"]));
    world.hold = |step| matches!(step, Step::Connect);
    world.settle();
    world.stop(30);
    world.settle();
    assert!(!world.observed.gone, "the network is still being connected");
    world.hold = |_| false;
    world.settle();
    assert!(world.observed.gone);
    assert!(world.times(|step| matches!(step, Step::Start { .. })).is_empty());
    assert!(world.order("Remove").contains(&"a".to_owned()));
}

#[test]
fn a_failed_post_start_hook_restarts_the_container() {
    let mut pod = pod(&["a", "b"]);
    pod.containers[0].post_start = hook();
    let mut world = World::new(pod);
    world.fail = |step| {
        matches!(step, Step::PostStart { attempt: 0, .. })
            .then(|| Fault { reason: None, message: "exit 1".into() })
    };
    world.settle();
    assert!(world.messages().contains(&"PostStartHook failed: exit 1".to_owned()));
    assert_eq!(world.container("a").restart_count(), 1);
    assert_eq!(world.status().phase, "Running");
    assert_eq!(world.container("b").restart_count(), 0);
}

#[test]
fn the_next_container_waits_for_the_post_start_hook() {
    let mut pod = pod(&["a", "b"]);
    pod.containers[0].post_start = hook();
    let mut world = World::new(pod);
    world.hold = |step| matches!(step, Step::PostStart { .. });
    world.settle();
    assert_eq!(world.order("Start"), ["a"]);
    assert_eq!(world.waiting("a").0, "ContainerCreating");
    world.hold = |_| false;
    world.settle();
    assert_eq!(world.order("Start"), ["a", "b"]);
}

// ---------------------------------------------------------------- the agent restarts

fn found(container: &str, attempt: u32, state: FoundState) -> Found {
    Found { container: container.into(), attempt, image: "busybox".into(), created: Time(5), state }
}

#[test]
fn a_running_pod_is_taken_up_as_it_is() {
    let mut world = World::new(pod(&["a"]));
    world.settle();
    world.exit("a", 1);
    world.settle();
    let memory = world.observed.remember();
    let started = world.container("a").running().unwrap().since;
    world.restore(&memory, &[found("a", 1, FoundState::Started)], false);
    world.settle();
    assert_eq!(world.container("a").restart_count(), 1);
    assert_eq!(world.container("a").running().unwrap().since, started);
    assert_eq!(world.order("Create"), ["a", "a"], "nothing is made again");
    assert_eq!(world.status().phase, "Running");
    world.exit("a", 7);
    world.settle();
    assert_eq!(world.waiting("a").0, "CrashLoopBackOff", "the back-off is remembered too");
}

#[test]
fn what_ended_unseen_counts_as_255() {
    let mut world = World::new(pod(&["a"]));
    world.settle();
    let memory = world.observed.remember();
    world.restore(&memory, &[], false);
    let ended = world.container("a").ended().cloned().unwrap();
    assert_eq!((ended.exit.code, ended.exit.unknown), (255, true));
    world.settle();
    assert_eq!(world.container("a").restart_count(), 1);
}

#[test]
fn a_task_that_containerd_lost_is_waited_for_and_not_made_twice() {
    let mut world = World::new(pod(&["a"]));
    world.settle();
    let memory = world.observed.remember();
    world.restore(&memory, &[found("a", 0, FoundState::Nothing)], false);
    assert!(world.container("a").running().is_some());
    let mut fresh = memory;
    fresh.containers.get_mut("a").unwrap().since = None;
    world.restore(&fresh, &[found("a", 0, FoundState::Made)], false);
    assert!(world.container("a").running().is_none());
    world.settle();
    let log: Vec<&Step> = world.log.iter().map(|(_, step)| step).collect();
    let remove = log.iter().rposition(|step| matches!(step, Step::Remove { .. })).unwrap();
    let create = log.iter().rposition(|step| matches!(step, Step::Create { .. })).unwrap();
    assert!(remove < create, "the half-made one goes first");
    assert_eq!(world.container("a").restart_count(), 0);
}

#[test]
fn an_exit_that_was_recorded_is_not_replaced_by_what_is_left_of_it() {
    let mut world = World::new(pod(&["a"]));
    world.settle();
    world.exit("a", 1);
    world.settle();
    world.exit("a", 42);
    world.settle();
    let memory = world.observed.remember();
    world.restore(&memory, &[found("a", 1, FoundState::Started)], false);
    assert_eq!(world.container("a").ended().unwrap().exit.code, 42);
    assert!(world.container("a").remains.contains_key(&1));
}

#[test]
fn after_a_reboot_nothing_starts_before_the_controller_confirms() {
    let mut with_init = pod(&["a"]);
    with_init.init_containers = vec![container("init")];
    let mut world = World::new(with_init.clone());
    world.settle();
    world.exit("init", 0);
    world.settle();
    let memory = world.observed.remember();
    let left = [found("a", 0, FoundState::Nothing), found("init", 0, FoundState::Nothing)];
    world.restore(&memory, &left, true);
    world.log.clear();
    world.run_for(Duration::from_secs(60));
    assert!(world.log.iter().all(|(_, step)| matches!(step, Step::Remove { .. })), "{:?}", world.log);
    world.assign(with_init);
    world.settle();
    assert_eq!(world.order("Start"), ["init"], "init containers run again in the new sandbox");
    world.exit("init", 0);
    world.settle();
    assert_eq!(world.container("a").restart_count(), 1);
    assert_eq!(world.status().phase, "Running");
}

#[test]
fn a_pod_that_was_being_stopped_goes_on_stopping() {
    let mut world = World::new(pod(&["a"]));
    world.obeys_term = false;
    world.settle();
    world.stop(10);
    world.settle();
    let memory = world.observed.remember();
    world.restore(&memory, &[found("a", 0, FoundState::Started)], false);
    world.run_for(Duration::from_secs(11));
    assert!(world.observed.gone);
}

#[test]
fn an_unknown_container_of_the_pod_is_removed() {
    let world_pod = pod(&["a"]);
    let mut world = World::new(world_pod);
    world.settle();
    let memory = world.observed.remember();
    let left = [found("a", 0, FoundState::Started), found("stranger", 3, FoundState::Started)];
    world.restore(&memory, &left, false);
    world.settle();
    assert!(
        world.log.iter().any(|(_, step)| *step == Step::Remove { container: "stranger".into(), attempt: 3 })
    );
}

#[test]
fn every_outcome_for_every_step_is_taken_without_a_panic() {
    let assignment = pod(&["a"]);
    let steps = [
        Step::MakeSandbox,
        Step::Connect,
        Step::Mount { volume: "x".into() },
        Step::FindImage { container: "x".into(), image: String::new() },
        Step::Create { container: "a".into(), attempt: 9 },
        Step::Wait { container: "a".into(), attempt: 9 },
        Step::Probe { container: "a".into(), attempt: 9, kind: Kind::Liveness },
        Step::Remove { container: "zzz".into(), attempt: 9 },
    ];
    let outcomes = [Outcome::Done, Outcome::failed("x"), Outcome::NoImage, Outcome::Started { at: Time(0) }];
    let mut observed = Observed::new(&assignment, Time(0));
    for step in &steps {
        for outcome in &outcomes {
            observed.record(step, outcome.clone(), &assignment, Time(0));
            observed.begin(step, &assignment, Time(i64::MAX));
        }
    }
    let _: Container = container("x");
}
