//! The system calls that std and nix do not wrap safely. The only module with unsafe code.
//!
//! Thin wrappers that decide nothing. Each block says why it is sound.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Makes the command join a network namespace just before it executes its program.
pub fn join_network(command: &mut Command, namespace: OwnedFd) {
    let join = move || setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `setns` is one plain system
    // call and the closure neither allocates nor takes a lock.
    unsafe { command.pre_exec(join) };
    no_blocked_signals(command);
}

/// Makes the command be started by `fork` and `exec`, never by `posix_spawn`'s shared memory: the caller
/// has unshared its pid namespace, so the child is that namespace's init.
pub fn fork_and_new_session(command: &mut Command) {
    let session = || nix::unistd::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: `setsid` is one plain system call; the closure neither allocates nor takes a lock.
    unsafe { command.pre_exec(session) };
    no_blocked_signals(command);
}

/// Gives the command an empty signal mask; std lets it inherit the caller's.
pub fn no_blocked_signals(command: &mut Command) {
    let none = SigSet::empty();
    let unblock = move || sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None).map_err(io::Error::from);
    // SAFETY: `sigprocmask` is async-signal-safe; the closure neither allocates nor takes a lock.
    unsafe { command.pre_exec(unblock) };
}

/// Takes a capability out of the bounding set: nothing that this process executes can have it.
pub fn drop_capability(capability: u32) -> io::Result<()> {
    // SAFETY: the call takes integers and touches no memory of ours.
    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a descriptor that `recvmsg` has just made for us.
pub fn adopt_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: called once per descriptor of an SCM_RIGHTS message, which belongs to the receiver alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
