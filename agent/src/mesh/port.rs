//! One UDP port, two sockets: each of the two threads that speak QUIC has its own endpoint, and the kernel hands every packet to the
//! one whose connection it belongs to.
//!
//! Decides which: connection IDs that begin with `RAFT` are the replica's, all others the mesh's, and a classic BPF program on the
//! port's `SO_REUSEPORT` group (socket(7)) reads those two bytes. It must not look at anything else of a packet; a packet that lies about them
//! reaches an endpoint that knows no such connection. Packets must not be put together on receipt (`udp`).

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, sock_filter, sock_fprog,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use quinn::{ConnectionId, ConnectionIdGenerator};

use crate::clock;

/// What a socket may hold of packets that have come while its thread waits for the disk (bytes, by the kernel's count).
const RECEIVE_BUFFER: usize = 4 << 20;
/// Bytes of a connection ID.
const ID_BYTES: usize = 8;
/// Where the destination's connection ID begins in a long header and in a short one (RFC 9000, section 17).
const LONG: u32 = 6;
const SHORT: u32 = 1;

/// The two endpoints of the port, by the place of their sockets in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Gossip, requests, bulk.
    Mesh,
    /// raft's messages.
    Raft,
}

/// How the IDs of the replica's connections begin. Who knows nothing of halves reaches the mesh, but once in 65,536 times.
const RAFT: [u8; 2] = [0xda, 0x7a];

impl Half {
    /// A connection ID that leads to this half: of a connection's first packet, or chosen by the half itself.
    pub fn id(self) -> ConnectionId {
        let mut bytes = [0; ID_BYTES];
        clock::fill_random(&mut bytes);
        match self {
            Half::Raft => bytes[..2].copy_from_slice(&RAFT),
            Half::Mesh if bytes[..2] == RAFT => bytes[0] ^= 1,
            Half::Mesh => {}
        }
        ConnectionId::new(&bytes)
    }
}

/// Chooses a half's connection IDs.
pub struct Ids(pub Half);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.0.id()
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// Binds the port for both halves. Fails with `AddrInUse` where anybody else has it, another agent too.
pub fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, UdpSocket)> {
    // The first one is bound as if alone, so that a port in use is found out; only then it lets the second in.
    let mesh = open()?;
    bind(as_raw(&mesh), &SockaddrStorage::from(address))?;
    setsockopt(&mesh, sockopt::ReusePort, &true)?;
    let raft = open()?;
    setsockopt(&raft, sockopt::ReusePort, &true)?;
    bind(as_raw(&raft), &SockaddrStorage::from(mesh.local_addr()?))?;
    let mut steps = program();
    let program = sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    setsockopt(&mesh, sockopt::AttachReusePortCbpf, &program)?;
    Ok((mesh, raft))
}

fn open() -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = UdpSocket::from(socket(AddressFamily::Inet, SockType::Datagram, flags, None)?);
    // More than the system's limit needs a privilege; without it the socket has what it may have.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(socket)
}

fn as_raw(socket: &UdpSocket) -> std::os::fd::RawFd {
    std::os::fd::AsRawFd::as_raw_fd(socket)
}

/// The place in the group of the socket that a packet is for. A packet too short to have an ID is the first one's.
fn program() -> [sock_filter; 8] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| sock_filter { code: code as u16, jt, jf, k };
    [
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JSET | BPF_K, 0, 2, 0x80),
        step(BPF_LD | BPF_H | BPF_ABS, 0, 0, LONG),
        step(BPF_JMP, 0, 0, 1),
        step(BPF_LD | BPF_H | BPF_ABS, 0, 0, SHORT),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, u32::from(u16::from_be_bytes(RAFT))),
        step(BPF_RET | BPF_K, 0, 0, 1),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn received(socket: &UdpSocket) -> Vec<u8> {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut bytes = [0; 64];
        let count = socket.recv(&mut bytes).unwrap();
        bytes[..count].to_vec()
    }

    #[test]
    fn a_packet_reaches_the_half_whose_connection_id_it_bears() {
        let (mesh, raft) = bind_both("127.0.0.1:0".parse().unwrap()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let short = |half: Half| [&[0x40u8], &half.id()[..], &[1, 2, 3]].concat();
        let long = |half: Half| [&[0xc0u8, 0, 0, 0, 1, 8], &half.id()[..], &[4, 5]].concat();
        for _ in 0..50 {
            for (half, socket) in [(Half::Mesh, &mesh), (Half::Raft, &raft)] {
                for packet in [short(half), long(half)] {
                    sender.send_to(&packet, mesh.local_addr().unwrap()).unwrap();
                    assert_eq!(received(socket), packet);
                }
            }
        }
        for runt in [&[][..], &[0x40], &[0xc0, 0, 0]] {
            sender.send_to(runt, mesh.local_addr().unwrap()).unwrap();
            assert_eq!(received(&mesh), runt);
        }
    }

    #[test]
    fn a_port_in_use_is_found_out() {
        let (mesh, _raft) = bind_both("127.0.0.1:0".parse().unwrap()).unwrap();
        let again = bind_both(mesh.local_addr().unwrap()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }
}
