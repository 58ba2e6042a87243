//! Decides what can be said to the store: the closed list of commands and of their answers.
//! These types are in the log for ever: they gain variants at their end and never change.
//! Must not decide what a command does (`state::apply`) nor how it is proposed (`replica::proposals`).

use std::sync::Arc;

use bincode::de::Decoder;
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

use crate::codec;
use crate::ids::{Epoch, NodeId, Revision, SessionId};
use crate::limits;
use crate::version::{self, Supported, Version};

/// A key: bytes, ordered as bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct Key(pub Arc<[u8]>);

/// A value: bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Value(pub Arc<[u8]>);

impl<C> Decode<C> for Key {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Key, DecodeError> {
        codec::shared_bytes(decoder).map(Key)
    }
}

impl<C> Decode<C> for Value {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Value, DecodeError> {
        codec::shared_bytes(decoder).map(Value)
    }
}

bincode::impl_borrow_decode!(Key);
bincode::impl_borrow_decode!(Value);

impl<T: AsRef<[u8]>> From<T> for Key {
    fn from(bytes: T) -> Key {
        Key(Arc::from(bytes.as_ref()))
    }
}

impl<T: AsRef<[u8]>> From<T> for Value {
    fn from(bytes: T) -> Value {
        Value(Arc::from(bytes.as_ref()))
    }
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// What the log carries. A replica that meets a variant it does not know stops with a message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// A leader's first entry: the epoch becomes `term`. Proposed by the replica itself, never by the driver.
    Epoch {
        /// The leader's term.
        term: u64,
    },
    /// Begins a session; opening an open one changes nothing.
    OpenSession {
        /// Fresh for each boot of an agent.
        session: SessionId,
    },
    /// Ends a session and forgets its answers.
    CloseSession {
        /// The session to end.
        session: SessionId,
    },
    /// Compares, then writes, exactly once for each (session, sequence).
    Transact {
        /// The session, which must be open.
        session: SessionId,
        /// The request's number in its session.
        sequence: u64,
        /// Refused unless this is the current epoch. `None` for commands that are not a leader's decision.
        epoch: Option<Epoch>,
        /// What to do.
        transaction: Transaction,
    },
    /// Forgets the history at and below `floor` (never above the current revision, never backwards).
    Compact {
        /// Watches may resume after this revision and later ones.
        floor: Revision,
        /// Refused unless this is the current epoch.
        epoch: Epoch,
    },
    /// Removes keys whose time to live is over, each only if it was not changed since.
    Expire {
        /// The keys, and the revisions at which they were last changed.
        keys: Vec<(Key, Revision)>,
        /// Refused unless this is the current epoch.
        epoch: Epoch,
    },
    /// Raises the cluster's version, never lowers it. From cluster version 2 on, which it brings: proposed only once every member
    /// supports the new version.
    SetVersion {
        /// The new version.
        version: Version,
        /// Refused unless this is the current epoch.
        epoch: Epoch,
    },
}

/// If all compares hold, all operations take effect at one new revision; otherwise none does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Transaction {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// In order; of several on one key the last counts. Operations that change nothing make no revision.
    pub ops: Vec<Op>,
}

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Compare {
    /// The key looked at.
    pub key: Key,
    /// What must be found.
    pub expect: Expect,
}

/// What a compare demands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Expect {
    /// The key has no entry.
    Absent,
    /// The key has an entry.
    Present,
    /// The entry was last changed at exactly this revision.
    ModRevision(Revision),
    /// The entry was made at exactly this revision (and not deleted since).
    CreateRevision(Revision),
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Op {
    /// Sets the key. The same bytes again change nothing.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
    },
    /// Removes the key. An absent one changes nothing.
    Delete {
        /// The key.
        key: Key,
    },
    /// Sets the key for a time: the leader removes it when it has applied this so many seconds ago, or been elected so many
    /// seconds ago. Done again it counts anew, with the same bytes too; a `Put` ends the time, and the key stays.
    PutFor {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
        /// How long it stays.
        seconds: u32,
    },
}

impl Op {
    /// The key it writes.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key } | Op::PutFor { key, .. } => key,
        }
    }
}

