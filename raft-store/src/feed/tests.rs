//! What becomes of batches, of feeders and of feeds, case by case.

mod places;

use std::collections::BTreeMap;

use raft::RaftLog;
use raft::eraftpb::HardState;

use super::follow::{Fit, Follower, Standing, fit};
use super::recent::Recent;
use super::serve::{Feeder, Stock};
use super::*;
use crate::ids::{Millis, NodeId};
use crate::state::State;
use crate::storage::Memory;
use crate::timing;

fn news(commit: u64) -> News {
    News { term: 5, leader: 1, commit, hops: 0 }
}

fn entries(terms: &[u64]) -> Vec<FedEntry> {
    terms.iter().map(|term| FedEntry { kind: 0, term: *term, data: vec![1], context: vec![] }).collect()
}

fn batch(after: (u64, u64), terms: &[u64]) -> Batch {
    let end = after.0 + terms.len() as u64;
    Batch { news: news(end), after, entries: entries(terms), hash: None }
}

/// A log that begins after (10, 2), with entries of these terms.
fn log(terms: &[u64], committed: u64) -> RaftLog<Memory> {
    let held = entries(terms).into_iter().zip(11..).map(|(entry, index)| entry.into_entry(index));
    let state = State { applied_index: 10, applied_term: 2, ..State::first(NodeId(9)) };
    let memory = Memory::new((10, 2), held.collect(), HardState::default(), state);
    let mut log = RaftLog::new(memory, crate::raft_log_drain::logger());
    log.committed = committed;
    log
}

