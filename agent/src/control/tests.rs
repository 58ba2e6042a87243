//! The controllers on a real store, in memory: what comes out for what goes in.

pub(crate) mod bed;
mod endpoints;
mod faults;
mod figures;
mod garbage;
mod jobs;
mod placement;
mod rollouts;
mod workloads;
