//! Requests of other members, answered: proposals, probes, blobs, logs, exec, signatures.
//!
//! Decides which part of the agent answers. A request comes from a proven member; what it may ask is checked here.

use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use raft_store::{Command, Input, NodeId, Op, Outcome, Transaction};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::clock::spawn;
use crate::cluster::Cluster;
use crate::enrol;
use crate::gossip::Ask;
use crate::images::parse_digest;
use crate::keyring::signing;
use crate::members::Member;
use crate::mesh::wire::{self, Forwarded, Request, Response, Settled};
use crate::mesh::{Class, Incoming};
use crate::rebuild::admission::{self, Wish};
use crate::server::pods;
use crate::{consistency, doubles, keyring, members, membership, recovery};

/// Hands on everything that comes in, until the mesh ends.
pub async fn dispatch(
    cluster: Arc<Cluster>,
    gossip: mpsc::UnboundedSender<Ask>,
    mut incoming: mpsc::Receiver<Incoming>,
) {
    while let Some(incoming) = incoming.recv().await {
        match incoming {
            Incoming::Raft { from, bytes } => cluster.store.input(Input::Message { from, bytes }),
            Incoming::RaftSent { to, class, delivered } => cluster.store.input(told(to, class, delivered)),
            Incoming::Pong { from, number } => cluster.pings.answered(from, number),
            Incoming::Request { from, request, send, receive } => {
                spawn(answer(cluster.clone(), gossip.clone(), from, request, send, receive));
            }
            Incoming::Join { request, supported, mut send } => {
                let cluster = cluster.clone();
                spawn(async move {
                    let answer = enrol::admit(&cluster, &request, supported).await;
                    let _ = wire::write_frame(&mut send, &answer).await;
                    let _ = send.finish();
                    let _ = send.stopped().await;
                });
            }
        }
    }
}

/// What raft is told of a message's fate. Of a snapshot in any case: it sends that follower nothing else until it knows.
fn told(peer: NodeId, class: Class, ok: bool) -> Input {
    match class {
        Class::Bulk => Input::SnapshotSent { peer, ok },
        Class::Control | Class::Raft => Input::Unreachable { peer },
    }
}

async fn answer(
    cluster: Arc<Cluster>,
    gossip: mpsc::UnboundedSender<Ask>,
    from: NodeId,
    request: Request,
    mut send: SendStream,
    receive: RecvStream,
) {
    let response = match request {
        Request::Propose(bytes) => propose(&cluster, from, &bytes).await,
        Request::Forward => return forwarded(&cluster, from, send, receive).await,
        Request::Exchange(known) => exchange(&gossip, known).await,
        Request::Probe { node } => Response::Reached(cluster.pings.reach(&cluster.mesh, NodeId(node)).await),
        Request::HaveBlobs(digests) => Response::Blobs(
            digests
                .iter()
                .map(|text| parse_digest(text).is_ok_and(|digest| cluster.images.store.has(&digest)))
                .collect(),
        ),
        Request::FetchBlob(digest) => return send_blob(&cluster, &digest, send).await,
        Request::KeepBlob { digest, size, from } => keep_blob(&cluster, &digest, size, from).await,
        wish @ (Request::SignClient { .. }
        | Request::SignMember { .. }
        | Request::Enrol(_)
        | Request::SetRecovery { .. }) => signing::answer(&cluster, from, wish).await,
        Request::Survey => match recovery::survey::own(&cluster).await {
            Some(own) => Response::Survey(serde_json::to_vec(&own).unwrap_or_default()),
            None => Response::Refused("the store has stopped".into()),
        },
        Request::Recover { lost } => recovery::survey::ordered(&cluster, &lost).await,
        Request::NewEpoch { epoch, members } => recovery::bring_over::told(&cluster, epoch, &members).await,
        Request::Life { number, place } => doubles::answer(&cluster, from, number, &place),
        Request::Marks => consistency::own(&cluster).await,
        Request::Replace { signing_request, life, place, why } => {
            admission::answer(&cluster, from, Wish { signing_request, life, place, why }).await
        }
        Request::Logs { uid, container, options } => {
            return pods::serve_log(&cluster, &uid, &container, options, send).await;
        }
        Request::Exec { uid, container, args, stdin } => {
            return pods::serve_exec(&cluster, &uid, &container, args, stdin, send, receive).await;
        }
    };
    if let Err(error) = wire::write_frame(&mut send, &response).await {
        debug!(%from, %error, "an answer was not taken");
    }
    let _ = send.finish();
}

async fn propose(cluster: &Cluster, from: NodeId, bytes: &[u8]) -> Response {
    let Ok(command) = wire::decode::<Command>(bytes) else {
        return Response::Refused("not a command".into());
    };
    // Only sessions and transactions are forwarded; everything else is the leader's own.
    if !matches!(
        command,
        Command::OpenSession { .. } | Command::CloseSession { .. } | Command::Transact { .. }
    ) {
        return Response::Refused("this command is not taken from other machines".into());
    }
    if let Command::Transact { transaction, .. } = &command
        && !may_forward(cluster.roster.get(from).as_ref(), transaction)
    {
        return Response::Refused("this key is not written for other machines".into());
    }
    let outcome = cluster.store.propose_here(command).await.unwrap_or(Outcome::Lost);
    Response::Outcome(wire::encode(&outcome))
}

