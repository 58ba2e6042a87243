//! Loading an OCI archive (a tar of an OCI image layout) in one pass, from any reader.
//!
//! Decides which images of an archive are taken: those whose every blob came, with the right digest and
//! size. Nothing of an archive becomes visible before all of it has been verified; blobs are published
//! children first. Must not use any path of the archive as a path here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::blob::Staged;
use super::layer::decompress;
use super::manifest::{DOCUMENT_MAX, Descriptor, Index, Manifest, ManifestError};
use super::{ImageConfig, ImageStore};
use crate::files;
use crate::ids::Digest;

const ENTRIES_MAX: usize = 20_000;
const INDEX_DEPTH_MAX: usize = 4;
const NAME: &str = "org.opencontainers.image.ref.name";
/// containerd and newer Docker put the full name here.
const FULL_NAME: &str = "io.containerd.image.name";

/// An error in one line: tar's quote what they could not read.
fn brief(error: &io::Error) -> String {
    let text: String = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot open {path}: {source}")]
    Open { path: String, source: io::Error },
    #[error("the archive is damaged or cut off: {}; make it again, for example with skopeo", brief(.0))]
    Damaged(#[source] io::Error),
    #[error("the archive has more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("the archive's entry {0:?} leads out of the archive; refusing all of it")]
    Escapes(String),
    #[error("no index.json: not an OCI archive; write one with `skopeo copy … oci-archive:FILE:NAME`")]
    NotAnArchive,
    #[error("the archive's index.json is not valid: {0}")]
    BadIndex(#[source] serde_json::Error),
    #[error("the archive's blob {digest} has the digest {got}; make the archive again")]
    WrongDigest { digest: Digest, got: Digest },
    #[error("the archive's blob {digest} has {got} bytes where the manifest says {expected}")]
    WrongSize { digest: Digest, expected: u64, got: u64 },
    #[error("the archive lacks the blob {0}; it is incomplete, make it again")]
    MissingBlob(Digest),
    #[error("no image in the archive is for this machine ({0})")]
    WrongPlatform(&'static str),
    #[error("the archive's indexes are nested too deeply")]
    TooDeep,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot write to the image store: {0}; is the disk full?")]
    Store(#[source] io::Error),
}

/// An image that the store now has whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// As the archive or the caller names it; none when neither does.
    pub name: Option<String>,
    pub manifest: Digest,
    /// Manifest, configuration and layers with their sizes.
    pub blobs: Vec<(Digest, u64)>,
}

impl ImageStore {
    pub fn load_archive_file(&self, path: &Path, name: Option<&str>) -> Result<Vec<Loaded>, ArchiveError> {
        let open = |source| ArchiveError::Open { path: path.display().to_string(), source };
        self.load_archive(io::BufReader::with_capacity(128 << 10, File::open(path).map_err(open)?), name)
    }

    /// Loads all images of an archive. `name` replaces the archive's own names when it has one image.
    pub fn load_archive(
        &self,
        reader: impl BufRead,
        name: Option<&str>,
    ) -> Result<Vec<Loaded>, ArchiveError> {
        let mut load = Load { store: self, staged: BTreeMap::new(), index: None };
        load.read(decompress(reader).map_err(ArchiveError::Damaged)?)?;
        let images = load.images()?;
        load.publish(&images)?;
        let single = images.len() == 1;
        let named = |image: Image| Loaded {
            name: name.filter(|_| single).map(str::to_owned).or(image.name),
            manifest: image.blobs[0].0,
            blobs: image.blobs,
        };
        Ok(images.into_iter().map(named).collect())
    }
}

struct Load<'a> {
    store: &'a ImageStore,
    staged: BTreeMap<Digest, (Staged, u64)>,
    index: Option<Index>,
}

/// The manifest first in `blobs`.
struct Image {
    name: Option<String>,
    blobs: Vec<(Digest, u64)>,
}

impl Load<'_> {
    fn read(&mut self, reader: impl Read) -> Result<(), ArchiveError> {
        let mut archive = tar::Archive::new(reader);
        // Raw: a long name or a pax header would be read into memory whole, however long it says it is. Nothing of an
        // image layout has a name that needs one.
        let entries = archive.entries().map_err(ArchiveError::Damaged)?.raw(true);
        for (count, entry) in entries.enumerate() {
            if count >= ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries);
            }
            let entry = entry.map_err(ArchiveError::Damaged)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(ArchiveError::Escapes(path));
            }
            if entry.header().entry_type().is_file() {
                let size = entry.size();
                self.take(path.trim_start_matches("./"), size, entry)?;
            }
        }
        Ok(())
    }

    /// `announced` is the size that the tar's header gives.
    fn take(&mut self, path: &str, announced: u64, mut entry: impl Read) -> Result<(), ArchiveError> {
        if path == "index.json" {
            let bytes = files::read_bounded(entry, DOCUMENT_MAX).map_err(ArchiveError::Damaged)?;
            self.index = Some(serde_json::from_slice(&bytes).map_err(ArchiveError::BadIndex)?);
            return Ok(());
        }
        // Any other name is of no meaning to us; tar skips its bytes.
        let Some(digest) = path.strip_prefix("blobs/sha256/").and_then(|hex| Digest::from_hex(hex).ok())
        else {
            return Ok(());
        };
        let staged = Staged(self.store.stage());
        let (got, size) = copy_hashed(&mut entry, &staged.0)?;
        if size < announced {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of a blob");
            return Err(ArchiveError::Damaged(cut));
        }
        if got != digest {
            return Err(ArchiveError::WrongDigest { digest, got });
        }
        self.staged.insert(digest, (staged, size));
        Ok(())
    }

    fn images(&self) -> Result<Vec<Image>, ArchiveError> {
        let index = self.index.as_ref().ok_or(ArchiveError::NotAnArchive)?;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let names = &descriptor.annotations;
            let name = names.get(FULL_NAME).or_else(|| names.get(NAME)).cloned();
            let Some(descriptor) = self.choose(descriptor, INDEX_DEPTH_MAX)? else { continue };
            images.push(Image { name, blobs: self.image(&descriptor)? });
        }
        if images.is_empty() {
            return Err(ArchiveError::WrongPlatform(super::manifest::go_architecture()));
        }
        Ok(images)
    }

    /// Follows nested indexes to the manifest for this machine.
    fn choose(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<Descriptor>, ArchiveError> {
        if !descriptor.fits_here() {
            return Ok(None);
        }
        if !descriptor.is_index() {
            return Ok(Some(descriptor.clone()));
        }
        let depth = depth.checked_sub(1).ok_or(ArchiveError::TooDeep)?;
        let index: Index = serde_json::from_slice(&self.document(descriptor)?)
            .map_err(|source| ManifestError::Malformed { digest: descriptor.digest, source })?;
        for nested in &index.manifests {
            if let Some(chosen) = self.choose(nested, depth)? {
                return Ok(Some(chosen));
            }
        }
        Ok(None)
    }

    fn image(&self, descriptor: &Descriptor) -> Result<Vec<(Digest, u64)>, ArchiveError> {
        let digest = descriptor.digest;
        let manifest = Manifest::parse(&digest, &self.document(descriptor)?)?;
        let config = ImageConfig::parse(&manifest.config.digest, &self.document(&manifest.config)?)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(ManifestError::LayerCount { digest, layers, diff_ids }.into());
        }
        let mut blobs = vec![(digest, descriptor.size)];
        for blob in manifest.blobs() {
            self.check_size(blob)?;
            blobs.push((blob.digest, blob.size));
        }
        Ok(blobs)
    }

    fn check_size(&self, blob: &Descriptor) -> Result<(), ArchiveError> {
        let digest = blob.digest;
        let staged = self.staged.get(&digest).map(|(_, size)| *size);
        match staged.or_else(|| self.store.size(&digest)) {
            None => Err(ArchiveError::MissingBlob(digest)),
            Some(got) if got != blob.size => {
                Err(ArchiveError::WrongSize { digest, expected: blob.size, got })
            }
            Some(_) => Ok(()),
        }
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ArchiveError> {
        self.check_size(descriptor)?;
        let digest = descriptor.digest;
        let staged = self.staged.get(&digest).map(|(staged, _)| staged.0.clone());
        let path = staged.unwrap_or_else(|| self.store.blob(&digest));
        let bytes = File::open(path).and_then(|file| files::read_bounded(file, DOCUMENT_MAX));
        bytes.map_err(|source| ManifestError::Unreadable { digest, source }.into())
    }

    /// Only what an image needs; anything else in the archive is dropped with the staging files.
    fn publish(&self, images: &[Image]) -> Result<(), ArchiveError> {
        let mut done = BTreeSet::new();
        for (digest, _) in images.iter().flat_map(|image| image.blobs.iter().rev()) {
            if let Some((staged, _)) = self.staged.get(digest).filter(|_| done.insert(*digest)) {
                self.store.publish(&staged.0, digest).map_err(ArchiveError::Store)?;
            }
        }
        Ok(())
    }
}

fn copy_hashed(reader: &mut impl Read, path: &Path) -> Result<(Digest, u64), ArchiveError> {
    let mut file = File::create_new(path).map_err(ArchiveError::Store)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 128 << 10]);
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ArchiveError::Damaged(error)),
        };
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(ArchiveError::Store)?;
        size += count as u64;
    }
    file.sync_all().map_err(ArchiveError::Store)?;
    Ok((Digest::from_bytes(hasher.finalize().into()), size))
}
