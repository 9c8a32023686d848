//! Hosts that are played: real connections, certificates and messages, and pods that are Ready as soon as they are
//! assigned. They run in a process of their own and note when they hear of what.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use berth_proto::agent_message::Message as Up;
use berth_proto::controller_message::Message as Down;
use berth_proto::node_client::NodeClient;
use berth_proto::{
    AgentMessage, Condition, ContainerStatus, Heartbeat, Hello, JoinRequest, NetworkUpdate, NodeInfo,
    NodeStatus, PodRef, PodStatus, Stopped,
};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::Size;

/// Hosts that join at the same time.
const JOINING: usize = 16;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// As the real agent.
const LARGEST: usize = 64 << 20;

/// What the hosts are to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub controller: String,
    pub token: String,
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    pub size: Size,
}

/// When what was heard, in microseconds of Unix time.
struct Seen {
    size: Size,
    /// A pod's first sign of being bound.
    bound: Vec<AtomicU64>,
    assigned: AtomicUsize,
    last_assigned: AtomicU64,
    joined: AtomicUsize,
    /// Hosts that know every pod's address.
    complete: AtomicUsize,
}

impl Seen {
    fn new(size: Size) -> Seen {
        Seen {
            size,
            bound: (0..size.pods()).map(|_| AtomicU64::new(u64::MAX)).collect(),
            assigned: AtomicUsize::new(0),
            last_assigned: AtomicU64::new(0),
            joined: AtomicUsize::new(0),
            complete: AtomicUsize::new(0),
        }
    }

    fn bound(&self, pod: usize, at: u64) {
        if let Some(before) = self.bound.get(pod) {
            before.fetch_min(at, Ordering::Relaxed);
        }
    }
}

/// Plays the hosts until all pods are assigned and all hosts know of all of them, and stays until it is killed.
/// Says so on standard output: `ready`, then one line of JSON.
pub async fn play(plan: Plan) -> Result<()> {
    let authority = std::fs::read_to_string(&plan.authority)?;
    let seen = Arc::new(Seen::new(plan.size));
    let joining = Arc::new(Semaphore::new(JOINING));
    let mut hosts = JoinSet::new();
    for index in 0..plan.size.agents {
        let (plan, seen, joining, authority) =
            (plan.clone(), seen.clone(), joining.clone(), authority.clone());
        hosts.spawn(async move {
            let permit = joining.acquire_owned().await?;
            let host = Host::join(index, &plan, &authority).await.with_context(|| format!("host {index}"))?;
            drop(permit);
            host.live(&seen).await.with_context(|| format!("host {index}"))
        });
    }
    let mut waiting = tokio::time::interval(Duration::from_millis(20));
    let (mut said_ready, mut said_all) = (false, false);
    loop {
        tokio::select! {
            ended = hosts.join_next() => match ended {
                Some(Ok(Ok(never))) => match never {},
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(panic)) => return Err(panic.into()),
                None => bail!("there are no hosts"),
            },
            _ = waiting.tick() => {}
        }
        let count = |n: &AtomicUsize| n.load(Ordering::Relaxed);
        if !said_ready && count(&seen.joined) == plan.size.agents {
            said_ready = true;
            println!("ready");
        }
        let all = count(&seen.complete) == plan.size.agents && count(&seen.assigned) >= plan.size.pods();
        if all && !said_all {
            said_all = true;
            let mut late = LATE.lock().map_err(|_| anyhow::anyhow!("a host panicked"))?.take_latencies(&seen);
            late.sort_unstable();
            let at = |share: f64| super::percentile(&late, share).map(|us| us as f64 / 1000.0);
            println!(
                "{}",
                json!({
                    "last_assigned_us": seen.last_assigned.load(Ordering::Relaxed),
                    "delivered": late.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
                })
            );
        }
    }
}

/// What all hosts noted: pod and time.
#[derive(Default)]
struct Notes(Vec<(u32, u64)>);

static LATE: std::sync::Mutex<Notes> = std::sync::Mutex::new(Notes(Vec::new()));

impl Notes {
    /// How long after a pod was bound each host heard of it, in microseconds.
    fn take_latencies(&mut self, seen: &Seen) -> Vec<u64> {
        let notes = std::mem::take(&mut self.0);
        let bound = |pod: u32| seen.bound.get(pod as usize).map_or(0, |at| at.load(Ordering::Relaxed));
        notes.into_iter().map(|(pod, at)| at.saturating_sub(bound(pod))).collect()
    }
}

struct Host {
    index: usize,
    channel: Channel,
    name: String,
    ip: String,
    known: Vec<bool>,
    notes: Vec<(u32, u64)>,
}

enum Never {}

