//! Whom the store may ask for a feed: the members, and which of them this machine suspects. Suspicion can be wrong, so they are named too.
//!
//! Decides nothing: `raft_store` chooses among them, and learns by itself who does not answer.

use std::collections::BTreeSet;

use raft_store::{Input, NodeId};
use tokio::sync::watch;

use crate::members::{Member, PREFIX, Roster, in_view};
use crate::store::{Store, Touched};

/// Tells the store, whenever that changes, for as long as it runs.
pub async fn tell(store: Store, roster: Roster, me: NodeId, mut suspects: watch::Receiver<BTreeSet<NodeId>>) {
    let mut views = store.objects();
    let mut touched = Touched::below([PREFIX]);
    // Who has just joined has no state yet, only the list that it was let in with.
    let mut members: BTreeSet<NodeId> = roster.all().iter().map(Member::node_id).collect();
    let mut told = None;
    loop {
        let view = views.borrow_and_update().clone();
        if touched.look(&view) {
            let listed = in_view(&view);
            if !listed.is_empty() {
                members = listed.iter().map(Member::node_id).collect();
            }
        }
        let now = suspects.borrow_and_update().clone();
        let others = members.iter().copied().filter(|id| *id != me);
        let (suspected, answering): (Vec<_>, Vec<_>) = others.partition(|id| now.contains(id));
        if told.as_ref() != Some(&(answering.clone(), suspected.clone())) {
            store.input(Input::Peers { answering: answering.clone(), suspected: suspected.clone() });
            told = Some((answering, suspected));
        }
        let changed = tokio::select! {
            changed = suspects.changed() => changed,
            changed = views.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
