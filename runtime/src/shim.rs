//! `skein shim`: one small process per pod that outlives the agent.
//!
//! Holds what must not be lost when the agent dies: the containers' output pipes, their processes as
//! children (it is their subreaper) and their exit codes. Single-threaded, one poll loop, no tokio, small
//! buffers. Does what it is asked on its socket; must never run container set-up itself (`skein oci` or
//! another OCI runtime does, as a child with a time limit) and must not decide about restarts.

mod container;
mod log;
mod operation;
pub(crate) mod protocol;
mod server;

pub(crate) use log::numbered;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::paths::SHIM_SOCKET;
use crate::sys;

const ERRORS: &str = "shim.log";

/// Runs `skein shim --dir RUN/pods/UID [--oci-runtime PROGRAM]`. Returns in the caller once the socket
/// listens; the shim itself goes on as an orphan of its own session.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skein shim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: impl IntoIterator<Item = String>) -> io::Result<()> {
    let (dir, program) =
        parse(args).ok_or_else(|| io::Error::other("usage: --dir DIR --oci-runtime PROGRAM"))?;
    let listener = protocol::bind_in(&dir, SHIM_SOCKET)?;
    let (ready, tell_ready) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    if sys::fork_single_threaded()?.is_some() {
        drop(tell_ready);
        return match nix::unistd::read(&ready, &mut [0])? {
            1 => Ok(()),
            _ => Err(io::Error::other(fs::read_to_string(dir.join(ERRORS))?)),
        };
    }
    drop(ready);
    let ended = serve(&dir, program, listener, tell_ready);
    if let Err(error) = &ended {
        // Nobody listens any more; the file is for whoever looks for the cause.
        let _ = fs::write(dir.join(ERRORS), format!("{error}\n"));
    }
    ended
}

fn serve(dir: &Path, program: Option<PathBuf>, listener: OwnedFd, tell_ready: OwnedFd) -> io::Result<()> {
    let children = settle()?;
    // Only now, in the process that stays: the agent knows us by the pid that listened.
    protocol::listen(&listener)?;
    nix::unistd::write(&tell_ready, &[1])?;
    drop(tell_ready);
    server::Server::new(dir.to_owned(), program, listener, children).run()
}

/// Leaves the agent's session and takes over orphans of the containers.
fn settle() -> io::Result<SignalFd> {
    nix::unistd::setsid()?;
    prctl::set_child_subreaper(true)?;
    prctl::set_name(c"skein-shim")?;
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    debug_assert!(null.as_raw_fd() > 2);
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&children), None)?;
    for ignored in [Signal::SIGHUP, Signal::SIGINT] {
        sys::ignore_signal(ignored)?;
    }
    // Among the last to go when memory runs out; refused without CAP_SYS_RESOURCE, which is fine.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    Ok(SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn parse(args: impl IntoIterator<Item = String>) -> Option<(PathBuf, Option<PathBuf>)> {
    let (mut dir, mut program) = (None, None);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--dir" => dir = args.next().map(PathBuf::from),
            "--oci-runtime" => program = Some(PathBuf::from(args.next()?)),
            _ => return None,
        }
    }
    dir.filter(|dir| dir.is_absolute() && Path::new(dir).is_dir()).map(|dir| (dir, program))
}
