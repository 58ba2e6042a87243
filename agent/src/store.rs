//! The store as the agent uses it: reads from local views, writes by way of the leader, exactly once.
//!
//! Decides where a command goes and when it is repeated; the replica itself runs on a thread of its own
//! (`replica_thread`). It must not know what keys and values mean.

mod forward;
mod lanes;
mod replica_thread;
mod rounds;
mod ticks;
mod touched;
mod tries;

use std::sync::Arc;
use std::time::Duration;

use raft_store::{
    Command, Compare, Epoch, Expect, Input, Key, MemberChange, NodeId, Op, Outcome, Revision, SessionId,
    Status, Transaction, View,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::clock;
use crate::mesh::Mesh;
use crate::timing;
use forward::Forward;
use lanes::Lanes;
pub use replica_thread::{Birth, Leadership, Outgoing, Running, StoreError, start};
use rounds::Rounds;
pub use touched::Touched;
use tries::{Tried, Tries};

/// Clients' connections that may be served on the replica's thread at once.
const BESIDE: usize = 1;

/// What the thread is asked.
pub enum Ask {
    Input(Input),
    Propose(Command, oneshot::Sender<Outcome>),
    Change(Vec<MemberChange>, oneshot::Sender<Outcome>),
    Read(oneshot::Sender<Result<(), String>>),
    Status(oneshot::Sender<Status>),
    Stop,
}

/// Why a transaction was not done, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactError {
    #[error("key {} is not as expected (last changed at {actual:?})", String::from_utf8_lossy(&key.0))]
    CompareFailed { index: u32, key: Key, actual: Option<Revision> },
    #[error("the leader that planned this has been replaced (epoch {0:?} counts now)")]
    StaleEpoch(Epoch),
    #[error(
        "no leader answered within 3 s: this machine may be cut off from the majority; see 'skein cluster status'. Nothing was written"
    )]
    NoLeader,
    #[error(
        "the leader was lost while the write was under way: it may or may not have happened; look before you repeat it"
    )]
    Unknown,
    #[error("refused: {0}")]
    Refused(String),
}

/// Handle on the store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    me: NodeId,
    asks: tokio::sync::mpsc::UnboundedSender<Ask>,
    views: watch::Receiver<View>,
    objects: watch::Receiver<View>,
    caught_up: watch::Receiver<bool>,
    leadership: watch::Receiver<Leadership>,
    disk_full: watch::Receiver<bool>,
    lanes: Lanes,
    forward: Forward,
    rounds: Arc<Rounds>,
    mesh: Mesh,
    /// The right to be beside the replica.
    beside: Arc<Semaphore>,
}

impl Store {
    /// Joins the thread's channels with the mesh.
    pub fn new(me: NodeId, running: Running, mesh: Mesh) -> Store {
        Store(Arc::new(Inner {
            me,
            asks: running.asks,
            views: running.views,
            objects: running.objects,
            caught_up: running.caught_up,
            leadership: running.leadership,
            disk_full: running.disk_full,
            forward: Forward::new(mesh.clone()),
            lanes: Lanes::default(),
            rounds: Arc::default(),
            mesh,
            beside: Arc::new(Semaphore::new(BESIDE)),
        }))
    }

    /// The right to run something beside the replica, if nobody has it.
    pub fn seat(&self) -> Option<OwnedSemaphorePermit> {
        self.0.beside.clone().try_acquire_owned().ok()
    }

    /// Runs this on the replica's thread, where it must be short: raft waits for it, as it does for the disk.
    pub fn beside_replica(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.mesh.spawn_replica(|_| task);
    }

    /// The newest local state.
    pub fn view(&self) -> View {
        self.0.views.borrow().clone()
    }

    /// The newest local state, once it is as new as what this machine showed before its last stop. `None` when it does not
    /// get there within the deadline.
    pub async fn local(&self) -> Option<View> {
        let mut caught_up = self.0.caught_up.clone();
        let waited = tokio::time::timeout(timing::REQUEST_DEADLINE, caught_up.wait_for(|done| *done)).await;
        waited.is_ok().then(|| self.view())
    }

    /// As [`Store::local`], without waiting.
    pub fn local_now(&self) -> Option<View> {
        self.0.caught_up.borrow().then(|| self.view())
    }

    /// Wakes at every new local state.
    pub fn views(&self) -> watch::Receiver<View> {
        self.0.views.clone()
    }

