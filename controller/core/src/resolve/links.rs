//! The Services of a namespace as variables of its pods (`enableServiceLinks`): Kubernetes' `{SVC}_SERVICE_HOST` and
//! `_PORT`, and the older ones of Docker's links.
//!
//! They are what they were when the pod was resolved: a Service that comes or goes must never be a reason to restart
//! a container.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::services::service::Service;

/// A Service with an address, as pods' variables name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub service: String,
    /// The first of its addresses.
    pub address: String,
    pub ports: Vec<LinkPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPort {
    pub name: String,
    /// `tcp`, `udp`.
    pub protocol: String,
    pub port: u32,
}

impl Link {
    /// None: headless, an alias, or without ports.
    pub fn of(service: &Value) -> Option<Link> {
        let service = Service::of(service);
        let address = service.message.cluster_ips.first()?.clone();
        let ports: Vec<LinkPort> = service
            .ports
            .into_iter()
            .map(|p| LinkPort { name: p.name, protocol: p.protocol.to_lowercase(), port: p.port })
            .collect();
        (!ports.is_empty()).then_some(Link { service: service.name.1, address, ports })
    }

    fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let prefix = variable(&self.service);
        let host =
            if self.address.contains(':') { format!("[{}]", self.address) } else { self.address.clone() };
        let first = self.ports.first().into_iter().flat_map(|port| {
            [
                ("SERVICE_HOST", self.address.clone()),
                ("SERVICE_PORT", port.port.to_string()),
                ("PORT", format!("{}://{host}:{}", port.protocol, port.port)),
            ]
        });
        let first: Vec<_> = first.map(|(name, value)| (format!("{prefix}_{name}"), value)).collect();
        let named = self.ports.iter().filter(|port| !port.name.is_empty());
        let named: Vec<_> = named
            .map(|p| (format!("{prefix}_SERVICE_PORT_{}", variable(&p.name)), p.port.to_string()))
            .collect();
        let each = self.ports.iter().flat_map(move |port| {
            let LinkPort { protocol, port, .. } = port;
            let of_port = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
            [
                (format!("{of_port}_PROTO"), protocol.clone()),
                (format!("{of_port}_PORT"), port.to_string()),
                (format!("{of_port}_ADDR"), self.address.clone()),
                (of_port, format!("{protocol}://{host}:{port}")),
            ]
        });
        first.into_iter().chain(named).chain(each)
    }
}

/// All variables of these Services.
pub(super) fn variables<'a>(links: impl Iterator<Item = &'a Link>) -> BTreeMap<String, String> {
    links.flat_map(Link::variables).collect()
}

/// A name as part of a variable's.
fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// The Service of the API itself, which pods of every namespace are told of, whatever they say of links.
pub(super) const API: (&str, &str) = ("default", "kubernetes");

/// The variables for a pod of this namespace.
pub(super) fn of_pod(
    pod: &Value,
    namespace: &str,
    links: impl Fn(&str) -> Arc<[Link]>,
) -> BTreeMap<String, String> {
    let mut all = variables(links(API.0).iter().filter(|link| link.service == API.1));
    if pod["spec"]["enableServiceLinks"] != false {
        all.extend(variables(links(namespace).iter()));
    }
    all
}
