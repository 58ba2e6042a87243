//! Linearizable reads of this machine, together: who comes while a read index is asked for shares the next one.
//!
//! Decides who shares. A read is never served by an index that was asked for before it came.

use std::sync::{Mutex, PoisonError};

use raft_store::View;
use tokio::sync::oneshot;

use super::Store;
use crate::clock::spawn;

#[derive(Default)]
pub struct Rounds(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    asking: bool,
    reads: Vec<oneshot::Sender<View>>,
}

impl Rounds {
    /// Joins the next round, and begins it if none is under way.
    pub fn join(&self, store: &Store) -> oneshot::Receiver<View> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a leader no round ends: readers that have given up are not to pile up.
        if waiting.reads.len() == waiting.reads.capacity() {
            waiting.reads.retain(|read| !read.is_closed());
        }
        waiting.reads.push(reply);
        if !waiting.asking {
            waiting.asking = true;
            spawn(ask(store.clone()));
        }
        answer
    }

    /// All that wait; none ends the asking.
    fn take(&self) -> Vec<oneshot::Sender<View>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reads = std::mem::take(&mut waiting.reads);
        // Who has given up waiting asks for nothing.
        reads.retain(|read| !read.is_closed());
        waiting.asking = !reads.is_empty();
        reads
    }
}

async fn ask(store: Store) {
    loop {
        let reads = store.0.rounds.take();
        if reads.is_empty() {
            return;
        }
        // Without a view the store has stopped, and the readers see their channel end.
        if let Some(view) = store.read_index().await {
            for read in reads {
                let _ = read.send(view.clone());
            }
        }
    }
}
