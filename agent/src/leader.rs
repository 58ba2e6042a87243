//! What runs while this machine leads beside the controllers: deaths, the raft members, copies of images.
//!
//! Decides by its cores ([`crate::liveness`], [`raft_store::autopilot`]); the driver carries their effects out with the leader's epoch, so that a
//! deposed leader's decisions are refused.

use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::{Object, duration, keys};
use raft_store::{Epoch, NodeId};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::events::Report;
use crate::fabric::is_dead;
use crate::liveness::{Effect, Input, Liveness};
use crate::members::{Member, PREFIX, in_view};
use crate::mesh::wire::{Request, Response};
use crate::objects::shown;
use crate::recovery::bring_over;
use crate::store::{Plan, Touched};
use crate::{brake, consistency, images, timing, versions, voters};

/// Taint of a dead node, as Kubernetes names it.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// How long copies are left alone while no suspicion changes and none is missing.
const REPAIR_AT_REST: Duration = Duration::from_secs(60);

/// Runs for as long as the process does; works while this machine leads.
pub async fn run(cluster: Arc<Cluster>) {
    let mut leadership = cluster.store.leadership();
    loop {
        let epoch = leadership.borrow_and_update().epoch;
        if let Some(epoch) = epoch {
            tokio::select! {
                () = lead(&cluster, epoch) => {}
                () = voters::keep(&cluster, epoch) => {}
                () = bring_over::tell(&cluster) => {}
                () = keep_copies(&cluster) => {}
                () = consistency::keep(&cluster) => {}
                () = versions::keep(&cluster, epoch) => {}
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
    let mut views = cluster.store.objects();
    let node_prefix = keys::prefix(nodes(), None);
    let mut touched = Touched::below([PREFIX, node_prefix.as_str(), brake::KEY]);
    let mut voters = Vec::new();
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
                let view = views.borrow_and_update().clone();
                let others = std::mem::replace(&mut voters, view.members().voters.clone()) != voters;
                if !(touched.look(&view) || others) {
                    continue;
                }
                members_input(cluster)
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                // Voters change without a change of any object.
                let now = cluster.store.view().members().voters.clone();
                if std::mem::replace(&mut voters, now) == voters {
                    Input::Tick
                } else {
                    members_input(cluster)
                }
            }
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
        if reached == Some(true) {
            let name = |id| cluster.roster.get(id).map(|member| member.name).unwrap_or_default();
            info!(node = %name(node), voter = %name(voter), "suspected, and reached by a voter: not dead");
        }
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
        let plan = Plan::new().expect_revision(&key, entry.mod_revision().0).put(&key, new.to_vec());
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

/// Makes new copies of images when a holder is gone.
async fn keep_copies(cluster: &Arc<Cluster>) {
    let mut suspects = cluster.suspects.clone();
    let mut failures = 0;
    loop {
        // A suspicion may pass; a copy made for nothing costs only disk.
        tokio::time::sleep(Duration::from_secs(5)).await;
        failures = if images::repair(cluster).await { 0 } else { failures + 1 };
        let _ = tokio::time::timeout(until_next_repair(failures), suspects.changed()).await;
    }
}

/// How long after so many failed repairs in a row the next one waits for a change of suspicion.
fn until_next_repair(failures: u32) -> Duration {
    match failures {
        0 => REPAIR_AT_REST,
        _ => REPAIR_AT_REST.min(Duration::from_secs(1) * 2u32.saturating_pow(failures - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_repair_is_tried_again_soon_and_then_ever_more_rarely() {
        let waits: Vec<u64> = (1..=9).map(|failures| until_next_repair(failures).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(until_next_repair(u32::MAX), REPAIR_AT_REST);
        assert_eq!(until_next_repair(0), REPAIR_AT_REST, "nothing is missing");
    }
}
