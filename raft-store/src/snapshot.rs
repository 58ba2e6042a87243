//! Decides how a whole state becomes bytes, for disk and wire alike: version, body, checksum. Both ways go piece by piece, so that a
//! state of a gigabyte needs no second one beside it.
//! Must not touch files (`log::snapfile`) nor messages (`wire`).

mod decoder;

use std::io::{self, Read};
use std::ops::Bound;
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::command::Key;
use crate::ids::{Epoch, Revision, SessionId};
use crate::limits;
use crate::members::Members;
use crate::state::sessions::SessionRecord;
use crate::state::{Entry, State};
use crate::version;

pub(crate) use decoder::Decoder;
use decoder::Summed;

/// Of a cluster at its first version.
const FIRST_FORM: u8 = 2;
/// It names the cluster's version.
const WITH_VERSION: u8 = 3;
const CHECKSUM_BYTES: usize = 4;
/// Bytes that are read at once.
const READ: usize = 256 << 10;
/// A state from this length on is read on one thread, decoded on the caller's (whose heap its objects are to be in) and put in order on
/// another.
pub(crate) const APART: u64 = if cfg!(test) { 1 << 10 } else { 16 << 20 };
/// Pieces that wait between two of these threads.
const WAITING: usize = 4;

/// A snapshot that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Shorter than a checksum, or the checksum is wrong.
    #[error("the snapshot's checksum is wrong")]
    Checksum,
    /// The body is not a state.
    #[error("the snapshot's body is unusable: {0}")]
    Codec(#[from] CodecError),
    /// It names members that cannot be.
    #[error("the snapshot's members make no sense")]
    Members,
    /// It cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Read(String),
}

/// What comes before the lists.
#[derive(Encode, Decode)]
struct Head {
    applied_index: u64,
    applied_term: u64,
    members: Members,
    revision: Revision,
    floor: Revision,
    epoch: Epoch,
    hash: [u8; 32],
}

/// Where an encoder is.
enum Place {
    Head,
    /// After this entry.
    Objects(Option<Entry>),
    /// After so many changes.
    History(usize),
    /// After this session.
    Sessions(Option<SessionId>),
    /// After this key.
    Ttls(Option<Key>),
    Over,
}

/// A state on its way to bytes: version, body, CRC32C of both.
pub(crate) struct Encoder {
    state: State,
    place: Place,
    ended: bool,
    checksum: u32,
}

impl Encoder {
    pub(crate) fn new(state: State) -> Encoder {
        Encoder { state, place: Place::Head, ended: false, checksum: 0 }
    }

    /// The next piece, of about so many bytes; an empty one is the end.
    pub(crate) fn next(&mut self, about: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < about {
            self.place = match std::mem::replace(&mut self.place, Place::Over) {
                Place::Head => self.head(&mut bytes),
                Place::Objects(after) => self.objects(after, about, &mut bytes),
                Place::History(after) => self.history(after, about, &mut bytes),
                Place::Sessions(after) => self.sessions(after, about, &mut bytes),
                Place::Ttls(after) => self.ttls(after, about, &mut bytes),
                Place::Over if self.ended => return bytes,
                Place::Over => {
                    self.ended = true;
                    self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
                    bytes.extend_from_slice(&self.checksum.to_le_bytes());
                    return bytes;
                }
            };
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        bytes
    }

    fn head(&self, bytes: &mut Vec<u8>) -> Place {
        let state = &self.state;
        if state.version >= version::HASHED_VALUES {
            bytes.push(WITH_VERSION);
            codec::encode_into(&state.version, bytes);
        } else {
            bytes.push(FIRST_FORM);
        }
        let head = Head {
            applied_index: state.applied_index,
            applied_term: state.applied_term,
            members: state.members.as_ref().clone(),
            revision: state.revision,
            floor: state.history.floor(),
            epoch: state.epoch,
            hash: state.hash,
        };
        codec::encode_into(&head, bytes);
        codec::encode_into(&state.objects.len(), bytes);
        Place::Objects(None)
    }

    fn objects(&self, after: Option<Entry>, about: usize, bytes: &mut Vec<u8>) -> Place {
        let objects = &self.state.objects;
        let left = after.as_ref().map_or(objects.iter(), |entry| objects.after(entry.key()));
        for entry in left {
            codec::encode_into(entry, bytes);
            if bytes.len() >= about {
                return Place::Objects(Some(entry.clone()));
            }
        }
        codec::encode_into(&self.changes(), bytes);
        Place::History(0)
    }

    fn changes(&self) -> usize {
        if planted!(SnapshotWithoutHistory) { 0 } else { self.state.history.len() }
    }

    fn history(&self, after: usize, about: usize, bytes: &mut Vec<u8>) -> Place {
        let left = self.state.history.all_from(after).take(self.changes() - after);
        for (at, change) in (after + 1..).zip(left) {
            codec::encode_into(change, bytes);
            if bytes.len() >= about {
                return Place::History(at);
            }
        }
        codec::encode_into(&self.open_sessions(), bytes);
        Place::Sessions(None)
    }

    fn open_sessions(&self) -> usize {
        if planted!(SnapshotWithoutSessions) { 0 } else { self.state.sessions.len() }
    }

    fn sessions(&self, after: Option<SessionId>, about: usize, bytes: &mut Vec<u8>) -> Place {
        let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let left = self.state.sessions.range::<_, SessionId>((start, Bound::Unbounded));
        for (id, session) in left.take(self.open_sessions()) {
            let record: (SessionId, SessionRecord) = (*id, session.to_record());
            codec::encode_into(&record, bytes);
            if bytes.len() >= about {
                return Place::Sessions(Some(*id));
            }
        }
        codec::encode_into(&self.times(), bytes);
        Place::Ttls(None)
    }

    fn times(&self) -> usize {
        if planted!(SnapshotWithoutTimes) { 0 } else { self.state.ttls.len() }
    }

    fn ttls(&self, after: Option<Key>, about: usize, bytes: &mut Vec<u8>) -> Place {
        let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let left = self.state.ttls.range::<_, Key>((start, Bound::Unbounded));
        for (key, seconds) in left.take(self.times()) {
            codec::encode_into(key, bytes);
            codec::encode_into(seconds, bytes);
            if bytes.len() >= about {
                return Place::Ttls(Some(key.clone()));
            }
        }
        Place::Over
    }
}

/// All of a state's bytes.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    let mut encoder = Encoder::new(state.clone());
    let mut bytes = Vec::new();
    loop {
        let piece = encoder.next(4 << 20);
        if piece.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&piece);
    }
}

