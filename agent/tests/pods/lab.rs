//! A host with its pods, as a session would see them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_agent::network::HostPorts;
use berth_agent::pods::{Outbox, Pods, PodsConfig};
use berth_agent::runtime::{CaptureLimits, RuntimeConfig};
use berth_agent::volumes::NfsConfig;
use berth_proto::agent_message::Message;
use berth_proto::container_state::{State, Terminated};
use berth_proto::handler::{self, Handler as Kind};
use berth_proto::{
    Assignment, Container, ContainerStatus, Handler, Network, PodEvent, PodRef, PodStatus, Stop,
};

use crate::host::{Host, IMAGE, run};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub pods: Option<Pods>,
    pub statuses: BTreeMap<String, PodStatus>,
    pub stopped: Vec<String>,
    pub events: Vec<PodEvent>,
    // Last: what it holds goes after those who use it.
    pub host: Host,
}

pub fn life(name: &str) -> PodRef {
    PodRef { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}"), epoch: 1 }
}

pub fn container(name: &str, script: &str) -> Container {
    Container {
        name: name.into(),
        image: IMAGE.into(),
        image_pull_policy: "IfNotPresent".into(),
        command: ["sh", "-c", script].map(String::from).to_vec(),
        ..Container::default()
    }
}

/// What a pod should be: ends at once on the image's stop signal.
pub const SERVE: &str = "trap 'exit 0' USR1 TERM; while :; do sleep 1000 & wait; done";

pub fn pod(name: &str, number: u8, containers: Vec<Container>) -> Assignment {
    Assignment {
        pod: Some(life(name)),
        generation: 1,
        hostname: name.into(),
        network: Some(Network {
            addresses: vec![format!("10.42.3.{number}/24")],
            gateway: "10.42.3.1".into(),
            host_network: false,
        }),
        restart_policy: "Always".into(),
        termination_grace_seconds: 30,
        containers,
        ..Assignment::default()
    }
}

pub fn exec(script: &str) -> Handler {
    let command = ["sh", "-c", script].map(String::from).to_vec();
    Handler { handler: Some(Kind::Exec(handler::Exec { command })) }
}

