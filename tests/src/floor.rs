//! What the same work costs on plain containerd: the floor the benchmark compares with.
//!
//! A small program on containerd's gRPC API: per container a network namespace, a CNI call (ptp + static, as
//! Berth's), a snapshot, a container, a task. It runs inside a host's namespaces, shares no code with the
//! agent, and does only what cannot be left out.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateRequest as LeaseRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteRequest as LeaseDeleteRequest, DeleteTaskRequest, GetImageRequest,
    KillRequest, ReadContentRequest, StartRequest, WaitRequest,
    container::Runtime,
    containers_client::ContainersClient,
    content_client::ContentClient,
    images_client::ImagesClient,
    leases_client::LeasesClient,
    snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient},
    tasks_client::TasksClient,
};
use containerd_client::with_namespace;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use prost_types::Any;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tonic::Request;
use tonic::transport::Channel;

use crate::tools;

/// Milliseconds of one round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Ten containers, one after another.
    pub ordered: f64,
    /// Ten at once.
    pub parallel: f64,
    /// One: kill, remove, CNI DEL, and start again.
    pub replace: f64,
    /// The same from the old process's end on.
    pub gap: f64,
}

impl Round {
    /// One line of JSON, as the benchmark reads it from its child.
    pub fn to_json(self) -> Value {
        json!({"ordered": self.ordered, "parallel": self.parallel, "replace": self.replace, "gap": self.gap})
    }
}

const COUNT: usize = 10;
const IMAGE: &str = "docker.io/library/busybox:latest";
const NAMESPACE: &str = "berth-floor";
const LEASE: &str = "floor";
/// The same command the benchmark's pods run: it ends at once on TERM.
pub const COMMAND: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

#[derive(Clone)]
struct Floor {
    channel: Channel,
    dir: PathBuf,
    cni: PathBuf,
    parent: String,
}

/// Runs one round on the containerd at `socket`, which holds the busybox image in namespace `berth-floor`.
pub async fn round(socket: &Path, dir: &Path) -> Result<Round> {
    std::fs::create_dir_all(dir)?;
    let channel = containerd_client::connect(socket).await.context("containerd")?;
    let floor =
        Floor { parent: chain_id(&channel).await?, channel, dir: dir.to_owned(), cni: tools::cni_dir()? };

    let mut leases = LeasesClient::new(floor.channel.clone());
    let request = LeaseRequest { id: LEASE.into(), ..Default::default() };
    leases.create(with_namespace!(request, NAMESPACE)).await?;

    let start = Instant::now();
    for i in 0..COUNT {
        floor.start(i).await?;
    }
    let ordered = ms(start);

    let start = Instant::now();
    let ended = floor.stop(0).await?;
    floor.start(0).await?;
    let (replace, gap) = (ms(start), ms(ended));
    for i in 0..COUNT {
        floor.stop(i).await?;
    }

    let start = Instant::now();
    let tasks: Vec<_> = (0..COUNT)
        .map(|i| {
            let floor = floor.clone();
            tokio::spawn(async move { floor.start(i).await })
        })
        .collect();
    for task in tasks {
        task.await.context("a start panicked")??;
    }
    let parallel = ms(start);
    for i in 0..COUNT {
        floor.stop(i).await?;
    }
    let request = LeaseDeleteRequest { id: LEASE.into(), sync: true };
    leases.delete(with_namespace!(request, NAMESPACE)).await?;
    Ok(Round { ordered, parallel, replace, gap })
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

impl Floor {
    /// The request in our namespace and under our lease: a snapshot that no container names yet would be
    /// collected between two calls.
    fn call<T>(&self, request: T) -> Result<Request<T>> {
        let mut request = with_namespace!(request, NAMESPACE);
        request.metadata_mut().insert("containerd-lease", LEASE.parse()?);
        Ok(request)
    }

    fn netns(&self, i: usize) -> PathBuf {
        self.dir.join(format!("netns-{i}"))
    }

    async fn start(&self, i: usize) -> Result<()> {
        let id = format!("floor-{i}");
        let this = self.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            make_netns(&this.netns(i))?;
            this.cni("ADD", i)
        })
        .await??;

        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let request = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.clone(),
            parent: self.parent.clone(),
            ..Default::default()
        };
        let mounts = snapshots.prepare(self.call(request)?).await?.into_inner().mounts;

        let container = Container {
            id: id.clone(),
            image: IMAGE.into(),
            runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: serde_json::to_vec(&spec(&self.netns(i)))?,
            }),
            snapshotter: "overlayfs".into(),
            snapshot_key: id.clone(),
            ..Default::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        ContainersClient::new(self.channel.clone()).create(self.call(request)?).await?;

        let mut tasks = TasksClient::new(self.channel.clone());
        let request = CreateTaskRequest { container_id: id.clone(), rootfs: mounts, ..Default::default() };
        tasks.create(self.call(request)?).await?;
        let request = StartRequest { container_id: id, ..Default::default() };
        tasks.start(self.call(request)?).await?;
        Ok(())
    }

    /// When its process ended.
    async fn stop(&self, i: usize) -> Result<Instant> {
        let id = format!("floor-{i}");
        let mut tasks = TasksClient::new(self.channel.clone());
        let request = KillRequest { container_id: id.clone(), signal: 15, ..Default::default() };
        tasks.kill(self.call(request)?).await?;
        let request = WaitRequest { container_id: id.clone(), ..Default::default() };
        tasks.wait(self.call(request)?).await?;
        let ended = Instant::now();
        let request = DeleteTaskRequest { container_id: id.clone() };
        tasks.delete(self.call(request)?).await?;
        let request = DeleteContainerRequest { id: id.clone() };
        ContainersClient::new(self.channel.clone()).delete(self.call(request)?).await?;
        let request = RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: id };
        SnapshotsClient::new(self.channel.clone()).remove(self.call(request)?).await?;
        let this = self.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            this.cni("DEL", i)?;
            let path = this.netns(i);
            umount2(&path, MntFlags::MNT_DETACH)?;
            Ok(std::fs::remove_file(&path)?)
        })
        .await??;
        Ok(ended)
    }

    fn cni(&self, verb: &str, i: usize) -> Result<()> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "floor", "type": "ptp",
            "ipam": {"type": "static", "addresses": [{"address": format!("10.98.0.{}/24", i + 2), "gateway": "10.98.0.1"}]},
        });
        let mut child = Command::new(self.cni.join("ptp"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("floor-{i}"))
            .env("CNI_NETNS", self.netns(i))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.cni)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(config.to_string().as_bytes())?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("CNI {verb}: {}", String::from_utf8_lossy(&out.stdout));
        }
        Ok(())
    }
}