/// The state again. Never panics, whatever the bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    read(bytes, bytes.len() as u64)
}

/// Reads a state whose bytes, checksum included, are `length` long.
pub(crate) fn read(from: impl Read + Send, length: u64) -> Result<State, SnapshotError> {
    if length > limits::SNAPSHOT_BYTES as u64 {
        return Err(CodecError::Malformed("longer than a state may be".into()).into());
    }
    if length >= APART {
        return read_apart(Pieces { from, left: length });
    }
    let mut decoder = Decoder::new();
    let (mut pieces, mut piece) = (Pieces { from, left: length }, Vec::new());
    while pieces.read(&mut piece)? {
        decoder.take(&piece);
    }
    decoder.finish()
}

/// As `read`, on three threads. What comes of it is the same.
fn read_apart(mut pieces: Pieces<impl Read + Send>) -> Result<State, SnapshotError> {
    let (full, to_decode) = sync_channel(WAITING);
    let (empty, to_fill) = sync_channel(WAITING);
    let (decoded, to_order) = sync_channel::<Vec<Entry>>(WAITING);
    #[expect(clippy::disallowed_methods, reason = "at a start, before anything else runs; joined here")]
    thread::scope(|scope| {
        let reading = thread::Builder::new().name("read".into()).spawn_scoped(scope, move || {
            loop {
                let mut piece = to_fill.try_recv().unwrap_or_default();
                if !pieces.read(&mut piece)? || full.send(piece).is_err() {
                    return Ok::<(), SnapshotError>(());
                }
            }
        });
        let ordering = thread::Builder::new().name("order".into()).spawn_scoped(scope, move || {
            let mut objects = Summed::default();
            to_order.into_iter().for_each(|entries| objects.add(entries));
            objects
        });
        let failed = |error: io::Error| SnapshotError::Read(format!("no thread for it: {error}"));
        let (reading, ordering) = (reading.map_err(failed)?, ordering.map_err(failed)?);
        let mut decoder = Decoder::new();
        for piece in to_decode {
            // A thread that has ended says why when it is joined.
            let _ = decoded.send(decoder.take_apart(&piece));
            let _ = empty.try_send(piece);
        }
        drop(decoded);
        let objects = ordering.join().unwrap_or_else(|panic| resume_unwind(panic));
        reading.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        decoder.finish_with(objects)
    })
}

/// What is left of the bytes of a state.
struct Pieces<R> {
    from: R,
    left: u64,
}

