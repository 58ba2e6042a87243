//! Unpacking one layer's tar into a directory, as an overlayfs lower directory.
//!
//! Decides how entries become files: whiteouts become overlay's, device nodes are left out (a root file
//! system is mounted nodev and /dev comes from the runtime), directories get their modes last. Must not
//! write outside the directory whatever the entries say: parents are resolved in the root, last
//! components never followed. A file system that fills or an entry that lies ends the layer. Must not take into memory what
//! an entry's long name or attributes claim to be: they are bounded.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};
use tar::EntryType;

use super::inroot::{make_dirs_in_root, open_in_root};
use crate::sys;

/// Against archives made to exhaust us; far above honest layers.
const ENTRIES_MAX: u64 = 2_000_000;
const BYTES_MAX: u64 = 64 << 30;
const PATH_MAX: usize = 4096;
const DEPTH_MAX: usize = 256;
/// What stands before an entry's data: its header, long names, pax attributes. They are read into memory whole.
const BEFORE_DATA_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("the layer is damaged or cut off: {0}")]
    Damaged(#[source] io::Error),
    #[error("entry {path:?} of the layer {what}")]
    Refused { path: PathBuf, what: &'static str },
    #[error("entry {path:?} of the layer cannot be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the layer is larger than {BYTES_MAX} bytes or has more than {ENTRIES_MAX} entries")]
    TooLarge,
    #[error(
        "entry {entry} of the layer (the one after {after:?}) has a name or attributes of more than {BEFORE_DATA_MAX} bytes"
    )]
    LongName { entry: u64, after: PathBuf },
}

/// gzip and zstd are recognised by their first bytes; everything else passes as it is.
pub(super) fn decompress<'a>(mut reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let start = reader.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}

/// A stream that may be told to end after some more bytes.
struct Bounded<'a, R> {
    inner: R,
    /// What may still be read; `None` for all of it.
    left: &'a Cell<Option<u64>>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.get().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than may be read"));
        }
        let most = most.min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(self.left.get().map(|left| left - read as u64));
        Ok(read)
    }
}

pub(super) fn unpack(tar: impl Read, root: &Path) -> Result<(), LayerError> {
    unpack_at_most(tar, root, BYTES_MAX)
}

pub(super) fn unpack_at_most(tar: impl Read, root: &Path, bytes_max: u64) -> Result<(), LayerError> {
    let here = |source| LayerError::Write { path: PathBuf::from("/"), source };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = openat(AT_FDCWD, root, flags, Mode::empty()).map_err(|error| here(error.into()))?;
    let mut unpack = Unpack { root, parent: None, directories: Vec::new(), left: bytes_max };
    let left = Cell::new(None);
    let mut archive = tar::Archive::new(Bounded { inner: tar, left: &left });
    let mut entries = archive.entries().map_err(LayerError::Damaged)?;
    let mut after = PathBuf::new();
    for count in 1.. {
        // The last entry's data is behind us: until the next entry's data come its header, names and attributes.
        left.set(Some(BEFORE_DATA_MAX));
        let Some(entry) = entries.next() else { break };
        let too_long = left.get() == Some(0);
        let mut entry = entry.map_err(|error| match too_long {
            true => LayerError::LongName { entry: count, after: after.clone() },
            false => LayerError::Damaged(error),
        })?;
        left.set(None);
        if count > ENTRIES_MAX {
            return Err(LayerError::TooLarge);
        }
        after = Path::new(OsStr::from_bytes(&entry.path_bytes())).to_owned();
        unpack.entry(&mut entry)?;
        io::copy(&mut entry.take(unpack.left), &mut io::sink()).map_err(LayerError::Damaged)?;
    }
    unpack.finish()
}

struct Unpack {
    root: OwnedFd,
    /// The last parent directory: entries come in order, so it is nearly always the next one's too.
    parent: Option<(PathBuf, OwnedFd)>,
    directories: Vec<(PathBuf, Meta)>,
    /// Bytes that may still be written.
    left: u64,
}

