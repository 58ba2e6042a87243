//! The pods' cgroups: where they are, killing everything in one, removing it.
//!
//! Works on cgroup v2 and on v1 (also hybrid), where a cgroup is one directory per controller. Must not
//! delete or signal anything outside the configured parent: every path is built here, below it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ids::{ContainerName, PodUid};

const KILL_ROUNDS: u32 = 400;
const KILL_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup file system is mounted; mount cgroup2 at /sys/fs/cgroup")]
    NotMounted,
    #[error("the cgroup parent {0:?} must be an absolute path of plain names such as /skein")]
    BadParent(String),
    #[error("cannot read the mount table: {0}")]
    MountTable(#[source] io::Error),
    #[error("cgroup {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("processes in {path} did not die within two seconds of SIGKILL: {pids:?}")]
    Unkillable { path: PathBuf, pids: Vec<i32> },
}

#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    /// Mount points: one for v2, one per controller for v1.
    hierarchies: Vec<Hierarchy>,
    pub unified: bool,
    parent: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
}

impl Cgroups {
    pub fn detect(parent: &str) -> Result<Self, CgroupError> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").map_err(CgroupError::MountTable)?;
        Self::from_mount_table(parent, &table)
    }

    fn from_mount_table(parent: &str, table: &str) -> Result<Self, CgroupError> {
        let plain = |name: &str| !name.is_empty() && !name.starts_with('.');
        if !parent.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain)) {
            return Err(CgroupError::BadParent(parent.to_owned()));
        }
        let mounts = table.lines().filter_map(parse_mount);
        let (v1, v2): (Vec<_>, Vec<_>) = mounts.partition(|(kind, _)| kind == "cgroup");
        let unified = v1.is_empty();
        let hierarchies: Vec<_> = v1.into_iter().chain(v2).map(|(_, hierarchy)| hierarchy).collect();
        if hierarchies.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        Ok(Self { hierarchies, unified, parent: parent.to_owned() })
    }

    /// The cgroup path of a container, as `linux.cgroupsPath` wants it.
    pub fn container(&self, uid: &PodUid, name: &ContainerName) -> String {
        format!("{}/pod{uid}/{name}", self.parent)
    }

    /// The file that counts the kernel's out-of-memory kills in a container.
    pub fn oom_file(&self, uid: &PodUid, name: &ContainerName) -> Option<PathBuf> {
        let (controller, file) =
            if self.unified { ("", "memory.events") } else { ("memory", "memory.oom_control") };
        let found = |h: &&Hierarchy| self.unified || h.controllers.iter().any(|c| c == controller);
        let mount = &self.hierarchies.iter().find(found)?.mount;
        Some(below(mount, &self.container(uid, name)).join(file))
    }

    /// Whether swap can be limited together with memory.
    pub fn swap_accounting(&self) -> bool {
        let memory = self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == "memory"));
        self.unified || memory.is_some_and(|h| h.mount.join("memory.memsw.limit_in_bytes").exists())
    }

    /// Kills every process of the pod and returns when none is left. Blocks.
    pub fn kill_pod(&self, uid: &PodUid) -> Result<(), CgroupError> {
        self.kill(&format!("{}/pod{uid}", self.parent))
    }

    /// Kills every process of one container. Blocks.
    pub fn kill_container(&self, uid: &PodUid, name: &ContainerName) -> Result<(), CgroupError> {
        self.kill(&self.container(uid, name))
    }

    /// Removes the pod's empty cgroups. Blocks.
    pub fn remove_pod(&self, uid: &PodUid) -> Result<(), CgroupError> {
        self.remove(&format!("{}/pod{uid}", self.parent))
    }

    pub fn remove_container(&self, uid: &PodUid, name: &ContainerName) -> Result<(), CgroupError> {
        self.remove(&self.container(uid, name))
    }

    /// Removes the parent itself where nothing is in it. One that is in use, or that somebody else looks after, stays.
    pub fn remove_parent(&self) {
        for directory in self.directories(&self.parent) {
            let _ = fs::remove_dir(directory);
        }
    }

    fn kill(&self, path: &str) -> Result<(), CgroupError> {
        for _ in 0..KILL_ROUNDS {
            if self.pids(path)?.is_empty() {
                return Ok(());
            }
            self.kill_round(path)?;
            std::thread::sleep(KILL_PAUSE);
        }
        let pids = self.pids(path)?.into_iter().collect();
        Err(CgroupError::Unkillable { path: PathBuf::from(path), pids })
    }

    /// v2: one write. v1: frozen processes cannot fork away from the list; they die once thawed.
    fn kill_round(&self, path: &str) -> Result<(), CgroupError> {
        if self.unified {
            for directory in self.directories(path) {
                write(&directory.join("cgroup.kill"), "1")?;
            }
            return Ok(());
        }
        let freezer = self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == "freezer"));
        let state = freezer.map(|h| below(&h.mount, path).join("freezer.state")).filter(|file| file.exists());
        if let Some(state) = &state {
            write(state, "FROZEN")?;
        }
        for pid in self.pids(path)? {
            // ESRCH: it ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        state.map_or(Ok(()), |state| write(&state, "THAWED"))
    }

    fn remove(&self, path: &str) -> Result<(), CgroupError> {
        for directory in self.directories(path) {
            remove_recursively(&directory)?;
        }
        Ok(())
    }

    fn directories(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(move |h| below(&h.mount, path)).filter(|directory| directory.exists())
    }

    fn pids(&self, path: &str) -> Result<BTreeSet<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for directory in self.directories(path) {
            collect_pids(&directory, &mut pids)?;
        }
        Ok(pids)
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn parse_mount(line: &str) -> Option<(String, Hierarchy)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount = mount.split(' ').nth(4)?;
    let mut file_system = file_system.split(' ');
    let kind = file_system.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
    let controllers = file_system.nth(1)?.split(',').map(str::to_owned).collect();
    Some((kind.to_owned(), Hierarchy { mount: PathBuf::from(mount), controllers }))
}

