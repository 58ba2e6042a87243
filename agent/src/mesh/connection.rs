//! Connections: dialling, accepting, reading what comes in, and the queues of raft messages.
//!
//! Decides nothing about messages; a connection that does not prove a listed key reaches nobody.

use quinn::{Connection, Incoming as Handshake, VarInt};
use raft_store::NodeId;
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tracing::debug;

use super::wire::{self, Datagram};
use super::{Class, Incoming, Mesh, MeshError, tls};
use crate::clock::spawn;
use crate::{pki, timing};

/// Accepts connections until the endpoint closes.
pub async fn accept_all(mesh: Mesh) {
    while let Some(handshake) = mesh.0.endpoint.accept().await {
        spawn(accept(mesh.clone(), handshake));
    }
}

async fn accept(mesh: Mesh, handshake: Handshake) {
    let connection = match handshake.await {
        Ok(connection) => connection,
        Err(error) => return debug!(%error, "a handshake failed"),
    };
    match protocol(&connection).as_deref() {
        Some(tls::JOIN) => super::join::serve(mesh, connection).await,
        Some(tls::CONTROL) => admit(mesh, connection, Class::Control).await,
        Some(tls::BULK) => admit(mesh, connection, Class::Bulk).await,
        _ => connection.close(VarInt::from_u32(2), b"unknown protocol"),
    }
}

async fn admit(mesh: Mesh, connection: Connection, class: Class) {
    match peer(&mesh, &connection) {
        Some(id) => {
            mesh.remember(id, class, connection.clone());
            serve(mesh, connection, id).await;
        }
        None => connection.close(VarInt::from_u32(1), b"not a member"),
    }
}

/// Dials a member and starts reading from it.
pub async fn dial(mesh: &Mesh, to: NodeId, class: Class) -> Result<Connection, MeshError> {
    let member = mesh.0.roster.get(to).ok_or(MeshError::NotAMember(to))?;
    let unreachable =
        |why: String| MeshError::Unreachable { name: member.name.clone(), address: member.address, why };
    let config =
        mesh.0.client.get(&class).cloned().ok_or_else(|| unreachable("no client configuration".into()))?;
    let dialling = mesh
        .0
        .endpoint
        .connect_with(config, member.address, pki::SERVER_NAME)
        .map_err(|error| unreachable(error.to_string()))?;
    let connection = match tokio::time::timeout(timing::DIAL_TIMEOUT, dialling).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable("timed out".into())),
    };
    if peer(mesh, &connection) != Some(to) {
        connection.close(VarInt::from_u32(1), b"another member answered");
        return Err(unreachable("another member answered at this address".into()));
    }
    mesh.remember(to, class, connection.clone());
    spawn(serve(mesh.clone(), connection.clone(), to));
    Ok(connection)
}

/// Reads datagrams, raft streams and requests until the connection ends.
async fn serve(mesh: Mesh, connection: Connection, from: NodeId) {
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => take_datagram(&mesh, &connection, from, &bytes).await,
                Err(error) => return debug!(%from, %error, "connection ended"),
            },
            stream = connection.accept_uni() => match stream {
                Ok(stream) => { spawn(read_raft(mesh.clone(), from, stream)); }
                Err(error) => return debug!(%from, %error, "connection ended"),
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => { spawn(read_request(mesh.clone(), from, send, receive)); }
                Err(error) => return debug!(%from, %error, "connection ended"),
            },
        }
    }
}

async fn take_datagram(mesh: &Mesh, connection: &Connection, from: NodeId, bytes: &[u8]) {
    match wire::decode(bytes) {
        // Answered here, so that the answer says "this process runs" and nothing else.
        Ok(Datagram::Ping(number)) => {
            let _ = connection.send_datagram(wire::encode(&Datagram::Pong(number)).into());
        }
        Ok(datagram) => {
            let _ = mesh.0.incoming.send(Incoming::Datagram { from, datagram }).await;
        }
        Err(error) => debug!(%from, %error, "datagram refused"),
    }
}

async fn read_raft(mesh: Mesh, from: NodeId, mut stream: quinn::RecvStream) {
    while let Ok(bytes) = wire::read_bytes(&mut stream, wire::RAFT_LIMIT).await {
        if mesh.0.incoming.send(Incoming::Raft { from, bytes }).await.is_err() {
            return;
        }
    }
}

async fn read_request(mesh: Mesh, from: NodeId, send: quinn::SendStream, mut receive: quinn::RecvStream) {
    match wire::read_frame(&mut receive).await {
        Ok(request) => {
            let _ = mesh.0.incoming.send(Incoming::Request { from, request, send, receive }).await;
        }
        Err(error) => debug!(%from, %error, "request refused"),
    }
}

/// Sends one peer's raft messages in order, over whichever connection is the newest.
pub async fn send_raft(mesh: Mesh, to: NodeId, class: Class, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut open: Option<(usize, quinn::SendStream)> = None;
    while let Some(bytes) = queue.recv().await {
        let connection = match mesh.connection(to, class).await {
            Ok(connection) => connection,
            Err(error) => {
                debug!(%error, "raft messages dropped");
                while queue.try_recv().is_ok() {}
                continue;
            }
        };
        let id = connection.stable_id();
        if open.as_ref().is_none_or(|(known, _)| *known != id) {
            open = connection.open_uni().await.ok().map(|stream| (id, stream));
        }
        if let Some((_, stream)) = &mut open
            && wire::write_bytes(stream, &bytes).await.is_err()
        {
            open = None;
        }
    }
}

fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

/// Who proved its key on this connection.
fn peer(mesh: &Mesh, connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let hash = pki::key_hash(chain.first()?).ok()?;
    mesh.0.roster.by_key(&hash).map(|member| member.node_id())
}
