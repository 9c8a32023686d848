//! What names of the cluster mean: Kubernetes' DNS specification (kubernetes/dns, docs/specification.md),
//! looked up in a [`View`]. A pure function of both.
//!
//! | name below `<service>.<namespace>.svc.<domain>` | answer |
//! |---|---|
//! | itself | the cluster address, or (headless) the ready pods |
//! | `<hostname>` | that pod, ready or not, from its assignment on |
//! | `_<port>._<protocol>` | SRV |
//!
//! Every record has a time to live of 0, also "there is none": the one who answers is on the asker's own host,
//! so a cache in between could only make an answer older, and cost a replaced pod its callers for that long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_proto::{Endpoint, Service};

use super::View;
use super::wire::{Data, Name, Query, Record, Reply, code, kind};

/// Where every agent answers its pods, the same on every host.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);
/// Seconds; see above.
const TTL: u32 = 0;
/// The version of the specification.
const VERSION: &[u8] = b"1.1.0";

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not a name of the cluster: whoever else knows is asked.
    Elsewhere,
    /// This is the answer.
    Here(Reply),
    /// An ExternalName: this alias, and behind it whatever that name is.
    Alias(Record, Name),
}

/// Looks a name up.
pub fn lookup(view: &View, query: &Query) -> Found {
    let lower = query.name.lower();
    let labels: Vec<&str> = match lower.labels().map(std::str::from_utf8).collect() {
        Ok(labels) => labels,
        // Nothing here has such a name.
        Err(_) => return Found::Elsewhere,
    };
    let domain: Vec<&str> = view.settings().cluster_domain.split('.').filter(|l| !l.is_empty()).collect();
    if domain.is_empty() {
        return Found::Elsewhere;
    }
    let zone = Zone { view, query, domain: &view.settings().cluster_domain };
    match labels.strip_suffix(domain.as_slice()) {
        Some(below) => zone.forward(below),
        None => match reverse(&labels) {
            Some(address) => zone.backward(address),
            None => Found::Elsewhere,
        },
    }
}

struct Zone<'a> {
    view: &'a View,
    query: &'a Query,
    domain: &'a str,
}

