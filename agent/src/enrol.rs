//! Letting a machine in, and out: token, name, key, address block, Node object.
//!
//! Decides who becomes a member and as what, and who may be removed. It must not answer before the change is committed.

use std::time::Duration;

use api::kinds::Kind;
use api::{Object, duration, keys};
use raft_store::{NodeId, Supported, View};
use serde_json::json;

use crate::clock;
use crate::cluster::Cluster;
use crate::keyring::signing::{self, SignError};
use crate::members::{self, Member, TOKENS, TokenRecord, in_view};
use crate::mesh::wire::{JoinAnswer, JoinRequest, Request, Response};
use crate::objects::shown;
use crate::pki::{self, Authority, Token};
use crate::store::{Plan, TransactError};
use crate::{timing, versions};

/// A machine is not let in.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error(
        "the token is not known here or has expired: print a new one with 'skein token create' on a member"
    )]
    Token,
    #[error(
        "the name \"{0}\" is taken by another member: choose another with --name, or remove that member first ('skein node rm {0}') if it is gone or has lost its disk"
    )]
    Name(String),
    #[error(
        "the address {0} is taken by member \"{1}\": choose another with --address, or remove that member first"
    )]
    Address(std::net::SocketAddr, String),
    #[error(
        "this machine is a member already, under the name \"{0}\" (an earlier join got that far): join with --name {0}, or remove that member first with 'skein node rm {0}'"
    )]
    KnownAs(String),
    #[error("\"{0}\" cannot be a node's name: lower case letters, digits, '-' and '.' only")]
    BadName(String),
    #[error("all 254 address blocks are in use")]
    Blocks,
    #[error("{0}")]
    Pki(#[from] pki::PkiError),
    #[error("{0}")]
    Write(#[from] TransactError),
    #[error("{0}")]
    Sign(#[from] SignError),
}

impl EnrolError {
    /// It went wrong because somebody else leads by now, or nobody: worth another try there.
    pub fn is_about_the_leader(&self) -> bool {
        matches!(
            self,
            EnrolError::Write(
                TransactError::NoLeader | TransactError::Unknown | TransactError::StaleEpoch(_)
            )
        )
    }
}

/// Makes a join token and answers its text form.
pub async fn create_token(cluster: &Cluster, no_voter: bool) -> Result<Token, EnrolError> {
    let mut bytes = [0u8; 16];
    clock::fill_random(&mut bytes);
    let authority = pki::certificate_der(&cluster.identity.ca_certificate)?;
    let token = Token { ca_hash: sha(&authority), secret: pki::hex(&bytes) };
    let record = TokenRecord {
        expires: clock::wall().as_second() + timing::TOKEN_LIFETIME.as_secs() as i64,
        no_voter,
    };
    let key = format!("{TOKENS}{}", token.secret_hash());
    let value = serde_json::to_vec(&record).unwrap_or_default();
    let plan = Plan::new().put_for(&key, value, timing::TOKEN_LIFETIME);
    cluster.store.transact(plan.build(), None).await?;
    Ok(token)
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// Answers a join request: the leader decides, wherever the request came in.
pub async fn admit(cluster: &Cluster, request: &JoinRequest, supported: Supported) -> JoinAnswer {
    // The version never goes down. One that goes up in this moment is noticed by the newcomer's replica, which stops and says so.
    if let Some(why) = versions::misfit(cluster.store.view().version(), supported) {
        return JoinAnswer::Refused(why);
    }
    match signing::ask(cluster, Request::Enrol(request.clone())).await {
        Response::Admitted(answer) => answer,
        Response::Refused(why) => JoinAnswer::Refused(why),
        _ => JoinAnswer::Refused("the leader's answer makes no sense".into()),
    }
}

/// Lets a machine in; only where this machine leads.
pub async fn enrol(cluster: &Cluster, request: &JoinRequest) -> Result<JoinAnswer, EnrolError> {
    let token = Token { ca_hash: [0; 32], secret: request.secret.clone() };
    let view = cluster.store.linearizable().await.ok_or(TransactError::NoLeader)?;
    let token_key = format!("{TOKENS}{}", token.secret_hash());
    let record: TokenRecord = view
        .get(token_key.as_bytes())
        .and_then(|entry| serde_json::from_slice(entry.value()).ok())
        .ok_or(EnrolError::Token)?;
    if record.expires < clock::wall().as_second() {
        return Err(EnrolError::Token);
    }
    if api::names::problem(api::names::NameForm::Subdomain, &request.name).is_some() {
        return Err(EnrolError::BadName(request.name.clone()));
    }
    let authority = signing::authority(cluster)?;
    let certificate = sign_here(&authority, request, cluster.config.certificate_lifetime)?;
    let hash = pki::key_hash(&pki::certificate_der(&certificate)?)?;
    let member = add(cluster, request, hash, record.no_voter).await?;
    let view = cluster.store.view();
    let mut members = in_view(&view);
    if members.iter().all(|other| other.id != member.id) {
        members.push(member.clone());
    }
    tracing::info!(name = %member.name, address = %member.address, "joined");
    Ok(JoinAnswer::Welcome {
        cluster: cluster.identity.cluster.clone(),
        epoch: cluster.identity.epoch,
        certificate,
        ca_certificate: cluster.identity.ca_certificate.clone(),
        ca_key: None,
        member: serde_json::to_string(&member).unwrap_or_default(),
        members: serde_json::to_string(&members).unwrap_or_default(),
    })
}

/// Signs a member's request with the CA's key.
pub fn sign_here(
    authority: &Authority,
    request: &JoinRequest,
    lifetime: Duration,
) -> Result<String, pki::PkiError> {
    let mut addresses = vec![
        request.address.ip(),
        std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::Ipv4Addr::new(10, 43, 0, 1).into(),
    ];
    addresses.dedup();
    authority.sign_member(&request.signing_request, &request.name, &addresses, clock::wall(), lifetime)
}

/// Writes the member's record, its block and its Node object in one transaction.
async fn add(
    cluster: &Cluster,
    request: &JoinRequest,
    hash: [u8; 32],
    no_voter: bool,
) -> Result<Member, EnrolError> {
    for _ in 0..8 {
        let view = cluster.store.linearizable().await.ok_or(TransactError::NoLeader)?;
        let listed = in_view(&view);
        // The same machine asking again (its answer was lost) is let in as it is.
        if let Some(known) = listed.iter().find(|member| member.key == pki::hex(&hash)) {
            let same = known.name == request.name && known.address == request.address;
            return if same { Ok(known.clone()) } else { Err(EnrolError::KnownAs(known.name.clone())) };
        }
        if listed.iter().any(|member| member.name == request.name) {
            return Err(EnrolError::Name(request.name.clone()));
        }
        if let Some(other) = listed.iter().find(|member| member.address == request.address) {
            return Err(EnrolError::Address(request.address, other.name.clone()));
        }
        let block = (0..=253u8)
            .find(|block| listed.iter().all(|member| member.block != *block))
            .ok_or(EnrolError::Blocks)?;
        let member = Member {
            name: request.name.clone(),
            id: members::id_of_key(&hash),
            key: pki::hex(&hash),
            address: request.address,
            api_port: request.api_port,
            block,
            no_voter,
            // Its agent says it once it has the state.
            seal_key: String::new(),
            versions: None,
        };
        match cluster.store.transact(enrolment(&member, &view), None).await {
            Ok(revision) => {
                let _ = cluster.store.at_least(revision).await;
                return Ok(member);
            }
            Err(TransactError::CompareFailed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(TransactError::NoLeader.into())
}

/// A machine is not let out.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("there is no member \"{0}\": 'skein node ls' lists them")]
    Unknown(String),
    #[error(
        "\"{0}\" is alive: run 'skein node reset' on it first, with its agent stopped, and wait until it is dead here; or add --force, then its pods run on there until you reset it"
    )]
    Alive(String),
    #[error("\"{0}\" alone keeps the cluster's state: join a third machine first, then remove it")]
    OnlyVoter(String),
    #[error(
        "without \"{0}\" only {1} of {2} voters would be alive, and nothing could be written any more: bring a machine back first"
    )]
    Quorum(String, usize, usize),
    #[error("{0}")]
    Write(#[from] TransactError),
}

/// Takes a member off the list. Its key is refused from then on; the leader takes it out of the voters.
pub async fn remove(cluster: &Cluster, name: &str, force: bool) -> Result<(), RemoveError> {
    for _ in 0..8 {
        let view = cluster.store.linearizable().await.ok_or(TransactError::NoLeader)?;
        let listed = in_view(&view);
        let member = listed.iter().find(|member| member.name == name);
        let member = member.ok_or_else(|| RemoveError::Unknown(name.into()))?;
        let gone = |id: NodeId| {
            let known = listed.iter().find(|other| other.node_id() == id);
            known.is_none_or(|other| is_silent(cluster, &view, other))
        };
        may_leave(member, view.members().voters.as_slice(), gone, force)?;
        let [member_key, block_key, node_key] = keys_of(name, member.block);
        let revision = view.get(member_key.as_bytes()).map_or(0, |entry| entry.mod_revision().0);
        let plan = Plan::new()
            .expect_revision(&member_key, revision)
            .delete(&member_key)
            .delete(&block_key)
            .delete(&node_key)
            .delete(&crate::doubles::key(name));
        match cluster.store.transact(plan.build(), None).await {
            Ok(revision) => {
                let _ = cluster.store.at_least(revision).await;
                tracing::info!(name, "removed from the cluster");
                return Ok(());
            }
            Err(TransactError::CompareFailed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(TransactError::NoLeader.into())
}

/// Whether nobody here has heard of the member lately, or it has never been there.
fn is_silent(cluster: &Cluster, view: &View, member: &Member) -> bool {
    // Two that ran as this member are refused for good: neither is waited for.
    let doubled = view.get(crate::doubles::key(&member.name).as_bytes()).is_some();
    let dead = doubled || crate::fabric::dead_nodes(view).contains(&member.name);
    member.node_id() != cluster.me() && (dead || cluster.suspects().contains(&member.node_id()))
}

/// The rule of [`remove`]: who is alive leaves only by force, and nobody whose leaving stops the cluster.
fn may_leave(
    member: &Member,
    voters: &[NodeId],
    gone: impl Fn(NodeId) -> bool,
    force: bool,
) -> Result<(), RemoveError> {
    if !force && !gone(member.node_id()) {
        return Err(RemoveError::Alive(member.name.clone()));
    }
    if !voters.contains(&member.node_id()) {
        return Ok(());
    }
    let left: Vec<NodeId> = voters.iter().copied().filter(|id| *id != member.node_id()).collect();
    if left.is_empty() {
        return Err(RemoveError::OnlyVoter(member.name.clone()));
    }
    let alive = left.iter().filter(|id| !gone(**id)).count();
    if alive * 2 <= left.len() {
        return Err(RemoveError::Quorum(member.name.clone(), alive, left.len()));
    }
    Ok(())
}

/// Keys of a member's record, its block and its Node object.
pub fn keys_of(name: &str, block: u8) -> [String; 3] {
    let node_kind = Kind::by_name("Node").expect("Node is a row of the table of kinds");
    [members::key(name), format!("a/block/{block}"), keys::object(node_kind, "", name)]
}

/// The transaction that makes a machine a member: also the first member's own.
pub fn enrolment(member: &Member, view: &View) -> raft_store::Transaction {
    let [member_key, block_key, node_key] = keys_of(&member.name, member.block);
    let known = view
        .get(node_key.as_bytes())
        .and_then(|entry| shown(entry).ok())
        .map(Object::without_resource_version);
    let node = known.unwrap_or_else(|| new_node(member));
    Plan::new()
        .expect_absent(&member_key)
        .expect_absent(&block_key)
        .put(&member_key, serde_json::to_vec(member).unwrap_or_default())
        .put(&block_key, &member.name)
        .put(&node_key, node.to_vec())
        .build()
}

/// The Node object of a machine that has not reported yet.
pub fn new_node(member: &Member) -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": member.name, "uid": clock::uuid(), "creationTimestamp": duration::rfc3339(clock::wall()),
            "labels": {
                "kubernetes.io/hostname": member.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
            },
        },
        "spec": {"podCIDR": member.pod_cidr(), "podCIDRs": [member.pod_cidr()]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": member.address.ip().to_string()}, {"type": "Hostname", "address": member.name}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "Joining", "message": "the agent has not reported yet",
                "lastHeartbeatTime": duration::rfc3339(clock::wall()), "lastTransitionTime": duration::rfc3339(clock::wall())}],
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(n: u8) -> Member {
        Member {
            name: format!("host{n}"),
            id: u64::from(n),
            key: String::new(),
            address: ([10, 0, 0, n], 7443).into(),
            api_port: 6443,
            block: n - 1,
            no_voter: false,
            seal_key: String::new(),
            versions: None,
        }
    }

    const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    #[test]
    fn the_dead_and_who_never_came_leave_and_the_living_only_by_force() {
        let gone = |id: NodeId| id.0 >= 3;
        assert!(may_leave(&member(3), &VOTERS, gone, false).is_ok());
        assert!(may_leave(&member(4), &VOTERS, gone, false).is_ok());
        assert!(matches!(may_leave(&member(2), &VOTERS, |_| false, false), Err(RemoveError::Alive(_))));
        assert!(may_leave(&member(2), &VOTERS, |_| false, true).is_ok());
    }

    #[test]
    fn nobody_leaves_whose_leaving_would_stop_the_cluster() {
        let one_is_dead = |id: NodeId| id.0 == 3;
        assert!(matches!(
            may_leave(&member(2), &VOTERS, one_is_dead, true),
            Err(RemoveError::Quorum(_, 1, 2))
        ));
        assert!(matches!(
            may_leave(&member(1), &VOTERS[..1], |_| false, true),
            Err(RemoveError::OnlyVoter(_))
        ));
    }
}
