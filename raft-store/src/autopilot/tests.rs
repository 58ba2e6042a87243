//! What the autopilot asks for, look by look.

use super::*;
use crate::effect::{PeerStatus, Role};

/// Machines 1 to n; voters first, the rest observe; everything acknowledged and held. Who learns catches up at once, but for the slow.
struct Bed {
    slow: Vec<u64>,
    members: Vec<Candidate>,
    status: Status,
    autopilot: Autopilot,
    now: u64,
    pinned: Option<usize>,
}

impl Bed {
    fn of(machines: u64, voters: u64) -> Bed {
        let candidate = |n: u64| Candidate {
            id: NodeId(n),
            zone: String::new(),
            may_vote: true,
            spared: false,
            dead: false,
        };
        let peer =
            |n: u64| PeerStatus { id: NodeId(n), matched: 100, recent_active: true, in_snapshot: false };
        let ids = |range: std::ops::RangeInclusive<u64>| range.map(NodeId).collect::<Vec<_>>();
        let status = Status {
            id: NodeId(1),
            term: 1,
            role: Role::Leader,
            leader: Some(NodeId(1)),
            commit: 100,
            applied: 100,
            last_index: 100,
            last_term: 1,
            voters: ids(1..=voters),
            learners: Vec::new(),
            joint: false,
            caught_up: true,
            established: true,
            marks: Default::default(),
            disk_full: false,
            refused_messages: 0,
            peers: (2..=voters).map(peer).collect(),
            fed_by: None,
            feeds: 0,
            diverged: None,
        };
        let members = (1..=machines).map(candidate).collect();
        Bed { slow: Vec::new(), members, status, autopilot: Autopilot::new(), now: 1_000, pinned: None }
    }

    fn member(&mut self, id: u64) -> &mut Candidate {
        self.members.iter_mut().find(|member| member.id.0 == id).unwrap()
    }

    fn dies(&mut self, id: u64) {
        self.member(id).dead = true;
        self.status
            .peers
            .iter_mut()
            .filter(|peer| peer.id.0 == id)
            .for_each(|peer| peer.recent_active = false);
    }

    /// These learn already.
    fn learn(mut self, ids: &[u64]) -> Bed {
        ids.iter().for_each(|id| self.take(&[learn(*id)]));
        self
    }

    fn peer(&mut self, id: u64) -> &mut PeerStatus {
        self.status.peers.iter_mut().find(|peer| peer.id.0 == id).unwrap()
    }

    fn look(&mut self) -> Next {
        self.autopilot.next(Millis(self.now), &self.members, self.pinned, &self.status)
    }

    /// Looks every 250 ms for so long, and answers the first step.
    fn within(&mut self, milliseconds: u64) -> Next {
        let end = self.now + milliseconds;
        while self.now <= end {
            let next = self.look();
            if next != Next::Nothing {
                return next;
            }
            self.now += 250;
        }
        Next::Nothing
    }

    /// Takes steps until none is left; answers the voters.
    fn settle(&mut self) -> Vec<u64> {
        for _ in 0..50 {
            match self.within(4_000) {
                Next::Nothing => return self.status.voters.iter().map(|id| id.0).collect(),
                Next::HandOver(to) => self.lead(to),
                Next::Change(changes) => self.take(&changes),
            }
        }
        panic!("never settles: {:?}", self.status);
    }

    fn lead(&mut self, to: NodeId) {
        let old = std::mem::replace(&mut self.status.id, to);
        self.status.peers.retain(|peer| peer.id != to);
        self.status.peers.push(PeerStatus { id: old, matched: 100, recent_active: true, in_snapshot: false });
        self.autopilot = Autopilot::new();
    }

    fn take(&mut self, changes: &[MemberChange]) {
        for change in changes {
            let id = change.node();
            self.status.voters.retain(|voter| *voter != id);
            let learned = self.status.learners.contains(&id);
            self.status.learners.retain(|learner| *learner != id);
            match change {
                MemberChange::AddVoter(_) => {
                    assert!(learned, "{id} votes without having learned");
                    self.status.voters.push(id);
                }
                MemberChange::AddLearner(_) => {
                    self.status.learners.push(id);
                    let matched = if self.slow.contains(&id.0) { 0 } else { 100 };
                    let peer = PeerStatus { id, matched, recent_active: true, in_snapshot: false };
                    self.status.peers.push(peer);
                }
                MemberChange::Remove(_) => self.status.peers.retain(|peer| peer.id != id),
            }
        }
        self.status.voters.sort_unstable();
        assert!(self.status.voters.contains(&self.status.id), "a leader never takes itself out");
        assert!(!self.status.voters.is_empty());
    }
}

fn add(id: u64) -> MemberChange {
    MemberChange::AddVoter(NodeId(id))
}

fn learn(id: u64) -> MemberChange {
    MemberChange::AddLearner(NodeId(id))
}

fn remove(id: u64) -> MemberChange {
    MemberChange::Remove(NodeId(id))
}

