//! Netlink messages and a blocking socket for them: just what routing and connection tracking need.
//!
//! Decides nothing. Unknown attributes are skipped, so a newer kernel cannot make a dump unreadable (the general
//! crates fail a whole dump on one attribute of unexpected size).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

const HEADER: usize = 16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
const BUFFER: usize = 256 * 1024;

/// A netlink message under construction.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of this type and flags, with the protocol's own fixed header.
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Appends an attribute.
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a number in the machine's byte order.
    pub fn put_u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Appends a text with the terminating zero that the kernel wants.
    pub fn put_text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Appends an attribute that holds attributes (after an optional fixed header).
    pub fn nest(mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self = self.put(kind, fixed);
        self = fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32, acknowledge: bool) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        if acknowledge {
            self.bytes[6] |= libc::NLM_F_ACK as u8;
        }
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message from the kernel.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its type.
    pub kind: u16,
    /// What follows the netlink header.
    pub body: Vec<u8>,
}

impl Reply {
    /// The attributes behind a fixed header of this length.
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        attributes(self.body.get(fixed..).unwrap_or_default())
    }
}

/// The attributes in `bytes`; what is cut off at the end is left out.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

/// Iterates over attributes: type without its flag bits, and value.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & 0x3fff;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A number at an offset, in the machine's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A number at an offset, in the machine's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A blocking netlink socket; it belongs to the network namespace of the thread that opened it, for good.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl Netlink {
    /// Opens a socket for routing.
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// Opens a socket for netfilter.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// Opens a socket that never blocks and hears these multicast groups (a mask).
    pub fn listening(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        Self::open(protocol, groups, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
    }

    fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // Dumps of large tables outrun the default buffer.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &(4 << 20));
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket, sequence: Cell::new(1) })
    }

    /// Sends a request and waits for the kernel's yes or no.
    pub fn change(&self, request: Request) -> io::Result<()> {
        self.exchange(request, true, &mut |_| ())
    }

    /// Sends a dump request and hands over every answer.
    pub fn dump(&self, request: Request, mut take: impl FnMut(Reply)) -> io::Result<()> {
        self.exchange(request, false, &mut take)
    }

    fn exchange(&self, request: Request, acknowledge: bool, take: &mut dyn FnMut(Reply)) -> io::Result<()> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        send(self.socket.as_raw_fd(), &request.finish(sequence, acknowledge), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (answered, reply) in messages(buffer.get(..length).unwrap_or_default()) {
                if answered != sequence {
                    continue;
                }
                match reply.kind {
                    ERROR => return verdict(&reply),
                    DONE => return Ok(()),
                    _ => take(reply),
                }
            }
        }
    }

    /// Everything that has arrived so far at a listening socket. `ENOBUFS` means that some was lost.
    pub fn drain(&self, mut take: impl FnMut(Reply)) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    messages(buffer.get(..length).unwrap_or_default()).for_each(|(_, reply)| take(reply));
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn verdict(reply: &Reply) -> io::Result<()> {
    match u32_at(&reply.body, 0).map(|code| code as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "cut off netlink acknowledgement")),
    }
}

/// The messages in a datagram, each with the sequence number that it answers.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u32, Reply)> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let body = rest.get(HEADER..length)?.to_vec();
        let reply = Reply { kind: u16_at(rest, 4)?, body };
        let sequence = u32_at(rest, 8)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, reply))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_are_padded_and_counted() {
        let request = Request::new(16, 0, &[]).nest(18, &[], |request| request.put_text(1, "veth"));
        let bytes = request.finish(7, true);
        let (kind, outer) = attributes(&bytes[HEADER..]).next().unwrap();
        assert_eq!((kind, outer.len()), (18, 12));
        assert_eq!(attributes(outer).next().unwrap(), (1, b"veth\0".as_slice()));
    }

    #[test]
    fn cut_off_attributes_end_the_list() {
        assert_eq!(attributes(&[8, 0, 1, 0, 1, 2]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0);
    }
}
