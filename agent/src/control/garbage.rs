//! Owned objects without owners, and deletions that wait for dependents.
//!
//! Decides by uid: an owner of the same name is not the same owner. Must not judge owners of kinds that it does not follow.

use api::Object;
use api::kinds::Kind;
use serde_json::{Value, json};

use super::index::Known;
use super::key::{ObjectKey, Uid};
use super::step::{Context, Step};
use super::{queue, removal};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Dependents that one step frees: what a step writes must fit into one command of the store.
const ORPHANED: usize = 500;
const ORPHANED_BYTES: usize = 1 << 20;

/// Looks at one object as a dependent and as an owner.
pub fn reconcile(cx: &Context<'_>, key: &ObjectKey) -> Step {
    let mut step = Step::default();
    let Some(known) = cx.known(key) else { return step };
    if known.object.is_deleting() {
        release_dependents(cx, key, known, &mut step);
    } else if is_abandoned(cx, &known.object) {
        removal::remove(cx, key, &marked(cx, known), &mut step);
    }
    step
}

/// What goes because its owner waits for it waits in turn for its own dependents.
fn marked(cx: &Context<'_>, known: &Known) -> Known {
    let mut marked = known.clone();
    let waits = |owner: &Value| {
        let found = cx.world.by_uid(&Uid::new(owner["uid"].as_str().unwrap_or("")));
        found.is_some_and(|(_, owner)| owner.object.finalizers().contains(&FOREGROUND))
    };
    let is_awaited = known.object.list("/metadata/ownerReferences").iter().any(waits);
    if is_awaited && is_blocked(cx, known) {
        let mut finalizers = known.object.list("/metadata/finalizers").to_vec();
        finalizers.push(json!(FOREGROUND));
        marked.object.set(&["metadata", "finalizers"], json!(finalizers));
    }
    marked
}

fn is_blocked(cx: &Context<'_>, owner: &Known) -> bool {
    let uid = owner.object.uid();
    cx.world.dependents(uid).any(|(_, dependent)| blocks(&dependent.object, uid))
}

/// Whether no owner keeps it: all are gone, or wait for their dependents to go.
fn is_abandoned(cx: &Context<'_>, object: &Object) -> bool {
    let owners = object.list("/metadata/ownerReferences");
    !owners.is_empty() && !owners.iter().any(|owner| keeps(cx, owner))
}

fn keeps(cx: &Context<'_>, owner: &Value) -> bool {
    let text = |field: &str| owner[field].as_str().unwrap_or("");
    let is_followed = Kind::of(text("apiVersion"), text("kind")).is_some_and(queue::is_followed);
    match cx.world.by_uid(&Uid::new(text("uid"))) {
        Some((_, known)) => !(known.object.is_deleting() && known.object.finalizers().contains(&FOREGROUND)),
        None => !is_followed,
    }
}

/// Does what the finalizers of a deletion ask for, and takes them off when it is done.
fn release_dependents(cx: &Context<'_>, key: &ObjectKey, known: &Known, step: &mut Step) {
    let finalizers = known.object.finalizers();
    if finalizers.contains(&ORPHAN) {
        if orphan(cx, known, step) {
            take_off(key, known, ORPHAN, step);
        }
        return;
    }
    if finalizers.contains(&FOREGROUND) && !is_blocked(cx, known) {
        take_off(key, known, FOREGROUND, step);
    }
}

fn blocks(dependent: &Object, owner: &str) -> bool {
    let owners = dependent.list("/metadata/ownerReferences");
    owners.iter().any(|reference| reference["uid"] == owner && reference["blockOwnerDeletion"] == true)
}

/// Frees the dependents; answers whether all are free. Each that changed brings the owner here again.
fn orphan(cx: &Context<'_>, owner: &Known, step: &mut Step) -> bool {
    let mut bytes = 0;
    for (key, dependent) in cx.world.dependents(owner.object.uid()) {
        if bytes > ORPHANED_BYTES || step.writes.len() >= ORPHANED {
            return false;
        }
        let mut freed = dependent.object.clone();
        let mut owners = freed.list("/metadata/ownerReferences").to_vec();
        owners.retain(|reference| reference["uid"] != owner.object.uid());
        if owners.is_empty() {
            freed.metadata_mut().remove("ownerReferences");
        } else {
            freed.set(&["metadata", "ownerReferences"], json!(owners));
        }
        bytes += freed.to_vec().len();
        step.put(key.clone(), dependent.kind, freed);
    }
    true
}

/// Removes a finalizer, and with the last one the object. A pod goes when its node says so, a namespace when it is empty.
fn take_off(key: &ObjectKey, known: &Known, finalizer: &str, step: &mut Step) {
    let mut object = known.object.clone();
    let rest: Vec<Value> =
        object.list("/metadata/finalizers").iter().filter(|name| *name != finalizer).cloned().collect();
    let ends_here = rest.is_empty() && !matches!(known.kind.kind, "Pod" | "Namespace");
    if ends_here {
        return removal::finish(key, known, step);
    }
    if rest.is_empty() {
        object.metadata_mut().remove("finalizers");
    } else {
        object.set(&["metadata", "finalizers"], json!(rest));
    }
    step.put(key.clone(), known.kind, object);
}
