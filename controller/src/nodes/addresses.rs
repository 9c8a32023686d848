//! Ranges and addresses of pods: a /24 for each node out of the cluster's range, an address for each pod
//! out of its node's. Pure.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: u32,
    prefix: u8,
}

/// Why a text is no range pods can live in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("{0:?} is not an IPv4 range such as 10.42.0.0/16")]
    Format(String),
    #[error("{0:?} is too small: hosts get a /24 each out of it")]
    Small(String),
}

/// Each node's share.
const NODE_PREFIX: u8 = 24;

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Range, RangeError> {
        let wrong = || RangeError::Format(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix > 30 || prefix == 0 {
            return Err(wrong());
        }
        Ok(Range { first: u32::from(address) & (u32::MAX << (32 - prefix)), prefix })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

impl Range {
    /// The cluster's range: big enough for at least one node.
    pub fn cluster(text: &str) -> Result<Range, RangeError> {
        let range: Range = text.parse()?;
        if range.prefix > NODE_PREFIX { Err(RangeError::Small(text.to_owned())) } else { Ok(range) }
    }

    fn last(self) -> u32 {
        self.first | (u32::MAX >> self.prefix)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last()).contains(&u32::from(address))
    }

    /// Pods' gateway: the first address.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.first + 1)
    }

    /// A free share for a new node. `taken` are the ranges of other nodes, `used` addresses that pods still
    /// hold (of a node that was deleted, say).
    pub fn share(self, taken: &BTreeSet<Range>, used: &BTreeSet<Ipv4Addr>) -> Option<Range> {
        let size = 1u32 << (32 - NODE_PREFIX);
        let shares = (0..1u32 << (NODE_PREFIX - self.prefix)).map(|n| self.first + n * size);
        shares
            .map(|first| Range { first, prefix: NODE_PREFIX })
            .find(|share| !taken.contains(share) && !used.iter().any(|a| share.contains(*a)))
    }

    /// The next free address after `last`, going round: an address is not given away again at once, so
    /// that nobody who still knows the old one talks to the new pod.
    pub fn next(self, last: Option<Ipv4Addr>, used: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        // Network, gateway and broadcast are not for pods.
        let (low, high) = (self.first + 2, self.last() - 1);
        let from = last.map(u32::from).filter(|a| (low..high).contains(a)).map_or(low, |a| a + 1);
        (from..=high).chain(low..from).map(Ipv4Addr::from).find(|a| !used.contains(a))
    }

    /// As CNI wants it.
    pub fn with_prefix(self, address: Ipv4Addr) -> String {
        format!("{address}/{}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_get_different_shares_of_the_range() {
        let cluster = Range::cluster("10.42.0.0/16").unwrap();
        let mut taken = BTreeSet::new();
        for n in 0..256 {
            let share = cluster.share(&taken, &BTreeSet::new()).unwrap();
            assert_eq!(share.to_string(), format!("10.42.{n}.0/24"));
            taken.insert(share);
        }
        assert_eq!(cluster.share(&taken, &BTreeSet::new()), None);
    }

    #[test]
    fn a_share_in_which_pods_still_have_addresses_is_not_given_to_another_node() {
        let used = BTreeSet::from([Ipv4Addr::new(10, 42, 0, 9)]);
        let cluster = range("10.42.0.0/16");
        assert_eq!(cluster.share(&BTreeSet::new(), &used), Some(range("10.42.1.0/24")));
    }

    #[test]
    fn addresses_go_round_and_are_unique() {
        let share = range("10.42.7.0/24");
        assert_eq!(share.gateway(), Ipv4Addr::new(10, 42, 7, 1));
        let mut used = HashSet::new();
        let mut last = None;
        while let Some(address) = share.next(last, &used) {
            assert!(used.insert(address));
            last = Some(address);
        }
        assert_eq!(used.len(), 253);
        assert!(!used.contains(&share.gateway()));
        used.remove(&Ipv4Addr::new(10, 42, 7, 20));
        assert_eq!(share.next(last, &used), Some(Ipv4Addr::new(10, 42, 7, 20)));
        assert_eq!(share.next(Some(Ipv4Addr::new(10, 42, 7, 5)), &HashSet::new()).unwrap().octets()[3], 6);
    }

    #[test]
    fn a_range_no_node_fits_in_is_refused() {
        assert_eq!(Range::cluster("10.42.0.0/25"), Err(RangeError::Small("10.42.0.0/25".into())));
        assert_eq!(Range::cluster("10.42.0.0"), Err(RangeError::Format("10.42.0.0".into())));
    }
}
