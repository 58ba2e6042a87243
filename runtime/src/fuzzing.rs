//! Doors for the fuzzer to this crate's decoders: the shim's protocol, and the documents of images.
//!
//! Decides what a decoder owes: no panic, and what it takes it gives back. Must not be used by a running agent or shim.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::{ContainerName, Digest};
use crate::shim::protocol::{Answer, Call, Create, Message, Refusal, Request};

/// A name, bytes to begin with, and the check: whether the bytes were taken, or what is wrong.
pub type Target = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> Result<bool, String>);

/// All decoders.
pub const TARGETS: &[Target] = &[
    ("shim-request", requests, check::<Request>),
    ("shim-message", messages, check::<Message>),
    ("image-index", crate::image::fuzzing::indexes, crate::image::fuzzing::check_index),
    ("image-manifest", crate::image::fuzzing::manifests, crate::image::fuzzing::check_manifest),
    ("image-config", crate::image::fuzzing::configs, crate::image::fuzzing::check_config),
    ("image-archive", crate::image::fuzzing::archives, crate::image::fuzzing::check_archive),
    ("image-layer", crate::image::fuzzing::layers, crate::image::fuzzing::check_layer),
];

/// Equal after writing and reading, by what is written: not all types compare.
fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<bool, String> {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return Ok(false) };
    let failed =
        |error: serde_json::Error| format!("what was read cannot be written and read again: {error}");
    let first = serde_json::to_vec(&value).map_err(failed)?;
    let again = serde_json::to_vec(&serde_json::from_slice::<T>(&first).map_err(failed)?).map_err(failed)?;
    if first == again { Ok(true) } else { Err("a message is another one after writing and reading".into()) }
}

fn written(all: &[impl Serialize]) -> Vec<Vec<u8>> {
    all.iter().filter_map(|value| serde_json::to_vec(value).ok()).collect()
}

fn name() -> Option<ContainerName> {
    serde_json::from_str("\"web\"").ok()
}

fn requests() -> Vec<Vec<u8>> {
    let Some(name) = name() else { return Vec::new() };
    let create = Create {
        name: name.clone(),
        attempt: 1,
        bundle: "/b".into(),
        log: "/l".into(),
        log_max_bytes: 1 << 20,
        log_max_files: 3,
        exit_file: "/e".into(),
        oom_file: Some("/o".into()),
        limit_ms: 60_000,
    };
    let calls = [
        Call::Create(create),
        Call::Start { name: name.clone(), limit_ms: 10 },
        Call::Exec { name: name.clone(), session: 3, process: "/p".into(), limit_ms: 10 },
        Call::Signal { name: name.clone(), signal: 15 },
        Call::SignalSession { session: 3, signal: 9 },
        Call::Delete { name, limit_ms: 10 },
        Call::Status,
        Call::Quit,
    ];
    written(&(1..).zip(calls).map(|(id, call)| Request { id, call }).collect::<Vec<_>>())
}

fn messages() -> Vec<Vec<u8>> {
    let Some(name) = name() else { return Vec::new() };
    let report = crate::shim::protocol::ContainerReport { name, attempt: 1, started: None, exit: None };
    written(&[
        Message::Reply { id: 1, answer: Ok(Answer::Done) },
        Message::Reply { id: 2, answer: Ok(Answer::Containers(vec![report])) },
        Message::Reply { id: 3, answer: Ok(Answer::Pid(4)) },
        Message::Reply { id: 4, answer: Err(Refusal::TimedOut { operation: "start".into(), limit_ms: 5 }) },
        Message::SessionExited { session: 3, code: 137 },
    ])
}

/// A digest for documents.
pub(crate) fn digest() -> Digest {
    Digest::from_bytes([0x5a; 32])
}
