//! Decides when a leader tells its followers how far the log is committed: with the next entries, or by itself when none come
//! soon. Telling it at once, as raft does, costs each write as many messages again as its entries do.
//! Must not hold back a commit for longer than a tick, nor while the members change.

use super::Replica;
use crate::disk::Disk;
use crate::ids::Millis;

/// Rounds without new entries after which the commit is told by itself.
const ROUNDS: u32 = 8;

/// What the followers have been told.
#[derive(Default)]
pub(super) struct Telling {
    told: u64,
    rounds: u32,
    /// When the last command came, …
    came: Millis,
    /// … and whether it followed another.
    streams: bool,
}

impl Telling {
    /// A command is proposed.
    pub(super) fn comes(&mut self, now: Millis, stream_ms: u64) {
        self.streams = now.since(self.came) <= stream_ms;
        self.came = now;
    }

    /// All followers are sent entries with this commit index, or it alone.
    pub(super) fn told(&mut self, commit: u64) {
        self.told = self.told.max(commit);
        self.rounds = 0;
    }
}

impl<D: Disk> Replica<D> {
    /// When followers are told of a commit, if no entries carry it before: of a command that came alone at once.
    pub(super) fn telling_due(&self) -> Option<Millis> {
        let wait = if self.telling.streams { self.config.stream_ms } else { 0 };
        self.owes_commit().then_some(Millis(self.telling.came.0 + wait))
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
        if self.telling.rounds > ROUNDS || self.telling_due().is_some_and(|due| due <= self.now) {
            self.telling.rounds = 0;
            self.tell_commit();
        }
    }

    fn owes_commit(&self) -> bool {
        self.leads() && self.telling.told < self.node.raft.raft_log.committed
    }
}
