//! Interfaces: VXLAN devices and veths made, changed, removed and listed. Decides nothing.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo as Info, LinkMessage,
};
use rtnetlink::{Error, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::Routing;
use crate::kernel::pod::INTERFACE;
use crate::net::{LINK_GROUP, LinkName, Mac, VXLAN_PORT};

/// An interface as the kernel lists it.
#[derive(Debug, Default, Clone)]
pub struct LinkInfo {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub group: u32,
    pub veth: bool,
    pub peer: Option<u32>,
    pub vxlan: Option<VxlanInfo>,
}

/// What a VXLAN device was made with.
#[derive(Debug, Default, Clone)]
pub struct VxlanInfo {
    pub vni: u32,
    pub local: Option<IpAddr>,
    pub port: u16,
    pub learning: bool,
}

/// Makes a VXLAN device, up; learning off, so that only entries of ours decide where frames go.
pub fn create_vxlan(
    routing: &Routing,
    link: &LinkName,
    vni: u32,
    local: IpAddr,
    mac: Mac,
    mtu: u32,
) -> io::Result<()> {
    let device = LinkVxlan::new(link.as_str(), vni).up().address(mac.0.to_vec()).mtu(mtu);
    let device = match local {
        IpAddr::V4(address) => device.local(address),
        IpAddr::V6(address) => device.local6(address),
    };
    let device = device.link_group(LINK_GROUP).learning(false).port(VXLAN_PORT);
    routing.ask(routing.handle.link().add(device.build()).execute())
}

/// Makes an interface of any kind, for a look at what the kernel says to one that it does not know.
#[cfg(test)]
pub fn create(routing: &Routing, name: &str, kind: &str) -> io::Result<()> {
    let device = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Other(kind.to_owned()));
    routing.ask(routing.handle.link().add(device.name(name).build()).execute())
}

/// Makes a veth whose other end, `eth0`, is in another namespace.
pub fn create_veth(
    routing: &Routing,
    link: &LinkName,
    mtu: u32,
    inner: Mac,
    netns: BorrowedFd<'_>,
) -> io::Result<()> {
    // Not up yet: the kernel refuses that of an end whose other end is not there (ENOTCONN).
    let peer = LinkUnspec::new_with_name(INTERFACE).address(inner.0.to_vec()).mtu(mtu);
    let peer = InfoData::Veth(InfoVeth::Peer(peer.setns_by_fd(netns.as_raw_fd()).build()));
    let device = LinkMessageBuilder::<LinkVeth>::new(link.as_str(), INTERFACE).set_info_data(peer);
    let device = device.up().address(Mac::GATEWAY.0.to_vec()).mtu(mtu).link_group(LINK_GROUP);
    routing.ask(routing.handle.link().add(device.build()).execute())
}

/// Sets MAC and MTU of an interface and brings it up.
pub fn repair_link(routing: &Routing, index: u32, mac: Option<Mac>, mtu: Option<u32>) -> io::Result<()> {
    let mut changes = LinkUnspec::new_with_index(index).up();
    if let Some(mac) = mac {
        changes = changes.address(mac.0.to_vec());
    }
    if let Some(mtu) = mtu {
        changes = changes.mtu(mtu);
    }
    routing.ask(routing.handle.link().set(changes.build()).execute())
}

/// Removes an interface.
pub fn delete_link(routing: &Routing, link: &LinkName) -> io::Result<()> {
    let which = LinkUnspec::new_with_name(link.as_str()).build();
    routing.ask(routing.handle.link().del_with_message(which).execute())
}

/// All interfaces.
pub fn list(routing: &Routing) -> io::Result<Vec<LinkInfo>> {
    let messages = routing.collect(routing.handle.link().get().execute())?;
    Ok(messages.iter().map(read_link).collect())
}

/// One interface by name, if it exists.
pub fn link_by_name(routing: &Routing, name: &str) -> io::Result<Option<LinkInfo>> {
    match routing.ask(get(routing, name)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        result => result,
    }
}

/// The crate's own request asks for no acknowledgement, so an answer that it cannot decode would never end it.
async fn get(routing: &Routing, name: &str) -> Result<Option<LinkInfo>, Error> {
    let which = LinkUnspec::new_with_name(name).build();
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(which));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut answers = routing.handle.clone().request(request)?;
    let mut found = None;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                found = Some(read_link(&link))
            }
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    Ok(found)
}

/// Reads a message about an interface.
pub fn read_link(message: &LinkMessage) -> LinkInfo {
    let mut link = LinkInfo {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..LinkInfo::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => read_kind(&mut link, infos),
            _ => {}
        }
    }
    link
}

fn read_kind(link: &mut LinkInfo, infos: &[Info]) {
    for info in infos {
        match info {
            Info::Kind(kind) => link.veth = *kind == InfoKind::Veth,
            Info::Data(InfoData::Vxlan(data)) => link.vxlan = Some(read_vxlan(data)),
            _ => {}
        }
    }
}

fn read_vxlan(data: &[InfoVxlan]) -> VxlanInfo {
    let mut vxlan = VxlanInfo::default();
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Port(port) => vxlan.port = *port,
            _ => {}
        }
    }
    vxlan
}
