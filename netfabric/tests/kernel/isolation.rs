//! Who must not be heard: strangers, pretenders, other networks.

use netfabric::{Ipv4Net, LocalPod, Network, NetworkId};

use crate::harness::{Netns, World, plug};

#[tokio::test]
async fn vxlan_from_a_stranger_is_dropped() {
    let world = World::running(2, 1).await;
    let stranger = Netns::new();
    plug(&world.bridge, &stranger, 66);
    let victim = &world.nodes[0];
    let mac = victim.netns.sh("cat /sys/class/net/skx0/address 2>/dev/null || ip -o link show skx0 | grep -o 'ether [^ ]*' | cut -c7-");
    let join = |vni: u32| {
        format!(
            "ip link del x 2>/dev/null || true; ip link add x type vxlan id {vni} local 192.168.77.66 dstport 4789 nolearning; \
             ip addr add 10.42.2.77/32 dev x; ip link set x up; \
             bridge fdb append {mac} dev x dst {}; ip neigh add 10.42.1.0 lladdr {mac} dev x nud permanent; \
             ip route add 10.42.1.0/24 via 10.42.1.0 dev x onlink",
            victim.underlay(),
            mac = mac.trim()
        )
    };
    stranger.sh(&join(4200));
    stranger.try_sh(&format!("ping -c2 -i0.2 -W1 {}", victim.pods[0].address));
    let counter = victim.netns.sh("nft list counter inet skein strangers");
    assert!(counter.contains("packets 2"), "{counter}");
    let received = victim.netns.sh("ip -s -o link show skx0 | grep -o 'RX:[^T]*'");
    assert!(received.split_whitespace().any(|word| word == "0"), "{received}");
}

#[tokio::test]
async fn a_pod_cannot_pretend() {
    let mut world = World::running(2, 2).await;
    world.outside.serve("outside", 9000);
    let [liar, other] = [world.nodes[0].pods[0].clone(), world.nodes[0].pods[1].clone()];
    let far = world.nodes[1].pods[0].address;
    for source in [other.address.to_string(), "10.42.2.99".to_owned()] {
        liar.netns.sh(&format!("ip addr add {source}/32 dev eth0"));
        for to in [far, other.address, world.nodes[0].underlay()] {
            if source == to.to_string() {
                continue;
            }
            let ping = format!("ping -c1 -W1 -I {source} {to}");
            assert!(!liar.netns.try_sh(&ping).status.success(), "{ping}");
        }
        liar.netns.sh(&format!("ip addr del {source}/32 dev eth0"));
    }
    let spoofed = world.nodes[0].netns.sh("nft list counter inet skein spoofed");
    assert!(!spoofed.contains("packets 0"), "{spoofed}");
    assert!(liar.netns.pings(far, 56), "with its own address it is heard");
    // Masqueraded, its VXLAN would come from a member's address.
    let peer = world.nodes[1].underlay();
    liar.netns
        .sh(&format!("echo x > /dev/udp/{peer}/4789 2>/dev/null || bash -c 'echo x > /dev/udp/{peer}/4789'"));
    let after = world.nodes[0].netns.sh("nft list counter inet skein spoofed");
    assert_ne!(spoofed, after, "a pod's VXLAN to a peer is dropped");
    assert_eq!(world.pass(0).await.changes, 0);
}

#[tokio::test]
async fn networks_do_not_reach_each_other() {
    let mut world = World::running(1, 2).await;
    let mut desired = world.desired(0);
    let block: Ipv4Net = "10.50.1.0/24".parse().unwrap();
    desired.networks.push(Network {
        id: NetworkId(1),
        name: "other".to_owned(),
        cidr: "10.50.0.0/16".parse().unwrap(),
        vni: 4201,
        block,
        overlay: block.address(),
    });
    let others = [Netns::new(), Netns::new()];
    for (netns, last) in others.iter().zip(10u8..) {
        desired.pods.push(LocalPod {
            uid: format!("other-{last}").as_str().into(),
            network: NetworkId(1),
            address: [10, 50, 1, last].into(),
            netns: netns.path(),
            host_ports: Vec::new(),
        });
    }
    let fabric = world.nodes[0].fabric.as_mut().unwrap();
    assert_eq!(fabric.reconcile(desired.clone().into()).await.failures, []);
    assert!(others[0].pings([10, 50, 1, 11].into(), 56), "inside of the network");
    let pod = &world.nodes[0].pods[0];
    assert!(!others[0].pings(pod.address, 56));
    assert!(!pod.netns.pings([10, 50, 1, 10].into(), 56));
    assert!(!pod.netns.pings(block.address(), 56), "nor the node's address in the other network");
    let crossed = world.nodes[0].netns.sh("nft list counter inet skein crossed");
    assert!(crossed.contains("packets 3"), "{crossed}");
    let fabric = world.nodes[0].fabric.as_mut().unwrap();
    assert_eq!(fabric.reconcile_full(desired.into()).await.changes, 0);
}
