//! Cluster DNS, driven: the records follow the local state; the server is netfabric's.
//!
//! Decides which names there are. It must not answer queries.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use api::Object;
use api::keys;
use api::kinds::Kind;
use netfabric::Protocol;
use netfabric::dns::{
    DnsServer, NamedEndpoint, NamedPod, NamedPort, NamedService, Records, ServeError, ServiceAddresses,
};
use raft_store::View;
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

use crate::clock::spawn;
use crate::cluster::Cluster;
use crate::objects::shown;

/// Serves DNS at this node's addresses until the process ends.
pub async fn run(cluster: Arc<Cluster>) {
    // Names of the past would be believed.
    let _ = cluster.store.local().await;
    let mut views = cluster.store.objects();
    let (sender, records) = watch::channel(Arc::new(records(&views.borrow_and_update().clone())));
    let addresses = [crate::fabric::DNS.local, cluster.identity.member.overlay()]
        .map(|ip| SocketAddr::new(ip.into(), 53));
    spawn(serve(cluster.clone(), addresses, records));
    while views.changed().await.is_ok() {
        let new = Arc::new(self::records(&views.borrow_and_update().clone()));
        sender.send_if_modified(|now| {
            let differs = **now != *new;
            if differs {
                *now = new;
            }
            differs
        });
    }
}

/// Binds as soon as the fabric has set the addresses up, and keeps the server.
async fn serve(cluster: Arc<Cluster>, addresses: [SocketAddr; 2], records: watch::Receiver<Arc<Records>>) {
    let upstreams = upstreams(&cluster.config.upstream_dns);
    for attempt in 0u32.. {
        match DnsServer::serve(&addresses, records.clone(), upstreams.clone()).await {
            Ok(_server) => {
                tracing::info!(?addresses, "DNS listens");
                return std::future::pending().await;
            }
            Err(error @ ServeError::Bind { .. }) if attempt % 50 == 49 => {
                warn!(%error, "DNS does not listen yet")
            }
            Err(_) => {}
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// The configured servers, else those of this machine that are not ours.
fn upstreams(configured: &[IpAddr]) -> Vec<SocketAddr> {
    let found: Vec<IpAddr> = if configured.is_empty() {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok()).collect()
    } else {
        configured.to_vec()
    };
    let ours = [crate::fabric::DNS.local, crate::fabric::DNS.fallback].map(IpAddr::V4);
    found.into_iter().filter(|ip| !ours.contains(ip)).map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// The records of a state, pure.
pub fn records(view: &View) -> Records {
    let slices: Vec<Object> = all(view, "EndpointSlice");
    let services: Vec<NamedService> =
        all(view, "Service").iter().filter_map(|service| named(service, &slices)).collect();
    let pods: Vec<NamedPod> = all(view, "Pod").iter().filter_map(named_pod).collect();
    Records::build(&services, &pods)
}

fn all(view: &View, kind: &str) -> Vec<Object> {
    let prefix = Kind::by_name(kind).map(|kind| keys::prefix(kind, None)).unwrap_or_default();
    view.prefix(prefix.as_bytes(), None).filter_map(|entry| shown(entry).ok()).collect()
}

fn named(service: &Object, slices: &[Object]) -> Option<NamedService> {
    let addresses = match service.text("/spec/clusterIP") {
        "None" => ServiceAddresses::Endpoints(endpoints(service, slices)),
        text => ServiceAddresses::Vip(text.parse().ok()?),
    };
    let ports = service.list("/spec/ports").iter().filter_map(|port| {
        Some(NamedPort {
            name: port["name"].as_str().map(String::from),
            protocol: if port["protocol"] == "UDP" { Protocol::Udp } else { Protocol::Tcp },
            port: u16::try_from(port["port"].as_u64()?).ok()?,
        })
    });
    Some(NamedService {
        name: service.name().into(),
        namespace: service.namespace().into(),
        addresses,
        ports: ports.collect(),
    })
}

fn endpoints(service: &Object, slices: &[Object]) -> Vec<NamedEndpoint> {
    let own = slices.iter().filter(|slice| {
        slice.namespace() == service.namespace()
            && slice.label("kubernetes.io/service-name") == Some(service.name())
    });
    let ready = own
        .flat_map(|slice| slice.list("/endpoints"))
        .filter(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)));
    ready
        .filter_map(|endpoint| {
            let address: Ipv4Addr = endpoint["addresses"][0].as_str()?.parse().ok()?;
            Some(NamedEndpoint { address, hostname: endpoint["hostname"].as_str().map(String::from) })
        })
        .collect()
}

fn named_pod(pod: &Object) -> Option<NamedPod> {
    let address = pod.text("/status/podIP").parse().ok()?;
    let here = !matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
    here.then(|| NamedPod { namespace: pod.namespace().into(), address })
}
