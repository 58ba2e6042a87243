//! Sessions of one boot, side by side: each has 64 requests under way, and none that is older than its window of 256 answers.
//!
//! Decides which session a request belongs to, and when it may begin. Sessions beyond the first are opened when they are first needed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use raft_store::SessionId;
use tokio::sync::{Notify, OnceCell, Semaphore, SemaphorePermit};

use crate::clock;

/// Sessions of one boot: their numbers follow each other.
const LANES: usize = 4;
/// Requests of one session that may be under way.
const UNDER_WAY: usize = 64;
/// Answers that the store keeps of a session: a request that is repeated must be among the last so many.
const WINDOW: u64 = 256;

pub struct Lanes {
    first: SessionId,
    next: AtomicUsize,
    lanes: [Lane; LANES],
}

struct Lane {
    session: OnceCell<SessionId>,
    open: Mutex<Open>,
    /// A request has ended.
    ended: Notify,
    under_way: Semaphore,
}

/// Sequences of a lane.
#[derive(Default)]
struct Open {
    last: u64,
    under_way: BTreeSet<u64>,
}

impl Lane {
    /// The next sequence, unless one that waits since long would fall out of the window.
    fn begin(&self) -> Option<u64> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.under_way.first().is_some_and(|oldest| open.last + 1 >= oldest + WINDOW) {
            return None;
        }
        open.last += 1;
        let sequence = open.last;
        open.under_way.insert(sequence);
        Some(sequence)
    }

    fn end(&self, sequence: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).under_way.remove(&sequence);
        self.ended.notify_waiters();
    }
}

/// The right to one request.
pub struct Turn<'l> {
    pub sequence: u64,
    lane: &'l Lane,
    id: SessionId,
    _permit: SemaphorePermit<'l>,
}

/// The sessions of the boot whose first one this is.
pub fn sessions(first: SessionId) -> impl Iterator<Item = SessionId> {
    (0..LANES as u64).map(move |lane| SessionId(first.0.wrapping_add(lane)))
}

impl Default for Lanes {
    fn default() -> Lanes {
        let lane = || Lane {
            session: OnceCell::new(),
            open: Mutex::default(),
            ended: Notify::new(),
            under_way: Semaphore::new(UNDER_WAY),
        };
        let first = SessionId(clock::random_u64());
        Lanes { first, next: AtomicUsize::new(0), lanes: std::array::from_fn(|_| lane()) }
    }
}

impl Lanes {
    /// Waits for room; the first session with some is taken.
    pub async fn turn(&self) -> Option<Turn<'_>> {
        for (at, lane) in self.lanes.iter().enumerate() {
            if let Ok(permit) = lane.under_way.try_acquire()
                && let Some(sequence) = lane.begin()
            {
                return Some(Turn { sequence, lane, id: self.id(at), _permit: permit });
            }
        }
        let free = self.lanes.iter().position(|lane| lane.under_way.available_permits() > 0);
        let at = free.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed) % LANES);
        let lane = &self.lanes[at];
        let permit = lane.under_way.acquire().await.ok()?;
        loop {
            let mut ended = std::pin::pin!(lane.ended.notified());
            ended.as_mut().enable();
            if let Some(sequence) = lane.begin() {
                return Some(Turn { sequence, lane, id: self.id(at), _permit: permit });
            }
            ended.await;
        }
    }

    pub async fn first_session<E>(
        &self,
        open: impl AsyncFnOnce(SessionId) -> Result<SessionId, E>,
    ) -> Result<SessionId, E> {
        self.lanes[0].session.get_or_try_init(|| open(self.first)).await.copied()
    }

    fn id(&self, lane: usize) -> SessionId {
        SessionId(self.first.0.wrapping_add(lane as u64))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.lane.end(self.sequence);
    }
}

impl Turn<'_> {
    /// The request's session, opened if need be.
    pub async fn session<E>(
        &self,
        open: impl AsyncFnOnce(SessionId) -> Result<SessionId, E>,
    ) -> Result<SessionId, E> {
        self.lane.session.get_or_try_init(|| open(self.id)).await.copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_never_has_more_than_its_share_under_way() {
        let lanes = Lanes::default();
        let mut turns = Vec::new();
        for _ in 0..LANES * UNDER_WAY {
            turns.push(lanes.turn().await.unwrap());
        }
        for id in sessions(lanes.first) {
            let of_one: Vec<u64> =
                turns.iter().filter(|turn| turn.id == id).map(|turn| turn.sequence).collect();
            assert_eq!(of_one, (1..=UNDER_WAY as u64).collect::<Vec<_>>());
        }
        // Full: the next waits until one has ended.
        let mut waiting = Box::pin(lanes.turn());
        assert!(futures_are_pending(&mut waiting).await);
        turns.clear();
        assert!(waiting.await.is_some());
    }

    #[tokio::test]
    async fn a_request_that_waits_long_does_not_fall_out_of_the_window() {
        let lanes = Lanes::default();
        let mut slow = Vec::new();
        for _ in 0..LANES * UNDER_WAY {
            slow.push(lanes.turn().await.unwrap());
        }
        // The first one of each session stays open while its others come and go.
        slow.retain(|turn| turn.sequence == 1);
        for _ in 0..LANES as u64 * (WINDOW - UNDER_WAY as u64) {
            drop(lanes.turn().await.unwrap());
        }
        let mut next = Box::pin(lanes.turn());
        assert!(futures_are_pending(&mut next).await, "a slow one's answer would be forgotten");
        drop(slow);
        assert_eq!(next.await.unwrap().sequence, WINDOW + 1);
    }

    async fn futures_are_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|context| {
            let pending = std::pin::Pin::new(&mut *future).poll(context).is_pending();
            std::task::Poll::Ready(pending)
        })
        .await
    }
}
