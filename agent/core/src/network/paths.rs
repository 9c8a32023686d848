//! The ways to other hosts' pods: straight to a host on the same segment, through VXLAN to the others. Decides
//! what devices, addresses, routes and neighbours there should be; the agent makes it so.
//!
//! | device | what it is for |
//! |---|---|
//! | `berth0` | the address DNS is answered at; the host's own address among its pods (their gateway); where what has no pod (any more) ends, so that it can be refused at once |
//! | `berth.vx` | the tunnel; a host's MAC in it follows from its pods' range, so nobody need be asked for it |

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Range, View, zone};

/// The device that has the addresses.
pub const HOME: &str = "berth0";
/// The tunnel's device.
pub const TUNNEL: &str = "berth.vx";
/// Of the tunnel; the standard's port.
pub const NETWORK_ID: u32 = 4093;
/// See above.
pub const PORT: u16 = 4789;

/// What there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Of `berth0`.
    pub addresses: BTreeSet<IpAddr>,
    /// To `berth0`, with the address own traffic comes from.
    pub home: Vec<(Range, Option<IpAddr>)>,
    /// The tunnel's own MAC; none without other hosts.
    pub tunnel: Option<[u8; 6]>,
    pub direct: Vec<Direct>,
    pub tunnelled: Vec<Tunnelled>,
}

/// Pods of a host on the same segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    pub to: Range,
    pub via: IpAddr,
    /// The link's index.
    pub link: u32,
}

/// Pods of a host beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled {
    pub to: Range,
    pub via: IpAddr,
    pub mac: [u8; 6],
    pub host: IpAddr,
    /// Where own traffic comes from: the answers must come back through the tunnel.
    pub source: Option<IpAddr>,
}

/// Decides. `on_link` says by which link an address of another host is reached, if nobody is in between.
pub fn paths(view: &View, node: &str, mut on_link: impl FnMut(IpAddr) -> Option<u32>) -> Paths {
    let own = &view.settings().pod_ranges;
    let mut paths = Paths::default();
    paths.addresses.insert(zone::SERVER.into());
    paths.addresses.extend(own.iter().map(Range::gateway));
    let source = |to: &Range| {
        let same = own.iter().find(|range| range.base().is_ipv4() == to.base().is_ipv4());
        same.map(Range::gateway)
    };
    let services = view.settings().service_ranges.iter();
    paths.home.extend(own.iter().chain(services).map(|range| (*range, source(range))));
    let mut taken: BTreeSet<Range> = paths.home.iter().map(|(range, _)| *range).collect();
    for peer in view.peers().values().filter(|peer| peer.node_name != node) {
        let ranges: Vec<Range> = peer.pod_cidrs.iter().filter_map(|range| range.parse().ok()).collect();
        let hosts: Vec<IpAddr> = peer.internal_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        let (Some(first), Some(host)) = (ranges.first(), hosts.first()) else { continue };
        let mac = mac(first);
        for to in &ranges {
            // Two hosts with one range: the controller's mistake, and no reason to change back and forth.
            if !taken.insert(*to) {
                continue;
            }
            let same = hosts.iter().filter(|ip| ip.is_ipv4() == to.base().is_ipv4());
            match same.clone().find_map(|ip| Some((*ip, on_link(*ip)?))) {
                Some((via, link)) => paths.direct.push(Direct { to: *to, via, link }),
                None => paths.tunnelled.push(Tunnelled {
                    to: *to,
                    via: to.gateway(),
                    mac,
                    host: *host,
                    source: source(to),
                }),
            }
        }
        // Whatever this host thinks: that one may think otherwise, and tunnel.
        paths.tunnel = own.first().map(self::mac);
    }
    paths
}

/// A host's MAC in the tunnel: locally administered, with its range in it.
pub fn mac(range: &Range) -> [u8; 6] {
    let [a, b, c, d] = match range.base() {
        IpAddr::V4(base) => base.octets(),
        // FNV-1a: it need only differ from host to host.
        IpAddr::V6(base) => base
            .octets()
            .iter()
            .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
            .to_be_bytes(),
    };
    [0x02, 0xbe, a, b, c, d]
}

