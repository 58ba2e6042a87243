//! Our nft table: the names of its sets and maps, their elements, and the text that changes them.
//!
//! Decides how elements and chains are written for nft. Must not run nft; what belongs into the table is the planner's.
//! The layout is described in docs/formats/netfabric.md.

pub mod layout;
pub mod read;
pub mod script;

use std::fmt;
use std::net::Ipv4Addr;

use crate::desired::Endpoint;
use crate::net::{LinkName, fnv64};
use crate::observed::Frontend;

/// The table's name, in family `inet`.
pub const NAME: &str = "skein";
/// An empty chain that names the version of the sets, maps and hooks; another one there: the table is made anew. (nft
/// 1.0.6 does not list a table's comment in its JSON.)
pub const VERSION: &str = "version_1";
/// What the names of such chains begin with.
pub const VERSION_PREFIX: &str = "version_";
/// Our bits of the packet mark: the slot that was drawn.
pub const SLOT_MASK: u32 = 0x0fff_0000;
/// How far a slot number is shifted into them.
pub const SLOT_SHIFT: u32 = 16;
/// Endpoints of one service port that get connections.
pub const MAX_SLOTS: usize = 1024;

/// A rule, recognised again by the hash of its text that its comment carries.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(pub String);

impl RuleId {
    /// The id of a rule of this text.
    pub fn of(rule: &str) -> Self {
        Self(format!("{:016x}", fnv64(&[rule.as_bytes()])))
    }
}

impl fmt::Debug for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it is hooked in (`type … priority …`), if it is a base chain.
    pub hook: Option<&'static str>,
    /// Its rules in nft's syntax.
    pub rules: Vec<String>,
}

impl Chain {
    /// What reading it back must give.
    pub fn rule_ids(&self) -> Vec<RuleId> {
        self.rules.iter().map(|rule| RuleId::of(rule)).collect()
    }
}

/// An element of one of our sets or maps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// `peers`: a member's underlay address.
    Peer(Ipv4Addr),
    /// `node_addresses`: where node ports answer.
    NodeAddress(Ipv4Addr),
    /// `pod_sources`: the only address that may come out of this interface.
    PodSource(LinkName, Ipv4Addr),
    /// `hairpin`: a pod's own·own and the source it gets when it reaches itself through a service.
    Hairpin(Ipv4Addr, Ipv4Addr),
    /// `vip_draw`, `port_draw`: how many endpoints to draw from.
    Draw(Frontend, u16),
    /// `vip_slots`, `port_slots`: the endpoint in a slot.
    Slot(Frontend, u16, Endpoint),
    /// `vip_empty`, `port_empty`: known, but nobody answers.
    Empty(Frontend),
}

impl Element {
    /// The set or map it belongs to.
    pub const fn set(&self) -> &'static str {
        match self {
            Self::Peer(_) => "peers",
            Self::NodeAddress(_) => "node_addresses",
            Self::PodSource(..) => "pod_sources",
            Self::Hairpin(..) => "hairpin",
            Self::Draw(Frontend::Vip { .. }, _) => "vip_draw",
            Self::Draw(Frontend::NodePort { .. }, _) => "port_draw",
            Self::Slot(Frontend::Vip { .. }, ..) => "vip_slots",
            Self::Slot(Frontend::NodePort { .. }, ..) => "port_slots",
            Self::Empty(Frontend::Vip { .. }) => "vip_empty",
            Self::Empty(Frontend::NodePort { .. }) => "port_empty",
        }
    }

    /// Its key as nft writes it.
    pub fn key(&self) -> String {
        match self {
            Self::Peer(address) | Self::NodeAddress(address) => address.to_string(),
            Self::PodSource(link, address) => format!("{link} . {address}"),
            Self::Hairpin(own, _) => format!("{own} . {own}"),
            Self::Draw(frontend, _) | Self::Empty(frontend) => frontend_key(*frontend),
            Self::Slot(frontend, slot, _) => {
                format!("{} . 0x{:08x}", frontend_key(*frontend), u32::from(*slot) << SLOT_SHIFT)
            }
        }
    }

    /// What the key maps to, if it is in a map.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Hairpin(_, source) => Some(source.to_string()),
            Self::Draw(_, count) => Some(format!("jump {}", draw_chain(*count))),
            Self::Slot(_, _, endpoint) => Some(format!("{} . {}", endpoint.address, endpoint.port)),
            Self::Peer(_) | Self::NodeAddress(_) | Self::PodSource(..) | Self::Empty(_) => None,
        }
    }
}

fn frontend_key(frontend: Frontend) -> String {
    match frontend {
        Frontend::Vip { address, protocol, port } => format!("{address} . {} . {port}", protocol.name()),
        Frontend::NodePort { protocol, port } => format!("{} . {port}", protocol.name()),
    }
}

/// The chain that draws from this many slots.
pub fn draw_chain(count: u16) -> String {
    format!("draw_{count}")
}

/// The chain that writes this slot into the mark.
pub fn slot_chain(slot: u16) -> String {
    format!("slot_{slot}")
}
