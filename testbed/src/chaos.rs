//! The store on real processes: clients hop between agents that are killed, paused and cut off by a seed; what they were told is
//! judged afterwards by the same models as the simulator's.
//!
//! Decides how long, and when a cluster counts as whole again. A failed run is kept as a file that `testbed judge` reads.

mod clients;
mod cluster;
mod harm;
pub mod history;
pub mod judge;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::{BedError, HostError, clock};
use clients::Clients;
use cluster::Cluster;
use harm::Harm;
pub use harm::Obeyed;
use history::History;

const CLIENTS: u64 = 8;

/// A run that could not be done, or showed something wrong.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    #[error(transparent)]
    Bed(#[from] BedError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{path}: {cause}", path = path.display())]
    File { path: PathBuf, cause: std::io::Error },
    #[error("{what}: not within {limit:?}")]
    Late { what: String, limit: Duration },
    #[error("seed {seed}: {what}; the history is in {path}", path = path.display())]
    Wrong { seed: u64, what: String, path: PathBuf },
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ChaosConfig {
    pub directory: PathBuf,
    pub hosts: usize,
    /// None: the rule says how many vote.
    pub voters: Option<usize>,
    pub seconds: u64,
    pub seed: u64,
}

/// A run that showed nothing wrong.
#[derive(Debug)]
pub struct Report {
    pub text: String,
    /// How many different sets of voters there were.
    pub voter_sets: usize,
    pub obeyed: Obeyed,
}

/// Runs and judges.
pub fn run(config: &ChaosConfig) -> Result<Report, ChaosError> {
    let cluster = Cluster::start(config.hosts, config.voters, &config.directory.join("bed"))?;
    let began = revision(&cluster)?;
    let clients = Clients::new(
        &cluster,
        History { seed: config.seed, hosts: config.hosts, began, ..History::default() },
    );
    let harmed = clock::threads(|scope| {
        for number in 0..CLIENTS {
            let clients = &clients;
            scope.spawn(move || clients.ask_on(number));
        }
        for number in 0..2 {
            let clients = &clients;
            scope.spawn(move || clients.follow(number));
            scope.spawn(move || clients.resume(number));
        }
        let harmed = harm(config, &cluster, &clients);
        clients.stop.store(true, Ordering::Relaxed);
        harmed
    });
    let mut history = clients.into_history();
    history.calls.sort_by_key(|call| call.called);
    let faults = history.faults.len();
    let (counts, mut wrong) = judge::judge(&history);
    let (voter_sets, obeyed) = match &harmed {
        Ok(seen) => *seen,
        Err(error) => {
            wrong.push(error.to_string());
            (0, Obeyed::default())
        }
    };
    if let Some(first) = wrong.first() {
        let path = config.directory.join(format!("history-{}.json", config.seed));
        save(&history, &path)?;
        let what = format!("{} findings, the first: {first}", wrong.len());
        return Err(ChaosError::Wrong { seed: config.seed, what, path });
    }
    let text = format!(
        "seed {}: {} hosts, {} voters in {voter_sets} sets, {} s, {faults} faults; {obeyed:?}; {counts:?}: nothing wrong",
        config.seed, config.hosts, cluster.voters, config.seconds
    );
    Ok(Report { text, voter_sets, obeyed })
}

/// Judges a history that was kept.
pub fn judge_again(path: &Path) -> Result<String, ChaosError> {
    let failed = |cause| ChaosError::File { path: path.to_owned(), cause };
    let text = std::fs::read(path).map_err(failed)?;
    let history: History = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let (counts, wrong) = judge::judge(&history);
    Ok(format!("{counts:?}\n{}", wrong.join("\n")))
}

/// Hurts the cluster until the time is over, then waits until it is whole. Answers how many different sets of voters there were.
fn harm(
    config: &ChaosConfig,
    cluster: &Cluster,
    clients: &Clients<'_>,
) -> Result<(usize, Obeyed), ChaosError> {
    let end = clock::now() + Duration::from_secs(config.seconds);
    let mut harm = Harm::new(cluster, clients, config.seed);
    while clock::now() < end {
        harm.once()?;
    }
    cluster.bed.heal()?;
    harm.undo()?;
    clients.quiet.store(true, Ordering::Relaxed);
    cluster.wait("with everything healed, writes succeed everywhere and all agents list the same", || {
        clients.is_whole()
    })?;
    cluster.wait("with everything healed, as many vote as in the beginning", || cluster.all_vote())?;
    Ok((harm.voting.len(), harm.obeyed))
}

/// The newest revision before anybody begins.
fn revision(cluster: &Cluster) -> Result<u64, ChaosError> {
    let read = || {
        let list = cluster.api(0)?.get("/api/v1/namespaces/default/configmaps").ok()?;
        list["metadata"]["resourceVersion"].as_str()?.parse().ok()
    };
    let late = ChaosError::Late { what: "a first list".into(), limit: Duration::from_secs(10) };
    clock::poll(Duration::from_secs(10), Duration::from_millis(50), read).ok_or(late)
}

fn save(history: &History, path: &Path) -> Result<(), ChaosError> {
    let failed = |cause| ChaosError::File { path: path.to_owned(), cause };
    let text = serde_json::to_vec(history).map_err(|error| failed(error.into()))?;
    std::fs::write(path, text).map_err(failed)
}
