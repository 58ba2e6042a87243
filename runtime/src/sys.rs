//! The system calls that std and nix do not wrap safely. The only module with unsafe code.
//!
//! Thin wrappers that decide nothing. Each block says why it is sound.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::unistd::{ForkResult, Pid};
use tokio::io::unix::AsyncFd;

/// A handle to the process that has this pid now; readable when it ends.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks a *single-threaded* process; refuses in any other.
pub fn fork_single_threaded() -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("refusing to fork a process with threads"));
    }
    // SAFETY: with one thread no lock can be held by a thread that the child lacks, so the child may do
    // anything the parent could.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Brings `lo` up in the network namespace of the calling thread.
pub fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    let up = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = up;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call, and keeps no pointer to it.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an extended attribute of an open file.
pub fn set_xattr(file: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: both pointers are valid for the call, the length is the slice's, the kernel only reads.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this process may execute `path`, by its effective ids.
pub fn may_execute(path: &CStr) -> bool {
    // SAFETY: the string is terminated and outlives the call, which only reads it.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) == 0 }
}

pub fn ignore_signal(which: nix::sys::signal::Signal) -> io::Result<()> {
    use nix::sys::signal::{SigHandler, signal};
    // SAFETY: ignoring installs no handler, so no code of ours can run in a signal's context.
    unsafe { signal(which, SigHandler::SigIgn) }?;
    Ok(())
}

/// Takes a descriptor that `recvmsg` has just made for us.
pub fn adopt_fd(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: called once per descriptor of an SCM_RIGHTS message, which belongs to the receiver alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Any signal number, real-time ones included, to one process.
pub fn send_signal(pid: Pid, signal: i32) -> io::Result<()> {
    if pid.as_raw() <= 1 {
        return Err(io::Error::other("refusing to signal a group or init"));
    }
    // SAFETY: the call takes two integers and touches no memory of ours.
    let done = unsafe { libc::kill(pid.as_raw(), signal) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a descriptor with the tokio runtime of the caller.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open file for as long as the AsyncFd owns it, whatever is done
    // through shared references.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Gives unused heap back, and forgets the pages of the program and its libraries that are only read: they come again
/// from the file at their next use.
pub fn give_memory_back() {
    // SAFETY: the allocator's own call; it gives back only what is not allocated.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: the callback has the type that is asked for, and keeps nothing it is handed.
    unsafe { libc::dl_iterate_phdr(Some(forget_read_only), std::ptr::null_mut()) };
}

unsafe extern "C" fn forget_read_only(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr hands a valid object, with that many headers, for the time of this call.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    let page = 4096;
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = (base + header.p_vaddr) / page * page;
        let end = (base + header.p_vaddr + header.p_memsz).div_ceil(page) * page;
        let (Ok(start), Ok(length)) = (usize::try_from(start), usize::try_from(end - start)) else {
            continue;
        };
        // SAFETY: the segment is mapped privately from a file and never writable, so no page of it can differ from the
        // file (relocated ones lie in writable segments); what is dropped is read again, the same, when it is touched.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED) };
    }
    0
}
