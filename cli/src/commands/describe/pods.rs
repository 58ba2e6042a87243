//! What people look for in a pod and in what makes pods, in the order that they know from kubectl.
//!
//! Decides which fields are shown. It must not ask the agent: what belongs to an object is handed in.

use serde_json::Value;

use super::page::{Page, at, conditions, items, labels, opening, or, owner, pairs, plain, truth};

pub fn pod(object: &Value) -> Page {
    let mut page = Page::default();
    opening(&mut page, object);
    let (node, host) = (at(object, "/spec/nodeName"), at(object, "/status/hostIP"));
    page.field(0, "Node", if node.is_empty() { "<none>".into() } else { format!("{node}/{host}") });
    page.some(0, "Start Time", &object["status"]["startTime"]);
    labels(&mut page, object);
    let status = match object["metadata"]["deletionTimestamp"].as_str() {
        Some(time) => format!("Terminating (until {time})"),
        None => at(object, "/status/phase"),
    };
    page.field(0, "Status", status);
    page.some(0, "Reason", &object["status"]["reason"]);
    page.some(0, "Message", &object["status"]["message"]);
    page.field(0, "IP", or(object, "/status/podIP", "<none>"));
    owner(&mut page, object);
    containers(&mut page, 0, &object["spec"], &object["status"]);
    conditions(&mut page, object, &[("Type", "type"), ("Status", "status"), ("Reason", "reason")]);
    volumes(&mut page, 0, &object["spec"]);
    page.some(0, "QoS Class", &object["status"]["qosClass"]);
    page.pairs(0, "Node-Selectors", &object["spec"]["nodeSelector"]);
    page.list(0, "Tolerations", items(object, "/spec/tolerations").iter().map(toleration).collect());
    page
}

fn toleration(toleration: &Value) -> String {
    let value = at(toleration, "/value");
    let mut text = plain(&toleration["key"]);
    if !value.is_empty() {
        text = format!("{text}={value}");
    }
    let effect = at(toleration, "/effect");
    if !effect.is_empty() {
        text = format!("{text}:{effect}");
    }
    if toleration["operator"] == "Exists" {
        text.push_str(" op=Exists");
    }
    match toleration["tolerationSeconds"].as_i64() {
        Some(seconds) => format!("{text} for {seconds}s"),
        None => text,
    }
}

fn containers(page: &mut Page, depth: usize, spec: &Value, status: &Value) {
    for (label, field, statuses) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ] {
        let list = spec[field].as_array().map_or(&[][..], Vec::as_slice);
        if !list.is_empty() {
            page.head(depth, label);
        }
        for one in list {
            let found = status[statuses].as_array().into_iter().flatten();
            let now = found.clone().find(|status| status["name"] == one["name"]);
            container(page, depth + 1, one, now);
        }
    }
}

fn container(page: &mut Page, depth: usize, spec: &Value, status: Option<&Value>) {
    page.head(depth, &plain(&spec["name"]));
    let depth = depth + 1;
    if let Some(status) = status {
        page.some(depth, "Container ID", &status["containerID"]);
    }
    page.some(depth, "Image", &spec["image"]);
    if let Some(status) = status {
        page.some(depth, "Image ID", &status["imageID"]);
    }
    let ports = items(spec, "/ports").iter();
    let ports = ports.map(|port| format!("{}/{}", port["containerPort"], or(port, "/protocol", "TCP")));
    page.field(depth, "Ports", join(ports.collect()));
    for (label, field) in [("Command", "command"), ("Args", "args")] {
        let words: Vec<String> = spec[field].as_array().into_iter().flatten().map(plain).collect();
        if !words.is_empty() {
            page.list(depth, label, words);
        }
    }
    if let Some(status) = status {
        state(page, depth, "State", &status["state"]);
        if status["lastState"].as_object().is_some_and(|state| !state.is_empty()) {
            state(page, depth, "Last State", &status["lastState"]);
        }
        page.field(depth, "Ready", truth(status["ready"] == true));
        page.field(depth, "Restart Count", status["restartCount"].as_i64().unwrap_or(0).to_string());
    }
    for (label, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let amounts = pairs(&spec["resources"][field]);
        if !amounts.is_empty() {
            page.list(depth, label, amounts);
        }
    }
    page.list(depth, "Environment", items(spec, "/env").iter().map(variable).collect());
    page.list(depth, "Mounts", items(spec, "/volumeMounts").iter().map(mount).collect());
}

fn variable(variable: &Value) -> String {
    let source = variable["valueFrom"].as_object().and_then(|source| source.keys().next());
    match source {
        Some(source) => format!("{}:  (from {source})", plain(&variable["name"])),
        None => format!("{}:  {}", plain(&variable["name"]), plain(&variable["value"])),
    }
}

fn mount(mount: &Value) -> String {
    let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
    format!("{} from {} ({mode})", plain(&mount["mountPath"]), plain(&mount["name"]))
}

fn join(list: Vec<String>) -> String {
    if list.is_empty() { "<none>".into() } else { list.join(", ") }
}

