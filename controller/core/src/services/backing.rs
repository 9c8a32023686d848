//! What stands behind a service: pods, as far as services care, and what people say themselves in Endpoints
//! and EndpointSlices.

use berth_proto as pb;
use serde_json::Value;

use super::service::{Port, Service, Target, list, number};
use super::{ENDPOINTS_KEEPER, ENDPOINTS_MANAGED_BY, MANAGED_BY, SERVICE_NAME, SKIP_MIRROR, SLICE_KEEPER};
use crate::object;

/// A pod. Equal ones are the same to every service.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Backing {
    pub uid: String,
    /// Sorted by key.
    labels: Vec<(String, String)>,
    pub node: String,
    hostname: String,
    subdomain: String,
    pub host_network: bool,
    /// As its host reported them; the ones it was given at binding come first in time.
    reported: Vec<String>,
    ready: bool,
    terminating: bool,
    ended: bool,
    /// The containers' ports that have a name.
    ports: Vec<(String, String, u32)>,
}

impl Backing {
    pub fn of(pod: &Value) -> Backing {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let labels = pod["metadata"]["labels"].as_object().into_iter().flatten();
        let always = |c: &&Value| c["restartPolicy"] == "Always";
        let containers = list(&spec["containers"]).chain(list(&spec["initContainers"]).filter(always));
        let ports = containers.flat_map(|c| list(&c["ports"])).filter_map(|p| {
            let name = p["name"].as_str().filter(|n| !n.is_empty())?;
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            Some((name.to_owned(), protocol.to_owned(), number(&p["containerPort"])))
        });
        let mut labels: Vec<(String, String)> = labels.map(|(k, v)| (k.clone(), text(v))).collect();
        labels.sort();
        Backing {
            uid: object::uid(pod).to_owned(),
            labels,
            node: text(&spec["nodeName"]),
            hostname: text(&spec["hostname"]),
            subdomain: text(&spec["subdomain"]),
            host_network: spec["hostNetwork"] == true,
            reported: list(&status["podIPs"]).filter_map(|ip| ip["ip"].as_str().map(str::to_owned)).collect(),
            ready: list(&status["conditions"]).any(|c| c["type"] == "Ready" && c["status"] == "True"),
            terminating: object::deleting(pod),
            ended: matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")),
            ports: ports.collect(),
        }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// What it is to this service; None while it has no address, and once it has ended. `given`: the addresses
    /// it was bound with; none: only what is reported counts.
    pub fn behind(&self, service: &Service, name: &str, given: &[String]) -> Option<Backend> {
        let addresses = if given.is_empty() { &self.reported } else { given };
        if self.ended || self.node.is_empty() || addresses.is_empty() {
            return None;
        }
        let named = !self.hostname.is_empty() && self.subdomain == service.name.1;
        Some(Backend {
            pod: name.to_owned(),
            uid: self.uid.clone(),
            node: self.node.clone(),
            addresses: addresses.to_vec(),
            hostname: if named { self.hostname.clone() } else { String::new() },
            ready: service.publish_not_ready || (self.ready && !self.terminating),
            serving: self.ready,
            terminating: self.terminating,
            ports: service.ports.iter().filter_map(|port| self.port(port)).collect(),
        })
    }

    /// None: no container has a port of that name; the service leads elsewhere with this port only.
    fn port(&self, port: &Port) -> Option<BackendPort> {
        let number = match &port.target {
            Target::Number(number) => *number,
            Target::Name(wanted) => {
                let same = |(name, protocol, _): &&(String, String, u32)| {
                    name == wanted && *protocol == port.protocol
                };
                self.ports.iter().find(same)?.2
            }
        };
        Some(BackendPort {
            name: port.name.clone(),
            protocol: port.protocol.clone(),
            port: number,
            app_protocol: port.app_protocol.clone(),
        })
    }
}

/// A pod behind one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub pod: String,
    pub uid: String,
    pub node: String,
    pub addresses: Vec<String>,
    /// Its own name below the service's, or nothing.
    pub hostname: String,
    /// To be given to who asks for the service.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub ports: Vec<BackendPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendPort {
    pub name: String,
    pub protocol: String,
    pub port: u32,
    pub app_protocol: Option<String>,
}

impl Backend {
    pub fn message(self) -> pb::Endpoint {
        pb::Endpoint {
            id: self.pod,
            addresses: self.addresses,
            hostname: self.hostname,
            node_name: self.node,
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            ports: self
                .ports
                .into_iter()
                .map(|p| pb::EndpointPort { name: p.name, protocol: p.protocol, port: p.port })
                .collect(),
        }
    }
}

/// What a person (or a program of theirs) says stands behind a service.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Said {
    /// The service's name, in the same namespace.
    pub service: String,
    pub endpoints: Vec<pb::Endpoint>,
}

/// An EndpointSlice that is not Berth's own; None if it is, or is of no use to hosts.
pub fn slice(object: &Value) -> Option<Said> {
    if object::label(object, MANAGED_BY) == Some(SLICE_KEEPER) || object["addressType"] == "FQDN" {
        return None;
    }
    let service = object::label(object, SERVICE_NAME).filter(|s| !s.is_empty())?.to_owned();
    let ports = ports(&object["ports"]);
    let endpoints = list(&object["endpoints"])
        .map(|endpoint| {
            let addresses = texts(&endpoint["addresses"]);
            let conditions = &endpoint["conditions"];
            let ready = conditions["ready"].as_bool().unwrap_or(true);
            pb::Endpoint {
                id: id(object::name(object), &addresses),
                addresses,
                hostname: text(&endpoint["hostname"]),
                node_name: text(&endpoint["nodeName"]),
                ready,
                serving: conditions["serving"].as_bool().unwrap_or(ready),
                terminating: conditions["terminating"].as_bool().unwrap_or(false),
                ports: ports.clone(),
            }
        })
        .collect();
    Some(Said { service, endpoints })
}

/// An Endpoints object that is not Berth's own; None if it is, or is of no use to hosts.
pub fn endpoints(object: &Value) -> Option<Said> {
    let own = object::label(object, ENDPOINTS_MANAGED_BY) == Some(ENDPOINTS_KEEPER);
    if own || object::label(object, SKIP_MIRROR) == Some("true") {
        return None;
    }
    let mut endpoints = Vec::new();
    for (index, subset) in list(&object["subsets"]).enumerate() {
        let ports = ports(&subset["ports"]);
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            endpoints.extend(list(&subset[field]).map(|address| {
                let addresses = vec![text(&address["ip"])];
                pb::Endpoint {
                    id: id(&index.to_string(), &addresses),
                    addresses,
                    hostname: text(&address["hostname"]),
                    node_name: text(&address["nodeName"]),
                    ready,
                    serving: ready,
                    terminating: false,
                    ports: ports.clone(),
                }
            }));
        }
    }
    Some(Said { service: object::name(object).to_owned(), endpoints })
}

/// Unique among all that is said of a service: no pod's name has a slash.
fn id(within: &str, addresses: &[String]) -> String {
    format!("{within}/{}", addresses.first().map(String::as_str).unwrap_or_default())
}

fn ports(ports: &Value) -> Vec<pb::EndpointPort> {
    list(ports)
        .filter(|p| number(&p["port"]) != 0)
        .map(|p| pb::EndpointPort {
            name: text(&p["name"]),
            protocol: p["protocol"].as_str().unwrap_or("TCP").to_owned(),
            port: number(&p["port"]),
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    list(value).filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
