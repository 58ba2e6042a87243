//! Making a machine a stranger again: `skein node reset`.
//!
//! Decides what is ours: the pods of the runtime, the fabric's kernel state, the data and run directories. The agent must be stopped.

use netfabric::{Fabric, FabricConfig};
use runtime::Runtime;

use crate::config::Config;
use crate::identity;

/// Something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("{0}; stop the agent first")]
    Runtime(#[from] runtime::OpenError),
    #[error("pod {uid} could not be removed: {why}")]
    Pod { uid: String, why: String },
    #[error("the network could not be removed: {0}")]
    Fabric(#[from] netfabric::ResetError),
    #[error("{}: {cause}", path.display())]
    File { path: std::path::PathBuf, cause: std::io::Error },
}

/// Removes every trace of skein from this machine.
pub async fn reset(config: &Config) -> Result<(), ResetError> {
    let settings = runtime::Config {
        data: config.data.clone(),
        run: config.run.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        ..runtime::Config::default()
    };
    let (runtime, _events) = Runtime::open(settings).await?;
    for pod in runtime.pods().await {
        let uid = pod.spec.uid;
        runtime
            .remove_pod(&uid)
            .await
            .map_err(|error| ResetError::Pod { uid: uid.as_str().into(), why: error.to_string() })?;
    }
    runtime.remove_cgroup_parent();
    drop(runtime);
    Fabric::reset(FabricConfig::default()).await?;
    // What is below stays if it is not ours: only the directories that the agent makes go.
    let directories = [
        "member",
        "member.next",
        identity::JOINING,
        "store",
        "blobs",
        "layers",
        "staging",
        "pods",
        "uploads",
    ];
    for directory in directories {
        remove(&config.data.join(directory))?;
    }
    remove_kept_stores(&config.data)?;
    remove(&config.run)?;
    Ok(())
}

/// Stores of earlier cluster epochs, and what is left of making one. Backups stay: they may be the only copy.
fn remove_kept_stores(data: &std::path::Path) -> Result<(), ResetError> {
    for entry in std::fs::read_dir(data).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("store.")) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &std::path::Path) -> Result<(), ResetError> {
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(ResetError::File { path: path.into(), cause })
        }
        _ => Ok(()),
    }
}
