//! Network namespaces as descriptors: made, entered by a thread of its own, used by a tool.
//!
//! Must not move the caller's own threads: whoever enters a namespace is a thread that ends there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

use crate::sys;

/// A tool (`ip`, `nft`) did not do what it was told inside a namespace.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{program} cannot be started: {source}; install the package that has it (iproute2, nftables)")]
    Missing { program: &'static str, source: io::Error },
    #[error("{program} refused:\n{script}\n{complaint}")]
    Refused { program: &'static str, script: String, complaint: String },
}

/// A network namespace that lasts as long as somebody holds the descriptor.
pub fn new_network() -> io::Result<OwnedFd> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        current_network()
    })?
}

/// The network namespace of the calling thread.
pub fn current_network() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Runs a closure inside a network namespace; sockets that it makes stay there.
pub fn within<T: Send>(namespace: BorrowedFd<'_>, act: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(act())
    })?
}

/// Runs a closure on a thread that is gone afterwards, with whatever the closure did to it.
pub fn on_own_thread<T: Send>(act: impl FnOnce() -> T + Send) -> io::Result<T> {
    crate::clock::threads(|scope| {
        let thread =
            std::thread::Builder::new().name("testbed-namespace".to_owned()).spawn_scoped(scope, act)?;
        thread.join().map_err(|_| io::Error::other("a thread inside a namespace panicked"))
    })
}

/// Feeds a script to a tool inside a network namespace.
pub fn tool(
    namespace: BorrowedFd<'_>,
    program: &'static str,
    args: &[&str],
    script: &str,
) -> Result<(), ToolError> {
    let missing = |source| ToolError::Missing { program, source };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::join_network(&mut command, namespace.try_clone_to_owned().map_err(missing)?);
    let mut child = command.spawn().map_err(missing)?;
    if let Some(mut input) = child.stdin.take() {
        // A tool that has already given up says why on its standard error.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ToolError::Refused { program, script: script.to_owned(), complaint })
}

/// One `ip` process for several lines.
pub fn ip(namespace: &impl AsFd, lines: &str) -> Result<(), ToolError> {
    tool(namespace.as_fd(), "ip", &["-batch", "-"], lines)
}
