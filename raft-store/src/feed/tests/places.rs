//! Who has a feeder's places, who gives his up, and whom those are sent to that get none.

use super::*;

#[test]
fn a_voter_feeds_few_and_sends_others_to_those_that_have_caught_up() {
    let store = Store::with(5);
    let voter = || Stock { votes: true, ..store.stock(14) };
    let ask = |feeder: &mut Feeder, from: u64, place| {
        feeder.subscribe(Millis(1), (NodeId(from), 1), (FULL, place), &voter())
    };
    let full = |place: fn(u64) -> Place| {
        let mut feeder = Feeder::default();
        let fed = (0..limits::VOTER_FEEDS as u64).map(|from| NodeId(100 + from));
        fed.clone().for_each(|from| ask(&mut feeder, from.0, place(14)).unwrap());
        assert_eq!(ask(&mut feeder, 9, at(12, 3)), Err(Reason::Full));
        said(&mut feeder, 1, &voter());
        (feeder, fed.collect::<Vec<_>>())
    };
    let (new, _) = full(|_| Place::default());
    assert_eq!(new.better(Reason::Full, &[NodeId(2)], 14), [NodeId(2)], "those have nothing yet");
    let (feeder, fed) = full(|index| at(index, 3));
    assert_eq!(feeder.better(Reason::Full, &[NodeId(2)], 14), fed);
    assert_eq!(feeder.better(Reason::Behind, &[NodeId(2)], 14), [NodeId(2)]);
    assert_eq!(feeder.better(Reason::Full, &[NodeId(2)], 14 + limits::FEED_LACKS + 1), [NodeId(2)]);
    assert_eq!(Feeder::default().better(Reason::Full, &[NodeId(2)], 14), [NodeId(2)]);
}

#[test]
fn who_lags_for_long_gives_its_place_to_somebody_who_asks() {
    const MANY: u64 = limits::FEED_LACKS + 100;
    let store = Store::with(MANY as usize + 1);
    let voter = || Stock { votes: true, others: vec![], ..store.stock(10 + MANY) };
    let mut feeder = Feeder::default();
    let ask = |feeder: &mut Feeder, now, from: u64| {
        feeder.subscribe(Millis(now), (NodeId(from), 1), (FULL, at(11, 3)), &voter())
    };
    let fed = 100..100 + limits::LONE_VOTER_FEEDS as u64;
    fed.clone().for_each(|from| ask(&mut feeder, 1, from).unwrap());
    // All are heard of all the while; one stays behind, the others have what there is.
    for now in (0..timing::FEED_HELD_MS).step_by(1_000) {
        for from in fed.clone() {
            let has = if from == 100 { 12 } else { 10 + MANY };
            feeder.acknowledged(Millis(now), NodeId(from), 1, (has, true));
        }
        said(&mut feeder, now, &voter());
        assert_eq!(ask(&mut feeder, now, 9), Err(Reason::Full), "after {now} ms");
    }
    let now = timing::FEED_HELD_MS + 1;
    assert_eq!(ask(&mut feeder, now, 9), Ok(()));
    let told = feeder.pump(Millis(now), &voter());
    let others = fed.clone().skip(1).map(NodeId).collect();
    let refused = Feed::Refused { reason: Reason::Full, others };
    assert!(told.iter().any(|said| said.to == NodeId(100) && decode(&said.body) == Ok(refused.clone())));
    assert_eq!(ask(&mut feeder, now, 99), Err(Reason::Full), "the others keep theirs");
    assert_eq!(feeder.feeds(), limits::LONE_VOTER_FEEDS);
}

#[test]
fn the_only_place_of_a_voter_goes_to_whoever_asks_once_its_holder_lags_for_long() {
    const MANY: u64 = limits::FEED_LACKS + 100;
    let store = Store::with(MANY as usize + 1);
    let voter = || Stock { votes: true, ..store.stock(10 + MANY) };
    let mut feeder = Feeder::default();
    let ask = |feeder: &mut Feeder, now, from: u64| {
        feeder.subscribe(Millis(now), (NodeId(from), 1), (FULL, at(11, 3)), &voter())
    };
    ask(&mut feeder, 1, 100).unwrap();
    for now in (0..timing::FEED_HELD_MS).step_by(1_000) {
        feeder.acknowledged(Millis(now), NodeId(100), 1, (12, true));
        said(&mut feeder, now, &voter());
        assert_eq!(ask(&mut feeder, now, 9), Err(Reason::Full), "after {now} ms");
    }
    let now = timing::FEED_HELD_MS + 1;
    assert_eq!(ask(&mut feeder, now, 9), Ok(()));
    let told = feeder.pump(Millis(now), &voter());
    let refused = Feed::Refused { reason: Reason::Full, others: vec![NodeId(2)] };
    assert!(
        told.iter().any(|said| said.to == NodeId(100) && decode(&said.body) == Ok(refused.clone())),
        "nobody has caught up, so voters are named"
    );
    assert_eq!(feeder.feeds(), limits::VOTER_FEEDS);
}

