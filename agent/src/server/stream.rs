//! The store's own stream protocol, on the API's port beside HTTP: many questions on one connection, answers as they come.
//!
//! Decides which keys a stream may name, in which order it works, and on which thread. It must not decide what a transaction does.

mod pace;
pub mod protocol;

use std::pin::Pin;

use futures_util::stream::{FuturesUnordered, StreamExt};
use raft_store::{Entry, Key, Transaction, View};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tracing::debug;

use super::socket::Settle;
use crate::mesh::wire::FrameError;
use crate::store::{Store, TransactError};
use pace::Pace;
use protocol::{Answer, Ask, ENTRIES, Held, KEYS, Question, Read, Reply};

/// Questions of one connection that may be under way; more are not read until some are answered.
const UNDER_WAY: usize = 1024;
/// Bytes of a buffer that are kept between bursts.
const KEPT: usize = 256 << 10;
/// Bytes of keys and values in one answer to a range, unless the first entry alone has more: far below a frame's limit.
const ANSWER_BYTES: usize = 4 << 20;
/// With this many bytes of answers to send no further question is begun.
const OUTPUT_BYTES: usize = 8 << 20;

/// Serves one connection until it ends: on the caller's thread, and beside the replica while its questions come one at a time.
pub async fn serve<S: AsyncRead + AsyncWrite + Settle + Unpin + Send + 'static>(stream: S, store: Store) {
    let (under_way, output) = (FuturesUnordered::new(), Vec::new());
    let (input, pace) = (Vec::new(), Pace::default());
    let connection = Connection { store, stream, beside: false, pace, under_way, input, output };
    if let Err(error) = connection.serve().await {
        debug!(%error, "store stream ended");
    }
}

/// A question that waits for others. It is worked on in the connection's own task: a task for each would wake a second thread.
type UnderWay = Pin<Box<dyn Future<Output = Reply> + Send>>;

struct Connection<S> {
    store: Store,
    stream: S,
    /// It is served on the replica's thread.
    beside: bool,
    pace: Pace,
    under_way: FuturesUnordered<UnderWay>,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Why a connection is not served any more where it was.
enum Left {
    Ended,
    /// It is to be served elsewhere.
    Moves,
}

impl<S: AsyncRead + AsyncWrite + Settle + Unpin + Send + 'static> Connection<S> {
    async fn serve(mut self) -> Result<(), FrameError> {
        while let Left::Moves = self.run().await? {
            let Some(seat) = self.store.seat() else {
                self.pace.forget();
                continue;
            };
            let Some((connection, left)) = self.beside_replica().await else { return Ok(()) };
            drop(seat);
            let Left::Moves = left? else { return Ok(()) };
            self = connection;
            self.stream.settle().map_err(ended)?;
        }
        Ok(())
    }

    /// Serves it on the replica's thread as long as it is quiet, or somebody waits for this. `None` once that thread has ended.
    async fn beside_replica(mut self) -> Option<(Connection<S>, Result<Left, FrameError>)> {
        let (mut back, returned) = oneshot::channel();
        let store = self.store.clone();
        store.beside_replica(async move {
            self.beside = true;
            let left = match self.stream.settle() {
                Ok(()) => tokio::select! {
                    left = self.run() => left,
                    () = back.closed() => return,
                },
                Err(error) => Err(ended(error)),
            };
            self.beside = false;
            let _ = back.send((self, left));
        });
        returned.await.ok()
    }

    async fn run(&mut self) -> Result<Left, FrameError> {
        // What was left where it was served before, too.
        let mut left = !self.input.is_empty();
        loop {
            let moves = if self.beside { self.pace.is_busy() } else { self.pace.is_quiet() };
            if moves {
                return Ok(Left::Moves);
            }
            tokio::select! {
                // What came and was not begun on goes before what comes.
                () = std::future::ready(()), if left && self.under_way.len() < UNDER_WAY => {}
                Some(replies) = ready_ones(&mut self.under_way) => {
                    replies.iter().for_each(|reply| protocol::put_frame(reply, &mut self.output));
                }
                read = self.stream.read_buf(&mut self.input), if self.under_way.len() < UNDER_WAY => {
                    if read.map_err(ended)? == 0 {
                        return Ok(Left::Ended);
                    }
                }
            }
            left = self.take()?;
            while !self.output.is_empty() {
                self.send().await.map_err(ended)?;
            }
        }
    }

