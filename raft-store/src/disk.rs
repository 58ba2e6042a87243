//! Decides what the log may ask of a disk: a flat directory of named files, with durability said explicitly.
//! What is assumed: after `sync` returned, the file's bytes survive a power cut; after `sync_dir` returned, so do
//! names; a write that was not synced may survive in any part. A failed sync is never tried again.
//! Must not know what the files hold.

use std::io;

/// Bytes that a disk writes as one, at least: while some are written, those of other sectors are not at risk.
pub(crate) const SECTOR: usize = 512;

/// A flat directory of files.
pub trait Disk: Sync {
    /// All file names, in any order.
    fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Makes a new file of `zeros` zero bytes, really written, not a hole. Fails if the name exists.
    fn create(&mut self, name: &str, zeros: u64) -> Result<(), DiskError>;
    /// The whole file.
    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError>;
    /// The file's length.
    fn length(&self, name: &str) -> Result<u64, DiskError>;
    /// Reads from an offset on, and answers how many bytes there were: fewer than asked for only at the file's end.
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize, DiskError>;
    /// Writes at an offset within or at the end of the file. Not durable before `sync`.
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Writes whole sectors at an offset within the file and makes them durable, with all that was written to it before.
    fn write_through(&mut self, name: &str, offset: u64, sectors: &[u8]) -> Result<(), DiskError> {
        self.write_at(name, offset, sectors)?;
        self.sync(name)
    }
    /// Begins that, if the disk can do it while its caller goes on, and `sync` of this file waits for it. What goes wrong, either says.
    fn begin_write_through(&mut self, name: &str, offset: u64, sectors: &[u8]) -> Result<(), DiskError> {
        self.write_at(name, offset, sectors)
    }
    /// Makes the file's bytes and length durable (fdatasync).
    fn sync(&mut self, name: &str) -> Result<(), DiskError>;
    /// Cuts the file to a length. Not durable before `sync`.
    fn truncate(&mut self, name: &str, length: u64) -> Result<(), DiskError>;
    /// Renames, replacing what stands there. Not durable before `sync_dir`.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes. Not durable before `sync_dir`.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;
    /// Bytes that may still be written, as far as that is known: others write too.
    fn room(&self) -> Result<u64, DiskError>;
    /// Makes names durable.
    fn sync_dir(&mut self) -> Result<(), DiskError>;
}

/// A file of a disk, read from an offset on.
pub(crate) struct DiskReader<'a, D> {
    disk: &'a D,
    name: &'a str,
    offset: u64,
}

impl<'a, D: Disk> DiskReader<'a, D> {
    pub(crate) fn new(disk: &'a D, name: &'a str, offset: u64) -> DiskReader<'a, D> {
        DiskReader { disk, name, offset }
    }
}

impl<D: Disk> io::Read for DiskReader<'_, D> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.disk.read_at(self.name, self.offset, into).map_err(|error| error.source)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A disk operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {file} failed: {source}{}", hint(source))]
pub struct DiskError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub file: String,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    /// Names the operation and file of a failure.
    pub fn new(operation: &'static str, file: &str, source: io::Error) -> DiskError {
        DiskError { operation, file: file.to_owned(), source }
    }

    /// Whether the disk is full (or a quota is used up): the one failure that making room cures.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and start the agent again"
        }
        io::ErrorKind::PermissionDenied => "; run the agent as the owner of its data directory",
        io::ErrorKind::ReadOnlyFilesystem => "; mount the filesystem writable and start the agent again",
        _ => "",
    }
}
