//! Named stories of a leader that nobody answers.

use raft_store::*;

use crate::scenarios::{answer, is_applied, propose, put, settle, world};
use crate::world::World;

/// A leader asks itself this often whether a majority has answered since; it may have just done so when it is cut off.
const STEPS_DOWN_MS: u64 = 2 * timing::ELECTION_MIN_MS + timing::TICK_MS;

fn leads(world: &World, id: u64) -> bool {
    world.status(id).is_some_and(|status| status.role == Role::Leader)
}

fn proposes(world: &mut World, node: u64, command: Command) -> ProposalId {
    let id = world.clients.fresh_proposal();
    world.input(node, Input::Propose { id, command });
    id
}

#[test]
pub fn a_leader_that_nobody_answers_steps_down_and_neither_writes_nor_reads() {
    for (size, voters) in [(3, &[2, 3][..]), (5, &[2, 3, 4, 5])] {
        let mut world = world(size, voters, &[]);
        settle(&mut world);
        let old = world.leader().unwrap();
        world.isolate(old);
        let cut = world.now;
        let taken = proposes(&mut world, old, put(1, "a", "taken", None));
        world.input(old, Input::Read { id: ReadId(1) });
        let deposed = world.run_until(STEPS_DOWN_MS, |w| !leads(w, old));
        assert!(deposed, "it still leads {} ms after it was cut off", world.now - cut);
        assert_eq!(answer(&mut world, taken), Outcome::Lost);
        let refused = proposes(&mut world, old, put(2, "a", "refused", None));
        assert_eq!(answer(&mut world, refused), Outcome::NotLeader { leader: None });
        world.input(old, Input::Read { id: ReadId(2) });
        world.run_for(timing::READ_DEADLINE_MS + 100);
        let said: Vec<_> = world.reads.iter().filter(|(node, ..)| *node == old).map(|read| read.2).collect();
        assert_eq!(said, [Err(ReadFailure::Timeout); 2]);
        world.cut.clear();
        assert!(world.run_until(5_000, |w| w.leader().is_some()));
        assert!(is_applied(&propose(&mut world, put(3, "b", "1", None))));
        settle(&mut world);
        assert!(world.view(old).get(b"a").is_none(), "neither took effect");
    }
}

/// With half of them it is no majority either.
#[test]
fn a_leader_that_half_of_the_voters_answer_steps_down() {
    let mut world = world(4, &[2, 3, 4], &[]);
    settle(&mut world);
    let old = world.leader().unwrap();
    let stays = (1..=4).find(|id| *id != old).unwrap();
    let away: Vec<u64> = (1..=4).filter(|id| ![old, stays].contains(id)).collect();
    for (here, there) in
        [old, stays].into_iter().flat_map(|here| away.iter().map(move |there| (here, *there)))
    {
        world.cut.extend([(here, there), (there, here)]);
    }
    assert!(world.run_until(STEPS_DOWN_MS, |w| !leads(w, old)));
    world.run_for(3_000);
    assert!((1..=4).all(|id| !leads(&world, id)), "nobody has a majority");
}

#[test]
fn a_leader_that_a_majority_answers_goes_on() {
    let mut world = world(5, &[2, 3, 4, 5], &[]);
    settle(&mut world);
    let leader = world.leader().unwrap();
    let term = world.status(leader).unwrap().term;
    let away: Vec<u64> = (1..=5).filter(|id| *id != leader).take(2).collect();
    away.iter().for_each(|id| world.isolate(*id));
    world.run_for(5_000);
    assert!(leads(&world, leader));
    assert_eq!(world.status(leader).unwrap().term, term);
    assert!(is_applied(&propose(&mut world, put(1, "a", "1", None))));
}
