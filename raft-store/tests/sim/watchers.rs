//! A4 and A5: watchers that list once, then live from changes alone, at whichever node they find awake. What they have put
//! together must be what a list shows, the old objects in changes what they had, and no revision may be missed.

use std::collections::BTreeMap;

use raft_store::check::watch::Picture;
use raft_store::{Entry, Key, Revision, View};
use rand::Rng;

use crate::world::World;

const WATCHERS: usize = 3;

#[derive(Default)]
struct Watcher {
    picture: Picture<Key, Entry>,
}

#[derive(Default)]
pub struct Watchers {
    all: Vec<Watcher>,
    pub resumed: u64,
    pub relisted: u64,
}

/// One turn: one watcher resumes at some node.
pub fn turn(world: &mut World) {
    let ids: Vec<u64> = world.nodes.keys().copied().filter(|id| world.is_awake(*id)).collect();
    if ids.is_empty() {
        return;
    }
    let node = ids[world.rng.random_range(0..ids.len())];
    let view = world.view(node);
    let index = world.rng.random_range(0..WATCHERS);
    world.watchers.all.resize_with(WATCHERS, Watcher::default);
    let relisted = world.watchers.all[index].resume(&view);
    world.watchers.relisted += u64::from(relisted);
    world.watchers.resumed += u64::from(!relisted);
}

impl Watcher {
    /// Takes what a view knows after its own place; true if it had to list anew.
    fn resume(&mut self, view: &View) -> bool {
        let at = Revision(self.picture.at);
        if view.revision() < at {
            // A node that lags: the future yields nothing, not something old.
            let future = view.changes(at).map(|changes| changes.count());
            assert!(matches!(future, Ok(0) | Err(_)), "A4: old changes for a watch of the future");
            return false;
        }
        let Ok(changes) = view.changes(at) else {
            self.picture = Picture { at: view.revision().0, entries: listed(view) };
            return true;
        };
        for change in changes {
            let (revision, last) = (change.revision.0, self.picture.at);
            assert!(revision <= last + 1, "A4: revision {} is missing", last + 1);
            let before = self.picture.take(revision, Key::from(change.key()), change.after.clone()).unwrap();
            assert_eq!(
                before,
                change.before,
                "A4: the old object of {:?} is not what was there",
                change.key()
            );
        }
        assert_eq!(self.picture.at, view.revision().0, "A4: the watch ends before the view");
        false
    }
}

fn listed(view: &View) -> BTreeMap<Key, Entry> {
    view.prefix(b"", None).map(|entry| (Key::from(entry.key()), entry.clone())).collect()
}

/// A5: at the end everybody's picture is the list.
pub fn verify(world: &mut World, view: &View) {
    let listed = listed(view);
    for watcher in &mut world.watchers.all {
        watcher.resume(view);
        assert_eq!(watcher.picture.entries, listed, "A5: list and watch disagree with the list of now");
    }
}
