//! Whether replicas still are the same: hashes of what they had applied at equal places, compared.
//! Decides which places are remembered, and which replica is the odd one. Must not write anything: marks are kept in memory, beside
//! the state and not in it, so that comparing costs the store nothing.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};

use crate::ids::NodeId;

/// A place in the log whose hash is remembered …
pub const MARK_EVERY: u64 = 1_024;
/// … and so many of them.
pub const MARKS_KEPT: usize = 16;

/// Applied indexes with the state's hash after them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Marks {
    /// The last applied index.
    pub newest: (u64, [u8; 32]),
    /// The newest multiples of [`MARK_EVERY`], in ascending order.
    pub every: Vec<(u64, [u8; 32])>,
}

/// A replica that differs from most at an equal index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The odd one.
    pub node: NodeId,
    /// The first compared index at which it differs.
    pub index: u64,
}

impl Marks {
    /// Takes the hash after an entry.
    pub(crate) fn applied(&mut self, index: u64, hash: [u8; 32]) {
        self.newest = (index, hash);
        if !index.is_multiple_of(MARK_EVERY) {
            return;
        }
        self.every.push(self.newest);
        if self.every.len() > MARKS_KEPT {
            self.every.remove(0);
        }
    }

    fn all(&self) -> impl Iterator<Item = (u64, [u8; 32])> + '_ {
        let newest = Some(self.newest).filter(|newest| self.every.last() != Some(newest));
        self.every.iter().copied().chain(newest)
    }
}

/// Who differs. At each index that several have, those that are fewer are the odd ones; of equally many, all are.
pub fn compare(replicas: &BTreeMap<NodeId, Marks>) -> Vec<Difference> {
    let mut places: BTreeMap<u64, BTreeMap<[u8; 32], BTreeSet<NodeId>>> = BTreeMap::new();
    for (node, marks) in replicas {
        for (index, hash) in marks.all().filter(|(index, _)| *index > 0) {
            places.entry(index).or_default().entry(hash).or_default().insert(*node);
        }
    }
    let mut found: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (index, hashes) in places.into_iter().filter(|(_, hashes)| hashes.len() > 1) {
        let most = hashes.values().map(BTreeSet::len).max().unwrap_or(0);
        let is_tie = hashes.values().filter(|nodes| nodes.len() == most).count() > 1;
        for node in hashes.into_values().filter(|nodes| is_tie || nodes.len() < most).flatten() {
            found.entry(node).or_insert(index);
        }
    }
    found.into_iter().map(|(node, index)| Difference { node, index }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(up_to: u64, differs_from: u64) -> Marks {
        let mut marks = Marks::default();
        for index in 1..=up_to {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&index.to_le_bytes());
            hash[31] = u8::from(index >= differs_from);
            marks.applied(index, hash);
        }
        marks
    }

    fn compared(all: &[Marks]) -> Vec<Difference> {
        compare(&(1..).map(NodeId).zip(all.iter().cloned()).collect())
    }

    #[test]
    fn sixteen_marks_and_the_newest_are_kept() {
        let marks = marks(20 * MARK_EVERY + 7, u64::MAX);
        assert_eq!(marks.every.len(), MARKS_KEPT);
        assert_eq!(marks.every[0].0, 5 * MARK_EVERY);
        assert_eq!(marks.newest.0, 20 * MARK_EVERY + 7);
    }

    #[test]
    fn replicas_at_different_places_that_agree_are_the_same() {
        let never = u64::MAX;
        assert_eq!(compared(&[marks(5_000, never), marks(4_097, never), marks(3, never)]), []);
        assert_eq!(compared(&[]), []);
        assert_eq!(compared(&[Marks::default(), Marks::default(), marks(9, never)]), []);
    }

    #[test]
    fn the_odd_one_is_named_with_the_first_place_and_of_two_both_are() {
        let never = u64::MAX;
        let odd = Difference { node: NodeId(2), index: 2_048 };
        assert_eq!(compared(&[marks(9_000, never), marks(8_500, 1_500), marks(9_100, never)]), [odd]);
        assert_eq!(compared(&[marks(40, never), marks(40, 40), marks(40, never)])[0].node, NodeId(2));
        let both = compared(&[marks(40, never), marks(40, 40)]);
        assert_eq!(both.iter().map(|found| found.node).collect::<Vec<_>>(), [NodeId(1), NodeId(2)]);
    }
}
