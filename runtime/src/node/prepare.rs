//! Everything on disk and in the mount table that a container needs before its runtime is called.
//!
//! Decides the order of steps, so that the record of an attempt is there before anything it must clean
//! up. Blocks; called off the async threads.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::volumes::{self, VolumeError};
use super::{Inner, mounts, namespaces};
use crate::bundle::{self, BindMount, BundleError, BundleInput};
use crate::cgroup::CgroupError;
use crate::files;
use crate::ids::{ContainerName, Digest};
use crate::image::{ImageConfig, UnpackError, make_dirs_in_root, real_directory};
use crate::paths::{ContainerPaths, PodPaths};
use crate::spec::{ContainerSpec, PodSpec};

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
    #[error("the image's /{name} is not a directory but a symlink or file; such images are refused")]
    UnsafeRoot { name: &'static str },
    #[error("working directory {path:?} cannot be made in the image: {source}")]
    WorkingDir { path: String, source: io::Error },
}

/// What a container's directory says about its latest attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub attempt: u32,
    pub image: Digest,
    pub stop_signal: i32,
}

pub(super) fn prepare(inner: &Inner, pod: &PodSpec, spec: &ContainerSpec) -> Result<(), PrepareError> {
    let pod_paths = inner.paths.pod(&pod.uid);
    let paths = pod_paths.container(&spec.name, spec.attempt);
    let (layers, image) = inner.images.unpacked(&spec.image)?;
    make_directories(&pod_paths, &paths, spec).map_err(at("make the container's directories"))?;
    let stop_signal = spec.stop_signal.or(image.stop_signal).unwrap_or(libc::SIGTERM);
    let record = Record { attempt: spec.attempt, image: spec.image, stop_signal };
    files::write_json(&paths.record(), &record).map_err(at("record the container"))?;
    let root = mount_root(&layers, &paths, spec, &image)?;
    let mut binds = pod_binds(&pod_paths, spec);
    binds.extend(volumes::resolve(&pod_paths, &paths, &spec.mounts)?);
    let namespaces = namespaces::of_pod(&inner.paths, pod);
    let config = bundle::config(&BundleInput {
        spec,
        image: &image,
        host: &inner.host,
        hostname: &pod.hostname,
        rootfs: &paths.rootfs(),
        root: &root,
        cgroup: inner.cgroups.container(&pod.uid, &spec.name),
        namespaces: &namespaces,
        binds: &binds,
    })?;
    files::write_json(&paths.bundle.join("config.json"), &config).map_err(at("write the bundle"))
}

fn at(action: &'static str) -> impl FnOnce(io::Error) -> PrepareError {
    move |source| PrepareError::Io { action, source }
}

fn make_directories(pod: &PodPaths, paths: &ContainerPaths, spec: &ContainerSpec) -> io::Result<()> {
    for directory in [&paths.attempt, &paths.bundle, &pod.logs(&spec.name)] {
        files::private_dir(directory)?;
    }
    for directory in [paths.upper(), paths.work(), paths.rootfs()] {
        files::open_dir(&directory)?;
    }
    // The logs of this attempt and the one before are kept.
    for name in files::names(&pod.logs(&spec.name))? {
        let attempt = name.split('.').next().and_then(|number| number.parse::<u32>().ok());
        if attempt.is_some_and(|attempt| attempt + 1 < spec.attempt) {
            files::remove_file(&pod.logs(&spec.name).join(name))?;
        }
    }
    Ok(())
}

/// Mounts the root and makes sure that what the runtime will do in it by path cannot be led outside.
fn mount_root(
    layers: &[std::path::PathBuf],
    paths: &ContainerPaths,
    spec: &ContainerSpec,
    image: &ImageConfig,
) -> Result<OwnedFd, PrepareError> {
    let empty = [paths.attempt.join("empty")];
    let layers = if layers.is_empty() {
        files::open_dir(&empty[0]).map_err(at("make the container's directories"))?;
        &empty
    } else {
        layers
    };
    mounts::overlay(layers, paths).map_err(at("mount the container's root (overlayfs)"))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let root = nix::fcntl::open(&paths.rootfs(), flags, nix::sys::stat::Mode::empty());
    let root = root.map_err(|error| at("open the container's root")(error.into()))?;
    for name in ["dev", "proc", "sys", "etc"] {
        real_directory(&root, name).map_err(|_| PrepareError::UnsafeRoot { name })?;
    }
    let path = bundle::working_dir(spec, image);
    make_dirs_in_root(&root, Path::new(&path))
        .map_err(|source| PrepareError::WorkingDir { path: path.clone(), source })?;
    Ok(root)
}

/// The pod's own files and shared memory, unless the container mounts something there itself.
fn pod_binds(pod: &PodPaths, spec: &ContainerSpec) -> Vec<BindMount> {
    let etc = ["hosts", "hostname", "resolv.conf"].map(|file| (pod.etc(file), format!("/etc/{file}")));
    let all = etc.into_iter().chain([(pod.shm(), "/dev/shm".to_owned())]);
    let wanted = all.filter(|(_, target)| !spec.mounts.iter().any(|mount| mount.target == *target));
    wanted.map(|(source, target)| BindMount { source, target, read_only: false }).collect()
}

/// Removes an attempt whose processes are dead. The logs stay. Blocks; absence is success.
pub(super) fn discard(inner: &Inner, pod: &PodSpec, name: &ContainerName) -> Result<(), PrepareError> {
    let paths = inner.paths.pod(&pod.uid).container(name, 0);
    inner.cgroups.kill_container(&pod.uid, name)?;
    inner.cgroups.remove_container(&pod.uid, name)?;
    mounts::unmount_below(&paths.data).map_err(at("unmount the container's root"))?;
    files::remove_tree(&paths.bundle).map_err(at("remove the bundle"))?;
    files::remove_tree(&paths.data).map_err(at("remove the container's files"))
}
