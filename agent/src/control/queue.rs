//! Which decisions a change makes necessary.
//!
//! Decides only whom a change concerns, by the indexes; must not look at what they would decide.

use std::collections::BTreeSet;

use api::kinds::Kind;
use api::selector::LabelSelector;
use api::{Object, keys};
use serde_json::Value;

use super::index::{Known, World, carries, owner_uids};
use super::key::{ObjectKey, Uid};
use super::nodes;
use super::step::namespace_key;

/// One decision to be made. Those that come first in order are made first: what makes pods before what places them,
/// and that before what only reports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Node(String),
    Deployment(ObjectKey),
    ReplicaSet(ObjectKey),
    Job(ObjectKey),
    Schedule,
    Collect(ObjectKey),
    Endpoints(ObjectKey),
    Namespace(String),
    Sweep,
}

/// Decisions that wait to be made.
pub type Queue = BTreeSet<Work>;

/// Kinds that controllers never look at.
pub fn is_followed(kind: &Kind) -> bool {
    !matches!(kind.kind, "Event" | "Image")
}

/// Queues whom it concerns that `key` was `before` and is `after`. The world shows `after`.
pub fn affect(
    world: &World,
    key: &ObjectKey,
    before: Option<&Known>,
    after: Option<&Known>,
    queue: &mut Queue,
) {
    let Some(known) = after.or(before) else { return };
    for version in versions_of(before, after) {
        concerned(world, key, version, queue);
    }
    match known.kind.kind {
        "Pod" => pod_changed(world, before, after, queue),
        "Node" => {
            queue.insert(Work::Schedule);
            on_node(world, known.object.name(), queue);
        }
        _ => {}
    }
    if after.is_none_or(|known| known.object.is_deleting()) || before.is_none() {
        let dependents = world.dependents(known.object.uid());
        queue.extend(dependents.map(|(key, _)| Work::Collect(key.clone())));
    }
    in_namespace(world, &known.object, queue);
}

fn concerned(world: &World, key: &ObjectKey, known: &Known, queue: &mut Queue) {
    let object = &known.object;
    let has_owners = !object.list("/metadata/ownerReferences").is_empty();
    if has_owners || (object.is_deleting() && !object.finalizers().is_empty()) {
        queue.insert(Work::Collect(key.clone()));
    }
    for owner in owner_uids(object) {
        if let Some((owner, known)) = world.by_uid(&owner) {
            queue.extend(controller(owner, known));
            if known.object.is_deleting() {
                queue.insert(Work::Collect(owner.clone()));
            }
        }
    }
    queue.extend(controller(key, known));
    match known.kind.kind {
        "Service" => {
            queue.insert(Work::Endpoints(key.clone()));
        }
        "EndpointSlice" => {
            let service = object.label("kubernetes.io/service-name");
            let kind = Kind::by_name("Service").zip(service);
            queue.extend(
                kind.map(|(kind, name)| Work::Endpoints(ObjectKey::new(kind, object.namespace(), name))),
            );
        }
        "Namespace" => {
            queue.insert(Work::Namespace(object.name().to_string()));
        }
        "ReplicaSet" if object.controller_uid().is_none() => adopters(world, "Deployment", object, queue),
        "Pod" if object.controller_uid().is_none() => adopters(world, "ReplicaSet", object, queue),
        _ => {}
    }
}

/// The controller of this object itself.
fn controller(key: &ObjectKey, known: &Known) -> Option<Work> {
    match known.kind.kind {
        "Deployment" => Some(Work::Deployment(key.clone())),
        "ReplicaSet" => Some(Work::ReplicaSet(key.clone())),
        "Job" => Some(Work::Job(key.clone())),
        _ => None,
    }
}

/// Those of this kind that select an object without a controller.
fn adopters(world: &World, kind: &str, object: &Object, queue: &mut Queue) {
    let Some(kind) = Kind::by_name(kind) else { return };
    let prefix = keys::prefix(kind, Some(object.namespace()));
    for (key, known) in world.below(&prefix) {
        if selects(known, object) {
            queue.extend(controller(key, known));
        }
    }
}

/// Whether the selector of an object's spec matches another object; an empty or broken one matches nothing.
pub fn selects(known: &Known, object: &Object) -> bool {
    let selector = LabelSelector::from_object(&known.object.0["spec"]["selector"]);
    selector.is_ok_and(|selector| !selector.is_empty() && selector.matches(object.labels()))
}

fn pod_changed(world: &World, before: Option<&Known>, after: Option<&Known>, queue: &mut Queue) {
    let facts = |version: Option<&Known>| version.and_then(|known| known.pod.clone());
    let (old, new) = (facts(before), facts(after));
    let waits = new.as_ref().is_some_and(|pod| pod.node.is_empty() && pod.is_active());
    let holds_place = |pod: &super::pod::PodFacts| !pod.node.is_empty() && !pod.ended();
    let freed = old.as_ref().is_some_and(holds_place) && !new.as_ref().is_some_and(holds_place);
    if waits || (freed && !world.unscheduled().is_empty()) {
        queue.insert(Work::Schedule);
    }
    let node = new.map(|pod| pod.node).filter(|node| !node.is_empty());
    queue.extend(node.filter(|node| nodes::is_lost(world, node)).map(Work::Node));
    services(world, before, after, queue);
    for pod in versions_of(before, after) {
        grand_owners(world, pod, queue);
    }
}

fn versions_of<'a>(before: Option<&'a Known>, after: Option<&'a Known>) -> impl Iterator<Item = &'a Known> {
    [before, after].into_iter().flatten()
}

/// A deployment counts the pods of its sets, also those that no set counts any more.
fn grand_owners(world: &World, pod: &Known, queue: &mut Queue) {
    let owner = pod.object.controller_uid().and_then(|uid| world.by_uid(&Uid::new(uid)));
    let above = owner.and_then(|(_, owner)| world.by_uid(&Uid::new(owner.object.controller_uid()?)));
    queue.extend(above.and_then(|(key, known)| controller(key, known)));
}

fn services(world: &World, before: Option<&Known>, after: Option<&Known>, queue: &mut Queue) {
    let (Some(kind), Some(known)) = (Kind::by_name("Service"), after.or(before)) else { return };
    let prefix = keys::prefix(kind, Some(known.object.namespace()));
    for (key, service) in world.below(&prefix) {
        let Some(selector) = service.object.0.pointer("/spec/selector").and_then(Value::as_object) else {
            continue;
        };
        if versions_of(before, after).any(|pod| carries(&pod.object, selector)) {
            queue.insert(Work::Endpoints(key.clone()));
        }
    }
}

/// Everything that a node's life or death concerns.
pub fn on_node(world: &World, node: &str, queue: &mut Queue) {
    queue.insert(Work::Node(node.to_string()));
    for (_, known, pod) in world.pods_on(node) {
        let owner = pod.controller.as_ref().and_then(|uid: &Uid| world.by_uid(uid));
        queue.extend(owner.and_then(|(key, known)| controller(key, known)));
        services(world, Some(known), None, queue);
    }
}

fn in_namespace(world: &World, object: &Object, queue: &mut Queue) {
    let namespace = object.namespace();
    let found = namespace_key(namespace).filter(|_| !namespace.is_empty()).and_then(|key| world.get(&key));
    if found.is_some_and(|known| known.object.is_deleting()) {
        queue.insert(Work::Namespace(namespace.to_string()));
    }
}
