//! A pod as its host must run it: everything looked up, nothing left to ask (DESIGN D3).
//!
//! [`resolve`] never fails as a whole. What cannot be had becomes the error of that container
//! ([`Container::config_error`]) or volume ([`Volume::error`]), in Kubernetes' words, and the assignment is
//! made anew when one of the objects it was made from ([`Resolved::uses`]) changes.

mod container;
mod env;
mod expand;
mod images;
mod links;
mod registry;
pub mod resources;
mod volumes;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_proto::{Assignment, Dns, HostAlias, Network, PodRef, PodSecurity};
use serde_json::Value;

use crate::identity::Record;
use crate::object;

pub use images::images;
pub use links::{Link, LinkPort};
pub use volumes::nfs_source;

#[cfg(test)]
mod tests;

#[allow(unused_imports, reason = "named in the documentation above")]
use berth_proto::{Container, Volume};

/// An object that an assignment was made from, whether it was there or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Use {
    /// `configmaps`, `secrets`, `persistentvolumeclaims`, `persistentvolumes`.
    pub resource: &'static str,
    /// Empty for persistentvolumes.
    pub namespace: String,
    pub name: String,
}

/// Gives objects as they are now.
pub trait Lookups {
    fn get(&self, wanted: &Use) -> Option<Value>;

    /// The Services of a namespace that have an address. Which there are is no [`Use`]: nothing is made anew for it.
    fn links(&self, namespace: &str) -> Arc<[Link]>;
}

/// What the pod's place adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `cluster.local`
    pub cluster_domain: String,
    /// Name servers for ClusterFirst; empty: the host's own.
    pub nameservers: Vec<String>,
    /// The node's internal addresses, the main one first.
    pub host_ips: Vec<String>,
    /// The gateway of the node's pod range.
    pub gateway: String,
}

/// An assignment, and what it was made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub assignment: Assignment,
    pub uses: BTreeSet<Use>,
}

/// Makes the assignment of the life that `record` names from its pod object.
pub fn resolve(pod: &Value, record: &Record, place: &Place, lookups: &dyn Lookups) -> Resolved {
    let sources = Sources { lookups, namespace: object::namespace(pod), uses: RefCell::default() };
    let spec = &pod["spec"];
    let links = links::of_pod(pod, sources.namespace, |namespace| lookups.links(namespace));
    let subject = Subject { pod, record, place, links };
    let volumes = volumes::volumes(&subject, &sources);
    let of_host = on_host_network(pod);
    let named = full_hostname(pod, place);
    let containers = |field: &str| {
        let resolved = list(&spec[field]).map(|c| container::container(c, &subject, &sources));
        resolved
            .map(|mut container| {
                if let Err(why) = &named {
                    container.config_error = why.clone();
                }
                container
            })
            .collect::<Vec<_>>()
    };
    let (init_containers, containers) = (containers("initContainers"), containers("containers"));
    let assignment = Assignment {
        pod: Some(PodRef {
            namespace: object::namespace(pod).to_owned(),
            name: object::name(pod).to_owned(),
            uid: record.uid.clone(),
            epoch: record.epoch,
        }),
        generation: object::generation(pod),
        labels: strings(&pod["metadata"]["labels"]).into_iter().collect(),
        annotations: strings(&pod["metadata"]["annotations"]).into_iter().collect(),
        hostname: named.unwrap_or_else(|_| hostname(pod)),
        fqdn: fqdn(pod, place),
        host_aliases: list(&spec["hostAliases"])
            .map(|alias| HostAlias { ip: text(&alias["ip"]), hostnames: texts(&alias["hostnames"]) })
            .collect(),
        network: Some(Network {
            addresses: Some(record.address.clone()).filter(|a| !a.is_empty()).into_iter().collect(),
            gateway: if record.address.is_empty() { String::new() } else { place.gateway.clone() },
            host_network: of_host,
        }),
        dns: Some(dns(pod, place)),
        restart_policy: text_or(&spec["restartPolicy"], "Always"),
        termination_grace_seconds: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30),
        security: Some(security(&spec["securityContext"])),
        init_containers,
        containers,
        volumes,
        registry_auth: registry::credentials(pod, &sources),
    };
    Resolved { assignment, uses: sources.uses.into_inner() }
}

/// What every part of the pod may refer to.
struct Subject<'a> {
    pod: &'a Value,
    record: &'a Record,
    place: &'a Place,
    /// Variables that name Services.
    links: BTreeMap<String, String>,
}

