//! What a command gave back, and the threads that collect it.
//!
//! Decides how a failed command is told. Knows neither hosts nor namespaces.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock;
use crate::wire::End;

/// How long output may still trickle in from grandchildren after a command ended.
const DRAIN: Duration = Duration::from_millis(500);

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub command: String,
    pub end: End,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    /// It was killed because its time was up.
    pub timed_out: bool,
}

/// A command ended, but not well.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{command}` {how}{detail}")]
pub struct CommandFailed {
    pub command: String,
    pub how: String,
    /// A line break and what it printed.
    pub detail: String,
}

impl Output {
    pub fn success(&self) -> bool {
        self.end == End::Code(0)
    }

    pub fn code(&self) -> Option<i32> {
        if let End::Code(code) = self.end { Some(code) } else { None }
    }

    /// Standard output of a command that succeeded.
    pub fn ok(self) -> Result<String, CommandFailed> {
        if self.success() {
            return Ok(self.stdout);
        }
        let how =
            if self.timed_out { format!("was killed after {:.1?}", self.took) } else { self.end.to_string() };
        let said = if self.stderr.trim().is_empty() { self.stdout.trim() } else { self.stderr.trim() };
        let detail = if said.is_empty() { String::new() } else { format!(":\n{said}") };
        Err(CommandFailed { command: self.command, how, detail })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Code(code) => write!(f, "ended with code {code}"),
            End::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// Collects one stream of a command while it runs.
#[derive(Debug)]
pub(crate) struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    /// The descriptor to give to the command, and the collector of what it writes there.
    pub fn pipe() -> io::Result<(OwnedFd, Collector)> {
        let (reader, writer) = io::pipe()?;
        Ok((writer.into(), Collector::of(OwnedFd::from(reader))?))
    }

    pub fn of(stream: OwnedFd) -> io::Result<Collector> {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let filled = Arc::clone(&bytes);
        let thread = clock::thread("testbed-output", move || {
            collect(File::from(stream), &filled);
        })?;
        Ok(Collector { bytes, thread })
    }

    /// What has come until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// All of it, unless a grandchild keeps the stream open.
    pub fn finish(&self) -> String {
        clock::poll(DRAIN, Duration::from_millis(1), || self.thread.is_finished().then_some(()));
        self.text()
    }
}

fn collect(mut stream: File, bytes: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let read = buffer.get(..n).unwrap_or_default();
                bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Feeds a command's standard input without waiting for it to read.
pub(crate) fn feed(mut input: impl Write + Send + 'static, bytes: Vec<u8>) -> io::Result<()> {
    // A command may end without reading all of it; its exit code tells.
    clock::thread("testbed-input", move || drop(input.write_all(&bytes))).map(drop)
}
