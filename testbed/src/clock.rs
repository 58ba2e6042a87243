//! The clock of everything here that waits or measures: a testbed is all driver, no core.
//!
//! Decides nothing. Other modules take the time from here only.

use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "the testbed's one reader of the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Looks every `pause` until there is an answer; none when `limit` has passed.
pub fn poll<T>(limit: Duration, pause: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if now() >= end {
            return None;
        }
        std::thread::sleep(pause);
    }
}

/// Starts a task of a bench. It ends with the bench's runtime.
#[expect(clippy::disallowed_methods, reason = "the testbed's one place that starts tasks")]
pub fn spawn<F>(future: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(future);
}
