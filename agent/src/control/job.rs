//! Jobs: pods that run to their end, and are tried again when they fail.
//!
//! Decides how many pods run, when a failed one is followed by the next, and when the job is over ([`outcome`]). Pods that ended are
//! kept. A pod lost with its node is replaced without counting as a failure. Must not place pods.

mod outcome;

use api::Object;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::conditions::{self, Condition};
use super::index::Known;
use super::key::ObjectKey;
use super::pod::{Phase, PodFacts};
use super::step::{Context, Step};
use super::{nodes, removal, template};

/// First wait after a failure; it doubles with each further one.
const BACK_OFF_FIRST: i64 = 10;
const BACK_OFF_MOST: i64 = 360;
/// Pods made in one step.
const BURST: i64 = 250;

type Pod<'a> = (&'a ObjectKey, &'a Known, &'a PodFacts);

/// A job's pods, sorted.
#[derive(Default)]
struct Pods<'a> {
    active: Vec<Pod<'a>>,
    succeeded: i64,
    failed: i64,
    ready: i64,
    terminating: i64,
    /// Containers started again in pods that still run.
    restarts: i64,
    /// Failures since the last success, and when the last of them was.
    in_a_row: u32,
    last_failure: Option<Timestamp>,
}

/// Brings one job's pods and status in line with its spec.
pub fn reconcile(cx: &Context<'_>, key: &ObjectKey) -> Step {
    let mut step = Step::default();
    let Some(job) = cx.known(key) else { return step };
    let mut pods = gather(cx, job, &mut step);
    let mut object = job.object.clone();
    if outcome::ended_at(&job.object).is_some() {
        stop(cx, &pods, &mut step);
        expire(cx, key, job, &mut step);
    } else if !job.object.is_deleting() {
        start_clock(cx, &mut object);
        advance(cx, job, &mut object, &mut pods, &mut step);
    }
    if step.writes.iter().any(|(written, _)| written == key) {
        return step;
    }
    let made = step.writes.iter().filter(|(key, _)| cx.known(key).is_none()).count() as i64;
    let left =
        if outcome::ended_at(&object).is_some() || is_suspended(job) { 0 } else { pods.active.len() as i64 };
    count(&mut object, &pods, left + made);
    if object == job.object && !step.writes.is_empty() {
        step.read(key.clone());
    }
    step.put_changed(key, job, object);
    step
}

/// Sorts the pods; those lost with their node are removed and do not count.
fn gather<'a>(cx: &Context<'a>, job: &'a Known, step: &mut Step) -> Pods<'a> {
    let mut pods = Pods::default();
    let (mut failures, mut last_success) = (Vec::new(), None);
    for (key, known, pod) in cx.world.pods_of(job.object.uid()) {
        match pod.phase {
            _ if nodes::is_forfeit(cx, pod) => nodes::give_up(cx, (key, known, pod), step),
            Phase::Succeeded => {
                pods.succeeded += 1;
                last_success = last_success.max(Some(finished(&known.object)));
            }
            Phase::Failed => {
                pods.failed += 1;
                failures.push(finished(&known.object));
            }
            _ if pod.deleting => pods.terminating += 1,
            _ => {
                pods.ready += i64::from(pod.is_ready());
                pods.restarts += restarts(&known.object);
                pods.active.push((key, known, pod));
            }
        }
    }
    failures.retain(|at| last_success.is_none_or(|success| *at > success));
    pods.in_a_row = u32::try_from(failures.len()).unwrap_or(u32::MAX);
    pods.last_failure = failures.into_iter().max();
    // What was counted once stays counted, also when somebody removes the pod.
    pods.succeeded = pods.succeeded.max(job.object.int("/status/succeeded"));
    pods.failed = pods.failed.max(job.object.int("/status/failed"));
    pods
}

fn restarts(pod: &Object) -> i64 {
    pod.list("/status/containerStatuses").iter().filter_map(|status| status["restartCount"].as_i64()).sum()
}

