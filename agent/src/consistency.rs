//! Whether all replicas still hold the same: the leader asks for their marks about once a minute and compares.
//!
//! Decides how a difference is told ([`raft_store::consistency`] decides whether there is one). It writes nothing while there is none, and
//! must not repair anything: which copy is right is for people to say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::keys;
use api::kinds::Kind;
use raft_store::NodeId;
use raft_store::consistency::{Difference, Marks, compare};
use tracing::error;

use crate::cluster::Cluster;
use crate::events::Report;
use crate::mesh::wire::{self, Request, Response};
use crate::objects::shown;

/// Compares until this machine leads no more.
pub async fn keep(cluster: &Arc<Cluster>) {
    let mut told = BTreeSet::new();
    loop {
        tokio::time::sleep(cluster.config.compare_states).await;
        for difference in compare(&gather(cluster).await) {
            if told.insert(difference) {
                tell(cluster, difference).await;
            }
        }
    }
}

/// The marks of all members that answer.
async fn gather(cluster: &Arc<Cluster>) -> BTreeMap<NodeId, Marks> {
    let others = cluster.roster.all().into_iter().map(|member| member.node_id());
    let mut all = BTreeMap::new();
    for id in others.filter(|id| *id != cluster.me()) {
        if let Ok(Response::Marks(bytes)) = cluster.mesh.request(id, Request::Marks).await
            && let Ok(marks) = wire::decode::<Marks>(&bytes)
        {
            all.insert(id, marks);
        }
    }
    if let Some(status) = cluster.store.status().await {
        all.insert(cluster.me(), status.marks);
    }
    all
}

/// This machine's own, for the leader.
pub async fn own(cluster: &Cluster) -> Response {
    match cluster.store.status().await {
        Some(status) => Response::Marks(wire::encode(&status.marks)),
        None => Response::Refused("the store has stopped".into()),
    }
}

async fn tell(cluster: &Arc<Cluster>, Difference { node, index }: Difference) {
    let name = cluster.roster.get(node).map_or_else(|| node.to_string(), |member| member.name);
    error!(machine = %name, index, "{}", message(&name, index));
    let Some(kind) = Kind::by_name("Node") else { return };
    let view = cluster.store.view();
    let Some(object) = view.get(keys::object(kind, "", &name).as_bytes()).and_then(|entry| shown(entry).ok())
    else {
        return;
    };
    Report::warning(kind, &object, "StateDiffers", &message(&name, index)).send(cluster).await;
}

fn message(name: &str, index: u64) -> String {
    format!(
        "the store of {name} differs from the others' at log index {index}, which must never be: what it shows may be wrong. On {name} run 'skein node reset' and join again; keep a copy of its data directory for the report"
    )
}
