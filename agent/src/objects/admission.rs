//! Admission: what the server itself puts into an object before it is validated and stored.
//!
//! Decides server-set metadata, initial status and the allocation of cluster addresses and node ports. What it reads from other
//! objects becomes a compare of the transaction, so that it still holds when the write applies.

use api::errors::{ApiError, Cause};
use api::kinds::Kind;
use api::validate::service::NODE_PORTS;
use api::{Object, duration, keys};
use jiff::Timestamp;
use raft_store::View;
use serde_json::{Value, json};

use super::Part;
use crate::store::Plan;

/// Prefix of the records that keep a cluster address from being given twice.
pub const ADDRESSES: &str = "a/ip/";
/// Prefix of the records that keep a node port from being given twice.
pub const PORTS: &str = "a/port/";

/// The row of namespaces.
pub fn namespaces() -> &'static Kind {
    Kind::by_name("Namespace").expect("Namespace is a row of the table of kinds")
}

/// Fills in what a new object gets from the server.
pub fn prepare_create(kind: &Kind, namespace: &str, object: &mut Object, now: Timestamp, uid: &str) {
    let counts = kind.counts_generation;
    let metadata = object.metadata_mut();
    for field in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "generation",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(uid));
    metadata.insert("creationTimestamp".into(), json!(duration::rfc3339(now)));
    if kind.namespaced {
        metadata.insert("namespace".into(), json!(namespace));
    }
    if counts {
        metadata.insert("generation".into(), json!(1));
    }
    match kind.kind {
        "Namespace" => {
            let name = object.name().to_string();
            object.set_label("kubernetes.io/metadata.name", &name);
            object.0["status"] = json!({"phase": "Active"});
        }
        "Pod" => object.0["status"] = json!({"phase": "Pending", "qosClass": quality(object)}),
        "Job" => name_job_pods(object),
        "Service" => object.0["status"] = json!({"loadBalancer": {}}),
        "Deployment" => object.0["status"] = json!({}),
        "ReplicaSet" => object.0["status"] = json!({"replicas": 0}),
        _ => {}
    }
    if kind.kind == "Job" {
        object.0["status"] = json!({});
    }
}

/// A job selects its pods by its own uid unless it was told otherwise.
fn name_job_pods(object: &mut Object) {
    if object.0.pointer("/spec/manualSelector") == Some(&json!(true))
        || object.0.pointer("/spec/selector").is_some()
    {
        return;
    }
    let (uid, name) = (object.uid().to_string(), object.name().to_string());
    object.set(&["spec", "selector", "matchLabels", "batch.kubernetes.io/controller-uid"], json!(uid));
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        object.set(&["spec", "template", "metadata", "labels", key], json!(value));
    }
}

/// Quality of service class, as Kubernetes derives it.
fn quality(object: &Object) -> &'static str {
    let containers = object.list("/spec/containers");
    let any = containers.iter().any(|container| {
        ["requests", "limits"]
            .iter()
            .any(|section| container["resources"][section].as_object().is_some_and(|map| !map.is_empty()))
    });
    let full = containers.iter().all(|container| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = &container["resources"]["limits"][name];
            let request = &container["resources"]["requests"][name];
            !limit.is_null() && (request.is_null() || request == limit)
        })
    });
    match (any, full) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Keeps what a client may not change, takes the part that it may, counts the generation.
pub fn prepare_update(kind: &Kind, part: Part, old: &Object, new: &mut Object) {
    if part == Part::Status {
        let status = new.0.get("status").cloned();
        let mut kept = old.clone();
        match status {
            Some(status) => kept.0["status"] = status,
            None => {
                kept.0.as_object_mut().map(|map| map.remove("status"));
            }
        }
        *new = kept;
        return;
    }
    if kind.has_status() {
        match old.0.get("status") {
            Some(status) => new.0["status"] = status.clone(),
            None => {
                new.0.as_object_mut().map(|map| map.remove("status"));
            }
        }
    }
    let old_metadata = &old.0["metadata"];
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        match old_metadata.get(field) {
            Some(value) => new.metadata_mut().insert(field.into(), value.clone()),
            None => new.metadata_mut().remove(field),
        };
    }
    new.metadata_mut().remove("managedFields");
    if kind.kind == "Service" {
        keep_addresses(old, new);
    }
    if kind.counts_generation && old.0.get("spec") != new.0.get("spec") {
        new.set(&["metadata", "generation"], json!(old.generation() + 1));
    }
}

/// A service written without its addresses keeps those that it has.
fn keep_addresses(old: &Object, new: &mut Object) {
    if new.text("/spec/type") == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs"] {
        let absent =
            matches!(new.0["spec"].get(field), None | Some(Value::Null)) || new.0["spec"][field] == "";
        if let (true, Some(value)) = (absent, old.0["spec"].get(field)) {
            new.0["spec"][field] = value.clone();
        }
    }
    let old_ports = old.list("/spec/ports").to_vec();
    for port in new.0["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let same =
            old_ports.iter().find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
        if let (true, Some(node_port)) =
            (port["nodePort"].is_null(), same.and_then(|old| old.get("nodePort")))
        {
            port["nodePort"] = node_port.clone();
        }
    }
}

/// A namespaced object needs a namespace that is not going away.
pub fn check_namespace(view: &View, namespace: &str, kind: &Kind) -> Result<(), ApiError> {
    let entry = view
        .get(keys::object(namespaces(), "", namespace).as_bytes())
        .ok_or_else(|| ApiError::NotFound { resource: "namespaces".into(), name: namespace.into() })?;
    let found = super::shown(entry)?;
    if found.is_deleting() {
        return Err(ApiError::Forbidden(format!(
            "unable to create new content in namespace {namespace} because it is being terminated ({})",
            kind.resource()
        )));
    }
    Ok(())
}

