//! Planned writes on their way to the store: grouped so that what belongs together is one transaction, and remembered until
//! the local state shows their result.
//!
//! Decides which steps may be taken (never one that writes what is already on its way) and how they become transactions.
//! Must not know what the objects mean.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::{Compare, Expect, Key, Op, Revision, Transaction};

use super::index::World;
use super::key::ObjectKey;
use super::step::{EventRecord, Step, Write};

/// Writes in one transaction, unless a single group is larger.
const BATCH_WRITES: usize = 500;
/// Bytes in one transaction, unless a single group is larger.
const BATCH_BYTES: usize = 1 << 20;
/// A round of planning ends here and goes on when these are applied: a group then stays within the store's limits.
const ROUND_WRITES: usize = 1_000;
const ROUND_BYTES: usize = 1 << 20;
/// What a write takes beside key and value, with its compare.
const OVERHEAD_BYTES: usize = 64;

/// A transaction to propose, and what to tell people when it has been applied.
#[derive(Debug)]
pub struct Batch {
    pub id: u64,
    pub transaction: Transaction,
    pub events: Vec<EventRecord>,
}

/// One key that is written.
#[derive(Debug, Clone, Copy)]
struct Planned {
    /// What was there before: `None` for what is made.
    base: Option<Revision>,
    /// What the last write of it takes in a command.
    bytes: usize,
}

/// Writes that stand or fall together.
#[derive(Debug, Default)]
struct Group {
    writes: BTreeMap<ObjectKey, Planned>,
    reads: BTreeMap<ObjectKey, Revision>,
    releases: BTreeSet<String>,
    events: Vec<EventRecord>,
}

impl Group {
    fn absorb(&mut self, other: Group) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
        self.releases.extend(other.releases);
        self.events.extend(other.events);
    }

    fn size(&self) -> usize {
        self.writes.len() + self.releases.len()
    }

    fn is_empty(&self) -> bool {
        self.size() == 0
    }

    fn bytes(&self) -> usize {
        let writes: usize = self.writes.values().map(|planned| planned.bytes).sum();
        let reads: usize = self.reads.keys().map(|key| key.as_str().len() + OVERHEAD_BYTES).sum();
        let releases: usize = self.releases.iter().map(|key| key.len() + OVERHEAD_BYTES).sum();
        writes + reads + releases
    }

    fn fits_beside(&self, other: &Group) -> bool {
        self.size() + other.size() <= BATCH_WRITES && self.bytes() + other.bytes() <= BATCH_BYTES
    }

    fn transaction(&self, world: &World) -> Transaction {
        let mut transaction = Transaction::default();
        for (key, planned) in &self.writes {
            let expect = planned.base.map_or(Expect::Absent, Expect::ModRevision);
            let name = Key::from(key.as_str());
            transaction.compares.push(Compare { key: name.clone(), expect });
            transaction.ops.push(match world.get(key) {
                Some(known) => Op::Put { key: name, value: known.object.to_vec().into() },
                None => Op::Delete { key: name },
            });
        }
        for (key, revision) in self.reads.iter().filter(|(key, _)| !self.writes.contains_key(*key)) {
            let expect = Expect::ModRevision(*revision);
            transaction.compares.push(Compare { key: Key::from(key.as_str()), expect });
        }
        let releases = self.releases.iter().map(|key| Op::Delete { key: Key::from(key) });
        transaction.ops.extend(releases);
        transaction
    }
}

/// The writes of one round of planning.
#[derive(Debug, Default)]
pub struct Draft {
    groups: BTreeMap<usize, Group>,
    of_key: BTreeMap<ObjectKey, usize>,
    next: usize,
    writes: usize,
    bytes: usize,
}

impl Draft {
    pub fn is_full(&self) -> bool {
        self.writes >= ROUND_WRITES || self.bytes >= ROUND_BYTES
    }

