//! What must hold, whatever happens: independent models that see only effects and views.

use std::collections::BTreeMap;

use raft_store::{Change, Entry, Key, NodeId, Revision, View};

#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<u64, NodeId>,
    terms: BTreeMap<NodeId, u64>,
    hashes: BTreeMap<u64, [u8; 32]>,
    changes: BTreeMap<Revision, Vec<(Key, Option<Entry>)>>,
    watched: BTreeMap<NodeId, Revision>,
    served: BTreeMap<NodeId, Revision>,
}

impl Checks {
    /// C1: at most one leader per term.
    pub fn leads(&mut self, node: NodeId, term: u64) {
        let known = *self.leaders.entry(term).or_insert(node);
        assert_eq!(known, node, "two leaders in term {term}");
    }

    /// C4: a term that was shown never goes back, across restarts too.
    pub fn term(&mut self, node: NodeId, term: u64) {
        let before = self.terms.insert(node, term).unwrap_or(0);
        assert!(term >= before, "{node} went from term {before} back to {term}");
    }

    /// C2: equal applied index, equal state. A4: watchers see every revision once, whole, and all see the same.
    pub fn applied(&mut self, node: NodeId, view: &View) {
        let (index, _) = view.applied();
        let hash = *self.hashes.entry(index).or_insert_with(|| view.hash());
        assert_eq!(hash, view.hash(), "{node} differs from others at index {index}");
        self.watch(node, view);
    }

    /// A6: what may be served locally is never older than what was served before, restarts included.
    pub fn served(&mut self, node: NodeId, revision: Revision) {
        let before = self.served.insert(node, revision).unwrap_or_default();
        assert!(revision >= before, "{node} served revision {before}, now {revision}");
    }

    fn watch(&mut self, node: NodeId, view: &View) {
        let last = self.watched.get(&node).copied().unwrap_or_default();
        if view.revision() <= last {
            return;
        }
        let mut seen: BTreeMap<Revision, Vec<(Key, Option<Entry>)>> = BTreeMap::new();
        let changes = view.changes(last).expect("nothing is compacted in these runs");
        for Change { revision, key, after, .. } in changes {
            seen.entry(*revision).or_default().push((key.clone(), after.clone()));
        }
        let mut expected = last.0 + 1;
        for (revision, changes) in seen {
            assert_eq!(revision.0, expected, "{node}'s watch has a gap");
            expected += 1;
            let known = self.changes.entry(revision).or_insert_with(|| changes.clone());
            assert_eq!(*known, changes, "{node}'s watch differs at revision {revision}");
        }
        assert_eq!(expected, view.revision().0 + 1, "{node}'s watch ends early");
        self.watched.insert(node, view.revision());
    }

    /// All changes of one key, over the whole run.
    pub fn changes_of(&self, key: &Key) -> usize {
        self.changes.values().flatten().filter(|(changed, _)| changed == key).count()
    }

    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }
}
