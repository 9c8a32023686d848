//! The network between the hosts of a cluster: a namespace with a bridge for each segment, a router between
//! them, and the way to the controller, which listens on the machine's loopback.
//!
//! Hosts are `10.99.<segment>.<11 and up>`; the router is `.1` on each segment and, as [`OUTSIDE`], the rest of
//! the world. Nothing of it can be seen or reached from the machine's own network.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::host::{self, Host};
use crate::{tools, wait};

/// An address beyond the router that no host and no pod has.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The network of one cluster.
#[derive(Debug)]
pub struct Fabric {
    dir: PathBuf,
}

impl Fabric {
    /// Makes the segments, and forwards `agent_port` of each router address to the machine's loopback.
    pub fn start(dir: &Path, segments: u8, agent_port: u16) -> Result<Fabric> {
        std::fs::create_dir_all(dir)?;
        let fabric = Fabric::existing(dir);
        let mut script = format!(
            "set -e; ip link set lo up; ip addr add {OUTSIDE}/32 dev lo; echo 1 > /proc/sys/net/ipv4/ip_forward"
        );
        for segment in 0..segments {
            let router = router(segment);
            script.push_str(&format!(
                "; ip link add seg{segment} type bridge; ip addr add {router}/24 dev seg{segment}; ip link set seg{segment} up"
            ));
        }
        script.push_str("; exec sleep 2147483647");
        let mut command = Command::new(tools::find("unshare")?);
        command.args(["--net", "sh", "-c", &script]);
        host::spawn_holder(command, dir)?;
        let mut forward = Command::new(tools::own("harness")?);
        forward.args(["forward", "--namespace", &fabric.holder()?.to_string()]);
        forward.args(["--port", &agent_port.to_string()]);
        host::spawn_daemon(forward, dir, "forward")?;
        wait::until_true("the way to the controller", Duration::from_secs(10), || {
            if !host::running(&dir.join("forward.pid")) {
                bail!("no way to the controller: {}", tools::tail(&dir.join("forward.log"), 5));
            }
            Ok(fabric.run("ss", &["-Htln"])?.contains(&format!(":{agent_port} ")))
        })?;
        Ok(fabric)
    }

    /// One that is already there.
    pub fn existing(dir: &Path) -> Fabric {
        Fabric { dir: dir.to_owned() }
    }

    fn holder(&self) -> Result<i32> {
        host::pid_of(&self.dir.join("holder.pid")).context("the fabric's namespace is gone")
    }

    /// Runs a command in the network between the hosts; its standard output if it succeeded.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(tools::find("nsenter")?);
        command.args(["-t", &self.holder()?.to_string(), "-n", "--"]).arg(tools::find(program)?).args(args);
        tools::output(command)
    }

    /// Starts a daemon in the network between the hosts, in a directory of its own; it ends with the cluster.
    pub fn daemon(&self, name: &str, program: &str, args: &[&str]) -> Result<()> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let mut command = Command::new(tools::find("nsenter")?);
        command.args(["-t", &self.holder()?.to_string(), "-n", "--"]).arg(tools::find(program)?).args(args);
        command.current_dir(&dir);
        host::spawn_daemon(command, &dir, "daemon")
    }

    /// Connects a host, as number `index` of the cluster, to a segment.
    pub fn plug(&self, host: &Host, index: usize, segment: u8) -> Result<()> {
        let (cable, inside) = (cable(&host.name), host.holder()?.to_string());
        self.run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &inside])?;
        self.run("ip", &["link", "set", &cable, "master", &format!("seg{segment}"), "up"])?;
        host.run("ip", &["addr", "add", &format!("{}/24", address(segment, index)), "dev", "eth0"])?;
        host.run("ip", &["link", "set", "eth0", "up"])?;
        host.run("ip", &["route", "add", "default", "via", &router(segment).to_string()])?;
        Ok(())
    }

    /// Pulls the host's cable: whatever is said to it or by it is lost without a word.
    pub fn cut(&self, host: &Host) -> Result<()> {
        self.run("ip", &["link", "set", &cable(&host.name), "down"]).map(drop)
    }

    /// Puts the cable back.
    pub fn mend(&self, host: &Host) -> Result<()> {
        self.run("ip", &["link", "set", &cable(&host.name), "up"]).map(drop)
    }

    /// Lets no more than this (as `tc` writes rates: `1mbit`) through to the host; None: all again.
    pub fn slow(&self, host: &Host, rate: Option<&str>) -> Result<()> {
        let cable = cable(&host.name);
        match rate {
            Some(rate) => self.run(
                "tc",
                &[
                    "qdisc", "replace", "dev", &cable, "root", "tbf", "rate", rate, "burst", "16kb",
                    "latency", "400ms",
                ],
            ),
            None => self.run("tc", &["qdisc", "del", "dev", &cable, "root"]),
        }
        .map(drop)
    }

    /// Stops and removes what is below `dir`. Idempotent.
    pub fn remove(dir: &Path) -> Result<()> {
        let mut first = host::signal_and_wait(&dir.join("forward.pid"), Signal::SIGKILL);
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            first = first.and(host::signal_and_wait(&entry.path().join("daemon.pid"), Signal::SIGKILL));
        }
        first.and(host::signal_and_wait(&dir.join("holder.pid"), Signal::SIGKILL))
    }
}

/// The router on a segment: also where agents find the controller.
pub fn router(segment: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, segment, 1)
}

/// Number `index` of a cluster's hosts, on a segment.
pub fn address(segment: u8, index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, segment, u8::try_from(11 + index).unwrap_or(u8::MAX))
}

/// The fabric's end of a host's cable: a device's name has at most 15 characters.
fn cable(host: &str) -> String {
    format!("h-{host:.13}")
}
