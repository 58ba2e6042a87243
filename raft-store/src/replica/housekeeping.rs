//! Decides when the replica tidies up by itself: the commit mark after a burst, snapshots of its own, how much of the log
//! stays in memory, the history's age, snapshots that were sent and never reported. Must not write anything at rest.

use std::collections::{BTreeMap, VecDeque};

use raft::ProgressState;

use super::Replica;
use crate::command::Command;
use crate::disk::Disk;
use crate::effect::Fatal;
use crate::ids::{Millis, NodeId, Revision};
use crate::timing;

/// Part of the newest snapshot's length that the entries in memory may have: who lags by less gets those, and not all of it.
const TRAILING_PART: u64 = 64;

/// What tidying needs to remember.
pub(super) struct Housekeeping {
    ticked: bool,
    /// Everything applied before the last stop lies at or below this index.
    applied_before: u64,
    samples: VecDeque<(Millis, Revision)>,
    snapshots_out: BTreeMap<NodeId, Millis>,
    /// When this leader's peers were seen to answer. (What raft says of that it forgets at each look of its own.)
    answered: BTreeMap<u64, Millis>,
    /// Whether it led when that was looked at last.
    led: bool,
}

impl Housekeeping {
    pub(super) fn new(applied_before: u64) -> Housekeeping {
        Housekeeping {
            ticked: false,
            applied_before,
            samples: VecDeque::new(),
            snapshots_out: BTreeMap::new(),
            answered: BTreeMap::new(),
            led: false,
        }
    }

    pub(super) fn ticked(&mut self) {
        self.ticked = true;
    }

    pub(super) fn is_caught_up(&self, applied: u64) -> bool {
        applied > 0 && (applied >= self.applied_before || planted!(ServedBeforeCaughtUp))
    }

    pub(super) fn snapshot_sent(&mut self, peer: NodeId, now: Millis) {
        self.snapshots_out.insert(peer, now);
    }

    pub(super) fn snapshot_reported(&mut self, peer: NodeId) {
        self.snapshots_out.remove(&peer);
    }

    pub(super) fn overdue_snapshots(&mut self, now: Millis) -> Vec<NodeId> {
        let is_overdue = |_: &NodeId, sent: &mut Millis| now.since(*sent) >= timing::SNAPSHOT_REPORT_MS;
        self.snapshots_out.extract_if(.., is_overdue).map(|(peer, _)| peer).collect()
    }

    /// Notes the revision of now; the newest one that is older than the history may be.
    fn sample(&mut self, now: Millis, revision: Revision) -> Option<Revision> {
        if self.samples.back().is_some_and(|(at, _)| now.since(*at) < timing::HISTORY_SAMPLE_MS) {
            return None;
        }
        self.samples.push_back((now, revision));
        let mut floor = None;
        while self.samples.front().is_some_and(|(at, _)| now.since(*at) >= timing::HISTORY_MS) {
            floor = self.samples.pop_front().map(|(_, revision)| revision);
        }
        floor
    }
}

impl<D: Disk> Replica<D> {
    pub(super) fn keep_house(&mut self) -> Result<(), Fatal> {
        let raft_log = &self.node.raft.raft_log;
        let (commit, last) = (raft_log.committed, raft_log.last_index());
        // A tail that a new leader replaced by a shorter one was never applied.
        self.housekeeping.applied_before = self.housekeeping.applied_before.min(last.max(1));
        if std::mem::take(&mut self.housekeeping.ticked) {
            self.log.persist_commit(commit)?;
            self.see_who_answers();
        }
        self.bear()?;
        if self.log.wants_snapshot(self.config.snapshot_every_bytes, self.state.applied_index)
            && !self.log.is_pressed()
        {
            self.log.begin_snapshot(&self.state, commit)?;
        }
        self.log.go_on(self.config.snapshot_step_bytes, self.burden.is_light())?;
        Ok(())
    }

    /// Forgets entries that nobody is thought to need any more. After those that are fed were offered what has just been applied.
    pub(super) fn forget_entries(&mut self) {
        let applied = self.state.applied_index;
        let trailing = self.config.trailing_bytes.max(self.log.snapshot_bytes() / TRAILING_PART);
        if self.node.store().is_over(applied, trailing) {
            let needed = self.needed_by_others();
            self.node.mut_store().compact(applied, trailing, needed);
        }
    }

    fn see_who_answers(&mut self) {
        let leads = self.leads();
        let led = std::mem::replace(&mut self.housekeeping.led, leads);
        if !leads {
            return self.housekeeping.answered.clear();
        }
        let (me, now) = (self.config.id.0, self.now);
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != me);
        // A new leader knows nothing of who answered the one before.
        let active = others.filter(|(_, peer)| peer.recent_active || !led);
        let answered = &mut self.housekeeping.answered;
        answered.extend(active.map(|(id, _)| (*id, now)));
        answered.retain(|_, at| now.since(*at) < timing::LAGGARD_MS);
    }

    /// The first entry that somebody lacks who is sent entries, or a state that they follow on. What is forgotten already helps nobody.
    fn needed_by_others(&self) -> Option<u64> {
        let base = self.node.store().base();
        let answered = &self.housekeeping.answered;
        let peers = self.node.raft.prs().iter().filter(|(id, _)| self.leads() && **id != self.config.id.0);
        let lacking = peers.filter_map(|(id, peer)| match peer.state {
            // Until its outcome is known: to install it may take long.
            ProgressState::Snapshot => Some(peer.pending_snapshot + 1),
            _ if !answered.contains_key(id) => None,
            // Not known yet, to a new leader.
            _ if peer.matched == 0 => Some(base + 1),
            _ => Some(peer.matched + 1),
        });
        lacking.chain(self.feeder.needs()).filter(|index| *index > base).min()
    }

    /// The leader moves the history's floor by age.
    pub(super) fn sample_history(&mut self) {
        if !self.is_established() {
            return self.housekeeping.samples.clear();
        }
        let floor = self.housekeeping.sample(self.now, self.state.revision);
        let moves = |floor: &Revision| self.state.history.oldest().is_some_and(|oldest| oldest <= *floor);
        if let Some(floor) = floor.filter(moves) {
            self.propose_own(&Command::Compact { floor, epoch: self.state.epoch });
        }
    }
}
