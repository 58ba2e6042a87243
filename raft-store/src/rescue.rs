//! A store out of what is left of another: a survivor's whole log, or a backup, as the begin of a new cluster epoch.
//!
//! Decides what a rescued state keeps (objects) and what it must not keep (members, sessions, history, a revision that anybody
//! has seen). Must not choose the survivor, and must not touch the disk that it reads: the old files stay as they are.
//!
//! A backup is: magic `SKNBAK01`, cluster (16 bytes), length of the snapshot (8 bytes, little-endian), the snapshot's bytes
//! (docs/formats/raft-store.md), CRC32C of all before (4 bytes, little-endian).

use std::sync::Arc;

use raft::eraftpb::EntryType;
use sha2::{Digest, Sha256};

use crate::codec;
use crate::command::{Outcome, Transaction};
use crate::config::Config;
use crate::disk::Disk;
use crate::ids::{ClusterId, Revision};
use crate::log::identity::{Identity, array};
use crate::log::recover::{self, OpenError};
use crate::members::Members;
use crate::replica::Replica;
use crate::snapshot;
use crate::state::State;
use crate::view::View;

#[cfg(test)]
mod tests;

/// How far the revision jumps, so that no client has seen what comes after: a cluster makes fewer in a day.
pub const REVISION_JUMP: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"SKNBAK01";
const HEADER_BYTES: usize = 8 + 16 + 8;
const CHECKSUM_BYTES: usize = 4;

/// A store cannot be rescued. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The survivor's files.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The survivor never got a state.
    #[error(
        "this machine's store holds no state yet: it had joined, and nothing had reached it. Take another survivor"
    )]
    Nothing,
    /// An entry cannot be applied.
    #[error("log entry {index} cannot be applied: {source}")]
    Entry {
        /// The entry.
        index: u64,
        /// What is wrong.
        source: codec::CodecError,
    },
    /// Not a backup.
    #[error("this is no backup of skein: it does not begin like one")]
    NotABackup,
    /// Cut short, or changed.
    #[error("the backup is cut short or damaged ({0}); take another one")]
    Damaged(String),
    /// The changes that a rescue begins with do not fit.
    #[error("the state cannot be changed as a new cluster needs it: {0}")]
    Changes(String),
}

/// A state that lies still: of a survivor's disk, or of a backup.
pub struct Rescued {
    state: State,
    confirmed: u64,
}

impl Rescued {
    /// Reads a stopped replica's disk: the snapshot, and the whole log after it, with the tail that was not confirmed. Of the
    /// disk only goes what was interrupted.
    pub fn read<D: Disk>(disk: &mut D, config: &Config) -> Result<Rescued, RescueError> {
        let identity = Identity { cluster: config.cluster, node: config.id };
        let mut found = recover::recover(disk, &identity)?;
        let mut state = found.state.take().ok_or(RescueError::Nothing)?;
        for entry in found.entries.from(0) {
            let is_command = entry.entry_type == EntryType::EntryNormal as i32 && !entry.data.is_empty();
            if is_command {
                let command = codec::decode_command(&entry.data)
                    .map_err(|source| RescueError::Entry { index: entry.index, source })?;
                state.apply(entry.index, entry.term, command, &entry.data);
            } else {
                state.mark_applied(entry.index, entry.term, &entry.data);
            }
        }
        Ok(Rescued { state, confirmed: found.hard_state.commit })
    }

    /// Reads a backup, and which cluster it is of.
    pub fn from_backup(bytes: &[u8]) -> Result<(Rescued, ClusterId), RescueError> {
        if !bytes.starts_with(MAGIC) {
            return Err(RescueError::NotABackup);
        }
        let damaged = |what: &str| RescueError::Damaged(what.to_owned());
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged("no header"))?;
        let length = u64::from_le_bytes(array(&header[24..]));
        if rest.len() as u64 != length.saturating_add(CHECKSUM_BYTES as u64) {
            return Err(damaged("its length is wrong"));
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        if crc32c::crc32c(content).to_le_bytes() != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        let body = &content[HEADER_BYTES..];
        let state = snapshot::decode(body).map_err(|error| damaged(&error.to_string()))?;
        let confirmed = state.applied_index;
        Ok((Rescued { state, confirmed }, ClusterId(array(&header[8..24]))))
    }

    /// What it holds.
    pub fn view(&self) -> View {
        View::new(&self.state)
    }

    /// The last index that was known to be confirmed, and index and term of the last one kept.
    pub fn extent(&self) -> (u64, (u64, u64)) {
        (self.confirmed, (self.state.applied_index, self.state.applied_term))
    }

    /// Makes a new store out of it: one voter, no sessions, no history, the revision far ahead, then `changes` as its first
    /// transaction. The disk must hold no store; `config` names the new cluster epoch's id.
    pub fn begin_anew<D: Disk>(
        mut self,
        disk: D,
        config: Config,
        changes: &Transaction,
    ) -> Result<Replica<D>, RescueError> {
        let (cluster, supported) = (self.state.version, config.supported);
        if !supported.holds(cluster) {
            return Err(OpenError::ClusterVersion { cluster, supported }.into());
        }
        let state = &mut self.state;
        state.members = Arc::new(Members::only(config.id));
        state.sessions = imbl::OrdMap::new();
        state.revision = Revision(state.revision.0.saturating_add(REVISION_JUMP));
        state.history.forget(state.revision);
        let outcome = state.transact(changes);
        if !matches!(outcome, Outcome::Applied { .. }) {
            return Err(RescueError::Changes(format!("{outcome:?}")));
        }
        state.history.forget(state.revision);
        state.applied_term = state.applied_term.max(1);
        state.applied_index += 1;
        let mut hasher = Sha256::new();
        hasher.update(state.hash);
        hasher.update(config.cluster.0);
        hasher.update(state.revision.0.to_le_bytes());
        state.hash = hasher.finalize().into();
        Ok(Replica::create_from(disk, config, self.state)?)
    }
}

/// A backup of a view. It is as big as the state; the store goes on meanwhile.
pub fn backup(view: &View, cluster: ClusterId) -> Vec<u8> {
    let body = snapshot::encode(view.state());
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&cluster.0);
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&body);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Gives a backup's bytes the length and the checksums that fit them (`crate::fuzzing`).
pub(crate) fn seal(bytes: &mut [u8]) {
    let Some(length) = bytes.len().checked_sub(HEADER_BYTES + CHECKSUM_BYTES) else { return };
    bytes[24..HEADER_BYTES].copy_from_slice(&(length as u64).to_le_bytes());
    if let Some(inner) = length.checked_sub(CHECKSUM_BYTES) {
        let end = HEADER_BYTES + inner;
        let checksum = crc32c::crc32c(&bytes[HEADER_BYTES..end]);
        bytes[end..end + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }
    let end = bytes.len() - CHECKSUM_BYTES;
    let checksum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
}

/// The id under which the store of a cluster's `epoch` writes and speaks. The first epoch's is the cluster's own; members of
/// different epochs refuse each other's messages and files as another cluster's.
pub fn epoch_id(cluster: ClusterId, epoch: u64) -> ClusterId {
    if epoch == 0 {
        return cluster;
    }
    let mut hasher = Sha256::new();
    hasher.update(b"skein cluster epoch");
    hasher.update(cluster.0);
    hasher.update(epoch.to_le_bytes());
    ClusterId(array(&hasher.finalize()))
}
