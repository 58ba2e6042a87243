//! Starting, signalling, stopping and removing containers.
//!
//! Decides the steps of each and what is undone when one fails. A container that could not be run leaves
//! an exit record (127 not found, 126 not executable) like one that ran.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::client::ShimError;
use super::pod::Pod;
use super::prepare::{self, PrepareError, Record};
use super::{Inner, Runtime, blocking};
use crate::clock;
use crate::files;
use crate::ids::{ContainerName, PodUid};
use crate::oci;
use crate::shim::protocol::{Answer, Call, Create, Refusal};
use crate::spec::ContainerSpec;
use crate::state::{ContainerState, ContainerStatus, Exit, ExitReason, Started};

/// How long a killed container may take to be reaped before its cgroup is killed as a whole.
const KILL_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no such pod; create it first")]
    UnknownPod,
    #[error("the pod has no living shim; create its sandbox again")]
    NoSandbox,
    #[error("the container is running already")]
    Running,
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// Recorded as the attempt's exit; `pods()` shows it.
    #[error("{}", .0.message)]
    CannotRun(Box<Exit>),
    #[error(transparent)]
    Shim(#[from] ShimError),
}

#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error("no such container")]
    Unknown,
    #[error("the container is not running")]
    NotRunning,
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error(transparent)]
    Cleanup(#[from] PrepareError),
    #[error("cannot read the container's record: {0}")]
    Record(#[source] io::Error),
    #[error("the container does not end, even by SIGKILL; a process in it hangs in the kernel")]
    Unkillable,
}

impl Runtime {
    /// Starts one attempt. An earlier one that has ended is removed first, but for its log.
    pub async fn start_container(&self, uid: &PodUid, spec: ContainerSpec) -> Result<Started, StartError> {
        let pod = self.inner.find(uid).ok_or(StartError::UnknownPod)?;
        let _changing = pod.changing.lock().await;
        if pod.shim().is_none() {
            return Err(StartError::NoSandbox);
        }
        match pod.container(&spec.name).map(|state| state.status) {
            Some(ContainerStatus::Running(_)) => return Err(StartError::Running),
            Some(_) => discard(&self.inner, &pod, &spec.name).await?,
            None => {}
        }
        let (name, attempt, image) = (spec.name.clone(), spec.attempt, spec.image);
        let status = ContainerStatus::Creating;
        pod.put(ContainerState { name: name.clone(), attempt, image, status });
        match run(&self.inner, &pod, uid, &spec).await {
            Ok(started) => {
                pod.started(&name, started);
                Ok(started)
            }
            Err(error) => Err(give_up(&self.inner, &pod, &spec, error).await),
        }
    }

    pub async fn signal(&self, uid: &PodUid, name: &ContainerName, signal: i32) -> Result<(), StopError> {
        let pod = self.inner.find(uid).ok_or(StopError::Unknown)?;
        let shim = pod.shim().ok_or(StopError::NotRunning)?;
        match shim.call(Call::Signal { name: name.clone(), signal }).await {
            Ok(_) => Ok(()),
            Err(ShimError::Refused(Refusal::NotRunning)) => Err(StopError::NotRunning),
            Err(ShimError::Refused(Refusal::UnknownContainer)) => Err(StopError::Unknown),
            Err(error) => Err(error.into()),
        }
    }

    /// The stop signal, then SIGKILL after `grace`. Returns the container's end; at once if it has ended.
    pub async fn stop_container(
        &self,
        uid: &PodUid,
        name: &ContainerName,
        grace: Duration,
    ) -> Result<Exit, StopError> {
        self.stop_containers(uid, std::slice::from_ref(name), grace).await?;
        let pod = self.inner.find(uid).ok_or(StopError::Unknown)?;
        pod.end_of(name).await.ok_or(StopError::Unknown)
    }

    /// The stop signal to all, one `grace` for all, then SIGKILL to those that are left.
    pub async fn stop_containers(
        &self,
        uid: &PodUid,
        names: &[ContainerName],
        grace: Duration,
    ) -> Result<(), StopError> {
        let pod = self.inner.find(uid).ok_or(StopError::Unknown)?;
        let mut left = running(&pod, names)?;
        for (last, wait) in [(false, grace), (true, KILL_WAIT)] {
            if wait.is_zero() {
                continue;
            }
            for (name, stop_signal) in &left {
                let signal = if last { libc::SIGKILL } else { *stop_signal };
                match self.signal(uid, name, signal).await {
                    Ok(()) | Err(StopError::NotRunning) => {}
                    Err(error) => return Err(error),
                }
            }
            if tokio::time::timeout(wait, ends(&pod, &left)).await.is_ok() {
                return Ok(());
            }
            left = running(&pod, names)?;
        }
        // First processes that the kernel cannot end: take the rest of their cgroups, and wait once more.
        for (name, _) in &left {
            let (inner, uid, name) = (Arc::clone(&self.inner), uid.clone(), name.clone());
            blocking(move || inner.cgroups.kill_container(&uid, &name)).await.map_err(PrepareError::from)?;
        }
        tokio::time::timeout(KILL_WAIT, ends(&pod, &left)).await.map_err(|_| StopError::Unkillable)
    }

    /// Kills it if it runs and removes all but its logs. Idempotent.
    pub async fn remove_container(&self, uid: &PodUid, name: &ContainerName) -> Result<(), StopError> {
        let Some(pod) = self.inner.find(uid) else { return Ok(()) };
        match self.stop_container(uid, name, Duration::ZERO).await {
            Ok(_) | Err(StopError::Unknown | StopError::NotRunning) => {}
            Err(error) => return Err(error),
        }
        let _changing = pod.changing.lock().await;
        discard(&self.inner, &pod, name).await?;
        pod.remove(name);
        Ok(())
    }
}

/// Those of `names` that have not ended, with their stop signals.
fn running(pod: &Pod, names: &[ContainerName]) -> Result<Vec<(ContainerName, i32)>, StopError> {
    let mut found = Vec::new();
    for name in names {
        let state = pod.container(name).ok_or(StopError::Unknown)?;
        if !matches!(state.status, ContainerStatus::Exited(_)) {
            let record = pod.paths.container(name, state.attempt).record();
            let record = files::read_json::<Record>(&record).map_err(StopError::Record)?;
            found.push((name.clone(), record.map_or(libc::SIGTERM, |record| record.stop_signal)));
        }
    }
    Ok(found)
}

async fn ends(pod: &Pod, containers: &[(ContainerName, i32)]) {
    for (name, _) in containers {
        pod.end_of(name).await;
    }
}

async fn run(
    inner: &Arc<Inner>,
    pod: &Arc<Pod>,
    uid: &PodUid,
    spec: &ContainerSpec,
) -> Result<Started, StartError> {
    let (inner_too, pod_spec, spec_too) = (Arc::clone(inner), pod.spec(), spec.clone());
    blocking(move || prepare::prepare(&inner_too, &pod_spec, &spec_too)).await?;
    let shim = pod.shim().ok_or(StartError::NoSandbox)?;
    let paths = pod.paths.container(&spec.name, spec.attempt);
    let create = Create {
        name: spec.name.clone(),
        attempt: spec.attempt,
        exit_file: paths.exit(),
        bundle: paths.bundle,
        log: pod.paths.log(&spec.name, spec.attempt),
        log_max_bytes: inner.config.log_max_bytes,
        log_max_files: inner.config.log_max_files,
        oom_file: inner.cgroups.oom_file(uid, &spec.name),
        limit_ms: inner.limit_ms(),
    };
    shim.call(Call::Create(create)).await?;
    let start = Call::Start { name: spec.name.clone(), limit_ms: inner.limit_ms() };
    match shim.call(start).await? {
        Answer::Started(started) => Ok(started),
        _ => Err(ShimError::Gone.into()),
    }
}

/// Cleans up behind a failed start. A command that cannot be run is an end like any other.
async fn give_up(inner: &Arc<Inner>, pod: &Arc<Pod>, spec: &ContainerSpec, error: StartError) -> StartError {
    let exit = match &error {
        StartError::Shim(ShimError::Refused(Refusal::Runtime { code, message })) => {
            Exit::cannot_run(run_code(*code, message), message.clone(), clock::wall())
        }
        _ => {
            if let Err(cleanup) = discard(inner, pod, &spec.name).await {
                tracing::warn!(container = %spec.name, error = %cleanup, "leftovers of a failed start");
            }
            pod.remove(&spec.name);
            return error;
        }
    };
    debug_assert_eq!(exit.reason, ExitReason::CannotRun);
    let file = pod.paths.container(&spec.name, spec.attempt).exit();
    if let Err(error) = files::write_json(&file, &exit) {
        tracing::warn!(container = %spec.name, %error, "exit not recorded");
    }
    pod.exited(&spec.name, spec.attempt, &exit);
    StartError::CannotRun(Box::new(exit))
}

/// Our own runtime says it by its exit code, crun and runc only in words.
pub(super) fn run_code(code: i32, message: &str) -> i32 {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if code == i32::from(oci::NOT_FOUND)
        || says(&["not found in $PATH", "executable file", "o such file or directory"])
    {
        127
    } else if code == i32::from(oci::NOT_EXECUTABLE) || says(&["ermission denied"]) {
        126
    } else {
        128
    }
}

/// Removes an attempt that does not run: from its shim, then from disk, mount table and cgroups.
async fn discard(inner: &Arc<Inner>, pod: &Arc<Pod>, name: &ContainerName) -> Result<(), PrepareError> {
    if let Some(shim) = pod.shim() {
        let call = Call::Delete { name: name.clone(), limit_ms: inner.limit_ms() };
        match shim.call(call).await {
            Ok(_) | Err(ShimError::Refused(Refusal::UnknownContainer) | ShimError::Gone) => {}
            Err(error) => tracing::warn!(container = %name, %error, "delete by the OCI runtime failed"),
        }
    }
    let (inner, spec, name) = (Arc::clone(inner), pod.spec(), name.clone());
    blocking(move || prepare::discard(&inner, &spec, &name)).await
}
