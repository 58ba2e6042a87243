//! The root of a host: the machine's own below, a tmpfs above, and everything private that a host must own.
//!
//! Decides what a host sees. Runs in the host's own mount namespace, so nothing here reaches the machine.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, pivot_root, sethostname};

use crate::wire::{Bind, Setup};

/// A step of building a host's root failed.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("{what} {path}: {source}")]
    Step { what: &'static str, path: PathBuf, source: io::Error },
}

const DEVICES: [(&str, u64, u64); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("net/tun", 10, 200),
];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Builds the root and moves into it; nothing of the machine's mounts stays reachable.
pub fn build(setup: &Setup) -> Result<(), RootError> {
    let nothing = None::<&str>;
    let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("making mounts private", "/", mount(nothing, "/", nothing, all, nothing))?;
    let root = overlay(&setup.stage)?;
    pseudo(&root)?;
    devices(&root.join("dev"))?;
    for bind in &setup.binds {
        attach(&root, bind)?;
    }
    files(&root, setup)?;
    step("naming the host", &setup.hostname, sethostname(&setup.hostname))?;
    enter(&root)
}

fn overlay(stage: &Path) -> Result<PathBuf, RootError> {
    tmpfs(stage, "mode=755")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| stage.join(name));
    for directory in [&upper, &work, &root] {
        step("creating", directory, fs::create_dir(directory))?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    let done = mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    step("mounting an overlay at", &root, done)?;
    Ok(root)
}

/// /proc of the pid namespace, /sys of the network namespace with the machine's cgroups in it.
fn pseudo(root: &Path) -> Result<(), RootError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for kind in ["proc", "sysfs"] {
        let at = root.join(if kind == "proc" { "proc" } else { "sys" });
        step("mounting", &at, mount(Some(kind), &at, Some(kind), quiet, None::<&str>))?;
    }
    let cgroups = root.join("sys/fs/cgroup");
    bind("/sys/fs/cgroup".as_ref(), &cgroups, MsFlags::MS_REC)?;
    for (directory, options) in [("run", "mode=755"), ("tmp", "mode=1777"), ("dev", "mode=755")] {
        tmpfs(&root.join(directory), options)?;
    }
    let run = root.join("run/skein");
    step("creating", &run, fs::create_dir(&run))
}

fn devices(dev: &Path) -> Result<(), RootError> {
    for directory in ["net", "pts", "shm"].map(|name| dev.join(name)) {
        step("creating", &directory, fs::create_dir(&directory))?;
    }
    let mode = Mode::from_bits_truncate(0o666);
    let mask = nix::sys::stat::umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        step("making the device", &path, mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor)))?;
    }
    nix::sys::stat::umask(mask);
    for (target, name) in DEVICE_LINKS {
        step("linking", name, symlink(target, dev.join(name)))?;
    }
    let pts = dev.join("pts");
    let options = Some("newinstance,ptmxmode=0666,mode=620,gid=5");
    step("mounting", &pts, mount(Some("devpts"), &pts, Some("devpts"), MsFlags::empty(), options))?;
    tmpfs(&dev.join("shm"), "mode=1777")
}

fn attach(root: &Path, wanted: &Bind) -> Result<(), RootError> {
    let target = root.join(wanted.target.strip_prefix("/").unwrap_or(&wanted.target));
    let (directory, file) =
        if wanted.source.is_dir() { (Some(&*target), None) } else { (target.parent(), Some(&target)) };
    if let Some(directory) = directory {
        step("creating", directory, fs::create_dir_all(directory))?;
    }
    if let Some(file) = file.filter(|file| !file.exists()) {
        step("creating", file, fs::write(file, ""))?;
    }
    bind(&wanted.source, &target, MsFlags::empty())?;
    if wanted.writable {
        return Ok(());
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    step("making read-only", &target, mount(None::<&str>, &target, None::<&str>, flags, None::<&str>))
}

fn files(root: &Path, setup: &Setup) -> Result<(), RootError> {
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for (name, address) in &setup.names {
        hosts += &format!("{address} {name}\n");
    }
    let id: String =
        setup.hostname.bytes().chain(setup.address.bytes()).map(|b| format!("{b:02x}")).collect();
    let contents = [
        ("etc/hostname", format!("{}\n", setup.hostname)),
        ("etc/hosts", hosts),
        ("etc/resolv.conf", format!("nameserver {}\n", setup.outside)),
        ("etc/machine-id", format!("{:0<32}\n", id.get(..id.len().min(32)).unwrap_or_default())),
    ];
    for (name, content) in contents {
        let path = root.join(name);
        // It may be a link out of the root: replace it rather than write through it.
        let _ = fs::remove_file(&path);
        step("writing", &path, fs::write(&path, content))?;
    }
    Ok(())
}

fn enter(root: &Path) -> Result<(), RootError> {
    step("entering", root, chdir(root))?;
    step("pivoting into", root, pivot_root(".", "."))?;
    step("leaving the machine's root under", root, umount2(".", MntFlags::MNT_DETACH))?;
    step("entering", "/", chdir("/"))
}

fn tmpfs(at: &Path, options: &str) -> Result<(), RootError> {
    step("mounting a tmpfs at", at, mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)))
}

fn bind(source: &Path, target: &Path, more: MsFlags) -> Result<(), RootError> {
    step("binding", source, mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | more, None::<&str>))
}

fn step<T, E: Into<io::Error>>(
    what: &'static str,
    path: impl AsRef<Path>,
    done: Result<T, E>,
) -> Result<T, RootError> {
    done.map_err(|source| RootError::Step { what, path: path.as_ref().to_owned(), source: source.into() })
}
