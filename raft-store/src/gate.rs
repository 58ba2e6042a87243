//! Decides which messages raft may see. raft-rs obeys anyone and panics on nonsense, so whatever could make it panic,
//! or is not the sender's to say, ends here. The reasons are in docs/decisions.
//! Must not change anything: it reads raft's state and answers.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{INVALID_ID, RawNode, StateRole};

use crate::ids::NodeId;
use crate::members::Members;
use crate::replica::reads::ReadContext;
use crate::snapshot;
use crate::state::State;
use crate::storage::Memory;

/// raft's mark on the vote request of a leadership transfer.
const TRANSFER: &[u8] = b"CampaignTransfer";
/// Terms and indexes beyond this are nonsense that could overflow.
const SANE: u64 = u64::MAX / 4;

/// What the gate says.
pub(crate) enum Verdict {
    /// Give it to raft.
    Step,
    /// Give it to raft; this is the state in its snapshot.
    StepSnapshot(Box<State>),
    /// Forget it.
    Refuse(&'static str),
    /// The leader counts on entries that we do not have.
    RolledBack {
        /// The index it counts on.
        promised: u64,
    },
}

/// Judges a message from the authenticated peer `from`.
pub(crate) fn judge(node: &RawNode<Memory>, from: NodeId, message: &Message) -> Verdict {
    let gate = Gate { node, message, last: node.raft.raft_log.last_index() };
    match gate.addressed(from).and_then(|()| gate.numbers()) {
        Some(()) => gate.by_kind(),
        None => Verdict::Refuse("not addressed to us by its sender, or its numbers make no sense"),
    }
}

struct Gate<'a> {
    node: &'a RawNode<Memory>,
    message: &'a Message,
    last: u64,
}

