//! What every host must know of the others, kept up to date one change at a time.
//!
//! ```text
//! stored objects ─▶ View (what is) ── refresh ─▶ what differs from what was said ─▶ NetworkUpdate
//! ```
//! A change costs what it touches: one pod among ten thousand is one endpoint of the services that select it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_proto as pb;
use berth_proto::NetworkUpdate;
use serde_json::Value;

use super::Named;
use super::backing::{self, Backend, Backing, Said};
use super::service::{Service, list};
use crate::identity::Record;

/// Endpoints in one message, about.
const TOGETHER: usize = 2000;

#[derive(Debug, Default)]
pub struct View {
    peers: BTreeMap<String, pb::Peer>,
    services: BTreeMap<Named, Service>,
    /// Services by namespace and one pair of their selector.
    selecting: HashMap<(String, String, String), BTreeSet<String>>,
    /// The pods that a service selects.
    members: HashMap<Named, BTreeSet<String>>,
    pods: BTreeMap<Named, Backing>,
    /// Hosts where an operator's CNI configuration gives pods their addresses: what they were bound with is not theirs.
    operators: BTreeSet<String>,
    /// The life that holds a name, and the addresses it was bound with.
    records: HashMap<Named, (String, Vec<String>)>,
    /// By the EndpointSlice's name.
    slices: BTreeMap<Named, Said>,
    /// By the Endpoints' name, which is the service's.
    endpoints: BTreeMap<Named, Said>,
    dirty: BTreeMap<Named, Dirty>,
    dirty_peers: BTreeSet<String>,
    said: Known,
}

/// What of a service is to be looked at.
#[derive(Debug)]
enum Dirty {
    All,
    Pods(BTreeSet<String>),
}

/// What was said so far.
#[derive(Clone, Debug, Default)]
struct Known {
    peers: BTreeMap<String, pb::Peer>,
    services: BTreeMap<Named, KnownService>,
}

#[derive(Clone, Debug, Default)]
struct KnownService {
    service: pb::Service,
    endpoints: BTreeMap<String, pb::Endpoint>,
}

/// What has come of the changes since the last time.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// What hosts are to be told; None: nothing.
    pub update: Option<NetworkUpdate>,
    /// The services looked at.
    pub services: Vec<Named>,
}

impl View {
    /// What there is no more is to be told after everything has been read again.
    pub fn begin_again(&mut self) {
        let said = std::mem::take(&mut self.said);
        let dirty_peers = said.peers.keys().cloned().collect();
        let dirty = said.services.keys().map(|name| (name.clone(), Dirty::All)).collect();
        *self = View { said, dirty, dirty_peers, ..View::default() };
    }

    /// A Node, or None: there is none of that name.
    pub fn node(&mut self, name: &str, node: Option<&Value>) {
        let peer = node.map(|node| {
            let texts = |v: &Value| list(v).filter_map(|x| x.as_str().map(str::to_owned)).collect::<Vec<_>>();
            let mut pod_cidrs = texts(&node["spec"]["podCIDRs"]);
            if pod_cidrs.is_empty() {
                pod_cidrs.extend(node["spec"]["podCIDR"].as_str().map(str::to_owned));
            }
            let internal = list(&node["status"]["addresses"]).filter(|a| a["type"] == "InternalIP");
            pb::Peer {
                node_name: name.to_owned(),
                pod_cidrs,
                internal_ips: internal.filter_map(|a| a["address"].as_str().map(str::to_owned)).collect(),
            }
        });
        // Also while it is silent, when all its conditions are Unknown.
        let condition = |c: &Value| c["type"] == pb::OPERATOR_NETWORK && c["status"] != "False";
        let operators = node.is_some_and(|node| list(&node["status"]["conditions"]).any(condition));
        let changed = match operators {
            true => self.operators.insert(name.to_owned()),
            false => self.operators.remove(name),
        };
        if changed {
            self.touch_pods_of(name, |_| true);
        }
        let before = match peer {
            Some(ref peer) if self.peers.get(name) == Some(peer) => return,
            Some(peer) => self.peers.insert(name.to_owned(), peer),
            None => self.peers.remove(name),
        };
        self.dirty_peers.insert(name.to_owned());
        let ips = |peer: Option<&pb::Peer>| peer.map(|p| p.internal_ips.clone()).unwrap_or_default();
        if ips(before.as_ref()) != ips(self.peers.get(name)) {
            // Pods on the host's own network have its addresses.
            self.touch_pods_of(name, |pod| pod.host_network);
        }
    }

