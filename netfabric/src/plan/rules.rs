//! The nft table: which chains and elements there must be, and the two transactions that lead there.
//!
//! Decides what may go only in a second transaction: slots above a lowered count and chains that elements referred to,
//! because a packet that drew a slot before the first transaction looks it up after it. Must not decide slots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::links::AcceptedPeer;
use super::pods::Pod;
use super::services::{Frontends, assign};
use crate::action::Transaction;
use crate::desired::{Desired, Endpoint};
use crate::observed::{Frontend, Table};
use crate::table::{Chain, Element, VERSION, layout};

/// The table as it must be.
pub struct Wanted {
    chains: Vec<Chain>,
    elements: BTreeSet<Element>,
}

/// How to get there.
pub struct Changes {
    /// Everything that packets see.
    pub first: Transaction,
    /// What nothing refers to afterwards.
    pub cleanup: Transaction,
}

impl Wanted {
    pub fn of(
        desired: &Desired,
        peers: &[AcceptedPeer<'_>],
        pods: &[Pod<'_>],
        frontends: &Frontends,
        observed: Option<&Table>,
    ) -> Self {
        let mut elements = BTreeSet::new();
        elements.extend(peers.iter().map(|peer| Element::Peer(peer.underlay)));
        if let IpAddr::V4(own) = desired.node.underlay {
            elements.remove(&Element::Peer(own));
        }
        elements.extend(desired.node_port_addresses.iter().map(|address| Element::NodeAddress(*address)));
        for pod in pods {
            elements.insert(Element::PodSource(pod.link.clone(), pod.pod.address));
            elements.insert(Element::Hairpin(pod.pod.address, pod.network.overlay));
        }
        let mut counts = BTreeSet::new();
        let current = current_slots(observed);
        for (frontend, endpoints) in frontends {
            let slots = assign(current.get(frontend), endpoints);
            counts.insert(slots.len() as u16);
            elements.extend(of_frontend(*frontend, &slots));
        }
        Self { chains: chains(desired, &counts), elements }
    }

    /// The two transactions; both empty when the table is right.
    pub fn changes(&self, observed: Option<&Table>) -> Changes {
        let Some(table) = observed.filter(|table| table.version == VERSION) else { return self.afresh() };
        let put_chains: Vec<Chain> =
            self.chains.iter().filter(|chain| !is_there(chain, table)).cloned().collect();
        let names: BTreeSet<&str> = self.chains.iter().map(|chain| chain.name.as_str()).collect();
        let delete_chains: Vec<String> =
            table.chains.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        let add: Vec<Element> = self.elements.difference(&table.elements).cloned().collect();
        let slots: BTreeSet<(Frontend, u16)> = self.elements.iter().filter_map(slot_key).collect();
        let gone = table.elements.difference(&self.elements).cloned();
        let (surplus, remove): (Vec<Element>, Vec<Element>) =
            gone.partition(|element| slot_key(element).is_some_and(|key| !slots.contains(&key)));
        Changes {
            first: Transaction { put_chains, remove, add, ..Transaction::default() },
            cleanup: Transaction { remove: surplus, delete_chains, ..Transaction::default() },
        }
    }

    fn afresh(&self) -> Changes {
        let first = Transaction {
            fresh: true,
            put_chains: self.chains.clone(),
            add: self.elements.iter().cloned().collect(),
            ..Transaction::default()
        };
        Changes { first, cleanup: Transaction::default() }
    }
}

fn chains(desired: &Desired, counts: &BTreeSet<u16>) -> Vec<Chain> {
    let most = counts.last().copied().unwrap_or(0);
    let slots = (0..most).map(layout::slot);
    let draws = counts.iter().filter(|count| **count > 0).map(|count| layout::draw(*count));
    slots.chain(draws).chain(layout::chains(desired)).collect()
}

fn is_there(chain: &Chain, table: &Table) -> bool {
    table.chains.get(&chain.name).is_some_and(|rules| *rules == chain.rule_ids())
}

fn of_frontend(frontend: Frontend, slots: &[Endpoint]) -> Vec<Element> {
    if slots.is_empty() {
        return vec![Element::Empty(frontend)];
    }
    let places = (0..).zip(slots).map(|(slot, endpoint)| Element::Slot(frontend, slot, *endpoint));
    places.chain([Element::Draw(frontend, slots.len() as u16)]).collect()
}

fn slot_key(element: &Element) -> Option<(Frontend, u16)> {
    match element {
        Element::Slot(frontend, slot, _) => Some((*frontend, *slot)),
        _ => None,
    }
}

fn current_slots(table: Option<&Table>) -> BTreeMap<Frontend, BTreeMap<u16, Endpoint>> {
    let mut current: BTreeMap<Frontend, BTreeMap<u16, Endpoint>> = BTreeMap::new();
    for element in table.iter().flat_map(|table| &table.elements) {
        if let Element::Slot(frontend, slot, endpoint) = element {
            current.entry(*frontend).or_default().insert(*slot, *endpoint);
        }
    }
    current
}
