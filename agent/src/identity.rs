//! What a machine knows of itself: its files below `DATA/member`.
//!
//! Decides their form and that they survive a power cut. While the agent runs only join, init and the
//! renewal of the certificate write it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::members::Member;
use crate::pki;

/// Directory of the keys of joins that are not through.
pub const JOINING: &str = "joining";
/// Ending of a file that is being written.
pub const ASIDE: &str = "new";

/// The record itself, below `DATA/member`: without it the rest does not count.
pub const RECORD: &str = "identity.json";
/// There once the store was made: a member that lost it must not vote under its old name.
pub const STORE_SEEN: &str = "store-seen";
/// The member list, as it was last seen.
pub const MEMBERS: &str = "members.json";

/// This machine as a member of a cluster.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Hex of the cluster's sixteen-byte id.
    pub cluster: String,
    /// How often the cluster went on after the loss of its majority (`crate::recovery`).
    #[serde(default)]
    pub epoch: u64,
    pub member: Member,
    /// PEM of the private key, kept in a file of its own.
    #[serde(skip)]
    pub key: String,
    #[serde(skip)]
    pub certificate: String,
    #[serde(skip)]
    pub ca_certificate: String,
    /// The members when this machine joined, or as it last saw them: enough to find the others before the store has arrived.
    pub known: Vec<Member>,
}

/// Reading or writing the identity failed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("{} cannot be read as an identity: {cause}; restore it from a backup, or run 'skein node reset' and join again", path.display())]
    Damaged { path: PathBuf, cause: serde_json::Error },
    #[error("the key of this machine: {0}")]
    Key(#[from] pki::PkiError),
}

impl Identity {
    pub fn cluster_id(&self) -> raft_store::ClusterId {
        let mut bytes = [0u8; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self
                .cluster
                .get(index * 2..index * 2 + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .unwrap_or(0);
        }
        raft_store::ClusterId(bytes)
    }

    /// The id under which the store of a cluster epoch writes and speaks.
    pub fn store_id(&self, epoch: u64) -> raft_store::ClusterId {
        raft_store::rescue::epoch_id(self.cluster_id(), epoch)
    }

    /// Reads the identity, `None` on a machine that was never told to join anything.
    pub fn load(data: &Path) -> Result<Option<Identity>, IdentityError> {
        let directory = data.join("member");
        let path = directory.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(IdentityError::File { path, cause }),
        };
        let mut identity: Identity = serde_json::from_slice(&text)
            .map_err(|cause| IdentityError::Damaged { path: path.clone(), cause })?;
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|cause| IdentityError::File { path, cause })
        };
        identity.key = read("node.key")?;
        identity.certificate = read("node.crt")?;
        identity.ca_certificate = read("ca.crt")?;
        let seen = fs::read(directory.join(MEMBERS)).ok();
        if let Some(seen) = seen.and_then(|text| serde_json::from_slice::<Vec<Member>>(&text).ok()) {
            identity.known = seen;
        }
        Ok(Some(identity))
    }

    /// Writes the identity; `identity.json` last, so that a half-written one does not count.
    pub fn save(&self, data: &Path) -> Result<(), IdentityError> {
        let directory = data.join("member");
        // It was of the identity before.
        let _ = fs::remove_file(directory.join(MEMBERS));
        self.save_below(&directory)
    }

    /// As [`Identity::save`], into a directory of its own.
    pub fn save_below(&self, directory: &Path) -> Result<(), IdentityError> {
        make_private_directory(directory)?;
        write_durably(&directory.join("node.key"), self.key.as_bytes())?;
        write_durably(&directory.join("node.crt"), self.certificate.as_bytes())?;
        write_durably(&directory.join("ca.crt"), self.ca_certificate.as_bytes())?;
        let path = directory.join(RECORD);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|cause| IdentityError::Damaged { path: path.clone(), cause })?;
        write_durably(&path, &text)
    }
}

/// Keeps the member list for a start without a store: whom to ask.
pub fn remember(data: &Path, members: &[Member]) {
    let text = serde_json::to_vec(members).unwrap_or_default();
    if let Err(error) = write_durably(&data.join("member").join(MEMBERS), &text) {
        tracing::warn!(%error, "the member list could not be kept beside the store");
    }
}

