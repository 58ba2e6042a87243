//! Cells of pods and of what makes pods.
//!
//! Decides the derived words that users know from kubectl (`CrashLoopBackOff`, `Completed`, `Terminating`).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{created, join, or_none, selector, span};
use crate::duration::age;
use crate::object::Object;

pub fn pod(object: &Object, now: Timestamp) -> Vec<Value> {
    let statuses = object.list("/status/containerStatuses");
    let ready = statuses.iter().filter(|status| status["ready"] == true).count();
    let total = object.list("/spec/containers").len();
    let gates = object.list("/spec/readinessGates").len();
    vec![
        json!(object.name()),
        json!(format!("{ready}/{total}")),
        json!(pod_status(object)),
        json!(restarts(statuses, now)),
        created(object, now),
        or_none(object.text("/status/podIP").to_string()),
        or_none(object.text("/spec/nodeName").to_string()),
        or_none(object.text("/status/nominatedNodeName").to_string()),
        or_none(if gates == 0 { String::new() } else { format!("0/{gates}") }),
    ]
}

fn restarts(statuses: &[Value], now: Timestamp) -> String {
    let count: i64 = statuses.iter().filter_map(|status| status["restartCount"].as_i64()).sum();
    let last = statuses
        .iter()
        .filter_map(|status| status.pointer("/lastState/terminated/finishedAt")?.as_str())
        .max();
    match last {
        Some(time) if count > 0 => format!("{count} ({} ago)", age(Some(time), now)),
        _ => count.to_string(),
    }
}

/// The `Status` cell of a pod, derived as kubectl users expect it.
pub fn pod_status(object: &Object) -> String {
    let mut status = match object.text("/status/reason") {
        "" => object.text("/status/phase").to_string(),
        reason => reason.to_string(),
    };
    if status.is_empty() {
        status = "Pending".into();
    }
    if let Some(init) = init_status(object) {
        status = init;
    } else {
        for container in object.list("/status/containerStatuses").iter().rev() {
            if let Some(word) = container_word(container) {
                status = word;
            }
        }
    }
    let running = object.list("/status/containerStatuses").iter().any(|c| c["ready"] == true);
    if status == "Completed" && running {
        status = "Running".into();
    }
    if object.is_deleting() {
        status =
            if object.text("/status/reason") == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    status
}

fn container_word(container: &Value) -> Option<String> {
    let state = &container["state"];
    let text = |pointer: &str| state.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(reason) = text("/waiting/reason").or_else(|| text("/terminated/reason")) {
        return Some(reason.to_string());
    }
    let ended = state.get("terminated")?;
    match ended["signal"].as_i64() {
        Some(signal) if signal != 0 => Some(format!("Signal:{signal}")),
        _ => Some(format!("ExitCode:{}", ended["exitCode"])),
    }
}

fn init_status(object: &Object) -> Option<String> {
    let statuses = object.list("/status/initContainerStatuses");
    let total = object.list("/spec/initContainers").len();
    for (index, status) in statuses.iter().enumerate() {
        let ended = status.pointer("/state/terminated");
        if ended.is_some_and(|ended| ended["exitCode"] == 0) {
            continue;
        }
        return Some(match container_word(status) {
            Some(word) if word != "PodInitializing" => format!("Init:{word}"),
            _ => format!("Init:{index}/{total}"),
        });
    }
    None
}

fn containers(object: &Object) -> (Value, Value) {
    let list = object.list("/spec/template/spec/containers");
    let texts = |field: &str| join(list.iter().filter_map(|c| c[field].as_str().map(String::from)));
    (json!(texts("name")), json!(texts("image")))
}

pub fn deployment(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object);
    let desired = object.int("/spec/replicas");
    vec![
        json!(object.name()),
        json!(format!("{}/{desired}", object.int("/status/readyReplicas"))),
        json!(object.int("/status/updatedReplicas")),
        json!(object.int("/status/availableReplicas")),
        created(object, now),
        names,
        images,
        selector(object.0.pointer("/spec/selector/matchLabels")),
    ]
}

pub fn replica_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object);
    vec![
        json!(object.name()),
        json!(object.int("/spec/replicas")),
        json!(object.int("/status/replicas")),
        json!(object.int("/status/readyReplicas")),
        created(object, now),
        names,
        images,
        selector(object.0.pointer("/spec/selector/matchLabels")),
    ]
}

pub fn job(object: &Object, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object);
    let condition = |wanted: &str| {
        object.list("/status/conditions").iter().any(|c| c["type"] == wanted && c["status"] == "True")
    };
    let status = match () {
        () if condition("Complete") => "Complete",
        () if condition("Failed") => "Failed",
        () if condition("Suspended") => "Suspended",
        () if object.is_deleting() => "Terminating",
        () => "Running",
    };
    let wanted = object.0.pointer("/spec/completions").and_then(Value::as_i64).unwrap_or(1);
    vec![
        json!(object.name()),
        json!(status),
        json!(format!("{}/{wanted}", object.int("/status/succeeded"))),
        json!(span(object.text("/status/startTime"), object.text("/status/completionTime"), now)),
        created(object, now),
        names,
        images,
        selector(object.0.pointer("/spec/selector/matchLabels")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_with(status: Value) -> Object {
        Object(json!({"metadata": {"name": "p"}, "spec": {"containers": [{}, {}]}, "status": status}))
    }

    #[test]
    fn pod_words_are_derived() {
        let waiting = json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert_eq!(pod_status(&pod_with(waiting)), "CrashLoopBackOff");
        let done = json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]});
        assert_eq!(pod_status(&pod_with(done)), "Completed");
        let mut deleted = pod_with(json!({"phase": "Running"}));
        deleted.set(&["metadata", "deletionTimestamp"], json!("2026-01-01T00:00:00Z"));
        assert_eq!(pod_status(&deleted), "Terminating");
        let init = json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]});
        assert_eq!(pod_status(&pod_with(init)), "Init:0/0");
    }

    #[test]
    fn restarts_say_when_the_last_was() {
        let statuses = json!([{"ready": true, "restartCount": 3, "lastState": {"terminated": {"finishedAt": "1970-01-01T00:00:00Z"}}}]);
        let cells = pod(
            &pod_with(json!({"phase": "Running", "containerStatuses": statuses})),
            Timestamp::from_second(300).unwrap(),
        );
        assert_eq!(cells[1], "1/2");
        assert_eq!(cells[3], "3 (5m ago)");
    }
}
