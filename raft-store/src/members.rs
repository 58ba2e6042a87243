//! Decides which sets of voters and learners make sense. The replicated state and its snapshots hold this form;
//! raft's own `ConfState` is made from it and read into it here and nowhere else.
//! Must not change membership: raft does, `state` records.

use bincode::{Decode, Encode};
use raft::eraftpb::ConfState;

use crate::ids::NodeId;

/// Who votes and who learns. In a joint state both voter sets must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Members {
    /// The voters, in ascending order; in a joint state the incoming ones.
    pub voters: Vec<NodeId>,
    /// The learners, in ascending order.
    pub learners: Vec<NodeId>,
    /// Not empty in a joint state: the voters that are being replaced.
    pub voters_outgoing: Vec<NodeId>,
    /// Outgoing voters that become learners when the joint state is left.
    pub learners_next: Vec<NodeId>,
    /// raft leaves the joint state by itself. We always ask for it ourselves, so this stays false.
    pub auto_leave: bool,
}

impl Members {
    /// A cluster of one.
    pub(crate) fn only(id: NodeId) -> Members {
        Members { voters: vec![id], ..Members::default() }
    }

    /// Whether a membership change is half done.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether `id` votes, in either set.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }

    /// Whether `id` votes or learns.
    pub fn contains(&self, id: NodeId) -> bool {
        self.is_voter(id) || self.learners.contains(&id) || self.learners_next.contains(&id)
    }

    /// No voter and no learner: a replica that waits to be told.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty() && self.learners.is_empty()
    }

    /// Whether raft takes this set without panicking: voters exist, nobody is named twice or zero, nothing joint
    /// outside a joint state.
    pub(crate) fn is_sound(&self) -> bool {
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        let distinct = lists.iter().all(|list| list.windows(2).all(|pair| pair[0] < pair[1]));
        let no_zero = lists.iter().all(|list| list.first() != Some(&NodeId(0)));
        let learners_apart = self.learners.iter().all(|id| !self.is_voter(*id));
        let next_outgoing = self
            .learners_next
            .iter()
            .all(|id| self.voters_outgoing.contains(id) && !self.voters.contains(id));
        let joint_only = self.is_joint() || !self.auto_leave;
        !self.voters.is_empty() && distinct && no_zero && learners_apart && next_outgoing && joint_only
    }

    /// Reads raft's form. Duplicates stay, so that `is_sound` sees them.
    pub(crate) fn from_raft(conf: &ConfState) -> Members {
        Members {
            voters: sorted(&conf.voters),
            learners: sorted(&conf.learners),
            voters_outgoing: sorted(&conf.voters_outgoing),
            learners_next: sorted(&conf.learners_next),
            auto_leave: conf.auto_leave,
        }
    }

    /// raft's form.
    pub(crate) fn to_raft(&self) -> ConfState {
        let raw = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect();
        ConfState {
            voters: raw(&self.voters),
            learners: raw(&self.learners),
            voters_outgoing: raw(&self.voters_outgoing),
            learners_next: raw(&self.learners_next),
            auto_leave: self.auto_leave,
        }
    }
}

fn sorted(ids: &[u64]) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = ids.iter().copied().map(NodeId).collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64]) -> Members {
        Members::from_raft(&ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            voters_outgoing: outgoing.to_vec(),
            learners_next: next.to_vec(),
            auto_leave: false,
        })
    }

    #[test]
    fn sound_sets_are_told_from_unsound_ones() {
        assert!(members(&[1, 2, 3], &[4], &[], &[]).is_sound());
        assert!(members(&[1, 2], &[], &[2, 3], &[3]).is_sound());
        assert!(!members(&[], &[4], &[], &[]).is_sound(), "no voter");
        assert!(!members(&[1, 1], &[], &[], &[]).is_sound(), "twice");
        assert!(!members(&[0, 1], &[], &[], &[]).is_sound(), "zero");
        assert!(!members(&[1], &[1], &[], &[]).is_sound(), "voter and learner");
        assert!(!members(&[1], &[], &[], &[2]).is_sound(), "next without outgoing");
    }
}
