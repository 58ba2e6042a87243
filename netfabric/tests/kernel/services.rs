//! Service addresses and node ports: who answers, who is refused, and nobody hangs while endpoints change.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netfabric::{HostPort, Protocol};

use crate::harness::{Netns, VIP, World, tcp, udp};

fn vip() -> String {
    format!("{VIP}:80")
}

#[tokio::test]
async fn a_service_answers_pods_and_hosts() {
    let mut world = World::running(2, 1).await;
    let far = world.nodes[1].pods[0].address;
    world.web(&[far]);
    world.settle().await;
    let [a, b] = [&world.nodes[0], &world.nodes[1]];
    assert_eq!(a.pods[0].netns.tcp(&vip()).unwrap(), format!("n2-10 {}", a.pods[0].address));
    assert_eq!(a.pods[0].netns.udp(&vip()).unwrap(), format!("n2-10 {}", a.pods[0].address));
    assert_eq!(a.netns.tcp(&vip()).unwrap(), format!("n2-10 {}", a.overlay()));
    assert_eq!(b.netns.tcp(&vip()).unwrap(), format!("n2-10 {}", b.overlay()));
}

#[tokio::test]
async fn a_service_answers_on_the_endpoints_own_node_and_itself() {
    let mut world = World::running(1, 2).await;
    let own = world.nodes[0].pods[0].clone();
    world.web(&[own.address]);
    world.settle().await;
    let node = &world.nodes[0];
    let neighbour = &node.pods[1];
    assert_eq!(neighbour.netns.tcp(&vip()).unwrap(), format!("n1-10 {}", neighbour.address));
    // A pod that reaches itself sees the node, else its answer would never leave it.
    assert_eq!(own.netns.tcp(&vip()).unwrap(), format!("n1-10 {}", node.overlay()));
    assert_eq!(own.netns.udp(&vip()).unwrap(), format!("n1-10 {}", node.overlay()));
}

#[tokio::test]
async fn node_ports_answer_on_every_node() {
    let mut world = World::running(3, 1).await;
    let only = world.nodes[1].pods[0].address;
    world.web(&[only]);
    world.settle().await;
    for node in &world.nodes {
        let at = format!("{}:30080", node.underlay());
        let seen: Ipv4Addr = if node.number == 2 { [192, 168, 77, 254].into() } else { node.overlay() };
        assert_eq!(world.outside.tcp(&at).unwrap(), format!("n2-10 {seen}"), "{at}");
        assert_eq!(world.outside.udp(&at).unwrap(), format!("n2-10 {seen}"), "{at}");
        for client in &world.nodes {
            assert!(client.netns.tcp(&at).is_ok(), "{} at {at}", client.name);
            assert!(client.pods[0].netns.tcp(&at).is_ok(), "{} at {at}", client.pods[0].uid);
        }
    }
}

