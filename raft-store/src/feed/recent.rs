//! The hashes of the newest applied entries, so that two ends of a feed can compare. Decides how many are remembered.

use std::collections::VecDeque;

/// Entries whose hash is remembered.
const KEPT: usize = 1_024;

/// Hashes by index, without a gap.
#[derive(Default)]
pub(crate) struct Recent {
    last: u64,
    hashes: VecDeque<[u8; 32]>,
}

impl Recent {
    /// The hash after the entry at `index`. A place that does not follow begins anew.
    pub(crate) fn applied(&mut self, index: u64, hash: [u8; 32]) {
        if index != self.last + 1 {
            self.hashes.clear();
        }
        self.last = index;
        self.hashes.push_back(hash);
        if self.hashes.len() > KEPT {
            self.hashes.pop_front();
        }
    }

    /// The hash after the entry at `index`, if it is remembered.
    pub(crate) fn at(&self, index: u64) -> Option<[u8; 32]> {
        let back = usize::try_from(self.last.checked_sub(index)?).ok()?;
        let at = self.hashes.len().checked_sub(back + 1)?;
        self.hashes.get(at).copied()
    }
}
