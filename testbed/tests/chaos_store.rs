//! The store on real processes that are killed, paused and cut off: a short run with a fixed seed. `make chaos-store` runs more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail as the test does")]

use std::path::PathBuf;

use testbed::chaos::{ChaosConfig, run};

#[test]
fn what_clients_are_told_while_agents_die_could_be_one_store() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos-store");
    // Three vote, one observes.
    let report = match run(&ChaosConfig { directory, hosts: 4, voters: None, seconds: 30, seed: 7 }) {
        Ok(report) => report,
        Err(error) => panic!("{error}"),
    };
    println!("{}", report.text);
    assert!(report.obeyed.drained && report.obeyed.pinned, "who votes was changed: {}", report.text);
}
