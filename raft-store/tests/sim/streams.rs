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

/// So many writes, each after the answer to the one before.
fn stream(world: &mut World, leader: u64, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        let id = world.clients.fresh_proposal();
        world.input(leader, Input::Propose { id, command: put(n, "k", "v", None) });
        answer(world, id);
    }
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
fn writes_that_follow_each_other_carry_the_commits_of_those_before() {
    let mut world = streaming();
    let leader = world.leader().unwrap();
    stream(&mut world, leader, 1..=2);
    let before = world.appends;
    stream(&mut world, leader, 3..=62);
    let sent = world.appends - before;
    // Told of each commit by itself they would be sent 120 more.
    assert!((120..180).contains(&sent), "sixty to each, and what ticks tell: {sent}");
    world.run_for(50);
    assert_eq!(behind(&world), Vec::<u64>::new());
}

#[test]
fn a_read_at_a_follower_does_not_wait_for_the_rest_of_a_stream() {
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
