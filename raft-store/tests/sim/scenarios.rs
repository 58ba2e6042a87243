//! Named stories, each one fact. Finds of the chaos runs end up here.

use raft_store::*;

use crate::world::World;

pub const SESSION: SessionId = SessionId(1);

pub fn world(size: u64, voters: &[u64], learners: &[u64]) -> World {
    grown(World::new(42, size), voters, learners)
}

pub fn grown(mut world: World, voters: &[u64], learners: &[u64]) -> World {
    assert!(world.run_until(2_000, |w| w.leader().is_some()));
    world.grow(voters, learners);
    let outcome = propose(&mut world, Command::OpenSession { session: SESSION });
    assert!(matches!(outcome, Outcome::Applied { .. }));
    world
}

/// Proposes at the leader and waits for the answer.
pub fn propose(world: &mut World, command: Command) -> Outcome {
    let leader = world.leader().expect("somebody leads");
    propose_at(world, leader, command)
}

fn propose_at(world: &mut World, node: u64, command: Command) -> Outcome {
    let id = world.clients.fresh_proposal();
    world.input(node, Input::Propose { id, command });
    answer(world, id)
}

pub fn answer(world: &mut World, id: ProposalId) -> Outcome {
    world.run_until(3_000, |w| w.answers.iter().any(|(_, answered, _)| *answered == id));
    let found = world.answers.iter().find(|(_, answered, _)| *answered == id);
    found.unwrap_or_else(|| panic!("{id:?} is never answered")).2.clone()
}

pub fn put(sequence: u64, key: &str, value: &str, epoch: Option<Epoch>) -> Command {
    let ops = vec![Op::Put { key: key.into(), value: value.into() }];
    Command::Transact {
        session: SESSION,
        sequence,
        epoch,
        transaction: Transaction { compares: vec![], ops },
    }
}

pub fn is_applied(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Applied { changed: true, .. })
}

pub fn settle(world: &mut World) {
    let equal = |w: &World| w.nodes.keys().all(|id| w.view(*id).applied() == w.view(1).applied());
    assert!(world.run_until(10_000, equal), "all apply the same");
}

/// Three voters that have written a little.
#[cfg(feature = "planted-bugs")]
pub fn three_that_write(sequence: u64) -> World {
    let mut world = world(3, &[2, 3], &[]);
    write_on(&mut world, sequence);
    world
}

/// One more write, that all have applied.
#[cfg(feature = "planted-bugs")]
pub fn write_on(world: &mut World, sequence: u64) {
    propose(world, put(sequence, "k", &sequence.to_string(), None));
    settle(world);
}

#[test]
fn a_single_voter_leads_at_once_and_after_restart() {
    let mut world = world(1, &[], &[]);
    assert!(world.now < 50, "no election timeout is waited for");
    assert!(is_applied(&propose(&mut world, put(1, "a", "1", None))));
    world.crash(1);
    world.restart(1);
    assert!(world.run_until(50, |w| w.leader().is_some()));
    assert_eq!(world.view(1).get(b"a").map(|entry| entry.value()), Some(b"1".as_slice()));
    assert_eq!(world.epochs.len(), 2, "each election begins an epoch");
}

#[test]
fn a_single_voter_sends_nothing_in_a_term_that_is_not_durable() {
    let mut world = world(2, &[], &[2]);
    (1..=300).for_each(|n| drop(propose(&mut world, put(n, "k", &format!("{n} {}", "x".repeat(200)), None))));
    world.crash(1);
    let config = world.config(1, 9);
    let mut replica = Replica::open(world.nodes[&1].disk.clone(), config).unwrap();
    let now = Millis(world.now);
    (0..40).for_each(|_| replica.handle(now, Input::Tick));
    assert_eq!(replica.status().role, Role::Leader, "the election timeout has passed");
    let sends = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Send { .. })).count();
    assert_eq!(sends(&replica.outbox(now)), 0, "it has won, but its term is not on disk");
    assert!(sends(&replica.advance(now).unwrap()) > 0);
    replica.handle(now, Input::Propose { id: ProposalId(1), command: put(301, "a", "1", None) });
    replica.advance(now).unwrap();
}