/// Forgets a membership that did not come to be. `identity.json` goes first: without it the rest does not count.
pub fn forget(data: &Path) {
    let member = data.join("member");
    let _ = fs::remove_file(member.join(RECORD));
    let _ = File::open(&member).and_then(|directory| directory.sync_all());
    let _ = fs::remove_dir_all(member);
    let _ = fs::remove_dir_all(data.join("store"));
}

/// The key with which this machine asks to be let into the cluster of this CA. It is written down before it is first used, so that
/// a machine whose answer was lost asks again as the same one and not as another with its name.
pub fn joining_key(data: &Path, ca_hash: &[u8; 32]) -> Result<String, IdentityError> {
    let directory = data.join(JOINING);
    make_private_directory(&directory)?;
    let path = directory.join(format!("{}.key", pki::hex(ca_hash)));
    match fs::read_to_string(&path) {
        Ok(key) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = pki::new_key()?;
            write_durably(&path, key.as_bytes())?;
            Ok(key)
        }
        Err(cause) => Err(IdentityError::File { path, cause }),
    }
}

/// The machine is a member: what it asked with is not needed any more.
pub fn joined(data: &Path) {
    // What stays behind is used by nobody: the next join is to another cluster, or as the same machine.
    let _ = fs::remove_dir_all(data.join(JOINING));
}

/// Counts this boot and makes it durable before anything is sent: a member's identity in gossip has it.
pub fn next_boot(data: &Path) -> Result<u64, IdentityError> {
    let path = data.join("member").join("boot");
    let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    write_durably(&path, (last + 1).to_string().as_bytes())?;
    Ok(last + 1)
}

/// Makes a directory that only root can enter.
pub fn make_private_directory(path: &Path) -> Result<(), IdentityError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| IdentityError::File { path: path.to_path_buf(), cause })
}

/// Writes a file of mode 0600 aside, syncs it, renames it, syncs the directory.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let failed = |cause| IdentityError::File { path: path.to_path_buf(), cause };
    let aside = path.with_extension(ASIDE);
    if let Err(cause) = write_synced(&aside, bytes).and_then(|()| fs::rename(&aside, path)) {
        // A full disk is not to stay full for half a file that nobody reads.
        let _ = fs::remove_file(&aside);
        return Err(failed(cause));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A machine that belongs to no cluster has no store: what lies there is of a restore that was cut off, or of an identity that
/// was lost. It is put aside, never deleted and never taken for the new cluster's.
pub fn set_store_aside(data: &Path, now: i64) -> Result<(), IdentityError> {
    let (store, seen) = (data.join("store"), data.join("member").join("store-seen"));
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| IdentityError::File { path, cause }
    };
    if data.join("member").join("identity.json").exists() {
        return Ok(());
    }
    if seen.exists() {
        fs::remove_file(&seen).map_err(failed(&seen))?;
    }
    let _ = fs::remove_file(store.join("session"));
    let log = store.join("log");
    // The directory itself may be a disk of its own: it stays.
    let empty = fs::read_dir(&log).is_ok_and(|mut files| files.next().is_none());
    if log.exists() && !empty {
        let kept = store.join(format!("log.left-{now}"));
        fs::rename(&log, &kept).map_err(failed(&log))?;
        tracing::warn!(kept = %kept.display(), "a store without an identity lay here and was put aside");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_asks_again_with_the_key_it_asked_with_and_another_cluster_with_another() {
        let directory = std::env::temp_dir().join(format!("skein-joining-{}", std::process::id()));
        let first = joining_key(&directory, &[1; 32]).unwrap();
        assert_eq!(joining_key(&directory, &[1; 32]).unwrap(), first);
        assert_ne!(joining_key(&directory, &[2; 32]).unwrap(), first);
        joined(&directory);
        assert_ne!(joining_key(&directory, &[1; 32]).unwrap(), first);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn boots_are_counted_across_restarts() {
        let directory = std::env::temp_dir().join(format!("skein-boot-{}", std::process::id()));
        make_private_directory(&directory.join("member")).unwrap();
        assert_eq!(next_boot(&directory).unwrap(), 1);
        assert_eq!(next_boot(&directory).unwrap(), 2);
        assert!(Identity::load(&directory).unwrap().is_none());
        fs::remove_dir_all(&directory).unwrap();
    }
}
