//! A7: keys with a time to live. The leader in whose term a key goes has counted the whole time by its own clock, from when somebody
//! first showed the write or from when it was elected, whichever came later; a key that was written to stay, or again, stays.
//!
//! Decides from views, from who led in which term and from the nodes' clocks. A clock that runs fast, or jumps ahead (a machine that
//! slept), shortens the time by that much and no more, and only where the leader's own does (DESIGN section 4). Must not ask a
//! replica what it counts.

use std::collections::BTreeMap;

use raft_store::*;

use crate::scenarios;
use crate::world::World;

const PREFIX: &[u8] = b"brief/";

#[derive(Default)]
pub struct Times {
    /// What each node's clock showed when a revision was first shown: that one, or an earlier one that nobody showed alone.
    shown: BTreeMap<Revision, BTreeMap<u64, Millis>>,
    /// Who led in a term, and its clock when it began.
    led: BTreeMap<u64, (u64, Millis)>,
    seen: Revision,
    epoch: Epoch,
    /// Keys that went because their time was over.
    pub expired: u64,
}

pub fn key(brief: u64) -> Key {
    Key::from(format!("brief/{brief}"))
}

/// Writes a key for so many seconds; 0: to stay. The value says which, and the same bytes come often.
pub fn write(brief: u64, seconds: u32) -> Op {
    let (key, value) = (key(brief), Value::from(seconds.to_string()));
    match seconds {
        0 => Op::Put { key, value },
        seconds => Op::PutFor { key, value, seconds },
    }
}

fn seconds(entry: &Entry) -> u64 {
    String::from_utf8_lossy(entry.value()).parse().unwrap()
}

/// Keys that have a time and are still there.
pub fn left(view: &View) -> Vec<Key> {
    let timed = view.prefix(PREFIX, None).filter(|entry| seconds(entry) > 0);
    timed.map(|entry| Key::from(entry.key())).collect()
}

/// A node began to lead.
pub fn leads(world: &mut World, id: u64, term: u64) {
    let clock = world.clock(id);
    world.times.led.entry(term).or_insert((id, clock));
}

/// A replica shows this view.
pub fn applied(world: &mut World, view: &View) {
    // Nobody showed a revision as new as these before: the epoch in which they came is none of before.
    let epochs = world.times.epoch..=view.epoch();
    world.times.epoch = world.times.epoch.max(view.epoch());
    let seen = world.times.seen;
    if view.revision() <= seen {
        return;
    }
    world.times.seen = view.revision();
    let clocks: BTreeMap<u64, Millis> = world.nodes.keys().map(|id| (*id, world.clock(*id))).collect();
    world.times.shown.insert(view.revision(), clocks);
    // What was compacted meanwhile nobody saw.
    let Ok(changes) = view.changes(seen.max(view.floor())) else { return };
    for change in changes.filter(|change| change.after.is_none() && change.key().starts_with(PREFIX)) {
        let before = change.before.as_ref().unwrap();
        let (key, seconds) = (Key::from(change.key()), seconds(before));
        assert!(seconds > 0, "A7: {key:?} was written to stay at {}, and went", before.mod_revision());
        let written = before.mod_revision();
        let terms = epochs.start().0..=epochs.end().0;
        let counted: Vec<u64> = terms.filter_map(|term| world.times.counted(world, term, written)).collect();
        assert!(
            counted.iter().any(|counted| *counted >= seconds * 1_000),
            "A7: {key:?}, written at {written} for {seconds} s, went at {}, and its leader counted {counted:?} ms",
            change.revision
        );
        world.times.expired += 1;
    }
}

impl Times {
    /// How long the leader of a term can have counted by now what was written at `revision`.
    fn counted(&self, world: &World, term: u64, revision: Revision) -> Option<u64> {
        let (leader, began) = self.led.get(&term)?;
        let (_, clocks) = self.shown.range(revision..).next()?;
        let written = clocks.get(leader).copied().unwrap_or_default();
        Some(world.clock(*leader).since(written.max(*began)))
    }
}

/// Three voters, messages that take up to 100 ms, and a key written for one second; and the last index of its leader.
fn three_and_a_key() -> (World, u64) {
    let mut world = scenarios::world(3, &[2, 3], &[]);
    scenarios::propose(&mut world, transact(1, write(0, 1)));
    scenarios::settle(&mut world);
    world.faults.max_delay_ms = 100;
    let held = last_index(&world);
    (world, held)
}

fn transact(sequence: u64, op: Op) -> Command {
    let transaction = Transaction { compares: vec![], ops: vec![op] };
    Command::Transact { session: SessionId(1), sequence, epoch: None, transaction }
}

fn last_index(world: &World) -> u64 {
    world.status(world.leader().unwrap()).unwrap().last_index
}

#[test]
pub fn a_key_stays_if_it_was_written_again_and_that_had_not_applied_when_its_removal_was_proposed() {
    let (mut world, held) = three_and_a_key();
    assert!(world.run_until(3_000, |world| last_index(world) > held), "its removal is proposed");
    let proposed = world.now;
    // The same again, up to shortly before.
    let (mut world, held) = three_and_a_key();
    world.run_for(proposed - 15 - world.now);
    let (leader, id) = (world.leader().unwrap(), world.clients.fresh_proposal());
    world.input(leader, Input::Propose { id, command: transact(2, write(0, 3)) });
    assert!(world.run_until(50, |world| last_index(world) == held + 2), "the write and the removal");
    assert_eq!(world.status(leader).unwrap().commit, held, "neither is committed");
    assert!(scenarios::is_applied(&scenarios::answer(&mut world, id)));
    scenarios::settle(&mut world);
    let is_there = |world: &World, node| world.view(node).get(&key(0).0).is_some();
    assert!(is_there(&world, leader), "it was written again, and is removed all the same");
    world.run_for(2_500);
    assert!(is_there(&world, leader), "it counts anew");
    assert!(
        world.run_until(3_000, |world| (1..=3).all(|node| !is_there(world, node))),
        "and goes in the end"
    );
}
