//! The store's own stream protocol, on the API's port beside HTTP: many questions on one connection, answers as they come.
//!
//! Decides which keys a stream may name, in which order it works, and on which thread. It must not decide what a transaction does.

mod pace;
pub mod protocol;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Buf;
use futures_util::stream::{FuturesUnordered, StreamExt};
use raft_store::{Entry, Key, Transaction, View};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tracing::debug;

use super::socket::Settle;
use crate::clock;
use crate::mesh::wire::FrameError;
use crate::store::{STAY_MS, Store, TransactError};
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
/// With this many bytes of questions under way no further one is begun.
const QUESTION_BYTES: usize = 16 << 20;
/// A client that takes nothing for so long is gone: answers that wait for it keep old states.
const STALL: Duration = Duration::from_secs(30);
/// Reads without a whole question, beside the replica: more of them are no lone question that comes in parts.
const PARTS: u32 = 32;
/// A question or an answer with more bytes is work that the replica must not wait for: it takes longer than what it saves.
const LITTLE: usize = 64 << 10;

/// Serves one connection until it ends: on the caller's thread, and beside the replica while its questions come one at a time.
pub async fn serve<S: AsyncRead + AsyncWrite + Settle + Unpin + Send + 'static>(stream: S, store: Store) {
    let connection = Connection::new(stream, store);
    if let Err(error) = connection.serve().await {
        debug!(%error, "store stream ended");
    }
}

/// A question that waits for others. It is worked on in the connection's own task: a task for each would wake a second thread.
type UnderWay = Pin<Box<dyn Future<Output = Ready> + Send>>;

/// What a question came to. An answer with much is encoded when there is room for it: until then it is a state that is shared, and the question.
struct Ready {
    id: u64,
    /// Bytes of the question.
    weight: usize,
    found: Found,
}

enum Found {
    Answer(Answer),
    Look(View, Ask),
}

struct Connection<S> {
    store: Store,
    stream: S,
    /// It is served on the replica's thread.
    beside: bool,
    pace: Pace,
    /// It was asked to leave the replica's thread, and stays away until then (milliseconds of the clock).
    away_until: u64,
    under_way: FuturesUnordered<UnderWay>,
    /// Not encoded yet.
    ready: VecDeque<Ready>,
    /// Bytes of the questions of both.
    weight: usize,
    input: Vec<u8>,
    /// Reads since the last whole question.
    parts: u32,
    /// The client asks nothing more. What it has asked is answered.
    ended: bool,
    /// `STALL`.
    stall: Duration,
    /// What is sent next.
    output: Vec<u8>,
    /// What is being sent; empty once all of it has gone.
    sending: io::Cursor<Vec<u8>>,
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
            let may_sit = clock::millis() >= self.away_until;
            let Some(seat) = may_sit.then(|| self.store.seat()).flatten() else {
                self.pace.forget();
                continue;
            };
            let Some((connection, left)) = self.beside_replica().await else { return Ok(()) };
            drop(seat);
            self = connection;
            let Left::Moves = left? else { return Ok(()) };
            if let Err(error) = self.stream.settle() {
                // The replica's runtime watches it still and wakes this task: each question takes longer, and all are answered.
                debug!(%error, "a store stream stays registered with the replica's thread");
            }
        }
        Ok(())
    }

    /// Serves it on the replica's thread as long as it is quiet, somebody waits for this, and nobody else asks for the seat. `None` once that
    /// thread has ended.
    async fn beside_replica(mut self) -> Option<(Connection<S>, Result<Left, FrameError>)> {
        let (mut back, returned) = oneshot::channel();
        let store = self.store.clone();
        // From here on: who asked before this connection had the seat asked another.
        let wanted = store.seat_wanted();
        store.beside_replica(async move {
            let left = match self.stream.settle() {
                Ok(()) => {
                    self.beside = true;
                    tokio::select! {
                        left = self.run() => left,
                        // Idle or not. Whoever asked has a second to show again that it is quiet.
                        () = wanted => {
                            self.away_until = clock::millis() + STAY_MS;
                            Ok(Left::Moves)
                        }
                        () = back.closed() => return,
                    }
                }
                // No descriptor is left: it stays with the workers, and tries again after as many questions.
                Err(error) => {
                    debug!(%error, "a store stream stays with the workers");
                    Ok(Left::Moves)
                }
            };
            self.beside = false;
            self.pace.forget();
            let _ = back.send((self, left));
        });
        returned.await.ok()
    }

    /// Serves it where it is. This can be dropped at any await and begun again elsewhere: all that it knows is in `self`.
    async fn run(&mut self) -> Result<Left, FrameError> {
        // What was left where it was served before, too.
        let mut left = !self.input.is_empty();
        loop {
            let moves = if self.beside { self.pace.is_busy() } else { self.pace.is_quiet() };
            if moves {
                return Ok(Left::Moves);
            }
            // All is sent before more is begun, or it would grow.
            if self.has_output() {
                self.send().await.map_err(ended)?;
                continue;
            }
            if self.encode() {
                continue;
            }
            if self.ended && self.under_way.is_empty() && !left {
                return Ok(Left::Ended);
            }
            tokio::select! {
                // What came and was not begun on goes before what comes.
                () = std::future::ready(()), if left && self.may_begin() => {}
                Some(ready) = ready_ones(&mut self.under_way) => self.ready.extend(ready),
                read = self.stream.read_buf(&mut self.input), if !self.ended && self.may_begin() => {
                    self.ended = read.map_err(ended)? == 0;
                    self.parts += 1;
                    if self.parts > PARTS {
                        self.pace.forget();
                    }
                }
            }
            left = self.take()?;
        }
    }

    /// Sends what is to be sent. What is under way goes on meanwhile, and ends: a client that does not read must not hold what others wait for.
    async fn send(&mut self) -> io::Result<()> {
        if self.sending.get_ref().is_empty() {
            std::mem::swap(self.sending.get_mut(), &mut self.output);
        }
        {
            let mut sending = std::pin::pin!(async {
                while self.sending.has_remaining() {
                    let written = tokio::time::timeout(self.stall, self.stream.write_buf(&mut self.sending));
                    if written.await.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                }
                tokio::time::timeout(self.stall, self.stream.flush())
                    .await
                    .map_err(|_| io::ErrorKind::TimedOut)?
            });
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sending => {
                        sent?;
                        break;
                    }
                    Some(ready) = ready_ones(&mut self.under_way) => self.ready.extend(ready),
                }
            }
        }
        self.sending.set_position(0);
        let sent = self.sending.get_mut();
        sent.clear();
        sent.shrink_to(KEPT);
        Ok(())
    }
}

