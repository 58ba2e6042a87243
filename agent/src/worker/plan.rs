//! What to do next for one pod of this node, as a pure function of what should be and what is.
//!
//! Decides starts, restarts with back-off, stops and removal. It must not read clocks or touch anything.

use api::Object;
use serde_json::Value;

/// First wait of the back-off; it doubles with each restart.
pub const BACK_OFF_FIRST_MS: i64 = 10_000;
/// Longest wait.
pub const BACK_OFF_MOST_MS: i64 = 300_000;
/// After running this long a container's back-off begins anew.
pub const BACK_OFF_RESET_MS: i64 = 600_000;

/// How one container stands. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFact {
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Half made by an agent that died.
    Stale,
    Running {
        since: i64,
    },
    Exited {
        code: i32,
        started: i64,
        finished: i64,
    },
}

/// How the pod stands on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The sandbox (network namespace, shim) is there.
    pub sandboxed: bool,
    /// The runtime knows the pod, with or without a sandbox.
    pub known: bool,
    /// It has given back all but its logs and exits.
    pub released: bool,
    pub containers: Vec<ContainerFact>,
    /// Consecutive quick failures of each container, as counted by the driver; shapes the back-off.
    pub now: i64,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the sandbox and attach it to the network.
    Sandbox,
    /// Start an attempt of a container.
    Start { container: String, attempt: u32, init: bool },
    /// Remove what an earlier agent left half done.
    Discard { container: String },
    /// Stop all running containers within this many seconds.
    Stop { containers: Vec<String>, grace_seconds: i64 },
    /// Give back what the pod held, but for logs and exits: nothing of it runs again.
    Release,
    /// Remove the pod from this node, with everything it had.
    Remove,
    /// The pod is gone from this node: delete its object.
    Forget,
    /// Nothing until then (Unix milliseconds), or until something happens.
    Wait { until: Option<i64> },
}

