//! The other hosts, the Services and what is behind them, as the controller says.
//!
//! Each session begins with a whole picture (`reset` up to `complete`); until that is complete, what was
//! known before goes on to count, so that a new session takes nothing away for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_proto::{Endpoint, NetworkUpdate, Peer, Service, ServiceRef, Welcome};

use super::Range;

/// What a host knows of the network. Only [`View::apply`] and [`View::welcome`] change it.
#[derive(Clone, Debug, Default)]
pub struct View {
    settings: Settings,
    peers: BTreeMap<String, Peer>,
    /// By namespace, by name.
    services: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Who has an address.
    owners: BTreeMap<IpAddr, BTreeSet<Owner>>,
    /// While a whole picture is being said: what of it has been said.
    said: Option<Said>,
}

/// What the controller says of the cluster as such.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// In small letters, without a dot at its end.
    pub cluster_domain: String,
    /// Where this host's pods get their addresses.
    pub pod_ranges: Vec<Range>,
    pub service_ranges: Vec<Range>,
}

/// A service and what is behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// None while only its endpoints have been said.
    pub service: Option<Service>,
    /// By id.
    pub endpoints: BTreeMap<String, Endpoint>,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub namespace: String,
    pub service: String,
    /// An endpoint's id; none: the service itself.
    pub endpoint: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Said {
    peers: BTreeSet<String>,
    services: BTreeSet<(String, String)>,
    endpoints: BTreeSet<(String, String, String)>,
}

/// What a change has touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Hosts, or the ranges.
    pub peers: bool,
    pub services: bool,
}

impl Changed {
    /// Anything at all.
    pub fn any(self) -> bool {
        self.peers || self.services
    }
}

impl View {
    /// Takes over what a session's Welcome says of the cluster.
    pub fn welcome(&mut self, welcome: &Welcome) -> Changed {
        let ranges = |text: &str| text.split(',').filter_map(|range| range.trim().parse().ok()).collect();
        let settings = Settings {
            cluster_domain: welcome.cluster_domain.trim_end_matches('.').to_ascii_lowercase(),
            pod_ranges: ranges(&welcome.pod_cidr),
            service_ranges: ranges(&welcome.service_cidr),
        };
        if settings == self.settings {
            return Changed::default();
        }
        self.settings = settings;
        Changed { peers: true, services: true }
    }

    /// Takes over what is said.
    pub fn apply(&mut self, update: NetworkUpdate) -> Changed {
        let mut changed = Changed::default();
        if update.reset {
            // A picture that was broken off counts for nothing.
            self.said = Some(Said::default());
        }
        for name in update.removed_peers {
            changed.peers |= self.peers.remove(&name).is_some();
        }
        for peer in update.peers {
            if let Some(said) = &mut self.said {
                said.peers.insert(peer.node_name.clone());
            }
            if self.peers.get(&peer.node_name) != Some(&peer) {
                self.peers.insert(peer.node_name.clone(), peer);
                changed.peers = true;
            }
        }
        for service in update.removed_services {
            changed.services |= self.remove_service(&service.namespace, &service.name);
        }
        for service in update.services {
            changed.services |= self.put_service(service);
        }
        for endpoints in update.endpoints {
            let Some(service) = endpoints.service else { continue };
            for id in &endpoints.removed {
                changed.services |= self.remove_endpoint(&service, id);
            }
            for endpoint in endpoints.endpoints {
                changed.services |= self.put_endpoint(&service, endpoint);
            }
        }
        if update.complete
            && let Some(said) = self.said.take()
        {
            let kept = self.keep_only(&said);
            changed =
                Changed { peers: changed.peers | kept.peers, services: changed.services | kept.services };
        }
        changed
    }

    /// All that is known, as one whole picture: [`View::apply`] of it on an empty view gives this view.
    pub fn picture(&self) -> NetworkUpdate {
        let services = || self.services.values().flat_map(BTreeMap::values);
        let mut update = NetworkUpdate {
            reset: true,
            complete: true,
            peers: self.peers.values().cloned().collect(),
            services: services().filter_map(|entry| entry.service.clone()).collect(),
            ..NetworkUpdate::default()
        };
        for (namespace, services) in &self.services {
            for (name, entry) in services {
                update.endpoints.push(berth_proto::Endpoints {
                    service: Some(ServiceRef { namespace: namespace.clone(), name: name.clone() }),
                    endpoints: entry.endpoints.values().cloned().collect(),
                    removed: Vec::new(),
                });
            }
        }
        update
    }

