//! Links, addresses, routes and neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_agent_core::network::Range;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;

use super::{Attributes, Message, Mode, Received, Socket};

/// Marks the routes that are ours; of those that nobody else has claimed.
pub(crate) const PROTOCOL: u8 = 190;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;

/// Groups of announcements: links, IPv4 and IPv6 addresses and routes, neighbours.
pub(crate) const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VXLAN_ID: u16 = 1;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const UP: u32 = libc::IFF_UP as u32;

/// A link as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    pub mtu: u32,
    pub up: bool,
    /// `vxlan`, `bridge`...; empty for hardware.
    pub kind: String,
    pub vxlan: Option<(u32, u16)>,
}

/// A route that is ours, or should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub to: Range,
    pub link: u32,
    pub via: Option<IpAddr>,
    /// Where own traffic that takes it comes from.
    pub source: Option<IpAddr>,
}

/// Who is behind a link: an address's MAC, or (on a VXLAN) a MAC's host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Neighbour {
    Address { address: IpAddr, mac: [u8; 6] },
    Station { mac: [u8; 6], host: IpAddr },
}

/// Requests to the kernel's routing.
#[derive(Debug)]
pub(crate) struct Routing(Socket);

impl Routing {
    pub fn open() -> std::io::Result<Routing> {
        Socket::open(SockProtocol::NetlinkRoute).map(Routing)
    }

    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Errno> {
        let mut message = Message::new(GET_LINK, &link_header(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        match self.0.get(message, link) {
            Err(Errno::ENODEV) => Ok(None),
            other => other,
        }
    }

    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, Errno> {
        self.0.get(Message::new(GET_LINK, &link_header(index, 0, 0)), link)
    }

    pub fn make_link(&mut self, name: &str, kind: &str) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, &link_header(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        let info = message.begin(IFLA_LINKINFO);
        message.put(IFLA_INFO_KIND, kind.as_bytes()).end(info);
        self.0.request(message, Mode::Make)
    }

    /// It learns from nobody: who is where is said by its neighbours.
    pub fn make_vxlan(
        &mut self,
        name: &str,
        id: u32,
        port: u16,
        mac: [u8; 6],
        mtu: u32,
    ) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, &link_header(0, 0, 0));
        message.text(IFLA_IFNAME, name).put(IFLA_ADDRESS, &mac).number(IFLA_MTU, mtu);
        let info = message.begin(IFLA_LINKINFO);
        message.put(IFLA_INFO_KIND, b"vxlan");
        let data = message.begin(IFLA_INFO_DATA);
        message.number(VXLAN_ID, id).put(VXLAN_LEARNING, &[0]).put(VXLAN_PORT, &port.to_be_bytes());
        message.end(data).end(info);
        self.0.request(message, Mode::Make)
    }

    pub fn set_up(&mut self, index: u32) -> Result<(), Errno> {
        self.0.request(Message::new(NEW_LINK, &link_header(index, UP, UP)), Mode::Plain)
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(NEW_LINK, &link_header(index, 0, 0));
        message.number(IFLA_MTU, mtu);
        self.0.request(message, Mode::Plain)
    }

    pub fn remove_link(&mut self, index: u32) -> Result<(), Errno> {
        self.0.request(Message::new(DELETE_LINK, &link_header(index, 0, 0)), Mode::Plain)
    }

