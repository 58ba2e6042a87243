//! What the survivors see after a machine died, and when: asked of each every few milliseconds.
//!
//! Decides the moments. Only looks; what it asks is what any user may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::DemoError;
use super::cluster::{Cluster, Pod};
use super::manifests::WEB_REPLICAS;
use crate::clock;

const PAUSE: Duration = Duration::from_millis(30);

/// In the order in which they are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    Suspected,
    EndpointsOut,
    NewLeader,
    Dead,
    Replaced,
    Serving,
}

impl Moment {
    pub const ALL: [Moment; 6] = [
        Moment::Suspected,
        Moment::EndpointsOut,
        Moment::NewLeader,
        Moment::Dead,
        Moment::Replaced,
        Moment::Serving,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Moment::Suspected => "suspected by both survivors",
            Moment::EndpointsOut => "its endpoints out of both survivors' NodePort",
            Moment::NewLeader => "new leader",
            Moment::Dead => "dead, decided and written",
            Moment::Replaced => "its pods running elsewhere",
            Moment::Serving => "the replacement answers from outside",
        }
    }
}

pub type Timeline = BTreeMap<Moment, Duration>;

/// A machine that was killed, as its survivors know it.
pub struct Victim<'v> {
    pub name: &'v str,
    pub pods: Vec<&'v Pod>,
    pub killed: Instant,
}

/// Watches until all moments but the last have come, the limit is over, or somebody stops it.
pub fn watch(
    cluster: &Cluster<'_>,
    victim: &Victim<'_>,
    survivors: &[&str],
    limit: Duration,
    stop: &AtomicBool,
) -> Timeline {
    let lines: Vec<Timeline> = clock::threads(|scope| {
        let watchers: Vec<_> = survivors
            .iter()
            .flat_map(|host| [Look::Status, Look::Endpoints, Look::Pods].map(|look| (*host, look)))
            .map(|(host, look)| scope.spawn(move || follow(cluster, victim, host, look, limit, stop)))
            .collect();
        watchers.into_iter().filter_map(|watcher| watcher.join().ok()).collect()
    });
    merge(&lines, survivors.len())
}

#[derive(Debug, Clone, Copy)]
enum Look {
    Status,
    Endpoints,
    Pods,
}

impl Look {
    fn moments(self) -> &'static [Moment] {
        match self {
            Look::Status => &[Moment::Suspected, Moment::NewLeader, Moment::Dead],
            Look::Endpoints => &[Moment::EndpointsOut],
            Look::Pods => &[Moment::Replaced],
        }
    }
}

/// A moment has come when the last survivor has seen it.
fn merge(lines: &[Timeline], survivors: usize) -> Timeline {
    let mut merged = Timeline::new();
    for moment in Moment::ALL {
        let seen: Vec<Duration> = lines.iter().filter_map(|line| line.get(&moment).copied()).collect();
        if let Some(last) = seen.iter().max().filter(|_| seen.len() == survivors) {
            merged.insert(moment, *last);
        }
    }
    merged
}

fn follow(
    cluster: &Cluster<'_>,
    victim: &Victim<'_>,
    host: &str,
    look: Look,
    limit: Duration,
    stop: &AtomicBool,
) -> Timeline {
    let mut line = Timeline::new();
    clock::poll(limit, PAUSE, || {
        // An agent that does not answer for a moment shows nothing new.
        let seen = match look {
            Look::Status => status(cluster, victim.name, host),
            Look::Endpoints => endpoints(cluster, victim, host),
            Look::Pods => pods(cluster, victim.name, host),
        };
        for moment in seen.unwrap_or_default() {
            line.entry(moment).or_insert_with(|| victim.killed.elapsed());
        }
        let all = look.moments().iter().all(|moment| line.contains_key(moment));
        (all || stop.load(Ordering::Relaxed)).then_some(())
    });
    line
}

fn status(cluster: &Cluster<'_>, victim: &str, host: &str) -> Result<Vec<Moment>, DemoError> {
    let status = cluster.json(host, &["cluster", "status"])?;
    let members = status["members"].as_array().into_iter().flatten();
    let state = members.filter(|m| m["name"] == victim).find_map(|m| m["state"].as_str()).unwrap_or("");
    let mut seen = Vec::new();
    if matches!(state, "suspected" | "dead") {
        seen.push(Moment::Suspected);
    }
    if state == "dead" {
        seen.push(Moment::Dead);
    }
    if status["leader"].as_str().is_some_and(|leader| !leader.is_empty() && leader != victim) {
        seen.push(Moment::NewLeader);
    }
    Ok(seen)
}

/// The kernel's own table of who answers at node ports.
fn endpoints(cluster: &Cluster<'_>, victim: &Victim<'_>, host: &str) -> Result<Vec<Moment>, DemoError> {
    let table = cluster.host(host)?.ok(["nft", "list", "map", "inet", "skein", "port_slots"])?;
    let addresses: BTreeSet<&str> = table.split(|c: char| !c.is_ascii_digit() && c != '.').collect();
    let gone = !victim.pods.iter().any(|pod| addresses.contains(pod.address.as_str()));
    Ok(if gone { vec![Moment::EndpointsOut] } else { Vec::new() })
}

fn pods(cluster: &Cluster<'_>, victim: &str, host: &str) -> Result<Vec<Moment>, DemoError> {
    let pods = cluster.pods(host, "web")?;
    let elsewhere = pods.iter().filter(|pod| pod.ready && pod.node != victim).count();
    Ok(if elsewhere >= WEB_REPLICAS { vec![Moment::Replaced] } else { Vec::new() })
}
