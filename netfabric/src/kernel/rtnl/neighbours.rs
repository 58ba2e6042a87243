//! Permanent neighbour entries, and where VXLAN devices send frames. Decides nothing.

use std::io;
use std::net::Ipv4Addr;

use super::{REPLACE, ipv4};
use crate::kernel::netlink::{Netlink, Reply, Request, u16_at, u32_at};
use crate::net::Mac;

const PERMANENT: u16 = libc::NUD_PERMANENT;

/// A neighbour or forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourInfo {
    pub link: u32,
    pub address: Ipv4Addr,
    pub mac: Mac,
}

fn neighbour_header(family: i32, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// Puts a permanent neighbour entry.
pub fn put_neighbour(netlink: &Netlink, entry: NeighbourInfo) -> io::Result<()> {
    let header = neighbour_header(libc::AF_INET, entry.link, PERMANENT, 0);
    let request = Request::new(libc::RTM_NEWNEIGH, REPLACE, &header);
    netlink.change(request.put(libc::NDA_DST, &entry.address.octets()).put(libc::NDA_LLADDR, &entry.mac.0))
}

/// Removes a neighbour entry.
pub fn delete_neighbour(netlink: &Netlink, link: u32, address: Ipv4Addr) -> io::Result<()> {
    let request = Request::new(libc::RTM_DELNEIGH, 0, &neighbour_header(libc::AF_INET, link, 0, 0));
    netlink.change(request.put(libc::NDA_DST, &address.octets()))
}

/// Says where frames for a MAC go: to this address, underneath a VXLAN device.
pub fn put_forwarding(netlink: &Netlink, entry: NeighbourInfo) -> io::Result<()> {
    forwarding(netlink, libc::RTM_NEWNEIGH, REPLACE, entry)
}

/// Takes it back.
pub fn delete_forwarding(netlink: &Netlink, entry: NeighbourInfo) -> io::Result<()> {
    forwarding(netlink, libc::RTM_DELNEIGH, 0, entry)
}

fn forwarding(netlink: &Netlink, message: u16, flags: i32, entry: NeighbourInfo) -> io::Result<()> {
    let header = neighbour_header(libc::AF_BRIDGE, entry.link, PERMANENT, libc::NTF_SELF);
    let request = Request::new(message, flags, &header);
    netlink.change(request.put(libc::NDA_LLADDR, &entry.mac.0).put(libc::NDA_DST, &entry.address.octets()))
}

/// Permanent IPv4 neighbour entries.
pub fn list(netlink: &Netlink) -> io::Result<Vec<NeighbourInfo>> {
    permanent_entries(netlink, libc::AF_INET)
}

/// Permanent forwarding entries of VXLAN devices.
pub fn forwardings(netlink: &Netlink) -> io::Result<Vec<NeighbourInfo>> {
    permanent_entries(netlink, libc::AF_BRIDGE)
}

fn permanent_entries(netlink: &Netlink, family: i32) -> io::Result<Vec<NeighbourInfo>> {
    let mut entries = Vec::new();
    let request = Request::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &neighbour_header(family, 0, 0, 0));
    netlink.dump(request, |reply| {
        if u16_at(&reply.body, 8).is_some_and(|state| state & PERMANENT != 0) {
            entries.extend(read_neighbour(&reply));
        }
    })?;
    Ok(entries)
}

fn read_neighbour(reply: &Reply) -> Option<NeighbourInfo> {
    let (mut address, mut mac) = (None, None);
    for (kind, value) in reply.attributes(12) {
        match kind {
            libc::NDA_DST => address = ipv4(value),
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(NeighbourInfo { link: u32_at(&reply.body, 4)?, address: address?, mac: mac? })
}
