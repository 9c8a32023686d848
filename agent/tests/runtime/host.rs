//! A host to run pods on: a real containerd with all its state in a temporary directory, in mount and network
//! namespaces that end with the test's process, and with a cgroup parent of its own.

#![allow(dead_code)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use berth_agent::{
    cgroup::{Cgroups, PodLimits},
    network::{Attachment, Network, NetworkConfig},
    runtime::{ContainerSpec, Exit, Image, LogTarget, Resources, Runtime, RuntimeConfig, UserSpec},
};
use nix::sched::{CloneFlags, unshare};
use sha2::{Digest, Sha256};

pub const IMAGE: &str = "docker.io/library/box:1";

/// Runs a test in namespaces of its own, with a tokio runtime inside them.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    assert!(nix::unistd::geteuid().is_root(), "these tests run containers: run them as root");
    std::thread::scope(|scope| {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            run("mount", &["--make-rprivate", "/"]);
            // Shims' sockets and runc's state are always there, whatever containerd's own directories are.
            fs::create_dir_all("/run/containerd").unwrap();
            run("mount", &["-t", "tmpfs", "tmpfs", "/run/containerd"]);
            run("ip", &["link", "set", "lo", "up"]);
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(240), test()).await.expect("too slow")
            });
            runtime.shutdown_background();
        };
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub struct Containerd {
    pub dir: PathBuf,
    child: Child,
}

impl Containerd {
    /// Debian's by default; BERTH_TEST_CONTAINERD names a directory with another's binaries.
    fn binary(name: &str) -> PathBuf {
        match std::env::var_os("BERTH_TEST_CONTAINERD") {
            Some(dir) => PathBuf::from(dir).join(name),
            None => name.into(),
        }
    }

    fn spawn(dir: &Path) -> Child {
        let config = format!(
            r#"version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{0}/containerd.sock"
[debug]
  level = "debug"
"#,
            dir.display()
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("containerd.log")).unwrap();
        let mut command = Command::new(Self::binary("containerd"));
        if let Some(path) = std::env::var_os("BERTH_TEST_CONTAINERD") {
            let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
            command.env("PATH", path);
        }
        command
            .arg("--config")
            .arg(dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    pub fn start(dir: &Path) -> Containerd {
        Containerd { child: Self::spawn(dir), dir: dir.into() }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    pub fn start_again(&mut self) {
        self.child = Self::spawn(&self.dir);
    }

    pub fn ctr(&self, args: &[&str]) -> String {
        let socket = self.dir.join("containerd.sock").display().to_string();
        let mut all = vec!["-a", &socket];
        all.extend(args);
        run(&Self::binary("ctr").display().to_string(), &all)
    }

    /// Pids of the shims of this containerd.
    pub fn shims(&self) -> Vec<i32> {
        let ours = self.dir.display().to_string();
        processes()
            .into_iter()
            .filter(|(_, line)| line.contains("containerd-shim") && line.contains(&ours))
            .map(|(pid, _)| pid)
            .collect()
    }
}

/// All processes with their command lines.
pub fn processes() -> Vec<(i32, String)> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.shims() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("containerd's last words:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

pub struct Host {
    pub containerd: Containerd,
    pub runtime: Runtime,
    pub network: Network,
    pub cgroups: Cgroups,
    parent: String,
    // Last: the directory goes after all that is in it.
    pub dir: tempfile::TempDir,
}

impl Host {
    pub async fn new() -> Host {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut RuntimeConfig)) -> Host {
        let dir = tempfile::Builder::new().prefix("berth-").tempdir().unwrap();
        let containerd = Containerd::start(dir.path());
        let mut config = RuntimeConfig::new(
            dir.path().join("containerd.sock"),
            env!("CARGO_BIN_EXE_berth-log-writer"),
            dir.path().join("exec"),
        );
        change(&mut config);
        let runtime = Runtime::connect(config).await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), runtime.up()).await.expect("containerd comes up");
        let mut network = NetworkConfig::new(dir.path().join("run"));
        network.cni_conf_dir = dir.path().join("net.d");
        let network = Network::open(network).await.unwrap();
        let parent = format!("/berth-test-{}", std::process::id());
        let cgroups = Cgroups::open(&parent).await.unwrap();
        Host { containerd, runtime, network, cgroups, parent, dir }
    }

    /// With the test image in containerd, unpacked.
    pub async fn with_image() -> (Host, Arc<Image>) {
        let host = Host::new().await;
        host.import("berth", &[]).await;
        let image = host.runtime.find_image(IMAGE).await.unwrap().expect("just imported");
        (host, image)
    }

    pub async fn import(&self, namespace: &str, flags: &[&str]) {
        let archive = archive(&self.dir.path().join("image"));
        let archive = archive.display().to_string();
        let mut args = vec!["-n", namespace, "images", "import"];
        args.extend(flags);
        args.push(&archive);
        self.containerd.ctr(&args);
    }

    /// A pod with pinned namespaces and a cgroup.
    pub async fn pod(&self, uid: &str) -> Pod<'_> {
        self.network.pin(uid, &format!("host-{uid}")).await.unwrap();
        self.cgroups.make(uid, &PodLimits::default()).await.unwrap();
        fs::create_dir_all(self.dir.path().join("logs")).unwrap();
        Pod { host: self, uid: uid.into() }
    }

