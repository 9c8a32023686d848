//! Services as nftables' rules: what the table should hold (a pure function of what is known), and the script
//! that leads from one state to another in one transaction.
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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use berth_proto::{Endpoint, Service};

use super::paths::HOME;
use super::{Range, View, zone};

/// The table's name, in the family `inet`.
pub const TABLE: &str = "berth";
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
    sets: BTreeMap<String, Set>,
    chains: BTreeMap<String, Chain>,
    /// To whom connections made through a front may go on: for TCP whoever is there, ready or not.
    kept: BTreeMap<Front, BTreeSet<(IpAddr, u16)>>,
    services: Vec<Range>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    /// Its type and flags.
    made: String,
    /// With what each maps to; empty in a plain set.
    elements: BTreeMap<String, String>,
    /// Its elements belong together (ranges): changed all at once.
    whole: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// Where it is called from; empty: from other chains.
    hook: &'static str,
    rules: Vec<String>,
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
        let nothing = Rules::default();
        let mut script = String::new();
        if before.is_none() {
            // Adding makes the removing possible in any case.
            let _ =
                writeln!(script, "add table inet {TABLE}\ndelete table inet {TABLE}\nadd table inet {TABLE}");
        }
        let before = before.unwrap_or(&nothing);
        // In this order: what is referred to is there before and goes after.
        for (name, set) in &self.sets {
            if !before.sets.contains_key(name) {
                let _ = writeln!(script, "add {} inet {TABLE} {name} {{ {} }}", set.word(), set.made);
            }
        }
        for (name, chain) in &self.chains {
            if !before.chains.contains_key(name) {
                let hook =
                    if chain.hook.is_empty() { String::new() } else { format!(" {{ {} }}", chain.hook) };
                let _ = writeln!(script, "add chain inet {TABLE} {name}{hook}");
            }
        }
        for (name, chain) in &self.chains {
            let there = before.chains.get(name);
            if there.is_some_and(|there| there.rules == chain.rules) {
                continue;
            }
            if there.is_some() {
                let _ = writeln!(script, "flush chain inet {TABLE} {name}");
            }
            for rule in &chain.rules {
                let _ = writeln!(script, "add rule inet {TABLE} {name} {rule}");
            }
        }
        for (name, set) in &self.sets {
            set.change(name, before.sets.get(name), &mut script);
        }
        for (name, chain) in before.chains.iter().filter(|(name, _)| !self.chains.contains_key(*name)) {
            if !chain.rules.is_empty() {
                let _ = writeln!(script, "flush chain inet {TABLE} {name}");
            }
        }
        for name in before.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            let _ = writeln!(script, "delete chain inet {TABLE} {name}");
        }
        for (name, set) in before.sets.iter().filter(|(name, _)| !self.sets.contains_key(*name)) {
            let _ = writeln!(script, "delete {} inet {TABLE} {name}", set.word());
        }
        (!script.is_empty()).then_some(script)
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
                self.sets.insert(format!("{name}{six}"), Set { made, elements, whole: true });
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
        self.sets.insert(name, Set { made, ..Set::default() });
    }

    fn base(&mut self, name: &str, hook: &'static str, rules: Vec<String>) {
        self.chains.insert(name.to_owned(), Chain { hook, rules });
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
        if let Some(set) = self.sets.get_mut(name) {
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
            if let Some(set) = self.sets.get_mut(&set) {
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
        self.chains.insert(chain.to_owned(), Chain { hook: "", rules });
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
            self.chains.insert(one, Chain { hook: "", rules: own });
        }
        rules.extend(known);
        rules.extend(new.into_iter().map(|choice| choice + " }"));
    }
}

