//! The probes of one pod's containers: when each is due, and what its results mean.
//!
//! Decides who counts as started and ready, and who is restarted. It must not read clocks or probe anything
//! (`super::probing` does); times are milliseconds of one clock that never jumps.

use std::collections::BTreeMap;

use api::Object;
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    /// The field of a container that describes it.
    pub fn field(self) -> &'static str {
        match self {
            Kind::Startup => "startupProbe",
            Kind::Readiness => "readinessProbe",
            Kind::Liveness => "livenessProbe",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

const KINDS: [Kind; 3] = [Kind::Startup, Kind::Readiness, Kind::Liveness];

/// One probe of one attempt of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Which {
    pub container: String,
    pub attempt: u32,
    pub kind: Kind,
}

/// A container that runs. What its status said already counts for an agent that has just begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub container: String,
    pub attempt: u32,
    pub was_started: bool,
    pub was_ready: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// All containers that run now, no others.
    Running(Vec<Running>),
    /// A probe has ended.
    Ended { which: Which, outcome: Result<(), String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Probe(Which),
    /// The first failure after a success, or one for another reason than the last: worth telling.
    Unhealthy {
        which: Which,
        message: String,
    },
    /// Stop the container; the pod's restart policy does the rest.
    Restart {
        which: Which,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timing {
    delay_ms: u64,
    period_ms: u64,
    successes: u32,
    failures: u32,
}

#[derive(Debug, Default)]
struct Track {
    /// Not before then; none while it runs.
    due: Option<u64>,
    succeeded: u32,
    failed: u32,
    /// Why it failed last.
    reason: String,
}

#[derive(Debug)]
struct Tracked {
    attempt: u32,
    started: bool,
    ready: bool,
    tracks: BTreeMap<Kind, Track>,
}

/// All probes of a pod.
#[derive(Debug, Default)]
pub struct Probes {
    timings: BTreeMap<(String, Kind), Timing>,
    containers: BTreeMap<String, Tracked>,
}

/// The probe's document, if there is one of a form that is acted upon.
pub fn document(container: &Value, kind: Kind) -> Option<&Value> {
    let probe = container.get(kind.field())?;
    let plain_http = probe.get("httpGet").is_some_and(|http| http["scheme"] != "HTTPS");
    (plain_http || probe.get("exec").is_some() || probe.get("tcpSocket").is_some()).then_some(probe)
}

impl Probes {
    pub fn of(pod: &Object) -> Probes {
        let mut timings = BTreeMap::new();
        for container in pod.list("/spec/containers") {
            let name = container["name"].as_str().unwrap_or("");
            for kind in KINDS {
                if let Some(probe) = document(container, kind) {
                    timings.insert((name.to_string(), kind), timing(probe));
                }
            }
        }
        Probes { timings, containers: BTreeMap::new() }
    }

    pub fn started(&self, container: &str) -> bool {
        self.containers.get(container).is_none_or(|tracked| tracked.started)
    }

    pub fn ready(&self, container: &str) -> bool {
        self.containers.get(container).is_none_or(|tracked| tracked.started && tracked.ready)
    }

    /// When there is something to do without any news.
    pub fn next(&self) -> Option<u64> {
        self.containers
            .values()
            .flat_map(|tracked| tracked.tracks.values().filter_map(|track| track.due))
            .min()
    }

    pub fn handle(&mut self, now: u64, input: Input) -> Vec<Effect> {
        let mut effects = match input {
            Input::Running(running) => {
                self.follow(now, running);
                Vec::new()
            }
            Input::Ended { which, outcome } => self.ended(now, which, outcome),
        };
        self.begin_due(now, &mut effects);
        effects
    }

    fn follow(&mut self, now: u64, running: Vec<Running>) {
        self.containers.retain(|name, tracked| {
            running.iter().any(|now| now.container == *name && now.attempt == tracked.attempt)
        });
        for Running { container, attempt, was_started, was_ready } in running {
            if self.containers.contains_key(&container) {
                continue;
            }
            let has = |kind| self.timings.contains_key(&(container.clone(), kind));
            let mut tracked = Tracked {
                attempt,
                started: was_started || !has(Kind::Startup),
                ready: was_ready || !has(Kind::Readiness),
                tracks: BTreeMap::new(),
            };
            for kind in KINDS {
                let Some(timing) = self.timings.get(&(container.clone(), kind)) else { continue };
                // The others begin when this container counts as started.
                let waits = (kind == Kind::Startup) == tracked.started;
                // What an earlier agent found counts for a period: this one may still be setting up its network.
                let first = if was_ready { timing.period_ms } else { timing.delay_ms };
                let due = (!waits).then_some(now + first);
                tracked.tracks.insert(kind, Track { due, ..Track::default() });
            }
            self.containers.insert(container, tracked);
        }
    }

    fn ended(&mut self, now: u64, which: Which, outcome: Result<(), String>) -> Vec<Effect> {
        let key = (which.container.clone(), which.kind);
        let (Some(timing), Some(tracked)) =
            (self.timings.get(&key).copied(), self.containers.get_mut(&which.container))
        else {
            return Vec::new();
        };
        if tracked.attempt != which.attempt {
            return Vec::new();
        }
        let Some(track) = tracked.tracks.get_mut(&which.kind) else { return Vec::new() };
        track.due = Some(now + timing.period_ms);
        match outcome {
            Ok(()) => {
                (track.succeeded, track.failed) = (track.succeeded.saturating_add(1), 0);
                if track.succeeded >= timing.successes {
                    tracked.succeeded(now, which.kind);
                }
                Vec::new()
            }
            Err(message) => {
                (track.failed, track.succeeded) = (track.failed.saturating_add(1), 0);
                let (failed, enough) = (track.failed, track.failed >= timing.failures);
                let mut effects = Vec::new();
                if failed == 1 || track.reason != message {
                    track.reason.clone_from(&message);
                    effects.push(Effect::Unhealthy { which: which.clone(), message });
                }
                if enough && which.kind == Kind::Readiness {
                    tracked.ready = false;
                } else if enough {
                    // Counted anew: should the stop fail, it is tried again.
                    track.failed = 0;
                    effects.push(Effect::Restart { which });
                }
                effects
            }
        }
    }

    fn begin_due(&mut self, now: u64, effects: &mut Vec<Effect>) {
        for (name, tracked) in &mut self.containers {
            for (kind, track) in &mut tracked.tracks {
                if track.due.is_some_and(|due| due <= now) {
                    track.due = None;
                    let (container, attempt) = (name.clone(), tracked.attempt);
                    effects.push(Effect::Probe(Which { container, attempt, kind: *kind }));
                }
            }
        }
    }
}

impl Tracked {
    fn succeeded(&mut self, now: u64, kind: Kind) {
        match kind {
            Kind::Startup => {
                self.started = true;
                for (kind, track) in &mut self.tracks {
                    track.due = (*kind != Kind::Startup).then_some(now);
                }
            }
            Kind::Readiness => self.ready = true,
            Kind::Liveness => {}
        }
    }
}

fn timing(probe: &Value) -> Timing {
    let number = |field: &str, or: u64| probe[field].as_u64().unwrap_or(or);
    let count = |field: &str, or: u64| u32::try_from(number(field, or).max(1)).unwrap_or(u32::MAX);
    Timing {
        delay_ms: number("initialDelaySeconds", 0).saturating_mul(1000),
        period_ms: number("periodSeconds", 10).max(1).saturating_mul(1000),
        successes: count("successThreshold", 1),
        failures: count("failureThreshold", 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn probes(container: Value) -> Probes {
        let mut container = container;
        container["name"] = json!("a");
        Probes::of(&Object(json!({"spec": {"containers": [container]}})))
    }

    fn probe(extra: Value) -> Value {
        let mut probe = json!({"tcpSocket": {"port": 80}, "periodSeconds": 10, "failureThreshold": 2, "successThreshold": 1});
        for (key, value) in extra.as_object().unwrap() {
            probe[key] = value.clone();
        }
        probe
    }

    fn up(attempt: u32, was_ready: bool) -> Input {
        Input::Running(vec![Running { container: "a".into(), attempt, was_started: was_ready, was_ready }])
    }

    fn which(kind: Kind) -> Which {
        Which { container: "a".into(), attempt: 0, kind }
    }

    fn ended(kind: Kind, good: bool) -> Input {
        Input::Ended { which: which(kind), outcome: if good { Ok(()) } else { Err("no".into()) } }
    }

    fn begins(kind: Kind) -> Vec<Effect> {
        vec![Effect::Probe(which(kind))]
    }

    #[test]
    fn without_probes_whoever_runs_is_ready() {
        let mut probes = probes(json!({}));
        assert_eq!(probes.handle(0, up(0, false)), []);
        assert!(probes.ready("a") && probes.started("a"));
        assert_eq!(probes.next(), None);
    }

    #[test]
    fn readiness_comes_with_enough_successes_and_goes_with_enough_failures() {
        let mut probes = probes(
            json!({"readinessProbe": probe(json!({"initialDelaySeconds": 5, "successThreshold": 2}))}),
        );
        assert_eq!(probes.handle(1_000, up(0, false)), []);
        assert!(!probes.ready("a") && probes.started("a"));
        assert_eq!(probes.next(), Some(6_000));
        assert_eq!(probes.handle(6_000, up(0, false)), begins(Kind::Readiness));
        assert_eq!(probes.next(), None, "one at a time");
        probes.handle(6_100, ended(Kind::Readiness, true));
        assert!(!probes.ready("a"));
        assert_eq!(probes.handle(16_100, up(0, false)), begins(Kind::Readiness));
        probes.handle(16_200, ended(Kind::Readiness, true));
        assert!(probes.ready("a"));
        let told = probes.handle(26_200, ended(Kind::Readiness, false));
        assert!(matches!(told[..], [Effect::Unhealthy { .. }]), "{told:?}");
        assert!(probes.ready("a"), "one failure is none");
        assert_eq!(probes.handle(26_300, ended(Kind::Readiness, false)), [], "never restarts, told once");
        assert!(!probes.ready("a"));
    }

    #[test]
    fn liveness_restarts_after_enough_failures_in_a_row() {
        let mut probes = probes(json!({"livenessProbe": probe(json!({}))}));
        assert_eq!(probes.handle(0, up(0, false)), begins(Kind::Liveness));
        assert!(probes.ready("a"));
        probes.handle(1, ended(Kind::Liveness, false));
        probes.handle(2, ended(Kind::Liveness, true));
        probes.handle(3, ended(Kind::Liveness, false));
        assert_eq!(
            probes.handle(4, ended(Kind::Liveness, false)),
            [Effect::Restart { which: which(Kind::Liveness) }]
        );
        assert_eq!(probes.handle(5, ended(Kind::Liveness, false)).len(), 1, "counted anew");
    }

    #[test]
    fn nothing_else_is_probed_before_the_start_has_succeeded() {
        let all = json!({"startupProbe": probe(json!({})), "readinessProbe": probe(json!({})), "livenessProbe": probe(json!({}))});
        let mut probes = probes(all);
        assert_eq!(probes.handle(0, up(0, false)), begins(Kind::Startup));
        assert!(!probes.started("a"));
        probes.handle(1, ended(Kind::Startup, false));
        let began = probes.handle(2, ended(Kind::Startup, true));
        assert_eq!(began, [begins(Kind::Readiness), begins(Kind::Liveness)].concat());
        assert!(probes.started("a") && !probes.ready("a"));
        probes.handle(3, ended(Kind::Readiness, true));
        assert!(probes.ready("a"));
        assert_eq!(
            probes.handle(100_000, up(0, false)),
            begins(Kind::Readiness),
            "the start is not probed again"
        );
    }

    #[test]
    fn a_start_that_never_succeeds_is_a_restart() {
        let mut probes = probes(json!({"startupProbe": probe(json!({}))}));
        probes.handle(0, up(0, false));
        probes.handle(1, ended(Kind::Startup, false));
        let effects = probes.handle(2, ended(Kind::Startup, false));
        assert_eq!(effects, [Effect::Restart { which: which(Kind::Startup) }]);
    }

    #[test]
    fn results_of_an_earlier_attempt_are_nobodys() {
        let mut probes = probes(json!({"readinessProbe": probe(json!({}))}));
        probes.handle(0, up(0, false));
        let new = Which { attempt: 1, ..which(Kind::Readiness) };
        assert_eq!(probes.handle(1, up(1, false)), [Effect::Probe(new)]);
        probes.handle(2, ended(Kind::Readiness, true));
        assert!(!probes.ready("a"));
        assert_eq!(probes.handle(3, Input::Running(vec![])), []);
    }

    #[test]
    fn a_new_agent_takes_a_ready_container_for_ready() {
        let all = json!({"startupProbe": probe(json!({})), "readinessProbe": probe(json!({}))});
        let mut probes = probes(all);
        assert_eq!(probes.handle(0, up(0, true)), []);
        assert!(probes.ready("a") && probes.started("a"));
        assert_eq!(probes.handle(10_000, up(0, true)), begins(Kind::Readiness), "after a period");
    }
}
