//! What this host is: its size, addresses, versions and troubles, looked at every few seconds and told when
//! it has changed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_proto::{Condition, NodeInfo, NodeStatus, OPERATOR_NETWORK};
use jiff::Timestamp;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::network::{Network, operators_file};
use crate::runtime::{Health, Runtime};

/// How often the host is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// The kubelet's thresholds: less memory than this, or less than a tenth of the disk, is pressure.
const LEAST_MEMORY: u64 = 100 << 20;
const LEAST_DISK: f64 = 0.10;
/// Pressure is over only when it has been so for a while (as many looks), so that it does not flap.
const CALM: u32 = 6;
/// The Ready condition's reasons, as Kubernetes has them.
const NOT_READY: &str = "KubeletNotReady";
const NO_NETWORK: &str = "NetworkPluginNotReady";

/// The host, as it is watched.
pub struct Host {
    addresses: Vec<IpAddr>,
    data_dir: PathBuf,
    cni_conf_dir: PathBuf,
    settings: watch::Receiver<Settings>,
    runtime: Runtime,
    network: Network,
    system: System,
    memory: Pressure,
    disk: Pressure,
}

struct Pressure {
    on: bool,
    calm: u32,
    since: Timestamp,
}

impl Pressure {
    fn new() -> Pressure {
        Pressure { on: false, calm: 0, since: Timestamp::now() }
    }

    fn see(&mut self, pressed: bool) {
        self.calm = if pressed { 0 } else { self.calm.saturating_add(1) };
        let on = pressed || (self.on && self.calm < CALM);
        if on != self.on {
            (self.on, self.since) = (on, Timestamp::now());
        }
    }

    fn condition(&self, kind: &str, under: (&str, &str), well: (&str, &str)) -> Condition {
        let (status, (reason, message)) = if self.on { ("True", under) } else { ("False", well) };
        Condition {
            r#type: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_ms: self.since.as_millisecond(),
        }
    }
}

impl Host {
    /// `data_dir` is on the disk that counts; in `cni_conf_dir` an operator may say what networks pods have.
    pub fn new(
        addresses: Vec<IpAddr>,
        data_dir: &Path,
        cni_conf_dir: &Path,
        settings: watch::Receiver<Settings>,
        runtime: Runtime,
        network: Network,
    ) -> Result<Host, sysinfo::Error> {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        Ok(Host {
            addresses,
            data_dir: data_dir.to_owned(),
            cni_conf_dir: cni_conf_dir.to_owned(),
            settings,
            runtime,
            network,
            system: System::new_with_specifics(memory)?,
            memory: Pressure::new(),
            disk: Pressure::new(),
        })
    }

    /// The host now.
    pub async fn look(&mut self) -> NodeStatus {
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let total = self.system.total_memory();
        self.memory.see(self.system.available_memory() < LEAST_MEMORY);
        let (disk_total, disk_free) = disk(&self.data_dir);
        self.disk.see(disk_total > 0 && (disk_free as f64) < disk_total as f64 * LEAST_DISK);
        let health = self.runtime.health().borrow().clone();
        let (version, mut fault) = match health {
            Health::Up(version) => (version, None),
            Health::Away(why) => {
                (String::new(), Some((NOT_READY, format!("containerd does not answer: {why}"))))
            }
        };
        // A host that could connect no pod must not be given any.
        if let (None, Err(why)) = (&fault, self.network.ready().await) {
            fault = Some((NO_NETWORK, format!("pods cannot be connected here: {why}")));
        }
        let ready = fault.is_none();
        let (reason, message) = fault.unwrap_or_default();
        let mut conditions = vec![
            self.memory.condition(
                "MemoryPressure",
                ("KubeletHasInsufficientMemory", "less than 100 MiB of memory is available"),
                ("KubeletHasSufficientMemory", "there is enough memory"),
            ),
            self.disk.condition(
                "DiskPressure",
                ("KubeletHasDiskPressure", "less than a tenth of the disk of the data directory is free"),
                ("KubeletHasNoDiskPressure", "there is enough room on the disk"),
            ),
        ];
        // A directory that cannot be read shows when a pod is to be connected.
        if let Ok(Some(file)) = operators_file(&self.cni_conf_dir) {
            conditions.push(Condition {
                r#type: OPERATOR_NETWORK.to_owned(),
                status: "True".to_owned(),
                reason: "CNIConfiguration".to_owned(),
                message: format!("pods' addresses come from {}", file.display()),
                last_transition_ms: 0,
            });
        }
        NodeStatus {
            cpu_millis: std::thread::available_parallelism().map_or(1, |n| n.get() as u64) * 1000,
            memory_bytes: total,
            ephemeral_storage_bytes: disk_total,
            max_pods: self.settings.borrow().max_pods,
            hostname: System::host_name().unwrap_or_default(),
            internal_ips: self.addresses.iter().map(IpAddr::to_string).collect(),
            info: Some(info(&version)),
            conditions,
            runtime_ready: ready,
            runtime_message: message,
            not_ready_reason: reason.to_owned(),
        }
    }

