//! Decides what a log that was found on disk means: which batches count, where a torn tail ends it, and what is
//! corruption. An incomplete last batch is torn, whatever lies inside it; anything else that is wrong is corruption
//! and is never repaired here.
//! Must not write, except to remove what was interrupted. That what it read is durable, `Log::start` makes sure of.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use raft::eraftpb::HardState;

use super::batch::{self, Batch, Chain};
use super::fedfile;
use super::identity::{Identity, Kind, Prefix};
use super::segment::{self, Segment};
use super::snapfile;
use crate::disk::{Disk, DiskError};
use crate::ids::{ClusterId, NodeId};
use crate::snapshot;
use crate::state::State;
use crate::storage::Tail;
use crate::version::{Supported, Version};

/// Why a store cannot be opened. Nothing was changed, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk said so.
    #[error("the store cannot be read: {0}")]
    Disk(#[from] DiskError),
    /// The log could not be continued after it was read.
    #[error("the store cannot be written: {0}")]
    Write(#[from] super::LogError),
    /// There is no store here.
    #[error("this directory holds no store; run `skein init` for a new cluster or `skein join` to enter one")]
    Empty,
    /// There is a store here already.
    #[error(
        "this directory already holds a store ({file}); start the agent with it, or `skein node reset` first"
    )]
    NotEmpty {
        /// A file of it.
        file: String,
    },
    /// The files are another cluster's.
    #[error(
        "{file} belongs to cluster {found}, not to {expected}; point --data-dir at this cluster's data, or reset this machine and join again"
    )]
    OtherCluster {
        /// The file.
        file: String,
        /// The cluster it names.
        found: ClusterId,
        /// The cluster this replica was opened for.
        expected: ClusterId,
    },
    /// The files are another node's, so two machines may have one disk.
    #[error(
        "{file} belongs to node {found}, not to {expected}; a copied disk must not run twice: reset this machine and join again"
    )]
    OtherNode {
        /// The file.
        file: String,
        /// The node it names.
        found: NodeId,
        /// The node this replica was opened as.
        expected: NodeId,
    },
    /// A newer version wrote the files.
    #[error(
        "{file} has format version {version}, which this binary does not know; upgrade skein on this machine"
    )]
    NewerVersion {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// The cluster is at a version that this binary does not take part in.
    #[error(
        "this store is of a cluster at version {cluster}, and this binary supports {} to {}; nothing was changed. Start it with a \
         binary that supports version {cluster}", supported.oldest, supported.newest
    )]
    ClusterVersion {
        /// The cluster's.
        cluster: Version,
        /// The binary's.
        supported: Supported,
    },
    /// Bytes that were durable are damaged or missing.
    #[error(
        "{file} is damaged at byte {offset}: {what}. Nothing was changed. Where the others have a leader the agent has itself \
         taken back by them under a new identity; by hand: `skein node reset` on this machine and join again. If this was the only voter and \
         there are other members: `skein cluster recover` on one of them goes on from what it has, then reset this one and join again. If \
         there are none: `skein node reset`, start the agent, and `skein cluster restore` the newest backup; a reset leaves those below \
         /var/lib/skein/backups"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// raft refused the configuration or the state.
    #[error("consensus cannot start from what the store holds: {0}")]
    Consensus(String),
    /// The configuration has a zero id.
    #[error("a node id must not be zero; this is a bug in whoever made the configuration")]
    ZeroId,
}

/// What was found, ready to be continued.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) segments: Vec<Segment>,
    pub(crate) next_sequence: u64,
    pub(crate) chain: Chain,
    pub(crate) boot: u64,
    pub(crate) last: (u64, u64),
    pub(crate) base: (u64, u64),
    pub(crate) entries: Tail,
    pub(crate) hard_state: HardState,
    pub(crate) snapshot_index: u64,
    pub(crate) snapshot_bytes: u64,
    /// Files that nothing needs and that are too big to be removed at once.
    pub(crate) going: Vec<String>,
    pub(crate) log_bytes: u64,
    pub(crate) state: Option<State>,
    /// Where a torn tail begins, which does not count.
    pub(crate) cut: Option<(String, u64)>,
}

impl Found {
    /// Nothing yet: the begin of a new log.
    pub(crate) fn nothing() -> Found {
        Found { next_sequence: 1, ..Found::default() }
    }
}

