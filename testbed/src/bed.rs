//! A bed: a switch, its hosts, the outside; made, cut into parts, healed, taken down.
//!
//! Decides names and addresses. Must leave nothing behind: its processes end with the bed's own (a socket closes),
//! namespaces with the processes, and a later bed clears what only a clean end can clear.

pub mod cgroups;
mod config;
mod record;
mod switch;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use config::BedConfig;
pub use record::{init_of, process_start};

use crate::host::{Host, HostError};
use crate::namespace::ToolError;
use crate::outside::Outside;
use cgroups::CgroupError;
use record::Record;
use switch::Switch;

/// Address of the outside: every host's default route and name server.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const FIRST_HOST: u8 = 11;
const MOST_HOSTS: u8 = 80;

static BEDS: AtomicU32 = AtomicU32::new(0);

/// A bed cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    #[error("hosts need root: run this with sudo")]
    NotRoot,
    #[error("{wanted} hosts: a bed has 1 to {MOST_HOSTS}")]
    HostCount { wanted: usize },
    #[error("{0} belongs to a bed that runs (pid {1}): end it, or give another directory")]
    InUse(PathBuf, i32),
    #[error(
        "{path} is on {kind}, where hosts' data would not survive or overlays be refused: give a directory on a disk"
    )]
    NotOnDisk { path: PathBuf, kind: &'static str },
    #[error("{0} is neither empty nor an earlier bed's: give a directory that may be wiped")]
    Foreign(PathBuf),
    #[error("the bed's directory must not contain ',', ':' or '\\': {0}")]
    BadPath(PathBuf),
    #[error("no testbed binary next to {0}: build it (cargo build -p testbed) or set TESTBED_BIN")]
    NoProgram(PathBuf),
    #[error("there is no host {0} in this bed")]
    NoHost(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "cannot make a namespace: {0}; this needs CAP_SYS_ADMIN and a kernel with net, pid, uts and ipc namespaces"
    )]
    Namespace(io::Error),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Host(#[from] Box<HostError>),
}

impl From<HostError> for BedError {
    fn from(error: HostError) -> BedError {
        BedError::Host(Box::new(error))
    }
}

/// What all hosts of a bed share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub run: String,
    pub config: BedConfig,
    pub program: PathBuf,
    pub skein: Option<PathBuf>,
    pub switch: Switch,
    pub record: Record,
    pub names: Vec<(String, String)>,
}

/// Hosts on a switch of their own. Ends with its process, whatever kills that.
#[derive(Debug)]
pub struct Bed {
    hosts: Vec<Host>,
    outside: Outside,
    shared: Arc<Shared>,
}

impl Bed {
    /// Makes the switch and the outside and boots every host; no agent runs yet.
    pub fn create(config: BedConfig) -> Result<Bed, BedError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(BedError::NotRoot);
        }
        let count = u8::try_from(config.hosts).ok().filter(|n| (1..=MOST_HOSTS).contains(n));
        let count = count.ok_or(BedError::HostCount { wanted: config.hosts })?;
        let config = config.prepared()?;
        cgroups::remove_abandoned(record::owner_lives);
        let run = format!("{}-{}", record::owner_suffix(&config.name)?, BEDS.fetch_add(1, Ordering::Relaxed));
        let record = Record::claim(&config.directory, &run)?;
        let addresses: Vec<Ipv4Addr> = (0..count).map(host_address).collect();
        let names = addresses.iter().zip(1..).map(|(a, n)| (format!("host{n}"), a.to_string())).collect();
        let (program, skein) = (config.program()?, config.skein());
        let switch = Switch::create(OUTSIDE)?;
        let outside = Outside::new(switch.outside());
        let shared = Arc::new(Shared { run, config, program, skein, switch, record, names });
        let hosts = addresses.iter().zip(1..).map(|(a, n)| Host::new(n, *a, Arc::clone(&shared)));
        let bed = Bed { hosts: hosts.collect(), outside, shared };
        bed.hosts.iter().try_for_each(Host::boot)?;
        Ok(bed)
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub fn host(&self, name: &str) -> Result<&Host, BedError> {
        self.hosts.iter().find(|h| h.name() == name).ok_or_else(|| BedError::NoHost(name.to_owned()))
    }

    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Unique among all beds of the machine.
    pub fn run_id(&self) -> &str {
        &self.shared.run
    }

    pub fn directory(&self) -> &Path {
        &self.shared.config.directory
    }

    /// Everything that the agent of a host has printed, over all its lives.
    pub fn logs(&self, host: &str) -> Result<String, BedError> {
        let path = self.host(host)?.log_path();
        let bytes = std::fs::read(&path)
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(Vec::new()) } else { Err(e) });
        bytes
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .map_err(|source| BedError::File { path, source })
    }

    /// Nothing passes between hosts of different groups; who is in no group ("outside" too) reaches all.
    /// Replaces earlier cuts.
    pub fn partition(&self, groups: &[&[&str]]) -> Result<(), BedError> {
        let mut pairs = BTreeSet::new();
        for (i, group) in groups.iter().enumerate() {
            for (_, other) in groups.iter().enumerate().filter(|(j, _)| *j != i) {
                for from in *group {
                    for to in *other {
                        pairs.insert((self.port(from)?, self.port(to)?));
                    }
                }
            }
        }
        Ok(self.shared.switch.set_cuts(pairs)?)
    }

    /// Drops what `from` sends to `to`; the other direction stays. Adds to earlier cuts.
    pub fn cut(&self, from: &str, to: &str) -> Result<(), BedError> {
        let pair = (self.port(from)?, self.port(to)?);
        Ok(self.shared.switch.add_cut(pair)?)
    }

    /// Takes all cuts away.
    pub fn heal(&self) -> Result<(), BedError> {
        Ok(self.shared.switch.set_cuts(BTreeSet::new())?)
    }

    fn port(&self, name: &str) -> Result<String, BedError> {
        if name == "outside" { Ok(switch::OUTSIDE_PORT.to_owned()) } else { Ok(self.host(name)?.port()) }
    }
}

impl Drop for Bed {
    /// Kills the hosts; data goes unless it is to be kept, logs stay.
    fn drop(&mut self) {
        for host in &self.hosts {
            if let Err(error) = host.end() {
                tracing::warn!(host = host.name(), %error, "the host did not end cleanly");
            }
        }
        if let Err(error) = cgroups::remove_run(&self.shared.run) {
            tracing::warn!(%error, "cgroups of the bed are left");
        }
        if !self.shared.config.keep {
            for host in &self.hosts {
                let _ = std::fs::remove_dir_all(host.data_path());
                let _ = std::fs::remove_dir_all(host.srv_path());
            }
        }
        self.shared.record.release();
    }
}

fn host_address(index: u8) -> Ipv4Addr {
    let last = FIRST_HOST + index;
    // The outside sits in the middle of the range.
    Ipv4Addr::new(10, 77, 0, if last >= 100 { last + 1 } else { last })
}
