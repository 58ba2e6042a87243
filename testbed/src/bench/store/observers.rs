//! What machines that do not vote cost the leader: the write rate with none of them and with twenty, and what CPU a write costs whom.
//!
//! Decides how many there are. Ours only. All of them share one machine, so that their own work weighs on the figure too: therefore it is
//! measured a second time with the voters and the load on one core and the observers on the others: on the one that serves the disk's interrupts,
//! as a machine serves its own, or each sync waits for what the observers do. There a host's packets are received on its own core, as a machine receives its own (`rps_cpus`): on a virtual wire it is the sender's core that carries them to the other end's socket. Observers keep their
//! data in memory (a tmpfs of the host's own): twenty machines have disks of their own, and on one disk a voter's sync waits for theirs.
//! Cores of one machine share caches, memory and clock: what voters lose by a busy neighbour is measured too, with one that only computes.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use super::super::{BenchError, Cluster, idle};
use super::load::{self, Figures, Work};
use super::{ROUND, ROUNDS, System, ours};
use crate::clock;

const VOTERS: usize = 3;
const OBSERVERS: usize = 20;
const CLIENTS: [usize; 3] = [1, 16, 64];

/// One figure, with the microseconds of CPU per write: the leader's, another voter's, an observer's.
struct Measured {
    figures: Figures,
    cpu: [f64; 3],
}

pub fn run(directory: &Path) -> Result<(), BenchError> {
    let cluster = Cluster::form_with("bench-observers", &directory.join("observers"), VOTERS + OBSERVERS)?;
    let system = ours::Ours::of(cluster)?;
    let shared = measure(&system, VOTERS)?;
    let core = disk_core();
    // Of all: a pinned process may use fewer.
    let cores = std::thread::available_parallelism()?.get();
    let others: Vec<usize> = (0..cores).filter(|other| *other != core).collect();
    pin(&system, VOTERS, Some(core), cores)?;
    let apart = measure(&system, VOTERS)?;
    let beside = beside_computing(&others, || measure(&system, VOTERS))?;
    pin(&system, VOTERS, None, cores)?;
    for host in system.cluster.bed.hosts().iter().skip(VOTERS) {
        let own_disk = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", "/var/lib/skein"];
        if !host.run(own_disk)?.success() {
            return Err(io::Error::other("an observer's tmpfs cannot be mounted").into());
        }
        host.start_agent()?;
        system.cluster.wait("an agent answers", || Ok(host.run(["skein", "version"])?.success()))?;
        system.cluster.join(host, &["--no-voter"])?;
    }
    let all = VOTERS + OBSERVERS;
    // Taking the state costs all of them much, once; what is measured is what stays.
    let written = system.cluster.status(system.leader()?)?["revision"].as_u64();
    let begun = clock::now();
    let is_fed = |index: usize| {
        let status = system.cluster.status(index)?;
        Ok(status["feed"]["from"].is_string() && status["revision"].as_u64() >= written)
    };
    for index in VOTERS..all {
        system.cluster.wait("an observer is fed and has the state", || is_fed(index))?;
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "revision {}; the last observer had the state {took:.1} s after it had joined",
        written.unwrap_or_default()
    );
    rest(&system, all);
    let observers = format!("{OBSERVERS} observers");
    print("all on all cores", &shared, &measure(&system, all)?, &observers);
    let voter = (system.leader()? + 1) % VOTERS;
    for (who, host) in [("a voter", voter), ("an observer", VOTERS)] {
        let reads = load::reads_beside_writes(&system, host, 16, ROUND)?;
        println!("linearizable reads at {who}, beside 16 writers: {reads}");
    }
    pin(&system, all, Some(core), cores)?;
    let observed = measure(&system, all)?;
    print(
        "voters and load on one core, the other cores compute something",
        &apart,
        &beside,
        "no observers, busy cores",
    );
    print("voters and load on one core, observers on the others", &apart, &observed, &observers);
    print("the last two beside each other", &beside, &observed, &observers);
    println!("{}", sources(&system, all)?);
    Ok(())
}

/// Who feeds the observers.
fn sources(system: &ours::Ours, hosts: usize) -> Result<String, BenchError> {
    let leader = system.leader()?;
    let names: Vec<serde_json::Value> = (0..VOTERS)
        .map(|index| Ok(system.cluster.status(index)?["node"].clone()))
        .collect::<Result<_, BenchError>>()?;
    let (mut by_leader, mut by_voters, mut by_others) = (0, 0, 0);
    for index in VOTERS..hosts {
        let from = &system.cluster.status(index)?["feed"]["from"];
        match names.iter().position(|name| name == from) {
            Some(voter) if voter == leader => by_leader += 1,
            Some(_) => by_voters += 1,
            None => by_others += 1,
        }
    }
    Ok(format!("fed by the leader: {by_leader}, by other voters: {by_voters}, by observers: {by_others}"))
}

/// What the agents take that nobody asks anything: no small part of what they take beside writes.
fn rest(system: &ours::Ours, hosts: usize) {
    let pids: Vec<i32> = (0..hosts).filter_map(|index| idle::machine_pid(&system.cluster, index)).collect();
    std::thread::sleep(ROUND);
    let before: f64 = pids.iter().map(|pid| idle::cpu(*pid)).sum();
    std::thread::sleep(ROUND);
    let used: f64 = pids.iter().map(|pid| idle::cpu(*pid)).sum::<f64>() - before;
    let share = used / ROUND.as_secs_f64() / pids.len().max(1) as f64 * 100.0;
    println!("at rest: {share:.1} % of a core for each of {} agents", pids.len());
}

