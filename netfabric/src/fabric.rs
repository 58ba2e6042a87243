//! The driver: a thread of its own inside the node's network namespace, and the handle by which the agent speaks to it.
//!
//! Decides when to look at the kernel afresh: at start, on request, after an error, and when somebody else changed
//! what is ours. Must not decide what the network should be (`plan`) nor keep anything that a restart would lose.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::sync::oneshot;

mod pass;
mod reset;

use crate::action::Report;
use crate::desired::Desired;
use crate::kernel::monitor::Monitor;
use crate::kernel::nft::Session;
use crate::kernel::observe::Indexes;
use crate::kernel::probe::{self, ProbeError};
use crate::kernel::rtnl::Routing;
use crate::kernel::socket::Requester;
use crate::observed::Observed;

/// What the fabric needs to know before it has a desired state.
#[derive(Clone, Debug, Default)]
pub struct FabricConfig {
    /// The network namespace to serve, as a file; none: the one the caller is in.
    pub netns: Option<PathBuf>,
}

/// Why the fabric does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel or machine lacks something.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The namespace to serve cannot be entered.
    #[error("cannot enter the network namespace {0:?}: {1}")]
    Namespace(PathBuf, #[source] std::io::Error),
    /// Netlink sockets cannot be opened.
    #[error("cannot open netlink sockets: {0}; the agent needs root")]
    Netlink(#[source] std::io::Error),
    /// The thread is gone before it answered.
    #[error("the fabric's thread ended early")]
    Ended,
}

/// Why everything of ours could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The fabric could not be opened for it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Some things are still there.
    #[error("not everything could be removed: {}", .0.join("; "))]
    Remains(Vec<String>),
}

/// The node's network. Dropping it leaves everything in the kernel as it is.
#[derive(Debug)]
pub struct Fabric {
    commands: Sender<Command>,
}

enum Command {
    Reconcile { desired: Arc<Desired>, full: bool, reply: oneshot::Sender<Report> },
    Reset { reply: oneshot::Sender<Vec<String>> },
}

impl Fabric {
    /// Looks whether the machine can do it, and starts. Changes nothing yet.
    pub async fn open(config: FabricConfig) -> Result<Self, OpenError> {
        let (commands, inbox) = channel();
        let (ready, opened) = oneshot::channel();
        start(config, inbox, ready);
        opened.await.map_err(|_| OpenError::Ended)??;
        Ok(Self { commands })
    }

    /// Brings the kernel to `desired`, from what is known of it.
    pub async fn reconcile(&mut self, desired: Arc<Desired>) -> Report {
        self.pass(desired, false).await
    }

    /// The same, after looking at everything afresh.
    pub async fn reconcile_full(&mut self, desired: Arc<Desired>) -> Report {
        self.pass(desired, true).await
    }

    async fn pass(&mut self, desired: Arc<Desired>, full: bool) -> Report {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Reconcile { desired, full, reply });
        answer.await.unwrap_or_else(|_| pass::thread_ended())
    }

    /// Removes every trace of ours from the kernel (for `skein node reset`).
    pub async fn reset(config: FabricConfig) -> Result<(), ResetError> {
        let fabric = Self::open(config).await?;
        let (reply, answer) = oneshot::channel();
        let _ = fabric.commands.send(Command::Reset { reply });
        let remains = answer.await.map_err(|_| OpenError::Ended)?;
        if remains.is_empty() { Ok(()) } else { Err(ResetError::Remains(remains)) }
    }
}

#[expect(clippy::disallowed_methods, reason = "driver: ends when the handle is dropped")]
fn start(config: FabricConfig, inbox: Receiver<Command>, ready: oneshot::Sender<Result<(), OpenError>>) {
    std::thread::spawn(move || {
        let worker = Worker::open(&config);
        match worker {
            Ok(mut worker) => {
                if ready.send(Ok(())).is_ok() {
                    worker.run(&inbox);
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

/// What the thread works with.
struct Worker {
    route: Routing,
    netfilter: Requester,
    monitor: Monitor,
    nft: Session,
    indexes: Indexes,
    /// The kernel as we know it; none: to be looked at.
    observed: Option<Observed>,
    conditions: Vec<crate::action::Condition>,
}

impl Worker {
    fn open(config: &FabricConfig) -> Result<Self, OpenError> {
        if let Some(path) = &config.netns {
            let enter = || {
                let file = std::fs::File::open(path)?;
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            };
            enter().map_err(|error| OpenError::Namespace(path.clone(), error))?;
        }
        probe::probe(pass::probe_script())?;
        let route = Routing::open().map_err(OpenError::Netlink)?;
        Ok(Self {
            netfilter: Requester::open(NETLINK_NETFILTER).map_err(OpenError::Netlink)?,
            monitor: Monitor::open().map_err(OpenError::Netlink)?,
            route,
            nft: Session::default(),
            indexes: Indexes::new(),
            observed: None,
            conditions: Vec::new(),
        })
    }

    fn run(&mut self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Reconcile { desired, full, reply } => {
                    let report = self.reconcile(&desired, full);
                    let _ = reply.send(report);
                }
                Command::Reset { reply } => drop(reply.send(self.reset())),
            }
        }
    }
}
