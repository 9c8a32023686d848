//! Keeps the devices, routes and neighbours that lead to the other hosts' pods (`core::network::paths`): only
//! what differs is changed, whoever changed it. What is left of former hosts is told by our route protocol and
//! our device, and removed.
//!
//! It must never touch a route, address or device that is not ours.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_agent_core::network::paths::{self, HOME, NETWORK_ID, PORT, Paths, TUNNEL};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Known;
use super::netlink::route::{self, Event, Link, Neighbour, PROTOCOL, Route, Routing};
use super::netlink::{Announcements, messages};

/// Announcements come in flocks: they are gathered for this long.
const FLOCK: Duration = Duration::from_millis(20);
/// Between attempts while something cannot be done.
const SOONEST: Duration = Duration::from_millis(500);
const LATEST: Duration = Duration::from_secs(30);
/// A device that says it takes more has no real limit (loopback).
const LARGEST_MTU: u32 = 9216;

/// Keeps them.
pub struct Routes {
    pub known: Known,
    /// This host's name.
    pub node: String,
    /// This host's addresses, as others know it.
    pub host_ips: Vec<IpAddr>,
    /// Told: the largest packet that reaches every other pod.
    pub mtu: Arc<watch::Sender<Option<u32>>>,
}

/// What is to be watched besides what is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Used {
    /// Links other hosts are reached by.
    links: BTreeSet<u32>,
    tunnel: Option<u32>,
}

impl Routes {
    /// Keeps them until `shutdown`. They stay when the agent ends: the pods run on.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.keep() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn keep(&self) {
        let mut peers = self.known.peers();
        let mut told = String::new();
        let mut pause = SOONEST;
        let mut announced = None;
        let mut buffer = Vec::new();
        loop {
            if announced.is_none() {
                // Before looking, so that nothing changes unseen in between.
                announced = match Announcements::subscribe(SockProtocol::NetlinkRoute, route::GROUPS) {
                    Ok(announced) => Some(announced),
                    Err(error) => {
                        tracing::warn!(%error, "changes of the host's routes are not seen");
                        None
                    }
                };
            }
            peers.borrow_and_update();
            let (outcome, used) = self.make_it_so().await;
            let failed = match outcome {
                Ok(()) => {
                    told.clear();
                    pause = SOONEST;
                    false
                }
                Err(trouble) => {
                    if trouble != told {
                        tracing::warn!(trouble, "the ways to other hosts' pods are not complete");
                        told = trouble;
                    }
                    pause = (pause * 2).min(LATEST);
                    true
                }
            };
            let news = async {
                let Some(announced) = &announced else { return std::future::pending().await };
                loop {
                    match announced.next(&mut buffer).await {
                        Ok(Some(())) if !self.concerns(&buffer, &used) => {}
                        Ok(_) => return Ok(()),
                        Err(error) => return Err::<(), io::Error>(error),
                    }
                }
            };
            tokio::select! {
                // Hosts come and go at once; announcements can wait for their flock.
                changed = peers.changed() => if changed.is_err() { return },
                news = news => {
                    if news.is_err() {
                        announced = None;
                    }
                    tokio::time::sleep(FLOCK).await;
                }
                () = tokio::time::sleep(pause), if failed || announced.is_none() => {}
            }
        }
    }

    async fn make_it_so(&self) -> (Result<(), String>, Used) {
        let (known, node, host_ips) = (self.known.clone(), self.node.clone(), self.host_ips.clone());
        let work = move || {
            let mut used = Used::default();
            let mut routing = match Routing::open() {
                Ok(routing) => routing,
                Err(error) => return (Err(format!("netlink: {error}")), used, None),
            };
            let (outcome, mtu) = reconcile(&mut routing, &known, &node, &host_ips, &mut used);
            (outcome, used, mtu)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((outcome, used, mtu)) => {
                self.mtu.send_if_modified(|now| std::mem::replace(now, mtu) != mtu);
                (outcome, used)
            }
            Err(panic) => (Err(format!("a bug in the agent: {panic}")), Used::default()),
        }
    }

    /// Whether any of these announcements is about something of ours, or what ours depends on.
    fn concerns(&self, bytes: &[u8], used: &Used) -> bool {
        let gateways = || self.known.look(|view| view.settings().pod_ranges.clone());
        messages(bytes).filter_map(|(_, message)| route::event(message)).any(|event| match event {
            // Pods' own devices come and go.
            Event::Link(Link { index, name, kind, .. }) => {
                name == HOME || name == TUNNEL || used.links.contains(&index) || kind != "veth"
            }
            Event::Address { address } => !gateways().iter().any(|range| range.contains(address)),
            // CNI makes one for each pod.
            Event::Route { protocol: PROTOCOL, .. } => true,
            Event::Route { to, .. } => to.is_none_or(|to| !matches!(to.prefix(), 32 | 128)),
            Event::Neighbour { link } => Some(link) == used.tunnel,
        })
    }
}

