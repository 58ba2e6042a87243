//! What runs while this machine leads beside the controllers: deaths, the raft members, copies of images.
//!
//! Decides by its cores ([`crate::liveness`], [`voters`]); the driver carries their effects out with the leader's epoch, so that a
//! deposed leader's decisions are refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::{Object, duration, keys};
use raft_store::{Epoch, MemberChange, NodeId, Status};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::events::Report;
use crate::fabric::is_dead;
use crate::liveness::{Effect, Input, Liveness};
use crate::members::{Member, VOTERS, in_view};
use crate::mesh::wire::{Request, Response};
use crate::objects::shown;
use crate::store::Plan;
use crate::{brake, images, timing};

/// Taint of a dead node, as Kubernetes names it.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Runs for as long as the process does; works while this machine leads.
pub async fn run(cluster: Arc<Cluster>) {
    let mut leadership = cluster.store.leadership();
    loop {
        let epoch = leadership.borrow_and_update().epoch;
        if let Some(epoch) = epoch {
            tokio::select! {
                () = lead(&cluster, epoch) => {}
                () = keep_members(&cluster) => {}
                () = keep_copies(&cluster) => {}
                _ = leadership.wait_for(|now| now.epoch != Some(epoch)) => {}
            }
        }
        if leadership.wait_for(|now| now.epoch.is_some()).await.is_err() {
            return;
        }
    }
}

async fn lead(cluster: &Arc<Cluster>, epoch: Epoch) {
    let mut core = Liveness::new();
    let (reports, mut reported) = mpsc::unbounded_channel();
    let mut suspects = cluster.suspects.clone();
    let mut views = cluster.store.views();
    suspects.mark_changed();
    views.mark_changed();
    loop {
        let input = tokio::select! {
            report = reported.recv() => match report {
                Some(report) => report,
                None => return,
            },
            _ = suspects.changed() => Input::Suspects(suspects.borrow_and_update().clone()),
            _ = views.changed() => {
                views.borrow_and_update();
                members_input(cluster)
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => Input::Tick,
        };
        for effect in core.handle(clock::millis(), input) {
            match effect {
                Effect::Ask { inquiry, voter, node } => {
                    ask(cluster.clone(), inquiry, voter, node, reports.clone())
                }
                Effect::Dead(node) => declare_dead(cluster, epoch, node).await,
                Effect::Brake(on) => write_brake(cluster, epoch, on).await,
            }
        }
    }
}

fn members_input(cluster: &Cluster) -> Input {
    let view = cluster.store.view();
    let members = in_view(&view);
    let (millis, wall) = (clock::millis(), clock::wall().as_millisecond());
    let at = |written: i64| millis.saturating_sub(u64::try_from(wall - written).unwrap_or(0));
    let death = |member: &Member| {
        let key = keys::object(nodes(), "", &member.name);
        let node = view.get(key.as_bytes()).and_then(|entry| shown(entry).ok()).filter(is_dead)?;
        Some((member.node_id(), at(died_ms(&node).unwrap_or(wall))))
    };
    let brake = brake::in_view(&view);
    Input::Members {
        dead: members.iter().filter_map(death).collect(),
        members: members.iter().map(Member::node_id).collect(),
        voters: view.members().voters.iter().copied().collect(),
        braked_since: brake.filter(|brake| brake.on).map(|brake| at(brake.since_ms)),
        released: brake.filter(|brake| !brake.on).map(|brake| at(brake.since_ms)),
    }
}

/// When a node's death was written down, in Unix milliseconds.
fn died_ms(node: &Object) -> Option<i64> {
    let ready = node.list("/status/conditions").iter().find(|condition| condition["type"] == "Ready")?;
    let time: jiff::Timestamp = ready["lastTransitionTime"].as_str()?.parse().ok()?;
    Some(time.as_millisecond())
}

/// Writes the brake down, so that the next leader finds it. Before the death that pulled it: no controller sees one without
/// the other.
async fn write_brake(cluster: &Cluster, epoch: Epoch, on: bool) {
    warn!(on, "brake on replacing pods after too many deaths at once; 'skein node confirm-dead' releases it");
    if let Err(error) = cluster.store.transact(brake::decided(on), Some(epoch)).await {
        warn!(%error, "the brake could not be written");
    }
}

fn ask(
    cluster: Arc<Cluster>,
    inquiry: u64,
    voter: NodeId,
    node: NodeId,
    reports: mpsc::UnboundedSender<Input>,
) {
    spawn(async move {
        let reached = if voter == cluster.me() {
            Some(cluster.pings.reach(&cluster.mesh, node).await)
        } else {
            match cluster.mesh.request(voter, Request::Probe { node: node.0 }).await {
                Ok(Response::Reached(reached)) => Some(reached),
                _ => None,
            }
        };
        let _ = reports.send(Input::Report { inquiry, voter, reached });
    });
}

fn nodes() -> &'static Kind {
    Kind::by_name("Node").expect("Node is a row of the table of kinds")
}

