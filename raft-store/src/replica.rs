//! Decides when raft is asked what, and in which order its answers take effect: take what may be sent early,
//! persist, release what depended on it, apply, report. The one owner of log, consensus and state.
//! Must not do IO but through the log's disk, read no clock, and never panic on what a peer sends.

mod apply;
mod burden;
mod elections;
mod expiry;
mod feeding;
mod housekeeping;
mod installing;
mod membership;
mod open;
mod proposals;
pub(crate) mod reads;
mod status;
mod telling;
#[cfg(test)]
mod tests;

use raft::eraftpb::{Entry, MessageType};
use raft::{RawNode, Ready, SnapshotStatus, StateRole};

use crate::config::Config;
use crate::consistency::Marks;
use crate::disk::Disk;
use crate::effect::{Effect, Fatal, Input, Role, Status};
use crate::feed::FEED;
use crate::feed::follow::Follower;
use crate::feed::growing::Growing;
use crate::feed::recent::Recent;
use crate::feed::serve::Feeder;
use crate::gate::{self, Verdict};
use crate::ids::{Millis, NodeId, Revision};
use crate::log::outbound::{self, Cleared, Unsynced};
use crate::log::{Log, LogError, Wanted};
use crate::state::State;
use crate::storage::Memory;
use crate::timing::Timing;
use crate::view::View;
use crate::{limits, snapshot, timing, wire};

use burden::Burden;
use elections::Elections;
use expiry::Expiry;
use housekeeping::Housekeeping;
use installing::Installing;
use membership::Membership;
use proposals::Proposals;
use reads::Reads;
use telling::Telling;

/// One replica of the store. See the crate's page for how a driver runs it.
pub struct Replica<D: Disk> {
    config: Config,
    timing: Timing,
    log: Log<D>,
    node: RawNode<Memory>,
    state: State,
    view: View,
    proposals: Proposals,
    reads: Reads,
    membership: Membership,
    housekeeping: Housekeeping,
    expiry: Expiry,
    burden: Burden,
    telling: Telling,
    marks: Marks,
    recent: Recent,
    follower: Follower,
    feeder: Feeder,
    growing: Option<Growing>,
    installing: Option<Installing>,
    /// When raft last heard of a leader.
    heard: Option<Millis>,
    /// The first tick.
    begun: Option<Millis>,
    now: Millis,
    effects: Vec<Effect>,
    /// A round that `outbox` began and `advance` ends; raft must not be touched in between.
    held: Option<Held>,
    /// The same round, once `persist` has made it durable: what is to be applied.
    committed: Option<Vec<Entry>>,
    inbox: Vec<Input>,
    incoming: Option<Box<State>>,
    reported: (u64, Role, Option<NodeId>),
    elections: Elections,
    refused: u64,
    /// Whether something was written to the log between the last two ends of `advance`, …
    wrote: bool,
    /// … and how many batches it has had at the last.
    batches: u64,
    rolled_back: Option<u64>,
    stopped: bool,
    started: bool,
}

impl<D: Disk> Replica<D> {
    /// Takes one input. Nothing leaves before `advance`; nothing in the input can make it panic.
    pub fn handle(&mut self, now: Millis, input: Input) {
        self.now = self.now.max(now);
        match () {
            () if self.stopped => {}
            // In the order in which they come.
            () if self.is_amid_a_round() || !self.inbox.is_empty() => self.inbox.push(input),
            () => self.take(input),
        }
    }

    /// What may be sent before the disk is done: a leader's appends go out while its own disk works. Optional;
    /// call it between the last `handle` and `advance`, send what it gives at once. What it does not give,
    /// `advance` does.
    pub fn outbox(&mut self, now: Millis) -> Vec<Effect> {
        self.now = self.now.max(now);
        if self.stopped || self.rolled_back.is_some() || self.is_amid_a_round() || !self.inbox.is_empty() {
            return Vec::new();
        }
        self.ask_raft();
        if !self.node.has_ready() {
            return Vec::new();
        }
        let mut ready = self.node.ready();
        let early = outbound::early(&mut ready, self.log.hard_state());
        let written = if early.is_empty() { None } else { self.write_ahead(&mut ready) };
        self.held = Some(Held { ready, written });
        let before = std::mem::take(&mut self.effects);
        self.send(early);
        std::mem::replace(&mut self.effects, before)
    }

