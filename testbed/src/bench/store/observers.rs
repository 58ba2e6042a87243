//! What machines that do not vote cost the leader: the write rate with none of them and with twenty.
//!
//! Decides how many there are. Ours only. All of them share one machine, so that their own work weighs on the figure too.

use std::path::Path;

use super::super::{BenchError, Cluster};
use super::load::{self, Work};
use super::{ROUND, ROUNDS, ours};

const OBSERVERS: usize = 20;
const CLIENTS: [usize; 3] = [1, 16, 64];

pub fn run(directory: &Path) -> Result<(), BenchError> {
    let cluster = Cluster::form_with("bench-observers", &directory.join("observers"), 3 + OBSERVERS)?;
    let access = ours::access(&cluster.api(0))?;
    let system = ours::Ours { cluster, access };
    let alone = rates(&system)?;
    for host in system.cluster.bed.hosts().iter().skip(3) {
        host.start_agent()?;
        system.cluster.wait("an agent answers", || Ok(host.run(["skein", "version"])?.success()))?;
        system.cluster.join(host, &["--no-voter"])?;
    }
    let is_fed = |index: usize| Ok(system.cluster.status(index)?["feed"]["from"].is_string());
    for index in 3..3 + OBSERVERS {
        system.cluster.wait("an observer is fed", || is_fed(index))?;
    }
    let observed = rates(&system)?;
    println!("{:>7} | {:>34} | {:>34} | ops", "clients", "no observers", format!("{OBSERVERS} observers"));
    for ((clients, alone), observed) in CLIENTS.into_iter().zip(alone).zip(observed) {
        println!("{clients:>7} | {alone:>34} | {observed:>34} | {:.2}x", observed.rate / alone.rate);
    }
    Ok(())
}

fn rates(system: &ours::Ours) -> Result<Vec<load::Figures>, BenchError> {
    let each = CLIENTS.into_iter().map(|clients| {
        let rounds = (0..ROUNDS).map(|_| load::round(system, Work::Put, clients, ROUND));
        Ok(load::median(rounds.collect::<Result<Vec<_>, BenchError>>()?))
    });
    each.collect()
}