fn collect_pids(directory: &Path, pids: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
    for child in children(directory)? {
        collect_pids(&child, pids)?;
    }
    let file = directory.join("cgroup.procs");
    match fs::read_to_string(&file) {
        // Pid 0 is a process outside our pid namespace: nothing we may touch.
        Ok(text) => {
            pids.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0))
        }
        Err(error) if is_gone(&error) => {}
        Err(source) => return Err(CgroupError::Io { path: file, source }),
    }
    Ok(())
}

fn remove_recursively(directory: &Path) -> Result<(), CgroupError> {
    for child in children(directory)? {
        remove_recursively(&child)?;
    }
    for round in 0.. {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            // A dying process may be counted for a moment longer.
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && round < KILL_ROUNDS => {
                std::thread::sleep(KILL_PAUSE);
            }
            Err(source) => return Err(CgroupError::Io { path: directory.to_owned(), source }),
        }
    }
    Ok(())
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let io = |source| CgroupError::Io { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    match fs::write(path, text) {
        Err(error) if is_gone(&error) => Ok(()),
        done => done.map_err(|source| CgroupError::Io { path: path.to_owned(), source }),
    }
}

/// A cgroup that vanishes under us was empty: ENOENT at open, ENODEV at read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// Whether the kernel has killed a process of this cgroup for want of memory.
pub(crate) fn oom_seen(file: &Path) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let count = |line: &str| line.strip_prefix("oom_kill ").and_then(|n| n.trim().parse::<u64>().ok());
    text.lines().find_map(count).is_some_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 20 0:27 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
32 20 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 20 0:29 / / rw,relatime - ext4 /dev/vda rw";
    const V2: &str = "32 20 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate";

    fn oom_file(table: &str) -> PathBuf {
        let cgroups = Cgroups::from_mount_table("/skein", table).unwrap();
        cgroups.oom_file(&PodUid::new("u").unwrap(), &ContainerName::new("c").unwrap()).unwrap()
    }

    #[test]
    fn hybrid_counts_as_v1() {
        let file = oom_file(HYBRID);
        assert_eq!(file, PathBuf::from("/sys/fs/cgroup/memory/skein/podu/c/memory.oom_control"));
    }

    #[test]
    fn unified_is_one_directory() {
        assert_eq!(oom_file(V2), PathBuf::from("/sys/fs/cgroup/skein/podu/c/memory.events"));
    }

    #[test]
    fn a_parent_cannot_leave_the_hierarchy() {
        for parent in ["", "/", "skein", "/../x", "/a//b", "/a/.."] {
            let refused = Cgroups::from_mount_table(parent, HYBRID);
            assert!(matches!(refused, Err(CgroupError::BadParent(_))), "{parent}");
        }
    }
}
