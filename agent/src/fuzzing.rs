//! The types that are decoded from other machines' and people's bytes, each with its door for the fuzzer.
//!
//! Decides which types the wire's decoder takes (`wire::Fuzzed`: what has no row here cannot be decoded), and what a decoder owes: no
//! panic, and what it takes it gives back.

use raft_store::consistency::Marks;
use raft_store::{
    Command, Compare, Expect, Key, NodeId, Op, Outcome, Refusal, Revision, SessionId, Transaction,
};

use crate::mesh::wire::{
    self, Datagram, ExecFrame, Forwarded, JoinAnswer, JoinRequest, LogWish, Request, Response, Settled,
    Supports,
};
use crate::pki::Token;
use crate::server::stream::protocol::{self, Answer, Ask, Held, Question, Read, Reply};

/// A name, bytes to begin with, and the check: whether the bytes were taken, or what is wrong.
pub type Target = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> Result<bool, String>);

macro_rules! decoders {
    (wire: {$($name:literal: $type:ty, $seeds:ident;)*} others: {$($other:expr;)*}) => {
        $(impl wire::Fuzzed for $type {})*

        /// All decoders.
        pub const TARGETS: &[Target] = &[$(($name, $seeds, check::<$type>),)* $($other,)*];
    };
}

decoders! {
    wire: {
        "mesh-datagram": Datagram, datagrams;
        "mesh-request": Request, requests;
        "mesh-response": Response, responses;
        "mesh-exec": ExecFrame, exec_frames;
        "mesh-join-request": JoinRequest, join_requests;
        "mesh-join-answer": JoinAnswer, join_answers;
        "mesh-supports": Supports, supports;
        "mesh-forwarded": Forwarded, forwarded;
        "mesh-settled": Settled, settled;
        "mesh-command": Command, commands;
        "mesh-outcome": Outcome, outcomes;
        "mesh-marks": Marks, marks;
        "stream-question": Question, questions;
        "stream-reply": Reply, replies;
    }
    others: {
        ("stream-frame", frames, check_frame);
        ("join-token", tokens, check_token);
    }
}

fn check<T: wire::Fuzzed>(bytes: &[u8]) -> Result<bool, String> {
    let Ok(message) = wire::decode::<T>(bytes) else { return Ok(false) };
    match wire::decode::<T>(&wire::encode(&message)) {
        Ok(again) if again == message => Ok(true),
        _ => Err("a message is another one after encoding and decoding".into()),
    }
}

fn datagrams() -> Vec<Vec<u8>> {
    let all = [Datagram::Gossip(vec![7; 40]), Datagram::Ping(1 << 40), Datagram::Pong(3)];
    all.iter().map(wire::encode).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let text = || "sha256:0123456789abcdef".to_string();
    let options = LogWish {
        follow: true,
        previous: false,
        timestamps: true,
        tail: Some(10),
        since: Some("2026-01-01T00:00:00Z".into()),
        limit_bytes: None,
    };
    let all = [
        Request::Propose(vec![1; 30]),
        Request::Exchange(vec![2; 30]),
        Request::Probe { node: 77 },
        Request::HaveBlobs(vec![text(), text()]),
        Request::FetchBlob(text()),
        Request::KeepBlob { digest: text(), size: 1 << 33, from: 4 },
        Request::SignClient { user: "admin".into(), groups: vec!["g".into()] },
        Request::SignMember { signing_request: text(), name: "m".into(), address: "10.0.0.1".into() },
        Request::Logs { uid: "u".into(), container: "c".into(), options },
        Request::Exec { uid: "u".into(), container: "c".into(), args: vec!["sh".into()], stdin: true },
        Request::Survey,
        Request::Recover { lost: vec!["host2".into()] },
        Request::NewEpoch { epoch: 2, members: "[]".into() },
        Request::Marks,
        Request::Life { number: 1 << 50, place: "host2 (10.0.0.2)".into() },
    ];
    all.iter().map(wire::encode).collect()
}

fn responses() -> Vec<Vec<u8>> {
    let all = [
        Response::Done,
        Response::Outcome(vec![0; 9]),
        Response::Exchanged(vec![3; 20]),
        Response::Reached(true),
        Response::Blobs(vec![true, false]),
        Response::Blob { size: 1 << 20 },
        Response::Signed { certificate: "c".into(), key: "k".into() },
        Response::Certificate("c".into()),
        Response::Refused("why".into()),
        Response::Survey(b"{}".to_vec()),
        Response::Marks(vec![0; 34]),
        Response::Doubled("a and b".into()),
        Response::InEpoch(3),
    ];
    all.iter().map(wire::encode).collect()
}

fn exec_frames() -> Vec<Vec<u8>> {
    let all = [
        ExecFrame::Stdin(vec![1; 20]),
        ExecFrame::StdinEnd,
        ExecFrame::Exit(-1),
        ExecFrame::Failed("f".into()),
    ];
    all.iter().map(wire::encode).collect()
}

fn join_requests() -> Vec<Vec<u8>> {
    ["10.0.0.1:7443", "[fd00::1]:7443"]
        .iter()
        .filter_map(|address| address.parse().ok())
        .map(|address| JoinRequest {
            secret: "0123456789abcdef".into(),
            name: "host2".into(),
            address,
            api_port: 6443,
            signing_request: "-----BEGIN CERTIFICATE REQUEST-----".into(),
        })
        .map(|request| wire::encode(&request))
        .collect()
}

