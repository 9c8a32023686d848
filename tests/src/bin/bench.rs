//! `make bench`: how fast and how small Berth is, against plain containerd on the same host in the same run.
//!
//! Prints a table with ratios and writes target/bench/summary.json. It measures and judges nothing: the goals
//! stand in docs/ARCHITECTURE.md.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::cluster::{self, Cluster};
use berth_tests::floor::{self, median};
use berth_tests::host::Host;
use berth_tests::process::{cpu_seconds, pss_mib};
use berth_tests::{fleet, image, kubectl, names, tools};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Measures Berth against plain containerd")]
struct Args {
    /// Rounds of everything; the median is shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds over which idle daemons are watched.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Subcommand)]
enum Sub {
    /// One round of the floor (run by the benchmark itself inside a host's namespaces).
    #[command(hide = true)]
    Floor { socket: PathBuf, dir: PathBuf },
    /// Only the fleet: a controller on one core, and many hosts that are played.
    Fleet {
        #[command(flatten)]
        size: fleet::Size,
    },
    /// The played hosts (run by the benchmark itself).
    #[command(hide = true)]
    FleetAgents {
        #[arg(long)]
        controller: String,
        #[arg(long)]
        token: String,
        #[arg(long)]
        authority: PathBuf,
        #[command(flatten)]
        size: fleet::Size,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Some(Sub::Floor { socket, dir }) => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            println!("{}", runtime.block_on(floor::round(&socket, &dir))?.to_json());
            Ok(())
        }
        Some(Sub::FleetAgents { controller, token, authority, size }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(fleet::agents::play(fleet::agents::Plan { controller, token, authority, size }))
        }
        Some(Sub::Fleet { size }) => {
            let rows = fleet_rows(size)?;
            show(&rows);
            // What was measured before stays beside it.
            let file = out_dir()?.join("summary.json");
            let before: Vec<Value> = match std::fs::read(&file) {
                Ok(text) => serde_json::from_slice(&text)?,
                Err(_) => Vec::new(),
            };
            let again = |row: &Value| rows.iter().any(|new| new["name"] == row["name"]);
            let all: Vec<&Value> = before.iter().filter(|row| !again(row)).chain(&rows).collect();
            Ok(std::fs::write(file, serde_json::to_string_pretty(&all)?)?)
        }
        None => bench(args.rounds.max(1), args.idle_seconds.max(1)),
    }
}

#[derive(Default)]
struct Samples {
    ordered: Vec<f64>,
    parallel: Vec<f64>,
    replace: Vec<f64>,
    gap: Vec<f64>,
}

fn bench(rounds: usize, idle_seconds: u64) -> Result<()> {
    let out = out_dir()?;
    let dir = out.join("cluster");
    Cluster::remove(&dir)?;
    let cluster = Cluster::start(&dir, &[("node1", 0)])?;
    let host = cluster.host()?;
    let archive = image::busybox(&cluster::images_dir()?)?;
    host.import(&archive)?;
    let socket = host.containerd_socket().display().to_string();
    let archive = archive.display().to_string();
    host.run("ctr", &["-a", &socket, "-n", "berth-floor", "images", "import", &archive])?;

    let (mut own, mut floor) = (Samples::default(), Samples::default());
    for round in 0..=rounds {
        // The first round fills caches and is not counted.
        let base = floor_round(host, &out)?;
        let ordered = start_ten(&cluster, "OrderedReady")?;
        let replace = replace_one(&cluster)?;
        let gap = update_one(&cluster, host)?;
        delete(&cluster)?;
        let parallel = start_ten(&cluster, "Parallel")?;
        if round < rounds {
            delete(&cluster)?;
        }
        eprintln!(
            "round {round}: ordered {ordered:.0} ms ({:.0}), parallel {parallel:.0} ms ({:.0}), replace {replace:.0} ms ({:.0}), update gap {gap:.0} ms ({:.0})",
            base["ordered"].as_f64().unwrap_or(0.0),
            base["parallel"].as_f64().unwrap_or(0.0),
            base["replace"].as_f64().unwrap_or(0.0),
            base["gap"].as_f64().unwrap_or(0.0)
        );
        if round > 0 {
            own.ordered.push(ordered);
            own.parallel.push(parallel);
            own.replace.push(replace);
            own.gap.push(gap);
            floor.ordered.push(base["ordered"].as_f64().context("floor")?);
            floor.parallel.push(base["parallel"].as_f64().context("floor")?);
            floor.replace.push(base["replace"].as_f64().context("floor")?);
            floor.gap.push(base["gap"].as_f64().context("floor")?);
        }
    }

    // Ten pods run now.
    let agent = pid(&host.dir.join("agent.pid"))?;
    let controller = pid(&dir.join("controller.pid"))?;
    let writers = log_writers(host)?;
    let writer_pss = writers.iter().map(|p| pss_mib(*p)).collect::<Result<Vec<f64>>>()?;
    if writer_pss.is_empty() {
        bail!("no log writer runs");
    }
    let before = cpu_seconds(agent)? + cpu_seconds(controller)?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(idle_seconds));
    let used = cpu_seconds(agent)? + cpu_seconds(controller)? - before;
    let idle = 100.0 * used / start.elapsed().as_secs_f64();

    let mut rows = Vec::new();
    for (name, own, floor) in [
        ("ordered-start-10", &mut own.ordered, &mut floor.ordered),
        ("parallel-start-10", &mut own.parallel, &mut floor.parallel),
        ("replace-pod", &mut own.replace, &mut floor.replace),
        ("update-gap", &mut own.gap, &mut floor.gap),
    ] {
        let (value, floor) = (median(own), median(floor));
        rows.push(json!({"name": name, "value": round1(value), "unit": "ms", "floor": round1(floor), "ratio": round2(value / floor)}));
    }
    for (name, value, unit) in [
        ("agent-pss-mib", pss_mib(agent)?, "MiB"),
        ("controller-pss-mib", pss_mib(controller)?, "MiB"),
        ("log-writer-pss-mib", writer_pss.iter().copied().fold(0.0, f64::max), "MiB"),
        ("idle-cpu-percent", idle, "% of a core"),
    ] {
        rows.push(json!({"name": name, "value": round2(value), "unit": unit, "floor": Value::Null, "ratio": Value::Null}));
    }
    // Each of what follows has the machine to itself.
    drop(cluster);
    let (median, worst) = delivered(&out)?;
    for (name, value) in [("record-delivered-p50-ms", median), ("record-delivered-worst-ms", worst)] {
        rows.push(json!({"name": name, "value": round1(value), "unit": "ms", "floor": Value::Null, "ratio": Value::Null}));
    }
    rows.extend(fleet_rows(fleet::Size::DEFAULT)?);
    std::fs::write(out.join("summary.json"), serde_json::to_string_pretty(&rows)?)?;
    show(&rows);
    println!("medians of {rounds} rounds; also in {}", out.join("summary.json").display());
    Ok(())
}