/// Fails unless the disk holds no store.
pub(crate) fn expect_empty<D: Disk>(disk: &D) -> Result<(), OpenError> {
    let ours = |name: &String| segment::ordinal(name).is_some() || snapfile::index(name).is_some();
    match disk.list()?.into_iter().find(ours) {
        Some(file) => Err(OpenError::NotEmpty { file }),
        None => Ok(()),
    }
}

/// Reads everything, and removes leftovers.
pub(crate) fn recover<D: Disk>(disk: &mut D, identity: &Identity) -> Result<Found, OpenError> {
    let names = disk.list()?;
    let mut ordinals: Vec<u64> = names.iter().filter_map(|name| segment::ordinal(name)).collect();
    ordinals.sort_unstable();
    let (snapshot, replay) = read_both(disk, identity, &names, &ordinals)?;
    let mut replay = replay?;
    let mut stale = std::mem::take(&mut replay.stale);
    let mut found =
        if replay.found.segments.is_empty() { Err(never_made(&snapshot)) } else { replay.finish(snapshot) };
    if matches!(&found, Err(error) if !matches!(error, OpenError::Empty)) {
        return found;
    }
    let index = found.as_ref().map_or(0, |found| found.snapshot_index);
    stale.extend(names.iter().filter(|name| is_leftover(name, index)).cloned());
    if let Ok(found) = &mut found {
        found.going = set_apart(disk, &mut stale)?;
        found.snapshot_bytes = if index == 0 { 0 } else { disk.length(&snapfile::name(index))? };
    }
    clean(disk, stale)?;
    found
}

type Snapshot = Option<(String, u64, State)>;

/// The snapshot and the log after it; beside a long snapshot the log is read on a thread of its own.
fn read_both<'a, D: Disk>(
    disk: &D,
    identity: &'a Identity,
    names: &[String],
    ordinals: &[u64],
) -> Result<(Snapshot, Result<Replay<'a>, OpenError>), OpenError> {
    let index = names.iter().filter_map(|name| snapfile::index(name)).max();
    let log = || {
        let covered = index.map(|index| covered(disk, identity, ordinals, index)).transpose()?;
        replay(disk, identity, ordinals, covered.unwrap_or_default())
    };
    let length = index.map(|index| disk.length(&snapfile::name(index))).transpose()?.unwrap_or(0);
    if length < snapshot::APART {
        return Ok((read_snapshot(disk, identity, index)?, log()));
    }
    #[expect(clippy::disallowed_methods, reason = "at a start, before anything else runs; joined here")]
    thread::scope(|scope| {
        let log = thread::Builder::new().name("log".into()).spawn_scoped(scope, log);
        let log = log.map_err(|error| DiskError::new("reading", "the log beside the snapshot", error))?;
        let snapshot = read_snapshot(disk, identity, index);
        let log = log.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((snapshot?, log))
    })
}

/// The oldest segments of which the snapshot at `index` leaves nothing that is needed: those that a running log drops one by one.
/// One whose header is not sound, or whose follower's is not, is for `Replay` to judge.
fn covered<D: Disk>(
    disk: &D,
    identity: &Identity,
    ordinals: &[u64],
    index: u64,
) -> Result<Vec<Segment>, OpenError> {
    let header = |ordinal: u64| -> Result<Option<Segment>, DiskError> {
        let name = segment::name(ordinal);
        let mut bytes = [0; segment::HEADER_BYTES];
        let count = disk.read_at(&name, 0, &mut bytes)?;
        let ours = check_owner(identity, segment::KIND, &name, &bytes[..count]).is_ok();
        let sound =
            Segment::decode_header(&bytes[..count]).filter(|header| ours && header.ordinal == ordinal);
        sound.map(|header| Ok(Segment { length: disk.length(&name)?, ..header })).transpose()
    };
    let mut segments = Vec::new();
    for ordinal in ordinals {
        let Some(segment) = header(*ordinal)? else { break };
        segments.push(segment);
    }
    let follows = |pair: &&[Segment]| {
        let (oldest, next) = (&pair[0], &pair[1]);
        next.ordinal == oldest.ordinal + 1 && next.first_sequence >= oldest.first_sequence
    };
    let covered =
        segments.windows(2).take_while(|pair| follows(pair) && pair[1].begins_within(index)).count();
    segments.truncate(covered);
    Ok(segments)
}