impl Lab {
    pub async fn new() -> Lab {
        Lab::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut RuntimeConfig)) -> Lab {
        let host = Host::with(change).await;
        host.import("berth", &[]).await;
        let mut lab = Lab { pods: None, statuses: BTreeMap::new(), stopped: vec![], events: vec![], host };
        lab.open().await;
        lab
    }

    pub async fn open(&mut self) {
        let config = PodsConfig {
            data_dir: self.data().to_owned(),
            run_dir: self.host.dir.path().join("run"),
            host_ips: vec!["192.0.2.7".parse().unwrap()],
            host_ports: HostPorts::default(),
            nfs: NfsConfig::new(self.host.dir.path().join("run/nfs")),
        };
        let (runtime, network, cgroups) =
            (self.host.runtime.clone(), self.host.network.clone(), self.host.cgroups.clone());
        let pods = Pods::open(config, runtime, network, cgroups).await.unwrap();
        for pod in pods.inventory() {
            self.statuses.insert(pod.pod.unwrap().name, pod.status.unwrap());
        }
        self.pods = Some(pods);
    }

    /// As `kill -9` of the agent: nothing more is done or written.
    pub fn kill_agent(&mut self) {
        self.pods = None;
    }

    pub fn data(&self) -> &Path {
        Box::leak(self.host.dir.path().join("data").into_boxed_path())
    }

    pub fn pods(&self) -> &Pods {
        self.pods.as_ref().unwrap()
    }

    pub fn outbox(&self) -> Arc<Outbox> {
        self.pods().outbox()
    }

    /// Takes what the pods say until it holds.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Lab) -> bool) {
        let outbox = self.outbox();
        let wait = async {
            while !holds(self) {
                match outbox.next().await.message.unwrap() {
                    Message::PodStatus(status) => {
                        self.statuses.insert(status.pod.as_ref().unwrap().name.clone(), status);
                    }
                    Message::Stopped(stopped) => self.stopped.push(stopped.pod.unwrap().name),
                    Message::Event(event) => self.events.push(event),
                    _ => {}
                }
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let events: Vec<String> =
                self.events.iter().map(|e| format!("{} {}: {}", e.r#type, e.reason, e.message)).collect();
            panic!("{what} does not come.\n{:#?}\n{events:#?}", self.statuses);
        }
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.statuses
            .get(name)
            .is_some_and(|status| status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"))
    }

    pub async fn ready(&mut self, name: &str) {
        self.until(&format!("{name} being ready"), |lab| lab.is_ready(name)).await;
    }

    pub async fn phase(&mut self, name: &str, phase: &str) {
        self.until(&format!("{name} in {phase}"), |lab| {
            lab.statuses.get(name).is_some_and(|status| status.phase == phase)
        })
        .await;
    }

    pub async fn event(&mut self, part: &str) {
        self.until(part, |lab| lab.events.iter().any(|event| event.message.contains(part))).await;
    }

    pub fn status(&self, name: &str, container: &str) -> ContainerStatus {
        let status = &self.statuses[name];
        let mut all = status.init_containers.iter().chain(&status.containers);
        all.find(|status| status.name == container).unwrap().clone()
    }

    pub fn state(&self, name: &str, container: &str) -> State {
        self.status(name, container).state.unwrap().state.unwrap()
    }

    pub fn waits(&self, name: &str, container: &str) -> Option<(String, String)> {
        let status = self.statuses.get(name)?;
        let all = status.init_containers.iter().chain(&status.containers);
        match all.into_iter().find(|s| s.name == container)?.state.clone()?.state? {
            State::Waiting(waiting) => Some((waiting.reason, waiting.message)),
            _ => None,
        }
    }

    pub fn ended(&self, name: &str, container: &str) -> Terminated {
        match self.state(name, container) {
            State::Terminated(terminated) => terminated,
            other => panic!("{container} has not ended: {other:?}"),
        }
    }

    /// The log of the current instance, without its prefixes.
    pub fn log(&self, name: &str, container: &str) -> String {
        let target = self.pods().log_target(&life(name), container, false).unwrap();
        let log = std::fs::read_to_string(target.path).unwrap_or_default();
        log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    pub async fn exec(&self, name: &str, container: &str, script: &str) -> (Option<i32>, String) {
        let target = self.pods().exec_target(&life(name), container).unwrap();
        let limits = CaptureLimits { timeout: Duration::from_secs(20), output: 64 << 10 };
        let command = ["sh", "-c", script].map(String::from);
        let captured = self.host.runtime.exec_captured(&target.container_id, &command, limits).await.unwrap();
        (captured.exit_code, String::from_utf8(captured.output).unwrap())
    }

    pub fn stop(&self, name: &str, grace: i64) {
        self.pods().stop(Stop { pod: Some(life(name)), grace_seconds: grace, reason: String::new() });
    }

    pub async fn stopped(&mut self, name: &str) {
        self.until(&format!("the end of {name}"), |lab| lab.stopped.iter().any(|n| n == name)).await;
        self.stopped.retain(|other| other != name);
    }

    /// Stops and forgets the pod, and waits until its logs are gone too.
    pub async fn end(&mut self, name: &str) {
        self.stop(name, 10);
        self.stopped(name).await;
        self.pods().forget(life(name));
        let logs = self.data().join("logs").join(format!("default_{name}_uid-{name}"));
        while logs.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// All that there is on the host of any pod, in words.
    pub fn traces(&self) -> Vec<String> {
        let mut traces = self.host.leftovers();
        let dir = self.host.dir.path();
        for place in ["data/pods", "data/logs", "run/pods"] {
            let entries = std::fs::read_dir(dir.join(place)).into_iter().flatten().flatten();
            traces.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours: Vec<String> = ["data", "run"].map(|part| dir.join(part).display().to_string()).into();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let points =
            points.filter(|point| ours.iter().any(|place| point.starts_with(&format!("{place}/pods"))));
        traces.extend(points.map(|point| format!("mount {point}")));
        let links = run("ip", &["-o", "link", "show", "type", "veth"]);
        traces.extend(links.lines().map(str::to_owned));
        let parent = format!("berth-test-{}", std::process::id());
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for root in roots.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let entries = std::fs::read_dir(root.join(&parent)).into_iter().flatten().flatten();
            let groups = entries.filter(|entry| entry.path().is_dir());
            traces.extend(groups.map(|entry| format!("cgroup {}", entry.path().display())));
        }
        traces
    }

    /// Nothing is left; shims take a moment to end after their last container.
    pub async fn no_traces(&self) {
        let wait = async {
            while !self.traces().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
            panic!("left behind: {:#?}", self.traces());
        }
    }
}
