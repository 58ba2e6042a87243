//! Judges a history by independent models: linearizability of each key, one history for all watches, lists that add up.
//!
//! Decides whether what clients saw could have been one store. Must not know what was done to the cluster.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::check::linear::{self, Act, Operation};
use raft_store::check::watch::Canon;

use super::history::{Ask, Call, History, List, Told};

/// Steps of the search for one key; an honest history needs about one per operation.
const STEPS: usize = 2_000_000;

/// Microseconds at a run's end within which what was written need not have been told by a watch.
const LAST_WORDS: u64 = 2_000_000;

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub operations: usize,
    pub unknown: usize,
    pub unknown_done: usize,
    pub changes: usize,
    pub watches: usize,
    pub lists: usize,
    pub stale_lists: usize,
    /// Keys whose search gave up.
    pub undecided: usize,
}

type Changes = Canon<u64, u64>;

/// Everything that is wrong; empty for a history that could be.
pub fn judge(history: &History) -> (Counts, Vec<String>) {
    let mut wrong = Vec::new();
    let canon = canon(history, &mut wrong);
    let heard = heard_without_gap(history);
    for watch in &history.watches {
        let told: Vec<_> = watch.told.iter().map(|event| (event.revision, event.key, event.value)).collect();
        let judged = canon.session(watch.from, &told, watch.bookmark);
        wrong.extend(judged.err().map(|error| format!("host{}: {error}", watch.host + 1)));
    }
    acknowledged(history, &canon, heard, &mut wrong);
    lists(history, &canon, heard, &mut wrong);
    revisions(history, &mut wrong);
    let mut counts = Counts {
        operations: history.calls.iter().filter(|call| call.told != Told::Nothing).count(),
        unknown: history.calls.iter().filter(|call| call.told == Told::Unknown).count(),
        changes: canon.changes().count(),
        watches: history.watches.len(),
        lists: history.lists.len(),
        stale_lists: history.lists.iter().filter(|list| list.stale).count(),
        ..Counts::default()
    };
    registers(history, heard, &mut counts, &mut wrong);
    vacuous(history, heard, &counts, &mut wrong);
    (counts, wrong)
}

/// What was not looked at must not count as right.
fn vacuous(history: &History, heard: u64, counts: &Counts, wrong: &mut Vec<String>) {
    if counts.operations == 0 || counts.lists == 0 || counts.watches == 0 {
        wrong.push(format!("nothing to judge: {counts:?}"));
    }
    if counts.undecided > 0 {
        wrong.push(format!("{} keys could not be judged within {STEPS} steps each", counts.undecided));
    }
    // The end of a run may overtake the watches' last words.
    let ended = history.calls.iter().map(|call| call.returned).max().unwrap_or(0);
    let heard_of = |call: &&Call| match call.told {
        Told::Done { revision, .. } => revision <= heard || call.returned + LAST_WORDS >= ended,
        _ => true,
    };
    let unheard = history.calls.iter().filter(|call| call.ask.value().is_some() && !heard_of(call)).count();
    if unheard > 0 {
        wrong.push(format!(
            "the watches have a gap after revision {heard}: {unheard} acknowledged writes after it were not judged"
        ));
    }
}

/// All changes that watches told of.
fn canon(history: &History, wrong: &mut Vec<String>) -> Changes {
    let mut canon = Changes::default();
    for (watch, event) in history.watches.iter().flat_map(|w| w.told.iter().map(move |event| (w, event))) {
        let learned = canon.learn(event.revision, &event.key, &event.value);
        wrong.extend(learned.err().map(|error| format!("host{}: {error}", watch.host + 1)));
    }
    canon
}

/// Up to which revision watches that follow one another have told of everything.
fn heard_without_gap(history: &History) -> u64 {
    let ends = |from: u64, last: Option<u64>, bookmark: Option<u64>| last.max(bookmark).unwrap_or(from);
    let mut spans: Vec<(u64, u64)> = history
        .watches
        .iter()
        .map(|watch| (watch.from, ends(watch.from, watch.told.last().map(|e| e.revision), watch.bookmark)))
        .collect();
    spans.sort_unstable();
    let mut heard = history.began;
    for (from, to) in spans {
        if from <= heard {
            heard = heard.max(to);
        }
    }
    heard
}

/// C3: what was acknowledged is in the history, at the revision that was told; what "was not done" is not.
fn acknowledged(history: &History, canon: &Changes, heard: u64, wrong: &mut Vec<String>) {
    let values: BTreeSet<(u64, u64)> =
        canon.changes().filter_map(|(_, key, after)| after.map(|value| (*key, value))).collect();
    for call in &history.calls {
        let Some(value) = call.ask.value() else { continue };
        match call.told {
            Told::Done { revision, .. }
                if revision <= heard && canon.at(revision, &call.key) != Some(&Some(value)) =>
            {
                wrong.push(format!("C3: {call:?} was acknowledged and is not in the history"));
            }
            Told::Nothing | Told::Absent | Told::Conflict if values.contains(&(call.key, value)) => {
                wrong.push(format!("A1: {call:?} was told not to have been done and is in the history"));
            }
            _ => {}
        }
    }
}

