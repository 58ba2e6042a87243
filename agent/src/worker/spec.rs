//! From a pod's document to what the runtime is told.
//!
//! Decides environment, mounts, limits and identity of a container. What this release cannot do is refused by name, never ignored.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::Object;
use api::quantity::Quantity;
use runtime::ids::{ContainerName, Digest, PodUid, VolumeName};
use runtime::spec::{
    ContainerSpec, DnsConfig, HostPathKind, Mount, MountSource, PodSpec, Resources, Security,
};
use serde_json::Value;

use super::probes::{self, Kind};

/// The pod asks for something that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{0}")]
    Invalid(String),
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("configmap \"{name}\" has no key \"{key}\"")]
    NoKey { name: String, key: String },
    #[error("{what} is not supported in this release")]
    Unsupported { what: String },
}

/// What a pod's containers may look up.
pub struct Surroundings<'a> {
    pub config_map: &'a (dyn Fn(&str) -> Option<Object> + Sync),
    pub pod_ip: &'a str,
    pub host_ip: &'a str,
    pub node: &'a str,
}

/// The cluster's own DNS servers, in the order of resolv.conf (DESIGN section 8).
pub const DNS: [&str; 2] = ["10.43.0.10", "10.43.0.11"];

/// The sandbox of a pod.
pub fn sandbox(pod: &Object, pod_ip: &str) -> Result<PodSpec, SpecError> {
    let uid = PodUid::new(pod.uid()).map_err(|error| SpecError::Invalid(error.to_string()))?;
    let mut spec = PodSpec::new(uid, pod.namespace(), pod.name());
    let hostname = pod.text("/spec/hostname");
    let name = if hostname.is_empty() { pod.name() } else { hostname };
    spec.hostname = name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_string();
    spec.host_network = pod.0.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    if let Ok(address) = pod_ip.parse::<IpAddr>() {
        spec.hosts.push((address, vec![spec.hostname.clone()]));
    }
    for alias in pod.list("/spec/hostAliases") {
        if let Some(address) = alias["ip"].as_str().and_then(|ip| ip.parse().ok()) {
            spec.hosts.push((address, strings(&alias["hostnames"])));
        }
    }
    spec.dns = dns(pod, spec.host_network);
    Ok(spec)
}

fn dns(pod: &Object, host_network: bool) -> DnsConfig {
    let own = &pod.0["spec"]["dnsConfig"];
    let mut config = match pod.text("/spec/dnsPolicy") {
        "None" | "Default" => DnsConfig::default(),
        "ClusterFirst" if host_network => DnsConfig::default(),
        _ => DnsConfig {
            servers: DNS.iter().filter_map(|text| text.parse().ok()).collect(),
            search: vec![
                format!("{}.svc.cluster.local", pod.namespace()),
                "svc.cluster.local".into(),
                "cluster.local".into(),
            ],
            options: vec!["ndots:5".into(), "timeout:2".into()],
        },
    };
    config.servers.extend(strings(&own["nameservers"]).iter().filter_map(|text| text.parse::<IpAddr>().ok()));
    config.search.extend(strings(&own["searches"]));
    for option in own["options"].as_array().into_iter().flatten() {
        let name = option["name"].as_str().unwrap_or("");
        config
            .options
            .push(option["value"].as_str().map_or(name.to_string(), |value| format!("{name}:{value}")));
    }
    config
}

