//! Decides what each command does to the state. Deterministic: the same commands in the same order give the same
//! state, answers and hash on every replica and version.
//! Must not fail: whatever is wrong with a command becomes its answer.

use std::collections::BTreeSet;

use super::sessions::{Seen, Session};
use super::{Change, Entry, State};
use crate::command::{Command, Compare, Expect, Key, Op, Outcome, Transaction, Value};
use crate::ids::{Epoch, Revision, SessionId};
use crate::version::Version;

impl State {
    /// Applies the command of the entry (index, term), whose bytes were `data`.
    pub(crate) fn apply(&mut self, index: u64, term: u64, command: Command, data: &[u8]) -> Outcome {
        let outcome = match command {
            Command::Epoch { term } => self.begin_epoch(term),
            Command::OpenSession { session } => self.open_session(session),
            Command::CloseSession { session } => self.close_session(session),
            Command::Transact { session, sequence, epoch, transaction } => {
                self.transact_once(session, sequence, epoch, &transaction)
            }
            Command::Compact { floor, epoch } => self.compact(floor, epoch),
            Command::Expire { keys, epoch } => self.expire(&keys, epoch),
            Command::SetVersion { version, epoch } => self.set_version(version, epoch),
        };
        self.mark_applied(index, term, data);
        outcome
    }

    fn begin_epoch(&mut self, term: u64) -> Outcome {
        self.epoch = self.epoch.max(Epoch(term));
        self.unchanged()
    }

    fn open_session(&mut self, session: SessionId) -> Outcome {
        if !self.sessions.contains_key(&session) {
            self.sessions.insert(session, Session::default());
        }
        self.unchanged()
    }

    fn close_session(&mut self, session: SessionId) -> Outcome {
        if !planted!(ClosedSessionLives) {
            self.sessions.remove(&session);
        }
        self.unchanged()
    }

    fn compact(&mut self, floor: Revision, epoch: Epoch) -> Outcome {
        if epoch != self.epoch {
            return Outcome::StaleEpoch { current: self.epoch };
        }
        self.history.compact(floor.min(self.revision));
        self.unchanged()
    }

    fn expire(&mut self, keys: &[(Key, Revision)], epoch: Epoch) -> Outcome {
        if epoch != self.epoch {
            return Outcome::StaleEpoch { current: self.epoch };
        }
        let unchanged = |key: &Key, revision: &Revision| {
            let is_same = |entry: &Entry| entry.mod_revision() == *revision || planted!(ExpireUnchecked);
            self.ttls.contains_key(key) && self.get(&key.0).is_some_and(is_same)
        };
        let gone = keys.iter().filter(|(key, revision)| unchanged(key, revision));
        let ops = gone.map(|(key, _)| Op::Delete { key: key.clone() }).collect();
        self.transact(&Transaction { compares: Vec::new(), ops })
    }

    fn set_version(&mut self, version: Version, epoch: Epoch) -> Outcome {
        if epoch != self.epoch {
            return Outcome::StaleEpoch { current: self.epoch };
        }
        self.version = self.version.max(version);
        self.unchanged()
    }

    fn transact_once(
        &mut self,
        session: SessionId,
        sequence: u64,
        epoch: Option<Epoch>,
        transaction: &Transaction,
    ) -> Outcome {
        let seen = match self.sessions.get(&session) {
            Some(open) => open.seen(sequence),
            None => return Outcome::UnknownSession,
        };
        match seen {
            Seen::Answered(_) if planted!(AppliedTwice) => {}
            Seen::Answered(answer) => return answer,
            Seen::Forgotten => return Outcome::SequenceBelowWindow,
            Seen::Never => {}
        }
        let answer = match epoch {
            Some(epoch) if epoch != self.epoch && !planted!(EpochUnchecked) => {
                Outcome::StaleEpoch { current: self.epoch }
            }
            _ => self.transact(transaction),
        };
        if let Some(open) = self.sessions.get_mut(&session) {
            open.record(sequence, answer.clone());
        }
        answer
    }

    pub(crate) fn transact(&mut self, transaction: &Transaction) -> Outcome {
        let fails = |compare: &Compare| !self.holds(compare) && !planted!(ComparesHold);
        if let Some(failed) = transaction.compares.iter().position(fails) {
            let key = transaction.compares[failed].key.clone();
            let actual = self.get(&key.0).map(Entry::mod_revision);
            return Outcome::CompareFailed { index: failed as u32, key, actual };
        }
        let revision = Revision(self.revision.0 + 1);
        let before = self.history.len();
        let mut revision = revision;
        for (at, op) in last_of_each_key(&transaction.ops).into_iter().enumerate() {
            revision.0 += u64::from(planted!(TransactionSplit) && at > 0);
            self.write(op, revision);
        }
        if self.history.len() == before {
            return self.unchanged();
        }
        self.revision = revision;
        self.history.trim();
        Outcome::Applied { revision, changed: true }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match (&compare.expect, self.get(&compare.key.0)) {
            (Expect::Absent, found) => found.is_none(),
            (Expect::Present, found) => found.is_some(),
            (Expect::ModRevision(expected), found) => {
                found.is_some_and(|entry| entry.mod_revision() == *expected)
            }
            (Expect::CreateRevision(expected), found) => {
                found.is_some_and(|entry| entry.create_revision() == *expected)
            }
        }
    }

    fn write(&mut self, op: &Op, revision: Revision) {
        match op {
            // A time that begins or ends is a change, with the same bytes too: what counts it goes by revisions.
            Op::Put { key, value } => {
                let same = self.ttls.remove(key).is_none();
                self.put(key, value, same, revision);
            }
            Op::PutFor { key, value, seconds } => {
                self.ttls.insert(key.clone(), *seconds);
                self.put(key, value, false, revision);
            }
            Op::Delete { key } => self.delete(key, revision),
        }
    }

    /// Sets a key; the same value again is no change, if `skip_equal`.
    fn put(&mut self, key: &Key, value: &Value, skip_equal: bool, revision: Revision) {
        let before = self.get(&key.0).cloned();
        if skip_equal && before.as_ref().is_some_and(|entry| *entry.value() == *value.0) {
            return;
        }
        let mut create_revision = before.as_ref().map_or(revision, Entry::create_revision);
        if planted!(CreateRevisionKept) && before.is_none() {
            let old = self.history.all_from(0).filter(|change| change.key() == &*key.0).last();
            create_revision =
                old.and_then(|change| change.before.as_ref()).map_or(revision, Entry::create_revision);
        }
        let after = Entry::new(&key.0, &value.0, create_revision, revision);
        if let Some(before) = &before {
            self.content.take(before);
        }
        self.content.put(&after);
        self.objects.insert(after.clone());
        self.history.push(Change { revision, before, after: Some(after) });
    }

    fn delete(&mut self, key: &Key, revision: Revision) {
        self.ttls.remove(key);
        if let Some(before) = self.objects.remove(&key.0) {
            self.content.take(&before);
            if planted!(DeleteNotWatched) {
                return;
            }
            self.history.push(Change { revision, before: Some(before), after: None });
        }
    }

    fn unchanged(&self) -> Outcome {
        Outcome::Applied { revision: self.revision, changed: false }
    }
}

fn last_of_each_key(ops: &[Op]) -> Vec<&Op> {
    let mut later = BTreeSet::new();
    let mut kept: Vec<&Op> = ops.iter().rev().filter(|op| later.insert(op.key())).collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests;
