//! A program on a kernel that lacks something.
//!
//! Decides what is taken away. Works by a seccomp filter, which every process that the program starts inherits, so
//! that the answer comes from the kernel, as on a machine whose kernel was built without it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::sys;

/// Becomes this program, on a disk whose data cannot be synced any more: `fdatasync` answers EIO. Returns only with an error.
pub fn without_sync(argv: &[String]) -> io::Error {
    let Some((program, args)) = argv.split_first() else { return io::Error::other("an empty command") };
    match sys::fail_syncs(libc::EIO) {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

/// Becomes this program, on a kernel without netfilter's netlink (CONFIG_NETFILTER_NETLINK, and nf_tables with it).
/// Returns only with an error.
pub fn without_netfilter(argv: &[String]) -> io::Error {
    let Some((program, args)) = argv.split_first() else { return io::Error::other("an empty command") };
    match sys::lack_sockets(libc::AF_NETLINK, libc::NETLINK_NETFILTER) {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}