fn join_answers() -> Vec<Vec<u8>> {
    let welcome = JoinAnswer::Welcome {
        cluster: "00".repeat(16),
        epoch: 1,
        certificate: "c".into(),
        ca_certificate: "a".into(),
        ca_key: Some("k".into()),
        member: "{}".into(),
        members: "[]".into(),
    };
    [welcome, JoinAnswer::Refused("why".into())].iter().map(wire::encode).collect()
}

fn tokens() -> Vec<Vec<u8>> {
    let token = Token { ca_hash: [0xa5; 32], secret: "0123456789abcdef0123456789abcdef".into() };
    vec![token.to_string().into_bytes()]
}

fn check_token(bytes: &[u8]) -> Result<bool, String> {
    let text = String::from_utf8_lossy(bytes);
    let Ok(token) = Token::parse(&text) else { return Ok(false) };
    match Token::parse(&token.to_string()) {
        Ok(again) if again == token => Ok(true),
        other => Err(format!("the token {token} reads as {other:?}")),
    }
}

fn supports() -> Vec<Vec<u8>> {
    vec![wire::encode(&Supports { oldest: 1, newest: 2 })]
}

fn transaction() -> Transaction {
    let expects = [Expect::Absent, Expect::ModRevision(Revision(300))];
    let compares = expects.map(|expect| Compare { key: "stream/a".into(), expect }).to_vec();
    let ops = vec![
        Op::Put { key: "stream/a".into(), value: "1".repeat(40).into() },
        Op::Delete { key: "stream/b".into() },
        Op::PutFor { key: "stream/c".into(), value: "x".into(), seconds: 90 },
    ];
    Transaction { compares, ops }
}

fn commands() -> Vec<Vec<u8>> {
    let session = SessionId(5);
    let transact = Command::Transact { session, sequence: 2, epoch: None, transaction: transaction() };
    let all = [Command::OpenSession { session }, transact, Command::CloseSession { session }];
    all.iter().map(wire::encode).collect()
}

fn outcomes() -> Vec<Vec<u8>> {
    let all = [
        Outcome::Applied { revision: Revision(300), changed: true },
        Outcome::CompareFailed { index: 1, key: Key::from("stream/a"), actual: Some(Revision(4)) },
        Outcome::NotLeader { leader: Some(NodeId(2)) },
        Outcome::MembersChanged { voters: vec![NodeId(1), NodeId(2)], learners: vec![NodeId(3)] },
        Outcome::Refused(Refusal::Busy),
    ];
    all.iter().map(wire::encode).collect()
}

fn forwarded() -> Vec<Vec<u8>> {
    let all = commands().into_iter().map(|command| Forwarded { id: 70_000, command });
    all.map(|forwarded| wire::encode(&forwarded)).collect()
}

fn settled() -> Vec<Vec<u8>> {
    let all = outcomes().into_iter().map(|outcome| Settled { id: 70_000, outcome });
    all.map(|settled| wire::encode(&settled)).collect()
}

fn marks() -> Vec<Vec<u8>> {
    let every = (1..=3).map(|n| (n * 1_024, [n as u8; 32])).collect();
    [Marks::default(), Marks { newest: (5_000, [9; 32]), every }].iter().map(wire::encode).collect()
}

fn some_questions() -> Vec<Question> {
    let key = || Key::from("stream/a");
    let range = Ask::Range { start: key(), end: "stream/z".into(), limit: 10, read: Read::Local };
    let asks = [
        Ask::Transact(transaction()),
        Ask::Get { key: key(), read: Read::Linearizable },
        Ask::Get { key: key(), read: Read::AtLeast(Revision(300)) },
        range,
    ];
    asks.into_iter().map(|ask| Question { id: 70_000, ask }).collect()
}

fn questions() -> Vec<Vec<u8>> {
    some_questions().iter().map(wire::encode).collect()
}

fn replies() -> Vec<Vec<u8>> {
    let revision = Revision(300);
    let entry = || raft_store::Entry::new(b"stream/a", b"value", Revision(2), revision);
    let answers = [
        Answer::Done { revision },
        Answer::CompareFailed { index: 0, key: "stream/a".into(), actual: None },
        Answer::Entry {
            revision,
            entry: Some(Held(raft_store::Entry::new(&[], b"value", revision, revision))),
        },
        Answer::Entries { revision, entries: vec![entry(), entry()], more: true },
        Answer::NoLeader("no".into()),
    ];
    answers.into_iter().map(|answer| wire::encode(&Reply { id: 7, answer })).collect()
}

fn frames() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    some_questions().iter().for_each(|question| protocol::put_frame(question, &mut bytes));
    vec![bytes]
}

/// Takes what has arrived whole, as the server does; the same questions must come of their own bytes.
fn check_frame(bytes: &[u8]) -> Result<bool, String> {
    let take = |bytes: &[u8]| {
        let (mut used, mut questions) = (0, Vec::new());
        while let Ok(Some((question, length))) = protocol::take_frame::<Question>(&bytes[used..]) {
            used += length;
            questions.push(question);
        }
        questions
    };
    let (questions, mut again) = (take(bytes), Vec::new());
    questions.iter().for_each(|question| protocol::put_frame(question, &mut again));
    if take(&again) != questions {
        return Err("questions are others after encoding and decoding".into());
    }
    Ok(!questions.is_empty())
}
