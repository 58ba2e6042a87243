//! Our own API below `/skein/v1`: cluster status, tokens, kubeconfig, images, exec.
//!
//! Decides the forms of these answers; the work is done elsewhere.

use std::sync::Arc;

use api::errors::ApiError;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::User;
use super::http::{self, Reply};
use super::path::Query;
use super::{pods, upkeep};
use crate::clock;
use crate::cluster::Cluster;
use crate::enrol::{self, RemoveError};
use crate::images::{self, ImageError};
use crate::keyring::{Ring, keeper, signing};
use crate::members::in_view;
use crate::store::Plan;
use crate::voters;

/// Answers one request; `rest` is the path below `/skein/v1/`.
pub async fn answer(cluster: &Arc<Cluster>, user: &User, rest: &str, request: Request<Incoming>) -> Reply {
    let query = Query::parse(request.uri().query());
    let parts: Vec<&str> = rest.split('/').collect();
    match (request.method().clone(), parts.as_slice()) {
        (Method::GET, ["cluster"]) => status(cluster).await,
        (Method::POST, ["tokens"]) => token(cluster, query.is_true("noVoter")).await,
        (Method::GET, ["kubeconfig"]) if user.local => kubeconfig(cluster).await,
        (Method::POST, ["recovery-key"]) if user.local => upkeep::recovery_key(cluster).await,
        (Method::POST, ["unlock"]) if user.local => upkeep::unlock(cluster, request).await,
        (_, ["kubeconfig" | "recovery-key" | "unlock"]) => Err(ApiError::BadRequest(
            "this is for root on a member only, by the agent's socket: run it with 'skein' there".into(),
        )),
        (Method::POST, ["images"]) => load(cluster, query.get("name").map(String::from), request).await,
        (Method::DELETE, ["images"]) => remove(cluster, query.get("name").unwrap_or("")).await,
        (Method::POST, ["exec", namespace, pod]) => pods::exec(cluster, namespace, pod, request).await,
        (Method::DELETE, ["nodes", name]) => remove_member(cluster, name, query.is_true("force")).await,
        (Method::PUT, ["voters"]) => upkeep::pin_voters(cluster, request).await,
        (Method::POST, ["recover"]) => upkeep::recover(cluster, request).await,
        (Method::GET, ["backup"]) => upkeep::download(cluster).await,
        (Method::GET, ["backups"]) => upkeep::schedule(cluster).await,
        (Method::PUT, ["backups"]) => upkeep::set_schedule(cluster, request).await,
        (Method::POST, ["nodes", "confirm-dead"]) => {
            let was_on = crate::brake::confirm_dead(&cluster.store).await?;
            Ok(http::json(200, &json!({"brakeWasOn": was_on})))
        }
        (Method::POST, ["init" | "join" | "restore"]) => Err(ApiError::BadRequest(format!(
            "this machine is a member of a cluster already, as \"{}\": 'skein node reset' makes it a stranger again",
            cluster.name()
        ))),
        _ => Err(ApiError::NoSuchPath),
    }
}

