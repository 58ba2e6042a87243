//! Doors for the fuzzer to this crate's decoders: real encodings to begin with, and what must hold for any bytes.
//! Decides what a decoder owes: no panic, and what it takes it gives back. Must not be used by anything that runs in a cluster.
//!
//! Where a checksum would refuse nearly every change, the bytes are judged twice: as they are, and with checksums that fit.

use prost::Message as _;
use raft::eraftpb::{Entry as LogEntry, EntryType, HardState, Message, MessageType};

use crate::codec;
use crate::command::{Command, Compare, Expect, Op, Transaction};
use crate::disk::Disk;
use crate::feed::follow::{self, Fit};
use crate::feed::growing::Growing;
use crate::feed::{
    self, Batch as FedBatch, FedEntry, Feed, News, Picture, Piece, Place, Reason, Scope, Want,
};
use crate::ids::{ClusterId, Epoch, NodeId, Revision, SessionId};
use crate::log::batch::{self, Batch, Chain};
use crate::log::identity::Identity;
use crate::log::recover;
use crate::log::segment::{self, Segment};
use crate::log::snapfile;
use crate::replica::reads::ReadContext;
use crate::rescue::{self, Rescued};
use crate::sim_disk::MemDisk;
use crate::snapshot;
use crate::state::State;
use crate::storage::Memory;
use crate::view::View;
use crate::wire::{self, Said};

/// A name, bytes to begin with, and the check: whether the bytes were taken, or what is wrong.
pub type Target = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> Result<bool, String>);

/// All decoders of this crate.
pub const TARGETS: &[Target] = &[
    ("command", commands, check_command),
    ("batch", batches, check_batch),
    ("segment", segments, check_segment),
    ("snapshot", snapshots, check_snapshot),
    ("backup", backups, check_backup),
    ("raft-message", messages, check_message),
    ("feed-message", feeds, check_feed),
    ("read-context", contexts, check_context),
];

const OWNER: Identity = Identity { cluster: ClusterId([7; 16]), node: NodeId(3) };
const SALT: u32 = 0x5a17_0001;

fn some_commands() -> Vec<Command> {
    let session = SessionId(5);
    let ops = vec![
        Op::Put { key: "o/a".into(), value: "1".repeat(40).into() },
        Op::Delete { key: "o/b".into() },
        Op::PutFor { key: "s/c".into(), value: "x".into(), seconds: 90 },
    ];
    let compares = [Expect::Absent, Expect::Present, Expect::ModRevision(Revision(300))];
    let compares = compares.into_iter().map(|expect| Compare { key: "o/a".into(), expect }).collect();
    let transaction = Transaction { compares, ops };
    let plain = Transaction { compares: vec![], ops: transaction.ops.clone() };
    vec![
        Command::Epoch { term: 2 },
        Command::OpenSession { session },
        Command::Transact { session, sequence: 1, epoch: None, transaction: plain },
        Command::Transact { session, sequence: 2, epoch: Some(Epoch(2)), transaction },
        Command::Compact { floor: Revision(1), epoch: Epoch(2) },
        Command::CloseSession { session },
    ]
}

fn commands() -> Vec<Vec<u8>> {
    some_commands().iter().map(codec::encode_command).collect()
}

fn check_command(bytes: &[u8]) -> Result<bool, String> {
    let Ok(command) = codec::decode_command(bytes) else { return Ok(false) };
    let again = codec::decode_command(&codec::encode_command(&command));
    same(again.as_ref() == Ok(&command), "a command")
}

fn contexts() -> Vec<Vec<u8>> {
    vec![ReadContext { asker: NodeId(2), boot: 7, counter: 70_000 }.encode()]
}

fn check_context(bytes: &[u8]) -> Result<bool, String> {
    let Some(context) = ReadContext::decode(bytes) else { return Ok(false) };
    same(context.encode() == bytes, "a read's context")
}

