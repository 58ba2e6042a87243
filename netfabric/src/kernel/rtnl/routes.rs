//! Routes of the main table that carry our protocol number. Decides nothing; must not list or change others.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;

use super::Routing;
use crate::net::{Ipv4Net, ROUTE_PROTOCOL};

/// A route as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    pub to: Ipv4Net,
    pub kind: RouteType,
    pub link: Option<u32>,
    pub via: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
    pub onlink: bool,
}

impl RouteInfo {
    /// A route to what is directly behind an interface.
    pub fn direct(to: Ipv4Net, link: u32, source: Option<Ipv4Addr>) -> Self {
        Self { to, kind: RouteType::Unicast, link: Some(link), via: None, source, onlink: false }
    }

    /// A route through a gateway that is taken at its word.
    pub fn through(to: Ipv4Net, link: u32, via: Ipv4Addr, source: Option<Ipv4Addr>) -> Self {
        Self { via: Some(via), onlink: true, ..Self::direct(to, link, source) }
    }

    /// A route to nowhere.
    pub const fn unreachable(to: Ipv4Net) -> Self {
        Self { to, kind: RouteType::Unreachable, link: None, via: None, source: None, onlink: false }
    }

    fn message(&self) -> RouteMessage {
        let scope = match (self.kind, self.via) {
            (RouteType::Unicast, None) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.to.address(), self.to.length())
            .protocol(RouteProtocol::from(ROUTE_PROTOCOL))
            .scope(scope)
            .kind(self.kind);
        if let Some(link) = self.link {
            route = route.output_interface(link);
        }
        if let Some(via) = self.via {
            route = route.gateway(via);
        }
        if let Some(source) = self.source {
            route = route.pref_source(source);
        }
        if self.onlink { route.onlink().build() } else { route.build() }
    }
}

/// Adds a route; with `replace` in the place of one to the same prefix.
pub fn put_route(routing: &Routing, route: &RouteInfo, replace: bool) -> io::Result<()> {
    let request = routing.handle.route().add(route.message());
    routing.ask(if replace { request.replace() } else { request }.execute())
}

/// Removes a route, only if it is ours in every detail.
pub fn delete_route(routing: &Routing, route: &RouteInfo) -> io::Result<()> {
    routing.ask(routing.handle.route().del(route.message()).execute())
}

/// The routes of the main table that carry our protocol number.
pub fn list(routing: &Routing) -> io::Result<Vec<RouteInfo>> {
    let family = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let messages = routing.collect(routing.handle.route().get(family).execute())?;
    Ok(messages.iter().filter_map(read_route).collect())
}

/// Reads a route of ours; `None` for another's.
pub fn read_route(message: &RouteMessage) -> Option<RouteInfo> {
    let header = &message.header;
    let main = header.address_family == AddressFamily::Inet && header.table == RouteHeader::RT_TABLE_MAIN;
    if !main || u8::from(header.protocol) != ROUTE_PROTOCOL {
        return None;
    }
    let mut to = Ipv4Addr::UNSPECIFIED;
    let (mut link, mut via, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            _ => {}
        }
    }
    let to = Ipv4Net::new(to, header.destination_prefix_length).ok()?;
    let onlink = header.flags.contains(RouteFlags::Onlink);
    Some(RouteInfo { to, kind: header.kind, link, via, source, onlink })
}
