//! What the agent asks for: plain descriptions of pods, containers and extra processes.
//!
//! Decides nothing; defaults here are the safe ones. Knows nothing of Kubernetes' documents: the agent
//! maps them to these.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::{ContainerName, Digest, PodUid, VolumeName};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    pub uid: PodUid,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    pub dns: DnsConfig,
    /// Further lines of /etc/hosts; the pod's own address is among them if the agent knows it.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// The host's network instead of a namespace of its own.
    pub host_network: bool,
    /// Ports of the host that lead to the pod. Kept for whoever sets up its network; the runtime opens none.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
}

/// A port of the host that leads to one of the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: PortProtocol,
    pub host_port: u16,
    pub container_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    Tcp,
    Udp,
}

impl PodSpec {
    pub fn new(uid: PodUid, namespace: &str, name: &str) -> Self {
        Self {
            uid,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            hostname: name.to_owned(),
            dns: DnsConfig::default(),
            hosts: Vec::new(),
            host_network: false,
            port_mappings: Vec::new(),
        }
    }
}

/// The pod's /etc/resolv.conf. Without servers the host's file is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: ContainerName,
    /// Counts up with each restart; names the log file.
    pub attempt: u32,
    /// Digest of an image manifest that is in the store with all its blobs.
    pub image: Digest,
    /// Replaces the image's entrypoint *and* its arguments, as Kubernetes' `command` does.
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments only.
    pub args: Option<Vec<String>>,
    /// Merged over the image's environment; the last of equal names wins.
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    pub resources: Resources,
    pub security: Security,
    /// Signal number for a graceful stop; else the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
}

impl ContainerSpec {
    pub fn new(name: ContainerName, image: Digest) -> Self {
        Self {
            name,
            attempt: 0,
            image,
            command: None,
            args: None,
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            resources: Resources::default(),
            security: Security::default(),
            stop_signal: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: MountSource,
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
    /// A relative path below the source; resolved inside it, symlinks cannot leave it.
    pub sub_path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    HostPath {
        path: PathBuf,
        kind: HostPathKind,
    },
    /// Shared by the pod's containers under its name, kept across restarts, deleted with the pod.
    EmptyDir {
        name: VolumeName,
        memory: bool,
        size_bytes: Option<u64>,
    },
    /// A directory of these files, written anew at each start (ConfigMap, Secret).
    Files {
        name: VolumeName,
        files: BTreeMap<String, Vec<u8>>,
        mode: u32,
    },
}

/// What must be, or is made, at a host path. The names are Kubernetes' `hostPath.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathKind {
    Any,
    Directory,
    DirectoryOrCreate,
    File,
    FileOrCreate,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative weight, 1024 is one CPU's (cgroup v1 `cpu.shares`).
    pub cpu_shares: Option<u64>,
    /// Hard limit in thousandths of a CPU.
    pub cpu_quota_millis: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub pids_limit: Option<u64>,
    /// Clamped to what this process may give.
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// `uid`, `name`, `uid:gid` or `name:group`, names from the image's own files; else the image's user.
    pub user: Option<String>,
    pub group: Option<u32>,
    pub supplementary_groups: Vec<u32>,
    /// All capabilities, no seccomp filter, nothing masked. The host's devices are still not given.
    pub privileged: bool,
    /// Names without `CAP_`, upper case; `ALL` adds or drops all.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    /// No seccomp filter (Kubernetes' `Unconfined`).
    pub seccomp_unconfined: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            user: None,
            group: None,
            supplementary_groups: Vec::new(),
            privileged: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            read_only_root: false,
            no_new_privileges: true,
            seccomp_unconfined: false,
        }
    }
}

/// A further process in a running container; environment and directory default to the container's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
    pub stdin: bool,
}