fn print(title: &str, alone: &[Measured], observed: &[Measured], then: &str) {
    println!("{title}; CPU: microseconds per write of leader / another voter / an observer");
    println!("{:>7} | {:>50} | {:>50} | ops", "clients", "no observers", then);
    let text = |measured: &Measured| {
        let [leader, voter, observer] = measured.cpu;
        format!("{} CPU {leader:.0}/{voter:.0}/{observer:.0}", measured.figures)
    };
    for ((clients, alone), observed) in CLIENTS.into_iter().zip(alone).zip(observed) {
        let ratio = observed.figures.rate / alone.figures.rate;
        println!("{clients:>7} | {:>50} | {:>50} | {ratio:.2}x", text(alone), text(observed));
    }
}

fn measure(system: &ours::Ours, hosts: usize) -> Result<Vec<Measured>, BenchError> {
    let pids: Vec<i32> = (0..hosts).filter_map(|index| idle::machine_pid(&system.cluster, index)).collect();
    let used = || pids.iter().map(|pid| idle::cpu(*pid)).collect::<Vec<f64>>();
    let each = CLIENTS.into_iter().map(|clients| {
        let before = used();
        let rounds = (0..ROUNDS).map(|_| load::round(system, Work::PutAgain, clients, ROUND));
        let rounds = rounds.collect::<Result<Vec<_>, BenchError>>()?;
        // What was written while a round warmed up costs the same.
        let writes: f64 = rounds.iter().map(|round| round.rate * ROUND.as_secs_f64() * 1.2).sum();
        let took: Vec<f64> =
            used().iter().zip(before).map(|(now, before)| (now - before) * 1e6 / writes).collect();
        let leader = system.leader()?;
        let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len().max(1) as f64;
        let voters = (0..VOTERS).filter(|index| *index != leader).map(|index| took[index]).collect();
        let cpu = [took[leader], mean(voters), mean(took[VOTERS..].to_vec())];
        Ok(Measured { figures: load::median(rounds), cpu })
    });
    each.collect()
}

/// Does this while each of these cores computes sums.
fn beside_computing<T>(
    cores: &[usize],
    act: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    /// Ends the computing whatever becomes of the measuring.
    struct Stop<'s>(&'s AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    let compute = |on: usize| {
        let mut set = CpuSet::new();
        set.set(on).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))?;
        let mut sum = [0; 32];
        while !stopped.load(Ordering::Relaxed) {
            sum = Sha256::digest(sum).into();
        }
        Ok::<(), nix::Error>(())
    };
    clock::threads(|scope| {
        let compute = &compute;
        let computing: Vec<_> = cores.iter().map(|on| scope.spawn(move || compute(*on))).collect();
        let stop = Stop(&stopped);
        let done = act()?;
        drop(stop);
        for thread in computing {
            thread
                .join()
                .map_err(|_| io::Error::other("a core does not compute"))?
                .map_err(io::Error::from)?;
        }
        Ok(done)
    })
}

/// The core that served most of the disks' interrupts so far.
fn disk_core() -> usize {
    let text = std::fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let is_disk = |line: &&str| ["nvme", "-req.", "ahci"].iter().any(|kind| line.contains(kind));
    let mut served = Vec::<u64>::new();
    for line in text.lines().filter(is_disk) {
        for (core, count) in
            line.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok()).enumerate()
        {
            served.resize(served.len().max(core + 1), 0);
            served[core] += count;
        }
    }
    (0..served.len()).max_by_key(|core| served[*core]).unwrap_or(0)
}

/// Keeps voters and load on one of so many cores and the observers on the others, or lets all run everywhere again.
fn pin(system: &ours::Ours, hosts: usize, core: Option<usize>, cores: usize) -> Result<(), BenchError> {
    let set = |wanted: &dyn Fn(usize) -> bool| {
        let mut set = CpuSet::new();
        (0..cores).filter(|core| wanted(*core)).try_for_each(|core| set.set(core)).map(|()| set)
    };
    let failed = |errno: nix::Error| BenchError::Io(errno.into());
    let voters = set(&|other| core.is_none_or(|core| core == other)).map_err(failed)?;
    let observers = set(&|other| core.is_none_or(|core| core != other)).map_err(failed)?;
    let agents = (0..hosts).filter_map(|index| Some((index, idle::machine_pid(&system.cluster, index)?)));
    let load = (0, std::process::id().cast_signed());
    for (index, pid) in agents.chain([load]) {
        let set = if index < VOTERS { &voters } else { &observers };
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let thread = thread.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(thread) = thread else { continue };
            match sched_setaffinity(Pid::from_raw(thread), set) {
                // It has ended since.
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    for (index, host) in system.cluster.bed.hosts().iter().enumerate().take(hosts) {
        let mask: u64 = match core {
            None => 0,
            Some(core) if index < VOTERS => 1 << core,
            Some(core) => ((1 << cores.min(63)) - 1) & !(1 << core),
        };
        let set =
            format!("for queue in /sys/class/net/*/queues/rx-*; do echo {mask:x} > $queue/rps_cpus; done");
        if !host.run(["sh", "-c", set.as_str()])?.success() {
            return Err(io::Error::other("the cores that receive a host's packets cannot be set").into());
        }
    }
    Ok(())
}
