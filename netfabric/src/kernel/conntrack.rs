//! Tracked connections by ctnetlink: listing those that were translated, deleting single ones.
//!
//! Decides nothing; the caller says which.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_DUMP, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoTuple, Protocol as Number,
    Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::socket::{Raw, Requester};
use crate::desired::{Endpoint, Protocol};

// What the crate has no names for.
const STATUS_MASK: u16 = 26; // CTA_STATUS_MASK
const FILTER: u16 = 25; // CTA_FILTER
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const FILTER_ORIG_FLAGS: u16 = 1; // CTA_FILTER_ORIG_FLAGS
const FILTER_BY_PROTO: u32 = 1 << 3; // CTA_FILTER_F_CTA_PROTO_NUM

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
    original: Vec<Tuple>,
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    protocol: Option<Number>,
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
pub fn translated(netfilter: &Requester, which: Which) -> io::Result<Vec<Translated>> {
    let unanswered = matches!(which, Which::Unanswered);
    let mask = if unanswered { Status::DstNat | Status::SeenReply } else { Status::DstNat };
    let mut attributes = vec![
        plain(&ConntrackAttribute::CtaStatus(Status::DstNat)),
        DefaultNla::new(STATUS_MASK, mask.bits().to_be_bytes().to_vec()),
    ];
    if matches!(which, Which::Udp) {
        let udp = Tuple::Proto(vec![ProtoTuple::Protocol(Number::Udp)]);
        let flags = DefaultNla::new(FILTER_ORIG_FLAGS, FILTER_BY_PROTO.to_ne_bytes().to_vec());
        let mut filter = vec![0; flags.buffer_len()];
        flags.emit(&mut filter);
        attributes.push(plain(&ConntrackAttribute::CtaTupleOrig(vec![udp])));
        attributes.push(DefaultNla::new(FILTER | NESTED, filter));
    }
    let get = ConntrackMessage::Other { message_type: ConntrackMessageType::Get.into(), attributes };
    let mut found = Vec::new();
    netfilter.exchange(request(get), NLM_F_DUMP, |answer| found.extend(read(answer)))?;
    Ok(found)
}

/// The crate's own attributes lose the flag of a nested one that it has no name for, which the kernel refuses; plain
/// ones keep it.
fn plain(attribute: &ConntrackAttribute) -> DefaultNla {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    let nested = if attribute.is_nested() { NESTED } else { 0 };
    DefaultNla::new(attribute.kind() | nested, value)
}

fn request(message: ConntrackMessage) -> NetlinkMessage<NetfilterMessage> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    NetlinkMessage::from(NetfilterMessage::new(header, message))
}

/// Those that a later endpoint could take over: UDP, and TCP that nobody has answered. Each protocol that is not asked
/// for saves a walk over the kernel's whole table (9 ms with 262,144 buckets, however few are in use).
pub fn movable(netfilter: &Requester, protocols: &[Protocol]) -> io::Result<Vec<Translated>> {
    let mut found = Vec::new();
    if protocols.contains(&Protocol::Tcp) {
        let unanswered = translated(netfilter, Which::Unanswered)?.into_iter();
        found.extend(unanswered.filter(|one| one.protocol == Protocol::Tcp && !one.answered));
    }
    if protocols.contains(&Protocol::Udp) {
        let all = translated(netfilter, Which::Udp)?.into_iter();
        found.extend(all.filter(|one| one.protocol == Protocol::Udp));
    }
    Ok(found)
}

/// Deletes a connection; one that has ended meanwhile is no error.
pub fn delete(netfilter: &Requester, connection: &Translated) -> io::Result<()> {
    let which = vec![ConntrackAttribute::CtaTupleOrig(connection.original.clone())];
    match netfilter.change(request(ConntrackMessage::Delete(which))) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// `None` also for what the crate cannot decode: a connection that is not understood is left alone.
fn read(answer: Raw<'_>) -> Option<Translated> {
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(answer.into_inner()).ok()?;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let (mut original, mut answer, mut status) = (Vec::new(), Vec::new(), Status::empty());
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => original = tuples,
            ConntrackAttribute::CtaTupleReply(tuples) => answer = tuples,
            ConntrackAttribute::CtaStatus(flags) => status = flags,
            _ => {}
        }
    }
    if !status.contains(Status::DstNat) {
        return None;
    }
    let (first, back) = (direction(&original), direction(&answer));
    let protocol = match first.protocol? {
        Number::Tcp => Protocol::Tcp,
        Number::Udp => Protocol::Udp,
        _ => return None,
    };
    Some(Translated {
        protocol,
        address: first.destination?,
        port: first.destination_port?,
        endpoint: Endpoint { address: back.source?, port: back.source_port? },
        answered: status.contains(Status::SeenReply),
        original,
    })
}

fn direction(tuples: &[Tuple]) -> Direction {
    let mut direction = Direction::default();
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => parts.iter().for_each(|part| take_address(&mut direction, part)),
            Tuple::Proto(parts) => parts.iter().for_each(|part| take_protocol(&mut direction, part)),
            _ => {}
        }
    }
    direction
}

fn take_address(direction: &mut Direction, part: &IPTuple) {
    match part {
        IPTuple::SourceAddress(IpAddr::V4(address)) => direction.source = Some(*address),
        IPTuple::DestinationAddress(IpAddr::V4(address)) => direction.destination = Some(*address),
        _ => {}
    }
}

fn take_protocol(direction: &mut Direction, part: &ProtoTuple) {
    match part {
        ProtoTuple::Protocol(number) => direction.protocol = Some(*number),
        ProtoTuple::SourcePort(port) => direction.source_port = Some(*port),
        ProtoTuple::DestinationPort(port) => direction.destination_port = Some(*port),
        _ => {}
    }
}
