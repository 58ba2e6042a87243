//! Turning a container's wished mounts into existing host paths.
//!
//! Decides what is created and with which mode. Sub paths are resolved inside their volume and pinned by
//! a bind mount, so that a container cannot swap them for a symlink meanwhile (CVE-2017-1002101,
//! CVE-2021-30465).

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::mounts;
use crate::bundle::BindMount;
use crate::files;
use crate::image::{make_dirs_in_root, open_in_root};
use crate::paths::{ContainerPaths, PodPaths};
use crate::spec::{HostPathKind, Mount, MountSource};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("host path {path}: {what}")]
    HostPath { path: PathBuf, what: &'static str },
    #[error("{0:?} is no file name for a volume's file")]
    FileName(String),
    #[error("sub path {path:?} of the mount at {target}: {source}")]
    SubPath { path: String, target: String, source: io::Error },
    #[error("volume for {target}: {source}")]
    Io { target: String, source: io::Error },
}

pub(super) fn resolve(
    pod: &PodPaths,
    container: &ContainerPaths,
    wished: &[Mount],
) -> Result<Vec<BindMount>, VolumeError> {
    let mut binds = Vec::new();
    for (index, wish) in wished.iter().enumerate() {
        let mut source = source(pod, container, wish)?;
        if let Some(sub_path) = wish.sub_path.as_deref().filter(|path| !path.is_empty()) {
            let pin = container.attempt.join("subpaths").join(index.to_string());
            let failed = |error| VolumeError::SubPath {
                path: sub_path.to_owned(),
                target: wish.target.clone(),
                source: error,
            };
            pin_sub_path(&source, Path::new(sub_path), &pin).map_err(failed)?;
            source = pin;
        }
        binds.push(BindMount { source, target: wish.target.clone(), read_only: wish.read_only });
    }
    Ok(binds)
}

fn source(pod: &PodPaths, container: &ContainerPaths, wish: &Mount) -> Result<PathBuf, VolumeError> {
    let io = |source| VolumeError::Io { target: wish.target.clone(), source };
    match &wish.source {
        MountSource::HostPath { path, kind } => host_path(path, *kind),
        MountSource::EmptyDir { name, memory, size_bytes } => {
            let path = pod.volume(name);
            empty_dir(&path, *memory, *size_bytes).map_err(io)?;
            Ok(path)
        }
        MountSource::Files { name, files: contents, mode } => {
            let path = container.files(name);
            files::open_dir(&path).map_err(io)?;
            for (file, bytes) in contents {
                if file.is_empty() || file.contains(['/', '\0']) || file == "." || file == ".." {
                    return Err(VolumeError::FileName(file.clone()));
                }
                files::replace(&path.join(file), bytes, mode & 0o777).map_err(io)?;
            }
            Ok(path)
        }
    }
}

fn host_path(path: &Path, kind: HostPathKind) -> Result<PathBuf, VolumeError> {
    let error = |what| Err(VolumeError::HostPath { path: path.to_owned(), what });
    if !path.is_absolute() {
        return error("it must be absolute");
    }
    let found = fs::metadata(path).ok();
    let made = match (kind, &found) {
        (HostPathKind::DirectoryOrCreate, None) => files::open_dir(path).is_ok(),
        (HostPathKind::FileOrCreate, None) => fs::File::create_new(path).is_ok(),
        (_, None) => return error("it does not exist on this node"),
        _ => true,
    };
    if !made {
        return error("it cannot be created on this node");
    }
    let is_directory = found.as_ref().map(fs::Metadata::is_dir);
    match kind {
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate if is_directory == Some(false) => {
            error("it is not a directory")
        }
        HostPathKind::File | HostPathKind::FileOrCreate if is_directory == Some(true) => {
            error("it is a directory, not a file")
        }
        _ => Ok(path.to_owned()),
    }
}

fn empty_dir(path: &Path, memory: bool, size_bytes: Option<u64>) -> io::Result<()> {
    if !path.is_dir() {
        files::private_dir(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o777))?;
    }
    if memory && !is_mount_point(path)? {
        let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
        mounts::tmpfs(path, &format!("mode=777{size}"))?;
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().map(fs::metadata).transpose()?;
    let here = fs::metadata(path)?;
    Ok(parent.is_some_and(|parent| parent.dev() != here.dev()))
}

fn pin_sub_path(volume: &Path, sub_path: &Path, pin: &Path) -> io::Result<()> {
    if sub_path.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be relative and without '..'"));
    }
    let volume = mounts::handle(volume)?;
    let opened = match open_in_root(&volume, sub_path, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_dirs_in_root(&volume, sub_path)?,
        opened => opened?,
    };
    let is_directory = fs::metadata(format!("/proc/self/fd/{}", raw(&opened)))?.is_dir();
    if is_directory {
        files::private_dir(pin)?;
    } else {
        files::private_dir(pin.parent().unwrap_or(pin))?;
        fs::File::create(pin)?;
    }
    mounts::bind(&opened, pin)
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> std::os::fd::RawFd {
    fd.as_raw_fd()
}
