//! The leader's side: a listed member asks to be known by another key from now on.
//!
//! Decides who may: the listed key itself, and only when nobody else has been heard as this member for a while. A copied disk
//! (`docs/decisions/0211`) could take the original's place otherwise. The record keeps its name, address and block, so that pods and
//! addresses stay; the old key is refused from then on, and the autopilot takes its vote away and gives it to the new one in due course.
//! It must not answer before the change is committed.

use std::sync::{Arc, PoisonError};

use api::keys;
use api::kinds::Kind;
use raft_store::{Epoch, NodeId};
use tracing::{info, warn};

use crate::clock;
use crate::cluster::Cluster;
use crate::doubles::{self, MayReplace};
use crate::enrol;
use crate::events::Report;
use crate::keyring::signing::{self, SignError};
use crate::members::{self, Member, id_of_key, in_view};
use crate::mesh::wire::{JoinAnswer, JoinRequest, Response};
use crate::objects::shown;
use crate::pki::{self, PkiError};
use crate::store::{Plan, TransactError};

/// What is asked.
pub struct Wish {
    pub signing_request: String,
    /// The asking process, as `doubles` tells it.
    pub life: u64,
    pub place: String,
    pub why: String,
}

/// It is not done.
#[derive(Debug, thiserror::Error)]
enum ReplaceError {
    #[error("this key is on the member list no more")]
    NotListed,
    #[error("two machines were found to run as \"{0}\": remove it with 'skein node rm {0}' first")]
    Doubled(String),
    #[error("the new key is another member's")]
    Taken,
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Write(#[from] TransactError),
}

/// Answers a member that wants another key, if this machine leads.
pub async fn answer(cluster: &Arc<Cluster>, from: NodeId, wish: Wish) -> Response {
    let Some(epoch) = cluster.store.leadership().borrow().epoch else { return Response::NotLeader };
    let may = {
        let mut lives = cluster.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.may_replace(clock::millis(), from, wish.life, &wish.place)
    };
    match may {
        MayReplace::NotYet => return Response::NotYet,
        MayReplace::Doubled(places) => return doubles::tell(cluster, from, &places),
        MayReplace::Yes => {}
    }
    match replace(cluster, epoch, from, &wish).await {
        Ok(answer) => Response::Admitted(answer),
        Err(ReplaceError::Write(
            TransactError::NoLeader | TransactError::Unknown | TransactError::StaleEpoch(_),
        )) => Response::NotLeader,
        Err(error) => {
            warn!(%from, %error, "a member is not taken back under a new key");
            Response::Refused(error.to_string())
        }
    }
}

async fn replace(
    cluster: &Arc<Cluster>,
    epoch: Epoch,
    from: NodeId,
    wish: &Wish,
) -> Result<JoinAnswer, ReplaceError> {
    for _ in 0..8 {
        let view = cluster.store.linearizable().await.ok_or(TransactError::NoLeader)?;
        let mut listed = in_view(&view);
        let at = listed.iter().position(|member| member.node_id() == from).ok_or(ReplaceError::NotListed)?;
        let old = listed[at].clone();
        if view.get(doubles::key(&old.name).as_bytes()).is_some() {
            return Err(ReplaceError::Doubled(old.name));
        }
        let (certificate, new) = known_by(cluster, &old, &wish.signing_request)?;
        if listed.iter().any(|other| other.id == new.id && other.name != new.name) {
            return Err(ReplaceError::Taken);
        }
        listed[at] = new.clone();
        let answer = JoinAnswer::Welcome {
            cluster: cluster.identity.cluster.clone(),
            epoch: cluster.identity.epoch,
            certificate,
            ca_certificate: cluster.identity.ca_certificate.clone(),
            ca_key: None,
            member: serde_json::to_string(&new).unwrap_or_default(),
            members: serde_json::to_string(&listed).unwrap_or_default(),
        };
        // It has been done, and the answer was lost.
        if new.key == old.key {
            return Ok(answer);
        }
        let key = members::key(&old.name);
        let revision = view.get(key.as_bytes()).map_or(0, |entry| entry.mod_revision().0);
        let record = serde_json::to_vec(&new).unwrap_or_default();
        let plan = Plan::new().expect_revision(&key, revision).put(&key, record);
        match cluster.store.transact(plan.build(), Some(epoch)).await {
            Ok(_) => {
                audit(cluster, &old, &new, &wish.why).await;
                return Ok(answer);
            }
            Err(TransactError::CompareFailed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(TransactError::NoLeader.into())
}

/// The member's record and certificate with the key of the signing request.
fn known_by(
    cluster: &Cluster,
    old: &Member,
    signing_request: &str,
) -> Result<(String, Member), ReplaceError> {
    let request = JoinRequest {
        secret: String::new(),
        name: old.name.clone(),
        address: old.address,
        api_port: old.api_port,
        signing_request: signing_request.to_owned(),
    };
    let authority = signing::authority(cluster)?;
    let certificate = enrol::sign_here(&authority, &request, cluster.config.certificate_lifetime)?;
    let hash = pki::key_hash(&pki::certificate_der(&certificate)?)?;
    let (id, key) = (id_of_key(&hash), pki::hex(&hash));
    // Its sealing key is said anew once it runs: until then it is nobody to promote, and the one that it was keeps the place.
    let seal_key = if key == old.key { old.seal_key.clone() } else { String::new() };
    Ok((certificate, Member { id, key, seal_key, ..old.clone() }))
}

async fn audit(cluster: &Arc<Cluster>, old: &Member, new: &Member, why: &str) {
    info!(name = %old.name, old = %old.node_id(), new = %new.node_id(), why, "taken back under a new identity");
    let Some(kind) = Kind::by_name("Node") else { return };
    let view = cluster.store.view();
    let node = view.get(keys::object(kind, "", &old.name).as_bytes()).and_then(|entry| shown(entry).ok());
    let Some(node) = node else { return };
    let message = format!(
        "the store of {} could not be trusted; it was taken back as {} in the place of {}. It said: {why}",
        old.name,
        new.node_id(),
        old.node_id()
    );
    Report::warning(kind, &node, "StoreReplaced", &message).send(cluster).await;
}
