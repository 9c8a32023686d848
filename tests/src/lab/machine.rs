//! One virtual machine: booted, spoken to over ssh, cut off, cut from its power.
//!
//! It needs no KVM: processors are emulated unless LAB_ACCEL says otherwise.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kubectl::{Output, finish};
use crate::{host, tools, wait};

/// A command on an emulated machine is given this long if nobody says otherwise.
const COMMAND: Duration = Duration::from_secs(300);
/// From power-on to ssh, with several machines at a time on two processors.
const BOOT: Duration = Duration::from_secs(600);

/// What a machine is called and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    /// The last part of its addresses.
    pub number: u8,
    /// MiB.
    pub memory: u32,
}

/// The network the machines serve each other on, and the one on which they are commanded: a machine that is cut off
/// can still be asked how it does.
pub const LAN: &str = "10.77.0";
const MANAGEMENT: &str = "10.78.0";

/// A machine of the lab, running or not.
#[derive(Clone, Debug)]
pub struct Machine {
    pub kind: Kind,
    /// The lab's directory: base/, tools/, run/.
    lab: PathBuf,
}

impl Machine {
    pub fn new(kind: Kind, lab: &Path) -> Machine {
        Machine { kind, lab: lab.to_owned() }
    }

    pub fn address(&self) -> String {
        format!("{LAN}.{}", self.kind.number)
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.lab.join("run").join(format!("{}.{ending}", self.kind.name))
    }

    pub fn running(&self) -> bool {
        host::running(&self.file("pid"))
    }

    /// What it wrote to its console, over all its boots.
    pub fn console(&self) -> PathBuf {
        self.file("console")
    }

    /// Gives the machine a new disk, made of the base image.
    pub fn make_disk(&self) -> Result<()> {
        let mut command = self.qemu("qemu-img")?;
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        command.arg(self.lab.join("base/base.ext4")).arg(self.file("qcow2"));
        tools::output(command).map(drop)
    }

    /// Switches it on; [`Machine::booted`] waits for it.
    pub fn power_on(&self) -> Result<()> {
        let Kind { name, number, memory } = self.kind;
        let accel = std::env::var("LAB_ACCEL").unwrap_or_else(|_| "tcg,thread=multi".to_owned());
        let base = self.lab.join("base");
        let mut command = self.qemu("qemu-system-x86_64")?;
        command.args([
            "-name",
            name,
            "-accel",
            &accel,
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            &memory.to_string(),
        ]);
        command.args(["-display", "none", "-nodefaults", "-no-user-config", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(base.join("vmlinuz")).arg("-initrd").arg(base.join("initrd"));
        command.args(["-append", &kernel_command_line(name, number)]);
        // What the guest has flushed outlives its power, since QEMU hands all of it to our kernel then; what it only
        // holds in its memory is lost, as with a plug that is pulled. Our own disk need not be waited for.
        let disk = self.file("qcow2");
        command.args(["-drive", &format!("file={},if=virtio,cache=unsafe,discard=unmap", disk.display())]);
        for (n, net) in ["lan", "mgmt"].iter().enumerate() {
            let tap = tap(net, name);
            command.args(["-netdev", &format!("tap,id={net},ifname={tap},script=no,downscript=no")]).args([
                "-device",
                &format!("virtio-net-pci,netdev={net},mac=52:54:00:be:0{n}:{number:02x},romfile="),
            ]);
        }
        let console = self.console();
        command.args(["-chardev", &format!("file,id=console,append=on,path={}", console.display())]);
        command.args(["-serial", "chardev:console", "-daemonize", "-pidfile"]).arg(self.file("pid"));
        tools::output(command).map(drop).with_context(|| format!("switching {name} on"))
    }

    /// Waits until it can be commanded.
    pub fn booted(&self) -> Result<()> {
        wait::until_true(&format!("{} to boot", self.kind.name), BOOT, || {
            if !self.running() {
                bail!("{} has stopped:\n{}", self.kind.name, tools::tail(&self.console(), 20));
            }
            Ok(self.ssh(&["true"], Duration::from_secs(20)).is_ok_and(|out| out.ok))
        })
    }

    /// Sets its clock to ours.
    pub fn set_clock(&self) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        self.run(&format!("date -s @{:.3} >/dev/null", now.as_secs_f64())).map(drop)
    }

    /// Shuts it down and waits until it has booted again.
    pub fn reboot(&self) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(BOOT_ID)?;
        self.run("systemctl reboot")?;
        self.hang_up();
        wait::until_true(&format!("{} to have booted again", self.kind.name), BOOT, || {
            let now = self.run_within(BOOT_ID, Duration::from_secs(20));
            Ok(now.is_ok_and(|now| now != before))
        })
    }

