//! Reading container logs back: whole, by tail, by time, following, across rotations.
//!
//! Decides which lines a reader gets. Reads only files that the shim wrote in our own directory, never
//! through a symlink (CVE-2026-53489).

mod line;

use std::collections::VecDeque;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Timestamp;
use crate::shim::numbered;

pub use line::{LogLine, LogStream};

const FOLLOW_PAUSE: Duration = Duration::from_millis(50);
const PIECE: usize = 64 << 10;
/// Lines in flight to a reader.
const CHANNEL: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Only the last so many lines of what is there at the beginning.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    /// The attempt before the latest.
    pub previous: bool,
    /// Lines as `TIME TEXT` where they are turned into bytes (`LogLine::render`).
    pub timestamps: bool,
    /// Ends after so many bytes of text.
    pub limit_bytes: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("no such pod on this node")]
    UnknownPod,
    #[error("no such container in the pod")]
    UnknownContainer,
    #[error("the container has not been restarted: there is no previous log")]
    NoPrevious,
    #[error("the log {path} cannot be read: {source}")]
    Io { path: PathBuf, source: io::Error },
}

pub type LogReceiver = mpsc::Receiver<LogLine>;

/// Starts reading; `over` says when nothing more will be written.
pub(crate) fn read(
    path: PathBuf,
    options: LogOptions,
    over: impl Fn() -> bool + Send + 'static,
) -> Result<LogReceiver, LogError> {
    let chain = Chain::open(&path).map_err(|source| LogError::Io { path, source })?;
    let (sender, receiver) = mpsc::channel(CHANNEL);
    start(Reading { chain, options, sender, sent_bytes: 0 }.run(over));
    Ok(receiver)
}

#[expect(clippy::disallowed_methods, reason = "a log reader; ends with its receiver or its log")]
fn start(reading: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(reading);
}

/// The files of one log, oldest first, and the bytes of a line not yet complete.
struct Chain {
    path: PathBuf,
    files: VecDeque<File>,
    rest: Vec<u8>,
}

struct Reading {
    chain: Chain,
    options: LogOptions,
    sender: mpsc::Sender<LogLine>,
    sent_bytes: u64,
}

impl Reading {
    async fn run(mut self, over: impl Fn() -> bool) {
        let mut last = VecDeque::new();
        while let Some(lines) = self.chain.next() {
            for line in lines {
                if self.options.tail.is_none() {
                    if !self.send(line).await {
                        return;
                    }
                } else if self.is_wanted(&line) {
                    last.push_back(line);
                    while last.len() > self.options.tail.unwrap_or(usize::MAX) {
                        last.pop_front();
                    }
                }
            }
        }
        for line in last {
            if !self.send(line).await {
                return;
            }
        }
        if self.options.follow {
            self.follow(over).await;
        }
    }

    async fn follow(&mut self, over: impl Fn() -> bool) {
        loop {
            // Asked before reading: what was written before the end is read after it.
            let last = over() || self.sender.is_closed();
            self.chain.catch_up();
            while let Some(lines) = self.chain.next() {
                for line in lines {
                    if !self.send(line).await {
                        return;
                    }
                }
            }
            if last {
                return;
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }

    /// False when the reader has gone or has had enough.
    async fn send(&mut self, mut line: LogLine) -> bool {
        if !self.is_wanted(&line) {
            return true;
        }
        if let Some(limit) = self.options.limit_bytes {
            let left = limit.saturating_sub(self.sent_bytes);
            line.text.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if left == 0 {
                return false;
            }
        }
        // The newline counts too.
        self.sent_bytes += line.text.len() as u64 + 1;
        self.sender.send(line).await.is_ok()
    }

    fn is_wanted(&self, line: &LogLine) -> bool {
        self.options.since.is_none_or(|since| line.time >= since)
    }
}

impl Chain {
    fn open(path: &Path) -> io::Result<Self> {
        let mut files: VecDeque<File> = VecDeque::new();
        for number in 0.. {
            let file = match open(&nth(path, number)) {
                Ok(file) => file,
                // The newest may not be begun yet, or be between two rotations' renames.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let same = |newer: &File| Ok::<_, io::Error>(is_same(&newer.metadata()?, &file.metadata()?));
            // Rotated since the last step: opened already.
            if !files.front().map(same).transpose()?.unwrap_or(false) {
                files.push_front(file);
            }
        }
        Ok(Self { path: path.to_owned(), files, rest: Vec::new() })
    }

    /// The next complete lines; `None` when the newest file has no more for now.
    fn next(&mut self) -> Option<Vec<LogLine>> {
        loop {
            let file = self.files.front_mut()?;
            let mut piece = vec![0; PIECE];
            match file.read(&mut piece) {
                Ok(0) | Err(_) if self.files.len() > 1 => drop(self.files.pop_front()),
                Ok(0) | Err(_) => return None,
                Ok(count) => {
                    self.rest.extend_from_slice(&piece[..count]);
                    return Some(self.complete_lines());
                }
            }
        }
    }

    fn complete_lines(&mut self) -> Vec<LogLine> {
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = self.rest[..end].split(|byte| *byte == b'\n').filter_map(LogLine::parse).collect();
        self.rest.drain(..end);
        lines
    }

    /// Adds the files that rotation has begun since: those newer than the one being read.
    fn catch_up(&mut self) {
        let Some(current) = self.files.back().and_then(|file| file.metadata().ok()) else {
            self.files.extend(open(&self.path));
            return;
        };
        let mut newer = Vec::new();
        for number in 0.. {
            let Ok(file) = open(&nth(&self.path, number)) else { break };
            if file.metadata().is_ok_and(|metadata| is_same(&metadata, &current)) {
                break;
            }
            newer.push(file);
        }
        self.files.extend(newer.into_iter().rev());
    }
}

fn nth(path: &Path, number: u32) -> PathBuf {
    if number == 0 { path.to_owned() } else { numbered(path, number) }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