/// Replays all segments but the covered ones, and of these as many as it takes to meet a batch: term and vote stand nowhere else.
fn replay<'a, D: Disk>(
    disk: &D,
    identity: &'a Identity,
    ordinals: &[u64],
    mut covered: Vec<Segment>,
) -> Result<Replay<'a>, OpenError> {
    loop {
        let mut replay = Replay { found: Found::nothing(), identity, stale: Vec::new() };
        let last = ordinals.last().copied();
        for ordinal in ordinals.iter().skip(covered.len()) {
            replay.segment(disk, *ordinal, Some(*ordinal) == last)?;
        }
        let found = &mut replay.found;
        let met = found.segments.first().is_some_and(|first| first.first_sequence < found.next_sequence);
        if met || covered.is_empty() {
            covered.append(&mut found.segments);
            found.segments = covered;
            return Ok(replay);
        }
        covered.pop();
    }
}

/// Takes out of `stale` what is too big to be removed before anything is answered. The name of what is being written is wanted again.
fn set_apart<D: Disk>(disk: &mut D, stale: &mut Vec<String>) -> Result<Vec<String>, DiskError> {
    let is_big = |disk: &D, name: &str| disk.length(name).map(|length| length > snapfile::AT_ONCE);
    let mut going = Vec::new();
    // Its name is wanted again. What bore the other name before is replaced, and gone.
    if stale.iter().any(|name| name == snapfile::TEMPORARY) && is_big(disk, snapfile::TEMPORARY)? {
        disk.rename(snapfile::TEMPORARY, snapfile::OLD)?;
        stale.retain(|name| name != snapfile::TEMPORARY && name != snapfile::OLD);
        going.push(snapfile::OLD.to_owned());
    }
    for name in std::mem::take(stale) {
        // What a feeder's state was taken into goes at once, as segments do: their names are wanted again.
        let may_wait = name == snapfile::OLD || snapfile::index(&name).is_some();
        match may_wait && is_big(disk, &name)? {
            true => going.push(name),
            false => stale.push(name),
        }
    }
    going.sort();
    going.dedup();
    Ok(going)
}

/// No segment: nothing was here, or creating it was interrupted, or everything but the snapshot is gone.
fn never_made(snapshot: &Snapshot) -> OpenError {
    match snapshot {
        Some((file, sequence, _)) if *sequence > 0 => {
            corrupt(file, 0, "the snapshot is here but all log segments are missing")
        }
        _ => OpenError::Empty,
    }
}

/// Names first: a process may have died between a rename and its sync, and what the new name replaced is about to go.
fn clean<D: Disk>(disk: &mut D, stale: Vec<String>) -> Result<(), OpenError> {
    disk.sync_dir()?;
    if stale.is_empty() {
        return Ok(());
    }
    stale.iter().try_for_each(|name| disk.remove(name))?;
    Ok(disk.sync_dir()?)
}

fn is_leftover(name: &str, snapshot: u64) -> bool {
    [snapfile::TEMPORARY, snapfile::OLD, fedfile::TEMPORARY, segment::TEMPORARY].contains(&name)
        || snapfile::index(name).is_some_and(|index| index != snapshot)
}

struct Replay<'a> {
    found: Found,
    identity: &'a Identity,
    stale: Vec<String>,
}

