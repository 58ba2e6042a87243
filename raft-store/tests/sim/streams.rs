//! Commands that follow each other: what a leader tells whom, and when.

use raft_store::*;

use crate::scenarios::{answer, grown, propose, put, settle};
use crate::world::World;

/// Three voters that have the same; commands within 40 ms follow each other.
fn streaming() -> World {
    let mut world = grown(World::new(2, 3), &[2, 3], &[]);
    settle(&mut world);
    world.run_for(200);
    world
}

/// So many writes, each after the answer to the one before. Answers the longest wait for an answer.
fn stream(world: &mut World, leader: u64, numbers: std::ops::RangeInclusive<u64>) -> u64 {
    let longest = numbers.map(|n| {
        let (id, began) = (world.clients.fresh_proposal(), world.now);
        world.input(leader, Input::Propose { id, command: put(n, "k", "v", None) });
        answer(world, id);
        world.now - began
    });
    longest.max().unwrap()
}

fn behind(world: &World) -> Vec<u64> {
    let leader = world.leader().unwrap();
    (1..=3).filter(|id| world.view(*id).revision() < world.view(leader).revision()).collect()
}

#[test]
fn a_write_that_comes_alone_goes_to_all_at_once_and_so_does_its_commit() {
    let mut world = streaming();
    let before = world.appends;
    let leader = world.leader().unwrap();
    propose(&mut world, put(1, "k", "v", None));
    world.run_for(5);
    assert_eq!(behind(&world), Vec::<u64>::new(), "before the next tick");
    assert_eq!(world.appends - before, 4, "{leader}: two with the entry, two with the commit");
}

#[test]
fn writes_that_follow_each_other_go_at_once_to_as_many_as_are_needed_and_to_the_others_together() {
    let mut world = streaming();
    let leader = world.leader().unwrap();
    stream(&mut world, leader, 1..=2);
    let syncs = |world: &World| -> Vec<u64> {
        (1..=3).filter(|id| *id != leader).map(|id| world.nodes[&id].disk.syncs()).collect()
    };
    let (before, appends) = (syncs(&world), world.appends);
    stream(&mut world, leader, 3..=62);
    let mut syncs: Vec<u64> = syncs(&world).iter().zip(before).map(|(now, before)| now - before).collect();
    syncs.sort_unstable();
    assert!(syncs[1] >= 60, "the one that is needed writes each by itself: {syncs:?}");
    assert!(syncs[0] < 35, "the other many at once: {syncs:?}");
    let sent = world.appends - appends;
    // Told of each commit by itself they would be sent 120 more.
    assert!((60..140).contains(&sent), "sixty to one, fewer to the other, and what ticks tell: {sent}");
    world.run_for(50);
    assert_eq!(behind(&world), Vec::<u64>::new());
}

#[test]
fn a_follower_that_is_needed_and_dies_costs_one_write_a_moment_and_the_next_ones_nothing() {
    let mut world = streaming();
    let leader = world.leader().unwrap();
    for dies in (1..=3).filter(|id| *id != leader) {
        let number = world.view(leader).revision().0;
        stream(&mut world, leader, number + 1..=number + 10);
        world.crash(dies);
        let first = stream(&mut world, leader, number + 11..=number + 11);
        // Half of the 40 ms, and what messages take.
        assert!(first <= 20 + 15, "{dies}: the other is sent it soon: {first} ms");
        let next = stream(&mut world, leader, number + 12..=number + 30);
        assert!(next <= 12, "{dies}: and is the one that is needed now: {next} ms");
        world.restart(dies);
        settle(&mut world);
    }
}

#[test]
fn a_read_at_a_follower_that_is_spared_does_not_wait_for_the_rest_of_a_stream() {
    let mut world = streaming();
    let leader = world.leader().unwrap();
    stream(&mut world, leader, 1..=5);
    for follower in (1..=3).filter(|id| *id != leader) {
        let number = world.view(leader).revision().0;
        stream(&mut world, leader, number + 1..=number + 5);
        let (id, began) = (ReadId(1_000 + follower), world.now);
        world.input(follower, Input::Read { id });
        assert!(world.run_until(1_000, |w| w.reads.iter().any(|(_, read, _)| *read == id)));
        assert!(world.now - began <= 20, "{follower}: {} ms", world.now - began);
    }
}

#[test]
fn nothing_overtakes_what_a_follower_was_not_sent_yet() {
    let mut world = streaming();
    let leader = world.leader().unwrap();
    // Messages between two nodes arrive in their order.
    world.faults.max_delay_ms = 1;
    world.run_for(50);
    let before = world.appends_refused;
    for n in 0..40 {
        stream(&mut world, leader, 3 * n + 1..=3 * n + 1);
        // The second comes while the first is under way: it goes to all.
        let both: Vec<ProposalId> = (2..=3)
            .map(|step| {
                let id = world.clients.fresh_proposal();
                world.input(leader, Input::Propose { id, command: put(3 * n + step, "k", "v", None) });
                world.run_for(1);
                id
            })
            .collect();
        both.into_iter().for_each(|id| drop(answer(&mut world, id)));
    }
    assert_eq!(world.appends_refused, before);
}
