//! The node's network, driven: the cluster's objects as netfabric's desired state, reconciled when something changes.
//!
//! Decides the mapping (members, pods of this node with their host ports, services with their ready and unsuspected endpoints). It must not touch the
//! kernel; netfabric does.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::{Object, keys};
use netfabric::{
    Condition, Desired, DnsAddresses, Endpoint, Fabric, Failure, HostPort, Ipv4Net, LocalNode, LocalPod,
    Network, NetworkId, Peer, PeerNetwork, Protocol, Service, ServicePort,
};
use raft_store::{NodeId, View};
use runtime::spec::{PodSpec, PortProtocol};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use crate::clock::spawn;
use crate::members::{Member, Roster, in_view};
use crate::objects::shown;
use crate::store::Store;

/// The one network of this release. Interfaces, pods and nodes carry its number; services need none (docs/decisions/0306).
pub const DEFAULT_NETWORK: NetworkId = NetworkId(1);
/// Its VXLAN id.
pub const DEFAULT_VNI: u32 = 4200;
/// Where the cluster's DNS servers are.
pub const DNS: DnsAddresses =
    DnsAddresses { local: Ipv4Addr::new(10, 43, 0, 10), fallback: Ipv4Addr::new(10, 43, 0, 11) };

/// Attaching a pod failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FabricError {
    #[error("the network could not be attached: {0}")]
    Attach(String),
    #[error("the network's driver has ended")]
    Ended,
}

enum Command {
    Attach(LocalPod, oneshot::Sender<Result<(), FabricError>>),
    Detach(String, oneshot::Sender<()>),
}

/// Handle on the driver. Cheap to clone.
#[derive(Clone)]
pub struct FabricHandle {
    commands: mpsc::UnboundedSender<Command>,
    /// What people must see of the network, such as a foreign firewall that drops our traffic.
    pub conditions: watch::Receiver<Vec<Condition>>,
}

impl FabricHandle {
    /// Attaches a pod; returns when its network works.
    pub async fn attach(&self, pod: LocalPod) -> Result<(), FabricError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Attach(pod, reply)).map_err(|_| FabricError::Ended)?;
        answer.await.map_err(|_| FabricError::Ended)?
    }

    pub async fn detach(&self, uid: &str) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Detach(uid.into(), reply)).is_ok() {
            let _ = answer.await;
        }
    }
}

/// What the driver works from.
pub struct Sources {
    pub me: Member,
    pub roster: Roster,
    pub store: Store,
    pub suspects: watch::Receiver<BTreeSet<NodeId>>,
    /// Pods that an earlier agent attached.
    pub pods: Vec<LocalPod>,
}

/// Starts the driver.
pub fn start(fabric: Fabric, sources: Sources) -> FabricHandle {
    let (commands, asked) = mpsc::unbounded_channel();
    let (conditions, watching) = watch::channel(Vec::new());
    let pods = sources.pods.iter().map(|pod| (pod.uid.0.clone(), pod.clone())).collect();
    let views = sources.store.objects();
    spawn(Driver { fabric, sources, views, pods, conditions, failed: Vec::new() }.run(asked));
    FabricHandle { commands, conditions: watching }
}

struct Driver {
    fabric: Fabric,
    sources: Sources,
    views: watch::Receiver<View>,
    pods: BTreeMap<String, LocalPod>,
    conditions: watch::Sender<Vec<Condition>>,
    /// What could not be had in the last pass. It was told.
    failed: Vec<Failure>,
}

/// How often everything is looked at afresh, whether or not something changed.
const FULL_PASS: Duration = Duration::from_secs(30);
/// The same while something is in the way: somebody is at work on it.
const FULL_PASS_BLOCKED: Duration = Duration::from_secs(5);

