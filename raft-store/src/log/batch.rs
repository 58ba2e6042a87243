//! Decides the bytes of a batch: header, checksums, chain, entries. Pure functions.
//! Must not decide what damage means (`recover`): here a batch is whole or it is not.

use prost::Message as _;
use raft::eraftpb::{Entry, HardState};
use sha2::{Digest, Sha256};

use super::identity::array;
use crate::disk::SECTOR;

pub(crate) const HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"BAT1");
/// A batch shares no sector of this length with another: one that is torn leaves those before it alone (docs/decisions/0124).
pub(crate) const ALIGN: usize = SECTOR;
/// In segments of version 1 batches began at multiples of this.
pub(crate) const ALIGN_1: usize = 8;
const HARD_STATE_BYTES: usize = 24;

/// The hash over all batches so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain(pub(crate) [u8; 32]);

/// What one round of raft wants durable. Always carries the whole hard state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Batch {
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
}

/// A batch's header, whose own checksum was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) length: usize,
    pub(crate) chain_before: Chain,
    body_checksum: u32,
    align: usize,
}

impl Header {
    /// Bytes from the header's begin to the next batch's.
    pub(crate) fn span(&self) -> usize {
        (HEADER_BYTES + self.length).next_multiple_of(self.align)
    }
}

impl Batch {
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        super::last_of(&self.entries)
    }

    pub(crate) fn encoded_length(&self) -> usize {
        let entries: usize = self.entries.iter().map(|entry| 4 + entry.encoded_len()).sum();
        (HEADER_BYTES + HARD_STATE_BYTES + 4 + entries).next_multiple_of(ALIGN)
    }

    /// The batch's bytes and the chain after it.
    pub(crate) fn encode(&self, sequence: u64, before: &Chain, salt: u32) -> (Vec<u8>, Chain) {
        let mut bytes = vec![0; HEADER_BYTES];
        self.encode_body(&mut bytes);
        let length = bytes.len() - HEADER_BYTES;
        let body_checksum = checksum(salt, &bytes[HEADER_BYTES..]);
        let after = before.then(sequence, &bytes[HEADER_BYTES..]);
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&body_checksum.to_le_bytes());
        bytes[24..56].copy_from_slice(&before.0);
        let header_checksum = checksum(salt, &bytes[8..HEADER_BYTES]);
        bytes[4..8].copy_from_slice(&header_checksum.to_le_bytes());
        bytes.resize((HEADER_BYTES + length).next_multiple_of(ALIGN), 0);
        (bytes, after)
    }

    fn encode_body(&self, bytes: &mut Vec<u8>) {
        let HardState { term, vote, commit } = self.hard_state;
        [term, vote, commit].iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&(entry.encoded_len() as u32).to_le_bytes());
            entry.encode(bytes).expect("a vector grows as far as an entry needs");
        }
    }

    fn decode_body(body: &[u8]) -> Option<Batch> {
        let number = |n: usize| u64::from_le_bytes(array(&body[8 * n..8 * n + 8]));
        let count = u32::from_le_bytes(array(body.get(HARD_STATE_BYTES..HARD_STATE_BYTES + 4)?));
        let hard_state = HardState { term: number(0), vote: number(1), commit: number(2) };
        let mut rest = &body[HARD_STATE_BYTES + 4..];
        let mut entries = Vec::new();
        for _ in 0..count {
            let length = u32::from_le_bytes(array(rest.get(..4)?)) as usize;
            let end = length.checked_add(4)?;
            entries.push(Entry::decode(rest.get(4..end)?).ok()?);
            rest = &rest[end..];
        }
        rest.is_empty().then_some(Batch { hard_state, entries })
    }
}

impl Chain {
    fn then(&self, sequence: u64, body: &[u8]) -> Chain {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update(sequence.to_le_bytes());
        hasher.update(body);
        Chain(hasher.finalize().into())
    }
}

/// The header at the begin of `bytes`, `None` if it is not whole. Batches begin at multiples of `align`.
pub(crate) fn decode_header(bytes: &[u8], salt: u32, align: usize) -> Option<Header> {
    let header = bytes.get(..HEADER_BYTES)?;
    let word = |at: usize| u32::from_le_bytes(array(&header[at..at + 4]));
    if word(0) != MAGIC || word(4) != checksum(salt, &header[8..]) {
        return None;
    }
    Some(Header {
        sequence: u64::from_le_bytes(array(&header[8..16])),
        length: word(16) as usize,
        body_checksum: word(20),
        chain_before: Chain(array(&header[24..56])),
        align,
    })
}

/// The batch whose header stands at the begin of `bytes`, and the chain after it; `None` if it is not whole.
pub(crate) fn decode(header: &Header, bytes: &[u8], salt: u32) -> Option<(Batch, Chain)> {
    let body = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length)?;
    let padding = bytes.get(HEADER_BYTES + header.length..header.span())?;
    if checksum(salt, body) != header.body_checksum || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    let chain = header.chain_before.then(header.sequence, body);
    Batch::decode_body(body).map(|batch| (batch, chain))
}

/// The same bytes with checksums that fit them (`crate::fuzzing`).
pub(crate) fn sealed(bytes: &[u8], salt: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let length = u32::from_le_bytes(array(&bytes[16..20])) as usize;
    if let Some(body) = length.checked_add(HEADER_BYTES).and_then(|end| bytes.get(HEADER_BYTES..end)) {
        let body_checksum = checksum(salt, body);
        bytes[20..24].copy_from_slice(&body_checksum.to_le_bytes());
    }
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    let header_checksum = checksum(salt, &bytes[8..HEADER_BYTES]);
    bytes[4..8].copy_from_slice(&header_checksum.to_le_bytes());
    bytes
}

/// The same, at its place in a log (`crate::fuzzing`).
pub(crate) fn resealed(bytes: &[u8], sequence: u64, before: &Chain, salt: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..56].copy_from_slice(&before.0);
    sealed(&bytes, salt)
}

fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(salt, bytes)
}
