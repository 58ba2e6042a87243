//! Decides what is on disk and when it may be relied on: batches in segments, snapshots beside them.
//! One batch holds all that one round of raft wants durable; batch n+1 is not written before n's sync returned.
//! Must not decide what is persisted (raft does) nor what it means (`state`). Bytes: docs/formats/raft-store.md.

pub(crate) mod batch;
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
    bytes_since_snapshot: u64,
    /// The disk is full: the reserve was given up, or could not be made.
    pressed: bool,
    rng: SmallRng,
}

/// Room that is kept for a full disk: one segment, so that votes and marks can still be written.
const RESERVE: &str = "reserve";

impl<D: Disk> Log<D> {
    /// Starts a log after what `recovered` found: always in a new segment, so old bytes are never written over.
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
            bytes_since_snapshot: recovered.log_bytes,
            segments: recovered.segments,
            pressed: false,
            rng: SmallRng::seed_from_u64(seed ^ recovered.next_sequence),
        };
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

    /// Makes a segment's file. A full disk gives up the reserve for it.
    fn create_segment(&mut self, name: &str, length: u64) -> Result<(), LogError> {
        match self.disk.create(name, length) {
            Err(error) if error.is_full() && self.disk.list()?.iter().any(|name| name == RESERVE) => {
                tracing::error!("the disk is full: the store takes no more writes until there is room");
                self.pressed = true;
                self.disk.remove(RESERVE)?;
                self.disk.sync_dir()?;
                Ok(self.disk.create(name, length)?)
            }
            made => Ok(made?),
        }
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
            snapfile::write(&mut disk, &identity, state, 0)?;
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

    /// The term, vote and commit that are durable.
    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Bytes written since the last snapshot.
    pub(crate) fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// Makes everything in `unsynced` durable, then gives out the messages that depended on it.
    pub(crate) fn persist(&mut self, unsynced: Unsynced) -> Result<Promises, LogError> {
        let (hard_state, mut promises) = unsynced.into_parts();
        if let Some(state) = &promises.install {
            self.begin_anew(state)?;
        }
        if promises.install.is_some() || !promises.entries.is_empty() || self.must_write(&hard_state) {
            let batch = Batch { hard_state, entries: std::mem::take(&mut promises.entries) };
            promises.entries = self.append(batch)?;
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

    /// Writes the state as a snapshot, then drops the segments that it covers. False if the disk has no room for it.
    pub(crate) fn save_snapshot(&mut self, state: &State, commit: u64) -> Result<bool, LogError> {
        self.persist_commit(commit)?;
        if planted!(SegmentsDroppedEarly) {
            self.snapshot_index = state.applied_index;
            self.drop_covered()?;
        }
        match self.write_snapshot(state) {
            Err(LogError::Disk(error)) if error.is_full() => {
                // Made aside: nothing was lost. The log grows until there is room.
                let _ = self.disk.remove(snapfile::TEMPORARY);
                self.pressed = true;
                return Ok(false);
            }
            written => written?,
        }
        self.bytes_since_snapshot = 0;
        self.drop_covered()?;
        Ok(true)
    }

    fn must_write(&self, hard_state: &HardState) -> bool {
        !planted!(VoteNotWritten)
            && (hard_state.term != self.hard_state.term || hard_state.vote != self.hard_state.vote)
    }

    /// A leader's snapshot replaces state and log. The file comes first: `recover` prefers it to a log that ends
    /// before it. Hard state and entries after it follow as one batch: a commit index must not stand before its entries.
    fn begin_anew(&mut self, state: &State) -> Result<(), LogError> {
        self.write_snapshot(state)?;
        self.last = (state.applied_index, state.applied_term);
        self.new_segment(0)
    }

    fn write_snapshot(&mut self, state: &State) -> Result<(), LogError> {
        let older = self.snapshot_index;
        snapfile::write(&mut self.disk, &self.identity, state, self.next_sequence - 1)?;
        self.snapshot_index = state.applied_index;
        if older != 0 && older != self.snapshot_index {
            self.disk.remove(&snapfile::name(older))?;
        }
        Ok(())
    }

    /// Segments before one whose base the snapshot covers hold nothing that is needed. Removed oldest first, with
    /// the directory synced each time, so that what remains is always without a gap.
    fn drop_covered(&mut self) -> Result<(), LogError> {
        if self.next_sequence == self.current().first_sequence {
            // Term and vote stand in batches only: one must stay.
            self.append(Batch { hard_state: self.hard_state.clone(), entries: Vec::new() })?;
        }
        while self.segments.get(1).is_some_and(|next| next.base.0 <= self.snapshot_index) {
            let covered = self.segments.remove(0);
            self.disk.remove(&covered.name())?;
            self.disk.sync_dir()?;
        }
        Ok(())
    }

    fn append(&mut self, batch: Batch) -> Result<Vec<Entry>, LogError> {
        let encoded_length = batch.encoded_length() as u64;
        if self.end + encoded_length > self.current().length {
            self.new_segment(encoded_length)?;
        }
        let salt = self.current().salt;
        let (bytes, chain) = batch.encode(self.next_sequence, &self.chain, salt);
        let name = self.current().name();
        self.disk.write_at(&name, self.end, &bytes)?;
        if !planted!(BatchNotSynced) {
            let synced = self.disk.sync(&name);
            if !planted!(SyncErrorIgnored) {
                synced?;
            }
        }
        self.end += bytes.len() as u64;
        self.bytes_since_snapshot += bytes.len() as u64;
        self.next_sequence += 1;
        self.chain = chain;
        self.last = batch.last().unwrap_or(self.last);
        self.hard_state = batch.hard_state;
        Ok(batch.entries)
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
            length: self.segment_bytes.max(segment::HEADER_BYTES as u64 + at_least),
        };
        let name = segment.name();
        self.create_segment(&name, segment.length)?;
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

/// The index and term of the last of some entries.
fn last_of(entries: &[Entry]) -> Option<(u64, u64)> {
    entries.last().map(|entry| (entry.index, entry.term))
}

#[cfg(test)]
mod tests;
