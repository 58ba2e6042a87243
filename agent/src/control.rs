//! Controllers and scheduler: what the cluster should be becomes pods on nodes. They run on the leader only.
//!
//! [`Control`] is a synchronous core. It is handed the replicated state and its changes, the time, a seed and the brake, and gives
//! transactions to propose as data. It plans against a working copy (`index`) that holds what it has planned already, so that one
//! round goes from a Deployment to placed pods, in one transaction. It decides who is asked when (`queue`) and what is on its
//! way (`draft`); what is decided lives in one module for each controller. It must not read a clock, draw randomness of its own
//! or propose anything; [`driver`] does.
//!
//! What keeps plans from taking effect twice or too late: every write compares the revision that it rests on; whoever makes pods
//! writes their owner in the same transaction; an object whose write is on its way is not written again until the local state
//! shows it; and the driver proposes with the leader's epoch.

mod conditions;
mod deployment;
mod draft;
pub mod driver;
mod endpoints;
mod garbage;
mod index;
mod job;
mod key;
mod namespace;
mod nodes;
mod pod;
mod queue;
mod removal;
mod replica_set;
mod scheduler;
mod step;
mod sweep;
mod template;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use api::{Object, keys};
use jiff::Timestamp;
use raft_store::{Change, Entry, View};

pub use draft::{Answer, Batch};
pub use step::{EventRecord, Now};

use draft::{Draft, Flights};
use index::World;
use key::ObjectKey;
use queue::{Queue, Work};
use step::{Context, Random, Step, Write};

/// How often one decision is made in one round. More would mean that two controllers undo each other's work.
const TIMES_PER_ROUND: u32 = 32;

/// All controllers and the scheduler of one leadership.
pub struct Control {
    world: World,
    queue: Queue,
    /// Wait until something that is on its way has arrived.
    blocked: Queue,
    /// By monotonic milliseconds.
    timers: BTreeSet<(u64, Work)>,
    flights: Flights,
    random: Random,
    brake: bool,
}

impl Control {
    /// Reads the whole state; everything is looked at once.
    pub fn new(view: &View, seed: u64) -> Control {
        let mut control = Control {
            world: World::default(),
            queue: Queue::from([Work::Sweep]),
            blocked: Queue::new(),
            timers: BTreeSet::new(),
            flights: Flights::default(),
            random: Random::new(seed),
            brake: false,
        };
        for entry in view.prefix(keys::OBJECTS.as_bytes(), None) {
            control.set(entry.key(), Some(entry));
        }
        // Once more with everything known: whom a thing concerns depends on what else there is.
        for (key, known) in control.world.all() {
            queue::affect(&control.world, key, None, Some(known), &mut control.queue);
        }
        control
    }

    /// Takes in one change of the state. What is on its way is read anew when it has arrived.
    pub fn observe(&mut self, change: &Change) {
        let in_flight = ObjectKey::parse(change.key()).is_some_and(|(key, _)| self.flights.holds(&key));
        if !in_flight {
            self.set(change.key(), change.after.as_ref());
        }
    }

    /// What to propose now. `view` is the state that was observed last. Empty when everything is as it should be, or on its
    /// way there.
    pub fn plan(&mut self, view: &View, now: Now, brake: bool) -> Vec<Batch> {
        self.settle(view);
        self.set_brake(brake);
        self.wake(now);
        let mut draft = Draft::default();
        let mut times: BTreeMap<Work, u32> = BTreeMap::new();
        while let Some(work) = self.queue.pop_first() {
            if draft.is_full() {
                self.blocked.insert(work);
                break;
            }
            let count = times.entry(work.clone()).or_default();
            *count += 1;
            if *count > TIMES_PER_ROUND {
                tracing::error!(
                    ?work,
                    "controllers do not come to an agreement; this is looked at again with the next change"
                );
                continue;
            }
            for step in self.decide(view, now, &work) {
                self.take(step, &work, now, &mut draft);
            }
        }
        if draft.is_full() {
            self.blocked.append(&mut self.queue);
        }
        self.flights.launch(draft, &self.world)
    }