#[test]
fn a_new_learner_gets_the_state_by_snapshot_and_can_be_promoted() {
    let mut world = world(4, &[2, 3], &[]);
    // Nobody feeds it: raft has to.
    world.muted.extend(1..=4);
    world.isolate(4);
    for n in 1..=600 {
        propose(&mut world, put(n, &format!("k{}", n % 20), &format!("{n} {}", "x".repeat(200)), None));
    }
    let sent = world.bulk_sent;
    world.cut.clear();
    world.grow(&[4], &[]);
    assert!(world.bulk_sent > sent, "by snapshot");
    settle(&mut world);
    assert_eq!(world.status(4).unwrap().voters, [1, 2, 3, 4].map(NodeId));
    assert_eq!(world.view(4).hash(), world.view(1).hash());
    let history = world.view(4).changes(Revision(0)).unwrap().count();
    assert_eq!(history, 600, "the history came along");
}

#[test]
fn a_follower_that_fell_behind_catches_up_by_snapshot_without_a_gap_in_its_watch() {
    let mut world = world(3, &[2, 3], &[]);
    let behind = (1..=3).find(|id| Some(*id) != world.leader()).unwrap();
    world.isolate(behind);
    let before = world.view(behind).revision();
    (1..=400).for_each(|n| drop(propose(&mut world, put(n, "k", &format!("{n} {}", "x".repeat(200)), None))));
    // For so long entries are kept for it.
    world.run_for(timing::LAGGARD_MS);
    propose(&mut world, put(401, "k", "401", None));
    let sent = world.bulk_sent;
    world.cut.clear();
    settle(&mut world);
    assert!(world.bulk_sent > sent, "by snapshot");
    let revisions: Vec<u64> =
        world.view(behind).changes(before).unwrap().map(|change| change.revision.0).collect();
    assert_eq!(revisions, (before.0 + 1..=401).collect::<Vec<_>>());
}

#[test]
fn a_deposed_leader_answers_lost_and_its_epoch_is_refused() {
    let mut world = world(3, &[2, 3], &[]);
    let old = world.leader().unwrap();
    let epoch = world.view(old).epoch();
    world.isolate(old);
    let id = world.clients.fresh_proposal();
    world.input(old, Input::Propose { id, command: put(1, "a", "old", Some(epoch)) });
    assert!(world.run_until(5_000, |w| w.leader().is_some_and(|leader| leader != old)));
    assert_eq!(answer(&mut world, id), Outcome::Lost);
    world.cut.clear();
    let current = world.view(world.leader().unwrap()).epoch();
    assert!(current > epoch);
    let outcome = propose(&mut world, put(2, "a", "late", Some(epoch)));
    assert_eq!(outcome, Outcome::StaleEpoch { current });
    settle(&mut world);
    assert!(world.view(1).get(b"a").is_none(), "neither took effect");
}

#[test]
fn a_retry_after_a_lost_answer_is_applied_once() {
    let mut world = world(3, &[2, 3], &[]);
    let first = propose(&mut world, put(1, "a", "1", None));
    assert!(is_applied(&first));
    let old = world.leader().unwrap();
    world.crash(old);
    assert!(world.run_until(5_000, |w| w.leader().is_some()));
    propose(&mut world, put(2, "a", "2", None));
    assert_eq!(propose(&mut world, put(1, "a", "1", None)), first, "the answer of then");
    let leader = world.leader().unwrap();
    assert_eq!(world.view(leader).get(b"a").map(|entry| entry.value()), Some(b"2".as_slice()));
}

#[test]
fn followers_refuse_proposals_and_name_the_leader() {
    let mut world = world(3, &[2, 3], &[]);
    let leader = world.leader().unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let outcome = propose_at(&mut world, follower, put(1, "a", "1", None));
    assert_eq!(outcome, Outcome::NotLeader { leader: Some(NodeId(leader)) });
}

