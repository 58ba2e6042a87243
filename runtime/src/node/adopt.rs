//! Finding pods again, and what follows when a shim is gone.
//!
//! Decides from records, exit files and shims what each container's state is. Must report a lost shim
//! only when everything of its pod is dead.

use std::io;
use std::sync::{Arc, Weak};

use super::client::{News, Shim, ShimError};
use super::pod::Pod;
use super::prepare::Record;
use super::{Inner, OpenError, blocking, release, sandbox};
use crate::clock;
use crate::files;
use crate::ids::{ContainerName, PodUid};
use crate::paths::PodPaths;
use crate::shim::protocol::{Answer, Call, ContainerReport};
use crate::spec::PodSpec;
use crate::state::{ContainerState, ContainerStatus, Event, Exit, Started};

/// Brings every pod of an earlier agent back into the list. One that cannot be cleaned up is left for the
/// next start; it must not keep the others from being adopted.
pub(super) async fn adopt_all(inner: &Arc<Inner>) -> Result<(), OpenError> {
    let names = |path: std::path::PathBuf| {
        files::names(&path).map_err(|source| OpenError::Io { path: path.clone(), source })
    };
    let mut found = names(inner.paths.pods())?;
    found.extend(names(inner.paths.run_pods())?);
    found.sort();
    found.dedup();
    for uid in found.iter().filter_map(|name| PodUid::new(name.as_str()).ok()) {
        adopt(inner, &uid).await;
    }
    Ok(())
}

async fn adopt(inner: &Arc<Inner>, uid: &PodUid) {
    let paths = inner.paths.pod(uid);
    let Some(spec) = files::read_json::<PodSpec>(&paths.spec()).unwrap_or_default() else {
        return clear_unknown(inner, uid, &paths).await;
    };
    let pod = inner.find_or_insert(uid, || Pod::new(spec, paths.clone()));
    if let Err(error) = read_records(&pod, &paths) {
        tracing::error!(%uid, %error, "a pod's records cannot be read");
    }
    let connected = connect(inner, &pod, uid).is_ok();
    if paths.released().exists() {
        // Cut off at any point, or whole: the same work again.
        if let Err(error) = release::release(inner, &pod, uid).await {
            tracing::error!(%uid, %error, "a pod that has ended cannot give back what it holds");
        }
        return;
    }
    if connected && let Ok(reports) = report(&pod).await {
        return apply(&pod, reports);
    }
    lost(inner, &pod, uid).await;
}

/// Removal was cut off after the record, or creation before it.
async fn clear_unknown(inner: &Arc<Inner>, uid: &PodUid, paths: &PodPaths) {
    if let Ok(shim) = Shim::connect(&paths.run, |_| {}) {
        shim.kill().await;
    }
    let (inner, uid_too) = (Arc::clone(inner), uid.clone());
    if let Err(error) = blocking(move || sandbox::clear(&inner, &uid_too)).await {
        tracing::error!(%uid, %error, "what is left of a pod cannot be removed");
    }
}

/// The latest attempt of each container, as the files have it.
fn read_records(pod: &Pod, paths: &PodPaths) -> io::Result<()> {
    for name in files::names(&paths.containers())? {
        let Ok(name) = ContainerName::new(name) else { continue };
        let record = files::read_json::<Record>(&paths.container(&name, 0).record()).unwrap_or_default();
        let Some(Record { attempt, image, .. }) = record else { continue };
        let exit = files::read_json::<Exit>(&paths.container(&name, attempt).exit()).unwrap_or_default();
        let status = exit.map_or(ContainerStatus::Creating, ContainerStatus::Exited);
        pod.put(ContainerState { name, attempt, image, status });
    }
    Ok(())
}

async fn report(pod: &Pod) -> Result<Vec<ContainerReport>, ShimError> {
    match pod.shim().ok_or(ShimError::Gone)?.call(Call::Status).await? {
        Answer::Containers(reports) => Ok(reports),
        _ => Err(ShimError::Gone),
    }
}

fn apply(pod: &Pod, reports: Vec<ContainerReport>) {
    for ContainerReport { name, attempt, started, exit } in reports {
        let Some(mut state) = pod.container(&name).filter(|state| state.attempt == attempt) else { continue };
        state.status = match (exit, started) {
            (Some(exit), _) => ContainerStatus::Exited(exit),
            (None, Some(started)) => ContainerStatus::Running(started),
            (None, None) => ContainerStatus::Creating,
        };
        pod.put(state);
    }
}

