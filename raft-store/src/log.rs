//! Decides what is on disk and when it may be relied on: batches in segments, snapshots beside them.
//! One batch holds all that one round of raft wants durable; batch n+1 is not written before n's sync returned.
//! Must not decide what is persisted (raft does) nor what it means (`state`). Bytes: docs/formats/raft-store.md.

pub(crate) mod batch;
mod fedfile;
pub(crate) mod identity;
pub(crate) mod outbound;
pub(crate) mod recover;
pub(crate) mod segment;
pub(crate) mod snapfile;

use raft::eraftpb::{Entry, HardState};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskError};
use crate::state::State;
use batch::{Batch, Chain};
use identity::Identity;
use outbound::{Promises, Unsynced};
use segment::Segment;

/// The log could not be written. The replica stops: what the disk holds now is unknown until it is read again.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk said so.
    #[error("{0}")]
    Disk(#[from] DiskError),
    /// A snapshot read back differently from how it was written.
    #[error(
        "snapshot {file} reads back differently from how it was written; replace the disk of this machine"
    )]
    ReadBack {
        /// The file.
        file: String,
    },
}

/// The open log. Writes go through here only; reading happens once, in `recover`.
pub(crate) struct Log<D> {
    disk: D,
    identity: Identity,
    segment_bytes: u64,
    segments: Vec<Segment>,
    end: u64,
    next_sequence: u64,
    chain: Chain,
    boot: u64,
    last: (u64, u64),
    hard_state: HardState,
    snapshot_index: u64,
    /// Bytes of the snapshot on disk.
    snapshot_bytes: u64,
    bytes_since_snapshot: u64,
    writing: Option<snapfile::Writing>,
    /// Snapshots that nothing needs any more: they go bit by bit.
    going: Vec<String>,
    fed: Option<fedfile::FedFile>,
    /// Bytes that the last fed state had when the disk had no room for more of it.
    fed_lacked: u64,
    /// The next one waits for so many bytes of log, where the last had no room.
    snapshot_after: u64,
    /// The disk is full: the reserve was given up, or could not be made.
    pressed: bool,
    rng: SmallRng,
}

/// What is to be durable. Its messages are sealed until [`Log::sync`].
pub(crate) struct Wanted {
    promises: Promises,
    batch: Pending,
}

enum Pending {
    Nothing,
    Unwritten(Batch),
    Written(WrittenBatch),
}

struct WrittenBatch {
    batch: Batch,
    bytes: u64,
    chain: Chain,
}

/// Room that is kept for a full disk: one segment, so that votes and marks can still be written.
const RESERVE: &str = "reserve";

impl<D: Disk> Log<D> {
    /// Starts a log after what `recovered` found, once that is durable: always in a new segment, so old bytes are never written over.
    pub(crate) fn start(
        disk: D,
        identity: Identity,
        segment_bytes: u64,
        seed: u64,
        recovered: recover::Found,
    ) -> Result<Log<D>, LogError> {
        let mut log = Log {
            disk,
            identity,
            segment_bytes,
            end: 0,
            next_sequence: recovered.next_sequence,
            chain: recovered.chain,
            boot: recovered.boot + 1,
            last: recovered.last,
            hard_state: recovered.hard_state,
            snapshot_index: recovered.snapshot_index,
            snapshot_bytes: recovered.snapshot_bytes,
            bytes_since_snapshot: recovered.log_bytes,
            writing: None,
            going: recovered.going,
            fed: None,
            fed_lacked: 0,
            snapshot_after: 0,
            segments: recovered.segments,
            pressed: false,
            rng: SmallRng::seed_from_u64(seed ^ recovered.next_sequence),
        };
        log.secure_last()?;
        log.new_segment(0)?;
        log.relieve()?;
        Ok(log)
    }

