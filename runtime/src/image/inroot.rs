//! Opening paths inside a directory that an image or a container has filled.
//!
//! Decides that nothing an image contains (symlinks, `..`) can lead outside. Every path of a root file
//! system is opened through here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::files;

/// Opens with symlinks resolved as if `root` were `/`.
pub(crate) fn open_in_root(root: impl AsFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(root.as_fd(), relative(path), how) {
            // A rename somewhere on the way; the kernel asks to try again.
            Err(Errno::EAGAIN) => {}
            done => return Ok(done?),
        }
    }
}

/// A small file's bytes; `None` when it is absent. Only regular files are read, so that a device or a
/// pipe under this name cannot hold us up.
pub(crate) fn read_in_root(root: impl AsFd, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => std::fs::File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    files::read_bounded(file, max).map(Some)
}

/// Opens `path` below `root`, making the directories that lack. Symlinks stay inside the root.
pub(crate) fn make_dirs_in_root(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    match open_in_root(root.as_fd(), path, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return open_in_root(root, Path::new(""), flags);
    };
    let parent = make_dirs_in_root(root.as_fd(), parent)?;
    match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open_in_root(root, path, flags)
}

/// Makes sure that `name` directly below `root` is a real directory, not a symlink: the runtime will
/// write and mount there by path (SECURITY section 5, CVE-2026-41579).
pub(crate) fn real_directory(root: impl AsFd, name: &str) -> io::Result<()> {
    match mkdirat(root.as_fd(), name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => return Ok(()),
        Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(root.as_fd(), name, OpenHow::new().flags(flags).resolve(resolve))?;
    Ok(())
}

fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
