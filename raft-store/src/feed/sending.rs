//! A whole state on its way to one that is fed, in pieces.
//!
//! Decides how much of it is under way, and what is sent again. Encodes as it sends, from the state as it was when it began: so it needs
//! no second state beside the first, and no round is long. Must not ask whether the state is still wanted (`serve` does).

use std::collections::VecDeque;

use super::{Feed, News, Piece, encode};
use crate::ids::Millis;
use crate::snapshot::Encoder;
use crate::state::State;
use crate::{limits, timing};

/// The state, as far as it is sent.
pub(super) struct Sending {
    encoder: Encoder,
    /// Index and term of the last entry in it.
    place: (u64, u64),
    /// Encoded and not sent.
    encoded: Vec<u8>,
    /// Sent and not taken, and the number of the first of them.
    under_way: VecDeque<Vec<u8>>,
    first: u64,
    /// How many there are, once the last was cut.
    pieces: Option<u64>,
    /// When something was taken last.
    moved: Millis,
    /// The other end has nothing any more of what it had taken.
    lost: bool,
    /// When what is under way was sent again, and how long until the next time.
    repeated: Millis,
    again_ms: u64,
}

impl Sending {
    pub(super) fn new(now: Millis, state: State) -> Sending {
        Sending {
            place: (state.applied_index, state.applied_term),
            encoder: Encoder::new(state),
            encoded: Vec::new(),
            under_way: VecDeque::new(),
            first: 0,
            pieces: None,
            moved: now,
            lost: false,
            repeated: Millis(0),
            again_ms: timing::FEED_PIECE_AGAIN_MS,
        }
    }

    /// The last entry in it.
    pub(super) fn index(&self) -> u64 {
        self.place.0
    }

    /// So many pieces were taken; or one came that does not follow on them.
    pub(super) fn took(&mut self, now: Millis, pieces: u64, gap: bool) {
        while self.first < pieces && self.under_way.pop_front().is_some() {
            self.first += 1;
            self.moved = now;
            self.again_ms = timing::FEED_PIECE_AGAIN_MS;
        }
        if gap && self.first == pieces {
            // Not at every one that follows on what is missing.
            self.again_ms = self.again_ms.min(timing::FEED_AGAIN_MS);
        }
        // Not what was said before the last ones were taken, and came late.
        self.lost |= gap && pieces < self.first && now.since(self.moved) >= timing::FEED_PIECE_AGAIN_MS;
    }

    /// Whether nothing came of it for too long: all of it was taken and is not installed, or nothing more is taken, or what was is gone.
    pub(super) fn is_stuck(&self, now: Millis) -> bool {
        let taken = self.pieces == Some(self.first);
        let most_ms = if taken { timing::FEED_INSTALL_MS } else { timing::FEED_STUCK_MS };
        self.lost || now.since(self.moved) >= most_ms
    }

    /// The messages to be sent now.
    pub(super) fn messages(&mut self, now: Millis, news: News, piece_bytes: usize) -> Vec<Vec<u8>> {
        let mut messages = self.again(now, news);
        while self.under_way.len() < limits::FEED_PIECES && self.pieces.is_none() {
            let number = self.first + self.under_way.len() as u64;
            let data = self.cut(number, piece_bytes);
            messages.push(self.message(news, number, &data));
            self.under_way.push_back(data);
        }
        messages
    }

    /// What should have been taken by now.
    fn again(&mut self, now: Millis, news: News) -> Vec<Vec<u8>> {
        let wait_ms = self.again_ms;
        if self.under_way.is_empty() || now.since(self.moved.max(self.repeated)) < wait_ms {
            return Vec::new();
        }
        self.again_ms = (wait_ms.max(timing::FEED_PIECE_AGAIN_MS) * 2).min(timing::FEED_AGAIN_MOST_MS);
        self.repeated = now;
        let numbered = (self.first..).zip(&self.under_way);
        numbered.map(|(number, data)| self.message(news, number, data)).collect()
    }

    fn cut(&mut self, number: u64, piece_bytes: usize) -> Vec<u8> {
        while self.encoded.len() <= piece_bytes {
            let more = self.encoder.next(piece_bytes);
            if more.is_empty() {
                self.pieces = Some(number + 1);
                return std::mem::take(&mut self.encoded);
            }
            self.encoded.extend_from_slice(&more);
        }
        let rest = self.encoded.split_off(piece_bytes);
        std::mem::replace(&mut self.encoded, rest)
    }

    fn message(&self, news: News, number: u64, data: &[u8]) -> Vec<u8> {
        encode(&Feed::Piece(Piece {
            news,
            place: self.place,
            number,
            last: self.pieces == Some(number + 1),
            checksum: crc32c::crc32c(data),
            data: data.to_vec(),
        }))
    }
}
