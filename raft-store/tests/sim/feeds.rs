//! Stories of members that do not vote: who feeds them, what happens when that one dies, and what they may be asked.

use std::collections::BTreeMap;

use raft_store::*;

use crate::scenarios::{is_applied, propose, put, settle, world};
use crate::world::World;

fn write(world: &mut World, from: u64, to: u64) {
    for n in from..=to {
        let outcome =
            propose(world, put(n, &format!("k{}", n % 20), &format!("{n} {}", "x".repeat(200)), None));
        assert!(is_applied(&outcome));
    }
}

fn feeder_of(world: &World, id: u64) -> Option<u64> {
    Some(world.status(id)?.fed_by?.feeder.0)
}

/// Everybody is fed who does not vote.
fn all_fed(world: &World, observers: std::ops::RangeInclusive<u64>) -> bool {
    observers.into_iter().all(|id| feeder_of(world, id).is_some())
}

#[test]
fn a_member_that_does_not_vote_is_no_member_of_raft_and_has_all_the_same() {
    let mut world = world(4, &[2, 3], &[]);
    write(&mut world, 1, 5);
    settle(&mut world);
    // Its first feeder was the only voter then.
    world.run_for(11_000);
    let status = world.status(4).unwrap();
    assert_eq!((status.voters.len(), status.learners.len()), (3, 0));
    assert_eq!(world.view(4).hash(), world.view(1).hash());
    let fed = status.fed_by.expect("it is fed");
    assert_eq!(fed.hops, 1);
    assert_ne!(Some(fed.feeder.0), world.leader(), "not by the leader, while others can");
    assert_eq!(status.leader, world.leader().map(NodeId), "it knows whom to send writes to");
    world.run_for(30_000);
    assert_eq!(feeder_of(&world, 4), Some(fed.feeder.0), "at rest it stays with its feeder");
}

#[test]
fn an_observer_whose_feeder_dies_goes_on_at_its_index_with_another_within_two_seconds() {
    let mut world = world(4, &[2, 3], &[]);
    write(&mut world, 1, 5);
    settle(&mut world);
    let dead = feeder_of(&world, 4).unwrap();
    let (sent, pieces) = (world.bulk_sent, *world.fed.get("piece").unwrap_or(&0));
    world.crash(dead);
    assert!(world.run_until(2_000, |w| feeder_of(w, 4).is_some_and(|feeder| feeder != dead)));
    write(&mut world, 6, 40);
    let revision = world.view(world.leader().unwrap()).revision();
    assert!(world.run_until(2_000, |w| w.view(4).revision() == revision));
    assert_eq!((world.bulk_sent, *world.fed.get("piece").unwrap_or(&0)), (sent, pieces), "no state was sent");
}

#[test]
fn a_feeder_that_says_nothing_is_left_though_it_runs_and_leads_others() {
    let mut world = world(4, &[2, 3], &[]);
    let mute = feeder_of(&world, 4).unwrap();
    world.muted.insert(mute);
    assert!(world.run_until(2_000, |w| feeder_of(w, 4).is_some_and(|feeder| feeder != mute)));
    write(&mut world, 1, 5);
    settle(&mut world);
}

#[test]
fn an_observer_far_behind_gets_a_state_and_then_entries_without_a_gap_in_its_watch() {
    let mut world = world(4, &[2, 3], &[]);
    world.isolate(4);
    let before = world.view(4).revision();
    write(&mut world, 1, 400);
    let pieces = *world.fed.get("piece").unwrap();
    world.cut.clear();
    settle(&mut world);
    assert!(world.fed["piece"] > pieces, "by a state");
    let changes = world.view(4).changes(before).unwrap().map(|change| change.revision.0).collect::<Vec<_>>();
    assert_eq!(changes, (before.0 + 1..=400).collect::<Vec<_>>());
    world.crash(4);
    world.restart(4);
    settle(&mut world);
}

#[test]
fn linearizable_reads_work_at_an_observer_and_fail_when_the_leader_cannot_be_asked() {
    let mut world = world(4, &[2, 3], &[]);
    let Outcome::Applied { revision, .. } = propose(&mut world, put(1, "a", "1", None)) else { panic!() };
    world.input(4, Input::Read { id: ReadId(1) });
    assert!(world.run_until(500, |w| w.reads.len() == 1));
    assert!(world.reads[0].2.is_ok_and(|seen| seen >= revision));
    let leader = world.leader().unwrap();
    world.cut.extend((1..=4).flat_map(|id| [(id, leader), (leader, id)]));
    world.input(4, Input::Read { id: ReadId(2) });
    assert!(world.run_until(4_000, |w| w.reads.len() == 2), "an election later it is answered, or it fails");
    world.isolate(4);
    world.run_for(2_000);
    world.input(4, Input::Read { id: ReadId(3) });
    assert!(world.run_until(4_000, |w| w.reads.len() == 3));
    assert_eq!(world.reads[2].2, Err(ReadFailure::Timeout));
    assert_eq!(world.status(4).unwrap().leader, None, "it does not claim to know who leads");
}

