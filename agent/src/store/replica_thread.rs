//! The replica's driver: gathers what waits, lets the replica decide, makes it durable, carries out the effects.
//!
//! Decides nothing. It runs on the thread where raft's messages come and go, and that thread
//! waits for the disk. One batch is one write and one sync. A fatal error ends the process: nothing may be answered after it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use raft_store::{
    Change, Command, Config, Effect, Epoch, Fatal, FileDisk, Input, Millis, NodeId, OpenError, Outcome,
    ProposalId, ReadId, Replica, Revision, Role, View,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use super::ticks::Ticks;
use super::{Ask, Distrusted, Sends};
use crate::clock;
use crate::mesh::{Mesh, Timers};
use crate::server::stream::protocol::KEYS as STREAM_KEYS;

/// Bytes of one batch beyond which no more asks are taken into it.
const BATCH_BYTES: usize = 2 << 20;
/// What an ask counts for beside its own bytes: at most 2,048 go into a batch.
const ASK_BYTES: usize = 1 << 10;

/// Revisions of streams' keys that the drivers' view may lack.
const DRIVERS_BEHIND: u64 = 10_000;

/// Who leads, as this machine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    pub term: u64,
    /// This machine leads and its own epoch has applied: controllers may run, with this epoch.
    pub epoch: Option<Epoch>,
}

/// A raft message to be sent.
pub struct Outgoing {
    pub to: NodeId,
    pub bytes: Vec<u8>,
    pub bulk: bool,
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Disk(String),
    #[error("{0}")]
    Open(#[from] OpenError),
    /// An earlier life of the agent found out that it does not hold what it had promised.
    #[error("{0}")]
    Untrusted(String),
}

/// Which way a replica comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birth {
    /// First member of a new cluster.
    First,
    /// Waits for the leader to send it the state.
    Joining,
    /// Must have its files: a member that lost them must not vote under its old name.
    Again,
}

/// The ends of the thread's channels.
pub struct Running {
    pub asks: UnboundedSender<Ask>,
    pub views: watch::Receiver<View>,
    /// As `views`, but without a word of keys that no driver of the agent looks at.
    pub objects: watch::Receiver<View>,
    /// Everything that was applied before the last stop is applied again: local reads do not go backwards.
    pub caught_up: watch::Receiver<bool>,
    pub leadership: watch::Receiver<Leadership>,
    /// The disk has no room for entries.
    pub disk_full: watch::Receiver<bool>,
}

/// Opens the store below `directory` and starts the replica on its thread.
pub fn start(
    directory: &Path,
    config: Config,
    birth: Birth,
    sends: Sends,
    distrusted: Distrusted,
    mesh: &Mesh,
) -> Result<Running, StoreError> {
    let replica = bring_to_life(directory, config, birth)?;
    let looked_at = replica.view().revision();
    let (asks, receiver) = unbounded_channel();
    let (view_sender, views) = watch::channel(replica.view());
    let (object_sender, objects) = watch::channel(replica.view());
    let (caught_up_sender, caught_up) = watch::channel(false);
    let (leader_sender, leadership) = watch::channel(Leadership::default());
    let (full_sender, disk_full) = watch::channel(false);
    let thread = Thread {
        replica,
        views: view_sender,
        objects: object_sender,
        caught_up: caught_up_sender,
        leadership: leader_sender,
        disk_full: full_sender,
        sends,
        distrusted,
        proposals: HashMap::new(),
        reads: HashMap::new(),
        next: 1,
        taken: 0,
        ticks: Ticks::new(clock::millis()),
        heard: false,
        leads: false,
        looked_at,
    };
    mesh.spawn_replica(|timers| thread.run(receiver, timers));
    Ok(Running { asks, views, objects, caught_up, leadership, disk_full })
}

fn bring_to_life(directory: &Path, config: Config, birth: Birth) -> Result<Replica<FileDisk>, StoreError> {
    let disk = || FileDisk::open(directory).map_err(|error| StoreError::Disk(error.to_string()));
    let made = match birth {
        Birth::First => Replica::create_first(disk()?, config.clone()),
        Birth::Joining => Replica::create_joining(disk()?, config.clone()),
        Birth::Again => return Ok(Replica::open(disk()?, config)?),
    };
    match made {
        // The machine went down between making the store and writing down that it had.
        Err(OpenError::NotEmpty { .. }) => Ok(Replica::open(disk()?, config)?),
        made => Ok(made?),
    }
}

