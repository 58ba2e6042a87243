//! Decides what a repeated request gets: the answer it got before, or "unknown", never a second application.
//! Part of the replicated state. Must not end a session by itself: only log commands do.

use bincode::{Decode, Encode};
use imbl::OrdMap;

use crate::command::Outcome;
use crate::limits;

/// One open session.
#[derive(Clone, Default)]
pub(crate) struct Session {
    answers: OrdMap<u64, Outcome>,
    /// Every sequence at or below this has left the window or was never seen before it did.
    forgotten: u64,
}

/// The encoded form of a session.
#[derive(Encode, Decode)]
pub(crate) struct SessionRecord {
    forgotten: u64,
    answers: Vec<(u64, Outcome)>,
}

/// What is known of a request.
pub(crate) enum Seen {
    Never,
    Answered(Outcome),
    Forgotten,
}

impl Session {
    pub(crate) fn seen(&self, sequence: u64) -> Seen {
        match self.answers.get(&sequence) {
            Some(answer) => Seen::Answered(answer.clone()),
            None if sequence <= self.forgotten && !planted!(AnswerForgotten) => Seen::Forgotten,
            None => Seen::Never,
        }
    }

    pub(crate) fn record(&mut self, sequence: u64, answer: Outcome) {
        self.answers.insert(sequence, answer);
        let window = if planted!(AnswerForgotten) { 2 } else { limits::SESSION_WINDOW };
        while self.answers.len() > window {
            if let Some((oldest, _)) = self.answers.get_min().cloned() {
                self.answers.remove(&oldest);
                self.forgotten = self.forgotten.max(oldest);
            }
        }
    }

    pub(crate) fn to_record(&self) -> SessionRecord {
        SessionRecord {
            forgotten: self.forgotten,
            answers: self.answers.iter().map(|(sequence, answer)| (*sequence, answer.clone())).collect(),
        }
    }

    pub(crate) fn from_record(record: SessionRecord) -> Session {
        Session { answers: record.answers.into_iter().collect(), forgotten: record.forgotten }
    }
}