fn fitted(batch: Batch, log: &RaftLog<Memory>) -> Result<(u64, u64, usize, u64, u64), String> {
    match fit(batch, 9, 3, log) {
        Fit::Step(m) => Ok((m.index, m.log_term, m.entries.len(), m.commit, m.term)),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn a_batch_that_follows_is_an_append_of_the_higher_term_up_to_its_own_end() {
    let log = log(&[3, 3], 12);
    let mut fed = batch((12, 3), &[3, 4]);
    fed.news.commit = 90;
    assert_eq!(fitted(fed, &log), Ok((12, 3, 2, 14, 5)));
}

#[test]
fn what_is_committed_here_is_not_given_to_raft_again() {
    let log = log(&[3, 3], 12);
    assert_eq!(fitted(batch((10, 2), &[3, 3, 4]), &log), Ok((12, 3, 1, 13, 5)));
    assert_eq!(fitted(batch((10, 2), &[3]), &log), Ok((11, 3, 0, 11, 5)));
    assert_eq!(fitted(batch((4, 1), &[1]), &log), Ok((5, 1, 0, 5, 5)), "older than the snapshot");
}

#[test]
fn a_batch_with_a_gap_before_it_is_told_from_one_that_contradicts_what_is_committed() {
    let log = log(&[3, 3], 11);
    assert_eq!(fitted(batch((13, 3), &[3]), &log), Err("Gap".into()));
    assert_eq!(
        fitted(batch((12, 4), &[4]), &log),
        Err("Gap".into()),
        "a tail of ours that was never committed"
    );
    assert_eq!(fitted(batch((11, 4), &[4]), &log), Err("Diverged(11)".into()));
    assert_eq!(fitted(batch((10, 2), &[4, 4]), &log), Err("Diverged(11)".into()));
    assert_eq!(fitted(batch((11, 3), &[4]), &log), Ok((11, 3, 1, 12, 5)), "it replaces the tail");
}

#[test]
fn numbers_that_raft_would_trust_or_panic_at_are_refused() {
    let log = log(&[3, 3], 12);
    let nonsense = |change: fn(&mut Batch)| {
        let mut fed = batch((12, 3), &[3, 4]);
        change(&mut fed);
        assert_eq!(fitted(fed, &log), Err("Nonsense".into()));
    };
    nonsense(|fed| fed.news.term = 0);
    nonsense(|fed| fed.news.term = u64::MAX);
    nonsense(|fed| fed.news.commit = 13);
    nonsense(|fed| fed.after.1 = 0);
    nonsense(|fed| fed.after = (0, 3));
    nonsense(|fed| fed.entries[1].term = 2);
    nonsense(|fed| fed.entries[1].term = 6);
    nonsense(|fed| fed.entries[0].kind = 9);
}

const ALONE: Standing =
    Standing { leads: false, member: false, silent_ms: 0, leader: Some(NodeId(1)), applied: 5 };

fn follower() -> Follower {
    let mut follower = Follower::new(NodeId(9), 7, 1 << 32);
    follower.peers(&[1, 2, 3, 8, 9].map(NodeId), &[]);
    follower
}

#[test]
fn voters_that_do_not_lead_are_asked_first_then_observers_then_the_leader() {
    let mut follower = follower();
    let voters = [1, 2, 3].map(NodeId);
    let mut asked = Vec::new();
    while let Some((feeder, _)) = follower.look(Millis(1), ALONE, &voters).asked {
        asked.push(feeder.0);
        follower.refused(Millis(1), Reason::Full, vec![]);
    }
    asked[..2].sort_unstable();
    assert_eq!(asked, [2, 3, 8, 1]);
    follower.peers(&[NodeId(1)], &[2, 3].map(NodeId));
    let (first, _) = follower.look(Millis(9_000), ALONE, &voters).asked.unwrap();
    follower.refused(Millis(9_000), Reason::Full, vec![]);
    let (second, _) = follower.look(Millis(9_000), ALONE, &voters).asked.unwrap();
    assert!(first == NodeId(1) && second != first, "who is suspected is asked last, and asked all the same");
}

#[test]
fn a_silent_feeder_is_left_and_a_speaking_one_is_kept() {
    let mut follower = follower();
    let (first, stream) = follower.look(Millis(0), ALONE, &[]).asked.unwrap();
    assert!(follower.is_from(first, stream));
    follower.heard(Millis(500), news(3));
    let look = follower.look(Millis(1_000), ALONE, &[]);
    assert!(look.left.is_none() && look.asked.is_none());
    let look = follower.look(Millis(500 + timing::FEED_SILENCE_MS), ALONE, &[]);
    assert_eq!(look.left, Some((first, stream)));
    assert!(look.asked.is_some_and(|(next, _)| next != first), "another at once");
}

#[test]
fn who_votes_asks_only_after_a_long_silence_and_leaves_when_it_hears() {
    let mut follower = follower();
    let member = |silent_ms| Standing { member: true, silent_ms, ..ALONE };
    assert!(follower.look(Millis(9_000), member(1_900), &[]).asked.is_none());
    assert!(follower.look(Millis(9_100), member(2_000), &[]).asked.is_some());
    follower.heard(Millis(9_200), news(1));
    assert!(follower.look(Millis(9_300), member(2_200), &[]).left.is_none());
    assert!(follower.look(Millis(9_400), member(50), &[]).left.is_some());
    let leads = Standing { leads: true, ..ALONE };
    assert!(follower.look(Millis(99_000), leads, &[]).asked.is_none());
}

#[test]
fn a_feeder_with_another_state_is_shunned_and_named() {
    let mut follower = follower();
    let (feeder, _) = follower.look(Millis(0), ALONE, &[]).asked.unwrap();
    follower.expect(20, [1; 32]);
    assert!(follower.agrees(19, [9; 32]), "nobody said what it should be");
    assert!(!follower.agrees(20, [9; 32]));
    assert!(follower.differs(Millis(0), 20).is_some());
    assert_eq!(follower.diverged, Some((feeder, 20)));
    for _ in 0..20 {
        if let Some((asked, _)) = follower.look(Millis(30_000), ALONE, &[]).asked {
            assert_ne!(asked, feeder);
            follower.refused(Millis(30_000), Reason::Behind, vec![]);
        }
    }
}

struct Store {
    log: Memory,
    recent: Recent,
}

impl Store {
    /// Entries 11 to 10 + n of term 3, all applied but the last.
    fn with(n: usize) -> Store {
        let held = entries(&vec![3; n]).into_iter().zip(11..).map(|(entry, index)| entry.into_entry(index));
        let log = Memory::new((10, 2), held.collect(), HardState::default(), State::first(NodeId(1)));
        Store { log, recent: Recent::default() }
    }

    fn stock(&self, applied: u64) -> Stock<'_> {
        Stock {
            log: &self.log,
            recent: &self.recent,
            applied: Place { index: applied, term: 3, hash: [0; 32] },
            news: news(applied),
            leads: false,
            votes: false,
            fresh: true,
            others: vec![NodeId(2)],
            piece_bytes: 8,
        }
    }
}

const FULL: Scope = Scope::Full;

fn at(index: u64, term: u64) -> Place {
    Place { index, term, hash: [0; 32] }
}

fn said(feeder: &mut Feeder, now: u64, stock: &Stock<'_>) -> Vec<Feed> {
    feeder.pump(Millis(now), stock).into_iter().map(|said| decode(&said.body).unwrap()).collect()
}

#[test]
fn only_what_is_applied_is_fed_and_what_is_forgotten_comes_as_a_state() {
    let store = Store::with(5);
    let stock = store.stock(14);
    let mut feeder = Feeder::default();
    feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, at(12, 3)), &stock).unwrap();
    let [Feed::Batch(batch)] = &said(&mut feeder, 1, &stock)[..] else { panic!() };
    assert_eq!((batch.after, batch.end()), ((12, 3), 14));
    feeder.subscribe(Millis(1), (NodeId(9), 2), (FULL, Place::default()), &stock).unwrap();
    assert!(matches!(&said(&mut feeder, 1, &stock)[..], [Feed::Piece(_), ..]));
}

