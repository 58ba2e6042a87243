//! The threads that QUIC runs on, each with an endpoint: the mesh's, and the replica's for raft's messages.
//!
//! Decides only where tasks run. One thread for each, because a packet that hops between threads wakes all of them: at rest that was
//! most of what an agent cost, and a part of each write's time. Of raised priority, so that what the API and the controllers do never
//! keeps a heartbeat or the answer to a probe waiting. The mesh's must not run anything that computes for long or blocks; the
//! replica's waits for the disk, which is why gossip and probes are not there (docs/decisions/0217).

use std::io;
use std::sync::Arc;

use quinn::Endpoint;
use tokio::sync::Notify;
use tracing::error;

use super::timers::Timers;
use crate::priority::raise_priority;
use crate::timing;

/// The thread, as long as it runs.
pub struct Handle {
    runtime: tokio::runtime::Handle,
    timers: Timers,
    ending: Arc<Notify>,
}

impl Handle {
    #[expect(clippy::disallowed_methods, reason = "driver: ends with the thread")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// The thread's timers.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// What starts tasks by itself while this lives starts them on the thread.
    pub fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Lets connections say goodbye, then ends the thread and every task on it.
    pub fn end(&self) {
        self.ending.notify_one();
    }
}

/// Starts a thread and the endpoint on it.
#[expect(
    clippy::disallowed_methods,
    reason = "driver: the thread lives as long as the agent, or until it is told to end"
)]
pub fn start(
    name: &'static str,
    listen: impl FnOnce(Timers) -> io::Result<Endpoint> + Send + 'static,
) -> io::Result<(Handle, Endpoint)> {
    let timers = Timers::new()?;
    let sleeping = timers.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || sleeping.before_sleep())
        .build()?;
    let handle = Handle { runtime: runtime.handle().clone(), timers: timers.clone(), ending: Arc::default() };
    let endpoint = {
        let _inside = runtime.enter();
        listen(timers.clone())?
    };
    let (ending, open) = (handle.ending.clone(), endpoint.clone());
    std::thread::Builder::new().name(name.into()).spawn(move || {
        raise_priority(name);
        let waking = timers.clone().run();
        runtime.spawn(async move {
            if let Err(why) = waking.await {
                error!(%why, "the timers of this thread cannot be watched; this agent ends");
                std::process::exit(70);
            }
        });
        runtime.block_on(async {
            ending.notified().await;
            let _ = tokio::time::timeout(timing::MESH_GOODBYE, open.wait_idle()).await;
        });
    })?;
    Ok((handle, endpoint))
}