    /// Wakes at every new local state in which something else than streams' keys changed: what drivers follow.
    pub fn objects(&self) -> watch::Receiver<View> {
        self.0.objects.clone()
    }

    /// Whether this machine's disk has no room for entries.
    pub fn disk_full(&self) -> watch::Receiver<bool> {
        self.0.disk_full.clone()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.0.leadership.borrow().leader
    }

    /// Whether this machine leads.
    pub fn leads(&self) -> bool {
        self.leader() == Some(self.0.me)
    }

    pub fn input(&self, input: Input) {
        let _ = self.0.asks.send(Ask::Input(input));
    }

    /// A state that holds everything acknowledged before this call. `None` when no leader confirmed in time.
    pub async fn linearizable(&self) -> Option<View> {
        let store = self.clone();
        let answer = self.0.rounds.join(move || {
            let store = store.clone();
            async move { store.read_index().await }
        });
        tokio::time::timeout(timing::REQUEST_DEADLINE, answer).await.ok()?.ok()
    }

    /// As [`Store::linearizable`], with a question of its own and no task that would help others: for what runs beside the replica.
    pub async fn linearizable_alone(&self) -> Option<View> {
        tokio::time::timeout(timing::REQUEST_DEADLINE, self.read_index()).await.ok().flatten()
    }

    /// The local state once it is at `revision` or later; `None` when it is not within the deadline.
    pub async fn at_least(&self, revision: Revision) -> Option<View> {
        let mut views = self.views();
        let reached =
            async { views.wait_for(|view| view.revision() >= revision).await.map(|view| view.clone()).ok() };
        tokio::time::timeout(timing::REQUEST_DEADLINE, reached).await.ok().flatten()
    }

    /// Asks for one read index, until one comes.
    async fn read_index(&self) -> Option<View> {
        loop {
            let (reply, answer) = oneshot::channel();
            self.0.asks.send(Ask::Read(reply)).ok()?;
            match answer.await {
                Ok(Ok(())) => return Some(self.view()),
                _ => tokio::time::sleep(timing::RETRY_PAUSE).await,
            }
        }
    }

    pub async fn status(&self) -> Option<Status> {
        let (reply, answer) = oneshot::channel();
        self.0.asks.send(Ask::Status(reply)).ok()?;
        answer.await.ok()
    }

    /// Does a transaction exactly once, at whichever machine leads, repeating it until the deadline.
    pub async fn transact(
        &self,
        transaction: Transaction,
        epoch: Option<Epoch>,
    ) -> Result<Revision, TransactError> {
        let deadline = clock::millis() + timing::REQUEST_DEADLINE.as_millis() as u64;
        let turn = tokio::time::timeout(timing::REQUEST_DEADLINE, self.0.lanes.turn()).await;
        let turn = turn.ok().flatten().ok_or(TransactError::NoLeader)?;
        let session = turn.session(|id| self.open_session(id, deadline)).await?;
        let command = Command::Transact { session, sequence: turn.sequence, epoch, transaction };
        let (outcome, uncertain) = self.repeat(&command, deadline).await;
        let lost = || if uncertain { TransactError::Unknown } else { TransactError::NoLeader };
        match outcome.ok_or_else(lost)? {
            Outcome::Applied { revision, .. } => Ok(revision),
            Outcome::CompareFailed { index, key, actual } => {
                Err(TransactError::CompareFailed { index, key, actual })
            }
            Outcome::StaleEpoch { current } => Err(TransactError::StaleEpoch(current)),
            Outcome::Refused(why) => Err(TransactError::Refused(why.to_string())),
            _ => Err(lost()),
        }
    }

    /// Opens this boot's session and ends those of the boot before, whose requests are over.
    pub async fn begin_session(&self, previous: Option<SessionId>) -> Result<SessionId, TransactError> {
        let deadline = clock::millis() + timing::REQUEST_DEADLINE.as_millis() as u64;
        let session = self.0.lanes.first_session(|id| self.open_session(id, deadline)).await?;
        let view = self.linearizable().await;
        let is_open = |session: &SessionId| view.as_ref().is_none_or(|view| view.has_session(*session));
        for session in previous.into_iter().flat_map(lanes::sessions).filter(is_open) {
            self.repeat(&Command::CloseSession { session }, deadline).await;
        }
        Ok(session)
    }

