//! Decides how long a replica that hears no leader waits before it campaigns. Two that begin at once take each other's votes and
//! nobody wins, so the voters have turns: the time from the least to the most is cut into as many parts as there are voters beside the
//! leader that is missed, and each waits for a random time within its own part, in the order of their ids from the leader's on.
//! Must not campaign, and must not read a clock: a time is a function of seed, term and attempt, so that runs replay.

use super::{Replica, mix};
use crate::disk::Disk;
use crate::effect::Role;
use crate::ids::NodeId;

/// What earlier elections leave.
pub(super) struct Elections {
    /// Attempts, of earlier lives too.
    attempts: u64,
    was_candidate: bool,
    /// Who was last heard to lead.
    leader: Option<NodeId>,
}

impl Elections {
    pub(super) fn new(boot: u64) -> Elections {
        Elections { attempts: boot << 16, was_candidate: false, leader: None }
    }
}

impl<D: Disk> Replica<D> {
    /// raft draws election timeouts from the thread's randomness at every change of role. They are replaced after each step.
    pub(super) fn set_election_timeout(&mut self) {
        let is_candidate = self.role() == Role::Candidate;
        let leader = self.leader();
        let elections = &mut self.elections;
        if is_candidate && !elections.was_candidate {
            elections.attempts += 1;
        }
        elections.was_candidate = is_candidate;
        elections.leader = leader.or(elections.leader);
        let draw = mix(self.config.seed ^ mix(self.node.raft.term) ^ mix(elections.attempts << 32));
        let turn = turn(&self.state.members.voters, elections.leader, self.config.id);
        let ticks = ticks(self.timing.election_min_ticks, self.timing.election_max_ticks, turn, draw);
        self.node.raft.set_randomized_election_timeout(ticks);
    }
}

/// Which turn it is for `me`, and of how many; `None` for who has none.
pub(super) fn turn(voters: &[NodeId], leader: Option<NodeId>, me: NodeId) -> Option<(usize, usize)> {
    let at = |id: NodeId| voters.iter().position(|voter| *voter == id);
    let (mine, all) = (at(me)?, voters.len());
    match leader.and_then(at) {
        Some(leads) if leads == mine => None,
        Some(leads) => Some(((mine + all - leads - 1) % all, all - 1)),
        None => Some((mine, all)),
    }
}

/// Ticks from `min` on, less than `max`, and none between two turns: the voters' ticks do not fall together. Not `min` itself where it can
/// be helped: another voter, whose ticks fall between ours, would not yet miss its leader and not answer.
fn ticks(min: usize, max: usize, turn: Option<(usize, usize)>, draw: u64) -> usize {
    let first = if max - min > 1 { min + 1 } else { min };
    let range = max - first;
    let (from, to) = match turn {
        Some((turn, of)) if of <= range => (range * turn / of, range * (turn + 1) / of),
        _ => (0, range),
    };
    let is_last = first + to == max;
    let to = if !is_last && to - from > 1 { to - 1 } else { to };
    first + from + (draw % (to - from) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: usize = 20;
    const MAX: usize = 36;

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn voters_have_turns_of_their_own_after_each_leader() {
        for voters in [ids(&[3, 7]), ids(&[1, 2, 9]), ids(&[1, 2, 3, 4, 5])] {
            for leader in &voters {
                let others = voters.iter().filter(|id| *id != leader);
                let mut turns: Vec<_> = others.map(|id| turn(&voters, Some(*leader), *id).unwrap()).collect();
                turns.sort_unstable();
                let of = voters.len() - 1;
                assert_eq!(turns, (0..of).map(|turn| (turn, of)).collect::<Vec<_>>());
                assert_eq!(turn(&voters, Some(*leader), *leader), None);
            }
        }
    }

    #[test]
    fn who_knows_no_leader_or_does_not_vote_has_a_time_all_the_same() {
        let voters = ids(&[1, 2, 3]);
        assert_eq!(turn(&voters, None, NodeId(2)), Some((1, 3)));
        assert_eq!(turn(&voters, Some(NodeId(8)), NodeId(3)), Some((2, 3)), "a leader that was removed");
        assert_eq!(turn(&voters, Some(NodeId(1)), NodeId(8)), None);
    }

    #[test]
    fn a_tick_lies_between_two_turns() {
        for of in 1..=5 {
            let mut next = MIN + 1;
            for turn in 0..of {
                let mut drawn: Vec<usize> =
                    (0..1000).map(|draw| ticks(MIN, MAX, Some((turn, of)), draw)).collect();
                drawn.sort_unstable();
                drawn.dedup();
                assert_eq!(drawn.first(), Some(&next), "turn {turn} of {of}");
                next += drawn.len() + 1;
                assert_eq!(drawn.last(), Some(&(next - 2)));
            }
            assert_eq!(next, MAX + 1);
        }
    }

    #[test]
    fn no_time_is_outside_of_what_raft_takes() {
        for (min, max) in [(1, 2), (2, 4), (20, 36), (80, 144)] {
            for of in 1..40 {
                for draw in 0..40 {
                    let ticks = ticks(min, max, Some((of - 1, of)), draw);
                    assert!((min..max).contains(&ticks), "{ticks} of {min}..{max}");
                }
            }
        }
    }
}