impl Replay<'_> {
    fn segment<D: Disk>(&mut self, disk: &D, ordinal: u64, is_last: bool) -> Result<(), OpenError> {
        let name = segment::name(ordinal);
        let bytes = disk.read(&name)?;
        let Some(header) = Segment::decode_header(&bytes) else {
            return self.broken_header(&name, &bytes, is_last);
        };
        check_owner(self.identity, segment::KIND, &name, &bytes)?;
        self.enter(&name, &header)?;
        let end = self.batches(&name, &header, &bytes, is_last)?;
        self.found.log_bytes += end as u64;
        self.found.segments.push(Segment { length: end as u64, ..header });
        Ok(())
    }

    /// Batches are written only after the header was durable: a broken header before nothing but zeros is what an
    /// interrupted creation leaves.
    fn broken_header(&mut self, name: &str, bytes: &[u8], is_last: bool) -> Result<(), OpenError> {
        let body = bytes.get(segment::HEADER_BYTES..).unwrap_or_default();
        if !is_last || body.iter().any(|byte| *byte != 0) {
            return Err(corrupt(name, 0, "the segment's header is unreadable"));
        }
        self.stale.push(name.to_owned());
        Ok(())
    }

    /// Links a segment to what came before it.
    fn enter(&mut self, name: &str, header: &Segment) -> Result<(), OpenError> {
        let found = &mut self.found;
        if found.segments.is_empty() {
            found.next_sequence = header.first_sequence;
            found.chain = header.chain;
            found.base = header.base;
        } else {
            let follows = found.segments.last().is_some_and(|last| last.ordinal + 1 == header.ordinal);
            if !follows || header.first_sequence != found.next_sequence || header.chain != found.chain {
                return Err(corrupt(name, 0, "it does not follow the segment before it; some are missing"));
            }
            if header.base != found.last {
                // A snapshot from the leader replaced the log here.
                found.entries.clear();
                found.base = header.base;
            }
        }
        found.last = header.base;
        found.boot = found.boot.max(header.boot);
        Ok(())
    }

    /// Reads batches to the end of the segment; the offset where they end.
    fn batches(
        &mut self,
        name: &str,
        header: &Segment,
        bytes: &[u8],
        is_last: bool,
    ) -> Result<usize, OpenError> {
        let mut at = segment::HEADER_BYTES;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let Some((span, batch, chain)) = self.next(rest, header) {
                self.take(name, at, batch, chain)?;
                at += span;
                continue;
            }
            if is_last && rest.iter().all(|byte| *byte == 0) {
                return Ok(at);
            }
            if !is_last && !planted!(DamageTakenForTear) {
                return Err(corrupt(name, at, "a batch is damaged and later segments follow it"));
            }
            if !planted!(DamageTakenForTear) {
                judge_tail(name, at, rest, header, self.found.next_sequence)?;
            }
            self.found.cut = Some((name.to_owned(), at as u64));
            return Ok(at);
        }
        Ok(at)
    }

    fn next(&self, rest: &[u8], segment: &Segment) -> Option<(usize, Batch, Chain)> {
        let salt = segment.salt;
        let header = batch::decode_header(rest, salt, segment.align)?;
        if header.sequence != self.found.next_sequence || header.chain_before != self.found.chain {
            return None;
        }
        let (batch, chain) = batch::decode(&header, rest, salt)?;
        Some((header.span(), batch, chain))
    }

    fn take(&mut self, name: &str, at: usize, batch: Batch, chain: Chain) -> Result<(), OpenError> {
        let found = &mut self.found;
        for entry in batch.entries {
            if (1..=found.base.0).contains(&entry.index) {
                // A new leader replaced the tail that the segment begins after. The snapshot covers that place,
                // else the segments before would still be here.
                found.entries.clear();
                found.base = (entry.index - 1, 0);
                found.last = found.base;
            }
            let follows = entry.index > found.base.0 && entry.index <= found.last.0 + 1;
            if !follows || entry.term < found.base.1 || entry.index <= found.hard_state.commit {
                return Err(corrupt(name, at, "an entry does not follow the entries before it"));
            }
            found.entries.truncate((entry.index - found.base.0 - 1) as usize);
            found.last = (entry.index, entry.term);
            found.entries.push(&entry);
        }
        found.hard_state = batch.hard_state;
        found.next_sequence += 1;
        found.chain = chain;
        Ok(())
    }

    /// Joins log and snapshot.
    fn finish(self, snapshot: Snapshot) -> Result<Found, OpenError> {
        let mut found = self.found;
        let end = found.segments.last().map(Segment::name).unwrap_or_default();
        let Some((file, sequence, state)) = snapshot else {
            return match found.base == (0, 0) && found.entries.is_empty() {
                true => Ok(found),
                false => Err(corrupt(&end, 0, "the snapshot that this log continues is missing")),
            };
        };
        if found.next_sequence <= sequence {
            return Err(corrupt(&end, 0, "batches that were durable before the snapshot are missing"));
        }
        let (index, term) = (state.applied_index, state.applied_term);
        if found.base.0 > index {
            return Err(corrupt(&file, 0, "it is older than the begin of the log; a newer one is missing"));
        }
        match found.term_at(index) == Some(term) {
            true => found.forget_to(index, term),
            // The leader's snapshot was in place, and the crash came before the log was begun anew.
            false => found.restart_at(index, term),
        }
        found.hard_state.commit = found.hard_state.commit.max(index);
        if found.hard_state.term < found.last.1 {
            // Only an install that the crash interrupted: no vote in that term can have left this node.
            found.hard_state.term = found.last.1;
            found.hard_state.vote = 0;
        }
        if found.hard_state.commit > found.last.0 {
            return Err(corrupt(&end, 0, "entries that were committed are missing"));
        }
        found.snapshot_index = index;
        found.state = Some(state);
        Ok(found)
    }
}