/// One attempt of a container.
pub fn container(
    pod: &Object,
    name: &str,
    init: bool,
    attempt: u32,
    image: Digest,
    around: &Surroundings<'_>,
) -> Result<ContainerSpec, SpecError> {
    let list = if init { "/spec/initContainers" } else { "/spec/containers" };
    let document = pod
        .list(list)
        .iter()
        .find(|container| container["name"] == name)
        .ok_or_else(|| SpecError::Invalid(format!("no container {name}")))?;
    let id = ContainerName::new(name).map_err(|error| SpecError::Invalid(error.to_string()))?;
    let mut spec = ContainerSpec::new(id, image);
    spec.attempt = attempt;
    spec.env = environment(pod, document, around)?;
    let expand = |field: &str| {
        let words = document[field].as_array().map(|_| strings(&document[field]))?;
        Some(words.into_iter().map(|word| expanded(&word, &spec.env)).collect::<Vec<String>>())
    };
    spec.command = expand("command");
    spec.args = expand("args");
    spec.working_dir = document["workingDir"].as_str().map(String::from);
    spec.mounts = mounts(pod, document, around)?;
    spec.resources = resources(&document["resources"]);
    spec.security = security(&pod.0["spec"]["securityContext"], &document["securityContext"]);
    for (field, kind) in [
        ("livenessProbe", Some(Kind::Liveness)),
        ("readinessProbe", Some(Kind::Readiness)),
        ("startupProbe", Some(Kind::Startup)),
        ("lifecycle", None),
    ] {
        if document.get(field).is_some() && kind.is_none_or(|kind| probes::document(document, kind).is_none())
        {
            tracing::warn!(pod = pod.name(), container = name, field, "is not acted upon in this release");
        }
    }
    Ok(spec)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(String::from)).collect()
}

fn environment(
    pod: &Object,
    container: &Value,
    around: &Surroundings<'_>,
) -> Result<Vec<(String, String)>, SpecError> {
    let mut env: Vec<(String, String)> = Vec::new();
    for source in container["envFrom"].as_array().into_iter().flatten() {
        let prefix = source["prefix"].as_str().unwrap_or("");
        let reference = &source["configMapRef"];
        let Some(name) = reference["name"].as_str() else {
            return Err(SpecError::Unsupported { what: "envFrom with anything but configMapRef".into() });
        };
        match (around.config_map)(name) {
            Some(found) => {
                for (key, value) in found.0["data"].as_object().into_iter().flatten() {
                    env.push((format!("{prefix}{key}"), value.as_str().unwrap_or("").into()));
                }
            }
            None if reference["optional"] == true => {}
            None => return Err(SpecError::NoConfigMap(name.into())),
        }
    }
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or("").to_string();
        let value = match variable.get("valueFrom") {
            Some(source) => value_from(pod, source, around)?,
            None => Some(expanded(variable["value"].as_str().unwrap_or(""), &env)),
        };
        if let Some(value) = value {
            env.retain(|(known, _)| *known != name);
            env.push((name, value));
        }
    }
    Ok(env)
}

fn value_from(pod: &Object, source: &Value, around: &Surroundings<'_>) -> Result<Option<String>, SpecError> {
    if let Some(path) = source.pointer("/fieldRef/fieldPath").and_then(Value::as_str) {
        return field(pod, path, around)
            .map(Some)
            .ok_or_else(|| SpecError::Unsupported { what: format!("fieldRef {path}") });
    }
    if let Some(reference) = source.get("configMapKeyRef") {
        let (name, key) = (reference["name"].as_str().unwrap_or(""), reference["key"].as_str().unwrap_or(""));
        let found = (around.config_map)(name);
        let value = found.as_ref().and_then(|map| map.0["data"].get(key)).and_then(Value::as_str);
        return match (value, found.is_some(), reference["optional"] == true) {
            (Some(value), ..) => Ok(Some(value.into())),
            (None, _, true) => Ok(None),
            (None, true, _) => Err(SpecError::NoKey { name: name.into(), key: key.into() }),
            (None, false, _) => Err(SpecError::NoConfigMap(name.into())),
        };
    }
    let kinds: Vec<&str> = source.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    Err(SpecError::Unsupported { what: format!("env valueFrom {}", kinds.join(", ")) })
}

