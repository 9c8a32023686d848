use berth_proto::{EndpointPort, Endpoints, NetworkUpdate, Peer, ServicePort, ServiceRef, Welcome};
use proptest::prelude::*;

use super::*;

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
    rules.table.sets[set].elements.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

#[test]
fn a_cluster_address_leads_to_one_of_the_ready_pods() {
    let made = decide(web(), vec![pod(0, true), pod(1, true), pod(2, false)]);
    assert_eq!(elements(&made, "fronts4"), [("10.43.0.1 . tcp . 80", "goto svc/default/web/tcp/80")]);
    assert_eq!(elements(&made, "ports"), [("tcp . 30080", "goto svc/default/web/tcp/80")]);
    assert_eq!(
        made.table.chains["svc/default/web/tcp/80"].rules,
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
    assert!(made.table.chains["svc/default/web/tcp/80"].rules[0].ends_with("to 10.42.1.2:8080"));
}

#[test]
fn a_local_policy_leads_only_to_pods_of_this_host() {
    let service = Service { external_local: true, ..web() };
    let made = decide(service.clone(), vec![pod(0, true), pod(1, true)]);
    assert_eq!(elements(&made, "ports"), [("tcp . 30080", "goto ext/default/web/tcp/80")]);
    assert!(made.table.chains["ext/default/web/tcp/80"].rules[0].ends_with("to 10.42.0.2:8080"));
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
        made.table.chains[chain].rules,
        [
            format!("ip saddr @{chain}/10.42.0.2/8080/60 goto {chain}/10.42.0.2/8080"),
            format!("ip saddr @{chain}/10.42.1.2/8080/60 goto {chain}/10.42.1.2/8080"),
            format!(
                "meta nfproto ipv4 numgen random mod 2 vmap {{ 0 : goto {chain}/10.42.0.2/8080, \
                 1 : goto {chain}/10.42.1.2/8080 }}"
            ),
        ]
    );
    assert!(made.table.sets[&format!("{chain}/10.42.0.2/8080/60")].made.contains("timeout 60s"));
}

#[test]
fn headless_services_and_names_that_are_none_make_no_rules() {
    let headless = decide(Service { cluster_ips: vec![], ..web() }, vec![pod(0, true)]);
    assert_eq!(headless.table.chains.len(), decide(web(), vec![]).table.chains.len());
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
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.42.0.0/16", "10.43.0.0/24"]);
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
