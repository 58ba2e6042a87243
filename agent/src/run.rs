//! The agent's life: waits to be told of a cluster, then starts every driver of a member.
//!
//! Decides the order of starting. It must not decide anything else.

mod founding;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use api::errors::ApiError;
use api::kinds::Kind;
use api::{Object, duration, keys};
use hyper::{Method, Request};
use netfabric::{Fabric, FabricConfig, LocalPod};
use raft_store::{Config as ReplicaConfig, Input};
use runtime::Runtime;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use founding::{init, restore_cluster};

use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::credential::Credential;
use crate::fabric::{self, Sources};
use crate::identity::{self, Identity};
use crate::images::Images;
use crate::keyring::holders::Keys;
use crate::keyring::seal::SealKey;
use crate::keyring::{self, Ring, Secrets, signing};
use crate::members::{self, Member, Roster, id_of_key, in_view};
use crate::membership::Membership;
use crate::mesh::wire::{JoinAnswer, JoinRequest};
use crate::mesh::{Class, Mesh, join, look_for_port};
use crate::objects::Objects;
use crate::pki::{self, Authority, Token};
use crate::recovery::carry_out;
use crate::server::http::{self, Answer};
use crate::server::listen::{self, Handler};
use crate::server::own::Upload;
use crate::store::{self, Birth, Plan, Store};
use crate::worker::addresses::Addresses;
use crate::{
    backup, control, doubles, enrol, feeders, gossip, leader, names, node, rebuild, requests, restore,
    server, timing, worker,
};

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Listen(#[from] listen::ListenError),
    #[error(transparent)]
    Mesh(#[from] crate::mesh::MeshError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    #[error("the network cannot be set up: {0}")]
    Fabric(#[from] netfabric::OpenError),
    #[error("the container runtime cannot start: {0}")]
    Runtime(#[from] runtime::OpenError),
    #[error(transparent)]
    Addresses(#[from] worker::addresses::AddressError),
    #[error("joining failed: {0}")]
    Join(#[from] join::JoinError),
    #[error("the answer of the cluster makes no sense: {0}")]
    Answer(String),
    #[error("the backup cannot be restored: {0}")]
    Restore(#[from] restore::RestoreError),
    #[error(transparent)]
    Keyring(#[from] keyring::SealError),
    #[error("the backup's keyring: {0}")]
    Recovery(#[from] keyring::OpenError),
    #[error("coming back under a new identity: {0}")]
    Rebuild(#[from] rebuild::RebuildError),
    #[error("{0}")]
    Doubled(String),
    #[error("no leader within 10 s")]
    NoLeader,
    #[error("the first objects could not be written: {0}")]
    First(store::TransactError),
}

/// Header of a restore that brings the recovery key.
pub const RECOVERY_KEY_HEADER: &str = "skein-recovery-key";

/// What the machine was told.
enum Told {
    Init { name: Option<String> },
    Join { address: SocketAddr, token: Token, name: Option<String> },
    Restore { upload: Upload, name: Option<String>, recovery_key: Option<SealKey> },
}

/// Told what, and where the answer goes.
type Order = (Told, oneshot::Sender<Result<Value, String>>);

/// Who answers on the socket.
#[derive(Clone, Default)]
enum Standing {
    /// Nobody yet: whether it is a member is not known, or not all of a member runs.
    #[default]
    Starting,
    Outside,
    Member(Arc<Cluster>),
}

#[derive(Clone, Default)]
struct State(Arc<Mutex<Standing>>);

impl State {
    fn get(&self) -> Standing {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, standing: Standing) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

/// Runs the agent until the process is ended.
pub async fn run(config: Config) -> Result<(), RunError> {
    identity::make_private_directory(&config.data)?;
    identity::make_private_directory(&config.run)?;
    // What an upload that broke off has left.
    let _ = std::fs::remove_dir_all(config.data.join("uploads"));
    let state = State::default();
    let (orders, mut told) = mpsc::channel::<Order>(1);
    listen::unix(&config.socket(), handler(config.clone(), state.clone(), orders))?;
    rebuild::finish(&config.data)?;
    match Identity::load(&config.data)? {
        Some(mut identity) => {
            if let Some(why) = doubles::found_earlier(&config.data) {
                return Err(RunError::Doubled(why));
            }
            carry_out::carry_out(&config.data, &mut identity);
            info!(name = %identity.member.name, cluster = %identity.cluster, "member");
            let birth = birth(&config, &identity);
            state.set(Standing::Member(start_again(&config, identity, birth).await?));
        }
        None => {
            info!("not a member of any cluster: waiting for 'skein init' or 'skein join'");
            state.set(Standing::Outside);
            let cluster = be_told(&config, &mut told).await?;
            state.set(Standing::Member(cluster));
        }
    }
    std::future::pending().await
}

/// Starts a member; one whose store cannot be trusted has itself taken back by the others first.
async fn start_again(config: &Config, identity: Identity, birth: Birth) -> Result<Arc<Cluster>, RunError> {
    let error = match start(config, identity.clone(), birth).await {
        Ok(cluster) => return Ok(cluster),
        Err(error) => error,
    };
    let Some(why) = rebuild::distrust(&error) else { return Err(error) };
    match rebuild::rebuild(config, &identity, &why).await {
        Ok(identity) => start(config, identity, Birth::Joining).await,
        Err(rebuild_error) => {
            error!(error = %rebuild_error, "this machine cannot come back by itself");
            Err(error)
        }
    }
}

/// How the store of a machine with an identity comes to life: after its first start it must have its files.
fn birth(config: &Config, identity: &Identity) -> Birth {
    let alone =
        identity.epoch == 0 && identity.known.len() == 1 && identity.known.first() == Some(&identity.member);
    match (config.data.join("member").join(identity::STORE_SEEN).exists(), alone) {
        (true, _) => Birth::Again,
        (false, true) => Birth::First,
        (false, false) => Birth::Joining,
    }
}

fn handler(config: Config, state: State, orders: mpsc::Sender<Order>) -> Handler {
    Arc::new(move |user, request| {
        let (config, state, orders) = (config.clone(), state.clone(), orders.clone());
        Box::pin(async move {
            match state.get() {
                Standing::Member(cluster) => server::answer(cluster, user, request).await,
                Standing::Outside => outside(config, orders, user, request).await,
                Standing::Starting if user.is_none() => http::status(&ApiError::Unauthorized),
                Standing::Starting => http::refuse(request, ApiError::Starting)
                    .await
                    .unwrap_or_else(|error| http::status(&error)),
            }
        })
    })
}

/// Answers of a machine that belongs to no cluster: it can be told to init or to join, nothing else.
async fn outside(
    config: Config,
    orders: mpsc::Sender<Order>,
    user: Option<server::User>,
    request: Request<hyper::body::Incoming>,
) -> Answer {
    if user.is_none() {
        return http::status(&ApiError::Unauthorized);
    }
    match tell(&config, orders, request).await {
        Ok(value) => http::json(200, &value),
        Err(error) => http::status(&error),
    }
}

async fn tell(
    config: &Config,
    orders: mpsc::Sender<Order>,
    request: Request<hyper::body::Incoming>,
) -> Result<Value, ApiError> {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    if (method.as_str(), path.as_str()) == ("POST", "/skein/v1/restore") {
        let name = server::path::Query::parse(request.uri().query()).get("name").map(String::from);
        let upload = Upload(config.data.join("uploads").join(clock::uuid()));
        let recovery_key = given_recovery_key(&request)?;
        server::own::receive(&upload.0, request).await?;
        return order(orders, Told::Restore { upload, name, recovery_key }).await;
    }
    let body = http::body(request).await?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let name = body["name"].as_str().map(String::from);
    let bad = |error: &dyn std::fmt::Display| ApiError::BadRequest(error.to_string());
    let told = match (method, path.as_str()) {
        (Method::POST, "/skein/v1/init") => Told::Init { name },
        (Method::POST, "/skein/v1/join") => {
            let token = Token::parse(body["token"].as_str().unwrap_or("")).map_err(|error| bad(&error))?;
            let text = body["address"].as_str().unwrap_or("");
            let address = parse_address(text).ok_or_else(|| bad(&format!("\"{text}\" is not an address: write IP or IP:PORT")))?;
            Told::Join { address, token, name }
        }
        _ => return Err(ApiError::Unavailable("this machine is not a member of a cluster: run 'skein init' or 'skein join ADDRESS --token TOKEN'".into())),
    };
    order(orders, told).await
}

/// The recovery key that comes with a backup, in a header: a path may be logged.
fn given_recovery_key(request: &Request<hyper::body::Incoming>) -> Result<Option<SealKey>, ApiError> {
    let Some(text) = request.headers().get(RECOVERY_KEY_HEADER) else { return Ok(None) };
    let key = text.to_str().ok().and_then(keyring::recovery_key);
    key.map(Some).ok_or_else(|| ApiError::BadRequest(server::upkeep::NO_RECOVERY_KEY.into()))
}

/// Hands an order on and waits for what comes of it.
async fn order(orders: mpsc::Sender<Order>, told: Told) -> Result<Value, ApiError> {
    let (reply, answer) = oneshot::channel();
    orders
        .try_send((told, reply))
        .map_err(|_| ApiError::Unavailable("this machine is joining already; wait for it".into()))?;
    let result = answer
        .await
        .map_err(|_| ApiError::Internal("the agent ended while it joined; see its log".into()))?;
    result.map_err(ApiError::BadRequest)
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    let with_port = text.parse::<SocketAddr>().ok();
    with_port.or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, crate::config::MESH_PORT)))
}

/// Waits for an order that succeeds.
async fn be_told(config: &Config, told: &mut mpsc::Receiver<Order>) -> Result<Arc<Cluster>, RunError> {
    loop {
        let Some((order, reply)) = told.recv().await else { return std::future::pending().await };
        let made = match order {
            Told::Init { name } => init(config, name).await,
            Told::Join { address, token, name } => join_cluster(config, address, &token, name).await,
            Told::Restore { upload, name, recovery_key } => {
                restore_cluster(config, &upload, name, recovery_key.as_ref()).await
            }
        };
        match made {
            Ok((cluster, answer)) => {
                let _ = reply.send(Ok(answer));
                return Ok(cluster);
            }
            Err(error) => {
                error!(%error, "the machine stays outside");
                let _ = reply.send(Err(error.to_string()));
                // What a half-way attempt has written would stand in the way of the next one.
                identity::forget(&config.data);
            }
        }
    }
}

fn own_name(config: &Config, name: Option<String>) -> Result<String, RunError> {
    let config = Config { name: name.or_else(|| config.name.clone()), ..config.clone() };
    Ok(config.node_name()?)
}

/// What this machine cannot do is found out before it is written down that it does, and before others count on it.
async fn look_first(config: &Config) -> Result<(), RunError> {
    drop(listen::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.api_port)).await?);
    look_for_port(config.mesh_port).await?;
    drop(Fabric::open(FabricConfig::default()).await?);
    Ok(identity::set_store_aside(&config.data, clock::wall().as_second())?)
}

async fn join_cluster(
    config: &Config,
    address: SocketAddr,
    token: &Token,
    name: Option<String>,
) -> Result<(Arc<Cluster>, Value), RunError> {
    let name = own_name(config, name)?;
    let own = match config.address {
        Some(own) => own,
        None => towards(address).map_or_else(|| config.own_address(), Ok)?,
    };
    let key = identity::joining_key(&config.data, &token.ca_hash)?;
    let signing_request = pki::signing_request(&key)?;
    let request = JoinRequest {
        secret: token.secret.clone(),
        name,
        address: SocketAddr::new(own, config.mesh_port),
        api_port: config.api_port,
        signing_request,
    };
    look_first(config).await?;
    let answer = join::ask(address, token, &request, raft_store::Supported::OURS).await?;
    let JoinAnswer::Welcome { cluster, epoch, certificate, ca_certificate, member, members, .. } = answer
    else {
        return Err(RunError::Answer("refused".into()));
    };
    let broken = |error: serde_json::Error| RunError::Answer(error.to_string());
    let identity = Identity {
        cluster,
        epoch,
        member: serde_json::from_str(&member).map_err(broken)?,
        key,
        certificate,
        ca_certificate,
        known: serde_json::from_str(&members).map_err(broken)?,
    };
    identity.save(&config.data)?;
    let cluster = start(config, identity, Birth::Joining).await?;
    identity::joined(&config.data);
    let answer = json!({"cluster": cluster.identity.cluster, "name": cluster.name(), "address": cluster.identity.member.address.to_string()});
    Ok((cluster, answer))
}

/// The address that this machine would use towards another one.
pub fn towards(address: SocketAddr) -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(address).ok()?;
    socket.local_addr().ok().map(|own| own.ip())
}

/// Starts every driver of a member. What other programs or the kernel can refuse comes first, so that a machine that cannot
/// be a member has not begun to be one.
async fn start(config: &Config, identity: Identity, birth: Birth) -> Result<Arc<Cluster>, RunError> {
    let me = identity.member.clone();
    let api = listen::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.api_port)).await?;
    let network = Fabric::open(FabricConfig::default()).await?;
    let (runtime, events) = open_runtime(config).await?;
    let addresses = Addresses::open(&config.run, me.block)?;
    let boot = identity::next_boot(&config.data)?;
    let roster = Roster::default();
    roster.replace(identity.known.clone());
    let (incoming_sender, incoming) = mpsc::channel(4096);
    let (seal_key, credential) = (keyring::own_key(&config.data)?, Credential::new(&identity)?);
    let mesh = Mesh::start(&identity, &credential, roster.clone(), incoming_sender)?;
    let store = match open_store(config, &identity, birth, &mesh) {
        Ok(store) => store,
        Err(error) => {
            mesh.close();
            return Err(error);
        }
    };
    spawn(keep_session(store.clone(), config.data.join("store").join("session")));
    follow_members(store.clone(), roster.clone(), mesh.clone(), config.data.clone());
    let core = Membership::new(me.node_id(), boot, clock::random_u64());
    let (gossip, suspects) = gossip::start(core, mesh.clone(), roster.clone());
    let sources = Sources {
        me,
        roster: roster.clone(),
        store: store.clone(),
        suspects: suspects.clone(),
        pods: attached(&runtime, &addresses, config).await,
    };
    let cluster = Arc::new(Cluster {
        config: config.clone(),
        objects: Objects { store: store.clone() },
        images: Images::new(runtime.images().clone()),
        identity,
        seal_key,
        credential,
        roster,
        mesh,
        store,
        runtime,
        fabric: fabric::start(network, sources),
        addresses,
        suspects,
        pings: Arc::default(),
        lives: Default::default(),
        leaves: Default::default(),
    });
    spawn(feeders::tell(
        cluster.store.clone(),
        cluster.roster.clone(),
        cluster.me(),
        cluster.suspects.clone(),
    ));
    spawn(requests::dispatch(cluster.clone(), gossip, incoming));
    serve_api(&cluster, api)?;
    spawn(node::run(cluster.clone()));
    spawn(leader::run(cluster.clone()));
    spawn(control::driver::run(cluster.clone()));
    spawn(worker::run(cluster.clone(), events));
    spawn(doubles::run(cluster.clone()));
    spawn(names::run(cluster.clone()));
    spawn(backup::run(cluster.clone()));
    spawn(keyring::keeper::publish(cluster.clone()));
    spawn(keyring::renewal::run(cluster.clone()));
    Ok(cluster)
}

fn open_store(config: &Config, identity: &Identity, birth: Birth, mesh: &Mesh) -> Result<Store, RunError> {
    let directory = config.data.join("store");
    identity::make_private_directory(&directory)?;
    let me = identity.member.node_id();
    let replica = ReplicaConfig::new(me, identity.store_id(identity.epoch), clock::random_u64());
    if let Some(why) = rebuild::condemned(&directory) {
        return Err(store::StoreError::Untrusted(why).into());
    }
    let condemned = directory.clone();
    let distrusted = Box::new(move |why: &str| rebuild::condemn(&condemned, why));
    let running =
        store::start(&directory.join("log"), replica, birth, sends(mesh.clone()), distrusted, mesh)?;
    // Beside the identity, not beside the log: a member whose store is gone must not vote under its old name.
    identity::write_durably(&config.data.join("member").join(identity::STORE_SEEN), b"")?;
    let store = Store::new(me, running, mesh.clone());
    let sink = store.clone();
    mesh.give_raft_to(Box::new(move |from, bytes| sink.input(Input::Message { from, bytes })));
    spawn(greet(store.clone(), mesh.clone(), identity.known.clone()));
    Ok(store)
}

/// Dials the others before there is anything to say to them: who was connected with this machine before it died waits on the old connection until that
/// is given up as idle, and uses the newest there is.
async fn greet(store: Store, mesh: Mesh, known: Vec<Member>) {
    let me = mesh.me();
    let others = known.iter().map(Member::node_id).filter(|id| *id != me);
    others.for_each(|id| mesh.greet(id, Class::Control));
    // Who votes is known once the log is applied that was found on the disk.
    let votes = |view: &raft_store::View| view.members().voters.contains(&me);
    let mut views = store.views();
    let Ok(Ok(view)) = tokio::time::timeout(timing::REQUEST_DEADLINE, views.wait_for(votes)).await else {
        return;
    };
    let voters = view.members().voters.clone();
    drop(view);
    voters.into_iter().filter(|id| *id != me).for_each(|id| mesh.greet(id, Class::Raft));
}

/// Opens the session of this boot, ends the last one's, and remembers which it is.
async fn keep_session(store: Store, path: std::path::PathBuf) {
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let previous = text.trim().parse().ok().map(raft_store::SessionId);
    while let Err(error) = store.begin_session(previous).await {
        tracing::debug!(%error, "no session yet");
        tokio::time::sleep(timing::SESSION_PAUSE).await;
    }
    if let Ok(session) = store.begin_session(None).await
        && let Err(error) = identity::write_durably(&path, session.0.to_string().as_bytes())
    {
        tracing::warn!(%error, "the session's number could not be kept: it stays open in the store after this boot");
    }
}

/// Raft messages go from the replica's thread into the mesh's queues.
fn sends(mesh: Mesh) -> store::Sends {
    Box::new(move |message| mesh.send_raft(message.to, message.bytes, message.bulk))
}

/// Keeps the roster at the newest member list; who left it is cut off, on open connections too.
fn follow_members(store: Store, roster: Roster, mesh: Mesh, data: std::path::PathBuf) {
    let mut views = store.objects();
    spawn(async move {
        let mut last: Vec<Member> = Vec::new();
        loop {
            let members = in_view(&views.borrow_and_update().clone());
            if !members.is_empty() && members != last {
                let was_in = last.iter().any(|member| member.node_id() == mesh.me());
                if was_in && members.iter().all(|member| member.node_id() != mesh.me()) {
                    error!(
                        "this machine has been removed from the cluster: 'skein node reset' makes it a stranger that can join again"
                    );
                }
                identity::remember(&data, &members);
                roster.replace(members.clone());
                mesh.drop_strangers();
                last = members;
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    });
}

async fn open_runtime(config: &Config) -> Result<(Runtime, runtime::Events), RunError> {
    let settings = runtime::Config {
        data: config.data.clone(),
        run: config.run.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        ..runtime::Config::default()
    };
    Ok(Runtime::open(settings).await?)
}

/// The pods that an earlier agent attached.
async fn attached(runtime: &Runtime, addresses: &Addresses, config: &Config) -> Vec<LocalPod> {
    let known = runtime.pods().await;
    let local = known.iter().filter(|pod| pod.sandboxed && !pod.spec.host_network).filter_map(|pod| {
        let uid = pod.spec.uid.as_str();
        let netns = config.run.join("netns").join(uid);
        let address = addresses.get(uid)?;
        Some(fabric::local_pod(&pod.spec, address, netns))
    });
    local.collect()
}

fn serve_api(cluster: &Arc<Cluster>, listener: tokio::net::TcpListener) -> Result<(), RunError> {
    let owned = cluster.clone();
    let handler: Handler = Arc::new(move |user, request| {
        let cluster = owned.clone();
        Box::pin(server::answer(cluster, user, request))
    });
    Ok(listen::https(
        listener,
        &cluster.identity.ca_certificate,
        &cluster.credential,
        handler,
        cluster.store.clone(),
    )?)
}