fn field(pod: &Object, path: &str, around: &Surroundings<'_>) -> Option<String> {
    let keyed = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
    if let Some(key) = keyed("metadata.labels['") {
        return Some(pod.label(key).unwrap_or("").into());
    }
    if let Some(key) = keyed("metadata.annotations['") {
        return Some(pod.annotation(key).unwrap_or("").into());
    }
    match path {
        "metadata.name" => Some(pod.name().into()),
        "metadata.namespace" => Some(pod.namespace().into()),
        "metadata.uid" => Some(pod.uid().into()),
        "spec.nodeName" => Some(around.node.into()),
        "status.podIP" | "status.podIPs" => Some(around.pod_ip.into()),
        "status.hostIP" | "status.hostIPs" => Some(around.host_ip.into()),
        "spec.serviceAccountName" => Some("default".into()),
        _ => None,
    }
}

/// `$(NAME)` becomes the variable's value, `$$(NAME)` stays as `$(NAME)`, unknown names stay as they are.
fn expanded(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(tail) = rest.strip_prefix("$$") {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')')) {
            match env.iter().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[..name.len() + 3]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

fn mounts(pod: &Object, container: &Value, around: &Surroundings<'_>) -> Result<Vec<Mount>, SpecError> {
    let wanted = container["volumeMounts"].as_array().into_iter().flatten();
    wanted
        .map(|mount| {
            let name = mount["name"].as_str().unwrap_or("");
            let volume = pod.list("/spec/volumes").iter().find(|volume| volume["name"] == name);
            let volume = volume.ok_or_else(|| SpecError::Invalid(format!("no volume {name}")))?;
            Ok(Mount {
                source: source(name, volume, around)?,
                target: mount["mountPath"].as_str().unwrap_or("").into(),
                read_only: mount["readOnly"] == true,
                sub_path: mount["subPath"].as_str().filter(|path| !path.is_empty()).map(String::from),
            })
        })
        .collect()
}

fn source(name: &str, volume: &Value, around: &Surroundings<'_>) -> Result<MountSource, SpecError> {
    let id = VolumeName::new(name).map_err(|error| SpecError::Invalid(error.to_string()))?;
    if let Some(empty) = volume.get("emptyDir") {
        let size = empty["sizeLimit"].as_str().and_then(|text| Quantity::parse(text).ok());
        let size_bytes = size.and_then(|size| u64::try_from(size.units()).ok());
        return Ok(MountSource::EmptyDir { name: id, memory: empty["medium"] == "Memory", size_bytes });
    }
    if let Some(host) = volume.get("hostPath") {
        let kind = match host["type"].as_str().unwrap_or("") {
            "" => HostPathKind::Any,
            "Directory" => HostPathKind::Directory,
            "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
            "File" => HostPathKind::File,
            "FileOrCreate" => HostPathKind::FileOrCreate,
            other => return Err(SpecError::Unsupported { what: format!("hostPath type {other}") }),
        };
        return Ok(MountSource::HostPath { path: host["path"].as_str().unwrap_or("").into(), kind });
    }
    if let Some(map) = volume.get("configMap") {
        return config_map_files(id, map, around);
    }
    let kind = volume
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
        .find(|key| *key != "name")
        .unwrap_or("nothing");
    Err(SpecError::Unsupported { what: format!("a volume of type {kind}") })
}

fn config_map_files(
    id: VolumeName,
    map: &Value,
    around: &Surroundings<'_>,
) -> Result<MountSource, SpecError> {
    use base64::Engine;
    let name = map["name"].as_str().unwrap_or("");
    let found = match (around.config_map)(name) {
        Some(found) => found,
        None if map["optional"] == true => Object::default(),
        None => return Err(SpecError::NoConfigMap(name.into())),
    };
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, value) in found.0["data"].as_object().into_iter().flatten() {
        all.insert(key.clone(), value.as_str().unwrap_or("").into());
    }
    for (key, value) in found.0["binaryData"].as_object().into_iter().flatten() {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or(""));
        all.insert(
            key.clone(),
            bytes.map_err(|error| SpecError::Invalid(format!("binaryData {key}: {error}")))?,
        );
    }
    let files = match map["items"].as_array() {
        None => all,
        Some(items) => items
            .iter()
            .map(|item| {
                let (key, path) = (item["key"].as_str().unwrap_or(""), item["path"].as_str().unwrap_or(""));
                let bytes = all
                    .get(key)
                    .cloned()
                    .ok_or_else(|| SpecError::NoKey { name: name.into(), key: key.into() })?;
                Ok((path.to_string(), bytes))
            })
            .collect::<Result<_, SpecError>>()?,
    };
    let mode = map["defaultMode"].as_u64().and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644);
    Ok(MountSource::Files { name: id, files, mode })
}