#[test]
fn subscriptions_are_refused_with_the_reason() {
    let store = Store::with(5);
    let mut feeder = Feeder::default();
    let mut ask = |from: u64, scope, place, stock: &Stock<'_>| {
        feeder.subscribe(Millis(1), (NodeId(from), 1), (scope, place), stock)
    };
    let stock = store.stock(14);
    assert_eq!(ask(9, Scope::Node, at(12, 3), &stock), Err(Reason::ScopeNotServed));
    assert_eq!(ask(9, FULL, at(16, 3), &stock), Err(Reason::Behind));
    assert_eq!(ask(9, FULL, at(12, 2), &stock), Err(Reason::Diverged));
    let stale = Stock { fresh: false, ..store.stock(14) };
    assert_eq!(ask(9, FULL, at(12, 3), &stale), Err(Reason::Behind));
    for from in 0..limits::FEEDS as u64 {
        assert_eq!(ask(100 + from, FULL, at(12, 3), &stock), Ok(()));
    }
    assert_eq!(ask(9, FULL, at(12, 3), &stock), Err(Reason::Full));
    assert_eq!(ask(100, FULL, at(12, 3), &stock), Ok(()), "who is fed may ask again");
}

#[test]
fn who_is_a_moment_ahead_is_fed_where_the_log_holds_what_it_has() {
    let store = Store::with(5);
    let mut feeder = Feeder::default();
    let mut ask =
        |place, stock: &Stock<'_>| feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, place), stock);
    assert_eq!(
        ask(at(14, 4), &store.stock(12)),
        Err(Reason::Behind),
        "another entry: it will go, or the asker is wrong"
    );
    assert_eq!(ask(at(16, 3), &store.stock(12)), Err(Reason::Behind), "not here yet, or lost");
    assert_eq!(ask(at(14, 3), &store.stock(12)), Ok(()));
    let news: Vec<_> = said(&mut feeder, timing::FEED_BEAT_MS, &store.stock(12));
    assert!(matches!(&news[..], [Feed::Batch(batch)] if batch.is_news()), "nothing that it has: {news:?}");
    assert_eq!(said(&mut feeder, timing::FEED_BEAT_MS + 1, &store.stock(14)), [], "nor when it is applied");
    let fed = said(&mut feeder, timing::FEED_BEAT_MS + 2, &store.stock(15));
    assert!(
        matches!(&fed[..], [Feed::Batch(batch)] if batch.after == (14, 3) && batch.end() == 15),
        "{fed:?}"
    );
}

#[test]
fn who_is_refused_by_all_does_not_ask_without_end() {
    let mut follower = follower();
    let mut asks = 0;
    for now in 1..=10_000 {
        // Each is refused at once, by whoever has nothing either.
        while follower.look(Millis(now), ALONE, &[1, 2, 3].map(NodeId)).asked.is_some() {
            asks += 1;
            follower.refused(Millis(now), Reason::Behind, vec![]);
        }
    }
    assert!((40..=110).contains(&asks), "{asks} asks in ten seconds");
}