/// What went wrong, and how large packets may be.
fn reconcile(
    routing: &mut Routing,
    known: &Known,
    node: &str,
    host_ips: &[IpAddr],
    used: &mut Used,
) -> (Result<(), String>, Option<u32>) {
    let mut first: Result<(), String> = Ok(());
    let mut note = |what: &str, outcome: Result<(), Errno>| {
        if let Err(error) = outcome
            && first.is_ok()
        {
            first = Err(format!("{what}: {}", error.desc()));
        }
    };
    let ours = [HOME, TUNNEL].map(|name| routing.link(name).ok().flatten().map(|link| link.index));
    let wanted = known.look(|view| {
        paths::paths(view, node, |ip| {
            let (link, via) = routing.way_to(ip).ok().flatten()?;
            if ours.contains(&Some(link)) {
                return None;
            }
            used.links.insert(link);
            via.is_none().then_some(link)
        })
    });
    let host = host_ips.first().copied();
    let mtu = host.and_then(|host| underlay(routing, host, used));
    let mut routes = Vec::new();
    match home(routing, &wanted) {
        Ok(link) => {
            routes.extend(wanted.home.iter().map(|(to, source)| Route {
                to: *to,
                link,
                via: None,
                source: *source,
            }));
        }
        Err(error) => note(&format!("device {HOME}"), Err(error)),
    }
    routes.extend(wanted.direct.iter().map(|d| Route {
        to: d.to,
        link: d.link,
        via: Some(d.via),
        source: None,
    }));
    match tunnel(routing, &wanted, mtu) {
        Ok(link) => {
            used.tunnel = link;
            if let Some(link) = link {
                note("who is in the tunnel", neighbours(routing, &wanted, link));
                routes.extend(wanted.tunnelled.iter().map(|t| Route {
                    to: t.to,
                    link,
                    via: Some(t.via),
                    source: t.source,
                }));
            }
        }
        Err(error) => note(&format!("device {TUNNEL}"), Err(error)),
    }
    match routing.routes() {
        Ok(there) => {
            let (there, wanted): (BTreeSet<Route>, BTreeSet<Route>) =
                (there.into_iter().collect(), routes.into_iter().collect());
            // First what is in the way, by the same place; what is replaced needs no removing.
            for old in there.difference(&wanted).filter(|old| !wanted.iter().any(|new| new.to == old.to)) {
                note(
                    &format!("removing the route to {}", old.to),
                    fine(routing.remove_route(old), Errno::ESRCH),
                );
            }
            for new in wanted.difference(&there) {
                note(&format!("the route to {}", new.to), routing.put_route(new));
            }
        }
        Err(error) => note("reading routes", Err(error)),
    }
    (first, mtu)
}