    async fn open_session(&self, session: SessionId, deadline: u64) -> Result<SessionId, TransactError> {
        match self.repeat(&Command::OpenSession { session }, deadline).await.0 {
            Some(Outcome::Applied { .. }) => Ok(session),
            Some(Outcome::Refused(why)) => Err(TransactError::Refused(why.to_string())),
            _ => Err(TransactError::NoLeader),
        }
    }

    /// Proposes until something final is answered. The flag says whether an unanswered try may have taken effect.
    async fn repeat(&self, command: &Command, deadline: u64) -> (Option<Outcome>, bool) {
        let mut tries = Tries::default();
        loop {
            let outcome = tries.settle(self.propose(command).await);
            if outcome.is_some() || clock::millis() >= deadline {
                return (outcome, tries.uncertain());
            }
            tokio::time::sleep(timing::RETRY_PAUSE).await;
        }
    }

    async fn propose(&self, command: &Command) -> Tried {
        let Leadership { leader, term, .. } = *self.0.leadership.borrow();
        match leader {
            None => Tried::NotSent,
            Some(leader) if leader == self.0.me => match self.propose_here(command.clone()).await {
                Some(outcome) => Tried::Answered(outcome),
                None => Tried::NoAnswer,
            },
            Some(leader) => {
                let mut leadership = self.leadership();
                let replaced =
                    |now: &Leadership| now.leader.is_some_and(|id| (id, now.term) != (leader, term));
                tokio::select! {
                    tried = self.0.forward.propose((leader, term), command) => tried,
                    // A leader that is dead answers nobody; the next one is asked at once, be it the same machine after a restart.
                    _ = leadership.wait_for(replaced) => Tried::NoAnswer,
                }
            }
        }
    }

    /// Proposes at this machine's own replica; also what a forwarded command ends in.
    pub async fn propose_here(&self, command: Command) -> Option<Outcome> {
        let (reply, answer) = oneshot::channel();
        self.0.asks.send(Ask::Propose(command, reply)).ok()?;
        answer.await.ok()
    }

    /// Changes the raft members; only where this machine leads.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Option<Outcome> {
        let (reply, answer) = oneshot::channel();
        self.0.asks.send(Ask::Change(changes, reply)).ok()?;
        answer.await.ok()
    }

    pub fn stop(&self) {
        let _ = self.0.asks.send(Ask::Stop);
    }

    /// Waits until some machine leads.
    pub async fn wait_for_leader(&self, at_most: Duration) -> bool {
        let mut leadership = self.leadership();
        tokio::time::timeout(at_most, leadership.wait_for(|now| now.leader.is_some())).await.is_ok()
    }
}

/// Builds transactions without the ceremony.
#[derive(Default)]
pub struct Plan(Transaction);

impl Plan {
    pub fn new() -> Plan {
        Plan::default()
    }

    pub fn expect_absent(self, key: &str) -> Plan {
        self.expect(key, Expect::Absent)
    }

    pub fn expect_present(self, key: &str) -> Plan {
        self.expect(key, Expect::Present)
    }

    pub fn expect_revision(self, key: &str, revision: u64) -> Plan {
        self.expect(key, Expect::ModRevision(Revision(revision)))
    }

    fn expect(mut self, key: &str, expect: Expect) -> Plan {
        self.0.compares.push(Compare { key: Key::from(key), expect });
        self
    }

    pub fn put(mut self, key: &str, value: impl AsRef<[u8]>) -> Plan {
        self.0.ops.push(Op::Put { key: Key::from(key), value: value.into() });
        self
    }

    /// Sets a key that goes by itself some time after it was last changed.
    pub fn put_for(mut self, key: &str, value: impl AsRef<[u8]>, time: Duration) -> Plan {
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        self.0.ops.push(Op::PutFor { key: Key::from(key), value: value.into(), seconds });
        self
    }

    pub fn delete(mut self, key: &str) -> Plan {
        self.0.ops.push(Op::Delete { key: Key::from(key) });
        self
    }

    pub fn build(self) -> Transaction {
        self.0
    }
}

/// Is told why the disk does not hold what this replica had promised, before the process ends.
pub type Distrusted = Box<dyn Fn(&str) + Send>;

/// Sends a raft message; called on the replica's thread, so that it must not wait.
pub type Sends = Box<dyn Fn(Outgoing) + Send>;