#[test]
fn linearizable_reads_work_at_every_replica_and_fail_without_a_majority() {
    let mut world = world(5, &[2, 3], &[4, 5]);
    let Outcome::Applied { revision, .. } = propose(&mut world, put(1, "a", "1", None)) else { panic!() };
    for node in 1..=5 {
        world.input(node, Input::Read { id: ReadId(1_000 + node) });
    }
    assert!(world.run_until(500, |w| w.reads.len() == 5));
    assert!(world.reads.iter().all(|(_, _, result)| result.is_ok_and(|seen| seen >= revision)));
    let lone = world.leader().unwrap();
    world.isolate(lone);
    world.input(lone, Input::Read { id: ReadId(2_000) });
    assert!(world.run_until(4_000, |w| w.reads.len() == 6));
    assert_eq!(world.reads[5], (lone, ReadId(2_000), Err(ReadFailure::Timeout)));
}

#[test]
fn a_read_at_a_cut_off_leader_never_misses_the_other_sides_write() {
    let mut world = world(3, &[2, 3], &[]);
    let old = world.leader().unwrap();
    world.isolate(old);
    world.input(old, Input::Read { id: ReadId(1) });
    assert!(world.run_until(5_000, |w| w.leader().is_some_and(|leader| leader != old)));
    let Outcome::Applied { revision, .. } = propose(&mut world, put(1, "a", "1", None)) else { panic!() };
    world.input(old, Input::Read { id: ReadId(2) });
    world.run_for(200);
    world.cut.clear();
    assert!(world.run_until(5_000, |w| w.reads.len() == 2));
    let second = world.reads.iter().find(|(_, id, _)| *id == ReadId(2)).unwrap();
    assert!(second.2.is_ok_and(|seen| seen >= revision));
}

#[test]
fn one_voter_replaces_another_in_one_joint_change() {
    let mut world = world(4, &[2, 3], &[4]);
    let leader = world.leader().unwrap();
    let out = (1..=3).find(|id| *id != leader).unwrap();
    let id = world.clients.fresh_proposal();
    let changes = vec![MemberChange::Remove(NodeId(out)), MemberChange::AddVoter(NodeId(4))];
    world.input(leader, Input::ChangeMembers { id, changes });
    let voters: Vec<NodeId> = (1..=4).filter(|id| *id != out).map(NodeId).collect();
    assert_eq!(answer(&mut world, id), Outcome::MembersChanged { voters, learners: vec![] });
    assert!(!world.status(leader).unwrap().joint);
}

#[test]
fn a_new_leader_ends_the_joint_state_that_its_predecessor_began() {
    for delay in 1..30 {
        let mut world = world(4, &[2, 3], &[4]);
        let leader = world.leader().unwrap();
        let out = (1..=3).find(|id| *id != leader).unwrap();
        let id = world.clients.fresh_proposal();
        let changes = vec![MemberChange::AddLearner(NodeId(out)), MemberChange::AddVoter(NodeId(4))];
        world.input(leader, Input::ChangeMembers { id, changes });
        world.run_for(delay);
        world.crash(leader);
        let ended = |w: &World| w.leader().and_then(|leader| w.status(leader)).is_some_and(|s| !s.joint);
        assert!(world.run_until(10_000, ended), "crash after {delay} ms");
    }
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    let mut world = world(3, &[2, 3], &[]);
    let leader = world.leader().unwrap();
    let mut refused = |changes: Vec<MemberChange>| {
        let id = world.clients.fresh_proposal();
        world.input(leader, Input::ChangeMembers { id, changes });
        answer(&mut world, id)
    };
    let other = NodeId(if leader == 1 { 2 } else { 1 });
    let refusal = Outcome::Refused;
    assert_eq!(refused(vec![]), refusal(Refusal::BadChange));
    assert_eq!(refused(vec![MemberChange::Remove(NodeId(0))]), refusal(Refusal::BadChange));
    let twice = vec![MemberChange::Remove(other), MemberChange::AddVoter(other)];
    assert_eq!(refused(twice), refusal(Refusal::BadChange));
    assert_eq!(refused(vec![MemberChange::Remove(NodeId(leader))]), refusal(Refusal::LeaderWouldLeave));
    assert_eq!(refused(vec![MemberChange::AddLearner(NodeId(leader))]), refusal(Refusal::LeaderWouldLeave));
}

#[test]
fn leadership_is_handed_over_on_request() {
    let mut world = world(3, &[2, 3], &[]);
    let leader = world.leader().unwrap();
    let to = (1..=3).find(|id| *id != leader).unwrap();
    world.input(leader, Input::TransferLeadership { to: NodeId(to) });
    assert!(world.run_until(200, |w| w.leader() == Some(to)), "well below an election timeout");
}

