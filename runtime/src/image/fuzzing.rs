//! The image documents' doors for the fuzzer (`crate::fuzzing`).
//!
//! Decides what their decoders owe. An archive is judged by a store on a small directory of its own, a layer is unpacked into
//! one.

use serde_json::json;

use super::archive::ArchiveError;
use super::layer::{decompress, unpack_at_most};
use super::manifest::{Index, Manifest, OCI_MANIFEST, go_architecture};
use super::{ImageConfig, ImageStore};
use crate::fuzzing::digest;

fn descriptor(kind: &str) -> serde_json::Value {
    json!({"mediaType": kind, "digest": digest(), "size": 77, "annotations": {"org.opencontainers.image.ref.name": "a:1"},
        "platform": {"architecture": go_architecture(), "os": "linux"}})
}

fn manifest() -> serde_json::Value {
    let layer = |kind: &str| descriptor(&format!("application/vnd.oci.image.layer.v1.tar{kind}"));
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer(""), layer("+gzip"), layer("+zstd")]})
}

fn index() -> serde_json::Value {
    json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST), descriptor("application/vnd.oci.image.index.v1+json")]})
}

fn config() -> serde_json::Value {
    json!({"config": {"User": "1:2", "Env": ["A=b"], "Entrypoint": ["/e"], "Cmd": ["c"], "WorkingDir": "/w", "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": [digest(), digest()]}})
}

pub(crate) fn indexes() -> Vec<Vec<u8>> {
    vec![index().to_string().into_bytes()]
}

pub(crate) fn check_index(bytes: &[u8]) -> Result<bool, String> {
    let index = serde_json::from_slice::<Index>(bytes);
    Ok(index.is_ok_and(|index| {
        index.manifests.iter().all(|found| found.fits_here() || !found.is_index() || found.size > 0)
    }))
}

pub(crate) fn manifests() -> Vec<Vec<u8>> {
    vec![manifest().to_string().into_bytes()]
}

pub(crate) fn check_manifest(bytes: &[u8]) -> Result<bool, String> {
    let Ok(manifest) = Manifest::parse(&digest(), bytes) else { return Ok(false) };
    let written = serde_json::to_vec(&manifest).map_err(|error| error.to_string())?;
    match Manifest::parse(&digest(), &written) {
        Ok(again) if again == manifest => Ok(true),
        other => Err(format!("a manifest is another one after writing and reading: {other:?}")),
    }
}

pub(crate) fn configs() -> Vec<Vec<u8>> {
    vec![config().to_string().into_bytes()]
}

pub(crate) fn check_config(bytes: &[u8]) -> Result<bool, String> {
    Ok(ImageConfig::parse(&digest(), bytes).is_ok())
}

/// Archives whose blobs never fit their digests: as far as the index and the sizes they are read.
pub(crate) fn archives() -> Vec<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in
        [("oci-layout", "{}".to_string()), ("index.json", index().to_string()), ("other", "x".repeat(600))]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let _ = archive.append_data(&mut header, path, text.as_bytes());
    }
    archive.into_inner().into_iter().collect()
}

pub(crate) fn check_archive(bytes: &[u8]) -> Result<bool, String> {
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "-");
    let place = std::env::temp_dir().join(format!("skein-fuzz-{}-{thread}", std::process::id()));
    let store = ImageStore::open(&place).map_err(|error| error.to_string())?;
    // An archive without its blobs is read to its end and then refused; one that is damaged earlier.
    let loaded = store.load_archive(bytes, None);
    let staged = std::fs::read_dir(place.join("staging")).map_err(|error| error.to_string())?.count();
    std::fs::remove_dir_all(&place).map_err(|error| error.to_string())?;
    match loaded {
        _ if staged > 0 => Err(format!("{staged} staging files are left")),
        Err(ArchiveError::MissingBlob(_)) | Ok(_) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// A layer with an entry of each kind, once as it is and once compressed.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let long = format!("d/{}", "n".repeat(150));
    let kinds = [
        (tar::EntryType::Directory, "d", "", ""),
        (tar::EntryType::Regular, "d/file", "text", ""),
        (tar::EntryType::Regular, &long, "text", ""),
        (tar::EntryType::Symlink, "d/symbolic", "", "file"),
        (tar::EntryType::Link, "d/hard", "", "d/file"),
        (tar::EntryType::Fifo, "d/fifo", "", ""),
        (tar::EntryType::Char, "d/device", "", ""),
        (tar::EntryType::Regular, "d/.wh.file", "", ""),
        (tar::EntryType::Regular, "d/.wh..wh..opq", "", ""),
    ];
    for (kind, path, text, target) in kinds {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        if !target.is_empty() {
            let _ = header.set_link_name(target);
        }
        let _ = archive.append_pax_extensions([("SCHILY.xattr.user.a", b"b".as_slice())]);
        let _ = archive.append_data(&mut header, path, text.as_bytes());
    }
    let plain = archive.into_inner().unwrap_or_default();
    let compressed = zstd::encode_all(plain.as_slice(), 1).unwrap_or_default();
    vec![plain, compressed]
}

/// Bytes that a layer may write here: a sparse file makes many of few.
const LAYER_BYTES: u64 = 1 << 20;

pub(crate) fn check_layer(bytes: &[u8]) -> Result<bool, String> {
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "-");
    let place = std::env::temp_dir().join(format!("skein-fuzz-layer-{}-{thread}", std::process::id()));
    let root = place.join("root");
    let failed = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(&root).map_err(failed)?;
    let taken = decompress(bytes).is_ok_and(|tar| unpack_at_most(tar, &root, LAYER_BYTES).is_ok());
    let beside = std::fs::read_dir(&place).map_err(failed)?.count();
    std::fs::remove_dir_all(&place).map_err(failed)?;
    if beside == 1 { Ok(taken) } else { Err(format!("{} entries outside of the layer", beside - 1)) }
}
