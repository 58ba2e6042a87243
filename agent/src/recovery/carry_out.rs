//! A written order to begin or to follow a new cluster epoch, carried out before the store is opened.
//!
//! Decides the steps and that each may be repeated after a power cut: a new store is made aside and whole, the old one is kept as
//! `store.epoch-N`, and the order goes last. Must not run while a replica has the store open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_store::rescue::Rescued;
use raft_store::{ClusterId, Config as ReplicaConfig, FileDisk, Transaction, View};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{error, info};

use super::{AUDIT, number};
use crate::clock;
use crate::identity::{self, Identity, IdentityError};
use crate::members::{Member, TOKENS, in_view};
use crate::store::Plan;

/// What a machine was told to do at its next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Begin the epoch from this machine's log.
    Lead {
        epoch: u64,
        /// Members that it begins without.
        lost: Vec<String>,
        /// Term and index of the last entry, and what was known to be confirmed: for the audit.
        last: (u64, u64),
        commit: u64,
        /// When it was told so, RFC 3339.
        at: String,
    },
    /// Keep the old store aside and be sent the state of the epoch.
    Follow { epoch: u64, members: Vec<Member> },
}

impl Order {
    fn epoch(&self) -> u64 {
        match self {
            Order::Lead { epoch, .. } | Order::Follow { epoch, .. } => *epoch,
        }
    }
}

/// The order cannot be given or carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
    #[error("{0}")]
    Disk(#[from] raft_store::FileDiskError),
    #[error("{0}")]
    Rescue(#[from] raft_store::rescue::RescueError),
}

fn order_path(data: &Path) -> PathBuf {
    data.join("member").join("epoch-order.json")
}

/// Writes an order down, durably.
pub fn give(data: &Path, order: &Order) -> Result<(), OrderError> {
    let text = serde_json::to_vec_pretty(order).unwrap_or_default();
    Ok(identity::write_durably(&order_path(data), &text)?)
}

/// Carries out an order if there is one. If that fails the old store is as it was, the order is put aside, and the machine goes on
/// as what it is.
pub fn carry_out(data: &Path, identity: &mut Identity) {
    let path = order_path(data);
    let Ok(text) = std::fs::read(&path) else { return };
    let done = match serde_json::from_slice::<Order>(&text) {
        Ok(order) => follow_order(data, identity, &order),
        Err(cause) => Err(IdentityError::Damaged { path: path.clone(), cause }.into()),
    };
    match done {
        Ok(()) => {
            let _ = std::fs::remove_file(&path);
        }
        Err(cause) => {
            error!(%cause, "the new cluster epoch could not be begun; this machine goes on in the old one");
            let _ = std::fs::rename(&path, path.with_extension("failed"));
        }
    }
}

fn follow_order(data: &Path, identity: &mut Identity, order: &Order) -> Result<(), OrderError> {
    let (store, aside) = (data.join("store"), data.join("store.new-epoch"));
    let kept = data.join(format!("store.epoch-{}", number(order.epoch()).saturating_sub(1)));
    // Once the old store has its new name, the one that takes its place is whole.
    if let Order::Lead { epoch, lost, .. } = order
        && !kept.exists()
    {
        remove(&aside)?;
        identity::make_private_directory(&aside)?;
        let old = Rescued::read(&mut FileDisk::open(&store.join("log"))?, &config(identity, identity.epoch))?;
        let changes = changes(&old.view(), identity, order, lost);
        old.begin_anew(FileDisk::open(&aside.join("log"))?, config(identity, *epoch), &changes)?;
    }
    if store.exists() && !kept.exists() {
        rename(&store, &kept)?;
    }
    match order {
        Order::Lead { .. } if aside.exists() => rename(&aside, &store)?,
        Order::Lead { .. } => {}
        Order::Follow { members, .. } => {
            identity.known = members.clone();
            // Its store is to be made anew: it waits to be sent one.
            remove(&data.join("member").join(identity::STORE_SEEN))?;
        }
    }
    identity.epoch = order.epoch();
    identity.save(data)?;
    info!(epoch = number(order.epoch()), kept = %kept.display(), "a new cluster epoch; the store of the old one is kept");
    Ok(())
}

fn config(identity: &Identity, epoch: u64) -> ReplicaConfig {
    let cluster: ClusterId = identity.store_id(epoch);
    ReplicaConfig::new(identity.member.node_id(), cluster, clock::random_u64())
}

/// The lost are no members any more; nobody joins by an old token; an audit stays.
fn changes(view: &View, identity: &Identity, order: &Order, lost: &[String]) -> Transaction {
    let mut plan = Plan::new();
    for member in in_view(view).iter().filter(|member| lost.contains(&member.name)) {
        for key in crate::enrol::keys_of(&member.name, member.block) {
            plan = plan.delete(&key);
        }
        plan = plan.delete(&crate::doubles::key(&member.name));
    }
    for entry in view.prefix(TOKENS.as_bytes(), None) {
        plan = plan.delete(&String::from_utf8_lossy(entry.key()));
    }
    let audit = match order {
        Order::Lead { last, commit, at, .. } => {
            json!({"from": identity.member.name, "lost": lost, "lastTerm": last.0, "lastIndex": last.1, "commit": commit, "at": at})
        }
        Order::Follow { .. } => json!({}),
    };
    plan.put(&format!("{AUDIT}{}", number(order.epoch())), audit.to_string()).build()
}

fn rename(from: &Path, to: &Path) -> Result<(), OrderError> {
    std::fs::rename(from, to).map_err(|cause| OrderError::File { path: from.into(), cause })?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    let synced = std::fs::File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|cause| OrderError::File { path: parent.into(), cause })
}

fn remove(path: &Path) -> Result<(), OrderError> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(OrderError::File { path: path.into(), cause })
        }
        _ => Ok(()),
    }
}

/// Starts this process anew, as the same one, once an answer that is on its way has left. Containers do not notice: they are
/// not this process's.
pub fn restart_soon() {
    clock::spawn(async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let cause = exec_self();
        error!(%cause, "this process could not start itself anew; it ends, and is started again by whoever looks after it");
        std::process::exit(75);
    });
}

fn exec_self() -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    std::process::Command::new("/proc/self/exe").arg0(name).args(args).exec()
}

#[cfg(test)]
mod tests;
