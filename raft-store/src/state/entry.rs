//! What a key holds, and a change of it: one allocation for a key, its value and its revisions, shared by the objects, the history and
//! every view.
//!
//! Decides how both lie in memory, and how they become bytes in snapshots and answers (docs/formats/raft-store.md). Must not decide which
//! revisions a key gets (`apply`).

use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

use super::sys::Shared;
use crate::codec;
use crate::ids::Revision;

/// The key's length in two bytes, then both revisions in six each. Whether they are the same makes no difference to the length: a key that is
/// changed for the first time fits where another like it was.
const SHORT: usize = 14;
/// Where the key has 65,535 bytes or more, or a revision is 2^48 or more: `IS_LONG` for the key's length, then that in four bytes and both revisions in eight each.
const LONG: usize = 22;
const IS_LONG: u16 = u16::MAX;

/// A key and what it holds. Cloning copies a pointer.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry(Shared);

impl Entry {
    /// `key` holds `value`, was made at `create` and changed last at `modified`.
    pub fn new(key: &[u8], value: &[u8], create: Revision, modified: Revision) -> Entry {
        let length = u32::try_from(key.len()).expect("a key is far shorter than 4 GiB");
        let short =
            u16::try_from(length).ok().filter(|short| *short < IS_LONG && (create.0 | modified.0) >> 48 == 0);
        let header = if short.is_some() { SHORT } else { LONG };
        Entry(Shared::new(header + key.len() + value.len(), |bytes| {
            let (in_header, rest) = bytes.split_at_mut(header);
            in_header[..2].copy_from_slice(&short.unwrap_or(IS_LONG).to_le_bytes());
            if short.is_some() {
                in_header[2..8].copy_from_slice(&create.0.to_le_bytes()[..6]);
                in_header[8..].copy_from_slice(&modified.0.to_le_bytes()[..6]);
            } else {
                in_header[2..6].copy_from_slice(&length.to_le_bytes());
                in_header[6..14].copy_from_slice(&create.0.to_le_bytes());
                in_header[14..].copy_from_slice(&modified.0.to_le_bytes());
            }
            let (in_key, in_value) = rest.split_at_mut(key.len());
            in_key.copy_from_slice(key);
            in_value.copy_from_slice(value);
        }))
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        let (header, key) = self.lengths();
        &self.0[header..header + key]
    }

    /// The bytes that it holds.
    pub fn value(&self) -> &[u8] {
        let (header, key) = self.lengths();
        &self.0[header + key..]
    }

    /// The revision that made the key (again, if it was deleted before).
    pub fn create_revision(&self) -> Revision {
        Revision(if self.is_long() { self.number::<8>(6) } else { self.number::<6>(2) })
    }

    /// The revision that changed it last.
    pub fn mod_revision(&self) -> Revision {
        Revision(if self.is_long() { self.number::<8>(14) } else { self.number::<6>(8) })
    }

    /// Of the header and of the key.
    fn lengths(&self) -> (usize, usize) {
        match self.number::<2>(0) {
            long if long == u64::from(IS_LONG) => (LONG, self.number::<4>(2) as usize),
            short => (SHORT, short as usize),
        }
    }

    fn is_long(&self) -> bool {
        self.number::<2>(0) == u64::from(IS_LONG)
    }

    /// The number in so many bytes from there on.
    fn number<const BYTES: usize>(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..BYTES].copy_from_slice(&self.0[at..at + BYTES]);
        u64::from_le_bytes(bytes)
    }

    #[cfg(test)]
    pub(crate) fn owners(&self) -> u32 {
        self.0.owners()
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("key", &String::from_utf8_lossy(self.key()))
            .field("value", &String::from_utf8_lossy(self.value()))
            .field("create_revision", &self.create_revision())
            .field("mod_revision", &self.mod_revision())
            .finish()
    }
}

/// As an object of a state: its key, then what it holds.
impl Encode for Entry {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.key().encode(encoder)?;
        Held(self).encode(encoder)
    }
}

