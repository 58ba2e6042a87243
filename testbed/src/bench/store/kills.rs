//! The leader's process killed with SIGKILL, thirty times: how long until a write succeeds again?
//!
//! Decides what counts: the first success of a write that was begun after the kill, at any of the two others.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::super::BenchError;
use super::{System, load};
use crate::clock;

const KILLS: usize = 30;
/// A new write begins this often at each of the two: one that meets the gap may wait for its own time limit.
const EVERY: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(30);
/// Rest between two kills.
const REST: Duration = Duration::from_secs(2);

pub fn run<S: System + Sync>(system: &S) -> Result<(), BenchError> {
    let mut times = Vec::new();
    for number in 0..KILLS {
        let leader = system.leader()?;
        times.push(load::outside(system, async move || gap(system, leader, number).await)?);
        std::thread::sleep(REST);
    }
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0, Duration::as_millis);
    println!(
        "leader kill -9 to a write that succeeds, {}: median {} ms, worst {} ms of {}",
        system.name(),
        ms(times.get(times.len() / 2)),
        ms(times.last()),
        times.len()
    );
    Ok(())
}

async fn gap<S: System>(system: &S, leader: usize, number: usize) -> Result<Duration, BenchError> {
    let mut others = Vec::new();
    for index in (0..3).filter(|index| *index != leader) {
        others.push(system.connect(index).await?);
    }
    let begun = clock::now();
    system.kill(leader)?;
    let mut writes = JoinSet::new();
    let took = loop {
        for client in &others {
            let (client, key) =
                (client.clone(), format!("stream/kill/{number}/{}", begun.elapsed().as_micros()));
            let put = async move { client.put(key.as_bytes(), b"after").await.map(|()| clock::now()) };
            clock::spawn_in(&mut writes, put);
        }
        if let Some(at) = first(&mut writes).await {
            break at - begun;
        }
        if begun.elapsed() > LIMIT {
            return Err(late("a write", system));
        }
    };
    writes.shutdown().await;
    back(system, leader).await?;
    Ok(took)
}

/// The first success within a moment.
async fn first(writes: &mut JoinSet<Result<Instant, String>>) -> Option<Instant> {
    let success = async {
        while let Some(ended) = writes.join_next().await {
            if let Ok(Ok(at)) = ended {
                return at;
            }
        }
        std::future::pending().await
    };
    tokio::time::timeout(EVERY, success).await.ok()
}

/// Waits until the killed one takes writes again.
async fn back<S: System>(system: &S, killed: usize) -> Result<(), BenchError> {
    let begun = clock::now();
    while begun.elapsed() < LIMIT {
        if let Ok(client) = system.connect(killed).await
            && client.put(b"stream/back", b"").await.is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(late("the killed member", system))
}

fn late<S: System>(what: &str, system: &S) -> BenchError {
    BenchError::Late { what: what.into(), limit: LIMIT, logs: system.bed().directory().to_owned() }
}
