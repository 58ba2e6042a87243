//! The agent's side: pods and containers as calls, events and states.
//!
//! Does what it is told, in an order in which a crash at any point leaves something that the next call
//! (or the next agent) can finish or remove. Must not decide about restarts; must not touch a mount,
//! cgroup, process or file outside its own directories and cgroup parent.

mod adopt;
mod client;
mod container;
mod exec;
mod executable;
mod mounts;
mod namespaces;
mod pod;
mod prepare;
mod release;
mod sandbox;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::mpsc;

pub use client::ShimError;
pub use container::{StartError, StopError};
pub use exec::{ExecEnd, ExecError, ExecSession};
pub use prepare::PrepareError;
pub use sandbox::{Sandbox, SandboxError};
pub use volumes::VolumeError;

use crate::bundle::HostFacts;
use crate::cgroup::{CgroupError, Cgroups};
use crate::files;
use crate::ids::{ContainerName, Digest, PodUid};
use crate::image::{Collected, ImageStore, StoreError};
use crate::logs::{LogError, LogOptions, LogReceiver};
use crate::paths::Paths;
use crate::state::{ContainerStatus, Event, PodState};
use pod::Pod;

#[derive(Clone, Debug)]
pub struct Config {
    /// Durable, on a real file system (not an overlay): /var/lib/skein.
    pub data: PathBuf,
    /// Emptied by a reboot: /run/skein, a tmpfs.
    pub run: PathBuf,
    /// Absolute in every controller: /skein.
    pub cgroup_parent: String,
    pub oci_runtime: OciRuntime,
    /// What `shim` and `oci` are executed from; copied and sealed at `open`.
    pub executable: PathBuf,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    /// How long one call of the OCI runtime may take.
    pub operation_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: "/var/lib/skein".into(),
            run: "/run/skein".into(),
            cgroup_parent: "/skein".into(),
            oci_runtime: OciRuntime::BuiltIn,
            executable: "/proc/self/exe".into(),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            operation_limit: Duration::from_secs(30),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OciRuntime {
    BuiltIn,
    /// A program with crun's command line: crun, runc, runsc.
    Program(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another agent; stop that one first")]
    InUse { path: PathBuf },
    #[error("{path:?}: use an absolute path without ':', ',' or '\\'")]
    BadPath { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot make a sealed copy of {path}: {source}")]
    Executable { path: PathBuf, source: io::Error },
}

/// The node's containers. Dropping it leaves all of them running; the next `open` finds them.
pub struct Runtime {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub paths: Paths,
    pub images: Arc<ImageStore>,
    pub cgroups: Cgroups,
    pub host: HostFacts,
    pub executable: OwnedFd,
    pods: Mutex<BTreeMap<PodUid, Arc<Pod>>>,
    events: mpsc::UnboundedSender<Event>,
    _lock: Flock<File>,
}

pub type Events = mpsc::UnboundedReceiver<Event>;

impl Runtime {
    /// Takes the directories over, adopts living shims and cleans up behind dead ones. The states are in
    /// `pods()`; events begin with what was found dead.
    pub async fn open(config: Config) -> Result<(Self, Events), OpenError> {
        let (events, receiver) = mpsc::unbounded_channel();
        let opened = blocking(move || Inner::open(config, events)).await?;
        let inner = Arc::new(opened);
        adopt::adopt_all(&inner).await?;
        Ok((Self { inner }, receiver))
    }

    pub fn images(&self) -> &Arc<ImageStore> {
        &self.inner.images
    }

    /// Every pod known, living or not.
    pub async fn pods(&self) -> Vec<PodState> {
        self.inner.all().iter().map(|pod| pod.state()).collect()
    }

    pub async fn pod(&self, uid: &PodUid) -> Option<PodState> {
        self.inner.find(uid).map(|pod| pod.state())
    }

    /// Removes the cgroup that pods' cgroups are made in, once no pod is left (for a machine that leaves for good).
    pub fn remove_cgroup_parent(&self) {
        self.inner.cgroups.remove_parent();
    }

    /// A container's output. The receiver ends with the log, or with the container when following.
    pub fn logs(
        &self,
        uid: &PodUid,
        container: &ContainerName,
        options: LogOptions,
    ) -> Result<LogReceiver, LogError> {
        let pod = self.inner.find(uid).ok_or(LogError::UnknownPod)?;
        let latest = pod.container(container).ok_or(LogError::UnknownContainer)?.attempt;
        let attempt = match options.previous {
            false => latest,
            true => latest.checked_sub(1).ok_or(LogError::NoPrevious)?,
        };
        let path = pod.paths.log(container, attempt);
        let name = container.clone();
        let pod = Arc::downgrade(&pod);
        // Over once this attempt has ended, was replaced, or the pod is gone.
        let over = move || {
            let state = pod.upgrade().and_then(|pod| pod.container(&name));
            state.is_none_or(|state| {
                state.attempt != attempt || matches!(state.status, ContainerStatus::Exited(_))
            })
        };
        crate::logs::read(path, options, over)
    }

    /// Like the store's own, sparing the images of the containers here that may run again.
    pub async fn collect_garbage(
        &self,
        mut live: BTreeSet<Digest>,
        min_age: Duration,
    ) -> Result<Collected, StoreError> {
        let states = self.inner.all().into_iter().map(|pod| pod.state()).filter(|state| !state.released);
        let containers = states.flat_map(|state| state.containers);
        live.extend(containers.map(|container| container.image));
        let images = Arc::clone(&self.inner.images);
        blocking(move || images.collect_garbage(&live, min_age)).await
    }
}

impl Inner {
    fn open(config: Config, events: mpsc::UnboundedSender<Event>) -> Result<Self, OpenError> {
        for path in [&config.data, &config.run] {
            let text = path.to_string_lossy();
            if !path.is_absolute() || text.contains([':', ',', '\\']) {
                return Err(OpenError::BadPath { path: path.clone() });
            }
            files::private_dir(path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        }
        let paths = Paths { data: config.data.clone(), run: config.run.clone() };
        let lock = take_lock(&paths)?;
        let executable = executable::sealed_copy(&config.executable)
            .map_err(|source| OpenError::Executable { path: config.executable.clone(), source })?;
        let images = Arc::new(ImageStore::open(&config.data)?);
        let cgroups = Cgroups::detect(&config.cgroup_parent)?;
        let host = host_facts(&cgroups);
        let pods = Mutex::default();
        Ok(Self { config, paths, images, cgroups, host, executable, pods, events, _lock: lock })
    }

    pub fn find(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The pod under this uid, made by `make` if there is none.
    pub fn find_or_insert(&self, uid: &PodUid, make: impl FnOnce() -> Pod) -> Arc<Pod> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pods.entry(uid.clone()).or_insert_with(|| Arc::new(make())))
    }

    pub fn forget(&self, uid: &PodUid) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// The agent may have dropped its receiver on the way out; then nobody is left to tell.
    pub fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    pub fn limit_ms(&self) -> u64 {
        u64::try_from(self.config.operation_limit.as_millis()).unwrap_or(u64::MAX)
    }
}

fn take_lock(paths: &Paths) -> Result<Flock<File>, OpenError> {
    let path = paths.lock();
    let file = File::create(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| OpenError::InUse { path })
}

fn host_facts(cgroups: &Cgroups) -> HostFacts {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let nofile_hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    HostFacts {
        unified_cgroups: cgroups.unified,
        swap_accounting: cgroups.swap_accounting(),
        nofile_hard,
        capabilities: held_capabilities(),
        oom_score_adj_min: score.trim().parse().unwrap_or(0),
    }
}

fn held_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Runs file-system and kernel work off the async threads.
#[expect(clippy::disallowed_methods, reason = "the runtime's one place that does so; waited for here")]
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only a panic gets here: a broken invariant of ours, which is passed on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