struct Meta {
    mode: Mode,
    owner: (Uid, Gid),
    modified: TimeSpec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Unpack {
    fn entry(&mut self, entry: &mut tar::Entry<impl Read>) -> Result<(), LayerError> {
        let path = Path::new(OsStr::from_bytes(&entry.path_bytes())).to_owned();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let inside = normalise(&path)?;
        let meta = read_meta(entry)?;
        let Some(name) = inside.file_name().map(OsStr::to_owned) else {
            return self.root_entry(kind, meta);
        };
        let parent_path = inside.parent().unwrap_or(Path::new("")).to_owned();
        let at = |source: io::Error| LayerError::Write { path: path.clone(), source };
        let left = self.left;
        let parent = self.parent(&parent_path).map_err(at)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return whiteout(parent, hidden).map_err(at);
        }
        match kind {
            EntryType::Directory => {
                make_directory(parent, &name).map_err(at)?;
                self.directories.push((inside, meta));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let written = write_file(parent, &name, &meta, entry, left).map_err(at)?;
                self.left -= written;
                if self.left == 0 { Err(LayerError::TooLarge) } else { Ok(()) }
            }
            EntryType::Symlink => {
                let target = link_target(entry, &path)?;
                make_symlink(parent, &name, &target, &meta).map_err(at)
            }
            EntryType::Link => {
                let target = normalise(Path::new(&link_target(entry, &path)?))?;
                self.hard_link(&parent_path, &name, &target).map_err(at)
            }
            EntryType::Fifo => make_fifo(parent, &name, &meta).map_err(at),
            EntryType::Char | EntryType::Block => Ok(()),
            _ => Err(LayerError::Refused { path, what: "is of an unknown type" }),
        }
    }

    /// The layer's "." may set the root's mode and owner, and be nothing but a directory.
    fn root_entry(&mut self, kind: EntryType, meta: Meta) -> Result<(), LayerError> {
        if kind != EntryType::Directory {
            let what = "replaces the root and is no directory";
            return Err(LayerError::Refused { path: PathBuf::from("/"), what });
        }
        self.directories.push((PathBuf::new(), meta));
        Ok(())
    }

    fn parent(&mut self, path: &Path) -> io::Result<&OwnedFd> {
        let opened = match self.parent.take().filter(|(known, _)| known == path) {
            Some(parent) => parent,
            None => (path.to_owned(), make_dirs_in_root(&self.root, path)?),
        };
        Ok(&self.parent.insert(opened).1)
    }

    fn hard_link(&mut self, parent: &Path, name: &OsStr, target: &Path) -> io::Result<()> {
        let target_name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from = open_in_root(&self.root, target.parent().unwrap_or(Path::new("")), flags)?;
        let parent = self.parent(parent)?;
        make_room(parent, name)?;
        Ok(linkat(&from, target_name, parent, name, AtFlags::empty())?)
    }

    /// Modes and times of directories, deepest first, now that nothing more is written into them.
    fn finish(mut self) -> Result<(), LayerError> {
        self.directories.sort_by(|a, b| b.0.cmp(&a.0));
        for (path, meta) in &self.directories {
            let apply = || {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
                match open_in_root(&self.root, path, flags) {
                    // Replaced by something else later in the archive.
                    Err(error) if is_replaced(&error) => Ok(()),
                    Err(error) => Err(error),
                    Ok(directory) => meta.apply(&directory),
                }
            };
            apply().map_err(|source| LayerError::Write { path: path.clone(), source })?;
        }
        Ok(())
    }
}

impl Meta {
    /// The owner first: changing it clears setuid and capabilities.
    fn apply(&self, file: &OwnedFd) -> io::Result<()> {
        fchown(file, Some(self.owner.0), Some(self.owner.1))?;
        fchmod(file, self.mode)?;
        for (name, value) in &self.xattrs {
            match sys::set_xattr(file, name, value) {
                // A file system without this kind of attribute; runc and containerd go on as well.
                Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
                done => done?,
            }
        }
        Ok(futimens(file, &self.modified, &self.modified)?)
    }
}

/// A field of a header; an empty one is zero, as other readers of tar have it.
fn number<T: Default>(field: &[u8], read: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { read }
}