/// A network namespace pinned at `path`.
fn make_netns(path: &Path) -> Result<()> {
    File::create(path)?;
    let target = path.to_owned();
    std::thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let source = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
        mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the namespace's thread panicked"))?
}

/// The chain id of the image's single layer, which is its diff id: what snapshots are prepared from.
async fn chain_id(channel: &Channel) -> Result<String> {
    let request = GetImageRequest { name: IMAGE.into() };
    let image =
        ImagesClient::new(channel.clone()).get(with_namespace!(request, NAMESPACE)).await?.into_inner();
    let digest = image.image.and_then(|i| i.target).context("an image has a target")?.digest;
    let manifest = blob(channel, &digest).await?;
    let config = blob(channel, manifest["config"]["digest"].as_str().context("config")?).await?;
    let layers = config["rootfs"]["diff_ids"].as_array().context("layers")?;
    let mut chain = String::new();
    for layer in layers.iter().filter_map(Value::as_str) {
        chain = if chain.is_empty() {
            layer.to_owned()
        } else {
            let hex: String =
                Sha256::digest(format!("{chain} {layer}")).iter().map(|b| format!("{b:02x}")).collect();
            format!("sha256:{hex}")
        };
    }
    Ok(chain)
}

async fn blob(channel: &Channel, digest: &str) -> Result<Value> {
    let request = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
    let mut stream =
        ContentClient::new(channel.clone()).read(with_namespace!(request, NAMESPACE)).await?.into_inner();
    let mut data = Vec::new();
    while let Some(part) = stream.message().await? {
        data.extend(part.data);
    }
    Ok(serde_json::from_slice(&data)?)
}

fn spec(netns: &Path) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["sh", "-c", COMMAND], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": netns.display().to_string()},
            ],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    })
}

/// The median of a list, which must not be empty.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// How long a round may take before the benchmark gives up.
pub const LIMIT: Duration = Duration::from_secs(120);