#[test]
fn one_three_or_five_vote_by_how_many_may() {
    for (machines, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)] {
        assert_eq!(Bed::of(machines, 1).settle().len(), voters, "of {machines}");
    }
}

#[test]
fn newcomers_learn_first_and_become_voters_together() {
    let mut bed = Bed::of(3, 1);
    assert_eq!(bed.look(), Next::Change(vec![learn(2)]));
    let mut bed = Bed::of(3, 1).learn(&[2, 3]);
    bed.peer(3).matched = 0;
    assert_eq!(
        bed.within(2_000),
        Next::Nothing,
        "one that holds nothing is not ready, and two voters are no gain"
    );
    bed.peer(3).matched = 100;
    assert_eq!(bed.within(2_000), Next::Change(vec![add(2), add(3)]));
}

#[test]
fn who_lags_does_not_vote_however_fast_the_log_grows() {
    let mut bed = Bed::of(3, 1).learn(&[2, 3]);
    bed.status.last_index = 100_000;
    for _ in 0..20 {
        bed.status.last_index += 5_000;
        bed.peer(2).matched = bed.status.last_index - 100;
        bed.peer(3).matched = bed.status.last_index - 20_000;
        assert_eq!(bed.look(), Next::Nothing);
        bed.now += 250;
    }
    bed.peer(3).matched = bed.status.last_index - 100;
    bed.status.last_index += 5_000;
    bed.peer(2).matched += 5_000;
    bed.peer(3).matched += 5_000;
    assert_eq!(bed.within(250), Next::Change(vec![add(2), add(3)]), "behind by a moment is caught up");
}

#[test]
fn a_dead_voter_is_replaced_in_one_change_after_three_seconds() {
    let mut bed = Bed::of(4, 3);
    bed.dies(2);
    assert_eq!(bed.within(2_900), Next::Nothing);
    assert_eq!(bed.within(500), Next::Change(vec![learn(4)]));
    bed.take(&[learn(4)]);
    assert_eq!(bed.within(500), Next::Change(vec![remove(2), add(4)]));
}

#[test]
fn who_does_not_catch_up_in_five_seconds_observes_again_and_another_is_taken() {
    let mut bed = Bed::of(5, 3);
    bed.pinned = Some(3);
    bed.slow.push(4);
    bed.dies(2);
    assert_eq!(bed.within(4_000), Next::Change(vec![learn(4)]));
    bed.take(&[learn(4)]);
    assert_eq!(bed.within(4_500), Next::Nothing, "it has its time");
    assert_eq!(bed.within(1_000), Next::Change(vec![learn(5)]));
    bed.take(&[learn(5)]);
    assert_eq!(bed.settle(), [1, 3, 5]);
    assert_eq!(bed.status.learners, []);
    assert_eq!(bed.within(30_000), Next::Nothing, "nobody learns for nothing");
}

#[test]
fn a_learner_that_is_sent_a_state_has_more_time() {
    let mut bed = Bed::of(4, 3);
    bed.slow.push(4);
    bed.dies(2);
    assert_eq!(bed.within(4_000), Next::Change(vec![learn(4)]));
    bed.take(&[learn(4)]);
    bed.peer(4).in_snapshot = true;
    assert_eq!(bed.within(25_000), Next::Nothing);
    bed.peer(4).in_snapshot = false;
    bed.peer(4).matched = 100;
    assert_eq!(bed.within(500), Next::Change(vec![remove(2), add(4)]));
}

#[test]
fn learners_of_an_older_version_observe_from_now_on() {
    let mut bed = Bed::of(7, 5).learn(&[6, 7]);
    assert_eq!(bed.settle(), [1, 2, 3, 4, 5]);
    assert_eq!(bed.status.learners, []);
}

#[test]
fn without_a_spare_five_shrink_to_three_and_three_stay() {
    let mut bed = Bed::of(5, 5);
    bed.dies(4);
    let voters = bed.settle();
    assert_eq!(voters.len(), 3);
    assert!(!voters.contains(&4));
    let mut bed = Bed::of(3, 3);
    bed.dies(3);
    assert_eq!(bed.settle(), [1, 2, 3], "three never shrink because of deaths");
}

#[test]
fn one_after_another_dies_from_seven_down_to_two_and_a_majority_lives_at_each_step() {
    let mut bed = Bed::of(7, 1);
    assert_eq!(bed.settle().len(), 5);
    for victim in (3..=7).rev() {
        bed.dies(victim);
        let voters = bed.settle();
        let living = voters.iter().filter(|id| **id < victim).count();
        assert!(living * 2 > voters.len(), "after {victim}: {voters:?}");
    }
    assert_eq!(bed.status.voters.len(), 3);
}

#[test]
fn a_reboot_of_one_of_three_changes_nothing() {
    let mut bed = Bed::of(3, 3);
    bed.dies(2);
    assert_eq!(bed.within(20_000), Next::Nothing);
    bed.member(2).dead = false;
    bed.peer(2).recent_active = true;
    assert_eq!(bed.within(20_000), Next::Nothing);
}

