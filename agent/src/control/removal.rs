//! How a controller removes an object: at once, or by asking its node.
//!
//! Decides which of the two, by the rules of the API's DELETE. Must not decide whether.

use api::Object;
use api::duration::rfc3339;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::index::Known;
use super::key::ObjectKey;
use super::nodes;
use super::step::{Context, Step};

/// Prefixes of the records that keep addresses and node ports from being given twice (the API's admission makes them).
const ADDRESSES: &str = "a/ip/";
const PORTS: &str = "a/port/";

/// Removes an object, or begins to.
pub fn remove(cx: &Context<'_>, key: &ObjectKey, known: &Known, step: &mut Step) {
    let lost =
        known.pod.as_ref().is_some_and(|pod| !pod.node.is_empty() && nodes::is_lost(cx.world, &pod.node));
    let grace = if lost { 0 } else { grace_seconds(&known.object, known) };
    if grace == 0 && known.object.finalizers().is_empty() && known.kind.kind != "Namespace" {
        return finish(key, known, step);
    }
    if !known.object.is_deleting() {
        step.put(key.clone(), known.kind, leaving(known, grace, cx.now.wall));
    }
}

/// Removes an object with what it held.
pub fn finish(key: &ObjectKey, known: &Known, step: &mut Step) {
    step.delete(key.clone());
    if known.kind.kind != "Service" {
        return;
    }
    let address = known.object.text("/spec/clusterIP");
    if !address.is_empty() && address != "None" {
        step.releases.push(format!("{ADDRESSES}{address}"));
    }
    let ports = known.object.list("/spec/ports").iter().filter_map(|port| port["nodePort"].as_i64());
    step.releases.extend(ports.filter(|port| *port > 0).map(|port| format!("{PORTS}{port}")));
}

fn leaving(known: &Known, grace: i64, now: Timestamp) -> Object {
    let mut object = known.object.clone();
    if known.kind.counts_generation {
        object.set(&["metadata", "generation"], json!(known.object.generation() + 1));
    }
    let end = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    object.set(&["metadata", "deletionTimestamp"], json!(rfc3339(end)));
    object.set(&["metadata", "deletionGracePeriodSeconds"], json!(grace));
    if known.kind.kind == "Namespace" {
        object.set(&["status", "phase"], json!("Terminating"));
    }
    object
}

/// None where nothing runs; what has ended still has to be cleaned up by its node.
fn grace_seconds(object: &Object, known: &Known) -> i64 {
    let Some(pod) = &known.pod else { return 0 };
    let asked = object.0.pointer("/spec/terminationGracePeriodSeconds").and_then(serde_json::Value::as_i64);
    let grace = asked.unwrap_or(30).max(0);
    match () {
        () if pod.node.is_empty() => 0,
        () if pod.ended() && grace > 0 => 1,
        () => grace,
    }
}
