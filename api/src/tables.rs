//! Tables: what `get` prints for each kind (API-SPEC section 6).
//!
//! Decides columns and cells. It must not read the clock: ages are counted at the time handed in.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::duration::{age, human};
use crate::kinds::{Column, Kind};
use crate::object::Object;

pub mod workload;
pub use workload::{deployment, job, pod, pod_status, replica_set};

const fn column(name: &'static str) -> Column {
    Column { name, format: "", kind: "string", wide: false }
}

const fn number(name: &'static str) -> Column {
    Column { name, format: "", kind: "integer", wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, format: "", kind: "string", wide: true }
}

const NAME: Column = Column { name: "Name", format: "name", kind: "string", wide: false };
const AGE: Column = column("Age");

pub const NAMESPACE: &[Column] = &[NAME, column("Status"), AGE];
pub const NODE: &[Column] = &[
    NAME,
    column("Status"),
    column("Roles"),
    AGE,
    column("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];
pub const POD: &[Column] = &[
    NAME,
    column("Ready"),
    column("Status"),
    column("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];
pub const SERVICE: &[Column] = &[
    NAME,
    column("Type"),
    column("Cluster-IP"),
    column("External-IP"),
    column("Port(s)"),
    AGE,
    wide("Selector"),
];
pub const CONFIG_MAP: &[Column] = &[NAME, number("Data"), AGE];
pub const EVENT: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    wide("Count"),
    Column { name: "Name", format: "name", kind: "string", wide: true },
];
pub const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready"),
    number("Up-to-date"),
    number("Available"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub const JOB: &[Column] = &[
    NAME,
    column("Status"),
    column("Completions"),
    column("Duration"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub const ENDPOINT_SLICE: &[Column] =
    &[NAME, column("AddressType"), column("Ports"), column("Endpoints"), AGE];
pub const IMAGE: &[Column] =
    &[NAME, column("Reference"), column("Digest"), column("Size"), number("Holders"), AGE, wide("Hosts")];

/// The column definitions of a kind's table.
pub fn definitions(kind: &Kind) -> Value {
    let columns = kind.columns.iter();
    columns
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.name, "priority": i32::from(c.wide)})
        })
        .collect()
}

/// Which part of the object a row carries (`includeObject` of the request).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// A row of the table.
pub fn row(kind: &Kind, object: &Object, now: Timestamp, include: Include) -> Value {
    let carried = match include {
        Include::None => Value::Null,
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.0["metadata"],
        }),
        Include::Object => object.0.clone(),
    };
    json!({"cells": (kind.cells)(object, now), "object": carried})
}

/// A whole table.
pub fn table(kind: &Kind, rows: Vec<Value>, metadata: Value, with_definitions: bool) -> Value {
    let definitions = if with_definitions { definitions(kind) } else { json!([]) };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
}

pub(crate) fn created(object: &Object, now: Timestamp) -> Value {
    json!(age(object.0.pointer("/metadata/creationTimestamp").and_then(Value::as_str), now))
}

pub(crate) fn or_none(text: String) -> Value {
    json!(if text.is_empty() { "<none>".to_string() } else { text })
}

pub(crate) fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

/// Cells for kinds that have nothing more to say.
pub fn name_and_age(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![json!(object.name()), created(object, now)]
}

pub fn namespace(object: &Object, now: Timestamp) -> Vec<Value> {
    let phase = object.text("/status/phase");
    vec![json!(object.name()), json!(if phase.is_empty() { "Active" } else { phase }), created(object, now)]
}