    /// As if its plug were pulled.
    pub fn cut_power(&self) -> Result<()> {
        let pid = host::pid_of(&self.file("pid")).context("it does not run")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("the machine's process")?;
        self.off(Duration::from_secs(30))
    }

    /// Waits until it is off, and forgets the connection to it.
    pub fn off(&self, limit: Duration) -> Result<()> {
        wait::until_true(&format!("{} to be off", self.kind.name), limit, || Ok(!self.running()))?;
        let _ = std::fs::remove_file(self.file("pid"));
        self.hang_up();
        Ok(())
    }

    /// Ends the connection that commands share.
    pub fn hang_up(&self) {
        let mut command = self.ssh_command();
        command
            .args(["-O", "exit", "machine"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // There may be none.
        let _ = command.status();
        let _ = std::fs::remove_file(self.file("ssh"));
    }

    /// Pulls its network cable, or puts it back. It can still be commanded.
    pub fn cable(&self, connected: bool) -> Result<()> {
        let mut command = Command::new(tools::find("ip")?);
        command.args(["link", "set", &tap("lan", self.kind.name), if connected { "up" } else { "down" }]);
        tools::output(command).map(drop)
    }

    /// Runs a script of bash to its end; its standard output, if it succeeded.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, COMMAND)
    }

    pub fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        let quoted = format!("bash -euo pipefail -c '{}'", script.replace('\'', r"'\''"));
        let out = self.ssh(&[&quoted], limit)?;
        if !out.ok {
            bail!("on {}: {script}\n{}{}", self.kind.name, out.stdout, out.stderr);
        }
        Ok(out.stdout)
    }

    /// Copies a file into a directory there.
    pub fn copy(&self, file: &Path, directory: &str) -> Result<()> {
        let name = file.file_name().and_then(|name| name.to_str()).context("a file has a name")?;
        let mut command = self.ssh_command();
        command.args(["machine", &format!("cat > {directory}/{name}")]);
        command.stdin(std::fs::File::open(file)?).stdout(Stdio::piped()).stderr(Stdio::piped());
        let out = finish(command.spawn()?, name, COMMAND)?;
        if !out.ok {
            bail!("copying {name} to {}: {}", self.kind.name, out.stderr);
        }
        Ok(())
    }

    fn ssh(&self, args: &[&str], limit: Duration) -> Result<Output> {
        let mut command = self.ssh_command();
        command.arg("machine").args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command.spawn()?, args.first().unwrap_or(&"ssh"), limit)
    }

    /// `ssh` with all it needs but the name, which is free, and the command. One connection serves all commands: making
    /// one takes an emulated processor a second.
    pub fn ssh_command(&self) -> Command {
        let mut command = Command::new("ssh");
        // A socket's path is short.
        command.current_dir(self.lab.join("run"));
        command.arg("-F").arg("none").arg("-i").arg(self.lab.join("base/key"));
        let host = format!("HostName={MANAGEMENT}.{}", self.kind.number);
        let control = format!("ControlPath={}.ssh", self.kind.name);
        for option in [
            &host,
            &control,
            "User=root",
            "ControlMaster=auto",
            "ControlPersist=10m",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=6",
            "BatchMode=yes",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// A program of the QEMU that `tests/prepare lab` has unpacked, with the libraries it came with.
    fn qemu(&self, program: &str) -> Result<Command> {
        let tree = tools::target_dir()?.join("tools/qemu");
        if !tree.join("done").exists() {
            bail!("QEMU is not there: run tests/prepare lab");
        }
        let libraries = tree.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(tree.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.env("QEMU_MODULE_DIR", libraries.join("qemu")).arg("--library-path");
        command.arg(&libraries);
        command.arg(tree.join("usr/bin").join(program));
        if program.starts_with("qemu-system") {
            command.arg("-L").arg(tree.join("usr/share/qemu")).arg("-L").arg(tree.join("usr/share/seabios"));
        }
        Ok(command)
    }
}

/// The device on our side of a machine's cable.
pub fn tap(net: &str, machine: &str) -> String {
    format!("{net}-{machine}")
}

fn kernel_command_line(name: &str, number: u8) -> String {
    let ip = |net: &str, device: &str| format!("ip={net}.{number}::{net}.1:255.255.255.0::{device}:off");
    // The way out leads to us, and no further; on one network only.
    let management = format!("ip={MANAGEMENT}.{number}:::255.255.255.0::eth1:off");
    format!(
        "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.hostname={name} {} {management}",
        ip(LAN, "eth0")
    )
}