impl Zone<'_> {
    fn forward(&self, below: &[&str]) -> Found {
        let reversed: Vec<&str> = below.iter().rev().copied().collect();
        match reversed.as_slice() {
            [] => self.apex(),
            ["dns-version"] => match self.query.kind {
                kind::TXT | kind::ANY => self.here(vec![self.mine(Data::Text(VERSION.to_vec()))]),
                _ => self.nothing(),
            },
            ["dns"] | ["svc"] => self.nothing(),
            ["dns", "ns"] => self.addresses([SERVER.into()].into_iter()),
            ["svc", namespace] if self.view.has_namespace(namespace) => self.nothing(),
            ["svc", namespace, name, rest @ ..] => match self.view.service(namespace, name) {
                Some((service, endpoints)) => {
                    let of =
                        Of { zone: self, service, namespace, name, endpoints: endpoints.values().collect() };
                    of.answer(rest)
                }
                None => self.no_name(),
            },
            _ => self.no_name(),
        }
    }

    fn apex(&self) -> Found {
        match self.query.kind {
            kind::SOA => {
                let soa = Record { ttl: TTL, ..self.authority() };
                self.here(vec![Record { name: self.query.name.clone(), ..soa }])
            }
            kind::NS => match self.below("ns.dns") {
                Some(server) => self.here(vec![self.mine(Data::Server(server))]),
                None => self.nothing(),
            },
            _ => self.nothing(),
        }
    }

    /// Whose an address is. The cluster's own ranges are nobody else's business.
    fn backward(&self, address: IpAddr) -> Found {
        let mut names: Vec<Name> = Vec::new();
        for owner in self.view.owners(address) {
            let Some((service, endpoints)) = self.view.service(&owner.namespace, &owner.service) else {
                continue;
            };
            let below = format!("{}.{}.svc", owner.service, owner.namespace);
            let text = match &owner.endpoint {
                None => below,
                // A plain service's pods are not named by it unless they have a name in it.
                Some(id) => match endpoints.get(id) {
                    Some(endpoint) if !endpoint.hostname.is_empty() || headless(service) => {
                        format!("{}.{below}", label(endpoint, address))
                    }
                    _ => continue,
                },
            };
            names.extend(self.below(&text).filter(|name| !names.contains(name)));
        }
        let settings = self.view.settings();
        let ours = || {
            let mut ranges = settings.service_ranges.iter().copied().chain(self.view.pod_ranges());
            ranges.any(|range| range.contains(address))
        };
        match (names.is_empty(), self.query.kind) {
            (true, _) if ours() => self.no_name(),
            (true, _) => Found::Elsewhere,
            (false, kind::PTR | kind::ANY) => {
                self.here(names.into_iter().map(|name| self.mine(Data::Pointer(name))).collect())
            }
            (false, _) => self.nothing(),
        }
    }

    /// Of what was asked for.
    fn mine(&self, data: Data) -> Record {
        Record { name: self.query.name.clone(), ttl: TTL, data }
    }

    fn below(&self, name: &str) -> Option<Name> {
        Name::of(&format!("{name}.{}", self.domain))
    }

    /// Addresses of the family asked for.
    fn addresses(&self, addresses: impl Iterator<Item = IpAddr>) -> Found {
        let mut found: Vec<IpAddr> = addresses.filter(|address| self.wants(*address)).collect();
        found.sort_unstable();
        found.dedup();
        // Each time another one first: many who ask take the first.
        if !found.is_empty() {
            let turn = usize::from(self.query.id) % found.len();
            found.rotate_left(turn);
        }
        self.here(found.into_iter().map(|address| self.mine(Data::Address(address))).collect())
    }

    fn wants(&self, address: IpAddr) -> bool {
        match self.query.kind {
            kind::A => address.is_ipv4(),
            kind::AAAA => address.is_ipv6(),
            kind::ANY => true,
            _ => false,
        }
    }

    fn here(&self, answers: Vec<Record>) -> Found {
        if answers.is_empty() {
            return self.nothing();
        }
        Found::Here(Reply { authoritative: true, answers, ..Reply::default() })
    }

    /// The name is there, with nothing of the kind asked for.
    fn nothing(&self) -> Found {
        Found::Here(Reply { authoritative: true, authority: vec![self.authority()], ..Reply::default() })
    }

    fn no_name(&self) -> Found {
        let Found::Here(reply) = self.nothing() else { return Found::Elsewhere };
        Found::Here(Reply { code: code::NO_NAME, ..reply })
    }

    /// What says for how long "there is none" holds: not at all.
    fn authority(&self) -> Record {
        let root = || Name::of("").unwrap_or_else(|| self.query.name.clone());
        let name = Name::of(self.domain).unwrap_or_else(root);
        let server = self.below("ns.dns").unwrap_or_else(root);
        let mailbox = self.below("hostmaster").unwrap_or_else(root);
        Record { name, ttl: 0, data: Data::Authority { server, mailbox, serial: 1, minimum: 0 } }
    }
}

/// A service that was asked about.
struct Of<'a> {
    zone: &'a Zone<'a>,
    service: &'a Service,
    namespace: &'a str,
    name: &'a str,
    endpoints: Vec<&'a Endpoint>,
}

