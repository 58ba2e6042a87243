//! Sessions of one boot, side by side: each has 64 requests under way, well inside its window of 256 answers.
//!
//! Decides which session a request belongs to. Sessions beyond the first are opened when they are first needed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use raft_store::SessionId;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use crate::clock;

/// Sessions of one boot: their numbers follow each other.
const LANES: usize = 4;
/// Requests of one session that may be under way.
const UNDER_WAY: usize = 64;

pub struct Lanes {
    first: SessionId,
    next: AtomicUsize,
    lanes: [Lane; LANES],
}

struct Lane {
    session: OnceCell<SessionId>,
    sequence: AtomicU64,
    under_way: Semaphore,
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
            sequence: AtomicU64::new(1),
            under_way: Semaphore::new(UNDER_WAY),
        };
        let first = SessionId(clock::random_u64());
        Lanes { first, next: AtomicUsize::new(0), lanes: std::array::from_fn(|_| lane()) }
    }
}

impl Lanes {
    /// Waits for room; the first session with some is taken.
    pub async fn turn(&self) -> Option<Turn<'_>> {
        let free = self.lanes.iter().position(|lane| lane.under_way.available_permits() > 0);
        let at = free.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed) % LANES);
        let lane = &self.lanes[at];
        let permit = lane.under_way.acquire().await.ok()?;
        let sequence = lane.sequence.fetch_add(1, Ordering::Relaxed);
        Some(Turn { sequence, lane, id: self.id(at), _permit: permit })
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

    async fn futures_are_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|context| {
            let pending = std::pin::Pin::new(&mut *future).poll(context).is_pending();
            std::task::Poll::Ready(pending)
        })
        .await
    }
}
