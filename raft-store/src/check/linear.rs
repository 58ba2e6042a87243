//! A1, without trusting revisions: is there an order of all operations on one key, each at some moment between its call and its
//! return, in which a plain register would have answered the same? (Wing and Gong's search with Lowe's memory of visited states.)

use std::collections::HashSet;

/// What was asked and answered. Values are unique; 0 is "no entry".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Write(u64),
    Read(u64),
    /// Compare-and-set of the first to the second, and whether it took effect.
    Swap(u64, u64, bool),
}

#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub act: Act,
    pub called: u64,
    /// `u64::MAX` where the outcome never became known.
    pub returned: u64,
}

/// The register's value after the act, `None` if it could not have been answered so.
fn step(value: u64, act: Act) -> Option<u64> {
    match act {
        Act::Write(new) => Some(new),
        Act::Read(seen) => (seen == value).then_some(value),
        Act::Swap(expected, new, true) => (expected == value).then_some(new),
        Act::Swap(expected, _, false) => (expected != value).then_some(value),
    }
}

/// The search took too many steps: the history is neither shown to be right nor wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecided;

/// Whether the history of one key is linearizable.
pub fn is_linearizable(operations: &[Operation]) -> bool {
    within(operations, usize::MAX) == Ok(true)
}

/// The same, giving up after so many steps.
pub fn within(operations: &[Operation], steps: usize) -> Result<bool, Undecided> {
    let mut order: Vec<Operation> = operations.to_vec();
    // What may never have happened stands last: it is tried when nothing else fits.
    order.sort_by_key(|operation| (operation.returned == u64::MAX, operation.called, operation.returned));
    let known = order.iter().filter(|operation| operation.returned != u64::MAX).count();
    let done = vec![false; order.len()];
    Search { operations: order, known, done, visited: HashSet::new(), steps }.explore()
}

struct Search {
    operations: Vec<Operation>,
    /// So many have returned; they stand first.
    known: usize,
    steps: usize,
    done: Vec<bool>,
    visited: HashSet<(Vec<u64>, u64)>,
}

impl Search {
    /// Depth first without recursion: histories are thousands of operations long.
    fn explore(&mut self) -> Result<bool, Undecided> {
        // Chosen operations with the value before each, and from where to look on after undoing it.
        let mut chosen: Vec<(usize, u64)> = Vec::new();
        let (mut value, mut from, mut first) = (0, 0, 0);
        let counts = |operation: &Operation| usize::from(operation.returned != u64::MAX);
        let mut left = self.known;
        loop {
            self.steps = self.steps.checked_sub(1).ok_or(Undecided)?;
            while first < self.known && self.done[first] {
                first += 1;
            }
            if left == 0 {
                return Ok(true);
            }
            match self.next(first, from, value) {
                Some((index, after)) => {
                    chosen.push((index, value));
                    self.done[index] = true;
                    left -= counts(&self.operations[index]);
                    (value, from) = (after, 0);
                }
                None => {
                    let Some((index, before)) = chosen.pop() else { return Ok(false) };
                    self.done[index] = false;
                    left += counts(&self.operations[index]);
                    first = first.min(index);
                    (value, from) = (before, index + 1);
                }
            }
        }
    }

    /// The next operation from `from` on that may come now: nobody that is left returned before it was called.
    fn next(&mut self, first: usize, from: usize, value: u64) -> Option<(usize, u64)> {
        let mut earliest_return = u64::MAX;
        for index in first..self.known {
            let operation = self.operations[index];
            if self.done[index] {
                continue;
            }
            if operation.called > earliest_return {
                break;
            }
            earliest_return = earliest_return.min(operation.returned);
            if index >= from
                && let Some(after) = step(value, operation.act)
                && self.is_new(index, after)
            {
                return Some((index, after));
            }
        }
        for index in from.max(self.known)..self.operations.len() {
            let operation = self.operations[index];
            if !self.done[index]
                && operation.called <= earliest_return
                && let Some(after) = step(value, operation.act)
                && self.is_new(index, after)
            {
                return Some((index, after));
            }
        }
        None
    }

    fn is_new(&mut self, index: usize, after: u64) -> bool {
        self.done[index] = true;
        let mut bits = vec![0u64; self.done.len().div_ceil(64)];
        for (at, done) in self.done.iter().enumerate() {
            bits[at / 64] |= u64::from(*done) << (at % 64);
        }
        self.done[index] = false;
        self.visited.insert((bits, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(act: Act, called: u64, returned: u64) -> Operation {
        Operation { act, called, returned }
    }

    #[test]
    fn a_register_that_anybody_could_have_seen_is_linearizable() {
        use Act::*;
        let concurrent = [op(Write(1), 0, 10), op(Read(0), 1, 5), op(Read(1), 2, 12), op(Write(2), 3, 20)];
        assert!(is_linearizable(&concurrent));
        let swaps = [op(Swap(0, 1, true), 0, 5), op(Swap(0, 2, false), 1, 9), op(Swap(1, 3, true), 6, 8)];
        assert!(is_linearizable(&swaps));
        let unknown = [op(Write(1), 0, u64::MAX), op(Read(0), 5, 6), op(Read(1), 7, 8)];
        assert!(is_linearizable(&unknown));
        assert!(
            is_linearizable(&[op(Write(1), 0, u64::MAX), op(Read(0), 5, 6)]),
            "it may never have happened"
        );
    }

    #[test]
    fn many_unknown_outcomes_do_not_blow_the_search_up() {
        use Act::*;
        let mut all = Vec::new();
        for n in 1..2_000 {
            all.push(op(Write(n), 10 * n, 10 * n + 5));
            all.push(op(Read(n), 10 * n + 6, 10 * n + 7));
            if n % 40 == 0 {
                all.push(op(Write(1_000_000 + n), 10 * n, u64::MAX));
            }
        }
        assert_eq!(within(&all, 1_000_000), Ok(true));
        all.push(op(Read(1_000_040), 25_000, 25_001));
        assert_eq!(within(&all, 1_000_000), Ok(true));
        assert_eq!(within(&all, 10), Err(Undecided));
    }

    #[test]
    fn stale_reads_lost_writes_and_double_swaps_are_not() {
        use Act::*;
        assert!(!is_linearizable(&[op(Write(1), 0, 1), op(Read(0), 2, 3)]));
        assert!(!is_linearizable(&[op(Write(1), 0, 1), op(Read(1), 2, 3), op(Read(0), 4, 5)]));
        assert!(!is_linearizable(&[op(Swap(0, 1, true), 0, 5), op(Swap(0, 2, true), 1, 9)]));
        assert!(!is_linearizable(&[op(Write(1), 0, 1), op(Write(2), 2, 3), op(Swap(2, 4, false), 4, 5)]));
        let flip = [op(Write(1), 0, 9), op(Write(2), 0, 9), op(Read(1), 10, 11), op(Read(2), 12, 13)];
        assert!(!is_linearizable(&flip));
    }
}