#[test]
fn an_observer_is_promoted_without_any_transfer_and_a_demoted_voter_observes() {
    let mut world = world(4, &[2, 3], &[]);
    write(&mut world, 1, 300);
    settle(&mut world);
    let sent = world.bulk_sent;
    let leader = world.leader().unwrap();
    let out = (1..=3).find(|id| *id != leader).unwrap();
    world.change(vec![MemberChange::AddLearner(NodeId(4))], |s| s.learners == [NodeId(4)]);
    let caught_up = |w: &World| {
        let status = w.leader().and_then(|leader| w.status(leader));
        status.is_some_and(|s| s.peers.iter().any(|p| p.id.0 == 4 && p.matched == s.last_index))
    };
    assert!(world.run_until(500, caught_up), "its log ends where the leader's does");
    let swap = vec![MemberChange::Remove(NodeId(out)), MemberChange::AddVoter(NodeId(4))];
    world.change(swap, |s| s.voters.contains(&NodeId(4)) && !s.voters.contains(&NodeId(out)));
    assert!(world.run_until(500, |w| feeder_of(w, out).is_some()), "it asks for a feed as soon as it knows");
    write(&mut world, 301, 310);
    settle(&mut world);
    assert_eq!(world.bulk_sent, sent, "no state was sent");
    let members = |id: u64| world.status(id).unwrap().voters;
    assert_eq!(members(out), members(leader));
    assert!(world.run_until(2_000, |w| feeder_of(w, 4).is_none()), "a voter hears its leader and is not fed");
}

#[test]
fn a_voter_that_was_removed_while_it_was_down_observes_when_it_comes_back() {
    let mut world = world(4, &[2, 3, 4], &[]);
    write(&mut world, 1, 5);
    let leader = world.leader().unwrap();
    let away = (1..=4).find(|id| *id != leader).unwrap();
    world.crash(away);
    world.change(vec![MemberChange::Remove(NodeId(away))], |s| s.voters.len() == 3);
    write(&mut world, 6, 9);
    world.restart(away);
    settle(&mut world);
    assert!(!world.status(away).unwrap().voters.contains(&NodeId(away)));
    assert!(world.run_until(500, |w| w.status(away).unwrap().leader == Some(NodeId(leader))));
}

#[test]
fn observers_feed_each_other_when_no_voter_can_be_reached() {
    let mut world = world(5, &[2, 3], &[]);
    // 5 reaches only 4.
    for voter in 1..=3 {
        world.cut.extend([(5, voter), (voter, 5)]);
    }
    assert!(world.run_until(5_000, |w| feeder_of(w, 5) == Some(4)));
    write(&mut world, 1, 5);
    settle(&mut world);
    assert_eq!(world.status(5).unwrap().fed_by.unwrap().hops, 2);
    // With 4 cut off too neither pretends to feed the other.
    world.cut.extend((1..=3).flat_map(|voter| [(4, voter), (voter, 4)]));
    let alone = |w: &World| [4, 5].iter().all(|id| w.status(*id).is_some_and(|s| s.leader.is_none()));
    assert!(world.run_until(10_000, alone), "{:?} {:?}", world.status(4), world.status(5));
    world.cut.clear();
    settle(&mut world);
}

#[test]
fn an_observer_whose_disk_is_full_takes_nothing_until_there_is_room() {
    let mut world = world(4, &[2, 3], &[]);
    let used = world.nodes[&4].disk.used();
    world.nodes[&4].disk.set_capacity(Some(used));
    write(&mut world, 1, 200);
    assert!(world.view(4).revision() < world.view(1).revision(), "it lags, and runs");
    world.nodes[&4].disk.set_capacity(None);
    settle(&mut world);
}

