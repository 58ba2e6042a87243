//! Nodes, disks, network and time. Decides nothing about what should happen: the seed and the test do.

mod clock;
mod growth;
mod net;
mod process;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;

use raft_store::sim_disk::MemDisk;
use raft_store::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::checks::Checks;
use crate::clients::Clients;
use crate::times::Times;
use crate::watchers::Watchers;
use clock::Clock;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Version and cluster before the message (docs/formats/raft-store.md).
pub const ENVELOPE: usize = 17;
/// The version of a feed's envelope, and its messages by number.
const FEED: u8 = 2;
const FEED_KINDS: [&str; 11] = [
    "subscribe",
    "batch",
    "snapshot",
    "ack",
    "refused",
    "leave",
    "ask index",
    "index",
    "piece",
    "took",
    "hurry",
];

#[derive(Debug)]
pub enum Event {
    Tick(u64),
    Advance(u64),
    Due(u64),
    Deliver { from: u64, to: u64, bytes: Vec<u8>, bulk: bool },
    Reported { peer: u64, to: u64, ok: bool },
    Restart(u64),
    Client,
    Pilot,
}

/// An event and when it happens; those of one time in the order in which they were made.
struct Due {
    time: u64,
    order: u64,
    event: Event,
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.time, self.order).cmp(&(other.time, other.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub max_delay_ms: u64,
    /// Part of the messages that take up to five seconds.
    pub clog: f64,
    /// Part of the messages that are altered on their way. (Real ones are not: QUIC's AEAD drops them.)
    pub garble: f64,
    /// Part of the messages that come with a forged one.
    pub forge: f64,
    /// Part of the snapshots whose connection breaks, or that come twice.
    pub broken: f64,
    /// Part of the rounds in which the power goes between the early messages and the disk.
    pub between: f64,
}

pub const CALM: Faults = Faults {
    loss: 0.0,
    duplicate: 0.0,
    max_delay_ms: 2,
    clog: 0.0,
    garble: 0.0,
    forge: 0.0,
    broken: 0.0,
    between: 0.0,
};

pub struct Node {
    pub disk: MemDisk,
    pub replica: Option<Replica<MemDisk>>,
    pub boots: u64,
    pub advance_due: bool,
    pub paused_until: u64,
    /// Until then each of its syncs takes `slow_ms`.
    pub slow_until: u64,
    pub slow_ms: u64,
    /// Damaged or wiped: never to be started again.
    pub broken: bool,
    /// Until then it gets little of the processor: its clock runs, and it comes late to everything.
    pub starved_until: u64,
    pub clock: Clock,
    /// Which list of reachable machines it was told.
    pub told: u64,
    /// When the next `advance` that it asked for is planned; never: `u64::MAX`.
    pub due: u64,
    /// Rounds in a row, without an input between them, after which it was due at once.
    pub overdue: u32,
}

pub struct World {
    pub now: u64,
    pub rng: SmallRng,
    pub nodes: BTreeMap<u64, Node>,
    pub faults: Faults,
    pub cut: BTreeSet<(u64, u64)>,
    /// Whose feeds are lost on their way, though all else arrives.
    pub muted: BTreeSet<u64>,
    pub checks: Checks,
    /// Replicas are meant to differ: nobody looks.
    pub apart: bool,
    /// Nobody looks at anything: for measurements.
    pub blind: bool,
    /// Ticks that are given out at once: three while a driver hears from others (`agent/src/store/replica_thread.rs`).
    pub ticks_together: u64,
    /// Production's sizes of segments and snapshots, not ones that make many.
    pub roomy: bool,
    pub clients: Clients,
    pub watchers: Watchers,
    pub times: Times,
    pub trace: u64,
    pub answers: Vec<(u64, ProposalId, Outcome)>,
    pub reads: Vec<(u64, ReadId, Result<Revision, ReadFailure>)>,
    pub epochs: Vec<(u64, Epoch)>,
    pub bulk_sent: u64,
    /// Appends that left, with entries or to tell of a commit.
    pub appends: u64,
    /// Messages of feeds, by kind.
    pub fed: BTreeMap<&'static str, u64>,
    /// The autopilots of leaders, by leader and term.
    pub pilots: BTreeMap<(u64, u64), raft_store::autopilot::Autopilot>,
    pub piloted: bool,
    /// The newest cluster version that a node's binary supports, where it is not ours.
    pub binaries: BTreeMap<u64, Version>,
    /// What was done to the cluster, by kind.
    pub done: BTreeMap<String, u64>,
    events: BinaryHeap<Reverse<Due>>,
    order: u64,
    seed: u64,
    /// Counts the changes of who runs.
    comings: u64,
}

impl World {
    /// Node 1 begins a cluster; 2 to `size` wait to be added.
    pub fn new(seed: u64, size: u64) -> World {
        World::of_binaries(seed, size, BTreeMap::new())
    }

    /// The same, with other binaries on some nodes.
    pub fn of_binaries(seed: u64, size: u64, binaries: BTreeMap<u64, Version>) -> World {
        let mut world = World {
            now: 0,
            rng: SmallRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            faults: CALM,
            cut: BTreeSet::new(),
            muted: BTreeSet::new(),
            checks: Checks::default(),
            apart: false,
            blind: false,
            ticks_together: 1,
            roomy: false,
            clients: Clients::default(),
            watchers: Watchers::default(),
            times: Times::default(),
            trace: 0,
            answers: Vec::new(),
            reads: Vec::new(),
            epochs: Vec::new(),
            bulk_sent: 0,
            appends: 0,
            fed: BTreeMap::new(),
            pilots: BTreeMap::new(),
            piloted: false,
            binaries,
            done: BTreeMap::new(),
            events: BinaryHeap::new(),
            order: 0,
            seed,
            comings: 0,
        };
        (1..=size).for_each(|id| world.add(id));
        world
    }

    pub fn add(&mut self, id: u64) {
        let disk = MemDisk::new();
        let config = self.config(id, 0);
        let replica = match id {
            1 => Replica::create_first(disk.clone(), config),
            _ => Replica::create_joining(disk.clone(), config),
        };
        let replica = Some(replica.unwrap());
        let node = Node {
            disk,
            replica,
            boots: 1,
            advance_due: false,
            paused_until: 0,
            slow_until: 0,
            slow_ms: 300,
            broken: false,
            starved_until: 0,
            clock: Clock::right(),
            told: 0,
            due: u64::MAX,
            overdue: 0,
        };
        self.comings += 1;
        self.nodes.insert(id, node);
        let first = self.now + 1 + id % 7;
        self.at(first, Event::Tick(id));
        self.wake(id);
    }

    pub fn config(&self, id: u64, boots: u64) -> Config {
        let mut config = Config::new(NodeId(id), CLUSTER, self.seed ^ (id << 32) ^ (boots << 48));
        if !self.roomy {
            config.snapshot_every_bytes = 48 << 10;
            // Some snapshots take several steps.
            config.snapshot_step_bytes = 16 << 10;
            // And states that are fed several pieces.
            config.feed_piece_bytes = 8 << 10;
            config.trailing_bytes = 8 << 10;
            config.segment_bytes = 16 << 10;
        }
        // Messages take milliseconds here. With production's value writes seldom follow each other.
        config.stream_ms = [timing::STREAM_MS, 12, 40][(self.seed % 3) as usize];
        config.supported = self.supported(id);
        config
    }

    pub fn supported(&self, id: u64) -> Supported {
        let newest = self.binaries.get(&id).copied().unwrap_or(Supported::OURS.newest);
        Supported { newest, ..Supported::OURS }
    }

    pub fn count(&mut self, what: &str) {
        *self.done.entry(what.to_owned()).or_default() += 1;
    }

    pub fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse(Due { time, order: self.order, event }));
    }

    pub fn run_for(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        while self.events.peek().is_some_and(|Reverse(due)| due.time <= end) {
            let Some(Reverse(due)) = self.events.pop() else { break };
            self.now = due.time;
            self.happen(due.event);
        }
        self.now = end;
    }

    /// Runs until `done`, at most so long.
    pub fn run_until(&mut self, milliseconds: u64, done: impl Fn(&World) -> bool) -> bool {
        let end = self.now + milliseconds;
        while self.now < end && !done(self) {
            self.run_for(5);
        }
        done(self)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(id) => self.tick(id),
            Event::Advance(id) => self.advance(id),
            Event::Due(id) => {
                if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.due <= self.now) {
                    node.due = u64::MAX;
                }
                self.wake(id);
            }
            Event::Deliver { from, to, bytes, bulk } => {
                let up = self.reaches(from, to) && self.is_awake(to);
                if up {
                    self.input(to, Input::Message { from: NodeId(from), bytes });
                }
                if bulk {
                    let (peer, delay) = (to, self.delay());
                    self.at(self.now + delay, Event::Reported { peer, to: from, ok: up });
                }
            }
            Event::Reported { peer, to, ok } if self.nodes[&to].paused_until > self.now => {
                self.at(self.nodes[&to].paused_until, Event::Reported { peer, to, ok });
            }
            Event::Reported { peer, to, ok } => {
                self.input(to, Input::SnapshotSent { peer: NodeId(peer), ok })
            }
            Event::Restart(id) => self.restart(id),
            Event::Client => crate::clients::turn(self),
            Event::Pilot => {
                if self.piloted {
                    crate::harm::pilot(self);
                    self.at(self.now + 250, Event::Pilot);
                }
            }
        }
    }

    fn tick(&mut self, id: u64) {
        let (clock, together) = (&self.nodes[&id].clock, self.ticks_together);
        // A driver's timers go by the same clock.
        if let Some(until) = clock.stands_until(self.now) {
            return self.at(until, Event::Tick(id));
        }
        let next = self.now + clock.takes(together * timing::TICK_MS) + self.lateness(id);
        self.at(next, Event::Tick(id));
        self.tell_peers(id);
        (0..together).for_each(|_| self.input(id, Input::Tick));
    }

    /// How long a machine that gets little of the processor lets wait what it could do.
    fn lateness(&mut self, id: u64) -> u64 {
        let starved = self.nodes[&id].starved_until > self.now;
        if starved { self.rng.random_range(10..400) } else { 0 }
    }

    /// Machines know who runs: here at once, elsewhere by gossip.
    fn tell_peers(&mut self, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.told == self.comings || !self.is_awake(id) {
            return;
        }
        let others = self.nodes.iter().filter(|(other, _)| **other != id);
        let (answering, suspected): (Vec<_>, Vec<_>) = others.partition(|(_, node)| node.replica.is_some());
        let ids = |nodes: Vec<(&u64, &Node)>| nodes.into_iter().map(|(id, _)| NodeId(*id)).collect();
        let peers = Input::Peers { answering: ids(answering), suspected: ids(suspected) };
        self.nodes.get_mut(&id).unwrap().told = self.comings;
        self.input(id, peers);
    }

    pub fn is_awake(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.replica.is_some() && node.paused_until <= self.now)
    }

    /// A node's own clock.
    pub fn clock(&self, id: u64) -> Millis {
        // Who is no more has none; what it led is judged as if its clock were right.
        self.nodes.get(&id).map_or(Millis(self.now), |node| node.clock.shows(self.now))
    }

    pub fn input(&mut self, id: u64, input: Input) {
        if !self.is_awake(id) {
            return;
        }
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).unwrap();
        node.overdue = 0;
        if let Some(replica) = &mut node.replica {
            replica.handle(now, input);
        }
        self.wake(id);
    }

    fn wake(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        if !node.advance_due {
            node.advance_due = true;
            let delay = self.rng.random_range(0..2) + self.lateness(id);
            self.at(self.now + delay, Event::Advance(id));
        }
    }

    fn advance(&mut self, id: u64) {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).unwrap();
        node.advance_due = false;
        if node.paused_until > self.now {
            node.advance_due = true;
            let later = node.paused_until;
            return self.at(later, Event::Advance(id));
        }
        let Some(replica) = &mut node.replica else { return };
        let mut effects = Vec::new();
        let begins = self.rng.random_bool(0.5);
        if begins {
            effects.extend(replica.outbox(now));
        }
        self.leaves_early(id, &effects);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = &mut node.replica else { return };
        if begins {
            if self.faults.between > 0.0 && self.rng.random_bool(self.faults.between) {
                effects.into_iter().for_each(|effect| self.effect(id, effect));
                self.crash(id);
                self.count("death between messages and disk");
                let back = self.now + self.rng.random_range(1..60);
                return self.at(back, Event::Restart(id));
            }
            if self.rng.random_bool(0.3) {
                replica.handle(now, Input::Tick);
            }
        }
        let persisted = match begins && self.rng.random_bool(0.5) {
            true => replica.persist(now),
            false => Ok(Vec::new()),
        };
        if let Ok(said) = &persisted
            && !said.is_empty()
        {
            if self.faults.between > 0.0 && self.rng.random_bool(self.faults.between) {
                effects.extend(persisted.unwrap_or_default());
                effects.into_iter().for_each(|effect| self.effect(id, effect));
                self.crash(id);
                self.count("death between a promise and what is applied");
                let back = self.now + self.rng.random_range(1..60);
                return self.at(back, Event::Restart(id));
            }
            if self.rng.random_bool(0.3) {
                replica.handle(now, Input::Tick);
            }
        }
        let advanced = persisted.and_then(|said| {
            effects.extend(said);
            replica.advance(now)
        });
        if node.slow_until > self.now {
            replica.handle(now, Input::Synced { took_ms: node.slow_ms });
            // A driver that waits for its disk hears nothing meanwhile.
            node.paused_until = self.now + if node.slow_ms > 1_000 { node.slow_ms } else { 0 };
        }
        let early = advanced.is_err();
        match advanced {
            Ok(more) => effects.extend(more),
            Err(Fatal::Log(_)) if node.disk.failed_at().is_some() => {}
            Err(Fatal::Log(LogError::Disk(error))) if error.is_full() => {}
            Err(fatal) => panic!("node {id}: {fatal}"),
        }
        if early {
            effects.into_iter().for_each(|effect| self.effect(id, effect));
            return self.died_at_a_step(id);
        }
        if !self.blind && self.checks.is_due(NodeId(id), &effects, self.now) {
            crate::changes::look(self);
            let replica = self.nodes[&id].replica.as_ref().unwrap();
            let (status, view) = (replica.status(), replica.view());
            self.checks.status(NodeId(id), &status, self.now);
            if status.caught_up {
                self.checks.served(NodeId(id), view.revision());
            }
        }
        effects.into_iter().for_each(|effect| self.effect(id, effect));
        self.plan_next(id, now);
    }

    /// A driver does not sleep beyond what its replica holds back.
    fn plan_next(&mut self, id: u64, now: Millis) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(due) = node.replica.as_ref().and_then(Replica::due) else { return };
        // What a round has just led to may be due at once; what stays due would keep a driver busy for ever.
        node.overdue = if due <= now { node.overdue + 1 } else { 0 };
        assert!(node.overdue < 20, "node {id} was due at {due:?} in so many rounds, at {now:?} still");
        let due = node.clock.when(due);
        // What is due earlier than was planned is planned anew.
        if due < node.due {
            node.due = due;
            self.at(due.max(self.now), Event::Due(id));
        }
    }

    fn effect(&mut self, id: u64, effect: Effect) {
        if !self.blind {
            self.fold(id, &effect);
        }
        match effect {
            Effect::Send { to, bytes, bulk } => {
                if !self.blind {
                    self.checks.membership.sent(&bytes);
                }
                self.send(id, to.0, bytes, bulk);
            }
            Effect::Answer { id: proposal, outcome } => {
                self.clients.answered(proposal, &outcome, self.now);
                self.answers.push((id, proposal, outcome));
            }
            Effect::ReadReady { id: read, revision } => {
                let view = self.nodes[&id].replica.as_ref().unwrap().view();
                assert!(view.revision() >= revision);
                self.clients.read(read, Some(&view), self.now);
                self.reads.push((id, read, Ok(revision)));
            }
            Effect::ReadFailed { id: read, reason } => {
                self.clients.read(read, None, self.now);
                self.reads.push((id, read, Err(reason)));
            }
            Effect::RoleChanged { term, role: Role::Leader, .. } => {
                self.checks.leads(NodeId(id), term);
                crate::times::leads(self, id, term);
            }
            Effect::RoleChanged { .. } => {}
            Effect::EpochBegan { epoch } => {
                self.clients.epoch_began(epoch);
                self.epochs.push((id, epoch));
            }
            Effect::Applied { .. } if self.apart || self.blind => {}
            Effect::Applied { view } => {
                crate::changes::applied(self, &view);
                self.checks.applied(NodeId(id), &view);
                crate::times::applied(self, &view);
            }
        }
    }

    pub fn status(&self, id: u64) -> Option<Status> {
        self.nodes.get(&id)?.replica.as_ref().map(Replica::status)
    }

    pub fn view(&self, id: u64) -> View {
        self.nodes[&id].replica.as_ref().unwrap().view()
    }

    /// The established leader of the newest term.
    pub fn leader(&self) -> Option<u64> {
        let leading =
            |(id, node): (&u64, &Node)| node.replica.as_ref()?.leads_since().map(|term| (term, *id));
        self.nodes.iter().filter_map(leading).max().map(|(_, id)| id)
    }

    /// The members after the newest entry that anybody has applied.
    pub fn members(&self) -> Members {
        self.checks.members.clone()
    }

    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        others.into_iter().for_each(|other| self.cut.extend([(id, other), (other, id)]));
    }

    fn fold(&mut self, id: u64, effect: &Effect) {
        let mark = match effect {
            Effect::Send { to, bytes, .. } => to.0 ^ hash(bytes),
            Effect::Applied { view } => view.applied().0 ^ hash(&view.hash()),
            other => {
                let mut written = Written(0);
                let _ = write!(written, "{other:?}");
                written.0
            }
        };
        let numbers = [self.trace, self.now, id, mark];
        self.trace = numbers.iter().fold(0xcbf2_9ce4_8422_2325, |sum, number| {
            (sum ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
    }
}

/// A hash of what is written into it.
struct Written(u64);

impl std::fmt::Write for Written {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 = self.0.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash(text.as_bytes());
        Ok(())
    }
}

fn hash(bytes: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(bytes)) | ((bytes.len() as u64) << 32)
}
