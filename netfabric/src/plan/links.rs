//! Interfaces, addresses, routes, neighbour and forwarding entries.
//!
//! Decides what of them there must be and which differ. Must not look at services or rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::Draft;
use super::pods::Pod;
use crate::action::{Action, Subject};
use crate::desired::{Desired, Peer};
use crate::net::{Ipv4Net, LinkName, Mac, VXLAN_OVERHEAD, VXLAN_PORT};
use crate::observed::{Link, LinkKind, Observed, Route};

/// The MTU of the overlay while the interface below it is unknown.
const FALLBACK_MTU: u32 = 1500 - VXLAN_OVERHEAD;
/// Kernel settings without which packets are not forwarded.
const SYSCTLS: &[(&str, &str)] = &[("net/ipv4/ip_forward", "1")];

/// What must exist; every entry knows whose it is.
#[derive(Default)]
pub struct Wanted {
    overlays: BTreeMap<LinkName, (Subject, Overlay)>,
    pods: BTreeMap<LinkName, (Subject, Action)>,
    addresses: BTreeMap<(LinkName, Ipv4Addr), Subject>,
    routes: BTreeMap<Ipv4Net, (Subject, Route)>,
    neighbours: BTreeMap<(LinkName, Ipv4Addr), (Subject, Mac)>,
    forwarding: BTreeMap<(LinkName, Mac), (Subject, Ipv4Addr)>,
    mtu: u32,
}

struct Overlay {
    vni: u32,
    local: IpAddr,
    mac: Mac,
}

/// A peer with an underlay address that we can use.
pub struct AcceptedPeer<'a> {
    pub peer: &'a Peer,
    pub underlay: Ipv4Addr,
}

/// The peers in order of their names, without those that contradict another.
pub fn accepted_peers<'a>(desired: &'a Desired, draft: &mut Draft) -> Vec<AcceptedPeer<'a>> {
    let mut sorted: Vec<&Peer> = desired.peers.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut accepted: Vec<AcceptedPeer<'a>> = Vec::new();
    for peer in sorted {
        match check_peer(desired, peer, &accepted) {
            Ok(underlay) => accepted.push(AcceptedPeer { peer, underlay }),
            Err(reason) => draft.refuse(Subject::Peer(peer.name.clone()), reason),
        }
    }
    accepted
}

fn check_peer(desired: &Desired, peer: &Peer, accepted: &[AcceptedPeer<'_>]) -> Result<Ipv4Addr, String> {
    let IpAddr::V4(underlay) = peer.underlay else {
        return Err(format!("underlay address {} is IPv6, which the overlay cannot use yet", peer.underlay));
    };
    if peer.name == desired.node.name {
        return Err("has this node's own name".to_owned());
    }
    for part in &peer.networks {
        let own = desired.networks.iter().find(|network| network.block.overlaps(&part.block));
        if let Some(own) = own {
            return Err(format!("block {} overlaps this node's own {}", part.block, own.block));
        }
        let overlaps = |other: &&AcceptedPeer<'_>| {
            other.peer.networks.iter().any(|theirs| theirs.block.overlaps(&part.block))
        };
        if let Some(other) = accepted.iter().find(overlaps) {
            return Err(format!("block {} overlaps one of peer {}", part.block, other.peer.name));
        }
    }
    Ok(underlay)
}