/// Gives a service its addresses and ports; the plan records them, so that no other service gets the same.
pub fn allocate(
    kind: &Kind,
    old: Option<&Object>,
    object: &mut Object,
    view: &View,
    random: impl Fn() -> u64,
) -> Result<Plan, ApiError> {
    if kind.kind != "Service" {
        return Ok(Plan::new());
    }
    let owner = format!("{}/{}", object.namespace(), object.name());
    let mut plan = Plan::new();
    let wants_address =
        object.text("/spec/type") != "ExternalName" && object.text("/spec/clusterIP") != "None";
    if wants_address && old.is_none_or(|old| old.text("/spec/clusterIP").is_empty()) {
        let address = choose_address(object, view, &random)?;
        object.set(&["spec", "clusterIP"], json!(address));
        let key = format!("{ADDRESSES}{address}");
        plan = plan.expect_absent(&key).put(&key, &owner);
    }
    if !object.text("/spec/clusterIP").is_empty() {
        let address = object.text("/spec/clusterIP").to_string();
        object.set(&["spec", "clusterIPs"], json!([address]));
    }
    let before: Vec<i64> = old.map(node_ports).unwrap_or_default();
    if matches!(object.text("/spec/type"), "NodePort" | "LoadBalancer") {
        plan = choose_ports(object, &before, view, &random, &owner, plan)?;
    } else {
        for port in object.0["spec"]["ports"].as_array_mut().into_iter().flatten() {
            port.as_object_mut().map(|map| map.remove("nodePort"));
        }
    }
    let after = node_ports(object);
    for gone in before.iter().filter(|port| !after.contains(port)) {
        plan = plan.delete(&format!("{PORTS}{gone}"));
    }
    Ok(plan)
}

/// The node ports that a service holds.
pub fn node_ports(service: &Object) -> Vec<i64> {
    service
        .list("/spec/ports")
        .iter()
        .filter_map(|port| port["nodePort"].as_i64())
        .filter(|port| *port > 0)
        .collect()
}

fn refused(object: &Object, cause: Cause) -> ApiError {
    ApiError::Invalid {
        kind: "Service".into(),
        group: String::new(),
        name: object.name().into(),
        causes: vec![cause],
    }
}

fn choose_address(object: &Object, view: &View, random: &impl Fn() -> u64) -> Result<String, ApiError> {
    let free = |address: &str| view.get(format!("{ADDRESSES}{address}").as_bytes()).is_none();
    let asked = object.text("/spec/clusterIP");
    if !asked.is_empty() {
        let fits = asked
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.octets()[..2] == [10, 43] && usable(ip.octets()));
        return match (fits, free(asked)) {
            (true, true) => Ok(asked.into()),
            (true, false) => Err(refused(
                object,
                Cause::invalid(
                    "spec.clusterIPs",
                    &json!([asked]),
                    "failed to allocate IP: provided IP is already allocated",
                ),
            )),
            _ => Err(refused(
                object,
                Cause::invalid(
                    "spec.clusterIPs",
                    &json!([asked]),
                    "the provided IP is not in the service range 10.43.0.0/16 or is reserved",
                ),
            )),
        };
    }
    let start = random();
    (0..65_536u64)
        .map(|step| ((start + step) % 65_536) as u16)
        .map(|low| [10, 43, low.to_be_bytes()[0], low.to_be_bytes()[1]])
        .filter(|octets| usable(*octets))
        .map(|o| format!("{}.{}.{}.{}", o[0], o[1], o[2], o[3]))
        .find(|address| free(address))
        .ok_or_else(|| ApiError::Internal("all addresses of the service range 10.43.0.0/16 are taken".into()))
}

/// The first 256 addresses are kept for the cluster's own (API, DNS).
fn usable(octets: [u8; 4]) -> bool {
    octets[2] > 0 && octets[3] != 0 && octets[3] != 255
}

fn choose_ports(
    object: &mut Object,
    before: &[i64],
    view: &View,
    random: &impl Fn() -> u64,
    owner: &str,
    plan: Plan,
) -> Result<Plan, ApiError> {
    let mut plan = plan;
    let mut taken = node_ports(object);
    let span = NODE_PORTS.end() - NODE_PORTS.start() + 1;
    let mut ports = object.0["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for (index, port) in ports.iter_mut().enumerate() {
        let asked = port["nodePort"].as_i64().filter(|port| *port > 0);
        let free = |number: i64| view.get(format!("{PORTS}{number}").as_bytes()).is_none();
        let chosen = match asked {
            Some(number) if before.contains(&number) => continue,
            Some(number) if free(number) => number,
            Some(number) => {
                let field = format!("spec.ports[{index}].nodePort");
                return Err(refused(
                    object,
                    Cause::invalid(&field, &json!(number), "provided port is already allocated"),
                ));
            }
            None => {
                let start = (random() % span as u64) as i64;
                let found = (0..span)
                    .map(|step| NODE_PORTS.start() + (start + step) % span)
                    .find(|n| !taken.contains(n) && free(*n));
                found.ok_or_else(|| ApiError::Internal("all node ports 30000-32767 are taken".into()))?
            }
        };
        taken.push(chosen);
        port["nodePort"] = json!(chosen);
        let key = format!("{PORTS}{chosen}");
        plan = plan.expect_absent(&key).put(&key, owner);
    }
    object.0["spec"]["ports"] = json!(ports);
    Ok(plan)
}
