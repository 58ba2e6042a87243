//! What must hold, whatever happens: independent models that see only effects and views. The names C1 … A7 are those of
//! docs/decisions/0110.

use std::collections::BTreeMap;

use crate::changes::Changes;
use raft_store::{Change, Effect, Entry, Key, Members, NodeId, Revision, Role, Status, View};

/// A leader that votes in no set of its own members may say so only for this long.
const LEADS_WITHOUT_VOTE_MS: u64 = 2_000;
/// A status in which nothing seems to have changed is looked at this often.
const LOOK_MS: u64 = 200;

#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<u64, NodeId>,
    terms: BTreeMap<NodeId, u64>,
    votes: BTreeMap<(NodeId, u64), NodeId>,
    hashes: BTreeMap<u64, [u8; 32]>,
    changes: BTreeMap<Revision, Vec<(Key, Option<Entry>)>>,
    watched: BTreeMap<NodeId, Revision>,
    served: BTreeMap<NodeId, Revision>,
    voteless: BTreeMap<NodeId, u64>,
    looked: BTreeMap<NodeId, u64>,
    epoch_written: u64,
    /// How members change.
    pub membership: Changes,
    newest: u64,
    /// The members after the newest entry that anybody has applied.
    pub members: Members,
}

impl Checks {
    /// C1: at most one leader per term.
    pub fn leads(&mut self, node: NodeId, term: u64) {
        let known = *self.leaders.entry(term).or_insert(node);
        assert_eq!(known, node, "C1: two leaders in term {term}");
    }

    /// C4, C5: a node votes once in a term, across its restarts, and never forgets the term that it voted in.
    pub fn voted(&mut self, node: NodeId, term: u64, candidate: NodeId) {
        let shown = self.terms.entry(node).or_insert(0);
        *shown = term.max(*shown);
        let known = *self.votes.entry((node, term)).or_insert(candidate);
        assert_eq!(known, candidate, "C4: {node} voted twice in term {term}");
    }

    /// Whether a node's status may have changed: something was applied, a role taken, or some time has passed.
    pub fn is_due(&mut self, node: NodeId, effects: &[Effect], now: u64) -> bool {
        let looked = self.looked.entry(node).or_default();
        let tells = |effect: &Effect| matches!(effect, Effect::Applied { .. } | Effect::RoleChanged { .. });
        let due = effects.iter().any(tells) || now >= *looked + LOOK_MS;
        if due {
            *looked = now;
        }
        due
    }

    /// C4: a term that was shown never goes back. C6: who lost its vote does not go on leading.
    pub fn status(&mut self, node: NodeId, status: &Status, now: u64) {
        let before = self.terms.insert(node, status.term).unwrap_or(0);
        assert!(status.term >= before, "C4: {node} went from term {before} back to {}", status.term);
        if status.role == Role::Leader && !status.joint && !status.voters.contains(&node) {
            let since = *self.voteless.entry(node).or_insert(now);
            assert!(now - since < LEADS_WITHOUT_VOTE_MS, "C6: {node} leads and has no vote");
        } else {
            self.voteless.remove(&node);
        }
    }

    /// C2: equal applied index, equal state. A4: watchers see every revision once, whole, and all see the same.
    pub fn applied(&mut self, node: NodeId, view: &View) {
        let (index, _) = view.applied();
        if index > self.newest {
            self.newest = index;
            self.members = view.members().clone();
        }
        let hash = *self.hashes.entry(index).or_insert_with(|| view.hash());
        assert_eq!(hash, view.hash(), "C2: {node} differs from others at index {index}");
        self.watch(node, view);
    }

    /// A6: what may be served locally is never older than what was served before, restarts included.
    pub fn served(&mut self, node: NodeId, revision: Revision) {
        let before = self.served.insert(node, revision).unwrap_or_default();
        assert!(revision >= before, "A6: {node} served revision {before}, now {revision}");
    }

    fn watch(&mut self, node: NodeId, view: &View) {
        let last = self.watched.get(&node).copied().unwrap_or_default();
        if view.revision() <= last {
            return;
        }
        self.watched.insert(node, view.revision());
        let Ok(changes) = view.changes(last) else {
            // The history has moved on: whoever watches here lists anew.
            return assert!(view.floor() > last, "A4: {node} calls revision {last} compacted");
        };
        let mut changes = changes.peekable();
        let mut expected = last.0 + 1;
        while let Some(revision) = changes.peek().map(|change| change.revision) {
            assert_eq!(revision.0, expected, "A4: {node}'s watch has a gap");
            expected += 1;
            let mut whole = std::iter::from_fn(|| changes.next_if(|change| change.revision == revision));
            if let Some(known) = self.changes.get(&revision) {
                let same = known.iter().all(|(key, after)| {
                    whole.next().is_some_and(|change| *change.key() == *key.0 && change.after == *after)
                });
                assert!(same && whole.next().is_none(), "A4: {node}'s watch differs at revision {revision}");
                continue;
            }
            let new: Vec<_> = whole.inspect(|change| revisions_fit(change)).collect();
            let new: Vec<_> =
                new.iter().map(|change| (Key::from(change.key()), change.after.clone())).collect();
            self.epochs_in(&new);
            self.changes.insert(revision, new);
        }
        assert_eq!(expected, view.revision().0 + 1, "A4: {node}'s watch ends early");
    }

    /// A leader's decisions are of its own epoch: none of an older one takes effect after one of a newer.
    fn epochs_in(&mut self, changes: &[(Key, Option<Entry>)]) {
        for (key, after) in changes {
            if let Some(entry) = after
                && &*key.0 == b"decision"
            {
                let epoch: u64 = String::from_utf8_lossy(entry.value()).parse().unwrap_or(0);
                assert!(epoch >= self.epoch_written, "a deposed leader's decision took effect");
                self.epoch_written = epoch;
            }
        }
    }

    /// All changes that anybody watched.
    pub fn changes(&self) -> impl Iterator<Item = (Revision, &Key, Option<&Entry>)> {
        let each =
            self.changes.iter().flat_map(|(revision, all)| all.iter().map(move |one| (*revision, one)));
        each.map(|(revision, (key, after))| (revision, key, after.as_ref()))
    }

    /// The keys that changed at a revision, if anybody watched it.
    pub fn changed_at(&self, revision: Revision) -> Option<Vec<&Key>> {
        Some(self.changes.get(&revision)?.iter().map(|(key, _)| key).collect())
    }

    /// Counts the changes of every key, for many lookups.
    pub fn counts(&self) -> BTreeMap<&Key, usize> {
        let mut counts = BTreeMap::new();
        self.changes.values().flatten().for_each(|(key, _)| *counts.entry(key).or_default() += 1);
        counts
    }

    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }
}

/// A4: an object that comes has a new create revision, also where an older one was deleted; one that changes keeps its own; and
/// only what was there goes. (That the old objects are true, watchers show.)
fn revisions_fit(change: &Change) {
    let Change { revision, before, after } = change;
    let created = before.as_ref().map_or(*revision, Entry::create_revision);
    let fits = match after {
        Some(after) => (after.create_revision(), after.mod_revision()) == (created, *revision),
        None => before.is_some(),
    };
    assert!(fits, "A4: at {revision} {before:?} became {after:?}");
}
