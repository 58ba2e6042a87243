//! Which node a pod runs on.
//!
//! Decides by filter, score and explanation, in one pass over all pods that wait: sums include what this pass has placed. Nodes
//! are compared once per kind of pod, not once per pod. Must not make or remove pods.

mod filter;
mod score;

use std::collections::{BTreeMap, BTreeSet};

use api::Object;
use api::keys;
use api::kinds::Kind;
use serde_json::{Value, json};

use super::conditions::{self, Condition};
use super::index::{Known, Load};
use super::key::ObjectKey;
use super::pod::PodFacts;
use super::step::{Context, Step};
use filter::NodeFacts;
use score::Score;

/// The scheduler that pods mean when they name none.
const NAME: &str = "default-scheduler";

type Waiting<'a> = (&'a ObjectKey, &'a Known, &'a PodFacts);

/// What is placed in this pass counts at once.
struct Pass<'a> {
    cx: &'a Context<'a>,
    nodes: Vec<NodeFacts<'a>>,
    loads: Vec<Load>,
}

/// Places what can be placed, one step for each pod, and explains what cannot.
pub fn run(cx: &Context<'_>) -> Vec<Step> {
    let mut alike: BTreeMap<String, Vec<Waiting<'_>>> = BTreeMap::new();
    for key in cx.world.unscheduled() {
        let Some(known) = cx.known(key) else { continue };
        let Some(pod) = known.pod.as_ref().filter(|_| is_ours(&known.object)) else { continue };
        alike.entry(likeness(&known.object, pod)).or_default().push((key, known, pod));
    }
    if alike.is_empty() {
        return Vec::new();
    }
    let mut pass = Pass::new(cx);
    alike.into_values().flat_map(|pods| pass.place_alike(&pods)).collect()
}

fn is_ours(pod: &Object) -> bool {
    let name = pod.text("/spec/schedulerName");
    let gated = !pod.list("/spec/schedulingGates").is_empty();
    (name.is_empty() || name == NAME) && !gated
}

/// Pods of the same likeness fit on the same nodes and like them equally.
fn likeness(pod: &Object, facts: &PodFacts) -> String {
    let spec = &pod.0["spec"];
    let parts = json!([
        spec["nodeSelector"],
        spec["affinity"]["nodeAffinity"],
        spec["tolerations"],
        facts.host_ports
    ]);
    format!("{} {:?} {parts}", facts.group, facts.requests)
}

impl<'a> Pass<'a> {
    fn new(cx: &'a Context<'a>) -> Pass<'a> {
        let prefix = Kind::by_name("Node").map(|kind| keys::prefix(kind, None)).unwrap_or_default();
        let nodes: Vec<NodeFacts<'a>> =
            cx.world.below(&prefix).map(|(key, node)| NodeFacts::read(key, &node.object)).collect();
        let loads =
            nodes.iter().map(|node| cx.world.loads().get(node.name).cloned().unwrap_or_default()).collect();
        Pass { cx, nodes, loads }
    }

    fn place_alike(&mut self, pods: &[Waiting<'_>]) -> Vec<Step> {
        let Some((_, first, facts)) = pods.first() else { return Vec::new() };
        let mut spread = self.cx.world.spread(&facts.group);
        let suitable: Vec<usize> =
            (0..self.nodes.len()).filter(|at| self.nodes[*at].refuses(&first.object).is_none()).collect();
        let mut ranked: BTreeSet<Score> = BTreeSet::new();
        for at in suitable {
            ranked.extend(self.score(at, facts, &spread));
        }
        let mut steps = Vec::new();
        for (key, known, pod) in pods {
            let Some(best) = ranked.pop_first() else {
                steps.push(self.explain(key, known, pod));
                continue;
            };
            let at = best.node;
            self.loads[at].add(pod);
            *spread.entry(self.nodes[at].name.to_string()).or_default() += 1;
            ranked.extend(self.score(at, pod, &spread));
            steps.push(self.assign(key, known, at));
        }
        steps
    }

    /// How much a node is liked, if the pod still fits there.
    fn score(&self, at: usize, pod: &PodFacts, spread: &BTreeMap<String, u32>) -> Option<Score> {
        let (node, load) = (&self.nodes[at], &self.loads[at]);
        if !node.lacks(load, pod).is_empty() {
            return None;
        }
        let doubled = spread.get(node.name).copied().unwrap_or(0);
        Some(Score::of(at, node, load, pod, doubled))
    }

    fn assign(&self, key: &ObjectKey, known: &Known, at: usize) -> Step {
        let (node, mut placed) = (&self.nodes[at], known.object.clone());
        placed.set(&["spec", "nodeName"], json!(node.name));
        let condition = Condition { name: "PodScheduled", status: "True", reason: "", message: "" };
        conditions::set(&mut placed, &condition, &self.cx.time());
        let mut step = Step::default();
        let text = format!("Successfully assigned {}/{} to {}", placed.namespace(), placed.name(), node.name);
        step.tell((known.kind, &known.object), "Scheduled", text);
        step.read(node.key.clone());
        step.put(key.clone(), known.kind, placed);
        step
    }

    /// Says node by node why a pod does not fit, where that is news.
    fn explain(&self, key: &ObjectKey, known: &Known, pod: &PodFacts) -> Step {
        let message = self.why_not(&known.object, pod);
        let condition =
            Condition { name: "PodScheduled", status: "False", reason: "Unschedulable", message: &message };
        let mut waiting = known.object.clone();
        conditions::set(&mut waiting, &condition, &self.cx.time());
        let mut step = Step::default();
        if waiting != known.object {
            step.warn((known.kind, &known.object), "FailedScheduling", message);
        }
        step.put_changed(key, known, waiting);
        step
    }

    fn why_not(&self, pod: &Object, facts: &PodFacts) -> String {
        if self.nodes.is_empty() {
            return "no nodes available to schedule pods".into();
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (node, load) in self.nodes.iter().zip(&self.loads) {
            let reasons = node.refuses(pod).map_or_else(|| node.lacks(load, facts), |reason| vec![reason]);
            reasons.into_iter().for_each(|reason| *counts.entry(reason).or_default() += 1);
        }
        let mut parts: Vec<String> =
            counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        format!("0/{} nodes are available: {}.", self.nodes.len(), parts.join(", "))
    }
}

/// The value as text, for labels and selectors.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
