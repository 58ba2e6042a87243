//! Tiny OCI archives made from Debian's static busybox (package busybox-static).

use std::io::Write;

use runtime::ids::Digest;
use serde_json::{Value, json};

pub const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "id", "pwd", "env", "hostname", "mount", "ls", "wc", "grep", "kill",
    "touch", "mkdir", "head", "dd", "tail", "ip", "stat", "seq", "test", "true", "false", "unshare", "ps",
    "df", "rm", "chown", "yes", "usleep", "nc", "ping", "mknod", "readlink",
];

pub struct Archive {
    pub files: Vec<(String, Vec<u8>)>,
    pub manifest: Digest,
    pub layers: Vec<Digest>,
}

impl Archive {
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in &self.files {
            add_file(&mut tar, path, bytes, 0o644, 0);
        }
        tar.into_inner().unwrap()
    }

    pub fn blob(&mut self, digest: &Digest) -> &mut Vec<u8> {
        let path = format!("blobs/sha256/{}", digest.hex());
        &mut self.files.iter_mut().find(|(known, _)| *known == path).unwrap().1
    }
}

pub fn add_file(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32, uid: u64) {
    let mut header = header(tar::EntryType::Regular, mode, uid);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).unwrap();
}

pub fn header(kind: tar::EntryType, mode: u32, uid: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    header
}

/// An entry with a name that the tar crate would refuse to write.
pub fn add_raw(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str) {
    let mut header = header(kind, 0o644, 0);
    let raw = header.as_old_mut();
    raw.name[..path.len()].copy_from_slice(path.as_bytes());
    raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, std::io::empty()).unwrap();
}

pub fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("install Debian's package busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "home", "home/web"] {
        let uid = if directory == "home/web" { 1000 } else { 0 };
        let mut header =
            header(tar::EntryType::Directory, if directory == "tmp" { 0o1777 } else { 0o755 }, uid);
        tar.append_data(&mut header, directory, std::io::empty()).unwrap();
    }
    add_file(&mut tar, "bin/busybox", &busybox, 0o755, 0);
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    add_file(
        &mut tar,
        "etc/passwd",
        b"root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n",
        0o644,
        0,
    );
    add_file(&mut tar, "etc/group", b"root:x:0:\nwww:x:1001:\nextra:x:1002:web\n", 0o644, 0);
    add_file(&mut tar, "etc/plain", b"not a program\n", 0o644, 0);
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn busybox(process: Value) -> Archive {
    archive(&[busybox_layer()], process)
}

/// The first layer is gzipped, the second zstd, the rest plain.
pub fn archive(layers: &[Vec<u8>], process: Value) -> Archive {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut blob = |bytes: Vec<u8>, media_type: &str| {
        let digest = Digest::of(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        descriptor
    };
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let packed: Vec<Value> = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| match index {
            0 => blob(gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip"),
            1 => {
                let packed = zstd::encode_all(layer.as_slice(), 1).unwrap();
                blob(packed, "application/vnd.oci.image.layer.v1.tar+zstd")
            }
            _ => blob(layer.clone(), "application/vnd.oci.image.layer.v1.tar"),
        })
        .collect();
    let config = json!({
        "architecture": if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" },
        "os": "linux",
        "config": process,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(config.to_string().into_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": packed,
    });
    let mut descriptor =
        blob(manifest.to_string().into_bytes(), "application/vnd.oci.image.manifest.v1+json");
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": "box:1" });
    let manifest: Digest = serde_json::from_value(descriptor["digest"].clone()).unwrap();
    let layers = packed.iter().map(|l| serde_json::from_value(l["digest"].clone()).unwrap()).collect();
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    Archive { files, manifest, layers }
}
