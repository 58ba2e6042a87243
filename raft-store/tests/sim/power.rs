//! Named stories of power cuts between what leaves a machine and what its disk holds.

use raft_store::*;

use crate::scenarios::{settle, world};
use crate::world::World;

#[test]
pub fn members_that_applied_are_not_forgotten_by_a_power_cut() {
    for delay in 0..30 {
        let mut world = world(2, &[], &[2]);
        settle(&mut world);
        world.run_for(delay);
        let id = world.clients.fresh_proposal();
        world.input(1, Input::ChangeMembers { id, changes: vec![MemberChange::AddVoter(NodeId(2))] });
        while world.status(1).unwrap().voters.len() < 2 {
            world.run_for(1);
        }
        world.crash(1);
        world.isolate(1);
        let leaders = world.checks.leaders();
        world.restart(1);
        world.run_for(3_000);
        assert_eq!(world.checks.leaders(), leaders, "it led alone again, changed after {delay} ms");
    }
}

#[test]
pub fn a_vote_is_not_given_twice_over_a_power_cut() {
    let mut cut = 0;
    for delay in 0..20 {
        let mut world = world(3, &[2, 3], &[]);
        world.run_for(delay);
        let leads = world.leader().unwrap();
        let before = world.status(leads).unwrap().term;
        let newer = |w: &World| -> Vec<u64> {
            (1..=3).filter(|id| w.status(*id).is_some_and(|status| status.term > before)).collect()
        };
        world.crash(leads);
        assert!(world.run_until(10_000, |w| !newer(w).is_empty()));
        let follows = |id: &u64| world.status(*id).unwrap().role == Role::Follower;
        let Some(candidate) = newer(&world).into_iter().find(|id| !follows(id)) else { continue };
        let voter = 6 - leads - candidate;
        assert!(world.run_until(1_000, |w| newer(w).len() == 2));
        // The power goes when what may leave before the disk has left; a vote that did makes its candidate a leader.
        world.crash_after_outbox(voter);
        world.run_for(10);
        world.isolate(candidate);
        world.restart(leads);
        world.restart(voter);
        cut += usize::from(world.status(voter).unwrap().term == before);
        assert!(world.run_until(10_000, |w| w.leader().is_some_and(|leader| leader != candidate)));
    }
    assert!(cut > 0, "no vote was cut off on its way to the disk");
}
