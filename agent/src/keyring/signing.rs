//! What only the leader does with the CA's key: let machines in, renew certificates, sign the administrator's.
//!
//! Decides who is signed what: a machine that joins with a valid token, a member for the key that it is listed with, and the one
//! administrator for root on a member. That a member asks for its own root is taken on trust: it is root's program there
//! (docs/decisions/0206). The CA's key is opened for one signature and wiped.

use std::time::Duration;

use raft_store::{Epoch, NodeId};

use super::{KEY, OpenError, Ring, keeper, public_of_text};
use crate::clock;
use crate::cluster::Cluster;
use crate::enrol;
use crate::mesh::wire::{JoinAnswer, JoinRequest, Request, Response};
use crate::pki::{self, Authority, Credential};
use crate::timing;

/// The one administrator.
pub const ADMIN: &str = "skein-admin";
pub const ADMINS: &str = "system:masters";

/// No signature is given.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the cluster's CA key cannot be opened: {0}; see 'skein cluster status'")]
    Open(#[from] OpenError),
    #[error("the key in the keyring is not the CA's: somebody has changed the keyring")]
    Foreign,
    #[error("{0}")]
    Pki(#[from] pki::PkiError),
    #[error("a member's certificate is renewed for its own listed key, name and address only")]
    NotItsOwn,
    #[error("certificates are signed for {ADMIN} only")]
    NotTheAdmin,
}

/// The CA with its key, on the leader.
pub fn authority(cluster: &Cluster) -> Result<Authority, SignError> {
    let view = cluster.store.view();
    let ring = Ring::in_view(&view).ok_or(OpenError::Absent)?;
    let secrets = ring.open(&cluster.identity.cluster, cluster.me(), &cluster.seal_key)?;
    let authority =
        Authority { certificate: cluster.identity.ca_certificate.clone(), key: secrets.ca_key.clone() };
    if authority.matches()? { Ok(authority) } else { Err(SignError::Foreign) }
}

/// Has the leader do it, whoever that is by then.
pub async fn ask(cluster: &Cluster, wish: Request) -> Response {
    let none = "no leader answered in time: see 'skein cluster status'";
    tokio::time::timeout(timing::LEADER_ANSWER, ask_until_answered(cluster, &wish))
        .await
        .unwrap_or_else(|_| Response::Refused(none.into()))
}

async fn ask_until_answered(cluster: &Cluster, wish: &Request) -> Response {
    let mut leadership = cluster.store.leadership();
    loop {
        let leader = leadership.borrow_and_update().leader;
        let answer = match leader {
            Some(leader) if leader == cluster.me() => answer(cluster, cluster.me(), wish.clone()).await,
            Some(leader) => tokio::select! {
                answer = cluster.mesh.request_bulk(leader, wish.clone()) => answer.unwrap_or(Response::NotLeader),
                _ = leadership.wait_for(|now| now.leader != Some(leader)) => Response::NotLeader,
            },
            None => Response::NotLeader,
        };
        match answer {
            Response::NotLeader => tokio::time::sleep(timing::RETRY_PAUSE).await,
            answer => return answer,
        }
    }
}

/// Answers a wish of a member, or this machine's own, if this machine leads.
pub async fn answer(cluster: &Cluster, from: NodeId, wish: Request) -> Response {
    let Some(epoch) = cluster.store.leadership().borrow().epoch else { return Response::NotLeader };
    // A new leader's keyring may still be on its way into the store.
    if cluster.store.view().get(KEY.as_bytes()).is_none() {
        wait_for_keyring(cluster).await;
    }
    let answered = match wish {
        Request::Enrol(request) => return enrolled(cluster, &request).await,
        Request::SignClient { user, groups } => client(cluster, &user, &groups),
        Request::SignMember { signing_request, name, address } => {
            renewed(cluster, from, signing_request, &name, &address)
        }
        Request::SetRecovery { public } => return set_recovery(cluster, epoch, &public).await,
        _ => return Response::Refused("this is not the leader's to answer".into()),
    };
    answered.unwrap_or_else(|error| Response::Refused(error.to_string()))
}

/// Waits a moment for the first keyring.
pub async fn wait_for_keyring(cluster: &Cluster) -> bool {
    let mut views = cluster.store.views();
    let there = views.wait_for(|view| view.get(KEY.as_bytes()).is_some());
    matches!(tokio::time::timeout(timing::REQUEST_DEADLINE, there).await, Ok(Ok(_)))
}

async fn enrolled(cluster: &Cluster, request: &JoinRequest) -> Response {
    match enrol::enrol(cluster, request).await {
        Ok(answer) => Response::Admitted(answer),
        Err(error) if error.is_about_the_leader() => Response::NotLeader,
        Err(error) => {
            tracing::warn!(name = %request.name, %error, "join refused");
            Response::Admitted(JoinAnswer::Refused(error.to_string()))
        }
    }
}

fn client(cluster: &Cluster, user: &str, groups: &[String]) -> Result<Response, SignError> {
    if user != ADMIN || groups != [ADMINS] {
        return Err(SignError::NotTheAdmin);
    }
    let credential = authority(cluster)?.sign_client(user, &[ADMINS], clock::wall())?;
    Ok(Response::Signed { certificate: credential.certificate, key: credential.key })
}

/// A member's certificate for its own key: what it is called and where it is stands on the member list.
fn renewed(
    cluster: &Cluster,
    from: NodeId,
    signing_request: String,
    name: &str,
    address: &str,
) -> Result<Response, SignError> {
    let member = cluster.roster.get(from).ok_or(SignError::NotItsOwn)?;
    if member.name != name || member.address.ip().to_string() != address {
        return Err(SignError::NotItsOwn);
    }
    let request = JoinRequest {
        secret: String::new(),
        name: member.name,
        address: member.address,
        api_port: member.api_port,
        signing_request,
    };
    let certificate = enrol::sign_here(&authority(cluster)?, &request, cluster.config.certificate_lifetime)?;
    let hash = pki::key_hash(&pki::certificate_der(&certificate)?)?;
    if pki::hex(&hash) != member.key {
        return Err(SignError::NotItsOwn);
    }
    Ok(Response::Certificate(certificate))
}

async fn set_recovery(cluster: &Cluster, epoch: Epoch, public: &str) -> Response {
    let Some(public) = public_of_text(public) else { return Response::Refused("not a public key".into()) };
    match keeper::set_recovery(cluster, epoch, public).await {
        Ok(()) => Response::Done,
        Err(error) => Response::Refused(error.to_string()),
    }
}

/// The administrator's certificate, for root on this machine.
pub async fn admin(cluster: &Cluster) -> Result<Credential, String> {
    let wish = Request::SignClient { user: ADMIN.into(), groups: vec![ADMINS.into()] };
    match ask(cluster, wish).await {
        Response::Signed { certificate, key } => Ok(Credential { certificate, key }),
        Response::Refused(why) => Err(why),
        _ => Err("the leader's answer makes no sense".into()),
    }
}

/// How long until a certificate with these bounds is to be renewed: a third of its life before its end.
pub fn renew_in(validity: (i64, i64), now: i64) -> Duration {
    let (from, until) = validity;
    let left = (until - from - pki::BACKDATED_S).max(0) / 3;
    Duration::from_secs(u64::try_from(until - left - now).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
        let week = (1_000 - pki::BACKDATED_S, 1_000 + 604_800);
        assert_eq!(renew_in(week, 1_000), Duration::from_secs(403_200));
        assert_eq!(renew_in(week, 1_000 + 403_200), Duration::ZERO);
        assert_eq!(renew_in(week, 9_000_000), Duration::ZERO, "also one that has expired");
        assert_eq!(renew_in((700, 1_030), 1_000), Duration::from_secs(20), "a short one");
    }
}
