//! Nodes, disks, network and time. Decides nothing about what should happen: the seed and the test do.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::sim_disk::MemDisk;
use raft_store::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::checks::Checks;
use crate::clients::Clients;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);

#[derive(Debug)]
pub enum Event {
    Tick(u64),
    Advance(u64),
    Deliver { from: u64, to: u64, bytes: Vec<u8>, bulk: bool },
    Reported { peer: u64, to: u64, ok: bool },
    Restart(u64),
    Client,
}

#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub max_delay_ms: u64,
}

pub const CALM: Faults = Faults { loss: 0.0, duplicate: 0.0, max_delay_ms: 2 };

pub struct Node {
    pub disk: MemDisk,
    pub replica: Option<Replica<MemDisk>>,
    pub boots: u64,
    pub advance_due: bool,
    pub paused_until: u64,
}

pub struct World {
    pub now: u64,
    pub rng: SmallRng,
    pub nodes: BTreeMap<u64, Node>,
    pub faults: Faults,
    pub cut: BTreeSet<(u64, u64)>,
    pub checks: Checks,
    pub clients: Clients,
    pub trace: u64,
    pub answers: Vec<(u64, ProposalId, Outcome)>,
    pub reads: Vec<(u64, ReadId, Result<Revision, ReadFailure>)>,
    pub epochs: Vec<(u64, Epoch)>,
    pub bulk_sent: u64,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    seed: u64,
}

impl World {
    /// Node 1 begins a cluster; 2 to `size` wait to be added.
    pub fn new(seed: u64, size: u64) -> World {
        let mut world = World {
            now: 0,
            rng: SmallRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            faults: CALM,
            cut: BTreeSet::new(),
            checks: Checks::default(),
            clients: Clients::default(),
            trace: 0,
            answers: Vec::new(),
            reads: Vec::new(),
            epochs: Vec::new(),
            bulk_sent: 0,
            events: BTreeMap::new(),
            order: 0,
            seed,
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
        self.nodes.insert(id, Node { disk, replica, boots: 1, advance_due: false, paused_until: 0 });
        let first = self.now + 1 + id % 7;
        self.at(first, Event::Tick(id));
        self.wake(id);
    }

    pub fn config(&self, id: u64, boots: u64) -> Config {
        let mut config = Config::new(NodeId(id), CLUSTER, self.seed ^ (id << 32) ^ (boots << 48));
        config.snapshot_every_bytes = 24 << 10;
        config.trailing_bytes = 4 << 10;
        config.segment_bytes = 8 << 10;
        config
    }

    pub fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.insert((time, self.order), event);
    }

