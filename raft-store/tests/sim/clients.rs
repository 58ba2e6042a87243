//! Clients that write, swap and read, repeat what they are unsure of at other nodes, and read at any node; they know what was
//! acknowledged to them and demand it back. Among them are controllers of every epoch that ever began, the deposed ones too.

use std::collections::BTreeMap;

use raft_store::check::linear::{Act, Operation, is_linearizable};
use raft_store::*;
use rand::Rng;

use crate::world::{Event, World};

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Open,
    /// A key of its own, and a shared one in the same transaction.
    Own,
    Write {
        hot: u64,
    },
    /// From the value that some node showed.
    Swap {
        hot: u64,
        expected: u64,
        revision: Option<Revision>,
    },
    /// What a controller of this epoch decided.
    Decide(Epoch),
}

#[derive(Clone, Debug)]
struct Request {
    session: SessionId,
    sequence: u64,
    wish: Wish,
    attempt: u64,
    node: u64,
    at: u64,
    called: u64,
    floor: Revision,
    waiting: Option<ProposalId>,
}

struct PendingRead {
    node: u64,
    floor: Revision,
    hot: u64,
    called: u64,
}

#[derive(Default)]
pub struct Clients {
    next_id: u64,
    sessions: BTreeMap<SessionId, (bool, u64)>,
    open: Vec<Request>,
    by_proposal: BTreeMap<ProposalId, (SessionId, u64)>,
    acked: Vec<(Key, Revision)>,
    newest: Revision,
    reads: BTreeMap<ReadId, PendingRead>,
    hot: BTreeMap<u64, Vec<Operation>>,
    epochs: Vec<Epoch>,
    pub reads_served: u64,
    pub swaps: u64,
    pub unknown: u64,
    pub stopping: bool,
}

const SESSIONS: u64 = 3;
const HOT: u64 = 4;

impl Clients {
    pub fn fresh_proposal(&mut self) -> ProposalId {
        self.next_id += 1;
        ProposalId(self.next_id)
    }

    pub fn acked(&self) -> usize {
        self.acked.len()
    }

    pub fn open(&self) -> usize {
        self.open.len()
    }

    pub fn epoch_began(&mut self, epoch: Epoch) {
        self.epochs.push(epoch);
    }

    pub fn answered(&mut self, proposal: ProposalId, outcome: &Outcome, now: u64) {
        let Some((session, sequence)) = self.by_proposal.remove(&proposal) else { return };
        let Some(at) = self.open.iter().position(|r| r.session == session && r.sequence == sequence) else {
            return;
        };
        self.unknown += u64::from(*outcome == Outcome::Lost);
        match (self.open[at].wish, outcome) {
            (_, Outcome::NotLeader { .. } | Outcome::Lost | Outcome::Refused(_)) => {
                self.open[at].waiting = None
            }
            (wish, outcome) => {
                let request = self.open.remove(at);
                self.done(&request, wish, outcome, now);
            }
        }
    }

    fn done(&mut self, request: &Request, wish: Wish, outcome: &Outcome, now: u64) {
        let value = request.value();
        let act = match (wish, outcome) {
            (Wish::Open, Outcome::Applied { .. }) => {
                self.sessions.insert(request.session, (true, 0));
                return;
            }
            (Wish::Decide(_), Outcome::Applied { .. } | Outcome::StaleEpoch { .. }) => return,
            (Wish::Own, Outcome::Applied { revision, changed: true }) => {
                self.acked.push((request.key(), *revision));
                return self.newer(request, *revision);
            }
            (Wish::Write { .. }, Outcome::Applied { revision, changed: true }) => {
                self.newer(request, *revision);
                Act::Write(value)
            }
            (Wish::Swap { expected, .. }, Outcome::Applied { revision, changed: true }) => {
                self.newer(request, *revision);
                self.swaps += 1;
                Act::Swap(expected, value, true)
            }
            (Wish::Swap { expected, .. }, Outcome::CompareFailed { .. }) => Act::Swap(expected, value, false),
            (wish, outcome) => {
                panic!("{outcome:?} for {wish:?} of {:?}/{}", request.session, request.sequence)
            }
        };
        if let Wish::Write { hot } | Wish::Swap { hot, .. } = wish {
            let operation = Operation { act, called: request.called, returned: now };
            self.hot.entry(hot).or_default().push(operation);
        }
    }

    /// A1, by revisions: what is called after something was acknowledged gets a later revision.
    fn newer(&mut self, request: &Request, revision: Revision) {
        assert!(
            revision > request.floor,
            "A1: revision {revision} for a write begun after {} was acknowledged",
            request.floor
        );
        self.newest = self.newest.max(revision);
    }