fn same(is: bool, what: &str) -> Result<bool, String> {
    if is { Ok(true) } else { Err(format!("{what} is another one after encoding and decoding")) }
}

fn log_entries() -> Vec<LogEntry> {
    let commands = some_commands();
    let data = commands.iter().map(codec::encode_command);
    let entry = |(n, data): (usize, Vec<u8>)| LogEntry {
        entry_type: EntryType::EntryNormal as i32,
        term: 2,
        index: n as u64 + 2,
        data,
        ..LogEntry::default()
    };
    data.enumerate().map(entry).collect()
}

fn some_batches() -> Vec<Batch> {
    let entries = log_entries();
    let hard_state = |commit| HardState { term: 2, vote: 3, commit };
    vec![
        Batch { hard_state: hard_state(1), entries: vec![] },
        Batch { hard_state: hard_state(1), entries: entries[..2].to_vec() },
        Batch { hard_state: hard_state(3), entries: entries[2..].to_vec() },
        Batch { hard_state: hard_state(6), entries: vec![] },
    ]
}

fn batches() -> Vec<Vec<u8>> {
    some_batches().iter().map(|batch| batch.encode(1, &Chain::default(), SALT).0).collect()
}

fn check_batch(bytes: &[u8]) -> Result<bool, String> {
    let sealed = batch::sealed(bytes, SALT);
    let mut taken = false;
    for align in [batch::ALIGN_1, batch::ALIGN] {
        taken |= check_whole_batch(bytes, align)? | check_whole_batch(&sealed, align)?;
    }
    Ok(taken)
}

fn check_whole_batch(bytes: &[u8], align: usize) -> Result<bool, String> {
    let Some(header) = batch::decode_header(bytes, SALT, align) else { return Ok(false) };
    let Some((found, chain)) = batch::decode(&header, bytes, SALT) else { return Ok(false) };
    let (again, chain_again) = found.encode(header.sequence, &header.chain_before, SALT);
    let read = batch::decode_header(&again, SALT, batch::ALIGN)
        .and_then(|header| batch::decode(&header, &again, SALT));
    // protobuf has several encodings of one entry: the chain is over the bytes, so only ours must give the same one.
    same(read == Some((found, chain_again)) && (again != bytes || chain == chain_again), "a batch")
}

/// A whole log file.
fn segments() -> Vec<Vec<u8>> {
    let header = |base| Segment {
        ordinal: 1,
        first_sequence: 1,
        boot: 1,
        base,
        chain: Chain::default(),
        salt: SALT,
        align: batch::ALIGN,
        length: 0,
    };
    let (mut file, mut chain) = (header((1, 1)).encode_header(&OWNER), Chain::default());
    for (sequence, batch) in (1..).zip(some_batches()) {
        let (bytes, after) = batch.encode(sequence, &chain, SALT);
        file.extend_from_slice(&bytes);
        chain = after;
    }
    let mut unfinished = file.clone();
    unfinished.resize(file.len() + 256, 0);
    vec![header((1, 1)).encode_header(&OWNER), file, unfinished]
}

fn check_segment(bytes: &[u8]) -> Result<bool, String> {
    let mut sealed = bytes.to_vec();
    segment::seal(&mut sealed);
    let header = Segment::decode_header(&sealed);
    let (salt, align) = header.map_or((SALT, batch::ALIGN), |header| (header.salt, header.align));
    let (mut at, mut chain, mut sequence) = (segment::HEADER_BYTES, Chain::default(), 1);
    while at + batch::HEADER_BYTES <= sealed.len() {
        let batch = batch::resealed(&sealed[at..], sequence, &chain, salt);
        let Some(header) = batch::decode_header(&batch, salt, align) else { break };
        let span = header.span().min(sealed.len() - at);
        sealed[at..at + span].copy_from_slice(&batch[..span]);
        let Some((_, after)) = batch::decode(&header, &sealed[at..], salt) else { break };
        (at, chain, sequence) = (at + span, after, sequence + 1);
    }
    Ok(check_log(bytes)? | check_log(&sealed)?)
}

