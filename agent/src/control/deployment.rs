//! Deployments: one ReplicaSet for each version of the template, moved from the old to the new within surge and unavailability.
//!
//! Decides which sets there are and what each should have ([`rolling`]), and says how far it is ([`status`]). Must not make or
//! remove pods.

mod rolling;
mod status;

use api::kinds::Kind;
use api::{Object, keys, names};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::index::Known;
use super::key::ObjectKey;
use super::replica_set::{Tally, tally};
use super::step::{Context, Step};
use super::{queue, removal, template};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One of the deployment's sets, as it is and as it should become.
struct Set {
    key: ObjectKey,
    kind: &'static Kind,
    /// `None` for a new one.
    before: Option<Object>,
    object: Object,
    tally: Tally,
    gone: bool,
}

impl Set {
    fn replicas(&self) -> i64 {
        self.object.int("/spec/replicas")
    }

    fn scale(&mut self, replicas: i64) {
        if replicas == self.replicas() {
            return;
        }
        self.object.set(&["spec", "replicas"], json!(replicas));
        if let Some(before) = &self.before {
            self.object.set(&["metadata", "generation"], json!(before.generation() + 1));
        }
    }

    fn revision(&self) -> i64 {
        self.object.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// A deployment with its sets, while it is being decided about.
struct Rollout<'a> {
    cx: &'a Context<'a>,
    known: &'a Known,
    /// As it should become.
    object: Object,
    sets: Vec<Set>,
    /// The set of the present template.
    current: Option<usize>,
    created: bool,
}

/// Brings one deployment's sets and status in line with its spec.
pub fn reconcile(cx: &Context<'_>, key: &ObjectKey) -> Step {
    let Some(known) = cx.known(key) else { return Step::default() };
    let mut rollout = Rollout::read(cx, known);
    if !known.object.is_deleting() {
        rollout.choose_current();
        rolling::scale(&mut rollout);
        rollout.forget_history();
    }
    let mut step = Step::default();
    status::write(&mut rollout, &mut step);
    rollout.say(key, step)
}

impl<'a> Rollout<'a> {
    fn read(cx: &'a Context<'a>, known: &'a Known) -> Rollout<'a> {
        let mut rollout = Rollout {
            cx,
            known,
            object: known.object.clone(),
            sets: Vec::new(),
            current: None,
            created: false,
        };
        for (key, set) in cx.world.controlled(known.object.uid(), "ReplicaSet") {
            rollout.sets.push(rollout.set(key, set, set.object.clone()));
        }
        if !known.object.is_deleting() {
            rollout.adopt();
        }
        rollout.sets.retain(|set| !set.object.is_deleting());
        rollout.sets.sort_by_cached_key(|set| {
            (set.object.text("/metadata/creationTimestamp").to_string(), set.key.clone())
        });
        rollout
    }

    fn set(&self, key: &ObjectKey, set: &Known, object: Object) -> Set {
        let tally = tally(self.cx, set.object.uid(), self.known.object.int("/spec/minReadySeconds"));
        Set { key: key.clone(), kind: set.kind, before: Some(set.object.clone()), object, tally, gone: false }
    }

    /// Takes over sets that the selector matches and nobody controls.
    fn adopt(&mut self) {
        let Some(kind) = Kind::by_name("ReplicaSet") else { return };
        let prefix = keys::prefix(kind, Some(self.object.namespace()));
        for (key, set) in self.cx.world.below(&prefix) {
            let orphan = set.object.controller_uid().is_none() && !set.object.is_deleting();
            if orphan && queue::selects(self.known, &set.object) {
                self.sets.push(self.set(key, set, template::adopted(&set.object, self.known)));
            }
        }
    }

    fn replicas(&self) -> i64 {
        self.object.int("/spec/replicas")
    }

    fn is_paused(&self) -> bool {
        self.object.0.pointer("/spec/paused") == Some(&json!(true))
    }

    /// Finds the set of the present template, or makes it.
    fn choose_current(&mut self) {
        let wanted = bare_template(&self.object);
        self.current = self.sets.iter().position(|set| bare_template(&set.object) == wanted);
        if self.current.is_none() && !self.is_paused() && self.cx.is_open(self.object.namespace()) {
            self.make_current();
        }
        if !self.is_paused() {
            self.number_current();
        }
        let revision =
            self.current.and_then(|at| self.sets[at].object.annotation(REVISION)).map(String::from);
        if let Some(revision) = revision {
            self.object.set_annotation(REVISION, &revision);
        }
    }

    fn make_current(&mut self) {
        let Some(kind) = Kind::by_name("ReplicaSet") else { return };
        let (name, hash) = self.free_hash(kind);
        let spec = &self.object.0["spec"];
        let mut set = Object(json!({
            "metadata": {"name": name, "ownerReferences": [template::controller_reference(self.known)]},
            "spec": {"replicas": 0, "selector": spec["selector"], "template": spec["template"]},
        }));
        if let Some(seconds) = spec.get("minReadySeconds") {
            set.set(&["spec", "minReadySeconds"], seconds.clone());
        }
        set.set(&["spec", "selector", "matchLabels", HASH], json!(hash));
        set.set(&["spec", "template", "metadata", "labels", HASH], json!(hash));
        let labels = set.0["spec"]["template"]["metadata"]["labels"].clone();
        set.set(&["metadata", "labels"], labels);
        set.0["status"] = json!({"replicas": 0});
        let made = template::complete(self.cx, kind, self.object.namespace(), set);
        let tally = Tally::default();
        self.sets.push(Set { key: made.key, kind, before: None, object: made.object, tally, gone: false });
        self.current = Some(self.sets.len() - 1);
        self.created = true;
    }

    /// A name for a new set: from the template, and a counter while others have that name.
    fn free_hash(&mut self, kind: &'static Kind) -> (String, String) {
        let mut collisions = self.object.int("/status/collisionCount");
        loop {
            let hash = hash(&self.object.0["spec"]["template"], collisions);
            let name = format!("{}-{hash}", self.object.name());
            if self.cx.known(&ObjectKey::new(kind, self.object.namespace(), &name)).is_none() {
                return (name, hash);
            }
            collisions += 1;
            self.object.set(&["status", "collisionCount"], json!(collisions));
        }
    }

    /// The present set has the highest revision, also when it is an old one come back.
    fn number_current(&mut self) {
        let Some(current) = self.current else { return };
        let others = self.sets.iter().enumerate().filter(|(at, _)| *at != current);
        let highest = others.map(|(_, set)| set.revision()).max().unwrap_or(0);
        let set = &mut self.sets[current];
        if set.revision() > highest {
            return;
        }
        set.object.set_annotation(REVISION, &(highest + 1).to_string());
        for (key, value) in
            self.object.0.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten()
        {
            if let (true, Some(text)) = (key != APPLIED && key != REVISION, value.as_str()) {
                set.object.set_annotation(key, text);
            }
        }
    }

    /// Removes the oldest empty sets beyond the history that is kept.
    fn forget_history(&mut self) {
        let limit = self.object.0.pointer("/spec/revisionHistoryLimit").and_then(Value::as_i64).unwrap_or(10);
        let current = self.current;
        let is_empty = |set: &Set| set.replicas() == 0 && set.tally.active == 0 && set.tally.terminating == 0;
        let mut empty: Vec<usize> =
            (0..self.sets.len()).filter(|at| Some(*at) != current && is_empty(&self.sets[*at])).collect();
        let surplus = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        empty.sort_by_key(|at| self.sets[*at].revision());
        for at in empty.into_iter().take(surplus) {
            self.sets[at].gone = true;
        }
    }

    /// The writes. All sets are compared: the counts that this rests on are written together with them.
    fn say(self, key: &ObjectKey, mut step: Step) -> Step {
        for set in self.sets {
            match &set.before {
                Some(before) if set.gone => {
                    let revision = self.cx.known(&set.key).map(|known| known.revision).unwrap_or_default();
                    let known = Known { kind: set.kind, object: before.clone(), revision, pod: None };
                    removal::remove(self.cx, &set.key, &known, &mut step);
                }
                Some(before) if *before == set.object => step.read(set.key),
                before => {
                    let old = before.as_ref().map_or(0, |before| before.int("/spec/replicas"));
                    tell_scaling(self.known, &set, old, &mut step);
                    step.put(set.key, set.kind, set.object);
                }
            }
        }
        if self.created {
            step.read_namespace(self.known.object.namespace());
        }
        if self.object == self.known.object && !step.writes.is_empty() {
            step.read(key.clone());
        }
        step.put_changed(key, self.known, self.object);
        step
    }
}

fn tell_scaling(known: &Known, set: &Set, old: i64, step: &mut Step) {
    let new = set.replicas();
    let way = if new > old { "up" } else { "down" };
    if new != old {
        let text = format!("Scaled {way} replica set {} from {old} to {new}", set.object.name());
        step.tell((known.kind, &known.object), "ScalingReplicaSet", text);
    }
}

/// The template without what a set adds to it.
fn bare_template(object: &Object) -> Value {
    let mut template = object.0["spec"]["template"].clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
    template
}

fn hash(template: &Value, collisions: i64) -> String {
    let digest = Sha256::digest(format!("{template}{collisions}"));
    let number = digest.iter().take(8).fold(0, |number: u64, byte| (number << 8) | u64::from(*byte));
    names::suffix(number, 10)
}
