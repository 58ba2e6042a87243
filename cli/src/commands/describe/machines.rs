//! What people look for in a node and in a service, in the order that they know from kubectl.
//!
//! Decides which fields are shown. It must not ask the agent: what belongs to an object is handed in.

use serde_json::Value;

use super::page::{Page, at, conditions, items, labels, opening, or, pairs, plain};

/// `pods` are those that are bound to the node and have not ended.
pub fn node(object: &Value, pods: &[Value]) -> Page {
    let mut page = Page::default();
    opening(&mut page, object);
    labels(&mut page, object);
    page.some(0, "CreationTimestamp", &object["metadata"]["creationTimestamp"]);
    let taint = |taint: &Value| {
        let value = at(taint, "/value");
        let key = plain(&taint["key"]);
        let key = if value.is_empty() { key } else { format!("{key}={value}") };
        format!("{key}:{}", plain(&taint["effect"]))
    };
    page.list(0, "Taints", items(object, "/spec/taints").iter().map(taint).collect());
    page.field(0, "Unschedulable", (object["spec"]["unschedulable"] == true).to_string());
    conditions(
        &mut page,
        object,
        &[
            ("Type", "type"),
            ("Status", "status"),
            ("LastTransitionTime", "lastTransitionTime"),
            ("Reason", "reason"),
            ("Message", "message"),
        ],
    );
    page.head(0, "Addresses");
    for address in items(object, "/status/addresses") {
        page.field(1, &plain(&address["type"]), plain(&address["address"]));
    }
    for (label, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        page.head(0, label);
        map(&mut page, &object["status"][field]);
    }
    page.head(0, "System Info");
    map(&mut page, &object["status"]["nodeInfo"]);
    page.some(0, "PodCIDR", &object["spec"]["podCIDR"]);
    let requested = |pod: &Value, name: &str| {
        let containers = items(pod, "/spec/containers").iter();
        let asked: Vec<String> = containers.map(|one| plain(&one["resources"]["requests"][name])).collect();
        let asked: Vec<String> = asked.into_iter().filter(|text| !text.is_empty()).collect();
        if asked.is_empty() { "0".to_string() } else { asked.join("+") }
    };
    let row = |pod: &Value| {
        let (namespace, name) = (at(pod, "/metadata/namespace"), at(pod, "/metadata/name"));
        vec![namespace, name, at(pod, "/status/phase"), requested(pod, "cpu"), requested(pod, "memory")]
    };
    let rows: Vec<Vec<String>> = pods.iter().map(row).collect();
    let headers = ["Namespace", "Name", "Status", "CPU Requests", "Memory Requests"];
    page.table(0, &format!("Non-terminated Pods ({} in total)", pods.len()), &headers, &rows);
    page
}

fn map(page: &mut Page, map: &Value) {
    for (key, value) in map.as_object().into_iter().flatten() {
        page.some(1, key, value);
    }
}

/// `slices` are the service's EndpointSlices.
pub fn service(object: &Value, slices: &[Value]) -> Page {
    let mut page = Page::default();
    opening(&mut page, object);
    labels(&mut page, object);
    let selector = pairs(&object["spec"]["selector"]);
    page.field(0, "Selector", if selector.is_empty() { "<none>".into() } else { selector.join(",") });
    page.field(0, "Type", or(object, "/spec/type", "ClusterIP"));
    page.field(0, "IP", or(object, "/spec/clusterIP", "<none>"));
    for port in items(object, "/spec/ports") {
        let name = or(port, "/name", "<unset>");
        let protocol = or(port, "/protocol", "TCP");
        page.field(0, "Port", format!("{name}  {}/{protocol}", port["port"]));
        page.field(
            0,
            "TargetPort",
            format!("{}/{protocol}", or(port, "/targetPort", &port["port"].to_string())),
        );
        if port["nodePort"].as_i64().is_some_and(|number| number > 0) {
            page.field(0, "NodePort", format!("{name}  {}/{protocol}", port["nodePort"]));
        }
        page.field(0, "Endpoints", endpoints(slices, &port["name"]));
    }
    page.some(0, "Session Affinity", &object["spec"]["sessionAffinity"]);
    page.some(0, "External Traffic Policy", &object["spec"]["externalTrafficPolicy"]);
    page
}

/// Addresses that are ready, by the slices' own ports: what a named target port means differs from pod to pod.
fn endpoints(slices: &[Value], name: &Value) -> String {
    let mut found = Vec::new();
    for slice in slices {
        let same = |port: &&Value| at(port, "/name") == plain(name);
        let Some(port) = items(slice, "/ports").iter().find(same) else { continue };
        let ready = items(slice, "/endpoints").iter().filter(|one| one["conditions"]["ready"] != false);
        let addresses = ready.flat_map(|one| items(one, "/addresses"));
        found.extend(addresses.map(|address| format!("{}:{}", plain(address), port["port"])));
    }
    found.sort();
    match found.len() {
        0 => "<none>".into(),
        1..=3 => found.join(","),
        more => format!("{} + {} more...", found[..3].join(","), more - 3),
    }
}
