//! Every decoder of bytes from disks, machines and people, against changed ones: no panic, bounded memory, and what is taken is
//! the same after encoding and decoding. A few seconds of each here; `make fuzz SECONDS=… TARGET=…` runs on.
//!
//! Inputs begin as real encodings (the crates' `fuzzing` modules) and as what `fuzz/corpus/TARGET` keeps: encodings of earlier
//! versions (`seed-*`), which must be taken for ever, and finds (`find-*`).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a whole test crate")]

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/sys.rs"]
mod sys;

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use nix::time::ClockId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Target = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> Result<bool, String>);

/// What decoding any bytes may claim: what the protocols allow at most to a short input, and some times the input's length.
const CLAIM: usize = 24 << 20;
const CLAIM_PER_BYTE: usize = 64;
/// Inputs that are kept to go on from.
const POOL: usize = 400;
const LONGEST: usize = 64 << 10;

fn all() -> Vec<Target> {
    [raft_store::fuzzing::TARGETS, agent::fuzzing::TARGETS, runtime::fuzzing::TARGETS].concat()
}

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus").join(name)
}

/// What is kept on disk, with the files' names.
fn kept(name: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(name)).into_iter().flatten().flatten();
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// One input; whether it was taken.
fn judge(target: Target, bytes: &[u8]) -> Result<bool, String> {
    let before = sys::mark();
    let judged = std::panic::catch_unwind(|| (target.2)(bytes));
    let claimed = sys::most_since(before);
    let taken = judged.map_err(|_| "a panic".to_string())??;
    if claimed > CLAIM + CLAIM_PER_BYTE * bytes.len() {
        return Err(format!("{claimed} bytes of memory for {} bytes of input", bytes.len()));
    }
    Ok(taken)
}

/// What this thread has had of a processor: a busy machine is no reason to try less.
fn spent() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
}

/// Judges changed inputs for so much of a processor's time; answers how many, and how many were taken.
fn fuzz(target: Target, time: Duration, seed: u64) -> (u64, u64) {
    let (name, seeds, _) = target;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut pool: Vec<Vec<u8>> =
        seeds().into_iter().chain(kept(name).into_iter().map(|(_, bytes)| bytes)).collect();
    let own = pool.len();
    assert!(own > 0, "{name} has no inputs to begin with");
    let end = spent() + time;
    let (mut tried, mut taken) = (0, 0);
    while spent() < end {
        let mut bytes = pool[rng.random_range(0..pool.len())].clone();
        for _ in 0..rng.random_range(1..=4) {
            let other = &pool[rng.random_range(0..pool.len())];
            bytes = mutate::changed(&bytes, other, &mut rng);
        }
        bytes.truncate(LONGEST);
        tried += 1;
        match judge(target, &bytes) {
            Ok(true) => {
                taken += 1;
                if pool.len() < POOL {
                    pool.push(bytes);
                } else if own < POOL && rng.random_bool(0.05) {
                    let at = rng.random_range(own..pool.len());
                    pool[at] = bytes;
                }
            }
            Ok(false) => {}
            Err(what) => {
                let path = corpus(name).join(format!("find-{seed}-{tried}"));
                std::fs::create_dir_all(corpus(name)).unwrap();
                std::fs::write(&path, &bytes).unwrap();
                panic!("{name}: {what}; the input is kept in {}", path.display());
            }
        }
    }
    (tried, taken)
}

fn named(name: &str) -> Target {
    all().into_iter().find(|target| target.0 == name).unwrap_or_else(|| panic!("no target {name}"))
}

macro_rules! a_while {
    ($($test:ident: $target:literal,)*) => {
        const NAMES: &[&str] = &[$($target,)*];
        $(#[test]
        fn $test() {
            fuzz(named($target), Duration::from_secs(2), 1);
        })*
    };
}