impl Driver {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        // The kernel may hold what an earlier agent knew: a state of the past must not take its place. Without a leader's word for
        // long, what is known is better than nothing.
        let _ = self.sources.store.local().await;
        self.pass(true).await;
        let mut last = None;
        let mut full_pass = tokio::time::interval(FULL_PASS);
        loop {
            let mut waiting = Vec::new();
            let mut full = false;
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => waiting.push(command),
                    None => return,
                },
                changed = self.views.changed() => if changed.is_err() { return },
                changed = self.sources.suspects.changed() => if changed.is_err() { return },
                _ = full_pass.tick() => full = true,
            }
            // What else has come belongs to the same pass.
            while let Ok(command) = commands.try_recv() {
                waiting.push(command);
            }
            let mut replies = Vec::new();
            let mut gone = Vec::new();
            for command in waiting {
                match command {
                    Command::Attach(pod, reply) => {
                        let uid = pod.uid.0.clone();
                        self.pods.insert(uid.clone(), pod);
                        replies.push((uid, reply));
                    }
                    Command::Detach(uid, reply) => {
                        self.pods.remove(&uid);
                        gone.push(reply);
                    }
                }
            }
            let desired = self.desired();
            if replies.is_empty() && gone.is_empty() && !full && last.as_ref() == Some(&desired) {
                continue;
            }
            let (failures, whole) = self.reconcile(desired.clone(), full).await;
            if full && !self.conditions.borrow().is_empty() {
                full_pass.reset_after(FULL_PASS_BLOCKED);
            }
            // What failed is tried again with the next change, and at the latest with the next full pass.
            last = whole.then_some(desired);
            for (uid, reply) in replies {
                let own = failures.get(&uid).cloned();
                let _ = reply.send(own.map_or(Ok(()), |why| Err(FabricError::Attach(why))));
            }
            for reply in gone {
                let _ = reply.send(());
            }
        }
    }

    async fn pass(&mut self, full: bool) {
        let desired = self.desired();
        self.reconcile(desired, full).await;
    }

    /// Answers what failed, by pod, and whether nothing did.
    async fn reconcile(&mut self, desired: Desired, full: bool) -> (BTreeMap<String, String>, bool) {
        let desired = Arc::new(desired);
        let report = if full {
            self.fabric.reconcile_full(desired).await
        } else {
            self.fabric.reconcile(desired).await
        };
        debug!(changes = report.changes, failures = report.failures.len(), "network reconciled");
        let conditions = report.all_conditions();
        self.conditions.send_if_modified(|now| std::mem::replace(now, conditions.clone()) != conditions);
        let mut by_pod = BTreeMap::new();
        for failure in untold(&self.failed, &report.failures) {
            warn!(?failure, "a part of the network could not be set up");
        }
        for failure in &report.failures {
            if let netfabric::Subject::Pod(uid) = &failure.subject {
                by_pod.insert(uid.0.clone(), failure.reason.clone());
            }
        }
        self.failed = report.failures;
        (by_pod, self.failed.is_empty())
    }

    fn desired(&mut self) -> Desired {
        let view = self.views.borrow_and_update().clone();
        let suspects = self.sources.suspects.borrow_and_update().clone();
        desired(
            &self.sources.me,
            &self.sources.roster,
            &view,
            &suspects,
            self.pods.values().cloned().collect(),
        )
    }
}

/// What fails that did not fail in the same way before: a host port that another pod has is refused at every pass.
fn untold<'a>(before: &'a [Failure], now: &'a [Failure]) -> impl Iterator<Item = &'a Failure> {
    now.iter().filter(|failure| !before.contains(failure))
}

/// The mapping, pure.
pub fn desired(
    me: &Member,
    roster: &Roster,
    view: &View,
    suspects: &BTreeSet<NodeId>,
    pods: Vec<LocalPod>,
) -> Desired {
    let listed = in_view(view);
    let members = if listed.is_empty() { roster.all() } else { listed };
    let suspected: BTreeSet<&str> = members
        .iter()
        .filter(|member| suspects.contains(&member.node_id()))
        .map(|member| member.name.as_str())
        .collect();
    let dead = dead_nodes(view);
    Desired {
        node: LocalNode { name: me.name.as_str().into(), underlay: me.address.ip() },
        networks: vec![Network {
            id: DEFAULT_NETWORK,
            name: "default".into(),
            cidr: net(Ipv4Addr::new(10, 42, 0, 0), 16),
            vni: DEFAULT_VNI,
            block: block(me),
            overlay: me.overlay(),
        }],
        peers: members
            .iter()
            .filter(|member| member.id != me.id)
            .map(|member| peer(member, !suspected.contains(member.name.as_str())))
            .collect(),
        pods,
        services: services(view, &suspected, &dead),
        service_cidr: net(Ipv4Addr::new(10, 43, 0, 0), 16),
        node_port_addresses: match me.address.ip() {
            IpAddr::V4(address) => BTreeSet::from([address, Ipv4Addr::LOCALHOST]),
            IpAddr::V6(_) => BTreeSet::from([Ipv4Addr::LOCALHOST]),
        },
        dead_blocks: members.iter().filter(|member| dead.contains(&member.name)).map(block).collect(),
        dns: Some(DNS),
    }
}

