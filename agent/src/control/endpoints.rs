//! EndpointSlices: who serves a Service.
//!
//! Decides which pods are endpoints (ready, with an address, on a node that lives), on which ports, in how many slices. Must not
//! touch slices that others manage, nor write what says nothing new.

use std::collections::BTreeMap;

use api::Object;
use api::kinds::Kind;
use serde_json::{Value, json};

use super::index::Known;
use super::key::ObjectKey;
use super::nodes;
use super::step::{Context, Step};
use super::{removal, template};

const MANAGER: &str = "endpointslice-controller.k8s.io";
const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Endpoints of one slice.
const SLICE: usize = 100;

/// What one slice says.
struct Content {
    ports: Vec<Value>,
    endpoints: Vec<Value>,
}

/// Brings one service's slices in line with its pods.
pub fn reconcile(cx: &Context<'_>, key: &ObjectKey) -> Step {
    let mut step = Step::default();
    let Some(service) = cx.known(key).filter(|service| !service.object.is_deleting()) else { return step };
    let selector =
        service.object.0.pointer("/spec/selector").and_then(Value::as_object).filter(|map| !map.is_empty());
    let Some(selector) = selector.filter(|_| service.object.text("/spec/type") != "ExternalName") else {
        return step;
    };
    let pods = cx.world.pods_labelled(service.object.namespace(), selector);
    let serving = pods.filter(|(_, pod)| serves(cx, &service.object, pod)).map(|(_, pod)| &pod.object);
    let wanted = contents(&service.object, serving);
    let existing = own_slices(cx, service);
    let mut rest = existing.iter();
    for content in wanted {
        match rest.next() {
            Some((key, slice)) => step.put_changed(key, slice, refilled(slice, content)),
            None => make(cx, service, content, &mut step),
        }
    }
    for (key, slice) in rest {
        removal::remove(cx, key, slice, &mut step);
    }
    step
}

fn serves(cx: &Context<'_>, service: &Object, known: &Known) -> bool {
    let Some(pod) = &known.pod else { return false };
    let early = service.0.pointer("/spec/publishNotReadyAddresses") == Some(&Value::Bool(true));
    let willing = pod.is_active() && (pod.is_ready() || early);
    willing && !known.object.text("/status/podIP").is_empty() && !nodes::is_lost(cx.world, &pod.node)
}

/// Pods whose ports resolve alike share slices. A service without endpoints has one empty slice.
fn contents<'a>(service: &Object, pods: impl Iterator<Item = &'a Object>) -> Vec<Content> {
    let mut by_ports: BTreeMap<String, Content> = BTreeMap::new();
    for pod in pods {
        let ports = ports(service, Some(pod));
        let entry = by_ports.entry(json!(ports).to_string());
        entry.or_insert(Content { ports, endpoints: Vec::new() }).endpoints.push(endpoint(service, pod));
    }
    let full = by_ports.into_values().flat_map(|content| {
        let chunks: Vec<Vec<Value>> = content.endpoints.chunks(SLICE).map(<[Value]>::to_vec).collect();
        chunks.into_iter().map(move |endpoints| Content { ports: content.ports.clone(), endpoints })
    });
    let mut all: Vec<Content> = full.collect();
    if all.is_empty() {
        all.push(Content { ports: ports(service, None), endpoints: Vec::new() });
    }
    all
}

fn ports(service: &Object, pod: Option<&Object>) -> Vec<Value> {
    let resolved = service.list("/spec/ports").iter().filter_map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = target(port, protocol, pod)?;
        let mut made =
            json!({"name": port["name"].as_str().unwrap_or(""), "protocol": protocol, "port": number});
        if let Some(protocol) = port.get("appProtocol") {
            made["appProtocol"] = protocol.clone();
        }
        Some(made)
    });
    resolved.collect()
}

/// The port number on the pod; a named one is looked up in its containers.
fn target(port: &Value, protocol: &str, pod: Option<&Object>) -> Option<i64> {
    match &port["targetPort"] {
        Value::Number(number) => number.as_i64(),
        Value::String(name) => {
            let containers = pod?.list("/spec/containers").iter();
            let mut ports = containers.flat_map(|container| container["ports"].as_array()).flatten();
            let is_meant = |port: &&Value| {
                port["name"] == *name && port["protocol"].as_str().unwrap_or("TCP") == protocol
            };
            ports.find(is_meant)?["containerPort"].as_i64()
        }
        _ => port["port"].as_i64(),
    }
}

fn endpoint(service: &Object, pod: &Object) -> Value {
    let mut endpoint = json!({
        "addresses": [pod.text("/status/podIP")],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": pod.text("/spec/nodeName"),
        "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()},
    });
    let hostname = pod.text("/spec/hostname");
    if !hostname.is_empty() && pod.text("/spec/subdomain") == service.name() {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

fn own_slices<'a>(cx: &Context<'a>, service: &Known) -> Vec<(&'a ObjectKey, &'a Known)> {
    let dependents = cx.world.dependents(service.object.uid());
    let ours = |known: &Known| {
        known.kind.kind == "EndpointSlice"
            && known.object.label(MANAGED_BY) == Some(MANAGER)
            && !known.object.is_deleting()
    };
    dependents.filter(|(_, known)| ours(known)).collect()
}

fn refilled(slice: &Known, content: Content) -> Object {
    let mut object = slice.object.clone();
    object.0["ports"] = json!(content.ports);
    object.0["endpoints"] = json!(content.endpoints);
    if object != slice.object {
        object.set(&["metadata", "generation"], json!(slice.object.generation() + 1));
    }
    object
}

fn make(cx: &Context<'_>, service: &Known, content: Content, step: &mut Step) {
    let Some(kind) = Kind::by_name("EndpointSlice").filter(|_| cx.is_open(service.object.namespace())) else {
        return;
    };
    let (name, namespace) = (service.object.name(), service.object.namespace());
    let prefix = format!("{name}-");
    let object = Object(json!({
        "metadata": {
            "name": cx.free_name(kind, namespace, &prefix), "generateName": prefix,
            "labels": {SERVICE: name, MANAGED_BY: MANAGER},
            "ownerReferences": [template::controller_reference(service)],
        },
        "addressType": "IPv4", "endpoints": content.endpoints, "ports": content.ports,
    }));
    let made = template::complete(cx, kind, namespace, object);
    step.reads.push(ObjectKey::new(service.kind, namespace, name));
    step.read_namespace(namespace);
    step.put(made.key, made.kind, made.object);
}
