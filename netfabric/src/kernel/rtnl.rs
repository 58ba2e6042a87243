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
    #[expect(clippy::disallowed_methods, reason = "driver: the task ends with the runtime")]
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use netlink_packet_core::{DefaultNla, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use rtnetlink::proto::{NetlinkCodec, NetlinkMessageCodec};

    use super::*;

    const MTU: u16 = 4;
    const STATS64: u16 = 23;
    const OF_TOMORROW: u16 = 1000;

    /// An interface with one more attribute, of any kind and size.
    fn link(name: &str, kind: u16, size: usize) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::Other(DefaultNla::new(kind, vec![0; size])));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// The names in a datagram as the connection decodes it.
    fn decoded(datagram: &[Vec<u8>]) -> Vec<String> {
        let mut bytes = BytesMut::from(datagram.concat().as_slice());
        let next = || NetlinkCodec::decode::<RouteNetlinkMessage>(&mut bytes).unwrap();
        let names = std::iter::from_fn(next).map(|message| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => links::read_link(&link).name,
            other => panic!("{other:?}"),
        });
        names.collect()
    }

    #[test]
    fn attributes_that_are_new_or_have_grown_or_shrunk_are_no_hindrance() {
        let datagram = [
            link("new", OF_TOMORROW, 12),
            link("grown", STATS64, 400),
            link("old", STATS64, 8 * 20),
            link("plain", MTU, 4),
        ];
        assert_eq!(decoded(&datagram), ["new", "grown", "old", "plain"]);
    }

    #[test]
    fn a_message_that_cannot_be_read_is_left_out_and_the_dump_goes_on() {
        assert_eq!(decoded(&[link("odd", MTU, 7), link("next", MTU, 4)]), ["next"]);
    }
}
