//! A cluster of one replica in memory, with the controllers beside it; nodes do what the tests say.

use std::collections::BTreeMap;

use api::duration::rfc3339;
use api::kinds::Kind;
use api::{Object, defaults, keys};
use jiff::Timestamp;
use raft_store::sim_disk::MemDisk;
use raft_store::{
    ClusterId, Command, Config, Effect, Epoch, Expect, Input, Key, Millis, NodeId, Op, Outcome, ProposalId,
    Replica, Revision, SessionId, Transaction, View,
};
use serde_json::{Value, json};

use super::super::step::Random;
use super::super::{Answer, Batch, Control, Now};

const SESSION: SessionId = SessionId(7);
const BASE: i64 = 1_800_000_000;

pub struct Bed {
    replica: Replica<MemDisk>,
    sequence: u64,
    random: Random,
    pub control: Control,
    seen: Revision,
    pub millis: u64,
    pub brake: bool,
    pub events: Vec<(String, String)>,
}

pub fn kind(name: &str) -> &'static Kind {
    Kind::by_name(name).unwrap()
}

impl Bed {
    /// A cluster with these nodes, each with 4 cpus, 8 GiB and room for 110 pods, and the namespace `default`.
    pub fn new(nodes: &[&str]) -> Bed {
        let config = Config { segment_bytes: 1 << 20, ..Config::new(NodeId(1), ClusterId([1; 16]), 1) };
        let mut replica = Replica::create_first(MemDisk::new(), config).unwrap();
        replica.advance(Millis(1)).unwrap();
        let control = Control::new(&replica.view(), 1);
        let (seen, random) = (replica.view().revision(), Random::new(99));
        let mut bed =
            Bed { replica, sequence: 0, random, control, seen, millis: 0, brake: false, events: Vec::new() };
        bed.propose(Command::OpenSession { session: SESSION });
        bed.create("Namespace", json!({"metadata": {"name": "default"}}));
        for node in nodes {
            bed.add_node(node, json!({}));
        }
        bed.settle();
        bed
    }