#[test]
pub fn a_returning_node_does_not_depose_the_leader() {
    let mut world = world(3, &[2, 3], &[]);
    let leader = world.leader().unwrap();
    let lone = (1..=3).find(|id| *id != leader).unwrap();
    world.isolate(lone);
    world.run_for(5_000);
    let term = world.status(leader).unwrap().term;
    assert_eq!(world.status(lone).unwrap().term, term, "it only asked beforehand");
    world.cut.clear();
    world.run_for(2_000);
    assert_eq!((world.leader(), world.status(leader).unwrap().term), (Some(leader), term));
}

#[test]
fn everything_acknowledged_survives_a_power_cut_of_all() {
    let mut world = world(3, &[2, 3], &[]);
    (1..=50).for_each(|n| assert!(is_applied(&propose(&mut world, put(n, &format!("k{n}"), "v", None)))));
    (1..=3).for_each(|id| world.crash(id));
    (1..=3).for_each(|id| world.restart(id));
    assert!(world.run_until(5_000, |w| w.leader().is_some()));
    assert_eq!(world.view(world.leader().unwrap()).len(), 50);
}

#[test]
fn nothing_is_written_at_rest() {
    let mut world = world(3, &[2, 3], &[]);
    propose(&mut world, put(1, "a", "1", None));
    world.run_for(1_000);
    let syncs = |w: &World| w.nodes.values().map(|node| node.disk.syncs()).sum::<u64>();
    let before = syncs(&world);
    world.run_for(60_000);
    assert_eq!(syncs(&world), before);
}

#[test]
fn many_proposals_share_one_sync() {
    let mut world = world(1, &[], &[]);
    let before = world.nodes[&1].disk.syncs();
    let now = Millis(world.now);
    let replica = world.nodes.get_mut(&1).unwrap().replica.as_mut().unwrap();
    for n in 1..=64 {
        replica
            .handle(now, Input::Propose { id: ProposalId(n), command: put(n, &format!("k{n}"), "v", None) });
    }
    let effects = replica.advance(now).unwrap();
    assert_eq!(
        effects.iter().filter(|e| matches!(e, Effect::Answer { outcome, .. } if is_applied(outcome))).count(),
        64
    );
    assert!(world.nodes[&1].disk.syncs() - before <= 1 + 3, "one batch, and a new segment at most");
}

#[test]
fn a_failed_sync_stops_the_replica_and_acknowledges_nothing() {
    let mut world = world(1, &[], &[]);
    world.nodes[&1].disk.fail_sync(Some(0));
    let replica = world.nodes.get_mut(&1).unwrap().replica.as_mut().unwrap();
    replica.handle(Millis(9_999), Input::Propose { id: ProposalId(7), command: put(1, "a", "1", None) });
    assert!(matches!(replica.advance(Millis(9_999)), Err(Fatal::Log(_))));
    assert!(matches!(replica.advance(Millis(9_999)), Err(Fatal::Stopped)));
}

/// Only the last batch may be torn. One that rots before it was promised to others.
#[test]
pub fn a_rotten_bit_in_the_log_is_no_torn_tail() {
    let mut world = world(3, &[2, 3], &[]);
    (1..=6).for_each(|n| drop(propose(&mut world, put(n, "a", &n.to_string(), None))));
    settle(&mut world);
    world.crash(2);
    let disk = world.nodes[&2].disk.clone();
    let log = disk.list().unwrap().into_iter().filter(|name| name.starts_with("log-")).max().unwrap();
    let bytes = disk.read(&log).unwrap();
    let batches: Vec<usize> =
        (0..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"BAT1")).collect();
    assert!(disk.flip(&log, batches[batches.len() / 2] + 40, 4));
    match Replica::open(disk.image(), world.config(2, 9_999)) {
        Err(OpenError::Corrupt { .. }) => {}
        Err(other) => panic!("a rotten bit is called {other}"),
        Ok(_) => panic!("a rotten bit is cut off as a torn tail"),
    }
}