#[tokio::test]
async fn a_host_port_leads_to_its_pod_on_its_own_node_until_the_pod_goes() {
    let mut world = World::running(2, 2).await;
    let ports =
        [Protocol::Tcp, Protocol::Udp].map(|protocol| HostPort { protocol, port: 8081, target: 8080 });
    world.nodes[0].pods[1].host_ports = ports.to_vec();
    world.settle().await;
    let [own, other] = [&world.nodes[0], &world.nodes[1]];
    let at = format!("{}:8081", own.underlay());
    assert_eq!(world.outside.tcp(&at).unwrap(), "n1-11 192.168.77.254", "the client's own address is seen");
    assert_eq!(world.outside.udp(&at).unwrap(), "n1-11 192.168.77.254");
    for client in [&own.netns, &other.netns, &own.pods[0].netns, &own.pods[1].netns, &other.pods[0].netns] {
        assert!(client.tcp(&at).unwrap().starts_with("n1-11 "));
        assert!(client.udp(&at).unwrap().starts_with("n1-11 "));
    }
    let elsewhere = world.outside.tcp(&format!("{}:8081", other.underlay())).unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::ConnectionRefused, "no other node has it");
    assert_eq!(world.full_pass(0).await.changes, 0, "a second pass has nothing to do");
    world.nodes[0].pods.pop();
    world.settle().await;
    let gone = world.outside.tcp(&at).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn without_endpoints_connections_are_refused_at_once() {
    let mut world = World::running(1, 1).await;
    world.web(&[]);
    world.settle().await;
    let node = &world.nodes[0];
    let refused = |from: &Netns, to: String| {
        let started = Instant::now();
        let error = from.tcp(&to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
        assert!(started.elapsed() < Duration::from_millis(300), "{to} took {:?}", started.elapsed());
    };
    refused(&node.pods[0].netns, vip());
    refused(&node.netns, vip());
    refused(&world.outside, format!("{}:30080", node.underlay()));
    refused(&node.pods[0].netns, "10.43.9.9:1234".to_owned());
    assert_eq!(node.pods[0].netns.udp(&vip()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let counters = node.netns.sh("nft list counters table inet skein");
    assert!(!counters.contains("counter untranslated {\n\t\tpackets 0"), "{counters}");
    assert!(!counters.contains("counter no_endpoints {\n\t\tpackets 0"), "{counters}");
}

/// New connections, one after the other, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(from: &[&Netns], to: &str) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let to: SocketAddr = to.parse().unwrap();
        let threads = from.iter().map(|netns| {
            let (stop, made) = (stop.clone(), made.clone());
            netns.spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    if let Err(error) = tcp(to, Duration::from_millis(900)) {
                        failures.push(format!("after {:?}: {error}", started.elapsed()));
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                }
                failures
            })
        });
        Self { threads: threads.collect(), stop, made }
    }

    /// Waits until every client has connected anew.
    async fn goes_on(&self) {
        let enough = self.made.load(Ordering::Relaxed) + 2 * self.threads.len();
        let made = async {
            while self.made.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), made).await.expect("connections are made");
    }

    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let failures: Vec<String> =
            self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let made = self.made.load(Ordering::Relaxed);
        assert_eq!(failures, Vec::<String>::new(), "of {made}");
        made
    }
}

#[tokio::test]
async fn growing_and_shrinking_loses_no_connection() {
    let mut world = World::running(2, 5).await;
    let near: Vec<_> = world.nodes[0].pods.iter().map(|pod| pod.address).collect();
    let far: Vec<_> = world.nodes[1].pods.iter().map(|pod| pod.address).collect();
    let all = [far[0], near[0], far[1], near[1], far[2]];
    world.web(&all[..1]);
    world.settle().await;
    let clients = [world.nodes[0].pods[4].netns.clone(), world.nodes[1].netns.clone()];
    let load = Load::start(&[&clients[0], &clients[1]], &vip());
    for _ in 0..8 {
        for count in [2, 3, 4, 5, 4, 3, 2, 1, 5, 1] {
            // From the front, so that slots in the middle have to move.
            let chosen: Vec<_> =
                if count % 2 == 0 { all[5 - count..].to_vec() } else { all[..count].to_vec() };
            world.web(&chosen);
            world.settle().await;
            load.goes_on().await;
        }
    }
    let made = load.stop();
    println!("{made} new connections while endpoints changed 80 times");
    assert!(made > 300, "only {made} connections: nothing was tested");
}

#[tokio::test]
async fn every_endpoint_gets_its_share() {
    let mut world = World::running(1, 4).await;
    let all: Vec<_> = world.nodes[0].pods.iter().map(|pod| pod.address).collect();
    world.web(&all);
    world.settle().await;
    let heard: Vec<String> = world.nodes[0].netns.run(|| {
        let to = (VIP, 80).into();
        (0..400).map(|_| tcp(to, Duration::from_secs(1)).unwrap()).collect()
    });
    for pod in &world.nodes[0].pods {
        let count = heard.iter().filter(|said| said.starts_with(&pod.uid)).count();
        assert!((50..150).contains(&count), "{} got {count} of 400", pod.uid);
    }
}

