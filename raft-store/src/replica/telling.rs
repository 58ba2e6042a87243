//! Decides when a leader tells its followers how far the log is committed: with the next entries, or by itself when none come
//! soon. Telling it at once, as raft does, costs each write as many messages again as its entries do.
//! Must not hold back a commit for longer than a tick, nor while the members change.

use super::Replica;
use crate::disk::Disk;

/// Rounds without new entries after which the commit is told by itself.
const ROUNDS: u32 = 8;

/// What the followers have been told.
#[derive(Default)]
pub(super) struct Telling {
    told: u64,
    rounds: u32,
}

impl Telling {
    /// All followers are sent entries with this commit index, or it alone.
    pub(super) fn told(&mut self, commit: u64) {
        self.told = self.told.max(commit);
        self.rounds = 0;
    }
}

impl<D: Disk> Replica<D> {
    /// Whether followers wait to be told of a commit. A driver that gets nothing else to do for a moment says `Input::Tell`.
    pub fn owes_commit(&self) -> bool {
        self.leads() && self.telling.told < self.node.raft.raft_log.committed
    }

    /// Tells it now, if there is something to tell.
    pub(super) fn tell_commit(&mut self) {
        if self.owes_commit() {
            self.telling.told(self.node.raft.raft_log.committed);
            self.node.raft.bcast_append();
        }
    }

    /// Once in each round: entries that keep coming by twos and threes must not hold it back for ever.
    pub(super) fn tell_commit_if_late(&mut self) {
        self.telling.rounds += 1;
        if self.telling.rounds > ROUNDS {
            self.telling.rounds = 0;
            self.tell_commit();
        }
    }
}
