//! Whether a job is over, and how it says so.
//!
//! Decides completion and failure (back-off limit, deadline). Must not make or remove pods.

use api::Object;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Pods;
use crate::control::conditions::{self, Condition};
use crate::control::index::Known;
use crate::control::step::{Context, Step};

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    BackoffLimitExceeded,
    DeadlineExceeded,
}

/// When a job ended, if it has.
pub fn ended_at(job: &Object) -> Option<Timestamp> {
    let ended = ["Complete", "Failed"].iter().find(|name| conditions::holds(job, name))?;
    let since = conditions::get(job, ended)?["lastTransitionTime"].as_str()?;
    Some(since.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Whether it is over now; asks to be woken at the deadline.
pub fn judge(cx: &Context<'_>, job: &Object, pods: &Pods<'_>, step: &mut Step) -> Option<Outcome> {
    let number = |field: &str| job.0.pointer(&format!("/spec/{field}")).and_then(Value::as_i64);
    let done = match number("completions") {
        Some(completions) => pods.succeeded >= completions,
        None => pods.succeeded > 0 && pods.active.is_empty(),
    };
    if done {
        return Some(Outcome::Complete);
    }
    let limit = number("backoffLimit").unwrap_or(6);
    if pods.failed > limit || (pods.restarts > 0 && pods.restarts + pods.failed > limit) {
        return Some(Outcome::BackoffLimitExceeded);
    }
    let started = job.text("/status/startTime").parse::<Timestamp>().ok()?;
    let end = started.checked_add(SignedDuration::from_secs(number("activeDeadlineSeconds")?)).ok()?;
    if end <= cx.now.wall {
        return Some(Outcome::DeadlineExceeded);
    }
    step.wake_at(end);
    None
}

impl Outcome {
    /// Writes it into the job, and tells people.
    pub fn write(self, cx: &Context<'_>, job: &Known, object: &mut Object, step: &mut Step) {
        let (name, reason, message) = match self {
            Outcome::Complete => {
                ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
            }
            Outcome::BackoffLimitExceeded => {
                ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            }
            Outcome::DeadlineExceeded => {
                ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
            }
        };
        conditions::set(object, &Condition { name, status: "True", reason, message }, &cx.time());
        if self == Outcome::Complete {
            object.set(&["status", "completionTime"], json!(cx.time()));
            step.tell((job.kind, &job.object), "Completed", "Job completed".into());
        } else {
            step.warn((job.kind, &job.object), reason, message.into());
        }
    }
}
