//! Restarts, half-done work, other people's things, and the way out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use netfabric::{Condition, Fabric, FabricConfig};

use crate::harness::{Netns, VIP, World};

#[tokio::test]
async fn a_second_pass_changes_nothing() {
    let mut world = World::running(2, 2).await;
    let addresses: Vec<_> = world.nodes[1].pods.iter().map(|pod| pod.address).collect();
    world.web(&addresses);
    world.settle().await;
    for index in 0..2 {
        assert_eq!(world.pass(index).await.changes, 0);
        let report = world.full_pass(index).await;
        assert_eq!((report.changes, report.failures), (0, vec![]), "nor does looking at everything afresh");
    }
}

#[tokio::test]
async fn a_restart_adopts_what_is_there_and_keeps_connections() {
    let mut world = World::running(2, 1).await;
    let far = world.nodes[1].pods[0].address;
    world.web(&[far]);
    world.settle().await;
    let mut stream = world.nodes[0].pods[0].netns.run(|| TcpStream::connect((VIP, 80)).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut greeting = [0; 64];
    assert!(stream.read(&mut greeting).unwrap() > 0);
    let mut echoes = |stream: &mut TcpStream| {
        stream.write_all(b"still there?").unwrap();
        stream.read(&mut greeting).unwrap()
    };
    for node in &mut world.nodes {
        node.fabric = None;
    }
    assert_eq!(echoes(&mut stream), 12, "with no fabric at all");
    for index in 0..2 {
        world.nodes[index].open().await;
        let report = world.pass(index).await;
        assert_eq!((report.changes, report.failures), (0, vec![]), "everything is as it should be");
    }
    assert_eq!(echoes(&mut stream), 12);
}

#[tokio::test]
async fn what_was_broken_meanwhile_is_repaired() {
    let mut world = World::running(2, 2).await;
    let all: Vec<_> = world.nodes.iter().flat_map(|node| node.pods.iter().map(|pod| pod.address)).collect();
    world.web(&all);
    world.settle().await;
    let breakages = [
        "nft flush ruleset",
        "nft delete table inet skein",
        "nft flush chain inet skein source",
        "nft add rule inet skein pass drop",
        "nft flush map inet skein vip_slots",
        "nft delete element inet skein peers { 192.168.77.2 }",
        "ip link del skx0",
        "ip link set skx0 down",
        "ip link set skx0 mtu 1300",
        "ip route del 10.42.2.0/24",
        "ip neigh del 10.42.2.0 dev skx0",
        "bridge fdb del $(bridge fdb show dev skx0 | cut -d' ' -f1) dev skx0",
        "ip addr del 10.43.0.10/32 dev lo",
        "for link in $(ip -o link | grep -o 'skp[0-9a-f]*'); do ip link del $link; done",
    ];
    for breakage in breakages {
        // Once while the fabric runs, once behind its back.
        for dropped in [false, true] {
            if dropped {
                world.nodes[0].fabric = None;
            }
            world.nodes[0].netns.sh(breakage);
            if dropped {
                world.nodes[0].open().await;
            }
            let mtu_only = breakage.contains("mtu");
            let report = if mtu_only { world.full_pass(0).await } else { world.pass(0).await };
            assert_eq!(report.failures, [], "{breakage}");
            assert!(report.changes > 0, "{breakage} (fabric dropped: {dropped}) was not noticed");
            let pod = &world.nodes[0].pods[0];
            let far = world.nodes[1].pods[0].address;
            assert!(pod.netns.tcp(&format!("{far}:8080")).is_ok(), "{breakage}: no way to the other node");
            assert!(pod.netns.tcp(&format!("{VIP}:80")).is_ok(), "{breakage}: the service does not answer");
            assert_eq!(world.full_pass(0).await.changes, 0, "{breakage}");
        }
    }
}

#[tokio::test]
async fn foreign_things_are_not_touched() {
    let mut world = World::bare(2);
    let foreign = "ip link add skx7 type bridge; ip link add mine type veth peer name skpfeedbeef; \
                   ip addr add 10.99.0.1/24 dev mine; ip link set mine up; ip route add 10.98.0.0/16 via 192.168.77.9; \
                   ip neigh add 192.168.77.9 lladdr 02:00:00:00:00:09 dev u0 nud permanent; \
                   nft add table ip theirs; nft add chain ip theirs c '{ type nat hook postrouting priority 100; }'; \
                   nft add rule ip theirs c ip daddr 10.97.0.0/16 counter; ip addr add 10.96.0.1/32 dev lo";
    let look = "ip -o link | grep -v 'sk[px][0-9]' | sed 's/^[0-9]*: //; s/ link-netnsid.*//'; ip route | grep -v 'proto 83'; \
                ip neigh show nud permanent | grep -v sk; nft list table ip theirs; ip -o addr show dev lo | grep -v skein | sed 's/^[0-9]*: //'; \
                ip -o link show skx7 | sed 's/^[0-9]*: //'; ip -o link show skpfeedbeef | sed 's/^[0-9]*: //'";
    world.nodes[0].netns.sh(foreign);
    let before = world.nodes[0].netns.sh(look);
    for node in &mut world.nodes {
        node.serving_pod();
        node.open().await;
    }
    world.settle().await;
    assert!(world.nodes[0].pods[0].netns.pings(world.nodes[1].pods[0].address, 56));
    assert_eq!(world.nodes[0].netns.sh(look), before);
    world.nodes[0].pods.clear();
    world.settle().await;
    world.nodes[0].fabric = None;
    Fabric::reset(FabricConfig { netns: Some(world.nodes[0].netns.path()) }).await.unwrap();
    assert_eq!(world.nodes[0].netns.sh(look), before);
}

#[tokio::test]
async fn reset_leaves_nothing() {
    let mut world = World::bare(2);
    let look = "ip -o link | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/ link-netnsid.*//' | sort; ip -4 -o addr | sed 's/^[0-9]*: //' | sort; \
                ip route | sort; ip neigh show nud permanent; bridge fdb show | grep -v 33:33 | sort; nft list ruleset";
    let before = world.nodes[0].netns.sh(look);
    for node in &mut world.nodes {
        node.serving_pod();
        node.open().await;
    }
    let pod = world.nodes[0].pods[0].address;
    world.web(&[pod]);
    world.settle().await;
    assert_ne!(world.nodes[0].netns.sh(look), before);
    world.nodes[0].fabric = None;
    Fabric::reset(FabricConfig { netns: Some(world.nodes[0].netns.path()) }).await.unwrap();
    assert_eq!(world.nodes[0].netns.sh(look), before);
}

#[tokio::test]
async fn a_pod_without_a_namespace_fails_alone() {
    let mut world = World::running(1, 1).await;
    world.nodes[0].pod();
    let mut desired = world.desired(0);
    desired.pods[1].netns = "/proc/self/fd/99999".into();
    let fabric = world.nodes[0].fabric.as_mut().unwrap();
    let report = fabric.reconcile(desired.into()).await;
    assert_eq!(report.failures.len(), 1, "{report:?}");
    assert!(report.pod_failure(&"n1-11".into()).unwrap().contains("99999"), "{report:?}");
    assert!(world.nodes[0].netns.pings(world.nodes[0].pods[0].address, 56));
    assert_eq!(world.pass(0).await.failures, [], "and is attached once the namespace is there");
    assert!(world.nodes[0].netns.pings(world.nodes[0].pods[1].address, 56));
}

#[tokio::test]
async fn a_pods_restart_under_the_same_name_is_noticed() {
    let mut world = World::running(1, 1).await;
    let fresh = Netns::new();
    fresh.serve("again", 8080);
    world.nodes[0].pods[0].netns = fresh;
    assert_eq!(world.pass(0).await.failures, []);
    let node = &world.nodes[0];
    assert!(node.netns.tcp(&format!("{}:8080", node.pods[0].address)).unwrap().starts_with("again"));
}

#[tokio::test]
async fn a_foreign_firewall_is_named_with_the_line_that_helps() {
    let mut world = World::running(2, 1).await;
    let netns = world.nodes[0].netns.clone();
    let far = world.nodes[1].pods[0].address;
    netns.sh("nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'");
    let report = world.pass(0).await;
    assert!(!world.nodes[0].pods[0].netns.pings(far, 56), "the drop beats our accept");
    let [Condition::NetworkBlocked(text)] = report.conditions.as_slice() else { panic!("{report:?}") };
    assert!(text.contains("ip filter FORWARD"), "{text}");
    let line = text.split_once("with: ").unwrap().1;
    netns.sh(line);
    assert!(world.nodes[0].pods[0].netns.pings(far, 56), "{line}");
    assert_eq!(world.pass(0).await.conditions, []);
    netns.sh("nft add chain ip filter INPUT '{ type filter hook input priority 0; policy drop; }'");
    let report = world.pass(0).await;
    let [Condition::NetworkBlocked(text)] = report.conditions.as_slice() else { panic!("{report:?}") };
    netns.sh(text.split_once("with: ").unwrap().1);
    assert!(world.nodes[0].pods[0].netns.pings(far, 56), "{text}");
}
