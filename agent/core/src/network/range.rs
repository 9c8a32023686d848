//! Address ranges, as pods and Services get theirs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: its first address and the length of its prefix. Of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    base: IpAddr,
    prefix: u8,
}

impl Range {
    /// The range an address is in, by the length of its prefix; none if that is too long for its family.
    pub fn of(address: IpAddr, prefix: u8) -> Option<Range> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then(|| Range { base: masked(address, prefix), prefix })
    }

    /// Exactly this address.
    pub fn only(address: IpAddr) -> Range {
        Range { base: address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The network's own address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The first address after the network's own: the gateway of the pods in it.
    pub fn gateway(&self) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | 1).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | 1).into(),
        }
    }

    /// Whether the address is of this range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4() && masked(address, self.prefix) == self.base
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(a) => {
            Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0)).into()
        }
        IpAddr::V6(a) => {
            Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)).into()
        }
    }
}

/// Not ADDRESS/PREFIX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotARange;

impl FromStr for Range {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Range, NotARange> {
        let (address, prefix) = text.split_once('/').ok_or(NotARange)?;
        let address: IpAddr = address.parse().map_err(|_| NotARange)?;
        Range::of(address, prefix.parse().map_err(|_| NotARange)?).ok_or(NotARange)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_knows_what_is_in_it_and_its_gateway() {
        let range: Range = "10.42.3.7/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.42.3.0/24");
        assert_eq!(range.gateway().to_string(), "10.42.3.1");
        assert!(range.contains("10.42.3.255".parse().unwrap()));
        assert!(!range.contains("10.42.4.0".parse().unwrap()));
        assert!(!range.contains("::".parse().unwrap()));
        let six: Range = "fd00:5::/64".parse().unwrap();
        assert_eq!(six.gateway().to_string(), "fd00:5::1");
        assert!(six.contains("fd00:5::ffff".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Range>().unwrap().contains("9.9.9.9".parse().unwrap()));
        for bad in ["10.42.3.7", "10.42.3.7/33", "x/1", "::/129", "/"] {
            assert_eq!(bad.parse::<Range>(), Err(NotARange), "{bad}");
        }
    }
}
