//! Services and pods' host ports: which slot holds which endpoint, and which connections must be forgotten.
//!
//! Decides the slots so that as few as possible change: a leaving endpoint's slot gets the last one's. Must not decide
//! which endpoints are good.

use std::collections::{BTreeMap, BTreeSet};

use super::Draft;
use super::pods::Pod;
use crate::action::{Action, Subject};
use crate::desired::{Desired, Endpoint, Protocol, Service};
use crate::observed::{Flow, Frontend, Observed};
use crate::table::{Element, MAX_SLOTS};

/// How many other members' DNS servers stand behind the fallback address.
const DNS_STAND_INS: usize = 2;

/// The endpoints behind every place where connections arrive.
pub type Frontends = BTreeMap<Frontend, BTreeSet<Endpoint>>;

/// All frontends; of two services that claim the same, the first by name gets it, and services go before host ports: their
/// promise is every node's. Of two pods, the one that has the port in the kernel keeps it.
pub fn frontends(desired: &Desired, pods: &[Pod<'_>], observed: &Observed, draft: &mut Draft) -> Frontends {
    let mut frontends = Frontends::new();
    let mut owners: BTreeMap<Frontend, &str> = BTreeMap::new();
    for (frontend, endpoints) in dns_fallback(desired) {
        owners.insert(frontend, "cluster DNS");
        frontends.insert(frontend, endpoints);
    }
    let mut sorted: Vec<&Service> = desired.services.iter().collect();
    sorted.sort_by(|a, b| a.id.cmp(&b.id));
    let of_services = sorted.into_iter().flat_map(|service| {
        let subject = Subject::Service(service.id.clone());
        of_service(service)
            .map(move |(frontend, ends)| (subject.clone(), service.id.0.as_str(), frontend, ends))
    });
    let of_pods = pods.iter().flat_map(|pod| {
        let uid = &pod.pod.uid;
        of_pod(pod).map(move |(frontend, ends)| (Subject::Pod(uid.clone()), uid.0.as_str(), frontend, ends))
    });
    let mut of_pods: Vec<_> = of_pods.collect();
    of_pods.sort_by_key(|(_, _, frontend, ends)| !holds(observed, *frontend, ends));
    for (subject, owner, frontend, endpoints) in of_services.chain(of_pods) {
        if let Some(owner) = owners.get(&frontend) {
            let reason = format!("{frontend} already belongs to {owner}: choose another port or address");
            draft.refuse(subject, reason);
            continue;
        }
        if endpoints.len() > MAX_SLOTS {
            let count = endpoints.len();
            let reason =
                format!("{frontend} has {count} endpoints: only the first {MAX_SLOTS} get connections");
            draft.refuse(subject, reason);
        }
        owners.insert(frontend, owner);
        frontends.insert(frontend, endpoints.into_iter().take(MAX_SLOTS).collect());
    }
    frontends
}

fn of_pod(pod: &Pod<'_>) -> impl Iterator<Item = (Frontend, BTreeSet<Endpoint>)> {
    let address = pod.pod.address;
    pod.pod.host_ports.iter().map(move |found| {
        let frontend = Frontend::NodePort { protocol: found.protocol, port: found.port };
        (frontend, BTreeSet::from([Endpoint { address, port: found.target }]))
    })
}

/// Whether these endpoints are behind the frontend already.
fn holds(observed: &Observed, frontend: Frontend, endpoints: &BTreeSet<Endpoint>) -> bool {
    let Some(table) = &observed.table else { return false };
    let mut slots = (0..).zip(endpoints).map(|(slot, end)| Element::Slot(frontend, slot, *end));
    slots.all(|element| table.elements.contains(&element))
}

fn of_service(service: &Service) -> impl Iterator<Item = (Frontend, BTreeSet<Endpoint>)> {
    service.ports.iter().flat_map(|entry| {
        let endpoints: BTreeSet<Endpoint> = entry.endpoints.iter().copied().collect();
        let protocol = entry.protocol;
        let vip = Frontend::Vip { address: service.vip, protocol, port: entry.port };
        let node_port = entry.node_port.map(|port| Frontend::NodePort { protocol, port });
        std::iter::once(vip).chain(node_port).map(move |frontend| (frontend, endpoints.clone()))
    })
}

/// The members after this one in a ring of names, so that the load of a restart is spread.
fn dns_fallback(desired: &Desired) -> Vec<(Frontend, BTreeSet<Endpoint>)> {
    let Some(dns) = desired.dns else { return Vec::new() };
    let Some(network) = desired.networks.first() else { return Vec::new() };
    let mut ring: Vec<_> = desired
        .peers
        .iter()
        .filter(|peer| peer.serves_dns)
        .filter_map(|peer| {
            Some((&peer.name, peer.networks.iter().find(|part| part.id == network.id)?.overlay))
        })
        .collect();
    ring.sort_by_key(|(name, _)| (**name < desired.node.name, *name));
    let mut chosen: Vec<_> = ring.into_iter().map(|(_, overlay)| overlay).take(DNS_STAND_INS).collect();
    if chosen.is_empty() {
        chosen.push(network.overlay);
    }
    let endpoints: BTreeSet<_> = chosen.into_iter().map(|address| Endpoint { address, port: 53 }).collect();
    [Protocol::Udp, Protocol::Tcp]
        .map(|protocol| (Frontend::Vip { address: dns.fallback, protocol, port: 53 }, endpoints.clone()))
        .into()
}

/// Fills slots: whoever has one below the new count keeps it, the others take the holes.
pub fn assign(current: Option<&BTreeMap<u16, Endpoint>>, wanted: &BTreeSet<Endpoint>) -> Vec<Endpoint> {
    let none = BTreeMap::new();
    let current = current.unwrap_or(&none);
    let mut left = wanted.clone();
    let mut slots: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    for (slot, endpoint) in current {
        if let Some(place) = slots.get_mut(usize::from(*slot))
            && left.remove(endpoint)
        {
            *place = Some(*endpoint);
        }
    }
    let mut left = left.into_iter();
    slots.into_iter().filter_map(|slot| slot.or_else(|| left.next())).collect()
}

/// Connections that still lead to endpoints that left.
pub fn forget(desired: &Desired, frontends: &Frontends, observed: &Observed, draft: &mut Draft) {
    let current = |flow: &Flow| frontends.get(&flow.frontend).is_some_and(|set| set.contains(&flow.endpoint));
    let slots = observed.table.iter().flat_map(|table| table.elements.iter());
    let slots = slots.filter_map(|element| match element {
        Element::Slot(frontend, _, endpoint) => Some(Flow { frontend: *frontend, endpoint: *endpoint }),
        _ => None,
    });
    let flows: BTreeSet<Flow> =
        slots.chain(observed.flows.iter().copied()).filter(|flow| !current(flow)).collect();
    let dead: Vec<_> = desired.dead_blocks.difference(&observed.cut_blocks).copied().collect();
    if !flows.is_empty() || !dead.is_empty() {
        draft.push(Subject::Rules, Action::Forget { flows: flows.into_iter().collect(), dead });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint { address: [10, 42, 0, last].into(), port: 80 }
    }

    fn slots(of: &[u8]) -> BTreeMap<u16, Endpoint> {
        (0..).zip(of.iter().map(|last| endpoint(*last))).collect()
    }

    fn set(of: &[u8]) -> BTreeSet<Endpoint> {
        of.iter().map(|last| endpoint(*last)).collect()
    }

    #[test]
    fn a_leaving_endpoints_slot_gets_the_last() {
        let after = assign(Some(&slots(&[1, 2, 3, 4])), &set(&[1, 3, 4]));
        assert_eq!(after, [endpoint(1), endpoint(4), endpoint(3)]);
    }

    #[test]
    fn a_new_endpoint_comes_behind() {
        let after = assign(Some(&slots(&[5, 2])), &set(&[1, 2, 5]));
        assert_eq!(after, [endpoint(5), endpoint(2), endpoint(1)]);
    }

    #[test]
    fn duplicate_slots_are_repaired() {
        let after = assign(Some(&slots(&[1, 1, 2])), &set(&[1, 2, 3]));
        assert_eq!(after, [endpoint(1), endpoint(3), endpoint(2)]);
    }
}
