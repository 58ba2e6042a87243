//! Decides nothing: the closed lists of what goes into a replica and what comes out of it.

use crate::command::{Command, Outcome};
use crate::consistency::Marks;
use crate::ids::{Epoch, NodeId, ProposalId, ReadId, Revision};
use crate::version::{Supported, Version};
use crate::view::View;

/// What a driver tells a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// `timing::TICK_MS` have passed. After a pause one tick is enough: silence is not counted while asleep.
    Tick,
    /// Bytes from a peer whose connection proves that it is `from`, a member of this cluster.
    Message {
        /// The authenticated sender.
        from: NodeId,
        /// One envelope, as an `Effect::Send` gave it out.
        bytes: Vec<u8>,
    },
    /// Put a command into the log; answered by `Effect::Answer`.
    Propose {
        /// The driver's name for it.
        id: ProposalId,
        /// The command.
        command: Command,
    },
    /// A linearizable read; answered by `ReadReady` or `ReadFailed`.
    Read {
        /// The driver's name for it.
        id: ReadId,
    },
    /// Change the members, all at once; answered by `Effect::Answer` when the change is complete.
    ChangeMembers {
        /// The driver's name for it.
        id: ProposalId,
        /// The changes. More than one, or one voter for another, go through a joint state.
        changes: Vec<MemberChange>,
    },
    /// A message to this peer could not be delivered.
    Unreachable {
        /// The peer.
        peer: NodeId,
    },
    /// A bulk message (a snapshot) was delivered whole, or it was not. Owed for each `Effect::Send` with `bulk`.
    SnapshotSent {
        /// The peer.
        peer: NodeId,
        /// Whether it got all of it.
        ok: bool,
    },
    /// Hand leadership to a voter. Nothing happens unless this replica leads; watch `RoleChanged`.
    TransferLeadership {
        /// The voter.
        to: NodeId,
    },
    /// The other members, as far as the driver knows them: whom an observer may ask for a feed. Each names all of them.
    Peers {
        /// Those that answer.
        answering: Vec<NodeId>,
        /// Those that seem not to. They are asked last: the driver may be wrong.
        suspected: Vec<NodeId>,
    },
    /// How long the last `advance` took: a leader whose disk is slow hands over. Counts only if that wrote.
    Synced {
        /// Milliseconds.
        took_ms: u64,
    },
}

/// One member's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Becomes a voter. Nothing checks here that it has caught up: look at `Status::peers` first.
    AddVoter(NodeId),
    /// Becomes a learner (also a voter that shall no longer vote).
    AddLearner(NodeId),
    /// Leaves.
    Remove(NodeId),
}

impl MemberChange {
    /// Whom it is about.
    pub fn node(&self) -> NodeId {
        match self {
            MemberChange::AddVoter(id) | MemberChange::AddLearner(id) | MemberChange::Remove(id) => *id,
        }
    }
}

/// What a replica wants done, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send one envelope. It may be lost, doubled and overtaken; it must not be changed.
    Send {
        /// The receiver.
        to: NodeId,
        /// The envelope.
        bytes: Vec<u8>,
        /// A snapshot: it goes over the bulk connection, and `Input::SnapshotSent` is owed.
        bulk: bool,
    },
    /// The one answer to a proposal or a membership change.
    Answer {
        /// Which.
        id: ProposalId,
        /// What came of it.
        outcome: Outcome,
    },
    /// The newest view (that of this batch's `Applied`, else the last one) answers this read.
    ReadReady {
        /// Which.
        id: ReadId,
        /// The revision of that view.
        revision: Revision,
    },
    /// The read could not be confirmed.
    ReadFailed {
        /// Which.
        id: ReadId,
        /// Why.
        reason: ReadFailure,
    },
    /// Term, role or known leader changed.
    RoleChanged {
        /// The term.
        term: u64,
        /// This replica's role.
        role: Role,
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// This replica leads and its own epoch has applied: what a leader runs may start, and stops at `RoleChanged`.
    EpochBegan {
        /// The epoch that its commands carry.
        epoch: Epoch,
    },
    /// The state moved on. At most once per `advance`, and last.
    Applied {
        /// The newest view.
        view: View,
    },
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// No leader confirmed it in time.
    #[error("no leader confirmed the read within 3 s; ask for possibly old state, or try again")]
    Timeout,
}