fn net(address: Ipv4Addr, length: u8) -> Ipv4Net {
    // Lengths here are constants below 33.
    Ipv4Net::new(address, length).expect("a prefix length of at most 32")
}

fn block(member: &Member) -> Ipv4Net {
    net(Ipv4Addr::new(10, 42, member.block, 0), 24)
}

fn peer(member: &Member, serves_dns: bool) -> Peer {
    Peer {
        name: member.name.as_str().into(),
        underlay: member.address.ip(),
        networks: vec![PeerNetwork { id: DEFAULT_NETWORK, block: block(member), overlay: member.overlay() }],
        serves_dns,
    }
}

/// A pod of this node as its sandbox was made.
pub fn local_pod(spec: &PodSpec, address: Ipv4Addr, netns: PathBuf) -> LocalPod {
    let host_ports = spec.port_mappings.iter().map(|mapping| HostPort {
        protocol: match mapping.protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
        },
        port: mapping.host_port,
        target: mapping.container_port,
    });
    let host_ports = host_ports.collect();
    LocalPod { uid: spec.uid.as_str().into(), network: DEFAULT_NETWORK, address, netns, host_ports }
}

/// Names of the nodes whose death is written down.
pub fn dead_nodes(view: &View) -> BTreeSet<String> {
    objects(view, "Node").filter(is_dead).map(|node| node.name().to_string()).collect()
}

/// Whether a Node object says that the machine is dead: the leader has set its Ready condition to Unknown.
pub fn is_dead(node: &Object) -> bool {
    node.list("/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "Unknown")
}

fn objects(view: &View, kind: &str) -> impl Iterator<Item = Object> {
    let prefix = Kind::by_name(kind).map(|kind| keys::prefix(kind, None)).unwrap_or_default();
    let found: Vec<Object> =
        view.prefix(prefix.as_bytes(), None).filter_map(|entry| shown(entry).ok()).collect();
    found.into_iter()
}

fn services(view: &View, suspected: &BTreeSet<&str>, dead: &BTreeSet<String>) -> Vec<Service> {
    let mut slices: BTreeMap<String, Vec<Object>> = BTreeMap::new();
    for slice in objects(view, "EndpointSlice") {
        if let Some(service) = slice.label("kubernetes.io/service-name") {
            slices.entry(format!("{}/{service}", slice.namespace())).or_default().push(slice);
        }
    }
    let mut found = Vec::new();
    for service in objects(view, "Service") {
        let Ok(vip) = service.text("/spec/clusterIP").parse::<Ipv4Addr>() else { continue };
        let id = format!("{}/{}", service.namespace(), service.name());
        let own = slices.get(&id).map(Vec::as_slice).unwrap_or(&[]);
        let ports = service
            .list("/spec/ports")
            .iter()
            .filter_map(|port| service_port(port, own, suspected, dead))
            .collect();
        found.push(Service { id: id.as_str().into(), vip, ports });
    }
    found
}

fn service_port(
    port: &Value,
    slices: &[Object],
    suspected: &BTreeSet<&str>,
    dead: &BTreeSet<String>,
) -> Option<ServicePort> {
    let protocol = match port["protocol"].as_str() {
        Some("UDP") => Protocol::Udp,
        Some("TCP") | None => Protocol::Tcp,
        Some(_) => return None,
    };
    let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    let name = port["name"].as_str().unwrap_or("");
    let (mut trusted, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let target = slice
            .list("/ports")
            .iter()
            .find(|found| found["name"].as_str().unwrap_or("") == name)
            .and_then(|found| number(&found["port"]));
        let Some(target) = target else { continue };
        for endpoint in slice
            .list("/endpoints")
            .iter()
            .filter(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)))
        {
            let node = endpoint["nodeName"].as_str().unwrap_or("");
            let Some(address) = endpoint["addresses"][0].as_str().and_then(|text| text.parse().ok()) else {
                continue;
            };
            match () {
                () if dead.contains(node) => {}
                () if suspected.contains(node) => {
                    doubtful.insert(Endpoint { address, port: target });
                }
                () => {
                    trusted.insert(Endpoint { address, port: target });
                }
            }
        }
    }
    // Suspicion alone does not leave a service without anyone.
    let endpoints = if trusted.is_empty() { doubtful } else { trusted };
    Some(ServicePort {
        protocol,
        port: number(&port["port"])?,
        node_port: number(&port["nodePort"]),
        endpoints: endpoints.into_iter().collect(),
    })
}