#[test]
fn nothing_is_asked_for_without_a_majority_that_answers() {
    let mut bed = Bed::of(4, 3);
    bed.dies(2);
    bed.peer(3).recent_active = false;
    assert_eq!(bed.within(10_000), Next::Nothing, "only the leader of three answers");
    bed.status.joint = true;
    bed.peer(3).recent_active = true;
    assert_eq!(bed.within(10_000), Next::Nothing, "one change at a time");
}

#[test]
fn voters_spread_over_zones() {
    let mut bed = Bed::of(6, 1);
    for (id, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")] {
        bed.member(id).zone = zone.into();
    }
    bed.pinned = Some(3);
    assert_eq!(bed.settle(), [1, 4, 6]);
    bed.dies(4);
    assert_eq!(bed.settle(), [1, 5, 6], "the dead one's zone first");
    bed.dies(5);
    assert_eq!(bed.settle().len(), 3, "two in one zone rather than too few");
}

#[test]
fn a_pinned_count_is_kept_as_far_as_there_are_machines() {
    let mut bed = Bed::of(9, 1);
    bed.pinned = Some(7);
    assert_eq!(bed.settle().len(), 7);
    bed.pinned = Some(1);
    assert_eq!(bed.settle(), [1]);
    let mut bed = Bed::of(4, 1);
    bed.pinned = Some(7);
    assert_eq!(bed.settle().len(), 3, "odd, and no more than there are");
}

#[test]
fn who_may_not_vote_does_not_and_a_leader_hands_over_first() {
    let mut bed = Bed::of(4, 3);
    bed.member(1).may_vote = false;
    assert_eq!(bed.within(1_000), Next::HandOver(NodeId(3)));
    assert_eq!(bed.settle(), [2, 3, 4]);
    let mut bed = Bed::of(2, 1).learn(&[2]);
    bed.member(1).may_vote = false;
    assert_eq!(bed.within(1_000), Next::Change(vec![add(2)]), "the heir becomes a voter first");
    assert_eq!(bed.settle(), [2]);
}

#[test]
fn who_is_drained_gives_its_vote_to_a_spare_and_keeps_it_where_there_is_none() {
    let mut bed = Bed::of(4, 3);
    bed.member(2).spared = true;
    assert_eq!(bed.settle(), [1, 3, 4]);
    let mut bed = Bed::of(3, 3);
    bed.member(2).spared = true;
    assert_eq!(bed.settle(), [1, 2, 3], "three machines are three, whoever is being worked on");
    bed.member(1).spared = true;
    assert_eq!(bed.within(1_000), Next::HandOver(NodeId(3)), "but it need not lead");
    let mut bed = Bed::of(5, 5);
    bed.member(2).spared = true;
    assert_eq!(bed.settle().len(), 3, "four that are left have three voters");
    assert!(!bed.settle().contains(&2));
}

#[test]
fn a_voter_that_came_back_as_another_leaves_when_that_one_can_take_its_place() {
    let hindered: [fn(&mut Candidate); 2] = [|member| member.spared = true, |member| member.dead = true];
    for hinder in hindered {
        let mut bed = Bed::of(3, 3);
        bed.members.retain(|member| member.id.0 != 3);
        bed.members.push(Candidate {
            id: NodeId(4),
            zone: String::new(),
            may_vote: true,
            spared: false,
            dead: false,
        });
        hinder(bed.member(4));
        assert_eq!(bed.settle(), [1, 2, 3], "three do not become fewer meanwhile");
        (bed.member(4).spared, bed.member(4).dead) = (false, false);
        assert_eq!(bed.settle(), [1, 2, 4]);
    }
}

#[test]
fn a_removed_member_leaves_and_one_that_leads_hands_over() {
    let mut bed = Bed::of(4, 3);
    bed.members.retain(|member| member.id.0 != 2);
    assert_eq!(bed.settle(), [1, 3, 4]);
    assert!(!bed.status.learners.contains(&NodeId(2)));
    let mut bed = Bed::of(4, 3);
    bed.members.retain(|member| member.id.0 != 1);
    assert_eq!(bed.settle(), [2, 3, 4]);
    let mut bed = Bed::of(3, 3);
    bed.members.retain(|member| member.id.0 != 3);
    assert_eq!(bed.settle().len(), 1, "two members have one voter");
}

#[test]
fn what_is_settled_stays_settled_whoever_leads() {
    for machines in 1..=8 {
        let mut bed = Bed::of(machines, 1);
        for id in 1..=machines {
            bed.member(id).zone = ["a", "b", "c"][(id % 3) as usize].into();
        }
        let voters = bed.settle();
        for leader in voters.clone().into_iter().filter(|id| *id != bed.status.id.0).collect::<Vec<_>>() {
            bed.lead(NodeId(leader));
            assert_eq!(bed.settle(), voters, "led by {leader} of {machines}");
        }
    }
}