#[test]
pub fn a_rolled_back_disk_stops_its_replica() {
    let mut world = world(3, &[2, 3], &[]);
    let leader = world.leader().unwrap();
    let victim = (1..=3).find(|id| *id != leader).unwrap();
    let image = world.nodes[&victim].disk.image();
    (1..=5).for_each(|n| drop(propose(&mut world, put(n, "a", &n.to_string(), None))));
    world.run_for(300);
    let config = world.config(victim, 77);
    world.nodes.get_mut(&victim).unwrap().replica = None;
    let mut replica = Replica::open(image, config).unwrap();
    let status = world.status(leader).unwrap();
    let leading = world.nodes.get_mut(&leader).unwrap().replica.as_mut().unwrap();
    let mut stopped = None;
    for step in 1..60 {
        let now = Millis(world.now + step * 25);
        leading.handle(now, Input::Tick);
        for effect in leading.advance(now).unwrap() {
            if let Effect::Send { to, bytes, .. } = effect
                && to.0 == victim
            {
                replica.handle(now, Input::Message { from: NodeId(leader), bytes });
            }
        }
        stopped = stopped.or(replica.advance(now).err());
    }
    let stopped = stopped.expect("it notices");
    let noticed = matches!(stopped, Fatal::RolledBack { promised, .. } if promised <= status.last_index);
    assert!(noticed, "{stopped}");
}

#[test]
fn a_leader_forgets_history_after_five_minutes_and_then_rests() {
    let mut world = world(1, &[], &[]);
    propose(&mut world, put(1, "a", "1", None));
    world.run_for(200_000);
    assert_eq!(world.view(1).floor(), Revision(0));
    world.run_for(200_000);
    assert_eq!(world.view(1).floor(), Revision(1));
    assert!(world.view(1).changes(Revision(0)).is_err());
    let applied = world.view(1).applied();
    world.run_for(600_000);
    assert_eq!(world.view(1).applied(), applied, "zero writes at rest");
}

#[test]
fn a_leader_whose_disk_is_full_hands_over_and_the_cluster_goes_on() {
    let mut world = world(3, &[2, 3], &[]);
    let old = world.leader().unwrap();
    let used = world.nodes[&old].disk.used();
    world.nodes[&old].disk.set_capacity(Some(used));
    let mut sequence = 0;
    let moved = |w: &World| w.leader().is_some_and(|leader| leader != old);
    while !moved(&world) {
        sequence += 1;
        let Some(leader) = world.leader() else {
            world.run_for(100);
            continue;
        };
        propose_at(&mut world, leader, put(sequence, "k", &"x".repeat(400), None));
        assert!(sequence < 500, "it never hands over");
    }
    let written = sequence + 1;
    assert!(world.run_until(5_000, |w| w.leader().is_some()));
    let mut tries = (0..20u64).map(|n| propose(&mut world, put(written + n, "after", &n.to_string(), None)));
    assert!(tries.any(|outcome| is_applied(&outcome)), "writes go on at the new leader");
    world.nodes[&old].disk.set_capacity(None);
    settle(&mut world);
}

#[test]
fn a_follower_whose_disk_is_full_takes_nothing_until_there_is_room() {
    let mut world = world(3, &[2, 3], &[]);
    let leader = world.leader().unwrap();
    let full = (1..=3).find(|id| *id != leader).unwrap();
    let used = world.nodes[&full].disk.used();
    world.nodes[&full].disk.set_capacity(Some(used));
    for n in 1..=200 {
        assert!(is_applied(&propose(&mut world, put(n, "k", &format!("{n} {}", "x".repeat(300)), None))));
    }
    let behind = world.view(full).revision();
    assert!(behind < world.view(leader).revision(), "it lags, and runs");
    world.nodes[&full].disk.set_capacity(None);
    settle(&mut world);
}

#[test]
fn a_leader_with_a_slow_disk_hands_over() {
    let mut world = world(3, &[2, 3], &[]);
    let old = world.leader().unwrap();
    world.nodes.get_mut(&old).unwrap().slow_until = u64::MAX;
    world.run_for(3_000);
    assert_eq!(world.leader(), Some(old), "a slow disk that nothing is written to hurts nobody");
    // Between these writes are many rounds that write nothing: they make the disk no faster.
    for sequence in 1..=u64::from(timing::SLOW_SYNCS) {
        world.input(
            old,
            Input::Propose {
                id: ProposalId(sequence),
                command: put(sequence, "k", &sequence.to_string(), None),
            },
        );
        world.run_for(150);
    }
    assert!(world.run_until(3_000, |w| w.leader().is_some_and(|leader| leader != old)));
}

