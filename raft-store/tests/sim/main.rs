//! Whole clusters of production replicas on one thread: virtual time, bad disks, a bad network, all from one seed.
//! `world` moves things, `harm` hurts them, `checks`, `changes`, `times`, `watchers` and `raft_store::check` judge apart from the code under test, `chaos` and
//! `scenarios` are the tests, `planted` tests the tests. `make sim SEEDS=…` runs more of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a whole test crate")]

mod changes;
mod chaos;
mod checks;
mod clients;
mod clocks;
mod diverged;
mod feeds;
mod harm;
mod laggards;
#[cfg(feature = "planted-bugs")]
mod planted;
mod power;
mod quorum;
mod rounds;
mod scenarios;
mod snapshots;
mod speed;
mod streams;
mod times;
mod upgrades;
mod voters;
mod watchers;
mod world;