impl Gate<'_> {
    fn addressed(&self, from: NodeId) -> Option<()> {
        let (m, own) = (self.message, self.node.raft.id);
        (m.from == from.0 && m.to == own && m.from != own && m.from != INVALID_ID).then_some(())
    }

    fn numbers(&self) -> Option<()> {
        let m = self.message;
        let numbers = [m.term, m.log_term, m.index, m.commit, m.commit_term, m.reject_hint];
        let sane = numbers.iter().all(|number| *number < SANE);
        let plain = m.priority == 0 && m.deprecated_priority == 0 && m.request_snapshot == 0;
        (sane && plain).then_some(())
    }

    fn by_kind(&self) -> Verdict {
        let m = self.message;
        let Some(kind) = MessageType::from_i32(m.msg_type) else {
            return Verdict::Refuse("of an unknown kind");
        };
        let has_term = m.term > 0;
        match kind {
            MessageType::MsgPropose if planted!(ForeignProposals) => Verdict::Step,
            MessageType::MsgReadIndex => allow(self.read_index(), "a read index it may not ask for"),
            _ if !has_term => Verdict::Refuse("without a term"),
            MessageType::MsgHeartbeat => self.heartbeat(),
            MessageType::MsgAppend => allow(self.append(), "an append that does not fit together"),
            MessageType::MsgSnapshot => self.snapshot(),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                allow(self.vote(), "a vote request from outside")
            }
            MessageType::MsgAppendResponse => allow(self.append_response(), "a response that cannot be"),
            MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse => {
                allow(self.is_member() && m.entries.is_empty(), "a response from outside")
            }
            MessageType::MsgTimeoutNow => allow(self.is_from_leader(), "a transfer that is not its to order"),
            MessageType::MsgReadIndexResp => allow(self.read_answer(), "an answer to nothing we asked"),
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgTransferLeader => Verdict::Refuse("of a kind that is local"),
        }
    }

    fn is_member(&self) -> bool {
        self.node.raft.prs().get(self.message.from).is_some()
    }

    fn is_from_leader(&self) -> bool {
        self.message.term == self.node.raft.term && self.message.from == self.node.raft.leader_id
    }

    /// A leader's heartbeat never carries a commit beyond what we acknowledged to it in its term, and raft would panic
    /// at one. From a voter, or while we know no voters, it proves that our disk was rolled back or replaced.
    fn heartbeat(&self) -> Verdict {
        let m = self.message;
        if m.commit <= self.last || m.term < self.node.raft.term {
            return Verdict::Step;
        }
        let voters = self.node.raft.prs().conf().voters();
        match voters.contains(m.from) || voters.ids().is_empty() {
            true if planted!(RollbackUnnoticed) => Verdict::Refuse("beyond our log"),
            true => Verdict::RolledBack { promised: m.commit },
            false => Verdict::Refuse("a heartbeat beyond our log from somebody who does not vote"),
        }
    }

    /// raft takes log term 0 at an index beyond its log for a match, and trusts the entries' numbers.
    fn append(&self) -> bool {
        let m = self.message;
        let anchored = (m.index == 0) == (m.log_term == 0) && m.log_term <= m.term;
        let mut before = (m.index, m.log_term);
        let follows = |entry: &Entry| {
            let next = entry.index == before.0 + 1 && entry.term >= before.1.max(1) && entry.term <= m.term;
            before = (entry.index, entry.term);
            next && EntryType::from_i32(entry.entry_type).is_some()
        };
        anchored && m.entries.iter().all(follows)
    }

    fn append_response(&self) -> bool {
        let m = self.message;
        let within = m.index <= self.last && m.reject_hint <= self.last && m.commit <= self.last;
        // An older leader's message is answered with a bare response of the newer term.
        self.is_member() && (within || m.term != self.node.raft.term)
    }

    /// Anybody in the cluster may campaign (we may be the ones who lag behind the member list), but not against a
    /// leader that does not know it, and not with the mark that overrides our leader's lease.
    fn vote(&self) -> bool {
        let m = self.message;
        let intrudes = self.node.raft.state == StateRole::Leader || m.context == TRANSFER;
        m.entries.is_empty() && (self.is_member() || !intrudes)
    }

    fn read_index(&self) -> bool {
        let m = self.message;
        let room = self.node.raft.pending_read_count() < crate::limits::PENDING_READS;
        let asks = match m.entries.as_slice() {
            [entry] => {
                ReadContext::decode(&entry.data).is_some_and(|context| context.asker == NodeId(m.from))
            }
            _ => false,
        };
        m.term == 0 && self.is_member() && room && asks
    }

    fn read_answer(&self) -> bool {
        let own = NodeId(self.node.raft.id);
        let ours = match self.message.entries.as_slice() {
            [entry] => ReadContext::decode(&entry.data).is_some_and(|context| context.asker == own),
            _ => false,
        };
        ours && self.is_from_leader()
    }

    fn snapshot(&self) -> Verdict {
        let m = self.message;
        let Some((metadata, data)) = m
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.metadata.as_ref().map(|md| (md, &snapshot.data)))
        else {
            return Verdict::Refuse("a snapshot without its description");
        };
        let numbers =
            metadata.index > 0 && metadata.index < SANE && metadata.term > 0 && metadata.term <= m.term;
        if !numbers || !m.entries.is_empty() {
            return Verdict::Refuse("a snapshot whose numbers make no sense");
        }
        let log = &self.node.raft.raft_log;
        let known = metadata.index == log.committed && log.match_term(metadata.index, metadata.term);
        let stale = m.term < self.node.raft.term || metadata.index < log.committed || known;
        if stale {
            // raft answers by itself, with the index it has.
            return if self.conf_is_sound() { Verdict::Step } else { Verdict::Refuse("unsound members") };
        }
        match snapshot::decode(data) {
            Ok(state) if self.describes(&state) => Verdict::StepSnapshot(Box::new(state)),
            _ => Verdict::Refuse("a snapshot that cannot be used"),
        }
    }

    fn conf_is_sound(&self) -> bool {
        let metadata = self.message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let conf = metadata.and_then(|metadata| metadata.conf_state.as_ref());
        conf.is_some_and(|conf| Members::from_raft(conf).is_sound())
    }

    fn describes(&self, state: &State) -> bool {
        let metadata = self.message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        metadata.is_some_and(|metadata| {
            let members = metadata.conf_state.as_ref().map(Members::from_raft);
            metadata.index == state.applied_index
                && metadata.term == state.applied_term
                && members.as_ref() == Some(state.members.as_ref())
                && state.members.is_sound()
        })
    }
}

fn allow(allowed: bool, refusal: &'static str) -> Verdict {
    if allowed { Verdict::Step } else { Verdict::Refuse(refusal) }
}

#[cfg(test)]
mod tests;