    /// A read that began when `floor` was acknowledged sees at least that.
    pub fn read(&mut self, read: ReadId, view: Option<&View>, now: u64) {
        let (Some(pending), Some(view)) = (self.reads.remove(&read), view) else { return };
        assert!(
            view.revision() >= pending.floor,
            "A1: a read at {} began after {} was acknowledged",
            view.revision(),
            pending.floor
        );
        self.reads_served += 1;
        let operation =
            Operation { act: Act::Read(shown(view, pending.hot)), called: pending.called, returned: now };
        self.hot.entry(pending.hot).or_default().push(operation);
    }

    pub fn node_died(&mut self, node: u64) {
        let dead = |r: &mut Request| r.node == node && r.waiting.is_some();
        for request in self.open.iter_mut().filter_map(|r| dead(r).then_some(r)) {
            if let Some(id) = request.waiting.take() {
                self.by_proposal.remove(&id);
            }
        }
        self.reads.retain(|_, read| read.node != node);
    }

    /// Everything acknowledged is there, made once, at the revision that was told, whole. Each hot key was a register.
    pub fn verify(&self, world: &World, view: &View) {
        let counts = world.checks.counts();
        for (key, revision) in &self.acked {
            let entry = view.get(&key.0).unwrap_or_else(|| panic!("C3: acknowledged {key:?} is lost"));
            assert_eq!(
                (entry.create_revision(), entry.mod_revision()),
                (*revision, *revision),
                "A1: {key:?}"
            );
            assert!(
                counts.get(key).is_none_or(|count| *count == 1),
                "A3: {key:?} was applied more than once"
            );
            if let Some(changed) = world.checks.changed_at(*revision) {
                assert_eq!(changed.len(), 2, "A4: a transaction was split at {revision}: {changed:?}");
            }
        }
        for (hot, operations) in &self.hot {
            let mut all = operations.clone();
            // What was never answered may have happened or not.
            let unanswered = self.open.iter().filter(|request| request.hot() == Some(*hot));
            all.extend(unanswered.filter_map(Request::as_unknown));
            assert!(is_linearizable(&all), "A1: the history of hot/{hot} is not linearizable: {all:?}");
        }
    }
}

impl Request {
    fn key(&self) -> Key {
        Key::from(format!("op/{}/{}", self.session.0, self.sequence))
    }

    /// Unique among all values of the run, and never 0.
    fn value(&self) -> u64 {
        (self.session.0 << 32) | self.sequence
    }

    fn hot(&self) -> Option<u64> {
        match self.wish {
            Wish::Write { hot } | Wish::Swap { hot, .. } => Some(hot),
            _ => None,
        }
    }

    fn as_unknown(&self) -> Option<Operation> {
        let act = match self.wish {
            Wish::Write { .. } => Act::Write(self.value()),
            Wish::Swap { expected, .. } => Act::Swap(expected, self.value(), true),
            _ => return None,
        };
        Some(Operation { act, called: self.called, returned: u64::MAX })
    }

    fn command(&self) -> Command {
        let Request { session, sequence, attempt, .. } = *self;
        let put = |key: Key, text: String| Op::Put { key, value: Value::from(text) };
        let mut epoch = None;
        let mut compares = Vec::new();
        let ops = match self.wish {
            Wish::Open => return Command::OpenSession { session },
            Wish::Own => {
                let text = format!("{session:?} {sequence} attempt {attempt} {}", "x".repeat(100));
                let shared = Key::from(format!("shared/{}", sequence % 5));
                vec![put(self.key(), text.clone()), put(shared, text)]
            }
            Wish::Write { hot } => vec![put(hot_key(hot), self.value().to_string())],
            Wish::Swap { hot, revision, .. } => {
                let expect = revision.map_or(Expect::Absent, Expect::ModRevision);
                compares.push(Compare { key: hot_key(hot), expect });
                vec![put(hot_key(hot), self.value().to_string())]
            }
            Wish::Decide(decided) => {
                epoch = Some(decided);
                vec![put(Key::from("decision"), decided.0.to_string())]
            }
        };
        Command::Transact { session, sequence, epoch, transaction: Transaction { compares, ops } }
    }
}

fn hot_key(hot: u64) -> Key {
    Key::from(format!("hot/{hot}"))
}

