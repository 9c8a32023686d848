//! A fleet on one machine: the controller alone on one core, and on another some hundred hosts that are played
//! ([`agents`]), ten thousand pods, and a client that asks for objects all the while.

pub mod agents;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use hyper::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::api::Api;
use crate::cluster::free_port;
use crate::kubectl::Kubectl;
use crate::{host, process, tools, wait};

const START: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(300);
/// Between two requests for one object.
const PACE: Duration = Duration::from_millis(20);

/// How large the fleet is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Size {
    #[arg(long, default_value_t = 500)]
    pub agents: usize,
    #[arg(long, default_value_t = 200)]
    pub sets: usize,
    /// Pods of each set.
    #[arg(long, default_value_t = 50)]
    pub replicas: usize,
}

impl Size {
    /// What the goals are set for.
    pub const DEFAULT: Size = Size { agents: 500, sets: 200, replicas: 50 };

    pub fn pods(&self) -> usize {
        self.sets * self.replicas
    }

    /// The number of a pod `s<set>-<ordinal>`.
    fn index(&self, pod: &str) -> Option<usize> {
        let (set, ordinal) = pod.strip_prefix('s')?.split_once('-')?;
        let (set, ordinal): (usize, usize) = (set.parse().ok()?, ordinal.parse().ok()?);
        (set < self.sets && ordinal < self.replicas).then(|| set * self.replicas + ordinal)
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    pub placed_per_second: f64,
    pub delivered_p99_ms: f64,
    pub get_p99_ms: f64,
    pub pss_mib: f64,
    /// What the numbers above are made of, in words.
    pub more: String,
}

/// Runs the fleet below `dir`, which is removed first; logs are left there. `program` plays the hosts when it is
/// called with `fleet-agents`.
pub fn run(dir: &Path, program: &Path, size: Size) -> Result<Measured> {
    host::signal_and_wait(&dir.join("controller.pid"), Signal::SIGKILL)?;
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    let fleet = Fleet::start(dir)?;
    let mut hosts = fleet.hosts(program, size)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fleet.measure(size, &mut hosts))
}

struct Fleet {
    dir: PathBuf,
    agent_port: u16,
    kubectl: Kubectl,
}

impl Fleet {
    fn start(dir: &Path) -> Result<Fleet> {
        let (api_port, agent_port) = (free_port()?, free_port()?);
        let data_dir = dir.join("controller");
        let mut command = on_core(0, &tools::own("berth-controller")?)?;
        command.arg("serve").arg("--data-dir").arg(&data_dir);
        command.args(["--listen", &format!("127.0.0.1:{api_port}")]);
        command.args(["--agent-listen", &format!("127.0.0.1:{agent_port}")]);
        // Five hundred hosts have a /24 each.
        command.args(["--pod-cidr", "10.64.0.0/10", "--service-cidr", "10.32.0.0/16"]);
        command.env("RUST_LOG", std::env::var("FLEET_LOG").unwrap_or_else(|_| "warn".to_owned()));
        host::spawn_daemon(command, dir, "controller")?;
        let kubectl = Kubectl { program: tools::kubectl()?, kubeconfig: data_dir.join("admin.kubeconfig") };
        let fleet = Fleet { dir: dir.to_owned(), agent_port, kubectl };
        wait::until_true("the controller's answer", START, || {
            if !host::running(&dir.join("controller.pid")) {
                bail!("the controller ended:\n{}", tools::tail(&dir.join("controller.log"), 20));
            }
            Ok(fleet.kubectl.kubeconfig.exists() && fleet.kubectl.run("get --raw /readyz").is_ok())
        })?;
        Ok(fleet)
    }

