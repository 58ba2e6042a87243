//! The bed's end of the socket to a host's init: orders out, reports in, and what they say of commands and agent.
//!
//! Decides who waits for what. One thread per boot reads; it ends when the init is gone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::clock;
use crate::wire::{self, End, Order, Report};

const GONE: &str = "the host is gone";

/// What is known of a host's agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentState {
    /// Inside the host; none while it does not run.
    pub pid: Option<i32>,
    pub starts: u64,
    /// The last that ended.
    pub last: Option<(i32, End)>,
    refused: Option<String>,
}

#[derive(Debug, Clone)]
pub enum CommandState {
    Asked,
    Running(i32),
    Refused(String),
    Ended(End),
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    commands: BTreeMap<u64, CommandState>,
    agent: AgentState,
    ready: Option<Result<(), String>>,
    gone: bool,
}

/// A socket to an init that lives as long as the host.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

impl Link {
    pub fn over(socket: OwnedFd) -> io::Result<Arc<Link>> {
        let reader = socket.try_clone()?;
        let link = Arc::new(Link { socket, state: Mutex::default(), changed: Condvar::new() });
        let weak = Arc::downgrade(&link);
        clock::thread("testbed-link", move || {
            loop {
                let report = wire::recv::<Report>(reader.as_fd());
                let Some(link) = weak.upgrade() else { return };
                match report {
                    Ok(Some((report, _))) => link.lock().take(report),
                    Ok(None) | Err(_) => link.lock().gone = true,
                }
                link.changed.notify_all();
                if link.lock().gone {
                    return;
                }
            }
        })?;
        Ok(link)
    }

    /// Waits until the root is built.
    pub fn ready(&self, limit: Duration) -> Result<(), String> {
        let ready =
            self.wait(limit, |state| state.ready.clone().or(state.gone.then(|| Err(GONE.to_owned()))));
        ready.unwrap_or_else(|| Err(format!("its init was not ready within {limit:?}")))
    }

    /// Starts a command with three descriptors; waits until it runs.
    pub fn start(
        &self,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        fds: [BorrowedFd<'_>; 3],
        limit: Duration,
    ) -> Result<(u64, i32), String> {
        let id = self.lock().asked();
        wire::send(self.socket.as_fd(), &Order::Run { id, argv, env }, &fds).map_err(|e| e.to_string())?;
        let known = self.wait(limit, |state| match state.commands.get(&id) {
            Some(CommandState::Asked) if !state.gone => None,
            Some(CommandState::Running(pid)) => Some(Ok((id, *pid))),
            // It was quicker than we looked.
            Some(CommandState::Ended(_)) => Some(Ok((id, 0))),
            Some(CommandState::Refused(reason)) => Some(Err(reason.clone())),
            Some(CommandState::Asked) | None => Some(Err(GONE.to_owned())),
        });
        known.unwrap_or_else(|| Err(format!("its init did not answer within {limit:?}")))
    }

    /// Waits for a command's end; none when it still runs. A host that died has ended its commands by SIGKILL.
    pub fn ended(&self, id: u64, limit: Duration) -> Option<End> {
        self.wait(limit, |state| match state.commands.get(&id) {
            Some(CommandState::Ended(end)) => Some(*end),
            _ => state.gone.then_some(End::Signal(Signal::SIGKILL as i32)),
        })
    }

    pub fn forget(&self, id: u64) {
        self.lock().commands.remove(&id);
    }

    pub fn signal(&self, id: u64, signal: Signal) -> io::Result<()> {
        wire::send(self.socket.as_fd(), &Order::Signal { id, signal: signal as i32 }, &[])
    }

    pub fn start_agent(
        &self,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        restart: bool,
        log: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<i32, String> {
        let before = {
            let mut state = self.lock();
            state.agent.refused = None;
            state.agent.starts
        };
        wire::send(self.socket.as_fd(), &Order::StartAgent { argv, env, restart }, &[log])
            .map_err(|e| e.to_string())?;
        let started = self.wait(limit, |state| match (&state.agent.refused, state.agent.pid) {
            (Some(reason), _) => Some(Err(reason.clone())),
            (None, Some(pid)) if state.agent.starts > before => Some(Ok(pid)),
            (None, None) if state.agent.starts > before => {
                Some(Err("it ended at once: see its log".to_owned()))
            }
            _ => state.gone.then(|| Err(GONE.to_owned())),
        });
        started.unwrap_or_else(|| Err(format!("its init did not answer within {limit:?}")))
    }

    pub fn signal_agent(&self, signal: Signal, for_good: bool) -> io::Result<()> {
        wire::send(self.socket.as_fd(), &Order::SignalAgent { signal: signal as i32, for_good }, &[])
    }

    pub fn agent(&self) -> AgentState {
        self.lock().agent.clone()
    }

    pub fn wait_agent<T>(&self, limit: Duration, look: impl Fn(&AgentState) -> Option<T>) -> Option<T> {
        self.wait(limit, |state| look(&state.agent))
    }

    fn wait<T>(&self, limit: Duration, look: impl Fn(&State) -> Option<T>) -> Option<T> {
        let end = clock::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = end.saturating_duration_since(clock::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn asked(&mut self) -> u64 {
        self.next += 1;
        self.commands.insert(self.next, CommandState::Asked);
        self.next
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Ready => self.ready = Some(Ok(())),
            Report::Failed { reason } => self.ready = Some(Err(reason)),
            Report::Started { id, pid } => self.command(id, CommandState::Running(pid)),
            Report::NotStarted { id, reason } => self.command(id, CommandState::Refused(reason)),
            Report::Exited { id, end } => self.command(id, CommandState::Ended(end)),
            Report::AgentStarted { pid } => {
                self.agent.pid = Some(pid);
                self.agent.starts += 1;
            }
            Report::AgentNotStarted { reason } => self.agent.refused = Some(reason),
            Report::AgentExited { pid, end } => {
                self.agent.pid = None;
                self.agent.last = Some((pid, end));
            }
        }
    }

    /// A command that nobody waits for any more stays forgotten.
    fn command(&mut self, id: u64, now: CommandState) {
        self.commands.entry(id).and_modify(|state| *state = now);
    }
}
