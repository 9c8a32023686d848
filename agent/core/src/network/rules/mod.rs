//! Services as nftables' rules: what the table should hold, a pure function of what is known. ([`table`] leads there.)
//!
//! ```text
//! prerouting, output   address . protocol . port ──▶ a chain of its service's port ──▶ dnat to one at random
//!                      (or, on any own address, protocol . port: node ports, host ports)
//! postrouting          to oneself through a Service: masqueraded; out of the pods' ranges: masqueraded;
//!                      from outside to another host's pod: masqueraded, so that the answer comes back here
//! input, forward,      what has nobody behind it is refused at once, never dropped: a Service without a ready
//! output               pod, an unknown port of a cluster address, a pod that is gone
//! ```
//! Everything that gets into a script is a number, a parsed address, or a name that was checked: what the
//! controller says can never become a rule of its own.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use berth_proto::{Endpoint, Service};

use super::paths::HOME;
use super::{Range, View, zone};
use table::{Chain, Set, Table};

pub use table::TABLE;

/// Addresses one set remembers for session affinity.
const REMEMBERED: u32 = 65535;

/// Transport protocols a Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it; empty is TCP.
    pub fn of(text: &str) -> Option<Protocol> {
        match text {
            "TCP" | "" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// The number IP knows it by.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to a pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// None: any of the host's.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    /// The pod's addresses.
    pub to: Vec<IpAddr>,
    pub to_port: u16,
}

/// What people connect to. Without an address: any of this host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Front {
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// What there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    table: Table,
    /// To whom connections made through a front may go on: for TCP whoever is there, ready or not.
    kept: BTreeMap<Front, BTreeSet<(IpAddr, u16)>>,
    services: Vec<Range>,
}

/// Decides. `node` is this host's name.
pub fn rules(view: &View, node: &str, host_ports: &[HostPort]) -> Rules {
    let mut made = Rules { services: view.settings().service_ranges.clone(), ..Rules::default() };
    made.frame(view);
    for port in host_ports {
        made.host_port(port);
    }
    for (namespace, name, service, endpoints) in view.services() {
        if plain(namespace) && plain(name) {
            made.service(namespace, name, service, endpoints, node);
        }
    }
    made
}

impl Rules {
    /// Whether a connection that was begun to `to` and is answered by `from` goes to somebody who is not behind
    /// it any more.
    pub fn stale(&self, protocol: Protocol, to: (IpAddr, u16), from: (IpAddr, u16)) -> bool {
        let front = |address| Front { address, protocol, port: to.1 };
        let kept = self.kept.get(&front(Some(to.0))).or_else(|| self.kept.get(&front(None)));
        match kept {
            Some(kept) => !kept.contains(&from),
            None => self.services.iter().any(|range| range.contains(to.0)),
        }
    }

    /// Whether connections of before may go to somebody who is gone.
    pub fn lost(&self, before: &Rules) -> bool {
        before.kept.iter().any(|(front, kept)| match self.kept.get(front) {
            Some(now) => !kept.is_subset(now),
            None => !kept.is_empty(),
        })
    }

    /// The script for `nft -f -` that leads from `before` (or from whatever there is) to this; none if there is
    /// nothing to do.
    pub fn script(&self, before: Option<&Rules>) -> Option<String> {
        self.table.script(before.map(|before| &before.table))
    }

