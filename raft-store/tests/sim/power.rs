//! Named stories of power cuts between what leaves a machine and what its disk holds.

use raft_store::*;

use crate::scenarios::{propose, put, settle, world};
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

/// What a process finds after a sync that failed is in the page cache and nowhere else, and no second sync makes it durable.
#[test]
pub fn what_a_failed_sync_left_is_durable_before_it_counts() {
    let mut world = world(1, &[], &[]);
    let first = put(1, "a", "1", None);
    drop(propose(&mut world, first));
    let disk = world.nodes[&1].disk.clone();
    disk.fail_sync(Some(0));
    let replica = world.nodes.get_mut(&1).unwrap().replica.as_mut().unwrap();
    let command = put(2, "a", "2", None);
    replica.handle(Millis(9_999), Input::Propose { id: ProposalId(7), command });
    assert!(matches!(replica.advance(Millis(9_999)), Err(Fatal::Log(_))));
    disk.fail_sync(None);
    world.kill(1);
    world.restart(1);
    assert!(world.run_until(10_000, |world| world.leader().is_some()));
    settle(&mut world);
    let value = |world: &World| world.view(1).get(b"a").map(|object| object.value().to_vec());
    assert_eq!(value(&world).as_deref(), Some(b"2".as_slice()), "the batch was there to be read");
    world.crash(1);
    world.restart(1);
    assert!(world.run_until(10_000, |world| world.leader().is_some()));
    settle(&mut world);
    assert_eq!(value(&world).as_deref(), Some(b"2".as_slice()), "what was served stays");
}

#[test]
pub fn a_snapshot_that_its_receiver_did_not_live_to_take_is_sent_again() {
    let mut world = world(3, &[2, 3], &[]);
    let behind = (1..=3).find(|id| Some(*id) != world.leader()).unwrap();
    world.isolate(behind);
    (1..=400).for_each(|n| drop(propose(&mut world, put(n, "k", &format!("{n} {}", "x".repeat(200)), None))));
    world.run_for(timing::LAGGARD_MS);
    propose(&mut world, put(401, "k", "401", None));
    // It stays on its way long enough to be lost there.
    world.faults.max_delay_ms = 100;
    let mut sent = world.bulk_sent;
    world.cut.clear();
    let mut lost = 0;
    while lost < 3 {
        world.run_for(1);
        if world.bulk_sent > sent {
            world.crash(behind);
            world.run_for(200);
            world.restart(behind);
            (sent, lost) = (world.bulk_sent, lost + 1);
        }
        assert!(world.now < 60_000, "it is not sent again, after {lost}");
    }
    world.faults = crate::world::CALM;
    settle(&mut world);
}
