//! Connections: dialling, accepting, reading what comes in, and the queues of raft messages.
//!
//! Decides nothing about messages; a connection that does not prove a listed key reaches nobody.

use std::sync::Arc;

use quinn::{Connection, ConnectionError, Endpoint, Incoming as Handshake, RecvStream, SendStream, VarInt};
use raft_store::NodeId;
use rustls_pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, error};

use super::links::{Link, Pair};
use super::port::Half;
use super::refusals::NOT_A_MEMBER;
use super::wire::{self, Datagram};
use super::{Class, Incoming, Mesh, tls};
use crate::clock;
use crate::{pki, timing};

/// Bytes of raft messages that are written at once, roughly.
const BURST: usize = 256 << 10;
/// Connections at once that have not proved to be a member's.
const STRANGERS: usize = 256;

/// Accepts connections until the endpoint closes. When many strangers are at the door, each must show first that packets reach
/// the address it claims (RFC 9000, section 8.1.2), and beyond `STRANGERS` nobody is let in.
pub async fn accept_all(mesh: Mesh, half: Half, endpoint: Endpoint) {
    let door = Arc::new(Semaphore::new(STRANGERS));
    while let Some(handshake) = endpoint.accept().await {
        // Where only members have business, handshakes are not computed for whoever claims an address.
        let crowded = half == Half::Raft || door.available_permits() < STRANGERS / 2;
        if crowded && handshake.may_retry() {
            let _ = handshake.retry();
            continue;
        }
        match door.clone().try_acquire_owned() {
            Ok(permit) => {
                mesh.spawn_on(half, accept(mesh.clone(), handshake, permit));
            }
            Err(_) => handshake.refuse(),
        }
    }
}

async fn accept(mesh: Mesh, handshake: Handshake, permit: OwnedSemaphorePermit) {
    let connection = match tokio::time::timeout(timing::STRANGER, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return debug!(%error, "a handshake failed"),
        Err(_) => return debug!("a handshake took too long"),
    };
    let class = match protocol(&connection).as_deref() {
        Some(tls::JOIN) => return super::join::serve(mesh, connection, permit, true).await,
        Some(tls::OLD_JOIN) => return super::join::serve(mesh, connection, permit, false).await,
        Some(tls::CONTROL) => Class::Control,
        Some(tls::BULK) => Class::Bulk,
        Some(protocol) if *protocol == mesh.0.raft_protocol => Class::Raft,
        _ => return connection.close(VarInt::from_u32(2), b"unknown protocol"),
    };
    drop(permit);
    match peer(&mesh, &connection) {
        Some(id) => {
            mesh.0.refusals.contradicted();
            let link = mesh.0.links.add((id, class), id, connection, clock::millis());
            serve(mesh, link, (id, class)).await;
        }
        None => connection.close(VarInt::from_u32(1), NOT_A_MEMBER),
    }
}

/// Dials a member and starts reading from it; the error says why it could not be reached.
pub async fn dial(mesh: &Mesh, to: NodeId, class: Class) -> Result<Connection, String> {
    let member = mesh.0.roster.get(to).ok_or("it is not a member of this cluster")?;
    let config = mesh.0.client.get(&class).cloned().ok_or("no client configuration")?;
    let dialling = mesh.connect(class, config, member.address).map_err(|error| error.to_string())?;
    let connection = match tokio::time::timeout(timing::DIAL_TIMEOUT, dialling).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(ended(mesh, &error)),
        Err(_) => return Err("timed out".into()),
    };
    if peer(mesh, &connection) != Some(to) {
        connection.close(VarInt::from_u32(1), b"another member answered");
        return Err("another member answered at this address".into());
    }
    let link = mesh.0.links.add((to, class), mesh.me(), connection.clone(), clock::millis());
    mesh.spawn_on(class.half(), serve(mesh.clone(), link, (to, class)));
    Ok(connection)
}

/// Reads datagrams, raft streams and requests until the connection ends, or is surplus and silent.
async fn serve(mesh: Mesh, link: Link, pair: Pair) {
    let Link { connection, surplus } = link;
    let error = loop {
        let drained = async {
            if !*surplus.borrow() {
                let mut surplus = surplus.clone();
                if surplus.wait_for(|surplus| *surplus).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            tokio::time::sleep(timing::SURPLUS_DRAIN).await;
        };
        tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => take_datagram(&mesh, &connection, pair.0, &bytes).await,
                Err(error) => break ended(&mesh, &error),
            },
            stream = connection.accept_uni() => match stream {
                Ok(stream) => { mesh.spawn_on(pair.1.half(), read_raft(mesh.clone(), pair, stream)); }
                Err(error) => break ended(&mesh, &error),
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => { mesh.spawn(read_request(mesh.clone(), pair.0, send, receive)); }
                Err(error) => break ended(&mesh, &error),
            },
            () = drained => break "another connection is used".into(),
        }
    };
    debug!(from = %pair.0, why = %error, "connection ended");
    mesh.0.links.ended(pair, &connection);
}

