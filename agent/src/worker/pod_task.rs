//! The task of one pod: looks, asks [`plan`], acts, reports; again when something changed.
//!
//! Decides only how long to wait after an action failed. It must not act without the plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::{Object, keys};
use runtime::ids::{ContainerName, PodUid};
use runtime::state::{ContainerStatus, Exit, PodState};
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{debug, info, warn};

use super::host_ports::{self, OwnPorts};
use super::plan::{self, ContainerFact, Facts, Step};
use super::probes::{Effect, Input, Probes, Running, Which};
use super::probing;
use super::status::{self, Seen, Waiting};
use super::{pods, spec};
use crate::clock;
use crate::cluster::Cluster;
use crate::events::Report;
use crate::fabric;
use crate::objects::{Target, shown};
use crate::store::Plan;

/// Longest wait between two tries of an action that fails.
const RETRY_MOST: Duration = Duration::from_secs(10);

/// The reasons that Kubernetes users know: of the first try, and of all others.
const PULLING: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

/// Drives one pod.
pub struct PodTask {
    cluster: Arc<Cluster>,
    uid: PodUid,
    pod: watch::Receiver<Option<Object>>,
    wake: Arc<Notify>,
    /// The last object seen: a pod whose object is gone still has a name for messages.
    last: Option<Object>,
    waiting: BTreeMap<String, Waiting>,
    /// Why the pod as a whole was last refused.
    refused: Option<String>,
    earlier: BTreeMap<String, Exit>,
    failures: u32,
    /// The network stands, host ports included.
    attached: bool,
    probes: Probes,
    /// Of which pod's object the probes are made.
    probed: Option<String>,
    ended_probes: mpsc::UnboundedReceiver<Input>,
    probe_ended: mpsc::UnboundedSender<Input>,
    results: Vec<Input>,
}

/// An action failed.
#[derive(Debug, thiserror::Error)]
enum ActError {
    #[error("{0}")]
    Failed(String),
    /// The pod as a whole cannot be had, and people are told why.
    #[error("{0}")]
    Sandbox(String),
    #[error("{message}")]
    Container { name: String, reason: &'static str, message: String },
}

fn failed(error: impl std::fmt::Display) -> ActError {
    ActError::Failed(error.to_string())
}

impl PodTask {
    pub fn new(
        cluster: Arc<Cluster>,
        uid: PodUid,
        pod: watch::Receiver<Option<Object>>,
        wake: Arc<Notify>,
    ) -> PodTask {
        let (probe_ended, ended_probes) = mpsc::unbounded_channel();
        PodTask {
            cluster,
            uid,
            pod,
            wake,
            last: None,
            waiting: BTreeMap::new(),
            refused: None,
            earlier: BTreeMap::new(),
            failures: 0,
            attached: false,
            probes: Probes::default(),
            probed: None,
            ended_probes,
            probe_ended,
            results: Vec::new(),
        }
    }

    pub async fn run(mut self) {
        self.attached = attached_before(self.cluster.runtime.pod(&self.uid).await.as_ref());
        loop {
            let pod = self.pod.borrow_and_update().clone();
            let gone = pod.is_none();
            if let Some(pod) = &pod {
                self.last = Some(pod.clone());
            }
            let state = self.cluster.runtime.pod(&self.uid).await;
            let mut facts = facts(state.as_ref(), clock::wall().as_millisecond());
            facts.sandboxed &= self.attached;
            let failing = self.probe(pod.as_ref(), state.as_ref()).await;
            let step = match (plan::next(pod.as_ref(), &facts), failing) {
                (Step::Wait { .. } | Step::Start { .. }, Some(stop)) => stop,
                (step, _) => step,
            };
            if let Some(pod) = &pod {
                self.report(pod, state.as_ref()).await;
            }
            match step {
                Step::Wait { .. } if gone && !facts.known => return,
                Step::Wait { until } => self.pause(until).await,
                step => {
                    let began = clock::millis();
                    let acted = self.act(&step, pod.as_ref()).await;
                    let took_ms = clock::millis().saturating_sub(began);
                    debug!(pod = %self.title(), ?step, took_ms, done = acted.is_ok(), "step");
                    match acted {
                        Ok(()) => self.failures = 0,
                        Err(error) => self.cope(error).await,
                    }
                }
            }
        }
    }