struct Thread {
    replica: Replica<FileDisk>,
    views: watch::Sender<View>,
    objects: watch::Sender<View>,
    caught_up: watch::Sender<bool>,
    leadership: watch::Sender<Leadership>,
    disk_full: watch::Sender<bool>,
    sends: Sends,
    distrusted: Distrusted,
    proposals: HashMap<u64, oneshot::Sender<Outcome>>,
    reads: HashMap<u64, oneshot::Sender<Result<(), String>>>,
    next: u64,
    /// Bytes taken for the next batch, roughly.
    taken: usize,
    ticks: Ticks,
    /// A member spoke, in what was taken for this round.
    heard: bool,
    leads: bool,
    /// Changes up to here were looked at for the drivers.
    looked_at: Revision,
}

/// Bytes that an ask may add to the log.
fn weight(ask: &Ask) -> usize {
    match ask {
        Ask::Input(Input::Message { bytes, .. }) => bytes.len(),
        Ask::Propose(Command::Transact { transaction, .. }, _) => transaction.weight(),
        _ => 0,
    }
}

/// The connections of this thread hand over what came meanwhile: one turn reads it, the next brings it here.
async fn turn_twice() {
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}

impl Thread {
    async fn run(mut self, mut asks: UnboundedReceiver<Ask>, timers: Timers) {
        let mut alarm = timers.after(Duration::ZERO);
        // An only voter elects itself in its first round.
        self.round().await;
        loop {
            let now = clock::millis();
            let wait = Duration::from_millis(self.ticks.wait(now));
            let due = self.replica.due().map(|due| Duration::from_millis(due.0.saturating_sub(now)));
            let wait = due.map_or(wait, |due| wait.min(due));
            self.ticks.listen(now, wait.as_millis() as u64);
            if due.is_some_and(|due| due.is_zero()) && asks.is_empty() {
                // No timer: the shortest of them takes a millisecond or two.
                self.read_what_came(&asks).await;
            } else {
                alarm.set_after(wait);
                let ask = tokio::select! {
                    biased;
                    ask = asks.recv() => Some(ask),
                    () = &mut alarm => None,
                };
                match ask {
                    Some(Some(Ask::Stop) | None) => return,
                    Some(Some(ask)) => {
                        if self.ticks.woke(clock::millis()) {
                            turn_twice().await;
                        }
                        self.count_silence();
                        self.take(ask);
                    }
                    None => self.read_what_came(&asks).await,
                }
            }
            // What else waits goes into the same batch, as long as the reserve for a full disk could hold it.
            while self.taken < BATCH_BYTES {
                match asks.try_recv() {
                    Ok(Ask::Stop) => return,
                    Ok(ask) => self.take(ask),
                    Err(_) => break,
                }
            }
            self.taken = 0;
            let now = clock::millis();
            let heard = std::mem::take(&mut self.heard);
            let passed = self.ticks.after(now, heard, self.leads);
            self.tick(now, passed);
            self.round().await;
            // What was said goes out, and what came is looked at, before the disk is waited for again.
            if !asks.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Something is due and nobody has asked for anything: first the connections hand over what came meanwhile.
    async fn read_what_came(&mut self, asks: &UnboundedReceiver<Ask>) {
        self.ticks.woke(clock::millis());
        turn_twice().await;
        if !asks.is_empty() {
            self.count_silence();
        }
    }

    /// Something came: what was silence until then counts first.
    fn count_silence(&mut self) {
        let now = clock::millis();
        let silent = self.ticks.before(now);
        self.tick(now, silent);
    }

    fn tick(&mut self, now: u64, count: u64) {
        (0..count).for_each(|_| self.replica.handle(Millis(now), Input::Tick));
    }

    async fn round(&mut self) {
        let began = clock::millis();
        // A leader's appends travel while its own disk writes: the connections of this thread send before it waits for the disk.
        let early = self.replica.outbox(Millis(began));
        if !early.is_empty() {
            early.into_iter().for_each(|effect| self.perform(effect));
            tokio::task::yield_now().await;
        }
        // Then what others wait for, before the rest.
        let said = self.replica.persist(Millis(clock::millis())).unwrap_or_else(|fatal| self.fail(&fatal));
        if !said.is_empty() {
            said.into_iter().for_each(|effect| self.perform(effect));
            tokio::task::yield_now().await;
        }
        let advanced = self.replica.advance(Millis(clock::millis()));
        let ended = clock::millis();
        self.replica.handle(Millis(ended), Input::Synced { took_ms: ended.saturating_sub(began) });
        let effects = advanced.unwrap_or_else(|fatal| self.fail(&fatal));
        effects.into_iter().for_each(|effect| self.perform(effect));
        let full = self.replica.is_pressed();
        self.disk_full.send_if_modified(|now| std::mem::replace(now, full) != full);
        if !*self.caught_up.borrow() && self.replica.status().caught_up {
            self.caught_up.send_replace(true);
        }
    }

    fn fail(&self, fatal: &Fatal) -> ! {
        error!(%fatal, "the store has failed; this agent ends so that nothing wrong is answered");
        if let Fatal::RolledBack { .. } = fatal {
            (self.distrusted)(&fatal.to_string());
        }
        std::process::exit(70);
    }

    fn take(&mut self, ask: Ask) {
        let now = Millis(clock::millis());
        self.taken += ASK_BYTES + weight(&ask);
        let id = self.next;
        self.next += 1;
        match ask {
            Ask::Input(input) => {
                self.heard |= matches!(input, Input::Message { .. });
                self.replica.handle(now, input);
            }
            Ask::Propose(command, reply) => {
                self.proposals.insert(id, reply);
                self.replica.handle(now, Input::Propose { id: ProposalId(id), command });
            }
            Ask::Change(changes, reply) => {
                self.proposals.insert(id, reply);
                self.replica.handle(now, Input::ChangeMembers { id: ProposalId(id), changes });
            }
            Ask::Read(reply) => {
                self.reads.insert(id, reply);
                self.replica.handle(now, Input::Read { id: ReadId(id) });
            }
            Ask::Status(reply) => {
                let _ = reply.send(self.replica.status());
            }
            Ask::Stop => {}
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, bytes, bulk } => {
                (self.sends)(Outgoing { to, bytes, bulk });
            }
            Effect::Answer { id, outcome } => {
                if let Some(reply) = self.proposals.remove(&id.0) {
                    // The caller reads its own write: the view goes out before the answer.
                    self.publish();
                    let _ = reply.send(outcome);
                }
            }
            Effect::ReadReady { id, .. } => {
                if let Some(reply) = self.reads.remove(&id.0) {
                    self.publish();
                    let _ = reply.send(Ok(()));
                }
            }
            Effect::ReadFailed { id, reason } => {
                if let Some(reply) = self.reads.remove(&id.0) {
                    let _ = reply.send(Err(reason.to_string()));
                }
            }
            Effect::RoleChanged { term, role, leader } => {
                info!(term, ?role, leader = leader.map(|id| id.to_string()), "role");
                self.leads = role == Role::Leader;
                // The epoch may have begun in the same round, before this is told.
                self.leadership.send_modify(|now| {
                    let epoch = now.epoch.filter(|epoch| role == Role::Leader && epoch.0 == term);
                    *now = Leadership { leader, term, epoch };
                });
            }
            Effect::EpochBegan { epoch } => {
                info!(epoch = epoch.0, "leads");
                self.leadership.send_modify(|now| now.epoch = Some(epoch));
            }
            Effect::Applied { view } => {
                self.tell_drivers(&view);
                self.views.send_replace(view);
            }
        }
    }

    /// Wakes the drivers for what they look at: all but the keys of store streams. Now and then for those too, so that
    /// nobody falls behind the history.
    fn tell_drivers(&mut self, view: &View) {
        let other = |change: &Change| !change.key().starts_with(STREAM_KEYS);
        // Only what is new: the drivers' own view may be thousands of changes behind.
        let changed = view.changes(self.looked_at).map_or(true, |mut changes| changes.any(other));
        self.looked_at = view.revision();
        self.objects.send_if_modified(|now| {
            let far = view.revision().0 > now.revision().0 + DRIVERS_BEHIND;
            let moved = view.members() != now.members() || view.epoch() != now.epoch();
            if changed || far || moved {
                *now = view.clone();
            }
            changed || far || moved
        });
    }

    fn publish(&mut self) {
        let view = self.replica.view();
        if view.applied() > self.views.borrow().applied() {
            self.tell_drivers(&view);
            self.views.send_replace(view);
        }
    }
}