/// Why a connection has ended. A refusal comes after this end has done its part of the handshake, so that it looks like an open one.
fn ended(mesh: &Mesh, why: &ConnectionError) -> String {
    if mesh.0.refusals.ended(why, clock::millis()) {
        error!(
            "the other members refuse this machine's key: it has been removed from the cluster; 'skein node reset' makes it a stranger that can join again"
        );
    }
    match why {
        ConnectionError::ConnectionClosed(close) if close.error_code == tls::no_such_protocol() => {
            format!("it is in another cluster epoch, or its binary speaks another protocol ({why})")
        }
        why => why.to_string(),
    }
}

async fn take_datagram(mesh: &Mesh, connection: &Connection, from: NodeId, bytes: &[u8]) {
    mesh.0.refusals.contradicted();
    match wire::decode(bytes) {
        // Answered here, so that the answer says "this process runs" and nothing else.
        Ok(Datagram::Ping(number)) => {
            let _ = connection.send_datagram(wire::encode(&Datagram::Pong(number)).into());
        }
        Ok(Datagram::Gossip(bytes)) => {
            if let Some(sink) = mesh.0.gossip_sink.get() {
                sink(from, bytes);
            }
        }
        Ok(Datagram::Pong(number)) => {
            let _ = mesh.0.incoming.send(Incoming::Pong { from, number }).await;
        }
        Err(error) => debug!(%from, %error, "datagram refused"),
    }
}

async fn read_raft(mesh: Mesh, (from, class): Pair, mut stream: RecvStream) {
    let limit = if class == Class::Bulk { wire::SNAPSHOT_LIMIT } else { wire::RAFT_LIMIT };
    while let Ok(bytes) = wire::read_bytes(&mut stream, limit).await {
        match mesh.0.raft_sink.get() {
            Some(sink) => sink(from, bytes),
            None if mesh.0.incoming.send(Incoming::Raft { from, bytes }).await.is_err() => return,
            None => {}
        }
    }
}

async fn read_request(mesh: Mesh, from: NodeId, send: SendStream, mut receive: RecvStream) {
    match wire::read_frame(&mut receive).await {
        Ok(request) => {
            let _ = mesh.0.incoming.send(Incoming::Request { from, request, send, receive }).await;
        }
        Err(error) => debug!(%from, %error, "request refused"),
    }
}

/// Sends one peer's raft messages in order, over whichever connection is used, until the peer leaves the member list.
pub async fn send_raft(mesh: Mesh, to: NodeId, class: Class, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut open: Option<(usize, SendStream)> = None;
    while let Some(bytes) = queue.recv().await {
        let delivered = match class {
            Class::Bulk => send_whole(&mesh, to, &bytes).await,
            Class::Control | Class::Raft => send_next(&mesh, to, frames(bytes, &mut queue), &mut open).await,
        };
        if let Err(error) = &delivered {
            debug!(%to, %error, "raft message not delivered");
            // What waits behind it on the same way is as old by now; raft sends what is needed again.
            while class != Class::Bulk && queue.try_recv().is_ok() {}
        }
        if class == Class::Bulk || delivered.is_err() {
            let sent = Incoming::RaftSent { to, class, delivered: delivered.is_ok() };
            let _ = mesh.0.incoming.send(sent).await;
        }
    }
}

/// A message and what else waits, up to a burst.
fn frames(first: Vec<u8>, queue: &mut mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut frames = Vec::with_capacity(4 + first.len());
    wire::put_bytes(&first, &mut frames);
    while frames.len() < BURST
        && let Ok(next) = queue.try_recv()
    {
        wire::put_bytes(&next, &mut frames);
    }
    frames
}

/// Sends messages on a stream that stays open.
async fn send_next(
    mesh: &Mesh,
    to: NodeId,
    frames: Vec<u8>,
    open: &mut Option<(usize, SendStream)>,
) -> Result<(), String> {
    let connection = mesh.connection(to, Class::Raft).await.map_err(|error| error.to_string())?;
    let id = connection.stable_id();
    let mut stream = match open.take() {
        Some((known, stream)) if known == id => stream,
        _ => connection.open_uni().await.map_err(|error| error.to_string())?,
    };
    stream.write_chunk(frames.into()).await.map_err(|error| error.to_string())?;
    *open = Some((id, stream));
    Ok(())
}

/// Sends a message on a stream of its own and waits until the other end has all of it.
async fn send_whole(mesh: &Mesh, to: NodeId, bytes: &[u8]) -> Result<(), String> {
    let work = async {
        let connection = mesh.connection(to, Class::Bulk).await.map_err(|error| error.to_string())?;
        let mut stream = connection.open_uni().await.map_err(|error| error.to_string())?;
        wire::write_bytes(&mut stream, bytes).await.map_err(|error| error.to_string())?;
        stream.finish().map_err(|error| error.to_string())?;
        match stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(format!("refused by the other end ({code})")),
            Err(error) => Err(error.to_string()),
        }
    };
    tokio::time::timeout(timing::SNAPSHOT_TRANSFER, work).await.unwrap_or_else(|_| Err("too slow".into()))
}

pub(super) fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

/// Who proved its key on this connection.
fn peer(mesh: &Mesh, connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let hash = pki::key_hash(chain.first()?).ok()?;
    mesh.0.roster.by_key(&hash).map(|member| member.node_id())
}
