//! The priority of the threads that keep a cluster together.
//!
//! Decides the nice value. Containers may take every core: heartbeats and the log must go on all the same.

use tracing::info;

const NICE: i32 = -10;

/// Raises the calling thread's priority; without the right to do so it goes on as it is.
pub fn raise_priority(whose: &str) {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        info!(%error, whose, "runs at normal priority: on a machine that is overloaded this one may lose its leadership");
    }
}
