//! The store beside etcd, in one run: three hosts each, the same disk, syncs and TLS in both, one load generator.
//!
//! Decides what is measured and prints it. It must not judge. A round of the one follows a round of the other, so that
//! what else the machine does meets both.

mod disk;
mod etcd;
mod grpc;
mod kills;
mod load;
mod observers;
pub mod ours;
mod restart;
pub mod stream;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{BenchError, Cluster, kilobytes};
use crate::{Bed, Host};
use load::{Client, Work};

/// What can be named besides numbers.
pub(super) const KNOWN: [&str; 8] =
    ["writes", "reads", "local", "memory", "kills", "restart", "observers", "ours"];
/// Clients at once.
const CLIENTS: [usize; 4] = [1, 16, 64, 256];
/// Length of one round.
const ROUND: Duration = Duration::from_secs(4);
/// Rounds per figure; the median counts. One client's writes wait mostly for the disk, whose speed changes from one half minute to the next:
/// so that both meet the same disk, there are more of them.
const ROUNDS: usize = 3;
const ROUNDS_ALONE: usize = 9;

/// Where clients connect and how they prove who they are.
pub struct Access {
    pub tls: std::sync::Arc<rustls::ClientConfig>,
    /// Where not the address is what the certificate has to name.
    pub server_name: Option<&'static str>,
    pub port: u16,
}

/// One of the two, on three hosts.
pub(super) trait System {
    fn name(&self) -> &'static str;
    fn bed(&self) -> &Bed;
    /// New keys of the load so far.
    fn written(&self) -> &AtomicU64;
    /// A client of one host; called within the outside's network.
    fn connect(&self, host: usize) -> impl Future<Output = Result<Client, BenchError>>;
    /// Index of the host that leads.
    fn leader(&self) -> Result<usize, BenchError>;

    fn host(&self, index: usize) -> &Host {
        &self.bed().hosts()[index]
    }

    fn kill(&self, index: usize) -> Result<(), BenchError> {
        Ok(self.host(index).kill_agent(Signal::SIGKILL)?)
    }

    /// Resident memory of each member, in megabytes.
    fn memory(&self) -> Vec<f64> {
        let pid = |host: &Host| host.machine_pid(host.agent_pid().ok()??).ok()?;
        let resident = |pid| kilobytes(&format!("/proc/{pid}/status"), "VmRSS:") / 1000.0;
        self.bed().hosts().iter().filter_map(pid).map(resident).collect()
    }
}

/// Runs the named parts: writes, reads, local, memory, kills, restart, observers; all but the last two where none is named. `ours` leaves etcd out,
/// numbers say how many clients there are. Where `SKEIN_OTHER` names another build of `skein`, its writes and reads are measured instead of etcd's.
pub fn run(directory: &Path, only: &[String]) -> Result<(), BenchError> {
    let number = |name: &String| name.parse::<NonZeroUsize>().ok();
    let counts: Vec<usize> = only.iter().filter_map(number).map(NonZeroUsize::get).collect();
    let clients = if counts.is_empty() { CLIENTS.to_vec() } else { counts };
    let only: Vec<&String> = only.iter().filter(|name| number(name).is_none()).collect();
    if let Some(unknown) = only.iter().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(BenchError::Unknown(format!("store {unknown}")));
    }
    let named = |name: &str| only.iter().any(|only| *only == name);
    let all = only.iter().all(|name| *name == "ours");
    let wanted = |name: &str| all || named(name);
    if named("restart") {
        return restart::run(directory);
    }
    if named("observers") {
        return observers::run(directory);
    }
    let other = std::env::var_os("SKEIN_OTHER").map(PathBuf::from);
    if let Some(path) = other.as_ref().filter(|path| !path.is_file()) {
        let why = format!("SKEIN_OTHER is {}, and no file: it names a build of skein", path.display());
        return Err(std::io::Error::other(why).into());
    }
    if other.is_some() && (named("memory") || named("kills")) {
        let why = "beside SKEIN_OTHER only writes, reads and local are measured: leave memory and kills out";
        return Err(std::io::Error::other(why).into());
    }
    let ours = ours::Ours::start(&directory.join("ours"))?;
    if let Some(other) = other {
        let other = ours::Ours::of(Cluster::form_of("bench-other", &directory.join("other"), other)?)?;
        return beside(&wanted, &clients, &ours, ("other", Some(&other)), directory);
    }
    let etcd = if named("ours") { None } else { Some(etcd::Etcd::start(&directory.join("etcd"))?) };
    beside(&wanted, &clients, &ours, ("etcd", etcd.as_ref()), directory)?;
    if wanted("memory") {
        memory("after all that", &ours);
        if let Some(etcd) = &etcd {
            memory("after all that", etcd);
            // Rounds are equally long, so that the faster one holds more by now.
            fill_up(&ours, etcd)?;
            fill_up(etcd, &ours)?;
            memory("with as many keys", &ours);
            memory("with as many keys", etcd);
        }
    }
    if wanted("kills") {
        kills::run(&ours)?;
        if let Some(etcd) = &etcd {
            kills::run(etcd)?;
        }
    }
    Ok(())
}

