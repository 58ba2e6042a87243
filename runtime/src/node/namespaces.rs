//! The namespaces that a pod's containers share: network, host name, IPC; pinned by bind mounts.
//!
//! Decides what is shared. A pinned namespace outlives any container and any shim, so no pause container
//! is needed. Addresses and routes are the network fabric's; only `lo` is brought up here.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use super::mounts;
use crate::files;
use crate::ids::PodUid;
use crate::paths::Paths;
use crate::spec::PodSpec;
use crate::sys;

/// OCI name and the file's name in /proc/PID/ns (and in our run directory, followed by `ns`).
const SHARED: [(&str, &str); 3] = [("network", "net"), ("uts", "uts"), ("ipc", "ipc")];

/// The pod's namespaces, OCI name and path. A pod on the host's network has none of its own for that.
pub(super) fn of_pod(paths: &Paths, spec: &PodSpec) -> Vec<(&'static str, PathBuf)> {
    let shared = SHARED.iter().filter(|(kind, _)| !(spec.host_network && *kind == "network"));
    shared.map(|(kind, file)| (*kind, paths.namespace(file, &spec.uid))).collect()
}

/// Makes and pins what is not pinned yet.
pub(super) fn pin(paths: &Paths, spec: &PodSpec) -> io::Result<()> {
    let all = of_pod(paths, spec);
    if all.iter().all(|(_, path)| is_pinned(path)) {
        return Ok(());
    }
    unpin(paths, &spec.uid)?;
    for (_, path) in &all {
        if let Some(directory) = path.parent() {
            files::open_dir(directory)?;
        }
        File::create(path)?;
    }
    on_own_thread(|| make(spec, &all))
}

/// Absence is success.
pub(super) fn unpin(paths: &Paths, uid: &PodUid) -> io::Result<()> {
    for (_, file) in SHARED {
        let path = paths.namespace(file, uid);
        mounts::unmount(&path)?;
        files::remove_file(&path)?;
    }
    Ok(())
}

fn is_pinned(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|statfs| statfs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Runs in a thread of its own, which ends afterwards and takes its changed namespaces with it.
fn make(spec: &PodSpec, all: &[(&'static str, PathBuf)]) -> io::Result<()> {
    let network = if spec.host_network { CloneFlags::empty() } else { CloneFlags::CLONE_NEWNET };
    unshare(network | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
    sethostname(&spec.hostname)?;
    if !spec.host_network {
        sys::loopback_up()?;
    }
    for (kind, target) in all {
        let file = SHARED.iter().find(|(known, _)| known == kind).map_or("", |(_, file)| file);
        let source = format!("/proc/thread-self/ns/{file}");
        mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

/// Not a thread of the pool: that would be used again, in the wrong namespaces.
#[expect(clippy::disallowed_methods, reason = "a namespace belongs to a thread; joined here")]
fn on_own_thread(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let joined = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("namespaces".into())
            .spawn_scoped(scope, work)?
            .join()
            .map_err(|_| io::Error::other("the thread that makes namespaces panicked"))
    });
    joined?
}
