//! Decides how members change: one change at a time, several members in one joint step, confirmed by the members
//! that result, the joint state ended by whoever leads. Must not let a leader remove itself, nor choose members:
//! that is the agent's.

use std::collections::BTreeSet;

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::Replica;
use crate::command::{Outcome, Refusal};
use crate::disk::Disk;
use crate::effect::MemberChange;
use crate::ids::{NodeId, ProposalId};

/// The change under way here, if any.
#[derive(Default)]
pub(super) struct Membership {
    change: Option<Change>,
}

struct Change {
    id: ProposalId,
    term: u64,
    index: u64,
    entered: bool,
}

impl Membership {
    /// The change's id, if it was proposed in another term than `leading`.
    pub(super) fn lost(&mut self, leading: Option<u64>) -> Option<ProposalId> {
        self.change.take_if(|change| Some(change.term) != leading).map(|change| change.id)
    }
}

impl<D: Disk> Replica<D> {
    pub(super) fn take_change(&mut self, id: ProposalId, changes: &[MemberChange]) {
        let outcome = match self.judge_change(changes) {
            Ok(true) => match self.propose_change(id, changes) {
                Ok(()) => return,
                Err(refusal) => Outcome::Refused(refusal),
            },
            Ok(false) => self.members_changed(),
            Err(outcome) => outcome,
        };
        self.answer(Some(id), outcome);
    }

    /// Whether the change would change anything, or why it is not taken.
    fn judge_change(&self, changes: &[MemberChange]) -> Result<bool, Outcome> {
        if !self.leads() {
            return Err(Outcome::NotLeader { leader: self.leader() });
        }
        let members = &self.state.members;
        if !self.is_established()
            || members.is_joint()
            || (self.node.raft.has_pending_conf() && !planted!(SecondChange))
            || (self.membership.change.is_some() && !planted!(SecondChange))
        {
            return Err(Outcome::Refused(Refusal::ChangeInProgress));
        }
        let named: BTreeSet<NodeId> = changes.iter().map(MemberChange::node).collect();
        let (voters, learners) = after(&members.voters, &members.learners, changes);
        match () {
            () if named.len() != changes.len() || named.is_empty() || named.contains(&NodeId(0)) => {
                Err(Outcome::Refused(Refusal::BadChange))
            }
            () if voters.is_empty() => Err(Outcome::Refused(Refusal::BadChange)),
            () if !voters.contains(&self.config.id) && !planted!(LeaderLeaves) => {
                Err(Outcome::Refused(Refusal::LeaderWouldLeave))
            }
            () => Ok(voters != members.voters || learners != members.learners),
        }
    }

    fn propose_change(&mut self, id: ProposalId, changes: &[MemberChange]) -> Result<(), Refusal> {
        let transition = match changes.len() {
            1 => ConfChangeTransition::Auto,
            _ => ConfChangeTransition::Explicit,
        };
        let change = ConfChangeV2 {
            transition: transition as i32,
            changes: changes.iter().map(single).collect(),
            context: Vec::new(),
        };
        // What is queued was asked for before: it goes first.
        self.flush_proposals();
        if planted!(SecondChange) {
            self.node.raft.pending_conf_index = 0;
        }
        self.node.propose_conf_change(Vec::new(), change).map_err(|_| Refusal::HandingOver)?;
        let (term, index) = (self.node.raft.term, self.node.raft.raft_log.last_index());
        self.membership.change = Some(Change { id, term, index, entered: false });
        Ok(())
    }

    /// A membership entry applied: the change is complete once the members are not joint.
    pub(super) fn members_applied(&mut self, index: u64, term: u64) {
        let joint = self.state.members.is_joint();
        let Some(change) = &mut self.membership.change else { return };
        change.entered |= change.index == index && change.term == term;
        if change.entered && !joint {
            let id = change.id;
            self.membership.change = None;
            let outcome = self.members_changed();
            self.answer(Some(id), outcome);
        }
    }

