//! OCI archives: an image layout in a tar, complete in itself.
//!
//! Decides the layout's documents. Written aside and renamed, so that an archive that exists is whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::layer::{Entry, Layer, hex};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// A fixed time, so that the same content has the same digest.
const CREATED: &str = "2023-06-10T00:00:00Z";

/// What an image has beside its base.
pub struct Image {
    pub name: &'static str,
    pub files: Vec<Entry>,
    /// The `config` object of the image configuration.
    pub config: Value,
}

pub fn write(archive: &Path, image: &Image, layers: &[&Layer]) -> io::Result<()> {
    let diffs: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff)).collect();
    let configuration = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": CREATED,
        "config": image.config,
        "rootfs": { "type": "layers", "diff_ids": diffs },
    });
    let config = serde_json::to_vec(&configuration)?;
    let stored = |layer: &&Layer| descriptor(LAYER, &layer.digest, layer.size);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &digest(&config), config.len() as u64),
        "layers": layers.iter().map(stored).collect::<Vec<_>>(),
    }))?;
    let mut entry = descriptor(MANIFEST, &digest(&manifest), manifest.len() as u64);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": image.name });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;

    let aside = archive.with_extension("new");
    let mut tar = Builder::new(BufWriter::new(File::create(&aside)?));
    file(&mut tar, "oci-layout", layout.len() as u64, &layout[..])?;
    file(&mut tar, "index.json", index.len() as u64, index.as_slice())?;
    for blob in [&manifest, &config] {
        file(&mut tar, &format!("blobs/sha256/{}", digest(blob)), blob.len() as u64, blob.as_slice())?;
    }
    for layer in layers {
        file(&mut tar, &format!("blobs/sha256/{}", layer.digest), layer.size, File::open(&layer.file)?)?;
    }
    tar.into_inner()?.flush()?;
    fs::rename(aside, archive)
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size })
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn file(tar: &mut Builder<impl Write>, path: &str, size: u64, bytes: impl Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, path, bytes)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