/// A log that opens once opens again, with the same in it.
fn check_log(bytes: &[u8]) -> Result<bool, String> {
    let mut disk = MemDisk::new();
    let name = segment::name(1);
    let failed = |error: crate::disk::DiskError| error.to_string();
    disk.create(&name, bytes.len() as u64).map_err(failed)?;
    disk.write_at(&name, 0, bytes).map_err(failed)?;
    // What the log continues.
    let state = snapfile::encode(&OWNER, &State::first(OWNER.node), 0);
    disk.create(&snapfile::name(1), 0).map_err(failed)?;
    disk.write_at(&snapfile::name(1), 0, &state).map_err(failed)?;
    let Ok(first) = recover::recover(&mut disk, &OWNER) else { return Ok(false) };
    let second = recover::recover(&mut disk, &OWNER).map_err(|error| format!("opened once only: {error}"))?;
    let what = |found: &recover::Found| (found.last, found.base, found.next_sequence, found.chain);
    same(what(&first) == what(&second) && first.entries == second.entries, "a log")
}

fn states() -> Vec<State> {
    let mut state = State::first(NodeId(3));
    let first = state.clone();
    for (index, command) in (2..).zip(some_commands()) {
        state.apply(index, 2, command, b"x");
    }
    vec![State::default(), first, state]
}

fn snapshots() -> Vec<Vec<u8>> {
    states().iter().map(snapshot::encode).collect()
}

fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let content = &bytes[..bytes.len().saturating_sub(4)];
    [content, &crc32c::crc32c(content).to_le_bytes()].concat()
}

fn check_snapshot(bytes: &[u8]) -> Result<bool, String> {
    let taken = snapshot::decode(bytes).is_ok();
    let Ok(state) = snapshot::decode(&with_checksum(bytes)) else { return Ok(taken) };
    let again = snapshot::encode(&state);
    let read = snapshot::decode(&again).map_err(|error| error.to_string())?;
    same(snapshot::encode(&read) == again, "a snapshot")
}

fn backups() -> Vec<Vec<u8>> {
    states().iter().map(|state| rescue::backup(&View::new(state), OWNER.cluster)).collect()
}

fn check_backup(bytes: &[u8]) -> Result<bool, String> {
    let mut sealed = bytes.to_vec();
    rescue::seal(&mut sealed);
    let mut taken = false;
    for bytes in [bytes, &sealed] {
        let Ok((rescued, cluster)) = Rescued::from_backup(bytes) else { continue };
        let again = rescue::backup(&rescued.view(), cluster);
        let (read, owner) = Rescued::from_backup(&again).map_err(|error| error.to_string())?;
        taken = same(owner == cluster && rescue::backup(&read.view(), owner) == again, "a backup")?;
    }
    Ok(taken)
}

fn messages() -> Vec<Vec<u8>> {
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgHeartbeat,
        MessageType::MsgReadIndex,
    ];
    let message = |kind: MessageType| Message {
        msg_type: kind as i32,
        to: 3,
        from: 4,
        term: 9,
        index: 4,
        entries: log_entries(),
        context: b"context".to_vec(),
        ..Message::default()
    };
    kinds.into_iter().map(|kind| wire::envelope(&OWNER.cluster, &message(kind))).collect()
}

fn check_message(bytes: &[u8]) -> Result<bool, String> {
    let Ok(Said::Raft(message)) = wire::decode(&OWNER.cluster, bytes) else { return Ok(false) };
    let again = wire::decode(&OWNER.cluster, &wire::envelope(&OWNER.cluster, &message));
    let bounded = message.encoded_len() <= 2 * bytes.len() + 64;
    same(again.as_ref() == Ok(&Said::Raft(message)) && bounded, "a message")
}

