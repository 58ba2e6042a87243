//! Decides nothing: gathers what an operator and the autopilot look at.

use raft::ProgressState;

use super::Replica;
use crate::disk::Disk;
use crate::effect::{FedBy, PeerStatus, Status};
use crate::ids::NodeId;

pub(super) fn of<D: Disk>(replica: &Replica<D>) -> Status {
    let raft = &replica.node.raft;
    let members = &replica.state.members;
    Status {
        id: replica.config.id,
        term: raft.term,
        role: replica.role(),
        leader: replica.leader(),
        commit: raft.raft_log.committed,
        applied: replica.state.applied_index,
        last_index: raft.raft_log.last_index(),
        last_term: raft.raft_log.last_term(),
        voters: members.voters.clone(),
        learners: members.learners.clone(),
        joint: members.is_joint(),
        caught_up: replica.housekeeping.is_caught_up(replica.state.applied_index),
        established: replica.is_established(),
        marks: replica.marks.clone(),
        disk_full: replica.log.is_pressed(),
        refused_messages: replica.refused,
        peers: if replica.leads() { peers(replica) } else { Vec::new() },
        fed_by: replica.follower.fed().map(|(feeder, news, heard)| FedBy {
            feeder,
            hops: news.hops.saturating_add(1),
            commit: news.commit,
            silent_ms: replica.now.since(heard),
        }),
        feeds: replica.feeder.feeds(),
        diverged: replica.follower.diverged,
    }
}

fn peers<D: Disk>(replica: &Replica<D>) -> Vec<PeerStatus> {
    let progress = replica.node.raft.prs().iter().filter(|(id, _)| **id != replica.config.id.0);
    let mut peers: Vec<PeerStatus> = progress
        .map(|(id, progress)| PeerStatus {
            id: NodeId(*id),
            matched: progress.matched,
            recent_active: progress.recent_active,
            in_snapshot: progress.state == ProgressState::Snapshot,
        })
        .collect();
    peers.sort_by_key(|peer| peer.id);
    peers
}