#[test]
fn keys_expire_everywhere_at_the_same_entry_whoever_leads_by_then() {
    let mut world = world(3, &[2, 3], &[]);
    let ops = vec![Op::PutFor { key: "t".into(), value: "v".into(), seconds: 5 }];
    let transaction = Transaction { compares: vec![], ops };
    propose(&mut world, Command::Transact { session: SESSION, sequence: 1, epoch: None, transaction });
    let old = world.leader().unwrap();
    world.run_for(3_000);
    world.crash(old);
    assert!(world.run_until(5_000, |w| w.leader().is_some_and(|leader| leader != old)));
    world.run_for(3_000);
    let leader = world.leader().unwrap();
    assert!(world.view(leader).get(b"t").is_some(), "a new leader counts anew");
    assert!(world.run_until(5_000, |w| w.leader().is_some_and(|leader| w.view(leader).get(b"t").is_none())));
    world.restart(old);
    settle(&mut world);
    assert!(world.view(old).get(b"t").is_none());
}

#[test]
fn who_lags_and_answers_is_sent_what_it_lacks_and_no_snapshot() {
    let mut world = world(3, &[2, 3], &[]);
    settle(&mut world);
    let leader = world.leader().unwrap();
    let late = (1..=3).find(|id| *id != leader).unwrap();
    let sent = world.bulk_sent;
    for burst in 0..5 {
        // It gets no processor for as long as many writes take, and is still thought to be there.
        world.nodes.get_mut(&late).unwrap().paused_until = world.now + 700;
        for n in 1..=70 {
            let n = burst * 70 + n;
            let value = format!("{n} {}", "x".repeat(300));
            assert!(is_applied(&propose(&mut world, put(n, &format!("k{}", n % 20), &value, None))));
        }
        let missing = world.view(leader).revision().0 - world.view(late).revision().0;
        assert!(missing > 60, "only {missing} entries are missing");
        settle(&mut world);
    }
    assert_eq!(world.bulk_sent, sent);
}

/// More than a replica of these settings keeps for nobody.
fn write_much(world: &mut World, from: u64) {
    for n in from..from + 70 {
        let value = format!("{n} {}", "x".repeat(300));
        assert!(is_applied(&propose(world, put(n, &format!("k{}", n % 20), &value, None))));
    }
}

#[test]
fn a_leader_that_starts_again_is_sent_entries_by_the_next_one_and_no_snapshot() {
    let mut world = world(3, &[2, 3], &[]);
    settle(&mut world);
    let (old, sent) = (world.leader().unwrap(), world.bulk_sent);
    world.crash(old);
    assert!(world.run_until(3_000, |w| w.leader().is_some_and(|leader| leader != old)));
    // Its first look at who is there.
    world.run_for(100);
    write_much(&mut world, 1);
    world.restart(old);
    settle(&mut world);
    assert_eq!(world.bulk_sent, sent);
}

#[test]
fn an_observer_that_lags_is_fed_entries_and_no_state() {
    // A seed with which it keeps its feeder: another would have to give it what that one has kept for it.
    let mut world = grown(World::new(2, 4), &[2, 3], &[]);
    let pieces = |world: &World| world.fed.get("piece").copied().unwrap_or(0);
    assert!(world.run_until(5_000, |w| w.status(4).is_some_and(|status| status.fed_by.is_some())));
    settle(&mut world);
    let feeder = |world: &World| world.status(4).and_then(|status| status.fed_by).map(|fed| fed.feeder);
    let (before, by) = (pieces(&world), feeder(&world));
    // Less than what makes a feeder silent.
    world.nodes.get_mut(&4).unwrap().paused_until = world.now + 500;
    write_much(&mut world, 1);
    assert!(world.view(1).revision().0 - world.view(4).revision().0 > 60);
    settle(&mut world);
    assert_eq!((pieces(&world), feeder(&world)), (before, by));
}
