//! The content-addressed image store: blobs by digest, layers unpacked once.
//!
//! Decides what a complete image is and when bytes count as present: a blob is visible only under its own
//! digest, whole, verified and synced. Must not give meaning to anything an image says about itself
//! (labels, annotations, history): only digests, sizes, the process configuration and the layers are read.
//! All calls block; async callers use a blocking thread.

mod archive;
mod blob;
mod config;
pub(crate) mod fuzzing;
mod inroot;
mod layer;
mod manifest;
mod unpack;

pub use archive::{ArchiveError, Loaded};
pub use blob::{Ingest, PutError};
pub use config::ImageConfig;
pub use manifest::{Manifest, ManifestError};
pub use unpack::UnpackError;

pub(crate) use inroot::{make_dirs_in_root, open_in_root, read_in_root, real_directory};

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::files;
use crate::ids::Digest;

#[derive(Debug, thiserror::Error)]
#[error("image store, {action} {path}: {source}")]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What garbage collection took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: Vec<Digest>,
    pub layers: Vec<Digest>,
    pub bytes: u64,
}

#[derive(Debug)]
pub struct ImageStore {
    blobs: PathBuf,
    layers: PathBuf,
    staging: PathBuf,
    next: AtomicU64,
    /// One layer is unpacked at a time; the second asker then finds it there.
    unpacking: Mutex<()>,
}

impl ImageStore {
    /// Opens the store below `data` and throws away what an earlier process left half done. One process
    /// at a time: the runtime's lock sees to that.
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        let store = Self {
            blobs: data.join("blobs/sha256"),
            layers: data.join("layers"),
            staging: data.join("staging"),
            next: AtomicU64::new(0),
            unpacking: Mutex::new(()),
        };
        files::remove_tree(&store.staging).map_err(at("clear", &store.staging))?;
        for directory in [&store.blobs, &store.layers, &store.staging] {
            files::private_dir(directory).map_err(at("make", directory))?;
        }
        Ok(store)
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob(digest)).ok().map(|metadata| metadata.len())
    }

    /// The blob's bytes, for reading.
    pub fn read(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob(digest);
        File::open(&path).map_err(at("open blob", &path))
    }

    /// Every blob and its size.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let names = files::names(&self.blobs).map_err(at("list", &self.blobs))?;
        let digests = names.iter().filter_map(|name| Digest::from_hex(name).ok());
        Ok(digests.filter_map(|digest| Some((digest, self.size(&digest)?))).collect())
    }

    /// Removes one blob; absence is success. Containers already started do not need it.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob(digest);
        files::remove_file(&path).map_err(at("remove", &path))
    }

    /// The manifest's own digest, its configuration's and its layers': all an image needs.
    pub fn references(&self, manifest: &Digest) -> Result<Vec<Digest>, ManifestError> {
        let document = self.manifest(manifest)?;
        Ok(std::iter::once(*manifest).chain(document.blobs().map(|blob| blob.digest)).collect())
    }

    /// The blobs that the image still lacks here.
    pub fn missing(&self, manifest: &Digest) -> Result<Vec<Digest>, ManifestError> {
        Ok(self.references(manifest)?.into_iter().filter(|digest| !self.has(digest)).collect())
    }

    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, ManifestError> {
        Manifest::parse(digest, &self.document(digest)?)
    }

    pub fn config(&self, manifest: &Manifest) -> Result<ImageConfig, ManifestError> {
        let digest = manifest.config.digest;
        ImageConfig::parse(&digest, &self.document(&digest)?)
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, ManifestError> {
        let read = || files::read_bounded(File::open(self.blob(digest))?, manifest::DOCUMENT_MAX);
        read().map_err(|source| ManifestError::Unreadable { digest: *digest, source })
    }

    /// Removes blobs and layers that no live manifest needs. What is younger than `min_age` stays: it may
    /// belong to a load or a fetch whose manifest is not live yet.
    pub fn collect_garbage(
        &self,
        live: &BTreeSet<Digest>,
        min_age: Duration,
    ) -> Result<Collected, StoreError> {
        let (blobs, layers) = self.needed(live);
        let mut collected = Collected::default();
        for (digest, size) in self.list()? {
            if !blobs.contains(&digest) && is_older(&self.blob(&digest), min_age) {
                self.remove(&digest)?;
                collected.blobs.push(digest);
                collected.bytes += size;
            }
        }
        for name in files::names(&self.layers).map_err(at("list", &self.layers))? {
            let Ok(digest) = Digest::from_hex(&name) else { continue };
            if !layers.contains(&digest) && is_older(&self.layer(&digest), min_age) {
                self.remove_layer(&digest)?;
                collected.layers.push(digest);
            }
        }
        Ok(collected)
    }

    /// A manifest that cannot be read protects itself only; the caller will notice when it is used.
    fn needed(&self, live: &BTreeSet<Digest>) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
        let (mut blobs, mut layers) = (live.clone(), BTreeSet::new());
        for digest in live {
            let Ok(manifest) = self.manifest(digest) else { continue };
            blobs.extend(manifest.blobs().map(|blob| blob.digest));
            if let Ok(config) = self.config(&manifest) {
                layers.extend(config.diff_ids);
            }
        }
        (blobs, layers)
    }

    /// By rename first, so that a crash in the middle leaves no half layer under its name.
    fn remove_layer(&self, diff_id: &Digest) -> Result<(), StoreError> {
        let (layer, staging) = (self.layer(diff_id), self.stage());
        fs::rename(&layer, &staging).map_err(at("remove layer", &layer))?;
        files::remove_tree(&staging).map_err(at("remove", &staging))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.hex())
    }

    /// A fresh name in the staging directory.
    fn stage(&self) -> PathBuf {
        self.staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { action, path, source }
}

fn is_older(path: &Path, min_age: Duration) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let age = clock::wall().seconds() - metadata.ctime();
    age >= i64::try_from(min_age.as_secs()).unwrap_or(i64::MAX)
}