a_while! {
    commands_survive_changes: "command",
    batches_survive_changes: "batch",
    segments_survive_changes: "segment",
    snapshots_survive_changes: "snapshot",
    backups_survive_changes: "backup",
    raft_messages_survive_changes: "raft-message",
    feeds_survive_changes: "feed-message",
    read_contexts_survive_changes: "read-context",
    datagrams_survive_changes: "mesh-datagram",
    requests_survive_changes: "mesh-request",
    responses_survive_changes: "mesh-response",
    exec_frames_survive_changes: "mesh-exec",
    join_requests_survive_changes: "mesh-join-request",
    join_answers_survive_changes: "mesh-join-answer",
    cluster_versions_survive_changes: "mesh-supports",
    forwarded_commands_survive_changes: "mesh-forwarded",
    settled_commands_survive_changes: "mesh-settled",
    commands_of_the_mesh_survive_changes: "mesh-command",
    outcomes_survive_changes: "mesh-outcome",
    marks_survive_changes: "mesh-marks",
    questions_of_streams_survive_changes: "stream-question",
    replies_of_streams_survive_changes: "stream-reply",
    frames_of_streams_survive_changes: "stream-frame",
    join_tokens_survive_changes: "join-token",
    shim_requests_survive_changes: "shim-request",
    shim_messages_survive_changes: "shim-message",
    image_indexes_survive_changes: "image-index",
    image_manifests_survive_changes: "image-manifest",
    image_configs_survive_changes: "image-config",
    image_archives_survive_changes: "image-archive",
    image_layers_survive_changes: "image-layer",
}

#[test]
fn every_decoder_has_its_test_and_takes_what_is_kept() {
    for target in all() {
        assert!(NAMES.contains(&target.0), "{} has no test here", target.0);
        for (file, bytes) in kept(target.0) {
            let judged = judge(target, &bytes);
            assert!(
                judged.is_ok() && (judged == Ok(true) || !file.starts_with("seed-")),
                "{} {file}: {judged:?}",
                target.0
            );
        }
    }
}

/// Functions that make something of bytes, and the target that reaches each of them, or why it needs none. (What the mesh and the
/// store's streams decode is held to this by the compiler: `agent::mesh::wire::Fuzzed`.)
const READERS: &[(&str, &str, Result<&str, &str>)] = &[
    ("raft-store/src/codec.rs", "decode_command", Ok("command")),
    ("raft-store/src/codec.rs", "decode_command_for", Ok("command")),
    ("raft-store/src/codec.rs", "decode", Ok("command")),
    ("raft-store/src/feed.rs", "decode", Ok("feed-message")),
    ("raft-store/src/log/batch.rs", "decode_body", Ok("batch")),
    ("raft-store/src/log/batch.rs", "decode_header", Ok("batch")),
    ("raft-store/src/log/batch.rs", "decode", Ok("batch")),
    ("raft-store/src/log/segment.rs", "decode_header", Ok("segment")),
    ("raft-store/src/replica/reads.rs", "decode", Ok("read-context")),
    ("raft-store/src/rescue.rs", "from_backup", Ok("backup")),
    ("raft-store/src/snapshot.rs", "decode", Ok("snapshot")),
    ("raft-store/src/snapshot/decoder.rs", "parse", Ok("snapshot")),
    ("raft-store/src/state/entry.rs", "decode_held", Ok("snapshot")),
    ("raft-store/src/wire.rs", "decode", Ok("raft-message")),
    ("runtime/src/image/config.rs", "parse", Ok("image-config")),
    ("runtime/src/image/manifest.rs", "parse", Ok("image-manifest")),
    ("runtime/src/logs/line.rs", "parse", Err("lines of this machine's own logs; tested beside it")),
    ("agent/src/control/key.rs", "parse", Err("keys that admission has written")),
    ("agent/src/mesh/wire.rs", "decode", Ok("mesh-request")),
];

/// Every function of a file that takes bytes and bears a decoder's name.
fn readers(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let named = code.match_indices("fn ").filter_map(|(at, _)| {
        let signature = code[at + 3..].split(['{', ';']).next()?;
        let name = signature.split(['<', '(']).next()?;
        let takes = signature.split("->").next()?;
        let decodes = name.contains("decode") || name == "parse" || name.starts_with("from_backup");
        (decodes && takes.contains("[u8]") && !takes.contains("&mut [u8]")).then_some(name)
    });
    named.collect()
}

