//! ReplicaSets: as many pods as asked for.
//!
//! Decides how many pods are made and which are removed. Pods and the set's status are written together, comparing the set's
//! revision, so that no plan can take effect twice. Must not place pods.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::index::Known;
use super::key::ObjectKey;
use super::pod::{Phase, PodFacts};
use super::step::{Context, Step};
use super::{nodes, queue, removal, template};

/// Pods made in one step, and the bytes that they may have: the rest follows when these are applied.
const BURST: usize = 250;
const BURST_BYTES: usize = 1 << 20;

type Pod<'a> = (&'a ObjectKey, &'a Known, &'a PodFacts);

/// The pods of an owner, counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Neither ended nor on their way out.
    pub active: i64,
    pub ready: i64,
    pub available: i64,
    /// On their way out, but still there.
    pub terminating: i64,
    /// When another one becomes available.
    pub next: Option<Timestamp>,
}

/// Counts the pods of an owner; those on lost nodes are not ready whatever they say.
pub fn tally(cx: &Context<'_>, uid: &str, min_ready_seconds: i64) -> Tally {
    let mut tally = Tally::default();
    for (_, _, pod) in cx.world.pods_of(uid) {
        tally.terminating += i64::from(pod.deleting && !pod.ended());
        if !pod.is_active() {
            continue;
        }
        tally.active += 1;
        if !pod.is_ready() || nodes::is_lost(cx.world, &pod.node) {
            continue;
        }
        tally.ready += 1;
        match pod.available_from(min_ready_seconds) {
            Some(at) if at > cx.now.wall => tally.next = Some(tally.next.map_or(at, |next| next.min(at))),
            _ => tally.available += 1,
        }
    }
    tally
}

/// Brings one set's pods and status in line with its spec.
pub fn reconcile(cx: &Context<'_>, key: &ObjectKey) -> Step {
    let mut step = Step::default();
    let Some(set) = cx.known(key) else { return step };
    let made = if set.object.is_deleting() { 0 } else { balance(cx, set, &mut step) };
    let tally = after(cx, set, &step, made);
    if let Some(at) = tally.next {
        step.wake_at(at);
    }
    let mut kept = set.object.clone();
    kept.0["status"] = status(set, tally);
    // Also when the status says nothing new: whoever makes or removes pods writes the set, or is compared with it.
    if kept == set.object && !step.writes.is_empty() {
        step.read(key.clone());
    }
    step.put_changed(key, set, kept);
    step
}

/// Makes or removes pods; answers how many were made.
fn balance(cx: &Context<'_>, set: &Known, step: &mut Step) -> i64 {
    let pods: Vec<Pod<'_>> = cx.world.pods_of(set.object.uid()).collect();
    let (gone, rest): (Vec<Pod<'_>>, Vec<Pod<'_>>) =
        pods.into_iter().partition(|pod| nodes::is_forfeit(cx, pod.2));
    gone.into_iter().for_each(|pod| nodes::give_up(cx, pod, step));
    let active: Vec<Pod<'_>> = rest.into_iter().filter(|pod| pod.2.is_active()).collect();
    let adopted = adopt(cx, set, step);
    let missing = set.object.int("/spec/replicas") - active.len() as i64 - adopted;
    match missing {
        1.. => adopted + make(cx, set, missing as usize, step),
        0 => adopted,
        _ => {
            remove_some(cx, set, active, missing.unsigned_abs() as usize, step);
            adopted
        }
    }
}

/// Takes over pods that the selector matches and nobody controls.
fn adopt(cx: &Context<'_>, set: &Known, step: &mut Step) -> i64 {
    let Some(labels) = set.object.0.pointer("/spec/selector/matchLabels").and_then(Value::as_object) else {
        return 0;
    };
    let found = cx.world.pods_labelled(set.object.namespace(), labels);
    let orphans = found.filter(|(_, pod)| {
        let active = pod.pod.as_ref().is_some_and(PodFacts::is_active);
        active && pod.object.controller_uid().is_none() && queue::selects(set, &pod.object)
    });
    let adopted = orphans.map(|(key, pod)| {
        step.put(key.clone(), pod.kind, template::adopted(&pod.object, set));
    });
    adopted.count() as i64
}

