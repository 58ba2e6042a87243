//! The status of a pod as its node sees it (`PodStatus` of the Kubernetes API).
//!
//! Decides phase, conditions and container states. It must not decide what to do next ([`super::plan`]).

use std::collections::BTreeMap;

use api::{Object, duration};
use jiff::Timestamp;
use runtime::state::{ContainerState, ContainerStatus, Exit};
use serde_json::{Value, json};

use super::plan::restarts;
use super::probes::Probes;

/// Why a container is not running, where the node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: &'static str,
    pub message: String,
}

/// What the status is made of.
pub struct Seen<'a> {
    pub containers: &'a [ContainerState],
    pub waiting: &'a BTreeMap<String, Waiting>,
    pub pod_ip: Option<String>,
    pub host_ip: &'a str,
    pub probes: &'a Probes,
    /// The last exit of each container before the present one.
    pub earlier: &'a BTreeMap<String, Exit>,
    pub now: Timestamp,
}

/// The new status of `pod`; equal to the old one when nothing that it shows has changed.
pub fn of(pod: &Object, seen: &Seen<'_>) -> Value {
    let old = &pod.0["status"];
    let policy = pod.text("/spec/restartPolicy");
    let statuses = |list: &str| -> Vec<Value> {
        pod.list(list).iter().map(|spec| container(pod, spec, policy, seen)).collect()
    };
    let (init, main) = (statuses("/spec/initContainers"), statuses("/spec/containers"));
    let phase = phase(policy, &init, &main);
    let mut status = json!({
        "phase": phase, "hostIP": seen.host_ip, "hostIPs": [{"ip": seen.host_ip}],
        "startTime": old.get("startTime").cloned().unwrap_or_else(|| json!(duration::rfc3339(seen.now))),
        "containerStatuses": main, "observedGeneration": pod.generation(),
    });
    for kept in ["qosClass", "reason", "message", "nominatedNodeName"] {
        if let Some(value) = old.get(kept) {
            status[kept] = value.clone();
        }
    }
    if !init.is_empty() {
        status["initContainerStatuses"] = json!(init);
    }
    if let Some(ip) = &seen.pod_ip {
        status["podIP"] = json!(ip);
        status["podIPs"] = json!([{"ip": ip}]);
    }
    status["conditions"] = conditions(old, &status, phase, seen);
    status
}

fn container(pod: &Object, spec: &Value, policy: &str, seen: &Seen<'_>) -> Value {
    let name = spec["name"].as_str().unwrap_or("");
    let found = seen.containers.iter().find(|state| state.name.as_str() == name);
    let mut status = json!({
        "name": name, "image": spec["image"], "imageID": "", "ready": false, "started": false,
        "restartCount": found.map_or(0, |state| state.attempt), "state": {}, "lastState": {},
    });
    if let Some(earlier) = seen.earlier.get(name) {
        status["lastState"] = json!({"terminated": terminated(earlier)});
    }
    let waiting = |fallback: &'static str| match seen.waiting.get(name) {
        Some(waiting) => json!({"waiting": {"reason": waiting.reason, "message": waiting.message}}),
        None => json!({"waiting": {"reason": fallback}}),
    };
    let Some(state) = found else {
        status["state"] = waiting("ContainerCreating");
        return status;
    };
    status["imageID"] = json!(state.image.to_string());
    status["containerID"] = json!(container_id(pod, name, state.attempt));
    match &state.status {
        ContainerStatus::Creating => status["state"] = waiting("ContainerCreating"),
        ContainerStatus::Running(started) => {
            status["state"] = json!({"running": {"startedAt": seconds(started.started_at)}});
            status["ready"] = json!(seen.probes.ready(name));
            status["started"] = json!(seen.probes.started(name));
        }
        ContainerStatus::Exited(exit) if restarts(policy, exit.code) && !pod.is_deleting() => {
            status["lastState"] = json!({"terminated": terminated(exit)});
            status["state"] = waiting("CrashLoopBackOff");
        }
        ContainerStatus::Exited(exit) => status["state"] = json!({"terminated": terminated(exit)}),
    }
    status
}

/// The id of one attempt of a container.
pub fn container_id(pod: &Object, name: &str, attempt: u32) -> String {
    format!("skein://{}/{name}/{attempt}", pod.uid())
}

fn seconds(time: runtime::clock::Timestamp) -> String {
    Timestamp::from_second(time.seconds()).map(|time| time.to_string()).unwrap_or_default()
}

fn terminated(exit: &Exit) -> Value {
    let mut ended = json!({
        "exitCode": exit.code, "reason": exit.reason.as_str(),
        "startedAt": exit.started_at.map(seconds), "finishedAt": seconds(exit.finished_at),
    });
    if let Some(signal) = exit.signal {
        ended["signal"] = json!(signal);
    }
    if !exit.message.is_empty() {
        ended["message"] = json!(exit.message);
    }
    ended
}

