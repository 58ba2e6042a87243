//! Decides when keys with a time to live go: the leader counts from when it applied them, anew from its election, and proposes
//! their removal at the revision it knows. Must not remove anything itself, and must not be trusted as a lock: a new leader counts anew.

use std::collections::{BTreeMap, BTreeSet};

use super::Replica;
use crate::command::{Command, Key};
use crate::disk::Disk;
use crate::ids::{Millis, Revision};
use crate::limits;
use crate::state::{Change, State};
use crate::timing;

/// What a leader counts. Empty elsewhere.
#[derive(Default)]
pub(super) struct Expiry {
    /// Changes up to here are counted; `None` when this replica does not lead.
    seen: Option<Revision>,
    looked: Millis,
    due: BTreeMap<Key, (Millis, Revision)>,
    queue: BTreeSet<(Millis, Key)>,
}

impl Expiry {
    /// Counts what is new and takes out what is due: keys, and the revisions they go at.
    fn look(&mut self, now: Millis, state: &State) -> Vec<(Key, Revision)> {
        if now.since(self.looked) < timing::EXPIRY_LOOK_MS && self.seen.is_some() {
            return Vec::new();
        }
        self.looked = now;
        let changed = self.seen.and_then(|seen| {
            let changes = state.history.after(seen).ok()?;
            let matters = |key: &&[u8]| state.ttls.contains_key(*key) || self.due.contains_key(*key);
            let keys = changes.map(Change::key).filter(matters);
            Some(keys.map(Key::from).collect::<Vec<Key>>())
        });
        let keys = match changed {
            Some(keys) => keys,
            None => {
                *self = Expiry { looked: now, ..Expiry::default() };
                let counted = if planted!(OldTimesUncounted) { 0 } else { state.ttls.len() };
                state.ttls.keys().take(counted).cloned().collect()
            }
        };
        self.seen = Some(state.revision);
        keys.into_iter().for_each(|key| self.count(now, state, key));
        self.take_due(now)
    }

    fn count(&mut self, now: Millis, state: &State, key: Key) {
        let entry = state.ttls.get(&key).zip(state.get(&key.0));
        let known = self.due.get(&key);
        if known.map(|(_, revision)| *revision) == entry.map(|(_, entry)| entry.mod_revision()) {
            return;
        }
        let before = self.due.remove(&key).map(|(at, _)| at);
        if let Some(at) = before {
            self.queue.remove(&(at, key.clone()));
        }
        if let Some((seconds, entry)) = entry {
            let anew = Millis(now.0 + u64::from(*seconds) * 1_000);
            let at = before.filter(|_| planted!(TimeNotCountedAnew)).unwrap_or(anew);
            self.due.insert(key.clone(), (at, entry.mod_revision()));
            self.queue.insert((at, key));
        }
    }

    /// What was proposed and is not gone by the next look, because the proposal was lost, is proposed again.
    fn take_due(&self, now: Millis) -> Vec<(Key, Revision)> {
        let due = self.queue.iter().take_while(|(at, _)| *at <= now).take(limits::EXPIRED_AT_ONCE);
        due.filter_map(|(_, key)| self.due.get(key).map(|(_, revision)| (key.clone(), *revision))).collect()
    }
}

impl<D: Disk> Replica<D> {
    /// Proposes the removal of what is due.
    pub(super) fn expire(&mut self) {
        if !self.is_established() {
            self.expiry = Expiry::default();
            return;
        }
        let keys = self.expiry.look(self.now, &self.state);
        if !keys.is_empty() {
            self.propose_own(&Command::Expire { keys, epoch: self.state.epoch });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Op, Transaction};
    use crate::config::Config;
    use crate::effect::Input;
    use crate::ids::{ClusterId, NodeId, ProposalId, SessionId};
    use crate::sim_disk::MemDisk;

    struct Bed {
        replica: Replica<MemDisk>,
        disk: MemDisk,
        now: u64,
        sequence: u64,
    }

    fn config() -> Config {
        Config::new(NodeId(1), ClusterId([1; 16]), 1)
    }

    impl Bed {
        fn new() -> Bed {
            let disk = MemDisk::new();
            let replica = Replica::create_first(disk.clone(), config()).unwrap();
            let mut bed = Bed { replica, disk, now: 0, sequence: 0 };
            bed.run(100);
            bed.propose(Command::OpenSession { session: SessionId(1) });
            bed
        }

        fn propose(&mut self, command: Command) {
            self.replica.handle(Millis(self.now), Input::Propose { id: ProposalId(self.now), command });
            self.replica.advance(Millis(self.now)).unwrap();
        }

        fn put(&mut self, value: &str, seconds: Option<u32>) {
            self.sequence += 1;
            let (key, value) = ("k".into(), value.into());
            let op = match seconds {
                Some(seconds) => Op::PutFor { key, value, seconds },
                None => Op::Put { key, value },
            };
            let transaction = Transaction { compares: vec![], ops: vec![op] };
            let sequence = self.sequence;
            self.propose(Command::Transact { session: SessionId(1), sequence, epoch: None, transaction });
        }

        fn run(&mut self, milliseconds: u64) {
            let end = self.now + milliseconds;
            while self.now < end {
                self.now += timing::TICK_MS;
                self.replica.handle(Millis(self.now), Input::Tick);
                self.replica.advance(Millis(self.now)).unwrap();
            }
        }

        fn there(&self) -> bool {
            self.replica.view().get(b"k").is_some()
        }
    }

    #[test]
    fn a_key_goes_when_its_time_is_over_and_not_before() {
        let mut bed = Bed::new();
        bed.put("v", Some(10));
        bed.run(9_000);
        assert!(bed.there());
        bed.run(3_000);
        assert!(!bed.there());
        let revision = bed.replica.view().revision();
        bed.run(60_000);
        assert_eq!(bed.replica.view().revision(), revision, "at rest nothing is written");
    }

    #[test]
    fn a_change_counts_anew_and_a_plain_put_stays() {
        let mut bed = Bed::new();
        bed.put("v", Some(10));
        bed.run(8_000);
        bed.put("w", Some(10));
        bed.run(8_000);
        assert!(bed.there());
        bed.put("x", None);
        bed.run(60_000);
        assert!(bed.there());
    }

    #[test]
    fn the_same_bytes_count_anew_end_a_time_and_begin_one() {
        let mut bed = Bed::new();
        bed.put("v", Some(10));
        bed.run(8_000);
        bed.put("v", Some(10));
        bed.run(8_000);
        assert!(bed.there(), "done again it counts anew");
        bed.put("v", None);
        bed.run(60_000);
        assert!(bed.there(), "a plain put was acknowledged: the key stays");
        bed.put("v", Some(10));
        bed.run(12_000);
        assert!(!bed.there(), "a time that begins later counts too");
    }

    #[test]
    fn a_new_leader_counts_anew_also_from_a_snapshot() {
        let mut bed = Bed::new();
        bed.put("v", Some(10));
        bed.run(8_000);
        bed.replica = Replica::open(bed.disk.image(), config()).unwrap();
        bed.run(8_000);
        assert!(bed.there());
        bed.run(4_000);
        assert!(!bed.there());
    }
}