#[test]
fn an_observer_that_was_never_promoted_never_asks_for_votes_nor_writes_at_rest() {
    let mut world = world(4, &[2, 3], &[]);
    write(&mut world, 1, 3);
    world.run_for(1_000);
    let term = world.status(4).unwrap().term;
    let syncs = world.nodes[&4].disk.syncs();
    world.run_for(60_000);
    assert_eq!(world.nodes[&4].disk.syncs(), syncs);
    world.isolate(4);
    world.run_for(20_000);
    assert_eq!(world.status(4).unwrap().term, term);
    assert_eq!(world.status(4).unwrap().role, Role::Follower);
}

/// The most feeds that lie between one of them and a voter.
fn hops(world: &World) -> u32 {
    (4..=203).filter_map(|id| Some(world.status(id)?.fed_by?.hops)).max().unwrap_or(u32::MAX)
}

#[test]
fn two_hundred_observers_are_fed_within_the_bounds_though_a_feeder_of_many_dies() {
    let mut world = world(203, &[2, 3], &[]);
    assert!(world.run_until(20_000, |w| all_fed(w, 4..=203)), "all find a feeder");
    write(&mut world, 1, 20);
    settle(&mut world);
    let within = |world: &World| {
        let feeds: BTreeMap<u64, usize> =
            (1..=203).map(|id| (id, world.status(id).map_or(0, |s| s.feeds))).collect();
        let leader = world.leader().unwrap();
        assert!(feeds.values().all(|feeds| *feeds <= limits::FEEDS), "{feeds:?}");
        assert!(feeds[&leader] <= limits::LEADER_FEEDS, "the leader feeds {}", feeds[&leader]);
        let voters = (1..=3).filter(|id| *id != leader);
        assert!(voters.clone().all(|id| feeds[&id] <= limits::VOTER_FEEDS), "voters feed {feeds:?}");
        assert!(hops(world) <= limits::FEED_HOPS, "{}", hops(world));
    };
    within(&world);
    // Who found a place far away comes nearer: those that voters feed have room for all.
    assert!(world.run_until(20_000, |w| hops(w) <= 3), "one is {} feeds away", hops(&world));
    within(&world);
    // A feeder of many dies, and it led nobody.
    let leader = world.leader().unwrap();
    let dead = (1..=3).find(|id| *id != leader).unwrap();
    world.crash(dead);
    write(&mut world, 21, 40);
    let revision = world.view(leader).revision();
    let all = |w: &World| (4..=203).all(|id| w.view(id).revision() == revision);
    assert!(world.run_until(20_000, all), "all go on");
    // Whoever it fed is fed by another.
    let near = |w: &World| all_fed(w, 4..=203) && hops(w) <= limits::FEED_HOPS;
    assert!(world.run_until(5_000, near), "one is {} feeds away", hops(&world));
    within(&world);
}

#[test]
fn a_leader_whose_followers_vote_feeds_nobody_for_long_however_much_is_written() {
    let mut world = world(11, &[2, 3], &[]);
    assert!(world.run_until(20_000, |w| all_fed(w, 4..=11)), "all find a feeder");
    let (mut writes, begun) = (0, world.now);
    while world.now < begun + 20_000 {
        write(&mut world, writes + 1, writes + 20);
        writes += 20;
    }
    let leader = world.leader().unwrap();
    assert_eq!(world.status(leader).unwrap().feeds, 0, "after {writes} writes");
}

#[test]
fn machines_whose_disks_have_no_room_for_a_state_keep_nobody_else_from_being_fed() {
    let mut world = world(8, &[2, 3], &[]);
    let full: Vec<u64> = (4..=7).collect();
    for id in &full {
        world.isolate(*id);
    }
    world.isolate(8);
    write(&mut world, 1, 400);
    for id in &full {
        let used = world.nodes[id].disk.used();
        world.nodes[id].disk.set_capacity(Some(used + (8 << 10)));
    }
    // Those with full disks come back first, and take what places there are.
    world.cut.retain(|(from, to)| *from == 8 || *to == 8);
    world.run_for(10_000);
    assert!(full.iter().all(|id| world.view(*id).revision().0 < 400), "none of them has room");
    world.cut.clear();
    // It may ask one of those first, which feeds nobody once it has lagged for ten seconds.
    assert!(world.run_until(15_000, |w| w.view(8).revision().0 == 400), "{:?}", world.status(8));
    for id in &full {
        world.nodes[id].disk.set_capacity(None);
    }
    settle(&mut world);
}

