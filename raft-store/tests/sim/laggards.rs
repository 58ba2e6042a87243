//! Named stories of a follower that lacks more than a message may hold.

use raft_store::*;

use crate::scenarios::{grown, propose, put, settle};
use crate::world::World;

/// All of it is kept in memory for who answers.
const LACKS: usize = limits::MESSAGE_BYTES + (12 << 20);

#[test]
fn a_follower_that_lacks_more_than_a_message_may_hold_is_sent_entries() {
    let mut world = World::new(42, 0);
    world.roomy = true;
    (1..=3).for_each(|id| world.add(id));
    let mut world = grown(world, &[2, 3], &[]);
    settle(&mut world);
    let leader = world.leader().unwrap();
    let late = (1..=3).find(|id| *id != leader).unwrap();
    // Messages between two machines go by one stream: they keep their order.
    world.faults.max_delay_ms = 1;
    let sent = world.bulk_sent;
    world.nodes.get_mut(&late).unwrap().paused_until = world.now + 3_000;
    let value = "x".repeat(limits::VALUE_BYTES - 100);
    for n in 1..=(LACKS / value.len()) as u64 {
        propose(&mut world, put(n, "k", &format!("{n} {value}"), None));
    }
    assert!(world.nodes[&late].paused_until > world.now, "it lacks all of that");
    world.run_for(3_000);
    settle(&mut world);
    assert_eq!(world.status(late).unwrap().refused_messages, 0, "messages that are too long");
    assert_eq!(world.bulk_sent, sent, "no snapshot");
}