impl Set {
    fn word(&self) -> &'static str {
        if self.made.contains(": verdict") { "map" } else { "set" }
    }

    fn change(&self, name: &str, before: Option<&Set>, script: &mut String) {
        let nothing = BTreeMap::new();
        let before = before.map_or(&nothing, |set| &set.elements);
        if self.elements == *before {
            return;
        }
        let mut say = |verb: &str, elements: Vec<String>| {
            // One line of a script is read as a whole: not all of a large set in one.
            for some in elements.chunks(500) {
                let _ = writeln!(script, "{verb} element inet {TABLE} {name} {{ {} }}", some.join(", "));
            }
        };
        let element = |(key, value): (&String, &String)| match value.as_str() {
            "" => key.clone(),
            value => format!("{key} : {value}"),
        };
        if self.whole {
            if !before.is_empty() {
                let _ = writeln!(script, "flush set inet {TABLE} {name}");
            }
            let mut say = |elements: Vec<String>| {
                if !elements.is_empty() {
                    let _ = writeln!(script, "add element inet {TABLE} {name} {{ {} }}", elements.join(", "));
                }
            };
            say(self.elements.iter().map(element).collect());
            return;
        }
        let gone = before.iter().filter(|(key, value)| self.elements.get(*key) != Some(value));
        say("delete", gone.map(element).collect());
        let new = self.elements.iter().filter(|(key, value)| before.get(*key) != Some(value));
        say("add", new.map(element).collect());
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
mod tests {
    use super::*;
    use berth_proto::{EndpointPort, Endpoints, NetworkUpdate, Peer, ServicePort, ServiceRef, Welcome};
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn web() -> Service {
        let port = |name: &str, port, node_port| ServicePort {
            name: name.into(),
            protocol: "TCP".into(),
            port,
            node_port,
        };
        Service {
            service: Some(ServiceRef { namespace: "default".into(), name: "web".into() }),
            cluster_ips: vec!["10.43.0.1".into()],
            ports: vec![port("http", 80, 30080)],
            ..Service::default()
        }
    }

    fn pod(n: u8, ready: bool) -> Endpoint {
        Endpoint {
            id: format!("web-{n}"),
            addresses: vec![format!("10.42.{n}.2")],
            node_name: format!("host{n}"),
            ready,
            ports: vec![EndpointPort { name: "http".into(), protocol: "TCP".into(), port: 8080 }],
            ..Endpoint::default()
        }
    }

    fn view(service: Service, pods: Vec<Endpoint>) -> View {
        let mut view = View::default();
        view.welcome(&Welcome {
            pod_cidr: "10.42.0.0/24".into(),
            service_cidr: "10.43.0.0/16".into(),
            ..Welcome::default()
        });
        let endpoints = Endpoints { service: service.service.clone(), endpoints: pods, removed: vec![] };
        view.apply(NetworkUpdate {
            reset: true,
            complete: true,
            peers: vec![Peer { pod_cidrs: vec!["10.42.1.0/24".into()], ..Peer::default() }],
            services: vec![service],
            endpoints: vec![endpoints],
            ..NetworkUpdate::default()
        });
        view
    }

    fn decide(service: Service, pods: Vec<Endpoint>) -> Rules {
        rules(&view(service, pods), "host0", &[])
    }

    fn elements<'a>(rules: &'a Rules, set: &str) -> Vec<(&'a str, &'a str)> {
        rules.sets[set].elements.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    #[test]
    fn a_cluster_address_leads_to_one_of_the_ready_pods() {
        let made = decide(web(), vec![pod(0, true), pod(1, true), pod(2, false)]);
        assert_eq!(elements(&made, "fronts4"), [("10.43.0.1 . tcp . 80", "goto svc/default/web/tcp/80")]);
        assert_eq!(elements(&made, "ports"), [("tcp . 30080", "goto svc/default/web/tcp/80")]);
        assert_eq!(
            made.chains["svc/default/web/tcp/80"].rules,
            ["meta nfproto ipv4 meta l4proto tcp dnat ip to numgen random mod 2 map \
              { 0 : 10.42.0.2 . 8080, 1 : 10.42.1.2 . 8080 }"]
        );
        assert_eq!(elements(&made, "oneself4"), [("10.42.0.2 . 10.42.0.2", "")]);
    }

    #[test]
    fn without_a_ready_pod_it_is_refused() {
        let made = decide(web(), vec![pod(0, false)]);
        assert!(elements(&made, "fronts4").is_empty() && elements(&made, "ports").is_empty());
        assert_eq!(elements(&made, "refused4"), [("10.43.0.1 . tcp . 80", "")]);
        assert_eq!(elements(&made, "refused_ports"), [("tcp . 30080", "")]);
        // Unless it wants those too, or they still answer while they end.
        let early = decide(Service { publish_not_ready_addresses: true, ..web() }, vec![pod(0, false)]);
        assert_eq!(elements(&early, "fronts4").len(), 1);
        let ending = Endpoint { serving: true, terminating: true, ..pod(0, false) };
        assert_eq!(elements(&decide(web(), vec![ending.clone()]), "fronts4").len(), 1);
        let made = decide(web(), vec![ending, pod(1, true)]);
        assert!(made.chains["svc/default/web/tcp/80"].rules[0].ends_with("to 10.42.1.2:8080"));
    }

    #[test]
    fn a_local_policy_leads_only_to_pods_of_this_host() {
        let service = Service { external_local: true, ..web() };
        let made = decide(service.clone(), vec![pod(0, true), pod(1, true)]);
        assert_eq!(elements(&made, "ports"), [("tcp . 30080", "goto ext/default/web/tcp/80")]);
        assert!(made.chains["ext/default/web/tcp/80"].rules[0].ends_with("to 10.42.0.2:8080"));
        let made = decide(service, vec![pod(1, true)]);
        assert_eq!(elements(&made, "refused_ports").len(), 1);
        assert_eq!(elements(&made, "fronts4").len(), 1);
    }

    #[test]
    fn affinity_remembers_each_pods_clients() {
        let service = Service { client_ip_affinity_seconds: 60, ..web() };
        let made = decide(service, vec![pod(0, true), pod(1, true)]);
        let chain = "svc/default/web/tcp/80";
        assert_eq!(
            made.chains[chain].rules,
            [
                format!("ip saddr @{chain}/10.42.0.2/8080/60 goto {chain}/10.42.0.2/8080"),
                format!("ip saddr @{chain}/10.42.1.2/8080/60 goto {chain}/10.42.1.2/8080"),
                format!(
                    "meta nfproto ipv4 numgen random mod 2 vmap {{ 0 : goto {chain}/10.42.0.2/8080, \
                     1 : goto {chain}/10.42.1.2/8080 }}"
                ),
            ]
        );
        assert!(made.sets[&format!("{chain}/10.42.0.2/8080/60")].made.contains("timeout 60s"));
    }

    #[test]
    fn headless_services_and_names_that_are_none_make_no_rules() {
        let headless = decide(Service { cluster_ips: vec![], ..web() }, vec![pod(0, true)]);
        assert_eq!(headless.chains.len(), decide(web(), vec![]).chains.len());
        let name = Some(ServiceRef { namespace: "default".into(), name: "x } ; flush ruleset".into() });
        let odd = decide(Service { service: name, ..web() }, vec![pod(0, true)]);
        assert!(!odd.script(None).unwrap().contains("flush ruleset"));
    }

    #[test]
    fn a_host_port_leads_to_its_pod_and_comes_first() {
        let port = HostPort {
            address: None,
            protocol: Protocol::Tcp,
            port: 30080,
            to: vec![ip("10.42.0.9")],
            to_port: 80,
        };
        let view = view(web(), vec![pod(0, true)]);
        let made = rules(&view, "host0", std::slice::from_ref(&port));
        assert_eq!(elements(&made, "ports"), [("tcp . 30080", "goto host/any/tcp/30080")]);
        let one = rules(&view, "host0", &[HostPort { address: Some(ip("192.0.2.1")), ..port }]);
        assert!(
            elements(&one, "fronts4").contains(&("192.0.2.1 . tcp . 30080", "goto host/192.0.2.1/tcp/30080"))
        );
    }

    #[test]
    fn connections_to_who_is_gone_are_forgotten_and_others_go_on() {
        let before = decide(web(), vec![pod(0, true), pod(1, true)]);
        let unready = decide(web(), vec![pod(0, true), pod(1, false)]);
        let gone = decide(web(), vec![pod(0, true)]);
        let to = (ip("10.43.0.1"), 80);
        let second = (ip("10.42.1.2"), 8080);
        assert!(!unready.lost(&before) && !unready.stale(Protocol::Tcp, to, second));
        assert!(gone.lost(&before) && gone.stale(Protocol::Tcp, to, second));
        assert!(!gone.stale(Protocol::Tcp, to, (ip("10.42.0.2"), 8080)));
        assert!(gone.stale(Protocol::Tcp, (ip("192.0.2.1"), 30080), second), "by the node's port");
        assert!(gone.stale(Protocol::Tcp, (ip("10.43.9.9"), 80), second), "a service that is gone");
        assert!(!gone.stale(Protocol::Tcp, (ip("192.0.2.1"), 22), second), "none of ours");
    }

    #[test]
    fn a_change_touches_only_what_differs() {
        let before = decide(web(), vec![pod(0, true), pod(1, true)]);
        assert_eq!(before.script(Some(&before)), None);
        let after = decide(web(), vec![pod(0, true)]);
        assert_eq!(
            after.script(Some(&before)).unwrap(),
            "flush chain inet berth svc/default/web/tcp/80\n\
             add rule inet berth svc/default/web/tcp/80 meta nfproto ipv4 meta l4proto tcp dnat ip to 10.42.0.2:8080\n"
        );
        let none = decide(web(), vec![]);
        let script = none.script(Some(&after)).unwrap();
        let order = [
            "delete element inet berth fronts4 { 10.43.0.1 . tcp . 80 : goto svc/default/web/tcp/80 }",
            "flush chain inet berth svc/default/web/tcp/80",
            "delete chain inet berth svc/default/web/tcp/80",
        ];
        let places: Vec<usize> = order.iter().map(|part| script.find(part).expect(part)).collect();
        assert!(places.is_sorted(), "{script}");
    }

    #[test]
    fn ranges_within_ranges_are_said_once() {
        let ranges = ["10.42.0.0/16", "10.42.1.0/24", "10.43.0.0/24", "10.43.0.0/24"];
        let found = distinct(ranges.iter().map(|range| range.parse().unwrap()));
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.42.0.0/16", "10.43.0.0/24"]
        );
    }

    /// What nft would have made of scripts; panics where it would refuse.
    #[derive(Default, Debug, PartialEq)]
    struct Kernel {
        sets: BTreeMap<String, BTreeSet<String>>,
        chains: BTreeMap<String, Vec<String>>,
    }

    impl Kernel {
        fn run(&mut self, script: &str) {
            for line in script.lines() {
                let words: Vec<&str> = line.splitn(6, ' ').collect();
                let (verb, what, name) = (words[0], words[1], words.get(4).copied().unwrap_or(""));
                let rest = words.get(5).copied().unwrap_or("");
                match (verb, what) {
                    (_, "table") => *self = Kernel::default(),
                    ("add", "set" | "map") => {
                        assert!(self.sets.insert(name.into(), BTreeSet::new()).is_none())
                    }
                    ("add", "chain") => assert!(self.chains.insert(name.into(), vec![]).is_none()),
                    ("add", "rule") => {
                        for (at, _) in rest.match_indices("goto ") {
                            let to = rest[at + 5..].split([' ', ',']).next().unwrap();
                            assert!(self.chains.contains_key(to), "{line}");
                        }
                        self.chains.get_mut(name).unwrap().push(rest.into());
                    }
                    ("flush", "chain") => self.chains.get_mut(name).unwrap().clear(),
                    ("flush", "set") => self.sets.get_mut(name).unwrap().clear(),
                    ("delete", "chain") => {
                        let used = self.chains.values().flatten().chain(self.sets.values().flatten());
                        let to = format!("goto {name}");
                        assert!(used.into_iter().all(|u| !u.split(", ").any(|p| p.ends_with(&to))), "{line}");
                        assert!(self.chains.remove(name).unwrap().is_empty());
                    }
                    ("delete", "set" | "map") => {
                        let at = format!("@{name} ");
                        assert!(!self.chains.values().flatten().any(|rule| rule.contains(&at)), "{line}");
                        self.sets.remove(name).unwrap();
                    }
                    (_, "element") => {
                        let set = self.sets.get_mut(name).unwrap();
                        for element in rest.trim_matches(['{', '}', ' ']).split(", ") {
                            match verb {
                                "add" => assert!(set.insert(element.into()), "{line}"),
                                _ => assert!(set.remove(element), "{line}"),
                            }
                        }
                    }
                    _ => panic!("{line}"),
                }
            }
        }
    }

    fn services() -> impl Strategy<Value = (Service, Vec<Endpoint>)> {
        let pods = prop::collection::vec((0u8..4, any::<bool>()), 0..4);
        (pods, any::<bool>(), 0u32..3, any::<bool>()).prop_map(|(pods, local, affinity, headless)| {
            let service = Service {
                external_local: local,
                client_ip_affinity_seconds: affinity * 30,
                cluster_ips: if headless { vec![] } else { web().cluster_ips },
                ..web()
            };
            (service, pods.into_iter().map(|(n, ready)| pod(n, ready)).collect())
        })
    }

    proptest! {
        #[test]
        fn any_way_leads_to_the_same_rules(steps in prop::collection::vec(services(), 1..8)) {
            let mut kernel = Kernel::default();
            let mut before: Option<Rules> = None;
            for (service, pods) in steps {
                let made = decide(service, pods);
                if let Some(script) = made.script(before.as_ref()) {
                    kernel.run(&script);
                }
                let mut fresh = Kernel::default();
                fresh.run(&made.script(None).unwrap());
                prop_assert_eq!(&kernel, &fresh);
                before = Some(made);
            }
        }
    }
}
