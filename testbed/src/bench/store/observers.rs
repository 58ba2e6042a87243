//! What machines that do not vote cost the leader: the write rate with none of them and with twenty, and what processor a write costs whom.
//!
//! Decides how many there are, and beside what they are measured. Ours only. All machines of all clusters are one here, so that the observers' own
//! work weighs on the figure too. Therefore there are three clusters: one without observers, one with twenty, and a neighbour with twelve, which
//! takes writes from as many clients whenever the first is measured. The voters of the first two and the load share one core (the one that serves the disk's
//! interrupts, as a machine serves its own, or each sync waits for what others do), all else has the other cores. So both meet other cores that do
//! the same work, and share caches, memory and clock with them; what differs is the feeds. Rounds of all kinds alternate.
//!
//! A host's packets are received on its own core, as a machine receives its own (`rps_cpus`): on a virtual wire it is the sender's core that
//! carries them to the other end's socket. Observers and the neighbour keep their data in memory (a tmpfs of each host's own): they would have disks
//! of their own, and on one disk a voter's sync waits for theirs. (Twelve, because hosts of all clusters share the kernel's table of 1,024 neighbours,
//! and its own voters and load are on those cores as well.)

use std::io;
use std::path::Path;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::super::{BenchError, Cluster, idle};
use super::load::{self, Figures, Work};
use super::{ROUND, System, ours};
use crate::{Host, clock};

const VOTERS: usize = 3;
const OBSERVERS: usize = 20;
const ALL: usize = VOTERS + OBSERVERS;
const NEIGHBOURS: usize = VOTERS + 12;
const CLIENTS: [usize; 3] = [1, 16, 64];
/// Observers that are left when reads are measured.
const READERS: usize = 3;
/// Rounds of each kind.
const ROUNDS: usize = 5;

/// One round.
#[derive(Clone, Copy)]
struct Measured {
    figures: Figures,
    /// While it warmed up, too.
    writes: f64,
    /// Seconds of processor: the leader's, another voter's, an observer's.
    used: [f64; 3],
    /// Share of the other cores that was busy.
    busy: f64,
}

struct Clusters {
    plain: ours::Ours,
    observed: ours::Ours,
    neighbour: ours::Ours,
}

pub fn run(directory: &Path) -> Result<(), BenchError> {
    let on_disk = |_: &Host| Ok(());
    let plain = Cluster::form_with("bench-plain", &directory.join("plain"), VOTERS, on_disk)?;
    let observed = Cluster::form_with("bench-observed", &directory.join("observed"), ALL, on_disk)?;
    let neighbour =
        Cluster::form_with("bench-neighbour", &directory.join("neighbour"), NEIGHBOURS, in_memory)?;
    let clusters = Clusters {
        plain: ours::Ours::of(plain)?,
        observed: ours::Ours::of(observed)?,
        neighbour: ours::Ours::of(neighbour)?,
    };
    observe(&clusters.observed)?;
    observe(&clusters.neighbour)?;
    rest(&clusters.observed);
    println!(
        "µs: processor per write of leader / another voter / an observer; rates of all rounds in their order"
    );
    println!("all on all cores");
    let cores = Cores::of_this_machine()?;
    for clients in CLIENTS {
        clusters.compare(&cores, clients, &[Kind::Plain, Kind::Observed])?;
    }
    clusters.divide(&cores)?;
    println!("voters and load on core {}, all else on the others", cores.disk);
    for clients in CLIENTS {
        clusters.compare(&cores, clients, &[Kind::Plain, Kind::Beside, Kind::Observed])?;
    }
    println!("at the end {}", sources(&clusters.observed)?);
    let voter = (clusters.observed.leader()? + 1) % VOTERS;
    leave_few(&clusters.observed)?;
    for (who, host) in [("a voter", voter), ("an observer", VOTERS)] {
        let reads = load::reads_beside_writes(&clusters.observed, host, 16, ROUND)?;
        println!("linearizable reads at {who}, {READERS} observers, beside 16 writers: {reads}");
    }
    Ok(())
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The cluster without observers.
    Plain,
    /// The same, while the neighbour takes writes.
    Beside,
    /// The cluster with observers.
    Observed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Plain => "no observers",
            Kind::Beside => "no observers, busy cores",
            Kind::Observed => "20 observers",
        }
    }
}

/// Gives a host a disk of its own, in memory.
fn in_memory(host: &Host) -> Result<(), BenchError> {
    let own_disk = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", "/var/lib/skein"];
    match host.run(own_disk)?.success() {
        true => Ok(()),
        false => Err(io::Error::other("a host's tmpfs cannot be mounted").into()),
    }
}

/// Lets the observers join, and waits until each has all.
fn observe(system: &ours::Ours) -> Result<(), BenchError> {
    for host in system.cluster.bed.hosts().iter().skip(VOTERS) {
        in_memory(host)?;
        host.start_agent()?;
        system.cluster.wait("an agent has its socket", || {
            Ok(host.run(["test", "-S", "/run/skein/agent.sock"])?.success())
        })?;
        system.cluster.join(host, &["--no-voter"])?;
    }
    until_all_have_all(system, system.cluster.bed.hosts().len())
}

