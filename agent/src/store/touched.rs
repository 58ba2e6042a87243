//! Whether anything below some prefixes has changed since the last look: drivers that wake at every change of the store ask this
//! before they read documents.
//!
//! Decides by the history; where that does not reach back it says yes. Must not miss a change.

use raft_store::{Revision, View};

/// One driver's memory.
#[derive(Debug, Clone)]
pub struct Touched {
    prefixes: Vec<String>,
    seen: Option<Revision>,
}

impl Touched {
    pub fn below<const N: usize>(prefixes: [&str; N]) -> Touched {
        Touched { prefixes: prefixes.iter().map(|prefix| (*prefix).to_string()).collect(), seen: None }
    }

    /// True at the first look, and whenever a key below a prefix has changed since the last.
    pub fn look(&mut self, view: &View) -> bool {
        let ours = |key: &[u8]| self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()));
        let touched = match self.seen {
            Some(seen) if seen == view.revision() => false,
            Some(seen) => {
                view.changes(seen).map_or(true, |mut changes| changes.any(|change| ours(change.key())))
            }
            None => true,
        };
        self.seen = Some(view.revision());
        touched
    }
}
