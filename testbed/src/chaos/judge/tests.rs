//! The judge against histories that are right, and with each kind of mistake put in.

use super::*;
use crate::chaos::history::{Event, Watch};

fn call(ask: Ask, told: Told, called: u64, returned: u64) -> Call {
    Call { host: 0, key: 1, ask, told, called, returned }
}

fn done(value: u64, revision: u64) -> Told {
    Told::Done { value, revision }
}

fn event(revision: u64, value: Option<u64>, time: u64) -> Event {
    Event { revision, key: 1, value, time }
}

fn list(stale: bool, at: u64, item: (u64, u64), called: u64) -> List {
    List { host: 1, stale, at, items: vec![(1, item.0, item.1)], called, returned: called + 1 }
}

/// Created at 11, written at 12, swapped at 14, an unknown write at 15, deleted at 17; two watches hear it.
fn right() -> History {
    let told = vec![
        event(11, Some(100), 5),
        event(12, Some(101), 15),
        event(14, Some(102), 25),
        event(15, Some(103), 50),
        event(17, None, 65),
    ];
    History {
        hosts: 2,
        began: 10,
        calls: vec![
            call(Ask::Create(100), done(100, 11), 0, 10),
            call(Ask::Write(101), done(101, 12), 11, 20),
            call(Ask::Read, done(101, 12), 12, 21),
            call(Ask::Swap { expected: 101, new: 102 }, done(102, 14), 22, 30),
            call(Ask::Swap { expected: 101, new: 999 }, Told::Conflict, 31, 33),
            call(Ask::Write(103), Told::Unknown, 34, 40),
            call(Ask::Write(998), Told::Nothing, 34, 40),
            call(Ask::Write(997), Told::Unknown, 34, 40),
            call(Ask::Read, done(103, 15), 55, 57),
            call(Ask::Delete, done(0, 0), 60, 70),
            call(Ask::Read, Told::Absent, 71, 72),
        ],
        lists: vec![list(true, 12, (101, 12), 40), list(false, 14, (102, 14), 41)],
        watches: vec![
            Watch { host: 0, from: 10, told: told.clone(), bookmark: Some(20), expired: false },
            Watch { host: 1, from: 12, told: told[2..4].to_vec(), bookmark: Some(16), expired: false },
        ],
        ..History::default()
    }
}

fn wrong(history: &History) -> String {
    judge(history).1.join("; ")
}

#[test]
fn a_history_that_one_store_could_have_made_passes() {
    let (counts, wrong) = judge(&right());
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!((counts.operations, counts.unknown, counts.unknown_done, counts.changes), (10, 2, 1, 5));
}

#[test]
fn a_lost_write_is_found() {
    let mut history = right();
    history.calls.push(call(Ask::Write(104), done(104, 16), 57, 58));
    assert!(wrong(&history).contains("C3: "), "{}", wrong(&history));
    // Also by those that know no revisions.
    let mut history = right();
    history.calls[1] = call(Ask::Write(104), done(104, 500), 11, 20);
    assert!(wrong(&history).contains("not linearizable"), "{}", wrong(&history));
}

#[test]
fn a_stale_linearizable_read_is_found() {
    let mut history = right();
    history.calls.push(call(Ask::Read, done(101, 12), 31, 32));
    assert_eq!(wrong(&history), "A1: the 10 operations on key 1 are not linearizable");
    let mut history = right();
    history.lists.push(list(false, 12, (101, 12), 45));
    assert!(wrong(&history).contains("A1: a list at 12"), "{}", wrong(&history));
}

#[test]
fn two_swaps_from_one_value_are_found() {
    let mut history = right();
    history.calls.push(call(Ask::Swap { expected: 101, new: 105 }, done(105, 30), 22, 31));
    assert!(wrong(&history).contains("not linearizable"));
}

#[test]
fn a_write_that_was_called_not_done_and_took_effect_is_found() {
    let mut history = right();
    history.watches[0].told.insert(4, event(16, Some(998), 55));
    assert!(wrong(&history).contains("told not to have been done"), "{}", wrong(&history));
}

#[test]
fn a_watch_with_a_gap_and_an_untrue_bookmark_are_found() {
    let mut history = right();
    history.watches[1].told.remove(0);
    assert!(wrong(&history).contains("but not 1"), "{}", wrong(&history));
    let mut history = right();
    history.watches[1].bookmark = Some(17);
    assert!(wrong(&history).contains("heard all up to 17"), "{}", wrong(&history));
}

#[test]
fn lists_that_do_not_add_up_or_go_back_are_found() {
    let mut history = right();
    history.lists[0].items[0] = (1, 100, 11);
    assert!(wrong(&history).contains("A5: host2"), "{}", wrong(&history));
    let mut history = right();
    history.lists.push(list(true, 12, (101, 12), 50));
    assert_eq!(wrong(&history), "A6: host2 listed 12 after 14 was shown");
}

#[test]
fn what_no_watch_told_of_and_a_run_of_nothing_are_findings() {
    let mut history = right();
    history.calls.push(call(Ask::Write(104), done(104, 30), 80, 90));
    assert_eq!(wrong(&history), "", "the last words of a run may be missing");
    history.calls.push(call(Ask::Read, done(104, 30), 5_000_000, 5_000_001));
    assert!(
        wrong(&history).contains("1 acknowledged writes after it were not judged"),
        "{}",
        wrong(&history)
    );
    assert!(wrong(&History::default()).contains("nothing to judge"));
}
