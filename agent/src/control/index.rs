//! The cluster as controllers see it: every object by key, and indexes by owner, label and node.
//!
//! Decides only what can be looked up without a scan. It holds what was observed plus what is planned and not yet applied;
//! it must not know which is which ([`super::draft`] does), nor read the store.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use api::Object;
use api::kinds::Kind;
use raft_store::Revision;
use serde_json::{Map, Value};

use super::key::{ObjectKey, Uid};
use super::pod::{HostPort, PodFacts};

/// One object.
#[derive(Debug, Clone)]
pub struct Known {
    pub kind: &'static Kind,
    pub object: Object,
    /// Of its last observed change; meaningless while a write of ours is on its way.
    pub revision: Revision,
    /// Filled in for pods.
    pub pod: Option<PodFacts>,
}

/// What runs on a node, summed up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub weighed_cpu_millis: i64,
    pub weighed_memory_bytes: i64,
    pub pods: i64,
    pub ports: BTreeMap<HostPort, u32>,
}

impl Load {
    pub fn add(&mut self, pod: &PodFacts) {
        self.change(pod, 1);
        for port in &pod.host_ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
    }

    fn subtract(&mut self, pod: &PodFacts) {
        self.change(pod, -1);
        for port in &pod.host_ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count = count.saturating_sub(1);
            }
        }
        self.ports.retain(|_, count| *count > 0);
    }

    fn change(&mut self, pod: &PodFacts, sign: i64) {
        self.cpu_millis += sign * pod.requests.cpu_millis;
        self.memory_bytes += sign * pod.requests.memory_bytes;
        self.weighed_cpu_millis += sign * pod.requests.weighed_cpu_millis;
        self.weighed_memory_bytes += sign * pod.requests.weighed_memory_bytes;
        self.pods += sign;
    }
}

type Keys = BTreeSet<ObjectKey>;

/// All objects with their indexes.
#[derive(Debug, Default)]
pub struct World {
    objects: BTreeMap<ObjectKey, Known>,
    by_uid: BTreeMap<Uid, ObjectKey>,
    by_owner: BTreeMap<Uid, Keys>,
    pods_by_label: BTreeMap<String, Keys>,
    pods_by_node: BTreeMap<String, Keys>,
    unscheduled: Keys,
    loads: BTreeMap<String, Load>,
    /// Active pods of each group on each node.
    spread: BTreeMap<String, BTreeMap<String, u32>>,
}

impl World {
    /// Sets an object; gives back what was there.
    pub fn put(
        &mut self,
        key: ObjectKey,
        kind: &'static Kind,
        object: Object,
        revision: Revision,
    ) -> Option<Known> {
        let before = self.remove(&key);
        let pod = (kind.kind == "Pod").then(|| PodFacts::read(&object));
        let known = Known { kind, object, revision, pod };
        self.link(&key, &known);
        self.objects.insert(key, known);
        before
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Known> {
        let known = self.objects.remove(key)?;
        self.unlink(key, &known);
        Some(known)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Known> {
        self.objects.get(key)
    }

    pub fn all(&self) -> impl Iterator<Item = (&ObjectKey, &Known)> {
        self.objects.iter()
    }

    /// The object that carries this uid now.
    pub fn by_uid(&self, uid: &Uid) -> Option<(&ObjectKey, &Known)> {
        self.objects.get_key_value(self.by_uid.get(uid)?)
    }

    /// Everything below a prefix of keys.
    pub fn below(&self, prefix: &str) -> impl Iterator<Item = (&ObjectKey, &Known)> + use<'_> {
        let prefix = prefix.to_string();
        let from = self.objects.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        from.take_while(move |(key, _)| key.as_str().starts_with(&prefix))
    }

    /// All that names this uid as an owner.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Known)> {
        self.found(self.by_owner.get(uid))
    }