    pub fn run_for(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            self.happen(event);
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
            Event::Tick(id) => {
                self.at(self.now + timing::TICK_MS, Event::Tick(id));
                self.input(id, Input::Tick);
            }
            Event::Advance(id) => self.advance(id),
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
        }
    }

    pub fn is_awake(&self, id: u64) -> bool {
        self.nodes[&id].replica.is_some() && self.nodes[&id].paused_until <= self.now
    }

    pub fn reaches(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    fn delay(&mut self) -> u64 {
        self.rng.random_range(1..=self.faults.max_delay_ms.max(1))
    }

    pub fn input(&mut self, id: u64, input: Input) {
        if !self.is_awake(id) {
            return;
        }
        let now = Millis(self.now);
        if let Some(replica) = &mut self.nodes.get_mut(&id).unwrap().replica {
            replica.handle(now, input);
        }
        self.wake(id);
    }

    fn wake(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        if !node.advance_due {
            node.advance_due = true;
            let delay = self.rng.random_range(0..2);
            self.at(self.now + delay, Event::Advance(id));
        }
    }

    fn advance(&mut self, id: u64) {
        let now = Millis(self.now);
        let node = self.nodes.get_mut(&id).unwrap();
        node.advance_due = false;
        let Some(replica) = &mut node.replica else { return };
        let mut effects = Vec::new();
        if self.rng.random_bool(0.5) {
            effects.extend(replica.outbox(now));
            if self.rng.random_bool(0.3) {
                replica.handle(now, Input::Tick);
            }
        }
        effects.extend(replica.advance(now).unwrap_or_else(|fatal| panic!("node {id}: {fatal}")));
        let status = replica.status();
        self.checks.term(NodeId(id), status.term);
        if status.caught_up {
            let revision = replica.view().revision();
            self.checks.served(NodeId(id), revision);
        }
        effects.into_iter().for_each(|effect| self.effect(id, effect));
    }

    /// The early messages leave, then the power goes: `advance` never happens.
    pub fn crash_after_outbox(&mut self, id: u64) {
        let now = Millis(self.now);
        let Some(replica) = &mut self.nodes.get_mut(&id).unwrap().replica else { return };
        let effects = replica.outbox(now);
        effects.into_iter().for_each(|effect| self.effect(id, effect));
        self.crash(id);
    }

    fn effect(&mut self, id: u64, effect: Effect) {
        self.fold(id, &effect);
        match effect {
            Effect::Send { to, bytes, bulk } => self.send(id, to.0, bytes, bulk),
            Effect::Answer { id: proposal, outcome } => {
                self.clients.answered(proposal, &outcome);
                self.answers.push((id, proposal, outcome));
            }
            Effect::ReadReady { id: read, revision } => {
                let view = self.nodes[&id].replica.as_ref().unwrap().view();
                assert!(view.revision() >= revision);
                self.clients.read(read, Ok(revision));
                self.reads.push((id, read, Ok(revision)));
            }
            Effect::ReadFailed { id: read, reason } => {
                self.clients.read(read, Err(reason));
                self.reads.push((id, read, Err(reason)));
            }
            Effect::RoleChanged { term, role: Role::Leader, .. } => self.checks.leads(NodeId(id), term),
            Effect::RoleChanged { .. } => {}
            Effect::EpochBegan { epoch } => self.epochs.push((id, epoch)),
            Effect::Applied { view } => self.checks.applied(NodeId(id), &view),
        }
    }

    fn send(&mut self, from: u64, to: u64, bytes: Vec<u8>, bulk: bool) {
        self.bulk_sent += u64::from(bulk);
        let lost = !self.nodes.contains_key(&to)
            || !self.reaches(from, to)
            || (!bulk && self.rng.random_bool(self.faults.loss));
        if lost {
            let peer = NodeId(to);
            let report =
                if bulk { Input::SnapshotSent { peer, ok: false } } else { Input::Unreachable { peer } };
            if (bulk || self.rng.random_bool(0.1))
                && let Some(replica) = &mut self.nodes.get_mut(&from).unwrap().replica
            {
                replica.handle(Millis(self.now), report);
            }
            return;
        }
        if !bulk && self.rng.random_bool(self.faults.duplicate) {
            let time = self.now + self.delay() * 3;
            self.at(time, Event::Deliver { from, to, bytes: bytes.clone(), bulk });
        }
        let time = self.now + self.delay();
        self.at(time, Event::Deliver { from, to, bytes, bulk });
    }

    /// Power cut on one node.
    pub fn crash(&mut self, id: u64) {
        let seed = self.rng.random();
        let node = self.nodes.get_mut(&id).unwrap();
        node.replica = None;
        node.disk.crash(seed);
        self.clients.node_died(id);
    }

    pub fn restart(&mut self, id: u64) {
        if self.nodes[&id].replica.is_some() {
            return;
        }
        let config = self.config(id, self.nodes[&id].boots);
        let node = self.nodes.get_mut(&id).unwrap();
        node.boots += 1;
        node.paused_until = 0;
        match Replica::open(node.disk.clone(), config) {
            Ok(replica) => node.replica = Some(replica),
            Err(error) => panic!("node {id} does not open: {error}"),
        }
        self.wake(id);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.faults = CALM;
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.nodes.get_mut(&id).unwrap().paused_until = 0;
            self.restart(id);
        }
    }

    pub fn status(&self, id: u64) -> Option<Status> {
        self.nodes[&id].replica.as_ref().map(Replica::status)
    }

    pub fn view(&self, id: u64) -> View {
        self.nodes[&id].replica.as_ref().unwrap().view()
    }

    /// The established leader of the newest term.
    pub fn leader(&self) -> Option<u64> {
        let leading = |id: &u64| self.status(*id).filter(|status| status.established).map(|s| (s.term, *id));
        self.nodes.keys().filter_map(leading).max().map(|(_, id)| id)
    }

    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        others.into_iter().for_each(|other| self.cut.extend([(id, other), (other, id)]));
    }

    /// Adds learners and makes voters until the members are as asked.
    pub fn grow(&mut self, voters: &[u64], learners: &[u64]) {
        for id in voters.iter().chain(learners) {
            self.change(vec![MemberChange::AddLearner(NodeId(*id))], |s| s.learners.contains(&NodeId(*id)));
        }
        for id in voters {
            let caught_up = |world: &World| {
                let leader = world.leader().and_then(|leader| world.status(leader));
                leader.is_some_and(|s| s.peers.iter().any(|p| p.id.0 == *id && p.matched + 5 > s.last_index))
            };
            assert!(self.run_until(5_000, caught_up), "{id} catches up");
            self.change(vec![MemberChange::AddVoter(NodeId(*id))], |s| s.voters.contains(&NodeId(*id)));
        }
    }

    pub fn change(&mut self, changes: Vec<MemberChange>, done: impl Fn(&Status) -> bool) {
        for _ in 0..100 {
            let leader = self.leader();
            let finished =
                leader.and_then(|leader| self.status(leader)).is_some_and(|s| done(&s) && !s.joint);
            if finished {
                return;
            }
            if let Some(leader) = leader {
                let id = self.clients.fresh_proposal();
                self.input(leader, Input::ChangeMembers { id, changes: changes.clone() });
            }
            self.run_for(100);
        }
        panic!("the members never became what was asked: {changes:?}");
    }

    fn fold(&mut self, id: u64, effect: &Effect) {
        let text = match effect {
            Effect::Send { to, bytes, .. } => format!("{to} {}", hash(bytes)),
            Effect::Applied { view } => format!("{:?} {}", view, hash(&view.hash())),
            other => format!("{other:?}"),
        };
        self.trace = hash(format!("{} {} {id} {text}", self.trace, self.now).as_bytes());
    }
}

fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