/// Ends all observers but a few: twenty processes that share a core wait for it longer than for any feed, and a machine has one.
fn leave_few(system: &ours::Ours) -> Result<(), BenchError> {
    for host in system.cluster.bed.hosts().iter().skip(VOTERS + READERS) {
        host.stop_agent(Signal::SIGKILL)?;
    }
    until_all_have_all(system, VOTERS + READERS)
}

/// The observers among the first so many machines.
fn until_all_have_all(system: &ours::Ours, machines: usize) -> Result<(), BenchError> {
    let written = system.cluster.status(system.leader()?)?["revision"].as_u64();
    let is_fed = |index: usize| {
        let status = system.cluster.status(index)?;
        Ok(status["feed"]["from"].is_string() && status["revision"].as_u64() >= written)
    };
    (VOTERS..machines)
        .try_for_each(|index| system.cluster.wait("an observer is fed and has the state", || is_fed(index)))
}

impl Clusters {
    /// Rounds of all kinds, each time in another order.
    fn compare(&self, cores: &Cores, clients: usize, kinds: &[Kind]) -> Result<(), BenchError> {
        let mut rounds = vec![Vec::new(); kinds.len()];
        for round in 0..ROUNDS {
            for step in 0..kinds.len() {
                let at = (round + step) % kinds.len();
                until_all_have_all(&self.observed, ALL)?;
                rounds[at].push(match kinds[at] {
                    Kind::Plain => measure(&self.plain, VOTERS, clients, cores)?,
                    Kind::Beside => self.measure_beside(cores, clients)?,
                    Kind::Observed => measure(&self.observed, ALL, clients, cores)?,
                });
            }
        }
        print(clients, kinds, &rounds);
        Ok(())
    }

    /// Voters of the first two and the load on one core, all else on the others.
    fn divide(&self, cores: &Cores) -> Result<(), BenchError> {
        pin_process(std::process::id().cast_signed(), &cores.voters)?;
        for (system, voters) in [(&self.plain, VOTERS), (&self.observed, VOTERS), (&self.neighbour, 0)] {
            for (index, host) in system.cluster.bed.hosts().iter().enumerate() {
                let (set, mask) = if index < voters {
                    (&cores.voters, 1 << cores.disk)
                } else {
                    (&cores.others, cores.mask())
                };
                pin_process(agent(&system.cluster, index)?, set)?;
                receive_on(host, mask)?;
            }
        }
        Ok(())
    }

    /// The cluster without observers, while the neighbour takes writes of as many clients.
    fn measure_beside(&self, cores: &Cores, clients: usize) -> Result<Measured, BenchError> {
        clock::threads(|scope| {
            let neighbour = scope.spawn(|| {
                sched_setaffinity(Pid::from_raw(0), &cores.others).map_err(io::Error::from)?;
                load::round(&self.neighbour, Work::PutAgain, clients, ROUND)
            });
            let measured = measure(&self.plain, VOTERS, clients, cores);
            let beside = neighbour.join().map_err(|_| io::Error::other("the neighbour's load failed"))??;
            if beside.rate == 0.0 {
                return Err(io::Error::other("the neighbour took no writes").into());
            }
            measured
        })
    }
}

/// The core of voters and load, and the others.
struct Cores {
    disk: usize,
    count: usize,
    voters: CpuSet,
    others: CpuSet,
}

impl Cores {
    fn of_this_machine() -> Result<Cores, BenchError> {
        let (disk, count) = (disk_core(), std::thread::available_parallelism()?.get());
        let set = |wanted: &dyn Fn(usize) -> bool| {
            let mut set = CpuSet::new();
            (0..count).filter(|core| wanted(*core)).try_for_each(|core| set.set(core)).map(|()| set)
        };
        let voters = set(&|core| core == disk).map_err(io::Error::from)?;
        // A machine with one core has no others.
        let others = set(&|core| core != disk || count == 1).map_err(io::Error::from)?;
        Ok(Cores { disk, count, voters, others })
    }

    /// Of all but the voters' core (proc_stat(5)).
    fn ticks(&self) -> io::Result<Ticks> {
        let mut ticks = Ticks { busy: 0.0, all: 0.0 };
        for line in std::fs::read_to_string("/proc/stat")?.lines() {
            let mut words = line.split_whitespace();
            let core = words.next().and_then(|name| name.strip_prefix("cpu")?.parse::<usize>().ok());
            if core.is_none_or(|core| core == self.disk) {
                continue;
            }
            let spent: Vec<f64> = words.take(8).map(|word| word.parse().unwrap_or(0.0)).collect();
            let all = spent.iter().sum::<f64>();
            // Idle, and idle while the disk works.
            ticks.busy += all - spent.iter().skip(3).take(2).sum::<f64>();
            ticks.all += all;
        }
        Ok(ticks)
    }

    /// The others, as the kernel's masks have it.
    fn mask(&self) -> u64 {
        ((1 << self.count.min(63)) - 1) & !(1 << self.disk)
    }
}

