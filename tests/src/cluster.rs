//! A controller on loopback and its hosts, all below one directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::fabric::{self, Fabric};
use crate::host::{self, Host};
use crate::kubectl::Kubectl;
use crate::{image, tools, wait};

/// A cluster. Dropping it removes every trace, unless it was [kept](Cluster::keep).
#[derive(Debug)]
pub struct Cluster {
    pub dir: PathBuf,
    pub hosts: Vec<Host>,
    pub kubectl: Kubectl,
    /// What joins the hosts.
    pub fabric: Fabric,
    api_port: u16,
    agent_port: u16,
    keep: bool,
}

/// The provisioner names of the examples, mapped to plain directories.
const CONFIG: &str = r#"
advertise = [ROUTERS]

[[provisioner]]
name = "bdqn"
directory = "DIR/nfsdata"

[[provisioner]]
name = "k8s-sigs.io/nfs-subdir-external-provisioner"
directory = "DIR/nfs-client"
"#;

/// Segments of the network between the hosts.
const SEGMENTS: u8 = 2;
const START: Duration = Duration::from_secs(60);

impl Cluster {
    /// A cluster for one test, in a directory of its own below `target/`, with the busybox image.
    pub fn for_test() -> Result<Cluster> {
        Cluster::of_hosts(&[("node1", 0)])
    }

    /// As [`for_test`](Cluster::for_test): two hosts on one segment, a third on another.
    pub fn of_three() -> Result<Cluster> {
        Cluster::of_hosts(&[("node1", 0), ("node2", 0), ("node3", 1)])
    }

    fn of_hosts(hosts: &[(&str, u8)]) -> Result<Cluster> {
        let parent = tools::target_dir()?.join("e2e");
        std::fs::create_dir_all(&parent)?;
        let dir = tempfile::Builder::new().prefix("c").tempdir_in(&parent)?.keep();
        let cluster = Cluster::start(&dir, hosts)?;
        for host in &cluster.hosts {
            host.import(&image::busybox(&images_dir()?)?)?;
        }
        Ok(cluster)
    }

    /// Starts a controller and hosts (name and segment); returns when every node is Ready.
    pub fn start(dir: &Path, hosts: &[(&str, u8)]) -> Result<Cluster> {
        std::fs::create_dir_all(dir)?;
        // Kept for `existing`, and chosen so that nothing else has them now.
        let (api_port, agent_port) = (free_port()?, free_port()?);
        std::fs::write(dir.join("ports"), format!("{api_port} {agent_port}"))?;
        let routers: Vec<String> =
            (0..SEGMENTS).map(|s| format!("{:?}", fabric::router(s).to_string())).collect();
        let config =
            CONFIG.replace("DIR", &dir.display().to_string()).replace("ROUTERS", &routers.join(", "));
        std::fs::write(dir.join("controller.toml"), config)?;
        let mut cluster = Cluster::at(dir, api_port, agent_port)?;
        Fabric::start(&dir.join("fabric"), SEGMENTS, agent_port)?;
        cluster.start_controller()?;
        for (name, segment) in hosts {
            cluster.add_host(name, *segment)?;
        }
        for (name, _) in hosts {
            let path = ".status.conditions[?(@.type==\"Ready\")].status";
            wait::until_true(&format!("node {name} Ready"), START, || {
                let node = format!("node {name}");
                Ok(cluster.kubectl.field(&node, path).is_ok_and(|ready| ready == "True"))
            })
            .map_err(|e| e.context(cluster.logs()))?;
        }
        Ok(cluster)
    }

    /// A cluster that another process started and left.
    pub fn existing(dir: &Path) -> Result<Cluster> {
        let ports = std::fs::read_to_string(dir.join("ports")).context("no cluster here")?;
        let mut ports = ports.split(' ').map(str::parse);
        let (Some(Ok(api)), Some(Ok(agent))) = (ports.next(), ports.next()) else {
            bail!("{}: damaged", dir.display())
        };
        let mut cluster = Cluster::at(dir, api, agent)?;
        cluster.keep = true;
        for entry in std::fs::read_dir(dir.join("hosts")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            cluster.hosts.push(Host::existing(&name, &entry.path()));
        }
        Ok(cluster)
    }

    fn at(dir: &Path, api_port: u16, agent_port: u16) -> Result<Cluster> {
        let kubectl =
            Kubectl { program: tools::kubectl()?, kubeconfig: dir.join("controller/admin.kubeconfig") };
        let fabric = Fabric::existing(&dir.join("fabric"));
        Ok(Cluster {
            dir: dir.to_owned(),
            hosts: Vec::new(),
            kubectl,
            fabric,
            api_port,
            agent_port,
            keep: false,
        })
    }

    /// Leaves everything running when this value is dropped.
    pub fn keep(mut self) -> Cluster {
        self.keep = true;
        self
    }

    /// The first host.
    pub fn host(&self) -> Result<&Host> {
        self.hosts.first().context("a cluster has a host")
    }

