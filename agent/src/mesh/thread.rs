//! The thread that QUIC runs on: sockets, connections, raft's queues.
//!
//! Decides only where the mesh's tasks run. One thread, because a heartbeat that hops between workers wakes each of them: at rest
//! that was most of what an agent cost. Of its own and of raised priority, so that what the API and the controllers do never
//! keeps a heartbeat or the answer to a probe waiting. It must not run anything that computes for long or blocks.

use std::io;
use std::sync::Arc;

use quinn::Endpoint;
use tokio::sync::Notify;

use crate::priority::raise_priority;
use crate::timing;

/// The thread, as long as it runs.
pub struct Handle {
    runtime: tokio::runtime::Handle,
    ending: Arc<Notify>,
}

impl Handle {
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
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

/// Starts the thread and the endpoint on it.
pub fn start(
    listen: impl FnOnce() -> io::Result<Endpoint> + Send + 'static,
) -> io::Result<(Handle, Endpoint)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = Handle { runtime: runtime.handle().clone(), ending: Arc::default() };
    let endpoint = {
        let _inside = runtime.enter();
        listen()?
    };
    let (ending, open) = (handle.ending.clone(), endpoint.clone());
    std::thread::Builder::new().name("mesh".into()).spawn(move || {
        raise_priority("the mesh's thread");
        runtime.block_on(async {
            ending.notified().await;
            let _ = tokio::time::timeout(timing::MESH_GOODBYE, open.wait_idle()).await;
        });
    })?;
    Ok((handle, endpoint))
}