impl Found {
    /// Begins a new log at a state that no log leads to.
    pub(crate) fn begin_at(&mut self, state: &State) {
        self.restart_at(state.applied_index, state.applied_term);
        self.snapshot_index = state.applied_index;
        self.hard_state = HardState { term: state.applied_term, vote: 0, commit: state.applied_index };
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base.0)? {
            0 => Some(self.base.1),
            ahead => self.entries.term(ahead as usize - 1),
        }
    }

    fn forget_to(&mut self, index: u64, term: u64) {
        for _ in self.base.0..index {
            self.entries.pop_front();
        }
        self.base = (index, term);
    }

    fn restart_at(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.base = (index, term);
        self.last = (index, term);
    }
}

/// A tail that is not whole: torn (`Ok`) or corrupt. The segment's salt makes sure that what looks like a batch is one.
fn judge_tail(name: &str, at: usize, rest: &[u8], segment: &Segment, expected: u64) -> Result<(), OpenError> {
    let Segment { salt, align, .. } = *segment;
    if let Some(header) = batch::decode_header(rest, salt, align) {
        let beyond = rest.get(header.span()..).unwrap_or_default();
        return match () {
            () if header.sequence != expected => {
                Err(corrupt(name, at, "a batch stands where another should"))
            }
            () if batch::decode(&header, rest, salt).is_some() => {
                Err(corrupt(name, at, "a batch does not continue the chain of those before it"))
            }
            () if beyond.iter().any(|byte| *byte != 0) => {
                Err(corrupt(name, at, "a batch is damaged and later ones follow it"))
            }
            () => Ok(()),
        };
    }
    let later = (align..rest.len()).step_by(align).any(|offset| {
        let tail = &rest[offset..];
        batch::decode_header(tail, salt, align).is_some_and(|header| header.sequence > expected)
    });
    match later {
        true => Err(corrupt(name, at, "a batch is damaged and later ones follow it")),
        false => Ok(()),
    }
}

fn read_snapshot<D: Disk>(disk: &D, identity: &Identity, index: Option<u64>) -> Result<Snapshot, OpenError> {
    let Some(index) = index else {
        return Ok(None);
    };
    let file = snapfile::name(index);
    let mut header = [0; snapfile::HEADER_BYTES];
    let count = disk.read_at(&file, 0, &mut header)?;
    let Some(sequence) = snapfile::sequence(&header[..count]) else {
        return Err(corrupt(&file, 0, "the snapshot's header is unreadable"));
    };
    check_owner(identity, snapfile::KIND, &file, &header)?;
    match snapfile::read(disk, &file)? {
        Ok(state) if state.applied_index == index => Ok(Some((file, sequence, state))),
        Ok(_) => Err(corrupt(&file, 0, "the snapshot is not the one its name says")),
        Err(snapshot::SnapshotError::Codec(crate::codec::CodecError::Version(version))) => {
            Err(OpenError::NewerVersion { file, version: u32::from(version) })
        }
        // Which says nothing of what is there.
        Err(snapshot::SnapshotError::Read(why)) => {
            Err(DiskError::new("reading", &file, io::Error::other(why)).into())
        }
        Err(_) => Err(corrupt(&file, snapfile::HEADER_BYTES, "the snapshot's checksum or body is wrong")),
    }
}

fn check_owner(identity: &Identity, kind: Kind, name: &str, bytes: &[u8]) -> Result<(), OpenError> {
    let file = name.to_owned();
    match identity.check_prefix(kind, bytes) {
        Prefix::Ours => Ok(()),
        Prefix::NotAFile => Err(corrupt(name, 0, "it does not begin like a file of this store")),
        Prefix::Newer(version) => Err(OpenError::NewerVersion { file, version }),
        Prefix::OtherCluster(found) => {
            Err(OpenError::OtherCluster { file, found, expected: identity.cluster })
        }
        Prefix::OtherNode(found) => Err(OpenError::OtherNode { file, found, expected: identity.node }),
    }
}

fn corrupt(file: &str, offset: usize, what: &'static str) -> OpenError {
    OpenError::Corrupt { file: file.to_owned(), offset: offset as u64, what }
}
