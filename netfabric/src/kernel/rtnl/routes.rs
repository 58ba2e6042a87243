//! Routes of the main table that carry our protocol number. Decides nothing; must not list or change others.

use std::io;
use std::net::Ipv4Addr;

use super::{CREATE, REPLACE, ipv4};
use crate::kernel::netlink::{Netlink, Reply, Request, u32_at};
use crate::net::{Ipv4Net, ROUTE_PROTOCOL};

const ONLINK: u32 = 4; // RTNH_F_ONLINK

/// A route as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    pub to: Ipv4Net,
    pub kind: u8,
    pub link: Option<u32>,
    pub via: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
    pub onlink: bool,
}

impl RouteInfo {
    /// A route to what is directly behind an interface.
    pub fn direct(to: Ipv4Net, link: u32, source: Option<Ipv4Addr>) -> Self {
        Self { to, kind: libc::RTN_UNICAST, link: Some(link), via: None, source, onlink: false }
    }

    /// A route through a gateway that is taken at its word.
    pub fn through(to: Ipv4Net, link: u32, via: Ipv4Addr, source: Option<Ipv4Addr>) -> Self {
        Self { via: Some(via), onlink: true, ..Self::direct(to, link, source) }
    }

    /// A route to nowhere.
    pub const fn unreachable(to: Ipv4Net) -> Self {
        Self { to, kind: libc::RTN_UNREACHABLE, link: None, via: None, source: None, onlink: false }
    }

    fn request(&self, message: u16, flags: i32) -> Request {
        let scope = match (self.kind, self.via) {
            (libc::RTN_UNICAST, None) => libc::RT_SCOPE_LINK,
            _ => libc::RT_SCOPE_UNIVERSE,
        };
        let mut header = [
            libc::AF_INET as u8,
            self.to.length(),
            0,
            0,
            libc::RT_TABLE_MAIN,
            ROUTE_PROTOCOL,
            scope,
            self.kind,
            0,
            0,
            0,
            0,
        ];
        if self.onlink {
            header[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
        }
        let mut request =
            Request::new(message, flags, &header).put(libc::RTA_DST, &self.to.address().octets());
        if let Some(link) = self.link {
            request = request.put_u32(libc::RTA_OIF, link);
        }
        for (kind, address) in [(libc::RTA_GATEWAY, self.via), (libc::RTA_PREFSRC, self.source)] {
            if let Some(address) = address {
                request = request.put(kind, &address.octets());
            }
        }
        request
    }
}

/// Adds a route; with `replace` in the place of one to the same prefix.
pub fn put_route(netlink: &Netlink, route: &RouteInfo, replace: bool) -> io::Result<()> {
    netlink.change(route.request(libc::RTM_NEWROUTE, if replace { REPLACE } else { CREATE }))
}

/// Removes a route, only if it is ours in every detail.
pub fn delete_route(netlink: &Netlink, route: &RouteInfo) -> io::Result<()> {
    netlink.change(route.request(libc::RTM_DELROUTE, 0))
}

/// The routes of the main table that carry our protocol number.
pub fn list(netlink: &Netlink) -> io::Result<Vec<RouteInfo>> {
    let mut routes = Vec::new();
    let header = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header);
    netlink.dump(request, |reply| routes.extend(read_route(&reply)))?;
    Ok(routes)
}

/// Reads a route of ours; `None` for another's.
pub fn read_route(reply: &Reply) -> Option<RouteInfo> {
    let [family, length, _, _, table, protocol, _, kind] = *reply.body.first_chunk::<8>()?;
    if family != libc::AF_INET as u8 || table != libc::RT_TABLE_MAIN || protocol != ROUTE_PROTOCOL {
        return None;
    }
    let flags = u32_at(&reply.body, 8)?;
    let mut to = Ipv4Addr::UNSPECIFIED;
    let (mut link, mut via, mut source) = (None, None, None);
    for (attribute, value) in reply.attributes(12) {
        match attribute {
            libc::RTA_DST => to = ipv4(value)?,
            libc::RTA_OIF => link = u32_at(value, 0),
            libc::RTA_GATEWAY => via = ipv4(value),
            libc::RTA_PREFSRC => source = ipv4(value),
            _ => {}
        }
    }
    let onlink = flags & ONLINK != 0;
    Some(RouteInfo { to: Ipv4Net::new(to, length).ok()?, kind, link, via, source, onlink })
}
