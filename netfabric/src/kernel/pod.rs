//! The end of a veth that is inside a pod's namespace.
//!
//! Sets it up and checks it; the rest of the namespace is the pod's. Decides nothing.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use super::inside;
use super::rtnl::neighbours::{self, NeighbourInfo};
use super::rtnl::routes::{self, RouteInfo};
use super::rtnl::{Routing, addresses, links};
use crate::net::{Ipv4Net, LinkName, Mac, POD_GATEWAY};

/// What every pod calls its interface.
pub const INTERFACE: &str = "eth0";
const DEFAULT: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Makes the veth and sets up the inner end. What is half done goes away again.
pub fn attach(
    routing: &Routing,
    link: &LinkName,
    netns: &Path,
    address: Ipv4Addr,
    mtu: u32,
) -> io::Result<()> {
    let namespace = File::open(netns)?;
    links::create_veth(routing, link, mtu, Mac::of_pod(address), namespace.as_fd())?;
    let configured = inside(netns, move || configure(&Routing::open()?, address));
    configured.inspect_err(|_| drop(links::delete_link(routing, link)))
}

fn configure(inner: &Routing, address: Ipv4Addr) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "eth0 vanished from the pod's namespace");
    let link = links::link_by_name(inner, INTERFACE)?.ok_or_else(missing)?.index;
    if let Some(loopback) = links::link_by_name(inner, "lo")? {
        links::repair_link(inner, loopback.index, None, None)?;
    }
    links::repair_link(inner, link, None, None)?;
    addresses::add(inner, link, address, None)?;
    neighbours::put_neighbour(inner, gateway(link))?;
    for route in routes(link, address) {
        routes::put_route(inner, &route, false)?;
    }
    Ok(())
}

fn gateway(link: u32) -> NeighbourInfo {
    NeighbourInfo { link, address: POD_GATEWAY, mac: Mac::GATEWAY }
}

fn routes(link: u32, address: Ipv4Addr) -> [RouteInfo; 2] {
    let everywhere = Ipv4Net::new(DEFAULT, 0).unwrap_or(Ipv4Net::host(DEFAULT));
    [
        RouteInfo::direct(Ipv4Net::host(POD_GATEWAY), link, Some(address)),
        RouteInfo::through(everywhere, link, POD_GATEWAY, Some(address)),
    ]
}

/// Whether the inner end of a veth is in this namespace and set up for this address; gives its MTU.
pub fn check(netns: &Path, index: u32, address: Ipv4Addr) -> io::Result<Option<u32>> {
    inside(netns, move || {
        let inner = Routing::open()?;
        let Some(link) = links::link_by_name(&inner, INTERFACE)? else { return Ok(None) };
        let right_link = link.index == index && link.up && link.mac == Some(Mac::of_pod(address));
        let has_address =
            addresses::list(&inner)?.iter().any(|on| on.index == index && on.address == address);
        let has_gateway = neighbours::list(&inner)?.contains(&gateway(index));
        let present = routes::list(&inner)?;
        let has_routes = routes(index, address).iter().all(|route| present.contains(route));
        Ok((right_link && has_address && has_gateway && has_routes).then_some(link.mtu))
    })
}