    /// What holds for the cluster.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The hosts by name, this one among them.
    pub fn peers(&self) -> &BTreeMap<String, Peer> {
        &self.peers
    }

    /// A service of which more than its endpoints is known.
    pub fn service(&self, namespace: &str, name: &str) -> Option<(&Service, &BTreeMap<String, Endpoint>)> {
        let entry = self.services.get(namespace)?.get(name)?;
        Some((entry.service.as_ref()?, &entry.endpoints))
    }

    /// Every service of which more than its endpoints is known.
    pub fn services(&self) -> impl Iterator<Item = (&str, &str, &Service, &BTreeMap<String, Endpoint>)> {
        self.services.iter().flat_map(|(namespace, services)| {
            services.iter().filter_map(|(name, entry)| {
                Some((namespace.as_str(), name.as_str(), entry.service.as_ref()?, &entry.endpoints))
            })
        })
    }

    /// Whether there is any service in it.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        let services = self.services.get(namespace).into_iter().flat_map(BTreeMap::values);
        services.into_iter().any(|entry| entry.service.is_some())
    }

    /// Whose an address is.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &Owner> {
        self.owners.get(&address).into_iter().flatten()
    }

    /// The ranges of all hosts' pods, in no order.
    pub fn pod_ranges(&self) -> impl Iterator<Item = Range> + '_ {
        let theirs = self.peers.values().flat_map(|peer| &peer.pod_cidrs);
        theirs.filter_map(|range| range.parse().ok()).chain(self.settings.pod_ranges.iter().copied())
    }

    fn put_service(&mut self, service: Service) -> bool {
        let Some(ServiceRef { namespace, name }) = service.service.clone() else { return false };
        if let Some(said) = &mut self.said {
            said.services.insert((namespace.clone(), name.clone()));
        }
        let entry = self.services.entry(namespace.clone()).or_default().entry(name.clone()).or_default();
        if entry.service.as_ref() == Some(&service) {
            return false;
        }
        let owner = Owner { namespace, service: name, endpoint: None };
        let before = entry.service.replace(service.clone());
        own(&mut self.owners, &owner, before.iter().flat_map(|s| &s.cluster_ips), &service.cluster_ips);
        true
    }

    fn remove_service(&mut self, namespace: &str, name: &str) -> bool {
        let Some(services) = self.services.get_mut(namespace) else { return false };
        let Some(entry) = services.remove(name) else { return false };
        if services.is_empty() {
            self.services.remove(namespace);
        }
        let mut owner = Owner { namespace: namespace.to_owned(), service: name.to_owned(), endpoint: None };
        own(&mut self.owners, &owner, entry.service.iter().flat_map(|s| &s.cluster_ips), &[]);
        for (id, endpoint) in entry.endpoints {
            owner.endpoint = Some(id);
            own(&mut self.owners, &owner, &endpoint.addresses, &[]);
        }
        true
    }

    fn put_endpoint(&mut self, service: &ServiceRef, endpoint: Endpoint) -> bool {
        let ServiceRef { namespace, name } = service;
        if let Some(said) = &mut self.said {
            said.endpoints.insert((namespace.clone(), name.clone(), endpoint.id.clone()));
        }
        let entry = self.services.entry(namespace.clone()).or_default().entry(name.clone()).or_default();
        if entry.endpoints.get(&endpoint.id) == Some(&endpoint) {
            return false;
        }
        let owner = Owner {
            namespace: namespace.clone(),
            service: name.clone(),
            endpoint: Some(endpoint.id.clone()),
        };
        let before = entry.endpoints.insert(endpoint.id.clone(), endpoint.clone());
        own(&mut self.owners, &owner, before.iter().flat_map(|e| &e.addresses), &endpoint.addresses);
        true
    }

    fn remove_endpoint(&mut self, service: &ServiceRef, id: &str) -> bool {
        let ServiceRef { namespace, name } = service;
        let entry = self.services.get_mut(namespace).and_then(|services| services.get_mut(name));
        let Some(entry) = entry else { return false };
        let Some(endpoint) = entry.endpoints.remove(id) else { return false };
        let owner =
            Owner { namespace: namespace.clone(), service: name.clone(), endpoint: Some(id.to_owned()) };
        own(&mut self.owners, &owner, &endpoint.addresses, &[]);
        if entry.service.is_none() && entry.endpoints.is_empty() {
            self.remove_service(namespace, name);
        }
        true
    }

    fn keep_only(&mut self, said: &Said) -> Changed {
        let hosts = self.peers.len();
        self.peers.retain(|name, _| said.peers.contains(name));
        let mut changed = Changed { peers: self.peers.len() != hosts, services: false };
        let mut gone: Vec<(ServiceRef, Option<String>)> = Vec::new();
        for (namespace, services) in &self.services {
            for (name, entry) in services {
                let service = ServiceRef { namespace: namespace.clone(), name: name.clone() };
                let key = (namespace.clone(), name.clone());
                if !said.services.contains(&key) {
                    gone.push((service, None));
                    continue;
                }
                for id in entry.endpoints.keys() {
                    if !said.endpoints.contains(&(key.0.clone(), key.1.clone(), id.clone())) {
                        gone.push((service.clone(), Some(id.clone())));
                    }
                }
            }
        }
        for (service, endpoint) in gone {
            changed.services |= match endpoint {
                Some(id) => self.remove_endpoint(&service, &id),
                None => self.remove_service(&service.namespace, &service.name),
            };
        }
        changed
    }
}

