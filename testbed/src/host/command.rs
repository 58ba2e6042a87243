//! A command inside a host: what it is given, its output, its end.
//!
//! Decides time limits. The process itself is a child of the host's init and dies with the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::link::Link;
use super::{Host, HostError};
use crate::clock;
use crate::process::{Collector, Output, feed};

const DEFAULT_LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT: Duration = Duration::from_secs(10);
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A command that has not been started.
#[derive(Debug)]
pub struct Command<'h> {
    host: &'h Host,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl<'h> Command<'h> {
    pub(super) fn new(host: &'h Host, argv: Vec<String>) -> Command<'h> {
        Command { host, argv, env: host.environment().to_vec(), input: None, limit: DEFAULT_LIMIT }
    }

    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// After this the command and its process group are killed.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn run(self) -> Result<Output, HostError> {
        let limit = self.limit;
        self.spawn()?.wait(limit)
    }

    /// Standard output of a command that must succeed.
    pub fn ok(self) -> Result<String, HostError> {
        let host = self.host.name().to_owned();
        self.run()?.ok().map_err(|failed| HostError::Command { host, failed })
    }

    pub fn spawn(self) -> Result<Process, HostError> {
        let host = self.host;
        let io = |source| host.io("making pipes", source);
        let input = input(self.input).map_err(io)?;
        let (output, stdout) = Collector::pipe().map_err(io)?;
        let (error, stderr) = Collector::pipe().map_err(io)?;
        let link = host.link()?;
        let command = self.argv.join(" ");
        let begun = clock::now();
        let started =
            link.start(self.argv, self.env, [input.as_fd(), output.as_fd(), error.as_fd()], START_LIMIT);
        let refused =
            |reason| HostError::NotStarted { host: host.name().to_owned(), command: command.clone(), reason };
        let (id, pid) = started.map_err(refused)?;
        Ok(Process { host: host.name().to_owned(), command, link, id, pid, begun, stdout, stderr })
    }
}

fn input(bytes: Option<Vec<u8>>) -> io::Result<OwnedFd> {
    let Some(bytes) = bytes else { return Ok(std::fs::File::open("/dev/null")?.into()) };
    let (reader, writer) = io::pipe()?;
    feed(writer, bytes)?;
    Ok(reader.into())
}

/// A command that runs inside a host. Dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    host: String,
    command: String,
    link: Arc<Link>,
    id: u64,
    pid: i32,
    begun: Instant,
    stdout: Collector,
    stderr: Collector,
}

impl Process {
    /// Inside the host; zero if it ended at once.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Standard output until now.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error until now.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// To the command's process group.
    pub fn signal(&self, signal: Signal) -> Result<(), HostError> {
        let failed = |source| HostError::Io { host: self.host.clone(), what: "signalling a command", source };
        self.link.signal(self.id, signal).map_err(failed)
    }

    /// Waits for its end; kills it when the time is up.
    pub fn wait(self, limit: Duration) -> Result<Output, HostError> {
        let ended = self.link.ended(self.id, limit);
        let timed_out = ended.is_none();
        if timed_out {
            self.signal(Signal::SIGKILL)?;
        }
        let late =
            || HostError::Late { host: self.host.clone(), what: "end a killed command", limit: KILL_LIMIT };
        let end = ended.or_else(|| self.link.ended(self.id, KILL_LIMIT)).ok_or_else(late)?;
        let took = self.begun.elapsed();
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        Ok(Output { command: self.command.clone(), end, stdout, stderr, took, timed_out })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.link.ended(self.id, Duration::ZERO).is_none() {
            let _ = self.link.signal(self.id, Signal::SIGKILL);
        }
        self.link.forget(self.id);
    }
}
