//! What a Service holds that no other may: its cluster address and its node ports.
//!
//! The words of the refusals are Kubernetes' (pkg/registry/core/service/storage/alloc.go). As there, what is
//! given out by itself comes from the upper part of a range first, so that people can choose in the lower.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::field::{FieldError, Path};

/// Where node ports come from.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A range of cluster addresses, e.g. 10.43.0.0/16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first address, as a number of `bits` bits.
    first: u128,
    bits: u8,
    prefix: u8,
}

/// Why a text is no range for Services.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("{0:?} is not an address range such as 10.43.0.0/16")]
    Format(String),
    #[error("{0:?} is too small: it must hold at least eight addresses")]
    Small(String),
    #[error("{0} overlaps the pods' range {1}: give each its own")]
    Overlap(String, String),
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<AddressRange, RangeError> {
        let wrong = || RangeError::Format(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let (number, bits) = match address.parse().map_err(|_| wrong())? {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix == 0 || prefix > bits {
            return Err(wrong());
        }
        if bits - prefix < 3 {
            return Err(RangeError::Small(text.to_owned()));
        }
        let range = AddressRange { first: number, bits, prefix };
        Ok(AddressRange { first: number & !range.host_mask(), ..range })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

impl AddressRange {
    /// Services' range, apart from the pods'.
    pub fn beside(text: &str, pods: &str) -> Result<AddressRange, RangeError> {
        let range: AddressRange = text.parse()?;
        match pods.parse::<AddressRange>() {
            Ok(pods) if range.overlaps(pods) => Err(RangeError::Overlap(range.to_string(), pods.to_string())),
            _ => Ok(range),
        }
    }

    fn host_mask(self) -> u128 {
        let hosts = u32::from(self.bits - self.prefix);
        u128::MAX.checked_shr(128 - hosts).unwrap_or(0)
    }

    fn overlaps(self, other: AddressRange) -> bool {
        let last = |r: AddressRange| r.first | r.host_mask();
        self.bits == other.bits && self.first <= last(other) && other.first <= last(self)
    }

    fn address(self, offset: u128) -> IpAddr {
        let number = self.first + offset;
        match self.bits {
            32 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            _ => Ipv6Addr::from(number).into(),
        }
    }

    /// The first address a Service may have: the API's own.
    pub fn first(self) -> IpAddr {
        self.address(1)
    }

    /// Whether a Service may have this address: neither the network's own nor the broadcast address.
    pub fn has(self, address: IpAddr) -> bool {
        let (number, bits) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        bits == self.bits && number > self.first && number < self.first | self.host_mask()
    }

    /// How many addresses there are for Services; a huge range counts as far as anybody will get.
    fn size(self) -> u64 {
        u64::try_from(self.host_mask() - 1).unwrap_or(u64::MAX).min(1 << 20)
    }

    /// Addresses in the order in which they are tried, from a place that `seed` chooses.
    fn tried(self, seed: u64) -> impl Iterator<Item = IpAddr> {
        let size = self.size();
        let chosen_by_people = if size < 16 { 0 } else { (size / 16).clamp(16, 256) };
        order(size, chosen_by_people, seed).map(move |n| self.address(u128::from(n) + 1))
    }
}

/// 0..size, first all from `low` on, beginning where `seed` says, then those below.
fn order(size: u64, low: u64, seed: u64) -> impl Iterator<Item = u64> {
    let upper = size - low;
    let start = seed % upper.max(1);
    (start..upper).chain(0..start).map(move |n| n + low).chain(0..low)
}

/// One thing only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    Address(IpAddr),
    /// On every host.
    NodePort(u16),
}

impl fmt::Display for Item {
    /// The name of its record.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Address(IpAddr::V4(address)) => address.fmt(f),
            // A record's name has no colons.
            Item::Address(IpAddr::V6(address)) => f.write_str(&address.to_string().replace(':', "-")),
            Item::NodePort(port) => write!(f, "node-port-{port}"),
        }
    }
}

/// Everything a Service holds, as it says itself.
pub fn holds(service: &Value) -> BTreeSet<Item> {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return BTreeSet::new();
    }
    let addresses = spec["clusterIPs"].as_array().into_iter().flatten().chain([&spec["clusterIP"]]);
    let addresses = addresses.filter_map(|a| a.as_str()?.parse().ok()).map(Item::Address);
    let ports = list(&spec["ports"]).filter_map(node_port).map(Item::NodePort);
    addresses.chain(ports).collect()
}

/// Why a Service cannot have what it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// It asks for something that is not to be had.
    Invalid(Vec<FieldError>),
    /// Nothing is left.
    Full(String),
}

/// Gives a Service that is valid what it needs and has not: an address, node ports. What it asks for must be
/// free, or its own already (`old`). `seed`: where to begin to look.
pub fn complete(
    range: AddressRange,
    old: Option<&Value>,
    new: &mut Value,
    taken: &dyn Fn(&Item) -> bool,
    seed: u64,
) -> Result<(), Refusal> {
    let own = old.map(holds).unwrap_or_default();
    let kind = new["spec"]["type"].as_str().unwrap_or_default().to_owned();
    if kind == "ExternalName" {
        return Ok(());
    }
    address(range, &own, new, taken, seed)?;
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        ports(&own, new, taken, seed)?;
    }
    Ok(())
}

