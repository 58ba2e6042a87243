//! The cluster's version: what its members' binaries support, and raising it.
//!
//! Decides who is let in by it, and carries out what [`raft_store::version`] decides: the leader raises the version once every member on
//! the list supports more. It must not lower it, and must not guess for a member that has said nothing.

use std::sync::Arc;

use raft_store::version::raise;
use raft_store::{Command, Epoch, Outcome, Supported, Version, View};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::cluster::Cluster;
use crate::members::{Member, PREFIX, in_view};
use crate::store::Touched;
use crate::timing;

/// Raises the version when it can be, for as long as this machine leads.
pub async fn keep(cluster: &Arc<Cluster>, epoch: Epoch) {
    let mut views = cluster.store.objects();
    let mut touched = Touched::below([PREFIX]);
    let mut due = true;
    loop {
        let view = views.borrow_and_update().clone();
        due |= touched.look(&view);
        if due {
            due = !settle(cluster, epoch, &view).await;
        }
        // What did not succeed is tried again, also where nothing changes.
        let changed = views.changed();
        let ended = match due {
            true => matches!(tokio::time::timeout(timing::REQUEST_DEADLINE, changed).await, Ok(Err(_))),
            false => changed.await.is_err(),
        };
        if ended {
            return;
        }
    }
}

/// Raises the version if it can be; whether nothing is left to do.
async fn settle(cluster: &Cluster, epoch: Epoch, view: &View) -> bool {
    let Some(version) = raise(view.version(), in_view(view).iter().map(Member::supported)) else {
        return true;
    };
    match cluster.store.propose_here(Command::SetVersion { version, epoch }).await {
        Some(Outcome::Applied { .. }) => {
            info!(%version, "the cluster is raised: every member supports it");
            true
        }
        outcome => {
            warn!(%version, ?outcome, "the cluster could not be raised yet");
            false
        }
    }
}

/// Why a binary that supports these cannot be in this cluster, if it cannot.
pub fn misfit(cluster: Version, binary: Supported) -> Option<String> {
    let Supported { oldest, newest } = binary;
    let how = match () {
        () if binary.holds(cluster) => return None,
        () if newest < cluster => "too old: upgrade skein on this machine, then join again",
        () => "too new: upgrade skein on all members first, or join with the version that they run",
    };
    Some(format!(
        "the cluster is at version {cluster}, and the binary on this machine supports {oldest} to {newest}: it is {how}"
    ))
}

/// For `cluster status`.
pub fn shown(view: &View) -> Value {
    let mut members = in_view(view);
    members.retain(|member| member.supported().newest <= view.version());
    let behind: Vec<String> = members.into_iter().map(|member| member.name).collect();
    let ours = Supported::OURS;
    // Whoever supports no more than what there is keeps the cluster there, if this binary could do more.
    let waits = ours.newest > view.version();
    json!({
        "cluster": view.version().0, "oldest": ours.oldest.0, "newest": ours.newest.0,
        "waitsFor": if waits { behind } else { Vec::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_let_in_if_it_can_do_what_the_cluster_does_and_else_told_what_to_do() {
        let binary = |oldest, newest| Supported { oldest: Version(oldest), newest: Version(newest) };
        assert_eq!(misfit(Version(2), binary(1, 2)), None);
        assert!(
            misfit(Version(2), binary(1, 1)).is_some_and(|why| why.contains("upgrade skein on this machine"))
        );
        assert!(misfit(Version(2), binary(3, 4)).is_some_and(|why| why.contains("on all members first")));
    }
}