    /// Whether the disk is full.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed
    }

    /// Makes the reserve where it is missing, if there is room.
    pub(crate) fn relieve(&mut self) -> Result<(), LogError> {
        if !self.disk.list()?.iter().any(|name| name == RESERVE) {
            match self.disk.create(RESERVE, self.segment_bytes) {
                Ok(()) => {}
                Err(error) if error.is_full() => {
                    self.pressed = true;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.pressed = false;
        Ok(())
    }

    /// Does what needs room. A full disk gives up the reserve for it.
    fn with_room(&mut self, act: impl Fn(&mut D) -> Result<(), DiskError>) -> Result<(), LogError> {
        match act(&mut self.disk) {
            Err(error) if error.is_full() && self.disk.list()?.iter().any(|name| name == RESERVE) => {
                tracing::error!("the disk is full: the store takes no more writes until there is room");
                self.pressed = true;
                self.disk.remove(RESERVE)?;
                self.disk.sync_dir()?;
                Ok(act(&mut self.disk)?)
            }
            done => Ok(done?),
        }
    }

    /// What was read may never have reached the disk: a process that is killed between write and sync leaves its last batch in the page
    /// cache, and after a sync that failed it stays there as if it were durable (docs/decisions/0122). So the last segment, which alone
    /// can hold such bytes, is written anew, up to where it counts, and put in place of the one that was found.
    fn secure_last(&mut self) -> Result<(), LogError> {
        let Some(last) = self.segments.last() else { return Ok(()) };
        let (name, length) = (last.name(), last.length);
        if planted!(ReadCountsAsDurable) {
            self.disk.truncate(&name, length)?;
            return Ok(self.disk.sync(&name)?);
        }
        let mut bytes = self.disk.read(&name)?;
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        self.with_room(|disk| disk.create(segment::TEMPORARY, 0))?;
        self.with_room(|disk| disk.write_at(segment::TEMPORARY, 0, &bytes))?;
        self.disk.sync(segment::TEMPORARY)?;
        self.disk.rename(segment::TEMPORARY, &name)?;
        Ok(self.disk.sync_dir()?)
    }

    /// Starts the log of a store that is being made: its first batch holds the hard state. A state to begin with is
    /// written before, so that an interrupted creation shows.
    pub(crate) fn create(
        mut disk: D,
        identity: Identity,
        segment_bytes: u64,
        seed: u64,
        first: Option<&State>,
    ) -> Result<Log<D>, LogError> {
        let mut found = recover::Found::nothing();
        if let Some(state) = first {
            write_whole(&mut disk, &identity, state, 0)?;
            found.begin_at(state);
        }
        let hard_state = found.hard_state.clone();
        let mut log = Log::start(disk, identity, segment_bytes, seed, found)?;
        log.append(Batch { hard_state, entries: Vec::new() })?;
        Ok(log)
    }

    /// How often this log was started; never repeats on one disk.
    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// How many batches were ever written.
    pub(crate) fn batches(&self) -> u64 {
        self.next_sequence
    }

    /// The term, vote and commit that are durable.
    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Whether so many bytes were written since the last snapshot that another one pays. A big one costs much, and pays later.
    pub(crate) fn wants_snapshot(&self, every_bytes: u64, applied: u64) -> bool {
        let due = every_bytes.max(self.snapshot_bytes / 8).max(self.snapshot_after);
        // Terms and votes alone, of a member to whom nothing has come yet, are nothing to make one of.
        self.writing.is_none() && applied > self.snapshot_index && self.bytes_since_snapshot >= due
    }

    /// Length of the newest snapshot.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Whether a snapshot is being written.
    #[cfg(test)]
    pub(crate) fn is_writing_snapshot(&self) -> bool {
        self.writing.is_some()
    }

    /// Makes everything in `unsynced` durable, then gives out the messages that depended on it.
    pub(crate) fn persist(&mut self, unsynced: Unsynced) -> Result<Promises, LogError> {
        let wanted = self.want(unsynced)?;
        self.sync(wanted)
    }

    /// Writes it, and the disk begins to make it durable, unless more is to be done for that than to write into the current segment.
    /// Nothing else is written before it is given to [`Log::sync`].
    pub(crate) fn write_ahead(&mut self, unsynced: Unsynced) -> Result<Wanted, LogError> {
        let mut wanted = self.want(unsynced)?;
        wanted.batch = match wanted.batch {
            Pending::Unwritten(batch) if self.fits(&batch) => {
                let (bytes, written) = self.encode(batch);
                let name = self.current().name();
                self.disk.begin_write_through(&name, self.end, &bytes)?;
                Pending::Written(written)
            }
            other => other,
        };
        Ok(wanted)
    }

    fn want(&mut self, unsynced: Unsynced) -> Result<Wanted, LogError> {
        let (hard_state, mut promises) = unsynced.into_parts();
        if let Some(state) = &promises.install {
            self.begin_anew(state)?;
        }
        let wanted =
            promises.install.is_some() || !promises.entries.is_empty() || self.must_write(&hard_state);
        let batch = match wanted {
            true => {
                let entries = std::mem::take(&mut promises.entries);
                Pending::Unwritten(Batch { hard_state, entries })
            }
            false => Pending::Nothing,
        };
        Ok(Wanted { promises, batch })
    }

    /// Makes it durable, then gives out the messages that depended on it.
    pub(crate) fn sync(&mut self, wanted: Wanted) -> Result<Promises, LogError> {
        let Wanted { mut promises, batch } = wanted;
        match batch {
            Pending::Nothing => {}
            Pending::Unwritten(batch) => promises.entries = self.append(batch)?,
            Pending::Written(written) => promises.entries = self.sync_batch(written)?,
        }
        if promises.install.is_some() {
            self.bytes_since_snapshot = 0;
            self.drop_covered()?;
        }
        Ok(promises)
    }

    /// Writes the commit index if the disk lags behind it.
    pub(crate) fn persist_commit(&mut self, commit: u64) -> Result<(), LogError> {
        if commit <= self.hard_state.commit || planted!(CommitForgotten) {
            return Ok(());
        }
        let hard_state = HardState { commit, ..self.hard_state.clone() };
        self.append(Batch { hard_state, entries: Vec::new() }).map(drop)
    }

    /// Begins to write the state as a snapshot. `go_on` writes it.
    pub(crate) fn begin_snapshot(&mut self, state: &State, commit: u64) -> Result<(), LogError> {
        self.persist_commit(commit)?;
        if planted!(SegmentsDroppedEarly) {
            self.snapshot_index = state.applied_index;
            self.drop_covered()?;
        }
        let (sequence, log_bytes) = (self.next_sequence - 1, self.bytes_since_snapshot);
        match snapfile::Writing::begin(&mut self.disk, &self.identity, state, sequence, log_bytes) {
            Ok(writing) => {
                self.writing = Some(writing);
                Ok(())
            }
            Err(error) => self.give_up_snapshot(error.into()),
        }
    }

    /// Does the next part of the snapshot that is being written: so many bytes of it, or more where the disk is `quick`. Once it is there
    /// the snapshot before it and the segments that it covers go in the calls after that.
    pub(crate) fn go_on(&mut self, bytes: usize, quick: bool) -> Result<(), LogError> {
        if self.take_away()? {
            return Ok(());
        }
        let Some(mut writing) = self.writing.take() else {
            // One at a time: each costs a sync.
            self.drop_oldest_covered()?;
            return Ok(());
        };
        let paced = writing.pace(bytes, self.bytes_since_snapshot);
        let bytes = if quick { paced } else { bytes };
        match writing.step(&mut self.disk, bytes) {
            Ok(None) => {
                self.writing = Some(writing);
                Ok(())
            }
            Ok(Some(length)) => {
                self.replace_snapshot(writing.index, length);
                self.bytes_since_snapshot -= writing.log_bytes.min(self.bytes_since_snapshot);
                self.snapshot_after = 0;
                Ok(())
            }
            Err(error) => self.give_up_snapshot(error),
        }
    }

    /// Whether the disk has room for a snapshot of so many bytes that a leader sends. Asked before it is taken: afterwards there is no
    /// way back.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        // A disk that cannot be asked shows itself where its failure is not passed over.
        self.disk.room().is_ok_and(|room| room >= bytes + segment::HEADER_BYTES as u64)
    }

    /// Made aside: nothing was lost. Where the disk has no room for it the log grows until there is some.
    fn give_up_snapshot(&mut self, error: LogError) -> Result<(), LogError> {
        match error {
            LogError::Disk(error) if error.is_full() => {
                let _ = self.disk.remove(snapfile::TEMPORARY);
                // Writes go on: they need less. Tried again when the log has grown by as much again.
                self.snapshot_after = self.bytes_since_snapshot + self.segment_bytes;
                Ok(())
            }
            error => Err(error),
        }
    }

    /// A new snapshot is in place: the older one goes.
    fn replace_snapshot(&mut self, index: u64, length: u64) {
        let older = std::mem::replace(&mut self.snapshot_index, index);
        self.snapshot_bytes = length;
        if older != 0 && older != index {
            self.going.push(snapfile::name(older));
        }
    }

    /// Takes away the next part of what is to go; false if there is nothing.
    fn take_away(&mut self) -> Result<bool, LogError> {
        let Some(name) = self.going.last() else { return Ok(false) };
        match self.disk.length(name)? {
            length if length > snapfile::AT_ONCE => self.disk.truncate(name, length - snapfile::AT_ONCE)?,
            _ => {
                self.disk.remove(name)?;
                self.going.pop();
            }
        }
        Ok(true)
    }

    fn must_write(&self, hard_state: &HardState) -> bool {
        !planted!(VoteNotWritten)
            && (hard_state.term != self.hard_state.term || hard_state.vote != self.hard_state.vote)
    }

    /// A leader's snapshot, or a fed state, replaces state and log. The file comes first: `recover` prefers it to a log that ends
    /// before it. Hard state and entries after it follow as one batch: a commit index must not stand before its entries.
    fn begin_anew(&mut self, state: &State) -> Result<(), LogError> {
        self.writing = None;
        let length = match self.fed.take_if(|fed| fed.is_whole(state.applied_index)) {
            Some(fed) => fed.put(&mut self.disk)?,
            None => write_whole(&mut self.disk, &self.identity, state, self.next_sequence - 1)?,
        };
        self.replace_snapshot(state.applied_index, length);
        self.last = (state.applied_index, state.applied_term);
        self.new_segment(0)
    }

    /// Segments before one whose base the snapshot covers hold nothing that is needed. Removed oldest first, with
    /// the directory synced each time, so that what remains is always without a gap.
    fn drop_covered(&mut self) -> Result<(), LogError> {
        while self.drop_oldest_covered()? {}
        Ok(())
    }

    /// Drops one of these; false if there is none.
    fn drop_oldest_covered(&mut self) -> Result<bool, LogError> {
        if self.segments.get(1).is_none_or(|next| !next.begins_within(self.snapshot_index)) {
            return Ok(false);
        }
        if self.next_sequence == self.current().first_sequence {
            // Term and vote stand in batches only: one must stay.
            self.append(Batch { hard_state: self.hard_state.clone(), entries: Vec::new() })?;
        }
        let covered = self.segments.remove(0);
        self.disk.remove(&covered.name())?;
        self.disk.sync_dir()?;
        Ok(true)
    }

    fn append(&mut self, batch: Batch) -> Result<Vec<Entry>, LogError> {
        if !self.fits(&batch) {
            self.new_segment(batch.encoded_length() as u64)?;
        }
        let (bytes, written) = self.encode(batch);
        let name = self.current().name();
        if planted!(BatchNotSynced) {
            self.disk.write_at(&name, self.end, &bytes)?;
            return Ok(self.count(written));
        }
        let synced = self.disk.write_through(&name, self.end, &bytes);
        if !planted!(SyncErrorIgnored) {
            synced?;
        }
        Ok(self.count(written))
    }

    fn fits(&self, batch: &Batch) -> bool {
        self.end + batch.encoded_length() as u64 <= self.current().length
    }

    fn encode(&self, batch: Batch) -> (Vec<u8>, WrittenBatch) {
        let (bytes, chain) = batch.encode(self.next_sequence, &self.chain, self.current().salt);
        let written = WrittenBatch { batch, bytes: bytes.len() as u64, chain };
        (bytes, written)
    }

    fn sync_batch(&mut self, written: WrittenBatch) -> Result<Vec<Entry>, LogError> {
        if !planted!(BatchNotSynced) {
            let name = self.current().name();
            let synced = self.disk.sync(&name);
            if !planted!(SyncErrorIgnored) {
                synced?;
            }
        }
        Ok(self.count(written))
    }

    /// It is durable: the next one follows it.
    fn count(&mut self, written: WrittenBatch) -> Vec<Entry> {
        let WrittenBatch { batch, bytes, chain } = written;
        self.end += bytes;
        self.bytes_since_snapshot += bytes;
        self.next_sequence += 1;
        self.chain = chain;
        self.last = batch.last().unwrap_or(self.last);
        self.hard_state = batch.hard_state;
        batch.entries
    }

    fn current(&self) -> &Segment {
        self.segments.last().expect("start made a segment and the last one is never dropped")
    }

    /// Seals the current segment, if one was begun, at its exact length and goes on in a new one.
    fn new_segment(&mut self, at_least: u64) -> Result<(), LogError> {
        if self.end > 0 {
            let name = self.current().name();
            self.disk.truncate(&name, self.end)?;
            self.disk.sync(&name)?;
        }
        let segment = Segment {
            ordinal: self.segments.last().map_or(0, |last| last.ordinal + 1),
            first_sequence: self.next_sequence,
            boot: self.boot,
            base: self.last,
            chain: self.chain,
            salt: self.rng.random(),
            align: batch::ALIGN,
            length: self.segment_bytes.max(segment::HEADER_BYTES as u64 + at_least),
        };
        let name = segment.name();
        self.with_room(|disk| disk.create(&name, segment.length))?;
        self.disk.write_at(&name, 0, &segment.encode_header(&self.identity))?;
        self.disk.sync(&name)?;
        if !planted!(SegmentNameNotSynced) {
            self.disk.sync_dir()?;
        }
        self.segments.push(segment);
        self.end = segment::HEADER_BYTES as u64;
        Ok(())
    }
}

/// Writes a snapshot without a pause; its length.
fn write_whole<D: Disk>(
    disk: &mut D,
    identity: &Identity,
    state: &State,
    sequence: u64,
) -> Result<u64, LogError> {
    let mut writing = snapfile::Writing::begin(disk, identity, state, sequence, 0)?;
    loop {
        if let Some(length) = writing.step(disk, 4 << 20)? {
            return Ok(length);
        }
    }
}

/// The index and term of the last of some entries.
fn last_of(entries: &[Entry]) -> Option<(u64, u64)> {
    entries.last().map(|entry| (entry.index, entry.term))
}

#[cfg(test)]
mod tests;
