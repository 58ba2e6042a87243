//! The mesh's UDP socket, for quinn: woken when there is something to read, and for room to write only while there is none.
//!
//! Decides what the event loop is asked to watch. quinn's own socket for tokio watches both at all times, and the kernel
//! reports room anew for each packet that has left (`sock_def_write_space`): one wake-up more for every packet that is sent. It must not
//! look into packets.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{setsockopt, sockopt};
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;

/// The socket, watched for packets that come.
#[derive(Debug)]
pub struct Watched {
    socket: UdpSocket,
    /// The socket by another descriptor, watched for packets.
    packets: AsyncFd<OwnedFd>,
    state: UdpSocketState,
    /// The last packet found no room.
    full: AtomicBool,
}

impl Watched {
    /// Watches a non-blocking socket on the runtime that calls.
    pub fn new(socket: UdpSocket) -> io::Result<Watched> {
        let state = UdpSocketState::new((&socket).into())?;
        // Put together on receipt (UDP_GRO), packets of a peer's two halves would come as one, for whoever the first is for.
        setsockopt(&socket, sockopt::UdpGroSegment, &false)?;
        let packets = sys::watch(socket.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Watched { socket, packets, state, full: AtomicBool::new(false) })
    }
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { of: self, watch: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send((&self.socket).into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.packets.poll_read_ready(context))?;
            if let Ok(received) = ready.try_io(|_| self.state.recv((&self.socket).into(), buffers, meta)) {
                if received.as_ref().is_ok_and(|count| *count < buffers.len().min(BATCH_SIZE)) {
                    // That was all: what comes from now on is told anew (epoll(7), EPOLLET), and need not be asked for.
                    ready.clear_ready();
                }
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits for room in a socket that had none.
struct Room {
    of: Arc<Watched>,
    /// The socket by a third descriptor.
    watch: Option<AsyncFd<OwnedFd>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("waits", &self.watch.is_some()).finish()
    }
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.watch.is_none() {
            if !this.of.full.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let again = this.of.socket.as_fd().try_clone_to_owned()?;
            this.watch = Some(sys::watch(again, Interest::WRITABLE)?);
        }
        if let Some(watch) = &this.watch {
            let _ = ready!(watch.poll_write_ready(context))?;
        }
        this.watch = None;
        this.of.full.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<Watched>, UdpSocket) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        (Arc::new(Watched::new(socket).unwrap()), UdpSocket::bind("127.0.0.1:0").unwrap())
    }

    fn packet(to: &UdpSocket) -> Transmit<'static> {
        let destination = to.local_addr().unwrap();
        Transmit { destination, ecn: None, contents: b"packet", segment_size: None, src_ip: None }
    }

    #[tokio::test]
    async fn packets_go_out_and_come_in() {
        let (ours, peer) = pair();
        ours.try_send(&packet(&peer)).unwrap();
        let mut bytes = [0; 64];
        let (count, from) = peer.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..count], from), (&b"packet"[..], ours.local_addr().unwrap()));
        peer.send_to(b"answer", from).unwrap();
        let mut meta = [RecvMeta::default()];
        let mut storage = vec![0; 2048];
        let received = std::future::poll_fn(|context| {
            let mut buffers = [IoSliceMut::new(&mut storage)];
            ours.poll_recv(context, &mut buffers, &mut meta)
        });
        assert_eq!(received.await.unwrap(), 1);
        assert_eq!(&storage[..meta[0].len], b"answer");
    }

    #[tokio::test]
    async fn room_is_waited_for_only_after_there_was_none() {
        let (ours, _peer) = pair();
        let mut room = ours.clone().create_io_poller();
        let mut poll =
            async || std::future::poll_fn(|context| Poll::Ready(room.as_mut().poll_writable(context))).await;
        assert!(poll().await.is_ready());
        ours.full.store(true, Ordering::Relaxed);
        // Watched anew, it has room at the next turn of the loop.
        while poll().await.is_pending() {
            tokio::task::yield_now().await;
        }
        assert!(!ours.full.load(Ordering::Relaxed));
    }
}
