//! What a bed and the init of a host say to each other: JSON in packets, descriptors beside it.
//!
//! Decides the messages. Both ends are the same binary, so there is no version.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys;

/// Larger than any message; a packet that does not fit is refused by `recv`.
const PACKET_BYTES: usize = 128 * 1024;

/// What a host's root is made of. Given to its init on the command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    pub hostname: String,
    pub address: String,
    /// Address of the outside, which is name server and default route.
    pub outside: String,
    /// Names and addresses of all hosts, for /etc/hosts.
    pub names: Vec<(String, String)>,
    /// An empty directory to build the root in.
    pub stage: PathBuf,
    pub binds: Vec<Bind>,
}

/// A directory or file of the machine that a host sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    /// Absolute, as the host sees it.
    pub target: PathBuf,
    pub writable: bool,
}

/// Bed to init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Comes with three descriptors: the command's standard input, output and error.
    Run { id: u64, argv: Vec<String>, env: Vec<(String, String)> },
    /// To the process group of a command that runs.
    Signal { id: u64, signal: i32 },
    /// Comes with one descriptor: the log.
    StartAgent { argv: Vec<String>, env: Vec<(String, String)>, restart: bool },
    /// `for_good` also ends restarting.
    SignalAgent { signal: i32, for_good: bool },
}

/// Init to bed.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    Ready,
    Failed { reason: String },
    Started { id: u64, pid: i32 },
    NotStarted { id: u64, reason: String },
    Exited { id: u64, end: End },
    AgentStarted { pid: i32 },
    AgentNotStarted { reason: String },
    AgentExited { pid: i32, end: End },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Code(i32),
    Signal(i32),
}

/// Sends one message with descriptors, which the sender keeps.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message; none when the other end is gone.
pub fn recv<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; PACKET_BYTES];
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let (length, fds) = loop {
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut buffer, Some(&mut room), flags) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
            other => other?,
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(sys::adopt_fd));
            }
        }
        break (message.bytes, fds);
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
    Ok(Some((message, fds)))
}