/// Whether a container that ended comes back under the pod's restart policy.
pub fn restarts(policy: &str, code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// How long after its end attempt `attempt` may be followed by the next.
pub fn back_off(attempt: u32, ran_for: i64) -> i64 {
    if attempt == 0 || ran_for >= BACK_OFF_RESET_MS {
        return 0;
    }
    BACK_OFF_FIRST_MS.saturating_mul(1 << (attempt - 1).min(10)).min(BACK_OFF_MOST_MS)
}

/// Decides for a pod that should run here; `None` when its object is gone.
pub fn next(pod: Option<&Object>, facts: &Facts) -> Step {
    match pod {
        None => leave(facts, 0, false),
        Some(pod) if pod.is_deleting() => {
            let grace = pod.int("/metadata/deletionGracePeriodSeconds");
            leave(facts, grace, true)
        }
        Some(pod) if matches!(pod.text("/status/phase"), "Succeeded" | "Failed") => ended(facts),
        // Its status says so next, and then it is let go.
        Some(pod) if over(pod, facts) => Step::Wait { until: None },
        Some(_) if !facts.sandboxed => Step::Sandbox,
        Some(pod) => run(pod, facts),
    }
}

fn running(facts: &Facts) -> Vec<String> {
    let up = facts.containers.iter().filter(|c| matches!(c.state, ContainerState::Running { .. }));
    up.map(|container| container.name.clone()).collect()
}

fn leave(facts: &Facts, grace_seconds: i64, forget: bool) -> Step {
    let containers = running(facts);
    match () {
        () if !containers.is_empty() => Step::Stop { containers, grace_seconds },
        () if facts.known => Step::Remove,
        () if forget => Step::Forget,
        () => Step::Wait { until: None },
    }
}

/// Nothing of a pod that has ended may run (an eviction ends it from outside), and nothing is kept for it but its story.
fn ended(facts: &Facts) -> Step {
    let containers = running(facts);
    match () {
        () if !containers.is_empty() => Step::Stop { containers, grace_seconds: 30 },
        () if facts.known && !facts.released => Step::Release,
        () => Step::Wait { until: None },
    }
}

/// Whether every container has ended, or one that the others wait for, and none of them comes back.
fn over(pod: &Object, facts: &Facts) -> bool {
    let policy = pod.text("/spec/restartPolicy");
    let name = |container: &Value| container["name"].as_str().unwrap_or("").to_string();
    if policy == "Never"
        && pod.list("/spec/initContainers").iter().any(|c| failed_for_good(&name(c), policy, facts))
    {
        return true;
    }
    let main = pod.list("/spec/containers");
    let ended = |container: &Value| {
        let found = facts.containers.iter().find(|fact| fact.name == name(container));
        matches!(found.map(|c| &c.state), Some(ContainerState::Exited { code, .. }) if !restarts(policy, *code))
    };
    !main.is_empty() && main.iter().all(ended)
}

fn run(pod: &Object, facts: &Facts) -> Step {
    let policy = pod.text("/spec/restartPolicy");
    for container in pod.list("/spec/initContainers") {
        let name = container["name"].as_str().unwrap_or("");
        // An init container that fails comes back unless the pod never restarts anything.
        let policy = if policy == "Never" { "Never" } else { "OnFailure" };
        match consider(name, policy, true, facts) {
            Considered::Done => {}
            Considered::Do(step) => return step,
            Considered::Later(until) => return Step::Wait { until },
        }
        if failed_for_good(name, policy, facts) {
            return Step::Wait { until: None };
        }
    }
    let mut earliest: Option<i64> = None;
    for container in pod.list("/spec/containers") {
        match consider(container["name"].as_str().unwrap_or(""), policy, false, facts) {
            Considered::Do(step) => return step,
            Considered::Later(Some(until)) => earliest = Some(earliest.map_or(until, |time| time.min(until))),
            Considered::Later(None) | Considered::Done => {}
        }
    }
    Step::Wait { until: earliest }
}

fn failed_for_good(name: &str, policy: &str, facts: &Facts) -> bool {
    let found = facts.containers.iter().find(|container| container.name == name);
    matches!(found.map(|c| &c.state), Some(ContainerState::Exited { code, .. }) if *code != 0 && !restarts(policy, *code))
}

enum Considered {
    Do(Step),
    Later(Option<i64>),
    /// Ended, and stays so.
    Done,
}

fn consider(name: &str, policy: &str, init: bool, facts: &Facts) -> Considered {
    let start = |attempt| Considered::Do(Step::Start { container: name.into(), attempt, init });
    let Some(found) = facts.containers.iter().find(|container| container.name == name) else {
        return start(0);
    };
    match found.state {
        ContainerState::Stale => Considered::Do(Step::Discard { container: name.into() }),
        ContainerState::Running { .. } => Considered::Later(None),
        ContainerState::Exited { code, started, finished } if restarts(policy, code) => {
            let due = finished + back_off(found.attempt, finished - started);
            if facts.now >= due { start(found.attempt + 1) } else { Considered::Later(Some(due)) }
        }
        ContainerState::Exited { .. } => Considered::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(policy: &str, extra: Value) -> Object {
        let mut pod =
            Object(json!({"spec": {"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}}));
        if let Some(map) = extra.as_object() {
            for (key, value) in map {
                pod.0[key] = value.clone();
            }
        }
        pod
    }

    fn fact(name: &str, attempt: u32, state: ContainerState) -> ContainerFact {
        ContainerFact { name: name.into(), attempt, state }
    }

    fn facts(containers: Vec<ContainerFact>, now: i64) -> Facts {
        Facts { sandboxed: true, known: true, containers, now, ..Facts::default() }
    }

    const UP: ContainerState = ContainerState::Running { since: 0 };

    fn start(container: &str, attempt: u32) -> Step {
        Step::Start { container: container.into(), attempt, init: false }
    }

    #[test]
    fn sandbox_first_then_containers_in_order() {
        let pod = pod("Always", json!({}));
        assert_eq!(next(Some(&pod), &Facts::default()), Step::Sandbox);
        assert_eq!(next(Some(&pod), &facts(vec![], 0)), start("a", 0));
        assert_eq!(next(Some(&pod), &facts(vec![fact("a", 0, UP)], 0)), start("b", 0));
        let both = vec![fact("a", 0, UP), fact("b", 0, UP)];
        assert_eq!(next(Some(&pod), &facts(both, 0)), Step::Wait { until: None });
    }

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_wait_longer_and_longer() {
        let pod = pod("Always", json!({}));
        let exited = |attempt| {
            vec![
                fact("a", attempt, ContainerState::Exited { code: 1, started: 900, finished: 1_000 }),
                fact("b", 0, UP),
            ]
        };
        assert_eq!(next(Some(&pod), &facts(exited(0), 1_000)), start("a", 1));
        assert_eq!(next(Some(&pod), &facts(exited(1), 1_000)), Step::Wait { until: Some(11_000) });
        assert_eq!(next(Some(&pod), &facts(exited(1), 11_000)), start("a", 2));
        assert_eq!(next(Some(&pod), &facts(exited(3), 1_000)), Step::Wait { until: Some(41_000) });
        assert_eq!(next(Some(&pod), &facts(exited(40), 1_000)), Step::Wait { until: Some(301_000) });
    }

    #[test]
    fn a_container_that_ran_long_comes_back_at_once() {
        assert_eq!(back_off(5, BACK_OFF_RESET_MS), 0);
    }

    #[test]
    fn policies_decide_who_comes_back() {
        let done = |code| {
            vec![fact("a", 0, ContainerState::Exited { code, started: 0, finished: 0 }), fact("b", 0, UP)]
        };
        assert_eq!(next(Some(&pod("Never", json!({}))), &facts(done(1), 0)), Step::Wait { until: None });
        assert_eq!(next(Some(&pod("OnFailure", json!({}))), &facts(done(0), 0)), Step::Wait { until: None });
        assert_eq!(next(Some(&pod("OnFailure", json!({}))), &facts(done(2), 0)), start("a", 1));
    }

    #[test]
    fn init_containers_run_one_by_one_before_the_others() {
        let mut pod = pod("Always", json!({}));
        pod.set(&["spec", "initContainers"], json!([{"name": "i"}, {"name": "j"}]));
        let init = |name: &str| Step::Start { container: name.into(), attempt: 0, init: true };
        let ok = ContainerState::Exited { code: 0, started: 0, finished: 0 };
        assert_eq!(next(Some(&pod), &facts(vec![], 0)), init("i"));
        assert_eq!(next(Some(&pod), &facts(vec![fact("i", 0, UP)], 0)), Step::Wait { until: None });
        assert_eq!(next(Some(&pod), &facts(vec![fact("i", 0, ok.clone())], 0)), init("j"));
        assert_eq!(
            next(Some(&pod), &facts(vec![fact("i", 0, ok.clone()), fact("j", 0, ok)], 0)),
            start("a", 0)
        );
    }

    #[test]
    fn a_pod_that_has_ended_lets_go_once_and_is_not_brought_back() {
        let done = ContainerState::Exited { code: 0, started: 0, finished: 0 };
        let ended = facts(vec![fact("a", 0, done.clone()), fact("b", 0, done)], 0);
        let wait = Step::Wait { until: None };
        let running = pod("Never", json!({"status": {"phase": "Running"}}));
        assert_eq!(next(Some(&running), &ended), wait, "the status is written first");
        let lost = Facts { sandboxed: false, ..ended.clone() };
        assert_eq!(next(Some(&running), &lost), wait, "no new sandbox for what will not run");
        let succeeded = pod("Never", json!({"status": {"phase": "Succeeded"}}));
        assert_eq!(next(Some(&succeeded), &ended), Step::Release);
        let released = Facts { sandboxed: false, released: true, ..ended };
        assert_eq!(next(Some(&succeeded), &released), wait);
        assert_eq!(next(None, &released), Step::Remove);
        let evicted = facts(vec![fact("a", 0, UP)], 0);
        let stop = Step::Stop { containers: vec!["a".into()], grace_seconds: 30 };
        assert_eq!(next(Some(&succeeded), &evicted), stop);
        assert_eq!(next(Some(&succeeded), &Facts::default()), wait, "a pod that never was here");
    }

    #[test]
    fn a_deleted_pod_stops_then_is_removed_then_forgotten() {
        let pod = pod(
            "Always",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}}),
        );
        let stop = Step::Stop { containers: vec!["a".into()], grace_seconds: 5 };
        assert_eq!(next(Some(&pod), &facts(vec![fact("a", 0, UP)], 0)), stop);
        let ended = ContainerState::Exited { code: 0, started: 0, finished: 0 };
        assert_eq!(next(Some(&pod), &facts(vec![fact("a", 0, ended)], 0)), Step::Remove);
        assert_eq!(next(Some(&pod), &Facts::default()), Step::Forget);
        assert_eq!(next(None, &Facts::default()), Step::Wait { until: None });
    }
}
