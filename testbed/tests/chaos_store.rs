//! The store on real processes that are killed, paused and cut off: a short run with a fixed seed. `make chaos-store` runs more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail as the test does")]

use std::path::PathBuf;

use testbed::chaos::{ChaosConfig, run};

#[test]
fn what_clients_are_told_while_agents_die_could_be_one_store() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos-store");
    match run(&ChaosConfig { directory, hosts: 3, seconds: 20, seed: 7 }) {
        Ok(line) => println!("{line}"),
        Err(error) => panic!("{error}"),
    }
}