    /// The hosts' process, once all have joined.
    fn hosts(&self, program: &Path, size: Size) -> Result<Hosts> {
        let mut token = Command::new(tools::own("berth-controller")?);
        token.args(["token", "create", "--data-dir"]).arg(self.dir.join("controller"));
        let token = tools::output(token)?;
        let authority = self.kubectl.run(
            "config view --raw --minify -o jsonpath={.clusters[0].cluster.certificate-authority-data}",
        )?;
        let authority = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, authority.trim())?;
        std::fs::write(self.dir.join("ca.pem"), authority)?;
        let mut command = on_core(1, program)?;
        command.args(["fleet-agents", "--controller", &format!("127.0.0.1:{}", self.agent_port)]);
        command.args(["--token", token.trim(), "--authority"]).arg(self.dir.join("ca.pem"));
        for (flag, value) in [("--agents", size.agents), ("--sets", size.sets), ("--replicas", size.replicas)]
        {
            command.args([flag, &value.to_string()]);
        }
        let log = std::fs::File::create(self.dir.join("agents.log"))?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let pipe = child.stdout.take().context("stdout")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let hosts = Hosts { child, lines, dir: self.dir.clone() };
        hosts.line(START)?;
        Ok(hosts)
    }

    async fn measure(&self, size: Size, hosts: &mut Hosts) -> Result<Measured> {
        let pid = host::pid_of(&self.dir.join("controller.pid")).context("the controller's pid")?;
        let mut api = Api::connect(&self.kubectl).await?;
        for set in 0..size.sets {
            api.create("/api/v1/namespaces/default/services", &service(set)).await?;
        }
        let asking = tokio::spawn(ask(Api::connect(&self.kubectl).await?, size));
        let (from, cpu) = (now_us(), process::cpu_seconds(pid)?);
        for set in 0..size.sets {
            api.create("/apis/apps/v1/namespaces/default/statefulsets", &stateful_set(set, size.replicas))
                .await?;
        }
        let line = hosts.last_line(LIMIT).await?;
        let answers = asking.is_finished();
        asking.abort();
        let found: Value = serde_json::from_str(&line).context("the hosts' line")?;
        let used = process::cpu_seconds(pid)? - cpu;
        let last = found["last_assigned_us"].as_u64().context("last_assigned_us")?;
        let seconds = last.saturating_sub(from) as f64 / 1e6;
        if answers {
            bail!("the client that asks for objects has failed");
        }
        // The connection before was idle for too long.
        self.all_ready(&mut Api::connect(&self.kubectl).await?, size).await?;
        let pss_mib = process::pss_mib(pid)?;
        let mut gets = std::mem::take(&mut *GETS.lock().map_err(|_| anyhow::anyhow!("a panic"))?);
        gets.sort_unstable();
        let number = |field: &str| found[field].as_f64().with_context(|| field.to_owned());
        let get =
            |share: f64| percentile(&gets, share).map(|us| us as f64 / 1000.0).context("no answer came");
        Ok(Measured {
            placed_per_second: size.pods() as f64 / seconds,
            delivered_p99_ms: number("p99_ms")?,
            get_p99_ms: get(0.99)?,
            pss_mib,
            more: format!(
                "{} pods on {} hosts placed in {seconds:.2} s; {} records delivered: median {:.0} ms, last {:.0} ms; \
                 {} answers: median {:.1} ms, last {:.1} ms; {used:.1} s of the core",
                size.pods(),
                size.agents,
                found["delivered"],
                number("p50_ms")?,
                number("max_ms")?,
                gets.len(),
                get(0.5)?,
                get(1.0)?,
            ),
        })
    }

    async fn all_ready(&self, api: &mut Api, size: Size) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let sets = api.get("/apis/apps/v1/namespaces/default/statefulsets").await?;
            let ready: u64 = sets["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|set| set["status"]["readyReplicas"].as_u64())
                .sum();
            if ready == size.pods() as u64 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("only {ready} pods became ready; see {}", self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // What it measured does not depend on its end.
        let _ = host::signal_and_wait(&self.dir.join("controller.pid"), Signal::SIGKILL);
    }
}

struct Hosts {
    child: Child,
    lines: mpsc::Receiver<String>,
    dir: PathBuf,
}

impl Hosts {
    fn line(&self, limit: Duration) -> Result<String> {
        self.lines.recv_timeout(limit).map_err(|_| {
            anyhow::anyhow!("the hosts say nothing:\n{}", tools::tail(&self.dir.join("agents.log"), 20))
        })
    }

    /// As `line`, while other tasks go on.
    async fn last_line(&self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.try_recv() {
                Ok(line) => return Ok(line),
                Err(mpsc::TryRecvError::Empty) if Instant::now() < deadline => {}
                Err(_) => return self.line(Duration::ZERO),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Microseconds from when each request was due to its answer.
static GETS: std::sync::Mutex<Vec<u64>> = std::sync::Mutex::new(Vec::new());

/// Asks for one object at a time until it is aborted.
async fn ask(mut api: Api, size: Size) -> Result<()> {
    let mut due = tokio::time::Instant::now();
    for n in 0.. {
        tokio::time::sleep_until(due).await;
        let path = match n % 2 {
            0 => format!("/api/v1/namespaces/default/pods/s{}-0", n / 2 % size.sets),
            _ => format!("/api/v1/namespaces/default/services/s{}", n / 2 % size.sets),
        };
        let (status, _) = api.ask(Method::GET, &path, None).await?;
        if !status.is_success() && status != StatusCode::NOT_FOUND {
            bail!("{path}: {status}");
        }
        let taken = u64::try_from(due.elapsed().as_micros())?;
        GETS.lock().map_err(|_| anyhow::anyhow!("a panic"))?.push(taken);
        due += PACE;
    }
    Ok(())
}

/// A command that runs on one core, where there are several.
fn on_core(core: usize, program: &Path) -> Result<Command> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if core >= cores {
        return Ok(Command::new(program));
    }
    let mut command = Command::new(tools::find("taskset")?);
    command.args(["-c", &core.to_string()]).arg(program);
    Ok(command)
}

fn service(set: usize) -> Value {
    let name = format!("s{set}");
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    })
}

fn stateful_set(set: usize, replicas: usize) -> Value {
    let name = format!("s{set}");
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "serviceName": name, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                    "ports": [{"name": "http", "containerPort": 80}],
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                }]},
            },
        },
    })
}

/// Of numbers in order; 1.0 is the last.
fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get(((last as f64) * share).round() as usize).copied()
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
