//! An image's layers as directories, each unpacked once.
//!
//! Decides when a layer directory counts as good: unpacked whole, its digest equal to the configuration's
//! diff id, synced, then renamed into place. Must not trust a compressed layer because its blob's digest
//! was right: the diff id is verified as well.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::PoisonError;

use sha2::{Digest as _, Sha256};

use super::layer::{LayerError, decompress, unpack};
use super::{ImageConfig, ImageStore, ManifestError};
use crate::files;
use crate::ids::Digest;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the image lacks {0}; load it again, or let the agent fetch it from another member")]
    MissingBlob(Digest),
    #[error("layer {blob}: {source}")]
    Layer { blob: Digest, source: LayerError },
    #[error("layer {blob} unpacks to {got}, its configuration says {diff_id}; the image was built wrongly")]
    WrongDiffId { blob: Digest, diff_id: Digest, got: Digest },
    #[error("layer {blob}: cannot write it to the data directory: {source}; is the disk full?")]
    Store { blob: Digest, source: io::Error },
}

impl ImageStore {
    /// The layer directories, lowest first, and the configuration. Unpacks what is not there yet.
    pub fn unpacked(&self, manifest: &Digest) -> Result<(Vec<PathBuf>, ImageConfig), UnpackError> {
        let document = self.manifest(manifest)?;
        let config = self.config(&document)?;
        let (layers, diff_ids) = (document.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(ManifestError::LayerCount { digest: *manifest, layers, diff_ids }.into());
        }
        let mut directories = Vec::new();
        for (layer, diff_id) in document.layers.iter().zip(&config.diff_ids) {
            let directory = self.layer(diff_id);
            if !directory.is_dir() {
                self.unpack_layer(&layer.digest, diff_id)?;
            }
            directories.push(directory);
        }
        Ok((directories, config))
    }

    fn unpack_layer(&self, blob: &Digest, diff_id: &Digest) -> Result<(), UnpackError> {
        let blob = *blob;
        let _one = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.layer(diff_id).is_dir() {
            return Ok(());
        }
        let staged = StagedTree(self.stage());
        let store = |source| UnpackError::Store { blob, source };
        files::open_dir(&staged.0).map_err(store)?;
        let file = fs::File::open(self.blob(&blob)).map_err(|_| UnpackError::MissingBlob(blob))?;
        let damaged = |error| UnpackError::Layer { blob, source: LayerError::Damaged(error) };
        let reader = decompress(io::BufReader::with_capacity(128 << 10, file)).map_err(damaged)?;
        let mut hashed = Hashed { reader, hasher: Sha256::new() };
        unpack(&mut hashed, &staged.0).map_err(|source| UnpackError::Layer { blob, source })?;
        // What follows the archive's end mark is part of the digest too.
        io::copy(&mut hashed, &mut io::sink()).map_err(damaged)?;
        let got = Digest::from_bytes(hashed.hasher.finalize().into());
        if got != *diff_id {
            return Err(UnpackError::WrongDiffId { blob, diff_id: *diff_id, got });
        }
        self.settle(&staged, diff_id).map_err(store)
    }

    fn settle(&self, staged: &StagedTree, diff_id: &Digest) -> io::Result<()> {
        let layers = fs::File::open(&self.layers)?;
        nix::unistd::syncfs(&layers)?;
        fs::rename(&staged.0, self.layer(diff_id))?;
        layers.sync_all()
    }
}

struct StagedTree(PathBuf);

impl Drop for StagedTree {
    fn drop(&mut self) {
        let _ = files::remove_tree(&self.0);
    }
}

struct Hashed<R> {
    reader: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
