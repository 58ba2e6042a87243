//! The outside of a bed: a network beside the hosts, in no cluster. Clients run here, egress ends here.
//!
//! Decides nothing; everything happens on threads and processes inside its namespace.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::namespace;
use crate::process::{Collector, Output};
use crate::sys;
use crate::wire::End;

const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A handle to the outside; clones are the same outside.
#[derive(Debug, Clone)]
pub struct Outside {
    namespace: Arc<OwnedFd>,
}

impl Outside {
    pub(crate) fn new(namespace: Arc<OwnedFd>) -> Outside {
        Outside { namespace }
    }

    /// Runs a command of the machine with the outside's network; killed after a minute.
    pub fn run<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> io::Result<Output> {
        let argv: Vec<String> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("an empty command"))?;
        let mut command = Command::new(program);
        let (out, stdout) = Collector::pipe()?;
        let (err, stderr) = Collector::pipe()?;
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
        sys::join_network(&mut command, self.namespace.try_clone()?);
        let begun = clock::now();
        let mut child = command.spawn()?;
        // The command's ends of the pipes are ours too until this is gone.
        drop(command);
        let ended = clock::poll(COMMAND_LIMIT, Duration::from_millis(2), || child.try_wait().ok().flatten());
        let timed_out = ended.is_none();
        if timed_out {
            child.kill()?;
        }
        let end = end_of(child.wait()?);
        let took = begun.elapsed();
        Ok(Output {
            command: argv.join(" "),
            end,
            stdout: stdout.finish(),
            stderr: stderr.finish(),
            took,
            timed_out,
        })
    }

    /// Runs a closure with the outside's network, on a thread of its own; sockets that it makes stay there.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> io::Result<T> {
        namespace::within(self.namespace.as_fd(), act)
    }

    /// A TCP connection from the outside.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&to, limit))?
    }
}

pub(crate) fn end_of(status: ExitStatus) -> End {
    status.code().map(End::Code).or(status.signal().map(End::Signal)).unwrap_or(End::Code(-1))
}