/// Writes so much that an observer which was cut off needs a state, of many pieces; then lets it ask, until some of them came.
fn half_fed(world: &mut World, observer: u64) -> u64 {
    world.isolate(observer);
    write(world, 1, 400);
    let before = world.fed.get("piece").copied().unwrap_or(0);
    world.cut.clear();
    let some = |w: &World| w.fed.get("piece").is_some_and(|pieces| *pieces > before + 8);
    for _ in 0..5_000 {
        if some(world) {
            break;
        }
        world.run_for(1);
    }
    assert!(some(world) && world.view(observer).revision().0 < 400, "it is in the midst of a state");
    feeder_of(world, observer).expect("somebody feeds it")
}

#[test]
fn a_state_whose_feeder_dies_in_the_midst_comes_whole_from_another() {
    let mut world = world(4, &[2, 3], &[]);
    let feeder = half_fed(&mut world, 4);
    world.crash(feeder);
    assert!(world.run_until(10_000, |w| w.view(4).revision().0 == 400), "{:?}", world.status(4));
    assert_ne!(feeder_of(&world, 4), Some(feeder));
    world.restart(feeder);
    settle(&mut world);
    assert_eq!(world.view(4).hash(), world.view(1).hash());
}

#[test]
fn a_state_whose_taker_dies_in_the_midst_is_begun_anew_and_leaves_nothing_behind() {
    let mut world = world(4, &[2, 3], &[]);
    half_fed(&mut world, 4);
    let has_part = |world: &World| world.nodes[&4].disk.list().unwrap().iter().any(|name| name == "fed.new");
    assert!(has_part(&world), "what came is on the disk");
    world.crash(4);
    world.restart(4);
    assert!(!has_part(&world), "what is half there is nothing");
    assert!(world.run_until(10_000, |w| w.view(4).revision().0 == 400));
    settle(&mut world);
    assert!(!has_part(&world));
    assert_eq!(world.view(4).hash(), world.view(1).hash());
}

#[test]
fn a_state_for_which_the_disk_has_no_room_is_taken_once_there_is_some() {
    let mut world = world(4, &[2, 3], &[]);
    half_fed(&mut world, 4);
    let used = world.nodes[&4].disk.used();
    world.nodes[&4].disk.set_capacity(Some(used + (16 << 10)));
    world.run_for(4_000);
    assert!(world.view(4).revision().0 < 400);
    assert!(world.nodes[&4].disk.used() < used, "the part that came was given up");
    assert!(world.status(4).unwrap().fed_by.is_some(), "it still hears who leads");
    let taken = world.fed["piece"];
    world.run_for(4_000);
    assert!(world.fed["piece"] < taken + 100, "it is not sent over and over");
    world.nodes[&4].disk.set_capacity(None);
    assert!(world.run_until(10_000, |w| w.view(4).revision().0 == 400));
    settle(&mut world);
}

#[test]
fn a_state_gets_through_a_network_that_loses_and_reorders() {
    let mut world = world(4, &[2, 3], &[]);
    half_fed(&mut world, 4);
    world.faults.loss = 0.2;
    world.faults.duplicate = 0.3;
    world.faults.max_delay_ms = 30;
    assert!(
        world.run_until(60_000, |w| w.view(4).revision().0 == 400),
        "{:?} {:?}",
        world.status(4),
        world.fed
    );
    world.faults = crate::world::CALM;
    settle(&mut world);
}

/// Found by `sim-long`, seed 1795724014331: a subscription came twice, a second state was begun, and pieces of the first took the place of
/// those of the second that were counted as taken.
#[test]
fn a_state_comes_soon_though_all_that_is_said_comes_twice_while_more_is_written() {
    for loss in [0.0, 0.02, 0.05, 0.1] {
        let mut world = world(4, &[2, 3], &[]);
        world.isolate(4);
        write(&mut world, 1, 400);
        world.cut.clear();
        world.faults.loss = loss;
        world.faults.duplicate = 1.0;
        world.faults.max_delay_ms = 30;
        write(&mut world, 401, 460);
        let soon = world.run_until(8_000, |w| w.view(4).revision().0 >= 400);
        assert!(soon, "{:?} {:?}", world.status(4), world.fed);
        world.faults = crate::world::CALM;
        settle(&mut world);
    }
}

#[test]
fn what_is_written_while_a_state_is_on_its_way_follows_it_without_another_state() {
    let mut world = world(4, &[2, 3], &[]);
    half_fed(&mut world, 4);
    let began = world.fed["subscribe"];
    // Far more than the log keeps in memory, snapshots among it.
    write(&mut world, 401, 700);
    assert!(world.run_until(10_000, |w| w.view(4).revision().0 == 700));
    assert_eq!(world.fed["subscribe"], began, "by the same feed");
    settle(&mut world);
}
