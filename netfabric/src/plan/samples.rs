//! A node `a` with two peers, pods and services, for the planner's tests.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::desired::{
    Desired, DnsAddresses, Endpoint, LocalNode, LocalPod, Network, NetworkId, NodeName, Peer, PeerNetwork,
    PodUid, Protocol, Service, ServiceId, ServicePort,
};
use crate::observed::{Observed, Underlay};

pub fn pod(last: u8) -> LocalPod {
    LocalPod {
        uid: PodUid(format!("pod-{last}")),
        network: NetworkId(0),
        address: Ipv4Addr::new(10, 42, 1, last),
        netns: PathBuf::from(format!("/proc/{last}/ns/net")),
        host_ports: Vec::new(),
    }
}

pub fn peer(name: &str, number: u8) -> Peer {
    let block = format!("10.42.{number}.0/24").parse().unwrap();
    let part = PeerNetwork { id: NetworkId(0), block, overlay: Ipv4Addr::new(10, 42, number, 0) };
    Peer {
        name: NodeName::from(name),
        underlay: IpAddr::from([192, 168, 0, number]),
        networks: vec![part],
        serves_dns: true,
    }
}

pub fn service(name: &str, last: u8, endpoints: &[u8]) -> Service {
    let endpoints = endpoints
        .iter()
        .map(|end| Endpoint { address: Ipv4Addr::new(10, 42, 1, *end), port: 8080 })
        .collect();
    let port = ServicePort {
        protocol: Protocol::Tcp,
        port: 80,
        node_port: Some(30000 + u16::from(last)),
        endpoints,
    };
    Service { id: ServiceId::from(name), vip: Ipv4Addr::new(10, 43, 1, last), ports: vec![port] }
}

pub fn desired() -> Desired {
    Desired {
        node: LocalNode { name: NodeName::from("a"), underlay: IpAddr::from([192, 168, 0, 1]) },
        networks: vec![Network {
            id: NetworkId(0),
            name: "default".to_owned(),
            cidr: "10.42.0.0/16".parse().unwrap(),
            vni: 4200,
            block: "10.42.1.0/24".parse().unwrap(),
            overlay: Ipv4Addr::new(10, 42, 1, 0),
        }],
        peers: vec![peer("b", 2), peer("c", 3)],
        pods: vec![pod(10), pod(11)],
        services: vec![service("web", 1, &[10, 11]), service("idle", 2, &[])],
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        node_port_addresses: BTreeSet::from([Ipv4Addr::new(192, 168, 0, 1)]),
        dead_blocks: BTreeSet::new(),
        dns: Some(DnsAddresses {
            local: Ipv4Addr::new(10, 43, 0, 10),
            fallback: Ipv4Addr::new(10, 43, 0, 11),
        }),
    }
}

/// A machine on which nothing of ours is yet.
pub fn empty_machine() -> Observed {
    let underlay = Underlay { link: crate::net::LinkName::foreign("eth0"), mtu: 1500 };
    let mut observed = Observed::default();
    observed.underlays.insert(IpAddr::from([192, 168, 0, 1]), underlay);
    observed.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned());
    observed
}