    /// All addresses of the host with their links.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpAddr, u8)>, Errno> {
        let mut found = Vec::new();
        self.0.dump(Message::new(GET_ADDRESS, &[0; 8]), |received| {
            let (attributes, body) = (received.attributes(8), received.body);
            // The local one where there is a peer, else the only one.
            let address = attributes.get(2).or_else(|| attributes.get(1)).and_then(ip);
            let link = body.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
            if let (Some(address), Some(link), Some(prefix)) = (address, link, body.get(1)) {
                found.push((link, address, *prefix));
            }
        })?;
        Ok(found)
    }

    pub fn add_address(&mut self, link: u32, address: IpAddr) -> Result<(), Errno> {
        self.0.request(address_message(NEW_ADDRESS, link, address), Mode::Put)
    }

    pub fn remove_address(&mut self, link: u32, address: IpAddr) -> Result<(), Errno> {
        self.0.request(address_message(DELETE_ADDRESS, link, address), Mode::Plain)
    }

    /// Our own routes.
    pub fn routes(&mut self) -> Result<Vec<Route>, Errno> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut fixed = [0; 12];
            fixed[0] = family as u8;
            let outcome = self.0.dump(Message::new(GET_ROUTE, &fixed), |received| {
                found.extend(route(received).filter(|(protocol, _)| *protocol == PROTOCOL).map(|(_, r)| r));
            });
            match outcome {
                // Without IPv6 in the kernel there are none.
                Err(_) if family == libc::AF_INET6 => {}
                other => other?,
            }
        }
        Ok(found)
    }

    pub fn put_route(&mut self, route: &Route) -> Result<(), Errno> {
        self.0.request(route_message(NEW_ROUTE, route), Mode::Put)
    }

    pub fn remove_route(&mut self, route: &Route) -> Result<(), Errno> {
        self.0.request(route_message(DELETE_ROUTE, route), Mode::Plain)
    }

    /// The way to an address as the kernel would go now: by which link, through whom.
    pub fn way_to(&mut self, address: IpAddr) -> Result<Option<(u32, Option<IpAddr>)>, Errno> {
        let mut fixed = [0; 12];
        fixed[0] = family(address);
        fixed[1] = if address.is_ipv4() { 32 } else { 128 };
        let mut message = Message::new(GET_ROUTE, &fixed);
        message.put(1, &octets(address));
        self.0.get(message, |received| {
            let attributes = received.attributes(12);
            // A local or unreachable one is no way.
            let unicast = received.body.get(7) == Some(&1);
            Some((attributes.number(4).filter(|_| unicast)?, attributes.get(5).and_then(ip)))
        })
    }

    /// What is said of who is behind a link, for good.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>, Errno> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_BRIDGE] {
            let mut fixed = [0; 12];
            fixed[0] = family as u8;
            let outcome = self.0.dump(Message::new(GET_NEIGHBOUR, &fixed), |received| {
                found.extend(
                    neighbour(received).filter(|(at, _)| *at == link).map(|(_, neighbour)| neighbour),
                );
            });
            match outcome {
                Err(_) if family == libc::AF_INET6 => {}
                other => other?,
            }
        }
        Ok(found)
    }

    pub fn put_neighbour(&mut self, link: u32, neighbour: &Neighbour) -> Result<(), Errno> {
        self.0.request(neighbour_message(NEW_NEIGHBOUR, link, neighbour), Mode::Put)
    }

    pub fn remove_neighbour(&mut self, link: u32, neighbour: &Neighbour) -> Result<(), Errno> {
        self.0.request(neighbour_message(DELETE_NEIGHBOUR, link, neighbour), Mode::Plain)
    }
}

/// What an announcement is about, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Link(Link),
    Address { address: IpAddr },
    Route { protocol: u8, to: Option<Range> },
    Neighbour { link: u32 },
}

pub(crate) fn event(received: Received<'_>) -> Option<Event> {
    let number = |at: usize| received.body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    Some(match received.kind {
        NEW_LINK | DELETE_LINK => Event::Link(link(received)?),
        NEW_ADDRESS | DELETE_ADDRESS => {
            let attributes = received.attributes(8);
            Event::Address { address: attributes.get(2).or_else(|| attributes.get(1)).and_then(ip)? }
        }
        NEW_ROUTE | DELETE_ROUTE => {
            let to = received.attributes(12).get(1).and_then(ip);
            let to = to.zip(received.body.get(1)).and_then(|(to, prefix)| Range::of(to, *prefix));
            Event::Route { protocol: *received.body.get(5)?, to }
        }
        NEW_NEIGHBOUR | DELETE_NEIGHBOUR => Event::Neighbour { link: number(4)? },
        _ => return None,
    })
}