#[test]
fn who_is_fed_by_the_leader_asks_voters_again_soon_and_less_often_while_that_is_in_vain() {
    let mut follower = follower();
    let voters = [1, 2, 3].map(NodeId);
    let mut asked = BTreeMap::<u64, u64>::new();
    for now in (100..=300_000).step_by(100) {
        while let Some((feeder, _)) = follower.look(Millis(now), ALONE, &voters).asked {
            if feeder != NodeId(1) {
                *asked.entry(now / 60_000).or_default() += 1;
                follower.refused(Millis(now), Reason::Behind, vec![]);
            }
        }
        follower.heard(Millis(now), news(3));
    }
    let a_minute: Vec<u64> = asked.into_values().collect();
    assert!(a_minute[0] > 3 * a_minute[4] && a_minute[4] < 15, "{a_minute:?}");
}

#[test]
fn who_does_not_come_to_what_its_feeder_had_lags_until_it_does() {
    let mut follower = follower();
    let voters = [1, 2, 3].map(NodeId);
    let look = |follower: &mut Follower, now, applied, commit| {
        follower.look(Millis(now), Standing { applied, ..ALONE }, &voters);
        follower.heard(Millis(now), news(commit));
        follower.look(Millis(now), Standing { applied, ..ALONE }, &voters);
        follower.lags(Millis(now))
    };
    assert!(!look(&mut follower, 1, 5, 9));
    for now in (100..=10_000).step_by(100) {
        assert!(!look(&mut follower, now, 8, 9 + now), "{now}");
    }
    assert!(look(&mut follower, 10_001, 8, 20_000));
    assert!(!look(&mut follower, 10_100, 9, 20_000), "that far it has come");
}

#[test]
fn who_was_named_is_asked_before_others() {
    let mut follower = follower();
    let voters = [1, 2, 3].map(NodeId);
    follower.peers(&[1, 2, 3, 5, 6, 7, 8, 9].map(NodeId), &[]);
    let mut asked = Vec::new();
    for _ in 0..4 {
        asked.extend(follower.look(Millis(1), ALONE, &voters).asked.map(|(feeder, _)| feeder.0));
        follower.refused(Millis(1), Reason::Full, [5, 7].map(NodeId).to_vec());
    }
    asked.sort_unstable();
    assert_eq!(asked, [2, 3, 5, 7]);
}

#[test]
fn what_did_not_fit_comes_again_but_not_at_every_complaint() {
    let store = Store::with(5);
    let stock = store.stock(14);
    let mut feeder = Feeder::default();
    feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, at(11, 3)), &stock).unwrap();
    assert_eq!(said(&mut feeder, 1, &stock).len(), 1);
    feeder.acknowledged(Millis(200), NodeId(9), 1, (11, false));
    feeder.acknowledged(Millis(201), NodeId(9), 1, (11, false));
    let [Feed::Batch(batch)] = &said(&mut feeder, 202, &stock)[..] else { panic!() };
    assert_eq!(batch.after, (11, 3));
    feeder.acknowledged(Millis(203), NodeId(9), 1, (11, false));
    assert_eq!(said(&mut feeder, 204, &stock), []);
    feeder.acknowledged(Millis(210), NodeId(9), 1, (14, true));
    let [Feed::Batch(beat)] = &said(&mut feeder, 500, &stock)[..] else { panic!() };
    assert_eq!((beat.after, beat.entries.len()), ((14, 3), 0), "a beat shows what was sent before");
    assert!(
        said(&mut feeder, 500 + timing::FEED_LOST_MS, &stock).is_empty(),
        "who says nothing is forgotten"
    );
    assert_eq!(feeder.feeds(), 0);
}

