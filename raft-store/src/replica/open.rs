//! Decides how a replica begins: as the first of a cluster, as one that joins, or from what its disk holds.
//! Must not start over what is damaged.

use raft::{RawNode, ReadOnlyOption};

use super::Replica;
use super::elections::Elections;
use super::housekeeping::Housekeeping;
use super::membership::Membership;
use super::proposals::Proposals;
use super::reads::Reads;
use crate::config::Config;
use crate::consistency::Marks;
use crate::disk::Disk;
use crate::effect::Role;
use crate::feed::follow::Follower;
use crate::feed::recent::Recent;
use crate::feed::serve::Feeder;
use crate::ids::Millis;
use crate::limits;
use crate::log::Log;
use crate::log::identity::Identity;
use crate::log::recover::{self, Found, OpenError};
use crate::raft_log_drain;
use crate::state::State;
use crate::storage::Memory;
use crate::timing::Timing;
use crate::view::View;

impl<D: Disk> Replica<D> {
    /// Makes a new cluster with this replica as its only voter. The disk must hold no store.
    pub fn create_first(disk: D, config: Config) -> Result<Self, OpenError> {
        let state = State { version: config.supported.newest, ..State::first(config.id) };
        Self::create(disk, config, Some(state))
    }

    /// Makes an empty replica that waits until a leader, which was told to add it, sends it the state. The disk must
    /// hold no store.
    pub fn create_joining(disk: D, config: Config) -> Result<Self, OpenError> {
        Self::create(disk, config, None)
    }

    /// Makes a new cluster with this replica as its only voter, from a state that was rescued. The disk must hold no store.
    pub(crate) fn create_from(disk: D, config: Config, state: State) -> Result<Self, OpenError> {
        Self::create(disk, config, Some(state))
    }

    /// Continues from what the disk holds: a torn tail is cut, anything else that is wrong is an error.
    pub fn open(mut disk: D, config: Config) -> Result<Self, OpenError> {
        let identity = identity(&config)?;
        let mut found = recover::recover(&mut disk, &identity)?;
        if let Some((file, offset)) = &found.cut {
            tracing::warn!(
                file,
                offset,
                "the last batch was written incompletely when power was lost; it is cut"
            );
        }
        let state = found.state.take().unwrap_or_default();
        if !config.supported.holds(state.version) {
            return Err(OpenError::ClusterVersion { cluster: state.version, supported: config.supported });
        }
        let memory =
            Memory::new(found.base, std::mem::take(&mut found.entries), found.hard_state.clone(), state);
        let last = found.last.0;
        let log = Log::start(disk, identity, config.segment_bytes, config.seed, found)?;
        Self::begin(log, memory, config, last)
    }

    fn create(disk: D, config: Config, first: Option<State>) -> Result<Self, OpenError> {
        let identity = identity(&config)?;
        recover::expect_empty(&disk)?;
        let log = Log::create(disk, identity, config.segment_bytes, config.seed, first.as_ref())?;
        let mut found = Found::nothing();
        let state = first.unwrap_or_default();
        if state.applied_index > 0 {
            found.begin_at(&state);
        }
        let memory = Memory::new(found.base, found.entries, found.hard_state, state);
        Self::begin(log, memory, config, found.last.0)
    }

    fn begin(log: Log<D>, memory: Memory, config: Config, last: u64) -> Result<Self, OpenError> {
        let timing = Timing::stretched(config.stretch);
        let state = memory.state().clone();
        let refused = |error: raft::Error| OpenError::Consensus(error.to_string());
        let settings = settings(&config, &timing, state.applied_index);
        let node = RawNode::new(&settings, memory, &raft_log_drain::logger()).map_err(refused)?;
        let mut replica = Replica {
            view: View::new(&state),
            reads: Reads::new(config.id, log.boot()),
            proposals: Proposals::default(),
            membership: Membership::default(),
            housekeeping: Housekeeping::new(last),
            expiry: Default::default(),
            burden: Default::default(),
            telling: Default::default(),
            recent: Recent::default(),
            follower: Follower::new(config.id, config.seed, log.boot() << 32),
            feeder: Feeder::default(),
            growing: None,
            installing: None,
            heard: None,
            begun: None,
            marks: Marks { newest: (state.applied_index, state.hash), every: Vec::new() },
            now: Millis(0),
            effects: Vec::new(),
            held: None,
            committed: None,
            inbox: Vec::new(),
            incoming: None,
            reported: (0, Role::Follower, None),
            elections: Elections::new(log.boot()),
            refused: 0,
            wrote: false,
            batches: log.batches(),
            rolled_back: None,
            stopped: false,
            started: false,
            config,
            timing,
            log,
            node,
            state,
        };
        replica.set_election_timeout();
        Ok(replica)
    }
}

fn identity(config: &Config) -> Result<Identity, OpenError> {
    match config.id.0 {
        0 => Err(OpenError::ZeroId),
        _ => Ok(Identity { cluster: config.cluster, node: config.id }),
    }
}

pub(super) fn settings(config: &Config, timing: &Timing, applied: u64) -> raft::Config {
    raft::Config {
        id: config.id.0,
        election_tick: timing.election_min_ticks,
        heartbeat_tick: timing.heartbeat_ticks,
        min_election_tick: timing.election_min_ticks,
        max_election_tick: timing.election_max_ticks,
        applied,
        max_size_per_msg: limits::APPEND_BYTES,
        max_inflight_msgs: limits::INFLIGHT_APPENDS,
        check_quorum: !planted!(NoCheckQuorum),
        pre_vote: !planted!(NoPreVote),
        read_only_option: ReadOnlyOption::Safe,
        skip_bcast_commit: true,
        batch_append: true,
        priority: 0,
        max_uncommitted_size: limits::UNCOMMITTED_BYTES,
        max_committed_size_per_ready: limits::APPLY_BYTES,
    }
}
