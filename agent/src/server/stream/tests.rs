//! A client of a stream, and a replica that is alone: where its connection is served, and what it is answered.

use std::sync::{Arc, Mutex};

use raft_store::{Op, Revision};
use tokio::io::DuplexStream;

use super::*;
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
    connection.put(&Reply { id: 1, answer });
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

/// A connection whose futures nobody polls, of a machine that is alone.
fn idle(store: &Store) -> Connection<()> {
    Connection::new((), store.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_are_encoded_when_there_is_room_for_them() {
    let alone = alone("stream-room").await;
    let mut client = client(&alone.store);
    for n in 0..4 {
        assert!(matches!(client.ask(put(&format!("stream/{n}"), 1_000_000)).await, Answer::Done { .. }));
    }
    let range = || {
        let (start, end) = (Key::from("stream/"), Key::from("stream/z"));
        Ask::Range { start, end, limit: u32::MAX, read: Read::Linearizable }
    };
    let mut connection = idle(&alone.store);
    for id in 0..100 {
        let found = Found::Look(alone.store.view(), range());
        connection.weight += 10;
        connection.ready.push_back(Ready { id, weight: 10, found });
    }
    let mut answered = 0;
    while connection.encode() {
        let bytes = std::mem::take(&mut connection.output);
        assert!(bytes.len() < OUTPUT_BYTES + ANSWER_BYTES + LITTLE, "{} bytes at once", bytes.len());
        let mut rest = &bytes[..];
        while let Some((reply, length)) = protocol::take_frame::<Reply>(rest).unwrap() {
            assert_eq!(reply.id, answered);
            assert!(matches!(reply.answer, Answer::Entries { entries, .. } if entries.len() == 4));
            answered += 1;
            rest = &rest[length..];
        }
    }
    assert_eq!((answered, connection.weight), (100, 0));
    // The same by the wire: as many as may be under way, to a client that reads late.
    client.send(&vec![range(); 50]).await;
    for _ in 0..50 {
        assert!(matches!(client.answer().await, Answer::Entries { .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn questions_under_way_are_bounded_by_their_bytes() {
    let alone = alone("stream-weight").await;
    let mut connection = idle(&alone.store);
    connection.input = frames(&vec![put("stream/a", 6 << 20); 5]);
    assert!(connection.take().unwrap());
    assert_eq!(connection.under_way.len(), 3, "the third is over");
    assert!(!connection.may_begin() && !connection.input.is_empty());
    connection.weight = 0;
    assert!(!connection.take().unwrap());
    assert_eq!((connection.under_way.len(), connection.input.len()), (5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_asks_and_says_goodbye_is_answered_first() {
    let alone = alone("stream-goodbye").await;
    for beside in [false, true] {
        let mut client = client(&alone.store);
        if beside {
            client.be_quiet().await;
        }
        let mut bytes = frames(&[put("stream/a", 1), get("stream/a"), get("stream/b")]);
        // A question that never comes whole is none.
        bytes.extend([0, 0, 0]);
        client.stream.write_all(&bytes).await.unwrap();
        client.stream.shutdown().await.unwrap();
        for _ in 0..3 {
            assert!(!matches!(client.answer().await, Answer::Refused(_) | Answer::NoLeader(_)));
        }
        let end = tokio::time::timeout(Duration::from_secs(10), client.stream.read_buf(&mut client.input));
        assert_eq!(end.await.unwrap().unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_question_that_comes_in_many_parts_does_not_come_to_the_replica() {
    let alone = alone("stream-parts").await;
    let mut client = client(&alone.store);
    client.be_quiet().await;
    client.moves.lock().unwrap().trickle = true;
    assert!(matches!(client.ask(put("stream/a", 100)).await, Answer::Done { .. }));
    assert_eq!(client.moves(), [true, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_seat_goes_round_though_one_is_faster() {
    let alone = alone("stream-round").await;
    let (mut fast, mut slow) = (client(&alone.store), client(&alone.store));
    fast.be_quiet().await;
    let began = clock::millis();
    while slow.moves().is_empty() {
        // Forty questions of one for one of the other.
        for _ in 0..40 {
            fast.ask(get("stream/a")).await;
        }
        slow.ask(get("stream/b")).await;
        assert!(clock::millis() - began < 20_000, "it never has the seat");
    }
    assert_eq!(slow.moves(), [true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_takes_nothing_is_given_up() {
    let alone = alone("stream-stall").await;
    let (mut here, there) = tokio::io::duplex(1 << 10);
    let mut connection = Connection::new(Pipe(there, Arc::default()), alone.store.clone());
    connection.stall = Duration::from_millis(50);
    connection.output = vec![7; 3 << 10];
    let reads = async {
        // As long as it takes something it may be slow.
        let mut bytes = [0; 1 << 10];
        here.read_exact(&mut bytes).await.unwrap();
        here
    };
    let (sent, _here) = tokio::join!(connection.send(), reads);
    assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(connection.sending.position(), 2 << 10);
}
