//! The system calls that std and nix do not wrap safely. The only module with unsafe code.
//!
//! Thin wrappers that decide nothing. Each block says why it is sound.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
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

/// From now on calls of this number fail with this error, here and in all that is started.
pub fn fail_calls(number: libc::c_long, error: i32) -> io::Result<()> {
    filtered([
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, number as u32),
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

/// A process, so that its descriptors can be taken.
pub fn open_process(pid: nix::unistd::Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    // SAFETY: the kernel has just made the descriptor for us alone.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }) }
}

/// A copy of another process's descriptor.
pub fn take_fd(process: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    // SAFETY: the kernel has just made the descriptor for us alone.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }) }
}

/// Forks; true in the child. Only for a process with one thread.
pub fn fork_child() -> io::Result<bool> {
    // SAFETY: the callers have one thread, so no lock is held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(true),
        nix::unistd::ForkResult::Parent { .. } => Ok(false),
    }
}

/// From now on each call of this number by this process, and by what it becomes, waits until whoever listens lets it go
/// (seccomp_unotify(2)).
pub fn hold_calls(number: libc::c_long) -> io::Result<OwnedFd> {
    let mut filter = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, number as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls take integers, and the second a pointer to a program that outlives it; the kernel copies it.
    let fd = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    // SAFETY: the kernel has just made the descriptor for us alone.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }) }
}

/// A call that waits.
pub struct Held {
    id: u64,
    pub thread: u32,
    pub args: [u64; 6],
}

nix::ioctl_readwrite!(notif_recv, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(notif_send, b'!', 1, libc::seccomp_notif_resp);

/// Waits for one; false once nobody is left who could call.
pub fn has_held_call(listener: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) => return wanted[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLIN)),
        }
    }
}

/// Takes one.
pub fn held_call(listener: &OwnedFd) -> io::Result<Held> {
    use std::os::fd::AsRawFd;
    // SAFETY: a struct of integers, for which all zeros is a value; the kernel asks for zeros.
    let mut held: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the struct, which is as long as the request's number says.
    unsafe { notif_recv(listener.as_raw_fd(), &raw mut held) }?;
    Ok(Held { id: held.id, thread: held.pid, args: held.data.args })
}

/// Lets it go on as it stands in its process's memory now.
pub fn let_go(listener: &OwnedFd, held: &Held) -> io::Result<()> {
    answer(listener, held, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)
}

/// It fails with this number; nothing is done.
pub fn refuse(listener: &OwnedFd, held: &Held, error: i32) -> io::Result<()> {
    answer(listener, held, -error, 0)
}

fn answer(listener: &OwnedFd, held: &Held, error: i32, flags: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut answer = libc::seccomp_notif_resp { id: held.id, val: 0, error, flags };
    // SAFETY: the kernel reads the struct, which is as long as the request's number says.
    match unsafe { notif_send(listener.as_raw_fd(), &raw mut answer) } {
        // The thread was killed while it waited.
        Err(nix::errno::Errno::ENOENT) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Shuts the ext4 filesystem of this file down, as a disk does that is pulled out: each call to it fails from then on, reads too.
/// Nothing that waits in memory is written. It is whole again when it was unmounted and mounted. (`EXT4_IOC_SHUTDOWN`.)
pub fn shut_down_filesystem(of: &std::fs::File) -> io::Result<()> {
    const SHUTDOWN: libc::c_ulong = 0x8004_587d; // _IOR('X', 125, __u32)
    let without_log: u32 = 2;
    // SAFETY: the call reads four bytes from the pointer, which live until it returns.
    let done = unsafe { libc::ioctl(of.as_raw_fd(), SHUTDOWN, &raw const without_log) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