/// Writes a death down: the Ready condition becomes Unknown, the node is tainted.
async fn declare_dead(cluster: &Arc<Cluster>, epoch: Epoch, id: NodeId) {
    let Some(member) = cluster.roster.get(id) else { return };
    let key = keys::object(nodes(), "", &member.name);
    info!(node = %member.name, "dead: a majority of the voters has had no answer for {} ms", timing::DEATH_SILENCE.as_millis());
    for _ in 0..8 {
        let view = cluster.store.view();
        let Some(entry) = view.get(key.as_bytes()) else { return };
        let Ok(node) = shown(entry) else { return };
        if is_dead(&node) {
            return;
        }
        let new = marked_dead(&node.clone().without_resource_version());
        let plan = Plan::new().expect_revision(&key, entry.mod_revision.0).put(&key, new.to_vec());
        match cluster.store.transact(plan.build(), Some(epoch)).await {
            Ok(_) => {
                let message = format!("{} does not answer: its pods are replaced elsewhere", member.name);
                return Report::warning(nodes(), &node, "NodeDead", &message).send(cluster).await;
            }
            Err(crate::store::TransactError::CompareFailed { .. }) => {}
            Err(error) => return warn!(%error, "the death could not be written"),
        }
    }
}

fn marked_dead(node: &Object) -> Object {
    let mut new = node.clone();
    set_ready(&mut new, "Unknown", "NodeStatusUnknown", "a majority of the voters cannot reach this node");
    let mut taints: Vec<Value> = new.list("/spec/taints").to_vec();
    taints.retain(|taint| taint["key"] != UNREACHABLE);
    for effect in ["NoSchedule", "NoExecute"] {
        taints.push(
            json!({"key": UNREACHABLE, "effect": effect, "timeAdded": duration::rfc3339(clock::wall())}),
        );
    }
    new.set(&["spec", "taints"], json!(taints));
    new
}

/// Sets the Ready condition.
pub fn set_ready(node: &mut Object, status: &str, reason: &str, message: &str) {
    set_condition(node, "Ready", status, reason, message);
}

/// Sets a condition of a node; its transition time stays while its status does.
pub fn set_condition(node: &mut Object, name: &str, status: &str, reason: &str, message: &str) {
    let mut conditions: Vec<Value> = node.list("/status/conditions").to_vec();
    let now = duration::rfc3339(clock::wall());
    let same = conditions.iter().find(|condition| condition["type"] == name && condition["status"] == status);
    let since = same.map_or_else(|| json!(now), |condition| condition["lastTransitionTime"].clone());
    let beat = same.map_or_else(|| json!(now), |condition| condition["lastHeartbeatTime"].clone());
    conditions.retain(|condition| condition["type"] != name);
    conditions.push(json!({
        "type": name, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": beat, "lastTransitionTime": since,
    }));
    node.set(&["status", "conditions"], json!(conditions));
}

/// Brings the raft members in line with the member list.
async fn keep_members(cluster: &Arc<Cluster>) {
    let mut views = cluster.store.views();
    loop {
        let members = in_view(&views.borrow_and_update().clone());
        if let Some(status) = cluster.store.status().await {
            if let Some(to) = successor(&members, &status) {
                info!(%to, "this machine is to leave the cluster and hands leadership over first");
                cluster.store.input(raft_store::Input::TransferLeadership { to });
            }
            let changes = voters(&members, &status);
            if !changes.is_empty() {
                let outcome = cluster.store.change_members(changes.clone()).await;
                info!(?changes, ?outcome, "raft members");
            }
        }
        // A learner catches up without any change of the state: look again soon, and at once when members change.
        let _ = tokio::time::timeout(Duration::from_millis(250), views.changed()).await;
    }
}

/// Who is to lead instead of a leader that is no longer on the member list: the voter that holds the most.
fn successor(members: &[Member], status: &Status) -> Option<NodeId> {
    let listed = |id: NodeId| members.iter().any(|member| member.node_id() == id);
    if members.is_empty() || listed(status.id) {
        return None;
    }
    let fit = |peer: &&raft_store::PeerStatus| {
        peer.recent_active && listed(peer.id) && status.voters.contains(&peer.id)
    };
    status.peers.iter().filter(fit).max_by_key(|peer| peer.matched).map(|peer| peer.id)
}

