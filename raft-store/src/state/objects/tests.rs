//! The tree against a map of the standard library, how full its leaves get, and that it keeps nothing alive.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::ids::Revision;

fn entry(key: &[u8], revision: u64) -> Entry {
    Entry::new(key, &revision.to_le_bytes(), Revision(revision), Revision(revision))
}

fn key(number: u64) -> Vec<u8> {
    format!("k{number:06}").into_bytes()
}

fn of(numbers: impl IntoIterator<Item = u64>) -> Objects {
    numbers.into_iter().zip(1..).map(|(number, revision)| entry(&key(number), revision)).collect()
}

/// Looks at every node: its lows part its children, it is as deep as its neighbours, and nothing is empty. Answers depth, entries and leaves.
fn check(node: &Node, low: &[u8], high: Option<&[u8]>) -> (usize, usize, usize) {
    match node {
        Node::Leaf(leaf) => {
            assert!(!leaf.is_empty());
            assert!(leaf.windows(2).all(|two| two[0].key() < two[1].key()));
            assert!(
                leaf.iter().all(|entry| entry.key() >= low && high.is_none_or(|high| entry.key() < high))
            );
            (0, leaf.len(), 1)
        }
        Node::Branch(branch) => {
            assert_eq!(branch.lows.len() + 1, branch.children.len());
            let lows = [low].into_iter().chain(branch.lows.iter().map(|low| &**low));
            let highs = branch.lows.iter().map(|low| Some(&**low)).chain([high]);
            let looks: Vec<_> = branch
                .children
                .iter()
                .zip(lows.zip(highs))
                .map(|(child, (low, high))| check(child, low, high))
                .collect();
            assert!(looks.iter().all(|look| look.0 == looks[0].0), "equally deep");
            let sum = |part: fn(&(usize, usize, usize)) -> usize| looks.iter().map(part).sum();
            (looks[0].0 + 1, sum(|look| look.1), sum(|look| look.2))
        }
    }
}

/// Looks at all of it; answers how many leaves there are.
fn leaves(objects: &Objects) -> usize {
    let Some(root) = &objects.root else {
        assert_eq!(objects.length, 0);
        return 0;
    };
    let (_, entries, leaves) = check(root, b"", None);
    assert_eq!(entries, objects.length);
    leaves
}

fn same(objects: &Objects, model: &BTreeMap<Vec<u8>, u64>) {
    leaves(objects);
    let seen = objects.iter().map(|entry| (entry.key().to_vec(), entry.mod_revision().0));
    assert!(seen.eq(model.iter().map(|(key, revision)| (key.clone(), *revision))));
}

#[test]
fn what_is_written_read_and_removed_at_random_is_what_a_map_of_the_standard_library_has() {
    for seed in 0..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut objects, mut model) = (Objects::default(), BTreeMap::new());
        let mut earlier: Vec<(Objects, BTreeMap<Vec<u8>, u64>)> = Vec::new();
        for step in 0..20_000u64 {
            // It grows for a while, then shrinks, to nothing at the end.
            let grows = step % 5_000 < 2_500 && step < 15_000;
            let one = key(rng.random_range(0..3_000));
            if rng.random_bool(if grows { 0.9 } else { 0.1 }) {
                let before = objects.insert(entry(&one, step));
                assert_eq!(before.map(|entry| entry.mod_revision().0), model.insert(one, step));
            } else {
                let removed = objects.remove(&one);
                assert_eq!(removed.map(|entry| entry.mod_revision().0), model.remove(&one));
            }
            let asked = key(rng.random_range(0..3_000));
            assert_eq!(objects.get(&asked).map(|entry| entry.mod_revision().0), model.get(&asked).copied());
            if step % 500 == 0 {
                same(&objects, &model);
                let from = objects.from(&asked).map(|entry| entry.key().to_vec()).take(5);
                assert!(from.eq(model.range(asked.clone()..).map(|(key, _)| key.clone()).take(5)));
                let after = objects.after(&asked).map(|entry| entry.key().to_vec()).take(5);
                let greater = model.range(asked.clone()..).map(|(key, _)| key.clone());
                assert!(after.eq(greater.filter(|key| *key != asked).take(5)));
                earlier.push((objects.clone(), model.clone()));
            }
        }
        let mut left: Vec<Vec<u8>> = model.keys().cloned().collect();
        left.shuffle(&mut rng);
        for one in left {
            assert_eq!(objects.remove(&one).map(|entry| entry.mod_revision().0), model.remove(&one));
            leaves(&objects);
        }
        assert!(objects.is_empty() && objects.root.is_none());
        // Versions from before are as they were.
        earlier.iter().for_each(|(objects, model)| same(objects, model));
    }
}