    /// What is there whatever Services there are.
    fn frame(&mut self, view: &View) {
        let own = distinct(view.settings().pod_ranges.iter().copied());
        let pods = distinct(view.pod_ranges());
        let services = distinct(self.services.iter().copied());
        for v4 in [true, false] {
            let address = if v4 { "ipv4_addr" } else { "ipv6_addr" };
            let six = if v4 { "4" } else { "6" };
            for (name, ranges) in [("own", &own), ("pods", &pods), ("services", &services)] {
                let ranges = ranges.iter().filter(|range| range.base().is_ipv4() == v4);
                let elements = ranges.map(|range| (range.to_string(), String::new())).collect();
                let made = format!("type {address}; flags interval;");
                self.table.sets.insert(format!("{name}{six}"), Set { made, elements, whole: true });
            }
            let three = format!("{address} . inet_proto . inet_service");
            self.set(format!("fronts{six}"), format!("type {three} : verdict;"));
            self.set(format!("refused{six}"), format!("type {three};"));
            self.set(format!("oneself{six}"), format!("type {address} . {address};"));
        }
        self.set("ports".into(), "type inet_proto . inet_service : verdict;".into());
        self.set("refused_ports".into(), "type inet_proto . inet_service;".into());

        let ports = "meta l4proto . th dport";
        let fronts = [
            format!("ip daddr . {ports} vmap @fronts4"),
            format!("ip6 daddr . {ports} vmap @fronts6"),
            // The loopback's ports are the host's own, and so is the one where names are answered.
            format!("ip daddr {{ 127.0.0.0/8, {} }} return", zone::SERVER),
            "ip6 daddr ::1 return".to_owned(),
            format!("fib daddr type local {ports} vmap @ports"),
        ];
        self.base("prerouting", "type nat hook prerouting priority -100; policy accept;", fronts.to_vec());
        self.base("output", "type nat hook output priority -100; policy accept;", fronts.to_vec());
        let mut leaving = Vec::new();
        for (ip, six, multicast) in [("ip", "4", "224.0.0.0/4"), ("ip6", "6", "ff00::/8")] {
            leaving.push(format!("ct status dnat {ip} saddr . {ip} daddr @oneself{six} masquerade"));
            leaving.push(format!(
                "{ip} saddr @own{six} {ip} daddr != @pods{six} {ip} daddr != {multicast} masquerade"
            ));
            leaving
                .push(format!("ct status dnat {ip} saddr != @pods{six} {ip} daddr != @own{six} masquerade"));
        }
        self.base("postrouting", "type nat hook postrouting priority 100; policy accept;", leaving);

        let refused = |chain: &mut Vec<String>| {
            for (ip, six) in [("ip", "4"), ("ip6", "6")] {
                chain.push(format!("{ip} daddr . {ports} @refused{six} goto refuse"));
            }
        };
        let mut arriving = Vec::new();
        refused(&mut arriving);
        arriving.push(format!("fib daddr type local {ports} @refused_ports goto refuse"));
        self.base("arriving", "type filter hook input priority 0; policy accept;", arriving);
        let mut passing = Vec::new();
        refused(&mut passing);
        // What is routed to nowhere: a pod that is gone, a cluster address or port that is nobody's.
        passing.push(format!("oifname \"{HOME}\" goto refuse"));
        self.base("passing", "type filter hook forward priority 0; policy accept;", passing);
        let mut leaving = Vec::new();
        refused(&mut leaving);
        for (ip, six) in [("ip", "4"), ("ip6", "6")] {
            leaving.push(format!("{ip} daddr @services{six} goto refuse"));
            // The device is the one from before translation: only what was not translated goes to it.
            leaving.push(format!("oifname \"{HOME}\" ct status ! dnat {ip} daddr @own{six} goto refuse"));
        }
        self.base("leaving", "type filter hook output priority 0; policy accept;", leaving);
        self.base(
            "refuse",
            "",
            vec![
                "meta l4proto tcp reject with tcp reset".into(),
                "reject with icmpx port-unreachable".into(),
            ],
        );
    }

    fn set(&mut self, name: String, made: String) {
        self.table.sets.insert(name, Set { made, ..Set::default() });
    }

    fn base(&mut self, name: &str, hook: &'static str, rules: Vec<String>) {
        self.table.chains.insert(name.to_owned(), Chain { hook, rules });
    }

    fn service(
        &mut self,
        namespace: &str,
        name: &str,
        service: &Service,
        endpoints: &BTreeMap<String, Endpoint>,
        node: &str,
    ) {
        let cluster = parse(&service.cluster_ips);
        let external = parse(&service.external_ips);
        if cluster.is_empty() && external.is_empty() {
            return;
        }
        for address in endpoints.values().filter(|e| e.node_name == node).flat_map(|e| parse(&e.addresses)) {
            self.oneself(address);
        }
        for port in &service.ports {
            let (Some(protocol), Ok(number)) = (Protocol::of(&port.protocol), u16::try_from(port.port))
            else {
                continue;
            };
            let behind = Behind::new(service, endpoints, node, &port.name, protocol);
            let kept = behind.kept(protocol);
            let path = format!("{namespace}/{name}/{}/{number}", protocol.word());
            let affinity = service.client_ip_affinity_seconds;
            let inside = behind.usable(service.internal_local);
            let at = |address: IpAddr, port| Front { address: Some(address), protocol, port };
            let inner: Vec<Front> = cluster.iter().map(|ip| at(*ip, number)).collect();
            let mut outer: Vec<Front> = external.iter().map(|ip| at(*ip, number)).collect();
            if let Ok(port @ 1..) = u16::try_from(port.node_port) {
                outer.push(Front { address: None, protocol, port });
            }
            let outside = behind.usable(service.external_local);
            if inside == outside {
                let all = inner.into_iter().chain(outer).collect();
                self.balance(&format!("svc/{path}"), all, &inside, affinity, &kept);
            } else {
                self.balance(&format!("svc/{path}"), inner, &inside, affinity, &kept);
                self.balance(&format!("ext/{path}"), outer, &outside, affinity, &kept);
            }
        }
    }