fn memory<S: System>(when: &str, system: &S) {
    let keys = system.written().load(Ordering::Relaxed);
    println!("resident MB {when}: {} {:.0?}, {keys} keys", system.name(), system.memory());
}

/// Has the one write, as in a round of many clients, until it holds as many keys as the other.
fn fill_up<A: System + Sync, B: System>(one: &A, other: &B) -> Result<(), BenchError> {
    let keys = |of: &AtomicU64| of.load(Ordering::Relaxed);
    while keys(one.written()) < keys(other.written()) {
        let before = keys(one.written());
        load::round(one, Work::Put, *CLIENTS.iter().max().unwrap_or(&1), Duration::from_secs(1))?;
        if keys(one.written()) == before {
            let why = format!("{} takes no writes any more, at {before} keys", one.name());
            return Err(BenchError::Io(std::io::Error::other(why)));
        }
    }
    Ok(())
}

/// Writes and reads beside those of another system.
fn beside<S: System + Sync>(
    wanted: &dyn Fn(&str) -> bool,
    clients: &[usize],
    ours: &ours::Ours,
    (title, other): (&str, Option<&S>),
    directory: &Path,
) -> Result<(), BenchError> {
    println!("{:<8} {:>7} | {:>34} | {title:>34} | {:>6} {:>6}", "work", "clients", "ours", "ops", "p99");
    for (name, work) in [("writes", Work::Put), ("reads", Work::Read), ("local", Work::Local)] {
        if wanted(name) {
            compare((name, work), clients, ours, (title, other), directory)?;
        }
    }
    Ok(())
}

fn compare<S: System + Sync>(
    (name, work): (&str, Work),
    clients: &[usize],
    ours: &ours::Ours,
    (title, beside): (&str, Option<&S>),
    directory: &Path,
) -> Result<(), BenchError> {
    for clients in clients.iter().copied() {
        let (mut own, mut other, mut syncs) = (Vec::new(), Vec::new(), Vec::new());
        let rounds = if (work, clients) == (Work::Put, 1) { ROUNDS_ALONE } else { ROUNDS };
        for round in 0..rounds {
            if work == Work::Put {
                syncs.push(disk::Syncs::measure(directory)?);
            }
            // Neither is always the one after the other.
            for step in 0..2 {
                if (round + step) % 2 == 0 {
                    own.push(load::round(ours, work, clients, ROUND)?);
                } else if let Some(beside) = beside {
                    other.push(load::round(beside, work, clients, ROUND)?);
                }
            }
        }
        let rates =
            |rounds: &[load::Figures]| rounds.iter().map(|round| round.rate as u64).collect::<Vec<_>>();
        let mut all = format!("rounds: ours {:?}/s", rates(&own));
        if beside.is_some() {
            all += &format!(", {title} {:?}/s", rates(&other));
        }
        let own = load::median(own);
        match beside.is_some() {
            true => {
                let other = load::median(other);
                let (ops, tail) = (own.rate / other.rate, own.p99 / other.p99);
                println!("{name:<8} {clients:>7} | {own:>34} | {other:>34} | {ops:>5.2}x {tail:>5.2}x");
            }
            false => println!("{name:<8} {clients:>7} | {own:>34} |"),
        }
        println!("{:<8} {:>7} | {all}", "", "");
        if !syncs.is_empty() {
            println!("{:<8} {:>7} | {}", "", "", disk::Syncs::joined(syncs));
        }
    }
    Ok(())
}