#[test]
fn every_function_that_decodes_bytes_is_reached_by_a_target() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf();
    let mut directories: Vec<PathBuf> =
        ["raft-store", "runtime", "agent"].iter().map(|of| root.join(of).join("src")).collect();
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            if file.ends_with("fuzzing.rs") || file.ends_with("tests.rs") {
                continue;
            }
            for name in readers(&std::fs::read_to_string(&path).unwrap()) {
                let row = READERS.iter().find(|row| (row.0, row.1) == (file.as_str(), name));
                match row {
                    Some((_, _, Err(_))) => {}
                    Some((_, _, Ok(target))) => assert!(NAMES.contains(target), "no target {target}"),
                    None => unknown.push(format!("{file}: {name}")),
                }
                found.push((file.clone(), name.to_owned()));
            }
        }
    }
    assert!(unknown.is_empty(), "give these a target, or say in READERS which one reaches them: {unknown:?}");
    let gone: Vec<_> = READERS
        .iter()
        .filter(|row| !found.iter().any(|(file, name)| (row.0, row.1) == (file, name)))
        .collect();
    assert!(gone.is_empty(), "these are no more: {gone:?}");
}

/// Finds, by reading: tar's long names were taken into memory whole, and a compressed archive makes long ones of few bytes.
#[test]
fn a_long_name_in_an_archive_or_a_layer_is_not_taken_into_memory() {
    for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(100 << 20);
        header.set_cksum();
        archive.append(&header, std::io::repeat(b'a').take(100 << 20)).unwrap();
        let short = zstd::encode_all(archive.into_inner().unwrap().as_slice(), 1).unwrap();
        assert!(short.len() < 64 << 10, "{}", short.len());
        assert_eq!(judge(named("image-archive"), &short), Ok(false));
        assert_eq!(judge(named("image-layer"), &short), Ok(false));
    }
}

#[test]
fn the_judge_finds_a_panic_and_memory_without_bound() {
    let panics: Target = ("x", Vec::new, |bytes| Ok(bytes[0] == 1));
    assert_eq!(judge(panics, &[]), Err("a panic".into()));
    let greedy: Target = ("x", Vec::new, |bytes| Ok(Vec::<u8>::with_capacity(64 << 20).len() == bytes.len()));
    assert!(judge(greedy, &[1]).unwrap_err().contains("bytes of memory"));
}

/// Run by `make fuzz`.
#[test]
#[ignore = "as long as wanted"]
fn as_long_as_wanted() {
    let wanted = std::env::var("SKEIN_FUZZ_TARGET").unwrap_or_default();
    let seconds: u64 =
        std::env::var("SKEIN_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let seed = std::env::var("SKEIN_FUZZ_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(u64::from(std::process::id()));
    let targets: Vec<Target> =
        all().into_iter().filter(|target| wanted.is_empty() || target.0 == wanted).collect();
    assert!(!targets.is_empty(), "no target {wanted}; there are {NAMES:?}");
    println!("seed {seed}");
    // Two threads, each target its share of the time.
    let share = Duration::from_millis(seconds * 1_000 * 2 / (targets.len() as u64).max(2));
    testbed::clock::threads(|scope| {
        let halves: Vec<Vec<Target>> =
            (0..2).map(|n| targets.iter().copied().skip(n).step_by(2).collect()).collect();
        for half in halves {
            scope.spawn(move || {
                for target in half {
                    let (tried, taken) = fuzz(target, share, seed);
                    println!(
                        "{:18} {tried:>10} inputs, {taken:>9} taken, {:.0} s of a processor",
                        target.0,
                        share.as_secs_f64()
                    );
                }
            });
        }
    });
}

/// Run by hand when an encoding is new: keeps today's for later versions.
#[test]
#[ignore = "writes into the working tree"]
fn keep_todays_encodings() {
    for (name, seeds, check) in all() {
        std::fs::create_dir_all(corpus(name)).unwrap();
        for (n, bytes) in seeds().into_iter().enumerate() {
            if check(&bytes) == Ok(true) {
                std::fs::write(corpus(name).join(format!("seed-1-{n:02}")), bytes).unwrap();
            }
        }
    }
}