impl<C> Decode<C> for Entry {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Entry, DecodeError> {
        let key = codec::shared_bytes(decoder)?;
        decode_held(&key, decoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for Entry {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Entry, DecodeError> {
        let key = <&[u8]>::borrow_decode(decoder)?;
        borrow_held(key, decoder)
    }
}

/// An entry beside its key: value, create_revision, mod_revision.
struct Held<'a>(&'a Entry);

impl Encode for Held<'_> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.value().encode(encoder)?;
        self.0.create_revision().encode(encoder)?;
        self.0.mod_revision().encode(encoder)
    }
}

fn decode_held<D: Decoder>(key: &[u8], decoder: &mut D) -> Result<Entry, DecodeError> {
    let value = codec::shared_bytes(decoder)?;
    Ok(Entry::new(key, &value, Revision::decode(decoder)?, Revision::decode(decoder)?))
}

fn borrow_held<'de, D: BorrowDecoder<'de>>(key: &[u8], decoder: &mut D) -> Result<Entry, DecodeError> {
    let value = <&[u8]>::borrow_decode(decoder)?;
    Ok(Entry::new(key, value, Revision::decode(decoder)?, Revision::decode(decoder)?))
}

/// One key's change at one revision, as watchers see it. One of both entries is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The transaction's revision; several changes may share it.
    pub revision: Revision,
    /// What it held before, `None` if it was made.
    pub before: Option<Entry>,
    /// What it holds after, `None` if it was deleted.
    pub after: Option<Entry>,
}

impl Change {
    /// The key.
    pub fn key(&self) -> &[u8] {
        self.after.as_ref().or(self.before.as_ref()).map_or(&[], Entry::key)
    }
}

/// Revision, key, then both entries without it.
impl Encode for Change {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.revision.encode(encoder)?;
        self.key().encode(encoder)?;
        self.before.as_ref().map(Held).encode(encoder)?;
        self.after.as_ref().map(Held).encode(encoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for Change {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Change, DecodeError> {
        let revision = Revision::decode(decoder)?;
        let key = <&[u8]>::borrow_decode(decoder)?;
        let mut entry = || match u8::decode(decoder)? {
            0 => Ok(None),
            1 => borrow_held(key, decoder).map(Some),
            _ => Err(DecodeError::Other("an option that is neither none nor some")),
        };
        let (before, after) = (entry()?, entry()?);
        match (&before, &after) {
            (None, None) => Err(DecodeError::Other("a change of nothing into nothing")),
            _ => Ok(Change { revision, before, after }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_it_was_made_of_and_differs_in_each_part() {
        let entry = |key: &str, value: &str, create, modified| {
            Entry::new(key.as_bytes(), value.as_bytes(), Revision(create), Revision(modified))
        };
        let key_of = |length| "k".repeat(length);
        for (key, value, create, modified) in [
            ("k", "value", 3, 3),
            ("key", "", 3, u64::MAX),
            ("", "v", 0, 1 << 40),
            ("k", "v", 1, (1 << 48) - 1),
            ("k", "v", 1, 1 << 48),
            ("k", "v", 1 << 48, 2),
            (&key_of(65_534), "v", 1, 2),
            (&key_of(65_535), "v", 1, 2),
            (&key_of(65_536), "v", 1, 2),
        ] {
            let made = entry(key, value, create, modified);
            assert_eq!((made.key(), made.value()), (key.as_bytes(), value.as_bytes()));
            assert_eq!((made.create_revision(), made.mod_revision()), (Revision(create), Revision(modified)));
            assert_eq!(made, entry(key, value, create, modified));
            for other in [
                entry("other", value, create, modified),
                entry(key, "other", create, modified),
                entry(key, value, create + 1, modified),
                entry(key, value, create, modified - 1),
            ] {
                assert_ne!(made, other);
            }
        }
        // The border between both is no part of what they hold together.
        assert_ne!(entry("ab", "c", 1, 1), entry("a", "bc", 1, 1));
    }
}