fn out_dir() -> Result<PathBuf> {
    let out = tools::target_dir()?.join("bench");
    std::fs::create_dir_all(&out)?;
    Ok(out)
}

fn fleet_rows(size: fleet::Size) -> Result<Vec<Value>> {
    let measured = fleet::run(&out_dir()?.join("fleet"), &std::env::current_exe()?, size)?;
    eprintln!("fleet: {}", measured.more);
    let rows = [
        ("fleet-placed-per-second", measured.placed_per_second, "pods/s"),
        ("fleet-records-delivered-p99-ms", measured.delivered_p99_ms, "ms"),
        ("fleet-api-get-p99-ms", measured.get_p99_ms, "ms"),
        ("fleet-controller-pss-mib", measured.pss_mib, "MiB"),
    ];
    let row = |(name, value, unit): (&str, f64, &str)| json!({"name": name, "value": round2(value), "unit": unit, "floor": Value::Null, "ratio": Value::Null});
    Ok(rows.map(row).into())
}

fn show(rows: &[Value]) {
    println!("{:<30} {:>10} {:>12} {:>10} {:>7}", "measure", "value", "unit", "floor", "ratio");
    for row in rows {
        let number = |v: &Value| v.as_f64().map_or("-".to_owned(), |f| format!("{f:.2}"));
        println!(
            "{:<30} {:>10} {:>12} {:>10} {:>7}",
            row["name"].as_str().unwrap_or_default(),
            number(&row["value"]),
            row["unit"].as_str().unwrap_or_default(),
            number(&row["floor"]),
            number(&row["ratio"])
        );
    }
}

/// Milliseconds from a pod's being asked for to its name's being answered, by each of three hosts: the median and
/// the worst.
fn delivered(out: &std::path::Path) -> Result<(f64, f64)> {
    let dir = out.join("three");
    Cluster::remove(&dir)?;
    let cluster = Cluster::start(&dir, &[("node1", 0), ("node2", 0), ("node3", 1)])?;
    let took = names::delivered(&cluster, 50)?;
    let mut took: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1000.0).collect();
    let worst = took.iter().copied().fold(0.0, f64::max);
    Ok((median(&mut took), worst))
}

fn round1(v: f64) -> f64 {
    (v * 10.0).round() / 10.0
}

fn round2(v: f64) -> f64 {
    (v * 100.0).round() / 100.0
}

fn floor_round(host: &Host, out: &std::path::Path) -> Result<Value> {
    let child = host
        .command(&std::env::current_exe()?)?
        .args(["floor", &host.containerd_socket().display().to_string()])
        .arg(host.dir.join("floor"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let done = kubectl::finish(child, "the floor", floor::LIMIT)?;
    if !done.ok {
        bail!("the floor failed: {}", done.stderr);
    }
    std::fs::write(out.join("floor.json"), &done.stdout)?;
    serde_json::from_str(done.stdout.trim()).context("the floor's answer")
}

fn manifest(policy: &str) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "ten"},
        "spec": {
            "replicas": 10, "serviceName": "ten", "podManagementPolicy": policy,
            "selector": {"matchLabels": {"app": "ten"}},
            "template": {
                "metadata": {"labels": {"app": "ten"}},
                "spec": {"containers": [{
                    "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", floor::COMMAND],
                }]},
            },
        },
    })
    .to_string()
}

