//! A whole state that grows at the one who is fed, of pieces in their order.
//!
//! Decides which piece is taken next, and what the feeder is told of one that is not. Must not touch a disk (`replica::installing` does),
//! nor take more pieces into memory than a feeder may have under way.

use std::collections::VecDeque;

use super::{Piece, Want};
use crate::ids::NodeId;
use crate::limits;
use crate::snapshot::{Decoder, SnapshotError};
use crate::state::State;

/// The state, as far as it came.
pub(crate) struct Growing {
    from: NodeId,
    stream: u64,
    /// Index and term of the last entry in it.
    place: (u64, u64),
    /// The feeder's term.
    term: u64,
    /// Came and not taken.
    waiting: VecDeque<Vec<u8>>,
    taken: u64,
    bytes: u64,
    /// How many there are, once the last came.
    pieces: Option<u64>,
    decoder: Decoder,
}

impl Growing {
    pub(crate) fn new(from: NodeId, stream: u64, place: (u64, u64)) -> Growing {
        Growing {
            from,
            stream,
            place,
            term: 0,
            waiting: VecDeque::new(),
            taken: 0,
            bytes: 0,
            pieces: None,
            decoder: Decoder::new(),
        }
    }

    /// Whose it is, and under which stream.
    pub(crate) fn source(&self) -> (NodeId, u64) {
        (self.from, self.stream)
    }

    /// Index and term of the last entry in it.
    pub(crate) fn place(&self) -> (u64, u64) {
        self.place
    }

    /// The feeder's term.
    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// How many pieces were taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// A piece came. What the feeder is to be told at once: nothing if it waits to be taken.
    pub(crate) fn offer(&mut self, piece: Piece) -> Option<Want> {
        let next = self.taken + self.waiting.len() as u64;
        self.term = self.term.max(piece.news.term);
        match piece.number {
            number if number < next => Some(Want::More),
            number if number > next => Some(Want::Missing),
            _ if self.waiting.len() >= limits::FEED_PIECES || self.pieces.is_some() => None,
            number => {
                self.pieces = piece.last.then_some(number + 1);
                self.waiting.push_back(piece.data);
                None
            }
        }
    }

    /// The next piece to be written.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a piece that was written.
    pub(crate) fn take(&mut self, data: &[u8]) {
        self.taken += 1;
        self.bytes += data.len() as u64;
        self.decoder.take(data);
    }

    /// Whether no state can come of it any more.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.decoder.error().is_some() || self.bytes > limits::SNAPSHOT_BYTES as u64
    }

    /// Whether all of it was taken.
    pub(crate) fn is_whole(&self) -> bool {
        self.pieces == Some(self.taken)
    }

    /// The state, if that is what the pieces are.
    pub(crate) fn finish(self) -> Result<State, SnapshotError> {
        self.decoder.finish()
    }
}
