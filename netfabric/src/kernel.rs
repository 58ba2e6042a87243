//! The thin side: everything here does IO and decides nothing.
//!
//! `observe` reads the kernel into `Observed`, `apply` carries out one action. All of it is blocking and runs on the
//! fabric's own thread, inside the network namespace that the fabric serves. Must not choose what to change.

pub mod apply;
pub mod conntrack;
pub mod monitor;
pub mod nft;
pub mod observe;
pub mod pod;
pub mod probe;
pub mod rtnl;
pub mod socket;

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a short-lived thread inside a network namespace.
///
/// A namespace belongs to a thread; a borrowed one of the runtime would take every other task along.
#[expect(clippy::disallowed_methods, reason = "driver: the thread is joined here")]
pub fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = File::open(netns)?;
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread.join().map_err(|_| io::Error::other("the thread inside the namespace panicked"))?
}
