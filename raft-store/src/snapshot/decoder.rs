//! Makes a state of bytes that come piece by piece, cut anywhere.
//!
//! Decides how far the bytes that are there reach, and whether all of them together are a state. What it takes of memory grows with
//! what came, whatever is announced. Must not be asked for the state before the end: what is half there is nothing.

use std::sync::Arc;

use super::{CHECKSUM_BYTES, FIRST_FORM, Head, SnapshotError, WITH_VERSION};
use crate::codec::{self, CodecError, Part};
use crate::command::Key;
use crate::ids::SessionId;
use crate::state::content::Content;
use crate::state::history::History;
use crate::state::objects::Objects;
use crate::state::sessions::{Session, SessionRecord};
use crate::state::{Change, Entry, State};
use crate::version::{self, Version};

/// The lists of a state, in their order.
#[derive(Clone, Copy)]
enum List {
    Objects,
    History,
    Sessions,
    Ttls,
}

impl List {
    fn next(self) -> Place {
        match self {
            List::Objects => Place::Length(List::History),
            List::History => Place::Length(List::Sessions),
            List::Sessions => Place::Length(List::Ttls),
            List::Ttls => Place::Over,
        }
    }
}

/// What comes next.
#[derive(Clone, Copy)]
enum Place {
    Form,
    Version,
    Head,
    Length(List),
    /// So many more of this list.
    Items(List, usize),
    Over,
}

/// The objects of a state that grows, in their order and with their sum.
#[derive(Default)]
pub(super) struct Summed {
    ordered: Objects,
    content: Content,
}

impl Summed {
    pub(super) fn add(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.content.put(&entry);
            if let Some(twice) = self.ordered.insert(entry) {
                self.content.take(&twice);
            }
        }
    }
}

/// A state that grows.
pub(crate) struct Decoder {
    state: State,
    objects: Summed,
    /// Not among the objects yet.
    fresh: Vec<Entry>,
    place: Place,
    /// Not decoded yet: the begin of something longer, and the last bytes, which may be the checksum.
    buffer: Vec<u8>,
    /// How long the buffer must be before it is worth another look.
    wanted: usize,
    /// Of all bytes before the buffer.
    checksum: u32,
    trailing: usize,
    error: Option<CodecError>,
}

impl Decoder {
    pub(crate) fn new() -> Decoder {
        Decoder {
            state: State::default(),
            objects: Summed::default(),
            fresh: Vec::new(),
            place: Place::Form,
            buffer: Vec::new(),
            wanted: 0,
            checksum: 0,
            trailing: 0,
            error: None,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.parse(bytes);
        self.objects.add(self.fresh.drain(..));
    }

    /// Takes the next bytes and gives out the objects in them: whoever asks adds them all up for `finish_with`.
    pub(super) fn take_apart(&mut self, bytes: &[u8]) -> Vec<Entry> {
        self.parse(bytes);
        std::mem::take(&mut self.fresh)
    }

    fn parse(&mut self, bytes: &[u8]) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(bytes);
        let end = buffer.len().saturating_sub(CHECKSUM_BYTES);
        let used = if buffer.len() < self.wanted { 0 } else { self.take_parts(&buffer[..end]) };
        self.checksum = crc32c::crc32c_append(self.checksum, &buffer[..used]);
        buffer.drain(..used);
        self.buffer = buffer;
    }

    /// What makes a state of these bytes impossible.
    pub(crate) fn error(&self) -> Option<&CodecError> {
        self.error.as_ref()
    }

    /// The state, once all bytes were taken apart, of the objects that were in them.
    pub(super) fn finish_with(mut self, objects: Summed) -> Result<State, SnapshotError> {
        self.objects = objects;
        self.finish()
    }

