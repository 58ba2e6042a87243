//! The mesh: QUIC between members; per pair that talks one connection for control, one for bulk, one for raft's messages.
//!
//! Decides who may talk (the member list, by public key) and over which connection. It must not interpret what is said:
//! gossip, raft and requests are handed on with the proven sender. QUIC runs on two threads (`mesh/thread.rs`) that share one port (`mesh/port.rs`).

pub mod connection;
pub mod join;
mod links;
mod port;
mod refusals;
mod sys;
mod thread;
mod timers;
pub mod tls;
mod udp;
pub mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use raft_store::{NodeId, Supported};
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::clock;
use crate::credential::Credential;
use crate::identity::Identity;
use crate::members::Roster;
use crate::timing;
use links::Links;
use port::Half;
use refusals::Refusals;
pub use timers::{Timer, Timers};
use udp::Watched;
use wire::{Datagram, Request, Response};

/// The connections of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Gossip, small requests.
    Control,
    /// Snapshots, blobs, forwarded API calls, logs.
    Bulk,
    /// raft's messages, on the replica's own thread.
    Raft,
}

impl Class {
    fn half(self) -> Half {
        match self {
            Class::Control | Class::Bulk => Half::Mesh,
            Class::Raft => Half::Raft,
        }
    }
}

/// A thread with its endpoint.
struct Lane {
    thread: thread::Handle,
    endpoint: Endpoint,
}

/// What comes in from members, with the proven sender.
pub enum Incoming {
    /// The answer to a ping of ours.
    Pong {
        from: NodeId,
        number: u64,
    },
    Raft {
        from: NodeId,
        bytes: Vec<u8>,
    },
    /// What became of raft messages to a member: a bulk one arrived whole or not; others are told of only when they could not
    /// be sent.
    RaftSent {
        to: NodeId,
        class: Class,
        delivered: bool,
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
        /// The cluster versions that its binary supports.
        supported: Supported,
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
    #[error(
        "cannot listen on {address} (UDP): {cause}; is another agent running, or the port taken? 'ss -lunp' shows who has it: end that, and this works"
    )]
    Listen { address: SocketAddr, cause: std::io::Error },
    #[error("setting up TLS failed: {0}")]
    Tls(String),
}

/// Raft messages on their way, a queue for each peer and connection.
type Queues = HashMap<(NodeId, Class), mpsc::Sender<Vec<u8>>>;

struct Inner {
    mesh: Lane,
    raft_lane: Lane,
    roster: Roster,
    me: NodeId,
    /// What replicas of this machine's cluster epoch speak.
    raft_protocol: Vec<u8>,
    client: HashMap<Class, quinn::ClientConfig>,
    links: Links,
    refusals: Refusals,
    raft: Mutex<Queues>,
    incoming: mpsc::Sender<Incoming>,
    /// Where raft messages go, once there is a store.
    raft_sink: OnceLock<Sink>,
    /// Where gossip goes, once somebody listens.
    gossip_sink: OnceLock<Sink>,
}

/// Finds out whether the port can be had, without keeping it. The mesh of a try that has just failed keeps it while it says
/// goodbye: who has it for longer is somebody else.
pub async fn look_for_port(port: u16) -> Result<(), MeshError> {
    let address = listening(port);
    let given_up = clock::millis() + 2 * timing::MESH_GOODBYE.as_millis() as u64;
    loop {
        match port::bind_both(address) {
            Ok(_) => return Ok(()),
            Err(cause) if clock::millis() > given_up => return Err(MeshError::Listen { address, cause }),
            Err(_) => tokio::time::sleep(timing::MESH_PORT_PAUSE).await,
        }
    }
}

fn listening(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port)
}

/// Takes a message from a member; must not wait.
pub type Sink = Box<dyn Fn(NodeId, Vec<u8>) + Send + Sync>;

/// This machine's end of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

