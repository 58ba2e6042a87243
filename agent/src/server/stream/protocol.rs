//! What is said on a store stream, and its bytes: frames of a 32-bit length (big endian) and a `bincode` 2 value.
//!
//! Decides forms and limits. Types here never change, they gain variants. It must not act on anything.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use raft_store::{Entry, Key, Revision, Transaction, Value};

use crate::mesh::wire::{self, FrameError};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"skein-store/1";
/// Keys of a stream begin with this: objects of the API are changed by the API only, which admits and validates.
pub const KEYS: &[u8] = b"stream/";
/// Most entries in one answer.
pub const ENTRIES: usize = 10_000;

/// A question with a number of the asker's. Answers carry it and come in any order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Question {
    pub id: u64,
    pub ask: Ask,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// Do this exactly once.
    Transact(Transaction),
    /// What does the key hold?
    Get { key: Key, read: Read },
    /// Entries with `start <= key < end`, at most so many.
    Range { start: Key, end: Key, limit: u32, read: Read },
}

/// How new the state must be that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Read {
    /// It holds all that was acknowledged before the question.
    Linearizable,
    /// This machine's, which may be old.
    Local,
    /// This revision or a later one.
    AtLeast(Revision),
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Reply {
    pub id: u64,
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    Done {
        revision: Revision,
    },
    /// A compare did not hold; nothing was written.
    CompareFailed {
        index: u32,
        key: Key,
        actual: Option<Revision>,
    },
    Entry {
        revision: Revision,
        entry: Option<Held>,
    },
    Entries {
        revision: Revision,
        entries: Vec<Entry>,
        more: bool,
    },
    /// No leader confirmed it in time; nothing was written.
    NoLeader(String),
    /// It may or may not have happened.
    Unknown(String),
    Refused(String),
}

/// What a key holds, without the key: whoever asked knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held(pub Entry);

/// Value, create_revision, mod_revision.
impl Encode for Held {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.value().encode(encoder)?;
        self.0.create_revision().encode(encoder)?;
        self.0.mod_revision().encode(encoder)
    }
}

impl<C> Decode<C> for Held {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Held, DecodeError> {
        let value = Value::decode(decoder)?;
        let (create, modified) = (Revision::decode(decoder)?, Revision::decode(decoder)?);
        Ok(Held(Entry::new(&[], &value.0, create, modified)))
    }
}

bincode::impl_borrow_decode!(Held);

/// Appends a message with its length.
pub fn put_frame<T: Encode>(message: &T, bytes: &mut Vec<u8>) {
    let body = wire::encode(message);
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&body);
}

/// The first message of `bytes`, and how many bytes it took; none when it has not arrived whole.
pub fn take_frame<T: wire::Fuzzed>(bytes: &[u8]) -> Result<Option<(T, usize)>, FrameError> {
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > wire::FRAME_LIMIT {
        return Err(FrameError::TooLong(length));
    }
    match bytes.get(4..4 + length) {
        Some(body) => Ok(Some((wire::decode(body)?, 4 + length))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_whole_or_not_at_all_and_rubbish_is_refused() {
        let ask = Ask::Get { key: Key::from("stream/a"), read: Read::Linearizable };
        let question = Question { id: 7, ask };
        let mut bytes = Vec::new();
        put_frame(&question, &mut bytes);
        let whole = bytes.len();
        bytes.extend_from_slice(&[0, 0]);
        assert_eq!(take_frame::<Question>(&bytes).unwrap(), Some((question, whole)));
        for cut in 0..whole {
            assert_eq!(take_frame::<Question>(&bytes[..cut]).unwrap(), None);
        }
        assert!(take_frame::<Question>(&[0, 0, 0, 2, 0xff, 0xff]).is_err());
        assert!(take_frame::<Question>(&[0xff; 8]).is_err());
    }
}
