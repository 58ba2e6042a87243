//! A container's OCI bundle: from what the agent asks, the image says and this host allows, one
//! `config.json`.
//!
//! Decides everything a container gets: command, user, environment, namespaces, capabilities, limits,
//! what is masked. Pure but for reading the image's user database in its root. Must not take anything
//! from an image but its process configuration and its users.

mod capabilities;
mod process;
mod seccomp;
mod user;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use user::UserError;

pub(crate) use process::{exec_process, working_dir};

use crate::image::ImageConfig;
use crate::spec::{ContainerSpec, Resources};

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("neither the image nor the pod names a command; set `command` in the pod")]
    NoCommand,
    #[error(transparent)]
    User(#[from] UserError),
    #[error("capability {0:?} is unknown; write names such as NET_ADMIN, or ALL")]
    UnknownCapability(String),
    #[error("capability {0} cannot be given: the agent does not hold it on this host")]
    CapabilityNotHeld(&'static str),
    #[error("{what} contains a zero byte")]
    ZeroByte { what: &'static str },
    #[error("the mount target {0:?} is not an absolute path below /")]
    BadTarget(String),
}

/// What this host gives and limits; the same for all containers.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    pub unified_cgroups: bool,
    pub swap_accounting: bool,
    pub nofile_hard: u64,
    /// The bits of the capabilities we hold ourselves.
    pub capabilities: u64,
    /// Our own score: lower ones need CAP_SYS_RESOURCE, which we may lack.
    pub oom_score_adj_min: i32,
}

/// A resolved mount: an existing host path and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct BindMount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

pub(crate) struct BundleInput<'a> {
    pub spec: &'a ContainerSpec,
    pub image: &'a ImageConfig,
    pub host: &'a HostFacts,
    pub hostname: &'a str,
    pub rootfs: &'a Path,
    /// The mounted root, for the image's user database.
    pub root: &'a OwnedFd,
    pub cgroup: String,
    /// Namespaces to join by path: OCI type and file.
    pub namespaces: &'a [(&'static str, PathBuf)],
    pub binds: &'a [BindMount],
}

pub(crate) fn config(input: &BundleInput) -> Result<Value, BundleError> {
    let security = &input.spec.security;
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process::process(input)?,
        "root": { "path": input.rootfs, "readonly": security.read_only_root },
        "mounts": mounts(input)?,
        "linux": {
            "cgroupsPath": input.cgroup,
            "resources": resources(&input.spec.resources, input.host, security.privileged),
            "namespaces": namespaces(input),
        },
    });
    if !security.privileged {
        config["linux"]["maskedPaths"] = json!(MASKED);
        config["linux"]["readonlyPaths"] = json!(READ_ONLY);
        if !security.seccomp_unconfined {
            let capabilities = capabilities::capabilities(security, input.host)?;
            config["linux"]["seccomp"] = seccomp::profile(&capabilities);
        }
    }
    Ok(config)
}

const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn namespaces(input: &BundleInput) -> Value {
    let joined = input.namespaces.iter().map(|(kind, path)| json!({ "type": kind, "path": path }));
    let own = ["pid", "mount", "cgroup"].into_iter().map(|kind| json!({ "type": kind }));
    joined.chain(own).collect()
}

fn mounts(input: &BundleInput) -> Result<Value, BundleError> {
    let sys_mode = if input.spec.security.privileged { "rw" } else { "ro" };
    let system = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]),
    ];
    // On v1 this would be a dozen bind mounts at each start; programs there see no cgroup tree.
    if input.host.unified_cgroups {
        mounts.push(system("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    for bind in input.binds {
        if !is_target(&bind.target) {
            return Err(BundleError::BadTarget(bind.target.clone()));
        }
        let mode = if bind.read_only { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", "nosuid", "nodev", mode];
        mounts.push(json!({
            "destination": bind.target, "type": "bind", "source": bind.source, "options": options,
        }));
    }
    Ok(Value::Array(mounts))
}

/// An absolute path below `/` without `..`.
fn is_target(target: &str) -> bool {
    let path = Path::new(target);
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    path.is_absolute() && path.parent().is_some() && plain
}

fn resources(wanted: &Resources, host: &HostFacts, privileged: bool) -> Value {
    const PERIOD_MICROS: u64 = 100_000;
    let mut resources = json!({ "devices": [{ "allow": privileged, "access": "rwm" }] });
    if let Some(limit) = wanted.memory_limit_bytes {
        resources["memory"] = json!({ "limit": limit });
        if host.swap_accounting {
            resources["memory"]["swap"] = json!(limit);
        }
    }
    if wanted.cpu_shares.is_some() || wanted.cpu_quota_millis.is_some() {
        resources["cpu"] = json!({});
    }
    if let Some(shares) = wanted.cpu_shares {
        resources["cpu"]["shares"] = json!(shares.clamp(2, 262_144));
    }
    if let Some(millis) = wanted.cpu_quota_millis {
        // The kernel takes no quota below a millisecond.
        resources["cpu"]["quota"] = json!((millis * PERIOD_MICROS / 1000).max(1000));
        resources["cpu"]["period"] = json!(PERIOD_MICROS);
    }
    if let Some(limit) = wanted.pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

#[cfg(test)]
mod tests;
