//! What the node's network should be, as plain data: the input of the planner.
//!
//! Decides nothing; the agent maps the cluster's objects to it. Must not know Kubernetes, and must not know the kernel.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::net::Ipv4Net;

/// The number of a network. Its devices, its nodes' parts and its pods carry it; services and the maps of addresses do not,
/// because no address is in two networks (docs/decisions/0306).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u16);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text_id!(
    /// A node's name.
    NodeName
);
text_id!(
    /// A pod's unique id: the name of its interface is derived from it.
    PodUid
);
text_id!(
    /// A service, as reports name it (`namespace/name`).
    ServiceId
);

/// Everything the fabric should bring about on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// This node.
    pub node: LocalNode,
    /// The networks that exist here.
    pub networks: Vec<Network>,
    /// The other members, and nobody else: VXLAN from other addresses is dropped.
    pub peers: Vec<Peer>,
    /// The pods of this node.
    pub pods: Vec<LocalPod>,
    /// All services, with the endpoints that should get new connections.
    pub services: Vec<Service>,
    /// Where service addresses come from; what is sent there and belongs to no service is rejected.
    pub service_cidr: Ipv4Net,
    /// The local addresses at which node ports and host ports answer: all of the machine's own, without pod or overlay addresses.
    pub node_port_addresses: BTreeSet<Ipv4Addr>,
    /// Blocks of nodes whose death is confirmed: established connections to pods in them are cut once.
    pub dead_blocks: BTreeSet<Ipv4Net>,
    /// Where pods find DNS; none: neither address is set up.
    pub dns: Option<DnsAddresses>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// Its name: MAC addresses are derived from it.
    pub name: NodeName,
    /// The address that the other members reach it at; an interface must carry it.
    pub underlay: IpAddr,
}

/// A network and this node's part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its number.
    pub id: NetworkId,
    /// Its name, for messages.
    pub name: String,
    /// All addresses of its pods; no two networks overlap.
    pub cidr: Ipv4Net,
    /// The VXLAN id.
    pub vni: u32,
    /// The addresses of this node's pods.
    pub block: Ipv4Net,
    /// This node's own address in the network, the first of `block`.
    pub overlay: Ipv4Addr,
}

/// Another member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name: MAC addresses are derived from it.
    pub name: NodeName,
    /// Where it is reached.
    pub underlay: IpAddr,
    /// Its part of each network.
    pub networks: Vec<PeerNetwork>,
    /// Whether its DNS server may stand in for ours (false once it is suspected).
    pub serves_dns: bool,
}

/// A peer's part of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNetwork {
    /// Which network.
    pub id: NetworkId,
    /// The addresses of the peer's pods.
    pub block: Ipv4Net,
    /// The peer's own address in the network.
    pub overlay: Ipv4Addr,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its unique id.
    pub uid: PodUid,
    /// The network it is in.
    pub network: NetworkId,
    /// Its address, out of this node's block.
    pub address: Ipv4Addr,
    /// Its network namespace, as a file to open (`/proc/PID/ns/net` or a bind mount).
    pub netns: PathBuf,
    /// Ports of this node's own addresses that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// A port of this node alone that leads to one of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port at the node's own addresses.
    pub port: u16,
    /// The port of the pod.
    pub target: u16,
}

/// Layer 4 protocols that services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The name that nft and people use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A service with a virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// How reports name it.
    pub id: ServiceId,
    /// Its virtual address.
    pub vip: Ipv4Addr,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port at the virtual address.
    pub port: u16,
    /// The port at every node's own addresses.
    pub node_port: Option<u16>,
    /// Who answers: ready and not suspected. Order does not matter; none: connections are refused.
    pub endpoints: Vec<Endpoint>,
}

/// Where a service's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The pod's (or node's) address.
    pub address: Ipv4Addr,
    /// The port there.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The two addresses in every pod's resolv.conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsAddresses {
    /// This node's own server: on `lo`, no NAT, no connection tracking.
    pub local: Ipv4Addr,
    /// Leads to the servers of two other members, at their overlay addresses, port 53.
    pub fallback: Ipv4Addr,
}