    fn host_port(&mut self, port: &HostPort) {
        let HostPort { address, protocol, port, to, to_port } = port;
        let backends: Backends = to.iter().map(|ip| (*ip, *to_port)).collect();
        for ip in to {
            self.oneself(*ip);
        }
        let front = Front { address: *address, protocol: *protocol, port: *port };
        let place = address.map_or("any".to_owned(), written);
        let chain = format!("host/{place}/{}/{port}", protocol.word());
        self.balance(&chain, vec![front], &backends, 0, &backends);
    }

    fn oneself(&mut self, address: IpAddr) {
        let name = if address.is_ipv4() { "oneself4" } else { "oneself6" };
        if let Some(set) = self.table.sets.get_mut(name) {
            set.elements.insert(format!("{address} . {address}"), String::new());
        }
    }

    /// These fronts lead to these backends. The first to claim a front has it.
    fn balance(
        &mut self,
        chain: &str,
        fronts: Vec<Front>,
        backends: &Backends,
        affinity: u32,
        kept: &Backends,
    ) {
        let fronts: Vec<Front> = fronts.into_iter().filter(|front| !self.kept.contains_key(front)).collect();
        let mut used = false;
        for front in fronts {
            let usable = match front.address {
                Some(ip) => backends.iter().any(|(to, _)| to.is_ipv4() == ip.is_ipv4()),
                None => !backends.is_empty(),
            };
            used |= usable;
            let (protocol, port) = (front.protocol.word(), front.port);
            let (set, key) = match front.address {
                Some(ip) => {
                    let six = if ip.is_ipv4() { "4" } else { "6" };
                    let set = if usable { format!("fronts{six}") } else { format!("refused{six}") };
                    (set, format!("{ip} . {protocol} . {port}"))
                }
                None if usable => ("ports".to_owned(), format!("{protocol} . {port}")),
                None => ("refused_ports".to_owned(), format!("{protocol} . {port}")),
            };
            let value = if usable { format!("goto {chain}") } else { String::new() };
            if let Some(set) = self.table.sets.get_mut(&set) {
                set.elements.insert(key, value);
            }
            self.kept.insert(front, kept.clone());
        }
        if !used {
            return;
        }
        let protocol = chain.rsplit('/').nth(1).unwrap_or("tcp").to_owned();
        let mut rules = Vec::new();
        for v4 in [true, false] {
            let mine: Vec<(IpAddr, u16)> =
                backends.iter().copied().filter(|(ip, _)| ip.is_ipv4() == v4).collect();
            if affinity > 0 {
                self.sticky(chain, &protocol, &mine, affinity, &mut rules);
            } else if !mine.is_empty() {
                let ip = if v4 { "ip" } else { "ip6" };
                let only = if v4 { "ipv4" } else { "ipv6" };
                let chosen = match mine.as_slice() {
                    [(to, port)] if v4 => format!("{to}:{port}"),
                    [(to, port)] => format!("[{to}]:{port}"),
                    many => {
                        let numbered = many.iter().enumerate();
                        let all: Vec<String> =
                            numbered.map(|(n, (to, port))| format!("{n} : {to} . {port}")).collect();
                        format!("numgen random mod {} map {{ {} }}", many.len(), all.join(", "))
                    }
                };
                rules.push(format!("meta nfproto {only} meta l4proto {protocol} dnat {ip} to {chosen}"));
            }
        }
        self.table.chains.insert(chain.to_owned(), Chain { hook: "", rules });
    }

