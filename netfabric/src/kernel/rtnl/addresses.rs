//! Addresses of interfaces. Decides nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::Routing;

/// An address as the kernel lists it.
#[derive(Debug, Clone)]
pub struct AddressInfo {
    pub index: u32,
    pub address: IpAddr,
    pub label: String,
}

/// Adds an address that stands for itself alone.
pub fn add(routing: &Routing, index: u32, address: Ipv4Addr, label: Option<&str>) -> io::Result<()> {
    let mut request = routing.handle.address().add(index, address.into(), 32);
    request.message_mut().attributes.extend(label.map(|label| AddressAttribute::Label(label.to_owned())));
    routing.ask(request.execute())
}

/// Removes it.
pub fn delete(routing: &Routing, index: u32, address: Ipv4Addr, label: Option<&str>) -> io::Result<()> {
    let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, 32).build();
    message.attributes.extend(label.map(|label| AddressAttribute::Label(label.to_owned())));
    routing.ask(routing.handle.address().del(message).execute())
}

/// All addresses.
pub fn list(routing: &Routing) -> io::Result<Vec<AddressInfo>> {
    let messages = routing.collect(routing.handle.address().get().execute())?;
    Ok(messages.into_iter().filter_map(read).collect())
}

fn read(message: AddressMessage) -> Option<AddressInfo> {
    let (mut local, mut other, mut label) = (None, None, String::new());
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(address),
            AddressAttribute::Address(address) => other = Some(address),
            AddressAttribute::Label(text) => label = text,
            _ => {}
        }
    }
    Some(AddressInfo { index: message.header.index, address: local.or(other)?, label })
}
