//! Mounting and unmounting below our own directories.
//!
//! Decides mount options. Must not unmount anything outside the directory it is given.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::paths::ContainerPaths;

/// The kernel takes one page of options.
const OPTIONS_MAX: usize = 4000;

/// A container's root: the layers, lowest first, under a fresh writable directory.
pub(super) fn overlay(layers: &[PathBuf], paths: &ContainerPaths) -> io::Result<()> {
    let plain: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
    let length: usize = plain.iter().map(|layer| layer.len() + 1).sum();
    if length < OPTIONS_MAX - 1000 {
        return mount_overlay(&plain, paths);
    }
    // Many layers: name them by descriptor, which is short.
    let open = |layer: &PathBuf| fs::File::open(layer).map(OwnedFd::from);
    let descriptors: Vec<OwnedFd> = layers.iter().map(open).collect::<io::Result<_>>()?;
    let named: Vec<String> =
        descriptors.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    mount_overlay(&named, paths)
}

/// `volatile` spares the syncs of a writable layer that no restart keeps, above all at unmount.
fn mount_overlay(layers: &[String], paths: &ContainerPaths) -> io::Result<()> {
    let lower = layers.iter().rev().map(String::as_str).collect::<Vec<_>>().join(":");
    let (upper, work) = (paths.upper(), paths.work());
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    // Device files of an image are never devices here.
    let mount_with = |options: &str| {
        mount(Some("overlay"), &paths.rootfs(), Some("overlay"), MsFlags::MS_NODEV, Some(options))
    };
    match mount_with(&format!("{options},volatile")) {
        Err(Errno::EINVAL) => Ok(mount_with(&options)?),
        done => Ok(done?),
    }
}

pub(super) fn tmpfs(target: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    Ok(mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))?)
}

/// Binds an open file or directory to an existing target of the same kind.
pub(super) fn bind(source: &OwnedFd, target: &Path) -> io::Result<()> {
    let source = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    Ok(mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Opens a path only to name it.
pub(super) fn handle(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?)
}

/// Unmounts everything at or below `directory`, newest first.
pub(super) fn unmount_below(directory: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut ours: Vec<PathBuf> = mounts.filter(|mount| mount.starts_with(directory)).collect();
    ours.reverse();
    for mount in ours {
        unmount(&mount)?;
    }
    Ok(())
}

/// Detaches, so that a straggler with a file open holds nobody up. Absence is success.
pub(super) fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The mount table writes blanks and backslashes as three octal digits.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let (mut bytes, mut rest) = (Vec::new(), field.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/plain\\"), PathBuf::from("/plain\\"));
    }
}
