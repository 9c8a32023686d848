//! The drivers and their front on a host that only remembers. The real one is tried in `tests/pods.rs`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Instant;

use berth_agent_core::{Exit, Found, FoundState, Outcome, Step, Time, container};
use berth_proto::agent_message::Message;
use berth_proto::{Container, PodEvent, Volume};
use tokio::time::timeout;

use super::host::Doing;
use super::*;

/// uid, container, attempt.
type Key = (String, String, u32);

/// Containers with the sender that ends them.
#[derive(Default)]
struct Memory {
    begun: Mutex<Vec<(String, Step)>>,
    containers: Mutex<BTreeMap<Key, watch::Sender<Option<i32>>>>,
    sandboxes: Mutex<BTreeSet<String>>,
    /// Pods whose volumes never come.
    dead: Mutex<BTreeSet<String>>,
    /// Pods that only KILL ends.
    deaf: Mutex<BTreeSet<String>>,
    forgotten: Mutex<Vec<String>>,
}

impl Memory {
    fn begun(&self, of: impl Fn(&Step) -> bool) -> usize {
        self.begun.lock().unwrap().iter().filter(|(_, step)| of(step)).count()
    }

    fn exit(&self, uid: &str, name: &str, attempt: u32, code: i32) {
        let containers = self.containers.lock().unwrap();
        containers[&(uid.to_owned(), name.to_owned(), attempt)].send_replace(Some(code));
    }
}

impl Host for Memory {
    fn perform(self: Arc<Self>, step: Step, subjects: Subjects) -> Doing {
        let pod = subjects.assignment.pod.clone().unwrap();
        self.begun.lock().unwrap().push((pod.uid.clone(), step.clone()));
        let key = |container: &String, attempt: &u32| (pod.uid.clone(), container.clone(), *attempt);
        let outcome = match &step {
            Step::MakeSandbox => {
                self.sandboxes.lock().unwrap().insert(pod.uid.clone());
                Outcome::Done
            }
            Step::Connect => Outcome::Connected { ips: vec!["10.42.0.7".into()] },
            Step::FindImage { .. } => Outcome::Image { id: "busybox@sha256:1".into(), pulled: None },
            Step::Create { container, attempt } => {
                let sender = watch::Sender::new(None);
                self.containers.lock().unwrap().insert(key(container, attempt), sender);
                Outcome::Done
            }
            Step::Start { .. } => Outcome::Started { at: now() },
            Step::Wait { container, attempt } => {
                let containers = self.containers.lock().unwrap();
                let mut ended = containers[&key(container, attempt)].subscribe();
                return Box::pin(async move {
                    let code = ended.wait_for(Option::is_some).await.map_or(255, |code| code.unwrap_or(255));
                    Outcome::Exited(Exit {
                        code,
                        started: now(),
                        at: now(),
                        oom: false,
                        unknown: false,
                        message: String::new(),
                    })
                });
            }
            Step::Signal { kill: false, .. } if self.deaf.lock().unwrap().contains(&pod.uid) => Outcome::Done,
            Step::Signal { container, attempt, .. } => {
                self.exit(&pod.uid, container, *attempt, 143);
                Outcome::Done
            }
            Step::Remove { container, attempt } => {
                self.containers.lock().unwrap().remove(&key(container, attempt));
                Outcome::Done
            }
            Step::RemoveSandbox => {
                self.sandboxes.lock().unwrap().remove(&pod.uid);
                Outcome::Done
            }
            Step::Mount { .. } if self.dead.lock().unwrap().contains(&pod.uid) => {
                return Box::pin(std::future::pending());
            }
            _ => Outcome::Done,
        };
        Box::pin(async move { outcome })
    }