#[tokio::test]
async fn a_leaving_endpoints_udp_clients_move_on() {
    let mut world = World::running(2, 1).await;
    let [near, far] = [world.nodes[0].pods[0].address, world.nodes[1].pods[0].address];
    world.web(&[far]);
    world.settle().await;
    // One socket: always the same connection for the kernel.
    let socket = world.nodes[0].netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((VIP, 80)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket
    });
    assert!(udp(&socket).unwrap().starts_with("n2-10"));
    world.web(&[near]);
    world.settle().await;
    assert!(udp(&socket).unwrap().starts_with("n1-10"));
}

#[tokio::test]
async fn a_syn_to_a_silent_endpoint_is_retried_elsewhere() {
    let mut world = World::running(2, 1).await;
    let [near, far] = [world.nodes[0].pods[0].address, world.nodes[1].pods[0].address];
    world.web(&[far]);
    world.settle().await;
    // The kernel knows the other node's Ethernet address, as it does where members gossip; else the SYN waits for ARP.
    assert!(world.nodes[0].netns.pings(world.nodes[1].underlay(), 56));
    world.bridge.sh("ip link set p2 down");
    let client = world.nodes[0].netns.spawn(|| {
        let started = Instant::now();
        (tcp((VIP, 80).into(), Duration::from_secs(10)), started.elapsed())
    });
    let node = world.nodes[0].netns.clone();
    let is_under_way = || {
        let table = node.sh("conntrack -L -p tcp 2>/dev/null");
        table.lines().any(|line| line.contains("dst=10.43.1.1") && line.contains("SYN_SENT"))
    };
    let under_way = async {
        while !is_under_way() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), under_way).await.expect("the SYN is under way");
    world.web(&[near]);
    let report = world.pass(0).await;
    assert_eq!(report.failures, []);
    let (said, took) = client.join().unwrap();
    assert!(said.unwrap().starts_with("n1-10"));
    println!("a SYN that was under way was answered elsewhere after {took:?}");
    assert!(took < Duration::from_millis(2500), "{took:?}");
}

#[tokio::test]
async fn established_connections_stay_until_the_node_is_dead() {
    let mut world = World::running(2, 1).await;
    let [near, far] = [world.nodes[0].pods[0].address, world.nodes[1].pods[0].address];
    world.web(&[far]);
    world.settle().await;
    let stream = world.nodes[0].netns.run(|| std::net::TcpStream::connect((VIP, 80)).unwrap());
    let tracked = |world: &World| {
        let table = world.nodes[0].netns.sh("conntrack -L -p tcp 2>/dev/null");
        table.lines().filter(|line| line.contains("dst=10.43.1.1") && line.contains("ESTABLISHED")).count()
    };
    world.web(&[near]);
    world.settle().await;
    assert_eq!(tracked(&world), 1, "a graceful leave cuts nobody");
    world.dead = vec![2];
    assert_eq!(world.pass(0).await.failures, []);
    assert_eq!(tracked(&world), 0);
    assert_eq!(world.pass(0).await.changes, 0, "cut once only");
    drop(stream);
}

#[tokio::test]
async fn two_services_with_one_address_do_not_mix() {
    let mut world = World::running(1, 2).await;
    let [first, second] = [world.nodes[0].pods[0].address, world.nodes[0].pods[1].address];
    world.web(&[first]);
    let mut other = world.services[0].clone();
    other.id = "default/zz-other".into();
    for port in &mut other.ports {
        port.endpoints[0].address = second;
    }
    world.services.push(other);
    let report = world.pass(0).await;
    assert_eq!(report.failures.len(), 4, "two protocols, address and node port each: {report:?}");
    assert!(report.failures[0].reason.contains("already belongs to default/web"), "{report:?}");
    assert!(world.nodes[0].netns.tcp(&vip()).unwrap().starts_with("n1-10"));
}
