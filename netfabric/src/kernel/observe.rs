//! Reads the kernel into `Observed`.
//!
//! Decides what is ours: interfaces by name and group, routes by protocol number, addresses by interface or label, the
//! table by name. Must not let anything else into the parts that plans remove from.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use netlink_packet_route::route::RouteType;
use serde_json::Value;

use super::nft::{self, NftError};
use super::rtnl::links::{self, LinkInfo};
use super::rtnl::routes::{self, RouteInfo};
use super::rtnl::{Routing, addresses, neighbours};
use super::socket::Requester;
use super::{conntrack, pod};
use crate::action::Condition;
use crate::desired::{Desired, Protocol};
use crate::firewall;
use crate::net::{LINK_GROUP, LOOPBACK_LABEL, LinkName};
use crate::observed::{Flow, Frontend, Link, LinkKind, Observed, PodEnd, Route, Underlay};
use crate::table::{NAME, read};

/// The kernel settings that are looked at.
pub const SYSCTLS: &[&str] = &["net/ipv4/ip_forward"];

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A netlink dump failed.
    #[error("cannot list {0}: {1}")]
    Netlink(&'static str, #[source] io::Error),
    /// nft did not list our table.
    #[error("cannot read back the nft table: {0}")]
    Table(#[source] NftError),
}

/// Interface indexes by name.
pub type Indexes = BTreeMap<LinkName, u32>;

/// What a look at the kernel gives.
#[derive(Debug)]
pub struct Seen {
    /// What is ours.
    pub observed: Observed,
    /// The indexes of all interfaces.
    pub indexes: Indexes,
    /// What others do that people must see.
    pub conditions: Vec<Condition>,
}

/// Looks at everything.
pub fn observe(route: &Routing, netfilter: &Requester, desired: &Desired) -> Result<Seen, ObserveError> {
    let mut observed = Observed::default();
    let links = links::list(route).map_err(|error| ObserveError::Netlink("interfaces", error))?;
    let names: BTreeMap<u32, LinkName> =
        links.iter().map(|link| (link.index, LinkName::foreign(link.name.clone()))).collect();
    for link in &links {
        take_link(&mut observed, link);
    }
    take_addresses(&mut observed, route, &links)?;
    take_routes(&mut observed, route, &names)?;
    take_entries(&mut observed, route, &names)?;
    take_pods(&mut observed, &links, desired);
    for path in SYSCTLS {
        if let Ok(value) = std::fs::read_to_string(Path::new("/proc/sys").join(path)) {
            observed.sysctls.insert((*path).to_owned(), value.trim().to_owned());
        }
    }
    let rules = rules()?;
    observed.table = read::parse(&rules);
    take_flows(&mut observed, netfilter, desired)?;
    let indexes = names.into_iter().map(|(index, name)| (name, index)).collect();
    Ok(Seen { observed, indexes, conditions: firewall::blocked(&rules, desired).into_iter().collect() })
}

/// All rules of the machine; only our own where nft has no JSON for somebody's.
fn rules() -> Result<Vec<Value>, ObserveError> {
    if let Some(rules) = nft::list(&["ruleset"]).ok().flatten().and_then(|text| read::items(&text)) {
        return Ok(rules);
    }
    let own = nft::list(&["table", "inet", NAME]).map_err(ObserveError::Table)?;
    Ok(own.and_then(|text| read::items(&text)).unwrap_or_default())
}

fn take_link(observed: &mut Observed, link: &LinkInfo) {
    let name = LinkName::foreign(link.name.clone());
    if !name.is_pod() && !name.is_overlay() {
        return;
    }
    if link.group != LINK_GROUP {
        observed.taken_names.insert(name);
        return;
    }
    let kind = match &link.vxlan {
        Some(vxlan) => {
            LinkKind::Vxlan { vni: vxlan.vni, local: vxlan.local, port: vxlan.port, learning: vxlan.learning }
        }
        None if link.veth => LinkKind::Veth,
        None => LinkKind::Other,
    };
    let mac = link.mac.unwrap_or(crate::net::Mac([0; 6]));
    observed.links.insert(name, Link { mac, mtu: link.mtu, up: link.up, kind });
}

fn take_addresses(observed: &mut Observed, route: &Routing, links: &[LinkInfo]) -> Result<(), ObserveError> {
    let addresses = addresses::list(route).map_err(|error| ObserveError::Netlink("addresses", error))?;
    for found in addresses {
        let Some(link) = links.iter().find(|link| link.index == found.index) else { continue };
        let name = LinkName::foreign(link.name.clone());
        let ours = observed.links.contains_key(&name) || found.label == LOOPBACK_LABEL;
        match found.address {
            IpAddr::V4(address) if ours => drop(observed.addresses.insert((name, address))),
            _ if ours => {}
            address => drop(observed.underlays.insert(address, Underlay { link: name, mtu: link.mtu })),
        }
    }
    Ok(())
}

fn take_routes(
    observed: &mut Observed,
    route: &Routing,
    names: &BTreeMap<u32, LinkName>,
) -> Result<(), ObserveError> {
    let routes = routes::list(route).map_err(|error| ObserveError::Netlink("routes", error))?;
    observed.routes.extend(routes.iter().map(|found| (found.to, read_route(found, names))));
    Ok(())
}

/// A route of ours whatever it looks like: what is odd about it makes it differ from every wanted one.
fn read_route(found: &RouteInfo, names: &BTreeMap<u32, LinkName>) -> Route {
    if found.kind == RouteType::Unreachable {
        return Route::Unreachable;
    }
    let link = found.link.and_then(|index| names.get(&index)).cloned();
    let link = link.unwrap_or_else(|| LinkName::foreign(""));
    let source = found.source.unwrap_or(Ipv4Addr::UNSPECIFIED);
    match found.via {
        Some(via) => Route::Overlay { link, via, source },
        None if link.is_pod() => Route::Pod { link, source },
        None => Route::Source { link, source },
    }
}

fn take_entries(
    observed: &mut Observed,
    route: &Routing,
    names: &BTreeMap<u32, LinkName>,
) -> Result<(), ObserveError> {
    let ours = |index: u32, observed: &Observed| {
        names.get(&index).filter(|name| observed.links.contains_key(*name)).cloned()
    };
    let neighbours = neighbours::list(route).map_err(|error| ObserveError::Netlink("neighbours", error))?;
    for entry in neighbours {
        if let Some(link) = ours(entry.link, observed) {
            observed.neighbours.insert((link, entry.address), entry.mac);
        }
    }
    let forwardings =
        neighbours::forwardings(route).map_err(|error| ObserveError::Netlink("forwarding entries", error))?;
    for entry in forwardings {
        if let Some(link) = ours(entry.link, observed) {
            observed.forwarding.insert((link, entry.mac), entry.address);
        }
    }
    Ok(())
}

/// A pod's end that is missing, wrong or unreachable is left out: the planner then attaches the pod again.
fn take_pods(observed: &mut Observed, links: &[LinkInfo], desired: &Desired) {
    for wanted in &desired.pods {
        let name = LinkName::of_pod(&wanted.uid.0);
        let Some(link) = links.iter().find(|link| link.name == name.as_str()) else { continue };
        let Some(index) = link.peer.filter(|_| observed.links.contains_key(&name)) else { continue };
        if let Ok(Some(mtu)) = pod::check(&wanted.netns, index, wanted.address) {
            let end = PodEnd { netns: wanted.netns.clone(), address: wanted.address, mtu };
            observed.pods.insert(name, end);
        }
    }
}

/// Only connections that a later endpoint could still take over: unanswered TCP, and UDP.
fn take_flows(observed: &mut Observed, netfilter: &Requester, desired: &Desired) -> Result<(), ObserveError> {
    let connections = conntrack::movable(netfilter, &[Protocol::Tcp, Protocol::Udp])
        .map_err(|error| ObserveError::Netlink("tracked connections", error))?;
    for found in connections {
        if let Some(frontend) = frontend_of(&found, desired) {
            observed.flows.insert(Flow { frontend, endpoint: found.endpoint });
        }
    }
    Ok(())
}

/// The service that a connection arrived at; `None` for translations that another program made.
pub fn frontend_of(found: &conntrack::Translated, desired: &Desired) -> Option<Frontend> {
    let (address, protocol, port) = (found.address, found.protocol, found.port);
    if desired.service_cidr.contains(address) {
        return Some(Frontend::Vip { address, protocol, port });
    }
    let to_pod = desired.networks.iter().any(|network| network.cidr.contains(found.endpoint.address));
    (to_pod && desired.node_port_addresses.contains(&address))
        .then_some(Frontend::NodePort { protocol, port })
}