impl Of<'_> {
    fn answer(&self, rest: &[&str]) -> Found {
        let kind = self.zone.query.kind;
        if !self.service.external_name.is_empty() {
            return match (rest, Name::of(&self.service.external_name)) {
                ([], Some(target)) => Found::Alias(self.zone.mine(Data::Alias(target.clone())), target),
                ([], None) => self.zone.nothing(),
                _ => self.zone.no_name(),
            };
        }
        match rest {
            [] if kind == kind::SRV => self.servers(|_, _| true),
            [] if headless(self.service) => {
                let ready = self.endpoints.iter().filter(|endpoint| self.counts(endpoint));
                self.zone.addresses(ready.flat_map(|endpoint| addresses(endpoint)))
            }
            [] => self.zone.addresses(parse(&self.service.cluster_ips)),
            [protocol] if self.has_protocol(protocol) => self.zone.nothing(),
            [host] => self.host(host),
            [protocol, port] => {
                let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_'))
                else {
                    return self.zone.no_name();
                };
                let is = |p: &str, n: &str| p.eq_ignore_ascii_case(protocol) && n.eq_ignore_ascii_case(port);
                if !self.ports().any(|(p, n)| is(p, n)) {
                    return self.zone.no_name();
                }
                match kind {
                    kind::SRV | kind::ANY => self.servers(is),
                    _ => self.zone.nothing(),
                }
            }
            _ => self.zone.no_name(),
        }
    }

    /// Protocols and names of ports that have names.
    fn ports(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = self.service.ports.iter().map(|port| (port.protocol.as_str(), port.name.as_str()));
        own.filter(|(_, name)| !name.is_empty())
    }

    fn has_protocol(&self, label: &str) -> bool {
        let protocol = label.strip_prefix('_');
        protocol.is_some_and(|wanted| self.ports().any(|(p, _)| p.eq_ignore_ascii_case(wanted)))
    }

    /// One pod by its own name, or one without a name by its address.
    fn host(&self, host: &str) -> Found {
        let mut known = false;
        let mut found = Vec::new();
        for endpoint in &self.endpoints {
            for address in addresses(endpoint) {
                if label(endpoint, address).eq_ignore_ascii_case(host) {
                    known = true;
                    found.push(address);
                }
            }
        }
        match (known, self.zone.query.kind) {
            (false, _) => self.zone.no_name(),
            (true, kind::SRV) => {
                let of = |endpoint: &Endpoint| {
                    addresses(endpoint).any(|address| label(endpoint, address).eq_ignore_ascii_case(host))
                };
                let one = self.endpoints.iter().copied().filter(|endpoint| of(endpoint)).collect();
                Of { endpoints: one, zone: self.zone, ..*self }.endpoint_servers(|_, _| true, |_| true)
            }
            (true, _) => self.zone.addresses(found.into_iter()),
        }
    }

    /// SRV records of the ports that are meant.
    fn servers(&self, is: impl Fn(&str, &str) -> bool) -> Found {
        if headless(self.service) {
            return self.endpoint_servers(is, |endpoint| self.counts(endpoint));
        }
        let Some(target) = self.below("") else { return self.zone.nothing() };
        let ports = self.service.ports.iter().filter(|port| is(&port.protocol, &port.name));
        let ports: Vec<u16> = ports.filter_map(|port| u16::try_from(port.port).ok()).collect();
        let weight = share(ports.len());
        let record =
            |port| self.zone.mine(Data::Service { priority: 0, weight, port, target: target.clone() });
        let answers = ports.into_iter().map(record).collect();
        self.with_addresses(
            answers,
            parse(&self.service.cluster_ips).map(|ip| (target.clone(), ip)).collect(),
        )
    }

    fn endpoint_servers(&self, is: impl Fn(&str, &str) -> bool, counts: impl Fn(&Endpoint) -> bool) -> Found {
        let mut targets: Vec<(u16, Name)> = Vec::new();
        let mut extras: Vec<(Name, IpAddr)> = Vec::new();
        for endpoint in self.endpoints.iter().filter(|endpoint| counts(endpoint)) {
            for address in addresses(endpoint) {
                let Some(name) = self.below(&label(endpoint, address)) else { continue };
                for port in endpoint.ports.iter().filter(|port| is(&port.protocol, &port.name)) {
                    let Ok(port) = u16::try_from(port.port) else { continue };
                    if !targets.contains(&(port, name.clone())) {
                        targets.push((port, name.clone()));
                    }
                }
                extras.push((name, address));
            }
        }
        let weight = share(targets.len());
        let record = |(port, target)| self.zone.mine(Data::Service { priority: 0, weight, port, target });
        self.with_addresses(targets.into_iter().map(record).collect(), extras)
    }

    fn with_addresses(&self, answers: Vec<Record>, extras: Vec<(Name, IpAddr)>) -> Found {
        if answers.is_empty() {
            return self.zone.nothing();
        }
        let extra = |(name, address)| Record { name, ttl: TTL, data: Data::Address(address) };
        let additional = extras.into_iter().map(extra).collect();
        Found::Here(Reply { authoritative: true, answers, additional, ..Reply::default() })
    }

    fn below(&self, host: &str) -> Option<Name> {
        let dot = if host.is_empty() { "" } else { "." };
        self.zone.below(&format!("{host}{dot}{}.{}.svc", self.name, self.namespace))
    }

    /// Whether the service's own name leads to it.
    fn counts(&self, endpoint: &Endpoint) -> bool {
        endpoint.ready || self.service.publish_not_ready_addresses
    }
}