    fn touch_pods_of(&mut self, node: &str, which: impl Fn(&Backing) -> bool) {
        let on_it = self.pods.iter().filter(|(_, pod)| pod.node == node && which(pod));
        let touched: Vec<Named> = on_it.map(|(name, _)| name.clone()).collect();
        touched.iter().for_each(|pod| self.touch(pod));
    }

    pub fn service(&mut self, name: &Named, service: Option<&Value>) {
        let service = service.map(Service::of);
        let before = match service {
            Some(ref service) if self.services.get(name) == Some(service) => return,
            Some(ref service) => self.services.insert(name.clone(), service.clone()),
            None => self.services.remove(name),
        };
        self.dirty.insert(name.clone(), Dirty::All);
        let selector = |service: Option<&Service>| service.map(|s| s.selector.clone()).unwrap_or_default();
        let (old, new) = (selector(before.as_ref()), selector(service.as_ref()));
        if old == new {
            return;
        }
        if let Some((key, value)) = old.first()
            && let Some(there) = self.selecting.get_mut(&(name.0.clone(), key.clone(), value.clone()))
        {
            there.remove(&name.1);
        }
        self.members.remove(name);
        let Some(service) = service else { return };
        if let Some((key, value)) = new.first() {
            let place = (name.0.clone(), key.clone(), value.clone());
            self.selecting.entry(place).or_default().insert(name.1.clone());
            let first = (name.0.clone(), String::new());
            let there = self.pods.range(first..).take_while(|((namespace, _), _)| *namespace == name.0);
            let members = there.filter(|(_, pod)| service.selects(|k| pod.label(k)));
            let members = members.map(|((_, pod), _)| pod.clone()).collect();
            self.members.insert(name.clone(), members);
        }
    }

    pub fn pod(&mut self, name: &Named, pod: Option<&Value>) {
        let pod = pod.map(Backing::of);
        if self.pods.get(name) == pod.as_ref() {
            return;
        }
        let before = self.selected_by(name);
        match pod {
            Some(pod) => drop(self.pods.insert(name.clone(), pod)),
            None => drop(self.pods.remove(name)),
        }
        let after = self.selected_by(name);
        for service in &before {
            if !after.contains(service)
                && let Some(members) = self.members.get_mut(service)
            {
                members.remove(&name.1);
            }
        }
        for service in &after {
            self.members.entry(service.clone()).or_default().insert(name.1.clone());
        }
        for service in before.into_iter().chain(after) {
            self.look_at(service, &name.1);
        }
    }

    /// Who holds a pod's name.
    pub fn record(&mut self, name: &Named, record: Option<&Record>) {
        let held = record.map(|record| {
            let address = record.address.split('/').next().unwrap_or_default();
            let given = if address.is_empty() { Vec::new() } else { vec![address.to_owned()] };
            (record.uid.clone(), given)
        });
        if self.records.get(name) == held.as_ref() {
            return;
        }
        match held {
            Some(held) => drop(self.records.insert(name.clone(), held)),
            None => drop(self.records.remove(name)),
        }
        self.touch(name);
    }

    /// An EndpointSlice that may be somebody's own.
    pub fn slice(&mut self, name: &Named, slice: Option<&Value>) {
        let said = slice.and_then(backing::slice);
        let before = self.slices.get(name).map(|s| s.service.clone());
        let after = said.as_ref().map(|s| s.service.clone());
        match said {
            Some(said) => drop(self.slices.insert(name.clone(), said)),
            None => drop(self.slices.remove(name)),
        }
        for service in [before, after].into_iter().flatten() {
            self.dirty.insert((name.0.clone(), service), Dirty::All);
        }
    }

    /// An Endpoints object that may be somebody's own.
    pub fn endpoints(&mut self, name: &Named, endpoints: Option<&Value>) {
        let said = endpoints.and_then(backing::endpoints);
        if said.is_none() && !self.endpoints.contains_key(name) {
            return;
        }
        match said {
            Some(said) => drop(self.endpoints.insert(name.clone(), said)),
            None => drop(self.endpoints.remove(name)),
        }
        self.dirty.insert(name.clone(), Dirty::All);
    }

