//! Decides which followers are sent a write a moment later: of commands that come one after the other, each alone, a leader
//! sends the entry at once to as many as make a majority with it, and to the others what gathered. ("Thrifty" in Moraru et al.,
//! "There Is More Consensus in Egalitarian Parliaments", SOSP 2013.) What is acknowledged is durable at a majority as always. Whose turn
//! to campaign comes first is not spared where that can be helped: it would not be elected while it lacks the last writes.
//! Must not spare anybody while the members change, and must not let a message overtake what waits for the same peer.

use raft::eraftpb::MessageType;

use super::{Replica, elections};
use crate::disk::Disk;
use crate::ids::{Millis, NodeId};
use crate::log::outbound::Cleared;

/// An entry that waits is no longer.
const ENTRY_BYTES: usize = 4 << 10;
/// Who was needed and kept a write waiting is spared for so long, and then tried once.
const SLOW_MS: u64 = 10_000;

/// Whom a leader spares, and what they have not been sent.
#[derive(Default)]
pub(super) struct Sparing {
    spared: Vec<NodeId>,
    /// When others were before.
    chosen: Millis,
    /// One write went to all, to see who answers soon.
    tried: bool,
    /// The one entry that need not go to them at once, …
    entry: Option<u64>,
    /// … and since when it is durable here.
    durable: Option<Millis>,
    held: Vec<Cleared>,
    since: Millis,
    /// No longer kept: goes out before anything else.
    released: Vec<Cleared>,
}

impl Sparing {
    /// Keeps a message that may wait.
    fn hold(&mut self, message: Cleared, now: Millis) -> Option<Cleared> {
        let raw = message.as_message();
        let is_short = |length: usize| length <= ENTRY_BYTES;
        let may_wait = raw.msg_type == MessageType::MsgAppend as i32
            && matches!(&raw.entries[..], [entry] if Some(entry.index) == self.entry && is_short(entry.data.len()))
            && self.spared.contains(&NodeId(raw.to));
        if !may_wait {
            return Some(message);
        }
        if self.held.is_empty() {
            self.since = now;
        }
        match self.held.iter_mut().find(|held| held.as_message().to == message.as_message().to) {
            Some(held) => held.join(message),
            None => {
                self.held.push(message);
                None
            }
        }
    }

    /// Who are needed: the first of those that surely answer soon. `None`: all, this time.
    fn choose(&mut self, now: Millis, voters: &[NodeId], prompt: &[NodeId], me: NodeId) -> Option<()> {
        let others = voters.len() / 2;
        let turn = |id: &NodeId| elections::turn(voters, Some(me), *id);
        let mut by_turn: Vec<NodeId> = voters.iter().copied().filter(|id| *id != me).collect();
        by_turn.sort_by_key(turn);
        let again = now.since(self.chosen) >= SLOW_MS
            && by_turn.iter().take(others).any(|id| self.spared.contains(id));
        if again && !self.tried {
            self.tried = true;
            return None;
        }
        let mut needed: Vec<NodeId> = by_turn.iter().copied().filter(|id| prompt.contains(id)).collect();
        if !again {
            needed.sort_by_key(|id| self.spared.contains(id));
        }
        if needed.len() < others {
            return None;
        }
        needed.truncate(others);
        let spared: Vec<NodeId> = by_turn.into_iter().filter(|id| !needed.contains(id)).collect();
        if again || spared != self.spared {
            (self.chosen, self.tried) = (now, false);
            self.spared = spared;
        }
        Some(())
    }
}

impl<D: Disk> Replica<D> {
    /// When what was kept goes out: soon, if whoever is needed does not answer.
    pub(super) fn sparing_due(&self) -> Option<Millis> {
        let sparing = &self.sparing;
        let gathered = Millis(sparing.since.0 + self.config.stream_ms);
        let is_missed = sparing.entry.is_some_and(|entry| self.node.raft.raft_log.committed < entry);
        let missed = sparing.durable.filter(|_| is_missed);
        let missed = missed.map(|since| Millis(since.0 + self.config.stream_ms.div_ceil(3) + 1));
        (!sparing.held.is_empty()).then(|| missed.map_or(gathered, |missed| gathered.min(missed)))
    }

    /// One command enters the log at `index`, and nothing else is on its way.
    pub(super) fn spare_some(&mut self, index: u64) {
        (self.sparing.entry, self.sparing.durable) = (None, None);
        let members = &self.state.members;
        let me = self.config.id;
        let change = members.is_joint() || self.node.raft.has_pending_conf();
        if change || !members.voters.contains(&me) || !self.telling.streams() {
            return;
        }
        // Only who holds all that was before.
        let holds =
            |id: &NodeId| self.node.raft.prs().get(id.0).is_some_and(|peer| peer.matched + 1 >= index);
        let prompt: Vec<NodeId> = members.voters.iter().copied().filter(holds).collect();
        if self.sparing.choose(self.now, &members.voters, &prompt, me).is_some() {
            self.sparing.entry = Some(index);
        }
    }

    /// What comes next goes to all, after what was kept.
    pub(super) fn spare_nobody(&mut self) {
        (self.sparing.entry, self.sparing.durable) = (None, None);
        self.release_all();
    }

    /// Lets go what was kept for long enough.
    pub(super) fn spare_not_for_long(&mut self) {
        if self.sparing_due().is_some_and(|due| due <= self.now) {
            self.release_all();
        }
    }

    /// From when on a follower that is needed and does not answer is the one that is waited for.
    pub(super) fn spared_entry_may_be_durable(&mut self, has_time_passed: bool) {
        let is_durable = |entry| self.node.raft.raft_log.persisted >= entry;
        if self.sparing.entry.is_some_and(is_durable) && (has_time_passed || self.sparing.durable.is_none()) {
            self.sparing.durable = Some(self.now);
        }
    }

    /// Sends a message, unless it may wait.
    pub(super) fn send_or_spare(&mut self, message: Cleared) {
        let Some(message) = self.sparing.hold(message, self.now) else { return };
        let to = message.as_message().to;
        let earlier: Vec<_> = self.sparing.held.extract_if(.., |held| held.as_message().to == to).collect();
        earlier.into_iter().for_each(|earlier| self.give_out_appends(earlier));
        self.give_out(message);
    }

    pub(super) fn send_released(&mut self) {
        for message in std::mem::take(&mut self.sparing.released) {
            self.give_out_appends(message);
        }
    }

    fn release_all(&mut self) {
        let held = std::mem::take(&mut self.sparing.held);
        self.sparing.released.extend(held);
    }

    /// Of an earlier term it would help nobody.
    fn give_out_appends(&mut self, message: Cleared) {
        if message.as_message().term == self.node.raft.term {
            self.give_out(message);
        }
    }
}
