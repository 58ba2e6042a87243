//! Bugs on purpose: the simulator has to find each of them (`make sim-planted`), or it finds no others either.
//!
//! Decides which bug is in, for the thread that asks. Exists only with the feature `planted-bugs`; without it `planted!` is the
//! constant `false` and the enum is not there. Must not be enabled in anything that is shipped.

use std::cell::Cell;

/// One mistake each, of the kind that real stores have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A vote leaves before it is durable.
    VoteBeforeSync,
    /// A follower acknowledges entries before they are durable.
    AppendAckBeforeSync,
    /// A change of term and vote without entries is not written.
    VoteNotWritten,
    /// A batch counts as durable without a sync.
    BatchNotSynced,
    /// A batch counts as durable though its sync failed.
    SyncErrorIgnored,
    /// A start takes what it can read for durable.
    ReadCountsAsDurable,
    /// A new segment's name is not made durable.
    SegmentNameNotSynced,
    /// A snapshot is renamed into place before its bytes are durable.
    SnapshotNotSynced,
    /// The log that a snapshot covers goes before the snapshot is there.
    SegmentsDroppedEarly,
    /// A damaged batch is taken for a torn one, with all that follows it.
    DamageTakenForTear,
    /// A leader's proof that this disk was rolled back is ignored.
    RollbackUnnoticed,
    /// The commit mark is not written before members are applied.
    CommitForgotten,
    /// An empty membership entry is skipped like any empty entry.
    EmptyMembersSkipped,
    /// Nobody ends a joint state that an earlier leader began.
    JointNeverLeft,
    /// A change of members is taken while another one is not committed.
    SecondChange,
    /// The autopilot lets deaths take three voters down to one.
    SingleVoterShrink,
    /// A leader may take itself out, and goes on.
    LeaderLeaves,
    /// Entries that a new leader replaced stay in memory.
    ReplacedTailKept,
    /// A repeated request is applied again.
    AppliedTwice,
    /// A session forgets an answer too early and takes the repetition for a new request.
    AnswerForgotten,
    /// The epoch of a command is not looked at.
    EpochUnchecked,
    /// Compares always hold.
    ComparesHold,
    /// Each write of a transaction makes a revision of its own.
    TransactionSplit,
    /// A transaction without effect makes a revision all the same, on some replicas.
    RevisionByRole,
    /// The history is shortened by each replica's own clock.
    HistoryByLocalClock,
    /// A delete makes no change in the history.
    DeleteNotWatched,
    /// A key that comes again has the create revision that it had before it was deleted.
    CreateRevisionKept,
    /// A key goes though it was written again after its removal was proposed.
    ExpireUnchecked,
    /// A key that is written again goes when its first time is over.
    TimeNotCountedAnew,
    /// A new leader counts only what is written under it.
    OldTimesUncounted,
    /// A session goes on after it was closed.
    ClosedSessionLives,
    /// A read's context is used again for the next attempt.
    ReadContextReused,
    /// A leader answers reads by itself, without asking anybody.
    ReadByLease,
    /// A read is answered before what it must see has applied.
    ReadBeforeApply,
    /// Local reads are served before the old place is reached again after a restart.
    ServedBeforeCaughtUp,
    /// A snapshot carries no sessions.
    SnapshotWithoutSessions,
    /// A snapshot carries no times to live.
    SnapshotWithoutTimes,
    /// A snapshot carries no history.
    SnapshotWithoutHistory,
    /// The members of before stay after a snapshot is installed.
    SnapshotKeepsMembers,
    /// The bytes of an older state are sent as the snapshot of the newest, or fed as it.
    SnapshotFromOldBytes,
    /// Nobody tells raft what became of a snapshot.
    SnapshotNeverReported,
    /// An answer goes to whoever proposed at that index, in whatever term.
    AnswerByIndex,
    /// What was lost with the leadership is answered as done.
    LostAnsweredAsDone,
    /// Proposals are taken from anybody who sends a message.
    ForeignProposals,
    /// A feeder feeds what it holds, committed or not.
    StaleFeedUncommitted,
    /// A fed batch is put behind what is here, though it does not follow on it.
    StaleFeedWithGap,
    /// Nobody compares what came of a fed entry with what its feeder got.
    FeedsNotCompared,
    /// A leader that nobody answers goes on leading.
    NoCheckQuorum,
    /// Who heard no leader campaigns without asking whether it could win.
    NoPreVote,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 49] = [
        Bug::VoteBeforeSync,
        Bug::AppendAckBeforeSync,
        Bug::VoteNotWritten,
        Bug::BatchNotSynced,
        Bug::SyncErrorIgnored,
        Bug::ReadCountsAsDurable,
        Bug::SegmentNameNotSynced,
        Bug::SnapshotNotSynced,
        Bug::SegmentsDroppedEarly,
        Bug::DamageTakenForTear,
        Bug::RollbackUnnoticed,
        Bug::CommitForgotten,
        Bug::EmptyMembersSkipped,
        Bug::JointNeverLeft,
        Bug::SecondChange,
        Bug::SingleVoterShrink,
        Bug::LeaderLeaves,
        Bug::ReplacedTailKept,
        Bug::AppliedTwice,
        Bug::AnswerForgotten,
        Bug::EpochUnchecked,
        Bug::ComparesHold,
        Bug::TransactionSplit,
        Bug::RevisionByRole,
        Bug::HistoryByLocalClock,
        Bug::DeleteNotWatched,
        Bug::CreateRevisionKept,
        Bug::ExpireUnchecked,
        Bug::TimeNotCountedAnew,
        Bug::OldTimesUncounted,
        Bug::ClosedSessionLives,
        Bug::ReadContextReused,
        Bug::ReadByLease,
        Bug::ReadBeforeApply,
        Bug::ServedBeforeCaughtUp,
        Bug::SnapshotWithoutSessions,
        Bug::SnapshotWithoutTimes,
        Bug::SnapshotWithoutHistory,
        Bug::SnapshotKeepsMembers,
        Bug::SnapshotFromOldBytes,
        Bug::SnapshotNeverReported,
        Bug::AnswerByIndex,
        Bug::LostAnsweredAsDone,
        Bug::ForeignProposals,
        Bug::StaleFeedUncommitted,
        Bug::StaleFeedWithGap,
        Bug::FeedsNotCompared,
        Bug::NoCheckQuorum,
        Bug::NoPreVote,
    ];
}

thread_local! {
    static IN: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Puts a bug into every replica of this thread, or takes it out again.
pub fn plant(bug: Option<Bug>) {
    IN.set(bug);
}

pub(crate) fn is(bug: Bug) -> bool {
    IN.get() == Some(bug)
}