    /// The service of that name, and the pods behind it.
    pub fn backends(&self, name: &Named) -> Option<(&Service, Vec<Backend>)> {
        let service = self.services.get(name)?;
        let members = self.members.get(name).into_iter().flatten();
        Some((service, members.filter_map(|pod| self.backend(service, pod)).collect()))
    }

    /// Says what has changed since the last time.
    pub fn refresh(&mut self) -> Refreshed {
        let mut update = NetworkUpdate::default();
        for name in std::mem::take(&mut self.dirty_peers) {
            match self.peers.get(&name) {
                Some(peer) if self.said.peers.get(&name) != Some(peer) => {
                    self.said.peers.insert(name, peer.clone());
                    update.peers.push(peer.clone());
                }
                Some(_) => {}
                None => {
                    if self.said.peers.remove(&name).is_some() {
                        update.removed_peers.push(name);
                    }
                }
            }
        }
        let dirty = std::mem::take(&mut self.dirty);
        let mut services = Vec::with_capacity(dirty.len());
        for (name, what) in dirty {
            self.say(&name, what, &mut update);
            services.push(name);
        }
        let update = (update != NetworkUpdate::default()).then_some(update);
        Refreshed { update, services }
    }

    /// Everything that was said so far, for who has heard nothing yet.
    pub fn snapshot(&self) -> Vec<NetworkUpdate> {
        let services = self.said.services.values();
        let mut all = split(NetworkUpdate {
            peers: self.said.peers.values().cloned().collect(),
            services: services.clone().map(|s| s.service.clone()).collect(),
            endpoints: services
                .filter(|s| !s.endpoints.is_empty())
                .map(|s| pb::Endpoints {
                    service: s.service.service.clone(),
                    endpoints: s.endpoints.values().cloned().collect(),
                    removed: Vec::new(),
                })
                .collect(),
            ..NetworkUpdate::default()
        });
        if let Some(first) = all.first_mut() {
            first.reset = true;
        }
        if let Some(last) = all.last_mut() {
            last.complete = true;
        }
        all
    }

    fn say(&mut self, name: &Named, what: Dirty, update: &mut NetworkUpdate) {
        let Some(service) = self.services.get(name) else {
            if self.said.services.remove(name).is_some() {
                update.removed_services.push(reference(name));
            }
            return;
        };
        let known = self.said.services.get(name);
        // What is told first is told whole.
        let what = if known.is_none() { Dirty::All } else { what };
        let nothing = BTreeMap::new();
        let before = known.map_or(&nothing, |k| &k.endpoints);
        let mut changed: Vec<pb::Endpoint> = Vec::new();
        let mut removed: Vec<String> = Vec::new();
        match what {
            Dirty::All => {
                let now = self.all_of(name, service);
                removed.extend(before.keys().filter(|id| !now.contains_key(*id)).cloned());
                changed.extend(now.into_iter().filter(|(id, e)| before.get(id) != Some(e)).map(|(_, e)| e));
            }
            Dirty::Pods(pods) => {
                let members = self.members.get(name);
                for pod in pods {
                    let is_member = members.is_some_and(|m| m.contains(&pod));
                    match self.backend(service, &pod).filter(|_| is_member).map(Backend::message) {
                        Some(endpoint) if before.get(&pod) != Some(&endpoint) => changed.push(endpoint),
                        Some(_) => {}
                        None if before.contains_key(&pod) => removed.push(pod),
                        None => {}
                    }
                }
            }
        }
        if known.is_none_or(|k| k.service != service.message) {
            update.services.push(service.message.clone());
        }
        let known = self.said.services.entry(name.clone()).or_default();
        known.service = service.message.clone();
        for id in &removed {
            known.endpoints.remove(id);
        }
        known.endpoints.extend(changed.iter().map(|e| (e.id.clone(), e.clone())));
        if !changed.is_empty() || !removed.is_empty() {
            let service = Some(reference(name));
            update.endpoints.push(pb::Endpoints { service, endpoints: changed, removed });
        }
    }

