//! What clients demand at the end of a run: all that was acknowledged is there, hot keys were registers, and closed sessions ended.
//!
//! Decides from what was answered and what watchers were told. Must not hurt anything.

use super::*;
use raft_store::check::linear::is_linearizable;

impl Clients {
    /// Everything acknowledged is there, made once, at the revision that was told, whole. Each hot key was a register.
    pub fn verify(&self, world: &World, view: &View) {
        let counts = world.checks.counts();
        for Acked { key, revision, changes } in &self.acked {
            let entry = view.get(&key.0).unwrap_or_else(|| panic!("C3: acknowledged {key:?} is lost"));
            assert_eq!(
                (entry.create_revision(), entry.mod_revision()),
                (*revision, *revision),
                "A1: {key:?}"
            );
            if let Some(changed) = world.checks.changed_at(*revision) {
                assert!(
                    changed.contains(&key) && (*changes..=2).contains(&changed.len()),
                    "A4: a transaction was split at {revision}: {changed:?}"
                );
            }
        }
        for (key, count) in counts {
            assert!(count == 1 || !key.0.starts_with(b"op/"), "A3: {key:?} was applied more than once");
        }
        for (hot, operations) in &self.hot {
            let mut all = operations.clone();
            // What was never answered may have happened or not.
            let unanswered = self.open.iter().chain(&self.undecided).filter(|r| r.hot() == Some(*hot));
            all.extend(unanswered.filter_map(Request::as_unknown));
            assert!(is_linearizable(&all), "A1: the history of hot/{hot} is not linearizable: {all:?}");
        }
        self.times_are_over(view);
        self.sessions_ended(world);
    }

    /// C3: what was written last to stay is there. L1: nothing else is.
    fn times_are_over(&self, view: &View) {
        let left = crate::times::left(view);
        assert!(left.is_empty(), "L1: {left:?} are past their time and still there");
        for (brief, (revision, least, seconds)) in &self.brief {
            let key = crate::times::key(*brief);
            let entry = view.get(&key.0);
            // Later ones are of closed sessions, and were never answered.
            let is_there = entry.is_some_and(|entry| entry.mod_revision() >= *least);
            let overtaken = self.undecided.iter().any(|request| request.writes_for_a_time(*brief));
            assert!(
                *seconds > 0 || is_there || overtaken,
                "C3: {key:?} was written to stay at {revision} and is {entry:?}"
            );
        }
    }

    /// A3: nothing of a session was applied after it had ended.
    fn sessions_ended(&self, world: &World) {
        for (revision, key, after) in world.checks.changes() {
            let Some(ended) = writer(key, after).and_then(|session| self.ended.get(&session)) else {
                continue;
            };
            assert!(revision <= *ended, "A3: {key:?} at {revision} is of a session that ended at {ended}");
        }
    }
}

impl Request {
    fn writes_for_a_time(&self, wanted: u64) -> bool {
        matches!(self.wish, Wish::Brief { brief, seconds: 1.. } if brief == wanted)
    }
}

/// Whose session wrote it, if that can be told.
fn writer(key: &Key, after: Option<&Entry>) -> Option<SessionId> {
    let key = std::str::from_utf8(&key.0).ok()?;
    let number = |text: &str| text.parse::<u64>().ok();
    if let Some(own) = key.strip_prefix("op/") {
        return own.split('/').next().and_then(number).map(SessionId);
    }
    key.strip_prefix("hot/")?;
    std::str::from_utf8(after?.value()).ok().and_then(number).map(|value| SessionId(value >> 32))
}
