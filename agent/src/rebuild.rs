//! A machine whose store cannot be trusted any more comes back by itself: as a new member of its name, with its pods.
//!
//! Decides when that may be tried, and from the others' answers what comes next. What the old identity has promised, and what its disk has
//! lost of that, is nobody's to know; so the old one leaves for good and a new key takes its place. The leader decides whether it may
//! ([`admission`]). Nothing of the old store is deleted: it is kept as `store.set-aside-TIME`. Must not be used where no other member is:
//! an only voter stops and says what to do.

pub mod admission;
mod asking;

use std::fs;
use std::path::{Path, PathBuf};

use raft_store::OpenError;
use tracing::{error, info, warn};

use crate::clock;
use crate::config::Config;
use crate::doubles;
use crate::identity::{self, Identity, IdentityError};
use crate::members::Member;
use crate::mesh::MeshError;
use crate::pki::{self, PkiError};
use crate::run::RunError;
use crate::store::StoreError;

/// Below `DATA`: the new identity, whole, until it has taken the old one's place.
const NEXT: &str = "member.next";
/// Below `DATA/member`: the key that the machine asks to be known by.
const KEY: &str = "replacing.key";
/// Below `DATA/store`: why what lies beside it is not to be opened again.
const UNTRUSTED: &str = "untrusted";

/// The machine cannot come back by itself.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error("no other member is known")]
    Alone,
    #[error("no leader answered within {0} s")]
    NoLeader(u64),
    #[error("the cluster refuses it: {0}")]
    Refused(String),
    #[error("the cluster's answer makes no sense: {0}")]
    Answer(String),
    #[error("{0}")]
    Doubled(String),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
}

/// Why the store is not to be trusted, if that is what kept the agent from starting.
pub fn distrust(error: &RunError) -> Option<String> {
    match error {
        RunError::Store(StoreError::Open(error @ OpenError::Corrupt { .. })) => Some(error.to_string()),
        RunError::Store(StoreError::Untrusted(why)) => Some(why.clone()),
        _ => None,
    }
}

/// Writes down that this store is not to be opened again.
pub fn condemn(store: &Path, why: &str) {
    if let Err(error) = identity::write_durably(&store.join(UNTRUSTED), why.as_bytes()) {
        error!(%error, "this could not be written down: the next start will find it out again");
    }
}

/// Why an earlier life of this agent has condemned the store.
pub fn condemned(store: &Path) -> Option<String> {
    fs::read_to_string(store.join(UNTRUSTED)).ok()
}

/// Has the cluster take this machine back under a new key, and puts the old store aside.
pub async fn rebuild(config: &Config, identity: &Identity, why: &str) -> Result<Identity, RebuildError> {
    let me = &identity.member;
    let others: Vec<Member> =
        identity.known.iter().filter(|member| member.name != me.name).cloned().collect();
    if others.is_empty() {
        return Err(RebuildError::Alone);
    }
    warn!(
        why,
        "this machine's store cannot be trusted: it asks the others to take it back under a new identity"
    );
    let key = new_key(&config.data)?;
    let welcome = match asking::ask(identity, &key, &others, why).await {
        Err(RebuildError::Doubled(places)) => doubles::stop_as_doubled(&config.data, &me.name, &places),
        answer => answer?,
    };
    let next = config.data.join(NEXT);
    let _ = fs::remove_dir_all(&next);
    welcome.save_below(&next)?;
    finish(&config.data)?;
    info!(old = %me.node_id(), new = %welcome.member.node_id(), "taken back under a new identity");
    Ok(welcome)
}

/// The key to come back by. Written down before it is first used: an answer that was lost is asked for again with the same one.
fn new_key(data: &Path) -> Result<String, RebuildError> {
    let path = data.join("member").join(KEY);
    if let Ok(key) = fs::read_to_string(&path) {
        return Ok(key);
    }
    let key = pki::new_key()?;
    identity::write_durably(&path, key.as_bytes())?;
    Ok(key)
}

/// Puts a new identity that lies ready in the old one's place, and the old store aside. May be repeated after a power cut at any point;
/// nothing happens where none lies ready.
pub fn finish(data: &Path) -> Result<(), RebuildError> {
    let (next, member) = (data.join(NEXT), data.join("member"));
    if !next.join(identity::RECORD).exists() {
        let _ = fs::remove_dir_all(&next);
        return Ok(());
    }
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| RebuildError::File { path, cause }
    };
    let store = data.join("store");
    if store.exists() {
        let aside = data.join(format!("store.set-aside-{}", clock::wall().as_second()));
        fs::rename(&store, &aside).map_err(failed(&store))?;
        fs::File::open(data).and_then(|directory| directory.sync_all()).map_err(failed(data))?;
        info!(kept = %aside.display(), "the old store is put aside");
    }
    for name in [identity::STORE_SEEN, identity::MEMBERS, KEY] {
        let _ = fs::remove_file(member.join(name));
    }
    // The record last: until then the next start begins here again.
    for name in ["node.key", "node.crt", "ca.crt", identity::RECORD] {
        if let Ok(bytes) = fs::read(next.join(name)) {
            identity::write_durably(&member.join(name), &bytes)?;
        }
    }
    fs::remove_file(next.join(identity::RECORD)).map_err(failed(&next))?;
    let _ = fs::remove_dir_all(&next);
    Ok(())
}

#[cfg(test)]
mod tests;
