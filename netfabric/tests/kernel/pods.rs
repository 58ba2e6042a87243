//! Pods reach each other, the node and the outside, and nobody who must not.

use std::time::Instant;

use crate::harness::{OUTSIDE, World};

#[tokio::test]
async fn pods_reach_each_other_on_one_node_and_across() {
    let world = World::running(2, 2).await;
    let [a, b] = [&world.nodes[0], &world.nodes[1]];
    for (from, to) in [(&a.pods[0], &a.pods[1]), (&a.pods[0], &b.pods[0]), (&b.pods[1], &a.pods[1])] {
        assert!(from.netns.pings(to.address, 56), "{} to {}", from.uid, to.uid);
        assert!(from.netns.pings(to.address, 1450 - 28), "{} to {} at the MTU", from.uid, to.uid);
        assert!(!from.netns.pings(to.address, 1450 - 27), "one byte more cannot be sent unfragmented");
        let heard = from.netns.tcp(&format!("{}:8080", to.address)).unwrap();
        assert_eq!(heard, format!("{} {}", to.uid, from.address), "the source is the pod's own");
    }
}

#[tokio::test]
async fn attaching_one_pod_among_thirty_is_quick() {
    let mut world = World::running(1, 30).await;
    let mut took = Vec::new();
    for _ in 0..5 {
        world.nodes[0].pod();
        let started = Instant::now();
        let report = world.pass(0).await;
        took.push(started.elapsed());
        assert!(report.failures.is_empty());
    }
    took.sort();
    println!("attach of one pod with 30 present: {took:?}");
    assert!(took[2].as_millis() <= 15, "{took:?}");
}

#[tokio::test]
async fn what_pods_send_outside_carries_the_nodes_address() {
    let world = World::running(1, 1).await;
    world.outside.serve("outside", 9000);
    let node = &world.nodes[0];
    let heard = node.pods[0].netns.tcp(&format!("{OUTSIDE}:9000")).unwrap();
    assert_eq!(heard, format!("outside {}", node.underlay()));
}
