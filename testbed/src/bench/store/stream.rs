//! A client of the store's own stream protocol: many questions at once on one connection.
//!
//! Decides nothing. A question is asked once; what becomes of it is its answer.

use std::collections::HashMap;
use std::net::SocketAddr;

use agent::server::stream::protocol::{self, Answer, Ask, Question, Read, Reply};
use raft_store::{Key, Op, Transaction};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Access;
use crate::clock;

type Asked = (Ask, oneshot::Sender<Answer>);

/// A connection; clones share it.
#[derive(Clone)]
pub struct Client {
    asks: mpsc::UnboundedSender<Asked>,
}

impl Client {
    pub async fn connect(access: &Access, address: SocketAddr) -> Result<Client, String> {
        let text = |error: std::io::Error| error.to_string();
        let tcp = TcpStream::connect(address).await.map_err(text)?;
        tcp.set_nodelay(true).map_err(text)?;
        let name = ServerName::try_from(access.server_name.unwrap_or_default()).map_err(|e| e.to_string())?;
        let tls = TlsConnector::from(access.tls.clone()).connect(name, tcp).await.map_err(text)?;
        let (asks, asked) = mpsc::unbounded_channel();
        clock::spawn(async move {
            if let Err(error) = drive(tls, asked).await {
                tracing::debug!(%error, "a store stream ended");
            }
        });
        Ok(Client { asks })
    }

    pub async fn ask(&self, ask: Ask) -> Result<Answer, String> {
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send((ask, reply));
        answer.await.map_err(|_| "the connection ended".into())
    }

    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let ops = vec![Op::Put { key: key.into(), value: value.into() }];
        self.transact(Transaction { compares: Vec::new(), ops }).await
    }

    pub async fn transact(&self, transaction: Transaction) -> Result<(), String> {
        match self.ask(Ask::Transact(transaction)).await? {
            Answer::Done { .. } => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    }

    /// Bytes of the value.
    pub async fn get(&self, key: &[u8], local: bool) -> Result<usize, String> {
        let read = if local { Read::Local } else { Read::Linearizable };
        match self.ask(Ask::Get { key: Key::from(key), read }).await? {
            Answer::Entry { entry, .. } => Ok(entry.map_or(0, |entry| entry.0.value().len())),
            answer => Err(format!("{answer:?}")),
        }
    }
}

async fn drive(
    mut stream: TlsStream<TcpStream>,
    mut asked: mpsc::UnboundedReceiver<Asked>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let (mut input, mut output, mut batch, mut next) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
    loop {
        tokio::select! {
            count = asked.recv_many(&mut batch, 1024) => {
                if count == 0 {
                    return Ok(());
                }
                for (ask, reply) in batch.drain(..) {
                    next += 1;
                    waiting.insert(next, reply);
                    protocol::put_frame(&Question { id: next, ask }, &mut output);
                }
                stream.write_all(&output).await?;
                stream.flush().await?;
                output.clear();
            }
            read = stream.read_buf(&mut input) => {
                if read? == 0 {
                    return Ok(());
                }
                let mut used = 0;
                while let Some((Reply { id, answer }, length)) = protocol::take_frame(&input[used..])? {
                    used += length;
                    if let Some(reply) = waiting.remove(&id) {
                        let _ = reply.send(answer);
                    }
                }
                input.drain(..used);
            }
        }
    }
}
