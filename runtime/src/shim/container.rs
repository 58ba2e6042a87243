//! One container as its shim knows it: its process, its output, its end.
//!
//! Decides what is recorded about an exit and in which order: output first, then the exit file, then the
//! news of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};

use super::log::{Lines, LogFile, Stream};
use super::protocol::{ContainerReport, Create};
use crate::cgroup::oom_seen;
use crate::clock::{self, Timestamp};
use crate::files;
use crate::state::{Exit, Started};

/// How much of one pipe is read before others get their turn.
const TURN_MAX: usize = 8;

pub(super) struct Container {
    pub create: Create,
    pub pid: Option<Pid>,
    pub started_at: Option<Timestamp>,
    pub exit: Option<Exit>,
    output: Option<Output>,
}

struct Output {
    file: LogFile,
    pipes: [Option<File>; 2],
    lines: [Lines; 2],
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Container {
    /// With fresh pipes; the write ends are for the OCI runtime.
    pub fn new(create: Create) -> io::Result<(Self, [OwnedFd; 2])> {
        let file = LogFile::open(&create.log, create.log_max_bytes, create.log_max_files)?;
        let (out, out_write) = output_pipe()?;
        let (err, err_write) = output_pipe()?;
        let output = Output { file, pipes: [Some(out), Some(err)], lines: Default::default() };
        let container = Self { create, pid: None, started_at: None, exit: None, output: Some(output) };
        Ok((container, [out_write, err_write]))
    }

    /// The runtime's name for it: a new one per attempt, so that a leftover is never met again.
    pub fn id(&self) -> String {
        format!("{}-{}", self.create.name, self.create.attempt)
    }

    pub fn is_running(&self) -> bool {
        self.pid.is_some() && self.exit.is_none()
    }

    pub fn report(&self) -> ContainerReport {
        ContainerReport {
            name: self.create.name.clone(),
            attempt: self.create.attempt,
            started: self.started(),
            exit: self.exit.clone(),
        }
    }

    pub fn started(&self) -> Option<Started> {
        Some(Started { pid: self.pid?.as_raw(), started_at: self.started_at? })
    }

    /// The open pipes, to be polled.
    pub fn pipes(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let pipes = self.output.iter().flat_map(|output| output.pipes.iter().enumerate());
        pipes.filter_map(|(index, pipe)| Some((index, pipe.as_ref()?.as_fd())))
    }

    pub fn read_pipe(&mut self, index: usize, buffer: &mut [u8]) {
        if let Some(output) = &mut self.output {
            output.read(index, buffer, TURN_MAX);
        }
    }

    /// The process is reaped, and with it everything in its pid namespace, so the pipes hold all there is.
    pub fn ended(&mut self, code: i32, signal: Option<i32>, buffer: &mut [u8]) -> Exit {
        if let Some(mut output) = self.output.take() {
            output.drain(buffer);
        }
        let oom = self.create.oom_file.as_deref().is_some_and(oom_seen);
        let exit = Exit::of_process(code, signal, oom, self.started_at, clock::wall());
        // If the disk refuses, the shim still has it in memory.
        let _ = files::write_json(&self.create.exit_file, &exit);
        self.exit = Some(exit.clone());
        exit
    }
}

impl Output {
    fn drain(&mut self, buffer: &mut [u8]) {
        for index in 0..STREAMS.len() {
            self.read(index, buffer, usize::MAX);
            self.close(index);
        }
    }

    fn read(&mut self, index: usize, buffer: &mut [u8], turns: usize) {
        let mut lines = Vec::new();
        for _ in 0..turns {
            let Some(pipe) = &mut self.pipes[index] else { return };
            match pipe.read(buffer) {
                Ok(0) => return self.close(index),
                Ok(count) => {
                    lines.clear();
                    self.lines[index].feed(STREAMS[index], clock::wall(), &buffer[..count], &mut lines);
                    self.file.append(&lines);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(index),
            }
        }
    }

    fn close(&mut self, index: usize) {
        let mut lines = Vec::new();
        self.lines[index].end(STREAMS[index], clock::wall(), &mut lines);
        self.file.append(&lines);
        self.pipes[index] = None;
    }
}

fn output_pipe() -> io::Result<(File, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // Only our end: a program that gets EAGAIN from its standard output breaks.
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error: Errno| io::Error::from(error))?;
    Ok((File::from(read), write))
}
