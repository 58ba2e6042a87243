//! The words of the network: prefixes, MAC addresses, interface names, and the rules by which ours are derived.
//!
//! Decides what our kernel objects are called, so that every node computes the same without asking. Must not touch
//! the kernel.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 prefix whose host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Net {
    address: Ipv4Addr,
    length: u8,
}

/// Why a text or a pair is not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not of the form `A.B.C.D/N`.
    #[error("{0:?} is not an IPv4 prefix: write it as 10.42.0.0/16")]
    Malformed(String),
    /// More than 32 bits.
    #[error("prefix length {0} is longer than 32")]
    TooLong(u8),
}

impl Ipv4Net {
    /// The prefix of `length` bits that contains `address`.
    pub fn new(address: Ipv4Addr, length: u8) -> Result<Self, PrefixError> {
        if length > 32 {
            return Err(PrefixError::TooLong(length));
        }
        let masked = Ipv4Addr::from(u32::from(address) & mask(length));
        Ok(Self { address: masked, length })
    }

    /// The prefix that holds one address only.
    pub const fn host(address: Ipv4Addr) -> Self {
        Self { address, length: 32 }
    }

    /// First address of the prefix.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Length in bits.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.length) == u32::from(self.address)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

const fn mask(length: u8) -> u32 {
    if length == 0 { 0 } else { u32::MAX << (32 - length as u32) }
}

impl FromStr for Ipv4Net {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let malformed = || PrefixError::Malformed(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        Self::new(address.parse().map_err(|_| malformed())?, length.parse().map_err(|_| malformed())?)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// What every pod has as the address of its gateway: the host side of each veth.
    pub const GATEWAY: Self = Self([0x02, 0x73, 0x6b, 0x00, 0x00, 0x01]);

    /// The address of a pod's interface.
    pub fn of_pod(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x73, a, b, c, d])
    }

    /// The address of a node's VXLAN device: every node derives every other's.
    pub fn of_overlay(node: &str, network: u16) -> Self {
        let hash = fnv64(&[node.as_bytes(), b"/", &network.to_be_bytes()]).to_be_bytes();
        Self([0x06, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of an interface of this node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

/// What the names of host sides of pods' veths begin with.
pub const POD_LINK_PREFIX: &str = "skp";
/// What the names of VXLAN devices begin with.
pub const OVERLAY_LINK_PREFIX: &str = "skx";
/// The link group of every interface of ours ("sk"): with the name it says whose an interface is.
pub const LINK_GROUP: u32 = 0x736b;
/// The protocol number on every route of ours.
pub const ROUTE_PROTOCOL: u8 = 0x53;
/// The label of addresses that we put on `lo`.
pub const LOOPBACK_LABEL: &str = "lo:skein";
/// The gateway in every pod; no interface carries it, a permanent neighbour entry answers for it.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The UDP port of the overlay.
pub const VXLAN_PORT: u16 = 4789;
/// What VXLAN adds to a packet over IPv4.
pub const VXLAN_OVERHEAD: u32 = 50;

impl LinkName {
    /// Takes over a name that the kernel or the operator gave.
    pub fn foreign(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The host side of a pod's veth.
    pub fn of_pod(uid: &str) -> Self {
        let hash = fnv64(&[uid.as_bytes()]) & 0xfff_ffff_ffff;
        Self(format!("{POD_LINK_PREFIX}{hash:011x}"))
    }

    /// The VXLAN device of a network.
    pub fn of_overlay(network: u16) -> Self {
        Self(format!("{OVERLAY_LINK_PREFIX}{network}"))
    }

    /// `lo`.
    pub fn loopback() -> Self {
        Self("lo".to_owned())
    }

    /// The name as the kernel has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `lo`.
    pub fn is_loopback(&self) -> bool {
        self.0 == "lo"
    }

    /// Whether a pod's veth may have this name.
    pub fn is_pod(&self) -> bool {
        self.0.starts_with(POD_LINK_PREFIX)
    }

    /// Whether a VXLAN device of ours may have this name.
    pub fn is_overlay(&self) -> bool {
        self.0.starts_with(OVERLAY_LINK_PREFIX)
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// FNV-1a: names must stay the same over releases, so the hash is spelled out here.
pub(crate) fn fnv64(parts: &[&[u8]]) -> u64 {
    parts.iter().flat_map(|part| part.iter()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_mask_host_bits() {
        let net: Ipv4Net = "10.42.7.9/24".parse().unwrap();
        assert_eq!(net.to_string(), "10.42.7.0/24");
        assert!(net.contains(Ipv4Addr::new(10, 42, 7, 255)));
        assert!(!net.contains(Ipv4Addr::new(10, 42, 8, 0)));
        assert!("0.0.0.0/0".parse::<Ipv4Net>().unwrap().overlaps(&net));
    }

    #[test]
    fn bad_prefixes_say_how_to_write_one() {
        for text in ["", "10.42.0.0", "10.42.0.0/33", "10.42.0/16", "a/b"] {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text}");
        }
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        assert!(LinkName::of_pod("2b6cbb2e-9a1c-4b5e-8f10-1f3a2a0a9f11").as_str().len() <= 15);
        assert!(LinkName::of_overlay(u16::MAX).as_str().len() <= 15);
    }

    #[test]
    fn derived_macs_are_unicast_and_local() {
        for mac in [Mac::GATEWAY, Mac::of_pod(Ipv4Addr::new(10, 42, 1, 2)), Mac::of_overlay("a", 0)] {
            assert_eq!(mac.0[0] & 3, 2, "{mac}");
        }
        assert_ne!(Mac::of_overlay("a", 0), Mac::of_overlay("b", 0));
    }
}
