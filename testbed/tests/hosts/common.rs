//! Beds for tests: a directory on the disk that goes with the test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use testbed::{Bed, BedConfig, Host};

/// A bed and its directory, removed in this order.
pub struct TestBed {
    bed: Bed,
    _directory: tempfile::TempDir,
}

impl std::ops::Deref for TestBed {
    type Target = Bed;
    fn deref(&self) -> &Bed {
        &self.bed
    }
}

/// On the disk that the build is on, never a tmpfs.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn config(directory: &Path, hosts: usize) -> BedConfig {
    let mut config = BedConfig::new("test", hosts, directory);
    config.skein = Some(PathBuf::from("/bin/true"));
    config
}

pub fn bed(_name: &str, hosts: usize) -> TestBed {
    let directory = scratch();
    TestBed { bed: Bed::create(config(directory.path(), hosts)).unwrap(), _directory: directory }
}

#[track_caller]
pub fn eventually(mut look: impl FnMut() -> bool) {
    let found =
        testbed::clock::poll(Duration::from_secs(5), Duration::from_millis(10), || look().then_some(()));
    assert!(found.is_some(), "did not happen within 5 s");
}

/// The machine's pids of everything in a host.
pub fn pids_inside(host: &Host) -> Vec<i32> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(host.init_pid().unwrap());
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| namespace(*pid) == own).collect()
}
