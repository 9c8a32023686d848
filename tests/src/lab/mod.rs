//! The lab: virtual machines with systemd, their own kernel and kernel NFS, installed from the project's packages as
//! docs/install.md says. What network namespaces cannot show is tried here: reboots, power cuts, dead servers.
//!
//! It must leave nothing of the machine changed but its own directory and network namespace.

mod install;
pub mod ledger;
mod machine;
mod registry;
pub mod scenarios;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use sha2::{Digest, Sha256};

pub use self::machine::{Kind, LAN, Machine};
use crate::kubectl::Kubectl;
use crate::{host, tools};

const CONTROLLER: Kind = Kind { name: "controller", number: 2, memory: 640 };
const NFS: Kind = Kind { name: "nfs", number: 3, memory: 512 };
const NODES: [Kind; 3] = [
    Kind { name: "node1", number: 11, memory: 896 },
    Kind { name: "node2", number: 12, memory: 896 },
    Kind { name: "node3", number: 13, memory: 896 },
];

/// Which machines there are, beside the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// The NFS server is a machine of its own; else the controller is it too.
    pub nfs: bool,
    /// How many hosts run pods.
    pub nodes: usize,
}

impl Size {
    pub const SMALL: Size = Size { nfs: false, nodes: 1 };
    /// The NFS server can die alone.
    pub const APART: Size = Size { nfs: true, nodes: 1 };
    /// Pods can move.
    pub const PAIR: Size = Size { nfs: false, nodes: 2 };
    pub const FULL: Size = Size { nfs: true, nodes: NODES.len() };

    /// The least that is enough for both.
    pub fn and(self, other: Size) -> Size {
        Size { nfs: self.nfs || other.nfs, nodes: self.nodes.max(other.nodes) }
    }

    pub fn machines(self) -> usize {
        1 + usize::from(self.nfs) + self.nodes
    }

    fn kinds(self) -> impl Iterator<Item = Kind> {
        let nfs = self.nfs.then_some(NFS);
        [CONTROLLER].into_iter().chain(nfs).chain(NODES.into_iter().take(self.nodes))
    }

    /// Of the file that [`Lab::up`] writes.
    fn read(dir: &Path) -> Result<Option<Size>> {
        let Ok(text) = std::fs::read_to_string(dir.join("run/size")) else { return Ok(None) };
        let (nfs, nodes) = text.split_once(' ').context("run/size")?;
        Ok(Some(Size { nfs: nfs.parse()?, nodes: nodes.parse()? }))
    }
}

/// The lab of this checkout.
#[derive(Debug)]
pub struct Lab {
    pub dir: PathBuf,
    pub size: Size,
    machines: Vec<Machine>,
    pub kubectl: Kubectl,
}

impl Lab {
    /// The lab that is up, if one is. From here on this process is in the lab's network, and so are its children.
    pub fn existing() -> Result<Option<Lab>> {
        let dir = tools::target_dir()?.join("lab");
        let Some(size) = Size::read(&dir)? else { return Ok(None) };
        enter(&namespace(&dir))?;
        let lab = Lab::of(&dir, size)?;
        if lab.machines.iter().all(|machine| machine.running()) {
            return Ok(Some(lab));
        }
        bail!("a lab is half there (a machine is off): make lab-down removes it");
    }

    fn of(dir: &Path, size: Size) -> Result<Lab> {
        let machines = size.kinds().map(|kind| Machine::new(kind, dir)).collect();
        let kubectl = Kubectl { program: tools::kubectl()?, kubeconfig: dir.join("run/kubeconfig") };
        Ok(Lab { dir: dir.to_owned(), size, machines, kubectl })
    }