    /// Starts the controller (again); returns when it answers.
    pub fn start_controller(&self) -> Result<()> {
        let mut command = Command::new(tools::own("berth-controller")?);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.dir.join("controller.toml"))
            .arg("--data-dir")
            .arg(self.dir.join("controller"))
            .args(["--listen", &format!("127.0.0.1:{}", self.api_port)])
            .args(["--agent-listen", &format!("127.0.0.1:{}", self.agent_port)]);
        host::spawn_daemon(command, &self.dir, "controller")?;
        wait::until_true("the controller's answer", START, || {
            if !host::running(&self.dir.join("controller.pid")) {
                bail!("the controller ended:\n{}", tools::tail(&self.dir.join("controller.log"), 20));
            }
            Ok(self.kubectl.kubeconfig.exists() && self.kubectl.run("get --raw /readyz").is_ok())
        })
    }

    /// Signals the controller; waits for its end if the signal ends it.
    pub fn signal_controller(&self, signal: Signal) -> Result<()> {
        host::signal_and_wait(&self.dir.join("controller.pid"), signal)
    }

    /// Makes a host on a segment and joins it.
    pub fn add_host(&mut self, name: &str, segment: u8) -> Result<()> {
        let host = Host::start(name, &self.dir.join("hosts").join(name))?;
        self.fabric.plug(&host, self.hosts.len(), segment)?;
        std::fs::write(
            host.dir.join("controller"),
            format!("{}:{}", fabric::router(segment), self.agent_port),
        )?;
        std::fs::write(host.dir.join("token"), self.token(name)?)?;
        self.hosts.push(host);
        self.start_agent(self.hosts.len() - 1)
    }

    /// A token with which a host of this name may join.
    pub fn token(&self, name: &str) -> Result<String> {
        let mut command = Command::new(tools::own("berth-controller")?);
        command.args(["token", "create", "--node", name, "--data-dir"]).arg(self.dir.join("controller"));
        tools::output(command)
    }

    /// The host of this name.
    pub fn host_named(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("no host {name:?}"))
    }

    /// Starts the agent of a host (again); does not wait for anything.
    pub fn start_agent(&self, index: usize) -> Result<()> {
        let host = self.hosts.get(index).context("no such host")?;
        let path = |p: PathBuf| p.display().to_string();
        let controller = std::fs::read_to_string(host.dir.join("controller"))?;
        // Nothing in it, unless a test says otherwise.
        let config = host.dir.join("agent.toml");
        if !config.exists() {
            std::fs::write(&config, "")?;
        }
        host.daemon(
            "agent",
            &tools::own("berth-agent")?,
            &[
                "run",
                "--config",
                &path(config),
                "--controller",
                &controller,
                "--token-file",
                &path(host.dir.join("token")),
                "--node-name",
                &host.name,
                "--data-dir",
                &path(host.data_dir()),
                "--run-dir",
                &path(host.run_dir()),
                "--containerd",
                &path(host.containerd_socket()),
                "--cni-conf-dir",
                &path(host.cni_conf_dir()),
                "--cgroup-parent",
                &host::cgroup(&host.dir),
                "--registry-mirror",
                &format!("docker.io={}", crate::registry::ADDRESS),
            ],
        )
    }

    /// What went on, for a failed test.
    pub fn logs(&self) -> String {
        let mut text = format!("--- controller\n{}", tools::tail(&self.dir.join("controller.log"), 60));
        for host in &self.hosts {
            text.push_str(&format!(
                "\n--- agent {}\n{}",
                host.name,
                tools::tail(&host.dir.join("agent.log"), 80)
            ));
            text.push_str(&format!(
                "\n--- containerd {}\n{}",
                host.name,
                tools::tail(&host.dir.join("containerd.log"), 15)
            ));
        }
        for what in ["get pods,sts,pvc,pv,nodes -A -o wide", "get events -A"] {
            let out = self.kubectl.run(what).unwrap_or_else(|e| e.to_string());
            text.push_str(&format!("\n--- kubectl {what}\n{out}"));
        }
        let unready = r#"get pods -A -o jsonpath={range.items[?(@.status.containerStatuses[0].ready==false)]}{.metadata.namespace}{"/"}{.metadata.name}{"\n"}{end}"#;
        for (namespace, pod) in
            self.kubectl.run(unready).unwrap_or_default().lines().filter_map(|line| line.split_once('/'))
        {
            // One that never ran has none.
            let what = format!("logs -n {namespace} {pod} --all-containers --tail=20");
            let out = self.kubectl.run(&what).unwrap_or_else(|e| e.to_string());
            text.push_str(&format!("\n--- kubectl {what}\n{out}"));
        }
        text
    }

    /// Stops and removes everything below `dir`. Idempotent.
    pub fn remove(dir: &Path) -> Result<()> {
        let mut first = host::signal_and_wait(&dir.join("controller.pid"), Signal::SIGKILL);
        for entry in std::fs::read_dir(dir.join("hosts")).into_iter().flatten().flatten() {
            first = first.and(host::remove(&entry.path()));
        }
        first = first.and(Fabric::remove(&dir.join("fabric")));
        if dir.exists() {
            first = first
                .and(std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display())));
        }
        first
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = Cluster::remove(&self.dir) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

/// Where images made for demo and tests are kept between runs.
pub fn images_dir() -> Result<PathBuf> {
    Ok(tools::target_dir()?.join("images"))
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
