//! Decides the sizes that all replicas must agree on, and those that keep a hostile message from costing memory.
//! Must not change between versions without a cluster version: apply depends on the first group.

/// Answers kept for each session.
pub const SESSION_WINDOW: usize = 256;
/// Most changes in the history window.
pub const HISTORY_CHANGES: usize = 100_000;
/// Most bytes in the history window.
pub const HISTORY_BYTES: u64 = 64 << 20;

/// Longest key.
pub const KEY_BYTES: usize = 4 << 10;
/// Longest value.
pub const VALUE_BYTES: usize = 2 << 20;
/// Most compares plus operations of one transaction.
pub const TRANSACTION_PARTS: usize = 4_096;
/// Longest encoded command, and so the longest log entry.
pub const COMMAND_BYTES: usize = 4 << 20;
/// Memory that decoding one command may claim: its bytes and the room of its parts.
pub const COMMAND_CLAIM: usize = 2 * COMMAND_BYTES;
/// Bytes of proposals that may wait for their commit.
pub const UNCOMMITTED_BYTES: u64 = 32 << 20;
/// Bytes of entries in one append message.
pub const APPEND_BYTES: u64 = 1 << 20;
/// Append messages on their way to one follower.
pub const INFLIGHT_APPENDS: usize = 128;
/// Bytes of committed entries handed to apply in one round.
pub const APPLY_BYTES: u64 = 1 << 20;
/// Longest message that is not a snapshot.
pub const MESSAGE_BYTES: usize = 48 << 20;
/// Longest snapshot, on disk and on the wire.
pub const SNAPSHOT_BYTES: usize = 2 << 30;
/// Most keys that one look lets expire.
pub const EXPIRED_AT_ONCE: usize = 256;
/// Read rounds of peers that a leader holds at once.
pub const PENDING_READS: usize = 4_096;

/// Members that one feeds at most, …
pub const FEEDS: usize = 64;
/// … one that votes, whose own work writes wait for, …
pub const VOTER_FEEDS: usize = 1;
/// … the leader, which is asked only when nobody else can and is left as soon as somebody can, …
pub const LEADER_FEEDS: usize = 2;
/// … and one that votes alone.
pub const LONE_VOTER_FEEDS: usize = 4;
/// An observer with so many feeds between itself and a voter looks for a nearer feeder, and feeds nobody.
pub const FEED_HOPS: u32 = 4;
/// Bytes on their way to one that is fed.
pub const FEED_CREDIT_BYTES: u64 = 4 << 20;
/// Bytes of entries in one batch of a feed.
pub const FEED_BATCH_BYTES: u64 = 1 << 20;
/// Whole states on their way to those that are fed, at once, …
pub const FEED_STATES: usize = 2;
/// … so many pieces of each: what raft says to the same machine waits behind them.
pub const FEED_PIECES: usize = 4;
/// Longest piece that is taken.
pub const FEED_PIECE_BYTES: usize = 1 << 20;
/// Bytes of applied entries that are kept in memory at most for who lacks them: voters and learners that lag, and those that are fed.
pub const LOG_KEPT_BYTES: u64 = 128 << 20;
/// Refusals after which somebody who wants a feed waits before others are asked.
pub const FEED_REFUSALS: u64 = 8;
/// Entries that one may lack and still be named as a feeder.
pub const FEED_LACKS: u64 = 4_096;
/// Names that are believed of who refuses a feed.
pub const FEED_HINTS: usize = 16;
