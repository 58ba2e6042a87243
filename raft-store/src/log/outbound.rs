//! Decides which messages may leave: a message is sent only as `Cleared`, and there are two ways to become that.
//! `early` takes what raft allows before the sync, and only if term and vote are durable already; `Unsynced` holds
//! what depends on the sync, and only `Log::sync` opens it. So "send before sync" cannot be written elsewhere.
//! Must not encode or address anything.

use raft::eraftpb::{Entry, HardState, Message, MessageType};
use raft::{LightReady, Ready};

use crate::state::State;

/// A message that may be sent.
#[derive(Debug)]
pub(crate) struct Cleared(Message);

impl Cleared {
    pub(crate) fn as_message(&self) -> &Message {
        &self.0
    }

    pub(crate) fn into_message(self) -> Message {
        self.0
    }

    /// Itself, or the appends that it is cut into where its entries have more than `most` bytes. raft adds to an append that has not left yet
    /// whatever its length: all that a follower lacks would be in one, and that one refuses what is longer than a message may be.
    pub(crate) fn in_parts(self, most: u64) -> Vec<Cleared> {
        let length = |entry: &Entry| entry.data.len() as u64;
        let is_short = self.0.entries.len() <= 1 || self.0.entries.iter().map(length).sum::<u64>() <= most;
        if is_short {
            return vec![self];
        }
        let Cleared(mut rest) = self;
        let mut parts = Vec::new();
        let mut bytes = 0;
        for entry in std::mem::take(&mut rest.entries) {
            bytes += length(&entry);
            if bytes > most
                && let Some(last) = rest.entries.last()
            {
                let next = part_after(&rest, last);
                parts.push(Cleared(std::mem::replace(&mut rest, next)));
                bytes = length(&entry);
            }
            rest.entries.push(entry);
        }
        parts.push(Cleared(rest));
        parts
    }
}

/// An append that follows on the entries which `before` ends with, and has none yet.
fn part_after(before: &Message, last: &Entry) -> Message {
    Message {
        msg_type: before.msg_type,
        from: before.from,
        to: before.to,
        term: before.term,
        commit: before.commit,
        index: last.index,
        log_term: last.term,
        ..Message::default()
    }
}

/// What one `Ready` wants durable, with the messages that wait for it.
pub(crate) struct Unsynced {
    hard_state: HardState,
    promises: Promises,
}

/// What was made durable, and the messages that promise it.
pub(crate) struct Promises {
    pub(super) entries: Vec<Entry>,
    pub(super) install: Option<State>,
    messages: Vec<Message>,
}

/// An opened `Promises`.
pub(crate) struct Durable {
    pub(crate) entries: Vec<Entry>,
    pub(crate) install: Option<State>,
    pub(crate) messages: Vec<Cleared>,
}

/// Takes out of a `Ready` what may be sent at once: a leader's messages, unless this `Ready` also changes term or
/// vote. (A single voter wins in the very step in which it campaigns: raft-rs then offers its appends to learners
/// before the new term is durable, and after a crash the same term would be used again for other entries.)
pub(crate) fn early(ready: &mut Ready, durable: &HardState) -> Vec<Cleared> {
    let term_is_durable = ready.hs().is_none_or(|hs| hs.term == durable.term && hs.vote == durable.vote);
    let says = |kind: MessageType| ready.persisted_messages().iter().any(|m| m.msg_type == kind as i32);
    let vote_early = planted!(VoteBeforeSync) && says(MessageType::MsgRequestVoteResponse);
    let ack_early = planted!(AppendAckBeforeSync) && says(MessageType::MsgAppendResponse);
    if vote_early || ack_early {
        let mut all = ready.take_messages();
        all.extend(ready.take_persisted_messages());
        return all.into_iter().map(Cleared).collect();
    }
    match term_is_durable {
        true => ready.take_messages().into_iter().map(Cleared).collect(),
        false => Vec::new(),
    }
}

/// Takes the messages that raft made because a `Ready` is durable. Only a leader has some, and `Durable` shows that
/// the `Ready` was persisted.
pub(crate) fn afterwards(light: &mut LightReady, _proof: &Durable) -> Vec<Cleared> {
    light.take_messages().into_iter().map(Cleared).collect()
}

impl Promises {
    /// Opens what `Log::sync` gave out.
    pub(crate) fn open(self) -> Durable {
        let messages = self.messages.into_iter().map(Cleared).collect();
        Durable { entries: self.entries, install: self.install, messages }
    }
}

impl Unsynced {
    /// Takes all that must be durable out of a `Ready`: its entries, the hard state as it is now, a snapshot's
    /// decoded state, and every message left in it.
    pub(crate) fn take(ready: &mut Ready, hard_state: HardState, install: Option<State>) -> Unsynced {
        let mut messages = ready.take_messages();
        messages.extend(ready.take_persisted_messages());
        Unsynced { hard_state, promises: Promises { entries: ready.take_entries(), install, messages } }
    }

    /// A whole state that came by a feed, with the hard state that it leads to.
    pub(crate) fn installing(hard_state: HardState, state: State) -> Unsynced {
        let promises = Promises { entries: Vec::new(), install: Some(state), messages: Vec::new() };
        Unsynced { hard_state, promises }
    }

    /// For `Log::write` alone.
    pub(super) fn into_parts(self) -> (HardState, Promises) {
        (self.hard_state, self.promises)
    }
}
