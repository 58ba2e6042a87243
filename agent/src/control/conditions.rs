//! The list of conditions in a status.
//!
//! Decides that a condition's transition time changes only with its status. Must not invent conditions.

use api::Object;
use serde_json::{Value, json};

/// One condition as it should be.
#[derive(Debug, Clone, Copy)]
pub struct Condition<'a> {
    pub name: &'a str,
    pub status: &'a str,
    /// Left out where empty, like the message.
    pub reason: &'a str,
    pub message: &'a str,
}

pub fn get<'a>(object: &'a Object, name: &str) -> Option<&'a Value> {
    object.list("/status/conditions").iter().find(|condition| condition["type"] == name)
}

pub fn holds(object: &Object, name: &str) -> bool {
    get(object, name).is_some_and(|condition| condition["status"] == "True")
}

/// Sets a condition; one that says the same already stays as it is, in its place.
pub fn set(object: &mut Object, wanted: &Condition<'_>, time: &str) {
    set_with(object, wanted, time, &[]);
}

/// The same with further time fields, which are written only when the condition changes.
pub fn set_with(object: &mut Object, wanted: &Condition<'_>, time: &str, times: &[&str]) {
    let mut list: Vec<Value> = object.list("/status/conditions").to_vec();
    let place = list.iter().position(|condition| condition["type"] == wanted.name);
    let old = place.and_then(|place| list.get(place));
    if old.is_some_and(|old| says(old, wanted)) {
        return;
    }
    let same_status = old.filter(|old| old["status"] == wanted.status);
    let since = same_status.and_then(|old| old.get("lastTransitionTime")).cloned();
    let mut made = json!({
        "type": wanted.name, "status": wanted.status, "lastTransitionTime": since.unwrap_or_else(|| json!(time)),
    });
    for (field, text) in [("reason", wanted.reason), ("message", wanted.message)] {
        if !text.is_empty() {
            made[field] = json!(text);
        }
    }
    for field in times {
        made[*field] = json!(time);
    }
    match place {
        Some(place) => list[place] = made,
        None => list.push(made),
    }
    object.set(&["status", "conditions"], json!(list));
}

fn says(old: &Value, wanted: &Condition<'_>) -> bool {
    let text = |field: &str| old[field].as_str().unwrap_or("");
    text("status") == wanted.status && text("reason") == wanted.reason && text("message") == wanted.message
}
