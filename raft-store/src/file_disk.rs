//! Decides how the `Disk` operations map to files of one directory: modes 0600 and 0700, a lock so that two agents
//! never share it, fdatasync. Must not retry anything, least of all a sync.

mod through;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskError};
use through::Writes;

const LOCK: &str = "lock";
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A directory on a real filesystem, locked for as long as this value lives.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    open: BTreeMap<String, Arc<File>>,
    writes: Writes,
    lock: File,
}

/// A directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileDiskError {
    /// It can be neither found nor made, or its lock file cannot be opened.
    #[error("the store's directory {directory} cannot be opened: {source}")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds it.
    #[error(
        "the store's directory {directory} is in use by another process; stop the other agent, or give this one its own --data-dir"
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
}

impl FileDisk {
    /// Opens, making it if need be, and locks a directory.
    pub fn open(directory: &Path) -> Result<FileDisk, FileDiskError> {
        let failed = |source| FileDiskError::Directory { directory: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let lock = options().create(true).truncate(false).open(directory.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(FileDisk {
                directory: directory.to_owned(),
                open: BTreeMap::new(),
                writes: Writes::default(),
                lock,
            }),
            Err(TryLockError::WouldBlock) => Err(FileDiskError::InUse { directory: directory.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn file(&mut self, operation: &'static str, name: &str) -> Result<&Arc<File>, DiskError> {
        if !self.open.contains_key(name) {
            let file = options().open(self.path(name)).map_err(|e| DiskError::new(operation, name, e))?;
            self.open.insert(name.to_owned(), Arc::new(file));
        }
        Ok(&self.open[name])
    }

    /// What the name stands for is no longer that file.
    fn close(&mut self, name: &str) {
        self.open.remove(name);
        self.writes.forget(name);
    }

    fn turn_to(&mut self, name: &str) -> Result<(), DiskError> {
        if !self.writes.writes(name) {
            let file = self.file("writing", name)?.clone();
            self.writes.turn_to(name, &self.path(name), file);
        }
        Ok(())
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn write_zeros(file: &File, mut left: u64) -> io::Result<()> {
    let mut offset = 0;
    while left > 0 {
        let step = left.min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..step as usize], offset)?;
        offset += step;
        left -= step;
    }
    Ok(())
}

impl Disk for FileDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        let failed = |e| DiskError::new("listing", &self.directory.display().to_string(), e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let (true, Ok(name)) = (entry.path().is_file(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        names.retain(|name| name != LOCK);
        Ok(names)
    }

    fn create(&mut self, name: &str, zeros: u64) -> Result<(), DiskError> {
        let failed = |e| DiskError::new("creation", name, e);
        let file = options().create_new(true).open(self.path(name)).map_err(failed)?;
        if let Err(error) = write_zeros(&file, zeros) {
            // Best effort: the room that was taken is what a full disk lacks.
            let _ = fs::remove_file(self.path(name));
            return Err(failed(error));
        }
        self.open.insert(name.to_owned(), Arc::new(file));
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError> {
        fs::read(self.path(name)).map_err(|e| DiskError::new("reading", name, e))
    }

    fn length(&self, name: &str) -> Result<u64, DiskError> {
        fs::metadata(self.path(name)).map(|found| found.len()).map_err(|e| DiskError::new("reading", name, e))
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let failed = |e| DiskError::new("reading", name, e);
        let opened;
        let file = match self.open.get(name) {
            Some(file) => file,
            None => {
                opened = Arc::new(File::open(self.path(name)).map_err(failed)?);
                &opened
            }
        };
        let mut got = 0;
        while got < into.len() {
            match file.read_at(&mut into[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(got)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.writes.changes();
        let file = self.file("writing", name)?;
        file.write_all_at(bytes, offset).map_err(|e| DiskError::new("writing", name, e))
    }

    fn write_through(&mut self, name: &str, offset: u64, sectors: &[u8]) -> Result<(), DiskError> {
        self.turn_to(name)?;
        self.writes.perform(offset, sectors)
    }

    fn begin_write_through(&mut self, name: &str, offset: u64, sectors: &[u8]) -> Result<(), DiskError> {
        self.turn_to(name)?;
        self.writes.begin(offset, sectors)
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        if self.writes.covers(name)? {
            return Ok(());
        }
        let file = self.file("sync", name)?;
        file.sync_data().map_err(|e| DiskError::new("sync", name, e))
    }

    fn truncate(&mut self, name: &str, length: u64) -> Result<(), DiskError> {
        self.writes.changes();
        let file = self.file("truncation", name)?;
        // A shorter length is metadata that fdatasync need not write: sync it here, wholly.
        file.set_len(length).and_then(|()| file.sync_all()).map_err(|e| DiskError::new("truncation", name, e))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.close(from);
        self.close(to);
        fs::rename(self.path(from), self.path(to)).map_err(|e| DiskError::new("renaming", from, e))
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.close(name);
        fs::remove_file(self.path(name)).map_err(|e| DiskError::new("removal", name, e))
    }

    fn room(&self) -> Result<u64, DiskError> {
        let found = rustix::fs::fstatvfs(&self.lock).map_err(|errno| {
            DiskError::new("asking for the room", &self.directory.display().to_string(), errno.into())
        })?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn sync_dir(&mut self) -> Result<(), DiskError> {
        let name = self.directory.display().to_string();
        let directory = File::open(&self.directory).map_err(|e| DiskError::new("opening", &name, e))?;
        directory.sync_all().map_err(|e| DiskError::new("sync", &name, e))
    }
}