/// Connects the pod to the shim that listens in its run directory.
pub(super) fn connect(inner: &Arc<Inner>, pod: &Arc<Pod>, uid: &PodUid) -> io::Result<()> {
    let (weak, uid) = (Arc::downgrade(inner), uid.clone());
    let shim = Shim::connect(&pod.paths.run, move |news| hear(&weak, &uid, news))?;
    pod.set_shim(Some(Arc::new(shim)));
    Ok(())
}

fn hear(inner: &Weak<Inner>, uid: &PodUid, news: News) {
    let Some(inner) = inner.upgrade() else { return };
    let Some(pod) = inner.find(uid) else { return };
    match news {
        News::Exited { name, attempt, exit } => {
            if pod.exited(&name, attempt, &exit) {
                inner.tell(Event::ContainerExited { uid: uid.clone(), container: name, attempt, exit });
            }
        }
        News::Disconnected | News::Died => recover(inner, pod, uid.clone()),
    }
}

#[expect(clippy::disallowed_methods, reason = "ends by itself; the shim's own reader cannot do this work")]
fn recover(inner: Arc<Inner>, pod: Arc<Pod>, uid: PodUid) {
    tokio::spawn(async move {
        let _changing = pod.changing.lock().await;
        // Ended on purpose meanwhile, by a removal that held the lock.
        if pod.shim().is_none() {
            return;
        }
        if connect(&inner, &pod, &uid).is_ok()
            && let Ok(reports) = report(&pod).await
        {
            tell_ends(&inner, &pod, &uid, reports);
            return;
        }
        lost(&inner, &pod, &uid).await;
    });
}

/// After a broken connection: exits that happened meanwhile.
fn tell_ends(inner: &Inner, pod: &Pod, uid: &PodUid, reports: Vec<ContainerReport>) {
    for ContainerReport { name, attempt, exit, .. } in reports {
        if let Some(exit) = exit.filter(|exit| pod.exited(&name, attempt, exit)) {
            inner.tell(Event::ContainerExited { uid: uid.clone(), container: name, attempt, exit });
        }
    }
}

/// Without its shim nobody holds the containers' output and exit codes: end them and say so.
async fn lost(inner: &Arc<Inner>, pod: &Arc<Pod>, uid: &PodUid) {
    if let Some(shim) = pod.shim() {
        // It may live and not answer.
        shim.kill().await;
    }
    pod.set_shim(None);
    let (inner_too, uid_too) = (Arc::clone(inner), uid.clone());
    let killed = blocking(move || {
        inner_too.cgroups.kill_pod(&uid_too)?;
        inner_too.cgroups.remove_pod(&uid_too)
    });
    if let Err(error) = killed.await {
        tracing::error!(%uid, %error, "a pod without its shim could not be ended");
    }
    // The OCI runtime's records of containers that are dead now.
    let _ = files::remove_tree(&pod.paths.oci_root());
    let _ = files::private_dir(&pod.paths.oci_root());
    settle_ends(inner, pod, uid);
    inner.tell(Event::ShimLost { uid: uid.clone() });
}

/// Everything of the pod is dead: whoever has no end on record was lost with the shim.
pub(super) fn settle_ends(inner: &Inner, pod: &Pod, uid: &PodUid) {
    for ContainerState { name, attempt, status, .. } in pod.state().containers {
        let started_at = match status {
            ContainerStatus::Exited(_) => continue,
            ContainerStatus::Running(Started { started_at, .. }) => Some(started_at),
            ContainerStatus::Creating => None,
        };
        let file = pod.paths.container(&name, attempt).exit();
        // It may have ended before its shim did.
        let known = files::read_json::<Exit>(&file).unwrap_or_default();
        let exit = known.unwrap_or_else(|| Exit::shim_lost(started_at, clock::wall()));
        if let Err(error) = files::write_json(&file, &exit) {
            tracing::warn!(%uid, container = %name, %error, "exit not recorded");
        }
        if pod.exited(&name, attempt, &exit) {
            inner.tell(Event::ContainerExited { uid: uid.clone(), container: name, attempt, exit });
        }
    }
}
