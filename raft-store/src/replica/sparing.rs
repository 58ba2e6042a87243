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
/// Who is needed is chosen anew after so long, …
const CHOSEN_MS: u64 = 10_000;
/// … by writes that go to all: at least one, and so many at most for those whose turn comes first to be among the first that answer.
const TRIES: u32 = 8;

/// Whom a leader spares, and what they have not been sent.
#[derive(Default)]
pub(super) struct Sparing {
    spared: Vec<NodeId>,
    /// When they were chosen, …
    chosen: Millis,
    /// … who has kept a write waiting since, …
    missed: Vec<NodeId>,
    /// … and how many writes went to all in order to choose.
    tries: u32,
    /// The one entry that need not go to them at once.
    entry: Option<u64>,
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

    /// Chooses who are needed, the first of those that surely answer soon; false if there are too few, or if this write goes to all.
    fn choose(&mut self, now: Millis, voters: &[NodeId], prompt: &[NodeId], me: NodeId) -> bool {
        let others = voters.len() / 2;
        let mut by_turn: Vec<NodeId> = voters.iter().copied().filter(|id| *id != me).collect();
        by_turn.sort_by_key(|id| elections::turn(voters, Some(me), *id));
        let anew = now.since(self.chosen) >= CHOSEN_MS;
        if anew {
            self.missed.clear();
            let are_first = by_turn.iter().take(others).all(|id| prompt.contains(id));
            if self.tries == 0 || (self.tries < TRIES && !are_first) {
                self.tries += 1;
                return false;
            }
        }
        let mut needed: Vec<NodeId> = by_turn.iter().copied().filter(|id| prompt.contains(id)).collect();
        needed.sort_by_key(|id| (self.missed.contains(id), !anew && self.spared.contains(id)));
        if needed.len() < others {
            return false;
        }
        needed.truncate(others);
        let spared: Vec<NodeId> = by_turn.into_iter().filter(|id| !needed.contains(id)).collect();
        if anew || spared != self.spared {
            (self.chosen, self.tries) = (now, 0);
            self.spared = spared;
        }
        true
    }
}

impl<D: Disk> Replica<D> {
    /// When what was kept goes out: sooner if whoever is needed does not answer.
    pub(super) fn sparing_due(&self) -> Option<Millis> {
        let gathered = Millis(self.sparing.since.0 + self.config.stream_ms);
        let due = if self.is_uncommitted() { gathered.min(self.late_from()) } else { gathered };
        (!self.sparing.held.is_empty()).then_some(due)
    }

    /// The entry that only some were sent is not committed yet.
    fn is_uncommitted(&self) -> bool {
        self.sparing.entry.is_some_and(|entry| self.node.raft.raft_log.committed < entry)
    }

    /// From when on it should be.
    fn late_from(&self) -> Millis {
        Millis(self.telling.came().0 + self.config.stream_ms.div_ceil(2))
    }

    /// One command enters the log at `index`, and nothing else is on its way.
    pub(super) fn spare_some(&mut self, index: u64) {
        self.sparing.entry = None;
        let members = &self.state.members;
        let me = self.config.id;
        let change = members.is_joint() || self.node.raft.has_pending_conf();
        if change || !members.voters.contains(&me) || !self.telling.streams(self.now, self.config.stream_ms) {
            return;
        }
        // Only who holds all that was before.
        let holds =
            |id: &NodeId| self.node.raft.prs().get(id.0).is_some_and(|peer| peer.matched + 1 >= index);
        let prompt: Vec<NodeId> = members.voters.iter().copied().filter(holds).collect();
        if self.sparing.choose(self.now, &members.voters, &prompt, me) {
            self.sparing.entry = Some(index);
        }
    }

    /// What comes next goes to all, after what was kept.
    pub(super) fn spare_nobody(&mut self) {
        self.sparing.entry = None;
        self.release_all();
    }

    /// Lets go what was kept for long enough. Who is needed and has not answered until then is not needed any more.
    pub(super) fn spare_not_for_long(&mut self) {
        if self.sparing_due().is_none_or(|due| due > self.now) {
            return;
        }
        // One that has just come is on its way.
        let is_late = self.is_uncommitted() && self.late_from() <= self.now;
        if let Some(entry) = self.sparing.entry.filter(|_| is_late) {
            let known = |id: &NodeId| self.sparing.spared.contains(id) || self.sparing.missed.contains(id);
            let lacks = |id: &NodeId| self.node.raft.prs().get(id.0).is_none_or(|peer| peer.matched < entry);
            let is_missed = |id: &NodeId| *id != self.config.id && !known(id) && lacks(id);
            let missed: Vec<NodeId> = self.state.members.voters.iter().copied().filter(is_missed).collect();
            self.sparing.missed.extend(missed);
        }
        self.release_all();
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