    /// Makes durable what `outbox` has begun, and gives out what need not wait for the rest of `advance`: what a follower
    /// acknowledges, before it applies anything; what a leader answers, before it looks after its log. Optional; call it between these
    /// two, and perform what it gives at once. Errors are those of `advance`.
    pub fn persist(&mut self, now: Millis) -> Result<Vec<Effect>, Fatal> {
        self.now = self.now.max(now);
        if self.stopped || self.rolled_back.is_some() {
            // Which `advance` says. Nothing is promised any more.
            return Ok(Vec::new());
        }
        let Some(Held { ready, written }) = self.held.take() else { return Ok(Vec::new()) };
        let done = self.persist_round(ready, written);
        self.give_out(done)
    }

    /// Persists what the inputs led to (one write, one sync for all of them), applies what is committed, and gives
    /// out what is to be done. After an error the replica has stopped: end the process, perform nothing.
    pub fn advance(&mut self, now: Millis) -> Result<Vec<Effect>, Fatal> {
        self.now = self.now.max(now);
        if self.stopped {
            return Err(Fatal::Stopped);
        }
        let done = self.rounds();
        let batches = self.log.batches();
        self.wrote = std::mem::replace(&mut self.batches, batches) != batches;
        self.give_out(done)
    }

    fn is_amid_a_round(&self) -> bool {
        self.held.is_some() || self.committed.is_some()
    }

    fn give_out(&mut self, done: Result<(), Fatal>) -> Result<Vec<Effect>, Fatal> {
        self.stopped |= done.is_err();
        done.map(|()| std::mem::take(&mut self.effects))
    }

    /// The newest view.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Term, role, members, progress.
    pub fn status(&self) -> Status {
        status::of(self)
    }