    /// raft turns a change that it does not want into an empty entry, and says nothing.
    pub(super) fn change_overtaken(&mut self, index: u64, term: u64) {
        let ours = |change: &mut Change| change.index == index && change.term == term;
        if let Some(change) = self.membership.change.take_if(ours) {
            self.answer(Some(change.id), Outcome::Refused(Refusal::Overtaken));
        }
    }

    /// Whoever leads ends a joint state, also one that an earlier leader began.
    pub(super) fn leave_joint_state(&mut self) {
        if planted!(JointNeverLeft) {
            return;
        }
        if self.state.members.is_joint() && self.is_established() && !self.node.raft.has_pending_conf() {
            // Refused only while leadership moves; then the next leader does it.
            let _ = self.node.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    /// A leader that a joint state's end left without a vote goes on leading in raft-rs until it is told.
    pub(super) fn step_down_if_removed(&mut self) {
        if self.leads() && !self.state.members.is_voter(self.config.id) && !planted!(LeaderLeaves) {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn members_changed(&self) -> Outcome {
        let members = &self.state.members;
        Outcome::MembersChanged { voters: members.voters.clone(), learners: members.learners.clone() }
    }
}

fn single(change: &MemberChange) -> ConfChangeSingle {
    let kind = match change {
        MemberChange::AddVoter(_) => ConfChangeType::AddNode,
        MemberChange::AddLearner(_) => ConfChangeType::AddLearnerNode,
        MemberChange::Remove(_) => ConfChangeType::RemoveNode,
    };
    ConfChangeSingle { change_type: kind as i32, node_id: change.node().0 }
}

/// The sets that result, in ascending order.
fn after(voters: &[NodeId], learners: &[NodeId], changes: &[MemberChange]) -> (Vec<NodeId>, Vec<NodeId>) {
    let mut voters: BTreeSet<NodeId> = voters.iter().copied().collect();
    let mut learners: BTreeSet<NodeId> = learners.iter().copied().collect();
    for change in changes {
        voters.remove(&change.node());
        learners.remove(&change.node());
        match change {
            MemberChange::AddVoter(id) => drop(voters.insert(*id)),
            MemberChange::AddLearner(id) => drop(learners.insert(*id)),
            MemberChange::Remove(_) => {}
        }
    }
    (voters.into_iter().collect(), learners.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::effect::Effect;
    use crate::ids::{ClusterId, Millis};
    use crate::sim_disk::MemDisk;

    #[test]
    fn a_change_that_raft_turns_down_is_answered_and_the_next_one_is_taken() {
        let config = Config::new(NodeId(1), ClusterId([1; 16]), 1);
        let mut replica = Replica::create_first(MemDisk::new(), config).unwrap();
        replica.advance(Millis(1)).unwrap();
        let outcomes = |replica: &mut Replica<MemDisk>| -> Vec<Outcome> {
            let answer = |effect| match effect {
                Effect::Answer { outcome, .. } => Some(outcome),
                _ => None,
            };
            replica.advance(Millis(2)).unwrap().into_iter().filter_map(answer).collect()
        };
        // As if raft knew of a change that we have overlooked: it puts an empty entry in ours' place.
        replica.node.raft.pending_conf_index = u64::MAX;
        replica.propose_change(ProposalId(1), &[MemberChange::AddLearner(NodeId(2))]).unwrap();
        replica.node.raft.pending_conf_index = 0;
        assert_eq!(outcomes(&mut replica), [Outcome::Refused(Refusal::Overtaken)]);
        assert_eq!(replica.status().learners, []);
        replica.take_change(ProposalId(2), &[MemberChange::AddLearner(NodeId(2))]);
        let (voters, learners) = (vec![NodeId(1)], vec![NodeId(2)]);
        assert_eq!(outcomes(&mut replica), [Outcome::MembersChanged { voters, learners }]);
    }
}
