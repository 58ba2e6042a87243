//! Takes a whole state from a feeder: piece by piece to the disk and into a state that grows, then in the place of log and state, as a
//! leader's snapshot would.
//!
//! Decides when a piece is written and when the state is installed. No round is long, however big the state, but the one that frees the old
//! state. What is half taken goes when the feed changes. Must not let a feed look like a leader (`feeding`), and must not touch raft while it has something half done.

use raft::RawNode;
use raft::eraftpb::HardState;

use super::{Replica, open};
use crate::consistency::Marks;
use crate::disk::Disk;
use crate::effect::Fatal;
use crate::feed::growing::Growing;
use crate::feed::{Feed, Piece, Want, follow};
use crate::ids::NodeId;
use crate::log::outbound::Unsynced;
use crate::state::State;
use crate::storage::{Memory, Tail};
use crate::{limits, raft_log_drain};

/// A fed state that waits until raft has nothing half done. Its file is whole.
pub(super) struct Installing {
    state: State,
    from: NodeId,
    stream: u64,
    term: u64,
}

impl<D: Disk> Replica<D> {
    pub(super) fn take_piece(&mut self, from: NodeId, stream: u64, piece: Piece) {
        if self.leads() || !self.follower.is_from(from, stream) {
            return self.say(from, stream, &Feed::Leave);
        }
        if piece.data.len() > limits::FEED_PIECE_BYTES || !piece.is_sound() {
            return self.refuse(from, "a piece of a state that makes no sense");
        }
        self.follower.heard(self.now, piece.news);
        self.follower.takes_state(self.now);
        self.learn_leader(piece.news);
        let (index, term) = piece.place;
        let log = &self.node.raft.raft_log;
        let committed = log.committed;
        match () {
            () if index <= committed => self.say(from, stream, &Feed::Ack { index: committed, fits: true }),
            // All of it is in the log already: it only was not known to be committed.
            () if log.match_term(index, term) => {
                let own = self.node.raft.term.max(piece.news.term);
                let message = follow::append(self.config.id.0, own, (index, term), index, Vec::new());
                self.step_fed(message, piece.news);
            }
            () if self.log.is_pressed() => {
                self.say(from, stream, &Feed::Took { index, pieces: 0, want: Want::Room });
            }
            () => return self.grow(from, stream, piece),
        }
        self.growing = None;
    }

    fn grow(&mut self, from: NodeId, stream: u64, piece: Piece) {
        let place = piece.place;
        let source = (from, stream);
        // What is late of a state that the feeder has given up. It has counted what was taken of the one after it, and sends that once.
        let newer = |growing: &Growing| growing.source() == source && growing.place() > place;
        if self.growing.as_ref().is_some_and(newer) {
            return;
        }
        let same = |growing: &Growing| growing.source() == source && growing.place() == place;
        let mut growing = match self.growing.take().filter(same) {
            Some(growing) => growing,
            None => Growing::new(from, stream, place),
        };
        if let Some(want) = growing.offer(piece) {
            self.say(from, stream, &Feed::Took { index: place.0, pieces: growing.taken(), want });
        }
        self.growing = Some(growing);
    }

    /// Takes the pieces that came since the last round.
    pub(super) fn take_in_fed(&mut self) -> Result<(), Fatal> {
        let fed = self.follower.stream();
        let Some(mut growing) = self.growing.take().filter(|growing| fed == Some(growing.source())) else {
            return Ok(self.log.drop_fed()?);
        };
        if !growing.is_waiting() {
            self.growing = Some(growing);
            return Ok(());
        }
        let ((from, stream), (index, _)) = (growing.source(), growing.place());
        let written = self.write_pieces(&mut growing)?;
        match () {
            () if !written => {
                self.refuse(from, "the disk has no room for the state");
                self.say(from, stream, &Feed::Took { index, pieces: 0, want: Want::Room });
            }
            () if growing.is_hopeless() => self.give_up(from)?,
            () if growing.is_whole() => self.end_growing(growing)?,
            () => {
                self.say(from, stream, &Feed::Took { index, pieces: growing.taken(), want: Want::More });
                self.growing = Some(growing);
            }
        }
        Ok(())
    }

    /// False if the disk has no room for them.
    fn write_pieces(&mut self, growing: &mut Growing) -> Result<bool, Fatal> {
        if growing.taken() == 0 && !self.log.begin_fed(growing.place().0)? {
            return Ok(false);
        }
        while let Some(piece) = growing.next() {
            if !self.log.write_fed(&piece, 4 * self.config.snapshot_step_bytes as u64)? {
                return Ok(false);
            }
            growing.take(&piece);
        }
        Ok(true)
    }

    fn end_growing(&mut self, growing: Growing) -> Result<(), Fatal> {
        let ((from, stream), place, term) = (growing.source(), growing.place(), growing.term());
        match growing.finish() {
            Ok(state) if (state.applied_index, state.applied_term) == place => {
                self.log.end_fed()?;
                self.installing = Some(Installing { state, from, stream, term });
                Ok(())
            }
            _ => self.give_up(from),
        }
    }

    /// What came was no state: no more from there, for long.
    fn give_up(&mut self, from: NodeId) -> Result<(), Fatal> {
        self.refuse(from, "a fed state that cannot be used");
        if let Some((feeder, stream)) = self.follower.shun(self.now) {
            self.say(feeder, stream, &Feed::Leave);
        }
        Ok(self.log.drop_fed()?)
    }

    /// Installs a fed state. Only when raft has nothing half done: it begins anew.
    pub(super) fn install_fed(&mut self) -> Result<(), Fatal> {
        let Some(installing) = self.installing.take() else { return Ok(()) };
        let Installing { state, from, stream, term } = installing;
        let (index, applied_term) = (state.applied_index, state.applied_term);
        let log = &self.node.raft.raft_log;
        if self.leads() || index <= log.committed || log.match_term(index, applied_term) {
            return Ok(self.log.drop_fed()?);
        }
        let supported = self.config.supported;
        if !supported.holds(state.version) {
            return Err(Fatal::ClusterVersion { cluster: state.version, supported });
        }
        let leader = self.node.raft.leader_id;
        let own = self.node.raft.hard_state();
        let term = own.term.max(term).max(applied_term);
        let vote = if term == own.term { own.vote } else { raft::INVALID_ID };
        let hard_state = HardState { term, vote, commit: index };
        let _ = self.log.persist(Unsynced::installing(hard_state.clone(), state.clone()))?.open();
        let memory = Memory::new((index, applied_term), Tail::default(), hard_state, state.clone());
        let settings = open::settings(&self.config, &self.timing, index);
        self.node = RawNode::new(&settings, memory, &raft_log_drain::logger())
            .map_err(|error| Fatal::Consensus(error.to_string()))?;
        self.set_election_timeout();
        self.node.raft.leader_id =
            if self.state.members.is_empty() || !self.is_member() { leader } else { 0 };
        self.state = state;
        self.marks = Marks::default();
        self.marks.applied(self.state.applied_index, self.state.hash);
        self.incoming = None;
        self.reads.leader_changed();
        self.compare_with_feeder();
        self.say(from, stream, &Feed::Ack { index, fits: true });
        Ok(())
    }
}
