//! How many replicas each set of a deployment should have now.
//!
//! Decides by surge and unavailability: together never more than replicas + surge, available never fewer than replicas −
//! unavailable through our doing. Must not look at single pods.

use api::validate::workload::share;
use serde_json::Value;

use super::Rollout;

/// The bounds of a rolling update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub surge: i64,
    pub unavailable: i64,
}

impl Bounds {
    pub fn of(spec: &Value) -> Bounds {
        let replicas = spec["replicas"].as_i64().unwrap_or(0);
        if spec["strategy"]["type"] == "Recreate" {
            return Bounds { surge: 0, unavailable: replicas };
        }
        let rolling = &spec["strategy"]["rollingUpdate"];
        let surge = share(&rolling["maxSurge"], replicas, true).unwrap_or(1);
        let unavailable = share(&rolling["maxUnavailable"], replicas, false).unwrap_or(0).min(replicas);
        // Both may round to none; then nothing could ever move.
        Bounds { surge, unavailable: if surge == 0 { unavailable.max(1) } else { unavailable } }
    }
}

/// Sets the replicas of all sets.
pub fn scale(rollout: &mut Rollout<'_>) {
    match (rollout.current, rollout.object.text("/spec/strategy/type")) {
        _ if rollout.is_paused() => follow_paused(rollout),
        (None, _) => {}
        (Some(current), "Recreate") => recreate(rollout, current),
        (Some(current), _) => {
            grow(rollout, current);
            shrink(rollout, current);
        }
    }
}

/// A paused deployment still follows its number of replicas, with the one set that has any.
fn follow_paused(rollout: &mut Rollout<'_>) {
    let mut used: Vec<usize> =
        (0..rollout.sets.len()).filter(|at| rollout.sets[*at].replicas() > 0).collect();
    if used.is_empty() {
        used.extend(rollout.current.or(rollout.sets.len().checked_sub(1)));
    }
    if let [only] = used[..] {
        let replicas = rollout.replicas();
        rollout.sets[only].scale(replicas);
    }
}

fn recreate(rollout: &mut Rollout<'_>, current: usize) {
    let replicas = rollout.replicas();
    let mut all_gone = true;
    for (at, set) in rollout.sets.iter_mut().enumerate() {
        if at != current {
            set.scale(0);
            all_gone &= set.tally.active + set.tally.terminating == 0;
        }
    }
    if all_gone || rollout.sets[current].replicas() > replicas {
        rollout.sets[current].scale(replicas);
    }
}

fn total(rollout: &Rollout<'_>) -> i64 {
    // A set that still has more pods than it should counts with what it has.
    rollout.sets.iter().map(|set| set.replicas().max(set.tally.active)).sum()
}

fn grow(rollout: &mut Rollout<'_>, current: usize) {
    let replicas = rollout.replicas();
    let bounds = Bounds::of(&rollout.object.0["spec"]);
    let room = replicas + bounds.surge - total(rollout);
    let set = &mut rollout.sets[current];
    let now = set.replicas();
    let target = if now > replicas { replicas } else { now + (replicas - now).min(room.max(0)) };
    set.scale(target);
}

/// Takes replicas from the old sets: first those that serve nobody, then as many as may be missing.
fn shrink(rollout: &mut Rollout<'_>, current: usize) {
    let replicas = rollout.replicas();
    let needed = replicas - Bounds::of(&rollout.object.0["spec"]).unavailable;
    let new = &rollout.sets[current];
    let new_missing = (new.replicas() - new.tally.available).max(0);
    let sum: i64 = rollout.sets.iter().map(super::Set::replicas).sum();
    let mut may_go = (sum - needed - new_missing).max(0);
    let old: Vec<usize> = (0..rollout.sets.len()).filter(|at| *at != current).collect();
    for at in &old {
        let set = &mut rollout.sets[*at];
        let useless = (set.replicas() - set.tally.available).clamp(0, may_go);
        set.scale(set.replicas() - useless);
        may_go -= useless;
    }
    let available: i64 = rollout.sets.iter().map(|set| set.tally.available.min(set.replicas())).sum();
    let mut spare = (available - needed).max(0).min(may_go);
    for at in old {
        let set = &mut rollout.sets[at];
        let taken = set.replicas().min(spare);
        set.scale(set.replicas() - taken);
        spare -= taken;
    }
}