impl Wanted {
    pub fn of(
        desired: &Desired,
        peers: &[AcceptedPeer<'_>],
        pods: &[Pod<'_>],
        observed: &Observed,
        draft: &mut Draft,
    ) -> Self {
        let mut wanted = Self { mtu: overlay_mtu(desired, observed, draft), ..Self::default() };
        wanted.add_networks(desired, draft);
        for peer in peers {
            wanted.add_peer(desired, peer);
        }
        for pod in pods {
            wanted.add_pod(pod);
        }
        if let Some(dns) = desired.dns {
            wanted.addresses.insert((LinkName::loopback(), dns.local), Subject::Node);
        }
        wanted
    }

    fn add_networks(&mut self, desired: &Desired, draft: &mut Draft) {
        for (index, network) in desired.networks.iter().enumerate() {
            let subject = Subject::Network(network.id);
            let link = LinkName::of_overlay(network.id.0);
            if draft.after.taken_names.contains(&link) {
                let reason = format!(
                    "an interface {link} that is not ours is in the way; remove it (ip link del {link})"
                );
                draft.refuse(subject, reason);
                continue;
            }
            let mac = Mac::of_overlay(&desired.node.name.0, network.id.0);
            let overlay = Overlay { vni: network.vni, local: desired.node.underlay, mac };
            self.overlays.insert(link.clone(), (subject.clone(), overlay));
            self.addresses.insert((link.clone(), network.overlay), subject.clone());
            self.routes.insert(network.cidr, (subject.clone(), Route::Unreachable));
            if index == 0 {
                let route = Route::Source { link, source: network.overlay };
                self.routes.insert(desired.service_cidr, (subject, route));
            }
        }
    }

    fn add_peer(&mut self, desired: &Desired, peer: &AcceptedPeer<'_>) {
        let subject = Subject::Peer(peer.peer.name.clone());
        for part in &peer.peer.networks {
            let Some(network) = desired.networks.iter().find(|network| network.id == part.id) else {
                continue;
            };
            let link = LinkName::of_overlay(network.id.0);
            if !self.overlays.contains_key(&link) {
                continue;
            }
            let mac = Mac::of_overlay(&peer.peer.name.0, network.id.0);
            let route = Route::Overlay { link: link.clone(), via: part.overlay, source: network.overlay };
            self.routes.insert(part.block, (subject.clone(), route));
            self.neighbours.insert((link.clone(), part.overlay), (subject.clone(), mac));
            self.forwarding.insert((link, mac), (subject.clone(), peer.underlay));
        }
    }

    fn add_pod(&mut self, pod: &Pod<'_>) {
        let subject = Subject::Pod(pod.pod.uid.clone());
        let (link, address) = (pod.link.clone(), pod.pod.address);
        let route = Route::Pod { link: link.clone(), source: pod.network.overlay };
        self.routes.insert(Ipv4Net::host(address), (subject.clone(), route));
        self.neighbours.insert((link.clone(), address), (subject.clone(), Mac::of_pod(address)));
        let attach =
            Action::AttachPod { link: link.clone(), netns: pod.pod.netns.clone(), address, mtu: self.mtu };
        self.pods.insert(link, (subject, attach));
    }

    /// Interfaces that nobody wants, or that cannot be made right in place.
    pub fn remove_links(&self, draft: &mut Draft) {
        let links: Vec<(LinkName, Link)> =
            draft.after.links.iter().map(|(name, link)| (name.clone(), link.clone())).collect();
        for (name, link) in links {
            if !self.keeps(&name, &link, draft) {
                draft.push(self.owner(&name), Action::DeleteLink { link: name });
            }
        }
    }

    fn owner(&self, link: &LinkName) -> Subject {
        let overlay = self.overlays.get(link).map(|(subject, _)| subject);
        overlay.or(self.pods.get(link).map(|(subject, _)| subject)).unwrap_or(&Subject::Node).clone()
    }

    fn keeps(&self, name: &LinkName, link: &Link, draft: &Draft) -> bool {
        if let Some((_, overlay)) = self.overlays.get(name) {
            let kind = LinkKind::Vxlan {
                vni: overlay.vni,
                local: Some(overlay.local),
                port: VXLAN_PORT,
                learning: false,
            };
            return link.kind == kind;
        }
        let Some((_, Action::AttachPod { netns, address, mtu, .. })) = self.pods.get(name) else {
            return false;
        };
        link.kind == LinkKind::Veth
            && draft
                .after
                .pods
                .get(name)
                .is_some_and(|end| end.netns == *netns && end.address == *address && end.mtu == *mtu)
    }

    /// Everything else, in an order in which each finds what it stands on.
    pub fn settle(&self, draft: &mut Draft) {
        for (path, value) in SYSCTLS {
            if draft.after.sysctls.get(*path).is_none_or(|current| current != value) {
                let action = Action::SetSysctl { path: (*path).to_owned(), value: (*value).to_owned() };
                draft.push(Subject::Node, action);
            }
        }
        self.settle_overlays(draft);
        self.settle_addresses(draft);
        self.attach_pods(draft);
        self.settle_neighbours(draft);
        self.settle_forwarding(draft);
        self.settle_routes(draft);
    }

    fn settle_overlays(&self, draft: &mut Draft) {
        for (link, (subject, Overlay { vni, local, mac })) in &self.overlays {
            let (mac, mtu) = (*mac, self.mtu);
            let action = match draft.after.links.get(link) {
                None => Action::CreateOverlay { link: link.clone(), vni: *vni, local: *local, mac, mtu },
                Some(known) => match repair(link, known, mac, mtu) {
                    Some(action) => action,
                    None => continue,
                },
            };
            draft.push(subject.clone(), action);
        }
    }

    fn settle_addresses(&self, draft: &mut Draft) {
        let surplus: Vec<_> =
            draft.after.addresses.iter().filter(|key| !self.addresses.contains_key(key)).cloned().collect();
        for (link, address) in surplus {
            draft.push(self.owner(&link), Action::DeleteAddress { link, address });
        }
        for ((link, address), subject) in &self.addresses {
            if !draft.after.addresses.contains(&(link.clone(), *address)) {
                draft.push(subject.clone(), Action::AddAddress { link: link.clone(), address: *address });
            }
        }
    }

    fn attach_pods(&self, draft: &mut Draft) {
        for (link, (subject, attach)) in &self.pods {
            let action = match draft.after.links.get(link) {
                None => Some(attach.clone()),
                Some(known) => repair(link, known, Mac::GATEWAY, self.mtu),
            };
            if let Some(action) = action {
                draft.push(subject.clone(), action);
            }
        }
    }

    fn settle_neighbours(&self, draft: &mut Draft) {
        let surplus: Vec<_> =
            draft.after.neighbours.keys().filter(|key| !self.neighbours.contains_key(key)).cloned().collect();
        for (link, address) in surplus {
            draft.push(self.owner(&link), Action::DeleteNeighbour { link, address });
        }
        for (key, (subject, mac)) in &self.neighbours {
            if draft.after.neighbours.get(key) != Some(mac) {
                let (link, address) = key.clone();
                draft.push(subject.clone(), Action::PutNeighbour { link, address, mac: *mac });
            }
        }
    }

    fn settle_forwarding(&self, draft: &mut Draft) {
        let surplus: Vec<_> = draft
            .after
            .forwarding
            .iter()
            .filter(|(key, to)| self.forwarding.get(key).is_none_or(|(_, wanted)| wanted != *to))
            .map(|((link, mac), to)| Action::DeleteForwarding { link: link.clone(), mac: *mac, to: *to })
            .collect();
        for action in surplus {
            draft.push(Subject::Node, action);
        }
        for (key, (subject, to)) in &self.forwarding {
            if draft.after.forwarding.get(key) != Some(to) {
                let (link, mac) = key.clone();
                draft.push(subject.clone(), Action::PutForwarding { link, mac, to: *to });
            }
        }
    }

    fn settle_routes(&self, draft: &mut Draft) {
        let surplus: Vec<_> = draft
            .after
            .routes
            .iter()
            .filter(|(to, _)| !self.routes.contains_key(to))
            .map(|(to, route)| Action::DeleteRoute { to: *to, route: route.clone() })
            .collect();
        for action in surplus {
            draft.push(Subject::Node, action);
        }
        for (to, (subject, route)) in &self.routes {
            let present = draft.after.routes.get(to);
            if present != Some(route) {
                let replace = present.is_some();
                draft.push(subject.clone(), Action::PutRoute { to: *to, route: route.clone(), replace });
            }
        }
    }
}

fn repair(link: &LinkName, known: &Link, mac: Mac, mtu: u32) -> Option<Action> {
    let (new_mac, new_mtu) = ((known.mac != mac).then_some(mac), (known.mtu != mtu).then_some(mtu));
    let wrong = new_mac.is_some() || new_mtu.is_some() || !known.up;
    wrong.then(|| Action::RepairLink { link: link.clone(), mac: new_mac, mtu: new_mtu })
}

fn overlay_mtu(desired: &Desired, observed: &Observed, draft: &mut Draft) -> u32 {
    if let Some(underlay) = observed.underlays.get(&desired.node.underlay) {
        return underlay.mtu.saturating_sub(VXLAN_OVERHEAD);
    }
    draft.refuse(
        Subject::Node,
        format!(
            "no interface carries this node's address {}: the overlay cannot reach its peers; set the address, or \
             join again with the one the node has now",
            desired.node.underlay
        ),
    );
    let existing = observed.links.iter().find(|(name, _)| name.is_overlay());
    existing.map_or(FALLBACK_MTU, |(_, link)| link.mtu)
}
