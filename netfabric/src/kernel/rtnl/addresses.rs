//! Addresses of interfaces. Decides nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::{CREATE, ip, text};
use crate::kernel::netlink::{Netlink, Request, u32_at};

fn address_header(family: i32, length: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family as u8, length, 0, 0, a, b, c, d]
}

/// An address as the kernel lists it.
#[derive(Debug, Clone)]
pub struct AddressInfo {
    pub index: u32,
    pub address: IpAddr,
    pub label: String,
}

/// Adds or removes an address that stands for itself alone.
pub fn change_address(
    netlink: &Netlink,
    add: bool,
    index: u32,
    address: Ipv4Addr,
    label: Option<&str>,
) -> io::Result<()> {
    let (kind, flags) = if add { (libc::RTM_NEWADDR, CREATE) } else { (libc::RTM_DELADDR, 0) };
    let mut request = Request::new(kind, flags, &address_header(libc::AF_INET, 32, index))
        .put(libc::IFA_LOCAL, &address.octets())
        .put(libc::IFA_ADDRESS, &address.octets());
    if let Some(label) = label {
        request = request.put_text(libc::IFA_LABEL, label);
    }
    netlink.change(request)
}

/// All addresses.
pub fn list(netlink: &Netlink) -> io::Result<Vec<AddressInfo>> {
    let mut addresses = Vec::new();
    let request = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &address_header(0, 0, 0));
    netlink.dump(request, |reply| {
        let (mut local, mut label) = (None, String::new());
        for (kind, value) in reply.attributes(8) {
            match kind {
                libc::IFA_LOCAL => local = ip(value),
                libc::IFA_ADDRESS => local = local.or_else(|| ip(value)),
                libc::IFA_LABEL => label = text(value),
                _ => {}
            }
        }
        let index = u32_at(&reply.body, 4).unwrap_or(0);
        addresses.extend(local.map(|address| AddressInfo { index, address, label }));
    })?;
    Ok(addresses)
}