    /// The term in which it leads and its own epoch has applied: `Status::established` without the rest.
    pub fn leads_since(&self) -> Option<u64> {
        self.is_established().then_some(self.node.raft.term)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::Message { from, bytes } => self.receive(from, &bytes),
            Input::Propose { id, command } => self.take_proposal(id, command),
            Input::Read { id } => self.reads.ask(id, self.now),
            Input::ChangeMembers { id, changes } => self.take_change(id, &changes),
            Input::Unreachable { peer } => self.node.report_unreachable(peer.0),
            Input::SnapshotSent { peer, ok } => self.report_snapshot(peer, ok),
            Input::TransferLeadership { to } => self.transfer_leadership(to),
            Input::Peers { answering, suspected } => self.follower.peers(&answering, &suspected),
            Input::Synced { took_ms } if self.wrote => self.burden.synced(took_ms),
            Input::Synced { .. } => {}
        }
        self.set_election_timeout();
    }

    fn tick(&mut self) {
        self.node.tick();
        self.reads.tick(self.now, &self.timing, &mut self.effects);
        for peer in self.housekeeping.overdue_snapshots(self.now) {
            if planted!(SnapshotNeverReported) {
                continue;
            }
            self.node.report_snapshot(peer.0, SnapshotStatus::Failure);
        }
        self.housekeeping.ticked();
        if planted!(HistoryByLocalClock) && self.now.0 % 1_000 < timing::TICK_MS {
            self.state.history.compact(Revision(self.state.revision.0.saturating_sub(20)));
        }
        if planted!(RevisionByRole) && self.leads() && self.now.0 % 5_000 < timing::TICK_MS {
            self.state.revision.0 += 1;
        }
        self.sample_history();
        self.expire();
        self.tell_commit();
        self.begun.get_or_insert(self.now);
        self.look_for_a_feed();
    }

    fn receive(&mut self, from: NodeId, bytes: &[u8]) {
        let message = match wire::decode(&self.config.cluster, bytes) {
            Ok(wire::Said::Raft(message)) => message,
            Ok(wire::Said::Feed(stream, message)) => return self.take_feed(from, stream, message),
            Err(error) => return self.refuse(from, &error.to_string()),
        };
        // What a full disk cannot take comes again: the leader counts it as lost on the way.
        let kind = MessageType::from_i32(message.msg_type);
        let brings = kind == Some(MessageType::MsgSnapshot)
            || (kind == Some(MessageType::MsgAppend) && !message.entries.is_empty());
        if brings && self.log.is_pressed() {
            return self.refuse(from, "the disk is full");
        }
        match gate::judge(&self.node, from, &message) {
            Verdict::Step => {}
            Verdict::StepSnapshot(_) if !self.log.has_room(bytes.len() as u64) => {
                return self.refuse(from, "the disk has no room for the snapshot");
            }
            Verdict::StepSnapshot(state) => self.incoming = Some(state),
            Verdict::Refuse(reason) => return self.refuse(from, reason),
            Verdict::RolledBack { promised } => {
                self.rolled_back = Some(promised);
                return;
            }
        }
        let term = message.term;
        match self.node.step(message) {
            Ok(()) => self.heard_leader(kind, term),
            Err(error) => self.refuse(from, &error.to_string()),
        }
    }

    fn refuse(&mut self, from: NodeId, reason: &str) {
        self.refused += 1;
        tracing::debug!(peer = %from, reason, "raft message refused");
    }

    fn report_snapshot(&mut self, peer: NodeId, ok: bool) {
        if planted!(SnapshotNeverReported) {
            return;
        }
        self.housekeeping.snapshot_reported(peer);
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(peer.0, status);
    }

    fn transfer_leadership(&mut self, to: NodeId) {
        let elsewhere = to != self.config.id && self.state.members.voters.contains(&to);
        if self.leads() && elsewhere {
            self.node.transfer_leader(to.0);
        }
    }

    fn rounds(&mut self) -> Result<(), Fatal> {
        self.stop_if_rolled_back()?;
        if let Some(Held { ready, written }) = self.held.take() {
            self.round(ready, written)?;
        }
        if let Some(committed) = self.committed.take() {
            self.apply_round(committed)?;
        }
        self.tell_commit_if_late();
        for input in std::mem::take(&mut self.inbox) {
            self.take(input);
        }
        self.stop_if_rolled_back()?;
        self.rounds_while_ready()?;
        self.take_in_fed()?;
        self.install_fed()?;
        self.rounds_while_ready()?;
        if !self.started {
            self.started = true;
            self.lead_at_once_if_alone()?;
            self.rounds_while_ready()?;
        }
        self.keep_house()?;
        self.feed();
        self.forget_entries();
        self.report();
        Ok(())
    }

    fn stop_if_rolled_back(&self) -> Result<(), Fatal> {
        match self.rolled_back {
            Some(promised) => Err(Fatal::RolledBack { last: self.node.raft.raft_log.last_index(), promised }),
            None => Ok(()),
        }
    }

    fn rounds_while_ready(&mut self) -> Result<(), Fatal> {
        self.ask_raft();
        while self.node.has_ready() {
            let ready = self.node.ready();
            self.round(ready, None)?;
            self.ask_raft();
        }
        Ok(())
    }

    /// An only voter has nobody to wait for. Asked once what is known to be committed has applied, so that the
    /// members are the newest ones.
    fn lead_at_once_if_alone(&mut self) -> Result<(), Fatal> {
        let members = &self.state.members;
        if members.voters != [self.config.id] || members.is_joint() {
            return Ok(());
        }
        self.node.campaign().map_err(|error| Fatal::Consensus(error.to_string()))
    }

    /// What raft can only be asked outside a round: proposals, reads, the end of a joint state.
    fn ask_raft(&mut self) {
        self.step_down_if_removed();
        self.flush_proposals();
        self.leave_joint_state();
        let by_raft = self.leads() || self.is_member();
        if let Some(context) = self.reads.begin_rounds(&mut self.node, self.now, by_raft) {
            self.ask_for_index(context);
        }
        self.set_election_timeout();
    }

    /// Lets the disk work while early messages leave. Not for a leader's snapshot, which is looked at first.
    fn write_ahead(&mut self, ready: &mut Ready) -> Written {
        if !ready.snapshot().is_empty() {
            return None;
        }
        let unsynced = Unsynced::take(ready, self.node.raft.hard_state(), None);
        Some(self.log.write_ahead(unsynced))
    }

    /// The part of a round that others wait for.
    fn persist_round(&mut self, ready: Ready, written: Written) -> Result<(), Fatal> {
        let committed = self.make_durable(ready, written)?;
        if self.leads() {
            self.apply_round(committed)?;
            self.report();
        } else {
            self.committed = Some(committed);
        }
        Ok(())
    }

    /// One `Ready`, by raft's contract; what it wants durable may be written already.
    fn round(&mut self, ready: Ready, written: Written) -> Result<(), Fatal> {
        let committed = self.make_durable(ready, written)?;
        self.apply_round(committed)
    }

    /// What is committed then.
    fn make_durable(&mut self, mut ready: Ready, written: Written) -> Result<Vec<Entry>, Fatal> {
        let early = outbound::early(&mut ready, self.log.hard_state());
        self.send(early);
        for (context, index) in self.reads.answered(ready.take_read_states()) {
            self.tell_index(context, index);
        }
        let mut durable = match written.transpose()? {
            Some(written) => self.log.sync(written)?.open(),
            None => {
                let install = self.snapshot_of(&ready)?;
                let unsynced = Unsynced::take(&mut ready, self.node.raft.hard_state(), install);
                self.log.persist(unsynced)?.open()
            }
        };
        if let Some(state) = durable.install.take() {
            self.node.mut_store().restart(state.clone());
            let members = self.state.members.clone();
            self.state = state;
            self.marks = Marks::default();
            self.marks.applied(self.state.applied_index, self.state.hash);
            self.compare_with_feeder();
            if planted!(SnapshotKeepsMembers) {
                self.state.members = members;
            }
        }
        self.node.mut_store().append(std::mem::take(&mut durable.entries));
        let messages = std::mem::take(&mut durable.messages);
        self.send(messages);
        let mut committed = ready.take_committed_entries();
        let mut light = self.node.advance_append(ready);
        let messages = outbound::afterwards(&mut light, &durable);
        self.send(messages);
        committed.extend(light.take_committed_entries());
        Ok(committed)
    }

    fn apply_round(&mut self, committed: Vec<Entry>) -> Result<(), Fatal> {
        self.apply_all(committed)?;
        self.node.advance_apply();
        self.set_election_timeout();
        Ok(())
    }

    fn snapshot_of(&mut self, ready: &Ready) -> Result<Option<State>, Fatal> {
        if ready.snapshot().is_empty() {
            return Ok(None);
        }
        let index = ready.snapshot().get_metadata().index;
        let state = match self.incoming.take() {
            Some(state) if state.applied_index == index => *state,
            _ => snapshot::decode(&ready.snapshot().data)
                .map_err(|error| Fatal::Consensus(error.to_string()))?,
        };
        match self.config.supported {
            supported if supported.holds(state.version) => Ok(Some(state)),
            supported => Err(Fatal::ClusterVersion { cluster: state.version, supported }),
        }
    }

    fn send(&mut self, messages: Vec<Cleared>) {
        for message in messages.into_iter().flat_map(|message| message.in_parts(limits::APPEND_BYTES)) {
            if message.as_message().to == FEED {
                self.acknowledge_feed(message.as_message());
                continue;
            }
            let effect = wire::send(&self.config.cluster, message);
            if let Effect::Send { to, bulk: true, .. } = &effect {
                self.housekeeping.snapshot_sent(*to, self.now);
            }
            self.effects.push(effect);
        }
    }

    fn report(&mut self) {
        let current = (self.node.raft.term, self.role(), self.leader());
        if current != self.reported {
            self.reported = current;
            self.reads.leader_changed();
            let (term, role, leader) = current;
            self.effects.push(Effect::RoleChanged { term, role, leader });
        }
        self.lose_what_is_lost();
        self.reads.release(self.state.applied_index, self.state.revision, &mut self.effects);
        if self.view.applied().0 != self.state.applied_index {
            self.view = View::new(&self.state);
            self.effects.push(Effect::Applied { view: self.view.clone() });
        }
    }

    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Leads, and its own epoch has applied, so that it knows all that was committed before it.
    fn is_established(&self) -> bool {
        self.leads() && self.state.epoch.0 == self.node.raft.term
    }

    fn role(&self) -> Role {
        match self.node.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower => Role::Follower,
        }
    }

    fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.node.raft.leader_id)).filter(|leader| leader.0 != raft::INVALID_ID)
    }
}

/// What a round wants durable, if it is written already.
type Written = Option<Result<Wanted, LogError>>;

/// A round that was begun: raft has been asked what it wants.
struct Held {
    ready: Ready,
    written: Written,
}

/// A number's bits, well mixed (the finalizer of splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
