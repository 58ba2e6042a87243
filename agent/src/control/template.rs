//! New objects as controllers make them: what the API server puts into an object that a client creates, and a pod from its
//! owner's template.
//!
//! Decides metadata, owner references and first status; must not decide how many are made.

use api::kinds::Kind;
use api::{Object, defaults};
use serde_json::{Value, json};

use super::index::Known;
use super::key::ObjectKey;
use super::step::Context;

/// A new object's key, kind and document.
pub struct Made {
    pub key: ObjectKey,
    pub kind: &'static Kind,
    pub object: Object,
}

/// Completes a document that has a name: server-set metadata and defaults.
pub fn complete(cx: &Context<'_>, kind: &'static Kind, namespace: &str, mut object: Object) -> Made {
    let metadata = object.metadata_mut();
    metadata.insert("namespace".into(), json!(namespace));
    metadata.insert("uid".into(), json!(cx.random.uid()));
    metadata.insert("creationTimestamp".into(), json!(cx.time()));
    if kind.counts_generation {
        metadata.insert("generation".into(), json!(1));
    }
    object.0["apiVersion"] = json!(kind.api_version());
    object.0["kind"] = json!(kind.kind);
    defaults::apply(kind.type_name, &mut object.0);
    Made { key: ObjectKey::new(kind, namespace, object.name()), kind, object }
}

/// The reference by which an owner controls what it makes.
pub fn controller_reference(owner: &Known) -> Value {
    json!({
        "apiVersion": owner.kind.api_version(), "kind": owner.kind.kind, "name": owner.object.name(),
        "uid": owner.object.uid(), "controller": true, "blockOwnerDeletion": true,
    })
}

/// An object with its controller set: how an orphan is adopted.
pub fn adopted(object: &Object, owner: &Known) -> Object {
    let mut adopted = object.clone();
    let mut owners = object.list("/metadata/ownerReferences").to_vec();
    owners.push(controller_reference(owner));
    adopted.set(&["metadata", "ownerReferences"], json!(owners));
    adopted
}

/// A pod from the template in its owner's spec.
pub fn pod(cx: &Context<'_>, owner: &Known) -> Option<Made> {
    let kind = Kind::by_name("Pod")?;
    let (template, namespace) = (&owner.object.0["spec"]["template"], owner.object.namespace());
    let prefix = format!("{}-", owner.object.name());
    let mut object = Object(json!({
        "metadata": {
            "name": cx.free_name(kind, namespace, &prefix), "generateName": prefix,
            "ownerReferences": [controller_reference(owner)],
        },
        "spec": template["spec"],
    }));
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|value| !value.is_null()) {
            object.set(&["metadata", field], value.clone());
        }
    }
    let mut made = complete(cx, kind, namespace, object);
    made.object.0["status"] = json!({"phase": "Pending", "qosClass": quality(&made.object)});
    Some(made)
}

/// Quality of service class, as Kubernetes derives it.
fn quality(pod: &Object) -> &'static str {
    let containers = pod.list("/spec/containers");
    let asks = |container: &Value| {
        let section =
            |name: &str| container["resources"][name].as_object().is_some_and(|map| !map.is_empty());
        section("requests") || section("limits")
    };
    let is_full = |container: &Value| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = &container["resources"]["limits"][name];
            let request = &container["resources"]["requests"][name];
            !limit.is_null() && (request.is_null() || request == limit)
        })
    };
    match () {
        () if !containers.iter().any(asks) => "BestEffort",
        () if containers.iter().all(is_full) => "Guaranteed",
        () => "Burstable",
    }
}