#[test]
fn keys_that_ascend_or_descend_leave_full_leaves_behind_and_those_in_no_order_more_than_half_full_ones() {
    const MANY: u64 = 20_000;
    let full = MANY as usize / ENTRIES;
    assert_eq!(leaves(&of(0..MANY)), full);
    assert_eq!(leaves(&of((0..MANY).rev())), full);
    // Many writers, each of whose own keys ascend.
    let turns = (0..MANY / 50).flat_map(|turn| (0..50).map(move |writer| writer * 10_000 + turn));
    let by_turns = leaves(&of(turns));
    assert!(by_turns < full * 5 / 4, "{by_turns} leaves, {full} when all are full");
    let mut shuffled: Vec<u64> = (0..MANY).collect();
    shuffled.shuffle(&mut SmallRng::seed_from_u64(1));
    let in_no_order = leaves(&of(shuffled));
    assert!((full..full * 7 / 4).contains(&in_no_order), "{in_no_order} leaves, {full} when all are full");
}

#[test]
fn transactions_whose_keys_share_a_revision_leave_leaves_more_than_half_full_too() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut shuffled: Vec<u64> = (0..40_000).collect();
    shuffled.shuffle(&mut rng);
    // Many keys in no order, and two neighbours at a time.
    let many = shuffled.iter().map(|number| (*number, 1));
    let pairs = (1..).zip(shuffled.iter().filter(|number| **number < 20_000));
    let pairs = pairs.flat_map(|(revision, number)| [2 * number, 2 * number + 1].map(|key| (key, revision)));
    for transactions in [many.collect::<Vec<_>>(), pairs.collect()] {
        let entries = transactions.iter().map(|(number, revision)| entry(&key(*number), *revision));
        let (made, full) = (leaves(&entries.collect()), 40_000 / ENTRIES);
        assert!(made < full * 7 / 4, "{made} leaves, {full} when all are full");
    }
}

#[test]
fn keys_that_come_from_both_sides_of_a_border_need_no_leaf_each() {
    let mut objects = of(0..ENTRIES as u64);
    let last = key(ENTRIES as u64 - 1);
    // Each right after the last key of the full leaf, and before all others after it.
    for number in (0..1_000u64).rev() {
        let between = [last.as_slice(), format!("/{number:06}").as_bytes()].concat();
        objects.insert(entry(&between, number));
    }
    assert!(leaves(&objects) <= 1_000 / ENTRIES + 3);
}

#[test]
fn what_is_left_of_many_lies_in_few_leaves() {
    let mut objects = of(0..20_000);
    (0..20_000).filter(|number| number % 16 != 0).for_each(|number| drop(objects.remove(&key(number))));
    assert_eq!(objects.len(), 1_250);
    assert!(leaves(&objects) < 1_250 / 8 + 2, "a quarter full at least, but for the last");
}

#[test]
fn nothing_keeps_what_was_removed_or_replaced() {
    let mut shuffled: Vec<u64> = (0..5_000).collect();
    shuffled.shuffle(&mut SmallRng::seed_from_u64(1));
    for objects in [of((0..5_000).rev()), of(shuffled)] {
        assert!(objects.iter().all(|entry| entry.owners() == 1), "a border is no owner of what is beside it");
    }
    let mut objects = of(0..5_000);
    let owners = |objects: &Objects, number| objects.get(&key(number)).map(Entry::owners);
    assert!(
        (0..5_000).all(|number| owners(&objects, number) == Some(1)),
        "a border is no owner of what is beside it"
    );
    let removed = objects.remove(&key(ENTRIES as u64)).unwrap();
    assert_eq!(removed.owners(), 1);
    let replaced = objects.insert(entry(&key(2 * ENTRIES as u64), 9)).unwrap();
    assert_eq!(replaced.owners(), 1);
}

#[test]
fn a_key_of_no_bytes_and_those_that_begin_another_are_in_order() {
    let keys: [&[u8]; 5] = [b"", b"\0", b"a", b"a\0", b"a\0\0"];
    let objects: Objects = keys.iter().rev().map(|key| entry(key, 1)).collect();
    assert!(objects.iter().map(Entry::key).eq(keys));
    assert!(objects.after(b"").map(Entry::key).eq(keys[1..].iter().copied()));
    assert!(objects.from(b"a\0").map(Entry::key).eq(keys[3..].iter().copied()));
    assert_eq!(Objects::default().iter().next(), None);
}
