//! What tokio leaves to its callers to prove. The only module of this crate with unsafe code.
//!
//! Decides nothing.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the calling runtime watch a descriptor for as long as the answer lives.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, is closed by nobody else, and names the same file until it is dropped; the `AsyncFd` owns it,
    // and no part of this crate replaces the file behind it (dup2).
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(io::Error::from)
}
