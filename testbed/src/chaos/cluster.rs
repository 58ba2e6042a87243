//! The cluster that is to be hurt: made, asked, waited for.
//!
//! Decides nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::ChaosError;
use crate::http::Api;
use crate::{Bed, BedConfig, Host, clock};

const LIMIT: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(15);

pub struct Cluster {
    pub bed: Bed,
    /// How many vote, when all is well.
    pub voters: usize,
}

impl Cluster {
    /// So many hosts in one cluster, their voters chosen: as many as pinned, or by the rule.
    pub fn start(hosts: usize, pinned: Option<usize>, directory: &Path) -> Result<Cluster, ChaosError> {
        let bed = Bed::create(BedConfig::new("chaos", hosts, directory))?;
        let cluster = Cluster { bed, voters: raft_store::autopilot::wanted_voters(hosts, pinned) };
        for host in cluster.bed.hosts() {
            host.start_agent()?;
        }
        let first = cluster.host(0);
        cluster
            .wait("skein init works", || first.run(["skein", "init"]).is_ok_and(|output| output.success()))?;
        for host in cluster.bed.hosts().iter().skip(1) {
            let text = first.ok(["skein", "token", "create"])?;
            let line = text.lines().find(|line| line.trim().starts_with("skein join")).unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            host.ok(words)?;
        }
        if let Some(count) = pinned {
            first.ok(["skein", "cluster", "voters", &count.to_string()])?;
        }
        cluster.wait("the voters vote", || cluster.all_vote())?;
        Ok(cluster)
    }

    /// Whether every host knows of as many voters as there are to be, and of a leader.
    pub fn all_vote(&self) -> bool {
        (0..self.len()).all(|index| {
            self.status(index).is_some_and(|status| {
                status["voters"].as_array().map_or(0, Vec::len) == self.voters && status["leader"].is_string()
            })
        })
    }

    /// The voters' hosts, as the first one says that answers.
    pub fn voting(&self) -> Vec<usize> {
        let status = (0..self.len()).find_map(|index| self.status(index)).unwrap_or_default();
        (0..self.len())
            .filter(|index| {
                let names = status["voters"].as_array().into_iter().flatten();
                names.into_iter().any(|name| name == self.host(*index).name())
            })
            .collect()
    }

    /// A command that is typed at one host after the other until it succeeds.
    pub fn type_somewhere(&self, words: &[&str]) -> Result<(), ChaosError> {
        self.wait(&words.join(" "), || {
            (0..self.len()).any(|index| {
                let typed = self.host(index).command(words.iter().copied()).limit(COMMAND).run();
                typed.is_ok_and(|output| output.success())
            })
        })
    }

    pub fn len(&self) -> usize {
        self.bed.hosts().len()
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.bed.hosts()[index]
    }

    /// An agent's socket; none where the host is down.
    pub fn api(&self, index: usize) -> Option<Api> {
        let pid = self.host(index).init_pid().ok()?;
        Some(Api::at(&PathBuf::from(format!("/proc/{pid}/root"))))
    }

    pub fn status(&self, index: usize) -> Option<Value> {
        self.api(index)?.patient(Duration::from_secs(2)).get("/skein/v1/cluster").ok()
    }

    /// Index of the host that leads, as far as any host says so.
    pub fn leader(&self) -> Option<usize> {
        let name = (0..self.len()).find_map(|index| {
            let status = self.status(index)?;
            Some(status["leader"].as_str()?.to_owned())
        })?;
        self.bed.hosts().iter().position(|host| host.name() == name)
    }

    pub fn wait(&self, what: &str, test: impl Fn() -> bool) -> Result<(), ChaosError> {
        let found = clock::poll(LIMIT, Duration::from_millis(50), || test().then_some(()));
        found.ok_or_else(|| ChaosError::Late { what: what.to_owned(), limit: LIMIT })
    }
}
