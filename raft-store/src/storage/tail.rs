//! The log's last entries in memory. Their bytes lie one after another in blocks: an entry stays here for seconds, what is made of it for
//! years, and a heap in which both lie side by side is full of holes (a sixth of a voter's memory, measured).
//!
//! Decides where an entry's bytes lie and when a block goes. Must not decide which entries are kept (`Memory` does).

use std::collections::VecDeque;

use raft::eraftpb::Entry;

/// Length of a block; a longer entry has one of its own.
const BLOCK: usize = 256 << 10;

/// Marks for which there may be room without their being needed.
const SPARE: usize = 4_096;

/// Where an entry is, and what is not bytes of it.
#[derive(Clone)]
struct Mark {
    term: u64,
    kind: i32,
    block: u64,
    at: usize,
    data: usize,
    context: usize,
}

impl Mark {
    fn weight(&self) -> u64 {
        (self.data + self.context) as u64 + 64
    }
}

/// Entries of consecutive indexes.
#[derive(Clone, Default)]
pub(crate) struct Tail {
    /// The first entry's.
    index: u64,
    marks: VecDeque<Mark>,
    blocks: VecDeque<Vec<u8>>,
    /// The first block's number.
    block: u64,
    bytes: u64,
}

impl Tail {
    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// What they count for.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What those from this place on count for.
    pub(crate) fn bytes_from(&self, at: usize) -> u64 {
        self.marks.range(at.min(self.marks.len())..).map(Mark::weight).sum()
    }

    /// Adds the entry after the last one: its index is that place's, but for the first.
    pub(crate) fn push(&mut self, entry: &Entry) {
        if self.marks.is_empty() {
            self.index = entry.index;
        }
        let length = entry.data.len() + entry.context.len();
        let has_room = |block: &Vec<u8>| block.capacity() - block.len() >= length;
        if !self.blocks.back().is_some_and(has_room) {
            self.blocks.push_back(Vec::with_capacity(BLOCK.max(length)));
        }
        let block = self.block + self.blocks.len() as u64 - 1;
        let Some(bytes) = self.blocks.back_mut() else { return };
        let mark = Mark {
            term: entry.term,
            kind: entry.entry_type,
            block,
            at: bytes.len(),
            data: entry.data.len(),
            context: entry.context.len(),
        };
        bytes.extend_from_slice(&entry.data);
        bytes.extend_from_slice(&entry.context);
        self.bytes += mark.weight();
        self.marks.push_back(mark);
    }

    /// Takes away the first entry: its index and term.
    pub(crate) fn pop_front(&mut self) -> Option<(u64, u64)> {
        let mark = self.marks.pop_front()?;
        self.bytes -= mark.weight();
        let first = self.marks.front().map_or(self.block + self.blocks.len() as u64, |mark| mark.block);
        while self.block < first && self.blocks.pop_front().is_some() {
            self.block += 1;
        }
        self.index += 1;
        if self.marks.capacity() > SPARE && self.marks.len() < self.marks.capacity() / 4 {
            self.marks.shrink_to(self.marks.len() * 2);
        }
        Some((self.index - 1, mark.term))
    }

    /// Keeps the first `length`.
    pub(crate) fn truncate(&mut self, length: usize) {
        while self.marks.len() > length
            && let Some(mark) = self.marks.pop_back()
        {
            self.bytes -= mark.weight();
            // A block that this entry began goes with it: the next one may be too long for it.
            self.blocks.truncate((mark.block - self.block) as usize + usize::from(mark.at > 0));
            if mark.at > 0
                && let Some(block) = self.blocks.back_mut()
            {
                block.truncate(mark.at);
            }
        }
        if self.marks.is_empty() {
            self.block += self.blocks.len() as u64;
            self.blocks.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Tail::default();
    }

    /// The term of the entry at this place.
    pub(crate) fn term(&self, at: usize) -> Option<u64> {
        self.marks.get(at).map(|mark| mark.term)
    }

    /// The entries from this place on.
    pub(crate) fn from(&self, at: usize) -> impl Iterator<Item = Entry> + '_ {
        let marks = self.marks.range(at.min(self.marks.len())..);
        marks.zip(self.index + at as u64..).map(|(mark, index)| self.entry(mark, index))
    }

    /// How many of the entries from `at` to before `end` count for no more than `limit`; one at least, if there is one.
    pub(crate) fn fit(&self, at: usize, end: usize, limit: u64) -> usize {
        let mut size = 0u64;
        let fits = |mark: &&Mark| {
            let first = size == 0;
            size = size.saturating_add(mark.weight());
            first || size <= limit
        };
        self.marks.range(at..end).take_while(fits).count()
    }