fn address(
    range: AddressRange,
    own: &BTreeSet<Item>,
    new: &mut Value,
    taken: &dyn Fn(&Item) -> bool,
    seed: u64,
) -> Result<(), Refusal> {
    let spec = &mut new["spec"];
    let asked = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    if asked == "None" {
        return Ok(());
    }
    if asked.is_empty() {
        let free = range.tried(seed).find(|a| !taken(&Item::Address(*a)));
        let free = free.ok_or_else(|| {
            Refusal::Full(format!("failed to allocate a serviceIP: range is full ({range})"))
        })?;
        spec["clusterIP"] = free.to_string().into();
        spec["clusterIPs"] = json!([free.to_string()]);
        return Ok(());
    }
    let Ok(address) = asked.parse::<IpAddr>() else { return Ok(()) };
    let item = Item::Address(address);
    let why = if own.contains(&item) {
        return Ok(());
    } else if !range.has(address) {
        format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}")
    } else if taken(&item) {
        "provided IP is already allocated".to_owned()
    } else {
        return Ok(());
    };
    let path = Path::new("spec").child("clusterIPs");
    let why = format!("failed to allocate IP {asked}: {why}");
    Err(Refusal::Invalid(vec![FieldError::invalid(&path, json!([asked]), why)]))
}

fn ports(
    own: &BTreeSet<Item>,
    new: &mut Value,
    taken: &dyn Fn(&Item) -> bool,
    seed: u64,
) -> Result<(), Refusal> {
    let give = new["spec"]["allocateLoadBalancerNodePorts"] != false;
    let Some(ports) = new["spec"]["ports"].as_array_mut() else { return Ok(()) };
    let path = Path::new("spec").child("ports");
    let mut errors = Vec::new();
    let mut used: BTreeSet<u16> = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        let item = Item::NodePort(number);
        // Of this very service another protocol may have it too.
        if !used.insert(number) || own.contains(&item) {
            continue;
        }
        let why = if !NODE_PORTS.contains(&number) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")
        } else if taken(&item) {
            "provided port is already allocated".to_owned()
        } else {
            continue;
        };
        errors.push(FieldError::invalid(&path.index(index).child("nodePort"), number, why));
    }
    if !errors.is_empty() {
        return Err(Refusal::Invalid(errors));
    }
    if !give {
        return Ok(());
    }
    let size = u64::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
    for index in 0..ports.len() {
        if node_port(&ports[index]).is_some() {
            continue;
        }
        // The same port under two protocols is one node port.
        let twin = ports.iter().find(|p| p["port"] == ports[index]["port"] && node_port(p).is_some());
        let number = match twin
            .filter(|twin| twin["protocol"] != ports[index]["protocol"])
            .and_then(node_port)
        {
            Some(number) => number,
            None => order(size, 86, seed)
                .filter_map(|n| u16::try_from(n).ok())
                .map(|n| NODE_PORTS.start() + n)
                .find(|n| !used.contains(n) && !taken(&Item::NodePort(*n)))
                .ok_or_else(|| Refusal::Full("failed to allocate a nodePort: range is full".to_owned()))?,
        };
        used.insert(number);
        ports[index]["nodePort"] = number.into();
    }
    Ok(())
}

