//! The figures that users compare: how fast work starts, how fast a dead machine's work is back, what an idle agent costs.
//!
//! Decides what is measured and how (docs/benchmarks.md). It must not judge: figures go out, people compare them in one run.

mod failure;
mod idle;
mod start;
pub mod store;
mod trace;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::http::{Api, HttpError};
use crate::{Bed, BedConfig, BedError, Host, HostError};

/// Measured in this order; `crowd` only when named.
const KNOWN: [&str; 7] = ["start", "scale", "idle", "busy", "follower", "leader", "crowd"];

/// What can be named, for people.
pub const PARTS: &str = "\
Parts:
  start      a Deployment of one replica, from apply to Running
  scale      1 to 30 replicas over three hosts
  idle       memory, CPU and store writes of an agent at rest
  busy       false deaths while both cores are busy for two minutes
  follower   a follower's host is killed, until its pods run elsewhere
  leader     the same with the leader's, and until writes are back
  crowd      as busy, with ten hosts; only when named
Parts after 'store':
  writes, reads, local   operations a second and their 99th percentile
  memory                 resident memory after that
  kills                  until writes are back after a kill
  restart                a member with a million objects; only when named
  observers              what machines that do not vote cost; only when named
  ours                   without etcd
  NUMBER                 so many clients at once, instead of 1, 16, 64 and 256";

/// A bench could not be done.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Bed(#[from] BedError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{what} within {limit:?}: it was not reached; the agents' logs are in {}", logs.display())]
    Late { what: String, limit: Duration, logs: PathBuf },
    #[error("no such bench: {0}\n{PARTS}")]
    Unknown(String),
}

/// What to run and with what.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    pub directory: PathBuf,
    /// An archive whose image can sleep, and the image's name.
    pub archive: PathBuf,
    pub image: String,
    /// Which benches; all where empty.
    pub only: Vec<String>,
}

/// A bed with a cluster on three hosts and the image on every one.
pub struct Cluster {
    pub bed: Bed,
    pub image: String,
    pub directory: PathBuf,
}

impl Cluster {
    /// Starts the hosts, forms the cluster, loads the image.
    pub fn start(config: &BenchConfig) -> Result<Cluster, BenchError> {
        let mut cluster = Cluster::form("bench", &config.directory.join("bed"))?;
        cluster.image.clone_from(&config.image);
        cluster.load(&config.archive)?;
        Ok(cluster)
    }

    /// Starts three hosts and forms the cluster, without an image.
    pub fn form(name: &str, directory: &std::path::Path) -> Result<Cluster, BenchError> {
        Cluster::form_with(name, directory, 3, |_| Ok(()))
    }

    /// The same among so many hosts, the three made ready by `prepare` before their agents start; those after them have no agent yet.
    pub fn form_with(
        name: &str,
        directory: &std::path::Path,
        hosts: usize,
        prepare: impl Fn(&Host) -> Result<(), BenchError>,
    ) -> Result<Cluster, BenchError> {
        Cluster::form_by(BedConfig::new(name, hosts, directory), prepare)
    }

    /// Three hosts of another build of `skein`.
    pub fn form_of(name: &str, directory: &std::path::Path, skein: PathBuf) -> Result<Cluster, BenchError> {
        let settings = BedConfig { skein: Some(skein), ..BedConfig::new(name, 3, directory) };
        Cluster::form_by(settings, |_| Ok(()))
    }

    fn form_by(
        mut settings: BedConfig,
        prepare: impl Fn(&Host) -> Result<(), BenchError>,
    ) -> Result<Cluster, BenchError> {
        // For the traces: a line for each round of planning and each step of a pod.
        settings.env.push(("SKEIN_LOG".into(), "info,agent::control=debug,agent::worker=debug".into()));
        let directory = settings.directory.clone();
        let bed = Bed::create(settings)?;
        let cluster = Cluster { bed, image: String::new(), directory };
        for host in cluster.bed.hosts().iter().take(3) {
            prepare(host)?;
            host.start_agent()?;
        }
        let first = cluster.host(0);
        cluster.wait("the first agent has its socket", || {
            Ok(first.run(["test", "-S", "/run/skein/agent.sock"])?.success())
        })?;
        cluster.wait("init", || Ok(first.run(["skein", "init"])?.success()))?;
        for host in cluster.bed.hosts().iter().take(3).skip(1) {
            cluster.join(host, &[])?;
        }
        cluster
            .wait("three voters", || Ok(cluster.status(0)?["voters"].as_array().map_or(0, Vec::len) == 3))?;
        Ok(cluster)
    }