    fn survey(self: Arc<Self>) -> std::pin::Pin<Box<dyn Future<Output = Result<Survey, String>> + Send>> {
        let containers = self.containers.lock().unwrap();
        let found = containers.keys().map(|(uid, name, attempt)| FoundContainer {
            pod: life(uid, 1),
            found: Found {
                container: name.clone(),
                attempt: *attempt,
                image: "busybox".into(),
                created: Time(1),
                state: FoundState::Started,
            },
        });
        let survey = Survey {
            containers: found.collect(),
            uids: self.sandboxes.lock().unwrap().iter().cloned().collect(),
        };
        Box::pin(async move { Ok(survey) })
    }

    fn forget(self: Arc<Self>, pod: PodRef) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        self.forgotten.lock().unwrap().push(pod.uid);
        Box::pin(async {})
    }
}

fn now() -> Time {
    Clock::start().now()
}

fn life(uid: &str, epoch: u64) -> PodRef {
    PodRef { namespace: "default".into(), name: "web-0".into(), uid: uid.into(), epoch }
}

fn assignment(uid: &str, epoch: u64) -> Assignment {
    let container = Container {
        name: "a".into(),
        image: "busybox".into(),
        image_pull_policy: "IfNotPresent".into(),
        ..Container::default()
    };
    Assignment {
        pod: Some(life(uid, epoch)),
        restart_policy: "Always".into(),
        termination_grace_seconds: 30,
        containers: vec![container],
        ..Assignment::default()
    }
}

fn named(name: &str, uid: &str) -> Assignment {
    Assignment { pod: Some(PodRef { name: name.into(), ..life(uid, 1) }), ..assignment(uid, 1) }
}

fn stop(pod: PodRef) -> Stop {
    Stop { pod: Some(pod), grace_seconds: 30, reason: String::new() }
}

/// A directory that outlives the test's runtime, with whatever still writes to it.
fn scratch() -> PathBuf {
    thread_local! { static KEPT: RefCell<Vec<tempfile::TempDir>> = const { RefCell::new(Vec::new()) }; }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    KEPT.with_borrow_mut(|kept| kept.push(dir));
    path
}

