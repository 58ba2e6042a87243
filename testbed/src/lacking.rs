//! A program on a kernel that lacks something, or on a disk that fails.
//!
//! Decides what is taken away. A kernel lacks by a seccomp filter, which every process that the program starts inherits, so
//! that the answer comes from the kernel, as on a machine whose kernel was built without it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::sys::{self, Held};

/// What is synced.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum Syncs {
    /// The bytes of files, by `fdatasync`.
    #[default]
    Data,
    /// Files with their lengths, by `fsync`.
    Lengths,
    /// Names, by `fsync` of their directory.
    Names,
}

impl Syncs {
    fn call(self) -> libc::c_long {
        match self {
            Syncs::Data => libc::SYS_fdatasync,
            Syncs::Lengths | Syncs::Names => libc::SYS_fsync,
        }
    }

    /// Whether the call is for one of these.
    fn is(self, held: &Held) -> bool {
        let file = format!("/proc/{}/fd/{}", held.thread, held.args[0]);
        match self {
            Syncs::Data => true,
            Syncs::Lengths => Path::new(&file).is_file(),
            Syncs::Names => Path::new(&file).is_dir(),
        }
    }
}

/// Becomes this program, on a disk whose data cannot be synced any more: `fdatasync` answers EIO. Returns only with an error.
pub fn without_sync(argv: &[String]) -> io::Error {
    become_with(argv, || sys::fail_calls(Syncs::Data.call(), libc::EIO))
}

/// Becomes this program, on a disk that can sync this for as long as a file is not there. Returns only with an error.
pub fn without_sync_once(what: Syncs, there: PathBuf, argv: &[String]) -> io::Error {
    let decide = move |listener: &OwnedFd, held: &Held| match what.is(held) && there.exists() {
        true => sys::refuse(listener, held, libc::EIO),
        false => sys::let_go(listener, held),
    };
    become_with(argv, || supervise(what.call(), decide))
}

/// Becomes this program, on a disk that takes so long over each sync of data for as long as this file is there. Returns only with an error.
pub fn slow_sync(there: PathBuf, pause: Duration, argv: &[String]) -> io::Error {
    let decide = move |listener: &OwnedFd, held: &Held| {
        if there.exists() {
            std::thread::sleep(pause);
        }
        sys::let_go(listener, held)
    };
    become_with(argv, || supervise(Syncs::Data.call(), decide))
}

/// Ends the ext4 filesystem that holds this file or directory, as when its disk is pulled out: all that is asked of it fails, reads too,
/// until it was unmounted and mounted again. What waits in memory is not written.
pub fn pull_out(inside: &Path) -> io::Result<()> {
    sys::shut_down_filesystem(&File::open(inside)?)
}

/// Becomes this program, on a kernel without netfilter's netlink (CONFIG_NETFILTER_NETLINK, and nf_tables with it).
/// Returns only with an error.
pub fn without_netfilter(argv: &[String]) -> io::Error {
    become_with(argv, || sys::lack_sockets(libc::AF_NETLINK, libc::NETLINK_NETFILTER))
}

/// Becomes this program, on a kernel without VXLAN devices (CONFIG_VXLAN). What the program asks over netlink is held by a
/// supervisor, which turns the name of that kind of device into one that no kernel has: the answer is the kernel's own.
/// Returns only with an error.
pub fn without_vxlan(argv: &[String]) -> io::Error {
    become_with(argv, || supervise(libc::SYS_sendto, pass_one))
}

/// Takes away what is to be lacking, then becomes the program. Returns only with an error.
fn become_with(argv: &[String], take_away: impl FnOnce() -> io::Result<()>) -> io::Error {
    let Some((program, args)) = argv.split_first() else { return io::Error::other("an empty command") };
    match take_away() {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

/// Starts the supervisor, which decides about each call of this number, then puts this process under it.
fn supervise(number: libc::c_long, decide: impl Fn(&OwnedFd, &Held) -> io::Result<()>) -> io::Result<()> {
    let (mut from_us, mut to_supervisor) = io::pipe()?;
    let (mut ready, mut to_us) = io::pipe()?;
    let us = nix::unistd::getpid();
    let watched = sys::open_process(us)?;
    if sys::fork_child()? {
        drop(to_supervisor);
        let mut theirs = [0; 4];
        let listened =
            from_us.read_exact(&mut theirs).and_then(|()| sys::take_fd(&watched, i32::from_le_bytes(theirs)));
        if let Ok(listener) = listened
            && to_us.write_all(b"1").is_ok()
        {
            drop(to_us);
            while sys::has_held_call(&listener) {
                // One whose thread was killed meanwhile is gone.
                let _ = sys::held_call(&listener).and_then(|held| decide(&listener, &held));
            }
        }
        std::process::exit(0);
    }
    let listener = sys::hold_calls(number)?;
    // The pipe is written by `write`, which nobody holds.
    to_supervisor.write_all(&listener.as_raw_fd().to_le_bytes())?;
    drop(to_us);
    // Ours ends with the exec: the supervisor must have its copy by then.
    ready.read_exact(&mut [0])
}

/// The longest message that is looked into.
const LOOKED_AT: usize = 4096;

/// Lets one held message go, changed if it asks for a VXLAN device.
fn pass_one(listener: &OwnedFd, held: &Held) -> io::Result<()> {
    let [_, address, length, ..] = held.args;
    let path = format!("/proc/{}/mem", held.thread);
    if let Ok(memory) = OpenOptions::new().read(true).write(true).open(path) {
        let _ = spoil(&memory, address, LOOKED_AT.min(length as usize));
    }
    sys::let_go(listener, held)
}

fn spoil(memory: &File, address: u64, length: usize) -> io::Result<()> {
    // IFLA_INFO_KIND (if_link.h) is attribute 1; its text follows the type.
    const KIND: &[u8] = b"\x01\x00vxlan";
    let mut message = vec![0; length];
    let count = memory.read_at(&mut message, address)?;
    if let Some(at) = message[..count].windows(KIND.len()).position(|window| window == KIND) {
        memory.write_at(b"none.", address + at as u64 + 2)?;
    }
    Ok(())
}