    pub fn add_node(&mut self, name: &str, labels: Value) {
        let node = json!({
            "metadata": {"name": name, "labels": labels}, "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        self.create("Node", node);
    }

    pub fn now(&self) -> Now {
        let wall = Timestamp::from_millisecond(BASE * 1000 + self.millis as i64).unwrap();
        Now { millis: self.millis, wall }
    }

    pub fn view(&self) -> View {
        self.replica.view()
    }

    fn propose(&mut self, command: Command) -> Outcome {
        self.sequence += 1;
        self.replica.handle(Millis(1), Input::Propose { id: ProposalId(self.sequence), command });
        let effects = self.replica.advance(Millis(1)).unwrap();
        let answers = effects.into_iter().filter_map(|effect| match effect {
            Effect::Answer { outcome, .. } => Some(outcome),
            _ => None,
        });
        answers.last().unwrap()
    }

    pub fn transact(&mut self, transaction: Transaction, epoch: Option<Epoch>) -> Outcome {
        let sequence = self.sequence + 1;
        self.propose(Command::Transact { session: SESSION, sequence, epoch, transaction })
    }

    pub fn epoch(&self) -> Epoch {
        self.view().epoch()
    }

    /// What the API server would store.
    pub fn create(&mut self, name: &str, body: Value) -> Object {
        let kind = kind(name);
        let mut object = Object(body);
        object.0["apiVersion"] = json!(kind.api_version());
        object.0["kind"] = json!(kind.kind);
        object.set(&["metadata", "uid"], json!(self.random.uid()));
        object.set(&["metadata", "creationTimestamp"], json!(rfc3339(self.now().wall)));
        if kind.namespaced && object.namespace().is_empty() {
            object.set(&["metadata", "namespace"], json!("default"));
        }
        if kind.counts_generation {
            object.set(&["metadata", "generation"], json!(1));
        }
        if name == "Pod" && object.text("/status/phase").is_empty() {
            object.set(&["status", "phase"], json!("Pending"));
        }
        defaults::apply(kind.type_name, &mut object.0);
        self.store(&object);
        object
    }

    pub fn store(&mut self, object: &Object) {
        let key = keys::object(kind(object.kind()), object.namespace(), object.name());
        let op = Op::Put { key: Key::from(&key), value: object.to_vec().into() };
        self.transact(Transaction { compares: vec![], ops: vec![op] }, None);
    }

    pub fn get(&self, name: &str, object: &str) -> Option<Object> {
        let namespace = if kind(name).namespaced { "default" } else { "" };
        let view = self.view();
        let entry = view.get(keys::object(kind(name), namespace, object).as_bytes())?;
        Some(Object::from_slice(entry.value()).unwrap())
    }

    /// Changes an object as a client would; a new spec is a new generation.
    pub fn change(&mut self, name: &str, object: &str, change: impl FnOnce(&mut Object)) {
        let old = self.get(name, object).unwrap();
        let mut new = old.clone();
        change(&mut new);
        if kind(name).counts_generation && new.0["spec"] != old.0["spec"] {
            new.set(&["metadata", "generation"], json!(old.generation() + 1));
        }
        self.store(&new);
    }

    pub fn remove(&mut self, object: &Object) {
        let key = keys::object(kind(object.kind()), object.namespace(), object.name());
        self.transact(Transaction { compares: vec![], ops: vec![Op::Delete { key: Key::from(&key) }] }, None);
    }

    pub fn list(&self, name: &str) -> Vec<Object> {
        let prefix = keys::prefix(kind(name), None);
        let view = self.view();
        view.prefix(prefix.as_bytes(), None).map(|entry| Object::from_slice(entry.value()).unwrap()).collect()
    }

    /// Pods that are neither ended nor on their way out.
    pub fn active(&self) -> Vec<Object> {
        let ended = |pod: &Object| matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
        self.list("Pod").into_iter().filter(|pod| !pod.is_deleting() && !ended(pod)).collect()
    }

    /// How many active pods each node has.
    pub fn spread(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for pod in self.active() {
            *counts.entry(pod.text("/spec/nodeName").to_string()).or_default() += 1;
        }
        counts
    }

    /// One round of planning on the newest state.
    pub fn plan(&mut self) -> Vec<Batch> {
        let view = self.view();
        for change in view.changes(self.seen).unwrap() {
            self.control.observe(change);
        }
        self.seen = view.revision();
        self.control.plan(&view, self.now(), self.brake)
    }

    pub fn apply(&mut self, batch: Batch) -> bool {
        let epoch = self.epoch();
        let outcome = self.transact(batch.transaction, Some(epoch));
        let answer = match outcome {
            Outcome::Applied { revision, .. } => Answer::Applied(revision),
            _ => Answer::Refused,
        };
        self.control.answered(batch.id, answer);
        if answer != Answer::Refused {
            self.events
                .extend(batch.events.into_iter().map(|event| (event.reason.to_string(), event.message)));
        }
        answer != Answer::Refused
    }

    /// Plans and applies until nothing is left to do; answers how many transactions that took.
    pub fn settle(&mut self) -> usize {
        let mut commits = 0;
        for _ in 0..200 {
            let batches = self.plan();
            if batches.is_empty() {
                return commits;
            }
            for batch in batches {
                commits += 1;
                self.apply(batch);
            }
        }
        panic!("the controllers do not come to rest");
    }

    /// Lets time pass; everything that is due happens.
    pub fn pass(&mut self, seconds: u64) {
        let end = self.millis + seconds * 1000;
        loop {
            self.settle();
            match self.control.next_wake().filter(|at| *at <= end) {
                Some(at) => self.millis = self.millis.max(at),
                None => break,
            }
        }
        self.millis = end;
        self.settle();
    }

    pub fn set_pod(&mut self, pod: &Object, phase: &str, ready: bool) {
        let mut pod = self.get("Pod", pod.name()).unwrap();
        let time = rfc3339(self.now().wall);
        let last = pod.name().bytes().fold(0u32, |sum, byte| (sum * 31 + u32::from(byte)) % 65_000);
        pod.set(&["status", "phase"], json!(phase));
        pod.set(&["status", "podIP"], json!(format!("10.42.{}.{}", last / 256, last % 256)));
        let scheduled =
            pod.list("/status/conditions").iter().filter(|c| c["type"] == "PodScheduled").cloned();
        let mut conditions: Vec<Value> = scheduled.collect();
        let status = if ready { "True" } else { "False" };
        conditions.push(json!({"type": "Ready", "status": status, "lastTransitionTime": time}));
        pod.set(&["status", "conditions"], json!(conditions));
        self.store(&pod);
    }

    /// All nodes do what they are told: pods run, those that should go are gone.
    pub fn nodes_work(&mut self) {
        for pod in self.list("Pod") {
            let waits = pod.text("/status/phase") == "Pending" && !pod.text("/spec/nodeName").is_empty();
            if pod.is_deleting() {
                self.remove(&pod);
            } else if waits {
                self.set_pod(&pod, "Running", true);
            }
        }
    }

    /// Controllers and nodes work until both have nothing left to do.
    pub fn converge(&mut self) {
        for _ in 0..100 {
            let before = self.view().revision();
            self.settle();
            self.nodes_work();
            if self.view().revision() == before {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    pub fn kill_node(&mut self, name: &str) {
        self.change("Node", name, |node| {
            node.set(&["status", "conditions"], json!([{"type": "Ready", "status": "Unknown"}]));
        });
    }

    /// A client's delete with a propagation policy's finalizer, or in the background.
    pub fn delete(&mut self, name: &str, object: &str, finalizer: Option<&str>) {
        let old = self.get(name, object).unwrap();
        match finalizer {
            None => self.remove(&old),
            Some(finalizer) => self.change(name, object, |object| {
                object.set(&["metadata", "deletionTimestamp"], json!("2027-01-01T00:00:00Z"));
                object.set(&["metadata", "finalizers"], json!([finalizer]));
            }),
        }
    }

    pub fn deployment(&mut self, name: &str, replicas: i64) -> Object {
        self.create("Deployment", deployment(name, replicas))
    }

    pub fn told(&self, reason: &str) -> usize {
        self.events.iter().filter(|(found, _)| found == reason).count()
    }
}

pub fn deployment(name: &str, replicas: i64) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}},
        },
    })
}

/// Whether a transaction compares every key that it writes.
pub fn compares_all(transaction: &Transaction) -> bool {
    let compared = |key: &Key| {
        transaction.compares.iter().any(|compare| compare.key == *key && compare.expect != Expect::Present)
    };
    transaction.ops.iter().all(|op| compared(op.key()) || !op.key().0.starts_with(b"o/"))
}