    /// Follows the containers with their probes; a container that one of them condemned is to be stopped.
    async fn probe(&mut self, pod: Option<&Object>, state: Option<&PodState>) -> Option<Step> {
        let Some(pod) = pod.filter(|pod| !matches!(pod.text("/status/phase"), "Succeeded" | "Failed")) else {
            // Whoever ended the pod from outside ended its probes: what is due no more must not wake this task.
            (self.probes, self.probed) = (Probes::default(), None);
            return None;
        };
        if self.probed.as_deref() != Some(pod.uid()) {
            (self.probes, self.probed) = (Probes::of(pod), Some(pod.uid().to_string()));
        }
        let mut inputs = vec![Input::Running(running(pod, state))];
        inputs.append(&mut self.results);
        while let Ok(ended) = self.ended_probes.try_recv() {
            inputs.push(ended);
        }
        let mut stop = None;
        for input in inputs {
            for effect in self.probes.handle(clock::millis(), input) {
                match effect {
                    Effect::Probe(which) => self.begin_probe(pod, which),
                    Effect::Unhealthy { which, message } => {
                        let message = format!("{} probe failed: {message}", which.kind.word());
                        Report::warning(pods(), pod, "Unhealthy", &message).send_later(&self.cluster);
                    }
                    Effect::Restart { which } => stop = Some(condemned(pod, &which)),
                }
            }
        }
        stop
    }

    fn begin_probe(&self, pod: &Object, which: Which) {
        let container = document(pod, &which.container);
        let host_network = pod.0.pointer("/spec/hostNetwork") == Some(&json!(true));
        let address = self.cluster.addresses.get(pod.uid()).filter(|_| !host_network);
        let target = probing::Target {
            uid: self.uid.clone(),
            probe: container[which.kind.field()].clone(),
            container,
            address: address.map_or_else(|| self.cluster.host_ip(), |address| address.to_string()),
        };
        let (cluster, ended) = (self.cluster.clone(), self.probe_ended.clone());
        clock::spawn(async move {
            let outcome = probing::once(&cluster, &target).await;
            // The pod's task may have ended meanwhile.
            let _ = ended.send(Input::Ended { which, outcome });
        });
    }

    async fn pause(&mut self, until: Option<i64>) {
        let now = clock::wall().as_millisecond();
        let wait = until.map_or(Duration::from_secs(3600), |until| {
            Duration::from_millis(u64::try_from(until - now).unwrap_or(0))
        });
        let probe = self.probes.next().map(|due| Duration::from_millis(due.saturating_sub(clock::millis())));
        let wait = probe.map_or(wait, |probe| probe.min(wait));
        self.wait_for_change(wait).await;
    }

    async fn wait_for_change(&mut self, at_most: Duration) {
        tokio::select! {
            () = tokio::time::sleep(at_most) => {}
            () = self.wake.notified() => {}
            Some(ended) = self.ended_probes.recv() => self.results.push(ended),
            changed = self.pod.changed() => if changed.is_err() {
                tokio::time::sleep(at_most).await;
            },
        }
    }

    /// Namespace and name, as far as they are known.
    fn title(&self) -> String {
        let known = self.last.as_ref();
        known.map_or(self.uid.as_str().to_string(), |pod| format!("{}/{}", pod.namespace(), pod.name()))
    }

    async fn cope(&mut self, error: ActError) {
        warn!(pod = %self.title(), %error, "a step failed");
        if let (ActError::Sandbox(message), Some(pod)) = (&error, &self.last)
            && self.refused.as_ref() != Some(message)
        {
            Report::warning(pods(), pod, "FailedCreatePodSandBox", message).send(&self.cluster).await;
            self.refused = Some(message.clone());
        }
        if let ActError::Container { name, reason, message } = &error {
            let waiting = Waiting { reason, message: message.clone() };
            if self.waiting.get(name) != Some(&waiting) {
                if let Some(pod) = &self.last {
                    Report::warning(pods(), pod, "Failed", message).send(&self.cluster).await;
                }
                self.waiting.insert(name.clone(), waiting);
            }
            let pod = self.pod.borrow().clone();
            if let Some(pod) = pod {
                let state = self.cluster.runtime.pod(&self.uid).await;
                self.report(&pod, state.as_ref()).await;
            }
        }
        self.failures = (self.failures + 1).min(8);
        let wait = Duration::from_millis(100 << self.failures).min(RETRY_MOST);
        self.wait_for_change(wait).await;
    }

