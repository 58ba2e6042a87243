//! Decides how a whole state becomes bytes, for disk and wire alike: version, body, checksum.
//! Must not touch files (`log::snapfile`) nor messages (`wire`).

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::command::Key;
use crate::ids::{Epoch, Revision, SessionId};
use crate::members::Members;
use crate::state::history::History;
use crate::state::sessions::{Session, SessionRecord};
use crate::state::{Change, Entry, State};

const VERSION: u8 = 2;
const CHECKSUM_BYTES: usize = 4;

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
}

#[derive(Encode, Decode)]
struct Body {
    applied_index: u64,
    applied_term: u64,
    members: Members,
    revision: Revision,
    floor: Revision,
    epoch: Epoch,
    hash: [u8; 32],
    objects: Vec<(Key, Entry)>,
    history: Vec<Change>,
    sessions: Vec<(SessionId, SessionRecord)>,
    ttls: Vec<(Key, u32)>,
}

/// The state's bytes: version, body, CRC32C of both.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    let body = Body {
        applied_index: state.applied_index,
        applied_term: state.applied_term,
        members: state.members.as_ref().clone(),
        revision: state.revision,
        floor: state.history.floor(),
        epoch: state.epoch,
        hash: state.hash,
        objects: state.objects.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect(),
        history: state.history.all().filter(|_| !planted!(SnapshotWithoutHistory)).cloned().collect(),
        sessions: state
            .sessions
            .iter()
            .filter(|_| !planted!(SnapshotWithoutSessions))
            .map(|(id, session)| (*id, session.to_record()))
            .collect(),
        ttls: state.ttls.iter().map(|(key, seconds)| (key.clone(), *seconds)).collect(),
    };
    let mut bytes = vec![VERSION];
    codec::encode_into(&body, &mut bytes);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The state again. Never panics, whatever the bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    let split = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(SnapshotError::Checksum)?;
    let (content, checksum) = bytes.split_at(split);
    if crc32c::crc32c(content).to_le_bytes() != checksum {
        return Err(SnapshotError::Checksum);
    }
    let body = match content.split_first() {
        Some((&VERSION, body)) => codec::decode_state::<Body>(body)?,
        Some((&version, _)) => return Err(CodecError::Version(version).into()),
        None => return Err(SnapshotError::Checksum),
    };
    match body.members.is_sound() {
        true => Ok(restore(body)),
        false => Err(SnapshotError::Members),
    }
}

fn restore(body: Body) -> State {
    State {
        objects: body.objects.into_iter().collect(),
        history: History::from_parts(body.history, body.floor),
        sessions: body.sessions.into_iter().map(|(id, record)| (id, Session::from_record(record))).collect(),
        ttls: body.ttls.into_iter().collect(),
        members: Arc::new(body.members),
        revision: body.revision,
        epoch: body.epoch,
        applied_index: body.applied_index,
        applied_term: body.applied_term,
        hash: body.hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Op, Transaction};
    use crate::ids::NodeId;

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
    fn a_short_snapshot_that_announces_millions_of_keys_claims_no_memory_for_them() {
        let bytes = encode(&State::default());
        // Before the checksum: no objects, no history, no sessions, no times to live.
        let (fields, rest) = bytes.split_at(bytes.len() - CHECKSUM_BYTES - 4);
        assert_eq!(rest[..4], [0; 4]);
        let mut bytes = [fields, &[252], &20_000_000u32.to_le_bytes(), &[1; 40]].concat();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let error = decode(&bytes).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("LimitExceeded"), "{error}");
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
