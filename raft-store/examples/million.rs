//! A million objects of 1 KB in one replica on real files: what they cost in memory, how long a snapshot holds the replica up, and how
//! long a start takes. `cargo run --release -p raft-store --example million [DIRECTORY [OBJECTS [fill | again]]]`; `fill` leaves the files,
//! `again` starts from them.
//!
//! Decides nothing; it prints what it measured.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "it measures time, and fails as a test does"
)]

use std::path::{Path, PathBuf};
use std::process;
use std::time::Instant;

use raft_store::{
    ClusterId, Command, Config, Effect, FileDisk, Input, Key, Millis, NodeId, Op, Outcome, ProposalId,
    Replica, SessionId, Transaction,
};

const EACH: u64 = 500;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let directory = words.first().map_or_else(|| std::env::temp_dir().join("skein-million"), PathBuf::from);
    let objects: u64 = words.get(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let only = words.get(2).map(String::as_str);
    if only == Some("again") {
        return reopen(&directory, objects);
    }
    let _ = std::fs::remove_dir_all(&directory);
    fill(&directory, objects);
    if only == Some("fill") {
        return;
    }
    // In processes of their own, as agents start.
    for _ in 0..3 {
        let own = std::env::current_exe().unwrap();
        let again = process::Command::new(own).arg(&directory).args([&objects.to_string(), "again"]).status();
        assert!(again.unwrap().success());
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

fn config() -> Config {
    Config::new(NodeId(1), ClusterId([7; 16]), 1)
}

struct Clock {
    began: Instant,
    longest_ms: u128,
}

impl Clock {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.began.elapsed().as_millis()).unwrap())
    }

    fn advance(&mut self, replica: &mut Replica<FileDisk>) -> Vec<Effect> {
        let began = Instant::now();
        let effects = replica.advance(self.now()).unwrap();
        self.longest_ms = self.longest_ms.max(began.elapsed().as_millis());
        effects
    }
}

fn fill(directory: &Path, objects: u64) {
    let mut replica = Replica::create_first(FileDisk::open(directory).unwrap(), config()).unwrap();
    let mut clock = Clock { began: Instant::now(), longest_ms: 0 };
    clock.advance(&mut replica);
    propose(&mut replica, &mut clock, 1, Command::OpenSession { session: SessionId(1) });
    for first in (0..objects).step_by(EACH as usize) {
        let ops = (first..(first + EACH).min(objects)).map(put).collect();
        let transaction = Transaction { compares: Vec::new(), ops };
        let sequence = first / EACH + 1;
        let command = Command::Transact { session: SessionId(1), sequence, epoch: None, transaction };
        propose(&mut replica, &mut clock, sequence + 1, command);
    }
    println!("{objects} objects of 1 KB written in {:.1} s", clock.began.elapsed().as_secs_f64());
    // What is under way in the background ends while nothing else happens.
    let files = || std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.file_name());
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed().as_secs() < 60 && rounds < 100 {
        replica.handle(clock.now(), Input::Tick);
        clock.advance(&mut replica);
        // Then the segments that it covers, one in a round.
        rounds += u32::from(!files().any(|name| name == "snap.new"));
    }
    println!("the longest advance took {} ms", clock.longest_ms);
    let (now, most) = memory();
    println!("resident after it {now} MB, at most {most} MB");
}

fn put(number: u64) -> Op {
    let value: Vec<u8> = (0..1024u64).map(|at| (at ^ number.rotate_left(at as u32 % 64)) as u8).collect();
    Op::Put { key: Key::from(format!("stream/million/{number:08}")), value: value.into() }
}

fn propose(replica: &mut Replica<FileDisk>, clock: &mut Clock, id: u64, command: Command) {
    replica.handle(clock.now(), Input::Tick);
    replica.handle(clock.now(), Input::Propose { id: ProposalId(id), command });
    let effects = clock.advance(replica);
    let done = effects.iter().any(|effect| {
        matches!(effect, Effect::Answer { outcome: Outcome::Applied { .. }, id: ProposalId(of) } if *of == id)
    });
    assert!(done, "{effects:?}");
}

fn reopen(directory: &Path, objects: u64) {
    let begun = Instant::now();
    let mut replica = Replica::open(FileDisk::open(directory).unwrap(), config()).unwrap();
    let opened = begun.elapsed().as_millis();
    let mut clock = Clock { began: begun, longest_ms: 0 };
    clock.advance(&mut replica);
    let view = replica.view();
    assert_eq!(view.len() as u64, objects);
    println!("opened after {opened} ms, answering from all of it after {} ms", begun.elapsed().as_millis());
    let (now, most) = memory();
    println!("resident after the start {now} MB, at most {most} MB; {} ms of processor", processor_ms());
}

/// User and system time of this process, in clock ticks of 10 ms.
fn processor_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = text.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

/// Resident now and at most, in MB.
fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}