async fn open(dir: &std::path::Path, host: &Arc<Memory>) -> Pods {
    let config = PodsConfig {
        data_dir: dir.to_owned(),
        run_dir: dir.to_owned(),
        host_ips: vec!["192.0.2.1".parse().unwrap()],
        host_ports: HostPorts::default(),
        nfs: NfsConfig::new(dir.join("nfs")),
    };
    Pods::open_with(config, host.clone(), Clock::start()).await.unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Takes what goes out until something of it is what was waited for.
async fn until<T>(pods: &Pods, mut wanted: impl FnMut(Message) -> Option<T>) -> T {
    let outbox = pods.outbox();
    let wait = async {
        loop {
            if let Some(found) = wanted(outbox.next().await.message.unwrap()) {
                return found;
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("it does not come")
}

async fn ready(pods: &Pods, uid: &str) -> PodStatus {
    until(pods, |message| match message {
        Message::PodStatus(status) => {
            let ready = status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
            (ready && status.pod.as_ref().unwrap().uid == uid).then_some(status)
        }
        _ => None,
    })
    .await
}

async fn stopped(pods: &Pods, uid: &str) {
    until(pods, |message| match message {
        Message::Stopped(stopped) => (stopped.pod.unwrap().uid == uid).then_some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_pod_becomes_ready_and_what_happened_is_told() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    let mut events: Vec<PodEvent> = Vec::new();
    let mut status = PodStatus::default();
    until(&pods, |message| {
        match message {
            Message::PodStatus(latest) => status = latest,
            Message::Event(event) => events.push(event),
            _ => {}
        }
        (status.phase == "Running" && events.len() == 3).then_some(())
    })
    .await;
    assert_eq!((status.host_ip.as_str(), status.pod_ips), ("192.0.2.1", vec!["10.42.0.7".to_owned()]));
    assert_eq!(status.containers[0].container_id, "containerd://one-a-0");
    let reasons: Vec<&str> = events.iter().map(|event| event.reason.as_str()).collect();
    assert_eq!(reasons, ["Pulled", "Created", "Started"]);
    assert_eq!(events[2].field_path, "spec.containers{a}");
    let target = pods.exec_target(&life("one", 1), "").unwrap();
    assert_eq!(target.container_id, container::id("one", "a", 0));
    let log = pods.log_target(&life("one", 1), "a", false).unwrap();
    assert!(log.path.ends_with("logs/default_web-0_one/a/0.log"));
    assert!(!*log.ended.borrow());
    assert!(matches!(pods.log_target(&life("one", 1), "a", true), Err(TargetError::NotThere { .. })));
    assert!(matches!(pods.exec_target(&life("one", 1), "b"), Err(TargetError::NoContainer { .. })));
    assert!(matches!(pods.exec_target(&life("two", 1), "a"), Err(TargetError::NoPod(_))));
    host.exit("one", "a", 0, 1);
    let mut ended = log.ended;
    timeout(PATIENCE, ended.wait_for(|ended| *ended)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stopped_pod_is_reported_when_it_is_gone_and_forgotten_when_told() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    ready(&pods, "one").await;
    pods.stop(stop(life("one", 1)));
    stopped(&pods, "one").await;
    assert!(host.sandboxes.lock().unwrap().is_empty() && host.containers.lock().unwrap().is_empty());
    assert!(pods.inventory()[0].stopped);
    pods.stop(stop(life("one", 1)));
    stopped(&pods, "one").await;
    pods.forget(life("one", 1));
    assert!(pods.inventory().is_empty());
    pods.stop(stop(life("one", 1)));
    stopped(&pods, "one").await;
}

#[tokio::test]
async fn nothing_older_is_started_and_a_newer_life_waits_for_the_former() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("two", 2));
    ready(&pods, "two").await;
    pods.apply(assignment("one", 1));
    pods.apply(assignment("three", 3));
    let status = ready(&pods, "three").await;
    assert_eq!(status.phase, "Running");
    let begun = host.begun.lock().unwrap().clone();
    let at = |wanted: (&str, Step)| begun.iter().position(|(uid, s)| *uid == wanted.0 && *s == wanted.1);
    let gone = at(("two", Step::RemoveSandbox)).expect("the former is stopped");
    let next = at(("three", Step::MakeSandbox)).unwrap();
    assert!(gone < next);
    assert!(!begun.iter().any(|(uid, _)| uid == "one"));
}

#[tokio::test]
async fn pods_run_on_without_the_agent_and_are_taken_up_as_they_are() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    ready(&pods, "one").await;
    host.exit("one", "a", 0, 3);
    until(&pods, |message| match message {
        Message::PodStatus(status) => (status.containers[0].restart_count == 1).then_some(()),
        _ => None,
    })
    .await;
    // Killed: nothing more is written or done by it.
    drop(pods);
    let made = host.begun(|step| matches!(step, Step::Create { .. }));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    let inventory = pods.inventory();
    let status = inventory[0].status.as_ref().unwrap();
    assert_eq!(status.containers[0].restart_count, 1);
    assert_eq!(status.phase, "Running");
    assert_eq!(host.begun(|step| matches!(step, Step::Create { .. })), made, "nothing is made again");
    // Its end is still noticed.
    timeout(PATIENCE, async {
        while host.begun(|step| matches!(step, Step::Wait { attempt: 1, .. })) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    host.exit("one", "a", 1, 4);
    let reason = until(&pods, |message| match message {
        Message::PodStatus(status) => match status.containers[0].state.clone()?.state? {
            berth_proto::container_state::State::Waiting(waiting) => Some(waiting.reason),
            _ => None,
        },
        _ => None,
    })
    .await;
    assert_eq!(reason, "CrashLoopBackOff");
}

#[tokio::test]
async fn what_the_state_does_not_know_is_stopped_and_cleaned() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    ready(&pods, "one").await;
    drop(pods);
    let other = scratch();
    let pods = open(&other, &host).await;
    pods.stop(stop(life("one", 1)));
    stopped(&pods, "one").await;
    assert!(host.sandboxes.lock().unwrap().is_empty() && host.containers.lock().unwrap().is_empty());
    assert!(pods.inventory().is_empty());
}

#[tokio::test]
async fn what_the_state_does_not_know_and_the_controller_wants_is_made_anew() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    // Only a directory: the agent died before it had written anything of the pod.
    host.sandboxes.lock().unwrap().insert("one".into());
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    ready(&pods, "one").await;
    let begun = host.begun.lock().unwrap().clone();
    let at = |wanted: Step| begun.iter().position(|(_, step)| *step == wanted).unwrap();
    assert!(at(Step::RemoveSandbox) < at(Step::MakeSandbox));
}

#[tokio::test]
async fn a_pod_that_hangs_stalls_no_other() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    host.dead.lock().unwrap().insert("hangs".into());
    let pods = open(&dir, &host).await;
    let mut hangs = named("hangs", "hangs");
    hangs.volumes.push(Volume { name: "dead".into(), ..Volume::default() });
    pods.apply(hangs);
    let begun = Instant::now();
    for n in 0..10 {
        pods.apply(named(&format!("web-{n}"), &format!("uid-{n}")));
    }
    for n in 0..10 {
        let all = pods.clone();
        timeout(PATIENCE, async {
            loop {
                let ready = all.inventory().iter().any(|pod| {
                    let status = pod.status.as_ref().unwrap();
                    pod.pod.as_ref().unwrap().uid == format!("uid-{n}") && status.phase == "Running"
                });
                if ready {
                    return;
                }
                all.outbox().next().await;
            }
        })
        .await
        .unwrap();
    }
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn the_state_on_disk_names_the_pod_before_its_container_is_made() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(assignment("one", 1));
    timeout(PATIENCE, async {
        while host.begun(|step| matches!(step, Step::Start { .. })) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let state = std::fs::read_to_string(dir.join("state.json")).unwrap();
    assert!(state.contains("\"one\""), "{state}");
}

#[tokio::test]
async fn a_host_that_is_shut_down_ends_its_pods_from_the_highest_ordinal_and_starts_them_when_it_is_back() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    for n in [2, 10, 9] {
        pods.apply(named(&format!("web-{n}"), &format!("uid-{n}")));
        ready(&pods, &format!("uid-{n}")).await;
    }
    let farewell = pods.farewell();
    assert_eq!(farewell.pods(), 3);
    assert_eq!(
        farewell.limit(),
        Duration::from_secs(3 * 40),
        "each has its grace, and a moment to be killed in"
    );
    timeout(PATIENCE, farewell.run()).await.unwrap();
    let begun = host.begun.lock().unwrap().clone();
    let signalled =
        |(uid, step): &(String, Step)| matches!(step, Step::Signal { kill: false, .. }).then(|| uid.clone());
    let order: Vec<String> = begun.iter().filter_map(signalled).collect();
    assert_eq!(order, ["uid-10", "uid-9", "uid-2"]);
    assert!(!begun.iter().any(|(_, step)| matches!(step, Step::Remove { .. } | Step::RemoveSandbox)));

    drop(pods);
    host.containers.lock().unwrap().clear();
    let pods = open(&dir, &host).await;
    assert_eq!(pods.inventory().len(), 3);
    assert!(pods.inventory().iter().all(|pod| !pod.stopped), "they are this host's still");
    pods.apply(named("web-2", "uid-2"));
    ready(&pods, "uid-2").await;
}

#[tokio::test]
async fn what_outstays_its_grace_when_the_host_is_shut_down_is_killed() {
    let (dir, host) = (scratch(), Arc::new(Memory::default()));
    let pods = open(&dir, &host).await;
    pods.apply(Assignment { termination_grace_seconds: 1, ..named("deaf-0", "deaf") });
    ready(&pods, "deaf").await;
    host.deaf.lock().unwrap().insert("deaf".into());
    let begun = Instant::now();
    timeout(PATIENCE, pods.farewell().run()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(host.begun(|step| matches!(step, Step::Signal { kill: true, .. })), 1);
}