/// How large a packet between hosts may be with the tunnel around it.
fn underlay(routing: &mut Routing, host: IpAddr, used: &mut Used) -> Option<u32> {
    let addresses = routing.addresses().ok()?;
    let (link, ..) = addresses.into_iter().find(|(_, address, _)| *address == host)?;
    used.links.insert(link);
    // The narrowest way counts.
    let mtus = used.links.iter().filter_map(|link| Some(routing.link_at(*link).ok()??.mtu));
    let narrowest = mtus.filter(|mtu| *mtu <= LARGEST_MTU).min()?;
    narrowest.checked_sub(paths::overhead(host))
}

/// The device with the addresses: there, up, with these and no others of ours.
fn home(routing: &mut Routing, wanted: &Paths) -> Result<u32, Errno> {
    let link = match routing.link(HOME)? {
        Some(link) => link,
        None => {
            // A bridge without ports does all that a dummy does, and there are kernels without one or the other.
            match routing.make_link(HOME, "bridge") {
                Err(Errno::EOPNOTSUPP) => routing.make_link(HOME, "dummy")?,
                other => fine(other, Errno::EEXIST)?,
            }
            routing.link(HOME)?.ok_or(Errno::ENODEV)?
        }
    };
    let addresses = routing.addresses()?;
    let there: BTreeSet<IpAddr> =
        addresses.into_iter().filter(|(at, ..)| *at == link.index).map(|(_, address, _)| address).collect();
    for address in wanted.addresses.difference(&there) {
        routing.add_address(link.index, *address)?;
    }
    let mine = |address: &&IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    for address in there.difference(&wanted.addresses).filter(mine) {
        fine(routing.remove_address(link.index, *address), Errno::EADDRNOTAVAIL)?;
    }
    if !link.up {
        routing.set_up(link.index)?;
    }
    Ok(link.index)
}

/// The tunnel's device as it should be, or none.
fn tunnel(routing: &mut Routing, wanted: &Paths, mtu: Option<u32>) -> Result<Option<u32>, Errno> {
    let mut there = routing.link(TUNNEL)?;
    if let Some(link) = &there {
        let right = wanted.tunnel.is_some_and(|mac| {
            link.kind == "vxlan" && link.vxlan == Some((NETWORK_ID, PORT)) && link.mac == mac
        });
        if !right {
            fine(routing.remove_link(link.index), Errno::ENODEV)?;
            there = None;
        }
    }
    let Some(mac) = wanted.tunnel else { return Ok(None) };
    let mtu = mtu.unwrap_or(1450);
    let link = match there {
        Some(link) => link,
        None => {
            fine(routing.make_vxlan(TUNNEL, NETWORK_ID, PORT, mac, mtu), Errno::EEXIST)?;
            routing.link(TUNNEL)?.ok_or(Errno::ENODEV)?
        }
    };
    if link.mtu != mtu {
        routing.set_mtu(link.index, mtu)?;
    }
    if !link.up {
        routing.set_up(link.index)?;
    }
    Ok(Some(link.index))
}

/// Who has which address in the tunnel, and which host is behind it.
fn neighbours(routing: &mut Routing, wanted: &Paths, link: u32) -> Result<(), Errno> {
    let both = wanted.tunnelled.iter().flat_map(|t| {
        [Neighbour::Address { address: t.via, mac: t.mac }, Neighbour::Station { mac: t.mac, host: t.host }]
    });
    let wanted: BTreeSet<Neighbour> = both.collect();
    let there: BTreeSet<Neighbour> = routing.neighbours(link)?.into_iter().collect();
    for old in there.difference(&wanted) {
        fine(routing.remove_neighbour(link, old), Errno::ENOENT)?;
    }
    for new in wanted.difference(&there) {
        routing.put_neighbour(link, new)?;
    }
    Ok(())
}

/// This error means that it is done already.
fn fine(outcome: Result<(), Errno>, done: Errno) -> Result<(), Errno> {
    match outcome {
        Err(error) if error == done => Ok(()),
        other => other,
    }
}
