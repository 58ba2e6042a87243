//! A small image for tests and benches: Debian's static busybox in an OCI archive, made here, the same bytes each time.
//!
//! Decides the layout (OCI image specification 1.0: one layer, one configuration, one manifest, one index).

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Name of the image.
pub const NAME: &str = "docker.io/library/small:1";
/// Where Debian's package busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";
const WORDS: [&str; 16] = [
    "sh", "ls", "cat", "sleep", "echo", "httpd", "nslookup", "wget", "ip", "ps", "id", "hostname", "nc",
    "true", "false", "touch",
];

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(size: u64, mode: u32, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(kind);
    header
}

/// The image's layer.
pub fn layer() -> io::Result<Vec<u8>> {
    let busybox = std::fs::read(BUSYBOX)?;
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "www/"] {
        tar.append_data(&mut header(0, 0o755, tar::EntryType::Directory), directory, io::empty())?;
    }
    tar.append_data(
        &mut header(busybox.len() as u64, 0o755, tar::EntryType::Regular),
        "bin/busybox",
        busybox.as_slice(),
    )?;
    for word in WORDS {
        tar.append_link(&mut header(0, 0o777, tar::EntryType::Symlink), format!("bin/{word}"), "busybox")?;
    }
    for (path, text) in [("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), ("www/index.html", "hello\n")] {
        tar.append_data(
            &mut header(text.len() as u64, 0o644, tar::EntryType::Regular),
            path,
            text.as_bytes(),
        )?;
    }
    tar.into_inner()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()})
}

/// The archive's bytes.
pub fn archive() -> io::Result<Vec<u8>> {
    archive_of(&layer()?, NAME)
}

/// An archive of one image with this one layer.
pub fn archive_of(layer: &[u8], name: &str) -> io::Result<Vec<u8>> {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config.as_bytes()), "layers": [descriptor("layer.v1.tar", layer)],
    })
    .to_string();
    let mut entry = descriptor("manifest.v1+json", manifest.as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        tar.append_data(&mut header(bytes.len() as u64, 0o644, tar::EntryType::Regular), path, bytes)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index.as_bytes())?;
    for blob in [layer, config.as_bytes(), manifest.as_bytes()] {
        add(&format!("blobs/sha256/{}", digest(blob)), blob)?;
    }
    tar.into_inner()
}

/// Writes the archive to a file.
pub fn write(path: &Path) -> io::Result<()> {
    std::fs::File::create(path)?.write_all(&archive()?)
}
