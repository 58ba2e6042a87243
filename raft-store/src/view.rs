//! Decides how the state is read: an immutable, cheap, shareable picture of it at one applied entry.
//! Must not show anything that could change, nor decide whether it is fresh enough (`replica::reads` does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ids::{Epoch, Revision, SessionId};
use crate::members::Members;
pub use crate::state::history::Compacted;
use crate::state::{Change, Entry, State};
use crate::version::Version;

/// A picture of the store. Cloning copies a pointer; it may be read from any thread for as long as one likes.
#[derive(Clone)]
pub struct View(Arc<State>);

impl View {
    pub(crate) fn new(state: &State) -> View {
        View(Arc::new(state.clone()))
    }

    pub(crate) fn state(&self) -> &State {
        &self.0
    }

    /// The newest revision in it.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// What `key` holds.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.0.get(key)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.objects.len()
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        self.0.objects.is_empty()
    }

    /// The entries with `start <= key < end`, in key order. To page, begin again at the last key followed by a
    /// zero byte, on this same view.
    pub fn range<'a>(&'a self, start: &'a [u8], end: &'a [u8]) -> impl Iterator<Item = &'a Entry> + 'a {
        self.0.objects.from(start).take_while(move |entry| entry.key() < end)
    }

    /// The entries whose key begins with `prefix`, from `from` on if that is later, in key order.
    pub fn prefix<'a>(
        &'a self,
        prefix: &'a [u8],
        from: Option<&'a [u8]>,
    ) -> impl Iterator<Item = &'a Entry> + 'a {
        let start = from.map_or(prefix, |from| from.max(prefix));
        self.0.objects.from(start).take_while(move |entry| entry.key().starts_with(prefix))
    }

    /// What `prefix` gave at an earlier revision, which the history must reach. Takes time with the number of changes since.
    pub fn prefix_at<'a>(
        &'a self,
        prefix: &'a [u8],
        from: Option<&'a [u8]>,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &'a Entry> + 'a, Compacted> {
        let start = from.map_or(prefix, |from| from.max(prefix));
        let ours = |key: &[u8]| key.starts_with(prefix) && key >= start;
        let mut then: BTreeMap<&[u8], Option<&Entry>> = BTreeMap::new();
        for change in self.changes(revision)?.filter(|change| ours(change.key())) {
            then.entry(change.key()).or_insert(change.before.as_ref());
        }
        let changed: BTreeSet<&[u8]> = then.keys().copied().collect();
        let mut same =
            self.prefix(prefix, from).filter(move |entry| !changed.contains(entry.key())).peekable();
        let mut before = then.into_values().flatten().peekable();
        Ok(std::iter::from_fn(move || match (same.peek(), before.peek()) {
            (Some(now), Some(then)) if now.key() < then.key() => same.next(),
            (_, Some(_)) => before.next(),
            _ => same.next(),
        }))
    }

    /// All changes of revisions after `after`, in order; begins in logarithmic time. None for the present and the
    /// future. `Compacted` if the history does not reach back so far.
    pub fn changes(&self, after: Revision) -> Result<impl Iterator<Item = &Change>, Compacted> {
        self.0.history.after(after)
    }

    /// Watches may resume after this revision and later ones.
    pub fn floor(&self) -> Revision {
        self.0.history.floor()
    }

    /// Index and term of the last applied log entry.
    pub fn applied(&self) -> (u64, u64) {
        (self.0.applied_index, self.0.applied_term)
    }

    /// The current epoch.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// What the cluster may use.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The running hash over all that was applied: equal on all replicas at equal applied index.
    pub fn hash(&self) -> [u8; 32] {
        self.0.hash
    }

    /// The members at this point.
    pub fn members(&self) -> &Members {
        &self.0.members
    }

    /// The open sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.0.sessions.keys().copied()
    }

    /// Whether a session is open.
    pub fn has_session(&self, session: SessionId) -> bool {
        self.0.sessions.contains_key(&session)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View(revision {}, applied {:?})", self.revision(), self.applied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Key, Op, Transaction};
    use crate::ids::NodeId;
    use crate::state::State;
    use proptest::prelude::*;

    proptest! {
        /// Whatever was written since, the past looks as it did then, from any place on.
        #[test]
        fn the_past_is_what_it_was(ops in proptest::collection::vec((0..6u8, 0..2u8, any::<u8>()), 1..60), from in 0..6u8) {
            let mut state = State::first(NodeId(1));
            let mut views = vec![View::new(&state)];
            for (key, kind, value) in ops {
                let key = Key::from([b'k', key]);
                let op = match kind {
                    0 => Op::Put { key, value: [value].into() },
                    _ => Op::Delete { key },
                };
                state.transact(&Transaction { compares: vec![], ops: vec![op] });
                views.push(View::new(&state));
            }
            let now = View::new(&state);
            let start = [b'k', from];
            for then in &views {
                let was = then.prefix(b"k", Some(&start)).cloned().collect::<Vec<_>>();
                let looks = now.prefix_at(b"k", Some(&start), then.revision()).unwrap().cloned().collect::<Vec<_>>();
                prop_assert_eq!(was, looks);
            }
        }
    }
}