fn link(received: Received<'_>) -> Option<Link> {
    if !matches!(received.kind, NEW_LINK | DELETE_LINK) {
        return None;
    }
    let number = |at: usize| received.body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let attributes = received.attributes(16);
    let name = attributes.get(IFLA_IFNAME)?;
    let info = attributes.nested(IFLA_LINKINFO);
    let kind = info.and_then(|info| info.get(IFLA_INFO_KIND)).unwrap_or_default();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let vxlan = |data: Attributes<'_>| {
        Some((data.number(VXLAN_ID)?, u16::from_be_bytes(data.get(VXLAN_PORT)?.try_into().ok()?)))
    };
    Some(Link {
        index: number(4)?,
        name: words(name),
        mac: attributes.get(IFLA_ADDRESS).unwrap_or_default().to_vec(),
        mtu: attributes.number(IFLA_MTU).unwrap_or(0),
        up: number(8)? & UP != 0,
        kind: words(kind),
        vxlan: info.and_then(|info| info.nested(IFLA_INFO_DATA)).and_then(vxlan),
    })
}

fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4];
    for number in [index, flags, change] {
        fixed.extend_from_slice(&number.to_ne_bytes());
    }
    fixed
}

fn address_message(kind: u16, link: u32, address: IpAddr) -> Message {
    let mut fixed = vec![family(address), if address.is_ipv4() { 32 } else { 128 }, 0, 0];
    fixed.extend_from_slice(&link.to_ne_bytes());
    let mut message = Message::new(kind, &fixed);
    message.put(1, &octets(address)).put(2, &octets(address));
    message
}

fn route_message(kind: u16, route: &Route) -> Message {
    let scope = if route.via.is_none() && route.to.base().is_ipv4() { libc::RT_SCOPE_LINK } else { 0 };
    let mut fixed = [0; 12];
    fixed[0] = family(route.to.base());
    fixed[1] = route.to.prefix();
    // Table, protocol, scope, type.
    fixed[4..8].copy_from_slice(&[libc::RT_TABLE_MAIN, PROTOCOL, scope, 1]);
    if route.via.is_some() {
        // The next hop is where we say, whatever addresses this host has there.
        fixed[8..12].copy_from_slice(&ON_LINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, &fixed);
    message.put(1, &octets(route.to.base())).number(4, route.link);
    if let Some(via) = route.via {
        message.put(5, &octets(via));
    }
    if let Some(source) = route.source {
        message.put(7, &octets(source));
    }
    message
}

fn route(received: Received<'_>) -> Option<(u8, Route)> {
    let attributes = received.attributes(12);
    let body = received.body;
    let (family, prefix, table, protocol) = (*body.first()?, *body.get(1)?, *body.get(4)?, *body.get(5)?);
    if table != libc::RT_TABLE_MAIN {
        return None;
    }
    let any: IpAddr = if i32::from(family) == libc::AF_INET {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let to = attributes.get(1).and_then(ip).unwrap_or(any);
    let route = Route {
        to: Range::of(to, prefix)?,
        link: attributes.number(4)?,
        via: attributes.get(5).and_then(ip),
        source: attributes.get(7).and_then(ip),
    };
    Some((protocol, route))
}

/// From linux/rtnetlink.h: RTNH_F_ONLINK.
const ON_LINK: u32 = 4;
const PERMANENT: u16 = 0x80;
const SELF: u8 = 2;

fn neighbour_message(kind: u16, link: u32, neighbour: &Neighbour) -> Message {
    let (family, flags) = match neighbour {
        Neighbour::Address { address, .. } => (family(*address), 0),
        Neighbour::Station { .. } => (libc::AF_BRIDGE as u8, SELF),
    };
    let mut fixed = vec![family, 0, 0, 0];
    fixed.extend_from_slice(&link.to_ne_bytes());
    fixed.extend_from_slice(&PERMANENT.to_ne_bytes());
    fixed.extend_from_slice(&[flags, 0]);
    let mut message = Message::new(kind, &fixed);
    match neighbour {
        Neighbour::Address { address, mac } => message.put(1, &octets(*address)).put(2, mac),
        Neighbour::Station { mac, host } => message.put(1, &octets(*host)).put(2, mac),
    };
    message
}

fn neighbour(received: Received<'_>) -> Option<(u32, Neighbour)> {
    let body = received.body;
    let link = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
    if state & PERMANENT == 0 {
        return None;
    }
    let attributes = received.attributes(12);
    let mac: [u8; 6] = attributes.get(2)?.try_into().ok()?;
    let address = attributes.get(1).and_then(ip)?;
    let station = i32::from(*body.first()?) == libc::AF_BRIDGE;
    Some((
        link,
        if station { Neighbour::Station { mac, host: address } } else { Neighbour::Address { address, mac } },
    ))
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
