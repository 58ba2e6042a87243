//! Making and removing a pod's sandbox: directories, /etc files, pinned namespaces, shim.
//!
//! Decides the order: everything a shim needs before the shim, the record of the pod first of all, so
//! that a crash leaves nothing unknown. Both operations may be repeated at any point.

use std::fmt::Write;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::adopt;
use super::client::ShimError;
use super::pod::Pod;
use super::{Inner, OciRuntime, Runtime, blocking, executable, mounts, namespaces};
use crate::cgroup::CgroupError;
use crate::files;
use crate::ids::PodUid;
use crate::shim::protocol::Call;
use crate::spec::PodSpec;

/// How long a shim may take to end once its containers are dead.
const QUIT_ROUNDS: u32 = 100;
const QUIT_PAUSE: Duration = Duration::from_millis(10);
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// A pod's shared surroundings, ready for containers and for the network fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Bind-mounted network namespace; `None` on the host's network.
    pub network_namespace: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("pod {uid}: {action}: {source}")]
    Io { uid: PodUid, action: &'static str, source: io::Error },
    #[error("pod {uid}: its shim did not start: {message}")]
    Shim { uid: PodUid, message: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Runtime {
    /// Idempotent. After ShimLost or a reboot it gives the pod a new shim; volumes and logs are kept.
    pub async fn create_pod(&self, spec: PodSpec) -> Result<Sandbox, SandboxError> {
        let inner = &self.inner;
        let paths = inner.paths.pod(&spec.uid);
        let pod = inner.find_or_insert(&spec.uid, || Pod::new(spec.clone(), paths));
        let _changing = pod.changing.lock().await;
        if pod.shim().is_none() {
            let (inner_too, spec_too) = (Arc::clone(inner), spec.clone());
            blocking(move || make(&inner_too, &spec_too)).await?;
            pod.set_released(false);
            adopt::connect(inner, &pod, &spec.uid).map_err(at(&spec.uid, "connect to its shim"))?;
        }
        let network = inner.paths.namespace("net", &spec.uid);
        Ok(Sandbox { network_namespace: (!spec.host_network).then_some(network) })
    }

    /// Kills what runs and removes every trace: processes, cgroups, mounts, namespaces, files, logs.
    /// Idempotent; stop the containers first if they are to end gracefully.
    pub async fn remove_pod(&self, uid: &PodUid) -> Result<(), SandboxError> {
        let inner = &self.inner;
        let pod = inner.find(uid);
        let _changing = match &pod {
            Some(pod) => Some(pod.changing.lock().await),
            None => None,
        };
        if let Some(pod) = &pod {
            end_shim(inner, pod, uid).await?;
        }
        let (inner_too, uid_too) = (Arc::clone(inner), uid.clone());
        blocking(move || clear(&inner_too, &uid_too)).await?;
        inner.forget(uid);
        Ok(())
    }
}

pub(super) fn at(uid: &PodUid, action: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    let uid = uid.clone();
    move |source| SandboxError::Io { uid, action, source }
}

fn make(inner: &Inner, spec: &PodSpec) -> Result<(), SandboxError> {
    let uid = &spec.uid;
    write_files(inner, spec).map_err(at(uid, "write its files"))?;
    namespaces::pin(&inner.paths, spec).map_err(at(uid, "make its namespaces"))?;
    let shm = inner.paths.pod(uid).shm();
    // Again after a lost shim: what the old containers left in it goes with them.
    mounts::unmount(&shm)
        .and_then(|()| mounts::tmpfs(&shm, SHM_OPTIONS))
        .map_err(at(uid, "mount /dev/shm"))?;
    spawn_shim(inner, uid)
}

fn write_files(inner: &Inner, spec: &PodSpec) -> io::Result<()> {
    let paths = inner.paths.pod(&spec.uid);
    for directory in [&paths.data, &paths.run, &paths.oci_root(), &paths.shm()] {
        files::private_dir(directory)?;
    }
    files::write_json(&paths.spec(), spec)?;
    files::remove_file(&paths.released())?;
    files::open_dir(&paths.data.join("etc"))?;
    files::replace(&paths.etc("hostname"), format!("{}\n", spec.hostname).as_bytes(), 0o644)?;
    files::replace(&paths.etc("hosts"), hosts(spec).as_bytes(), 0o644)?;
    files::replace(&paths.etc("resolv.conf"), resolv_conf(spec).as_bytes(), 0o644)
}

fn hosts(spec: &PodSpec) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (address, names) in &spec.hosts {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    text
}

fn resolv_conf(spec: &PodSpec) -> String {
    let dns = &spec.dns;
    if dns.servers.is_empty() {
        return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let mut text = String::new();
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// The command returns once the socket listens; the shim goes on as an orphan.
fn spawn_shim(inner: &Inner, uid: &PodUid) -> Result<(), SandboxError> {
    let mut command = Command::new(executable::path(&inner.executable));
    command.arg0("skein").arg("shim").arg("--dir").arg(inner.paths.pod(uid).run).env_clear();
    if let OciRuntime::Program(program) = &inner.config.oci_runtime {
        command.arg("--oci-runtime").arg(program);
    }
    let output = command.stdin(Stdio::null()).output().map_err(at(uid, "start its shim"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SandboxError::Shim { uid: uid.clone(), message })
}

/// Kills the containers, then lets the shim reap them and end, or ends it.
pub(super) async fn end_shim(inner: &Arc<Inner>, pod: &Arc<Pod>, uid: &PodUid) -> Result<(), SandboxError> {
    let Some(shim) = pod.shim() else { return Ok(()) };
    if matches!(inner.config.oci_runtime, OciRuntime::Program(_)) {
        for container in pod.state().containers {
            let call = Call::Delete { name: container.name, limit_ms: inner.limit_ms() };
            // What it leaves is removed below.
            let _ = shim.call(call).await;
        }
    }
    let (inner_too, uid_too) = (Arc::clone(inner), uid.clone());
    blocking(move || inner_too.cgroups.kill_pod(&uid_too)).await?;
    for _ in 0..QUIT_ROUNDS {
        // Refused as long as it has not reaped what was killed.
        if !matches!(shim.call(Call::Quit).await, Err(ShimError::Refused(_))) {
            break;
        }
        tokio::time::sleep(QUIT_PAUSE).await;
    }
    // Told to end, it does so at once; if it did not listen, it is killed.
    let _ = tokio::time::timeout(Duration::from_secs(1), shim.ended()).await;
    shim.kill().await;
    pod.set_shim(None);
    Ok(())
}

/// Gives the kernel back what a pod without a shim holds: processes, cgroups, namespaces, mounts. Blocks.
pub(super) fn let_go(inner: &Inner, uid: &PodUid) -> Result<(), SandboxError> {
    let paths = inner.paths.pod(uid);
    inner.cgroups.kill_pod(uid)?;
    inner.cgroups.remove_pod(uid)?;
    namespaces::unpin(&inner.paths, uid).map_err(at(uid, "release its namespaces"))?;
    for directory in [&paths.data, &paths.run] {
        mounts::unmount_below(directory).map_err(at(uid, "unmount"))?;
    }
    Ok(())
}

/// Removes what a pod without a shim has left. Blocks.
pub(super) fn clear(inner: &Inner, uid: &PodUid) -> Result<(), SandboxError> {
    let paths = inner.paths.pod(uid);
    let_go(inner, uid)?;
    // The record last: until then the next agent knows that something is left.
    for name in files::names(&paths.data).map_err(at(uid, "list its files"))? {
        let path = paths.data.join(name);
        if path != paths.spec() && path.is_dir() {
            files::remove_tree(&path).map_err(at(uid, "remove its files"))?;
        }
    }
    files::remove_tree(&paths.run).map_err(at(uid, "remove its files"))?;
    files::remove_tree(&paths.data).map_err(at(uid, "remove its files"))
}
