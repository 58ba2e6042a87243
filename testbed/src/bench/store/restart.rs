//! A member with a million objects of 1 KB is restarted: how long until it answers from all of them?
//!
//! Decides the size. Ours only; the files are in the page cache.

use std::path::Path;
use std::time::Duration;

use agent::server::stream::protocol::{Answer, Ask, Read};
use nix::sys::signal::Signal;
use raft_store::{Key, Op, Transaction};

use super::super::BenchError;
use super::load::{self, Client};
use super::{System, ours};
use crate::clock;

const OBJECTS: u64 = 1_000_000;
const EACH: u64 = 500;
const UNDER_WAY: usize = 4;

pub fn run(directory: &Path) -> Result<(), BenchError> {
    let system = ours::Ours::start(&directory.join("ours"))?;
    let leader = system.leader()?;
    let begun = clock::now();
    load::outside(&system, async || fill(&system, leader).await)?;
    println!("{OBJECTS} objects of 1 KB written in {:.1} s", begun.elapsed().as_secs_f64());
    println!("resident MB: {:.0?}", system.memory());
    let victim = (leader + 1) % 3;
    let host = system.host(victim);
    host.stop_agent(Signal::SIGTERM)?;
    let begun = clock::now();
    host.start_agent()?;
    let limit = Duration::from_secs(120);
    let answered = clock::poll(limit, Duration::from_millis(10), || {
        let last = load::outside(&system, async || last_is_there(&system, victim).await);
        last.ok().filter(|there| *there)
    });
    answered.ok_or_else(|| BenchError::Late {
        what: "the restarted member answers".into(),
        limit,
        logs: directory.to_owned(),
    })?;
    let took = begun.elapsed().as_millis();
    let used =
        host.agent_pid()?.map(|pid| host.machine_pid(pid)).transpose()?.flatten().map_or(0, processor_ms);
    println!("restarted member answers from all of them after {took} ms, {used} ms of processor");
    Ok(())
}

/// User and system time of a process, in clock ticks of 10 ms: what else the machine does is not in it.
fn processor_ms(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).map(|ticks| ticks * 10).sum()
}

fn key(number: u64) -> Vec<u8> {
    format!("stream/million/{number:08}").into_bytes()
}

async fn fill(system: &ours::Ours, leader: usize) -> Result<(), BenchError> {
    let Client::Ours(client) = system.connect(leader).await? else { return Ok(()) };
    let mut writes = tokio::task::JoinSet::new();
    for first in (0..OBJECTS).step_by(EACH as usize) {
        let put = |number: u64| {
            let value: Vec<u8> =
                (0..1024u64).map(|at| (at ^ number.rotate_left(at as u32 % 64)) as u8).collect();
            Op::Put { key: key(number).into(), value: value.into() }
        };
        let transaction = Transaction { compares: Vec::new(), ops: (first..first + EACH).map(put).collect() };
        let client = client.clone();
        clock::spawn_in(&mut writes, async move { client.transact(transaction).await });
        while writes.len() >= UNDER_WAY {
            if let Some(done) = writes.join_next().await {
                done.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
            }
        }
    }
    while let Some(done) = writes.join_next().await {
        done.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
    }
    Ok(())
}

async fn last_is_there(system: &ours::Ours, host: usize) -> Result<bool, BenchError> {
    let Client::Ours(client) = system.connect(host).await? else { return Ok(false) };
    let answer = client.ask(Ask::Get { key: Key::from(key(OBJECTS - 1)), read: Read::Local }).await;
    Ok(matches!(answer, Ok(Answer::Entry { entry: Some(_), .. })))
}
