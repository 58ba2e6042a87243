//! Network namespaces that are held only by this process, so that they go away with it, whatever happens.
//!
//! A `World` is a bridge in a namespace of its own, nodes on it, and an outside; nothing of the machine is touched.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use netfabric::*;
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<OwnedFd>,
}

impl Netns {
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests need root");
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let found = Self { file: Arc::new(file.join().unwrap()) };
        found.sh("ip link set lo up");
        found
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs something on a thread inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = self.file.clone();
        std::thread::spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    pub fn try_sh(&self, script: &str) -> Output {
        let script = script.to_owned();
        self.run(move || Command::new("sh").args(["-ec", &script]).output().unwrap())
    }

    /// Runs a script that must succeed and gives its output.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {errors}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Connects and reads what the server says.
    pub fn tcp(&self, to: &str) -> io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || tcp(to, Duration::from_secs(2)))
    }

    pub fn udp(&self, to: &str) -> io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(800)))?;
            socket.connect(to)?;
            udp(&socket)
        })
    }

    pub fn pings(&self, to: Ipv4Addr, payload: usize) -> bool {
        self.try_sh(&format!("ping -n -c1 -W1 -M do -s {payload} {to}")).status.success()
    }

    /// Serves TCP and UDP: says `name` and the client's address.
    pub fn serve(&self, name: &str, port: u16) {
        let (tcp, udp) = self.run(move || {
            let all = (Ipv4Addr::UNSPECIFIED, port);
            (TcpListener::bind(all).unwrap(), UdpSocket::bind(all).unwrap())
        });
        let said = name.to_owned();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let (mut stream, said) = (stream, said.clone());
                std::thread::spawn(move || converse(&mut stream, &said));
            }
        });
        let said = name.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{said} {}", from.ip()).as_bytes(), from);
            }
        });
    }
}

/// The greeting, then an echo for as long as the client wants.
fn converse(stream: &mut TcpStream, said: &str) {
    let from = stream.peer_addr().map(|from| from.ip().to_string()).unwrap_or_default();
    let _ = stream.write_all(format!("{said} {from}\n").as_bytes());
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

pub fn tcp(to: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said.trim().to_owned())
}

pub fn udp(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 2000];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A pod of a node.
#[derive(Clone, Debug)]
pub struct Pod {
    pub uid: String,
    pub netns: Netns,
    pub address: Ipv4Addr,
    pub host_ports: Vec<HostPort>,
}

/// A node: a namespace with an address on the bridge.
pub struct Node {
    pub name: String,
    pub number: u8,
    pub netns: Netns,
    pub pods: Vec<Pod>,
    pub fabric: Option<Fabric>,
}

impl Node {
    pub fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.number)
    }

    pub fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number, 0)
    }

    fn block(&self) -> Ipv4Net {
        Ipv4Net::new(self.overlay(), 24).unwrap()
    }

    /// A new pod; it is attached at the next pass.
    pub fn pod(&mut self) -> Pod {
        let last = self.pods.len() as u8 + 10;
        let pod = Pod {
            uid: format!("{}-{last}", self.name),
            netns: Netns::new(),
            address: Ipv4Addr::new(10, 42, self.number, last),
            host_ports: Vec::new(),
        };
        self.pods.push(pod.clone());
        pod
    }

    /// The same, with a server on port 8080 that says the pod's uid.
    pub fn serving_pod(&mut self) -> Pod {
        let pod = self.pod();
        pod.netns.serve(&pod.uid, 8080);
        pod
    }

    pub async fn open(&mut self) {
        let config = FabricConfig { netns: Some(self.netns.path()) };
        self.fabric = Some(Fabric::open(config).await.unwrap());
    }
}

/// A bridge, nodes on it, and what is outside of the cluster.
pub struct World {
    pub bridge: Netns,
    pub outside: Netns,
    pub nodes: Vec<Node>,
    pub services: Vec<Service>,
    pub dead: Vec<u8>,
}

pub const OUTSIDE: &str = "203.0.113.9";
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 1, 1);