impl Mesh {
    /// Listens and accepts. What comes in goes to `incoming`.
    pub fn start(
        identity: &Identity,
        credential: &Credential,
        roster: Roster,
        incoming: mpsc::Sender<Incoming>,
    ) -> Result<Mesh, MeshError> {
        let address = listening(identity.member.address.port());
        let failed = |cause| MeshError::Listen { address, cause };
        let (mesh, raft) = port::bind_both(address).map_err(failed)?;
        let lane = |half: Half, socket| {
            let server = tls::server(credential, roster.clone(), half, identity.epoch)?;
            Lane::start(half, socket, server).map_err(failed)
        };
        let (mesh, raft_lane) = (lane(Half::Mesh, mesh)?, lane(Half::Raft, raft)?);
        let mut client = HashMap::new();
        for class in [Class::Control, Class::Bulk, Class::Raft] {
            client.insert(class, tls::client(credential, roster.clone(), class, identity.epoch)?);
        }
        let inner = Inner {
            mesh,
            raft_lane,
            roster,
            me: identity.member.node_id(),
            raft_protocol: tls::raft(identity.epoch),
            client,
            links: Links::default(),
            refusals: Refusals::default(),
            raft: Mutex::default(),
            incoming,
            raft_sink: OnceLock::new(),
            gossip_sink: OnceLock::new(),
        };
        let mesh = Mesh(Arc::new(inner));
        for half in [Half::Mesh, Half::Raft] {
            let endpoint = mesh.lane(half).endpoint.clone();
            mesh.spawn_on(half, connection::accept_all(mesh.clone(), half, endpoint));
        }
        info!(%address, "mesh listens");
        Ok(mesh)
    }