pub fn node(object: &Object, now: Timestamp) -> Vec<Value> {
    let ready = object.list("/status/conditions").iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready.and_then(|condition| condition["status"].as_str()) {
        Some("True") => "Ready".to_string(),
        Some(_) => "NotReady".to_string(),
        None => "Unknown".to_string(),
    };
    if object.0.pointer("/spec/unschedulable") == Some(&json!(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let address = |wanted: &str| {
        let found = object.list("/status/addresses").iter().find(|address| address["type"] == wanted);
        or_none(found.and_then(|address| address["address"].as_str()).unwrap_or("").to_string())
    };
    let role_prefix = "node-role.kubernetes.io/";
    let labels = object.labels().into_iter().flatten();
    let roles = join(labels.filter_map(|(key, _)| key.strip_prefix(role_prefix).map(String::from)));
    let info = |name: &str| or_none(object.text(&format!("/status/nodeInfo/{name}")).to_string());
    vec![
        json!(object.name()),
        json!(status),
        or_none(roles),
        created(object, now),
        info("kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

pub fn service(object: &Object, now: Timestamp) -> Vec<Value> {
    let ports = object.list("/spec/ports").iter().map(|port| {
        let node_port = port["nodePort"]
            .as_i64()
            .filter(|port| *port > 0)
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        format!("{}{node_port}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP"))
    });
    let kind = object.text("/spec/type");
    let external = match kind {
        "ExternalName" => object.text("/spec/externalName").to_string(),
        _ => join(object.list("/spec/externalIPs").iter().filter_map(|ip| ip.as_str().map(String::from))),
    };
    vec![
        json!(object.name()),
        json!(kind),
        or_none(object.text("/spec/clusterIP").to_string()),
        or_none(external),
        or_none(join(ports)),
        created(object, now),
        selector(object.0.pointer("/spec/selector")),
    ]
}

pub(crate) fn selector(labels: Option<&Value>) -> Value {
    let pairs = labels.and_then(Value::as_object).into_iter().flatten();
    or_none(join(pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))))
}

pub fn config_map(object: &Object, now: Timestamp) -> Vec<Value> {
    let count = |field: &str| object.0.get(field).and_then(Value::as_object).map_or(0, |map| map.len());
    vec![json!(object.name()), json!(count("data") + count("binaryData")), created(object, now)]
}

pub fn event(object: &Object, now: Timestamp) -> Vec<Value> {
    let seen = |field: &str| json!(age(object.0.get(field).and_then(Value::as_str), now));
    let kind = object.text("/involvedObject/kind").to_lowercase();
    vec![
        seen("lastTimestamp"),
        json!(object.text("/type")),
        json!(object.text("/reason")),
        json!(format!("{kind}/{}", object.text("/involvedObject/name"))),
        json!(object.text("/involvedObject/fieldPath")),
        json!(object.text("/source/component")),
        json!(object.text("/message").trim_end()),
        seen("firstTimestamp"),
        json!(object.int("/count").to_string()),
        json!(object.name()),
    ]
}

pub fn endpoint_slice(object: &Object, now: Timestamp) -> Vec<Value> {
    let ports =
        object.list("/ports").iter().filter_map(|port| port["port"].as_i64()).map(|port| port.to_string());
    let endpoints = object.list("/endpoints").iter();
    let addresses = endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str().map(String::from));
    let shown: Vec<String> = addresses.collect();
    let more = shown.len().saturating_sub(3);
    let mut text = shown.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if more > 0 {
        text.push_str(&format!(" + {more} more..."));
    }
    let unset = |text: String| json!(if text.is_empty() { "<unset>".to_string() } else { text });
    vec![
        json!(object.name()),
        json!(object.text("/addressType")),
        unset(join(ports)),
        unset(text),
        created(object, now),
    ]
}

pub fn image(object: &Object, now: Timestamp) -> Vec<Value> {
    let digest = object.text("/spec/digest");
    let holders = object.list("/status/holders");
    let hosts = join(holders.iter().filter_map(|holder| holder.as_str().map(String::from)));
    vec![
        json!(object.name()),
        json!(object.text("/spec/reference")),
        json!(digest.chars().take(19).collect::<String>()),
        json!(bytes(object.int("/spec/size"))),
        json!(holders.len()),
        created(object, now),
        or_none(hosts),
    ]
}

/// Sizes as people read them, in powers of 1000: `82.4MB`.
pub fn bytes(count: i64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{count}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1}GB")
}

/// Seconds between two RFC 3339 times in human form, empty where one is missing.
pub(crate) fn span(from: &str, to: &str, now: Timestamp) -> String {
    let Ok(from) = from.parse::<Timestamp>() else { return String::new() };
    let to = to.parse::<Timestamp>().unwrap_or(now);
    human(to.as_second() - from.as_second())
}
