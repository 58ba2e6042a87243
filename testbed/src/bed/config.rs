//! What a bed is asked for, and where the binaries come from.
//!
//! Decides defaults and refuses directories that cannot hold a host's data.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use super::{BedError, record};
use crate::wire::Bind;

/// Settings of one bed.
#[derive(Debug, Clone)]
pub struct BedConfig {
    /// Part of the names of the bed's cgroups.
    pub name: String,
    pub hosts: usize,
    /// On a disk; the bed's own, wiped when the bed is made. Holds data, logs and a state file.
    pub directory: PathBuf,
    /// The skein binary; found by `SKEIN_BIN` or beside the current executable where absent.
    pub skein: Option<PathBuf>,
    /// More of the machine's directories to see inside every host.
    pub binds: Vec<Bind>,
    /// For every agent and command, on top of a clean environment.
    pub env: Vec<(String, String)>,
    /// Whether hosts' data stays when the bed ends.
    pub keep: bool,
}

impl BedConfig {
    pub fn new(name: &str, hosts: usize, directory: impl Into<PathBuf>) -> BedConfig {
        BedConfig {
            name: name.to_owned(),
            hosts,
            directory: directory.into(),
            skein: None,
            binds: Vec::new(),
            env: Vec::new(),
            keep: false,
        }
    }

    /// The directory made, absolute, on a disk, and free of an earlier bed's remains.
    pub(super) fn prepared(mut self) -> Result<BedConfig, BedError> {
        let file = |path: &Path, source| BedError::File { path: path.to_owned(), source };
        fs::create_dir_all(&self.directory).map_err(|e| file(&self.directory, e))?;
        self.directory = self.directory.canonicalize().map_err(|e| file(&self.directory, e))?;
        let directory = &self.directory;
        if directory.to_string_lossy().contains([',', ':', '\\']) {
            return Err(BedError::BadPath(directory.clone()));
        }
        let kind = statfs(directory).map_err(|e| file(directory, e.into()))?.filesystem_type();
        let refused = if kind == TMPFS_MAGIC {
            Some("tmpfs")
        } else {
            (kind == OVERLAYFS_SUPER_MAGIC).then_some("overlay")
        };
        if let Some(kind) = refused {
            return Err(BedError::NotOnDisk { path: directory.clone(), kind });
        }
        record::clear_earlier(directory)?;
        Ok(self)
    }

    pub(super) fn program(&self) -> Result<PathBuf, BedError> {
        let exe =
            env::current_exe().map_err(|source| BedError::File { path: "/proc/self/exe".into(), source })?;
        let set = env::var_os("TESTBED_BIN").map(PathBuf::from);
        set.or_else(|| beside(&exe, "testbed")).ok_or(BedError::NoProgram(exe))
    }

    pub(super) fn skein(&self) -> Option<PathBuf> {
        let set = || env::var_os("SKEIN_BIN").map(PathBuf::from);
        let found = self.skein.clone().or_else(set).or_else(|| beside(&env::current_exe().ok()?, "skein"))?;
        found.canonicalize().ok()
    }
}

/// A binary of the same build, else of the other profile: tests run from `target/PROFILE/deps`.
fn beside(exe: &Path, name: &str) -> Option<PathBuf> {
    let here = exe.parent()?;
    let profile = if here.ends_with("deps") { here.parent()? } else { here };
    let target = profile.parent()?;
    let places = [profile.to_owned(), target.join("release"), target.join("debug")];
    places.into_iter().map(|place| place.join(name)).find(|path| path.is_file())
}