    /// The state, once all bytes were taken.
    pub(crate) fn finish(mut self) -> Result<State, SnapshotError> {
        let length = self.buffer.len().checked_sub(CHECKSUM_BYTES).ok_or(SnapshotError::Checksum)?;
        let (rest, checksum) = self.buffer.split_at(length);
        // A wrong checksum says more than what was made of wrong bytes.
        if crc32c::crc32c_append(self.checksum, rest).to_le_bytes() != *checksum {
            return Err(SnapshotError::Checksum);
        }
        if let Some(error) = self.error.take() {
            return Err(error.into());
        }
        match self.place {
            Place::Over if self.trailing > 0 => Err(CodecError::Trailing(self.trailing).into()),
            Place::Over if self.state.members.is_sound() => {
                Ok(State { objects: self.objects.ordered, content: self.objects.content, ..self.state })
            }
            Place::Over => Err(SnapshotError::Members),
            _ => Err(CodecError::Malformed("UnexpectedEnd: it ends before the state does".into()).into()),
        }
    }

    /// Takes all that is whole; how much that was.
    fn take_parts(&mut self, bytes: &[u8]) -> usize {
        // What follows the state's end is never too short to be looked at.
        self.wanted = 0;
        let mut at = 0;
        while self.error.is_none() {
            match self.part(&bytes[at..]) {
                Ok(Part::Whole((), used)) if used > 0 => at += used,
                Ok(Part::Whole((), _)) if matches!(self.place, Place::Over) => {
                    self.trailing += bytes.len() - at;
                    return bytes.len();
                }
                Ok(Part::Whole((), _)) => {}
                Ok(Part::Short(missing)) => {
                    self.wanted = bytes.len() - at + missing + CHECKSUM_BYTES;
                    return at;
                }
                Err(error) => self.error = Some(error),
            }
        }
        bytes.len()
    }

    /// One part.
    fn part(&mut self, bytes: &[u8]) -> Result<Part<()>, CodecError> {
        Ok(match self.place {
            Place::Form => codec::part::<u8>(bytes)?.try_map(|form| self.begin(form))?,
            Place::Version => codec::part::<Version>(bytes)?.map(|version| {
                self.state.version = version;
                self.place = Place::Head;
            }),
            Place::Head => codec::part::<Head>(bytes)?.map(|head| self.head(head)),
            Place::Length(list) => {
                codec::part::<usize>(bytes)?.map(|length| self.place = Place::Items(list, length))
            }
            Place::Items(list, 0) => {
                self.place = list.next();
                Part::Whole((), 0)
            }
            Place::Items(list, left) => {
                let part = self.item(list, bytes)?;
                if let Part::Whole(..) = part {
                    self.place = Place::Items(list, left - 1);
                }
                part
            }
            Place::Over => Part::Whole((), 0),
        })
    }

    fn begin(&mut self, form: u8) -> Result<(), CodecError> {
        self.place = match form {
            FIRST_FORM => {
                self.state.version = version::FIRST;
                Place::Head
            }
            WITH_VERSION => Place::Version,
            form => return Err(CodecError::Version(form)),
        };
        Ok(())
    }

    fn head(&mut self, head: Head) {
        let version = self.state.version;
        self.state = State {
            members: Arc::new(head.members),
            version,
            history: History::from_parts(Vec::new(), head.floor),
            revision: head.revision,
            epoch: head.epoch,
            applied_index: head.applied_index,
            applied_term: head.applied_term,
            hash: head.hash,
            ..State::default()
        };
        self.place = Place::Length(List::Objects);
    }

    fn item(&mut self, list: List, bytes: &[u8]) -> Result<Part<()>, CodecError> {
        let state = &mut self.state;
        Ok(match list {
            List::Objects => codec::part::<Entry>(bytes)?.map(|entry| self.fresh.push(entry)),
            List::History => codec::part::<Change>(bytes)?.map(|change| state.history.push(change)),
            List::Sessions => codec::part::<(SessionId, SessionRecord)>(bytes)?.map(|(id, record)| {
                state.sessions.insert(id, Session::from_record(record));
            }),
            List::Ttls => codec::part::<(Key, u32)>(bytes)?.map(|(key, seconds)| {
                state.ttls.insert(key, seconds);
            }),
        })
    }
}