    /// Runs a task on the mesh's thread, until the mesh is closed. It must neither block nor compute for long.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(Half::Mesh, task);
    }

    /// The timers of the mesh's thread.
    pub fn timers(&self) -> &Timers {
        self.0.mesh.thread.timers()
    }

    /// Runs the replica on the thread where its messages come and go, with that thread's timers. It may wait for the disk.
    pub fn spawn_replica<R>(&self, replica: impl FnOnce(Timers) -> R)
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let timers = self.lane(Half::Raft).thread.timers().clone();
        self.spawn_on(Half::Raft, replica(timers));
    }

    fn spawn_on(&self, half: Half, task: impl Future<Output = ()> + Send + 'static) {
        self.lane(half).thread.spawn(task);
    }

    fn lane(&self, half: Half) -> &Lane {
        match half {
            Half::Mesh => &self.0.mesh,
            Half::Raft => &self.0.raft_lane,
        }
    }

    pub fn me(&self) -> NodeId {
        self.0.me
    }

    /// From now on raft messages go there at once, not by way of `incoming`.
    pub fn give_raft_to(&self, sink: Sink) {
        let _ = self.0.raft_sink.set(sink);
    }

    /// The same for gossip, which until then is lost, as datagrams may be.
    pub fn give_gossip_to(&self, sink: Sink) {
        let _ = self.0.gossip_sink.set(sink);
    }

    /// Sends a datagram; without a connection one is dialled and the datagram is lost, as datagrams may be.
    pub fn send_datagram(&self, to: NodeId, datagram: &Datagram) {
        match self.0.links.used((to, Class::Control)) {
            Some(connection) => {
                let _ = connection.send_datagram(wire::encode(datagram).into());
            }
            None => self.dial_in_background(to, Class::Control),
        }
    }

    /// Queues a raft message; with 1,024 of them waiting, or one snapshot, the newest is lost, as raft allows. What became of it comes back as
    /// [`Incoming::RaftSent`].
    pub fn send_raft(&self, to: NodeId, bytes: Vec<u8>, bulk: bool) {
        let class = if bulk { Class::Bulk } else { Class::Raft };
        let mut queues = self.0.raft.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry((to, class)).or_insert_with(|| {
            // A snapshot is the whole state: one is under way, one may wait.
            let (sender, receiver) = mpsc::channel(if bulk { 1 } else { 1024 });
            self.spawn_on(class.half(), connection::send_raft(self.clone(), to, class, receiver));
            sender
        });
        if queue.try_send(bytes).is_err() {
            debug!(%to, "raft queue is full, message dropped");
            // Not waited for: the caller is not to be held up. A lost report of this only delays the next try.
            let _ = self.0.incoming.try_send(Incoming::RaftSent { to, class, delivered: false });
        }
    }

    /// One request, one answer.
    pub async fn request(&self, to: NodeId, request: Request) -> Result<Response, MeshError> {
        self.request_for(to, request, timing::MESH_REQUEST).await
    }

    /// One request, one answer, for which there is so much time.
    pub async fn request_for(
        &self,
        to: NodeId,
        request: Request,
        time: std::time::Duration,
    ) -> Result<Response, MeshError> {
        let work = async {
            let (_send, mut receive) = self.open(to, Class::Control, &request).await?;
            wire::read_frame::<Response>(&mut receive).await.map_err(|why| self.broken(to, why.to_string()))
        };
        match tokio::time::timeout(time, work).await {
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
        for lane in [&self.0.mesh, &self.0.raft_lane] {
            lane.end();
        }
    }

    /// As [`Mesh::close`], and the others are told before it returns.
    pub async fn shut(&self) {
        self.close();
        // Connections that were being made when it closed are not waited for: nobody may answer there.
        let idle = async {
            self.0.mesh.endpoint.wait_idle().await;
            self.0.raft_lane.endpoint.wait_idle().await;
        };
        let _ = tokio::time::timeout(timing::MESH_GOODBYE, idle).await;
    }

    /// Closes the connections to members that are no longer listed.
    pub fn drop_strangers(&self) {
        let listed = |id: NodeId| self.0.roster.get(id).is_some();
        self.0.links.close_strangers(listed);
        self.0.raft.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _), _| listed(*id));
    }

    fn broken(&self, to: NodeId, why: String) -> MeshError {
        let name = self.0.roster.get(to).map_or_else(|| to.to_string(), |member| member.name);
        MeshError::Broken { name, why }
    }

    /// The open connection, or a new one. Who waits while another dials shares what comes of it.
    async fn connection(&self, to: NodeId, class: Class) -> Result<Connection, MeshError> {
        let pair = (to, class);
        if let Some(connection) = self.0.links.used(pair) {
            return Ok(connection);
        }
        let began = clock::millis();
        let turn = self.0.links.turn(pair);
        let mut last = turn.lock().await;
        if let Some(connection) = self.0.links.used(pair) {
            return Ok(connection);
        }
        match last.as_ref().filter(|(at, _)| *at > began) {
            Some((_, why)) => Err(self.unreachable(to, why.clone())),
            None => self.dial(pair, &mut last).await,
        }
    }

    async fn dial(&self, pair: links::Pair, last: &mut links::LastFailure) -> Result<Connection, MeshError> {
        match connection::dial(self, pair.0, pair.1).await {
            Ok(connection) => {
                *last = None;
                Ok(connection)
            }
            Err(why) => {
                *last = Some((clock::millis(), why.clone()));
                Err(self.unreachable(pair.0, why))
            }
        }
    }

    /// Begins to dial. On the class's thread, whoever asks: the connection's own task starts where this is called.
    fn connect(
        &self,
        class: Class,
        config: quinn::ClientConfig,
        address: SocketAddr,
    ) -> Result<quinn::Connecting, quinn::ConnectError> {
        let lane = self.lane(class.half());
        let _inside = lane.thread.enter();
        lane.endpoint.connect_with(config, address, crate::pki::SERVER_NAME)
    }

    /// Dials a member before there is anything to say, unless a connection is open.
    pub fn greet(&self, to: NodeId, class: Class) {
        if self.0.links.used((to, class)).is_none() {
            self.dial_in_background(to, class);
        }
    }

    fn unreachable(&self, to: NodeId, why: String) -> MeshError {
        match self.0.roster.get(to) {
            Some(member) => MeshError::Unreachable { name: member.name, address: member.address, why },
            None => MeshError::NotAMember(to),
        }
    }

    fn dial_in_background(&self, to: NodeId, class: Class) {
        let Some(mut last) = self.0.links.turn_now((to, class)) else { return };
        let mesh = self.clone();
        self.spawn_on(class.half(), async move {
            let _ = mesh.dial((to, class), &mut last).await;
        });
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.end();
    }
}

impl Lane {
    /// Gives the port back. Once is enough.
    fn end(&self) {
        self.endpoint.close(0u32.into(), b"closing");
        self.thread.end();
    }

    fn start(half: Half, socket: std::net::UdpSocket, server: quinn::ServerConfig) -> std::io::Result<Lane> {
        let name = match half {
            Half::Mesh => "mesh",
            Half::Raft => "replica",
        };
        let mut config = quinn::EndpointConfig::default();
        config.cid_generator(move || Box::new(port::Ids(half)));
        let listen = move |timers| {
            let socket = Arc::new(Watched::new(socket)?);
            Endpoint::new_with_abstract_socket(
                config,
                Some(server),
                socket,
                Arc::new(timers::Runtime(timers)),
            )
        };
        let (thread, endpoint) = thread::start(name, listen)?;
        Ok(Lane { thread, endpoint })
    }
}

#[cfg(test)]
mod tests;
