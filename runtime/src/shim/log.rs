//! A container's log file in the CRI format, rotated by size.
//!
//! Decides line splitting and rotation: `TIME stdout|stderr F|P TEXT`. Must not hold more than one
//! unfinished line of bounded length per stream, and must not stop a container because a disk is full:
//! what cannot be written is dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::clock::Timestamp;

/// Longer lines are cut into parts marked P, as containerd does.
const LINE_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    max_files: u32,
}

/// The unfinished line of one stream.
#[derive(Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl LogFile {
    pub fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, max_bytes, max_files: max_files.max(2) })
    }

    /// Whole lines only, so that a file never ends in the middle of one.
    pub fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.size > 0 && self.size + lines.len() as u64 > self.max_bytes {
            // Without room for a new file the old one goes on growing: better than losing lines.
            let _ = self.rotate();
        }
        if self.file.write_all(lines).is_ok() {
            self.size += lines.len() as u64;
        }
    }

    /// `N.log` is the newest, `N.log.1` the one before.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.max_files - 1).rev() {
            match fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, numbered(&self.path, 1))?;
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

pub(crate) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

impl Lines {
    /// Turns a piece of output into log lines, keeping what does not end in a newline.
    pub fn feed(&mut self, stream: Stream, now: Timestamp, piece: &[u8], out: &mut Vec<u8>) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            while self.partial.len() + rest.len() > LINE_MAX {
                let (fits, more) = rest.split_at(LINE_MAX - self.partial.len());
                if more == b"\n" {
                    break;
                }
                self.partial.extend_from_slice(fits);
                self.emit(stream, now, 'P', out);
                rest = more;
            }
            self.partial.extend_from_slice(rest);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                self.emit(stream, now, 'F', out);
            }
        }
    }

    /// The stream ended: what is left is a line.
    pub fn end(&mut self, stream: Stream, now: Timestamp, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(stream, now, 'F', out);
        }
        self.partial = Vec::new();
    }

    fn emit(&mut self, stream: Stream, now: Timestamp, tag: char, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{now} {} {tag} ", stream.name()).as_bytes());
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        let now = Timestamp::from_nanos(0);
        for piece in pieces {
            lines.feed(Stream::Stdout, now, piece, &mut out);
        }
        lines.end(Stream::Stdout, now, &mut out);
        String::from_utf8(out).unwrap().replace("1970-01-01T00:00:00.000000000Z stdout ", "")
    }

    #[test]
    fn pieces_become_lines() {
        assert_eq!(lines(&[b"a\nb", b"c\n\n", b"d"]), "F a\nF bc\nF \nF d\n");
        assert_eq!(lines(&[]), "");
    }

    #[test]
    fn long_lines_are_cut_and_marked() {
        let long = vec![b'x'; LINE_MAX];
        assert_eq!(lines(&[&long, b"\n"]).len(), LINE_MAX + 3, "exactly as long as allowed: one line");
        let cut = lines(&[&long, b"y\n"]);
        assert!(cut.starts_with("P xxx") && cut.ends_with("x\nF y\n"));
        let whole: Vec<u8> = long.iter().chain(b"y\n").copied().collect();
        assert_eq!(lines(&[&whole]), cut, "independent of how the pieces came");
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let dir = std::env::temp_dir().join(format!("skein-rotate-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let mut log = LogFile::open(&path, 10, 3).unwrap();
        for line in ["111111\n", "222222\n", "333333\n", "444444\n"] {
            log.append(line.as_bytes());
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        assert_eq!(read(&path), "444444\n");
        assert_eq!(read(&numbered(&path, 1)), "333333\n");
        assert_eq!(read(&numbered(&path, 2)), "222222\n");
        assert!(!numbered(&path, 3).exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
