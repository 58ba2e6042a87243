//! Decides what raft reads: the log's tail in memory, the hard state, and snapshots made on demand from the newest
//! applied state. Holds only what `Log::persist` has made durable.
//! Must not do IO. A snapshot that would not name its receiver as a member is withheld: raft would ignore it.

mod tail;

use std::cell::RefCell;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::ids::NodeId;
use crate::state::State;
use crate::{limits, snapshot};

pub(crate) use tail::Tail;

/// Bytes of a snapshot that are kept for the next one who asks. Bigger ones are made again.
const KEPT: usize = 32 << 20;

/// The log as raft sees it.
pub(crate) struct Memory {
    base: (u64, u64),
    entries: Tail,
    hard_state: HardState,
    state: State,
    encoded: RefCell<Option<(u64, Vec<u8>)>>,
}

impl Memory {
    pub(crate) fn new(base: (u64, u64), entries: Tail, hard_state: HardState, state: State) -> Memory {
        Memory { base, entries, hard_state, state, encoded: RefCell::new(None) }
    }

    /// Adds durable entries, replacing those from their first index on.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        // What was forgotten was applied, and a place is its index: neither may be replaced nor left out.
        let places = self.base.0 + 1..=self.last() + 1;
        assert!(places.contains(&first.index), "entry {} is put where only {places:?} may be", first.index);
        if !planted!(ReplacedTailKept) {
            self.entries.truncate(first.index.saturating_sub(self.base.0 + 1) as usize);
        }
        entries.iter().for_each(|entry| self.entries.push(entry));
    }

    /// Begins anew at an installed snapshot.
    pub(crate) fn restart(&mut self, state: State) {
        self.base = (state.applied_index, state.applied_term);
        self.entries.clear();
        self.set_state(state);
    }

    /// The newest applied state, from which snapshots are made.
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The newest applied state, as it stays while it is fed.
    pub(crate) fn state_to_feed(&self) -> State {
        let mut state = self.state.clone();
        if planted!(SnapshotFromOldBytes)
            && let Some(change) =
                self.state.history.all_from(self.state.history.len().saturating_sub(1)).next()
        {
            match change.before.clone() {
                Some(before) => drop(state.objects.insert(before)),
                None => drop(state.objects.remove(change.key())),
            }
        }
        state
    }

    /// Whether it holds so much more than `trailing` bytes of entries up to `index` that it should be compacted.
    pub(crate) fn is_over(&self, index: u64, trailing: u64) -> bool {
        let most = trailing + trailing / 4;
        self.entries.bytes() > most && self.entries.bytes() - self.after(index) > most
    }

    /// Forgets entries at and below `index`, which is applied, except for the last `trailing` bytes of them, and for those from `needed` on,
    /// which it still holds, while they are no more than may be kept for that.
    pub(crate) fn compact(&mut self, index: u64, trailing: u64, needed: Option<u64>) {
        let (base, after) = (self.base, self.after(index));
        let needed = needed.filter(|needed| *needed <= index);
        if let Some(needed) = needed {
            self.forget(needed - 1, after + trailing);
        }
        let kept = if needed.is_some() { trailing.max(limits::LOG_KEPT_BYTES) } else { trailing };
        self.forget(index, after + kept);
        if self.base != base {
            self.encoded.replace(None);
        }
    }

    /// What the entries after `index` count for.
    fn after(&self, index: u64) -> u64 {
        self.entries.bytes_from(index.saturating_sub(self.base.0) as usize)
    }

    /// The last entry before those that it holds.
    pub(crate) fn base(&self) -> u64 {
        self.base.0
    }

    fn forget(&mut self, index: u64, trailing: u64) {
        while self.entries.bytes() > trailing && self.base.0 < index {
            let Some(place) = self.entries.pop_front() else { return };
            self.base = place;
        }
    }

    /// The term of an entry that it still knows.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        self.term(index).ok()
    }

    /// The entries from `low` up to `high`, as many as fit, or `None` if they are forgotten.
    pub(crate) fn some(&self, low: u64, high: u64, bytes: u64) -> Option<Vec<Entry>> {
        let high = high.min(self.last());
        self.entries(low, high + 1, Some(bytes), GetEntriesContext::empty(false)).ok()
    }

    /// The last index that is durable here, committed or not.
    pub(crate) fn last_index_held(&self) -> u64 {
        self.last()
    }

    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    fn data(&self) -> Vec<u8> {
        let mut cached = self.encoded.borrow_mut();
        match &*cached {
            Some((index, data)) if *index == self.state.applied_index || planted!(SnapshotFromOldBytes) => {
                data.clone()
            }
            _ => {
                let data = snapshot::encode(&self.state);
                *cached = (data.len() <= KEPT).then(|| (self.state.applied_index, data.clone()));
                data
            }
        }
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let members = &self.state.members;
        let conf_state = if members.is_empty() { ConfState::default() } else { members.to_raft() };
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let (from, to) = ((low - self.base.0 - 1) as usize, (high - self.base.0 - 1) as usize);
        Ok(self.entries.from(from).take(self.entries.fit(from, to, limit)).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match index.checked_sub(self.base.0) {
            None => Err(Error::Store(StorageError::Compacted)),
            Some(0) => Ok(self.base.1),
            Some(ahead) => {
                self.entries.term(ahead as usize - 1).ok_or(Error::Store(StorageError::Unavailable))
            }
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let state = &self.state;
        if state.applied_index == 0
            || state.applied_index < request_index
            || !state.members.contains(NodeId(to))
        {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let metadata = SnapshotMetadata {
            conf_state: Some(state.members.to_raft()),
            index: state.applied_index,
            term: state.applied_term,
        };
        Ok(Snapshot { data: self.data(), metadata: Some(metadata) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn entry(index: u64, length: u64) -> Entry {
        Entry { index, term: 1, data: vec![7; length as usize], ..Entry::default() }
    }

    /// The entries from 2 on, of so many bytes.
    fn memory(count: u64, length: u64) -> Memory {
        let entries: Tail = (2..count + 2).map(|index| entry(index, length)).collect();
        Memory::new((1, 1), entries, HardState::default(), State::first(NodeId(1)))
    }

    #[test]
    fn entries_are_kept_for_who_lacks_them_up_to_a_bound() {
        let needed = Some(2);
        let mut memory = memory(20, MIB);
        memory.compact(21, MIB, needed);
        assert_eq!(memory.base(), 1, "all that it lacks is there");
        let count = limits::LOG_KEPT_BYTES / MIB + 10;
        memory.append((22..count + 2).map(|index| entry(index, MIB)).collect());
        memory.compact(count + 1, MIB, needed);
        assert!(memory.base() > 1, "it lacks more than is kept for it");
        assert!(memory.entries.bytes() <= limits::LOG_KEPT_BYTES);
        assert!(memory.entries.bytes() > limits::LOG_KEPT_BYTES - 2 * MIB, "and not much less");
        memory.compact(count + 1, MIB, None);
        assert!(memory.entries.bytes() <= MIB, "nobody lacks anything");
        assert_eq!(memory.last(), count + 1);
    }

    #[test]
    fn a_snapshot_is_for_members_only() {
        let memory = memory(3, 9);
        let for_whom = |to| memory.snapshot(0, to).map(|snapshot| snapshot.metadata.map(|about| about.index));
        assert_eq!(for_whom(1), Ok(Some(1)));
        let withheld = Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        assert_eq!(for_whom(2), withheld, "raft would ignore it, and be sent it again and again");
        assert_eq!(memory.snapshot(2, 1).map(drop), withheld.map(drop), "it is asked for a later state");
    }

    #[test]
    fn entries_take_the_places_of_those_that_they_replace() {
        let mut memory = memory(10, 9);
        memory.append(vec![Entry { term: 2, ..entry(8, 1) }]);
        assert_eq!((memory.last(), memory.term_of(8), memory.term_of(7)), (8, Some(2), Some(1)));
        memory.append(vec![entry(9, 1)]);
        assert_eq!(memory.last(), 9);
    }

    #[test]
    #[should_panic(expected = "entry 5 is put where only 6..=12 may be")]
    fn what_was_forgotten_is_not_replaced() {
        let mut memory = memory(10, 9);
        memory.compact(5, 0, None);
        memory.append(vec![entry(5, 9)]);
    }

    #[test]
    #[should_panic(expected = "entry 13 is put where only 2..=12 may be")]
    fn no_place_is_left_out() {
        memory(10, 9).append(vec![entry(13, 9)]);
    }
}
