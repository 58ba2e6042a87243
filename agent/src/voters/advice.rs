//! What `skein cluster status` says of the voters, and what to do about it.
//!
//! Decides which loss would hurt most. It must not choose voters (`raft_store::autopilot`), nor look at anything but members.

use std::collections::BTreeSet;

use raft_store::{NodeId, View};

use super::candidates;
use crate::members::in_view;

/// What is to be said, if anything. `alive` are the members that are neither suspected nor dead.
pub fn advice(view: &View, alive: &BTreeSet<NodeId>, leader: bool) -> Option<String> {
    let listed = in_view(view);
    let name = |id: NodeId| {
        let found = listed.iter().find(|member| member.node_id() == id);
        found.map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let members = view.members();
    let eligible = candidates(view).iter().filter(|member| member.may_vote).count();
    Votes { voters: &members.voters, outgoing: &members.voters_outgoing, alive }.say(eligible, leader, name)
}

struct Votes<'a> {
    voters: &'a [NodeId],
    /// Those before them, in the midst of a change: their majority is needed too.
    outgoing: &'a [NodeId],
    alive: &'a BTreeSet<NodeId>,
}

impl Votes<'_> {
    fn sets(&self) -> impl Iterator<Item = &[NodeId]> {
        [self.voters, self.outgoing].into_iter().filter(|set| !set.is_empty())
    }

    fn up(&self, set: &[NodeId]) -> usize {
        set.iter().filter(|id| self.alive.contains(id)).count()
    }

    /// Those of the living without whom a set has no majority.
    fn indispensable(&self) -> BTreeSet<NodeId> {
        let tight = self.sets().filter(|set| self.up(set).saturating_sub(1) * 2 <= set.len());
        tight.flatten().copied().filter(|id| self.alive.contains(id)).collect()
    }

    fn say(&self, eligible: usize, leader: bool, name: impl Fn(NodeId) -> String) -> Option<String> {
        let names = |ids: BTreeSet<NodeId>| ids.into_iter().map(&name).collect::<Vec<_>>().join(" or ");
        let changes = !self.outgoing.is_empty();
        let up = self.up(self.voters);
        if let Some(set) = self.sets().find(|set| self.up(set) * 2 <= set.len()) {
            let midst = if changes { " in the midst of a change of voters" } else { "" };
            return Some(format!(
                "{} of {} voters answer{midst}, which is no majority: nothing can be written, pods keep running. Start the others; if they \
                 are lost for good, 'skein cluster recover' says how to go on without them",
                self.up(set),
                set.len()
            ));
        }
        match self.voters {
            _ if !leader => Some("no leader at the moment; an election takes about a second".into()),
            _ if changes => Some(match self.indispensable() {
                none if none.is_empty() => "voters are being exchanged, which takes seconds".into(),
                some => format!(
                    "voters are being exchanged: until this is done, in seconds, the cluster does not survive the loss of {}",
                    names(some)
                ),
            }),
            [only] => Some(match 3usize.saturating_sub(eligible) {
                0 => format!(
                    "one disk: until the newcomers have caught up and vote, the cluster does not survive the loss of {}",
                    name(*only)
                ),
                1 => "one disk: not redundant until a third machine joins".into(),
                missing => format!("one disk: not redundant until {missing} more machines join"),
            }),
            voters if up == voters.len() / 2 + 1 && up < voters.len() => Some(format!(
                "{up} of {} voters answer: one more loss stops writes. Start the missing one, or add a machine and it takes the place",
                voters.len()
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[u64]) -> Vec<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    fn said(voters: &[u64], outgoing: &[u64], alive: &[u64], eligible: usize) -> String {
        let (voters, outgoing) = (ids(voters), ids(outgoing));
        let alive = ids(alive).into_iter().collect();
        let votes = Votes { voters: &voters, outgoing: &outgoing, alive: &alive };
        votes.say(eligible, true, |id| format!("host{}", id.0)).unwrap_or_default()
    }

    #[test]
    fn while_one_becomes_three_the_first_is_named_as_the_one_that_must_not_be_lost() {
        assert!(said(&[1], &[], &[1, 2, 3], 3).ends_with("does not survive the loss of host1"));
        let text = said(&[1, 2, 3], &[1], &[1, 2, 3], 3);
        assert!(text.contains("until this is done") && text.ends_with("the loss of host1"), "{text}");
        assert_eq!(said(&[1, 2, 3], &[], &[1, 2, 3], 3), "");
    }

    #[test]
    fn a_majority_of_the_new_ones_alone_is_none() {
        let text = said(&[1, 2, 3], &[1], &[2, 3], 3);
        assert!(text.starts_with("0 of 1 voters answer in the midst of a change of voters"), "{text}");
        assert!(text.contains("skein cluster recover"), "{text}");
    }

    #[test]
    fn who_is_needed_while_a_dead_voter_is_replaced_is_named() {
        let text = said(&[1, 2, 4], &[1, 2, 3], &[1, 2, 4], 3);
        assert!(text.ends_with("the loss of host1 or host2"), "{text}");
        let text = said(&[1, 2, 4], &[1, 2, 3], &[1, 2, 3, 4], 4);
        assert_eq!(text, "voters are being exchanged, which takes seconds");
    }

    #[test]
    fn losses_outside_of_a_change_are_told_as_ever() {
        assert!(said(&[1, 2, 3], &[], &[1, 2], 3).starts_with("2 of 3 voters answer: one more loss"));
        assert!(said(&[1, 2, 3], &[], &[1], 3).starts_with("1 of 3 voters answer, which is no majority"));
        assert_eq!(said(&[1], &[], &[1], 1), "one disk: not redundant until 2 more machines join");
        assert_eq!(said(&[1], &[], &[1, 2], 2), "one disk: not redundant until a third machine joins");
    }
}
