//! The autopilot's driver: what the cluster knows of its members goes in, changes of the raft members come out.
//!
//! Decides only what the core ([`raft_store::autopilot`]) is told: zones and drains come from the Node objects, the pinned count
//! from the store. It must not choose voters itself.

pub mod advice;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::keys;
use api::kinds::Kind;
use raft_store::autopilot::{Autopilot, Candidate, Next};
use raft_store::{Epoch, MemberChange, Millis, NodeId, Status, View};
use serde_json::Value;
use tracing::info;

use crate::clock;
use crate::cluster::Cluster;
use crate::keyring::keeper::{Keeper, key_of};
use crate::members::{Member, PREFIX, in_view};
use crate::objects::shown;
use crate::store::Touched;

/// Where an operator's count of voters is kept; absent: the rule decides.
pub const PINNED: &str = "s/voters";
/// Kubernetes' label of a node's failure zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// On a Node that `skein node drain` empties: it gives up its vote too.
pub const DRAIN: &str = "skein.dev/drain";

/// How often to look while something is on its way: a learner catches up without any change of the state.
const LOOK: Duration = Duration::from_millis(250);
/// How often to look when all is as it should be and nothing in the state changes.
const LOOK_AT_REST: Duration = Duration::from_secs(1);
/// A state that changes all the time is not looked at all the time.
const BREATH: Duration = Duration::from_millis(50);

/// Runs for as long as this machine leads.
pub async fn keep(cluster: &Arc<Cluster>, epoch: Epoch) {
    let mut autopilot = Autopilot::new();
    let mut keeper = Keeper::default();
    let mut views = cluster.store.objects();
    let mut told = Next::Nothing;
    let nodes = keys::prefix(node_kind(), None);
    let mut touched = Touched::below([PREFIX, nodes.as_str()]);
    let mut members: Vec<Candidate> = Vec::new();
    loop {
        let mut look = LOOK;
        let view = views.borrow_and_update().clone();
        if touched.look(&view) {
            members = candidates(&view);
        }
        if let Some(status) = cluster.store.status().await {
            let now = Millis(clock::millis());
            let next = autopilot.next(now, &members, pinned(&view), &status);
            let coming = coming(&next);
            let sealed = keeper.tend(cluster, epoch, &view, &coming).await;
            match &next {
                Next::Nothing => {}
                // Who votes may lead, and who leads must be able to open the keyring.
                Next::Change(_) if !sealed => {}
                Next::HandOver(to) => {
                    info!(to = %name(cluster, *to), "this machine is not to vote much longer and hands leadership over");
                    cluster.store.input(raft_store::Input::TransferLeadership { to: *to });
                }
                Next::Change(changes) => {
                    let outcome = cluster.store.change_members(changes.clone()).await;
                    if next != told {
                        info!(?changes, ?outcome, "raft members");
                    }
                }
            }
            if sealed && next == Next::Nothing && is_settled(&status, &members) {
                look = LOOK_AT_REST;
            }
            told = next;
        }
        if tokio::time::timeout(look, views.changed()).await.is_ok() {
            tokio::time::sleep(BREATH).await;
        }
    }
}

/// Whether nothing that this machine waits for could come without a change of the state.
fn is_settled(status: &Status, members: &[Candidate]) -> bool {
    !status.joint
        && status.learners.is_empty()
        && status.peers.iter().all(|peer| peer.recent_active)
        && !members.iter().any(|member| member.dead)
}

/// Who is to vote next.
fn coming(next: &Next) -> BTreeSet<NodeId> {
    let Next::Change(changes) = next else { return BTreeSet::new() };
    let voter = |change: &MemberChange| match change {
        MemberChange::AddVoter(id) => Some(*id),
        MemberChange::AddLearner(_) | MemberChange::Remove(_) => None,
    };
    changes.iter().filter_map(voter).collect()
}

