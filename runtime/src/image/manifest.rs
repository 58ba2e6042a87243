//! OCI (and Docker schema 2) manifests and indexes: parsing, limits, choosing a platform.
//!
//! Decides which documents are acceptable. Reads no files.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// The specification asks for at least 4 MiB; more has no honest use.
pub(super) const DOCUMENT_MAX: u64 = 4 << 20;
const LAYERS_MAX: usize = 200;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{digest} cannot be read from the image store: {source}; load the image again")]
    Unreadable { digest: Digest, source: io::Error },
    #[error("{digest} is not a valid document: {source}")]
    Malformed { digest: Digest, source: serde_json::Error },
    #[error("{digest} is a {media_type:?}, not an image manifest")]
    NotAManifest { digest: Digest, media_type: String },
    #[error("{digest} has {count} layers; at most {LAYERS_MAX} are supported")]
    TooManyLayers { digest: Digest, count: usize },
    #[error("layer {layer} of {digest} is of the kind {media_type:?}, which is not supported")]
    UnsupportedLayer { digest: Digest, layer: Digest, media_type: String },
    #[error("{digest} has {layers} layers but its configuration names {diff_ids}")]
    LayerCount { digest: Digest, layers: usize, diff_ids: usize },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub manifests: Vec<Descriptor>,
}

impl Manifest {
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self, ManifestError> {
        let digest = *digest;
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { digest, source })?;
        let media_type = manifest.media_type.clone();
        if !matches!(media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST) {
            return Err(ManifestError::NotAManifest { digest, media_type });
        }
        if manifest.layers.len() > LAYERS_MAX {
            return Err(ManifestError::TooManyLayers { digest, count: manifest.layers.len() });
        }
        if let Some(layer) = manifest.layers.iter().find(|layer| !is_supported_layer(&layer.media_type)) {
            let media_type = layer.media_type.clone();
            return Err(ManifestError::UnsupportedLayer { digest, layer: layer.digest, media_type });
        }
        Ok(manifest)
    }

    /// Configuration and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// Compression is recognised by content; foreign and encrypted layers are refused by name.
fn is_supported_layer(media_type: &str) -> bool {
    let oci = media_type.strip_prefix("application/vnd.oci.image.layer.v1.tar");
    oci.is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd"))
        || media_type == "application/vnd.docker.image.rootfs.diff.tar.gzip"
        || media_type == "application/vnd.docker.image.rootfs.diff.tar"
}

impl Descriptor {
    pub(super) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_INDEX)
    }

    /// Whether this machine can run it; a descriptor without a platform claims nothing.
    pub(super) fn fits_here(&self) -> bool {
        self.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == go_architecture())
    }
}

pub(super) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