#[test]
fn no_more_than_the_credit_is_under_way() {
    let big = |index: u64| {
        let entry = FedEntry { kind: 0, term: 3, data: vec![0; 900 << 10], context: vec![] };
        entry.into_entry(index)
    };
    let log =
        Memory::new((10, 2), (11..31).map(big).collect(), HardState::default(), State::first(NodeId(1)));
    let store = Store { log, recent: Recent::default() };
    let stock = store.stock(30);
    let mut feeder = Feeder::default();
    feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, at(10, 2)), &stock).unwrap();
    let bytes = |said: Vec<super::serve::Said>| said.iter().map(|said| said.body.len() as u64).sum::<u64>();
    let first = bytes(feeder.pump(Millis(1), &stock));
    assert!((limits::FEED_CREDIT_BYTES..limits::FEED_CREDIT_BYTES + (1 << 20)).contains(&first), "{first}");
    assert_eq!(bytes(feeder.pump(Millis(2), &stock)), 0);
    feeder.acknowledged(Millis(3), NodeId(9), 1, (12, true));
    assert!(bytes(feeder.pump(Millis(2 + timing::FEED_GATHER_MS), &stock)) > 0);
}

#[test]
fn what_is_applied_shortly_after_a_batch_is_gathered_and_not_all_are_fed_at_once() {
    let store = Store::with(9);
    let mut feeder = Feeder::default();
    for from in 1..=8 {
        feeder.subscribe(Millis(1_000), (NodeId(from), 1), (FULL, at(11, 3)), &store.stock(12)).unwrap();
    }
    assert_eq!(said(&mut feeder, 1_000, &store.stock(12)).len(), 8, "the first goes at once");
    assert_eq!(feeder.due(), None);
    feeder.hurry(NodeId(8), 1, 13);
    let hurried = said(&mut feeder, 1_001, &store.stock(13));
    assert!(matches!(&hurried[..], [Feed::Batch(batch)] if batch.end() == 13), "a read waits for it");
    assert!(feeder.due().is_some());
    feeder.acknowledged(Millis(1_001), NodeId(8), 1, (13, true));
    let mut fed = BTreeMap::new();
    let mut now = 1_001;
    while let Some(due) = feeder.due() {
        assert!(now <= due.0 && due.0 <= 1_001 + 2 * timing::FEED_GATHER_MS);
        now = due.0;
        let batches = said(&mut feeder, now, &store.stock(18));
        assert!(
            batches.iter().all(|feed| matches!(feed, Feed::Batch(batch) if batch.end() == 18)),
            "{batches:?}"
        );
        assert!(!batches.is_empty());
        *fed.entry(now).or_insert(0) += batches.len();
    }
    assert_eq!(fed.values().sum::<usize>(), 8);
    assert_eq!(said(&mut feeder, now + 1, &store.stock(19)), []);
    assert!(feeder.due().is_some());
    (1..=8).for_each(|from| feeder.left(NodeId(from), 1));
    assert_eq!(feeder.due(), None, "nobody waits: a driver would not sleep for a time that has passed");
    assert!(fed.len() >= 4 && fed.values().all(|fed| *fed <= 2), "{fed:?}");
}

#[test]
fn a_state_goes_in_pieces_of_which_few_are_under_way() {
    let store = Store::with(5);
    let stock = store.stock(14);
    let mut feeder = Feeder::default();
    feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, Place::default()), &stock).unwrap();
    let mut growing = super::growing::Growing::new(NodeId(1), 1, (1, 1));
    let (mut now, mut pieces) = (1, 0);
    while !growing.is_whole() {
        for feed in said(&mut feeder, now, &stock) {
            let Feed::Piece(piece) = feed else { panic!("{feed:?}") };
            assert!(piece.is_sound() && piece.number < growing.taken() + limits::FEED_PIECES as u64);
            assert!(growing.offer(piece).is_none());
        }
        // One is taken, then another may come.
        let data = growing.next().expect("one came");
        growing.take(&data);
        pieces += 1;
        feeder.took(Millis(now), NodeId(9), 1, (1, pieces, Want::More));
        now += 1;
    }
    assert!(pieces > limits::FEED_PIECES as u64, "{pieces}");
    assert_eq!(feeder.needs().min(), Some(2), "what follows on it is kept");
    let state = growing.finish().unwrap();
    assert_eq!(crate::snapshot::encode(&state), crate::snapshot::encode(&State::first(NodeId(1))));
    feeder.acknowledged(Millis(now), NodeId(9), 1, (14, true));
    said(&mut feeder, now, &stock);
    assert_eq!(feeder.needs().min(), Some(15));
}

