//! A round in its steps: what leaves after which of them, and what may be relied on then.

use raft_store::*;

use crate::scenarios::{put, settle, world};
use crate::world::World;

/// The replicas of a cluster of three that has come to rest: the leader's and a follower's, with the follower's number.
fn pair(world: &mut World) -> (Replica<sim_disk::MemDisk>, Replica<sim_disk::MemDisk>, u64) {
    settle(world);
    world.run_for(500);
    let leader = world.leader().unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let mut take = |id: &u64| world.nodes.get_mut(id).unwrap().replica.take().unwrap();
    (take(&leader), take(&follower), follower)
}

/// What is for one member, in order.
fn to(effects: &[Effect], member: u64) -> Vec<Vec<u8>> {
    let bytes = |effect: &Effect| match effect {
        Effect::Send { to, bytes, .. } if to.0 == member => Some(bytes.clone()),
        _ => None,
    };
    effects.iter().filter_map(bytes).collect()
}

fn answers(effects: &[Effect]) -> Vec<u64> {
    let id = |effect: &Effect| match effect {
        Effect::Answer { id, .. } => Some(id.0),
        _ => None,
    };
    effects.iter().filter_map(id).collect()
}

fn hears(replica: &mut Replica<sim_disk::MemDisk>, now: Millis, from: u64, messages: Vec<Vec<u8>>) {
    let input = |bytes| Input::Message { from: NodeId(from), bytes };
    messages.into_iter().map(input).for_each(|message| replica.handle(now, message));
}

#[test]
fn a_follower_acknowledges_what_is_durable_before_it_applies_and_a_leader_answers_at_once() {
    let mut world = world(3, &[2, 3], &[]);
    let leading = world.leader().unwrap();
    let (mut leader, mut follower, following) = pair(&mut world);
    let now = Millis(world.now + 1);
    // Writes that follow each other: the second brings the commit of the first.
    for n in 1..=3u64 {
        leader.handle(now, Input::Propose { id: ProposalId(n), command: put(n, "k", &n.to_string(), None) });
        let appends = to(&leader.outbox(now), following);
        assert_eq!(appends.len(), 1, "entries leave before the leader's own disk has them");
        let said = leader.persist(now).unwrap();
        assert_eq!(answers(&said), [], "nobody else has it");
        leader.advance(now).unwrap();

        hears(&mut follower, now, leading, appends);
        assert_eq!(to(&follower.outbox(now), leading).len(), 0, "nothing is promised before the sync");
        let before = follower.view().revision();
        let acknowledgements = to(&follower.persist(now).unwrap(), leading);
        assert_eq!(acknowledgements.len(), 1);
        assert_eq!(follower.view().revision(), before, "nothing is applied yet");
        // What comes in between waits, and there is nothing to be done twice.
        follower.handle(now, Input::Tick);
        assert!(follower.outbox(now).is_empty() && follower.persist(now).unwrap().is_empty());
        follower.advance(now).unwrap();
        assert_eq!(
            follower.view().revision().0,
            before.0 + u64::from(n > 1),
            "the one before it has applied"
        );

        hears(&mut leader, now, following, acknowledgements);
        leader.outbox(now);
        let said = leader.persist(now).unwrap();
        assert_eq!(answers(&said), [n]);
        let view = leader.view();
        assert_eq!(
            view.get(b"k").map(|entry| entry.value()),
            Some(n.to_string().as_bytes()),
            "its write is read"
        );
        leader.advance(now).unwrap();
    }
}

#[test]
fn what_a_follower_has_acknowledged_outlives_a_power_cut_before_it_applied() {
    let mut world = world(3, &[2, 3], &[]);
    let leading = world.leader().unwrap();
    let (mut leader, mut follower, following) = pair(&mut world);
    let now = Millis(world.now + 1);
    leader.handle(now, Input::Propose { id: ProposalId(1), command: put(1, "k", "v", None) });
    let appends = to(&leader.outbox(now), following);
    hears(&mut follower, now, leading, appends);
    follower.outbox(now);
    assert_eq!(to(&follower.persist(now).unwrap(), leading).len(), 1);
    let promised = leader.status().last_index;
    drop(follower);
    let disk = world.nodes[&following].disk.clone();
    disk.lose_unsynced();
    let follower = Replica::open(disk, world.config(following, 9)).unwrap();
    assert_eq!(follower.status().last_index, promised);
}

#[test]
fn a_replica_that_failed_promises_nothing() {
    let mut world = world(3, &[2, 3], &[]);
    let leading = world.leader().unwrap();
    let (mut leader, mut follower, following) = pair(&mut world);
    let now = Millis(world.now + 1);
    leader.handle(now, Input::Propose { id: ProposalId(1), command: put(1, "k", "v", None) });
    let appends = to(&leader.outbox(now), following);
    hears(&mut follower, now, leading, appends);
    follower.outbox(now);
    world.nodes[&following].disk.fail_sync(Some(0));
    assert!(matches!(follower.persist(now), Err(Fatal::Log(_))));
    assert!(follower.persist(now).unwrap().is_empty());
    assert!(matches!(follower.advance(now), Err(Fatal::Stopped)));
}
