//! The sealed copy of our executable that shims and runtime calls are executed from.
//!
//! Decides that there is one per agent. A container that reaches /proc/PID/exe of a runtime process finds
//! a file that nobody can write (CVE-2019-5736).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SEAL_TRIES: u32 = 20;
const SEAL_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn sealed_copy(executable: &Path) -> io::Result<OwnedFd> {
    let mut from = File::open(executable)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut to = File::from(memfd_create("skein", flags)?);
    io::copy(&mut from, &mut to)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    seal(&to, seals)?;
    Ok(to.into())
}

/// The kernel refuses to seal while something still holds a page of the file, which on a loaded machine takes a moment after the copy.
fn seal(file: &File, seals: SealFlag) -> io::Result<()> {
    for _ in 0..SEAL_TRIES {
        match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
            Err(Errno::EBUSY) => std::thread::sleep(SEAL_PAUSE),
            done => return Ok(done.map(drop)?),
        }
    }
    Ok(fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map(drop)?)
}

/// Valid in this process and, until it executes, in a child of it.
pub(super) fn path(executable: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", executable.as_raw_fd()))
}
