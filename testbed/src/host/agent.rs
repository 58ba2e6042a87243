//! A host's agent: started, killed, stopped, waited for.
//!
//! Decides nothing about restarting: the host's init does, as systemd would.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::link::{AgentState, Link};
use super::{Host, HostError, SKEIN};
use crate::wire::End;

const AGENT_LIMIT: Duration = Duration::from_secs(10);

impl Host {
    /// Starts the agent; `restart` as systemd would, 0.2 s after it died.
    pub fn start_agent(&self) -> Result<i32, HostError> {
        self.start_agent_with(&[], true)
    }

    pub fn start_agent_with(&self, flags: &[&str], restart: bool) -> Result<i32, HostError> {
        if self.shared.skein.is_none() {
            return Err(HostError::NoSkein { host: self.name.clone() });
        }
        let parent = self.cgroup_parent();
        let fixed = [SKEIN, "agent", "--cgroup-parent", &parent];
        let argv = fixed.iter().chain(flags).map(|a| (*a).to_owned()).collect();
        self.start_program_as_agent(argv, restart)
    }

    /// Any program in the agent's place.
    pub fn start_program_as_agent(&self, argv: Vec<String>, restart: bool) -> Result<i32, HostError> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.map_err(|source| self.io("opening the agent's log", source))?;
        let link = self.link()?;
        let started =
            link.start_agent(argv, self.shared.config.env.clone(), restart, log.as_fd(), AGENT_LIMIT);
        started.map_err(|reason| HostError::Agent { host: self.name.clone(), reason })
    }

    /// Signals the agent for good and waits for its end; none if it did not run.
    pub fn stop_agent(&self, signal: Signal) -> Result<Option<End>, HostError> {
        let link = self.link()?;
        let pid = link.agent().pid;
        link.signal_agent(signal, true).map_err(|source| self.io("signalling the agent", source))?;
        let Some(pid) = pid else { return Ok(None) };
        self.agent_ended(&link, pid).map(Some)
    }

    /// Kills the agent in a way that its init notices as a failure: it comes back if it was started so.
    pub fn kill_agent(&self, signal: Signal) -> Result<(), HostError> {
        let link = self.link()?;
        let Some(pid) = link.agent().pid else { return Ok(()) };
        link.signal_agent(signal, false).map_err(|source| self.io("signalling the agent", source))?;
        self.agent_ended(&link, pid).map(drop)
    }

    /// Waits until an agent other than `previous` runs.
    pub fn agent_after(&self, previous: Option<i32>, limit: Duration) -> Result<i32, HostError> {
        let link = self.link()?;
        let found = link.wait_agent(limit, |agent| agent.pid.filter(|pid| Some(*pid) != previous));
        found.ok_or_else(|| HostError::Late { host: self.name.clone(), what: "restart its agent", limit })
    }

    /// The agent's pid inside the host.
    pub fn agent_pid(&self) -> Result<Option<i32>, HostError> {
        Ok(self.link()?.agent().pid)
    }

    /// Pid, number of starts and last end of the agent.
    pub fn agent(&self) -> Result<AgentState, HostError> {
        Ok(self.link()?.agent())
    }

    fn agent_ended(&self, link: &Link, pid: i32) -> Result<End, HostError> {
        let ended = link.wait_agent(AGENT_LIMIT, |agent| agent.last.filter(|(ended, _)| *ended == pid));
        let late =
            || HostError::Late { host: self.name.clone(), what: "see its agent end", limit: AGENT_LIMIT };
        ended.map(|(_, end)| end).ok_or_else(late)
    }
}