impl<R: Read> Pieces<R> {
    /// Reads the next piece; `false` when there is none.
    fn read(&mut self, piece: &mut Vec<u8>) -> Result<bool, SnapshotError> {
        let count = usize::try_from(self.left).map_or(READ, |left| left.min(READ));
        piece.resize(count, 0);
        self.from.read_exact(piece).map_err(|error| SnapshotError::Read(error.to_string()))?;
        self.left -= count as u64;
        Ok(count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Op, Transaction};
    use crate::ids::NodeId;
    use crate::state::content::Content;

    fn state() -> State {
        let mut state = State::first(NodeId(3));
        state.apply(2, 2, Command::OpenSession { session: SessionId(1) }, b"o");
        for n in 0..20u64 {
            let ops = vec![Op::Put { key: format!("k{}", n % 7).into(), value: n.to_string().into() }];
            let transaction = Transaction { compares: vec![], ops };
            let command =
                Command::Transact { session: SessionId(1), sequence: n + 1, epoch: None, transaction };
            state.apply(3 + n, 2, command, b"t");
        }
        state
    }

    #[test]
    fn a_state_survives_its_encoding() {
        let state = state();
        let again = decode(&encode(&state)).unwrap();
        assert_eq!(encode(&again), encode(&state));
        assert_eq!(again.hash, state.hash);
        assert_eq!(again.history.len(), state.history.len());
    }

    #[test]
    fn pieces_of_any_size_are_the_same_bytes_and_the_sum_of_contents_is_made_anew() {
        let state = state();
        let whole = encode(&state);
        for about in [1, 7, 100, 1 << 20] {
            let mut encoder = Encoder::new(state.clone());
            let pieces = std::iter::from_fn(|| Some(encoder.next(about)).filter(|piece| !piece.is_empty()));
            assert_eq!(pieces.collect::<Vec<_>>().concat(), whole, "pieces of {about}");
        }
        let again = decode(&whole).unwrap();
        assert_eq!(again.content, state.content);
        assert_eq!(again.content, Content::of(state.objects.iter()));
    }

    #[test]
    fn a_cluster_at_its_first_version_writes_what_its_older_binaries_read() {
        let first = State { version: version::FIRST, ..state() };
        let bytes = encode(&first);
        assert_eq!(bytes[0], FIRST_FORM);
        assert_eq!(decode(&bytes).unwrap().version, version::FIRST);
        let bytes = encode(&state());
        assert_eq!(bytes[0], WITH_VERSION);
        assert_eq!(decode(&bytes).unwrap().version, version::HASHED_VALUES);
    }

    /// docs/formats/raft-store.md, byte for byte.
    #[test]
    fn objects_and_changes_lie_in_the_bytes_as_documented() {
        let mut state = State::first(NodeId(3));
        for op in [Op::Put { key: "k".into(), value: "v".into() }, Op::Delete { key: "k".into() }] {
            state.transact(&Transaction { compares: vec![], ops: vec![op] });
        }
        state.transact(&Transaction {
            compares: vec![],
            ops: vec![Op::Put { key: "a".into(), value: "bc".into() }],
        });
        let object = [1, b'a', 2, b'b', b'c', 3, 3];
        let made = [1, 1, b'k', 0, 1, 1, b'v', 1, 1];
        let gone = [2, 1, b'k', 1, 1, b'v', 1, 1, 0];
        let second = [3, 1, b'a', 0, 1, 2, b'b', b'c', 3, 3];
        let lists = [&[1], &object[..], &[3], &made, &gone, &second, &[0, 0]].concat();
        let bytes = encode(&state);
        let before_checksum = &bytes[..bytes.len() - CHECKSUM_BYTES];
        assert_eq!(&before_checksum[before_checksum.len() - lists.len()..], lists);
        assert_eq!(encode(&decode(&bytes).unwrap()), bytes);
    }

    #[test]
    fn a_short_snapshot_that_announces_millions_of_keys_claims_no_memory_for_them() {
        let bytes = encode(&State::first(NodeId(3)));
        // Before the checksum: no objects, no history, no sessions, no times to live.
        let (fields, rest) = bytes.split_at(bytes.len() - CHECKSUM_BYTES - 4);
        assert_eq!(rest[..4], [0; 4]);
        let mut bytes = [fields, &[252], &20_000_000u32.to_le_bytes(), &[1; 40]].concat();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let error = decode(&bytes).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("UnexpectedEnd") || error.contains("Io"), "{error}");
    }

    #[test]
    fn a_long_state_that_is_read_on_three_threads_is_the_same_one() {
        let mut state = state();
        for n in 0..40u64 {
            let ops = (0..500)
                .map(|op| Op::Put { key: format!("{op}/{n}").into(), value: vec![n as u8; 1000].into() });
            let transaction = Transaction { compares: vec![], ops: ops.collect() };
            let command =
                Command::Transact { session: SessionId(1), sequence: 100 + n, epoch: None, transaction };
            state.apply(100 + n, 2, command, b"t");
        }
        let mut bytes = encode(&state);
        let length = bytes.len() as u64;
        assert!(length > APART);
        let apart = decode(&bytes).unwrap();
        let mut decoder = Decoder::new();
        bytes.chunks(100_000).for_each(|piece| decoder.take(piece));
        let at_once = decoder.finish().unwrap();
        assert_eq!(apart.objects.len(), 20_007);
        assert_eq!(apart.content, at_once.content);
        assert_eq!(encode(&apart), bytes);
        let short = read(&bytes[..bytes.len() - 9], length);
        assert!(matches!(short, Err(SnapshotError::Read(_))), "the file ends early");
        bytes[9_000_000] ^= 1;
        assert_eq!(decode(&bytes).err(), Some(SnapshotError::Checksum));
    }

    #[test]
    fn every_truncation_and_every_flip_is_refused() {
        let bytes = encode(&state());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "truncated to {length}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped).is_err(), "flipped at {at}");
        }
    }
}
