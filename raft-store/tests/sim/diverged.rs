//! Named stories of an observer that holds something else than those that feed it.

use raft_store::consistency::compare;
use raft_store::*;

use crate::scenarios::{SESSION, grown, settle};
use crate::world::World;

const OBSERVER: u64 = 4;
/// More entries than a feeder remembers hashes of.
const MANY: u64 = 1_200;

/// Three voters and an observer, all of which have one write of this value. Two such worlds differ in nothing but that.
fn holding(value: &str) -> World {
    let mut world = World::new(42, 0);
    // Room to keep the entries that the observer will lack.
    world.roomy = true;
    (1..=OBSERVER).for_each(|id| world.add(id));
    let mut world = grown(world, &[2, 3], &[]);
    write(&mut world, 1..=1, value);
    settle(&mut world);
    world.run_for(1_000);
    world
}

fn write(world: &mut World, numbers: std::ops::RangeInclusive<u64>, value: &str) {
    let leader = world.leader().unwrap();
    for sequence in numbers {
        let ops = vec![Op::Put { key: "k".into(), value: value.into() }];
        let transaction = Transaction { compares: vec![], ops };
        let command = Command::Transact { session: SESSION, sequence, epoch: None, transaction };
        let id = world.clients.fresh_proposal();
        world.input(leader, Input::Propose { id, command });
    }
    world.run_for(500);
}

/// The observer comes back with a disk on which another value was written, at the same index.
fn astray() -> World {
    let (mut world, other) = (holding("one"), holding("two"));
    assert_eq!(world.view(OBSERVER).applied(), other.view(OBSERVER).applied());
    assert_eq!(world.view(OBSERVER).applied(), world.view(1).applied());
    assert_ne!(world.view(OBSERVER).hash(), other.view(OBSERVER).hash());
    // The simulator's own check would end the run.
    world.apart = true;
    world.kill(OBSERVER);
    world.nodes.get_mut(&OBSERVER).unwrap().disk = other.nodes[&OBSERVER].disk.image();
    world
}

fn asked(world: &World) -> u64 {
    world.fed.get("subscribe").copied().unwrap_or(0)
}

/// Who is odd, by what all have applied.
fn odd(world: &World) -> Vec<NodeId> {
    let each = (1..=OBSERVER).filter_map(|id| Some((NodeId(id), world.status(id)?.marks)));
    compare(&each.collect()).iter().map(|found| found.node).collect()
}

/// It names the feeder, takes nothing more from there, and answers no read by what that said.
fn keeps_away(world: &mut World) {
    let status = world.status(OBSERVER).unwrap();
    let (index, _) = world.view(OBSERVER).applied();
    assert!(status.diverged.is_some_and(|(_, at)| at == index), "{status:?}");
    // Each voter that it asks is another one's state.
    assert!(world.run_until(10_000, |w| w.status(OBSERVER).unwrap().fed_by.is_none()));
    let voters = 3;
    let before = asked(world);
    world.run_for(timing::FEED_SHUN_MS - 15_000);
    assert!(
        asked(world) - before <= voters,
        "it asks again whom it has to shun: {} times",
        asked(world) - before
    );
    let status = world.status(OBSERVER).unwrap();
    assert_eq!((status.fed_by, status.leader), (None, None));
    world.input(OBSERVER, Input::Read { id: ReadId(1) });
    world.run_for(timing::READ_DEADLINE_MS + 100);
    let said: Vec<_> = world.reads.iter().filter(|(node, ..)| *node == OBSERVER).map(|read| read.2).collect();
    assert_eq!(said, [Err(ReadFailure::Timeout)]);
    write(world, MANY + 1..=MANY + 3, "more");
    assert_eq!(world.view(OBSERVER).applied().0, index, "nothing more comes to it");
    assert!(world.view(1).revision() > world.view(OBSERVER).revision());
}

#[test]
fn an_observer_with_another_state_is_refused_where_its_place_is_remembered() {
    let mut world = astray();
    world.restart(OBSERVER);
    let named = |w: &World| w.status(OBSERVER).is_some_and(|status| status.diverged.is_some());
    assert!(world.run_until(2_000, named), "{:?}", world.status(OBSERVER));
    assert_eq!(odd(&world), [NodeId(OBSERVER)]);
    keeps_away(&mut world);
}

#[test]
fn an_observer_with_another_state_notices_by_the_first_batch_that_it_is_fed() {
    keeps_away(&mut noticed());
}

/// An observer astray has been fed what it lacked, and noticed.
pub fn noticed() -> World {
    let mut world = astray();
    write(&mut world, 2..=MANY, "later");
    let (before, _) = world.view(1).applied();
    assert!(before > MANY);
    let (batches, pieces) = (world.fed["batch"], world.fed.get("piece").copied());
    world.restart(OBSERVER);
    let named = |w: &World| w.status(OBSERVER).is_some_and(|status| status.diverged.is_some());
    assert!(world.run_until(2_000, named), "{:?}", world.status(OBSERVER));
    assert!(world.fed["batch"] > batches && world.fed.get("piece").copied() == pieces, "by entries");
    assert_eq!(world.view(OBSERVER).applied().0, before, "it took them before it knew");
    assert_eq!(odd(&world), [NodeId(OBSERVER)]);
    world
}