/// Proposes what comes on the stream, and says what became of each command as soon as it is known.
async fn forwarded(cluster: &Arc<Cluster>, from: NodeId, mut send: SendStream, mut receive: RecvStream) {
    let (settled, mut outcomes) = mpsc::unbounded_channel::<Settled>();
    let owned = cluster.clone();
    let reading = spawn(async move {
        while let Ok(Forwarded { id, command }) = wire::read_frame(&mut receive).await {
            let (cluster, settled) = (owned.clone(), settled.clone());
            spawn(async move {
                let outcome = match propose(&cluster, from, &command).await {
                    Response::Outcome(outcome) => outcome,
                    // Nothing that decodes: the asker takes it for no answer.
                    _ => Vec::new(),
                };
                let _ = settled.send(Settled { id, outcome });
            });
        }
    });
    let (mut burst, mut bytes) = (Vec::new(), Vec::new());
    while outcomes.recv_many(&mut burst, 256).await > 0 {
        burst.drain(..).for_each(|settled| wire::put_frame(&settled, &mut bytes));
        if send.write_all(&bytes).await.is_err() {
            break;
        }
        bytes.clear();
    }
    reading.abort();
}

async fn exchange(gossip: &mpsc::UnboundedSender<Ask>, known: Vec<u8>) -> Response {
    let (reply, knowledge) = oneshot::channel();
    let _ = gossip.send(Ask::Knowledge(reply));
    let _ = gossip.send(Ask::Input(membership::Input::Exchange(known)));
    knowledge.await.map_or(Response::Refused("gossip has ended".into()), Response::Exchanged)
}

async fn send_blob(cluster: &Cluster, digest: &str, mut send: SendStream) {
    let opened = parse_digest(digest).ok().and_then(|digest| {
        Some((cluster.images.store.size(&digest)?, cluster.images.store.read(&digest).ok()?))
    });
    let Some((size, file)) = opened else {
        let _ = wire::write_frame(&mut send, &Response::Refused("not here".into())).await;
        return;
    };
    if wire::write_frame(&mut send, &Response::Blob { size }).await.is_ok() {
        let mut file = tokio::fs::File::from_std(file);
        let _ = tokio::io::copy(&mut file, &mut send).await;
        let _ = send.finish();
        let _ = send.stopped().await;
    }
}

async fn keep_blob(cluster: &Cluster, digest: &str, size: u64, from: u64) -> Response {
    let Ok(digest) = parse_digest(digest) else { return Response::Refused("not a digest".into()) };
    if cluster.images.store.has(&digest) {
        return Response::Done;
    }
    match cluster.images.fetch(cluster, NodeId(from), &digest, size).await {
        Ok(()) => Response::Done,
        Err(error) => Response::Refused(error.to_string()),
    }
}

/// What a member may have written by the leader: the keyring is the leader's own, and of the member list each member changes only its own
/// record, not its key. (Members are let in by the leader, and anybody may remove one.)
fn may_forward(sender: Option<&Member>, transaction: &Transaction) -> bool {
    transaction.ops.iter().all(|op| {
        let (key, value) = match op {
            Op::Put { key, value } | Op::PutFor { key, value, .. } => (key, Some(value)),
            Op::Delete { key } => (key, None),
        };
        if key.0.starts_with(keyring::PREFIX.as_bytes()) {
            return false;
        }
        let Some(value) = value.filter(|_| key.0.starts_with(members::PREFIX.as_bytes())) else {
            return true;
        };
        let record = serde_json::from_slice::<Member>(&value.0).ok();
        let (Some(sender), Some(record)) = (sender, record) else { return false };
        *key.0 == *members::key(&sender.name).as_bytes()
            && Member { seal_key: sender.seal_key.clone(), versions: sender.versions, ..record } == *sender
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Plan;

    fn member(name: &str, id: u64) -> Member {
        Member {
            name: name.into(),
            id,
            key: "ab".into(),
            address: ([10, 0, 0, 1], 7443).into(),
            api_port: 6443,
            block: 0,
            no_voter: false,
            seal_key: String::new(),
            versions: None,
        }
    }

    fn put(member: &Member, at: &str) -> Transaction {
        Plan::new().put(&members::key(at), serde_json::to_vec(member).unwrap()).build()
    }

    #[test]
    fn a_member_says_its_own_sealing_key_and_changes_nothing_else_of_the_member_list() {
        let (a, b) = (member("a", 1), member("b", 2));
        let said = Member { seal_key: "cd".into(), versions: Some((1, 2)), ..a.clone() };
        assert!(may_forward(Some(&a), &put(&said, "a")));
        assert!(!may_forward(Some(&b), &put(&said, "a")));
        assert!(!may_forward(Some(&a), &put(&said, "b")));
        assert!(!may_forward(Some(&a), &put(&Member { key: "ef".into(), ..said.clone() }, "a")));
        assert!(!may_forward(None, &put(&said, "a")));
        assert!(!may_forward(Some(&a), &Plan::new().put("m/a", b"rubbish").build()));
        assert!(may_forward(Some(&a), &Plan::new().delete("m/b").build()));
    }

    #[test]
    fn raft_is_told_of_every_snapshot_and_of_other_messages_only_that_they_failed() {
        let peer = NodeId(7);
        for ok in [true, false] {
            assert!(
                matches!(told(peer, Class::Bulk, ok), Input::SnapshotSent { peer: NodeId(7), ok: said } if said == ok)
            );
        }
        assert!(matches!(told(peer, Class::Raft, false), Input::Unreachable { peer: NodeId(7) }));
    }

    #[test]
    fn the_keyring_is_written_by_the_leader_only() {
        let a = member("a", 1);
        assert!(!may_forward(Some(&a), &Plan::new().put(keyring::KEY, b"{}").build()));
        assert!(!may_forward(Some(&a), &Plan::new().delete(keyring::KEY).build()));
        assert!(may_forward(Some(&a), &Plan::new().put("o/x", b"{}").build()));
    }
}
