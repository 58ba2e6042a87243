//! What the kernel has of ours (and the little of others' that matters), as plain data.
//!
//! Decides how each action changes it: `absorb` keeps the picture current between full observations, and is the fake
//! kernel of the planner's tests. Must not contain anything foreign that a plan could remove.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::action::{Action, Transaction};
use crate::desired::{Endpoint, Protocol};
use crate::net::{Ipv4Net, LinkName, Mac};
use crate::table::{Element, RuleId};

/// The kernel's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every local address and the interface that carries it, foreign ones too.
    pub underlays: BTreeMap<IpAddr, Underlay>,
    /// Values below /proc/sys that we care about.
    pub sysctls: BTreeMap<String, String>,
    /// Interfaces of ours.
    pub links: BTreeMap<LinkName, Link>,
    /// Foreign interfaces that sit on a name we may want.
    pub taken_names: BTreeSet<LinkName>,
    /// Addresses of ours: on our overlay devices and, by label, on `lo`.
    pub addresses: BTreeSet<(LinkName, Ipv4Addr)>,
    /// Routes of ours in the main table.
    pub routes: BTreeMap<Ipv4Net, Route>,
    /// Permanent neighbour entries on our interfaces.
    pub neighbours: BTreeMap<(LinkName, Ipv4Addr), Mac>,
    /// Forwarding entries on our overlay devices.
    pub forwarding: BTreeMap<(LinkName, Mac), Ipv4Addr>,
    /// The pods' ends of our veths.
    pub pods: BTreeMap<LinkName, PodEnd>,
    /// Our nft table, if it is there.
    pub table: Option<Table>,
    /// Tracked connections that were translated to an endpoint and have not been answered (or are UDP).
    pub flows: BTreeSet<Flow>,
    /// Blocks of dead nodes whose connections have been cut.
    pub cut_blocks: BTreeSet<Ipv4Net>,
}

/// The interface under the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub link: LinkName,
    /// Its MTU.
    pub mtu: u32,
}

/// An interface of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// What kind it is, with what cannot be changed in place.
    pub kind: LinkKind,
}

/// Kinds of interfaces that we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a pair.
    Veth,
    /// An overlay device.
    Vxlan { vni: u32, local: Option<IpAddr>, port: u16, learning: bool },
    /// Made by another program with our name and group.
    Other,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Straight to a pod.
    Pod { link: LinkName, source: Ipv4Addr },
    /// To a peer's block, through its overlay address.
    Overlay { link: LinkName, via: Ipv4Addr, source: Ipv4Addr },
    /// Out of an interface, only to give our own packets a source before they are translated.
    Source { link: LinkName, source: Ipv4Addr },
    /// Addresses of the network that nobody has.
    Unreachable,
}

/// The end of a veth that is inside a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// The namespace it was looked for in.
    pub netns: PathBuf,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MTU.
    pub mtu: u32,
}

/// Our nft table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The version of its sets, maps and hooks: the name of an empty chain.
    pub version: String,
    /// The rules of each chain.
    pub chains: BTreeMap<String, Vec<RuleId>>,
    /// The elements of its sets and maps.
    pub elements: BTreeSet<Element>,
}

/// Where connections to a service arrive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// A virtual address.
    Vip { address: Ipv4Addr, protocol: Protocol, port: u16 },
    /// A port of the node's own addresses: a service's on every node, or a pod's on its own.
    NodePort { protocol: Protocol, port: u16 },
}

impl Frontend {
    /// The protocol of either.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Vip { protocol, .. } | Self::NodePort { protocol, .. } => protocol,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip { address, protocol, port } => write!(f, "{address}:{port}/{}", protocol.name()),
            Self::NodePort { protocol, port } => write!(f, "node port {port}/{}", protocol.name()),
        }
    }
}

impl fmt::Debug for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A translation that tracked connections may still carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Where it arrived.
    pub frontend: Frontend,
    /// Where it was sent.
    pub endpoint: Endpoint,
}

impl Observed {
    /// Takes in that an action succeeded.
    pub fn absorb(&mut self, action: &Action) {
        match action.clone() {
            Action::SetSysctl { path, value } => drop(self.sysctls.insert(path, value)),
            Action::CreateOverlay { link, vni, local, mac, mtu } => {
                let kind = LinkKind::Vxlan {
                    vni,
                    local: Some(local),
                    port: crate::net::VXLAN_PORT,
                    learning: false,
                };
                self.links.insert(link, Link { mac, mtu, up: true, kind });
            }
            Action::RepairLink { link, mac, mtu } => {
                if mac.is_some() {
                    self.neighbours.retain(|(on, _), _| *on != link);
                }
                if let Some(known) = self.links.get_mut(&link) {
                    known.mac = mac.unwrap_or(known.mac);
                    known.mtu = mtu.unwrap_or(known.mtu);
                    known.up = true;
                }
            }
            Action::DeleteLink { link } => self.forget_link(&link),
            Action::AddAddress { link, address } => drop(self.addresses.insert((link, address))),
            Action::DeleteAddress { link, address } => drop(self.addresses.remove(&(link, address))),
            Action::PutRoute { to, route, .. } => drop(self.routes.insert(to, route)),
            Action::DeleteRoute { to, .. } => drop(self.routes.remove(&to)),
            Action::PutNeighbour { link, address, mac } => {
                self.neighbours.insert((link, address), mac);
            }
            Action::DeleteNeighbour { link, address } => drop(self.neighbours.remove(&(link, address))),
            Action::PutForwarding { link, mac, to } => drop(self.forwarding.insert((link, mac), to)),
            Action::DeleteForwarding { link, mac, .. } => drop(self.forwarding.remove(&(link, mac))),
            Action::AttachPod { link, netns, address, mtu } => {
                let host = Link { mac: Mac::GATEWAY, mtu, up: true, kind: LinkKind::Veth };
                self.links.insert(link.clone(), host);
                self.pods.insert(link, PodEnd { netns, address, mtu });
            }
            Action::Table(transaction) => self.absorb_transaction(transaction),
            Action::Forget { flows, dead } => {
                self.flows.retain(|flow| !flows.contains(flow));
                self.cut_blocks.extend(dead);
            }
        }
    }

    /// The kernel removes with an interface whatever hangs on it.
    fn forget_link(&mut self, link: &LinkName) {
        self.links.remove(link);
        self.pods.remove(link);
        self.addresses.retain(|(on, _)| on != link);
        self.neighbours.retain(|(on, _), _| on != link);
        self.forwarding.retain(|(on, _), _| on != link);
        self.routes.retain(|_, route| route.link() != Some(link));
    }

    fn absorb_transaction(&mut self, transaction: Transaction) {
        if transaction.fresh {
            self.table = Some(Table { version: crate::table::VERSION.to_owned(), ..Table::default() });
        }
        let table = self.table.get_or_insert_default();
        for chain in &transaction.put_chains {
            table.chains.insert(chain.name.clone(), chain.rule_ids());
        }
        for name in &transaction.delete_chains {
            table.chains.remove(name);
        }
        for element in &transaction.remove {
            table.elements.remove(element);
        }
        table.elements.extend(transaction.add);
    }
}

impl Route {
    /// The interface it leads out of.
    pub fn link(&self) -> Option<&LinkName> {
        match self {
            Self::Pod { link, .. } | Self::Overlay { link, .. } | Self::Source { link, .. } => Some(link),
            Self::Unreachable => None,
        }
    }
}
