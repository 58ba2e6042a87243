//! The connection to one shim: requests with answers, news as they come, its death.
//!
//! Decides when a shim counts as dead: its process has ended (pidfd), never just a silent socket. One
//! task per shim reads; it is aborted with the `Shim`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::ids::ContainerName;
use crate::paths::SHIM_SOCKET;
use crate::shim::protocol::{self, Answer, Call, MESSAGE_MAX, Message, Refusal, Request};
use crate::state::Exit;
use crate::sys;

/// What a shim gets beyond the time limit of the runtime call it makes.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the pod's shim is gone; create the pod's sandbox again")]
    Gone,
    #[error("the pod's shim (pid {0}) does not answer; if it stays so, kill it: its pod is then restarted")]
    Silent(i32),
    #[error("the pod's shim cannot be asked: {0}")]
    Socket(#[source] io::Error),
}

pub(crate) struct Shim {
    socket: Arc<AsyncFd<OwnedFd>>,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    pub pid: Pid,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    reader: AbortHandle,
}

#[derive(Default)]
struct Waiting {
    answers: Mutex<BTreeMap<u64, oneshot::Sender<Result<Answer, Refusal>>>>,
    sessions: Mutex<BTreeMap<u64, oneshot::Sender<i32>>>,
}

/// What the reader passes on.
pub(super) enum News {
    Exited {
        name: ContainerName,
        attempt: u32,
        exit: Exit,
    },
    /// The connection broke but the process lives: connect again.
    Disconnected,
    Died,
}

impl Shim {
    /// Connects to the shim that listens in `dir`. `hear` is called for each piece of news.
    pub(super) fn connect(dir: &Path, hear: impl Fn(News) + Send + 'static) -> io::Result<Self> {
        let socket = protocol::dial(dir, SHIM_SOCKET)?;
        let pid = Pid::from_raw(getsockopt(&socket, PeerCredentials)?.pid());
        let pidfd = Arc::new(sys::register(sys::pidfd_open(pid)?)?);
        let socket = Arc::new(sys::register(socket)?);
        let waiting = Arc::new(Waiting::default());
        let reading = read(Arc::clone(&socket), Arc::clone(&pidfd), Arc::clone(&waiting), hear);
        let reader = start(reading);
        Ok(Self { socket, pidfd, pid, next: AtomicU64::new(0), waiting, reader })
    }

    pub async fn call(&self, call: Call) -> Result<Answer, ShimError> {
        self.call_with(call, &[]).await
    }

    pub async fn call_with(&self, call: Call, fds: &[OwnedFd]) -> Result<Answer, ShimError> {
        let (sender, receiver) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let limit = call.limit() + ANSWER_MARGIN;
        lock(&self.waiting.answers).insert(id, sender);
        if let Err(error) = self.send(&Request { id, call }, fds).await {
            lock(&self.waiting.answers).remove(&id);
            return Err(error);
        }
        let Ok(answer) = tokio::time::timeout(limit, receiver).await else {
            lock(&self.waiting.answers).remove(&id);
            return Err(ShimError::Silent(self.pid.as_raw()));
        };
        Ok(answer.map_err(|_| ShimError::Gone)??)
    }

    /// The exit code of an exec'd process; register before asking for it.
    pub fn session(&self) -> (u64, oneshot::Receiver<i32>) {
        let (sender, receiver) = oneshot::channel();
        let session = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting.sessions).insert(session, sender);
        (session, receiver)
    }

    pub fn forget_session(&self, session: u64) {
        lock(&self.waiting.sessions).remove(&session);
    }

    /// One message without waiting for room or an answer, for use in destructors.
    pub fn send_now(&self, call: Call) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let _ = protocol::send(self.socket.get_ref(), &Request { id, call }, &[]);
    }

    /// Kills the shim itself, if it has not ended, and waits for that.
    pub async fn kill(&self) {
        if tokio::time::timeout(Duration::ZERO, self.ended()).await.is_err() {
            // Not ended, so the pid is still its own.
            let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
            self.ended().await;
        }
    }

    pub async fn ended(&self) {
        // An error means that the runtime shuts down: nobody waits any more.
        let _ = self.pidfd.readable().await;
    }

    async fn send(&self, request: &Request, fds: &[OwnedFd]) -> Result<(), ShimError> {
        let borrowed: Vec<BorrowedFd> = fds.iter().map(AsFd::as_fd).collect();
        loop {
            let mut guard = self.socket.writable().await.map_err(ShimError::Socket)?;
            match guard.try_io(|socket| protocol::send(socket.get_ref(), request, &borrowed)) {
                Err(_) => {}
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Err(ShimError::Gone),
                Ok(Err(error)) => return Err(ShimError::Socket(error)),
            }
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the driver of a shim's connection; aborted with it")]
fn start(reading: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(reading).abort_handle()
}

async fn read(
    socket: Arc<AsyncFd<OwnedFd>>,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Waiting>,
    hear: impl Fn(News),
) {
    let mut buffer = vec![0; MESSAGE_MAX];
    while let Some(message) = next(&socket, &mut buffer).await {
        match message {
            Message::Reply { id, answer } => {
                if let Some(sender) = lock(&waiting.answers).remove(&id) {
                    // The asker may have given up.
                    let _ = sender.send(answer);
                }
            }
            Message::SessionExited { session, code } => {
                if let Some(sender) = lock(&waiting.sessions).remove(&session) {
                    let _ = sender.send(code);
                }
            }
            Message::Exited { name, attempt, exit } => hear(News::Exited { name, attempt, exit }),
        }
    }
    // Dropping the senders tells everyone who waits.
    lock(&waiting.answers).clear();
    lock(&waiting.sessions).clear();
    let dying = tokio::time::timeout(Duration::from_secs(1), pidfd.readable()).await;
    hear(if dying.is_ok() { News::Died } else { News::Disconnected });
}

async fn next(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Option<Message> {
    debug_assert!(socket.get_ref().as_raw_fd() >= 0);
    loop {
        let mut guard = socket.readable().await.ok()?;
        match guard.try_io(|socket| protocol::receive::<Message>(socket.get_ref(), buffer)) {
            Err(_) => {}
            Ok(Ok(received)) => return received.map(|(message, _)| message),
            // A message we cannot read is from a newer shim than us: leave it.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {}
            Ok(Err(_)) => return None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