fn state(page: &mut Page, depth: usize, label: &str, state: &Value) {
    let Some((word, details)) = state.as_object().and_then(|state| state.iter().next()) else {
        return page.field(depth, label, "Waiting");
    };
    let mut letters = word.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    let mut lines = vec![first + letters.as_str()];
    for (title, field) in [
        ("Reason", "reason"),
        ("Message", "message"),
        ("Exit Code", "exitCode"),
        ("Signal", "signal"),
        ("Started", "startedAt"),
        ("Finished", "finishedAt"),
    ] {
        let text = plain(&details[field]);
        if !text.is_empty() {
            lines.push(format!("  {title}: {text}"));
        }
    }
    page.list(depth, label, lines);
}

fn volumes(page: &mut Page, depth: usize, spec: &Value) {
    let list = items(spec, "/volumes");
    if list.is_empty() {
        return page.field(depth, "Volumes", "<none>");
    }
    page.head(depth, "Volumes");
    for volume in list {
        let source = volume.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
        let text = source.map(|(kind, source)| {
            let details = pairs(source);
            if details.is_empty() { kind.clone() } else { format!("{kind} ({})", details.join(", ")) }
        });
        page.field(depth + 1, &plain(&volume["name"]), text.unwrap_or_default());
    }
}

fn template(page: &mut Page, object: &Value) {
    let template = &object["spec"]["template"];
    page.head(0, "Pod Template");
    page.pairs(1, "Labels", &template["metadata"]["labels"]);
    containers(page, 1, &template["spec"], &Value::Null);
    volumes(page, 1, &template["spec"]);
}

/// `sets` are the deployment's ReplicaSets.
pub fn deployment(object: &Value, sets: &[Value]) -> Page {
    let mut page = Page::default();
    opening(&mut page, object);
    page.some(0, "CreationTimestamp", &object["metadata"]["creationTimestamp"]);
    labels(&mut page, object);
    page.pairs(0, "Selector", &object["spec"]["selector"]["matchLabels"]);
    let count = |field: &str| object["status"][field].as_i64().unwrap_or(0);
    page.field(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            object["spec"]["replicas"].as_i64().unwrap_or(1),
            count("updatedReplicas"),
            count("replicas"),
            count("availableReplicas"),
            count("unavailableReplicas")
        ),
    );
    page.some(0, "StrategyType", &object["spec"]["strategy"]["type"]);
    page.field(0, "MinReadySeconds", object["spec"]["minReadySeconds"].as_i64().unwrap_or(0).to_string());
    let rolling = &object["spec"]["strategy"]["rollingUpdate"];
    if rolling.is_object() {
        let (less, more) = (plain(&rolling["maxUnavailable"]), plain(&rolling["maxSurge"]));
        page.field(0, "RollingUpdateStrategy", format!("{less} max unavailable, {more} max surge"));
    }
    template(&mut page, object);
    conditions(&mut page, object, &[("Type", "type"), ("Status", "status"), ("Reason", "reason")]);
    let revision =
        |object: &Value| object["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone();
    let (new, old): (Vec<&Value>, Vec<&Value>) =
        sets.iter().partition(|set| revision(set) == revision(object));
    let used = old.into_iter().filter(|set| set["spec"]["replicas"].as_i64().unwrap_or(0) > 0);
    page.field(0, "OldReplicaSets", join(used.map(replica_set).collect()));
    page.field(0, "NewReplicaSet", join(new.into_iter().map(replica_set).collect()));
    page
}

fn replica_set(set: &Value) -> String {
    let (made, wanted) = (set["status"]["replicas"].as_i64(), set["spec"]["replicas"].as_i64());
    let (made, wanted) = (made.unwrap_or(0), wanted.unwrap_or(0));
    format!("{} ({made}/{wanted} replicas created)", at(set, "/metadata/name"))
}

pub fn job(object: &Value) -> Page {
    let mut page = Page::default();
    opening(&mut page, object);
    page.pairs(0, "Selector", &object["spec"]["selector"]["matchLabels"]);
    labels(&mut page, object);
    page.some(0, "Parallelism", &object["spec"]["parallelism"]);
    page.field(0, "Completions", or(object, "/spec/completions", "<unset>"));
    page.some(0, "Backoff Limit", &object["spec"]["backoffLimit"]);
    page.some(0, "Start Time", &object["status"]["startTime"]);
    page.some(0, "Completed At", &object["status"]["completionTime"]);
    let count = |field: &str| object["status"][field].as_i64().unwrap_or(0);
    let statuses = format!(
        "{} Active ({} Ready) / {} Succeeded / {} Failed",
        count("active"),
        count("ready"),
        count("succeeded"),
        count("failed")
    );
    page.field(0, "Pods Statuses", statuses);
    template(&mut page, object);
    let columns = [("Type", "type"), ("Status", "status"), ("Reason", "reason"), ("Message", "message")];
    conditions(&mut page, object, &columns);
    page
}