/// When a pod ended: its last container's end, else the last change of its readiness.
fn finished(pod: &Object) -> Timestamp {
    let statuses = pod.list("/status/containerStatuses").iter();
    let ends =
        statuses.filter_map(|status| status.pointer("/state/terminated/finishedAt")?.as_str()?.parse().ok());
    let ready = || conditions::get(pod, "Ready")?["lastTransitionTime"].as_str()?.parse().ok();
    let made = || pod.text("/metadata/creationTimestamp").parse().ok();
    ends.max().or_else(ready).or_else(made).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn start_clock(cx: &Context<'_>, job: &mut Object) {
    let suspended = job.0.pointer("/spec/suspend") == Some(&json!(true));
    match (suspended, job.text("/status/startTime").is_empty()) {
        (false, true) => job.set(&["status", "startTime"], json!(cx.time())),
        (true, false) => drop(job.0["status"].as_object_mut().and_then(|status| status.remove("startTime"))),
        _ => {}
    }
}

fn is_suspended(job: &Known) -> bool {
    job.object.0.pointer("/spec/suspend") == Some(&json!(true))
}

fn advance(cx: &Context<'_>, job: &Known, object: &mut Object, pods: &mut Pods<'_>, step: &mut Step) {
    suspension(cx, job, object, step);
    let outcome = outcome::judge(cx, object, pods, step);
    if let Some(outcome) = outcome {
        stop(cx, pods, step);
        return outcome.write(cx, job, object, step);
    }
    if is_suspended(job) {
        return stop(cx, pods, step);
    }
    let missing = wanted(object, pods) - pods.active.len() as i64;
    match missing {
        1.. => make(cx, job, pods, missing.min(BURST), step),
        0 => {}
        _ => {
            let surplus = usize::try_from(missing.unsigned_abs()).unwrap_or(usize::MAX);
            pods.active.sort_by_key(|(key, _, pod)| (pod.is_ready(), (*key).clone()));
            let extra: Vec<Pod<'_>> = pods.active.drain(..surplus.min(pods.active.len())).collect();
            extra.into_iter().for_each(|pod| stop_one(cx, pod, step));
        }
    }
}

/// How many pods should run now.
fn wanted(job: &Object, pods: &Pods<'_>) -> i64 {
    let parallelism = job.0.pointer("/spec/parallelism").and_then(Value::as_i64).unwrap_or(1);
    match job.0.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(completions) => parallelism.min((completions - pods.succeeded).max(0)),
        // A work queue: once one has found it empty, no further ones are started.
        None if pods.succeeded > 0 => pods.active.len() as i64,
        None => parallelism,
    }
}

fn make(cx: &Context<'_>, job: &Known, pods: &Pods<'_>, missing: i64, step: &mut Step) {
    let ready_at = pods.last_failure.and_then(|last| last.checked_add(back_off(pods.in_a_row)).ok());
    if let Some(at) = ready_at.filter(|at| *at > cx.now.wall) {
        return step.wake_at(at);
    }
    if !cx.is_open(job.object.namespace()) {
        return;
    }
    step.read_namespace(job.object.namespace());
    for pod in (0..missing).filter_map(|_| template::pod(cx, job)) {
        let text = format!("Created pod: {}", pod.object.name());
        step.tell((job.kind, &job.object), "SuccessfulCreate", text);
        step.put(pod.key, pod.kind, pod.object);
    }
}

/// Wait after so many failures in a row.
fn back_off(failures: u32) -> SignedDuration {
    let doublings = failures.saturating_sub(1).min(16);
    SignedDuration::from_secs(BACK_OFF_FIRST.saturating_mul(1 << doublings).min(BACK_OFF_MOST))
}

fn stop(cx: &Context<'_>, pods: &Pods<'_>, step: &mut Step) {
    pods.active.iter().for_each(|pod| stop_one(cx, *pod, step));
}

fn stop_one(cx: &Context<'_>, (key, known, _): Pod<'_>, step: &mut Step) {
    removal::remove(cx, key, known, step);
}

fn suspension(cx: &Context<'_>, job: &Known, object: &mut Object, step: &mut Step) {
    let (status, reason, message) = match (is_suspended(job), conditions::holds(object, "Suspended")) {
        (true, false) => ("True", "JobSuspended", "Job suspended"),
        (false, true) => ("False", "JobResumed", "Job resumed"),
        _ => return,
    };
    step.tell(
        (job.kind, &job.object),
        if status == "True" { "Suspended" } else { "Resumed" },
        message.into(),
    );
    conditions::set(object, &Condition { name: "Suspended", status, reason, message }, &cx.time());
}

/// A finished job goes after its time to live; its pods follow as garbage.
fn expire(cx: &Context<'_>, key: &ObjectKey, job: &Known, step: &mut Step) {
    let Some(seconds) = job.object.0.pointer("/spec/ttlSecondsAfterFinished").and_then(Value::as_i64) else {
        return;
    };
    let end =
        outcome::ended_at(&job.object).and_then(|at| at.checked_add(SignedDuration::from_secs(seconds)).ok());
    match end {
        Some(end) if end > cx.now.wall => step.wake_at(end),
        Some(_) if !job.object.is_deleting() => removal::remove(cx, key, job, step),
        _ => {}
    }
}

fn count(job: &mut Object, pods: &Pods<'_>, active: i64) {
    for (field, count) in [("active", active), ("succeeded", pods.succeeded), ("failed", pods.failed)] {
        match count {
            0 => drop(job.0["status"].as_object_mut().and_then(|status| status.remove(field))),
            count => job.set(&["status", field], json!(count)),
        }
    }
    job.set(&["status", "ready"], json!(pods.ready.min(active)));
    job.set(&["status", "terminating"], json!(pods.terminating));
}