impl World {
    /// Namespaces only.
    pub fn bare(count: u8) -> Self {
        let bridge = Netns::new();
        bridge.sh("ip link add br0 type bridge; ip link set br0 up");
        let outside = Netns::new();
        plug(&bridge, &outside, 254);
        outside.sh(&format!("ip addr add {OUTSIDE}/32 dev lo"));
        let nodes = (1..=count).map(|number| {
            let netns = Netns::new();
            plug(&bridge, &netns, number);
            netns.sh("ip route add default via 192.168.77.254");
            Node { name: format!("n{number}"), number, netns, pods: Vec::new(), fabric: None }
        });
        let nodes = nodes.collect();
        Self { bridge, outside, nodes, services: Vec::new(), dead: Vec::new() }
    }

    /// With a fabric on every node, and `pods` serving pods on each.
    pub async fn running(count: u8, pods: u8) -> Self {
        let mut world = Self::bare(count);
        for node in &mut world.nodes {
            for _ in 0..pods {
                node.serving_pod();
            }
            node.open().await;
        }
        world.settle().await;
        world
    }

    /// One pass on every node; none may fail.
    pub async fn settle(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        for index in 0..self.nodes.len() {
            let report = self.pass(index).await;
            assert_eq!(report.failures, [], "{}", self.nodes[index].name);
            reports.push(report);
        }
        reports
    }

    pub async fn pass(&mut self, index: usize) -> Report {
        let desired = Arc::new(self.desired(index));
        self.nodes[index].fabric.as_mut().unwrap().reconcile(desired).await
    }

    pub async fn full_pass(&mut self, index: usize) -> Report {
        let desired = Arc::new(self.desired(index));
        self.nodes[index].fabric.as_mut().unwrap().reconcile_full(desired).await
    }

    pub fn desired(&self, index: usize) -> Desired {
        let node = &self.nodes[index];
        let alive = |other: &&Node| other.number != node.number && !self.dead.contains(&other.number);
        Desired {
            node: LocalNode { name: node.name.as_str().into(), underlay: node.underlay().into() },
            networks: vec![Network {
                id: NetworkId(0),
                name: "default".to_owned(),
                cidr: "10.42.0.0/16".parse().unwrap(),
                vni: 4200,
                block: node.block(),
                overlay: node.overlay(),
            }],
            peers: self.nodes.iter().filter(alive).map(peer).collect(),
            pods: node.pods.iter().map(local_pod).collect(),
            services: self.services.clone(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            node_port_addresses: [node.underlay()].into(),
            dead_blocks: self
                .dead
                .iter()
                .map(|n| Ipv4Net::new([10, 42, *n, 0].into(), 24).unwrap())
                .collect(),
            dns: Some(DnsAddresses { local: [10, 43, 0, 10].into(), fallback: [10, 43, 0, 11].into() }),
        }
    }

    /// Replaces the service `web` at `VIP`, port 80 over TCP and UDP, node port 30080, by one with these endpoints.
    pub fn web(&mut self, endpoints: &[Ipv4Addr]) {
        self.services.retain(|service| service.vip != VIP);
        let endpoints: Vec<Endpoint> =
            endpoints.iter().map(|address| Endpoint { address: *address, port: 8080 }).collect();
        let port = |protocol| ServicePort {
            protocol,
            port: 80,
            node_port: Some(30080),
            endpoints: endpoints.clone(),
        };
        let ports = vec![port(Protocol::Tcp), port(Protocol::Udp)];
        self.services.push(Service { id: "default/web".into(), vip: VIP, ports });
    }
}

fn peer(node: &Node) -> Peer {
    let part = PeerNetwork { id: NetworkId(0), block: node.block(), overlay: node.overlay() };
    Peer {
        name: node.name.as_str().into(),
        underlay: node.underlay().into(),
        networks: vec![part],
        serves_dns: true,
    }
}

fn local_pod(pod: &Pod) -> LocalPod {
    LocalPod {
        uid: pod.uid.as_str().into(),
        network: NetworkId(0),
        address: pod.address,
        netns: pod.netns.path(),
        host_ports: pod.host_ports.clone(),
    }
}

/// Connects a namespace to the bridge as 192.168.77.`number`.
pub fn plug(bridge: &Netns, to: &Netns, number: u8) {
    bridge.sh(&format!("ip link add p{number} type veth peer name u0; ip link set p{number} master br0 up"));
    bridge.sh(&format!("ip link set u0 netns {}", to.path().display()));
    to.sh(&format!("ip addr add 192.168.77.{number}/24 dev u0; ip link set u0 up"));
}