    /// Takes a step in, before the world shows it. It joins the groups that wrote what it writes or reads.
    pub fn add(&mut self, step: &Step, world: &World) {
        let touched = step.writes.iter().map(|(key, _)| key).chain(&step.reads);
        let joined: BTreeSet<usize> = touched.filter_map(|key| self.of_key.get(key).copied()).collect();
        let mut group = Group::default();
        for id in joined {
            group.absorb(self.groups.remove(&id).unwrap_or_default());
        }
        for (key, write) in &step.writes {
            let base = world.get(key).map(|known| known.revision);
            let planned = group.writes.entry(key.clone()).or_insert(Planned { base, bytes: 0 });
            let bytes = bytes_of(key, write);
            self.bytes += bytes.saturating_sub(planned.bytes);
            planned.bytes = bytes;
        }
        for key in step.reads.iter().filter(|key| !group.writes.contains_key(*key)) {
            if let Some(known) = world.get(key) {
                group.reads.insert(key.clone(), known.revision);
            }
        }
        let reads = std::mem::take(&mut group.reads);
        group.reads = reads.into_iter().filter(|(key, _)| !group.writes.contains_key(key)).collect();
        group.releases.extend(step.releases.iter().cloned());
        group.events.extend(step.events.iter().cloned());
        self.writes += step.writes.len() + step.releases.len();
        self.of_key.extend(group.writes.keys().map(|key| (key.clone(), self.next)));
        self.groups.insert(self.next, group);
        self.next += 1;
    }

    /// The groups, packed into transactions; each alone when `apart`.
    fn packed(self, world: &World, apart: bool) -> Vec<Group> {
        let mut packed: Vec<Group> = Vec::new();
        for mut group in self.groups.into_values() {
            // Made and removed in the same round: nothing to do.
            group.writes.retain(|key, planned| planned.base.is_some() || world.get(key).is_some());
            if group.is_empty() {
                continue;
            }
            match packed.last_mut() {
                Some(last) if !apart && last.fits_beside(&group) => last.absorb(group),
                _ => packed.push(group),
            }
        }
        packed
    }
}

/// The key stands in the compare and in the operation.
fn bytes_of(key: &ObjectKey, write: &Write) -> usize {
    let value = match write {
        Write::Put(_, object) => object.to_vec().len(),
        Write::Delete => 0,
    };
    2 * key.as_str().len() + value + OVERHEAD_BYTES
}

/// What came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The state shows it from this revision on.
    Applied(Revision),
    /// Nothing was written.
    Refused,
}

#[derive(Debug)]
struct Flight {
    keys: Vec<ObjectKey>,
    answer: Option<Answer>,
}

/// Batches that have been given out and whose result the world does not know yet.
#[derive(Debug, Default)]
pub struct Flights {
    open: BTreeMap<u64, Flight>,
    keys: BTreeSet<ObjectKey>,
    next: u64,
    /// A batch was refused: the next round's groups go one by one, so that one conflict does not hold up the others.
    apart: bool,
}

impl Flights {
    pub fn holds(&self, key: &ObjectKey) -> bool {
        self.keys.contains(key)
    }

    /// Whether a step would write, or rests on, what is already on its way.
    pub fn block(&self, step: &Step) -> bool {
        let mut touched = step.writes.iter().map(|(key, _)| key).chain(&step.reads);
        touched.any(|key| self.holds(key))
    }

    /// Makes transactions of a draft.
    pub fn launch(&mut self, draft: Draft, world: &World) -> Vec<Batch> {
        let apart = std::mem::take(&mut self.apart);
        draft.packed(world, apart).into_iter().map(|group| self.give_out(group, world)).collect()
    }

    fn give_out(&mut self, group: Group, world: &World) -> Batch {
        self.next += 1;
        let transaction = group.transaction(world);
        let keys: Vec<ObjectKey> = group.writes.into_keys().collect();
        self.keys.extend(keys.iter().cloned());
        self.open.insert(self.next, Flight { keys, answer: None });
        Batch { id: self.next, transaction, events: group.events }
    }

    pub fn answered(&mut self, id: u64, answer: Answer) {
        self.apart |= answer == Answer::Refused;
        if let Some(flight) = self.open.get_mut(&id) {
            flight.answer = Some(answer);
        }
    }

    /// The keys of batches whose result a state of this revision shows. They are to be read again from it.
    pub fn landed(&mut self, shown: Revision) -> Vec<ObjectKey> {
        let is_down = |flight: &Flight| match flight.answer {
            Some(Answer::Applied(revision)) => revision <= shown,
            Some(Answer::Refused) => true,
            None => false,
        };
        let down: Vec<u64> =
            self.open.iter().filter(|(_, flight)| is_down(flight)).map(|(id, _)| *id).collect();
        let flights = down.iter().filter_map(|id| self.open.remove(id));
        let keys: Vec<ObjectKey> = flights.flat_map(|flight| flight.keys).collect();
        for key in &keys {
            self.keys.remove(key);
        }
        keys
    }
}
