//! Decides how long things take: the one table of this crate's times, in milliseconds and in ticks.
//! Must not read a clock; everything is counted from the `now` that the driver hands in.

/// Length of one tick. The driver gives one `Input::Tick` each time this has passed.
pub const TICK_MS: u64 = 25;
/// A leader sends heartbeats this often.
pub const HEARTBEAT_MS: u64 = 175;
/// A follower that heard nothing campaigns after a random time from this …
pub const ELECTION_MIN_MS: u64 = 500;
/// … to this (exclusive).
pub const ELECTION_MAX_MS: u64 = 900;
/// Followers are told of a command's commit by the entries of the next one, if that comes within this.
pub const STREAM_MS: u64 = 3;
/// A read round without an answer is begun anew, under a new context, after this.
pub const READ_RETRY_MS: u64 = 150;
/// A linearizable read that could not be confirmed fails after this.
pub const READ_DEADLINE_MS: u64 = 3_000;
/// A snapshot that was sent and never reported on counts as failed after this.
pub const SNAPSHOT_REPORT_MS: u64 = 150_000;
/// Changes older than this leave the history window …
pub const HISTORY_MS: u64 = 300_000;
/// … in steps of this.
pub const HISTORY_SAMPLE_MS: u64 = 30_000;

/// A voter that has been confirmed dead for this long is replaced.
pub const REPLACE_VOTER_MS: u64 = 3_000;
/// Who holds what the log held this long ago has caught up.
pub const CAUGHT_UP_MS: u64 = 200;

/// A leader looks this often for keys whose time to live is over.
pub const EXPIRY_LOOK_MS: u64 = 1_000;
/// A replica looks this often whether its full disk has room again, and whether its disk lets it lead.
pub const BURDEN_LOOK_MS: u64 = 1_000;
/// A sync that takes longer is slow …
pub const SLOW_SYNC_MS: u64 = 150;
/// … and so many in a row are too slow for a leader,
pub const SLOW_SYNCS: u32 = 8;
/// as is one that takes so long.
pub const STALLED_SYNC_MS: u64 = 1_000;
/// A leader that handed over because of its disk, and was elected again, bears it this long.
pub const HAND_OVER_REST_MS: u64 = 30_000;
/// Entries are kept for a voter or learner that answered so long ago: it lags, or starts again.
pub const LAGGARD_MS: u64 = 10_000;

/// A feeder with nothing to feed says so this often.
pub const FEED_BEAT_MS: u64 = 150;
/// A feeder that has just fed gathers for so long what is applied meanwhile.
pub const FEED_GATHER_MS: u64 = 80;
/// Who is fed says this often what is durable; at once only after many bytes. A feeder at rest speaks more often, so none waits for long.
pub const FEED_ACK_MS: u64 = 200;
/// A feeder that says nothing for so long is left for another, as is raft's leader by one that has never voted.
pub const FEED_SILENCE_MS: u64 = 600;
/// Who said nothing is asked after all others for so long.
pub const FEED_SILENT_MS: u64 = 10_000;
/// A feeder that hears of no leader for so long is left.
pub const FEED_LEADERLESS_MS: u64 = 2_000;
/// Who votes or learns asks for a feed after its leader was silent for so long.
pub const FEED_PATIENCE_MS: u64 = 2_000;
/// Who has not come for so long to what its feeder had feeds nobody until it has.
pub const FEED_LAG_MS: u64 = 10_000;
/// Who lacks much of what its feeder has for so long gives its place to somebody who asks for one.
pub const FEED_HELD_MS: u64 = 30_000;
/// Who was behind is asked again after this,
pub const FEED_RETRY_MS: u64 = 250;
/// who was full or silent after this,
pub const FEED_REST_MS: u64 = 1_000;
/// who has another state, or cannot serve, after this.
pub const FEED_SHUN_MS: u64 = 60_000;
/// Whoever is fed by the leader, or far from the voters, asks a voter instead after this; the wait doubles while that is in vain, up to
/// `FEED_SHUN_MS`.
pub const FEED_SETTLED_MS: u64 = 5_000;
/// Who is fed and says nothing for so long is forgotten.
pub const FEED_LOST_MS: u64 = 3_000;
/// A feeder that hears of no leader for so long ends its feeds.
pub const FEED_STALE_MS: u64 = 1_000;
/// What did not fit is sent again after this, then after twice as long, …
pub const FEED_AGAIN_MS: u64 = 100;
/// … but at least this often.
pub const FEED_AGAIN_MOST_MS: u64 = 3_200;
/// The pieces of a state that are under way are sent again when none was taken for so long.
pub const FEED_PIECE_AGAIN_MS: u64 = 1_000;
/// A state all of which was taken is installed within this, or begun anew,
pub const FEED_INSTALL_MS: u64 = 5_000;
/// as is one of which nothing more is taken for so long, …
pub const FEED_STUCK_MS: u64 = 15_000;
/// … and one that a full disk had no room for, after this.
pub const FEED_ROOM_MS: u64 = 5_000;
/// A learner that has not caught up after this is not to vote after all …
pub const PROMOTION_MS: u64 = 5_000;
/// … (if it is being sent a state, after this) …
pub const PROMOTION_BY_SNAPSHOT_MS: u64 = 30_000;
/// … and is not tried again for so long.
pub const PROMOTION_REST_MS: u64 = 60_000;

/// The table in ticks, stretched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Least ticks of silence before a follower campaigns; also the check-quorum interval.
    pub election_min_ticks: usize,
    /// Ticks of silence after which it surely campaigns (exclusive).
    pub election_max_ticks: usize,
    /// Milliseconds until a read round is begun anew.
    pub read_retry_ms: u64,
    /// Milliseconds until a read fails.
    pub read_deadline_ms: u64,
}

impl Timing {
    /// The table with every network time multiplied by `stretch` (1 normally, 4 where round trips or the
    /// machine's own scheduling delay ask for it; 0 counts as 1).
    pub fn stretched(stretch: u32) -> Timing {
        let factor = u64::from(stretch.max(1));
        Timing {
            heartbeat_ticks: ticks(HEARTBEAT_MS * factor),
            election_min_ticks: ticks(ELECTION_MIN_MS * factor),
            election_max_ticks: ticks(ELECTION_MAX_MS * factor),
            read_retry_ms: READ_RETRY_MS * factor,
            read_deadline_ms: READ_DEADLINE_MS,
        }
    }
}

fn ticks(milliseconds: u64) -> usize {
    (milliseconds / TICK_MS) as usize
}