impl<S> Connection<S> {
    fn new(stream: S, store: Store) -> Connection<S> {
        Connection {
            store,
            stream,
            beside: false,
            pace: Pace::default(),
            away_until: 0,
            under_way: FuturesUnordered::new(),
            ready: VecDeque::new(),
            weight: 0,
            input: Vec::new(),
            parts: 0,
            ended: false,
            stall: STALL,
            output: Vec::new(),
            sending: io::Cursor::default(),
        }
    }

    fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.sending.get_ref().is_empty()
    }

    /// Whether one more question may be under way.
    fn may_begin(&self) -> bool {
        self.under_way.len() + self.ready.len() < UNDER_WAY && self.weight < QUESTION_BYTES
    }

    /// Encodes answers that are ready, as many as there is room for. Whether there were some.
    fn encode(&mut self) -> bool {
        while self.output.len() < OUTPUT_BYTES
            && let Some(Ready { id, weight, found }) = self.ready.pop_front()
        {
            self.weight -= weight;
            let answer = match found {
                Found::Answer(answer) => answer,
                Found::Look(view, ask) => look(&view, &ask),
            };
            self.put(&Reply { id, answer });
        }
        self.has_output()
    }

    /// A connection that is answered with much is not quiet.
    fn put(&mut self, reply: &Reply) {
        let before = self.output.len();
        protocol::put_frame(reply, &mut self.output);
        if self.output.len() - before > LITTLE {
            self.pace.forget();
        }
    }

    /// Begins on the questions that have arrived whole, until there are answers enough to send first. Whether there may be more of them.
    /// Beside the replica nothing is begun that ends the quiet: it is left, with the body of a long one unread, and the connection is busy.
    fn take(&mut self) -> Result<bool, FrameError> {
        let mut used = 0;
        let more = loop {
            if self.output.len() >= OUTPUT_BYTES || !self.may_begin() {
                break true;
            }
            let rest = &self.input[used..];
            let is_little = announced(rest).is_none_or(|length| length <= LITTLE);
            if !is_little {
                self.pace.forget();
                if self.beside {
                    break true;
                }
            }
            let Some((question, length)) = protocol::take_frame::<Question>(rest)? else { break false };
            let of_replica = is_little && self.is_of_replica(&question.ask);
            self.pace.begins(of_replica, !(self.under_way.is_empty() && self.ready.is_empty()));
            if self.beside && self.pace.is_busy() {
                break true;
            }
            used += length;
            self.parts = 0;
            self.begin(question, length);
        };
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        Ok(more && !self.input.is_empty())
    }

    fn begin(&mut self, Question { id, ask }: Question, weight: usize) {
        if !within_keys(&ask) {
            let text = format!("keys of a stream begin with \"{}\"", String::from_utf8_lossy(KEYS));
            return self.put(&Reply { id, answer: Answer::Refused(text) });
        }
        // What needs nobody else is answered at once.
        if let (Some(Read::Local), Some(view)) = (read_of(&ask), self.store.local_now()) {
            return self.put(&Reply { id, answer: look(&view, &ask) });
        }
        let (store, beside) = (self.store.clone(), self.beside);
        self.weight += weight;
        self.under_way.push(Box::pin(async move {
            let found = match ask {
                Ask::Transact(transaction) => Found::Answer(transact(&store, transaction).await),
                ask => read(&store, ask, beside).await,
            };
            Ready { id, weight, found }
        }));
    }

    /// Whether this machine's replica answers it, with little.
    fn is_of_replica(&self, ask: &Ask) -> bool {
        let asks_it = match ask {
            Ask::Transact(_) => self.store.leads(),
            Ask::Get { read, .. } => *read == Read::Linearizable,
            Ask::Range { .. } => false,
        };
        asks_it && within_keys(ask)
    }
}

/// Bytes of the body that the next frame says it has.
fn announced(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize)
}

fn ended(error: io::Error) -> FrameError {
    FrameError::Ended(error.to_string())
}

/// All answers that are there, once there is one; `None` while nothing is under way.
async fn ready_ones(under_way: &mut FuturesUnordered<UnderWay>) -> Option<Vec<Ready>> {
    let all = under_way.len().max(1);
    under_way.ready_chunks(all).next().await
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

async fn read(store: &Store, ask: Ask, beside: bool) -> Found {
    let view = match read_of(&ask) {
        Some(Read::AtLeast(revision)) => store.at_least(revision).await,
        Some(Read::Local) => store.local().await,
        _ if beside => store.linearizable_alone().await,
        _ => store.linearizable().await,
    };
    match view {
        Some(view) => Found::Look(view, ask),
        None => Found::Answer(Answer::NoLeader(
            "the state was not confirmed or reached within 3 s; see 'skein cluster status'".into(),
        )),
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

#[cfg(test)]
mod tests;