fn phase(policy: &str, init: &[Value], main: &[Value]) -> &'static str {
    let code = |status: &Value| status.pointer("/state/terminated/exitCode").and_then(Value::as_i64);
    if policy == "Never" && init.iter().any(|status| code(status).is_some_and(|code| code != 0)) {
        return "Failed";
    }
    if !main.is_empty() && main.iter().all(|status| code(status).is_some()) {
        return if main.iter().all(|status| code(status) == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let begun = |status: &Value| {
        status.pointer("/state/running").is_some()
            || code(status).is_some()
            || status["restartCount"].as_i64() > Some(0)
            || status.pointer("/lastState/terminated").is_some()
    };
    if main.iter().any(begun) { "Running" } else { "Pending" }
}

fn conditions(old: &Value, status: &Value, phase: &str, seen: &Seen<'_>) -> Value {
    let all = |list: &str, test: &dyn Fn(&Value) -> bool| {
        status[list].as_array().is_none_or(|items| items.iter().all(test))
    };
    let initialized =
        all("initContainerStatuses", &|s| s.pointer("/state/terminated/exitCode") == Some(&json!(0)));
    let ready = all("containerStatuses", &|s| s["ready"] == true);
    let why = if matches!(phase, "Succeeded") { "PodCompleted" } else { "ContainersNotReady" };
    let scheduled = old["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "PodScheduled");
    let wanted = [
        ("PodReadyToStartContainers", seen.pod_ip.is_some(), ""),
        ("Initialized", initialized || phase == "Succeeded", "ContainersNotInitialized"),
        ("Ready", ready && initialized, why),
        ("ContainersReady", ready, why),
    ];
    let mut list: Vec<Value> =
        wanted.iter().map(|(name, holds, reason)| condition(old, name, *holds, reason, seen.now)).collect();
    list.push(scheduled.cloned().unwrap_or_else(|| condition(old, "PodScheduled", true, "", seen.now)));
    json!(list)
}

/// A condition; its transition time stays while its status does.
fn condition(old: &Value, name: &str, holds: bool, reason: &str, now: Timestamp) -> Value {
    let status = if holds { "True" } else { "False" };
    let before = old["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == name && c["status"] == status);
    let since = before
        .map_or_else(|| json!(duration::rfc3339(now)), |condition| condition["lastTransitionTime"].clone());
    let mut made = json!({"type": name, "status": status, "lastTransitionTime": since});
    if !holds && !reason.is_empty() {
        made["reason"] = json!(reason);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::ids::{ContainerName, Digest};
    use runtime::state::{ExitReason, Started};

    fn pod(policy: &str) -> Object {
        Object(
            json!({"metadata": {"uid": "u", "generation": 1}, "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "x"}]}, "status": {"phase": "Pending"}}),
        )
    }

    fn seen_with(pod: &Object, status: Option<ContainerStatus>) -> Value {
        let containers: Vec<ContainerState> = status
            .into_iter()
            .map(|status| ContainerState {
                name: ContainerName::new("a").unwrap(),
                attempt: 0,
                image: Digest::of(b"x"),
                status,
            })
            .collect();
        let (waiting, earlier, probes) = (BTreeMap::new(), BTreeMap::new(), Probes::default());
        of(
            pod,
            &Seen {
                containers: &containers,
                waiting: &waiting,
                pod_ip: Some("10.42.0.2".into()),
                host_ip: "10.0.0.1",
                earlier: &earlier,
                probes: &probes,
                now: Timestamp::from_second(100).unwrap(),
            },
        )
    }

    fn exited(code: i32) -> ContainerStatus {
        let time = runtime::clock::Timestamp::from_nanos(5_000_000_000);
        let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
        ContainerStatus::Exited(Exit {
            code,
            signal: None,
            oom_killed: false,
            reason,
            message: String::new(),
            started_at: Some(time),
            finished_at: time,
        })
    }

    fn running() -> ContainerStatus {
        ContainerStatus::Running(Started { pid: 1, started_at: runtime::clock::Timestamp::from_nanos(0) })
    }

    #[test]
    fn phases_follow_the_containers() {
        for (policy, status, phase) in [
            ("Always", None, "Pending"),
            ("Always", Some(running()), "Running"),
            ("Always", Some(exited(0)), "Running"),
            ("OnFailure", Some(exited(0)), "Succeeded"),
            ("OnFailure", Some(exited(1)), "Running"),
            ("Never", Some(exited(1)), "Failed"),
        ] {
            assert_eq!(seen_with(&pod(policy), status)["phase"], phase, "{policy}");
        }
    }

    #[test]
    fn the_same_facts_give_the_same_status() {
        let mut pod = pod("Always");
        let first = seen_with(&pod, Some(running()));
        pod.0["status"] = first.clone();
        assert_eq!(seen_with(&pod, Some(running())), first);
        assert_eq!(first["containerStatuses"][0]["ready"], true);
    }

    #[test]
    fn a_crash_shows_its_end_and_that_it_waits() {
        let status = seen_with(&pod("Always"), Some(exited(3)));
        let container = &status["containerStatuses"][0];
        assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    }
}