fn resources(resources: &Value) -> Resources {
    let amount = |section: &str, name: &str| {
        resources[section][name].as_str().and_then(|text| Quantity::parse(text).ok())
    };
    let positive = |value: i64| u64::try_from(value).ok();
    Resources {
        cpu_shares: amount("requests", "cpu")
            .and_then(|cpu| positive(cpu.millis() * 1024 / 1000))
            .map(|shares| shares.max(2)),
        cpu_quota_millis: amount("limits", "cpu").and_then(|cpu| positive(cpu.millis())),
        memory_limit_bytes: amount("limits", "memory").and_then(|memory| positive(memory.units())),
        pids_limit: None,
        oom_score_adj: None,
    }
}

/// The container's own settings go before the pod's.
fn security(pod: &Value, container: &Value) -> Security {
    let either =
        |field: &str| if container[field].is_null() { pod[field].clone() } else { container[field].clone() };
    let number = |field: &str| either(field).as_u64().and_then(|number| u32::try_from(number).ok());
    Security {
        user: number("runAsUser").map(|id| id.to_string()),
        group: number("runAsGroup"),
        supplementary_groups: pod["supplementalGroups"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|id| id.as_u64())
            .filter_map(|id| u32::try_from(id).ok())
            .collect(),
        privileged: container["privileged"] == true,
        add_capabilities: strings(&container["capabilities"]["add"]),
        drop_capabilities: strings(&container["capabilities"]["drop"]),
        read_only_root: container["readOnlyRootFilesystem"] == true,
        no_new_privileges: container["allowPrivilegeEscalation"] != true,
        seccomp_unconfined: either("seccompProfile")["type"] == "Unconfined",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn env_of(container: Value) -> Result<Vec<(String, String)>, SpecError> {
        let pod = Object(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}}));
        let config = |name: &str| (name == "c").then(|| Object(json!({"data": {"k": "v"}})));
        environment(
            &pod,
            &container,
            &Surroundings { config_map: &config, pod_ip: "10.42.0.2", host_ip: "10.0.0.1", node: "host1" },
        )
    }

    #[test]
    fn environment_is_looked_up_and_expanded() {
        let env = env_of(json!({
            "envFrom": [{"prefix": "C_", "configMapRef": {"name": "c"}}],
            "env": [
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "URL", "value": "http://$(IP)/$(C_k)/$$(IP)/$(NONE)"},
            ],
        }));
        let url = env.unwrap().into_iter().find(|(name, _)| name == "URL").unwrap().1;
        assert_eq!(url, "http://10.42.0.2/v/$(IP)/$(NONE)");
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = env_of(
            json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k"}}}]}),
        );
        assert_eq!(missing, Err(SpecError::NoConfigMap("x".into())));
        let secret =
            env_of(json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}]}));
        assert!(secret.unwrap_err().to_string().contains("secretKeyRef is not supported"));
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let found =
            resources(&json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "1", "memory": "64Mi"}}));
        assert_eq!(
            (found.cpu_shares, found.cpu_quota_millis, found.memory_limit_bytes),
            (Some(256), Some(1000), Some(64 << 20))
        );
    }
}
