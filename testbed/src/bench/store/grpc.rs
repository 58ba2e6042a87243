//! A gRPC client that is just enough for etcd: puts, reads and the status of a member, many at once on one connection.
//!
//! Decides nothing. It keeps no retries, as etcd's own client keeps none for writes.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Uri, Version};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Access;
use crate::clock;

const WINDOW: u32 = 4 << 20;

/// A connection; clones share it.
#[derive(Clone)]
pub struct Client {
    send: SendRequest<Bytes>,
    put: Uri,
    range: Uri,
    status: Uri,
}

impl Client {
    pub async fn connect(access: &Access, address: SocketAddr) -> Result<Client, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let tcp = TcpStream::connect(address).await.map_err(|e| text(&e))?;
        tcp.set_nodelay(true).map_err(|e| text(&e))?;
        let name = ServerName::IpAddress(address.ip().into());
        let tls = TlsConnector::from(access.tls.clone()).connect(name, tcp).await.map_err(|e| text(&e))?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (send, connection) = builder.handshake(tls).await.map_err(|e| text(&e))?;
        clock::spawn(async move {
            let _ = connection.await;
        });
        let uri = |path: &str| format!("https://{address}/etcdserverpb.{path}").parse().map_err(|e| text(&e));
        Ok(Client { send, put: uri("KV/Put")?, range: uri("KV/Range")?, status: uri("Maintenance/Status")? })
    }

    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let mut message = head();
        put_bytes(&mut message, 1, key);
        put_bytes(&mut message, 2, value);
        self.call(&self.put, message).await.map(drop)
    }

    /// Bytes of the answer.
    pub async fn get(&self, key: &[u8], serializable: bool) -> Result<usize, String> {
        let mut message = head();
        put_bytes(&mut message, 1, key);
        if serializable {
            message.put_slice(&[7 << 3, 1]);
        }
        Ok(self.call(&self.range, message).await?.len())
    }

    /// Whether this member leads.
    pub async fn leads(&self) -> Result<bool, String> {
        let answer = self.call(&self.status, head()).await?;
        let status = answer.get(5..).unwrap_or_default();
        let header = field(status, 1).and_then(|found| found.err()).unwrap_or_default();
        let own = field(header, 2).and_then(Result::ok);
        Ok(own.is_some() && own == field(status, 4).and_then(Result::ok))
    }

    async fn call(&self, uri: &Uri, mut message: BytesMut) -> Result<Bytes, String> {
        let text = |error: h2::Error| error.to_string();
        let length = (message.len() - 5) as u32;
        message[1..5].copy_from_slice(&length.to_be_bytes());
        let request = Request::builder().method(Method::POST).version(Version::HTTP_2).uri(uri.clone());
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(());
        let mut send = self.send.clone().ready().await.map_err(text)?;
        let (response, mut body) =
            send.send_request(request.map_err(|error| error.to_string())?, false).map_err(text)?;
        body.send_data(message.freeze(), true).map_err(text)?;
        let response = response.await.map_err(text)?;
        check(response.headers(), false)?;
        let mut body = response.into_body();
        let mut answer = Bytes::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(text)?;
            let _ = body.flow_control().release_capacity(chunk.len());
            answer = if answer.is_empty() { chunk } else { [answer, chunk].concat().into() };
        }
        check(&body.trailers().await.map_err(text)?.unwrap_or_default(), true)?;
        Ok(answer)
    }
}

/// Room for gRPC's five bytes before a message.
fn head() -> BytesMut {
    let mut bytes = BytesMut::with_capacity(512);
    bytes.put_slice(&[0; 5]);
    bytes
}

fn check(headers: &HeaderMap, last: bool) -> Result<(), String> {
    match headers.get("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        None if !last => Ok(()),
        _ => Err(format!("gRPC: {:?}", headers.get("grpc-message"))),
    }
}

fn put_bytes(message: &mut BytesMut, number: u8, bytes: &[u8]) {
    message.put_u8(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    message.put_u8(length as u8);
    message.put_slice(bytes);
}

/// A field of a protobuf message: a number, or (`Err`) bytes.
fn field(mut message: &[u8], wanted: u64) -> Option<Result<u64, &[u8]>> {
    while !message.is_empty() {
        let (tag, rest) = varint(message)?;
        let (value, rest) = match tag & 7 {
            0 => varint(rest).map(|(value, rest)| (Ok(value), rest))?,
            2 => {
                let (length, rest) = varint(rest)?;
                (Err(rest.get(..length as usize)?), &rest[length as usize..])
            }
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(value);
        }
        message = rest;
    }
    None
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    let value = bytes[..length].iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, &bytes[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_message_are_found_by_number() {
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, &[7; 200]);
        message.put_slice(&[4 << 3, 0x96, 1]);
        assert_eq!(field(&message, 1), Some(Err(&[7; 200][..])));
        assert_eq!(field(&message, 4), Some(Ok(150)));
        assert_eq!(field(&message, 5), None);
        assert_eq!(field(&message[..100], 1), None);
    }
}