    /// What came of a batch. The next `plan` makes use of it.
    pub fn answered(&mut self, id: u64, answer: Answer) {
        self.flights.answered(id, answer);
    }

    /// When to plan again even if nothing happens, in monotonic milliseconds.
    pub fn next_wake(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn decide(&self, view: &View, now: Now, work: &Work) -> Vec<Step> {
        let cx = Context { world: &self.world, now, brake: self.brake, random: &self.random };
        match work {
            Work::Node(name) => nodes::reconcile(&cx, name),
            Work::Deployment(key) => vec![deployment::reconcile(&cx, key)],
            Work::ReplicaSet(key) => vec![replica_set::reconcile(&cx, key)],
            Work::Job(key) => vec![job::reconcile(&cx, key)],
            Work::Schedule => scheduler::run(&cx),
            Work::Collect(key) => vec![garbage::reconcile(&cx, key)],
            Work::Endpoints(key) => vec![endpoints::reconcile(&cx, key)],
            Work::Namespace(name) => namespace::reconcile(&cx, view, name),
            Work::Sweep => vec![sweep::reconcile(&cx, view)],
        }
    }

    /// Lets a step take effect in the working copy, or puts its decision off.
    fn take(&mut self, step: Step, work: &Work, now: Now, draft: &mut Draft) {
        if let Some(at) = step.wake {
            self.timers.insert((monotonic(now, at), work.clone()));
        }
        if step.writes.is_empty() && step.releases.is_empty() {
            return;
        }
        if self.flights.block(&step) {
            self.blocked.insert(work.clone());
            return;
        }
        draft.add(&step, &self.world);
        for (key, write) in step.writes {
            self.write(key, write);
        }
    }

    fn write(&mut self, key: ObjectKey, write: Write) {
        let before = match write {
            Write::Delete => self.world.remove(&key),
            Write::Put(kind, object) => {
                let revision = self.world.get(&key).map(|known| known.revision).unwrap_or_default();
                self.world.put(key.clone(), kind, object, revision)
            }
        };
        queue::affect(&self.world, &key, before.as_ref(), self.world.get(&key), &mut self.queue);
    }

    /// Takes over what the state says of one key.
    fn set(&mut self, key: &[u8], entry: Option<&Entry>) {
        let Some((key, kind)) = ObjectKey::parse(key).filter(|(_, kind)| queue::is_followed(kind)) else {
            return;
        };
        let object =
            entry.and_then(|entry| Some((Object::from_slice(entry.value()).ok()?, entry.mod_revision())));
        let before = match object {
            Some((object, revision)) => self.world.put(key.clone(), kind, object, revision),
            None => self.world.remove(&key),
        };
        let after = self.world.get(&key);
        if before.as_ref().map(|known| &known.object) != after.map(|known| &known.object) {
            queue::affect(&self.world, &key, before.as_ref(), after, &mut self.queue);
        }
    }

    /// Reads anew what has arrived or was refused; what waited for it is decided again.
    fn settle(&mut self, view: &View) {
        let keys = self.flights.landed(view.revision());
        if !keys.is_empty() {
            self.queue.append(&mut self.blocked);
        }
        for key in keys {
            self.set(key.as_str().as_bytes(), view.get(key.as_str().as_bytes()));
        }
    }

    fn set_brake(&mut self, brake: bool) {
        if std::mem::replace(&mut self.brake, brake) == brake {
            return;
        }
        let lost: Vec<String> =
            self.world.loads().keys().filter(|node| nodes::is_lost(&self.world, node)).cloned().collect();
        for node in lost {
            queue::on_node(&self.world, &node, &mut self.queue);
        }
    }

    fn wake(&mut self, now: Now) {
        while let Some((_, work)) = self.timers.first().filter(|(at, _)| *at <= now.millis).cloned() {
            self.timers.pop_first();
            self.queue.insert(work);
        }
    }
}

/// A wall-clock time on the monotonic clock. Rounded up: documents have whole seconds.
fn monotonic(now: Now, at: Timestamp) -> u64 {
    let ahead = at.as_millisecond() - now.wall.as_millisecond();
    now.millis + u64::try_from(ahead).unwrap_or(0).max(1)
}
