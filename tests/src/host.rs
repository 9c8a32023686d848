//! A host made of namespaces: network, mount and UTS namespace of its own, a containerd, an agent.
//!
//! A holder process keeps the namespaces; everything on the host is started through `nsenter` and notes its
//! process id in the host's directory, so that [`remove`] can take all of it away from the directory alone.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{tools, wait};

/// One host.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    /// Everything of this host is below.
    pub dir: PathBuf,
}

impl Host {
    /// Makes the namespaces and starts containerd; `dir` must not hold a host yet.
    pub fn start(name: &str, dir: &Path) -> Result<Host> {
        std::fs::create_dir_all(dir)?;
        let host = Host { name: name.to_owned(), dir: dir.to_owned() };
        host.hold()?;
        host.start_containerd()?;
        Ok(host)
    }

    /// A host that is already there.
    pub fn existing(name: &str, dir: &Path) -> Host {
        Host { name: name.to_owned(), dir: dir.to_owned() }
    }

    /// The directory for an agent's `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory for an agent's `--run-dir`.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where an operator would say what networks pods have; nobody does unless a test makes it.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.dir.join("c/containerd.sock")
    }

    /// Process id of the holder of the namespaces.
    pub fn holder(&self) -> Result<i32> {
        pid_of(&self.dir.join("holder.pid")).context("the host's namespaces are gone")
    }

    /// A command that runs in the host's namespaces.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new(tools::find("nsenter")?);
        command.args(["-t", &self.holder()?.to_string(), "-m", "-n", "-u", "--"]).arg(program);
        Ok(command)
    }

    /// Runs a command line on the host to its end; its standard output if it succeeded.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(&tools::find(program)?)?;
        command.args(args);
        tools::output(command)
    }

    /// `ctr` on this host's containerd, in Berth's namespace.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.containerd_socket();
        let mut all = vec!["-a", socket.to_str().context("path")?, "-n", "berth"];
        all.extend(args);
        self.run("ctr", &all)
    }

    /// The first process of a container, as the machine numbers it.
    pub fn process_of(&self, container: &str) -> Result<i32> {
        let tasks = self.ctr(&["task", "ls"])?;
        let line =
            tasks.lines().find(|line| line.starts_with(container)).context("the container has no task")?;
        line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).context("ctr task ls")
    }

    /// Whether something accepts connections on this port of the host's loopback.
    pub fn listens(&self, port: u16) -> Result<bool> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder()?))?;
        // Only this thread goes inside.
        let tried = std::thread::spawn(move || -> Result<bool> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        });
        tried.join().map_err(|_| anyhow::anyhow!("the connecting thread panicked"))?
    }

    /// Imports an image archive into Berth's namespace.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["images", "import", archive.to_str().context("path")?]).map(drop)
    }

    /// Starts a daemon on the host, its output in `<name>.log`, its process id in `<name>.pid`.
    pub fn daemon(&self, name: &str, program: &Path, args: &[&str]) -> Result<()> {
        let mut command = self.command(program)?;
        command.args(args);
        spawn_daemon(command, &self.dir, name)
    }

    fn hold(&self) -> Result<()> {
        let mut command = Command::new(tools::find("unshare")?);
        // Shims' sockets and runc's records have fixed places, and a CNI configuration of the machine would
        // take precedence: a host has its own of these.
        let script = "set -e; hostname \"$0\"; ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward; mkdir -p /run/containerd; \
                      for d in /run/containerd /etc/cni; do [ ! -d $d ] || mount -t tmpfs tmpfs $d; done; \
                      exec sleep 2147483647";
        command.args([
            "--mount",
            "--net",
            "--uts",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            &self.name,
        ]);
        spawn_holder(command, &self.dir)
    }

    /// Starts containerd (again) on this host's own directories.
    pub fn start_containerd(&self) -> Result<()> {
        let dir = self.dir.join("c");
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("config.toml");
        // The CRI plug-in and what needs a daemon of its own are not wanted.
        std::fs::write(
            &config,
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.devmapper\"]\n",
        )?;
        let path = |p: &str| dir.join(p).display().to_string();
        let (root, state, socket) = (path("root"), path("state"), path("containerd.sock"));
        let program = match std::env::var_os("CONTAINERD") {
            Some(path) => path.into(),
            None => tools::find("containerd")?,
        };
        let config = config.display().to_string();
        self.daemon(
            "containerd",
            &program,
            &["-c", &config, "--root", &root, "--state", &state, "-a", &socket],
        )?;
        wait::until_true("containerd", Duration::from_secs(30), || {
            if !running(&self.dir.join("containerd.pid")) {
                bail!("containerd ended:\n{}", tools::tail(&self.dir.join("containerd.log"), 10));
            }
            Ok(self.ctr(&["version"]).is_ok())
        })
    }

    /// Sends a signal to one of the host's daemons and, unless it only continues or stops it, waits for its end.
    pub fn signal(&self, daemon: &str, signal: Signal) -> Result<()> {
        signal_and_wait(&self.dir.join(format!("{daemon}.pid")), signal)
    }
}