fn name(cluster: &Cluster, id: NodeId) -> String {
    cluster.roster.get(id).map_or_else(|| id.to_string(), |member| member.name)
}

/// An operator's count of voters.
pub fn pinned(view: &View) -> Option<usize> {
    let entry = view.get(PINNED.as_bytes())?;
    std::str::from_utf8(entry.value()).ok()?.parse().ok()
}

fn node_kind() -> &'static Kind {
    Kind::by_name("Node").expect("Node is a row of the table of kinds")
}

/// The members as the core sees them.
pub fn candidates(view: &View) -> Vec<Candidate> {
    let dead = crate::fabric::dead_nodes(view);
    in_view(view).iter().map(|member| candidate(view, member, &dead)).collect()
}

fn candidate(view: &View, member: &Member, dead: &BTreeSet<String>) -> Candidate {
    let key = keys::object(node_kind(), "", &member.name);
    let node = view.get(key.as_bytes()).and_then(|entry| shown(entry).ok());
    let text = |field: &str, name: &str| {
        let map = node.as_ref().map(|node| &node.0["metadata"][field]);
        map.and_then(|map| map[name].as_str()).unwrap_or("").to_string()
    };
    // Who is new must be able to open the keyring; who votes already is not sent away for it.
    let can_hold = key_of(member).is_some() || view.members().is_voter(member.node_id());
    Candidate {
        id: member.node_id(),
        zone: text("labels", ZONE),
        may_vote: !member.no_voter,
        spared: !can_hold
            || !text("annotations", DRAIN).is_empty()
            || node.as_ref().is_some_and(crate::node::has_full_disk),
        dead: dead.contains(&member.name),
    }
}

/// Reads a count of voters as an operator types it: `auto`, or 1, 3, 5, 7.
pub fn parse_pinned(value: &Value) -> Result<Option<usize>, String> {
    let text = value.as_str().map(String::from).unwrap_or_else(|| value.to_string());
    match text.as_str() {
        "auto" => Ok(None),
        "1" | "3" | "5" | "7" => Ok(text.parse().ok()),
        _ => Err(format!("{text} is not a count of voters: say auto, 1, 3, 5 or 7")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn member(name: &str, id: u64) -> (String, Vec<u8>) {
        let member = json!({
            "name": name, "id": id, "key": "", "address": "10.0.0.1:7443", "api_port": 6443, "block": 1, "no_voter": id == 3,
        });
        (crate::members::key(name), serde_json::to_vec(&member).unwrap())
    }

    fn node(name: &str, metadata: Value, ready: &str) -> (String, Vec<u8>) {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": {"conditions": conditions},
        });
        node["metadata"]["name"] = name.into();
        (keys::object(node_kind(), "", name), serde_json::to_vec(&node).unwrap())
    }

    #[test]
    fn the_autopilot_is_told_zones_drains_and_deaths_of_the_nodes() {
        let told = |of_host1: Value| {
            candidates(&crate::testing::view(&[
                member("host1", 1),
                member("host2", 2),
                member("host3", 3),
                node("host1", of_host1, "True"),
                node("host2", json!({"labels": {ZONE: "attic"}}), "Unknown"),
            ]))
        };
        let plain = told(json!({"labels": {ZONE: "cellar", "zone": "garden"}}));
        let zones: Vec<(u64, &str)> = plain.iter().map(|one| (one.id.0, one.zone.as_str())).collect();
        assert_eq!(zones, [(1, "cellar"), (2, "attic"), (3, "")]);
        assert_eq!(plain.iter().map(|one| one.dead).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(plain.iter().map(|one| one.may_vote).collect::<Vec<_>>(), [true, true, false]);
        // Only the first votes; the others have not said their keys yet.
        assert_eq!(plain.iter().map(|one| one.spared).collect::<Vec<_>>(), [false, true, true]);
        let drained = told(json!({"annotations": {DRAIN: "now"}}));
        assert!(drained[0].spared && drained[0].zone.is_empty());
    }
}