/// A5: a list is the sum of all changes up to its revision. A6: an agent never shows something older than before.
fn lists(history: &History, canon: &Changes, heard: u64, wrong: &mut Vec<String>) {
    for list in history.lists.iter().filter(|list| list.at <= heard) {
        let shown: BTreeMap<u64, (u64, u64)> =
            list.items.iter().map(|(key, value, revision)| (*key, (*revision, *value))).collect();
        let expected = canon.fold(list.at);
        if shown != expected {
            wrong.push(format!(
                "A5: host{} listed {shown:?} at {}; the changes add up to {expected:?}",
                list.host + 1,
                list.at
            ));
        }
    }
    for host in 0..history.hosts {
        let own = history.lists.iter().filter(|list| list.host == host);
        backwards("A6", own.collect(), wrong);
    }
    let fresh = history.lists.iter().filter(|list| !list.stale);
    backwards("A1", fresh.collect(), wrong);
}

/// A list that began after another had ended must not be older.
fn backwards(name: &str, mut lists: Vec<&List>, wrong: &mut Vec<String>) {
    lists.sort_by_key(|list| list.called);
    let mut ended: Vec<&List> = lists.clone();
    ended.sort_by_key(|list| list.returned);
    let (mut newest, mut next) = (0, 0);
    for list in lists {
        while ended.get(next).is_some_and(|done| done.returned < list.called) {
            newest = newest.max(ended[next].at);
            next += 1;
        }
        if list.at < newest {
            wrong.push(format!("{name}: host{} listed {} after {newest} was shown", list.host + 1, list.at));
        }
    }
}

/// A1, A2 by revisions: what is called after something was acknowledged is later, and fresh lists hold it.
fn revisions(history: &History, wrong: &mut Vec<String>) {
    let mut acked: Vec<(u64, u64)> = Vec::new();
    let mut asked: Vec<(u64, u64, String)> = Vec::new();
    for call in &history.calls {
        if let (Some(_), Told::Done { revision, .. }) = (call.ask.value(), call.told) {
            acked.push((call.returned, revision));
            asked.push((call.called, revision.saturating_sub(1), format!("{call:?}")));
        }
    }
    for list in history.lists.iter().filter(|list| !list.stale) {
        asked.push((list.called, list.at, format!("a list at {} of host{}", list.at, list.host + 1)));
    }
    acked.sort_unstable();
    asked.sort_unstable();
    let (mut newest, mut next) = (0, 0);
    for (called, at_most, what) in asked {
        while acked.get(next).is_some_and(|(returned, _)| *returned < called) {
            newest = newest.max(acked[next].1);
            next += 1;
        }
        if at_most < newest {
            wrong.push(format!("A1: {what} began after {newest} was acknowledged"));
        }
    }
}

/// A1: each key was a register.
fn registers(history: &History, heard: u64, counts: &mut Counts, wrong: &mut Vec<String>) {
    let seen = first_seen(history);
    let complete = history.calls.iter().all(|call| match call.told {
        Told::Done { revision, .. } => revision <= heard,
        _ => true,
    });
    let mut keys: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for call in &history.calls {
        let first = call.ask.value().and_then(|value| seen.get(&(call.key, value)).copied());
        if call.told == Told::Unknown {
            counts.unknown_done += usize::from(first.is_some());
        }
        if let Some(operation) = operation(call, first, complete) {
            keys.entry(call.key).or_default().push(operation);
        }
    }
    for (key, operations) in keys {
        match linear::within(&operations, STEPS) {
            Ok(true) => {}
            Ok(false) => {
                wrong.push(format!(
                    "A1: the {} operations on key {key} are not linearizable",
                    operations.len()
                ));
            }
            Err(linear::Undecided) => counts.undecided += 1,
        }
    }
}

/// When each value was first seen by somebody.
fn first_seen(history: &History) -> BTreeMap<(u64, u64), u64> {
    let mut seen: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut see = |key: u64, value: u64, time: u64| {
        let first = seen.entry((key, value)).or_insert(time);
        *first = time.min(*first);
    };
    for event in history.watches.iter().flat_map(|watch| &watch.told) {
        if let Some(value) = event.value {
            see(event.key, value, event.time);
        }
    }
    for list in &history.lists {
        list.items.iter().for_each(|(key, value, _)| see(*key, *value, list.returned));
    }
    for call in &history.calls {
        if let (Ask::Read, Told::Done { value, .. }) = (call.ask, call.told) {
            see(call.key, value, call.returned);
        }
    }
    seen
}

/// What a call was to its register; `first` is when its value was first seen. What never became known and was never seen, though
/// all is seen, has not happened.
fn operation(call: &Call, first: Option<u64>, complete: bool) -> Option<Operation> {
    let act = match (call.ask, call.told) {
        (_, Told::Nothing) | (Ask::Read, Told::Unknown | Told::Conflict) => return None,
        (Ask::Write(_) | Ask::Delete, Told::Conflict) => return None,
        (_, Told::Absent) => Act::Read(0),
        (Ask::Read, Told::Done { value, .. }) => Act::Read(value),
        (Ask::Create(new), told) => Act::Swap(0, new, told != Told::Conflict),
        (Ask::Write(new), _) => Act::Write(new),
        (Ask::Swap { expected, new }, told) => Act::Swap(expected, new, told != Told::Conflict),
        (Ask::Delete, _) => Act::Write(0),
    };
    let returned = match (call.told, first) {
        (Told::Unknown, Some(first)) => first.max(call.called),
        (Told::Unknown, None) if complete && call.ask != Ask::Delete => return None,
        (Told::Unknown, None) => u64::MAX,
        _ => call.returned,
    };
    Some(Operation { act, called: call.called, returned })
}

impl Ask {
    /// The value that it puts there.
    pub fn value(&self) -> Option<u64> {
        match self {
            Ask::Create(value) | Ask::Write(value) | Ask::Swap { new: value, .. } => Some(*value),
            Ask::Read | Ask::Delete => None,
        }
    }
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