    /// Sends what is to be sent. What is under way goes on meanwhile, and ends: a client that does not read must not hold what others wait for.
    async fn send(&mut self) -> std::io::Result<()> {
        let mut bytes = std::mem::take(&mut self.output);
        let stream = &mut self.stream;
        let mut sending = std::pin::pin!(async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        });
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => {
                    sent?;
                    break;
                }
                Some(replies) = ready_ones(&mut self.under_way) => {
                    replies.iter().for_each(|reply| protocol::put_frame(reply, &mut self.output));
                }
            }
        }
        if self.output.is_empty() {
            bytes.clear();
            bytes.shrink_to(KEPT);
            self.output = bytes;
        }
        Ok(())
    }

    /// Begins on the questions that have arrived whole, until there are answers enough to send first. Whether some may be left.
    fn take(&mut self) -> Result<bool, FrameError> {
        let mut used = 0;
        while self.output.len() < OUTPUT_BYTES
            && self.under_way.len() < UNDER_WAY
            && let Some((question, length)) = protocol::take_frame::<Question>(&self.input[used..])?
        {
            used += length;
            self.begin(question);
        }
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        Ok(used > 0 && !self.input.is_empty())
    }

    fn begin(&mut self, Question { id, ask }: Question) {
        if !within_keys(&ask) {
            let text = format!("keys of a stream begin with \"{}\"", String::from_utf8_lossy(KEYS));
            return protocol::put_frame(&Reply { id, answer: Answer::Refused(text) }, &mut self.output);
        }
        self.pace.begins(self.is_of_replica(&ask), !self.under_way.is_empty());
        // What needs nobody else is answered at once.
        if let (Some(Read::Local), Some(view)) = (read_of(&ask), self.store.local_now()) {
            return protocol::put_frame(&Reply { id, answer: look(&view, &ask) }, &mut self.output);
        }
        let (store, beside) = (self.store.clone(), self.beside);
        self.under_way.push(Box::pin(async move {
            let answer = match ask {
                Ask::Transact(transaction) => transact(&store, transaction).await,
                ask => read(&store, &ask, beside).await,
            };
            Reply { id, answer }
        }));
    }

    /// Whether this machine's replica answers it, with little.
    fn is_of_replica(&self, ask: &Ask) -> bool {
        match ask {
            Ask::Transact(_) => self.store.leads(),
            Ask::Get { read, .. } => *read == Read::Linearizable,
            Ask::Range { .. } => false,
        }
    }
}

fn ended(error: std::io::Error) -> FrameError {
    FrameError::Ended(error.to_string())
}

/// All answers that are there, once there is one; `None` while nothing is under way.
async fn ready_ones(under_way: &mut FuturesUnordered<UnderWay>) -> Option<Vec<Reply>> {
    under_way.ready_chunks(UNDER_WAY).next().await
}

fn within_keys(ask: &Ask) -> bool {
    let ours = |key: &Key| key.0.starts_with(KEYS);
    match ask {
        Ask::Transact(Transaction { compares, ops }) => {
            compares.iter().all(|compare| ours(&compare.key)) && ops.iter().all(|op| ours(op.key()))
        }
        Ask::Get { key, .. } => ours(key),
        Ask::Range { start, end, .. } => ours(start) && ours(end),
    }
}

fn read_of(ask: &Ask) -> Option<Read> {
    match ask {
        Ask::Transact(_) => None,
        Ask::Get { read, .. } | Ask::Range { read, .. } => Some(*read),
    }
}

async fn transact(store: &Store, transaction: Transaction) -> Answer {
    match store.transact(transaction, None).await {
        Ok(revision) => Answer::Done { revision },
        Err(TransactError::CompareFailed { index, key, actual }) => {
            Answer::CompareFailed { index, key, actual }
        }
        Err(error @ TransactError::NoLeader) => Answer::NoLeader(error.to_string()),
        Err(error @ TransactError::Unknown) => Answer::Unknown(error.to_string()),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

async fn read(store: &Store, ask: &Ask, beside: bool) -> Answer {
    let view = match read_of(ask) {
        Some(Read::AtLeast(revision)) => store.at_least(revision).await,
        Some(Read::Local) => store.local().await,
        _ if beside => store.linearizable_alone().await,
        _ => store.linearizable().await,
    };
    match view {
        Some(view) => look(&view, ask),
        None => Answer::NoLeader(
            "the state was not confirmed or reached within 3 s; see 'skein cluster status'".into(),
        ),
    }
}

fn size(entry: &Entry) -> usize {
    entry.key().len() + entry.value().len()
}

fn look(view: &View, ask: &Ask) -> Answer {
    let revision = view.revision();
    match ask {
        Ask::Range { start, end, limit, .. } => {
            let most = ENTRIES.min(*limit as usize);
            let mut found = view.range(&start.0, &end.0).peekable();
            let (mut entries, mut bytes) = (Vec::new(), 0);
            // At least one, or who asks for the rest would ask for ever.
            while entries.len() < most
                && let Some(entry) =
                    found.next_if(|entry| entries.is_empty() || bytes + size(entry) <= ANSWER_BYTES)
            {
                bytes += size(entry);
                entries.push(entry.clone());
            }
            let more = found.next().is_some();
            Answer::Entries { revision, entries, more }
        }
        Ask::Get { key, .. } => Answer::Entry { revision, entry: view.get(&key.0).cloned().map(Held) },
        Ask::Transact(_) => Answer::Refused("not a read".into()),
    }
}
