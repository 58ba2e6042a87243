//! Clients that write, delete, swap and read, repeat what they are unsure of at other nodes, and read at any node; they know what was
//! acknowledged to them and demand it back. Among them are controllers of every epoch that ever began, the deposed ones too, and
//! some whose session was closed. What clients demand at the end is in `verify`.

mod verify;

use std::collections::BTreeMap;

use raft_store::check::linear::{Act, Operation};
use raft_store::*;
use rand::Rng;

use crate::world::{Event, World};

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Open,
    Close,
    /// A key of its own, and a shared one in the same transaction, which every third deletes.
    Own,
    Write {
        hot: u64,
        deletes: bool,
    },
    /// From the value that some node showed.
    Swap {
        hot: u64,
        expected: u64,
        revision: Option<Revision>,
        deletes: bool,
    },
    /// A key for so many seconds; 0: until it is written again.
    Brief {
        brief: u64,
        seconds: u32,
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
    /// Its session had ended before it began: the client does not know.
    late: bool,
    waiting: Option<ProposalId>,
}

#[derive(Clone, Copy)]
struct Session {
    id: SessionId,
    phase: Phase,
    sequence: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Open,
    Closing,
}

/// A transaction that was acknowledged: its own key, its revision, and how many keys it surely changed.
struct Acked {
    key: Key,
    revision: Revision,
    changes: usize,
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
    /// The last session's id. None is used again.
    last_session: u64,
    sessions: Vec<Session>,
    /// The revision at which each session had ended.
    ended: BTreeMap<SessionId, Revision>,
    open: Vec<Request>,
    by_proposal: BTreeMap<ProposalId, (SessionId, u64)>,
    /// What an ended session never answered: it may have happened before, or not.
    undecided: Vec<Request>,
    acked: Vec<Acked>,
    /// What was acknowledged last of each key with a time: at which revision, from which one on it surely is, and the seconds.
    brief: BTreeMap<u64, (Revision, Revision, u32)>,
    newest: Revision,
    reads: BTreeMap<ReadId, PendingRead>,
    hot: BTreeMap<u64, Vec<Operation>>,
    epochs: Vec<Epoch>,
    pub reads_served: u64,
    pub swaps: u64,
    pub deletes: u64,
    pub unknown: u64,
    pub stopping: bool,
}

