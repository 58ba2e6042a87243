//! The mesh: QUIC between members, one connection for control and one for bulk per pair that talks.
//!
//! Decides who may talk (the member list, by public key) and over which connection. It must not interpret what is said:
//! gossip, raft and requests are handed on with the proven sender.

pub mod connection;
pub mod join;
pub mod tls;
pub mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use raft_store::NodeId;
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::clock::spawn;
use crate::identity::Identity;
use crate::members::Roster;
use crate::timing;
use wire::{Datagram, Request, Response};

/// The two connections of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Gossip, raft, small requests.
    Control,
    /// Snapshots, blobs, forwarded API calls, logs.
    Bulk,
}

/// What comes in from members, with the proven sender.
pub enum Incoming {
    Datagram {
        from: NodeId,
        datagram: Datagram,
    },
    Raft {
        from: NodeId,
        bytes: Vec<u8>,
    },
    Request {
        from: NodeId,
        request: Request,
        send: SendStream,
        receive: RecvStream,
    },
    /// A machine that is not a member yet; it has seen our certificate, we know nothing of it.
    Join {
        request: wire::JoinRequest,
        send: SendStream,
    },
}

/// Talking to a member failed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("{0} is not a member of this cluster")]
    NotAMember(NodeId),
    #[error("no answer from {name} at {address}: {why}")]
    Unreachable { name: String, address: SocketAddr, why: String },
    #[error("the connection to {name} broke: {why}")]
    Broken { name: String, why: String },
    #[error("cannot listen on {address} (UDP): {cause}; is another agent running, or the port taken?")]
    Listen { address: SocketAddr, cause: std::io::Error },
    #[error("setting up TLS failed: {0}")]
    Tls(String),
}

/// Raft messages on their way, a queue for each peer and connection.
type Queues = HashMap<(NodeId, Class), mpsc::Sender<Vec<u8>>>;

struct Inner {
    endpoint: Endpoint,
    roster: Roster,
    me: NodeId,
    client: HashMap<Class, quinn::ClientConfig>,
    open: Mutex<HashMap<(NodeId, Class), Connection>>,
    raft: Mutex<Queues>,
    incoming: mpsc::Sender<Incoming>,
}

/// This machine's end of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

impl Mesh {
    /// Listens and accepts. What comes in goes to `incoming`.
    pub fn start(
        identity: &Identity,
        roster: Roster,
        incoming: mpsc::Sender<Incoming>,
    ) -> Result<Mesh, MeshError> {
        let address = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), identity.member.address.port());
        let server = tls::server(identity, roster.clone())?;
        let endpoint =
            Endpoint::server(server, address).map_err(|cause| MeshError::Listen { address, cause })?;
        let mut client = HashMap::new();
        for class in [Class::Control, Class::Bulk] {
            client.insert(class, tls::client(identity, roster.clone(), class)?);
        }
        let inner = Inner {
            endpoint,
            roster,
            me: identity.member.node_id(),
            client,
            open: Mutex::default(),
            raft: Mutex::default(),
            incoming,
        };
        let mesh = Mesh(Arc::new(inner));
        spawn(connection::accept_all(mesh.clone()));
        info!(%address, "mesh listens");
        Ok(mesh)
    }

    pub fn me(&self) -> NodeId {
        self.0.me
    }

    /// Sends a datagram; without a connection one is dialled and the datagram is lost, as datagrams may be.
    pub fn send_datagram(&self, to: NodeId, datagram: &Datagram) {
        match self.connected(to, Class::Control) {
            Some(connection) => {
                let _ = connection.send_datagram(wire::encode(datagram).into());
            }
            None => self.dial_in_background(to, Class::Control),
        }
    }

    /// Queues a raft message; the oldest waiting is lost when the peer does not take them.
    pub fn send_raft(&self, to: NodeId, bytes: Vec<u8>, bulk: bool) {
        let class = if bulk { Class::Bulk } else { Class::Control };
        let mut queues = self.0.raft.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry((to, class)).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(1024);
            spawn(connection::send_raft(self.clone(), to, class, receiver));
            sender
        });
        if queue.try_send(bytes).is_err() {
            debug!(%to, "raft queue is full, message dropped");
        }
    }

    /// One request, one answer.
    pub async fn request(&self, to: NodeId, request: Request) -> Result<Response, MeshError> {
        let work = async {
            let (_send, mut receive) = self.open(to, Class::Control, &request).await?;
            wire::read_frame::<Response>(&mut receive).await.map_err(|why| self.broken(to, why.to_string()))
        };
        match tokio::time::timeout(timing::MESH_REQUEST, work).await {
            Ok(answer) => answer,
            Err(_) => Err(self.broken(to, "no answer in time".into())),
        }
    }

    /// One request, one answer, on the bulk connection and without a limit of time: for what moves many bytes.
    pub async fn request_bulk(&self, to: NodeId, request: Request) -> Result<Response, MeshError> {
        let (_send, mut receive) = self.open(to, Class::Bulk, &request).await?;
        wire::read_frame::<Response>(&mut receive).await.map_err(|why| self.broken(to, why.to_string()))
    }

    /// Opens a stream with a request at its head; what follows is the caller's.
    pub async fn open(
        &self,
        to: NodeId,
        class: Class,
        request: &Request,
    ) -> Result<(SendStream, RecvStream), MeshError> {
        let connection = self.connection(to, class).await?;
        let broken = |why: String| self.broken(to, why);
        let (mut send, receive) = connection.open_bi().await.map_err(|error| broken(error.to_string()))?;
        wire::write_frame(&mut send, request).await.map_err(|error| broken(error.to_string()))?;
        Ok((send, receive))
    }

    /// Ends the mesh and gives its port back.
    pub fn close(&self) {
        self.0.endpoint.close(0u32.into(), b"closing");
    }

    /// Closes the connections to members that are no longer listed.
    pub fn drop_strangers(&self) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(id, _), connection| {
            let stays = self.0.roster.get(*id).is_some();
            if !stays {
                connection.close(1u32.into(), b"removed from the cluster");
            }
            stays
        });
    }

    fn broken(&self, to: NodeId, why: String) -> MeshError {
        let name = self.0.roster.get(to).map_or_else(|| to.to_string(), |member| member.name);
        MeshError::Broken { name, why }
    }

    fn connected(&self, to: NodeId, class: Class) -> Option<Connection> {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&(to, class)).filter(|connection| connection.close_reason().is_none()).cloned()
    }

    async fn connection(&self, to: NodeId, class: Class) -> Result<Connection, MeshError> {
        match self.connected(to, class) {
            Some(connection) => Ok(connection),
            None => connection::dial(self, to, class).await,
        }
    }

    fn dial_in_background(&self, to: NodeId, class: Class) {
        let mesh = self.clone();
        spawn(async move {
            let _ = connection::dial(&mesh, to, class).await;
        });
    }

    fn remember(&self, id: NodeId, class: Class, connection: Connection) {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).insert((id, class), connection);
    }
}