#[test]
fn a_feeder_that_votes_keeps_those_that_have_caught_up_and_sends_the_others_to_them() {
    const MANY: u64 = limits::FEED_LACKS + 100;
    let store = Store::with(MANY as usize + 1);
    let all = 10 + MANY;
    let alone = limits::LONE_VOTER_FEEDS;
    for (leads, others, places) in [
        (true, vec![NodeId(2)], limits::LEADER_FEEDS),
        (false, vec![NodeId(2)], limits::VOTER_FEEDS),
        (true, vec![], alone),
    ] {
        let mut feeder = Feeder::default();
        for from in 100..140 {
            feeder.subscribe(Millis(1), (NodeId(from), 1), (FULL, at(11, 3)), &store.stock(all)).unwrap();
        }
        said(&mut feeder, 1, &store.stock(all));
        (120..140).for_each(|id| feeder.acknowledged(Millis(2), NodeId(id), 1, (all, true)));
        // Of those that have caught up the first to come.
        let best: Vec<NodeId> = (120..120 + places as u64).map(NodeId).collect();
        let votes = Stock { leads, votes: true, others, ..store.stock(all) };
        let told = feeder.pump(Millis(2), &votes);
        let refused: Vec<_> = told
            .iter()
            .filter_map(|said| match decode(&said.body) {
                Ok(Feed::Refused { reason: Reason::Full, others }) => Some((said.to, others)),
                _ => None,
            })
            .collect();
        assert_eq!(refused.len(), 40 - places);
        assert!(refused.iter().all(|(to, others)| !best.contains(to) && *others == best), "{refused:?}");
        assert_eq!(feeder.feeds(), places);
    }
}

#[test]
fn who_takes_a_state_keeps_nobody_else_from_a_voters_place() {
    let mut store = Store::with(5);
    store.log.set_state(State { applied_index: 12, applied_term: 3, ..State::first(NodeId(1)) });
    let voter = || Stock { votes: true, ..store.stock(14) };
    let mut feeder = Feeder::default();
    let ask = |feeder: &mut Feeder, now, from: u64, place| {
        feeder.subscribe(Millis(now), (NodeId(from), 1), (FULL, place), &voter())
    };
    ask(&mut feeder, 1, 100, Place::default()).unwrap();
    let pieces = |said: &[Feed]| said.iter().any(|feed| matches!(feed, Feed::Piece(_)));
    assert!(pieces(&said(&mut feeder, 1, &voter())), "it is sent a state");
    assert_eq!(ask(&mut feeder, 2, 101, at(14, 3)), Ok(()), "one more");
    assert_eq!(ask(&mut feeder, 2, 102, at(14, 3)), Err(Reason::Full), "and no more");
    // It has the state but not what was written meanwhile, which the log keeps for it as long as it is fed.
    feeder.acknowledged(Millis(9), NodeId(100), 1, (12, true));
    said(&mut feeder, 9, &voter());
    assert_eq!((feeder.feeds(), feeder.needs().min()), (2, Some(13)), "both are fed");
    feeder.acknowledged(Millis(10), NodeId(100), 1, (14, true));
    let told = feeder.pump(Millis(11), &voter());
    let refused = Feed::Refused { reason: Reason::Full, others: vec![NodeId(100)] };
    assert!(told.iter().any(|said| said.to == NodeId(101) && decode(&said.body) == Ok(refused.clone())));
    assert_eq!(feeder.feeds(), limits::VOTER_FEEDS);
}

#[test]
fn who_takes_nothing_of_the_little_that_it_lacks_is_named_to_nobody_and_loses_its_place() {
    let store = Store::with(5);
    let voter = || Stock { votes: true, ..store.stock(14) };
    let mut feeder = Feeder::default();
    let ask = |feeder: &mut Feeder, now, from: u64| {
        feeder.subscribe(Millis(now), (NodeId(from), 1), (FULL, at(12, 3)), &voter())
    };
    ask(&mut feeder, 1, 100).unwrap();
    said(&mut feeder, 1, &voter());
    assert_eq!(feeder.better(Reason::Full, &[NodeId(2)], 14), [NodeId(100)], "it may be about to");
    // Its disk is full: it hears all, and says each time that nothing follows on what it has.
    let mut now = 0;
    while now < timing::FEED_LAG_MS + timing::FEED_HELD_MS {
        assert_eq!(ask(&mut feeder, now, 9), Err(Reason::Full), "after {now} ms");
        now += 1_000;
        feeder.acknowledged(Millis(now), NodeId(100), 1, (12, false));
        said(&mut feeder, now, &voter());
    }
    assert_eq!(feeder.better(Reason::Full, &[NodeId(2)], 14), [NodeId(2)]);
    assert_eq!(ask(&mut feeder, now + 1, 9), Ok(()));
    assert_eq!(feeder.feeds(), limits::VOTER_FEEDS);
}

#[test]
fn whose_disk_has_no_room_for_a_state_gives_its_place_to_whoever_asks() {
    let store = Store::with(5);
    let voter = || Stock { votes: true, ..store.stock(14) };
    let mut feeder = Feeder::default();
    let ask = |feeder: &mut Feeder, now, from: u64, place| {
        feeder.subscribe(Millis(now), (NodeId(from), 1), (FULL, place), &voter())
    };
    ask(&mut feeder, 1, 100, Place::default()).unwrap();
    said(&mut feeder, 1, &voter());
    let index = store.log.state_to_feed().applied_index;
    feeder.took(Millis(timing::FEED_HELD_MS), NodeId(100), 1, (index, 0, Want::Room));
    said(&mut feeder, timing::FEED_HELD_MS, &voter());
    assert_eq!(ask(&mut feeder, timing::FEED_HELD_MS + 1, 101, at(14, 3)), Ok(()));
    assert_eq!(feeder.feeds(), limits::VOTER_FEEDS);
}

#[test]
fn a_moment_without_news_sends_nobody_away() {
    let mut feeder = Feeder::default();
    assert_eq!(feeder.comes_from(None), limits::FEED_HOPS, "it never had any");
    assert_eq!(feeder.comes_from(Some(1)), 1);
    assert_eq!(feeder.comes_from(None), 1);
}
