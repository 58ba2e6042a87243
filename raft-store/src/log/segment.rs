//! Decides the layout of a segment's first sector. Must not read batches (`batch`) nor judge damage (`recover`).

use super::batch::{ALIGN, ALIGN_1, Chain};
use super::identity::{Identity, Kind, PREFIX_BYTES, array};
use crate::disk::SECTOR;

/// Bytes before the first batch: one sector.
pub(crate) const HEADER_BYTES: usize = SECTOR;
/// Version 1 is read, and never written: its batches begin elsewhere.
pub(crate) const KIND: Kind = Kind { magic: b"skeinlog", version: 2 };
/// The last segment of the start before, while it is written anew.
pub(crate) const TEMPORARY: &str = "log.new";
const FIELDS_BYTES: usize = PREFIX_BYTES + 6 * 8 + 32;

/// One log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Counts the segments of this disk; the file's name.
    pub(crate) ordinal: u64,
    /// The sequence of its first batch.
    pub(crate) first_sequence: u64,
    /// Which start of the log made it.
    pub(crate) boot: u64,
    /// Index and term of the last entry before it.
    pub(crate) base: (u64, u64),
    /// The chain before its first batch.
    pub(crate) chain: Chain,
    /// Mixed into every checksum in it, so that no stored value can pass for a batch.
    pub(crate) salt: u32,
    /// Its batches begin at multiples of this.
    pub(crate) align: usize,
    /// The file's length.
    pub(crate) length: u64,
}

pub(crate) fn name(ordinal: u64) -> String {
    format!("log-{ordinal:016x}")
}

/// The ordinal in a segment's file name.
pub(crate) fn ordinal(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("log-")?, 16).ok()
}

/// Gives a file's header the checksum that fits it (`crate::fuzzing`).
pub(crate) fn seal(bytes: &mut [u8]) {
    if bytes.len() >= HEADER_BYTES {
        let checksum = crc32c::crc32c(&bytes[..FIELDS_BYTES]);
        bytes[FIELDS_BYTES..FIELDS_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

impl Segment {
    pub(crate) fn name(&self) -> String {
        name(self.ordinal)
    }

    /// Whether a snapshot at this index covers all segments before this one.
    pub(crate) fn begins_within(&self, snapshot: u64) -> bool {
        self.base.0 <= snapshot
    }

    pub(crate) fn encode_header(&self, identity: &Identity) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        identity.write_prefix(KIND, &mut bytes);
        let numbers =
            [self.ordinal, self.first_sequence, self.boot, self.base.0, self.base.1, u64::from(self.salt)];
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(&self.chain.0);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }

    /// The header of a file's bytes, `None` if it is not whole. Whose file it is, the caller checks.
    pub(crate) fn decode_header(bytes: &[u8]) -> Option<Segment> {
        let header = bytes.get(..HEADER_BYTES)?;
        let (fields, rest) = header.split_at(FIELDS_BYTES);
        let (checksum, padding) = rest.split_at(4);
        if crc32c::crc32c(fields) != u32::from_le_bytes(array(checksum))
            || padding.iter().any(|byte| *byte != 0)
        {
            return None;
        }
        let number = |n: usize| u64::from_le_bytes(array(&fields[PREFIX_BYTES + 8 * n..]));
        Some(Segment {
            ordinal: number(0),
            first_sequence: number(1),
            boot: number(2),
            base: (number(3), number(4)),
            salt: number(5) as u32,
            chain: Chain(array(&fields[PREFIX_BYTES + 48..])),
            align: if fields[8..12] == 1u32.to_le_bytes() { ALIGN_1 } else { ALIGN },
            length: bytes.len() as u64,
        })
    }
}
