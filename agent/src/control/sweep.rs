//! Old events.
//!
//! Decides that an event is kept for an hour after it was last seen. Must not write while there is nothing to remove.

use api::kinds::Kind;
use api::{Object, keys};
use jiff::{SignedDuration, Timestamp};
use raft_store::{Entry, View};

use super::step::{Context, Step};

const KEPT: SignedDuration = SignedDuration::from_hours(1);
const EVERY: SignedDuration = SignedDuration::from_mins(1);
/// Removed at once; with more the sweep goes on in a moment.
const AT_ONCE: usize = 200;

pub fn reconcile(cx: &Context<'_>, view: &View) -> Step {
    let mut step = Step::default();
    let prefix = Kind::by_name("Event").map(|kind| keys::prefix(kind, None)).unwrap_or_default();
    let entries = view.prefix(prefix.as_bytes(), None);
    let old = entries.filter(|entry| is_old(entry, cx.now.wall)).take(AT_ONCE);
    step.releases.extend(old.filter_map(|entry| String::from_utf8(entry.key().to_vec()).ok()));
    let pause = if step.releases.len() == AT_ONCE { SignedDuration::from_secs(1) } else { EVERY };
    step.wake = cx.now.wall.checked_add(pause).ok();
    step
}

fn is_old(entry: &Entry, now: Timestamp) -> bool {
    let Ok(event) = Object::from_slice(entry.value()) else { return false };
    let texts =
        ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"].map(|pointer| event.text(pointer));
    let seen = texts.iter().find_map(|text| text.parse::<Timestamp>().ok());
    seen.and_then(|seen| seen.checked_add(KEPT).ok()).is_some_and(|end| end < now)
}
