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

/// From now on neither this process nor any that it starts can make a socket of this family and protocol: the kernel
/// answers as one does that was built without it.
pub fn lack_sockets(family: i32, protocol: i32) -> io::Result<()> {
    let argument = |number: u32| 16 + 8 * number; // struct seccomp_data: nr, arch, instruction pointer, arguments
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT.cast_unsigned();
    let filter = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 5, libc::SYS_socket as u32),
        step(LOAD, 0, 0, argument(0)),
        step(EQUAL, 0, 3, family.cast_unsigned()),
        step(LOAD, 0, 0, argument(2)),
        step(EQUAL, 0, 1, protocol.cast_unsigned()),
        step(ANSWER, 0, 0, refused),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    filtered(filter)
}

/// From now on `fdatasync` fails with this number, here and in all that is started.
pub fn fail_syncs(error: i32) -> io::Result<()> {
    filtered([
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, libc::SYS_fdatasync as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | error.cast_unsigned()),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ])
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn filtered<const N: usize>(mut filter: [libc::sock_filter; N]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls take integers, and the second a pointer to a program that outlives it; the kernel copies it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