/// Which change comes next: newcomers learn first; the first three members vote, all at once, when they have caught up.
pub fn voters(members: &[Member], status: &Status) -> Vec<MemberChange> {
    if status.joint {
        return Vec::new();
    }
    let known: BTreeSet<NodeId> = status.voters.iter().chain(&status.learners).copied().collect();
    let new: Vec<MemberChange> = members
        .iter()
        .map(Member::node_id)
        .filter(|id| !known.contains(id))
        .map(MemberChange::AddLearner)
        .collect();
    if let Some(first) = new.into_iter().next() {
        return vec![first];
    }
    let listed: BTreeSet<NodeId> = members.iter().map(Member::node_id).collect();
    if let Some(gone) = known.iter().find(|id| !listed.contains(id) && **id != status.id) {
        return vec![MemberChange::Remove(*gone)];
    }
    let mut eligible: Vec<&Member> = members.iter().filter(|member| !member.no_voter).collect();
    eligible.sort_by_key(|member| member.block);
    if eligible.len() < VOTERS {
        return Vec::new();
    }
    let wanted: Vec<NodeId> = eligible
        .iter()
        .take(VOTERS)
        .map(|member| member.node_id())
        .filter(|id| !status.voters.contains(id))
        .collect();
    // A newcomer counts as recently active before it has said anything: only what it holds shows that it is there.
    let caught_up = |id: &NodeId| {
        let held = |peer: &&raft_store::PeerStatus| peer.matched > 0 && peer.matched + 8 >= status.last_index;
        status.peers.iter().find(|peer| peer.id == *id).filter(held).is_some_and(|peer| peer.recent_active)
    };
    if wanted.iter().all(caught_up) {
        wanted.into_iter().map(MemberChange::AddVoter).collect()
    } else {
        Vec::new()
    }
}

/// Makes new copies of images when a holder is gone.
async fn keep_copies(cluster: &Arc<Cluster>) {
    let mut suspects = cluster.suspects.clone();
    loop {
        // A suspicion may pass; a copy made for nothing costs only disk.
        tokio::time::sleep(Duration::from_secs(5)).await;
        images::repair(cluster).await;
        let _ = tokio::time::timeout(Duration::from_secs(60), suspects.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_store::{PeerStatus, Role};

    fn member(n: u8, no_voter: bool) -> Member {
        Member {
            name: format!("host{n}"),
            id: u64::from(n),
            key: String::new(),
            address: ([10, 0, 0, n], 7443).into(),
            api_port: 6443,
            block: n - 1,
            no_voter,
        }
    }

    fn status(voters: &[u64], learners: &[u64], matched: u64) -> Status {
        let ids = |list: &[u64]| list.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        let peer = |id: &NodeId| PeerStatus { id: *id, matched, recent_active: true, in_snapshot: false };
        Status {
            id: NodeId(1),
            term: 1,
            role: Role::Leader,
            leader: Some(NodeId(1)),
            commit: 20,
            applied: 20,
            last_index: 20,
            voters: ids(voters),
            learners: ids(learners),
            joint: false,
            caught_up: true,
            established: true,
            refused_messages: 0,
            peers: ids(learners).iter().map(peer).collect(),
        }
    }

    #[test]
    fn newcomers_learn_first_and_two_of_them_become_voters_together() {
        let members = [member(1, false), member(2, false), member(3, false)];
        assert_eq!(voters(&members[..2], &status(&[1], &[], 20)), [MemberChange::AddLearner(NodeId(2))]);
        assert_eq!(voters(&members[..2], &status(&[1], &[2], 20)), [], "two machines have one voter");
        assert_eq!(
            voters(&members, &status(&[1], &[2, 3], 0)),
            [],
            "a newcomer that holds nothing does not vote"
        );
        let both = [MemberChange::AddVoter(NodeId(2)), MemberChange::AddVoter(NodeId(3))];
        assert_eq!(voters(&members, &status(&[1], &[2, 3], 20)), both);
    }

    #[test]
    fn a_machine_that_does_not_want_to_vote_never_does() {
        let members = [member(1, false), member(2, true), member(3, false), member(4, false)];
        let wanted = [MemberChange::AddVoter(NodeId(3)), MemberChange::AddVoter(NodeId(4))];
        assert_eq!(voters(&members, &status(&[1], &[2, 3, 4], 20)), wanted);
    }

    #[test]
    fn a_leader_that_left_the_list_hands_over_and_any_other_does_not() {
        let mut now = status(&[1, 2, 3], &[2, 3], 10);
        now.peers[1].matched = 12;
        assert_eq!(successor(&[member(2, false), member(3, false)], &now), Some(NodeId(3)));
        assert_eq!(successor(&[member(2, false)], &now), Some(NodeId(2)), "who left too does not lead");
        assert_eq!(successor(&[member(1, false), member(2, false)], &now), None);
    }

    #[test]
    fn who_left_the_list_leaves_raft() {
        let members = [member(1, false), member(2, false)];
        assert_eq!(voters(&members, &status(&[1], &[2, 3], 20)), [MemberChange::Remove(NodeId(3))]);
    }
}
