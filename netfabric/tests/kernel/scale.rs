//! Figures, on request: `cargo test -p netfabric --test kernel -- --ignored --nocapture figures`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use netfabric::{Desired, Endpoint, Protocol, Service, ServicePort};

use crate::harness::World;

fn many(mut desired: Desired, count: u16, shift: u8) -> Arc<Desired> {
    desired.services = (0..count)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let end = |last: u8| Endpoint { address: Ipv4Addr::new(10, 42, 9, last), port: 8080 };
            let first = if n == 0 { 1 + shift } else { 1 };
            let port = ServicePort {
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                endpoints: vec![end(first), end(100), end(200)],
            };
            Service {
                id: format!("default/s{n:05}").as_str().into(),
                vip: Ipv4Addr::new(10, 43, 10 + high, low),
                ports: vec![port],
            }
        })
        .collect();
    Arc::new(desired)
}

#[tokio::test]
#[ignore = "takes long and asserts nothing"]
async fn figures() {
    let mut world = World::running(1, 1).await;
    let base = world.desired(0);
    let fabric = world.nodes[0].fabric.as_mut().unwrap();
    for count in [10, 1000, 10_000] {
        let started = Instant::now();
        let report = fabric.reconcile(many(base.clone(), count, 0)).await;
        println!("{count} services from nothing: {:?}, {} changes", started.elapsed(), report.changes);
        for shift in 1..4 {
            let desired = many(base.clone(), count, shift);
            let started = Instant::now();
            let report = fabric.reconcile(desired).await;
            println!(
                "  one endpoint of {count} services: {:?}, {} changes",
                started.elapsed(),
                report.changes
            );
        }
        let desired = many(base.clone(), count, 3);
        let started = Instant::now();
        fabric.reconcile(desired.clone()).await;
        println!("  nothing to do: {:?}", started.elapsed());
        let started = Instant::now();
        fabric.reconcile_full(desired).await;
        println!("  looking at everything: {:?}", started.elapsed());
        fabric.reconcile(base.clone().into()).await;
    }
}

#[tokio::test]
#[ignore = "takes long and asserts nothing"]
async fn figures_of_pods() {
    let mut world = World::running(1, 0).await;
    let mut times = Vec::new();
    for _ in 0..60 {
        world.nodes[0].pod();
        let started = Instant::now();
        assert_eq!(world.pass(0).await.failures, []);
        times.push(started.elapsed());
    }
    for (what, range) in [("first 30", 0..30), ("30 to 60", 30..60)] {
        let mut times = times[range].to_vec();
        times.sort();
        println!("attaching a pod, {what}: median {:?}, worst {:?}", times[15], times[29]);
    }
    let started = Instant::now();
    assert_eq!(world.full_pass(0).await.changes, 0);
    println!("looking at everything, 60 pods: {:?}", started.elapsed());
}
