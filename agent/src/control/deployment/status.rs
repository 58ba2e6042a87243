//! What a deployment says of itself: counts, and the conditions that `kubectl rollout status` reads.
//!
//! Decides whether it is available, progresses, is complete or has stalled. Must not scale anything.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Rollout;
use super::rolling::Bounds;
use crate::control::conditions::{self, Condition};
use crate::control::step::Step;

/// The counts of a status.
struct Counts {
    /// Active pods of all sets, of the present one, ready, available.
    all: i64,
    updated: i64,
    ready: i64,
    available: i64,
    unavailable: i64,
}

/// Writes the status into the deployment.
pub fn write(rollout: &mut Rollout<'_>, step: &mut Step) {
    let counts = count(rollout, step);
    available(rollout, &counts);
    progressing(rollout, &counts, step);
    let generation = rollout.object.generation();
    rollout.object.set(&["status", "observedGeneration"], json!(generation));
    for (field, count) in [
        ("replicas", counts.all),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", counts.unavailable),
    ] {
        match count {
            0 => drop(rollout.object.0["status"].as_object_mut().and_then(|status| status.remove(field))),
            count => rollout.object.set(&["status", field], json!(count)),
        }
    }
}

fn count(rollout: &Rollout<'_>, step: &mut Step) -> Counts {
    let sum = |of: fn(&super::Set) -> i64| rollout.sets.iter().map(of).sum::<i64>();
    let next = rollout.sets.iter().filter_map(|set| set.tally.next).min();
    if let Some(at) = next {
        step.wake_at(at);
    }
    let available = sum(|set| set.tally.available);
    Counts {
        all: sum(|set| set.tally.active),
        updated: rollout.current.map_or(0, |at| rollout.sets[at].tally.active),
        ready: sum(|set| set.tally.ready),
        available,
        unavailable: (sum(super::Set::replicas) - available).max(0),
    }
}

fn available(rollout: &mut Rollout<'_>, counts: &Counts) {
    let needed = rollout.replicas() - Bounds::of(&rollout.object.0["spec"]).unavailable;
    let condition = if counts.available >= needed {
        Condition {
            name: "Available",
            status: "True",
            reason: "MinimumReplicasAvailable",
            message: "Deployment has minimum availability.",
        }
    } else {
        Condition {
            name: "Available",
            status: "False",
            reason: "MinimumReplicasUnavailable",
            message: "Deployment does not have minimum availability.",
        }
    };
    set(rollout, &condition, true);
}

fn set(rollout: &mut Rollout<'_>, condition: &Condition<'_>, times: bool) {
    let time = rollout.cx.time();
    let fields: &[&str] = if times { &["lastUpdateTime"] } else { &[] };
    conditions::set_with(&mut rollout.object, condition, &time, fields);
}

fn progressing(rollout: &mut Rollout<'_>, counts: &Counts, step: &mut Step) {
    let Some(deadline) = rollout.object.0.pointer("/spec/progressDeadlineSeconds").and_then(Value::as_i64)
    else {
        return;
    };
    let Some(current) = rollout.current else { return };
    let name = rollout.sets[current].object.name().to_string();
    let say = |status: &'static str, reason: &'static str, verb: &str| {
        (status, reason, format!("ReplicaSet \"{name}\" {verb}."))
    };
    let (status, reason, message) = match () {
        () if is_complete(rollout, counts) => {
            say("True", "NewReplicaSetAvailable", "has successfully progressed")
        }
        () if was_complete(rollout, counts) => return,
        () if rollout.is_paused() => ("Unknown", "DeploymentPaused", "Deployment is paused".to_string()),
        () if has_moved(rollout, counts) => {
            restart_clock(rollout);
            say("True", "ReplicaSetUpdated", "is progressing")
        }
        () => match stalled_at(rollout, deadline) {
            Some(at) if at > rollout.cx.now.wall => return step.wake_at(at),
            _ => say("False", "ProgressDeadlineExceeded", "has timed out progressing"),
        },
    };
    set(rollout, &Condition { name: "Progressing", status, reason, message: &message }, true);
    if let Some(at) = stalled_at(rollout, deadline).filter(|_| reason == "ReplicaSetUpdated") {
        step.wake_at(at);
    }
}

fn is_complete(rollout: &Rollout<'_>, counts: &Counts) -> bool {
    let wanted = rollout.replicas();
    !rollout.created && counts.updated == wanted && counts.all == wanted && counts.available == wanted
}

/// Once complete it stays so while the template does: a lost pod is not a rollout.
fn was_complete(rollout: &Rollout<'_>, counts: &Counts) -> bool {
    let reason =
        conditions::get(&rollout.object, "Progressing").and_then(|condition| condition["reason"].as_str());
    !rollout.created
        && reason == Some("NewReplicaSetAvailable")
        && counts.updated == counts.all
        && counts.all > 0
}

fn has_moved(rollout: &Rollout<'_>, counts: &Counts) -> bool {
    let old = |field: &str| rollout.object.int(&format!("/status/{field}"));
    let (old_updated, old_rest) = (old("updatedReplicas"), old("replicas") - old("updatedReplicas"));
    let seen = conditions::get(&rollout.object, "Progressing");
    let was_stalled_or_paused = seen.is_none_or(|condition| condition["reason"] == "DeploymentPaused");
    rollout.created
        || was_stalled_or_paused
        || rollout.object.int("/status/observedGeneration") != rollout.object.generation()
        || counts.updated > old_updated
        || counts.all - counts.updated < old_rest
        || counts.ready > old("readyReplicas")
        || counts.available > old("availableReplicas")
}

/// Progress shows in the condition's time, which is written together with the counts that moved.
fn restart_clock(rollout: &mut Rollout<'_>) {
    let time = rollout.cx.time();
    let list = rollout.object.0.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten().filter(|condition| condition["type"] == "Progressing") {
        condition["lastUpdateTime"] = json!(time);
    }
}

fn stalled_at(rollout: &Rollout<'_>, deadline: i64) -> Option<Timestamp> {
    let condition = conditions::get(&rollout.object, "Progressing")?;
    let since: Timestamp = condition["lastUpdateTime"].as_str()?.parse().ok()?;
    since.checked_add(SignedDuration::from_secs(deadline)).ok()
}
