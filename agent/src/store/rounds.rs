//! Linearizable reads of this machine, together: who comes while a read index is asked for shares the next one.
//!
//! Decides who shares. A read is never served by an index that was asked for before it came.

use std::sync::{Arc, Mutex, PoisonError};

use raft_store::View;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::spawn;

pub struct Rounds {
    /// Where rounds are served, wherever the first read of one comes from.
    workers: Handle,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    asking: bool,
    reads: Vec<oneshot::Sender<View>>,
}

impl Rounds {
    /// On the runtime whose workers serve its rounds.
    pub fn new() -> Arc<Rounds> {
        Arc::new(Rounds { workers: Handle::current(), waiting: Mutex::default() })
    }

    /// Joins the next round, and begins it if none is under way. `ask` is one round: a view that holds all from before it began.
    pub fn join<F>(self: &Arc<Rounds>, ask: impl Fn() -> F + Send + 'static) -> oneshot::Receiver<View>
    where
        F: Future<Output = Option<View>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a leader no round ends: readers that have given up are not to pile up.
        if waiting.reads.len() == waiting.reads.capacity() {
            waiting.reads.retain(|read| !read.is_closed());
        }
        waiting.reads.push(reply);
        if !waiting.asking {
            waiting.asking = true;
            let _there = self.workers.enter();
            spawn(serve(self.clone(), ask));
        }
        answer
    }

    /// All that wait; none ends the asking.
    fn take(&self) -> Vec<oneshot::Sender<View>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reads = std::mem::take(&mut waiting.reads);
        // Who has given up waiting asks for nothing.
        reads.retain(|read| !read.is_closed());
        waiting.asking = !reads.is_empty();
        reads
    }
}

async fn serve<F: Future<Output = Option<View>>>(rounds: Arc<Rounds>, ask: impl Fn() -> F) {
    loop {
        let reads = rounds.take();
        if reads.is_empty() {
            return;
        }
        // Without a view the store has stopped, and the readers see their channel end.
        if let Some(view) = ask().await {
            for read in reads {
                let _ = read.send(view.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// A round that a test answers.
    type Asked = oneshot::Sender<Option<View>>;

    fn join(rounds: &Arc<Rounds>, asked: &mpsc::UnboundedSender<Asked>) -> oneshot::Receiver<View> {
        let asked = asked.clone();
        rounds.join(move || {
            let (reply, answer) = oneshot::channel();
            asked.send(reply).unwrap();
            async move { answer.await.unwrap() }
        })
    }

    #[tokio::test]
    async fn all_reads_that_come_during_a_round_share_the_next_one() {
        let (rounds, (asked, mut asks)) = (Rounds::new(), mpsc::unbounded_channel());
        let first = join(&rounds, &asked);
        let begun = asks.recv().await.unwrap();
        let later: Vec<_> = (0..500).map(|_| join(&rounds, &asked)).collect();
        tokio::task::yield_now().await;
        assert!(asks.try_recv().is_err(), "one round at a time");
        begun.send(Some(crate::testing::view(&[]))).unwrap();
        first.await.unwrap();
        let second = asks.recv().await.unwrap();
        let mut later = later.into_iter();
        let mut given_up = later.next().unwrap();
        assert!(given_up.try_recv().is_err(), "who came later is not served by what was asked for before");
        drop(given_up);
        second.send(Some(crate::testing::view(&[("k".into(), vec![1])]))).unwrap();
        for read in later {
            assert_eq!(read.await.unwrap().len(), 1);
        }
        let third = join(&rounds, &asked);
        asks.recv().await.unwrap().send(None).unwrap();
        assert!(third.await.is_err(), "the store has stopped");
        assert!(asks.try_recv().is_err(), "three rounds for 502 reads");
    }

    #[test]
    fn a_round_that_another_runtime_began_outlives_it() {
        let new = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (workers, other) = (new(), new());
        let (asked, mut asks) = mpsc::unbounded_channel();
        let rounds = workers.block_on(async { Rounds::new() });
        let read = {
            let _there = other.enter();
            join(&rounds, &asked)
        };
        drop(other);
        workers.block_on(async {
            asks.recv().await.unwrap().send(Some(crate::testing::view(&[]))).unwrap();
            read.await.unwrap();
        });
    }
}
