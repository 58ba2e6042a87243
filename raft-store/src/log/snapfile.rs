//! Decides the bytes and the making of snapshot files: written aside, synced, read back, renamed.
//! Must not encode the state itself (`crate::snapshot`).

use super::LogError;
use super::identity::{Identity, PREFIX_BYTES, array};
use crate::disk::Disk;
use crate::snapshot;
use crate::state::State;

pub(crate) const MAGIC: &[u8; 8] = b"skeinsnp";
pub(crate) const TEMPORARY: &str = "snap.new";
const HEADER_BYTES: usize = PREFIX_BYTES + 8 + 4;

pub(crate) fn name(index: u64) -> String {
    format!("snap-{index:016x}")
}

/// The applied index in a snapshot's file name.
pub(crate) fn index(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("snap-")?, 16).ok()
}

/// Writes a snapshot. `sequence`: the last batch that was durable then; a log that ends before it has lost some.
pub(super) fn write<D: Disk>(
    disk: &mut D,
    identity: &Identity,
    state: &State,
    sequence: u64,
) -> Result<(), LogError> {
    let bytes = encode(identity, state, sequence);
    if disk.list()?.iter().any(|name| name == TEMPORARY) {
        disk.remove(TEMPORARY)?;
    }
    disk.create(TEMPORARY, 0)?;
    disk.write_at(TEMPORARY, 0, &bytes)?;
    if !planted!(SnapshotNotSynced) {
        disk.sync(TEMPORARY)?;
    }
    if disk.read(TEMPORARY)? != bytes {
        return Err(LogError::ReadBack { file: TEMPORARY.to_owned() });
    }
    disk.rename(TEMPORARY, &name(state.applied_index))?;
    Ok(disk.sync_dir()?)
}

/// A snapshot file's bytes.
pub(crate) fn encode(identity: &Identity, state: &State, sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    identity.write_prefix(MAGIC, &mut bytes);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&snapshot::encode(state));
    bytes
}

/// The batch sequence and the state's bytes, `None` if the header is not whole.
pub(super) fn split(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let header = bytes.get(..HEADER_BYTES)?;
    let (fields, checksum) = header.split_at(HEADER_BYTES - 4);
    (crc32c::crc32c(fields) == u32::from_le_bytes(array(checksum)))
        .then(|| (u64::from_le_bytes(array(&fields[PREFIX_BYTES..])), &bytes[HEADER_BYTES..]))
}