    async fn act(&mut self, step: &Step, pod: Option<&Object>) -> Result<(), ActError> {
        let runtime = &self.cluster.runtime;
        match step {
            Step::Sandbox => self.sandbox(pod.ok_or_else(|| failed("the pod is gone"))?).await,
            Step::Start { container, attempt, init } => {
                let pod = pod.ok_or_else(|| failed("the pod is gone"))?.clone();
                self.start(&pod, container, *attempt, *init).await
            }
            Step::Discard { container } => {
                let name = ContainerName::new(container.as_str()).map_err(failed)?;
                runtime.remove_container(&self.uid, &name).await.map_err(failed)
            }
            Step::Stop { containers, grace_seconds } => {
                let grace = Duration::from_secs(u64::try_from(*grace_seconds).unwrap_or(0));
                if let Some(pod) = pod {
                    Report::normal(
                        pods(),
                        pod,
                        "Killing",
                        &format!("Stopping container {}", containers.join(", ")),
                    )
                    .send(&self.cluster)
                    .await;
                }
                let names: Result<Vec<_>, _> =
                    containers.iter().map(|name| ContainerName::new(name.as_str())).collect();
                runtime.stop_containers(&self.uid, &names.map_err(failed)?, grace).await.map_err(failed)
            }
            Step::Release => {
                self.cluster.fabric.detach(self.uid.as_str()).await;
                runtime.release_pod(&self.uid).await.map_err(failed)?;
                self.cluster.addresses.take_back(self.uid.as_str());
                Ok(())
            }
            Step::Remove => {
                self.cluster.fabric.detach(self.uid.as_str()).await;
                runtime.remove_pod(&self.uid).await.map_err(failed)?;
                self.cluster.addresses.take_back(self.uid.as_str());
                Ok(())
            }
            Step::Forget => self.forget().await,
            Step::Wait { .. } => Ok(()),
        }
    }

    async fn sandbox(&mut self, pod: &Object) -> Result<(), ActError> {
        self.attached = false;
        let address = self.cluster.addresses.give(pod.uid()).map_err(failed)?;
        let refused = |error: &dyn std::fmt::Display| ActError::Sandbox(error.to_string());
        let mut spec = spec::sandbox(pod, &address.to_string()).map_err(|error| refused(&error))?;
        let taken =
            OwnPorts { api: self.cluster.config.api_port, mesh: self.cluster.identity.member.address.port() };
        spec.port_mappings = host_ports::mappings(pod, taken).map_err(|error| refused(&error))?;
        let sandbox = self.cluster.runtime.create_pod(spec.clone()).await.map_err(failed)?;
        if let Some(netns) = sandbox.network_namespace {
            let local = fabric::local_pod(&spec, address, netns);
            let began = clock::millis();
            self.cluster.fabric.attach(local).await.map_err(|error| refused(&error))?;
            debug!(pod = %self.title(), took_ms = clock::millis().saturating_sub(began), "attached to the network");
        }
        self.attached = true;
        Ok(())
    }

    async fn start(&mut self, pod: &Object, name: &str, attempt: u32, init: bool) -> Result<(), ActError> {
        let problem = |reason: &'static str, message: String| ActError::Container {
            name: name.into(),
            reason,
            message,
        };
        let list = if init { "/spec/initContainers" } else { "/spec/containers" };
        let reference = pod
            .list(list)
            .iter()
            .find(|container| container["name"] == name)
            .and_then(|container| container["image"].as_str())
            .unwrap_or("");
        let image = match self.cluster.images.ensure(&self.cluster, reference).await {
            Ok(image) => image,
            Err(error) => {
                let again = self.waiting.get(name).is_some_and(|waiting| PULLING.contains(&waiting.reason));
                return Err(match again {
                    false => problem(PULLING[0], error.to_string()),
                    true => problem(PULLING[1], format!("Back-off pulling image \"{reference}\": {error}")),
                });
            }
        };
        let view = self.cluster.store.view();
        let config_map = |name: &str| {
            let kind = Kind::by_name("ConfigMap")?;
            shown(view.get(keys::object(kind, pod.namespace(), name).as_bytes())?).ok()
        };
        let address =
            self.cluster.addresses.get(pod.uid()).map(|address| address.to_string()).unwrap_or_default();
        let around = spec::Surroundings {
            config_map: &config_map,
            pod_ip: &address,
            host_ip: &self.cluster.host_ip(),
            node: self.cluster.name(),
        };
        let spec = spec::container(pod, name, init, attempt, image, &around)
            .map_err(|error| problem("CreateContainerConfigError", error.to_string()))?;
        if let Some(state) = self.cluster.runtime.pod(&self.uid).await
            && let Some(ended) = state.containers.iter().find(|state| state.name.as_str() == name)
            && let ContainerStatus::Exited(exit) = &ended.status
        {
            self.earlier.insert(name.into(), exit.clone());
        }
        match self.cluster.runtime.start_container(&self.uid, spec).await {
            Ok(_) => {
                self.waiting.remove(name);
                Report::normal(pods(), pod, "Started", &format!("Started container {name}"))
                    .send_later(&self.cluster);
                Ok(())
            }
            // Recorded by the runtime as this attempt's exit: the plan sees it.
            Err(runtime::StartError::CannotRun(exit)) => {
                info!(pod = pod.name(), container = name, message = %exit.message, "cannot run");
                Ok(())
            }
            Err(error) => Err(problem("CreateContainerError", error.to_string())),
        }
    }

