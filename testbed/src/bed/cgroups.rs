//! The cgroups of hosts: `/skein-test/RUN/HOST` in every hierarchy, made before and removed after a host.
//!
//! Touches nothing outside /skein-test, and kills only processes inside a directory that it removes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;

const PARENT: &str = "skein-test";
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// A host's cgroups cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    None,
    #[error("cgroup {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
}

struct Hierarchy {
    mount: PathBuf,
    v2: bool,
}

/// The path that an agent is given as `--cgroup-parent`.
pub fn parent_of(run: &str, host: &str) -> String {
    format!("/{PARENT}/{run}/{host}")
}

/// Makes the cgroups of one host.
pub fn create(run: &str, host: &str) -> Result<(), CgroupError> {
    let hierarchies = hierarchies();
    if hierarchies.is_empty() {
        return Err(CgroupError::None);
    }
    for hierarchy in hierarchies {
        // Another bed may remove the empty parent at this moment: once more.
        let made = make(&hierarchy, run, host).or_else(|_| make(&hierarchy, run, host));
        made.map_err(|source| CgroupError::Directory { path: hierarchy.mount.clone(), source })?;
    }
    Ok(())
}

/// Removes the cgroups of one host and whatever still runs in them.
pub fn remove_host(run: &str, host: &str) -> Result<(), CgroupError> {
    hierarchies().iter().try_for_each(|h| remove(&h.mount.join(PARENT).join(run).join(host)))
}

/// Removes the cgroups of a whole bed.
pub fn remove_run(run: &str) -> Result<(), CgroupError> {
    for hierarchy in hierarchies() {
        let parent = hierarchy.mount.join(PARENT);
        remove(&parent.join(run))?;
        // Stays while another bed has its directory in it.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// Removes what beds left whose process is gone.
pub fn remove_abandoned(owner_lives: impl Fn(&str) -> bool) {
    for hierarchy in hierarchies() {
        let parent = hierarchy.mount.join(PARENT);
        for name in directories(&parent).iter().filter_map(|d| d.file_name()?.to_str()) {
            if !owner_lives(name)
                && let Err(error) = remove(&parent.join(name))
            {
                tracing::warn!(%error, "cgroups of an earlier bed are left");
            }
        }
        let _ = fs::remove_dir(parent);
    }
}

/// All cgroup directories of a run that exist, for tests.
pub fn of_run(run: &str) -> Vec<PathBuf> {
    hierarchies().iter().map(|h| h.mount.join(PARENT).join(run)).filter(|p| p.exists()).collect()
}

fn make(hierarchy: &Hierarchy, run: &str, host: &str) -> io::Result<()> {
    let mut directory = hierarchy.mount.clone();
    for name in [PARENT, run, host] {
        if hierarchy.v2 {
            delegate(&directory);
        }
        let above = directory.clone();
        directory.push(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        inherit_cpuset(&above, &directory)?;
    }
    Ok(())
}

/// In v1 a new cpuset has no processors and nothing can run in it.
fn inherit_cpuset(above: &Path, directory: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        match fs::read_to_string(directory.join(file)) {
            Ok(own) if own.trim().is_empty() => fs::write(directory.join(file), fs::read(above.join(file))?)?,
            _ => {}
        }
    }
    Ok(())
}

/// In v2 the controllers of a directory are those that the one above hands down.
fn delegate(directory: &Path) {
    let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    for controller in offered.split_whitespace() {
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn remove(directory: &Path) -> Result<(), CgroupError> {
    if !directory.exists() {
        return Ok(());
    }
    let mut last = io::Error::from(Errno::EBUSY);
    let removed = clock::poll(REMOVE_LIMIT, Duration::from_millis(10), || match remove_tree(directory) {
        Ok(()) => Some(()),
        Err(error) => {
            last = error;
            None
        }
    });
    removed.ok_or_else(|| CgroupError::Directory { path: directory.to_owned(), source: last })
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    // A frozen process takes its SIGKILL only once it is thawed.
    let _ = fs::write(directory.join("freezer.state"), "THAWED");
    let _ = fs::write(directory.join("cgroup.freeze"), "0");
    for below in directories(directory) {
        remove_tree(&below)?;
    }
    for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().filter(|pid| *pid > 1) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Lets frozen processes of a host go, so that they can be killed.
pub fn thaw(run: &str, host: &str) {
    hierarchies().iter().for_each(|h| thaw_tree(&h.mount.join(PARENT).join(run).join(host)));
}

fn thaw_tree(directory: &Path) {
    let _ = fs::write(directory.join("freezer.state"), "THAWED");
    let _ = fs::write(directory.join("cgroup.freeze"), "0");
    directories(directory).iter().for_each(|below| thaw_tree(below));
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

fn hierarchies() -> Vec<Hierarchy> {
    from_mount_table(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn from_mount_table(table: &str) -> Vec<Hierarchy> {
    let mounts = table.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let kind = kind.split_whitespace().next()?;
        let mount = PathBuf::from(place.split_whitespace().nth(4)?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Hierarchy { mount, v2: kind == "cgroup2" })
    });
    mounts.filter(|h| h.mount.starts_with("/sys/fs/cgroup")).collect()
}