/// What a replica is in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits; learners too.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// A replica as an operator or the autopilot sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub id: NodeId,
    /// Its term.
    pub term: u64,
    /// Its role.
    pub role: Role,
    /// Who leads, as far as is known.
    pub leader: Option<NodeId>,
    /// Commit index.
    pub commit: u64,
    /// Applied index.
    pub applied: u64,
    /// Last index of the log.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
    /// The voters (incoming ones in a joint state).
    pub voters: Vec<NodeId>,
    /// The learners.
    pub learners: Vec<NodeId>,
    /// Whether a membership change is half done.
    pub joint: bool,
    /// Whether everything that was applied before the last stop is applied again. Until then local reads could go
    /// backwards: serve none.
    pub caught_up: bool,
    /// Whether this replica leads and its own epoch has applied.
    pub established: bool,
    /// Hashes of what it has applied, to be compared with others'.
    pub marks: Marks,
    /// The disk is full: it takes the replica's own marks and no entries.
    pub disk_full: bool,
    /// Messages refused since the start.
    pub refused_messages: u64,
    /// The peers' progress, while leading.
    pub peers: Vec<PeerStatus>,
    /// Who feeds this replica, if it is fed.
    pub fed_by: Option<FedBy>,
    /// How many it feeds.
    pub feeds: usize,
    /// Who last fed something else than what this replica holds, and at which index they differ.
    pub diverged: Option<(NodeId, u64)>,
}

/// The feed of a replica that does not vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FedBy {
    /// The feeder.
    pub feeder: NodeId,
    /// How many feeds lie between this replica and a voter.
    pub hops: u32,
    /// The feeder's commit index: what is missing from it here is how old this replica's state is.
    pub commit: u64,
    /// Milliseconds since it said something.
    pub silent_ms: u64,
}

/// A peer as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// The last index known to be durable there.
    pub matched: u64,
    /// Whether it answered within the last election timeout.
    pub recent_active: bool,
    /// Whether it is being sent a snapshot.
    pub in_snapshot: bool,
}

/// The replica has stopped for good. End the process; on restart the store is read and checked anew.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The log could not be written: nothing that depended on it was sent.
    #[error("the store's log failed: {0}")]
    Log(#[from] crate::log::LogError),
    /// The log holds a command of a newer version.
    #[error("log entry {index} cannot be applied: {source}")]
    Command {
        /// The entry.
        index: u64,
        /// What is wrong.
        source: crate::codec::CodecError,
    },
    /// The leader's state is of a cluster version that this binary does not take part in.
    #[error(
        "the cluster is at version {cluster}, and this binary supports {} to {}; run a binary that supports version {cluster}",
        supported.oldest, supported.newest
    )]
    ClusterVersion {
        /// The cluster's.
        cluster: Version,
        /// The binary's.
        supported: Supported,
    },
    /// The leader holds this replica's promise for entries that its disk does not have.
    #[error(
        "the leader knows that this machine had stored log entries up to {promised}, but its disk ends at {last}: the disk \
         was rolled back or replaced. At its next start the agent asks the others to take it back under a new identity; if they do \
         not, run `skein node reset` on this machine and join again"
    )]
    RolledBack {
        /// The last index here.
        last: u64,
        /// The index that the leader counts on.
        promised: u64,
    },
    /// raft refused a step that it must not refuse.
    #[error("consensus failed: {0}; this is a bug: keep the data directory and report it")]
    Consensus(String),
    /// It had failed before.
    #[error("the replica has stopped after an earlier failure; restart the agent")]
    Stopped,
}
