//! The planner's output: an ordered list of changes to the kernel, and what a pass reports.
//!
//! Decides nothing. An action is complete in itself: the executor looks nothing up in the desired state.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::desired::{NetworkId, NodeName, PodUid, ServiceId};
use crate::net::{Ipv4Net, LinkName, Mac};
use crate::observed::{Flow, Route};
use crate::table::{Chain, Element};

/// What a pass will do, in this order, and what it already knows to be impossible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes.
    pub steps: Vec<Step>,
    /// Items of the desired state that cannot be had.
    pub refused: Vec<Failure>,
}

/// One change and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whose failure it is when it fails.
    pub subject: Subject,
    /// What to do.
    pub action: Action,
}

/// A change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a value below /proc/sys.
    SetSysctl { path: String, value: String },
    /// Make a VXLAN device, up.
    CreateOverlay { link: LinkName, vni: u32, local: IpAddr, mac: Mac, mtu: u32 },
    /// Change in place what is wrong with an interface of ours, and bring it up. A new MAC, even an equal one, makes
    /// the kernel drop the interface's neighbour entries.
    RepairLink { link: LinkName, mac: Option<Mac>, mtu: Option<u32> },
    /// Remove an interface of ours (a veth takes its other end with it).
    DeleteLink { link: LinkName },
    /// Put a /32 on an interface.
    AddAddress { link: LinkName, address: Ipv4Addr },
    /// Take it away.
    DeleteAddress { link: LinkName, address: Ipv4Addr },
    /// Add a route of ours, or with `replace` put it in the place of an older one of ours.
    PutRoute { to: Ipv4Net, route: Route, replace: bool },
    /// Remove a route of ours.
    DeleteRoute { to: Ipv4Net, route: Route },
    /// Add or replace a permanent neighbour entry.
    PutNeighbour { link: LinkName, address: Ipv4Addr, mac: Mac },
    /// Remove one.
    DeleteNeighbour { link: LinkName, address: Ipv4Addr },
    /// Add or replace where frames for a MAC are sent.
    PutForwarding { link: LinkName, mac: Mac, to: Ipv4Addr },
    /// Remove one.
    DeleteForwarding { link: LinkName, mac: Mac, to: Ipv4Addr },
    /// Make a veth, one end in the pod with address, gateway and default route.
    AttachPod { link: LinkName, netns: PathBuf, address: Ipv4Addr, mtu: u32 },
    /// One nft transaction.
    Table(Transaction),
    /// Delete tracked connections, so that their next packet is translated anew.
    Forget { flows: Vec<Flow>, dead: Vec<Ipv4Net> },
}

/// An nft transaction on our table: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Start over: delete our table first, if it is there.
    pub fresh: bool,
    /// Chains to create or to rewrite.
    pub put_chains: Vec<Chain>,
    /// Chains to delete; nothing refers to them any more.
    pub delete_chains: Vec<String>,
    /// Elements to delete, before any is added.
    pub remove: Vec<Element>,
    /// Elements to add.
    pub add: Vec<Element>,
}

impl Transaction {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a failure is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The node as a whole: kernel settings, addresses of its own.
    Node,
    /// Our nft table.
    Rules,
    /// A network's device on this node.
    Network(NetworkId),
    /// A peer's routes and entries.
    Peer(NodeName),
    /// A pod of this node.
    Pod(PodUid),
    /// A service.
    Service(ServiceId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Rules => f.write_str("nft table"),
            Self::Network(id) => write!(f, "network {}", id.0),
            Self::Peer(name) => write!(f, "peer {name}"),
            Self::Pod(uid) => write!(f, "pod {uid}"),
            Self::Service(id) => write!(f, "service {id}"),
        }
    }
}

/// An item that did not come about, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which item.
    pub subject: Subject,
    /// The cause and what to do.
    pub reason: String,
}

/// A state of the node that people must see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Another program's firewall drops our traffic; the text names the chain and the line that helps.
    NetworkBlocked(String),
    /// A part of the node's network could not be set up; the text names it, the kernel's words and what helps.
    NetworkUnavailable(String),
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many changes were made; zero when everything was as it should be.
    pub changes: usize,
    /// What could not be done; everything else was.
    pub failures: Vec<Failure>,
    /// What people must see.
    pub conditions: Vec<Condition>,
}

impl Report {
    /// Whether nothing was changed and nothing failed.
    pub fn is_quiet(&self) -> bool {
        self.changes == 0 && self.failures.is_empty()
    }

    /// What people must see, failures that concern more than one pod among it.
    pub fn all_conditions(&self) -> Vec<Condition> {
        let wide = self.failures.iter().filter(|failure| !matches!(failure.subject, Subject::Pod(_)));
        let reasons: Vec<&str> = wide.map(|failure| failure.reason.as_str()).take(3).collect();
        let unavailable = (!reasons.is_empty()).then(|| Condition::NetworkUnavailable(reasons.join("; ")));
        self.conditions.iter().cloned().chain(unavailable).collect()
    }

    /// Why a pod's network does not stand; none: it does.
    pub fn pod_failure(&self, uid: &PodUid) -> Option<&str> {
        let about = |failure: &&Failure| failure.subject == Subject::Pod(uid.clone());
        self.failures.iter().find(about).map(|failure| failure.reason.as_str())
    }
}
