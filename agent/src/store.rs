//! The store as the agent uses it: reads from local views, writes by way of the leader, exactly once.
//!
//! Decides where a command goes and when it is repeated, and who may be served beside the replica, which runs on a thread of its own
//! (`replica_thread`). It must not know what keys and values mean.

mod forward;
mod lanes;
mod replica_thread;
mod rounds;
mod ticks;
mod touched;
mod tries;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft_store::{
    Command, Compare, Epoch, Expect, Input, Key, MemberChange, NodeId, Op, Outcome, Revision, SessionId,
    Status, Transaction, View,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

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

/// How long whoever has the seat may keep it when others want it too.
pub const STAY_MS: u64 = 1_000;

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
    /// Somebody found it taken.
    seat_wanted: Arc<Notify>,
    /// When it was taken last, in milliseconds of the clock.
    seated: AtomicU64,
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
            rounds: Rounds::new(),
            mesh,
            beside: Arc::new(Semaphore::new(BESIDE)),
            seat_wanted: Arc::default(),
            seated: AtomicU64::new(0),
        }))
    }

    /// The right to run something beside the replica, if nobody has it. Whoever has had it for a second is told that it is wanted.
    pub fn seat(&self) -> Option<OwnedSemaphorePermit> {
        let (seat, now) = (self.0.beside.clone().try_acquire_owned().ok(), clock::millis());
        if seat.is_some() {
            self.0.seated.store(now, Ordering::Relaxed);
        } else if now.saturating_sub(self.0.seated.load(Ordering::Relaxed)) >= STAY_MS {
            // Only who waits by now is told: what nobody heard must not drive out the next.
            self.0.seat_wanted.notify_waiters();
        }
        seat
    }

    /// Ends once somebody wants a seat, after this was called and whether or not it is awaited yet.
    pub fn seat_wanted(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.seat_wanted.clone().notified_owned()
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

    /// As [`Store::linearizable`], with a question of its own and no task that would help others: for what runs beside the replica. No timer either,
    /// which would cost that thread a wake-up for each read: the replica itself fails a read within a tick of `raft_store::timing::READ_DEADLINE_MS`,
    /// unless the disk stalls.
    pub async fn linearizable_alone(&self) -> Option<View> {
        self.ask_read().await?.ok().map(|()| self.view())
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
            match self.ask_read().await {
                Some(Ok(())) => return Some(self.view()),
                Some(Err(_)) => tokio::time::sleep(timing::RETRY_PAUSE).await,
                None => return None,
            }
        }
    }

    /// What became of one question for a read index; `None` once the replica has ended.
    async fn ask_read(&self) -> Option<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        self.0.asks.send(Ask::Read(reply)).ok()?;
        answer.await.ok()
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

#[cfg(test)]
pub mod testing {
    use std::path::PathBuf;

    use raft_store::Config;

    use super::*;
    use crate::credential::Credential;
    use crate::identity::Identity;
    use crate::members::{Member, Roster, id_of_key};
    use crate::pki;

    /// A store of one machine, with a real replica on its thread.
    pub struct Alone {
        pub store: Store,
        mesh: Mesh,
        directory: PathBuf,
    }

    impl Drop for Alone {
        fn drop(&mut self) {
            self.store.stop();
            self.mesh.close();
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    pub async fn alone(name: &str) -> Alone {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let authority = pki::Authority::create("test", now).unwrap();
        let key = pki::new_key().unwrap();
        let request = pki::signing_request(&key).unwrap();
        let certificate = authority.sign_member(&request, name, &[], now, Duration::from_secs(60)).unwrap();
        let hash = pki::key_hash(&pki::certificate_der(&certificate).unwrap()).unwrap();
        let member = Member {
            name: name.into(),
            id: id_of_key(&hash),
            key: pki::hex(&hash),
            address: "127.0.0.1:0".parse().unwrap(),
            api_port: 0,
            block: 0,
            no_voter: false,
            seal_key: String::new(),
            versions: None,
        };
        let ca_certificate = authority.certificate.clone();
        let (cluster, known) = ("00".repeat(16), Vec::new());
        let identity = Identity { cluster, epoch: 0, member, key, certificate, ca_certificate, known };
        let credential = Credential::new(&identity).unwrap();
        let mesh =
            Mesh::start(&identity, &credential, Roster::default(), tokio::sync::mpsc::channel(16).0).unwrap();
        let directory = std::env::temp_dir().join(format!("skein-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (me, seed) = (identity.member.node_id(), clock::random_u64());
        let config = Config::new(me, identity.store_id(0), seed);
        let (sends, distrusted) = (Box::new(drop), Box::new(|_: &str| ()));
        let log = directory.join("log");
        let running = start(&log, config, Birth::First, sends, distrusted, &mesh).unwrap();
        let store = Store::new(me, running, mesh.clone());
        assert!(store.wait_for_leader(Duration::from_secs(10)).await);
        store.begin_session(None).await.unwrap();
        Alone { store, mesh, directory }
    }
}