    fn entry(&self, mark: &Mark, index: u64) -> Entry {
        let block = self.blocks.get((mark.block - self.block) as usize).map_or(&[][..], Vec::as_slice);
        let (data, context) = block[mark.at..][..mark.data + mark.context].split_at(mark.data);
        Entry {
            entry_type: mark.kind,
            term: mark.term,
            index,
            data: data.to_vec(),
            context: context.to_vec(),
            ..Entry::default()
        }
    }
}

#[cfg(test)]
impl FromIterator<Entry> for Tail {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Tail {
        let mut tail = Tail::default();
        entries.into_iter().for_each(|entry| tail.push(&entry));
        tail
    }
}

impl PartialEq for Tail {
    fn eq(&self, other: &Tail) -> bool {
        self.from(0).eq(other.from(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(index: u64, term: u64, length: usize) -> Entry {
        let context = vec![8; length % 3];
        Entry { index, term, data: vec![term as u8; length], context, ..Entry::default() }
    }

    proptest! {
        /// It holds what a plain list of entries would, whatever comes and goes at both ends, and no more blocks than they need.
        #[test]
        fn it_is_a_list(steps in proptest::collection::vec((0..4u8, 0..6usize, 0..400_000usize), 1..60)) {
            let mut tail = Tail::default();
            let mut list: VecDeque<Entry> = VecDeque::new();
            let mut next = 7;
            for (step, count, length) in steps {
                match step {
                    0 => (0..count).for_each(|_| { tail.pop_front(); list.pop_front(); }),
                    1 => {
                        let kept = list.len().saturating_sub(count);
                        tail.truncate(kept);
                        list.truncate(kept);
                        next = list.back().map_or(next, |last| last.index + 1);
                    }
                    _ => for n in 0..count {
                        // Most are short.
                        let entry = entry(next, n as u64 + 1, if n == 0 { length } else { length % 700 });
                        tail.push(&entry);
                        list.push_back(entry);
                        next += 1;
                    },
                }
                prop_assert!(tail.from(0).eq(list.iter().cloned()));
                prop_assert_eq!(tail.bytes(), list.iter().map(|entry| (entry.data.len() + entry.context.len()) as u64 + 64).sum::<u64>());
                let held: usize = tail.blocks.iter().map(Vec::capacity).sum();
                let needed: usize = list.iter().map(|entry| entry.data.len() + entry.context.len()).sum();
                let spare = tail.marks.capacity();
                prop_assert!(spare <= SPARE.max(8 * list.len()), "room for {} marks of {}", spare, list.len());
                prop_assert!(held <= 2 * needed + 3 * BLOCK + 400_000, "{} for {}", held, needed);
            }
        }
    }

    #[test]
    fn blocks_go_with_the_entries_that_are_cut_off() {
        let mut tail = Tail::default();
        for length in [0, 300_193, 307_810, 316_283, 5] {
            tail.push(&entry(7, 1, length));
            tail.truncate(0);
            assert!(tail.blocks.is_empty(), "after {length} bytes");
        }
        // What was before them in the block is gone already.
        [300_000, 0].into_iter().for_each(|length| tail.push(&entry(7, 1, length)));
        tail.pop_front();
        tail.truncate(0);
        assert!(tail.blocks.is_empty());
        // An entry without bytes lies where the next one does.
        [(1, 0), (2, 10)].into_iter().for_each(|(term, length)| tail.push(&entry(7, term, length)));
        tail.truncate(1);
        tail.push(&entry(8, 3, 10));
        tail.pop_front();
        assert_eq!((tail.len(), tail.from(0).next().map(|entry| entry.data)), (1, Some(vec![3; 10])));
        tail.clear();
        [3, 4].into_iter().for_each(|index| tail.push(&entry(index, 1, 10)));
        tail.truncate(1);
        tail.push(&entry(4, 2, 10));
        assert_eq!((tail.blocks.len(), tail.term(1)), (1, Some(2)));
    }

    #[test]
    fn room_for_many_goes_with_them() {
        let mut tail: Tail = (1..=100_000).map(|index| entry(index, 1, 3)).collect();
        while tail.len() > 10 {
            tail.pop_front();
        }
        assert!(tail.marks.capacity() <= SPARE, "{}", tail.marks.capacity());
        assert_eq!(tail.from(0).next().map(|entry| entry.index), Some(99_991));
    }

    #[test]
    fn as_many_fit_as_the_limit_allows_and_one_always() {
        let tail: Tail = (1..=5).map(|index| entry(index, 1, 36)).collect();
        assert_eq!(tail.bytes_from(3), 200);
        assert_eq!(tail.fit(0, 5, 300), 3);
        assert_eq!(tail.fit(0, 2, 300), 2);
        assert_eq!(tail.fit(1, 5, 0), 1);
        assert_eq!(tail.fit(5, 5, 300), 0);
    }
}
