//! A client's TCP connection, which can go from one runtime to another.
//!
//! Decides nothing. tokio watches a socket on the runtime where it was made; who serves it elsewhere would be woken by way of that one.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The connection.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket(stream)
    }
}

/// What has to be told when its runtime changes.
pub trait Settle {
    /// From now on the runtime of the caller watches it. An error (no descriptor is left) leaves it where it was: it goes on, woken by way of there.
    fn settle(&mut self) -> io::Result<()>;
}

impl Settle for Socket {
    fn settle(&mut self) -> io::Result<()> {
        let again = self.0.as_fd().try_clone_to_owned()?;
        self.0 = TcpStream::from_std(again.into())?;
        Ok(())
    }
}

impl<S: Settle> Settle for TlsStream<S> {
    fn settle(&mut self) -> io::Result<()> {
        self.get_mut().0.settle()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
pub mod testing {
    use std::sync::{Arc, Mutex};

    use tokio::io::DuplexStream;

    use super::*;

    /// A connection's moves: the thread of each, and whether the next ones fail; and whether what is sent comes in single bytes.
    #[derive(Default)]
    pub struct Moves {
        pub to: Vec<String>,
        pub fail: bool,
        pub trickle: bool,
    }

    /// A connection without a socket.
    pub struct Pipe(pub DuplexStream, pub Arc<Mutex<Moves>>);

    impl Settle for Pipe {
        fn settle(&mut self) -> io::Result<()> {
            let mut moves = self.1.lock().unwrap();
            moves.to.push(std::thread::current().name().unwrap_or_default().to_owned());
            if moves.fail { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }
    }

    impl AsyncRead for Pipe {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.1.lock().unwrap().trickle {
                return Pin::new(&mut self.0).poll_read(context, into);
            }
            let mut byte = [0];
            let mut one = ReadBuf::new(&mut byte);
            let read = Pin::new(&mut self.0).poll_read(context, &mut one);
            into.put_slice(one.filled());
            read
        }
    }

    impl AsyncWrite for Pipe {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }
}
