//! Feeds: how a member that does not vote gets what the voters have committed, from any member that has applied it.
//!
//! Here is what two ends of a feed say to each other. `serve` decides what a feeder sends to whom, `follow` whom an observer asks,
//! when it leaves a feeder, and whether a batch fits its log. Only entries that the feeder has committed and applied are fed, so
//! nothing fed is ever taken back. Must not touch raft (`replica::feeding` does), and must not trust a place that the other end
//! names: each batch says what it follows. Bytes: docs/formats/raft-store.md; why: docs/decisions/0109.

pub(crate) mod follow;
pub(crate) mod growing;
pub(crate) mod recent;
mod sending;
pub(crate) mod serve;
#[cfg(test)]
mod tests;

use bincode::{Decode, Encode};
use raft::eraftpb::{Entry, EntryType};

use crate::codec::{self, CodecError};
use crate::ids::NodeId;
use crate::limits;

/// Whose raft messages are ours: the append that a fed batch becomes comes from here, and raft's answer goes here.
pub(crate) const FEED: u64 = u64::MAX;
/// Terms and indexes beyond this are nonsense that could overflow.
const SANE: u64 = u64::MAX / 4;

/// What a feed brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Scope {
    /// Everything.
    Full,
    /// What one node needs. Not served by this version.
    Node,
}

/// A place in the applied log, and the state's hash there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Place {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) hash: [u8; 32],
}

/// What the feeder knows of the cluster, with everything it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct News {
    /// Its term.
    pub(crate) term: u64,
    /// Who leads, 0 if nobody that it knows.
    pub(crate) leader: u64,
    /// Its commit index.
    pub(crate) commit: u64,
    /// How many feeds lie between it and a voter.
    pub(crate) hops: u32,
}

/// One fed entry; its index follows from its place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct FedEntry {
    pub(crate) kind: u8,
    pub(crate) term: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) context: Vec<u8>,
}

/// Entries in a row. Without entries and after index 0 it is only news.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Batch {
    pub(crate) news: News,
    /// Index and term of the entry before.
    pub(crate) after: (u64, u64),
    pub(crate) entries: Vec<FedEntry>,
    /// The state's hash after the last of them, if the feeder remembers it.
    pub(crate) hash: Option<[u8; 32]>,
}

/// A whole state (`crate::snapshot`) in one message, as no version sends it any more.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Picture {
    pub(crate) news: News,
    pub(crate) data: Vec<u8>,
}

/// A piece of a whole state (`crate::snapshot`), for who is too far behind.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Piece {
    pub(crate) news: News,
    /// Index and term of the last entry in the state.
    pub(crate) place: (u64, u64),
    /// From 0.
    pub(crate) number: u64,
    pub(crate) last: bool,
    /// CRC32C of the data.
    pub(crate) checksum: u32,
    pub(crate) data: Vec<u8>,
}

/// What whoever is sent a state in pieces wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Want {
    /// The next ones.
    More,
    /// What is missing before the one that came.
    Missing,
    /// Nothing: the disk has no room for it.
    Room,
}

/// Why there is no feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Reason {
    /// As many feeds as the feeder may have.
    Full,
    /// The feeder does not have what the asker has, or hears of no leader itself.
    Behind,
    /// The scope is not served by this version.
    ScopeNotServed,
    /// The state's hash differs at the subscriber's place.
    Diverged,
}

/// What the two ends of a feed say. The type is on the wire: it gains variants at its end and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Feed {
    /// "Feed me from this place on."
    Subscribe { scope: Scope, from: Place },
    /// Entries, or only news.
    Batch(Batch),
    /// Not sent, and refused.
    Snapshot(Picture),
    /// What is durable here. `fits` is false where a batch did not follow on that.
    Ack { index: u64, fits: bool },
    /// "Not by me": ask one of the others.
    Refused { reason: Reason, others: Vec<NodeId> },
    /// "I am fed by somebody else", or "no more from me".
    Leave,
    /// A read of the asker's, which the leader is to confirm.
    AskIndex { boot: u64, counter: u64 },
    /// Whoever has applied this index sees all that was acknowledged when it was asked.
    Index { boot: u64, counter: u64, index: u64 },
    /// Of a state to begin with.
    Piece(Piece),
    /// So many pieces of the state at this index were taken.
    Took { index: u64, pieces: u64, want: Want },
    /// "A read waits for this index": what reaches it is not to be gathered first.
    Hurry { index: u64 },
}

/// A feed's message, encoded.
pub(crate) fn encode(feed: &Feed) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(feed, &mut bytes);
    bytes
}

/// The message again. Never panics; what it claims is bounded by its bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Feed, CodecError> {
    match bytes.len() {
        ..=0x8000 => codec::decode::<Feed, { 1 << 20 }>(bytes),
        _ => codec::decode::<Feed, { 2 * limits::MESSAGE_BYTES }>(bytes),
    }
}

impl FedEntry {
    pub(crate) fn of(entry: &Entry) -> FedEntry {
        FedEntry {
            kind: u8::try_from(entry.entry_type).unwrap_or(u8::MAX),
            term: entry.term,
            data: entry.data.clone(),
            context: entry.context.clone(),
        }
    }

    fn into_entry(self, index: u64) -> Entry {
        Entry {
            entry_type: i32::from(self.kind),
            term: self.term,
            index,
            data: self.data,
            context: self.context,
            ..Entry::default()
        }
    }
}

impl News {
    fn is_sane(&self) -> bool {
        self.term > 0 && self.term < SANE && self.commit < SANE
    }
}

impl Piece {
    /// Whether its numbers make sense together, and its bytes are those that were sent.
    pub(crate) fn is_sound(&self) -> bool {
        let (index, term) = self.place;
        let placed = index > 0 && index <= self.news.commit && term > 0 && term <= self.news.term;
        self.news.is_sane() && placed && self.number < SANE && crc32c::crc32c(&self.data) == self.checksum
    }
}

impl Batch {
    /// Only news.
    pub(crate) fn is_news(&self) -> bool {
        self.entries.is_empty() && self.after.0 == 0
    }

    /// The last index in it.
    pub(crate) fn end(&self) -> u64 {
        self.after.0 + self.entries.len() as u64
    }

    /// Whether its numbers make sense together: what raft would trust without looking.
    pub(crate) fn is_sound(&self) -> bool {
        if !self.news.is_sane() || self.is_news() {
            return self.news.is_sane();
        }
        let (index, term) = self.after;
        let anchored = index > 0 && index < SANE && term > 0;
        let mut before = term;
        let in_order = self.entries.iter().all(|entry| {
            let after = std::mem::replace(&mut before, entry.term) <= entry.term;
            after && EntryType::from_i32(i32::from(entry.kind)).is_some()
        });
        anchored && in_order && before <= self.news.term && self.end() <= self.news.commit
    }
}
