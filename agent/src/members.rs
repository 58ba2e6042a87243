//! The member list: who belongs to the cluster, with key, address and address block.
//!
//! Decides the form of the records and what follows from them. It must not decide who is alive ([`crate::liveness`]).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use raft_store::{NodeId, Supported, Version, View};
use serde::{Deserialize, Serialize};

/// Prefix of member records in the store; the name follows.
pub const PREFIX: &str = "m/";
/// Prefix of join tokens; the hash of the secret follows.
pub const TOKENS: &str = "t/";

/// One member, as stored at `m/NAME` in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    /// raft id: the first eight bytes of the key's hash.
    pub id: u64,
    /// SHA-256 of the member's public key in hex: the only proof of identity between members.
    pub key: String,
    /// Where its mesh listens (QUIC).
    pub address: SocketAddr,
    /// Port of its API (HTTPS), at the same address.
    pub api_port: u16,
    /// Number of its address block in every network.
    pub block: u8,
    #[serde(default)]
    pub no_voter: bool,
    /// Hex of the public key that the keyring is sealed to for this member; empty until its agent has said it.
    #[serde(default)]
    pub seal_key: String,
    /// The oldest and the newest cluster version that its binary supports; absent until its agent has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<(u32, u32)>,
}

/// A join token's record, stored at `t/HASH` in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Unix seconds.
    pub expires: i64,
    #[serde(default)]
    pub no_voter: bool,
}

impl Member {
    pub fn node_id(&self) -> NodeId {
        NodeId(self.id)
    }

    /// What its binary supports.
    pub fn supported(&self) -> Supported {
        self.versions.map_or(Supported::UNSAID, |(oldest, newest)| Supported {
            oldest: Version(oldest),
            newest: Version(newest),
        })
    }

    /// First address of the member's block in the default network: its overlay address.
    pub fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.block, 1)
    }

    /// The member's block in the default network, as Kubernetes writes it.
    pub fn pod_cidr(&self) -> String {
        format!("10.42.{}.0/24", self.block)
    }
}

/// What this binary says of itself.
pub fn own_versions() -> Option<(u32, u32)> {
    Some((Supported::OURS.oldest.0, Supported::OURS.newest.0))
}

/// raft id of a member by the hash of its key. Never zero.
pub fn id_of_key(hash: &[u8; 32]) -> u64 {
    let mut first = [0u8; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first).max(1)
}

/// The key of a member's record.
pub fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// All members in the store, by name.
pub fn in_view(view: &View) -> Vec<Member> {
    view.prefix(PREFIX.as_bytes(), None)
        .filter_map(|entry| serde_json::from_slice(entry.value()).ok())
        .collect()
}

/// The member list as drivers need it: shared, always the newest.
#[derive(Clone, Default)]
pub struct Roster(Arc<RwLock<BTreeMap<NodeId, Member>>>);

impl Roster {
    pub fn replace(&self, members: Vec<Member>) {
        let map = members.into_iter().map(|member| (member.node_id(), member)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = map;
    }

    pub fn get(&self, id: NodeId) -> Option<Member> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub fn by_name(&self, name: &str) -> Option<Member> {
        self.all().into_iter().find(|member| member.name == name)
    }

    /// Who has this key, by the hash of it.
    pub fn by_key(&self, hash: &[u8; 32]) -> Option<Member> {
        let member = self.get(NodeId(id_of_key(hash)))?;
        (member.key == crate::pki::hex(hash)).then_some(member)
    }

    pub fn all(&self) -> Vec<Member> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