impl Subject<'_> {
    /// The pod's main address, and all of them. On a network of its own, only its host knows what it got.
    fn pod_ips(&self) -> (String, String) {
        if on_host_network(self.pod) {
            let ips = &self.place.host_ips;
            return (ips.first().cloned().unwrap_or_default(), ips.join(","));
        }
        (berth_proto::POD_IP.to_owned(), berth_proto::POD_IPS.to_owned())
    }
}

/// The lookups, remembering what was asked for.
struct Sources<'a> {
    lookups: &'a dyn Lookups,
    namespace: &'a str,
    uses: RefCell<BTreeSet<Use>>,
}

impl Sources<'_> {
    /// An object of the pod's namespace.
    fn own(&self, resource: &'static str, name: &str) -> Option<Value> {
        self.get(Use { resource, namespace: self.namespace.to_owned(), name: name.to_owned() })
    }

    fn volume(&self, name: &str) -> Option<Value> {
        self.get(Use { resource: "persistentvolumes", namespace: String::new(), name: name.to_owned() })
    }

    fn get(&self, wanted: Use) -> Option<Value> {
        let found = self.lookups.get(&wanted);
        self.uses.borrow_mut().insert(wanted);
        found
    }
}

/// The name inside the pod: `spec.hostname` or the pod's own, at most 63 characters.
pub fn hostname(pod: &Value) -> String {
    let wanted = pod["spec"]["hostname"].as_str().filter(|h| !h.is_empty());
    let name = wanted.unwrap_or(object::name(pod));
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// What the kernel is told: with `setHostnameAsFQDN` the whole name, which has to fit.
fn full_hostname(pod: &Value, place: &Place) -> Result<String, String> {
    const LONGEST: usize = 64;
    let full = fqdn(pod, place);
    if pod["spec"]["setHostnameAsFQDN"] != true || full.is_empty() || on_host_network(pod) {
        return Ok(hostname(pod));
    }
    if full.len() > LONGEST {
        return Err(format!(
            "setHostnameAsFQDN: the pod's full name {full} has {} characters, and a host name has at most {LONGEST}",
            full.len()
        ));
    }
    Ok(full)
}

fn on_host_network(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

fn fqdn(pod: &Value, place: &Place) -> String {
    match pod["spec"]["subdomain"].as_str() {
        Some(subdomain) if !subdomain.is_empty() => {
            format!("{}.{subdomain}.{}.svc.{}", hostname(pod), object::namespace(pod), place.cluster_domain)
        }
        _ => String::new(),
    }
}

/// Kubernetes' rules: ClusterFirst searches the namespace first (on the host's network only if it says
/// ClusterFirstWithHostNet; plain, it is Default there), `dnsConfig` adds to whatever the policy
/// gives (an option of the same name replaces).
fn dns(pod: &Value, place: &Place) -> Dns {
    let mut policy = text_or(&pod["spec"]["dnsPolicy"], "ClusterFirst");
    if policy == "ClusterFirst" && on_host_network(pod) {
        policy = "Default".to_owned();
    }
    let config = &pod["spec"]["dnsConfig"];
    let mut dns = Dns { policy, ..Dns::default() };
    let mut options: Vec<(String, Option<String>)> = Vec::new();
    if dns.policy.starts_with("ClusterFirst") {
        let (namespace, domain) = (object::namespace(pod), &place.cluster_domain);
        dns.nameservers = place.nameservers.clone();
        dns.searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        options.push(("ndots".to_owned(), Some("5".to_owned())));
    }
    for server in texts(&config["nameservers"]) {
        if !dns.nameservers.contains(&server) {
            dns.nameservers.push(server);
        }
    }
    for search in texts(&config["searches"]) {
        if !dns.searches.contains(&search) {
            dns.searches.push(search);
        }
    }
    for option in list(&config["options"]) {
        let (name, value) = (text(&option["name"]), option["value"].as_str().map(str::to_owned));
        match options.iter_mut().find(|(n, _)| *n == name) {
            Some(there) => there.1 = value,
            None => options.push((name, value)),
        }
    }
    dns.options = options
        .into_iter()
        .map(|(name, value)| match value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        })
        .collect();
    dns
}

fn security(context: &Value) -> PodSecurity {
    PodSecurity {
        run_as_user: context["runAsUser"].as_i64(),
        run_as_group: context["runAsGroup"].as_i64(),
        run_as_non_root: context["runAsNonRoot"].as_bool(),
        fs_group: context["fsGroup"].as_i64(),
        supplemental_groups: list(&context["supplementalGroups"]).filter_map(Value::as_i64).collect(),
        fs_group_change_policy: text(&context["fsGroupChangePolicy"]),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn text_or(value: &Value, default: &str) -> String {
    value.as_str().filter(|s| !s.is_empty()).unwrap_or(default).to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    list(value).filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}
