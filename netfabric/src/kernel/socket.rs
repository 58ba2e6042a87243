//! Plain netlink sockets, for what needs no runtime: netfilter's requests, and hearing notifications.
//!
//! Decides nothing. Messages are handed over as bytes; what they mean, the callers' crates know.

use std::cell::Cell;
use std::io;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

const BUFFER: usize = 256 * 1024;
/// Bursts of notifications, and dumps of large tables, outrun the default.
const KERNEL_BUFFER: u32 = 4 << 20;

/// A message as it came.
pub type Raw<'a> = NetlinkBuffer<&'a [u8]>;

fn open(protocol: isize, groups: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    let _ = socket.set_rx_buf_sz(KERNEL_BUFFER);
    socket.bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Hears multicast groups and never blocks.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Listens to these groups (a mask), in the network namespace of the calling thread, from now on.
    pub fn open(protocol: isize, groups: u32) -> io::Result<Self> {
        let socket = open(protocol, groups)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Everything that has arrived so far. `ENOBUFS` means that some was lost.
    pub fn drain(&self, mut take: impl FnMut(Raw<'_>)) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => messages(&buffer).for_each(&mut take),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends requests and blocks until they are answered.
#[derive(Debug)]
pub struct Requester {
    socket: Socket,
    sequence: Cell<u32>,
}

impl Requester {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: open(protocol, 0)?, sequence: Cell::new(1) })
    }

    /// Sends a request and waits for the kernel's yes or no.
    pub fn change<T: NetlinkSerializable>(&self, request: NetlinkMessage<T>) -> io::Result<()> {
        self.exchange(request, NLM_F_ACK, |_| ())
    }

    /// Sends a request with these flags and hands over every answer.
    pub fn exchange<T: NetlinkSerializable>(
        &self,
        mut request: NetlinkMessage<T>,
        flags: u16,
        mut take: impl FnMut(Raw<'_>),
    ) -> io::Result<()> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        request.header.sequence_number = sequence;
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            for answer in messages(&buffer).filter(|answer| answer.sequence_number() == sequence) {
                match answer.message_type() {
                    NLMSG_ERROR => return verdict(&answer),
                    NLMSG_DONE => return Ok(()),
                    _ => take(answer),
                }
            }
        }
    }
}

fn verdict(answer: &Raw<'_>) -> io::Result<()> {
    match ErrorBuffer::new_checked(answer.payload()) {
        Ok(error) => error.code().map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().abs()))),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
    }
}

/// The messages in a datagram; one that is cut off ends them.
fn messages(bytes: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = message.length() as usize;
        let message = NetlinkBuffer::new_checked(rest.get(..length)?).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message without content.
    fn empty(kind: u8) -> Vec<u8> {
        [16, 0, 0, 0, kind, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0].to_vec()
    }

    #[test]
    fn a_datagram_is_split_at_the_messages_lengths() {
        let both = [empty(3), empty(16)].concat();
        let kinds: Vec<u16> = messages(&both).map(|message| message.message_type()).collect();
        assert_eq!(kinds, [3, 16]);
    }

    #[test]
    fn a_cut_off_message_ends_the_datagram() {
        let both = [empty(16), empty(16)].concat();
        for length in 17..32 {
            assert_eq!(messages(&both[..length]).count(), 1, "{length} bytes");
        }
        let mut endless = empty(16);
        endless[0] = 0;
        assert_eq!(messages(&endless).count(), 0, "a length of nothing");
    }
}
