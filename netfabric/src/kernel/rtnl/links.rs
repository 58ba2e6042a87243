//! Interfaces: VXLAN devices and veths made, changed, removed and listed.
//!
//! Decides nothing but the order of attributes that the kernel wants.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{CREATE, ip, text};
use crate::kernel::netlink::{Attributes, Netlink, Reply, Request, attributes, u16_at, u32_at};
use crate::kernel::pod::INTERFACE;
use crate::net::{LINK_GROUP, LinkName, Mac, VXLAN_PORT};

const UP: u32 = libc::IFF_UP as u32;
const VETH_PEER: u16 = 1;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_DST_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;

/// An interface as the kernel lists it.
#[derive(Debug, Default, Clone)]
pub struct LinkInfo {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub group: u32,
    pub kind: String,
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

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Makes a VXLAN device, up; learning off, so that only entries of ours decide where frames go.
pub fn create_vxlan(
    netlink: &Netlink,
    link: &LinkName,
    vni: u32,
    local: IpAddr,
    mac: Mac,
    mtu: u32,
) -> io::Result<()> {
    let request = Request::new(libc::RTM_NEWLINK, CREATE, &link_header(0, UP, UP))
        .put_text(libc::IFLA_IFNAME, link.as_str())
        .put(libc::IFLA_ADDRESS, &mac.0)
        .put_u32(libc::IFLA_MTU, mtu)
        .put_u32(libc::IFLA_GROUP, LINK_GROUP)
        .nest(libc::IFLA_LINKINFO, &[], |info| {
            info.put_text(libc::IFLA_INFO_KIND, "vxlan").nest(libc::IFLA_INFO_DATA, &[], |data| {
                let data = data.put_u32(VXLAN_ID, vni);
                let data = match local {
                    IpAddr::V4(address) => data.put(VXLAN_LOCAL, &address.octets()),
                    IpAddr::V6(address) => data.put(VXLAN_LOCAL6, &address.octets()),
                };
                data.put(VXLAN_LEARNING, &[0]).put(VXLAN_DST_PORT, &VXLAN_PORT.to_be_bytes())
            })
        });
    netlink.change(request)
}

/// Makes a veth whose other end, `eth0`, is in another namespace.
pub fn create_veth(
    netlink: &Netlink,
    link: &LinkName,
    mtu: u32,
    inner: Mac,
    netns: BorrowedFd<'_>,
) -> io::Result<()> {
    let request = Request::new(libc::RTM_NEWLINK, CREATE, &link_header(0, UP, UP))
        .put_text(libc::IFLA_IFNAME, link.as_str())
        .put(libc::IFLA_ADDRESS, &Mac::GATEWAY.0)
        .put_u32(libc::IFLA_MTU, mtu)
        .put_u32(libc::IFLA_GROUP, LINK_GROUP)
        .nest(libc::IFLA_LINKINFO, &[], |info| {
            info.put_text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, &[], |data| {
                // Not up yet: the kernel refuses that of an end whose other end is not there (ENOTCONN).
                data.nest(VETH_PEER, &link_header(0, 0, 0), |peer| {
                    peer.put_text(libc::IFLA_IFNAME, INTERFACE)
                        .put(libc::IFLA_ADDRESS, &inner.0)
                        .put_u32(libc::IFLA_MTU, mtu)
                        .put_u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32)
                })
            })
        });
    netlink.change(request)
}

/// Sets MAC and MTU of an interface and brings it up.
pub fn repair_link(netlink: &Netlink, index: u32, mac: Option<Mac>, mtu: Option<u32>) -> io::Result<()> {
    let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index, UP, UP));
    if let Some(mac) = mac {
        request = request.put(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        request = request.put_u32(libc::IFLA_MTU, mtu);
    }
    netlink.change(request)
}

/// Removes an interface.
pub fn delete_link(netlink: &Netlink, link: &LinkName) -> io::Result<()> {
    let request = Request::new(libc::RTM_DELLINK, 0, &link_header(0, 0, 0));
    netlink.change(request.put_text(libc::IFLA_IFNAME, link.as_str()))
}

/// All interfaces.
pub fn list(netlink: &Netlink) -> io::Result<Vec<LinkInfo>> {
    let mut links = Vec::new();
    let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &link_header(0, 0, 0));
    netlink.dump(request, |reply| links.push(read_link(&reply)))?;
    Ok(links)
}

/// One interface by name, if it exists.
pub fn link_by_name(netlink: &Netlink, name: &str) -> io::Result<Option<LinkInfo>> {
    // A single get answers with one message and, because of the acknowledgement, an error code of zero.
    let mut found = None;
    let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &link_header(0, 0, 0));
    match netlink.dump(request.put_text(libc::IFLA_IFNAME, name), |reply| found = Some(read_link(&reply))) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// Reads a message about an interface.
pub fn read_link(reply: &Reply) -> LinkInfo {
    let mut link = LinkInfo {
        index: u32_at(&reply.body, 4).unwrap_or(0),
        up: u32_at(&reply.body, 8).unwrap_or(0) & UP != 0,
        ..LinkInfo::default()
    };
    for (kind, value) in reply.attributes(16) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or(0),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_GROUP => link.group = u32_at(value, 0).unwrap_or(0),
            libc::IFLA_LINK => link.peer = u32_at(value, 0),
            libc::IFLA_LINKINFO => read_kind(&mut link, attributes(value)),
            _ => {}
        }
    }
    link
}

fn read_kind(link: &mut LinkInfo, info: Attributes<'_>) {
    for (kind, value) in info {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = text(value),
            libc::IFLA_INFO_DATA if link.kind == "vxlan" => link.vxlan = Some(read_vxlan(attributes(value))),
            _ => {}
        }
    }
}

fn read_vxlan(data: Attributes<'_>) -> VxlanInfo {
    let mut vxlan = VxlanInfo::default();
    for (kind, value) in data {
        match kind {
            VXLAN_ID => vxlan.vni = u32_at(value, 0).unwrap_or(0),
            VXLAN_LOCAL | VXLAN_LOCAL6 => vxlan.local = ip(value),
            VXLAN_LEARNING => vxlan.learning = value.first() != Some(&0),
            VXLAN_DST_PORT => vxlan.port = u16_at(value, 0).map_or(0, u16::from_be),
            _ => {}
        }
    }
    vxlan
}
