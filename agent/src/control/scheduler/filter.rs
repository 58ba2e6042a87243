//! Whether a pod can run on a node.
//!
//! Decides by readiness, cordon, taints, selector, required node affinity, ports and room. Must not compare nodes.

use api::Object;
use serde_json::{Map, Value};

use super::text;
use crate::control::index::Load;
use crate::control::key::ObjectKey;
use crate::control::pod::{PodFacts, quantity};

/// One node, read once per pass.
pub struct NodeFacts<'a> {
    pub key: ObjectKey,
    pub name: &'a str,
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pods: i64,
    labels: Option<&'a Map<String, Value>>,
    taints: &'a [Value],
    unschedulable: bool,
    ready: bool,
}

impl<'a> NodeFacts<'a> {
    pub fn read(key: &ObjectKey, node: &'a Object) -> NodeFacts<'a> {
        let amount = |name: &str| node.0.pointer(&format!("/status/allocatable/{name}")).and_then(quantity);
        let conditions = node.list("/status/conditions");
        NodeFacts {
            key: key.clone(),
            name: node.name(),
            cpu_millis: amount("cpu").map_or(0, |amount| amount.millis()),
            memory_bytes: amount("memory").map_or(0, |amount| amount.units()),
            pods: amount("pods").map_or(0, |amount| amount.units()),
            labels: node.labels(),
            taints: node.list("/spec/taints"),
            unschedulable: node.0.pointer("/spec/unschedulable") == Some(&Value::Bool(true))
                || node.is_deleting(),
            ready: conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        }
    }

    /// Why a pod of this kind can never run here, whatever else does.
    pub fn refuses(&self, pod: &Object) -> Option<String> {
        match () {
            () if self.unschedulable => Some("node(s) were unschedulable".into()),
            () if self.untolerated(pod).is_some() => {
                let taint = self.untolerated(pod)?;
                Some(format!(
                    "node(s) had untolerated taint {{{}: {}}}",
                    text(&taint["key"]),
                    text(&taint["value"])
                ))
            }
            () if !self.ready => Some("node(s) were not ready".into()),
            () if !self.is_selected(pod) => Some("node(s) didn't match Pod's node affinity/selector".into()),
            () => None,
        }
    }

    /// What the node has too little of at present.
    pub fn lacks(&self, load: &Load, pod: &PodFacts) -> Vec<String> {
        if pod.host_ports.iter().any(|port| load.ports.contains_key(port)) {
            return vec!["node(s) didn't have free ports for the requested pod ports".into()];
        }
        let asked = &pod.requests;
        let is_short = |asked: i64, used: i64, all: i64| asked > 0 && used + asked > all;
        let mut lacking = Vec::new();
        if load.pods >= self.pods {
            lacking.push("Too many pods".into());
        }
        if is_short(asked.cpu_millis, load.cpu_millis, self.cpu_millis) {
            lacking.push("Insufficient cpu".into());
        }
        if is_short(asked.memory_bytes, load.memory_bytes, self.memory_bytes) {
            lacking.push("Insufficient memory".into());
        }
        lacking
    }

    fn untolerated(&self, pod: &Object) -> Option<&'a Value> {
        let tolerations = pod.list("/spec/tolerations");
        let keeps_away = |taint: &&Value| matches!(text(&taint["effect"]), "NoSchedule" | "NoExecute");
        self.taints.iter().filter(keeps_away).find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
    }

    fn is_selected(&self, pod: &Object) -> bool {
        let selector = pod.0.pointer("/spec/nodeSelector").and_then(Value::as_object);
        let labelled = selector.into_iter().flatten().all(|(key, value)| self.label(key) == value.as_str());
        let required =
            "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        let terms = pod.0.pointer(required).and_then(Value::as_array);
        labelled && terms.is_none_or(|terms| terms.iter().any(|term| self.is_meant(term)))
    }

    /// One term of a node selector; an empty one means nobody.
    fn is_meant(&self, term: &Value) -> bool {
        let list = |field: &str| term[field].as_array().map(Vec::as_slice).unwrap_or(&[]);
        let (labels, fields) = (list("matchExpressions"), list("matchFields"));
        let by_label = |rule: &Value| meets(rule, self.label(text(&rule["key"])));
        let by_field = |rule: &Value| meets(rule, (rule["key"] == "metadata.name").then_some(self.name));
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(by_label)
            && fields.iter().all(by_field)
    }

    fn label(&self, key: &str) -> Option<&'a str> {
        self.labels?.get(key)?.as_str()
    }
}

fn meets(rule: &Value, found: Option<&str>) -> bool {
    let values = || rule["values"].as_array().into_iter().flatten().map(text);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = || values().next().and_then(number);
    match text(&rule["operator"]) {
        "In" => found.is_some_and(|found| values().any(|value| value == found)),
        "NotIn" => found.is_none_or(|found| values().all(|value| value != found)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => found.and_then(number).zip(bound()).is_some_and(|(found, bound)| found > bound),
        "Lt" => found.and_then(number).zip(bound()).is_some_and(|(found, bound)| found < bound),
        _ => false,
    }
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (effect, key) = (text(&toleration["effect"]), text(&toleration["key"]));
    let effect_fits = effect.is_empty() || effect == text(&taint["effect"]);
    let key_fits = key == text(&taint["key"]);
    match text(&toleration["operator"]) {
        "Exists" => effect_fits && (key.is_empty() || key_fits),
        _ => effect_fits && key_fits && text(&toleration["value"]) == text(&taint["value"]),
    }
}
