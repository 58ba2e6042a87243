//! Named stories of who votes: changes that come too early, and deaths that leave too few.

use raft_store::*;

use crate::scenarios::{answer, world};
use crate::world::{Event, World};

fn change(world: &mut World, changes: Vec<MemberChange>) -> ProposalId {
    let (id, leader) = (world.clients.fresh_proposal(), world.leader().unwrap());
    world.input(leader, Input::ChangeMembers { id, changes });
    id
}

#[test]
pub fn a_second_change_is_refused_until_the_first_is_complete() {
    let mut world = world(5, &[2, 3], &[]);
    let joins = |id: u64| vec![MemberChange::AddLearner(NodeId(id))];
    let first = change(&mut world, joins(4));
    let second = change(&mut world, joins(5));
    assert_eq!(answer(&mut world, second), Outcome::Refused(Refusal::ChangeInProgress));
    let voters: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let done = |learners: &[u64]| Outcome::MembersChanged {
        voters: voters.clone(),
        learners: learners.iter().copied().map(NodeId).collect(),
    };
    assert_eq!(answer(&mut world, first), done(&[4]));
    let again = change(&mut world, joins(5));
    assert_eq!(answer(&mut world, again), done(&[4, 5]));
}

#[test]
fn a_change_is_refused_while_another_one_is_still_joint() {
    let mut world = world(4, &[2, 3], &[4]);
    let leader = world.leader().unwrap();
    let out = (1..=3).find(|id| *id != leader).unwrap();
    let other = 6 - leader - out;
    let begun =
        change(&mut world, vec![MemberChange::Remove(NodeId(out)), MemberChange::AddVoter(NodeId(4))]);
    // It may be over after a few milliseconds.
    let is_joint = |world: &mut World| {
        world.run_for(1);
        world.status(leader).unwrap().joint
    };
    assert!((0..1_000).any(|_| is_joint(&mut world)));
    let second = change(&mut world, vec![MemberChange::AddLearner(NodeId(other))]);
    assert_eq!(answer(&mut world, second), Outcome::Refused(Refusal::ChangeInProgress));
    assert!(matches!(answer(&mut world, begun), Outcome::MembersChanged { .. }));
}

#[test]
pub fn three_voters_stay_three_while_one_of_them_is_dead() {
    for dies_leading in [false, true] {
        let mut world = world(3, &[2, 3], &[]);
        world.piloted = true;
        world.at(world.now, Event::Pilot);
        let leader = world.leader().unwrap();
        let dead = if dies_leading { leader } else { leader % 3 + 1 };
        world.crash(dead);
        world.run_for(2_000 + timing::REPLACE_VOTER_MS + 2_000);
        let leader = world.leader().expect("two of three go on");
        assert_eq!(world.status(leader).unwrap().voters, [1, 2, 3].map(NodeId));
    }
}

#[test]
fn of_five_voters_that_die_one_after_another_three_stay_and_two_of_them_go_on() {
    let mut world = world(5, &[2, 3, 4, 5], &[]);
    world.piloted = true;
    world.at(world.now, Event::Pilot);
    for alive in [4, 3, 2] {
        let leader = world.leader().expect("a majority goes on");
        let dead = world.nodes.keys().copied().find(|id| *id != leader && world.is_awake(*id)).unwrap();
        world.crash(dead);
        world.run_for(timing::REPLACE_VOTER_MS + 5_000);
        let leader = world.leader().expect("a majority goes on");
        assert_eq!(world.status(leader).unwrap().voters.len(), 3, "with {alive} alive");
    }
}
