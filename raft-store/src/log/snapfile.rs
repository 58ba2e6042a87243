//! Decides the bytes and the making of snapshot files: written aside, synced, read back, renamed, all of it step by step.
//! Must not encode the state itself (`crate::snapshot`), nor keep a replica from its work: a step is short, however big the state.

use super::LogError;
use super::identity::{Identity, Kind, PREFIX_BYTES, array};
use crate::disk::{Disk, DiskError, DiskReader};
use crate::snapshot::{self, Encoder, SnapshotError};
use crate::state::State;

pub(crate) const KIND: Kind = Kind { magic: b"skeinsnp", version: 1 };
pub(crate) const TEMPORARY: &str = "snap.new";
/// What was left of one that was being written, on its way out.
pub(crate) const OLD: &str = "snap.old";
/// Bytes that are taken away at once. A gigabyte would hold the replica up for most of a second.
pub(crate) const AT_ONCE: u64 = 16 << 20;
/// Bytes of snapshot for each byte of log that is written meanwhile, …
const PACE: usize = 16;
/// … and how many times longer than usual a step may be. Reading back, from the page cache as a rule, takes such steps always.
const LONGEST: usize = 16;
/// Bytes that are in memory for it at a time: what is as long as a long step once stays the process's for ever.
const AT_A_TIME: usize = 1 << 20;
pub(super) const HEADER_BYTES: usize = PREFIX_BYTES + 8 + 4;
pub(crate) fn name(index: u64) -> String {
    format!("snap-{index:016x}")
}

/// The applied index in a snapshot's file name.
pub(crate) fn index(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("snap-")?, 16).ok()
}

/// A snapshot on its way to the disk.
pub(super) struct Writing {
    encoder: Encoder,
    /// The last entry in it.
    pub(super) index: u64,
    /// Bytes of log at its begin.
    pub(super) log_bytes: u64,
    /// And at the last step.
    seen: u64,
    /// Bytes of a usual step.
    least: usize,
    /// Written so far.
    length: u64,
    checksum: u32,
    /// Once all is written: read back so far, with its checksum.
    read_back: Option<(u64, u32)>,
}

impl Writing {
    /// Begins one. `sequence`: the last batch that is durable now; a log that ends before it has lost some.
    pub(super) fn begin<D: Disk>(
        disk: &mut D,
        identity: &Identity,
        state: &State,
        sequence: u64,
        log_bytes: u64,
    ) -> Result<Writing, DiskError> {
        if disk.list()?.iter().any(|name| name == TEMPORARY) {
            disk.remove(TEMPORARY)?;
        }
        disk.create(TEMPORARY, 0)?;
        let header = header(identity, sequence);
        disk.write_at(TEMPORARY, 0, &header)?;
        Ok(Writing {
            encoder: Encoder::new(state.clone()),
            index: state.applied_index,
            log_bytes,
            seen: log_bytes,
            least: 0,
            length: header.len() as u64,
            checksum: crc32c::crc32c(&header),
            read_back: None,
        })
    }

    /// How much the next step takes, of `least` bytes or more: the log that grows meanwhile, which a start has to read, is to stay small
    /// against the snapshot.
    pub(super) fn pace(&mut self, least: usize, log_bytes: u64) -> usize {
        self.least = least;
        let grown = log_bytes.saturating_sub(std::mem::replace(&mut self.seen, log_bytes));
        let wanted = usize::try_from(grown).unwrap_or(usize::MAX).saturating_mul(PACE);
        wanted.clamp(least, least.saturating_mul(LONGEST))
    }

    /// Writes and syncs, or reads back, so many bytes; the snapshot's length once it is there.
    pub(super) fn step<D: Disk>(&mut self, disk: &mut D, bytes: usize) -> Result<Option<u64>, LogError> {
        match self.read_back {
            None => {
                let mut left = bytes;
                while left > 0 {
                    let about = left.min(AT_A_TIME);
                    let piece = self.encoder.next(about);
                    disk.write_at(TEMPORARY, self.length, &piece)?;
                    self.length += piece.len() as u64;
                    self.checksum = crc32c::crc32c_append(self.checksum, &piece);
                    left = left.saturating_sub(piece.len());
                    if piece.len() < about {
                        self.read_back = Some((0, 0));
                        break;
                    }
                }
                if !planted!(SnapshotNotSynced) {
                    disk.sync(TEMPORARY)?;
                }
                // A small one is whole in one step.
                if self.length <= bytes as u64 { self.step(disk, bytes) } else { Ok(None) }
            }
            Some((mut at, mut checksum)) => {
                // Reading needs no sync.
                let rest = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
                let mut left = bytes.max(LONGEST * self.least).min(rest);
                let mut piece = vec![0; left.min(AT_A_TIME)];
                let mut ends = false;
                while left > 0 && !ends {
                    let wanted = left.min(piece.len());
                    let count = disk.read_at(TEMPORARY, at, &mut piece[..wanted])?;
                    checksum = crc32c::crc32c_append(checksum, &piece[..count]);
                    (at, left, ends) = (at + count as u64, left - count, count == 0);
                }
                self.read_back = Some((at, checksum));
                if at < self.length && !ends {
                    return Ok(None);
                }
                if (at, checksum) != (self.length, self.checksum) {
                    return Err(LogError::ReadBack { file: TEMPORARY.to_owned() });
                }
                disk.rename(TEMPORARY, &name(self.index))?;
                disk.sync_dir()?;
                Ok(Some(self.length))
            }
        }
    }
}

pub(super) fn header(identity: &Identity, sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    identity.write_prefix(KIND, &mut bytes);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// A snapshot file's bytes.
pub(crate) fn encode(identity: &Identity, state: &State, sequence: u64) -> Vec<u8> {
    let mut bytes = header(identity, sequence);
    bytes.extend_from_slice(&snapshot::encode(state));
    bytes
}

/// The batch sequence in a snapshot file's header, `None` if that is not whole.
pub(super) fn sequence(header: &[u8]) -> Option<u64> {
    let (fields, checksum) = header.get(..HEADER_BYTES)?.split_at(HEADER_BYTES - 4);
    (crc32c::crc32c(fields) == u32::from_le_bytes(array(checksum)))
        .then(|| u64::from_le_bytes(array(&fields[PREFIX_BYTES..])))
}

/// The state in a snapshot file.
pub(super) fn read<D: Disk>(disk: &D, name: &str) -> Result<Result<State, SnapshotError>, DiskError> {
    let length = disk.length(name)?.saturating_sub(HEADER_BYTES as u64);
    Ok(snapshot::read(DiskReader::new(disk, name, HEADER_BYTES as u64), length))
}