/// Milliseconds from `apply` answered to the tenth pod Ready, as a client that watches sees it.
fn start_ten(cluster: &Cluster, policy: &str) -> Result<f64> {
    let watch = Watch::start(cluster, "/apis/apps/v1/namespaces/default/statefulsets?watch=true")?;
    cluster.kubectl.apply(&manifest(policy))?;
    let answered = Instant::now();
    let at = watch.until("ten Ready replicas", |e| e["object"]["status"]["readyReplicas"] == 10)?;
    Ok(at.saturating_duration_since(answered).as_secs_f64() * 1000.0)
}

/// Milliseconds from a pod's deletion being known to its replacement Ready.
fn replace_one(cluster: &Cluster) -> Result<f64> {
    let old = cluster.kubectl.field("pod ten-9", ".metadata.uid")?;
    let watch = Watch::start(cluster, TEN_9)?;
    cluster.kubectl.run("delete pod ten-9 --wait=false")?;
    let from = watch.until("the deletion", |e| !e["object"]["metadata"]["deletionTimestamp"].is_null())?;
    let to = watch.until("the replacement Ready", |e| ready_again(e, &old))?;
    Ok((to - from).as_secs_f64() * 1000.0)
}

const TEN_9: &str = "/api/v1/namespaces/default/pods?watch=true&fieldSelector=metadata.name%3Dten-9";

/// Whether an event shows a pod that is Ready and another than before.
fn ready_again(event: &Value, old: &str) -> bool {
    let object = &event["object"];
    object["metadata"]["uid"] != old
        && object["status"]["conditions"]
            .as_array()
            .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// Milliseconds from the end of the old process to the new pod Ready, when one pod gets a new image.
fn update_one(cluster: &Cluster, host: &Host) -> Result<f64> {
    let kubectl = &cluster.kubectl;
    kubectl.args(&[
        "patch",
        "sts",
        "ten",
        "-p",
        r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":9}}}}"#,
    ])?;
    let old = kubectl.field("pod ten-9", ".metadata.uid")?;
    let container = kubectl.field("pod ten-9", ".status.containerStatuses[0].containerID")?;
    let process = host.process_of(container.trim_start_matches("containerd://"))?;
    let watch = Watch::start(cluster, TEN_9)?;
    // Half a millisecond is near enough; not a reader's wake-up but the process itself is looked at.
    let ended = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_ended(process) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(500));
        }
        Instant::now()
    });
    kubectl.run("set image sts/ten main=busybox:2")?;
    let ready = watch.until("the updated pod Ready", |e| ready_again(e, &old))?;
    let ended = ended.join().map_err(|_| anyhow::anyhow!("looking at the old process panicked"))?;
    Ok(ready.saturating_duration_since(ended).as_secs_f64() * 1000.0)
}

/// Gone, or left for its parent to notice.
fn has_ended(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn delete(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.run("delete statefulset ten --cascade=foreground --timeout=60s")?;
    cluster.kubectl.run("wait --for=delete pod -l app=ten --timeout=60s")?;
    Ok(())
}

/// A raw watch whose events carry the time they arrived.
struct Watch {
    child: Child,
    events: Receiver<(Instant, Value)>,
}

impl Watch {
    fn start(cluster: &Cluster, path: &str) -> Result<Watch> {
        let path = format!(
            "{path}&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        );
        let mut command: Command = cluster.kubectl.command();
        let mut child = command.args(["get", "--raw", &path]).stdout(Stdio::piped()).spawn()?;
        let pipe = child.stdout.take().context("stdout")?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else { continue };
                if sender.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        let watch = Watch { child, events };
        // It watches from here on once the initial events are through.
        watch.until("the watch", |e| e["type"] == "BOOKMARK")?;
        Ok(watch)
    }

    fn until(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (at, event) =
                self.events.recv_timeout(left).with_context(|| format!("waiting for {what}"))?;
            if wanted(&event) {
                return Ok(at);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(file: &std::path::Path) -> Result<i32> {
    std::fs::read_to_string(file)?.trim().parse().with_context(|| file.display().to_string())
}

/// The log writers of this host's containers.
fn log_writers(host: &Host) -> Result<Vec<i32>> {
    let out = host.run("pgrep", &["-f", "berth-log-writer"]).unwrap_or_default();
    let marker = host.dir.display().to_string();
    Ok(out
        .lines()
        .filter_map(|l| l.trim().parse().ok())
        .filter(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let parent = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.starts_with("/")
                && line.contains("berth-log-writer")
                && (line.contains(&marker) || parent.contains("CONTAINER_ID"))
        })
        .collect())
}