    /// Lets a host join, by a token of its own.
    fn join(&self, host: &Host, options: &[&str]) -> Result<(), BenchError> {
        let words = ["skein", "token", "create"].iter().chain(options).copied();
        let text = self.host(0).ok(words)?;
        let line = text.lines().find(|line| line.trim().starts_with("skein join")).unwrap_or_default();
        host.ok(line.split_whitespace())?;
        Ok(())
    }

    /// Loads the archive on the first host and runs a pod everywhere once, so that the image is present on each.
    fn load(&self, archive: &std::path::Path) -> Result<(), BenchError> {
        let place = self.host(0).srv_path().join("image.tar");
        std::fs::copy(archive, &place)?;
        self.host(0)
            .command(["skein", "image", "load", "/srv/image.tar"])
            .limit(Duration::from_secs(120))
            .ok()?;
        std::fs::remove_file(&place)?;
        let warm = start::deployment(&self.image, "warm", 6);
        self.api(0).post(start::DEPLOYMENTS, &warm)?;
        self.wait("six warm pods", || Ok(self.running("warm")? == 6))?;
        self.remove("warm")
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.bed.hosts()[index]
    }

    pub fn api(&self, index: usize) -> Api {
        let pid = self.host(index).init_pid().unwrap_or(0);
        Api::at(&PathBuf::from(format!("/proc/{pid}/root")))
    }

    pub fn status(&self, index: usize) -> Result<Value, BenchError> {
        Ok(self.api(index).get("/skein/v1/cluster")?)
    }

    /// Index of the host that leads.
    pub fn leader(&self) -> Result<usize, BenchError> {
        let status = self.status(0)?;
        let name = status["leader"].as_str().unwrap_or("");
        Ok(self.bed.hosts().iter().position(|host| host.name() == name).unwrap_or(0))
    }

    /// Pods of an application that run.
    pub fn running(&self, app: &str) -> Result<usize, BenchError> {
        let list = self.api(0).get(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"))?;
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items
            .filter(|pod| {
                pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .count())
    }

    /// Deletes a deployment and waits until its pods are gone.
    pub fn remove(&self, app: &str) -> Result<(), BenchError> {
        self.api(0).delete(&format!("{}/{app}", start::DEPLOYMENTS))?;
        self.wait("the pods to go", || {
            let list =
                self.api(0).get(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"))?;
            Ok(list["items"].as_array().is_some_and(Vec::is_empty))
        })
    }

    /// Polls until it holds; errors on the way count as "not yet".
    pub fn wait(&self, what: &str, test: impl Fn() -> Result<bool, BenchError>) -> Result<(), BenchError> {
        let limit = Duration::from_secs(60);
        let found =
            crate::clock::poll(limit, Duration::from_millis(10), || test().ok().filter(|holds| *holds));
        found.map(drop).ok_or_else(|| BenchError::Late {
            what: what.into(),
            limit,
            logs: self.directory.clone(),
        })
    }
}

/// Minimum, median and maximum of some times, in milliseconds.
pub fn spread(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    match (times.first(), times.get(times.len() / 2), times.last()) {
        (Some(least), Some(middle), Some(most)) => {
            format!("{middle:.0} ms (min {least:.0}, max {most:.0}, n {})", times.len())
        }
        _ => "nothing measured".into(),
    }
}

/// A figure in kilobytes of a file of /proc.
fn kilobytes(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0.0)
}

/// Runs the benches and prints a line for each figure.
pub fn run(config: &BenchConfig) -> Result<(), BenchError> {
    if let Some(unknown) = config.only.iter().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(BenchError::Unknown(unknown.clone()));
    }
    // Ten hosts of its own; runs only when named.
    if config.only.iter().any(|name| name == "crowd") {
        return idle::crowd(&config.directory);
    }
    let named = |name: &&str| config.only.iter().any(|only| only == name);
    let wanted = |name: &&str| config.only.is_empty() && *name != "crowd" || named(name);
    let cluster = Cluster::start(config)?;
    for name in KNOWN.into_iter().filter(wanted) {
        match name {
            "start" => start::one(&cluster)?,
            "scale" => start::scale(&cluster)?,
            "idle" => idle::quiet(&cluster)?,
            "busy" => idle::busy(&cluster)?,
            "follower" => failure::follower(&cluster)?,
            _ => failure::leader(&cluster)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_refusals_name_every_part() {
        let said = BenchError::Unknown("x".into()).to_string();
        for part in KNOWN.iter().chain(&store::KNOWN) {
            assert!(said.split([' ', ',', '\n']).any(|word| word == *part), "{part}: {said}");
        }
    }
}