fn feeds() -> Vec<Vec<u8>> {
    let news = News { term: 9, leader: 3, commit: 900, hops: 1 };
    let place = Place { index: 7, term: 2, hash: [5; 32] };
    let entries: Vec<FedEntry> = log_entries().iter().map(FedEntry::of).collect();
    let state = snapshot::encode(&State::first(NodeId(3)));
    let checksum = crc32c::crc32c(&state);
    let all = [
        Feed::Subscribe { scope: Scope::Full, from: place },
        Feed::Subscribe { scope: Scope::Node, from: Place::default() },
        Feed::Batch(FedBatch { news, after: (1, 1), entries, hash: Some([9; 32]) }),
        Feed::Batch(FedBatch { news, after: (0, 0), entries: vec![], hash: None }),
        Feed::Snapshot(Picture { news, data: state.clone() }),
        Feed::Ack { index: 300, fits: true },
        Feed::Refused { reason: Reason::Full, others: vec![NodeId(4), NodeId(u64::MAX / 3)] },
        Feed::Leave,
        Feed::AskIndex { boot: 2, counter: 70_000 },
        Feed::Index { boot: 2, counter: 70_000, index: 12 },
        Feed::Piece(Piece { news, place: (1, 1), number: 0, last: true, checksum, data: state }),
        Feed::Took { index: 1, pieces: 1, want: Want::More },
        Feed::Took { index: 70_000, pieces: 300, want: Want::Missing },
        Feed::Took { index: 1, pieces: 0, want: Want::Room },
        Feed::Hurry { index: 70_000 },
    ];
    all.iter().map(|feed| wire::feed_envelope(&OWNER.cluster, 77, &feed::encode(feed))).collect()
}

fn check_feed(bytes: &[u8]) -> Result<bool, String> {
    let Ok(Said::Feed(stream, feed)) = wire::decode(&OWNER.cluster, bytes) else { return Ok(false) };
    if let Feed::Batch(batch) = &feed {
        let first = State::first(OWNER.node);
        let memory = Memory::new((1, 1), Default::default(), HardState::default(), first);
        let log = raft::RaftLog::new(memory, crate::raft_log_drain::logger());
        if let Fit::Step(message) = follow::fit(batch.clone(), OWNER.node.0, 1, &log) {
            let follows = message.index == 1 && message.log_term == 1 && message.term > 0;
            same(follows && batch.is_sound(), "an append")?;
        }
    }
    if let Feed::Piece(piece) = &feed {
        check_piece(piece)?;
    }
    let again = wire::feed_envelope(&OWNER.cluster, stream, &feed::encode(&feed));
    let read = wire::decode(&OWNER.cluster, &again);
    same(read == Ok(Said::Feed(stream, feed)) && again.len() <= bytes.len(), "a feed's message")
}

/// A piece alone: a state comes of it if it is the first and the last, and its bytes are one.
fn check_piece(piece: &Piece) -> Result<(), String> {
    let mut growing = Growing::new(OWNER.node, 1, piece.place);
    if !piece.is_sound() || growing.offer(piece.clone()).is_some() {
        return same(piece.number > 0 || !piece.is_sound(), "a piece").map(drop);
    }
    let data = growing.next().unwrap_or_default();
    growing.take(&data);
    let whole = growing.is_whole();
    let decoded = snapshot::decode(&data).map(|state| snapshot::encode(&state));
    let grown = growing.finish().map(|state| snapshot::encode(&state));
    same(whole == piece.last && decoded == grown, "a state of one piece").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_taken() {
        for (name, seeds, check) in TARGETS {
            for (n, seed) in seeds().iter().enumerate() {
                let is_default_state = n == 0 && matches!(*name, "snapshot" | "backup");
                let taken = check(seed);
                assert!(taken == Ok(true) || is_default_state && taken.is_ok(), "{name} {n}: {taken:?}");
            }
        }
    }
}