fn make(cx: &Context<'_>, set: &Known, missing: usize, step: &mut Step) -> i64 {
    if !cx.is_open(set.object.namespace()) {
        return 0;
    }
    let Some(first) = template::pod(cx, set) else { return 0 };
    let burst = BURST.min(BURST_BYTES / first.object.to_vec().len().max(1)).max(1).min(missing);
    step.read_namespace(set.object.namespace());
    let rest = (1..burst).filter_map(|_| template::pod(cx, set));
    for pod in std::iter::once(first).chain(rest) {
        let text = format!("Created pod: {}", pod.object.name());
        step.tell((set.kind, &set.object), "SuccessfulCreate", text);
        step.put(pod.key, pod.kind, pod.object);
    }
    burst as i64
}

fn remove_some(cx: &Context<'_>, set: &Known, mut active: Vec<Pod<'_>>, surplus: usize, step: &mut Step) {
    let mut doubled: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, _, pod) in &active {
        *doubled.entry(&pod.node).or_default() += 1;
    }
    active.sort_by_cached_key(|(key, known, pod)| dispensable(cx, known, pod, &doubled, key));
    for (key, known, _) in active.into_iter().take(surplus) {
        removal::remove(cx, key, known, step);
        let text = format!("Deleted pod: {}", known.object.name());
        step.tell((set.kind, &set.object), "SuccessfulDelete", text);
    }
}

type Rank =
    (bool, bool, bool, i64, usize, std::cmp::Reverse<Timestamp>, std::cmp::Reverse<String>, ObjectKey);

/// Who goes first is least: without a node, not running, not ready, cheap, most doubled on its node, youngest.
fn dispensable(
    cx: &Context<'_>,
    known: &Known,
    pod: &PodFacts,
    doubled: &BTreeMap<&str, usize>,
    key: &ObjectKey,
) -> Rank {
    let cost = known.object.annotation("controller.kubernetes.io/pod-deletion-cost");
    let here = doubled.get(pod.node.as_str()).copied().unwrap_or(0);
    let ready = pod.is_ready() && !nodes::is_lost(cx.world, &pod.node);
    (
        !pod.node.is_empty(),
        pod.phase == Phase::Running,
        ready,
        cost.and_then(|cost| cost.parse().ok()).unwrap_or(0),
        usize::MAX - here,
        std::cmp::Reverse(pod.ready_since.unwrap_or(Timestamp::MAX)),
        std::cmp::Reverse(known.object.text("/metadata/creationTimestamp").to_string()),
        key.clone(),
    )
}

/// The tally once the step has been applied.
fn after(cx: &Context<'_>, set: &Known, step: &Step, made: i64) -> Tally {
    let mut tally = tally(cx, set.object.uid(), set.object.int("/spec/minReadySeconds"));
    tally.active += made;
    for (key, _) in &step.writes {
        let Some(pod) = cx.known(key).and_then(|known| known.pod.as_ref()) else { continue };
        let ours = pod
            .controller
            .as_ref()
            .is_some_and(|uid| std::borrow::Borrow::<str>::borrow(uid) == set.object.uid());
        if !ours || !pod.is_active() {
            continue;
        }
        tally.active -= 1;
        if pod.is_ready() && !nodes::is_lost(cx.world, &pod.node) {
            tally.ready -= 1;
            let available = pod.available_from(set.object.int("/spec/minReadySeconds"));
            tally.available -= i64::from(available.is_some_and(|at| at <= cx.now.wall));
        }
    }
    tally
}

fn status(set: &Known, tally: Tally) -> Value {
    let mut status = set.object.0["status"].as_object().cloned().unwrap_or_default();
    status.insert("replicas".into(), json!(tally.active));
    status.insert("observedGeneration".into(), json!(set.object.generation()));
    for (field, count) in [
        ("fullyLabeledReplicas", tally.active),
        ("readyReplicas", tally.ready),
        ("availableReplicas", tally.available),
    ] {
        match count {
            0 => status.remove(field),
            count => status.insert(field.into(), json!(count)),
        };
    }
    Value::Object(status)
}