/// What a view shows of a hot key, 0 for nothing.
fn shown(view: &View, hot: u64) -> u64 {
    let entry = view.get(&hot_key(hot).0);
    entry.map_or(0, |entry| String::from_utf8_lossy(entry.value()).parse().unwrap_or(0))
}

/// One turn of the clients: begin, repeat, read, watch; then the next turn.
pub fn turn(world: &mut World) {
    let pause = world.rng.random_range(5..60);
    let time = world.now + pause;
    world.at(time, Event::Client);
    begin(world);
    repeat(world);
    read(world);
    crate::watchers::turn(world);
    compact(world);
}

fn begin(world: &mut World) {
    if world.clients.stopping {
        return;
    }
    let session = SessionId(world.rng.random_range(1..=SESSIONS));
    let (is_open, next) = *world.clients.sessions.entry(session).or_insert((false, 0));
    let outstanding = world.clients.open.iter().filter(|r| r.session == session).count();
    let sequence = match is_open {
        true if outstanding < 8 => next + 1,
        false if outstanding == 0 => 0,
        _ => return,
    };
    let wish = if is_open { wish(world) } else { Wish::Open };
    world.clients.sessions.insert(session, (is_open, sequence));
    let (called, floor) = (world.now, world.clients.newest);
    let request =
        Request { session, sequence, wish, attempt: 0, node: 0, at: 0, called, floor, waiting: None };
    world.clients.open.push(request);
}

fn wish(world: &mut World) -> Wish {
    let hot = world.rng.random_range(0..HOT);
    match world.rng.random_range(0..10) {
        0..=3 => Wish::Own,
        4 => Wish::Write { hot },
        5 | 6 => {
            let epochs = &world.clients.epochs;
            let recent = epochs.len().saturating_sub(3)..epochs.len();
            match recent.is_empty() {
                true => Wish::Own,
                false => Wish::Decide(world.clients.epochs[world.rng.random_range(recent)]),
            }
        }
        _ => {
            let awake: Vec<u64> = world.nodes.keys().copied().filter(|id| world.is_awake(*id)).collect();
            if awake.is_empty() {
                return Wish::Write { hot };
            }
            let node = awake[world.rng.random_range(0..awake.len())];
            let view = world.view(node);
            let revision = view.get(&hot_key(hot).0).map(|entry| entry.mod_revision());
            Wish::Swap { hot, expected: shown(&view, hot), revision }
        }
    }
}

/// Sends what is not on its way, and what has been for too long, to some node.
fn repeat(world: &mut World) {
    let ids: Vec<u64> = world.nodes.keys().copied().collect();
    let leader = world.leader();
    for at in 0..world.clients.open.len() {
        let request = &world.clients.open[at];
        if request.waiting.is_some() && world.now < request.at + 700 {
            continue;
        }
        let guess = leader.filter(|_| world.rng.random_bool(0.8));
        let node = guess.unwrap_or(ids[world.rng.random_range(0..ids.len())]);
        if !world.is_awake(node) {
            continue;
        }
        let id = world.clients.fresh_proposal();
        let now = world.now;
        let request = &mut world.clients.open[at];
        let stale = request.waiting.replace(id);
        (request.node, request.at, request.attempt) = (node, now, request.attempt + 1);
        let command = request.command();
        let name = (request.session, request.sequence);
        if let Some(stale) = stale {
            world.clients.by_proposal.remove(&stale);
        }
        world.clients.by_proposal.insert(id, name);
        world.input(node, Input::Propose { id, command });
    }
}

fn read(world: &mut World) {
    let ids: Vec<u64> = world.nodes.keys().copied().collect();
    let node = ids[world.rng.random_range(0..ids.len())];
    if !world.is_awake(node) || world.rng.random_bool(0.5) {
        return;
    }
    world.clients.next_id += 1;
    let id = ReadId(world.clients.next_id);
    let hot = world.rng.random_range(0..HOT);
    let pending = PendingRead { node, floor: world.clients.newest, hot, called: world.now };
    world.clients.reads.insert(id, pending);
    world.input(node, Input::Read { id });
}

/// Now and then the leader forgets old history, as its clock would tell it to.
fn compact(world: &mut World) {
    if world.clients.stopping || !world.rng.random_bool(0.01) {
        return;
    }
    let Some(leader) = world.leader().filter(|leader| world.is_awake(*leader)) else { return };
    let view = world.view(leader);
    let keep = world.rng.random_range(1..60);
    let floor = Revision(view.revision().0.saturating_sub(keep));
    let id = world.clients.fresh_proposal();
    world.input(leader, Input::Propose { id, command: Command::Compact { floor, epoch: view.epoch() } });
}
