//! Giving back what a pod that has ended for good still holds; what people ask for later stays.
//!
//! Decides what stays: the pod's record, its logs, and how each container ended. A mark is written first,
//! so that an agent that starts later finishes the work and never takes the pod for one whose shim was lost.

use std::io;
use std::sync::Arc;

use super::pod::Pod;
use super::sandbox::{at, end_shim, let_go};
use super::{Inner, Runtime, SandboxError, adopt, blocking};
use crate::files;
use crate::ids::{ContainerName, PodUid};
use crate::paths::PodPaths;

/// The directories of a pod that outlive its release.
const KEPT: [&str; 2] = ["logs", "containers"];

impl Runtime {
    /// Ends the shim and removes processes, cgroups, mounts, namespaces, volumes and the containers' files.
    /// Logs and exits stay until `remove_pod`. Idempotent; stop the containers first if they are to end gracefully.
    pub async fn release_pod(&self, uid: &PodUid) -> Result<(), SandboxError> {
        let Some(pod) = self.inner.find(uid) else { return Ok(()) };
        let _changing = pod.changing.lock().await;
        release(&self.inner, &pod, uid).await
    }
}

/// The caller holds the pod's lock, or is the only one who knows the pod.
pub(super) async fn release(inner: &Arc<Inner>, pod: &Arc<Pod>, uid: &PodUid) -> Result<(), SandboxError> {
    files::replace(&pod.paths.released(), b"", 0o600).map_err(at(uid, "mark it as ended"))?;
    end_shim(inner, pod, uid).await?;
    adopt::settle_ends(inner, pod, uid);
    let (inner_too, uid_too) = (Arc::clone(inner), uid.clone());
    blocking(move || give_back(&inner_too, &uid_too)).await?;
    pod.set_released(true);
    Ok(())
}

fn give_back(inner: &Inner, uid: &PodUid) -> Result<(), SandboxError> {
    let paths = inner.paths.pod(uid);
    let_go(inner, uid)?;
    files::remove_tree(&paths.run).map_err(at(uid, "remove its files"))?;
    remove_directories(&paths.data, &KEPT).map_err(at(uid, "remove its files"))?;
    strip_containers(&paths).map_err(at(uid, "remove its containers' files"))
}

/// Leaves of each attempt only the record of its end.
fn strip_containers(paths: &PodPaths) -> io::Result<()> {
    for name in files::names(&paths.containers())? {
        let Ok(name) = ContainerName::new(name) else { continue };
        let container = paths.container(&name, 0).data;
        for attempt in files::names(&container)? {
            remove_directories(&container.join(attempt), &[])?;
        }
    }
    Ok(())
}

/// Removes the directories in `directory` but for those named; its files stay.
fn remove_directories(directory: &std::path::Path, but: &[&str]) -> io::Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for name in files::names(directory)? {
        let path = directory.join(&name);
        if !but.contains(&name.as_str()) && path.symlink_metadata()?.is_dir() {
            files::remove_tree(&path)?;
        }
    }
    Ok(())
}
