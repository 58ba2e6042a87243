//! What controllers and scheduler know of a pod, read once per change from its document.
//!
//! Decides how phase, conditions and requests are read; must not decide what follows from them.

use api::Object;
use api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::key::Uid;

/// What a container without requests counts for when nodes are compared (as in Kubernetes; never when they are filled).
const ASSUMED_CPU_MILLIS: i64 = 100;
const ASSUMED_MEMORY_BYTES: i64 = 200 << 20;

/// Where a pod stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// What a pod asks of its node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    /// The same with assumptions where nothing is requested: for comparing nodes.
    pub weighed_cpu_millis: i64,
    pub weighed_memory_bytes: i64,
}

/// A port of the node itself: protocol and number.
pub type HostPort = (String, u16);

/// One pod.
#[derive(Debug, Clone)]
pub struct PodFacts {
    /// Empty while it has none.
    pub node: String,
    pub phase: Phase,
    pub deleting: bool,
    /// Since when its Ready condition is True.
    pub ready_since: Option<Timestamp>,
    pub controller: Option<Uid>,
    pub requests: Requests,
    pub host_ports: Vec<HostPort>,
    /// Pods of one group are spread over nodes: those of one owner, else of equal labels.
    pub group: String,
}

impl PodFacts {
    pub fn read(pod: &Object) -> PodFacts {
        let phase = match pod.text("/status/phase") {
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            _ => Phase::Pending,
        };
        PodFacts {
            node: pod.text("/spec/nodeName").to_string(),
            phase,
            deleting: pod.is_deleting(),
            ready_since: ready_since(pod),
            controller: pod.controller_uid().map(Uid::new),
            requests: requests(pod),
            host_ports: host_ports(pod),
            group: group(pod),
        }
    }

    pub fn ended(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Counts for its controller: neither ended nor on its way out.
    pub fn is_active(&self) -> bool {
        !self.deleting && !self.ended()
    }

    pub fn is_ready(&self) -> bool {
        self.ready_since.is_some() && !self.ended()
    }

    /// When it counts as available, if it stays ready.
    pub fn available_from(&self, min_ready_seconds: i64) -> Option<Timestamp> {
        let since = self.ready_since.filter(|_| !self.ended())?;
        since.checked_add(SignedDuration::from_secs(min_ready_seconds)).ok()
    }
}

fn ready_since(pod: &Object) -> Option<Timestamp> {
    let conditions = pod.list("/status/conditions");
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    let since = ready["lastTransitionTime"].as_str().and_then(|text| text.parse().ok());
    (ready["status"] == "True").then(|| since.unwrap_or(Timestamp::UNIX_EPOCH))
}

fn group(pod: &Object) -> String {
    match (pod.controller_uid(), pod.labels()) {
        (Some(uid), _) => uid.to_string(),
        (None, Some(labels)) => format!("{} {}", pod.namespace(), Value::Object(labels.clone())),
        (None, None) => String::new(),
    }
}

fn host_ports(pod: &Object) -> Vec<HostPort> {
    let ports =
        pod.list("/spec/containers").iter().flat_map(|container| container["ports"].as_array()).flatten();
    let host_network = pod.0.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    let field = if host_network { "containerPort" } else { "hostPort" };
    ports
        .filter_map(|port| {
            let number = u16::try_from(port[field].as_u64()?).ok().filter(|number| *number > 0)?;
            Some((port["protocol"].as_str().unwrap_or("TCP").to_string(), number))
        })
        .collect()
}

/// Sum over the containers; a single init container may need more than all of them together.
fn requests(pod: &Object) -> Requests {
    let mut sum = Requests::default();
    for container in pod.list("/spec/containers") {
        let one = container_requests(container);
        sum.cpu_millis += one.cpu_millis;
        sum.memory_bytes += one.memory_bytes;
        sum.weighed_cpu_millis += one.weighed_cpu_millis;
        sum.weighed_memory_bytes += one.weighed_memory_bytes;
    }
    for container in pod.list("/spec/initContainers") {
        let one = container_requests(container);
        sum.cpu_millis = sum.cpu_millis.max(one.cpu_millis);
        sum.memory_bytes = sum.memory_bytes.max(one.memory_bytes);
        sum.weighed_cpu_millis = sum.weighed_cpu_millis.max(one.weighed_cpu_millis);
        sum.weighed_memory_bytes = sum.weighed_memory_bytes.max(one.weighed_memory_bytes);
    }
    sum
}

fn container_requests(container: &Value) -> Requests {
    let asked = |name: &str| quantity(&container["resources"]["requests"][name]);
    let cpu = asked("cpu").map(Quantity::millis);
    let memory = asked("memory").map(Quantity::units);
    Requests {
        cpu_millis: cpu.unwrap_or(0),
        memory_bytes: memory.unwrap_or(0),
        weighed_cpu_millis: cpu.unwrap_or(ASSUMED_CPU_MILLIS),
        weighed_memory_bytes: memory.unwrap_or(ASSUMED_MEMORY_BYTES),
    }
}

/// An amount as documents spell it: text or a bare number.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}