fn read_meta(entry: &mut tar::Entry<impl Read>) -> Result<Meta, LayerError> {
    let header = entry.header();
    let old = header.as_old();
    let read = || -> io::Result<_> {
        let mode = Mode::from_bits_truncate(number(&old.mode, header.mode())? & 0o7777);
        let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
        let owner = (
            Uid::from_raw(id(number(&old.uid, header.uid())?)?),
            Gid::from_raw(id(number(&old.gid, header.gid())?)?),
        );
        let seconds = i64::try_from(number(&old.mtime, header.mtime())?).unwrap_or(0);
        Ok((mode, owner, TimeSpec::new(seconds, 0)))
    };
    let (mode, owner, modified) = read().map_err(LayerError::Damaged)?;
    let mut xattrs = Vec::new();
    for extension in entry.pax_extensions().map_err(LayerError::Damaged)?.into_iter().flatten() {
        let extension = extension.map_err(LayerError::Damaged)?;
        let key = extension.key().unwrap_or_default();
        // trusted.* would let a layer speak to overlayfs; anything else is not for images to set.
        let name = key.strip_prefix("SCHILY.xattr.").filter(|name| is_allowed_xattr(name));
        if let Some(name) = name {
            xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(Meta { mode, owner, modified, xattrs })
}

fn is_allowed_xattr(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

/// A relative path of plain names; `..` is refused, not resolved.
fn normalise(path: &Path) -> Result<PathBuf, LayerError> {
    let refused = |what| LayerError::Refused { path: path.to_owned(), what };
    if path.as_os_str().len() > PATH_MAX || path.as_os_str().as_bytes().contains(&0) {
        return Err(refused("has a name that no file can have"));
    }
    let mut inside = PathBuf::new();
    for (depth, component) in path.components().enumerate() {
        match component {
            _ if depth > DEPTH_MAX => return Err(refused("is nested too deeply")),
            Component::Normal(name) => inside.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(refused("leads out of the layer")),
        }
    }
    Ok(inside)
}

fn link_target(entry: &tar::Entry<impl Read>, path: &Path) -> Result<OsString, LayerError> {
    let what = "is a link without a target";
    let target = entry.link_name_bytes().filter(|target| !target.is_empty());
    let target = target.ok_or_else(|| LayerError::Refused { path: path.to_owned(), what })?;
    Ok(OsStr::from_bytes(&target).to_owned())
}

/// `.wh..wh..opq` hides the lower directory's contents, `.wh.NAME` one name.
fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden == b".wh..opq" {
        return sys::set_xattr(parent, "trusted.overlay.opaque", b"y");
    }
    if matches!(hidden, b"" | b"." | b"..") || hidden.starts_with(b".wh.") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a whiteout that means anything"));
    }
    let name = OsStr::from_bytes(hidden);
    make_room(parent, name)?;
    Ok(mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0)?)
}

fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => return Ok(()),
        Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if openat(parent, name, flags, Mode::empty()).is_ok() {
        return Ok(());
    }
    make_room(parent, name)?;
    Ok(mkdirat(parent, name, Mode::from_bits_truncate(0o755))?)
}

fn write_file(
    parent: &OwnedFd,
    name: &OsStr,
    meta: &Meta,
    entry: &mut impl Read,
    left: u64,
) -> io::Result<u64> {
    make_room(parent, name)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::from_bits_truncate(0o600))?);
    let written = io::copy(&mut entry.by_ref().take(left), &mut file)?;
    meta.apply(&OwnedFd::from(file))?;
    Ok(written)
}

fn make_symlink(parent: &OwnedFd, name: &OsStr, target: &OsStr, meta: &Meta) -> io::Result<()> {
    make_room(parent, name)?;
    symlinkat(target, parent, name)?;
    fchownat(parent, name, Some(meta.owner.0), Some(meta.owner.1), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(utimensat(parent, name, &meta.modified, &meta.modified, UtimensatFlags::NoFollowSymlink)?)
}

fn make_fifo(parent: &OwnedFd, name: &OsStr, meta: &Meta) -> io::Result<()> {
    make_room(parent, name)?;
    mkfifoat(parent, name, meta.mode)?;
    Ok(fchownat(parent, name, Some(meta.owner.0), Some(meta.owner.1), AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Later entries of a name replace earlier ones; a full directory is not replaced.
fn make_room(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?),
        Err(error) => Err(error.into()),
    }
}

fn is_replaced(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(archive: &mut tar::Builder<Vec<u8>>, path: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, b"text".as_slice()).unwrap();
    }

    #[test]
    fn a_long_name_is_refused_with_its_place_and_the_limit() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut archive = tar::Builder::new(Vec::new());
            file(&mut archive, "etc/first");
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(2 << 20);
            header.set_cksum();
            archive.append(&header, io::repeat(b'a').take(2 << 20)).unwrap();
            file(&mut archive, "etc/second");
            let root = tempfile::tempdir().unwrap();
            let refused = unpack(archive.into_inner().unwrap().as_slice(), root.path()).unwrap_err();
            let text = "entry 2 of the layer (the one after \"etc/first\") has a name or attributes of more than 1048576 bytes";
            assert_eq!(refused.to_string(), text, "{kind:?}");
        }
    }

    #[test]
    fn data_before_an_entry_is_not_part_of_its_name() {
        let mut archive = tar::Builder::new(Vec::new());
        // A directory has no data; this one says that it has.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_size(3 << 20);
        header.set_mode(0o755);
        archive.append_data(&mut header, "etc", io::repeat(0).take(3 << 20)).unwrap();
        let long = format!("etc/{}/{}", "a".repeat(200), "b".repeat(200));
        file(&mut archive, &long);
        let root = tempfile::tempdir().unwrap();
        unpack(archive.into_inner().unwrap().as_slice(), root.path()).unwrap();
        assert_eq!(std::fs::read(root.path().join(long)).unwrap(), b"text");
    }
}
