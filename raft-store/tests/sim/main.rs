//! Whole clusters of production replicas on one thread: virtual time, bad disks, a bad network, all from one seed.
//! `world` moves things, `checks` judge them apart from the code under test, `chaos` and `scenarios` are the tests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a whole test crate")]

mod chaos;
mod checks;
mod clients;
mod scenarios;
mod world;
