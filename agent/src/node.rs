//! This machine's own Node object: what it has, and that it is ready.
//!
//! Decides its capacity and conditions. It writes only its own Node, and only when something in it changes: there is no heartbeat.

use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::{Object, keys};
use netfabric::Condition;
use raft_store::View;
use serde_json::{Value, json};
use tracing::warn;

use crate::cluster::Cluster;
use crate::leader::{UNREACHABLE, set_condition, set_ready};
use crate::objects::shown;
use crate::store::{Plan, Touched, TransactError};
use crate::{enrol, members};

/// The condition of a node whose network another program's rules drop.
pub const NETWORK_BLOCKED: &str = "NetworkBlocked";

/// Kubernetes' name for the condition of a node whose part of the network could not be set up.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// The condition of a node whose store's disk is full.
const DISK_PRESSURE: &str = "DiskPressure";

/// Pods that one machine takes (Kubernetes' default).
const PODS: u32 = 110;

/// Keeps the own Node object true until the process ends.
pub async fn run(cluster: Arc<Cluster>) {
    let mut views = cluster.store.objects();
    let mut conditions = cluster.fabric.conditions.clone();
    let mut disk_full = cluster.store.disk_full();
    let own =
        keys::object(Kind::by_name("Node").expect("Node is a row of the table of kinds"), "", cluster.name());
    let member = members::key(cluster.name());
    let mut touched = Touched::below([own.as_str(), member.as_str()]);
    let mut again = true;
    loop {
        let view = views.borrow_and_update().clone();
        let look = touched.look(&view) || std::mem::take(&mut again);
        if let Some(plan) = look.then(|| correction(&cluster, &view)).flatten() {
            match cluster.store.transact(plan.build(), None).await {
                Ok(_) | Err(TransactError::CompareFailed { .. }) => {}
                Err(error) => {
                    warn!(%error, "this node's state could not be written");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    again = true;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            _ = conditions.changed() => again = true,
            _ = disk_full.changed() => again = true,
        }
    }
}

/// What is to be written so that the own Node is there and true. One that somebody deleted is made again for as long as this
/// machine is a member: only its removal from the member list is for good.
fn correction(cluster: &Cluster, view: &View) -> Option<Plan> {
    let kind = Kind::by_name("Node").expect("Node is a row of the table of kinds");
    let key = keys::object(kind, "", cluster.name());
    let Some(entry) = view.get(key.as_bytes()) else {
        let member_key = members::key(cluster.name());
        let member = view.get(member_key.as_bytes())?;
        let new = true_state(cluster, &enrol::new_node(&cluster.identity.member));
        let plan = Plan::new().expect_revision(&member_key, member.mod_revision().0).expect_absent(&key);
        return Some(plan.put(&key, new.to_vec()));
    };
    let old = shown(entry).ok()?.without_resource_version();
    let new = true_state(cluster, &old);
    (new != old).then(|| Plan::new().expect_revision(&key, entry.mod_revision().0).put(&key, new.to_vec()))
}

fn true_state(cluster: &Cluster, node: &Object) -> Object {
    let mut new = node.clone();
    let ready = node
        .list("/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if !ready {
        set_ready(&mut new, "True", "AgentReady", "the agent runs");
    }
    let taints: Vec<Value> =
        node.list("/spec/taints").iter().filter(|taint| taint["key"] != UNREACHABLE).cloned().collect();
    if taints.is_empty() {
        if let Some(spec) = new.0["spec"].as_object_mut() {
            spec.remove("taints");
        }
    } else {
        new.set(&["spec", "taints"], json!(taints));
    }
    network_condition(&mut new, &cluster.fabric.conditions.borrow());
    disk_condition(&mut new, *cluster.store.disk_full().borrow());
    let capacity = capacity();
    new.set(&["status", "capacity"], capacity.clone());
    new.set(&["status", "allocatable"], capacity);
    new.set(&["status", "nodeInfo"], info());
    let address = cluster.identity.member.address.ip().to_string();
    new.set(
        &["status", "addresses"],
        json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": cluster.name()}]),
    );
    new
}

/// Kubernetes' name of it. A full disk stops this machine from keeping new entries: as a voter it counts for less than it seems.
fn disk_condition(node: &mut Object, full: bool) {
    let known = has_condition(node, DISK_PRESSURE);
    match full {
        true => set_condition(
            node,
            DISK_PRESSURE,
            "True",
            "StoreDiskFull",
            "the disk of this machine's store is full: it takes no new entries. Free some space below its data directory",
        ),
        false if known => {
            set_condition(node, DISK_PRESSURE, "False", "StoreHasRoom", "the store has room again")
        }
        false => {}
    }
}

/// Whether a node says so of itself.
pub fn has_full_disk(node: &Object) -> bool {
    let says = |condition: &Value| condition["type"] == DISK_PRESSURE && condition["status"] == "True";
    node.list("/status/conditions").iter().any(says)
}

fn has_condition(node: &Object, name: &str) -> bool {
    node.list("/status/conditions").iter().any(|condition| condition["type"] == name)
}

/// A foreign firewall that drops our traffic is named where people look first.
fn network_condition(node: &mut Object, conditions: &[Condition]) {
    let unavailable = conditions.iter().find_map(|condition| match condition {
        Condition::NetworkUnavailable(text) => Some(text.as_str()),
        Condition::NetworkBlocked(_) => None,
    });
    match unavailable {
        Some(text) => set_condition(node, NETWORK_UNAVAILABLE, "True", "FabricIncomplete", text),
        None if has_condition(node, NETWORK_UNAVAILABLE) => {
            set_condition(node, NETWORK_UNAVAILABLE, "False", "FabricStands", "the network is set up")
        }
        None => {}
    }
    let texts: Vec<&str> = conditions
        .iter()
        .filter_map(|condition| match condition {
            Condition::NetworkBlocked(text) => Some(text.as_str()),
            Condition::NetworkUnavailable(_) => None,
        })
        .collect();
    let known = has_condition(node, NETWORK_BLOCKED);
    match texts.as_slice() {
        [] if known => set_condition(
            node,
            NETWORK_BLOCKED,
            "False",
            "NothingInTheWay",
            "no foreign rule drops our traffic any more",
        ),
        [] => {}
        texts => set_condition(node, NETWORK_BLOCKED, "True", "ForeignFirewall", &texts.join("; ")),
    }
}

fn capacity() -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0);
    json!({"cpu": cpus.to_string(), "memory": format!("{kilobytes}Ki"), "pods": PODS.to_string()})
}

fn info() -> Value {
    let uname = nix::sys::utsname::uname().ok();
    let text = |field: Option<&std::ffi::OsStr>| {
        field.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_string();
    let machine_id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_string();
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "architecture": "amd64", "operatingSystem": "linux", "osImage": name,
        "kernelVersion": text(uname.as_ref().map(|uname| uname.release())),
        "kubeletVersion": format!("{}+skein-{version}", api::KUBERNETES_VERSION), "kubeProxyVersion": "",
        "containerRuntimeVersion": format!("skein://{version}"),
        "machineID": machine_id, "systemUUID": "", "bootID": "",
    })
}
