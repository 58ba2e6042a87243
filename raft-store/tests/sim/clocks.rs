//! Named stories of machines whose clocks or processors do not keep up.

use raft_store::*;

use crate::scenarios::{answer, is_applied, propose, put, settle, world};
use crate::world::World;

/// Longer than a leader is waited for, by far.
const STALL_MS: u64 = 5_000;

fn rested() -> (World, u64, u64) {
    let mut world = world(3, &[2, 3], &[]);
    settle(&mut world);
    let leader = world.leader().unwrap();
    let term = world.status(leader).unwrap().term;
    (world, leader, term)
}

fn stop_clock(world: &mut World, id: u64) {
    let now = world.now;
    world.nodes.get_mut(&id).unwrap().clock.stand_still(now, STALL_MS);
}

/// Its clock does not tell it to step down, nor would it tell it that a lease is over.
#[test]
fn a_cut_off_leader_whose_clock_stands_still_leads_on_and_answers_nothing() {
    let (mut world, old, _) = rested();
    stop_clock(&mut world, old);
    world.isolate(old);
    let begun = world.now;
    assert!(world.run_until(2_000, |w| w.leader().is_some_and(|leader| leader != old)));
    let Outcome::Applied { revision, .. } = propose(&mut world, put(1, "a", "1", None)) else { panic!() };
    world.input(old, Input::Read { id: ReadId(1) });
    let id = world.clients.fresh_proposal();
    world.input(old, Input::Propose { id, command: put(2, "a", "2", None) });
    world.run_for(1_000);
    assert!(world.now < begun + STALL_MS && world.reads.is_empty(), "{:?}", world.reads);
    assert_eq!(world.status(old).unwrap().role, Role::Leader, "in its own eyes");
    world.cut.clear();
    assert!(world.run_until(STALL_MS + 1_000, |w| !w.reads.is_empty()));
    assert!(world.reads[0].2.is_ok_and(|seen| seen >= revision), "{:?}", world.reads);
    assert_eq!(answer(&mut world, id), Outcome::Lost);
    settle(&mut world);
}

#[test]
fn a_follower_whose_clock_stands_still_takes_and_acknowledges_all_the_same() {
    let (mut world, leader, term) = rested();
    let (still, away) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    world.isolate(away);
    stop_clock(&mut world, still);
    assert!(is_applied(&propose(&mut world, put(1, "a", "1", None))), "the two are a majority");
    world.run_for(STALL_MS + 1_000);
    assert_eq!(world.status(leader).unwrap().term, term, "and it did not take the time for silence");
}

#[test]
fn clocks_at_both_ends_of_their_range_keep_their_leader() {
    for (leads, follows) in [(950, 1_050), (1_050, 950)] {
        let (mut world, leader, term) = rested();
        let now = world.now;
        for (id, node) in &mut world.nodes {
            node.clock.set_rate(now, if *id == leader { leads } else { follows });
        }
        for sequence in 1..=60 {
            let outcome = propose(&mut world, put(sequence, "a", &sequence.to_string(), None));
            assert!(is_applied(&outcome), "{outcome:?}");
            world.run_for(1_000);
        }
        assert_eq!((world.leader(), world.status(leader).unwrap().term), (Some(leader), term));
    }
}

#[test]
fn a_cluster_goes_on_though_one_machine_gets_little_of_the_processor() {
    for place in 0..3 {
        let (mut world, leader, _) = rested();
        let starved = (leader + place - 1) % 3 + 1;
        world.nodes.get_mut(&starved).unwrap().starved_until = world.now + STALL_MS;
        world.run_for(1_000);
        assert!(world.run_until(3_000, |w| w.leader().is_some()));
        let mut write = |n: u64| propose(&mut world, put(n, "a", &n.to_string(), None));
        let written: Vec<Outcome> = (1..=20).map(&mut write).collect();
        assert!(written.iter().all(is_applied), "machine {starved} of leader {leader}: {written:?}");
        world.run_for(STALL_MS);
        settle(&mut world);
    }
}
