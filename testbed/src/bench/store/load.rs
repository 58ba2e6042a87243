//! The load generator: so many clients, each with one request under way, over one connection per host.
//!
//! Decides keys, values and what a round's figures are. The same for whoever is measured.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::super::BenchError;
use super::{System, grpc, stream};
use crate::clock;

const VALUE_BYTES: usize = 256;
/// Keys that reads ask for.
const READ_KEYS: u64 = 1000;

static ROUND: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A new key each time.
    Put,
    /// The same hundred keys of each client: the state stays small.
    PutAgain,
    /// Linearizable.
    Read,
    /// etcd calls it serializable.
    Local,
}

/// A connection, shared by many clients.
#[derive(Clone)]
pub enum Client {
    Etcd(Box<grpc::Client>),
    Ours(stream::Client),
}

impl Client {
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match self {
            Client::Etcd(client) => client.put(key, value).await,
            Client::Ours(client) => client.put(key, value).await,
        }
    }

    async fn get(&self, key: &[u8], local: bool) -> Result<(), String> {
        let length = match self {
            Client::Etcd(client) => client.get(key, local).await?,
            Client::Ours(client) => client.get(key, local).await?,
        };
        if length >= VALUE_BYTES { Ok(()) } else { Err("the key was not found".into()) }
    }
}

/// Figures of one round; times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
    pub failed: usize,
}

impl Figures {
    /// Of sorted times in microseconds.
    fn of(times: &[u32], failed: usize, length: Duration) -> Figures {
        let at =
            |share: usize| times.get(times.len() * share / 100).map_or(0.0, |us| f64::from(*us) / 1000.0);
        Figures { rate: times.len() as f64 / length.as_secs_f64(), p50: at(50), p99: at(99), failed }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = if self.failed > 0 { format!(", {} FAILED", self.failed) } else { String::new() };
        f.pad(&format!("{:.0}/s p50 {:.2} p99 {:.2} ms{failed}", self.rate, self.p50, self.p99))
    }
}

/// The round of median rate.
pub fn median(mut rounds: Vec<Figures>) -> Figures {
    rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let failed = rounds.iter().map(|round| round.failed).sum();
    rounds
        .get(rounds.len() / 2)
        .map_or(Figures { rate: 0.0, p50: 0.0, p99: 0.0, failed }, |middle| Figures { failed, ..*middle })
}

/// Runs an async block on a thread with the outside's network.
pub fn outside<S: System, T: Send>(
    system: &S,
    act: impl AsyncFnOnce() -> Result<T, BenchError> + Send,
) -> Result<T, BenchError> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(act())
    };
    system.bed().outside().within(run)?
}

/// One round. The first client asks the leader's host; then one host after the other.
pub fn round<S: System + Sync>(
    system: &S,
    work: Work,
    clients: usize,
    length: Duration,
) -> Result<Figures, BenchError> {
    let leader = system.leader()?;
    outside(system, async move || {
        let mut connections = Vec::new();
        for step in 0..clients.min(3) {
            connections.push(system.connect((leader + step) % 3).await?);
        }
        if matches!(work, Work::Read | Work::Local) {
            fill(&connections[0]).await?;
        }
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let (begun, warm) = (clock::now(), length / 5);
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let client = connections[number % connections.len()].clone();
            let asking = ask(client, work, (round, number as u64), begun + warm, begun + warm + length);
            clock::spawn_in(&mut tasks, asking);
        }
        let (mut times, mut failed) = (Vec::new(), 0);
        while let Some(done) = tasks.join_next().await {
            let asked = done.map_err(std::io::Error::other)?;
            times.extend(asked.times);
            failed += asked.failed;
            if work == Work::Put {
                system.written().fetch_add(asked.succeeded, Ordering::Relaxed);
            }
        }
        times.sort_unstable();
        Ok(Figures::of(&times, failed, length))
    })
}

/// Linearizable reads of one client at `host` while others write by way of the leader.
pub fn reads_beside_writes<S: System + Sync>(
    system: &S,
    host: usize,
    writers: usize,
    length: Duration,
) -> Result<Figures, BenchError> {
    let leader = system.leader()?;
    outside(system, async move || {
        let (writing, reading) = (system.connect(leader).await?, system.connect(host).await?);
        fill(&writing).await?;
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let (begun, warm) = (clock::now(), length / 5);
        let (from, until) = (begun + warm, begun + warm + length);
        let mut tasks = JoinSet::new();
        for number in 0..writers {
            clock::spawn_in(&mut tasks, ask(writing.clone(), Work::Put, (round, number as u64), from, until));
        }
        let Asked { mut times, failed, .. } = ask(reading, Work::Read, (round, 0), from, until).await;
        while tasks.join_next().await.is_some() {}
        times.sort_unstable();
        Ok(Figures::of(&times, failed, length))
    })
}

async fn fill(client: &Client) -> Result<(), BenchError> {
    for number in 0..READ_KEYS {
        client.put(&read_key(number), &[7; VALUE_BYTES]).await.map_err(std::io::Error::other)?;
    }
    Ok(())
}

fn read_key(number: u64) -> Vec<u8> {
    format!("stream/read/{:08}", number % READ_KEYS).into_bytes()
}

/// What one client saw.
#[derive(Default)]
struct Asked {
    /// In microseconds, of what ended in the measured time.
    times: Vec<u32>,
    failed: usize,
    /// Before the measured time as well.
    succeeded: u64,
}

/// One client's loop until `until`, measured from `from`.
async fn ask(
    client: Client,
    work: Work,
    (round, number): (u64, u64),
    from: Instant,
    until: Instant,
) -> Asked {
    let mut asked = Asked::default();
    let value: Arc<[u8]> = (0..VALUE_BYTES).map(|at| (at as u64 ^ number) as u8).collect();
    for counter in 0.. {
        let begun = clock::now();
        let done = match work {
            Work::Put => {
                let key = format!("stream/{round:04}/{number:03}/{counter:08}");
                client.put(key.as_bytes(), &value).await
            }
            Work::PutAgain => {
                let key = format!("stream/again/{number:03}/{:02}", counter % 100);
                client.put(key.as_bytes(), &value).await
            }
            Work::Read | Work::Local => {
                client.get(&read_key(counter * 37 + number * 101), work == Work::Local).await
            }
        };
        let ended = clock::now();
        asked.succeeded += u64::from(done.is_ok());
        if ended >= until {
            break;
        }
        match done {
            Ok(()) if ended >= from => asked.times.push((ended - begun).as_micros() as u32),
            Ok(()) => {}
            Err(why) => {
                tracing::debug!(%why, "a request failed");
                asked.failed += 1;
            }
        }
    }
    asked
}
