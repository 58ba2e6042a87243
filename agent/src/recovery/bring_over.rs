//! Brings members of an older cluster epoch into the new one.
//!
//! Decides who is told (members that have not said that they are in the new epoch) and who obeys: only a machine that hears no leader of its own
//! epoch, for a majority that works must not be talked out of its state. Must not delete anything: the old store is kept.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use raft_store::NodeId;
use tracing::{info, warn};

use super::carry_out::{self, Order};
use super::number;
use crate::cluster::Cluster;
use crate::members::{Member, in_view};
use crate::mesh::wire::{Request, Response};

/// How often the leader tells those that have not come over.
const EVERY: Duration = Duration::from_secs(2);

/// Runs while this machine leads; does nothing in a cluster that was never recovered.
pub async fn tell(cluster: &Arc<Cluster>) {
    if cluster.identity.epoch == 0 {
        return std::future::pending().await;
    }
    let epoch = cluster.identity.epoch;
    let mut over = BTreeSet::from([cluster.me()]);
    loop {
        let members = in_view(&cluster.store.view());
        let text = serde_json::to_string(&members).unwrap_or_default();
        let waiting: Vec<NodeId> =
            members.iter().map(Member::node_id).filter(|id| !over.contains(id)).collect();
        for id in waiting {
            let told = Request::NewEpoch { epoch, members: text.clone() };
            if let Ok(Response::InEpoch(theirs)) = cluster.mesh.request(id, told).await
                && theirs >= epoch
            {
                over.insert(id);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// A member says that there is a newer epoch.
pub async fn told(cluster: &Arc<Cluster>, epoch: u64, members: &str) -> Response {
    let own = cluster.identity.epoch;
    if epoch != own && number(epoch) == number(own) {
        warn!(
            epoch = number(epoch),
            "another recovery made an epoch of the same number without this machine: nothing is taken from it"
        );
        return Response::Refused("this machine follows another recovery with the same number".into());
    }
    if epoch <= own {
        return Response::InEpoch(own);
    }
    let Ok(members) = serde_json::from_str::<Vec<Member>>(members) else {
        return Response::Refused("the member list cannot be read".into());
    };
    if members.iter().all(|member| member.node_id() != cluster.me()) {
        warn!(
            epoch = number(epoch),
            "the cluster goes on without this machine: 'skein node reset' makes it a stranger that can join again"
        );
        return Response::Refused("this machine is not on that list".into());
    }
    if cluster.leaves.swap(true, std::sync::atomic::Ordering::SeqCst) {
        return Response::Done;
    }
    let cluster = cluster.clone();
    crate::clock::spawn(async move {
        if cluster.store.linearizable().await.is_some() {
            warn!(
                epoch = number(epoch),
                "told of a newer cluster epoch while this one has a leader: refused"
            );
            cluster.leaves.store(false, std::sync::atomic::Ordering::SeqCst);
            return;
        }
        info!(epoch = number(epoch), "joins the new cluster epoch");
        match carry_out::give(&cluster.config.data, &Order::Follow { epoch, members }) {
            Ok(()) => carry_out::restart_soon(),
            Err(error) => {
                warn!(%error, "the new epoch could not be written down; tried again when it is told next");
                cluster.leaves.store(false, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    Response::Done
}
