//! Everything that a running member has, in one place for the drivers to share.
//!
//! Decides nothing. It must not grow logic: what decides lives in the cores.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use raft_store::NodeId;
use runtime::Runtime;
use tokio::sync::watch;

use crate::config::Config;
use crate::credential::Credential;
use crate::fabric::FabricHandle;
use crate::identity::Identity;
use crate::images::Images;
use crate::keyring::seal::SealKey;
use crate::members::Roster;
use crate::mesh::Mesh;
use crate::objects::Objects;
use crate::store::Store;
use crate::worker::addresses::Addresses;

/// A running member.
pub struct Cluster {
    pub config: Config,
    pub identity: Identity,
    /// Opens this member's wrap of the keyring.
    pub seal_key: SealKey,
    /// What TLS shows of this machine.
    pub credential: Credential,
    pub roster: Roster,
    pub mesh: Mesh,
    pub store: Store,
    pub objects: Objects,
    pub runtime: Runtime,
    pub fabric: FabricHandle,
    pub images: Images,
    pub addresses: Addresses,
    /// Whom this machine suspects, by gossip.
    pub suspects: watch::Receiver<BTreeSet<NodeId>>,
    /// Answers to direct probes.
    pub pings: Arc<crate::probe::Pings>,
    /// What was heard of the members' processes.
    pub lives: crate::doubles::Watch,
    /// This machine is about to leave for a new cluster epoch.
    pub leaves: AtomicBool,
}

impl Cluster {
    pub fn name(&self) -> &str {
        &self.identity.member.name
    }

    pub fn me(&self) -> NodeId {
        self.identity.member.node_id()
    }

    pub fn host_ip(&self) -> String {
        self.identity.member.address.ip().to_string()
    }

    pub fn suspects(&self) -> BTreeSet<NodeId> {
        self.suspects.borrow().clone()
    }
}
