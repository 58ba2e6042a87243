//! Where everything lies. The one list of file names under the data and run directories.
//!
//! Decides names only; touches no file. The page docs/formats/runtime.md describes the contents.

use std::path::{Path, PathBuf};

use crate::ids::{ContainerName, PodUid, VolumeName};

#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub data: PathBuf,
    pub run: PathBuf,
}

impl Paths {
    pub fn lock(&self) -> PathBuf {
        self.run.join("runtime.lock")
    }

    pub fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }

    pub fn run_pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// Pinned namespaces: `run/netns/UID`, `run/utsns/UID`, `run/ipcns/UID`.
    pub fn namespace(&self, kind: &str, uid: &PodUid) -> PathBuf {
        self.run.join(format!("{kind}ns")).join(uid.as_str())
    }

    pub fn pod(&self, uid: &PodUid) -> PodPaths {
        PodPaths { data: self.pods().join(uid.as_str()), run: self.run_pods().join(uid.as_str()) }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct PodPaths {
    pub data: PathBuf,
    pub run: PathBuf,
}

impl PodPaths {
    pub fn spec(&self) -> PathBuf {
        self.data.join("pod.json")
    }

    /// There once the pod has ended for good and began to give back what it held.
    pub fn released(&self) -> PathBuf {
        self.data.join("released")
    }

    pub fn etc(&self, file: &str) -> PathBuf {
        self.data.join("etc").join(file)
    }

    pub fn volume(&self, name: &VolumeName) -> PathBuf {
        self.data.join("volumes").join(name.as_str())
    }

    pub fn logs(&self, container: &ContainerName) -> PathBuf {
        self.data.join("logs").join(container.as_str())
    }

    pub fn log(&self, container: &ContainerName, attempt: u32) -> PathBuf {
        self.logs(container).join(format!("{attempt}.log"))
    }

    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    pub fn container(&self, name: &ContainerName, attempt: u32) -> ContainerPaths {
        let data = self.containers().join(name.as_str());
        ContainerPaths {
            attempt: data.join(attempt.to_string()),
            data,
            bundle: self.run.join("bundles").join(name.as_str()),
        }
    }

    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    pub fn oci_root(&self) -> PathBuf {
        oci_root(&self.run)
    }
}

/// The `--root` of the OCI runtime, as the shim knows it.
pub(crate) fn oci_root(run: &Path) -> PathBuf {
    run.join("oci")
}

pub(crate) const SHIM_SOCKET: &str = "shim.sock";

#[derive(Clone, Debug)]
pub(crate) struct ContainerPaths {
    pub data: PathBuf,
    pub attempt: PathBuf,
    pub bundle: PathBuf,
}

impl ContainerPaths {
    pub fn record(&self) -> PathBuf {
        self.data.join("container.json")
    }

    pub fn exit(&self) -> PathBuf {
        self.attempt.join("exit.json")
    }

    pub fn upper(&self) -> PathBuf {
        self.attempt.join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.attempt.join("work")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.attempt.join("rootfs")
    }

    pub fn files(&self, volume: &VolumeName) -> PathBuf {
        self.attempt.join("files").join(volume.as_str())
    }
}