#[test]
fn who_asks_twice_under_one_stream_or_late_under_an_older_one_is_sent_no_second_state() {
    let store = Store::with(5);
    let stock = store.stock(14);
    let mut feeder = Feeder::default();
    let ask = |feeder: &mut Feeder, stream| {
        feeder.subscribe(Millis(1), (NodeId(9), stream), (FULL, Place::default()), &stock).unwrap();
        said(feeder, 1, &stock).len()
    };
    assert_eq!(ask(&mut feeder, 2), limits::FEED_PIECES);
    assert_eq!(ask(&mut feeder, 2), 0, "it came twice");
    assert_eq!(ask(&mut feeder, 1), 0, "it came late");
    assert_eq!(ask(&mut feeder, 3), limits::FEED_PIECES);
}

#[test]
fn a_state_whose_taker_has_lost_what_it_had_taken_is_begun_anew() {
    let store = Store::with(5);
    let stock = store.stock(14);
    let mut feeder = Feeder::default();
    feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, Place::default()), &stock).unwrap();
    let first = |feeder: &mut Feeder, now: u64| {
        let number = |feed| if let Feed::Piece(piece) = feed { Some(piece.number) } else { None };
        said(feeder, now, &stock).into_iter().find_map(number)
    };
    assert_eq!(first(&mut feeder, 1), Some(0));
    feeder.took(Millis(2), NodeId(9), 1, (1, 2, Want::More));
    assert_eq!(first(&mut feeder, 2), Some(4));
    feeder.took(Millis(3), NodeId(9), 1, (1, 0, Want::Missing));
    assert_eq!(first(&mut feeder, 3), None, "that may have been said before");
    let now = 2 + timing::FEED_PIECE_AGAIN_MS;
    assert_eq!(first(&mut feeder, now), Some(2), "what is under way comes again");
    feeder.took(Millis(now + 1), NodeId(9), 1, (1, 0, Want::Missing));
    assert_eq!(first(&mut feeder, now + 1), Some(0));
}

#[test]
fn a_lost_piece_comes_again_and_a_state_of_which_nothing_is_taken_is_begun_anew() {
    let store = Store::with(5);
    let stock = store.stock(14);
    let mut feeder = Feeder::default();
    feeder.subscribe(Millis(1), (NodeId(9), 1), (FULL, Place::default()), &stock).unwrap();
    let numbers = |said: Vec<Feed>| -> Vec<u64> {
        let number = |feed| if let Feed::Piece(piece) = feed { Some(piece.number) } else { None };
        said.into_iter().filter_map(number).collect()
    };
    assert_eq!(numbers(said(&mut feeder, 1, &stock)), [0, 1, 2, 3]);
    feeder.took(Millis(2), NodeId(9), 1, (1, 1, Want::More));
    assert_eq!(numbers(said(&mut feeder, 2, &stock)), [4]);
    feeder.took(Millis(3), NodeId(9), 1, (1, 1, Want::Missing));
    assert_eq!(numbers(said(&mut feeder, 4, &stock)), [], "not at every complaint");
    assert_eq!(numbers(said(&mut feeder, 2 + timing::FEED_AGAIN_MS, &stock)), [1, 2, 3, 4]);
    let mut now = 200;
    let mut sent = Vec::new();
    while now < 100 + timing::FEED_STUCK_MS {
        feeder.acknowledged(Millis(now), NodeId(9), 1, (0, true));
        sent.extend(numbers(said(&mut feeder, now, &stock)));
        now += 25;
    }
    assert!(sent.contains(&1) && sent.ends_with(&[0, 1, 2, 3]), "{sent:?}");
    feeder.took(Millis(now), NodeId(9), 1, (1, 0, Want::Room));
    assert_eq!(numbers(said(&mut feeder, now, &stock)), [], "no room there");
    assert_eq!(feeder.needs().min(), Some(1), "from the begin, which the log has forgotten");
    now += 2_000;
    feeder.acknowledged(Millis(now), NodeId(9), 1, (0, true));
    now += 2_000;
    feeder.acknowledged(Millis(now), NodeId(9), 1, (0, true));
    assert_eq!(numbers(said(&mut feeder, now, &stock)), []);
    assert_eq!(numbers(said(&mut feeder, now + 1_100, &stock)), [0, 1, 2, 3], "asked again after a while");
}
