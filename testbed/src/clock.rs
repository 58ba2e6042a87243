//! The clock of everything here that waits or measures, and its tasks and threads: a testbed is all driver, no core.
//!
//! Decides nothing. Other modules take time, tasks and threads from here only.

use std::io;
use std::thread::{JoinHandle, Scope};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

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

/// Starts a task of a set, which waits for it or ends it.
#[expect(clippy::disallowed_methods, reason = "the testbed's one place that starts tasks")]
pub fn spawn_in<F>(tasks: &mut JoinSet<F::Output>, future: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    tasks.spawn(future);
}

/// Starts a thread that ends with what it reads from or writes to.
#[expect(clippy::disallowed_methods, reason = "the testbed's one place that starts threads")]
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Threads that have ended when this returns.
#[expect(clippy::disallowed_methods, reason = "the testbed's one place that starts threads")]
pub fn threads<'env, T>(work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
    std::thread::scope(work)
}
