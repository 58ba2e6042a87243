//! Clients that write, repeat what they are unsure of at other nodes, and read at any node; they know what was
//! acknowledged to them and demand it back.

use std::collections::BTreeMap;

use raft_store::*;
use rand::Rng;

use crate::world::{Event, World};

#[derive(Clone, Debug)]
struct Request {
    session: SessionId,
    sequence: u64,
    attempt: u64,
    node: u64,
    at: u64,
    waiting: Option<ProposalId>,
}

#[derive(Default)]
pub struct Clients {
    next_id: u64,
    sessions: BTreeMap<SessionId, (bool, u64)>,
    open: Vec<Request>,
    by_proposal: BTreeMap<ProposalId, (SessionId, u64)>,
    acked: Vec<(Key, Revision)>,
    reads: BTreeMap<ReadId, (u64, Revision)>,
    pub reads_served: u64,
    pub unknown: u64,
    pub stopping: bool,
}

const SESSIONS: u64 = 3;

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

    fn newest(&self) -> Revision {
        self.acked.iter().map(|(_, revision)| *revision).max().unwrap_or_default()
    }

    pub fn answered(&mut self, proposal: ProposalId, outcome: &Outcome) {
        let Some((session, sequence)) = self.by_proposal.remove(&proposal) else { return };
        let Some(at) = self.open.iter().position(|r| r.session == session && r.sequence == sequence) else {
            return;
        };
        match outcome {
            Outcome::Applied { revision, .. } if sequence == 0 => {
                self.open.remove(at);
                self.sessions.insert(session, (true, 0));
                let _ = revision;
            }
            Outcome::Applied { revision, changed } => {
                assert!(changed, "every request makes a key of its own");
                self.open.remove(at);
                self.acked.push((key(session, sequence), *revision));
            }
            Outcome::NotLeader { .. } | Outcome::Lost | Outcome::Refused(_) => self.open[at].waiting = None,
            Outcome::UnknownSession | Outcome::SequenceBelowWindow => {
                panic!("{outcome:?} for {session:?}/{sequence}")
            }
            other => panic!("unexpected {other:?}"),
        }
        self.unknown += u64::from(*outcome == Outcome::Lost);
    }

    /// A read that began when `floor` was acknowledged sees at least that.
    pub fn read(&mut self, read: ReadId, result: Result<Revision, ReadFailure>) {
        if let (Some((_, floor)), Ok(revision)) = (self.reads.remove(&read), result) {
            assert!(revision >= floor, "read {revision} after {floor} was acknowledged");
            self.reads_served += 1;
        }
    }

    pub fn node_died(&mut self, node: u64) {
        let dead = |r: &mut Request| r.node == node && r.waiting.is_some();
        for request in self.open.iter_mut().filter_map(|r| dead(r).then_some(r)) {
            if let Some(id) = request.waiting.take() {
                self.by_proposal.remove(&id);
            }
        }
        self.reads.retain(|_, (at, _)| *at != node);
    }

    /// Everything acknowledged is there, made once, at the revision that was told.
    pub fn verify(&self, world: &World, view: &View) {
        for (key, revision) in &self.acked {
            let entry = view.get(&key.0).unwrap_or_else(|| panic!("acknowledged {key:?} is lost"));
            assert_eq!((entry.create_revision, entry.mod_revision), (*revision, *revision), "{key:?}");
            assert_eq!(world.checks.changes_of(key), 1, "{key:?} was applied more than once");
        }
    }
}

fn key(session: SessionId, sequence: u64) -> Key {
    Key::from(format!("op/{}/{sequence}", session.0))
}

/// One turn of the clients: begin, repeat, read; then the next turn.
pub fn turn(world: &mut World) {
    let pause = world.rng.random_range(5..60);
    let time = world.now + pause;
    world.at(time, Event::Client);
    begin(world);
    repeat(world);
    read(world);
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
    world.clients.sessions.insert(session, (is_open, sequence));
    let request = Request { session, sequence, attempt: 0, node: 0, at: 0, waiting: None };
    world.clients.open.push(request);
}

/// Sends what is not on its way, and what has been for too long, to some node.
fn repeat(world: &mut World) {
    let ids: Vec<u64> = world.nodes.keys().copied().collect();
    for at in 0..world.clients.open.len() {
        let request = &world.clients.open[at];
        let patient = request.waiting.is_some() && world.now < request.at + 700;
        let guess = world.leader().filter(|_| world.rng.random_bool(0.8));
        let node = guess.unwrap_or(ids[world.rng.random_range(0..ids.len())]);
        if patient || !world.is_awake(node) {
            continue;
        }
        let id = world.clients.fresh_proposal();
        let now = world.now;
        let request = &mut world.clients.open[at];
        let stale = request.waiting.replace(id);
        (request.node, request.at, request.attempt) = (node, now, request.attempt + 1);
        let command = command(request);
        let name = (request.session, request.sequence);
        if let Some(stale) = stale {
            world.clients.by_proposal.remove(&stale);
        }
        world.clients.by_proposal.insert(id, name);
        world.input(node, Input::Propose { id, command });
    }
}

fn command(request: &Request) -> Command {
    let Request { session, sequence, attempt, .. } = *request;
    if sequence == 0 {
        return Command::OpenSession { session };
    }
    let value = Value::from(format!("attempt {attempt} {}", "x".repeat(100)));
    let ops = vec![
        Op::Put { key: key(session, sequence), value: value.clone() },
        Op::Put { key: Key::from(format!("shared/{}", sequence % 5)), value },
    ];
    Command::Transact { session, sequence, epoch: None, transaction: Transaction { compares: vec![], ops } }
}

fn read(world: &mut World) {
    let ids: Vec<u64> = world.nodes.keys().copied().collect();
    let node = ids[world.rng.random_range(0..ids.len())];
    if !world.is_awake(node) || world.rng.random_bool(0.5) {
        return;
    }
    world.clients.next_id += 1;
    let id = ReadId(world.clients.next_id);
    let floor = world.clients.newest();
    world.clients.reads.insert(id, (node, floor));
    world.input(node, Input::Read { id });
}