fn node_port(port: &Value) -> Option<u16> {
    port["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse().unwrap()
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s"}, "spec": spec})
    }

    /// Services made one after another, each refused or given what it needs.
    #[derive(Default)]
    struct World {
        taken: BTreeSet<Item>,
    }

    impl World {
        fn make(&mut self, spec: Value, seed: u64) -> Result<Value, Refusal> {
            self.change(None, service(spec), seed)
        }

        fn change(&mut self, old: Option<&Value>, mut new: Value, seed: u64) -> Result<Value, Refusal> {
            let taken = |item: &Item| self.taken.contains(item);
            complete(range("10.43.0.0/24"), old, &mut new, &taken, seed)?;
            for gone in old.map(holds).unwrap_or_default() {
                self.taken.remove(&gone);
            }
            self.taken.extend(holds(&new));
            Ok(new)
        }
    }

    fn said(refusal: Refusal) -> String {
        match refusal {
            Refusal::Invalid(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            Refusal::Full(why) => why,
        }
    }

    #[test]
    fn a_service_gets_an_address_of_the_range_unless_it_is_headless_or_a_mere_name() {
        let mut world = World::default();
        let made = world.make(json!({"type": "ClusterIP"}), 7).unwrap();
        let address: IpAddr = made["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!(range("10.43.0.0/24").has(address));
        assert_eq!(made["spec"]["clusterIPs"], json!([address.to_string()]));
        let headless = world.make(json!({"type": "ClusterIP", "clusterIP": "None"}), 7).unwrap();
        assert_eq!(headless["spec"]["clusterIP"], "None");
        let name = world.make(json!({"type": "ExternalName"}), 7).unwrap();
        assert!(name["spec"]["clusterIP"].is_null());
    }

    #[test]
    fn an_address_that_is_asked_for_is_honoured_or_refused_in_kubernetes_words() {
        let mut world = World::default();
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"]});
        let made = world.make(spec.clone(), 0).unwrap();
        assert_eq!(made["spec"], spec);
        assert_eq!(
            said(world.make(spec, 0).unwrap_err()),
            r#"spec.clusterIPs: Invalid value: ["10.43.0.9"]: failed to allocate IP 10.43.0.9: provided IP is already allocated"#
        );
        for outside in ["10.44.0.1", "10.43.0.0", "10.43.0.255"] {
            let refused =
                said(world.make(json!({"type": "ClusterIP", "clusterIP": outside}), 0).unwrap_err());
            assert!(refused.contains("The range of valid IPs is 10.43.0.0/24"), "{refused}");
        }
        // An update keeps what it has, whatever the range is by now.
        let far = service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.1"}));
        assert_eq!(world.change(Some(&far), far.clone(), 0).unwrap(), far);
    }

    #[test]
    fn node_ports_are_given_kept_and_refused() {
        let mut world = World::default();
        let ports = json!([{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "TCP", "name": "a"},
                           {"port": 53, "protocol": "UDP", "name": "b"}]);
        let made = world.make(json!({"type": "NodePort", "ports": ports}), 11).unwrap();
        let given: Vec<u16> = list(&made["spec"]["ports"]).filter_map(node_port).collect();
        assert_eq!(given.len(), 3);
        assert!(given.iter().all(|p| (30_086..=32_767).contains(p)), "{given:?}");
        assert_ne!(given[0], given[1]);
        assert_eq!(given[1], given[2], "one port under two protocols is one node port");
        assert_eq!(world.change(Some(&made), made.clone(), 3).unwrap(), made);

        let want = |n: u16| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": n}]});
        assert_eq!(
            said(world.make(want(given[0]), 0).unwrap_err()),
            format!(
                "spec.ports[0].nodePort: Invalid value: {}: provided port is already allocated",
                given[0]
            )
        );
        assert_eq!(
            said(world.make(want(80), 0).unwrap_err()),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"
        );
    }

    #[test]
    fn what_a_service_leaves_behind_is_free_again() {
        let mut world = World::default();
        let port = |kind: &str, n: u16| json!({"type": kind, "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": n}]});
        let made = world.make(port("NodePort", 30_000), 0).unwrap();
        let made = world.change(Some(&made), service(port("NodePort", 30_001)), 0).unwrap();
        assert_eq!(world.taken.len(), 2);
        world.change(Some(&made), service(json!({"type": "ExternalName"})), 0).unwrap();
        assert_eq!(world.taken, BTreeSet::new());
    }

    #[test]
    fn a_full_range_says_so() {
        let taken = |_: &Item| true;
        let mut new = service(json!({"type": "ClusterIP"}));
        let refused = complete(range("10.43.0.0/29"), None, &mut new, &taken, 0).unwrap_err();
        assert_eq!(said(refused), "failed to allocate a serviceIP: range is full (10.43.0.0/29)");
    }

    #[test]
    fn ranges_read_and_refuse() {
        assert_eq!(range("10.43.7.9/16").to_string(), "10.43.0.0/16");
        assert_eq!(range("fd00::5/112").to_string(), "fd00::/112");
        assert!(range("fd00::/112").has("fd00::1".parse().unwrap()));
        assert_eq!("10.43.0.0/30".parse::<AddressRange>(), Err(RangeError::Small("10.43.0.0/30".into())));
        for wrong in ["", "10.43.0.0", "10.43.0.0/33", "x/8", "10.43.0.0/0"] {
            assert_eq!(wrong.parse::<AddressRange>(), Err(RangeError::Format(wrong.into())));
        }
        assert!(matches!(AddressRange::beside("10.42.9.0/24", "10.42.0.0/16"), Err(RangeError::Overlap(..))));
        assert!(AddressRange::beside("10.43.0.0/16", "10.42.0.0/16").is_ok());
    }

    proptest! {
        #[test]
        fn no_two_services_ever_hold_the_same(
            steps in prop::collection::vec((0..4usize, any::<u64>(), 0..3usize), 1..60),
        ) {
            let mut world = World::default();
            let mut made: Vec<Value> = Vec::new();
            for (what, seed, ports) in steps {
                let ports: Vec<Value> = (0..ports).map(|n| json!({"port": n + 80, "protocol": "TCP"})).collect();
                let kind = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][what];
                if let Ok(new) = world.make(json!({"type": kind, "ports": ports}), seed % 50) {
                    for other in &made {
                        prop_assert!(holds(other).is_disjoint(&holds(&new)));
                    }
                    made.push(new);
                }
            }
        }
    }
}
