//! Decides what a repeated request gets: the answer it got before, or "unknown", never a second application.
//! Part of the replicated state. Must not end a session by itself: only log commands do.

use std::sync::Arc;

use bincode::{Decode, Encode};
use imbl::OrdMap;

use crate::command::Outcome;
use crate::ids::Revision;
use crate::limits;

/// One open session.
#[derive(Clone, Default)]
pub(crate) struct Session {
    answers: OrdMap<u64, Answer>,
    /// Every sequence at or below this has left the window or was never seen before it did.
    forgotten: u64,
}

/// An outcome in a third of its length: each record copies a leaf of them. What is rare has an allocation of its own.
#[derive(Clone)]
enum Answer {
    Applied { revision: Revision, changed: bool },
    Other(Arc<Outcome>),
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Answer {
        match outcome {
            Outcome::Applied { revision, changed } => Answer::Applied { revision, changed },
            other => Answer::Other(Arc::new(other)),
        }
    }
}

impl Answer {
    fn outcome(&self) -> Outcome {
        match self {
            Answer::Applied { revision, changed } => {
                Outcome::Applied { revision: *revision, changed: *changed }
            }
            Answer::Other(outcome) => Outcome::clone(outcome),
        }
    }
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
            Some(answer) => Seen::Answered(answer.outcome()),
            None if sequence <= self.forgotten && !planted!(AnswerForgotten) => Seen::Forgotten,
            None => Seen::Never,
        }
    }

    pub(crate) fn record(&mut self, sequence: u64, answer: Outcome) {
        self.answers.insert(sequence, answer.into());
        let window = if planted!(AnswerForgotten) { 2 } else { limits::SESSION_WINDOW };
        while self.answers.len() > window {
            if let Some(&(oldest, _)) = self.answers.get_min() {
                self.answers.remove(&oldest);
                self.forgotten = self.forgotten.max(oldest);
            }
        }
    }

    pub(crate) fn to_record(&self) -> SessionRecord {
        SessionRecord {
            forgotten: self.forgotten,
            answers: self.answers.iter().map(|(sequence, answer)| (*sequence, answer.outcome())).collect(),
        }
    }

    pub(crate) fn from_record(record: SessionRecord) -> Session {
        let answers = record.answers.into_iter().map(|(sequence, outcome)| (sequence, Answer::from(outcome)));
        Session { answers: answers.collect(), forgotten: record.forgotten }
    }
}
