//! What every machine runs: membership, mesh, API server, controllers, scheduler, pod worker; joins the other crates.
//!
//! Decides in synchronous cores ([`membership`], [`liveness`], [`control`], [`worker::plan`]); drivers around them do the IO.

pub mod backup;
pub mod brake;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod consistency;
pub mod control;
pub mod credential;
pub mod doubles;
pub mod enrol;
pub mod events;
pub mod fabric;
pub mod feeders;
#[doc(hidden)]
pub mod fuzzing;
pub mod gossip;
pub mod identity;
pub mod images;
pub mod keyring;
pub mod leader;
pub mod liveness;
pub mod members;
pub mod membership;
pub mod mesh;
pub mod names;
pub mod node;
pub mod objects;
pub mod pki;
mod priority;
pub mod probe;
pub mod rebuild;
pub mod recovery;
pub mod requests;
pub mod reset;
pub mod restore;
pub mod run;
pub mod server;
pub mod store;
#[cfg(test)]
mod testing;
pub mod timing;
pub mod versions;
pub mod voters;
pub mod worker;

pub use config::Config;
pub use run::{RunError, run};

/// The oldest and the newest cluster version that this binary supports.
pub fn cluster_versions() -> (raft_store::Version, raft_store::Version) {
    (raft_store::Supported::OURS.oldest, raft_store::Supported::OURS.newest)
}
