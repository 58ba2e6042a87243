//! What agent and shim say to each other: one JSON document per SOCK_SEQPACKET message.
//!
//! Decides the wire form only. Fields may be added, never change their meaning: an agent talks to shims
//! that an older agent started.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, connect, listen as listen_on, recvmsg, sendmsg, socket,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ids::ContainerName;
use crate::state::{Exit, Started};

/// No message comes near it; both sides read with a buffer of this size.
pub(crate) const MESSAGE_MAX: usize = 32 << 10;
/// Standard input, output and error of an exec.
const DESCRIPTORS: usize = 3;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub id: u64,
    pub call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Create(Create),
    Start {
        name: ContainerName,
        limit_ms: u64,
    },
    /// Comes with three descriptors.
    Exec {
        name: ContainerName,
        session: u64,
        process: PathBuf,
        limit_ms: u64,
    },
    Signal {
        name: ContainerName,
        signal: i32,
    },
    SignalSession {
        session: u64,
        signal: i32,
    },
    Delete {
        name: ContainerName,
        limit_ms: u64,
    },
    Status,
    /// Ends the shim; refused while a container runs.
    Quit,
}

impl Call {
    /// How long the OCI runtime may take for it.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(match self {
            Self::Create(create) => create.limit_ms,
            Self::Start { limit_ms, .. } | Self::Exec { limit_ms, .. } | Self::Delete { limit_ms, .. } => {
                *limit_ms
            }
            Self::Signal { .. } | Self::SignalSession { .. } | Self::Status | Self::Quit => 0,
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    pub name: ContainerName,
    pub attempt: u32,
    pub bundle: PathBuf,
    pub log: PathBuf,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    pub exit_file: PathBuf,
    pub oom_file: Option<PathBuf>,
    pub limit_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Reply { id: u64, answer: Result<Answer, Refusal> },
    Exited { name: ContainerName, attempt: u32, exit: Exit },
    SessionExited { session: u64, code: i32 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Pid(i32),
    Started(Started),
    Containers(Vec<ContainerReport>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerReport {
    pub name: ContainerName,
    pub attempt: u32,
    pub started: Option<Started>,
    pub exit: Option<Exit>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("no such container in this pod's shim")]
    UnknownContainer,
    #[error("the container is there already; remove it first")]
    Exists,
    #[error("the container is not running")]
    NotRunning,
    #[error("a container is still running")]
    StillRunning,
    #[error("the OCI runtime did not finish {operation} within {limit_ms} ms and was killed")]
    TimedOut { operation: String, limit_ms: u64 },
    #[error("{message}")]
    Runtime { code: i32, message: String },
    #[error("shim: {0}")]
    Io(String),
}

/// By directory descriptor, so that the path's length (at most 108 bytes in an address) never matters.
pub(crate) fn bind_in(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = File::open(dir)?;
    crate::files::remove_file(&dir.join(name))?;
    let socket = seqpacket(SockFlag::SOCK_NONBLOCK)?;
    bind(socket.as_raw_fd(), &address(&directory, name)?)?;
    Ok(socket)
}

pub(crate) fn listen(socket: &OwnedFd) -> io::Result<()> {
    Ok(listen_on(socket, Backlog::new(16)?)?)
}

pub(crate) fn dial(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = File::open(dir)?;
    let socket = seqpacket(SockFlag::SOCK_NONBLOCK)?;
    connect(socket.as_raw_fd(), &address(&directory, name)?)?;
    Ok(socket)
}

fn seqpacket(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)?)
}

fn address(directory: &File, name: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).as_str())?)
}

pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long for a shim"));
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
    Ok(())
}

/// `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            fds.extend(raw.into_iter().map(crate::sys::adopt_fd));
        }
    }
    let count = received.bytes;
    if count == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..count])?, fds)))
}