    /// Builds what is missing, boots the machines and installs Berth on them.
    pub fn up(size: Size) -> Result<Lab> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes a network and disk images: run it as root");
        }
        Lab::down()?;
        let dir = tools::target_dir()?.join("lab");
        std::fs::create_dir_all(dir.join("run"))?;
        step("Image and packages");
        let image = Command::new("lab/image").arg(dir.join("base")).status().context("lab/image")?;
        let packages =
            Command::new("systemd/deb").arg(tools::build_dir()?).arg(dir.join("packages")).status()?;
        if !image.success() || !packages.success() {
            bail!("the image or the packages could not be made");
        }
        let lab = Lab::of(&dir, size)?;
        lab.connect()?;
        std::fs::write(dir.join("run/size"), format!("{} {}", size.nfs, size.nodes))?;
        step("Machines: power on");
        for machine in &lab.machines {
            machine.make_disk()?;
            machine.power_on()?;
        }
        lab.start_registry()?;
        lab.each(&lab.machines, |machine| {
            machine.booted()?;
            lab.make_known(machine)
        })?;
        lab.install()?;
        lab.fetch_kubeconfig()?;
        Ok(lab)
    }

    /// Removes machines and network; the image, the packages and the logs stay.
    pub fn down() -> Result<()> {
        let dir = tools::target_dir()?.join("lab");
        for kind in Size::FULL.kinds() {
            let machine = Machine::new(kind, &dir);
            if machine.running() {
                machine.hang_up();
                machine.cut_power()?;
            }
        }
        if host::running(&dir.join("run/registry.pid")) {
            host::signal_and_wait(&dir.join("run/registry.pid"), nix::sys::signal::Signal::SIGKILL)?;
        }
        let name = namespace(&dir);
        if Path::new("/run/netns").join(&name).exists() {
            ip(&["netns", "delete", &name])?;
        }
        match std::fs::remove_dir_all(dir.join("run")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The machine of that name; for `nfs` the one that serves it.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        let named = |wanted: &str| self.machines.iter().find(|machine| machine.kind.name == wanted);
        named(name)
            .or_else(|| named("controller").filter(|_| name == "nfs"))
            .with_context(|| format!("the lab has no machine {name:?}"))
    }

    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The machines that run pods.
    pub fn nodes(&self) -> Vec<&Machine> {
        self.machines.iter().filter(|machine| machine.kind.name.starts_with("node")).collect()
    }

    /// Runs commands on a machine.
    pub fn on(&self, machine: &str, script: &str) -> Result<String> {
        self.machine(machine)?.run(script)
    }

    /// Does the same on several machines at a time.
    fn each<M: AsRef<Machine> + Sync>(
        &self,
        machines: &[M],
        work: impl Fn(&Machine) -> Result<()> + Sync,
    ) -> Result<()> {
        let work = &work;
        std::thread::scope(|scope| {
            let all: Vec<_> = machines.iter().map(|m| scope.spawn(move || work(m.as_ref()))).collect();
            for one in all {
                one.join().map_err(|_| anyhow::anyhow!("a thread of the lab panicked"))??;
            }
            Ok(())
        })
    }

    /// A network namespace with two bridges: one between the machines, one from us to them.
    fn connect(&self) -> Result<()> {
        let name = namespace(&self.dir);
        ip(&["netns", "add", &name])?;
        enter(&name)?;
        ip(&["link", "set", "lo", "up"])?;
        for (bridge, address) in [("lan", "10.77.0.1/24"), ("mgmt", "10.78.0.1/24")] {
            ip(&["link", "add", bridge, "type", "bridge"])?;
            ip(&["address", "add", address, "dev", bridge])?;
            ip(&["link", "set", bridge, "up"])?;
            for machine in &self.machines {
                let tap = machine::tap(bridge, machine.kind.name);
                ip(&["tuntap", "add", "dev", &tap, "mode", "tap"])?;
                ip(&["link", "set", &tap, "master", bridge, "up"])?;
            }
        }
        Ok(())
    }

    /// The machines know each other's names and have their packages.
    fn make_known(&self, machine: &Machine) -> Result<()> {
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for other in &self.machines {
            hosts.push_str(&format!("{} {}\n", other.address(), other.kind.name));
        }
        if self.machine("nfs")?.kind == CONTROLLER {
            hosts.push_str(&format!("{} nfs\n", self.machine("nfs")?.address()));
        }
        machine.run(&format!("cat >/etc/hosts <<END\n{hosts}END"))?;
        machine.set_clock()?;
        // A server that restarts makes its clients wait for so long; 90 seconds are too long for a scenario.
        machine.run("mkdir -p /etc/nfs.conf.d; printf '[nfsd]\ngrace-time=10\nlease-time=10\n' >/etc/nfs.conf.d/lab.conf")?;
        let name = if machine.kind == CONTROLLER { "berth-controller_" } else { "berth-agent_" };
        for entry in std::fs::read_dir(self.dir.join("packages"))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) {
                machine.copy(&path, "/root")?;
            }
        }
        Ok(())
    }

    /// As docs/install.md says.
    fn install(&self) -> Result<()> {
        let mut told = String::new();
        for block in install::blocks(install::DOCUMENT)? {
            if block.step != told {
                step(&format!("docs/install.md: {}", block.step));
                told.clone_from(&block.step);
            }
            let (commands, here) = self.follow(&block)?;
            if commands.contains("berth-agent_") {
                self.point_to_registry(&here)?;
            }
        }
        Ok(())
    }

    /// Runs a block of a document on the machines it is for, as far as there are such; what was run, and where.
    fn follow(&self, block: &install::Block) -> Result<(String, Vec<Machine>)> {
        let mut commands = block.commands.clone();
        for absent in install::HOSTS.split(' ').filter(|name| self.machine(name).is_err()) {
            commands = commands.replace(&format!(" node/{absent}"), "").replace(&format!(" {absent}"), "");
        }
        let here = block.machines.iter().filter_map(|name| self.machine(name).ok());
        let here: Vec<Machine> = here.cloned().collect();
        self.each(&here, |machine| {
            let output = machine.run(&commands)?;
            if block.machines.len() == 1 {
                print!("{output}");
            }
            Ok(())
        })?;
        Ok((commands, here))
    }

    /// The one thing that differs from the document: images come from the lab's own registry.
    fn point_to_registry(&self, hosts: &[Machine]) -> Result<()> {
        let registry = format!("{LAN}.1:{}", registry::PORT);
        let settings =
            format!("registry-mirror = [\"docker.io={registry}\"]\ninsecure-registry = [\"{registry}\"]\n");
        self.each(hosts, |host| {
            host.run(&format!("cat >>/etc/berth/agent.toml <<'END'\n{settings}END")).map(drop)
        })
    }

    fn fetch_kubeconfig(&self) -> Result<()> {
        let text = self.on("controller", "cat /var/lib/berth-controller/admin.kubeconfig")?;
        let address = self.machine("controller")?.address();
        let lines = text.lines().map(|line| match line.split_once("server: https://") {
            Some((indent, server)) => {
                let port = server.rsplit_once(':').map_or("6443", |(_, port)| port);
                format!("{indent}server: https://{address}:{port}\n")
            }
            None => format!("{line}\n"),
        });
        std::fs::write(&self.kubectl.kubeconfig, lines.collect::<String>())?;
        Ok(())
    }

    /// Keeps what the machines and the cluster have to say, in a directory that is answered.
    pub fn keep_logs(&self, scenario: &str) -> Result<PathBuf> {
        let logs = self.dir.join("logs").join(scenario);
        let _ = std::fs::remove_dir_all(&logs);
        std::fs::create_dir_all(&logs)?;
        for machine in &self.machines {
            let name = machine.kind.name;
            let _ = std::fs::copy(machine.console(), logs.join(format!("{name}.console")));
            let _ = machine.cable(true);
            let script = "journalctl --no-pager -o short-precise; systemctl --failed --no-pager; cat /proc/mounts; \
                          systemd-cgls --no-pager /berth.slice || true";
            let journal = machine.run_within(script, Duration::from_secs(60));
            std::fs::write(logs.join(format!("{name}.journal")), journal.unwrap_or_else(|e| e.to_string()))?;
        }
        for (file, args) in [
            ("pods", "get nodes,pods,pvc,pv,statefulsets -A -o wide"),
            ("events", "get events -A --sort-by=.lastTimestamp"),
            ("describe", "describe pods -A"),
        ] {
            let text = self.kubectl.run(args).unwrap_or_else(|error| error.to_string());
            std::fs::write(logs.join(file), text)?;
        }
        Ok(logs)
    }

    /// A shell on a machine, in place of this process.
    pub fn shell(&self, machine: &str) -> Result<()> {
        let mut command = self.machine(machine)?.ssh_command();
        command.args(["-t", "machine"]);
        Err(command.exec().into())
    }
}

