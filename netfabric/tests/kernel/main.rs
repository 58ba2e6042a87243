//! The fabric against a real kernel. Needs root, nft, ip, ping, conntrack and dig; touches nothing of the machine.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, starts clients and servers as threads, and measures time"
)]

mod harness;
mod isolation;
mod names;
mod pods;
mod robust;
mod scale;
mod services;