    /// Deletes the object of a pod that has gone from this node, if it is still the same pod.
    async fn forget(&self) -> Result<(), ActError> {
        let Some(pod) = &self.last else { return Ok(()) };
        let target = Target { kind: pods(), namespace: pod.namespace(), name: pod.name() };
        let view = self.cluster.store.view();
        let Some(entry) = view.get(target.key().as_bytes()) else { return self.settle().await };
        let current = shown(entry).map_err(failed)?;
        if current.uid() != pod.uid() {
            return self.settle().await;
        }
        if !current.finalizers().is_empty() {
            // Somebody still has to see it go; the change that takes the last finalizer away wakes this task.
            return Err(failed(format!("waits for finalizers {}", current.finalizers().join(", "))));
        }
        let plan = Plan::new().expect_revision(&target.key(), entry.mod_revision().0).delete(&target.key());
        self.cluster.store.transact(plan.build(), None).await.map_err(failed)?;
        self.settle().await
    }

    /// Waits until the deletion has come back as a change, so that it is not done twice.
    async fn settle(&self) -> Result<(), ActError> {
        let mut pod = self.pod.clone();
        let _ = tokio::time::timeout(Duration::from_secs(1), pod.wait_for(Option::is_none)).await;
        Ok(())
    }

    /// Writes the status when it shows something new.
    async fn report(&mut self, pod: &Object, state: Option<&PodState>) {
        if matches!(pod.text("/status/phase"), "Succeeded" | "Failed") {
            return;
        }
        let host_network = pod.0.pointer("/spec/hostNetwork") == Some(&json!(true));
        let host_ip = self.cluster.host_ip();
        let address = self.cluster.addresses.get(pod.uid()).map(|address| address.to_string());
        let sandboxed = state.is_some_and(|state| state.sandboxed);
        let pod_ip = if host_network { Some(host_ip.clone()) } else { address.filter(|_| sandboxed) };
        let containers = state.map(|state| state.containers.as_slice()).unwrap_or(&[]);
        let seen = Seen {
            containers,
            waiting: &self.waiting,
            pod_ip,
            host_ip: &host_ip,
            earlier: &self.earlier,
            probes: &self.probes,
            now: clock::wall(),
        };
        let status = status::of(pod, &seen);
        if pod.0["status"] == status {
            return;
        }
        if let Err(error) = self.write_status(pod, &status).await {
            warn!(pod = pod.name(), %error, "the pod's status could not be written; tried again at its next change");
            // Not lost: the next look finds the difference again.
            self.wake.notify_one();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn write_status(&self, pod: &Object, status: &serde_json::Value) -> Result<(), ActError> {
        let key = keys::object(pods(), pod.namespace(), pod.name());
        for _ in 0..8 {
            let view = self.cluster.store.view();
            let Some(entry) = view.get(key.as_bytes()) else { return Ok(()) };
            let mut current = shown(entry).map_err(failed)?.without_resource_version();
            if current.uid() != pod.uid() || current.0["status"] == *status {
                return Ok(());
            }
            current.0["status"] = status.clone();
            let plan = Plan::new().expect_revision(&key, entry.mod_revision().0).put(&key, current.to_vec());
            match self.cluster.store.transact(plan.build(), None).await {
                Ok(revision) => {
                    let _ = self.cluster.store.at_least(revision).await;
                    return Ok(());
                }
                Err(crate::store::TransactError::CompareFailed { actual: Some(actual), .. }) => {
                    let _ = self.cluster.store.at_least(actual).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed("other writes were faster eight times in a row"))
    }
}

/// Whether an earlier agent's sandbox is attached: the fabric's own start does it. Host ports may have been refused to it, unless
/// a container has begun since; asking again is harmless.
fn attached_before(state: Option<&PodState>) -> bool {
    state.is_none_or(|state| state.spec.port_mappings.is_empty() || !state.containers.is_empty())
}

fn document(pod: &Object, name: &str) -> serde_json::Value {
    pod.list("/spec/containers")
        .iter()
        .find(|container| container["name"] == name)
        .cloned()
        .unwrap_or_default()
}

/// Stopped like any other, with the time that the probe allows, if it says so.
fn condemned(pod: &Object, which: &Which) -> Step {
    let own = document(pod, &which.container)[which.kind.field()]["terminationGracePeriodSeconds"].as_i64();
    let grace_seconds = own.unwrap_or_else(|| pod.int("/spec/terminationGracePeriodSeconds"));
    Step::Stop { containers: vec![which.container.clone()], grace_seconds }
}

/// The containers that run, with what the pod's status says of the same attempts already.
fn running(pod: &Object, state: Option<&PodState>) -> Vec<Running> {
    let containers = state.map(|state| state.containers.as_slice()).unwrap_or(&[]);
    let up = containers.iter().filter(|state| matches!(state.status, ContainerStatus::Running(_)));
    let running = up.map(|state| {
        let (container, attempt) = (state.name.as_str().to_string(), state.attempt);
        let id = status::container_id(pod, &container, attempt);
        let known = pod.list("/status/containerStatuses").iter().find(|known| known["containerID"] == id);
        let says = |field: &str| known.is_some_and(|known| known[field] == true);
        Running { was_started: says("started"), was_ready: says("ready"), container, attempt }
    });
    running.collect()
}

fn facts(state: Option<&PodState>, now: i64) -> Facts {
    let Some(state) = state else { return Facts { now, ..Facts::default() } };
    let millis = |time: runtime::clock::Timestamp| time.nanos() / 1_000_000;
    let containers = state.containers.iter().map(|container| ContainerFact {
        name: container.name.as_str().into(),
        attempt: container.attempt,
        state: match &container.status {
            ContainerStatus::Creating => plan::ContainerState::Stale,
            ContainerStatus::Running(started) => {
                plan::ContainerState::Running { since: millis(started.started_at) }
            }
            ContainerStatus::Exited(exit) => {
                let finished = millis(exit.finished_at);
                plan::ContainerState::Exited {
                    code: exit.code,
                    started: exit.started_at.map_or(finished, millis),
                    finished,
                }
            }
        },
    });
    Facts {
        sandboxed: state.sandboxed,
        known: true,
        released: state.released,
        containers: containers.collect(),
        now,
    }
}

#[cfg(test)]
mod tests {
    use runtime::spec::{PodSpec, PortMapping, PortProtocol};
    use runtime::state::ContainerState;

    use super::*;

    #[test]
    fn the_network_of_a_pod_with_host_ports_is_asked_for_again_until_a_container_has_begun() {
        let mapping = PortMapping { protocol: PortProtocol::Tcp, host_port: 8080, container_port: 80 };
        let begun = ContainerState {
            name: ContainerName::new("c").unwrap(),
            attempt: 0,
            image: runtime::ids::Digest::of(b"image"),
            status: ContainerStatus::Creating,
        };
        let before = |port_mappings: &[PortMapping], containers: &[ContainerState]| {
            let mut spec = PodSpec::new(PodUid::new("a-1").unwrap(), "default", "a");
            spec.port_mappings = port_mappings.to_vec();
            let containers = containers.to_vec();
            attached_before(Some(&PodState { spec, sandboxed: true, released: false, containers }))
        };
        assert!(before(&[], &[]));
        assert!(before(&[mapping], std::slice::from_ref(&begun)));
        assert!(!before(&[mapping], &[]));
    }
}
