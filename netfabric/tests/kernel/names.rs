//! DNS, asked by `dig` inside of pods.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfabric::Protocol;
use netfabric::dns::{DnsServer, NamedPod, NamedPort, NamedService, Records, ServiceAddresses, Sockets};
use tokio::sync::watch;

use crate::harness::{Netns, OUTSIDE, VIP, World};

const LOCAL: &str = "10.43.0.10";
const FALLBACK: &str = "10.43.0.11";

fn records(count: u8) -> Arc<Records> {
    let service = |name: String, vip| NamedService {
        name,
        namespace: "default".to_owned(),
        addresses: ServiceAddresses::Vip(vip),
        ports: vec![NamedPort { name: Some("http".to_owned()), protocol: Protocol::Tcp, port: 80 }],
    };
    let mut services = vec![service("web".to_owned(), VIP)];
    services.extend((0..count).map(|n| service(format!("s{n}"), Ipv4Addr::new(10, 43, 2, n))));
    let pod = NamedPod { namespace: "default".to_owned(), address: [10, 42, 1, 10].into() };
    Arc::new(Records::build(&services, &[pod]))
}

/// A server in a namespace, on these addresses, and the way to change its records.
fn serve(
    netns: &Netns,
    addresses: Vec<SocketAddr>,
    upstream: Vec<SocketAddr>,
) -> (DnsServer, watch::Sender<Arc<Records>>) {
    let sockets = netns.run(move || Sockets::bind(&addresses).unwrap());
    let (sender, receiver) = watch::channel(records(0));
    (DnsServer::serve_on(sockets, receiver, upstream).unwrap(), sender)
}

async fn dig(netns: &Netns, what: &str) -> String {
    let (netns, what) = (netns.clone(), what.to_owned());
    let asked = tokio::task::spawn_blocking(move || netns.sh(&format!("dig +tries=1 +time=3 {what}")));
    asked.await.unwrap()
}

fn at(world: &World, index: usize) -> Vec<SocketAddr> {
    vec![format!("{LOCAL}:53").parse().unwrap(), (world.nodes[index].overlay(), 53).into()]
}

#[tokio::test]
async fn pods_find_services_and_pods_by_name() {
    let world = World::running(1, 1).await;
    let (_server, _sender) = serve(&world.nodes[0].netns, at(&world, 0), Vec::new());
    let pod = &world.nodes[0].pods[0].netns;
    let short = async |what: &str| dig(pod, &format!("@{LOCAL} +short {what}")).await.trim().to_owned();
    assert_eq!(short("web.default.svc.cluster.local").await, "10.43.1.1");
    assert_eq!(short("+tcp WEB.default.SVC.cluster.local").await, "10.43.1.1");
    assert_eq!(short("10-42-1-10.default.pod.cluster.local").await, "10.42.1.10");
    assert_eq!(short("-x 10.43.1.1").await, "web.default.svc.cluster.local.");
    assert_eq!(
        short("SRV _http._tcp.web.default.svc.cluster.local").await,
        "0 100 80 web.default.svc.cluster.local."
    );
}

#[tokio::test]
async fn missing_names_and_missing_types_are_told_apart() {
    let world = World::running(1, 1).await;
    let (_server, _sender) = serve(&world.nodes[0].netns, at(&world, 0), Vec::new());
    let pod = &world.nodes[0].pods[0].netns;
    let nothing = dig(pod, &format!("@{LOCAL} nope.default.svc.cluster.local")).await;
    assert!(nothing.contains("status: NXDOMAIN") && nothing.contains("SOA"), "{nothing}");
    let no_v6 = dig(pod, &format!("@{LOCAL} AAAA web.default.svc.cluster.local")).await;
    assert!(no_v6.contains("status: NOERROR") && no_v6.contains("ANSWER: 0"), "{no_v6}");
    assert!(no_v6.contains("SOA"), "clients may remember it: {no_v6}");
    let above = dig(pod, &format!("@{LOCAL} default.svc.cluster.local")).await;
    assert!(above.contains("status: NOERROR") && above.contains("ANSWER: 0"), "{above}");
    let started = Instant::now();
    let outside = dig(pod, &format!("@{LOCAL} example.com")).await;
    assert!(outside.contains("status: SERVFAIL"), "{outside}");
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_change_of_records_is_seen_at_once() {
    let world = World::running(1, 1).await;
    let (_server, sender) = serve(&world.nodes[0].netns, at(&world, 0), Vec::new());
    let pod = &world.nodes[0].pods[0].netns;
    let question = format!("@{LOCAL} +short s7.default.svc.cluster.local");
    assert_eq!(dig(pod, &question).await, "");
    sender.send(records(8)).unwrap();
    assert_eq!(dig(pod, &question).await.trim(), "10.43.2.7");
}

#[tokio::test]
async fn other_names_are_asked_outside_and_remembered() {
    let world = World::running(1, 1).await;
    // A server of ours outside, whose "cluster" has the names that the node forwards: in-addr.arpa is not the domain.
    let outside: SocketAddr = format!("{OUTSIDE}:53").parse().unwrap();
    let (server, _outside_sender) = serve(&world.outside, vec![outside], Vec::new());
    let dead: SocketAddr = "192.168.77.254:5353".parse().unwrap();
    let sockets = world.nodes[0].netns.run(|| Sockets::bind(&["10.42.1.0:53".parse().unwrap()]).unwrap());
    let (_sender, receiver) = watch::channel(Arc::new(Records::build(&[], &[])));
    // The forwarder's own sockets are made where the runtime runs; ask from there.
    let node = world.nodes[0].netns.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel::<()>();
    let thread = node.spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let _server = DnsServer::serve_on(sockets, receiver, vec![dead, outside]).unwrap();
        ready.send(()).unwrap();
        let _ = stopped.recv();
    });
    is_ready.recv().unwrap();
    let pod = &world.nodes[0].pods[0].netns;
    let question = "@10.42.1.0 +short -x 10.43.1.1";
    assert_eq!(dig(pod, question).await.trim(), "web.default.svc.cluster.local.");
    drop(server);
    assert_eq!(dig(pod, question).await.trim(), "web.default.svc.cluster.local.", "from the cache");
    drop(stop);
    thread.join().unwrap();
}

#[tokio::test]
async fn while_the_own_server_is_away_others_answer() {
    let world = World::running(3, 1).await;
    let mut servers: Vec<_> =
        (0..3).map(|index| serve(&world.nodes[index].netns, at(&world, index), Vec::new())).collect();
    let pod = &world.nodes[0].pods[0].netns;
    let ask = |server: &str| format!("@{server} +short web.default.svc.cluster.local");
    for _ in 0..6 {
        assert_eq!(dig(pod, &ask(FALLBACK)).await.trim(), "10.43.1.1");
    }
    let tracked = world.nodes[0].netns.sh("conntrack -L -p udp 2>/dev/null");
    assert!(!tracked.contains("dst=10.43.0.10"), "the local address costs no tracked connection: {tracked}");
    drop(servers.remove(0));
    let started = Instant::now();
    let (netns, question) = (pod.clone(), ask(LOCAL));
    let away =
        tokio::task::spawn_blocking(move || netns.try_sh(&format!("dig +tries=1 +time=3 {question}"))).await;
    assert!(!away.unwrap().status.success());
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "a closed port answers at once: {:?}",
        started.elapsed()
    );
    assert_eq!(dig(pod, &ask(FALLBACK)).await.trim(), "10.43.1.1");
}
