//! The ports of this host that lead to its pods, as the pods come and go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use berth_agent_core::network::rules::{HostPort, Protocol};
use berth_proto::Assignment;
use tokio::sync::watch;

/// A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct HostPorts {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By the pod's uid; only of pods that have any.
    of: Mutex<BTreeMap<String, Vec<HostPort>>>,
    changed: watch::Sender<u64>,
}

impl HostPorts {
    /// The pod has these addresses; none: it is not there (any more).
    pub fn put(&self, uid: &str, assignment: &Assignment, ips: &[String]) {
        let ports = wanted(assignment, ips);
        let mut of = self.lock();
        let before = match ports.is_empty() {
            true => of.remove(uid),
            false => of.insert(uid.to_owned(), ports.clone()),
        };
        drop(of);
        if before.unwrap_or_default() != ports {
            self.shared.changed.send_modify(|version| *version += 1);
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<HostPort> {
        self.lock().values().flatten().cloned().collect()
    }

    /// Told when they change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<HostPort>>> {
        self.shared.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On the host's network its ports are the host's already.
fn wanted(assignment: &Assignment, ips: &[String]) -> Vec<HostPort> {
    if assignment.network.as_ref().is_some_and(|network| network.host_network) {
        return Vec::new();
    }
    let to: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    if to.is_empty() {
        return Vec::new();
    }
    let ports = assignment.containers.iter().flat_map(|container| &container.ports);
    let wanted = ports.filter_map(|port| {
        let number = |port: u32| u16::try_from(port).ok().filter(|port| *port > 0);
        let address: Option<IpAddr> = port.host_ip.parse().ok();
        Some(HostPort {
            address: address.filter(|ip| !ip.is_unspecified()),
            protocol: Protocol::of(&port.protocol)?,
            port: number(port.host_port)?,
            to: to.clone(),
            to_port: number(port.port)?,
        })
    });
    wanted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::{Container, ContainerPort};

    #[test]
    fn a_pods_host_ports_are_there_while_it_has_an_address() {
        let port = |host_port, host_ip: &str| ContainerPort {
            port: 80,
            host_port,
            host_ip: host_ip.into(),
            ..ContainerPort::default()
        };
        let ports = vec![port(8080, ""), port(0, ""), port(8081, "0.0.0.0"), port(8082, "192.0.2.1")];
        let assignment = Assignment {
            containers: vec![Container { ports, ..Container::default() }],
            ..Assignment::default()
        };
        let all = HostPorts::default();
        let mut changed = all.changed();
        all.put("a", &assignment, &[]);
        assert!(!changed.has_changed().unwrap());
        all.put("a", &assignment, &["10.42.0.2".into()]);
        assert!(changed.has_changed().unwrap());
        changed.borrow_and_update();
        all.put("a", &assignment, &["10.42.0.2".into()]);
        assert!(!changed.has_changed().unwrap());
        let found: Vec<_> = all.all().iter().map(|port| (port.port, port.address.is_some())).collect();
        assert_eq!(found, [(8080, false), (8081, false), (8082, true)]);
        all.put("a", &assignment, &[]);
        assert!(all.all().is_empty() && changed.has_changed().unwrap());
    }
}