const SESSIONS: usize = 3;
const HOT: u64 = 4;
const BRIEF: u64 = 6;
/// The longest time of a key.
const BRIEF_SECONDS: u32 = 3;

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

    /// Sessions that were closed.
    pub fn closed(&self) -> usize {
        self.ended.len()
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
                match outcome {
                    Outcome::UnknownSession => self.unknown_session(request),
                    outcome => self.done(&request, wish, outcome, now),
                }
            }
        }
    }

    fn done(&mut self, request: &Request, wish: Wish, outcome: &Outcome, now: u64) {
        assert!(
            !request.late,
            "A3: {request:?} was answered {outcome:?} in a session that was closed before"
        );
        let value = request.value();
        let (hot, act) = match (wish, outcome) {
            (Wish::Open, Outcome::Applied { .. }) => return self.opened(request.session),
            (Wish::Close, Outcome::Applied { revision, .. }) => {
                return self.closed_at(request, *revision, now);
            }
            (Wish::Decide(_), Outcome::Applied { .. } | Outcome::StaleEpoch { .. }) => return,
            (Wish::Own, Outcome::Applied { revision, changed: true }) => {
                let changes = if request.deletes_shared() { 1 } else { 2 };
                self.acked.push(Acked { key: request.key(), revision: *revision, changes });
                return self.newer(request, *revision, true);
            }
            (Wish::Brief { brief, seconds }, Outcome::Applied { revision, changed }) => {
                assert!(*changed || seconds == 0, "a time that begins is a change");
                let newest = self.brief.entry(brief).or_default();
                // The same bytes again, to stay, change nothing.
                let least = if *changed { *revision } else { Revision(0) };
                *newest = (*newest).max((*revision, least, seconds));
                return self.newer(request, *revision, *changed);
            }
            (Wish::Write { hot, deletes }, Outcome::Applied { revision, changed }) if *changed || deletes => {
                self.newer(request, *revision, *changed);
                self.deletes += u64::from(deletes && *changed);
                (hot, Act::Write(value))
            }
            (Wish::Swap { hot, expected, deletes, .. }, Outcome::Applied { revision, changed })
                if *changed || (deletes && expected == 0) =>
            {
                self.newer(request, *revision, *changed);
                self.swaps += 1;
                self.deletes += u64::from(deletes && *changed);
                (hot, Act::Swap(expected, value, true))
            }
            (Wish::Swap { hot, expected, .. }, Outcome::CompareFailed { .. }) => {
                (hot, Act::Swap(expected, value, false))
            }
            (wish, outcome) => {
                panic!("{outcome:?} for {wish:?} of {:?}/{}", request.session, request.sequence)
            }
        };
        let operation = Operation { act, called: request.called, returned: now };
        self.hot.entry(hot).or_default().push(operation);
    }

    fn opened(&mut self, id: SessionId) {
        let opened = self.sessions.iter_mut().find(|session| session.id == id);
        opened.unwrap().phase = Phase::Open;
    }

    /// The client goes on in another session. Something of it does not know yet and tries once more in the old one.
    fn closed_at(&mut self, request: &Request, revision: Revision, now: u64) {
        self.ended.insert(request.session, revision);
        let fresh = self.fresh_session();
        let ended = self.sessions.iter_mut().find(|session| session.id == request.session);
        *ended.unwrap() = fresh;
        let (sequence, called, floor) = (request.sequence + 1, now, self.newest);
        let late = Request {
            sequence,
            wish: Wish::Own,
            called,
            floor,
            late: true,
            attempt: 0,
            waiting: None,
            ..*request
        };
        self.open.push(late);
    }

    fn fresh_session(&mut self) -> Session {
        self.last_session += 1;
        Session { id: SessionId(self.last_session), phase: Phase::New, sequence: 0 }
    }

    /// Only a session that somebody closes is unknown. What an earlier try did stays open.
    fn unknown_session(&mut self, request: Request) {
        let open = self
            .sessions
            .iter()
            .any(|session| session.id == request.session && session.phase != Phase::Closing);
        let about_it = matches!(request.wish, Wish::Open | Wish::Close);
        assert!(!open && !about_it, "A3: nobody closed the session of {request:?}");
        self.undecided.push(request);
    }

    /// A1, by revisions: what is called after something was acknowledged gets a later revision.
    fn newer(&mut self, request: &Request, revision: Revision, changed: bool) {
        assert!(
            revision > request.floor || (!changed && revision == request.floor),
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
}

impl Request {
    fn key(&self) -> Key {
        Key::from(format!("op/{}/{}", self.session.0, self.sequence))
    }

    /// Unique among all values of the run, and 0 for nothing: a delete's.
    fn value(&self) -> u64 {
        match self.wish {
            Wish::Write { deletes: true, .. } | Wish::Swap { deletes: true, .. } => 0,
            _ => (self.session.0 << 32) | self.sequence,
        }
    }

    fn hot(&self) -> Option<u64> {
        match self.wish {
            Wish::Write { hot, .. } | Wish::Swap { hot, .. } => Some(hot),
            _ => None,
        }
    }

    fn deletes_shared(&self) -> bool {
        self.sequence.is_multiple_of(3)
    }

    /// What it does to a hot key.
    fn to_hot(&self, hot: u64) -> Op {
        match self.value() {
            0 => Op::Delete { key: hot_key(hot) },
            value => put(hot_key(hot), value.to_string()),
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
        let mut epoch = None;
        let mut compares = Vec::new();
        let ops = match self.wish {
            Wish::Open => return Command::OpenSession { session },
            Wish::Close => return Command::CloseSession { session },
            Wish::Own => {
                let text = format!("{session:?} {sequence} attempt {attempt} {}", "x".repeat(100));
                let shared = Key::from(format!("shared/{}", sequence % 5));
                let to_shared = match self.deletes_shared() {
                    true => Op::Delete { key: shared },
                    false => put(shared, text.clone()),
                };
                vec![put(self.key(), text), to_shared]
            }
            Wish::Write { hot, .. } => vec![self.to_hot(hot)],
            Wish::Swap { hot, revision, .. } => {
                let expect = revision.map_or(Expect::Absent, Expect::ModRevision);
                compares.push(Compare { key: hot_key(hot), expect });
                vec![self.to_hot(hot)]
            }
            Wish::Brief { brief, seconds } => vec![crate::times::write(brief, seconds)],
            Wish::Decide(decided) => {
                epoch = Some(decided);
                vec![put(Key::from("decision"), decided.0.to_string())]
            }
        };
        Command::Transact { session, sequence, epoch, transaction: Transaction { compares, ops } }
    }
}

fn put(key: Key, text: String) -> Op {
    Op::Put { key, value: Value::from(text) }
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
    let clients = &mut world.clients;
    while clients.sessions.len() < SESSIONS {
        let fresh = clients.fresh_session();
        clients.sessions.push(fresh);
    }
    let at = world.rng.random_range(0..SESSIONS);
    let Session { id: session, phase, sequence } = world.clients.sessions[at];
    let outstanding = world.clients.open.iter().filter(|r| r.session == session).count();
    let wish = match phase {
        Phase::New if outstanding == 0 => Wish::Open,
        Phase::Open if world.rng.random_bool(0.01) => Wish::Close,
        Phase::Open if outstanding < 8 => wish(world),
        _ => return,
    };
    let sequence = if wish == Wish::Open { 0 } else { sequence + 1 };
    let phase = if wish == Wish::Close { Phase::Closing } else { phase };
    world.clients.sessions[at] = Session { id: session, phase, sequence };
    let (called, floor) = (world.now, world.clients.newest);
    let (attempt, node, late, waiting) = (0, 0, false, None);
    let request = Request { session, sequence, wish, attempt, node, at: 0, called, floor, late, waiting };
    world.clients.open.push(request);
}

fn wish(world: &mut World) -> Wish {
    let hot = world.rng.random_range(0..HOT);
    let deletes = world.rng.random_bool(0.4);
    match world.rng.random_range(0..20) {
        0..=6 => Wish::Own,
        7..=9 => Wish::Write { hot, deletes },
        10..=12 => {
            let epochs = &world.clients.epochs;
            let recent = epochs.len().saturating_sub(3)..epochs.len();
            match recent.is_empty() {
                true => Wish::Own,
                false => Wish::Decide(world.clients.epochs[world.rng.random_range(recent)]),
            }
        }
        13..=15 => {
            let brief = world.rng.random_range(0..BRIEF);
            let stays = world.rng.random_bool(0.2);
            let seconds = if stays { 0 } else { world.rng.random_range(1..=BRIEF_SECONDS) };
            Wish::Brief { brief, seconds }
        }
        _ => swap(world, hot, deletes),
    }
}

/// From what some node shows.
fn swap(world: &mut World, hot: u64, deletes: bool) -> Wish {
    let awake: Vec<u64> = world.nodes.keys().copied().filter(|id| world.is_awake(*id)).collect();
    if awake.is_empty() {
        return Wish::Write { hot, deletes };
    }
    let node = awake[world.rng.random_range(0..awake.len())];
    let view = world.view(node);
    let revision = view.get(&hot_key(hot).0).map(|entry| entry.mod_revision());
    Wish::Swap { hot, expected: shown(&view, hot), revision, deletes }
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
