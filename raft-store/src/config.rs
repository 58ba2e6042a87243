//! Decides what a replica may be told from outside. Must not hold anything that replicas have to agree on:
//! limits that shape the replicated state are constants in `limits`.

use crate::ids::{ClusterId, NodeId};
use crate::timing;
use crate::version::Supported;

/// One replica's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// This replica. Not zero.
    pub id: NodeId,
    /// The cluster it belongs to; written into every file and message.
    pub cluster: ClusterId,
    /// Multiplies the network times of `timing`: 1 normally, 4 on slow links.
    pub stretch: u32,
    /// A command that comes within so many milliseconds after another carries that one's commit (`timing::STREAM_MS`).
    pub stream_ms: u64,
    /// Seeds election timeouts and the salt of log segments. Fresh for each start, fixed in the simulator.
    pub seed: u64,
    /// Bytes of log after which a snapshot is written and old segments go; more when the snapshot is big.
    pub snapshot_every_bytes: u64,
    /// Bytes of a snapshot that are written and synced in one `advance`, beside what else is to be written; more where that is much.
    pub snapshot_step_bytes: usize,
    /// Bytes of one piece of a state that is fed.
    pub feed_piece_bytes: usize,
    /// Bytes of applied entries kept in memory, for followers that lag a little; more when the state is big, or
    /// somebody is known to lack them.
    pub trailing_bytes: u64,
    /// Length of a log segment, zero-filled when it is made.
    pub segment_bytes: u64,
    /// The cluster versions that this replica can take part in: the binary's, but in tests.
    pub supported: Supported,
}

impl Config {
    /// The settings of a production replica.
    pub fn new(id: NodeId, cluster: ClusterId, seed: u64) -> Config {
        Config {
            id,
            cluster,
            stretch: 1,
            stream_ms: timing::STREAM_MS,
            seed,
            snapshot_every_bytes: 32 << 20,
            snapshot_step_bytes: 1 << 20,
            feed_piece_bytes: 256 << 10,
            trailing_bytes: 4 << 20,
            segment_bytes: 8 << 20,
            supported: Supported::OURS,
        }
    }
}
