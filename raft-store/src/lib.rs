//! A replicated, watchable object store: consensus, log, state, watch. Knows bytes and keys, nothing of Kubernetes.
//!
//! Everything here is decided in plain code: no sockets, no clock; the only IO is the `Disk` trait. Threads only help with what takes long and
//! do not outlive it, or write what is to be durable (`FileDisk`): what comes of it is the same without them.
//! A driver owns one [`Replica`] on one thread:
//!
//! 1. gather all inputs that wait, [`Replica::handle`] each (an `Input::Tick` every `timing::TICK_MS`);
//! 2. [`Replica::outbox`], and send what it gives: a leader's appends travel while its own disk writes;
//! 3. [`Replica::persist`], and perform what it gives: one write, one sync for all of it, and nothing else that others would wait for;
//! 4. [`Replica::advance`] ends the round; on an error of either end the process;
//! 5. perform the effects in order, then begin again, by [`Replica::due`] at the latest.
//!
//! Start with `replica`, then `log`, then `state`. Deliberately absent: forwarding, retries of proposals, who is
//! alive, authentication (the driver proves who a peer is), encryption.

/// Whether this bug of `planted::Bug` is in. Always false without the feature `planted-bugs`.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let is_in = crate::planted::is(crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let is_in = false;
        is_in
    }};
}

pub mod autopilot;
#[doc(hidden)]
pub mod check;
mod codec;
mod command;
mod config;
pub mod consistency;
mod disk;
mod effect;
mod feed;
mod file_disk;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod ids;
pub mod limits;
mod log;
mod members;
#[cfg(feature = "planted-bugs")]
pub mod planted;
mod raft_log_drain;
mod replica;
pub mod rescue;
pub mod sim_disk;
mod snapshot;
mod state;
mod storage;
pub mod timing;
pub mod version;
mod view;
mod wire;

pub use codec::CodecError;
pub use command::{Command, Compare, Expect, Key, Op, Outcome, Refusal, Transaction, Value};
pub use config::Config;
pub use disk::{Disk, DiskError};
pub use effect::{Effect, Fatal, FedBy, Input, MemberChange, PeerStatus, ReadFailure, Role, Status};
pub use file_disk::{FileDisk, FileDiskError};
pub use ids::{ClusterId, Epoch, Millis, NodeId, ProposalId, ReadId, Revision, SessionId};
pub use log::LogError;
pub use log::recover::OpenError;
pub use members::Members;
pub use replica::Replica;
pub use state::{Change, Entry};
pub use version::{Supported, Version};
pub use view::{Compacted, View};
