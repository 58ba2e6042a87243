//! A fed state on its way to the disk: its pieces are a snapshot file's bytes, written aside as they come.
//!
//! Decides when they are synced and read back, and that a disk without room ends it in peace. Must not put the file in place by
//! itself: that goes with the begin of a new log (`Log::persist`).

use super::{Log, LogError, snapfile};
use crate::disk::Disk;

pub(super) const TEMPORARY: &str = "fed.new";

/// The file, as far as it is written.
pub(super) struct FedFile {
    /// The last entry in it.
    index: u64,
    whole: bool,
    length: u64,
    /// Synced and read back up to here.
    checked: u64,
    /// Of what follows.
    checksum: u32,
}

impl FedFile {
    fn write<D: Disk>(&mut self, disk: &mut D, bytes: &[u8]) -> Result<(), LogError> {
        disk.write_at(TEMPORARY, self.length, bytes)?;
        self.length += bytes.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        Ok(())
    }

    fn check<D: Disk>(&mut self, disk: &mut D) -> Result<(), LogError> {
        if !planted!(SnapshotNotSynced) {
            disk.sync(TEMPORARY)?;
        }
        let mut bytes = vec![0; (self.length - self.checked) as usize];
        let count = disk.read_at(TEMPORARY, self.checked, &mut bytes)?;
        if count < bytes.len() || crc32c::crc32c(&bytes) != self.checksum {
            return Err(LogError::ReadBack { file: TEMPORARY.to_owned() });
        }
        (self.checked, self.checksum) = (self.length, 0);
        Ok(())
    }

    /// Whether it is all of this state.
    pub(super) fn is_whole(&self, index: u64) -> bool {
        self.whole && self.index == index
    }

    /// Puts the file into place; its length.
    pub(super) fn put<D: Disk>(self, disk: &mut D) -> Result<u64, LogError> {
        disk.rename(TEMPORARY, &snapfile::name(self.index))?;
        disk.sync_dir()?;
        Ok(self.length)
    }
}

impl<D: Disk> Log<D> {
    /// Begins the file. False if the disk has no room for it, here and below: then nothing is left of it.
    pub(crate) fn begin_fed(&mut self, index: u64) -> Result<bool, LogError> {
        self.drop_fed()?;
        // The last one needed more than there is: the disk is not filled up for nothing again. It may have been a bigger state, so
        // that each time a little less is asked for.
        if self.fed_lacked > 0 && !self.has_room(self.fed_lacked + self.segment_bytes) {
            self.fed_lacked -= self.fed_lacked / 8;
            return Ok(false);
        }
        if self.disk.list()?.iter().any(|name| name == TEMPORARY) {
            self.disk.remove(TEMPORARY)?;
        }
        match self.disk.create(TEMPORARY, 0) {
            Err(error) if error.is_full() => return Ok(false),
            made => made?,
        }
        self.fed = Some(FedFile { index, whole: false, length: 0, checked: 0, checksum: 0 });
        let header = snapfile::header(&self.identity, self.next_sequence - 1);
        self.write_fed(&header, u64::MAX)
    }

    /// Writes the next bytes; syncs and reads back once there are so many.
    pub(crate) fn write_fed(&mut self, bytes: &[u8], step_bytes: u64) -> Result<bool, LogError> {
        let Some(mut file) = self.fed.take() else { return Ok(false) };
        // The log itself may need another segment meanwhile.
        let has_room = self.has_room(bytes.len() as u64 + self.segment_bytes);
        let written = match has_room {
            true => file.write(&mut self.disk, bytes),
            false => Ok(()),
        };
        let full = matches!(&written, Err(LogError::Disk(error)) if error.is_full());
        if !has_room || full {
            self.fed_lacked = file.length + bytes.len() as u64;
            self.disk.remove(TEMPORARY)?;
            return Ok(false);
        }
        written?;
        if file.length - file.checked >= step_bytes {
            file.check(&mut self.disk)?;
        }
        self.fed = Some(file);
        Ok(true)
    }

    /// All of it was written.
    pub(crate) fn end_fed(&mut self) -> Result<(), LogError> {
        if let Some(file) = &mut self.fed {
            file.check(&mut self.disk)?;
            file.whole = true;
            self.fed_lacked = 0;
        }
        Ok(())
    }

    /// Nothing more comes of it.
    pub(crate) fn drop_fed(&mut self) -> Result<(), LogError> {
        match self.fed.take() {
            Some(_) => Ok(self.disk.remove(TEMPORARY)?),
            None => Ok(()),
        }
    }
}