    /// What this uid controls, of one kind.
    pub fn controlled<'a>(
        &'a self,
        uid: &'a str,
        kind: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Known)> {
        self.dependents(uid)
            .filter(move |(_, known)| known.kind.kind == kind && known.object.controller_uid() == Some(uid))
    }

    /// The pods that this uid controls.
    pub fn pods_of<'a>(
        &'a self,
        uid: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Known, &'a PodFacts)> {
        self.controlled(uid, "Pod").filter_map(|(key, known)| Some((key, known, known.pod.as_ref()?)))
    }

    pub fn pods_on<'a>(
        &'a self,
        node: &str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Known, &'a PodFacts)> {
        let pods = self.found(self.pods_by_node.get(node));
        pods.filter_map(|(key, known)| Some((key, known, known.pod.as_ref()?)))
    }

    /// Pods that carry all these labels; looks through the rarest of them.
    pub fn pods_labelled<'a>(
        &'a self,
        namespace: &str,
        labels: &'a Map<String, Value>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Known)> {
        let sets =
            labels.iter().map(|(key, value)| self.pods_by_label.get(&label_key(namespace, key, value)));
        let rarest = sets.min_by_key(|set| set.map_or(0, BTreeSet::len)).flatten();
        self.found(rarest).filter(move |(_, known)| carries(&known.object, labels))
    }

    pub fn unscheduled(&self) -> &BTreeSet<ObjectKey> {
        &self.unscheduled
    }

    pub fn loads(&self) -> &BTreeMap<String, Load> {
        &self.loads
    }

    /// How many active pods of a group each node has.
    pub fn spread(&self, group: &str) -> BTreeMap<String, u32> {
        self.spread.get(group).cloned().unwrap_or_default()
    }

    fn found<'a>(&'a self, keys: Option<&'a Keys>) -> impl Iterator<Item = (&'a ObjectKey, &'a Known)> {
        keys.into_iter().flatten().filter_map(|key| self.objects.get_key_value(key))
    }

    fn link(&mut self, key: &ObjectKey, known: &Known) {
        self.by_uid.insert(Uid::new(known.object.uid()), key.clone());
        for owner in owner_uids(&known.object) {
            self.by_owner.entry(owner).or_default().insert(key.clone());
        }
        let Some(pod) = &known.pod else { return };
        for label in label_keys(&known.object) {
            self.pods_by_label.entry(label).or_default().insert(key.clone());
        }
        if pod.node.is_empty() {
            if pod.is_active() {
                self.unscheduled.insert(key.clone());
            }
            return;
        }
        self.pods_by_node.entry(pod.node.clone()).or_default().insert(key.clone());
        if !pod.ended() {
            self.loads.entry(pod.node.clone()).or_default().add(pod);
        }
        if pod.is_active() {
            let nodes = self.spread.entry(pod.group.clone()).or_default();
            *nodes.entry(pod.node.clone()).or_default() += 1;
        }
    }

    fn unlink(&mut self, key: &ObjectKey, known: &Known) {
        let uid = Uid::new(known.object.uid());
        if self.by_uid.get(&uid) == Some(key) {
            self.by_uid.remove(&uid);
        }
        for owner in owner_uids(&known.object) {
            forget(&mut self.by_owner, &owner, key);
        }
        let Some(pod) = &known.pod else { return };
        for label in label_keys(&known.object) {
            forget(&mut self.pods_by_label, &label, key);
        }
        self.unscheduled.remove(key);
        if pod.node.is_empty() {
            return;
        }
        forget(&mut self.pods_by_node, &pod.node, key);
        if let Some(load) = self.loads.get_mut(&pod.node).filter(|_| !pod.ended()) {
            load.subtract(pod);
        }
        if pod.is_active() {
            self.thin_out(pod);
        }
    }

    fn thin_out(&mut self, pod: &PodFacts) {
        let Some(nodes) = self.spread.get_mut(&pod.group) else { return };
        if let Some(count) = nodes.get_mut(&pod.node) {
            *count = count.saturating_sub(1);
        }
        nodes.retain(|_, count| *count > 0);
        if nodes.is_empty() {
            self.spread.remove(&pod.group);
        }
    }
}

fn forget<K: Ord>(index: &mut BTreeMap<K, Keys>, at: &K, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

/// The uids of all owners of an object.
pub fn owner_uids(object: &Object) -> Vec<Uid> {
    object
        .list("/metadata/ownerReferences")
        .iter()
        .filter_map(|owner| owner["uid"].as_str())
        .map(Uid::new)
        .collect()
}

/// Whether an object carries all these labels.
pub fn carries(object: &Object, labels: &Map<String, Value>) -> bool {
    labels.iter().all(|(key, value)| object.labels().is_some_and(|own| own.get(key) == Some(value)))
}

fn label_keys(object: &Object) -> Vec<String> {
    let labels = object.labels().into_iter().flatten();
    labels.map(|(key, value)| label_key(object.namespace(), key, value)).collect()
}

fn label_key(namespace: &str, key: &str, value: &Value) -> String {
    format!("{namespace}/{key}={}", value.as_str().unwrap_or(""))
}