fn headless(service: &Service) -> bool {
    service.cluster_ips.is_empty() && service.external_name.is_empty()
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + '_ {
    parse(&endpoint.addresses)
}

fn parse(addresses: &[String]) -> impl Iterator<Item = IpAddr> + '_ {
    addresses.iter().filter_map(|address| address.parse().ok())
}

/// An endpoint's name within its service; for one without, its address is made one.
fn label(endpoint: &Endpoint, address: IpAddr) -> String {
    if endpoint.hostname.is_empty() {
        address.to_string().replace(['.', ':'], "-")
    } else {
        endpoint.hostname.clone()
    }
}

fn share(of: usize) -> u16 {
    u16::try_from(100 / of.max(1)).unwrap_or(0).max(1)
}

/// The address a name of the reverse zones stands for.
fn reverse(labels: &[&str]) -> Option<IpAddr> {
    if let Some(bytes) = labels.strip_suffix(&["in-addr", "arpa"]) {
        let mut octets = [0u8; 4];
        if bytes.len() != 4 {
            return None;
        }
        for (octet, label) in octets.iter_mut().rev().zip(bytes) {
            *octet = label.parse().ok()?;
        }
        return Some(Ipv4Addr::from(octets).into());
    }
    let nibbles = labels.strip_suffix(&["ip6", "arpa"])?;
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    let bits = nibbles
        .iter()
        .rev()
        .try_fold(0u128, |bits, nibble| Some(bits << 4 | u128::from(u8::from_str_radix(nibble, 16).ok()?)))?;
    Some(Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::{EndpointPort, Endpoints, NetworkUpdate, ServicePort, ServiceRef, Welcome};

    fn service(name: &str) -> Service {
        Service {
            service: Some(ServiceRef { namespace: "default".into(), name: name.into() }),
            ports: vec![ServicePort { name: "http".into(), protocol: "TCP".into(), port: 80, node_port: 0 }],
            ..Service::default()
        }
    }

    fn pod(id: &str, hostname: &str, ip: &str, ready: bool) -> Endpoint {
        Endpoint {
            id: id.into(),
            addresses: vec![ip.into()],
            hostname: hostname.into(),
            ready,
            ports: vec![EndpointPort { name: "http".into(), protocol: "TCP".into(), port: 8080 }],
            ..Endpoint::default()
        }
    }

    fn view() -> View {
        let mut view = View::default();
        view.welcome(&Welcome {
            pod_cidr: "10.42.0.0/24".into(),
            cluster_domain: "cluster.local".into(),
            service_cidr: "10.43.0.0/16".into(),
            ..Welcome::default()
        });
        let reference = |name: &str| Some(ServiceRef { namespace: "default".into(), name: name.into() });
        let pods = |name: &str| Endpoints {
            service: reference(name),
            endpoints: vec![
                pod("web-0", "web-0", "10.42.0.2", true),
                pod("web-1", "web-1", "10.42.1.2", false),
                pod("web-2", "web-2", "10.42.2.2", true),
            ],
            removed: vec![],
        };
        let plain = Endpoints { endpoints: vec![pod("db-x", "", "10.42.0.9", true)], ..pods("db") };
        view.apply(NetworkUpdate {
            reset: true,
            complete: true,
            services: vec![
                service("nginx"),
                Service { publish_not_ready_addresses: true, ..service("early") },
                Service { cluster_ips: vec!["10.43.0.7".into()], ..service("db") },
                Service { external_name: "example.org".into(), ..service("out") },
            ],
            endpoints: vec![pods("nginx"), pods("early"), plain],
            ..NetworkUpdate::default()
        });
        view
    }

    fn ask(name: &str, kind: u16) -> Found {
        lookup(&view(), &Query::new(0, Name::of(name).unwrap(), kind))
    }

    /// What a name says, in words; the code if nothing.
    fn say(name: &str, kind: u16) -> Vec<String> {
        let reply = match ask(name, kind) {
            Found::Elsewhere => return vec!["elsewhere".into()],
            Found::Alias(_, target) => return vec![format!("alias {target}")],
            Found::Here(reply) => reply,
        };
        assert!(reply.authoritative);
        if reply.answers.is_empty() {
            let Data::Authority { minimum, .. } = reply.authority[0].data else { panic!("{reply:?}") };
            assert_eq!((minimum, reply.authority[0].ttl), (0, 0));
            return vec![if reply.code == code::NO_NAME { "no name" } else { "nothing" }.into()];
        }
        let words = |record: &Record| {
            assert_eq!((record.name.to_string(), record.ttl), (format!("{name}."), 0));
            match &record.data {
                Data::Address(address) => address.to_string(),
                Data::Pointer(name) | Data::Server(name) | Data::Alias(name) => name.to_string(),
                Data::Service { weight, port, target, .. } => format!("{weight} {port} {target}"),
                Data::Text(text) => String::from_utf8_lossy(text).into_owned(),
                Data::Authority { .. } => "soa".into(),
            }
        };
        reply.answers.iter().map(words).collect()
    }

    #[test]
    fn a_pod_has_its_name_from_its_assignment_on_and_its_service_only_once_it_is_ready() {
        assert_eq!(say("web-0.nginx.default.svc.cluster.local", kind::A), ["10.42.0.2"]);
        assert_eq!(say("web-1.nginx.default.svc.cluster.local", kind::A), ["10.42.1.2"]);
        assert_eq!(say("nginx.default.svc.cluster.local", kind::A), ["10.42.0.2", "10.42.2.2"]);
        assert_eq!(say("early.default.svc.cluster.local", kind::A), ["10.42.0.2", "10.42.1.2", "10.42.2.2"]);
        assert_eq!(say("WEB-0.Nginx.default.SVC.cluster.local", kind::A), ["10.42.0.2"]);
    }

    #[test]
    fn a_service_with_an_address_is_that_address() {
        assert_eq!(say("db.default.svc.cluster.local", kind::A), ["10.43.0.7"]);
        assert_eq!(say("db.default.svc.cluster.local", kind::AAAA), ["nothing"]);
        assert_eq!(say("10-42-0-9.db.default.svc.cluster.local", kind::A), ["10.42.0.9"]);
    }

    #[test]
    fn what_is_there_without_an_answer_is_not_what_is_not_there() {
        for nothing in [
            "cluster.local",
            "svc.cluster.local",
            "default.svc.cluster.local",
            "_tcp.nginx.default.svc.cluster.local",
            "_http._tcp.nginx.default.svc.cluster.local",
        ] {
            assert_eq!(say(nothing, kind::A), ["nothing"], "{nothing}");
        }
        assert_eq!(say("web-0.nginx.default.svc.cluster.local", kind::AAAA), ["nothing"]);
        for missing in [
            "web-3.nginx.default.svc.cluster.local",
            "nginx.other.svc.cluster.local",
            "other.svc.cluster.local",
            "pod.cluster.local",
            "a.web-0.nginx.default.svc.cluster.local",
            "_udp.nginx.default.svc.cluster.local",
            "_ftp._tcp.nginx.default.svc.cluster.local",
            "www.example.org.cluster.local",
            "web-0.out.default.svc.cluster.local",
        ] {
            assert_eq!(say(missing, kind::A), ["no name"], "{missing}");
        }
        for other in ["example.org", "local", "xcluster.local", "9.9.9.9.in-addr.arpa", "arpa", "8.arpa"] {
            assert_eq!(say(other, kind::A), ["elsewhere"], "{other}");
        }
    }

    #[test]
    fn ports_are_found_by_their_names() {
        assert_eq!(
            say("_http._tcp.nginx.default.svc.cluster.local", kind::SRV),
            [
                "50 8080 web-0.nginx.default.svc.cluster.local.",
                "50 8080 web-2.nginx.default.svc.cluster.local."
            ]
        );
        assert_eq!(
            say("_http._tcp.db.default.svc.cluster.local", kind::SRV),
            ["100 80 db.default.svc.cluster.local."]
        );
        assert_eq!(
            say("web-1.nginx.default.svc.cluster.local", kind::SRV),
            ["100 8080 web-1.nginx.default.svc.cluster.local."]
        );
        let Found::Here(reply) = ask("_http._tcp.nginx.default.svc.cluster.local", kind::SRV) else {
            panic!()
        };
        assert_eq!(reply.additional.len(), 2);
    }

    #[test]
    fn addresses_have_names() {
        let mut names = say("2.0.42.10.in-addr.arpa", kind::PTR);
        names.sort();
        assert_eq!(
            names,
            ["web-0.early.default.svc.cluster.local.", "web-0.nginx.default.svc.cluster.local."]
        );
        assert_eq!(say("7.0.43.10.in-addr.arpa", kind::PTR), ["db.default.svc.cluster.local."]);
        // Of the cluster, but nobody's; and a pod its service does not name.
        assert_eq!(say("8.0.43.10.in-addr.arpa", kind::PTR), ["no name"]);
        assert_eq!(say("9.0.42.10.in-addr.arpa", kind::PTR), ["no name"]);
        assert_eq!(say("2.0.42.10.in-addr.arpa", kind::A), ["nothing"]);
        assert_eq!(reverse(&["1", "ip6", "arpa"]), None);
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.5.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(&six.split('.').collect::<Vec<_>>()), "fd00:5::1".parse().ok());
    }

    #[test]
    fn an_external_name_is_an_alias() {
        assert_eq!(say("out.default.svc.cluster.local", kind::A), ["alias example.org."]);
    }

    #[test]
    fn the_zone_says_what_it_is() {
        assert_eq!(say("dns-version.cluster.local", kind::TXT), ["1.1.0"]);
        assert_eq!(say("cluster.local", kind::SOA), ["soa"]);
        assert_eq!(say("cluster.local", kind::NS), ["ns.dns.cluster.local."]);
        assert_eq!(say("ns.dns.cluster.local", kind::A), ["169.254.53.53"]);
        // Before the controller has said what the cluster is called, all is asked elsewhere.
        let query = Query::new(0, Name::of("web.default.svc.cluster.local").unwrap(), kind::A);
        assert_eq!(lookup(&View::default(), &query), Found::Elsewhere);
    }

    #[test]
    fn another_pod_comes_first_each_time() {
        let first = |id| {
            let query = Query::new(id, Name::of("nginx.default.svc.cluster.local").unwrap(), kind::A);
            let Found::Here(reply) = lookup(&view(), &query) else { panic!() };
            reply.answers[0].data.clone()
        };
        assert_ne!(first(0), first(1));
        assert_eq!(first(0), first(2));
    }
}
