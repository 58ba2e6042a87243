//! Bringing one blob in: written to the staging directory, verified, synced, renamed.
//!
//! Must not let a blob appear under its digest before its bytes are known to have that digest and size
//! and are on the disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::ImageStore;
use crate::ids::Digest;

#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("blob {digest}: {got} bytes came where {expected} were announced; fetch it again")]
    WrongSize { digest: Digest, expected: u64, got: u64 },
    #[error("blob {digest}: the bytes that came have the digest {got}; fetch it from elsewhere")]
    WrongDigest { digest: Digest, got: Digest },
    #[error("blob {digest}: reading it failed: {source}")]
    Source { digest: Digest, source: io::Error },
    #[error("blob {digest}: cannot write it to the store: {source}; is the disk full?")]
    Store { digest: Digest, source: io::Error },
}

/// A blob on its way in. Dropped before `finish`, it leaves nothing.
#[derive(Debug)]
pub struct Ingest {
    blobs: PathBuf,
    staged: Staged,
    file: File,
    hasher: Sha256,
    digest: Digest,
    expected: u64,
    got: u64,
}

impl ImageStore {
    /// Takes a blob from a reader, for example a peer's stream.
    pub fn put(&self, digest: &Digest, size: u64, mut reader: impl Read) -> Result<(), PutError> {
        let digest = *digest;
        let mut ingest = self.ingest(&digest, size)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return ingest.finish(),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(PutError::Source { digest, source }),
            };
            ingest.write(&buffer[..count])?;
        }
    }

    /// The same piece by piece.
    pub fn ingest(&self, digest: &Digest, size: u64) -> Result<Ingest, PutError> {
        let staged = Staged(self.stage());
        let created = File::create_new(&staged.0);
        let file = created.map_err(|source| PutError::Store { digest: *digest, source })?;
        Ok(Ingest {
            blobs: self.blobs.clone(),
            staged,
            file,
            hasher: Sha256::new(),
            digest: *digest,
            expected: size,
            got: 0,
        })
    }

    /// Makes a staged, verified and synced file visible under its digest.
    pub(super) fn publish(&self, staged: &Path, digest: &Digest) -> io::Result<()> {
        publish(&self.blobs, staged, digest)
    }
}

impl Ingest {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PutError> {
        self.got += bytes.len() as u64;
        if self.got > self.expected {
            return Err(self.wrong_size());
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| PutError::Store { digest: self.digest, source })
    }

    pub fn finish(self) -> Result<(), PutError> {
        if self.got != self.expected {
            return Err(self.wrong_size());
        }
        let digest = self.digest;
        let got = Digest::from_bytes(self.hasher.finalize().into());
        if got != digest {
            return Err(PutError::WrongDigest { digest, got });
        }
        let stored = self.file.sync_all().and_then(|()| publish(&self.blobs, &self.staged.0, &digest));
        stored.map_err(|source| PutError::Store { digest, source })
    }

    fn wrong_size(&self) -> PutError {
        PutError::WrongSize { digest: self.digest, expected: self.expected, got: self.got }
    }
}

fn publish(blobs: &Path, staged: &Path, digest: &Digest) -> io::Result<()> {
    fs::rename(staged, blobs.join(digest.hex()))?;
    File::open(blobs)?.sync_all()
}

/// A file in the staging directory that goes when its owner does, unless it was renamed away.
#[derive(Debug)]
pub(super) struct Staged(pub PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        // Renamed away in the good case; a leftover is cleared at the next open.
        let _ = fs::remove_file(&self.0);
    }
}
