//! Routing netlink by the crate `rtnetlink`, in terms of interface indexes.
//!
//! One function per request or dump. Decides nothing; whose an object is, the caller knows. The crate is asynchronous
//! and the fabric's thread is not: a connection brings the small runtime that drives it, and a request blocks.

pub mod addresses;
pub mod links;
pub mod neighbours;
pub mod routes;

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::{Error, Handle};
use tokio::runtime::{Builder, Runtime};

/// How long the kernel may take. It answers in microseconds; an answer that was lost (the socket's buffer was full)
/// would otherwise be waited for without end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to routing netlink; it belongs to the network namespace of the thread that opened it, for good.
#[derive(Debug)]
pub struct Routing {
    runtime: Runtime,
    handle: Handle,
}

impl Routing {
    /// Connects, in the caller's network namespace.
    pub fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (connection, handle, _) = {
            let _entered = runtime.enter();
            rtnetlink::new_connection()?
        };
        // Ends with the runtime.
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// Makes a request and waits for the kernel's yes or no.
    fn ask<T>(&self, request: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        let answered = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, request).await });
        answered.map_err(|_| silent())?.map_err(into_io)
    }

    /// Makes a dump request and collects every answer.
    fn collect<T>(&self, answers: impl Stream<Item = Result<T, Error>>) -> io::Result<Vec<T>> {
        self.ask(answers.try_collect())
    }
}

fn silent() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("the kernel did not answer within {} s", PATIENCE.as_secs()),
    )
}

/// The kernel's error numbers are what callers look at.
fn into_io(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
