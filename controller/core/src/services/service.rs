//! A Service as the rest of this module reads it.

use berth_proto as pb;
use serde_json::Value;

use super::Named;
use crate::object;

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Service {
    pub name: Named,
    pub uid: String,
    /// Labels of the pods behind it; empty: somebody else says what stands behind it.
    pub selector: Vec<(String, String)>,
    /// Has no address of its own.
    pub headless: bool,
    /// An alias, and nothing stands behind it.
    pub external_name: String,
    pub publish_not_ready: bool,
    pub ports: Vec<Port>,
    /// What hosts are told.
    pub message: pb::Service,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Port {
    pub name: String,
    pub protocol: String,
    pub port: u32,
    pub target: Target,
    pub app_protocol: Option<String>,
}

/// Where a port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u32),
    /// A container's port of that name and protocol.
    Name(String),
}

impl Default for Target {
    fn default() -> Target {
        Target::Number(0)
    }
}

impl Service {
    pub fn of(object: &Value) -> Service {
        let spec = &object["spec"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let texts = |v: &Value| list(v).filter_map(|x| x.as_str().map(str::to_owned)).collect::<Vec<_>>();
        let name = (object::namespace(object).to_owned(), object::name(object).to_owned());
        let alias = spec["type"] == "ExternalName";
        let headless = spec["clusterIP"] == "None";
        let selector = spec["selector"].as_object().into_iter().flatten();
        let ports: Vec<Port> = list(&spec["ports"]).map(Port::of).collect();
        let affinity = match spec["sessionAffinity"].as_str() {
            Some("ClientIP") => spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64(),
            _ => None,
        };
        let mut cluster_ips = texts(&spec["clusterIPs"]);
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec["clusterIP"].as_str().map(str::to_owned));
        }
        cluster_ips.retain(|ip| !alias && !ip.is_empty() && ip != "None");
        let reachable = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        let message = pb::Service {
            service: Some(pb::ServiceRef { namespace: name.0.clone(), name: name.1.clone() }),
            cluster_ips,
            ports: list(&spec["ports"])
                .zip(&ports)
                .map(|(object, port)| pb::ServicePort {
                    name: port.name.clone(),
                    protocol: port.protocol.clone(),
                    port: port.port,
                    node_port: if reachable { number(&object["nodePort"]) } else { 0 },
                })
                .collect(),
            publish_not_ready_addresses: spec["publishNotReadyAddresses"] == true,
            client_ip_affinity_seconds: affinity.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            external_name: if alias { text(&spec["externalName"]) } else { String::new() },
            external_ips: texts(&spec["externalIPs"]),
            external_local: spec["externalTrafficPolicy"] == "Local",
            internal_local: spec["internalTrafficPolicy"] == "Local",
        };
        Service {
            name,
            uid: object::uid(object).to_owned(),
            selector: match alias {
                true => Vec::new(),
                false => selector.map(|(k, v)| (k.clone(), text(v))).collect(),
            },
            headless,
            external_name: message.external_name.clone(),
            publish_not_ready: message.publish_not_ready_addresses,
            ports,
            message,
        }
    }

    pub fn selects<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(key, value)| label(key) == Some(value))
    }
}

impl Port {
    fn of(port: &Value) -> Port {
        let text = |field: &str| port[field].as_str().unwrap_or_default().to_owned();
        let target = match &port["targetPort"] {
            Value::String(name) => Target::Name(name.clone()),
            given => Target::Number(number(given)),
        };
        let own = number(&port["port"]);
        Port {
            name: text("name"),
            protocol: Some(text("protocol")).filter(|p| !p.is_empty()).unwrap_or_else(|| "TCP".to_owned()),
            port: own,
            target: if target == Target::Number(0) { Target::Number(own) } else { target },
            app_protocol: port["appProtocol"].as_str().map(str::to_owned),
        }
    }
}

pub(super) fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
