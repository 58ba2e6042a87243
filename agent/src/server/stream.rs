//! The store's own stream protocol, on the API's port beside HTTP: many questions on one connection, answers as they come.
//!
//! Decides which keys a stream may name, in which order it works, and on which thread. It must not decide what a transaction does.

mod pace;
pub mod protocol;

use std::io;
use std::pin::Pin;

use bytes::Buf;
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
type UnderWay = Pin<Box<dyn Future<Output = Reply> + Send>>;

struct Connection<S> {
    store: Store,
    stream: S,
    /// It is served on the replica's thread.
    beside: bool,
    pace: Pace,
    under_way: FuturesUnordered<UnderWay>,
    input: Vec<u8>,
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
            let Some(seat) = self.store.seat() else {
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
                        // Idle or not: whoever has the seat may have it again, as soon as it has shown again that it is quiet.
                        () = wanted => Ok(Left::Moves),
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
            tokio::select! {
                // What came and was not begun on goes before what comes.
                () = std::future::ready(()), if left && self.under_way.len() < UNDER_WAY => {}
                Some(replies) = ready_ones(&mut self.under_way) => self.put(&replies),
                read = self.stream.read_buf(&mut self.input), if self.under_way.len() < UNDER_WAY => {
                    if read.map_err(ended)? == 0 {
                        return Ok(Left::Ended);
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
        let mut sending = std::pin::pin!(async {
            while self.sending.has_remaining() {
                if self.stream.write_buf(&mut self.sending).await? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            self.stream.flush().await
        });
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => {
                    sent?;
                    break;
                }
                Some(replies) = ready_ones(&mut self.under_way) => put(&replies, &mut self.output, &mut self.pace),
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
            under_way: FuturesUnordered::new(),
            input: Vec::new(),
            output: Vec::new(),
            sending: io::Cursor::default(),
        }
    }

    fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.sending.get_ref().is_empty()
    }

    fn put(&mut self, replies: &[Reply]) {
        put(replies, &mut self.output, &mut self.pace);
    }

    /// Begins on the questions that have arrived whole, until there are answers enough to send first. Whether there may be more of them.
    /// Beside the replica nothing is begun that ends the quiet: it is left, with the body of a long one unread, and the connection is busy.
    fn take(&mut self) -> Result<bool, FrameError> {
        let mut used = 0;
        let more = loop {
            if self.output.len() >= OUTPUT_BYTES || self.under_way.len() >= UNDER_WAY {
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
            self.pace.begins(of_replica, !self.under_way.is_empty());
            if self.beside && self.pace.is_busy() {
                break true;
            }
            used += length;
            self.begin(question);
        };
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        Ok(more && !self.input.is_empty())
    }

    fn begin(&mut self, Question { id, ask }: Question) {
        if !within_keys(&ask) {
            let text = format!("keys of a stream begin with \"{}\"", String::from_utf8_lossy(KEYS));
            return self.put(&[Reply { id, answer: Answer::Refused(text) }]);
        }
        // What needs nobody else is answered at once.
        if let (Some(Read::Local), Some(view)) = (read_of(&ask), self.store.local_now()) {
            return self.put(&[Reply { id, answer: look(&view, &ask) }]);
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
        let asks_it = match ask {
            Ask::Transact(_) => self.store.leads(),
            Ask::Get { read, .. } => *read == Read::Linearizable,
            Ask::Range { .. } => false,
        };
        asks_it && within_keys(ask)
    }
}

/// Appends replies. A connection that is answered with much is not quiet.
fn put(replies: &[Reply], output: &mut Vec<u8>, pace: &mut Pace) {
    for reply in replies {
        let before = output.len();
        protocol::put_frame(reply, output);
        if output.len() - before > LITTLE {
            pace.forget();
        }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use raft_store::{Op, Revision};
    use tokio::io::DuplexStream;

    use super::*;
    use crate::clock;
    use crate::server::socket::testing::{Moves, Pipe};
    use crate::store::testing::alone;

    /// The client's end.
    struct Client {
        stream: DuplexStream,
        moves: Arc<Mutex<Moves>>,
        input: Vec<u8>,
    }

    fn client(store: &Store) -> Client {
        let (here, there) = tokio::io::duplex(1 << 20);
        let moves = Arc::<Mutex<Moves>>::default();
        clock::spawn(serve(Pipe(there, moves.clone()), store.clone()));
        Client { stream: here, moves, input: Vec::new() }
    }

    impl Client {
        async fn send(&mut self, asks: &[Ask]) {
            let bytes = frames(asks);
            self.stream.write_all(&bytes).await.unwrap();
        }

        async fn answer(&mut self) -> Answer {
            loop {
                if let Some((Reply { answer, .. }, length)) = protocol::take_frame(&self.input).unwrap() {
                    self.input.drain(..length);
                    return answer;
                }
                let read = self.stream.read_buf(&mut self.input);
                assert!(tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap() > 0);
            }
        }

        async fn ask(&mut self, ask: Ask) -> Answer {
            self.send(&[ask]).await;
            self.answer().await
        }

        /// As many lone questions as make it quiet, and one more, which is answered where it was brought.
        async fn be_quiet(&mut self) {
            for _ in 0..=pace::QUIET {
                assert!(matches!(self.ask(get("stream/a")).await, Answer::Entry { .. }));
            }
        }

        fn moves(&self) -> Vec<bool> {
            self.moves.lock().unwrap().to.iter().map(|thread| thread == "replica").collect()
        }

        async fn until_moved(&self, wanted: &[bool]) {
            for _ in 0..1_000 {
                if self.moves() == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("{:?}, not {wanted:?}", self.moves());
        }
    }

    fn frames(asks: &[Ask]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (id, ask) in (0..).zip(asks) {
            protocol::put_frame(&Question { id, ask: ask.clone() }, &mut bytes);
        }
        bytes
    }

    fn get(key: &str) -> Ask {
        Ask::Get { key: Key::from(key), read: Read::Linearizable }
    }

    fn put(key: &str, bytes: usize) -> Ask {
        let op = Op::Put { key: Key::from(key), value: vec![7; bytes].into() };
        Ask::Transact(Transaction { compares: Vec::new(), ops: vec![op] })
    }

    /// Each ends the quiet by itself.
    fn busy() -> Vec<Ask> {
        let (start, end) = (Key::from("stream/a"), Key::from("stream/b"));
        vec![
            Ask::Get { key: start.clone(), read: Read::Local },
            Ask::Get { key: start.clone(), read: Read::AtLeast(Revision(0)) },
            Ask::Range { start, end, limit: 1, read: Read::Linearizable },
            get("o/not/a/streams"),
            put("o/not/a/streams", 1),
            put("stream/big", LITTLE),
        ]
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn beside_the_replica_nothing_is_begun_that_ends_the_quiet() {
        let alone = alone("stream-take").await;
        let beside = |input: Vec<u8>| {
            let mut connection = Connection::new((), alone.store.clone());
            connection.beside = true;
            (0..pace::QUIET).for_each(|_| connection.pace.begins(true, false));
            connection.input = input;
            connection
        };
        for ask in busy() {
            let mut connection = beside(frames(&[ask]));
            let before = connection.input.clone();
            assert!(connection.take().unwrap());
            assert!(connection.pace.is_busy() && connection.input == before);
            assert!(connection.under_way.is_empty() && connection.output.is_empty());
            connection.beside = false;
            assert!(!connection.take().unwrap(), "elsewhere it is begun");
            assert!(connection.pace.is_busy() && connection.input.is_empty());
        }
        // Of two at once the second is left, of a long one the body is not waited for, and a part of a short one is nothing.
        let (one, two) = (frames(&[get("stream/a")]), frames(&[get("stream/a"), get("stream/b")]));
        let mut connection = beside(two);
        assert!(connection.take().unwrap() && connection.pace.is_busy());
        assert_eq!((connection.under_way.len(), connection.input.len()), (1, one.len()));
        let mut connection = beside(frames(&[put("stream/big", LITTLE)])[..4].to_vec());
        assert!(connection.take().unwrap() && connection.pace.is_busy());
        let mut connection = beside(one[..one.len() - 1].to_vec());
        assert!(!connection.take().unwrap() && connection.pace.is_quiet());
        // What stops for answers to be sent says so, also when it took nothing.
        connection.input = one;
        connection.output = vec![0; OUTPUT_BYTES];
        assert!(connection.take().unwrap() && connection.under_way.is_empty());
        let entry = Entry::new(b"stream/a", &vec![7; LITTLE], Revision(1), Revision(1));
        let answer = Answer::Entry { revision: Revision(1), entry: Some(Held(entry)) };
        connection.put(&[Reply { id: 1, answer }]);
        assert!(connection.pace.is_busy(), "it was answered with much");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_quiet_connection_goes_beside_the_replica_and_comes_back_with_what_it_was_asked() {
        let alone = alone("stream-moves").await;
        let mut client = client(&alone.store);
        let mut wanted = Vec::new();
        for ask in busy() {
            client.be_quiet().await;
            wanted.push(true);
            assert_eq!(client.moves(), wanted);
            client.ask(ask).await;
            wanted.push(false);
            assert_eq!(client.moves(), wanted);
        }
        client.be_quiet().await;
        client.send(&[get("stream/a"), get("stream/b")]).await;
        client.answer().await;
        client.answer().await;
        wanted.extend([true, false]);
        assert_eq!(client.moves(), wanted);
        // An answer with much.
        client.ask(put("stream/much", LITTLE)).await;
        client.be_quiet().await;
        assert!(matches!(client.ask(get("stream/much")).await, Answer::Entry { entry: Some(_), .. }));
        wanted.extend([true, false]);
        client.until_moved(&wanted).await;
        // A long one moves before its body comes.
        client.be_quiet().await;
        let bytes = frames(&[put("stream/big", LITTLE)]);
        client.stream.write_all(&bytes[..100]).await.unwrap();
        wanted.extend([true, false]);
        client.until_moved(&wanted).await;
        client.stream.write_all(&bytes[100..]).await.unwrap();
        assert!(matches!(client.answer().await, Answer::Done { .. }));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn without_a_descriptor_a_connection_stays_where_it_is_and_is_answered() {
        let alone = alone("stream-stays").await;
        let mut client = client(&alone.store);
        client.moves.lock().unwrap().fail = true;
        client.be_quiet().await;
        client.be_quiet().await;
        // Each try ends with one to come back, whatever became of it.
        assert_eq!(client.moves(), [true, false, true, false]);
        client.moves.lock().unwrap().fail = false;
        client.be_quiet().await;
        client.moves.lock().unwrap().fail = true;
        client.ask(busy().remove(0)).await;
        client.be_quiet().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_sits_beside_the_replica_leaves_when_another_is_quiet() {
        let alone = alone("stream-seat").await;
        let (mut first, mut second) = (client(&alone.store), client(&alone.store));
        for _ in 0..2 {
            first.be_quiet().await;
        }
        assert_eq!(first.moves(), [true]);
        // It may stay for a second, then it leaves, though it is idle.
        until_quiet_enough(&mut second, &first, &[true, false]).await;
        while second.moves().is_empty() {
            second.be_quiet().await;
        }
        assert_eq!(second.moves(), [true], "that it asked does not drive it out");
        second.be_quiet().await;
        assert_eq!(second.moves(), [true]);
        until_quiet_enough(&mut first, &second, &[true, false]).await;
    }

    /// Asks one at a time until the other has moved so.
    async fn until_quiet_enough(asks: &mut Client, other: &Client, wanted: &[bool]) {
        let before = clock::millis();
        while other.moves() != wanted {
            asks.be_quiet().await;
            assert!(clock::millis() - before < 20_000, "{:?}", other.moves());
        }
    }
}