    /// Whoever was with one of them before is again; the others are led at random, and remembered.
    fn sticky(
        &mut self,
        chain: &str,
        protocol: &str,
        backends: &[(IpAddr, u16)],
        seconds: u32,
        rules: &mut Vec<String>,
    ) {
        let mut known = Vec::new();
        let mut new = Vec::new();
        for (n, (to, port)) in backends.iter().enumerate() {
            let (ip, kind, only, target) = match to {
                IpAddr::V4(_) => ("ip", "ipv4_addr", "ipv4", format!("{to}:{port}")),
                IpAddr::V6(_) => ("ip6", "ipv6_addr", "ipv6", format!("[{to}]:{port}")),
            };
            let one = format!("{chain}/{}/{port}", written(*to));
            let memory = format!("{one}/{seconds}");
            let made = format!("type {kind}; flags dynamic,timeout; timeout {seconds}s; size {REMEMBERED};");
            self.set(memory.clone(), made);
            known.push(format!("{ip} saddr @{memory} goto {one}"));
            if n == 0 {
                new.push(format!("meta nfproto {only} numgen random mod {} vmap {{ ", backends.len()));
            }
            if let Some(choice) = new.last_mut() {
                let comma = if n == 0 { "" } else { ", " };
                let _ = write!(choice, "{comma}{n} : goto {one}");
            }
            let own = vec![
                format!("update @{memory} {{ {ip} saddr }}"),
                format!("meta nfproto {only} meta l4proto {protocol} dnat {ip} to {target}"),
            ];
            self.table.chains.insert(one, Chain { hook: "", rules: own });
        }
        rules.extend(known);
        rules.extend(new.into_iter().map(|choice| choice + " }"));
    }
}

type Backends = BTreeSet<(IpAddr, u16)>;

/// Who is behind a service's port.
struct Behind {
    ready: Backends,
    local: Backends,
    /// Ready or not.
    there: Backends,
}

impl Behind {
    fn new(
        service: &Service,
        endpoints: &BTreeMap<String, Endpoint>,
        node: &str,
        port: &str,
        protocol: Protocol,
    ) -> Behind {
        let backends = |endpoint: &Endpoint| -> Vec<(IpAddr, u16)> {
            let same = |p: &&berth_proto::EndpointPort| {
                p.name == port && Protocol::of(&p.protocol) == Some(protocol)
            };
            let ports = endpoint.ports.iter().filter(same).filter_map(|p| u16::try_from(p.port).ok());
            let addresses = parse(&endpoint.addresses);
            ports.flat_map(|port| addresses.iter().map(move |ip| (*ip, port))).collect()
        };
        let of = |counts: &dyn Fn(&Endpoint) -> bool| -> Backends {
            endpoints.values().filter(|endpoint| counts(endpoint)).flat_map(backends).collect()
        };
        let ready = |e: &Endpoint| e.ready || service.publish_not_ready_addresses;
        // As Kubernetes: those that end but still answer are better than nobody.
        let ending = |e: &Endpoint| e.serving && e.terminating;
        let here = |e: &Endpoint| e.node_name == node;
        let or = |first: Backends, second: Backends| if first.is_empty() { second } else { first };
        Behind {
            ready: or(of(&ready), of(&ending)),
            local: or(of(&|e| here(e) && ready(e)), of(&|e| here(e) && ending(e))),
            there: of(&|_| true),
        }
    }

    fn usable(&self, local: bool) -> Backends {
        if local { self.local.clone() } else { self.ready.clone() }
    }

    fn kept(&self, protocol: Protocol) -> Backends {
        match protocol {
            // A datagram has no connection that could be finished.
            Protocol::Udp => self.ready.union(&self.local).copied().collect(),
            _ => self.there.clone(),
        }
    }
}

fn parse(addresses: &[String]) -> Vec<IpAddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}

/// An address as part of a chain's name.
fn written(address: IpAddr) -> String {
    address.to_string().replace(':', ".")
}

/// Only what can be part of a chain's name.
fn plain(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(fine)
}

/// Without those that lie in another.
fn distinct(ranges: impl Iterator<Item = Range>) -> BTreeSet<Range> {
    let all: BTreeSet<Range> = ranges.collect();
    let inside = |range: &Range| {
        all.iter().any(|other| other.prefix() < range.prefix() && other.contains(range.base()))
    };
    all.iter().copied().filter(|range| !inside(range)).collect()
}

#[cfg(test)]
mod tests;
