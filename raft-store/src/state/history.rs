//! Decides how much of the past can be watched: the window of changes, bounded by count and bytes when it grows and
//! moved by `Command::Compact`. Part of the replicated state, so every rule here is deterministic.
//! Must not look at time: the leader does and proposes a floor.

use imbl::Vector;

use super::{Change, Entry};
use crate::ids::Revision;
use crate::limits;

/// The watch was asked to resume before the history begins: list anew, then watch from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the history up to revision {floor} is compacted; list again and watch from the list's revision")]
pub struct Compacted {
    /// Watches may resume after this revision and later ones.
    pub floor: Revision,
}

/// Changes in revision order, those of one revision in the transaction's order.
#[derive(Clone, Default)]
pub(crate) struct History {
    changes: Vector<Change>,
    bytes: u64,
    floor: Revision,
}

impl History {
    pub(crate) fn from_parts(changes: Vec<Change>, floor: Revision) -> History {
        let bytes = changes.iter().map(weight).sum();
        History { changes: changes.into_iter().collect(), bytes, floor }
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    /// The revision of the oldest change still held.
    pub(crate) fn oldest(&self) -> Option<Revision> {
        self.changes.front().map(|change| change.revision)
    }

    /// The changes but for the first `skipped`.
    pub(crate) fn all_from(&self, skipped: usize) -> impl Iterator<Item = &Change> {
        self.changes.focus().narrow(skipped.min(self.changes.len())..).into_iter()
    }

    /// The changes of revisions after `after`, none for the present or the future.
    pub(crate) fn after(&self, after: Revision) -> Result<impl Iterator<Item = &Change>, Compacted> {
        if after < self.floor {
            return Err(Compacted { floor: self.floor });
        }
        let start = self.first_after(after);
        Ok(self.changes.focus().narrow(start..).into_iter())
    }

    pub(crate) fn push(&mut self, change: Change) {
        self.bytes += weight(&change);
        self.changes.push_back(change);
    }

    /// Drops everything, up to `floor`, which may lie beyond what was ever changed.
    pub(crate) fn forget(&mut self, floor: Revision) {
        *self = History { floor: floor.max(self.floor), ..History::default() };
    }

    /// Drops whole revisions from the old end until the window is within its bounds.
    pub(crate) fn trim(&mut self) {
        while self.changes.len() > limits::HISTORY_CHANGES || self.bytes > limits::HISTORY_BYTES {
            match self.oldest() {
                Some(oldest) => self.compact(oldest),
                None => return,
            }
        }
    }

    /// Drops everything at and below `floor`. Never moves backwards.
    pub(crate) fn compact(&mut self, floor: Revision) {
        while self.oldest().is_some_and(|oldest| oldest <= floor) {
            if let Some(change) = self.changes.pop_front() {
                self.bytes -= weight(&change);
            }
        }
        self.floor = self.floor.max(floor);
    }

    fn first_after(&self, after: Revision) -> usize {
        let (mut low, mut high) = (0, self.changes.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.changes.get(middle) {
                Some(change) if change.revision <= after => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }
}

/// What a change counts for in the window. Part of the apply rules.
fn weight(change: &Change) -> u64 {
    let value = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value().len());
    (change.key().len() + value(&change.before) + value(&change.after) + 96) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(revisions: &[u64]) -> History {
        let change = |r: &u64| {
            let after = Entry::new(b"k", b"", Revision(*r), Revision(*r));
            Change { revision: Revision(*r), before: None, after: Some(after) }
        };
        History::from_parts(revisions.iter().map(change).collect(), Revision(0))
    }

    fn seen(history: &History, after: u64) -> Vec<u64> {
        history.after(Revision(after)).unwrap().map(|change| change.revision.0).collect()
    }

    #[test]
    fn changes_begin_right_after_the_asked_revision() {
        let history = history(&[1, 2, 2, 2, 5, 6]);
        assert_eq!(seen(&history, 0), [1, 2, 2, 2, 5, 6]);
        assert_eq!(seen(&history, 1), [2, 2, 2, 5, 6]);
        assert_eq!(seen(&history, 4), [5, 6]);
        assert_eq!(seen(&history, 6), Vec::<u64>::new());
        assert_eq!(seen(&history, 99), Vec::<u64>::new());
    }

    #[test]
    fn compaction_moves_the_floor_and_never_back() {
        let mut history = history(&[1, 2, 2, 3]);
        history.compact(Revision(2));
        history.compact(Revision(1));
        assert_eq!(history.after(Revision(1)).err(), Some(Compacted { floor: Revision(2) }));
        assert_eq!(seen(&history, 2), [3]);
    }

    #[test]
    fn trimming_drops_whole_revisions() {
        let revisions: Vec<u64> = (0..limits::HISTORY_CHANGES as u64 + 1).map(|n| n / 10 + 1).collect();
        let mut history = history(&revisions);
        history.trim();
        assert_eq!(history.floor(), Revision(1));
        assert_eq!(history.oldest(), Some(Revision(2)));
        assert_eq!(history.len(), limits::HISTORY_CHANGES + 1 - 10);
    }

    #[test]
    fn trimming_by_bytes_drops_whole_revisions_too_and_counts_before_and_after() {
        let entry = Entry::new(b"k", &[7; 1 << 20], Revision(1), Revision(1));
        let change = |n: u64| Change {
            revision: Revision(n / 3 + 1),
            before: Some(entry.clone()),
            after: Some(entry.clone()),
        };
        let each = weight(&change(0));
        assert!(each > 2 << 20);
        let fit = limits::HISTORY_BYTES / each;
        let mut history = History::from_parts((0..fit).map(change).collect(), Revision(0));
        history.trim();
        assert_eq!(history.len() as u64, fit, "they fit");
        history.push(change(fit));
        history.trim();
        assert_eq!((history.floor(), history.oldest()), (Revision(1), Some(Revision(2))));
        assert_eq!(history.bytes, (fit + 1 - 3) * each);
    }
}
