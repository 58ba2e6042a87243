//! Named stories of snapshots whose connection does not hold.

use raft_store::*;

use crate::scenarios::{propose, put, settle, world};
use crate::world::{CALM, Faults, World};

/// A follower is away until it needs a snapshot. Counts on from `sequence`.
fn fall_behind(world: &mut World, behind: u64, sequence: &mut u64) {
    world.isolate(behind);
    for _ in 0..300 {
        *sequence += 1;
        let value = format!("{sequence} {}", "x".repeat(200));
        propose(world, put(*sequence, &format!("k{}", *sequence % 20), &value, None));
    }
    // For so long entries are kept for it.
    world.run_for(timing::LAGGARD_MS);
    *sequence += 1;
    propose(world, put(*sequence, "k", "v", None));
}

#[test]
fn a_snapshot_gets_through_though_its_connection_breaks_or_it_comes_again() {
    let fates =
        ["snapshot broken on its way", "snapshot that came and counts as broken", "snapshot that came twice"];
    let mut world = world(3, &[2, 3], &[]);
    settle(&mut world);
    // Nobody feeds it: raft has to.
    world.muted.extend(1..=3);
    let behind = (1..=3).find(|id| Some(*id) != world.leader()).unwrap();
    let mut sequence = 0;
    for round in 0..8 {
        fall_behind(&mut world, behind, &mut sequence);
        let sent = world.bulk_sent;
        world.faults = Faults { broken: 1.0, max_delay_ms: 50, ..CALM };
        world.cut.clear();
        let leader = world.leader().unwrap();
        let revision = world.view(leader).revision();
        // It must not wait until a snapshot of which nobody heard is given up.
        assert!(
            world.run_until(10_000, |w| w.view(behind).revision() >= revision),
            "in round {round}: {:?}",
            world.done
        );
        assert!(
            world.bulk_sent > sent,
            "by snapshot, in round {round}: {:?} {:?}",
            world.done,
            world.status(leader)
        );
        world.faults = CALM;
        settle(&mut world);
        // What came late a second time changed nothing.
        world.run_for(500);
        assert_eq!(world.view(behind).hash(), world.view(leader).hash());
        let peers = world.status(leader).unwrap().peers;
        assert!(peers.iter().all(|peer| !peer.in_snapshot), "{peers:?}");
    }
    assert!(fates.iter().all(|fate| world.done.contains_key(*fate)), "{:?}", world.done);
}
