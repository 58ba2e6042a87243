//! What one decision sees and what it says: [`Context`] in, [`Step`] out.
//!
//! Decides nothing. A step takes effect as a whole or not at all.

use std::cell::Cell;

use api::Object;
use api::duration::rfc3339;
use api::kinds::Kind;
use jiff::Timestamp;

use super::index::{Known, World};
use super::key::ObjectKey;

/// The time of one round of planning.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic, in milliseconds.
    pub millis: u64,
    /// For what is written into documents.
    pub wall: Timestamp,
}

/// Seeded randomness (splitmix64): names and uids follow from the seed.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        mix(self.0.get())
    }

    /// A random UUID (RFC 9562, version 4).
    pub fn uid(&self) -> String {
        let (a, b) = (self.next(), self.next());
        let (head, tail) = ((a & !0xf000) | 0x4000, (b & !(3 << 62)) | (2 << 62));
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            head >> 32,
            (head >> 16) & 0xffff,
            head & 0xffff,
            tail >> 48,
            tail & 0xffff_ffff_ffff
        )
    }
}

/// A number's bits, well mixed.
pub fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Everything that a decision may look at.
pub struct Context<'a> {
    pub world: &'a World,
    pub now: Now,
    /// Too many machines died at once: their pods are not replaced.
    pub brake: bool,
    pub random: &'a Random,
}

impl<'a> Context<'a> {
    pub fn known(&self, key: &ObjectKey) -> Option<&'a Known> {
        self.world.get(key)
    }

    /// The present time as documents spell it.
    pub fn time(&self) -> String {
        rfc3339(self.now.wall)
    }

    /// Whether objects may be made in a namespace: it is there and stays.
    pub fn is_open(&self, namespace: &str) -> bool {
        let found = namespace_key(namespace).and_then(|key| self.world.get(&key));
        found.is_some_and(|known| !known.object.is_deleting())
    }

    /// A fresh name for an object of this kind.
    pub fn free_name(&self, kind: &Kind, namespace: &str, prefix: &str) -> String {
        loop {
            let name = api::names::generate(prefix, self.random.next());
            if self.world.get(&ObjectKey::new(kind, namespace, &name)).is_none() {
                return name;
            }
        }
    }
}

pub fn namespace_key(namespace: &str) -> Option<ObjectKey> {
    Kind::by_name("Namespace").map(|kind| ObjectKey::new(kind, "", namespace))
}

/// Something to tell people, once the step has been applied.
#[derive(Debug, Clone)]
pub struct EventRecord {
    pub kind: &'static Kind,
    pub object: Object,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// One write of a step.
#[derive(Debug, Clone)]
pub enum Write {
    Put(&'static Kind, Object),
    Delete,
}

/// What a decision wants.
#[derive(Debug, Default)]
pub struct Step {
    pub writes: Vec<(ObjectKey, Write)>,
    /// Objects that must still be as they were read.
    pub reads: Vec<ObjectKey>,
    /// Keys beside objects to be removed: allocations, old events.
    pub releases: Vec<String>,
    pub events: Vec<EventRecord>,
    /// Look at it again then.
    pub wake: Option<Timestamp>,
}

impl Step {
    pub fn put(&mut self, key: ObjectKey, kind: &'static Kind, object: Object) {
        self.writes.push((key, Write::Put(kind, object)));
    }

    /// Puts an object that differs from the known one.
    pub fn put_changed(&mut self, key: &ObjectKey, known: &Known, object: Object) {
        if object != known.object {
            self.put(key.clone(), known.kind, object);
        }
    }

    pub fn delete(&mut self, key: ObjectKey) {
        self.writes.push((key, Write::Delete));
    }

    pub fn read(&mut self, key: ObjectKey) {
        self.reads.push(key);
    }

    pub fn read_namespace(&mut self, namespace: &str) {
        self.reads.extend(namespace_key(namespace));
    }

    /// The earliest of all wishes counts.
    pub fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }

    pub fn tell(&mut self, known: (&'static Kind, &Object), reason: &'static str, message: String) {
        self.events.push(record(known, false, reason, message));
    }

    pub fn warn(&mut self, known: (&'static Kind, &Object), reason: &'static str, message: String) {
        self.events.push(record(known, true, reason, message));
    }
}

/// Only the metadata: an event names its object and needs no more of it.
fn record(
    known: (&'static Kind, &Object),
    warning: bool,
    reason: &'static str,
    message: String,
) -> EventRecord {
    let object = Object(serde_json::json!({ "metadata": known.1.0["metadata"] }));
    EventRecord { kind: known.0, object, warning, reason, message }
}
