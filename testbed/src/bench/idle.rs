//! What a cluster costs that does nothing, and whether a busy machine is taken for a dead one.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{BenchError, Cluster, kilobytes, start};

/// Clock ticks per second of /proc/PID/stat on Linux.
const TICKS: f64 = 100.0;

/// Memory and CPU of the agents at rest, writes at rest, memory of a shim.
pub fn quiet(cluster: &Cluster) -> Result<(), BenchError> {
    let length = Duration::from_secs(20);
    let pids: Vec<i32> = (0..3).filter_map(|index| machine_pid(cluster, index)).collect();
    std::thread::sleep(Duration::from_secs(5));
    let (before, revision) =
        (pids.iter().map(|pid| cpu(*pid)).collect::<Vec<_>>(), cluster.status(0)?["revision"].clone());
    std::thread::sleep(length);
    let after = cluster.status(0)?["revision"].clone();
    for (pid, before) in pids.iter().zip(before) {
        let share = (cpu(*pid) - before) / length.as_secs_f64() * 100.0;
        println!(
            "idle agent: {:.1} MB resident, {share:.2} % of a core",
            kilobytes(&format!("/proc/{pid}/status"), "VmRSS:") / 1000.0
        );
    }
    println!("store revisions in {} s of rest: {} to {}", length.as_secs(), revision, after);
    for pods in [3, 30] {
        shims(cluster, pods)?;
    }
    Ok(())
}

/// Memory of the shims of so many pods over three hosts. The shims of one host share the pages of their program.
fn shims(cluster: &Cluster, pods: u32) -> Result<(), BenchError> {
    cluster.api(0).post(start::DEPLOYMENTS, &start::deployment(&cluster.image, "shims", pods))?;
    start::until_running(cluster, 0, "shims", pods as usize)?;
    // A shim gives memory back once it has had nothing to do for a moment.
    std::thread::sleep(Duration::from_secs(1));
    let shims: Vec<f64> = processes()
        .into_iter()
        .filter(|pid| is_shim(*pid) && is_ours(cluster, *pid))
        .map(|pid| kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:"))
        .collect();
    let most = shims.iter().copied().fold(0.0, f64::max);
    println!("shims: {} at rest, at most {:.2} MB proportional (PSS)", shims.len(), most / 1000.0);
    cluster.remove("shims")
}

const BUSY: Duration = Duration::from_secs(120);
/// Hosts of a crowd.
const CROWD: usize = 10;

/// All cores busy for two minutes, on so many hosts as the cluster has: how many members were suspected or called dead, and how
/// often was a leader elected?
pub fn busy(cluster: &Cluster) -> Result<(), BenchError> {
    let stop = AtomicBool::new(false);
    let (mut looks, mut suspected, mut dead) = (0, 0, 0);
    let before = cluster.status(0)?["term"].as_u64();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    crate::clock::threads(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let end = crate::clock::now() + BUSY;
        while crate::clock::now() < end {
            std::thread::sleep(Duration::from_millis(200));
            let Ok(status) = cluster.status(0) else { continue };
            for member in status["members"].as_array().into_iter().flatten() {
                looks += 1;
                suspected += usize::from(member["state"] == "suspected");
                dead += usize::from(member["state"] == "dead");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "{} hosts, all cores busy for {} s: members seen dead {dead} times, suspected {suspected} times (of {looks} looks); term {} to {}",
        cluster.bed.hosts().len(),
        BUSY.as_secs(),
        before.unwrap_or(0),
        cluster.status(0)?["term"]
    );
    Ok(())
}

/// The same with ten hosts, five of which vote.
pub fn crowd(directory: &Path) -> Result<(), BenchError> {
    let cluster = Cluster::form_with("bench-crowd", &directory.join("crowd"), CROWD, |_| Ok(()))?;
    for host in cluster.bed.hosts().iter().skip(3) {
        host.start_agent()?;
        cluster.wait("an agent has its socket", || {
            Ok(host.run(["test", "-S", "/run/skein/agent.sock"])?.success())
        })?;
        cluster.join(host, &[])?;
    }
    let voters = || Ok(cluster.status(0)?["voters"].as_array().map_or(0, Vec::len) == 5);
    cluster.wait("five voters", voters)?;
    busy(&cluster)
}

pub(super) fn machine_pid(cluster: &Cluster, index: usize) -> Option<i32> {
    let host = cluster.host(index);
    host.machine_pid(host.agent_pid().ok()??).ok()?
}

/// Seconds of CPU that a process has used.
pub(super) fn cpu(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process runs on one of the bed's hosts.
fn is_ours(cluster: &Cluster, pid: i32) -> bool {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let hosts = cluster.bed.hosts().iter().filter_map(|host| host.init_pid().ok());
    hosts.map(namespace).any(|of_host| of_host.is_some() && of_host == namespace(pid))
}

/// A shim of one of our pods: executed from the agent's sealed copy with the word `shim`.
fn is_shim(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"shim")
}
