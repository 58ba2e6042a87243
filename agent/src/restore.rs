//! A new cluster out of a backup: `skein cluster restore` on a machine that belongs to none.
//!
//! Decides what of a backup the new cluster must not have: the old members, their address blocks, nodes, tokens and keyring. The cluster has a
//! new id and a new CA, so nobody who belonged to the old one takes it for his.

use std::path::Path;

use api::keys;
use api::kinds::Kind;
use raft_store::rescue::{RescueError, Rescued};
use raft_store::{Config as ReplicaConfig, FileDisk, FileDiskError, Transaction, View};
use serde_json::json;

use crate::clock;
use crate::enrol;
use crate::identity::{self, Identity, IdentityError};
use crate::keyring::{self, Ring};
use crate::members::{PREFIX, TOKENS};
use crate::recovery::AUDIT;
use crate::store::Plan;

/// A backup cannot be restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{}: {cause}", path.display())]
    File { path: std::path::PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Rescue(#[from] RescueError),
    #[error(transparent)]
    Disk(#[from] FileDiskError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What was restored.
pub struct Restored {
    /// Hex of the id of the cluster that the backup is of.
    pub cluster: String,
    /// How many objects it holds.
    pub objects: usize,
    /// The keyring of that cluster, sealed: it is not this one's.
    pub ring: Option<Ring>,
}

/// Makes the store of the new cluster's first member out of the backup at `path`, below `data`.
pub fn restore(data: &Path, identity: &Identity, path: &Path) -> Result<Restored, RestoreError> {
    let bytes = std::fs::read(path).map_err(|cause| RestoreError::File { path: path.into(), cause })?;
    let (rescued, from) = Rescued::from_backup(&bytes)?;
    let view = rescued.view();
    let changes = changes(&view, identity, &from.to_string());
    let config = ReplicaConfig::new(identity.member.node_id(), identity.store_id(0), clock::random_u64());
    let store = data.join("store");
    identity::make_private_directory(&store)?;
    rescued.begin_anew(FileDisk::open(&store.join("log"))?, config, &changes)?;
    identity::write_durably(&data.join("member").join(identity::STORE_SEEN), b"")?;
    let objects = view.prefix(b"o/", None).count();
    Ok(Restored { cluster: from.to_string(), objects, ring: Ring::in_view(&view) })
}

fn changes(view: &View, identity: &Identity, from: &str) -> Transaction {
    let nodes = keys::prefix(Kind::by_name("Node").expect("Node is a row of the table of kinds"), None);
    let mut plan = Plan::new();
    // `c/` is what the old cluster was in the midst of: its brake, its doubled members.
    for prefix in [PREFIX, "a/block/", "c/", TOKENS, keyring::PREFIX, nodes.as_str()] {
        for entry in view.prefix(prefix.as_bytes(), None) {
            plan = plan.delete(&String::from_utf8_lossy(entry.key()));
        }
    }
    let audit = json!({"from": "backup", "cluster": from, "at": api::duration::rfc3339(clock::wall())});
    let mut transaction = plan.put(&format!("{AUDIT}0"), audit.to_string()).build();
    // Of several operations on one key the last counts.
    transaction.ops.extend(enrol::enrolment(&identity.member, view).ops);
    transaction
}
