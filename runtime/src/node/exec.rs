//! Further processes in a running container, with pipes to them.
//!
//! Decides that a session's processes end with the session: dropped, its process is killed. No terminal
//! yet; a request for one will bring a fourth descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::client::{Shim, ShimError};
use super::container::run_code;
use super::{Inner, Runtime, blocking};
use crate::bundle::{self, BundleError};
use crate::files;
use crate::ids::{ContainerName, PodUid};
use crate::shim::protocol::{Call, Refusal};
use crate::spec::ExecSpec;
use crate::state::ContainerStatus;

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("no such container")]
    Unknown,
    #[error("the container is not running")]
    NotRunning,
    #[error(transparent)]
    Spec(#[from] BundleError),
    /// 127: not found; 126: not executable.
    #[error("{message}")]
    CannotRun { code: i32, message: String },
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error("exec: {0}")]
    Io(#[from] io::Error),
}

/// Drop `stdin` to close it. Both outputs end when every process that holds them has.
pub struct ExecSession {
    pub stdin: Option<pipe::Sender>,
    pub stdout: pipe::Receiver,
    pub stderr: pipe::Receiver,
    pub end: ExecEnd,
}

/// The process itself, apart from its pipes. Dropping it before its end kills the process.
pub struct ExecEnd {
    shim: Arc<Shim>,
    session: u64,
    code: Option<oneshot::Receiver<i32>>,
}

impl Runtime {
    /// Starts a process in a container. Who gives up waiting for it leaves nothing behind: it is started all the same, and killed as
    /// its session is dropped.
    pub async fn exec(
        &self,
        uid: &PodUid,
        name: &ContainerName,
        exec: ExecSpec,
    ) -> Result<ExecSession, ExecError> {
        let (inner, uid, name) = (Arc::clone(&self.inner), uid.clone(), name.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "its end is awaited right here, unless the caller goes"
        )]
        let begun = tokio::spawn(async move { inner.begin_exec(&uid, &name, exec).await });
        begun.await.map_err(|error| ExecError::Io(io::Error::other(error)))?
    }
}

impl Inner {
    async fn begin_exec(
        &self,
        uid: &PodUid,
        name: &ContainerName,
        exec: ExecSpec,
    ) -> Result<ExecSession, ExecError> {
        let pod = self.find(uid).ok_or(ExecError::Unknown)?;
        let state = pod.container(name).ok_or(ExecError::Unknown)?;
        if !matches!(state.status, ContainerStatus::Running(_)) {
            return Err(ExecError::NotRunning);
        }
        let shim = pod.shim().ok_or(ExecError::NotRunning)?;
        let bundle = pod.paths.container(name, state.attempt).bundle;
        let (session, code) = shim.session();
        let end = ExecEnd { shim: Arc::clone(&shim), session, code: Some(code) };
        let process = bundle.join(format!("exec-{session}.json"));
        let (stdin, write_to) = (exec.stdin, process.clone());
        let (ours, theirs) = open_pipes(stdin)?;
        blocking(move || write_process(&bundle.join("config.json"), &write_to, &exec)).await?;
        let limit_ms = self.limit_ms();
        let call = Call::Exec { name: name.clone(), session, process: process.clone(), limit_ms };
        let asked = shim.call_with(call, &theirs).await;
        files::remove_file(&process)?;
        match asked {
            Ok(_) => {}
            Err(ShimError::Refused(Refusal::NotRunning | Refusal::UnknownContainer)) => {
                return Err(ExecError::NotRunning);
            }
            Err(ShimError::Refused(Refusal::Runtime { code, message })) => {
                return Err(ExecError::CannotRun { code: run_code(code, &message), message });
            }
            Err(error) => return Err(error.into()),
        }
        let (stdin, stdout, stderr) = ours;
        Ok(ExecSession { stdin, stdout, stderr, end })
    }
}

impl ExecSession {
    /// The exit code, 128 + signal when a signal ended it.
    pub async fn wait(&mut self) -> Result<i32, ExecError> {
        self.end.wait().await
    }

    pub async fn signal(&self, signal: i32) -> Result<(), ExecError> {
        self.end.signal(signal).await
    }
}

impl ExecEnd {
    /// The exit code, 128 + signal when a signal ended it. Cancel-safe.
    pub async fn wait(&mut self) -> Result<i32, ExecError> {
        let code = self.code.as_mut().ok_or(ShimError::Gone)?.await;
        self.code = None;
        Ok(code.map_err(|_| ShimError::Gone)?)
    }

    pub async fn signal(&self, signal: i32) -> Result<(), ExecError> {
        self.shim.call(Call::SignalSession { session: self.session, signal }).await?;
        Ok(())
    }
}

impl Drop for ExecEnd {
    fn drop(&mut self) {
        if self.code.is_some() {
            self.shim.forget_session(self.session);
            self.shim.send_now(Call::SignalSession { session: self.session, signal: libc::SIGKILL });
        }
    }
}

fn write_process(config: &Path, process: &Path, exec: &ExecSpec) -> Result<(), ExecError> {
    let config: serde_json::Value = files::read_json(config)?.ok_or(ExecError::Unknown)?;
    let document = bundle::exec_process(&config, exec)?;
    Ok(files::write_json(process, &document)?)
}

type Ours = (Option<pipe::Sender>, pipe::Receiver, pipe::Receiver);

fn open_pipes(stdin: bool) -> io::Result<(Ours, [OwnedFd; 3])> {
    let (stdout, their_stdout) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, their_stderr) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (stdin, their_stdin) = if stdin {
        let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        (Some(pipe::Sender::from_owned_fd(ours)?), theirs)
    } else {
        (None, OwnedFd::from(std::fs::File::open("/dev/null")?))
    };
    let stdout = pipe::Receiver::from_owned_fd(stdout)?;
    let stderr = pipe::Receiver::from_owned_fd(stderr)?;
    Ok(((stdin, stdout, stderr), [their_stdin, their_stdout, their_stderr]))
}
