//! Tracked connections by ctnetlink: listing those that were translated, deleting single ones.
//!
//! Decides nothing; the caller says which.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{Netlink, Reply, Request, attributes};
use crate::desired::{Endpoint, Protocol};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_BY_PROTO: u32 = 1 << 3; // CTA_FILTER_F_CTA_PROTO_NUM
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const SEEN_REPLY: u32 = 1 << 1;
const DST_NAT: u32 = 1 << 5;
const IPV4_HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

/// A connection whose destination was translated.
#[derive(Debug, Clone)]
pub struct Translated {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where its first packet was sent.
    pub address: Ipv4Addr,
    /// To which port.
    pub port: u16,
    /// Where it went instead.
    pub endpoint: Endpoint,
    /// Whether anything came back.
    pub answered: bool,
    original: Vec<u8>,
}

#[derive(Default)]
struct Tuple {
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    protocol: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
}

/// Which translated connections to list. The kernel sorts out the others: of a hundred thousand connections that have
/// ended or go on undisturbed none is copied.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// Nothing came back yet.
    Unanswered,
    /// UDP, answered or not.
    Udp,
    /// All of them.
    All,
}

/// Translated TCP and UDP connections over IPv4. (A kernel before 5.18 ignores the status and lists more.)
pub fn translated(netlink: &Netlink, which: Which) -> io::Result<Vec<Translated>> {
    let mask = if matches!(which, Which::Unanswered) { DST_NAT | SEEN_REPLY } else { DST_NAT };
    let mut request = Request::new(GET, libc::NLM_F_DUMP, &IPV4_HEADER)
        .put(STATUS, &DST_NAT.to_be_bytes())
        .put(STATUS_MASK, &mask.to_be_bytes());
    if matches!(which, Which::Udp) {
        request = request
            .nest(TUPLE_ORIG | NESTED, &[], |tuple| {
                tuple.nest(TUPLE_PROTO | NESTED, &[], |proto| proto.put(PROTO_NUM, &[Protocol::Udp.number()]))
            })
            .nest(FILTER | NESTED, &[], |filter| filter.put_u32(FILTER_ORIG_FLAGS, FILTER_BY_PROTO));
    }
    let mut found = Vec::new();
    netlink.dump(request, |reply| found.extend(read(&reply)))?;
    Ok(found)
}

/// Those that a later endpoint could take over: UDP, and TCP that nobody has answered. Each protocol that is not asked
/// for saves a walk over the kernel's whole table (9 ms with 262,144 buckets, however few are in use).
pub fn movable(netlink: &Netlink, protocols: &[Protocol]) -> io::Result<Vec<Translated>> {
    let mut found = Vec::new();
    if protocols.contains(&Protocol::Tcp) {
        let unanswered = translated(netlink, Which::Unanswered)?.into_iter();
        found.extend(unanswered.filter(|one| one.protocol == Protocol::Tcp && !one.answered));
    }
    if protocols.contains(&Protocol::Udp) {
        let all = translated(netlink, Which::Udp)?.into_iter();
        found.extend(all.filter(|one| one.protocol == Protocol::Udp));
    }
    Ok(found)
}

/// Deletes a connection; one that has ended meanwhile is no error.
pub fn delete(netlink: &Netlink, connection: &Translated) -> io::Result<()> {
    let request = Request::new(DELETE, 0, &IPV4_HEADER);
    match netlink.change(request.put(TUPLE_ORIG | NESTED, &connection.original)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn read(reply: &Reply) -> Option<Translated> {
    let (mut original, mut answer, mut status) = (&[][..], &[][..], 0);
    for (kind, value) in reply.attributes(IPV4_HEADER.len()) {
        match kind {
            TUPLE_ORIG => original = value,
            TUPLE_REPLY => answer = value,
            STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    if status & DST_NAT == 0 {
        return None;
    }
    let (first, back) = (tuple(original)?, tuple(answer)?);
    let protocol = match first.protocol? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(Translated {
        protocol,
        address: first.destination?,
        port: first.destination_port?,
        endpoint: Endpoint { address: back.source?, port: back.source_port? },
        answered: status & SEEN_REPLY != 0,
        original: original.to_vec(),
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let mut tuple = Tuple::default();
    for (outer, value) in attributes(bytes) {
        for (kind, value) in attributes(value) {
            match (outer, kind) {
                (TUPLE_IP, IP_V4_SRC) => tuple.source = address(value),
                (TUPLE_IP, IP_V4_DST) => tuple.destination = address(value),
                (TUPLE_PROTO, PROTO_NUM) => tuple.protocol = value.first().copied(),
                (TUPLE_PROTO, PROTO_SRC_PORT) => tuple.source_port = port(value),
                (TUPLE_PROTO, PROTO_DST_PORT) => tuple.destination_port = port(value),
                _ => {}
            }
        }
    }
    tuple.source.is_some().then_some(tuple)
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

fn port(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}