/// The owner has these addresses now, and not those of before.
fn own<'a>(
    owners: &mut BTreeMap<IpAddr, BTreeSet<Owner>>,
    owner: &Owner,
    before: impl IntoIterator<Item = &'a String>,
    now: &[String],
) {
    for address in before.into_iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
        if let Some(all) = owners.get_mut(&address) {
            all.remove(owner);
            if all.is_empty() {
                owners.remove(&address);
            }
        }
    }
    for address in now.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
        owners.entry(address).or_default().insert(owner.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::Endpoints;
    use proptest::prelude::*;

    fn service(name: &str, ip: &str) -> Service {
        Service {
            service: Some(ServiceRef { namespace: "default".into(), name: name.into() }),
            cluster_ips: vec![ip.into()],
            ..Service::default()
        }
    }

    fn endpoints(name: &str, pods: &[(&str, &str)]) -> Endpoints {
        let endpoint = |(id, ip): &(&str, &str)| Endpoint {
            id: (*id).into(),
            addresses: vec![(*ip).into()],
            ..Endpoint::default()
        };
        Endpoints {
            service: Some(ServiceRef { namespace: "default".into(), name: name.into() }),
            endpoints: pods.iter().map(endpoint).collect(),
            removed: Vec::new(),
        }
    }

    fn peer(name: &str) -> Peer {
        Peer { node_name: name.into(), pod_cidrs: vec!["10.42.1.0/24".into()], ..Peer::default() }
    }

    fn picture() -> NetworkUpdate {
        NetworkUpdate {
            reset: true,
            complete: true,
            peers: vec![peer("a"), peer("b")],
            services: vec![service("web", "10.43.0.1"), service("db", "10.43.0.2")],
            endpoints: vec![endpoints("web", &[("web-0", "10.42.0.2"), ("web-1", "10.42.1.2")])],
            ..NetworkUpdate::default()
        }
    }

    fn names(view: &View) -> Vec<&str> {
        view.services().map(|(_, name, ..)| name).collect()
    }

    #[test]
    fn what_is_said_again_is_no_change() {
        let mut view = View::default();
        assert_eq!(view.apply(picture()), Changed { peers: true, services: true });
        assert!(!view.apply(picture()).any());
        let update = NetworkUpdate { removed_peers: vec!["z".into()], ..NetworkUpdate::default() };
        assert!(!view.apply(update).any());
    }

    #[test]
    fn a_new_picture_takes_away_only_once_it_is_complete() {
        let mut view = View::default();
        view.apply(picture());
        let begun = NetworkUpdate {
            reset: true,
            peers: vec![peer("a")],
            services: vec![service("web", "10.43.0.1")],
            ..NetworkUpdate::default()
        };
        assert!(!view.apply(begun).any());
        assert_eq!((view.peers().len(), names(&view)), (2, vec!["db", "web"]));
        let rest = NetworkUpdate {
            complete: true,
            endpoints: vec![endpoints("web", &[("web-1", "10.42.1.2")])],
            ..NetworkUpdate::default()
        };
        assert_eq!(view.apply(rest), Changed { peers: true, services: true });
        assert_eq!((view.peers().len(), names(&view)), (1, vec!["web"]));
        assert_eq!(view.service("default", "web").unwrap().1.keys().collect::<Vec<_>>(), ["web-1"]);
        assert_eq!(view.owners("10.42.0.2".parse().unwrap()).count(), 0);
    }

    #[test]
    fn a_picture_broken_off_counts_for_nothing() {
        let mut view = View::default();
        view.apply(picture());
        view.apply(NetworkUpdate {
            reset: true,
            services: vec![service("db", "10.43.0.2")],
            ..NetworkUpdate::default()
        });
        let again = NetworkUpdate {
            reset: true,
            complete: true,
            services: vec![service("web", "10.43.0.1")],
            ..NetworkUpdate::default()
        };
        view.apply(again);
        assert_eq!(names(&view), ["web"]);
    }

    #[test]
    fn an_address_is_its_owners_as_long_as_they_have_it() {
        let mut view = View::default();
        view.apply(picture());
        let at = |view: &View, ip: &str| -> Vec<Option<String>> {
            view.owners(ip.parse().unwrap()).map(|owner| owner.endpoint.clone()).collect()
        };
        assert_eq!(at(&view, "10.43.0.1"), [None]);
        assert_eq!(at(&view, "10.42.0.2"), [Some("web-0".to_owned())]);
        let moved = NetworkUpdate {
            endpoints: vec![endpoints("web", &[("web-0", "10.42.1.9")])],
            ..NetworkUpdate::default()
        };
        assert!(view.apply(moved).services);
        assert!(at(&view, "10.42.0.2").is_empty());
        assert_eq!(at(&view, "10.42.1.9"), [Some("web-0".to_owned())]);
        let gone = ServiceRef { namespace: "default".into(), name: "web".into() };
        view.apply(NetworkUpdate { removed_services: vec![gone], ..NetworkUpdate::default() });
        assert!(at(&view, "10.42.1.9").is_empty() && at(&view, "10.43.0.1").is_empty());
    }

    #[test]
    fn the_cluster_is_as_the_welcome_says() {
        let mut view = View::default();
        let welcome = Welcome {
            pod_cidr: "10.42.3.0/24".into(),
            cluster_domain: "Cluster.Local.".into(),
            service_cidr: "10.43.0.0/16,fd43::/112".into(),
            ..Welcome::default()
        };
        assert!(view.welcome(&welcome).any());
        assert!(!view.welcome(&welcome).any());
        assert_eq!(view.settings().cluster_domain, "cluster.local");
        assert_eq!(view.settings().service_ranges.len(), 2);
    }

    fn updates() -> impl Strategy<Value = Vec<NetworkUpdate>> {
        let one = (any::<bool>(), any::<bool>(), 0u8..3, 0u8..4, 0u8..3, 0u8..4).prop_map(
            |(reset, complete, say, pod, gone, gone_pod)| {
                let name = format!("s{say}");
                let removed = ServiceRef { namespace: "default".into(), name: format!("s{gone}") };
                let mut ends = endpoints(&name, &[(&format!("p{pod}"), &format!("10.0.0.{pod}"))]);
                ends.removed.push(format!("p{gone_pod}"));
                NetworkUpdate {
                    reset,
                    complete,
                    peers: vec![peer(&name)],
                    removed_peers: vec![format!("s{gone}")],
                    services: if pod % 2 == 0 { vec![service(&name, "10.43.0.9")] } else { vec![] },
                    removed_services: if gone == 2 { vec![removed] } else { vec![] },
                    endpoints: vec![ends],
                }
            },
        );
        prop::collection::vec(one, 1..30)
    }

    proptest! {
        #[test]
        fn a_picture_of_a_view_makes_the_same_view_and_owners_follow(updates in updates()) {
            let mut view = View::default();
            for update in updates {
                view.apply(update);
            }
            // What is known only by its endpoints is not part of a whole picture.
            let mut copy = View::default();
            copy.apply(view.picture());
            let known = |view: &View| -> Vec<(String, Service, BTreeMap<String, Endpoint>)> {
                view.services().map(|(_, n, s, e)| (n.to_owned(), s.clone(), e.clone())).collect()
            };
            prop_assert_eq!(known(&copy), known(&view));
            prop_assert_eq!(copy.peers(), view.peers());
            let mut owners: BTreeMap<IpAddr, BTreeSet<Owner>> = BTreeMap::new();
            for (namespace, services) in &view.services {
                for (name, entry) in services {
                    let owner = |endpoint| Owner {
                        namespace: namespace.clone(), service: name.clone(), endpoint,
                    };
                    for ip in entry.service.iter().flat_map(|s| &s.cluster_ips) {
                        owners.entry(ip.parse().unwrap()).or_default().insert(owner(None));
                    }
                    for (id, endpoint) in &entry.endpoints {
                        for ip in &endpoint.addresses {
                            owners.entry(ip.parse().unwrap()).or_default().insert(owner(Some(id.clone())));
                        }
                    }
                }
            }
            prop_assert_eq!(&view.owners, &owners);
        }
    }
}