/// The answer to a proposal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Done. `revision` is the new one, or the current one if nothing changed.
    Applied {
        /// The store's revision afterwards.
        revision: Revision,
        /// Whether a new revision was made.
        changed: bool,
    },
    /// A compare did not hold; nothing was written.
    CompareFailed {
        /// Which compare, counted from 0.
        index: u32,
        /// Its key.
        key: Key,
        /// The key's mod revision, `None` if it has no entry.
        actual: Option<Revision>,
    },
    /// The command's epoch is not the current one; nothing was written.
    StaleEpoch {
        /// The epoch that counts.
        current: Epoch,
    },
    /// The session is not open (any more). Whether an earlier try took effect is unknown.
    UnknownSession,
    /// The sequence has left the session's window. Whether it took effect is unknown.
    SequenceBelowWindow,
    /// This replica does not lead; nothing was proposed.
    NotLeader {
        /// Who leads, as far as this replica knows.
        leader: Option<NodeId>,
    },
    /// Leadership was lost before the commit was seen. Whether it took or will take effect is unknown: repeat it
    /// with the same (session, sequence).
    Lost,
    /// The membership change is complete.
    MembersChanged {
        /// The voters now.
        voters: Vec<NodeId>,
        /// The learners now.
        learners: Vec<NodeId>,
    },
    /// Nothing was proposed.
    Refused(Refusal),
}

/// Why nothing was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// Too many bytes wait for their commit.
    #[error("too many writes are waiting for a majority's disks; try again shortly")]
    Busy,
    /// The leader is handing over.
    #[error("the leader is handing over to another machine; try again shortly")]
    HandingOver,
    /// A key, a value, or the whole is too long, or the key is empty.
    #[error(
        "a key is empty or longer than 4 KiB, a value longer than 2 MiB, or the whole request longer than 4 MiB; make it smaller"
    )]
    TooLarge,
    /// Only the replica itself proposes epochs.
    #[error("epochs are proposed by the leader's replica itself; leave this command out")]
    NotForDrivers,
    /// One membership change at a time.
    #[error("another membership change is under way; wait until it has finished")]
    ChangeInProgress,
    /// The change is empty, contradicts itself, or leaves no voter.
    #[error("the membership change is empty, names a member twice, or leaves no voter; correct it")]
    BadChange,
    /// A leader does not remove or demote itself.
    #[error("the leader cannot remove or demote itself; transfer leadership first")]
    LeaderWouldLeave,
    /// raft dropped the change in favour of another one.
    #[error("the membership change was overtaken by another one; look at the members and try again")]
    Overtaken,
    /// The leader's disk has no room.
    #[error(
        "the leader's disk is full: nothing is written until there is room, what was written is safe. Free some space on it"
    )]
    DiskFull,
    /// Not every member's binary knows it.
    #[error(
        "this needs a newer cluster version than the cluster has or this machine supports: upgrade skein on all members; 'skein cluster status' names who is missing"
    )]
    Version,
}

impl Command {
    /// The cluster version that brought it: a replica that does not support that stops when it meets it in the log.
    pub fn needs(&self) -> Version {
        match self {
            Command::SetVersion { .. } => version::HASHED_VALUES,
            Command::Epoch { .. }
            | Command::OpenSession { .. }
            | Command::CloseSession { .. }
            | Command::Transact { .. }
            | Command::Compact { .. }
            | Command::Expire { .. } => version::FIRST,
        }
    }

    /// Whether a cluster of this version may have it in its log. What raises the version comes before it.
    pub(crate) fn fits(&self, current: Version, supported: &Supported) -> bool {
        match self {
            Command::SetVersion { version, .. } => supported.holds(*version),
            command => command.needs() <= current,
        }
    }

    /// Whether keys, values and counts are within the limits. The encoded length is checked apart.
    pub fn within_limits(&self) -> bool {
        match self {
            Command::Transact { transaction, .. } => transaction.within_limits(),
            _ => true,
        }
    }
}

impl Transaction {
    /// Bytes of its keys and values.
    pub fn weight(&self) -> usize {
        let compares = self.compares.iter().map(|compare| compare.key.0.len());
        compares.chain(self.ops.iter().map(Op::weight)).sum()
    }

    fn within_limits(&self) -> bool {
        let key_fits = |key: &Key| (1..=limits::KEY_BYTES).contains(&key.0.len());
        self.compares.len() + self.ops.len() <= limits::TRANSACTION_PARTS
            && self.compares.iter().all(|compare| key_fits(&compare.key))
            && self.ops.iter().all(|op| key_fits(op.key()) && op.value_fits())
    }
}

impl Op {
    fn weight(&self) -> usize {
        let value = match self {
            Op::Put { value, .. } | Op::PutFor { value, .. } => value.0.len(),
            Op::Delete { .. } => 0,
        };
        self.key().0.len() + value
    }

    fn value_fits(&self) -> bool {
        match self {
            Op::Put { value, .. } | Op::PutFor { value, .. } => value.0.len() <= limits::VALUE_BYTES,
            Op::Delete { .. } => true,
        }
    }
}
