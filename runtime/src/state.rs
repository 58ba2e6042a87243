//! What the agent is told: states of pods and containers, exits, events.
//!
//! Decides how a wait status becomes an exit code. Must not decide what follows from it (restarts are
//! the pod worker's).

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::{ContainerName, Digest, PodUid};
use crate::spec::PodSpec;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    pub spec: PodSpec,
    /// Whether its shim lives. Without one nothing can be started: call `create_pod` again.
    pub sandboxed: bool,
    /// Whether it has ended for good and gave back all but its logs and exits.
    pub released: bool,
    /// The latest attempt of each container.
    pub containers: Vec<ContainerState>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    pub name: ContainerName,
    pub attempt: u32,
    pub image: Digest,
    pub status: ContainerStatus,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerStatus {
    /// Begun and not yet started, or given up in the middle by an agent that died: remove it.
    Creating,
    Running(Started),
    Exited(Exit),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub pid: i32,
    pub started_at: Timestamp,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub reason: ExitReason,
    /// What a user should read; empty when the code says it all.
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    Completed,
    Error,
    OomKilled,
    /// The command could not be run: 127 not found, 126 not executable, 128 any other cause.
    CannotRun,
    /// Its shim was killed (or the host went down), and the container with it.
    ShimLost,
}

impl ExitReason {
    /// The word Kubernetes users know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::CannotRun => "ContainerCannotRun",
            Self::ShimLost => "ShimLost",
        }
    }
}

impl Exit {
    pub(crate) fn of_process(
        code: i32,
        signal: Option<i32>,
        oom_seen: bool,
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
    ) -> Self {
        // A kill inside the container that the main process survived is not the container's end.
        let oom_killed = oom_seen && code == 137;
        let reason = match code {
            _ if oom_killed => ExitReason::OomKilled,
            0 => ExitReason::Completed,
            _ => ExitReason::Error,
        };
        Self { code, signal, oom_killed, reason, message: String::new(), started_at, finished_at }
    }

    pub(crate) fn cannot_run(code: i32, message: String, finished_at: Timestamp) -> Self {
        let reason = ExitReason::CannotRun;
        Self { code, signal: None, oom_killed: false, reason, message, started_at: None, finished_at }
    }

    pub(crate) fn shim_lost(started_at: Option<Timestamp>, finished_at: Timestamp) -> Self {
        let message = "the container's shim or its host went down, and the container with it".to_owned();
        let reason = ExitReason::ShimLost;
        Self { code: 137, signal: Some(9), oom_killed: false, reason, message, started_at, finished_at }
    }
}

/// What happened by itself. Results of the agent's own calls are their return values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    ContainerExited {
        uid: PodUid,
        container: ContainerName,
        attempt: u32,
        exit: Exit,
    },
    /// The pod's processes are dead, its containers' exits were reported before this.
    ShimLost {
        uid: PodUid,
    },
}