/// Who feeds the observers.
fn sources(system: &ours::Ours) -> Result<String, BenchError> {
    let leader = system.leader()?;
    let names: Vec<serde_json::Value> = (0..VOTERS)
        .map(|index| Ok(system.cluster.status(index)?["node"].clone()))
        .collect::<Result<_, BenchError>>()?;
    let (mut by_leader, mut by_voters, mut by_others) = (0, 0, 0);
    for index in VOTERS..ALL {
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
fn rest(system: &ours::Ours) {
    let pids: Vec<i32> = (0..ALL).filter_map(|index| idle::machine_pid(&system.cluster, index)).collect();
    std::thread::sleep(ROUND);
    let before: f64 = pids.iter().map(|pid| idle::cpu(*pid)).sum();
    std::thread::sleep(ROUND);
    let used: f64 = pids.iter().map(|pid| idle::cpu(*pid)).sum::<f64>() - before;
    let share = used / ROUND.as_secs_f64() / pids.len().max(1) as f64 * 100.0;
    println!("at rest: {share:.1} % of a core for each of {} agents", pids.len());
}

/// What became of each kind's rounds. Each is compared with those before it: the median of what rounds of the same turn make.
fn print(clients: usize, kinds: &[Kind], measured: &[Vec<Measured>]) {
    for (at, (kind, rounds)) in kinds.iter().zip(measured).enumerate() {
        let figures = load::median(rounds.iter().map(|round| round.figures).collect());
        let sum = |of: &dyn Fn(&Measured) -> f64| rounds.iter().map(of).sum::<f64>();
        let each = |who: usize| sum(&|round| round.used[who]) * 1e6 / sum(&|round| round.writes);
        let rates: Vec<u64> = rounds.iter().map(|round| round.figures.rate as u64).collect();
        let left = measured[..at].iter().map(|other| {
            let mut ratios: Vec<f64> =
                rounds.iter().zip(other).map(|(one, other)| one.figures.rate / other.figures.rate).collect();
            ratios.sort_by(f64::total_cmp);
            format!("{:.2}x", ratios[ratios.len() / 2])
        });
        println!(
            "{clients:>3} clients | {:<24} | {figures:>38} | {:>4.0}/{:>4.0}/{:>3.0} µs | other cores {:>3.0} % | {:<12} | {rates:?}",
            kind.name(),
            each(0),
            each(1),
            each(2),
            sum(&|round| round.busy) / rounds.len() as f64 * 100.0,
            left.collect::<Vec<_>>().join(", "),
        );
    }
}

fn agent(cluster: &Cluster, index: usize) -> Result<i32, BenchError> {
    idle::machine_pid(cluster, index).ok_or_else(|| io::Error::other("an agent does not run").into())
}

fn measure(system: &ours::Ours, hosts: usize, clients: usize, cores: &Cores) -> Result<Measured, BenchError> {
    let pids =
        (0..hosts).map(|index| agent(&system.cluster, index)).collect::<Result<Vec<i32>, BenchError>>()?;
    let used = || pids.iter().map(|pid| idle::cpu(*pid)).collect::<Vec<f64>>();
    let (before, busy) = (used(), cores.ticks()?);
    let figures = load::round(system, Work::PutAgain, clients, ROUND)?;
    let took: Vec<f64> = used().iter().zip(before).map(|(now, before)| now - before).collect();
    let busy = cores.ticks()?.share_since(&busy);
    let leader = system.leader()?;
    let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let voters = (0..VOTERS).filter(|index| *index != leader).map(|index| took[index]).collect();
    let used = [took[leader], mean(voters), mean(took[VOTERS..].to_vec())];
    Ok(Measured { figures, writes: figures.rate * ROUND.as_secs_f64() * 1.2, used, busy })
}

/// What the other cores have done since the machine started, in clock ticks.
struct Ticks {
    busy: f64,
    all: f64,
}

impl Ticks {
    fn share_since(&self, before: &Ticks) -> f64 {
        (self.busy - before.busy) / (self.all - before.all).max(1.0)
    }
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

/// Keeps a process's threads, and those that they will make, on these cores. Twice: a thread may have been made by one that was not kept yet.
fn pin_process(pid: i32, cores: &CpuSet) -> Result<(), BenchError> {
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads()?.chain(threads()?).flatten() {
        let thread = thread.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(thread) = thread else { continue };
        match sched_setaffinity(Pid::from_raw(thread), cores) {
            // It has ended since.
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(errno) => return Err(BenchError::Io(errno.into())),
        }
    }
    Ok(())
}

/// Has the cores of this mask receive a host's packets.
fn receive_on(host: &Host, mask: u64) -> Result<(), BenchError> {
    let set = format!("for queue in /sys/class/net/*/queues/rx-*; do echo {mask:x} > $queue/rps_cpus; done");
    match host.run(["sh", "-c", set.as_str()])?.success() {
        true => Ok(()),
        false => Err(io::Error::other("the cores that receive a host's packets cannot be set").into()),
    }
}