    /// Looks at the host until `shutdown`, and whenever containerd comes or goes.
    pub async fn watch(mut self, status: watch::Sender<NodeStatus>, shutdown: CancellationToken) {
        let mut health = self.runtime.health();
        let mut settings = self.settings.clone();
        // Away, it tries again by itself: as long as the sender lives.
        let mut gone = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = health.changed(), if !gone => gone = changed.is_err(),
                Ok(()) = settings.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let now = self.look().await;
            status.send_if_modified(|there| {
                let changed = *there != now;
                *there = now;
                changed
            });
        }
    }
}

/// Bytes of the disk that holds `path`: all, and those that are free.
fn disk(path: &Path) -> (u64, u64) {
    match nix::sys::statvfs::statvfs(path) {
        Ok(stat) => {
            let block = stat.fragment_size();
            (stat.blocks() * block, stat.blocks_available() * block)
        }
        Err(_) => (0, 0),
    }
}

fn info(containerd: &str) -> NodeInfo {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm",
        other => other,
    };
    NodeInfo {
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel_version: System::kernel_version().unwrap_or_default(),
        os_image: os_image(&read("/etc/os-release")),
        container_runtime_version: format!("containerd://{containerd}"),
        operating_system: "linux".to_owned(),
        architecture: architecture.to_owned(),
    }
}

/// The distribution's name as it calls itself.
fn os_image(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// This host's addresses: those given, or the one that leads to the controller.
pub fn addresses(given: &[IpAddr], controller: &str) -> Vec<IpAddr> {
    if !given.is_empty() {
        return given.to_vec();
    }
    // Nothing is sent: the kernel only says which address it would use.
    let towards = |address: SocketAddr| {
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(address).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let mut found: Vec<IpAddr> =
        controller.to_socket_addrs().into_iter().flatten().filter_map(towards).take(1).collect();
    if found.iter().all(IpAddr::is_loopback) {
        // The controller is on this very host: any other address says more.
        let others = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|i| i.address);
        let v4 = others.filter_map(|a| Some(a.as_sockaddr_in()?.ip()));
        let better = v4.filter(|ip| !ip.is_loopback() && !ip.is_link_local()).map(IpAddr::from).next();
        found = vec![better.or(found.first().copied()).unwrap_or(Ipv4Addr::LOCALHOST.into())];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_over_only_after_a_while_of_calm() {
        let mut pressure = Pressure::new();
        pressure.see(true);
        assert!(pressure.on);
        for _ in 1..CALM {
            pressure.see(false);
            assert!(pressure.on);
        }
        pressure.see(false);
        assert!(!pressure.on);
    }

    #[test]
    fn the_distribution_is_called_as_it_calls_itself() {
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn an_address_is_always_found() {
        let given: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(addresses(&given, "127.0.0.1:1"), given);
        assert_eq!(addresses(&[], "127.0.0.1:1").len(), 1);
        assert_eq!(addresses(&[], "no.such.name.invalid:1").len(), 1);
    }
}