/// Starts a process in a session of its own, with `<name>.log` and `<name>.pid` in `dir`.
pub fn spawn_daemon(mut command: Command, dir: &Path, name: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let log = File::options().append(true).create(true).open(dir.join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    std::fs::write(dir.join(format!("{name}.pid")), child.id().to_string())?;
    // Somebody has to collect it; when this process ends first, init does.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Starts the process that keeps namespaces: a shell that makes them ready and then becomes `sleep`, which is
/// waited for.
pub fn spawn_holder(command: Command, dir: &Path) -> Result<()> {
    spawn_daemon(command, dir, "holder")?;
    let pid = pid_of(&dir.join("holder.pid")).context("holder.pid")?;
    wait::until_true("namespaces", Duration::from_secs(10), || {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.is_empty() {
            bail!("no namespaces: {}", tools::tail(&dir.join("holder.log"), 5));
        }
        Ok(comm.trim() == "sleep")
    })
}

pub fn pid_of(file: &Path) -> Option<i32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Whether the process noted in this file runs.
pub fn running(file: &Path) -> bool {
    let Some(pid) = pid_of(file) else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Signals the process noted in this file; for a signal that ends it, waits (10 s, then SIGKILL).
pub fn signal_and_wait(file: &Path, signal: Signal) -> Result<()> {
    let Some(pid) = pid_of(file).filter(|_| running(file)) else { return Ok(()) };
    kill(Pid::from_raw(pid), signal).context("kill")?;
    if matches!(signal, Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGHUP) {
        return Ok(());
    }
    let gone = || wait::until_true("the end of a process", Duration::from_secs(10), || Ok(!running(file)));
    if gone().is_err() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill -9")?;
        gone()?;
    }
    Ok(())
}

/// Removes all of the host at `dir`: processes, mounts, cgroups, files. Idempotent; goes on after a failure
/// and reports the first.
pub fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut first = Ok(());
    let mut note = |r: Result<()>| {
        if first.is_ok() {
            first = r;
        }
    };
    note(signal_and_wait(&dir.join("agent.pid"), Signal::SIGKILL));
    note(signal_and_wait(&dir.join("containerd.pid"), Signal::SIGKILL));
    // Whatever still lives in the host's mount namespace (shims, containers' processes): they are found by
    // the namespace, or by the directory in their command line.
    for _ in 0..50 {
        let left = leftovers(dir);
        if left.is_empty() {
            break;
        }
        for pid in left {
            // It may have gone by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    note(signal_and_wait(&dir.join("holder.pid"), Signal::SIGKILL));
    note(remove_cgroups(dir));
    note(std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display())));
    first
}

/// Processes of the host other than its holder: those in its mount namespace, the shims started from its
/// containerd, and their descendants.
fn leftovers(dir: &Path) -> Vec<i32> {
    let holder = pid_of(&dir.join("holder.pid")).unwrap_or(0);
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = if running(&dir.join("holder.pid")) { namespace(holder) } else { None };
    let processes: Vec<i32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != holder && *pid != std::process::id() as i32)
        .collect();
    let parent = |pid: i32| -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|r| r.split(' ').nth(1)).and_then(|p| p.parse().ok()).unwrap_or(0)
    };
    let marker = dir.display().to_string();
    let mut found: Vec<i32> = processes
        .iter()
        .copied()
        .filter(|pid| {
            let in_namespace = own.is_some() && namespace(*pid) == own;
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            in_namespace || (line.contains("containerd-shim") && line.contains(&marker))
        })
        .collect();
    loop {
        let more: Vec<i32> =
            processes.iter().copied().filter(|p| !found.contains(p) && found.contains(&parent(*p))).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The cgroup of a host's pods: this host's alone, on a machine that may hold several.
pub fn cgroup(dir: &Path) -> String {
    let parts: Vec<String> = dir.iter().rev().take(3).map(|p| p.to_string_lossy().into_owned()).collect();
    // <cluster>/hosts/<name>
    format!("/berth-{}-{}", parts.get(2).map_or("", String::as_str), parts.first().map_or("", String::as_str))
}

/// Removes what is left of the host's cgroups.
fn remove_cgroups(dir: &Path) -> Result<()> {
    let name = cgroup(dir);
    let name = name.trim_start_matches('/');
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    for root in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let mut tree = vec![root.join(name)];
        let mut next = 0;
        while let Some(at) = tree.get(next).cloned() {
            next += 1;
            let below = std::fs::read_dir(&at).into_iter().flatten().flatten();
            tree.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        // Children before parents.
        for path in tree.into_iter().rev().filter(|p| p.exists()) {
            wait::until_true("an empty cgroup", Duration::from_secs(5), || {
                Ok(std::fs::remove_dir(&path).is_ok() || !path.exists())
            })?;
        }
    }
    Ok(())
}
