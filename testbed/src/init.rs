//! The init of a host: builds its root, starts what the bed orders, reaps, restarts the agent as systemd would.
//!
//! Single-threaded, one `poll` loop. Must not outlive the bed: when the control socket closes it exits, and
//! the kernel ends every process of its pid namespace with it.

mod root;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::clock;
use crate::sys;
use crate::wire::{self, End, Order, Report, Setup};

/// After an agent died; systemd's RestartSec of our unit.
const RESTART_AFTER: Duration = Duration::from_millis(200);
/// CAP_SYS_MODULE, CAP_SYS_BOOT, CAP_SYS_TIME: what would reach beyond the host.
const DROPPED_CAPABILITIES: [u32; 3] = [16, 22, 25];
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("RUST_BACKTRACE", "1"),
];

struct Agent {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    log: OwnedFd,
    restart: bool,
    pid: Option<Pid>,
    restart_at: Option<Instant>,
}

struct Init {
    /// Group leaders of the commands that run, by the bed's number for them.
    commands: BTreeMap<u64, Pid>,
    agent: Option<Agent>,
}

/// Runs as pid 1 of a new host; standard input is the control socket. Returns when the bed is gone.
pub fn main(setup: &str) -> io::Result<()> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let made = serde_json::from_str::<Setup>(setup).map_err(|e| e.to_string()).and_then(|setup| {
        root::build(&setup).map_err(|e| e.to_string())?;
        DROPPED_CAPABILITIES.into_iter().try_for_each(sys::drop_capability).map_err(|e| e.to_string())
    });
    if let Err(reason) = made {
        return wire::send(control.as_fd(), &Report::Failed { reason }, &[]);
    }
    wire::send(control.as_fd(), &Report::Ready, &[])?;
    serve(control.as_fd(), &children)
}

/// A TCP server for tests that need somebody to talk to inside a host: says back what it hears.
pub fn echo(address: &str) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut back = stream.try_clone()?;
        clock::thread("echo", move || drop(io::copy(&mut stream, &mut back)))?;
    }
    Ok(())
}

fn serve(control: BorrowedFd<'_>, children: &SignalFd) -> io::Result<()> {
    let mut init = Init { commands: BTreeMap::new(), agent: None };
    loop {
        let mut fds =
            [PollFd::new(control, PollFlags::POLLIN), PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, init.timeout()) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ordered = fds[0].any().unwrap_or(true);
        while let Ok(Some(_)) = children.read_signal() {}
        for report in init.reap().into_iter().chain(init.restart_agent()) {
            wire::send(control, &report, &[])?;
        }
        if !ordered {
            continue;
        }
        let Some((order, fds)) = wire::recv(control)? else { return Ok(()) };
        if let Some(report) = init.obey(order, fds) {
            wire::send(control, &report, &[])?;
        }
    }
}

impl Init {
    fn timeout(&self) -> PollTimeout {
        let Some(at) = self.agent.as_ref().and_then(|a| a.restart_at) else { return PollTimeout::NONE };
        let left = at.saturating_duration_since(clock::now()).as_millis() + 1;
        u16::try_from(left).map_or(PollTimeout::MAX, PollTimeout::from)
    }

    fn obey(&mut self, order: Order, fds: Vec<OwnedFd>) -> Option<Report> {
        match order {
            Order::Run { id, argv, env } => Some(self.run(id, &argv, &env, fds)),
            Order::Signal { id, signal } => {
                signal_group(self.commands.get(&id).copied(), signal);
                None
            }
            Order::StartAgent { argv, env, restart } => {
                let log = fds.into_iter().next()?;
                if self.agent.as_ref().is_some_and(|a| a.pid.is_some()) {
                    return Some(Report::AgentNotStarted { reason: "the agent runs already".to_owned() });
                }
                let agent = Agent { argv, env, log, restart, pid: None, restart_at: None };
                Some(self.agent.insert(agent).start())
            }
            Order::SignalAgent { signal, for_good } => {
                let agent = self.agent.as_mut()?;
                if for_good {
                    agent.restart = false;
                    agent.restart_at = None;
                }
                signal_one(agent.pid, signal);
                None
            }
        }
    }

    fn run(&mut self, id: u64, argv: &[String], env: &[(String, String)], fds: Vec<OwnedFd>) -> Report {
        let Ok([input, output, error]) = <[OwnedFd; 3]>::try_from(fds) else {
            return Report::NotStarted { id, reason: "a command needs three descriptors".to_owned() };
        };
        match spawn(argv, env, input.into(), output.into(), error.into()) {
            Ok(pid) => {
                self.commands.insert(id, pid);
                Report::Started { id, pid: pid.as_raw() }
            }
            Err(error) => Report::NotStarted { id, reason: error.to_string() },
        }
    }

    /// Collects everything that ended, also orphans that nobody waits for.
    fn reap(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        loop {
            let (pid, end) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, End::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, End::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return reports,
                Ok(_) => continue,
            };
            reports.extend(self.ended(pid, end));
        }
    }

    fn ended(&mut self, pid: Pid, end: End) -> Option<Report> {
        if let Some(agent) = self.agent.as_mut().filter(|a| a.pid == Some(pid)) {
            agent.pid = None;
            agent.restart_at = agent.restart.then(|| clock::now() + RESTART_AFTER);
            return Some(Report::AgentExited { pid: pid.as_raw(), end });
        }
        let id = self.commands.iter().find(|(_, running)| **running == pid).map(|(id, _)| *id)?;
        self.commands.remove(&id);
        Some(Report::Exited { id, end })
    }

    fn restart_agent(&mut self) -> Option<Report> {
        let agent = self.agent.as_mut()?;
        let due = agent.restart_at.is_some_and(|at| at <= clock::now());
        due.then(|| agent.start())
    }
}

impl Agent {
    fn start(&mut self) -> Report {
        self.restart_at = None;
        let log = || self.log.try_clone().map(Stdio::from);
        let started = log().and_then(|out| spawn(&self.argv, &self.env, Stdio::null(), out, log()?));
        match started {
            Ok(pid) => {
                self.pid = Some(pid);
                Report::AgentStarted { pid: pid.as_raw() }
            }
            Err(error) => Report::AgentNotStarted { reason: error.to_string() },
        }
    }
}

fn spawn(
    argv: &[String],
    env: &[(String, String)],
    input: Stdio,
    output: Stdio,
    error: Stdio,
) -> io::Result<Pid> {
    let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("an empty command"))?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(ENVIRONMENT).envs(env.iter().cloned()).current_dir("/");
    command.stdin(input).stdout(output).stderr(error).process_group(0);
    sys::no_blocked_signals(&mut command);
    let child = command.spawn()?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

fn signal_group(leader: Option<Pid>, signal: i32) {
    if let (Some(leader), Ok(signal)) = (leader, Signal::try_from(signal)) {
        let _ = killpg(leader, signal);
    }
}

fn signal_one(pid: Option<Pid>, signal: i32) {
    if let (Some(pid), Ok(signal)) = (pid, Signal::try_from(signal)) {
        let _ = nix::sys::signal::kill(pid, signal);
    }
}
