//! One call of the OCI runtime: its command line, its time limit, its outcome.
//!
//! Decides how a child's end becomes an answer. The built-in runtime is our own executable (the sealed
//! copy the shim itself runs from); any other program with crun's command line takes its place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::protocol::Refusal;
use crate::clock;
use crate::files;
use crate::ids::ContainerName;
use crate::paths::oci_root;

const LOG_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Create { name: ContainerName },
    Start { name: ContainerName },
    Exec { session: u64 },
    Delete { name: ContainerName },
}

impl Kind {
    fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Exec { .. } => "exec",
            Self::Delete { .. } => "delete",
        }
    }
}

#[derive(Debug)]
pub(super) struct Operation {
    pub kind: Kind,
    /// Connection and request that wait for the answer.
    pub asker: (u64, u64),
    pub deadline: Instant,
    limit_ms: u64,
    timed_out: bool,
    log: PathBuf,
    pid_file: PathBuf,
}

/// What to run: everything about a call but who asked.
pub(super) struct Plan<'a> {
    pub kind: Kind,
    pub id: String,
    /// `--bundle` of create, `--process` of exec.
    pub input: Option<&'a Path>,
    pub stdio: Option<[OwnedFd; 3]>,
    pub limit_ms: u64,
}

/// Starts the runtime; the pid is its child's.
pub(super) fn spawn(
    dir: &Path,
    program: Option<&Path>,
    plan: Plan,
    asker: (u64, u64),
) -> io::Result<(Pid, Operation)> {
    let files = format!("{}-{}-{}", plan.id, asker.0, asker.1);
    let log = dir.join(format!("oci-{files}.log"));
    let pid_file = dir.join(format!("oci-{files}.pid"));
    let mut command = Command::new(program.unwrap_or(Path::new("/proc/self/exe")));
    if program.is_none() {
        command.arg0("skein").arg("oci");
    }
    command.arg("--root").arg(oci_root(dir)).arg("--log").arg(&log).args(["--log-format", "json"]);
    command.arg(plan.kind.verb());
    match (&plan.kind, plan.input) {
        (Kind::Create { .. }, Some(bundle)) => {
            command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file);
        }
        (Kind::Exec { .. }, Some(process)) => {
            command.arg("--detach").arg("--process").arg(process).arg("--pid-file").arg(&pid_file);
        }
        (Kind::Delete { .. }, _) => drop(command.arg("--force")),
        _ => {}
    }
    command.arg(&plan.id).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").process_group(0);
    match plan.stdio {
        Some([stdin, stdout, stderr]) => {
            command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        }
        None => drop(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())),
    }
    let child = command.spawn()?;
    let deadline = clock::monotonic() + Duration::from_millis(plan.limit_ms);
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (kind, limit_ms) = (plan.kind, plan.limit_ms);
    Ok((pid, Operation { kind, asker, deadline, limit_ms, timed_out: false, log, pid_file }))
}

impl Operation {
    /// Kills the call when its time is over. It is reaped like any other child.
    pub fn enforce(&mut self, pid: Pid, now: Instant) {
        if now >= self.deadline && !self.timed_out {
            self.timed_out = true;
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }

    /// The container process's pid where the call made one.
    pub fn finish(&self, code: i32) -> Result<Option<Pid>, Refusal> {
        let outcome = self.outcome(code);
        let _ = files::remove_file(&self.log);
        let _ = files::remove_file(&self.pid_file);
        outcome
    }

    fn outcome(&self, code: i32) -> Result<Option<Pid>, Refusal> {
        if self.timed_out {
            let operation = self.kind.verb().to_owned();
            return Err(Refusal::TimedOut { operation, limit_ms: self.limit_ms });
        }
        if code != 0 {
            return Err(Refusal::Runtime { code, message: self.message(code) });
        }
        if !matches!(self.kind, Kind::Create { .. } | Kind::Exec { .. }) {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&self.pid_file).map_err(|error| Refusal::Io(error.to_string()))?;
        let pid = text.trim().parse().map_err(|_| Refusal::Io(format!("pid file says {text:?}")))?;
        Ok(Some(Pid::from_raw(pid)))
    }

    /// The last error the runtime has logged.
    fn message(&self, code: i32) -> String {
        let log = File::open(&self.log).and_then(|file| files::read_bounded(file, LOG_MAX));
        let log = log.unwrap_or_default();
        let line = log.split(|byte| *byte == b'\n').rev().find_map(|line| {
            let value: serde_json::Value = serde_json::from_slice(line).ok()?;
            value["msg"].as_str().map(str::to_owned)
        });
        line.unwrap_or_else(|| format!("the OCI runtime's {} ended with code {code}", self.kind.verb()))
    }
}
