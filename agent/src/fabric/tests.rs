//! Objects, members and suspicion in, the node's desired network out.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use netfabric::{Endpoint, Failure, Subject};
use raft_store::NodeId;
use serde_json::json;

use super::{desired, untold};
use crate::control::tests::bed::Bed;
use crate::members::{Member, Roster};

fn member(number: u8) -> Member {
    Member {
        name: format!("host{number}"),
        id: number.into(),
        key: String::new(),
        address: ([10, 77, 0, number], 7443).into(),
        api_port: 6443,
        block: number,
        no_voter: false,
        seal_key: String::new(),
        versions: None,
    }
}

/// Three members with one ready pod each behind a service, and a fourth pod of `host3` that is not ready.
struct Cluster {
    bed: Bed,
    roster: Roster,
}

impl Cluster {
    fn new() -> Cluster {
        let roster = Roster::default();
        roster.replace((1..=3).map(member).collect());
        let mut bed = Bed::new(&["host1", "host2", "host3"]);
        bed.create(
            "Service",
            json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.43.0.20", "ports": [{"port": 80, "protocol": "TCP"}]}}),
        );
        let endpoint = |host: u8, last: u8, ready: bool| json!({"addresses": [format!("10.42.{host}.{last}")], "nodeName": format!("host{host}"), "conditions": {"ready": ready}});
        bed.create(
            "EndpointSlice",
            json!({
                "metadata": {"name": "web", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                "ports": [{"name": "", "port": 8080}],
                "endpoints": [endpoint(1, 2, true), endpoint(2, 2, true), endpoint(3, 2, true), endpoint(3, 3, false)],
            }),
        );
        Cluster { bed, roster }
    }

    /// Numbers of the hosts whose pods get new connections, and of the peers that are asked for names, as `host1` has them.
    fn used(&self, suspects: &[u64]) -> (Vec<u8>, Vec<String>) {
        let suspects: BTreeSet<NodeId> = suspects.iter().map(|id| NodeId(*id)).collect();
        let desired = desired(&member(1), &self.roster, &self.bed.view(), &suspects, Vec::new());
        let [service] = desired.services.as_slice() else { panic!("{:?}", desired.services) };
        let hosts: Vec<u8> = service.ports[0].endpoints.iter().map(|one| one.address.octets()[2]).collect();
        for (host, endpoint) in hosts.iter().zip(&service.ports[0].endpoints) {
            let address = Ipv4Addr::new(10, 42, *host, 2);
            assert_eq!(*endpoint, Endpoint { address, port: 8080 }, "what is not ready serves nobody");
        }
        let names = desired.peers.iter().filter(|peer| peer.serves_dns).map(|peer| peer.name.0.clone());
        (hosts, names.collect())
    }
}

fn names(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(ToString::to_string).collect()
}

#[test]
fn endpoints_are_out_at_suspicion_and_back_without_it() {
    let cluster = Cluster::new();
    assert_eq!(cluster.used(&[]), (vec![1, 2, 3], names(&["host2", "host3"])));
    assert_eq!(cluster.used(&[2]), (vec![1, 3], names(&["host3"])));
    assert_eq!(cluster.used(&[2, 3]), (vec![1], names(&[])));
    assert_eq!(cluster.used(&[]), (vec![1, 2, 3], names(&["host2", "host3"])));
}

#[test]
fn suspects_serve_on_when_nobody_else_is_ready_and_the_dead_never() {
    let mut cluster = Cluster::new();
    cluster.bed.change("EndpointSlice", "web", |slice| {
        slice.0["endpoints"][0]["conditions"]["ready"] = json!(false);
    });
    assert_eq!(cluster.used(&[]).0, [2, 3]);
    assert_eq!(cluster.used(&[2, 3]).0, [2, 3], "suspicion alone leaves no service without anyone");
    assert_eq!(cluster.used(&[3]).0, [2]);
    cluster.bed.kill_node("host2");
    assert_eq!(cluster.used(&[3]).0, [3], "a suspect is better than a dead one");
    cluster.bed.kill_node("host3");
    assert_eq!(cluster.used(&[2, 3]).0, [0u8; 0]);
}

#[test]
fn a_part_of_the_network_that_fails_at_every_pass_is_told_once_and_again_for_another_cause() {
    let failure =
        |uid: &str, reason: &str| Failure { subject: Subject::Pod(uid.into()), reason: reason.into() };
    let told = |before: &[Failure], now: &[Failure]| untold(before, now).cloned().collect::<Vec<_>>();
    let first = [failure("a", "taken")];
    let both = [first[0].clone(), failure("b", "taken")];
    let other = [failure("a", "no device")];
    assert_eq!(told(&[], &first), first);
    assert_eq!(told(&first, &both), &both[1..]);
    assert_eq!(told(&first, &other), other);
}
