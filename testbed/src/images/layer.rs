//! Layers: a directory tree or a few files as a compressed tar, the same bytes for the same content.
//!
//! Decides what of a Debian root an image does not need. Times are zero, order is by name, owners are numbers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Left out: what only people read, what only apt and dpkg need, what a container gets from its runtime.
const EMPTY: [&str; 6] = ["dev", "proc", "sys", "tmp", "var/cache/apt", "var/lib/apt/lists"];
const LEFT_OUT: [&str; 14] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/vim",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/aarch64-linux-gnu/gconv",
    "var/lib/dpkg/info",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
];
const LEVEL: i32 = 3;

/// One path of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative to the root.
    path: PathBuf,
    mode: u32,
    owner: (u64, u64),
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Directory,
    Symlink(PathBuf),
    /// The path of an earlier entry.
    Hardlink(PathBuf),
    Bytes(Vec<u8>),
    Source(PathBuf),
}

impl Entry {
    pub fn file(path: &str, text: &str) -> Entry {
        Entry { path: path.into(), mode: 0o644, owner: (0, 0), content: Content::Bytes(text.into()) }
    }

    pub fn directory(path: &str) -> Entry {
        Entry { path: path.into(), mode: 0o755, owner: (0, 0), content: Content::Directory }
    }
}

/// A layer in a file.
#[derive(Debug, Clone)]
pub struct Layer {
    pub file: PathBuf,
    pub size: u64,
    /// Of the compressed bytes, in hex.
    pub digest: String,
    /// Of the tar inside, in hex.
    pub diff: String,
}

impl Layer {
    pub fn write(file: &Path, entries: &[Entry]) -> io::Result<Layer> {
        let stored = Hashing::new(BufWriter::new(File::create(file)?));
        let compressed = zstd::Encoder::new(stored, LEVEL)?;
        let mut tar = Builder::new(Hashing::new(compressed));
        for entry in entries {
            append(&mut tar, entry)?;
        }
        let (compressed, diff, _) = tar.into_inner()?.end();
        let (mut stored, digest, size) = compressed.finish()?.end();
        stored.flush()?;
        Ok(Layer { file: file.to_owned(), size, digest, diff })
    }
}

/// Everything below a root that an image should have, sorted.
pub fn entries(root: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut seen = BTreeMap::new();
    walk(root, Path::new(""), &mut seen, &mut found)?;
    Ok(found)
}

fn walk(
    root: &Path,
    below: &Path,
    seen: &mut BTreeMap<u64, PathBuf>,
    found: &mut Vec<Entry>,
) -> io::Result<()> {
    let mut names: Vec<_> =
        fs::read_dir(root.join(below))?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    for path in names.iter().map(|name| below.join(name)) {
        if LEFT_OUT.iter().any(|out| path == Path::new(out)) {
            continue;
        }
        let source = root.join(&path);
        let meta = fs::symlink_metadata(&source)?;
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            Content::Directory
        } else if kind.is_symlink() {
            Content::Symlink(fs::read_link(&source)?)
        } else if kind.is_file() {
            let first = seen.entry(meta.ino()).or_insert_with(|| path.clone());
            if *first == path { Content::Source(source) } else { Content::Hardlink(first.clone()) }
        } else {
            continue;
        };
        let directory =
            matches!(content, Content::Directory) && !EMPTY.iter().any(|empty| path == Path::new(empty));
        let owner = (u64::from(meta.uid()), u64::from(meta.gid()));
        found.push(Entry { path: path.clone(), mode: meta.mode() & 0o7777, owner, content });
        if directory {
            walk(root, &path, seen, found)?;
        }
    }
    Ok(())
}

fn append(tar: &mut Builder<impl Write>, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(0);
    header.set_size(0);
    match &entry.content {
        Content::Directory => {
            header.set_entry_type(EntryType::Directory);
            // A directory's name ends with a slash in tar.
            tar.append_data(&mut header, entry.path.join(""), io::empty())
        }
        Content::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, &entry.path, target)
        }
        Content::Hardlink(first) => {
            header.set_entry_type(EntryType::Link);
            tar.append_link(&mut header, &entry.path, first)
        }
        Content::Bytes(bytes) => file(tar, header, &entry.path, bytes.len() as u64, bytes.as_slice()),
        Content::Source(source) => {
            let opened = File::open(source)?;
            let size = opened.metadata()?.len();
            file(tar, header, &entry.path, size, opened)
        }
    }
}

fn file(
    tar: &mut Builder<impl Write>,
    mut header: Header,
    path: &Path,
    size: u64,
    bytes: impl Read,
) -> io::Result<()> {
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    tar.append_data(&mut header, path, bytes)
}

/// Passes bytes on, counts them and takes their hash.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Hashing<W> {
        Hashing { inner, hash: Sha256::new(), count: 0 }
    }

    fn end(self) -> (W, String, u64) {
        (self.inner, hex(&self.hash.finalize()), self.count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let scratch = tempfile::tempdir().unwrap();
        let mut digests = Vec::new();
        for (name, order) in [("a", ["one", "two"]), ("b", ["two", "one"])] {
            let root = scratch.path().join(name);
            for directory in ["sub", "usr/share/doc/x", "proc"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            for file in order {
                fs::write(root.join("sub").join(file), file).unwrap();
            }
            fs::write(root.join("proc/1"), "not of the image").unwrap();
            fs::hard_link(root.join("sub/one"), root.join("sub/three")).unwrap();
            std::os::unix::fs::symlink("sub/one", root.join("link")).unwrap();
            let entries = entries(&root).unwrap();
            let paths: Vec<_> = entries.iter().map(|e| e.path.to_str().unwrap().to_owned()).collect();
            assert_eq!(paths, ["link", "proc", "sub", "sub/one", "sub/three", "sub/two", "usr", "usr/share"]);
            digests
                .push(Layer::write(&scratch.path().join(format!("{name}.layer")), &entries).unwrap().digest);
        }
        assert_eq!(digests[0], digests[1]);
    }
}
