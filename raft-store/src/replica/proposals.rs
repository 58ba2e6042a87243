//! Decides which proposals enter the log and how each gets its one answer. A leader's first is always its epoch.
//! Must not forward: whoever does not lead says so.

use std::collections::BTreeMap;

use raft::eraftpb::{Entry, Message, MessageType};

use super::Replica;
use crate::codec;
use crate::command::{Command, Outcome, Refusal};
use crate::disk::Disk;
use crate::effect::Effect;
use crate::ids::ProposalId;
use crate::limits;

/// Proposals on their way.
#[derive(Default)]
pub(super) struct Proposals {
    queue: Vec<(Option<ProposalId>, Vec<u8>)>,
    pending: BTreeMap<u64, (u64, ProposalId)>,
    epoch_term: u64,
}

impl Proposals {
    /// Whose entry this was. An entry of another term at that index replaced ours: then nobody's.
    pub(super) fn applied(&mut self, index: u64, term: u64) -> Option<ProposalId> {
        match self.pending.get(&index) {
            Some((proposed, id)) if *proposed == term || planted!(AnswerByIndex) => {
                let id = *id;
                self.pending.remove(&index);
                Some(id)
            }
            _ => None,
        }
    }

    /// Takes out everything that was proposed in another term than `leading`.
    fn lost(&mut self, leading: Option<u64>) -> Vec<ProposalId> {
        let is_lost = |_: &u64, proposed: &mut (u64, ProposalId)| {
            Some(proposed.0) != leading && !planted!(AnswerByIndex)
        };
        self.pending.extract_if(.., is_lost).map(|(_, (_, id))| id).collect()
    }
}

impl<D: Disk> Replica<D> {
    pub(super) fn take_proposal(&mut self, id: ProposalId, command: Command) {
        let refusal = match &command {
            _ if !self.leads() => Some(Outcome::NotLeader { leader: self.leader() }),
            Command::Epoch { .. } => Some(Outcome::Refused(Refusal::NotForDrivers)),
            _ if self.log.is_pressed() => Some(Outcome::Refused(Refusal::DiskFull)),
            command if !command.fits(self.state.version, &self.config.supported) => {
                Some(Outcome::Refused(Refusal::Version))
            }
            command if !command.within_limits() => Some(Outcome::Refused(Refusal::TooLarge)),
            _ => None,
        };
        if let Some(outcome) = refusal {
            return self.effects.push(Effect::Answer { id, outcome });
        }
        self.telling.comes(self.now, self.config.stream_ms);
        let data = codec::encode_command(&command);
        match data.len() <= limits::COMMAND_BYTES {
            true => self.proposals.queue.push((Some(id), data)),
            false => self.answer(Some(id), Outcome::Refused(Refusal::TooLarge)),
        }
    }

    /// Proposes a command of the replica's own.
    pub(super) fn propose_own(&mut self, command: &Command) {
        self.proposals.queue.push((None, codec::encode_command(command)));
    }

    /// Puts all queued proposals into the log in one step of raft.
    pub(super) fn flush_proposals(&mut self) {
        let term = self.node.raft.term;
        if self.leads() && self.proposals.epoch_term != term {
            self.proposals.epoch_term = term;
            self.proposals.queue.insert(0, (None, codec::encode_command(&Command::Epoch { term })));
        }
        if self.proposals.queue.is_empty() {
            return;
        }
        let queue = std::mem::take(&mut self.proposals.queue);
        match self.leads() {
            true => self.propose_within_budget(queue),
            false => {
                let outcome = Outcome::NotLeader { leader: self.leader() };
                queue.into_iter().for_each(|(id, _)| self.answer(id, outcome.clone()));
            }
        }
    }

    fn propose_within_budget(&mut self, queue: Vec<(Option<ProposalId>, Vec<u8>)>) {
        let mut used = self.node.raft.uncommitted_size() as u64;
        let mut taken = Vec::with_capacity(queue.len());
        for (id, data) in queue {
            let size = data.len() as u64;
            // raft takes anything when nothing is uncommitted, and refuses the whole message otherwise.
            if used == 0 || used + size <= limits::UNCOMMITTED_BYTES || id.is_none() {
                used += size;
                taken.push((id, data));
            } else {
                self.answer(id, Outcome::Refused(Refusal::Busy));
            }
        }
        let (ids, entries): (Vec<_>, Vec<_>) =
            taken.into_iter().map(|(id, data)| (id, Entry { data, ..Entry::default() })).unzip();
        self.propose_entries(ids, entries);
    }

    fn propose_entries(&mut self, ids: Vec<Option<ProposalId>>, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let from = self.node.raft.id;
        let before = self.node.raft.raft_log.last_index();
        let kind = MessageType::MsgPropose as i32;
        let message = Message { msg_type: kind, from, entries, ..Message::default() };
        if self.node.raft.step(message).is_err() {
            let refusal = match self.node.raft.lead_transferee {
                Some(_) => Refusal::HandingOver,
                None => Refusal::Busy,
            };
            return ids.into_iter().for_each(|id| self.answer(id, Outcome::Refused(refusal)));
        }
        // They carry it.
        self.telling.told(self.node.raft.raft_log.committed);
        let (term, first) = (self.node.raft.term, before + 1);
        let named = ids.into_iter().zip(first..).filter_map(|(id, index)| id.map(|id| (index, (term, id))));
        self.proposals.pending.extend(named);
    }

    /// Answers what can no longer be answered by apply.
    pub(super) fn lose_what_is_lost(&mut self) {
        let leading = self.leads().then_some(self.node.raft.term);
        for id in self.proposals.lost(leading) {
            let done = Outcome::Applied { revision: self.state.revision, changed: true };
            self.answer(Some(id), if planted!(LostAnsweredAsDone) { done } else { Outcome::Lost });
        }
        if let Some(id) = self.membership.lost(leading) {
            self.answer(Some(id), Outcome::Lost);
        }
    }

    pub(super) fn answer(&mut self, id: Option<ProposalId>, outcome: Outcome) {
        if let Some(id) = id {
            self.effects.push(Effect::Answer { id, outcome });
        }
    }
}