/// What the tunnel adds to a packet between hosts of this family.
pub fn overhead(host: IpAddr) -> u32 {
    if host.is_ipv4() { 50 } else { 70 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::{NetworkUpdate, Peer, Welcome};

    fn peer(name: &str, range: &str, ip: &str) -> Peer {
        Peer { node_name: name.into(), pod_cidrs: vec![range.into()], internal_ips: vec![ip.into()] }
    }

    fn view(peers: Vec<Peer>) -> View {
        let mut view = View::default();
        view.welcome(&Welcome {
            pod_cidr: "10.42.0.0/24".into(),
            service_cidr: "10.43.0.0/16".into(),
            ..Welcome::default()
        });
        view.apply(NetworkUpdate { reset: true, complete: true, peers, ..NetworkUpdate::default() });
        view
    }

    /// Those in 192.0.2.0/24 are on link 7.
    fn decide(view: &View) -> Paths {
        let segment: Range = "192.0.2.0/24".parse().unwrap();
        paths(view, "a", |ip| segment.contains(ip).then_some(7))
    }

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_alone_answers_names_and_refuses_what_has_no_pod() {
        let found = decide(&view(vec![peer("a", "10.42.0.0/24", "192.0.2.1")]));
        let gateway: IpAddr = "10.42.0.1".parse().unwrap();
        assert_eq!(found.addresses, [zone::SERVER.into(), gateway].into());
        assert_eq!(
            found.home,
            [(range("10.42.0.0/24"), Some(gateway)), (range("10.43.0.0/16"), Some(gateway))]
        );
        assert!(found.tunnel.is_none() && found.direct.is_empty() && found.tunnelled.is_empty());
        assert_eq!(decide(&View::default()).addresses, [zone::SERVER.into()].into());
    }

    #[test]
    fn the_same_segment_is_reached_straight_and_others_through_the_tunnel() {
        let found = decide(&view(vec![
            peer("a", "10.42.0.0/24", "192.0.2.1"),
            peer("b", "10.42.1.0/24", "192.0.2.2"),
            peer("c", "10.42.2.0/24", "198.51.100.3"),
        ]));
        let direct = Direct { to: range("10.42.1.0/24"), via: "192.0.2.2".parse().unwrap(), link: 7 };
        assert_eq!(found.direct, [direct]);
        let tunnelled = Tunnelled {
            to: range("10.42.2.0/24"),
            via: "10.42.2.1".parse().unwrap(),
            mac: [2, 0xbe, 10, 42, 2, 0],
            host: "198.51.100.3".parse().unwrap(),
            source: "10.42.0.1".parse().ok(),
        };
        assert_eq!(found.tunnelled, [tunnelled]);
        assert_eq!(found.tunnel, Some([2, 0xbe, 10, 42, 0, 0]));
    }

    #[test]
    fn what_cannot_be_read_or_is_said_twice_is_left_out() {
        let found = decide(&view(vec![
            peer("b", "nonsense", "192.0.2.2"),
            peer("c", "10.42.1.0/24", "nonsense"),
            peer("d", "10.42.0.0/24", "192.0.2.4"),
            peer("e", "10.42.5.0/24", "192.0.2.5"),
            peer("f", "10.42.5.0/24", "192.0.2.6"),
        ]));
        assert_eq!(found.direct.len(), 1);
        assert_eq!(found.direct[0].via.to_string(), "192.0.2.5");
    }

    #[test]
    fn each_range_goes_by_an_address_of_its_own_family() {
        let both = Peer {
            node_name: "b".into(),
            pod_cidrs: vec!["10.42.1.0/24".into(), "fd00:1::/64".into()],
            internal_ips: vec!["192.0.2.2".into()],
        };
        let found = decide(&view(vec![both]));
        assert_eq!(found.direct.len(), 1);
        assert_eq!(found.tunnelled[0].via.to_string(), "fd00:1::1");
        assert_eq!(found.tunnelled[0].mac, [2, 0xbe, 10, 42, 1, 0]);
        assert_ne!(mac(&range("fd00:1::/64")), mac(&range("fd00:2::/64")));
    }
}
