//! Requests of other members, answered: proposals, probes, blobs, logs, exec, signatures.
//!
//! Decides which part of the agent answers. A request comes from a proven member; what it may ask is checked here.

use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use raft_store::{Command, Input, NodeId, Outcome};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::clock::spawn;
use crate::cluster::Cluster;
use crate::enrol;
use crate::gossip::Ask;
use crate::images::parse_digest;
use crate::mesh::wire::{self, Datagram, JoinRequest, Request, Response};
use crate::mesh::{Class, Incoming};
use crate::server::pods;
use crate::{consistency, doubles, membership, recovery};

/// Hands on everything that comes in, until the mesh ends.
pub async fn dispatch(
    cluster: Arc<Cluster>,
    gossip: mpsc::UnboundedSender<Ask>,
    mut incoming: mpsc::Receiver<Incoming>,
) {
    while let Some(incoming) = incoming.recv().await {
        match incoming {
            Incoming::Raft { from, bytes } => cluster.store.input(Input::Message { from, bytes }),
            Incoming::RaftSent { to: peer, class, delivered: ok } => cluster.store.input(match class {
                Class::Bulk => Input::SnapshotSent { peer, ok },
                Class::Control => Input::Unreachable { peer },
            }),
            Incoming::Datagram { datagram: Datagram::Gossip(bytes), .. } => {
                let _ = gossip.send(Ask::Input(membership::Input::Datagram(bytes)));
            }
            Incoming::Datagram { from, datagram: Datagram::Pong(number) } => {
                cluster.pings.answered(from, number)
            }
            Incoming::Datagram { .. } => {}
            Incoming::Request { from, request, send, receive } => {
                spawn(answer(cluster.clone(), gossip.clone(), from, request, send, receive));
            }
            Incoming::Join { request, mut send } => {
                let cluster = cluster.clone();
                spawn(async move {
                    let answer = enrol::admit(&cluster, &request).await;
                    let _ = wire::write_frame(&mut send, &answer).await;
                    let _ = send.finish();
                    let _ = send.stopped().await;
                });
            }
        }
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
        Request::Propose(bytes) => propose(&cluster, &bytes).await,
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
        Request::SignClient { user, groups } => sign_client(&cluster, &user, &groups),
        Request::SignMember { signing_request, name, address } => {
            sign_member(&cluster, signing_request, name, &address)
        }
        Request::Survey => match recovery::survey::own(&cluster).await {
            Some(own) => Response::Survey(serde_json::to_vec(&own).unwrap_or_default()),
            None => Response::Refused("the store has stopped".into()),
        },
        Request::Recover { lost } => recovery::survey::ordered(&cluster, &lost).await,
        Request::NewEpoch { epoch, members } => recovery::bring_over::told(&cluster, epoch, &members).await,
        Request::Life { number, place } => doubles::answer(&cluster, from, number, &place),
        Request::Marks => consistency::own(&cluster).await,
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

async fn propose(cluster: &Cluster, bytes: &[u8]) -> Response {
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
    let outcome = cluster.store.propose_here(command).await.unwrap_or(Outcome::Lost);
    Response::Outcome(wire::encode(&outcome))
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

fn sign_client(cluster: &Cluster, user: &str, groups: &[String]) -> Response {
    let Some(authority) = cluster.identity.authority() else {
        return Response::Refused("the CA's key is not here".into());
    };
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    match authority.sign_client(user, &groups, crate::clock::wall()) {
        Ok(credential) => Response::Signed { certificate: credential.certificate, key: credential.key },
        Err(error) => Response::Refused(error.to_string()),
    }
}

fn sign_member(cluster: &Cluster, signing_request: String, name: String, address: &str) -> Response {
    let (Some(authority), Ok(ip)) = (cluster.identity.authority(), address.parse()) else {
        return Response::Refused("the CA's key is not here".into());
    };
    let request = JoinRequest {
        secret: String::new(),
        name,
        address: std::net::SocketAddr::new(ip, 0),
        api_port: 0,
        signing_request,
    };
    match enrol::sign_here(&authority, &request) {
        Ok(certificate) => Response::Certificate(certificate),
        Err(error) => Response::Refused(error.to_string()),
    }
}