impl AsRef<Machine> for Machine {
    fn as_ref(&self) -> &Machine {
        self
    }
}

/// Says what comes now.
pub fn step(what: &str) {
    use std::sync::OnceLock;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let at = BEGUN.get_or_init(Instant::now).elapsed().as_secs();
    println!("\x1b[1m[{:3}:{:02}] {what}\x1b[0m", at / 60, at % 60);
}

/// One network namespace for each checkout: two labs may be up at a time.
fn namespace(dir: &Path) -> String {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    format!("berth-lab-{:02x}{:02x}", digest[0], digest[1])
}

/// The network this process came from.
static OUTSIDE: OnceLock<File> = OnceLock::new();

fn enter(namespace: &str) -> Result<()> {
    let here = File::open("/proc/self/ns/net").context("this process's network")?;
    OUTSIDE.get_or_init(|| here);
    let path = Path::new("/run/netns").join(namespace);
    let file = File::open(&path).with_context(|| format!("the lab's network ({})", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).context("entering the lab's network")
}

/// A program that fetches something from the world, which the lab's network does not reach.
fn outside(program: &str) -> Result<Command> {
    let Some(network) = OUTSIDE.get() else { return Ok(Command::new(program)) };
    let mut command = Command::new(tools::find("nsenter")?);
    command.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd())).arg(program);
    Ok(command)
}

fn ip(args: &[&str]) -> Result<()> {
    let mut command = Command::new(tools::find("ip")?);
    command.args(args).stdin(Stdio::null());
    tools::output(command).map(drop)
}