impl Host {
    async fn join(index: usize, plan: &Plan, authority: &str) -> Result<Host> {
        let name = format!("host{index:03}");
        let endpoint = |tls: ClientTlsConfig| -> Result<Endpoint> {
            let tls = tls.ca_certificate(Certificate::from_pem(authority));
            Ok(Endpoint::from_shared(format!("https://{}", plan.controller))?
                .tls_config(tls)?
                .tcp_nodelay(true))
        };
        let key = rcgen::KeyPair::generate()?;
        let request = rcgen::CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?.pem()?;
        let stranger = endpoint(ClientTlsConfig::new())?.connect().await?;
        let asked =
            JoinRequest { token: plan.token.clone(), node_name: name.clone(), certificate_request: request };
        let joined = NodeClient::new(stranger).join(asked).await?.into_inner();
        let identity = Identity::from_pem(joined.certificate, key.serialize_pem());
        let channel = endpoint(ClientTlsConfig::new().identity(identity))?.connect().await?;
        let ip = format!("192.168.{}.{}", index / 250, index % 250 + 1);
        Ok(Host { index, channel, name, ip, known: vec![false; plan.size.pods()], notes: Vec::new() })
    }

    async fn live(mut self, seen: &Seen) -> Result<Never> {
        let (up, messages) = mpsc::channel(256);
        let say = async |message: Up| {
            up.send(AgentMessage { message: Some(message) }).await.context("the session has ended")
        };
        say(Up::Hello(self.hello())).await?;
        let mut client = NodeClient::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        let mut down = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            let message = tokio::select! {
                _ = heartbeat.tick() => {
                    say(Up::Heartbeat(Heartbeat {})).await?;
                    continue;
                }
                message = down.message() => message?.context("the controller has ended the session")?,
            };
            match message.message {
                Some(Down::Synced(_)) => drop(seen.joined.fetch_add(1, Ordering::Relaxed)),
                Some(Down::Assign(assignment)) => {
                    let Some(pod) = assignment.pod else { continue };
                    let addresses = assignment.network.map(|n| n.addresses).unwrap_or_default();
                    self.assigned(&pod, seen);
                    say(Up::PodStatus(self.running(pod, &addresses, assignment.generation))).await?;
                }
                Some(Down::Stop(stop)) => say(Up::Stopped(Stopped { pod: stop.pod })).await?,
                Some(Down::Network(update)) => self.heard(&update, seen)?,
                _ => {}
            }
        }
    }

    fn assigned(&self, pod: &PodRef, seen: &Seen) {
        let now = now();
        if let Some(index) = seen.size.index(&pod.name) {
            // The epoch is the time of binding, unless more were bound than there are milliseconds.
            seen.bound(index, now.min(pod.epoch.saturating_mul(1000)));
        }
        seen.assigned.fetch_add(1, Ordering::Relaxed);
        seen.last_assigned.fetch_max(now, Ordering::Relaxed);
    }

    fn heard(&mut self, update: &NetworkUpdate, seen: &Seen) -> Result<()> {
        let now = now();
        for endpoint in update.endpoints.iter().flat_map(|e| &e.endpoints).filter(|e| !e.addresses.is_empty())
        {
            let Some(index) = seen.size.index(&endpoint.id) else { continue };
            if std::mem::replace(&mut self.known[index], true) {
                continue;
            }
            seen.bound(index, now);
            self.notes.push((u32::try_from(index)?, now));
        }
        if self.notes.len() == seen.size.pods() {
            let notes = std::mem::take(&mut self.notes);
            LATE.lock().map_err(|_| anyhow::anyhow!("another host panicked"))?.0.extend(notes);
            seen.complete.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn hello(&self) -> Hello {
        let info = NodeInfo {
            operating_system: "linux".into(),
            architecture: "amd64".into(),
            container_runtime_version: "played://1".into(),
            machine_id: format!("{:032x}", self.index),
            ..NodeInfo::default()
        };
        let node = NodeStatus {
            cpu_millis: 64_000,
            memory_bytes: 256 << 30,
            ephemeral_storage_bytes: 1 << 40,
            max_pods: 110,
            hostname: self.name.clone(),
            internal_ips: vec![self.ip.clone()],
            info: Some(info),
            runtime_ready: true,
            ..NodeStatus::default()
        };
        Hello {
            node_name: self.name.clone(),
            node: Some(node),
            agent_version: "played".into(),
            ..Hello::default()
        }
    }

    fn running(&self, pod: PodRef, addresses: &[String], generation: i64) -> PodStatus {
        let at = i64::try_from(now() / 1000).unwrap_or(0);
        let condition = |kind: &str| Condition {
            r#type: kind.into(),
            status: "True".into(),
            last_transition_ms: at,
            ..Condition::default()
        };
        let container = ContainerStatus {
            name: "main".into(),
            image: "busybox".into(),
            image_id: "sha256:0".into(),
            container_id: format!("played://{}", pod.uid),
            ready: true,
            started: true,
            ..ContainerStatus::default()
        };
        PodStatus {
            pod: Some(pod),
            phase: "Running".into(),
            host_ip: self.ip.clone(),
            pod_ips: addresses.iter().filter_map(|a| a.split('/').next().map(str::to_owned)).collect(),
            start_time_ms: at,
            containers: vec![container],
            conditions: ["Initialized", "ContainersReady", "Ready"].map(condition).into(),
            observed_generation: generation,
            ..PodStatus::default()
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
