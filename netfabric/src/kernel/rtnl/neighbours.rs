//! Permanent neighbour entries, and where VXLAN devices send frames. Decides nothing.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::Routing;
use crate::net::Mac;

/// A neighbour or forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourInfo {
    pub link: u32,
    pub address: Ipv4Addr,
    pub mac: Mac,
}

/// Puts a permanent neighbour entry.
pub fn put_neighbour(routing: &Routing, entry: NeighbourInfo) -> io::Result<()> {
    let request = routing.handle.neighbours().add(entry.link, entry.address.into());
    routing.ask(request.link_layer_address(&entry.mac.0).replace().execute())
}

/// Removes a neighbour entry.
pub fn delete_neighbour(routing: &Routing, link: u32, address: Ipv4Addr) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    routing.ask(routing.handle.neighbours().del(message).execute())
}

/// Says where frames for a MAC go: to this address, underneath a VXLAN device.
pub fn put_forwarding(routing: &Routing, entry: NeighbourInfo) -> io::Result<()> {
    let request = routing.handle.neighbours().add_bridge(entry.link, &entry.mac.0);
    let request = request.destination(entry.address.into()).flags(NeighbourFlags::Own);
    routing.ask(request.replace().execute())
}

/// Takes it back.
pub fn delete_forwarding(routing: &Routing, entry: NeighbourInfo) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(entry.address.into()));
    routing.ask(routing.handle.neighbours().del(message).execute())
}

/// Permanent IPv4 neighbour entries.
pub fn list(routing: &Routing) -> io::Result<Vec<NeighbourInfo>> {
    permanent_entries(routing, AddressFamily::Inet)
}

/// Permanent forwarding entries of VXLAN devices.
pub fn forwardings(routing: &Routing) -> io::Result<Vec<NeighbourInfo>> {
    permanent_entries(routing, AddressFamily::Bridge)
}

fn permanent_entries(routing: &Routing, family: AddressFamily) -> io::Result<Vec<NeighbourInfo>> {
    let request = routing.handle.neighbours().get().set_address_family(family);
    let messages = routing.collect(request.execute())?;
    let permanent = |message: &&NeighbourMessage| is_permanent(message.header.state);
    Ok(messages.iter().filter(permanent).filter_map(read_neighbour).collect())
}

/// The crate has no name for a combination of states.
fn is_permanent(state: NeighbourState) -> bool {
    u16::from(state) & libc::NUD_PERMANENT != 0
}

fn read_neighbour(message: &NeighbourMessage) -> Option<NeighbourInfo> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = ipv4(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(NeighbourInfo { link: message.header.ifindex, address: address?, mac: mac? })
}

/// A forwarding entry's address comes as bytes: its family is that of the bridge.
fn ipv4(address: &NeighbourAddress) -> Option<Ipv4Addr> {
    match address {
        NeighbourAddress::Inet(address) => Some(*address),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from),
        _ => None,
    }
}
