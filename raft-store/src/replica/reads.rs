//! Decides when a linearizable read may be served: after a read index that was asked for after the read came in, and
//! once that index is applied. All reads that wait share a round; every attempt has its own context.
//! Must not reuse a context (raft would answer with the older index) nor trust a lease.

use raft::{INVALID_ID, RawNode, ReadState, StateRole};

use crate::effect::{Effect, ReadFailure};
use crate::ids::{Millis, NodeId, ReadId, Revision};
use crate::log::identity::array;
use crate::storage::Memory;
use crate::timing::Timing;

const CONTEXT_BYTES: usize = 24;
/// Rounds under way at once; later reads wait for the next.
const ROUNDS: usize = 32;

/// Names one attempt: who asks, in which start of its log, and a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadContext {
    pub(crate) asker: NodeId,
    pub(crate) boot: u64,
    pub(crate) counter: u64,
}

impl ReadContext {
    pub(crate) fn encode(&self) -> Vec<u8> {
        [self.asker.0, self.boot, self.counter].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<ReadContext> {
        let number = |n: usize| u64::from_le_bytes(array(&bytes[8 * n..]));
        (bytes.len() == CONTEXT_BYTES).then(|| ReadContext {
            asker: NodeId(number(0)),
            boot: number(1),
            counter: number(2),
        })
    }
}

struct Round {
    context: ReadContext,
    reads: Vec<(ReadId, Millis)>,
    begun: Millis,
    index: Option<u64>,
}

/// All reads that wait.
pub(super) struct Reads {
    next: ReadContext,
    waiting: Vec<(ReadId, Millis)>,
    rounds: Vec<Round>,
}

impl Reads {
    pub(super) fn new(asker: NodeId, boot: u64) -> Reads {
        Reads { next: ReadContext { asker, boot, counter: 0 }, waiting: Vec::new(), rounds: Vec::new() }
    }

    pub(super) fn ask(&mut self, id: ReadId, now: Millis) {
        self.waiting.push((id, now));
    }

    /// Begins a round for all that wait, if there is somebody to ask. Whom raft would not answer asks the leader by the context
    /// that is returned.
    pub(super) fn begin_rounds(
        &mut self,
        node: &mut RawNode<Memory>,
        now: Millis,
        by_raft: bool,
    ) -> Option<ReadContext> {
        if self.waiting.is_empty() || self.rounds.len() >= ROUNDS || node.raft.leader_id == INVALID_ID {
            return None;
        }
        let context = self.next;
        self.next.counter += u64::from(!planted!(ReadContextReused));
        let by_lease = planted!(ReadByLease) && node.raft.state == StateRole::Leader;
        let index = by_lease.then_some(node.raft.raft_log.committed);
        if by_raft {
            node.read_index(context.encode());
        }
        let reads = std::mem::take(&mut self.waiting);
        self.rounds.push(Round { context, reads, begun: now, index });
        (!by_raft).then_some(context)
    }

    /// Takes raft's answers, and gives out those that others asked for.
    pub(super) fn answered(&mut self, states: Vec<ReadState>) -> Vec<(ReadContext, u64)> {
        let contexts = states.iter().map(|state| (ReadContext::decode(&state.request_ctx), state.index));
        let answers: Vec<(ReadContext, u64)> =
            contexts.filter_map(|(context, index)| Some((context?, index))).collect();
        let (own, others): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(context, _)| context.asker == self.next.asker);
        own.into_iter().for_each(|(context, index)| self.confirmed(context, index));
        others
    }

    /// The index that confirms the round of this context.
    pub(super) fn confirmed(&mut self, context: ReadContext, index: u64) {
        if let Some(round) = self.rounds.iter_mut().find(|round| round.context == context) {
            round.index.get_or_insert(index);
        }
    }

    /// Gives out the reads whose index is applied.
    pub(super) fn release(&mut self, applied: u64, revision: Revision, effects: &mut Vec<Effect>) {
        let is_ready = |round: &mut Round| {
            round.index.is_some_and(|index| index <= applied || planted!(ReadBeforeApply))
        };
        for round in self.rounds.extract_if(.., is_ready) {
            effects.extend(round.reads.into_iter().map(|(id, _)| Effect::ReadReady { id, revision }));
        }
    }

    /// Begins unanswered rounds anew and fails what waited too long.
    pub(super) fn tick(&mut self, now: Millis, timing: &Timing, effects: &mut Vec<Effect>) {
        self.retry(|round| now.since(round.begun) >= timing.read_retry_ms);
        let is_late = |read: &mut (ReadId, Millis)| now.since(read.1) >= timing.read_deadline_ms;
        let late = |reads: &mut Vec<(ReadId, Millis)>| reads.extract_if(.., is_late).collect::<Vec<_>>();
        let mut failed = late(&mut self.waiting);
        self.rounds.iter_mut().for_each(|round| failed.extend(late(&mut round.reads)));
        self.rounds.retain(|round| !round.reads.is_empty());
        let reason = ReadFailure::Timeout;
        effects.extend(failed.into_iter().map(|(id, _)| Effect::ReadFailed { id, reason }));
    }

    /// raft drops what it was asked when the leader changes, and says nothing.
    pub(super) fn leader_changed(&mut self) {
        self.retry(|_| true);
    }

    /// Whoever confirmed may hold something else: all are asked anew.
    pub(super) fn distrust(&mut self) {
        let rounds = std::mem::take(&mut self.rounds);
        self.waiting.extend(rounds.into_iter().flat_map(|round| round.reads));
    }

    fn retry(&mut self, due: impl Fn(&Round) -> bool) {
        let given_up = self.rounds.extract_if(.., |round| round.index.is_none() && due(round));
        self.waiting.extend(given_up.flat_map(|round| round.reads));
    }
}
