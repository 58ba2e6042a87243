//! The runtime against the real kernel: real containers, as root, on this machine.
//!
//! Every test has its own mount namespace, data directory and cgroup parent, and removes them; leftovers
//! of killed runs are removed at the next start. Nothing of the machine's own is touched.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers as well")]

mod harness;
mod images;

mod basics;
mod exec;
mod limits;
mod logs;
mod pods;
mod security;
mod store;
mod survival;