async fn status(cluster: &Cluster) -> Reply {
    let replica =
        cluster.store.status().await.ok_or_else(|| ApiError::Internal("the store has stopped".into()))?;
    let view = cluster.store.view();
    let suspects = cluster.suspects();
    let dead = crate::fabric::dead_nodes(&view);
    let listed = in_view(&view);
    let name_of = |id: raft_store::NodeId| {
        listed
            .iter()
            .find(|member| member.node_id() == id)
            .map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let members: Vec<Value> = listed
        .iter()
        .map(|member| {
            let own = member.node_id() == cluster.me() && *cluster.store.disk_full().borrow();
            let full = own || has_full_disk(&view, &member.name);
            let state = match () {
                () if dead.contains(&member.name) => "dead",
                () if suspects.contains(&member.node_id()) => "suspected",
                () => "alive",
            };
            let role = match () {
                () if replica.leader == Some(member.node_id()) => "leader",
                () if view.members().is_voter(member.node_id()) => "voter",
                () if view.members().learners.contains(&member.node_id()) => "learner",
                () => "observer",
            };
            json!({"name": member.name, "address": member.address.to_string(), "state": state, "diskFull": full, "role": role, "id": member.node_id().to_string(), "versions": member.versions, "podCIDR": member.pod_cidr(), "noVoter": member.no_voter})
        })
        .collect();
    let (index, term) = view.applied();
    let alive = listed.iter().filter(|member| !dead.contains(&member.name)).map(|member| member.node_id());
    let alive = alive.filter(|id| !suspects.contains(id)).collect();
    let pinned = voters::pinned(&view);
    let eligible = voters::candidates(&view).iter().filter(|candidate| candidate.may_vote).count();
    Ok(http::json(
        200,
        &json!({
            "cluster": cluster.identity.cluster, "node": cluster.name(),
            "leader": replica.leader.map(name_of), "voters": view.members().voters.iter().map(|id| name_of(*id)).collect::<Vec<_>>(),
            "feed": replica.fed_by.map(|fed| feed(&fed, index, name_of)), "members": members, "revision": view.revision().0, "appliedIndex": index, "term": term, "stateHash": crate::pki::hex(&view.hash()),
            "version": crate::versions::shown(&view),
            "votersPinned": pinned, "votersWanted": raft_store::autopilot::wanted_voters(eligible, pinned),
            "advice": voters::advice::advice(&view, &alive, replica.leader.is_some()),
            "keyring": keyring(&view, replica.leader, name_of),
            "brake": crate::brake::is_on(&view), "epoch": crate::recovery::number(cluster.identity.epoch), "recoveries": recoveries(&view),
        }),
    ))
}

/// Whether a member says so of itself.
fn has_full_disk(view: &raft_store::View, name: &str) -> bool {
    let kind = api::kinds::Kind::by_name("Node").expect("Node is a row of the table of kinds");
    let entry = view.get(api::keys::object(kind, "", name).as_bytes());
    let node = entry.and_then(|entry| crate::objects::shown(entry).ok());
    node.as_ref().is_some_and(crate::node::has_full_disk)
}

/// Who feeds this machine, where it does not vote, and how old its state is.
fn feed(fed: &raft_store::FedBy, applied: u64, name: impl Fn(raft_store::NodeId) -> String) -> Value {
    json!({
        "from": name(fed.feeder), "hops": fed.hops, "entriesBehind": fed.commit.saturating_sub(applied),
        "heardMsAgo": fed.silent_ms,
    })
}

/// Who holds the keyring, and what is wrong with that.
fn keyring(
    view: &raft_store::View,
    leader: Option<raft_store::NodeId>,
    name: impl Fn(raft_store::NodeId) -> String,
) -> Value {
    let ring = Ring::in_view(view);
    let holders: Vec<String> = ring.iter().flat_map(|ring| ring.held().into_keys()).map(&name).collect();
    json!({
        "holders": holders, "generation": ring.as_ref().map(|ring| ring.generation),
        "recoveryKey": ring.as_ref().is_some_and(|ring| ring.recovery().is_some()),
        "note": keeper::note(view, leader, name),
    })
}

/// The audit of how this cluster went on after losses, oldest first.
fn recoveries(view: &raft_store::View) -> Vec<Value> {
    let audits = view.prefix(crate::recovery::AUDIT.as_bytes(), None);
    audits.filter_map(|entry| serde_json::from_slice(entry.value()).ok()).collect()
}

async fn remove_member(cluster: &Cluster, name: &str, force: bool) -> Reply {
    match enrol::remove(cluster, name, force).await {
        Ok(()) => Ok(http::json(200, &json!({"removed": name}))),
        Err(RemoveError::Write(error)) => Err(crate::objects::write_error(error)),
        Err(error) => Err(ApiError::BadRequest(error.to_string())),
    }
}

async fn token(cluster: &Cluster, no_voter: bool) -> Reply {
    let token = enrol::create_token(cluster, no_voter)
        .await
        .map_err(|error| ApiError::Unavailable(error.to_string()))?;
    let address = cluster.identity.member.address.to_string();
    Ok(http::json(201, &json!({"token": token.to_string(), "address": address})))
}

async fn kubeconfig(cluster: &Cluster) -> Reply {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let admin = signing::admin(cluster).await.map_err(ApiError::Unavailable)?;
    let member = &cluster.identity.member;
    let server = format!("https://{}:{}", member.address.ip(), member.api_port);
    Ok(http::json(
        200,
        &json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "skein", "preferences": {},
            "clusters": [{"name": "skein", "cluster": {"server": server, "certificate-authority-data": encode(&cluster.identity.ca_certificate)}}],
            "users": [{"name": "skein-admin", "user": {"client-certificate-data": encode(&admin.certificate), "client-key-data": encode(&admin.key)}}],
            "contexts": [{"name": "skein", "context": {"cluster": "skein", "user": "skein-admin"}}],
        }),
    ))
}

async fn load(cluster: &Arc<Cluster>, name: Option<String>, request: Request<Incoming>) -> Reply {
    let directory = cluster.config.data.join("uploads");
    let upload = Upload(directory.join(clock::uuid()));
    let path = &upload.0;
    receive(path, request).await?;
    let loaded = cluster.images.load(cluster, path.clone(), name).await.map_err(image_error)?;
    let items: Vec<Value> = loaded.into_iter().map(|image| image.0).collect();
    Ok(http::json(201, &json!({"items": items})))
}

/// A file that is being taken in; it goes with this, also when the client does.
pub struct Upload(pub std::path::PathBuf);

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Takes a file as it comes, without keeping it in memory.
pub async fn receive(path: &std::path::Path, request: Request<Incoming>) -> Result<(), ApiError> {
    let failed = |error: std::io::Error| ApiError::Internal(format!("{}: {error}", path.display()));
    tokio::fs::create_dir_all(path.parent().unwrap_or(path)).await.map_err(failed)?;
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BadRequest(format!("the upload broke off: {error}")))?;
        if let Some(bytes) = frame.data_ref() {
            file.write_all(bytes).await.map_err(failed)?;
        }
    }
    file.flush().await.map_err(failed)
}

fn image_error(error: ImageError) -> ApiError {
    match error {
        ImageError::Archive(_) | ImageError::NoName => ApiError::BadRequest(error.to_string()),
        ImageError::Write(error) => crate::objects::write_error(error),
        error => ApiError::Internal(error.to_string()),
    }
}

async fn remove(cluster: &Cluster, reference: &str) -> Reply {
    let view = cluster.objects.view(crate::objects::Freshness::Linearizable).await?;
    let kind = images::images();
    let by_name = api::keys::object(kind, "", reference);
    let key = if view.get(by_name.as_bytes()).is_some() {
        by_name
    } else {
        api::keys::object(kind, "", &images::object_name(reference))
    };
    if view.get(key.as_bytes()).is_none() {
        return Err(ApiError::NotFound { resource: kind.resource(), name: reference.into() });
    }
    cluster
        .store
        .transact(Plan::new().delete(&key).build(), None)
        .await
        .map_err(crate::objects::write_error)?;
    Ok(http::json(200, &json!({"removed": reference})))
}