    fn all_of(&self, name: &Named, service: &Service) -> BTreeMap<String, pb::Endpoint> {
        let mut all = BTreeMap::new();
        if !service.external_name.is_empty() {
            return all;
        }
        for pod in self.members.get(name).into_iter().flatten() {
            all.extend(self.backend(service, pod).map(|b| (pod.clone(), b.message())));
        }
        if service.selector.is_empty()
            && let Some(said) = self.endpoints.get(name)
        {
            all.extend(said.endpoints.iter().map(|e| (e.id.clone(), e.clone())));
        }
        let first = (name.0.clone(), String::new());
        let slices = self.slices.range(first..).take_while(|((namespace, _), _)| *namespace == name.0);
        for (_, said) in slices.filter(|(_, said)| said.service == name.1) {
            all.extend(said.endpoints.iter().map(|e| (e.id.clone(), e.clone())));
        }
        all
    }

    fn backend(&self, service: &Service, pod: &str) -> Option<Backend> {
        let name = (service.name.0.clone(), pod.to_owned());
        let backing = self.pods.get(&name)?;
        let host;
        let given = match self.records.get(&name) {
            Some((uid, given)) if *uid == backing.uid => given.as_slice(),
            // The name is another life's: this one has no address yet.
            Some(_) => return None,
            None => &[],
        };
        let given = match self.peers.get(&backing.node) {
            Some(peer) if backing.host_network => {
                host = peer.internal_ips.iter().take(1).cloned().collect::<Vec<_>>();
                host.as_slice()
            }
            _ if self.operators.contains(&backing.node) => &[],
            _ => given,
        };
        backing.behind(service, pod, given)
    }

    /// The services that select a pod as it is now.
    fn selected_by(&self, name: &Named) -> Vec<Named> {
        let Some(pod) = self.pods.get(name) else { return Vec::new() };
        let mut found = Vec::new();
        for (key, value) in pod.labels() {
            let place = (name.0.clone(), key.to_owned(), value.to_owned());
            for service in self.selecting.get(&place).into_iter().flatten() {
                let service = (name.0.clone(), service.clone());
                if self.services.get(&service).is_some_and(|s| s.selects(|k| pod.label(k))) {
                    found.push(service);
                }
            }
        }
        found
    }

    fn touch(&mut self, pod: &Named) {
        for service in self.selected_by(pod) {
            self.look_at(service, &pod.1);
        }
    }

    fn look_at(&mut self, service: Named, pod: &str) {
        if let Dirty::Pods(pods) = self.dirty.entry(service).or_insert_with(|| Dirty::Pods(BTreeSet::new())) {
            pods.insert(pod.to_owned());
        }
    }
}

fn reference(name: &Named) -> pb::ServiceRef {
    pb::ServiceRef { namespace: name.0.clone(), name: name.1.clone() }
}

/// A message of any size, in messages that a connection carries well. At least one.
pub fn split(update: NetworkUpdate) -> Vec<NetworkUpdate> {
    let size: usize = update.endpoints.iter().map(|e| e.endpoints.len() + e.removed.len()).sum();
    if size <= TOGETHER && update.services.len() <= TOGETHER {
        return vec![update];
    }
    let NetworkUpdate { mut services, endpoints, .. } = update;
    let rest = services.split_off(services.len().min(TOGETHER));
    let mut all = vec![NetworkUpdate { services, endpoints: Vec::new(), ..update }];
    all.extend(
        rest.chunks(TOGETHER)
            .map(|services| NetworkUpdate { services: services.to_vec(), ..NetworkUpdate::default() }),
    );
    let mut current = NetworkUpdate::default();
    let mut held = 0;
    for mut one in endpoints {
        loop {
            let space = TOGETHER - held;
            let more = one.endpoints.split_off(one.endpoints.len().min(space));
            held += one.endpoints.len() + one.removed.len();
            let service = one.service.clone();
            current.endpoints.push(one);
            if held >= TOGETHER {
                all.push(std::mem::take(&mut current));
                held = 0;
            }
            if more.is_empty() {
                break;
            }
            one = pb::Endpoints { service, endpoints: more, removed: Vec::new() };
        }
    }
    if held > 0 {
        all.push(current);
    }
    all
}

#[cfg(test)]
mod tests;