    /// As containerd does it by itself every now and then.
    pub fn collect_garbage(&self) {
        self.containerd.ctr(&["-n", "berth", "leases", "create", "--id", "nothing"]);
        self.containerd.ctr(&["-n", "berth", "leases", "delete", "--sync", "nothing"]);
    }

    /// What is left in containerd of ours, in words.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (what, args) in [
            ("container", &["-n", "berth", "containers", "ls", "-q"][..]),
            ("task", &["-n", "berth", "tasks", "ls", "-q"]),
            ("lease", &["-n", "berth", "leases", "ls", "-q"]),
        ] {
            left.extend(self.containerd.ctr(args).split_whitespace().map(|one| format!("{what} {one}")));
        }
        let snapshots = self.containerd.ctr(&["-n", "berth", "snapshots", "ls"]);
        left.extend(
            snapshots
                .lines()
                .filter(|l| !l.contains("Committed") && !l.starts_with("KEY"))
                .map(str::to_owned),
        );
        left.extend(self.containerd.shims().iter().map(|pid| format!("shim {pid}")));
        left
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What runs in our cgroups, whatever a failed test has left. The namespaces go with this process.
        let mut dirs = vec![];
        let base = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        dirs.extend(base.map(|entry| entry.path().join(&self.parent[1..])));
        dirs.push(Path::new("/sys/fs/cgroup").join(&self.parent[1..]));
        for pid in self.containerd.shims() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for _ in 0..200 {
            dirs.retain(|dir| dir.exists());
            if dirs.is_empty() {
                break;
            }
            for dir in &dirs {
                clear(dir);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let ours = self.dir.path().display().to_string();
        let mut mounts: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|m| m.starts_with(&ours)).collect();
        mounts.reverse();
        for mount in mounts {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        clear(&entry.path());
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        let pid: i32 = pid.parse().unwrap_or(0);
        if pid > 0 {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _ = fs::remove_dir(dir);
}

pub struct Pod<'a> {
    pub host: &'a Host,
    pub uid: String,
}

impl Pod<'_> {
    pub fn container(&self, name: &str, image: &Arc<Image>, script: &str) -> ContainerSpec {
        let id = format!("{}-{name}", self.uid);
        ContainerSpec {
            labels: [("berth.dev/pod.uid".into(), self.uid.clone())].into(),
            image: image.clone(),
            group: self.uid.clone(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            args: vec![],
            env: vec![],
            working_dir: String::new(),
            user: UserSpec::default(),
            mounts: vec![],
            namespaces: self.host.network.namespaces(&self.uid),
            cgroup_path: self.host.cgroups.container_path(&self.uid, &id),
            resources: Resources::default(),
            oom_score_adj: None,
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            add_capabilities: vec![],
            drop_capabilities: vec![],
            terminal: None,
            log: LogTarget::new(self.host.dir.path().join(format!("logs/{id}.log"))),
            id,
        }
    }

    /// Runs it to its end; its exit and what it said.
    pub async fn run(&self, spec: &ContainerSpec) -> (Exit, String) {
        let runtime = &self.host.runtime;
        runtime.create(spec).await.unwrap();
        runtime.start(&spec.id).await.unwrap();
        let exit = runtime.wait(&spec.id).await.unwrap();
        runtime.remove(&spec.id).await.unwrap();
        (exit, self.said(spec))
    }

    /// The log without its prefixes, complete once the container is removed.
    pub fn said(&self, spec: &ContainerSpec) -> String {
        let log = fs::read_to_string(&spec.log.path).unwrap_or_default();
        log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }

    pub fn attachment(&self, address: &str) -> Attachment {
        Attachment {
            uid: self.uid.clone(),
            namespace: "default".into(),
            name: self.uid.clone(),
            addresses: vec![format!("{address}/24")],
            gateway: Some("10.42.3.1".parse().unwrap()),
        }
    }

    pub async fn end(self) {
        self.host.cgroups.kill_all(&self.uid).await.unwrap();
        assert!(self.host.cgroups.wait_empty(&self.uid, Duration::from_secs(10)).await.unwrap());
        self.host.cgroups.remove(&self.uid).await.unwrap();
        self.host.network.unpin(&self.uid).await.unwrap();
    }
}

/// An OCI archive of busybox, by hand: one layer, one configuration, one manifest.
pub fn archive(dir: &Path) -> PathBuf {
    let done = dir.join("image.tar");
    if done.exists() {
        return done;
    }
    let layout = layout(dir);
    run("tar", &["-C", &layout.display().to_string(), "-cf", &done.display().to_string(), "."]);
    done
}

/// The same as a directory.
pub fn layout(dir: &Path) -> PathBuf {
    let (root, layout) = (dir.join("rootfs"), dir.join("layout"));
    let blobs = layout.join("blobs/sha256");
    for path in ["bin", "etc", "tmp", "root", "home/user", "proc", "sys", "dev", "data"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::create_dir_all(&blobs).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("package busybox-static");
    for tool in [
        "sh", "id", "cat", "echo", "sleep", "hostname", "ping", "stty", "ls", "head", "tail", "env", "pwd",
        "ip", "nc", "kill", "grep", "touch", "mount", "true", "yes", "sync", "dd",
    ] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(tool));
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home/user:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1001:\nextra:x:44:user\n").unwrap();
    let layer = dir.join("layer.tar");
    run(
        "tar",
        &[
            "-C",
            &root.display().to_string(),
            "--owner=0",
            "--group=0",
            "--sort=name",
            "--mtime=@0",
            "-cf",
            &layer.display().to_string(),
            ".",
        ],
    );
    let layer = fs::read(layer).unwrap();
    let layer_digest = blob(&blobs, &layer);
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["/bin/sh"], "WorkingDir": "/data", "StopSignal": "SIGUSR1"},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let config = config.to_string().into_bytes();
    let config_digest = blob(&blobs, &config);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
    });
    let manifest = manifest.to_string().into_bytes();
    let manifest_digest = blob(&blobs, &manifest);
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest,
            "size": manifest.len(),
            "annotations": {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"},
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layout
}

fn blob(dir: &Path, bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    fs::File::create(dir.join(&hex)).unwrap().write_all(bytes).unwrap();
    format!("sha256:{hex}")
}
