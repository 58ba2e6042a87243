//! Doors for the fuzzer to this crate's decoders of what comes from other machines and from people.
//!
//! Decides what a decoder owes: no panic, and what it takes it gives back. It must not be used by a running agent.

use bincode::{Decode, Encode};

use crate::mesh::wire::{self, Datagram, ExecFrame, JoinAnswer, JoinRequest, LogWish, Request, Response};
use crate::pki::Token;

/// A name, bytes to begin with, and the check: whether the bytes were taken, or what is wrong.
pub type Target = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> Result<bool, String>);

/// All decoders.
pub const TARGETS: &[Target] = &[
    ("mesh-datagram", datagrams, check::<Datagram>),
    ("mesh-request", requests, check::<Request>),
    ("mesh-response", responses, check::<Response>),
    ("mesh-exec", exec_frames, check::<ExecFrame>),
    ("mesh-join-request", join_requests, check::<JoinRequest>),
    ("mesh-join-answer", join_answers, check::<JoinAnswer>),
    ("join-token", tokens, check_token),
];

fn check<T: Decode<()> + Encode + PartialEq>(bytes: &[u8]) -> Result<bool, String> {
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
