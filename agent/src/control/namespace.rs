//! Namespaces that are being deleted.
//!
//! Decides that all their content goes, and then they. Must not touch a namespace that stays.

use api::keys;
use api::kinds::{KINDS, Kind};
use raft_store::View;

use super::index::Known;
use super::key::ObjectKey;
use super::removal;
use super::step::{Context, Step, namespace_key};

/// Events removed in one step; they are not followed, so they are looked up in the state.
const EVENTS_AT_ONCE: usize = 400;

/// Removes the content, one step for each object, or the namespace when it is empty.
pub fn reconcile(cx: &Context<'_>, view: &View, name: &str) -> Vec<Step> {
    let Some(key) = namespace_key(name) else { return Vec::new() };
    let Some(known) = cx.known(&key).filter(|known| known.object.is_deleting()) else { return Vec::new() };
    let content: Vec<(&ObjectKey, &Known)> = content(cx, name);
    let leaving = content.iter().filter(|(_, known)| !known.object.is_deleting());
    let mut steps: Vec<Step> = leaving.map(|(key, known)| removed(cx, key, known)).collect();
    if content.is_empty() && known.object.finalizers().is_empty() {
        steps.push(ended(&key, view, name));
    }
    steps
}

fn content<'a>(cx: &Context<'a>, name: &str) -> Vec<(&'a ObjectKey, &'a Known)> {
    let kinds = KINDS.iter().filter(|kind| kind.namespaced);
    kinds.flat_map(|kind| cx.world.below(&keys::prefix(kind, Some(name)))).collect()
}

fn removed(cx: &Context<'_>, key: &ObjectKey, known: &Known) -> Step {
    let mut step = Step::default();
    removal::remove(cx, key, known, &mut step);
    step
}

/// The end of an empty namespace takes its events along.
fn ended(key: &ObjectKey, view: &View, name: &str) -> Step {
    let mut step = Step::default();
    let prefix = Kind::by_name("Event").map(|kind| keys::prefix(kind, Some(name))).unwrap_or_default();
    let events = view.prefix(prefix.as_bytes(), None).take(EVENTS_AT_ONCE);
    step.releases.extend(events.filter_map(|entry| String::from_utf8(entry.key().to_vec()).ok()));
    step.delete(key.clone());
    step
}
