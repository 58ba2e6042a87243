//! Rules for pods and pod templates.
//!
//! Decides what a pod's spec must hold. It must not judge whether a node could run it; the scheduler does.

use serde_json::{Value, json};

use crate::errors::Cause;
use crate::names;
use crate::object::Object;
use crate::quantity::Quantity;

pub fn check(object: &Object) -> Vec<Cause> {
    check_spec("spec", &object.0["spec"])
}

/// Of a pod's spec only images, grace, deadline and added tolerations may change.
pub fn check_update(old: &Object, new: &Object) -> Vec<Cause> {
    if frozen_part(old) == frozen_part(new) {
        return Vec::new();
    }
    vec![Cause::forbidden(
        "spec",
        "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
    )]
}

fn frozen_part(object: &Object) -> Value {
    let mut spec = object.0["spec"].clone();
    let Value::Object(map) = &mut spec else { return spec };
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName"] {
        map.remove(field);
    }
    for list in ["containers", "initContainers"] {
        for container in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            container["image"] = Value::Null;
        }
    }
    spec
}

/// The spec of a pod or of a template, `path` leading to it.
pub fn check_spec(path: &str, spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or(&[]);
    if containers.is_empty() {
        causes.push(Cause::required(&format!("{path}.containers"), ""));
    }
    let volumes = volumes(path, spec, &mut causes);
    let mut seen: Vec<&str> = Vec::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.{list}[{index}]");
            let name = container["name"].as_str().unwrap_or("");
            if seen.contains(&name) {
                causes.push(Cause::duplicate(&format!("{at}.name"), name));
            }
            seen.push(name);
            check_container(&at, container, &volumes, &mut causes);
        }
    }
    one_of(path, spec, "restartPolicy", &["Always", "OnFailure", "Never"], &mut causes);
    one_of(
        path,
        spec,
        "dnsPolicy",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        &mut causes,
    );
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        causes.push(Cause::invalid(
            &format!("{path}.terminationGracePeriodSeconds"),
            &spec["terminationGracePeriodSeconds"],
            "must be greater than or equal to 0",
        ));
    }
    causes.extend(super::labels(&format!("{path}.nodeSelector"), spec.get("nodeSelector")));
    causes
}

pub(super) fn one_of(path: &str, spec: &Value, field: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    if let Some(value) = spec[field].as_str()
        && !allowed.contains(&value)
    {
        causes.push(Cause::not_supported(&format!("{path}.{field}"), value, allowed));
    }
}

/// Names of the volumes, checked.
fn volumes(path: &str, spec: &Value, causes: &mut Vec<Cause>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}.volumes[{index}]");
        let name = volume["name"].as_str().unwrap_or("").to_string();
        if let Some(why) = names::problem(names::NameForm::Label, &name) {
            causes.push(Cause::invalid(&format!("{at}.name"), &json!(name), why));
        }
        if names.contains(&name) {
            causes.push(Cause::duplicate(&format!("{at}.name"), &name));
        }
        let sources = volume.as_object().map_or(0, |map| map.len().saturating_sub(1));
        if sources != 1 {
            causes.push(Cause::required(&at, "must specify exactly one volume type"));
        }
        names.push(name);
    }
    names
}

fn check_container(at: &str, container: &Value, volumes: &[String], causes: &mut Vec<Cause>) {
    let name = container["name"].as_str().unwrap_or("");
    if let Some(why) = names::problem(names::NameForm::Label, name) {
        causes.push(Cause::invalid(&format!("{at}.name"), &json!(name), why));
    }
    if container["image"].as_str().unwrap_or("").trim().is_empty() {
        causes.push(Cause::required(&format!("{at}.image"), ""));
    }
    one_of(at, container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], causes);
    ports(at, container, causes);
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let volume = mount["name"].as_str().unwrap_or("");
        if !volumes.iter().any(|known| known == volume) {
            let field = format!("{at}.volumeMounts[{index}].name");
            causes.push(Cause {
                reason: "FieldValueNotFound",
                message: format!("Not found: \"{volume}\""),
                field,
            });
        }
        if !mount["mountPath"].as_str().unwrap_or("").starts_with('/') {
            causes.push(Cause::invalid(
                &format!("{at}.volumeMounts[{index}].mountPath"),
                &mount["mountPath"],
                "must be an absolute path",
            ));
        }
    }
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        let name = variable["name"].as_str().unwrap_or("");
        if name.is_empty() || name.contains(['=', '\0']) {
            causes.push(Cause::invalid(
                &format!("{at}.env[{index}].name"),
                &json!(name),
                "a variable's name is not empty and has no '='",
            ));
        }
    }
    resources(at, &container["resources"], causes);
}

fn ports(at: &str, container: &Value, causes: &mut Vec<Cause>) {
    for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.ports[{index}]");
        if !(1..=65_535).contains(&port["containerPort"].as_i64().unwrap_or(0)) {
            causes.push(Cause::invalid(
                &format!("{at}.containerPort"),
                &port["containerPort"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        // Zero is what clients write for none.
        let host_port = &port["hostPort"];
        if !host_port.is_null() && !host_port.as_i64().is_some_and(|number| (0..=65_535).contains(&number)) {
            causes.push(Cause::invalid(
                &format!("{at}.hostPort"),
                host_port,
                "must be between 1 and 65535, inclusive",
            ));
        }
        one_of(&at, port, "protocol", &["TCP", "UDP", "SCTP"], causes);
    }
}

fn resources(at: &str, resources: &Value, causes: &mut Vec<Cause>) {
    let amount = |section: &str, name: &str| {
        resources[section][name].as_str().and_then(|text| Quantity::parse(text).ok())
    };
    for section in ["limits", "requests"] {
        for (name, value) in resources[section].as_object().into_iter().flatten() {
            if amount(section, name).is_some_and(|amount| amount.0 < 0) {
                causes.push(Cause::invalid(
                    &format!("{at}.resources.{section}[{name}]"),
                    value,
                    "must be greater than or equal to 0",
                ));
            }
        }
    }
    for (name, value) in resources["requests"].as_object().into_iter().flatten() {
        if let (Some(request), Some(limit)) = (amount("requests", name), amount("limits", name))
            && request > limit
        {
            causes.push(Cause::invalid(
                &format!("{at}.resources.requests"),
                value,
                &format!("must be less than or equal to {name} limit of {limit}"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(spec: Value) -> Vec<String> {
        check_spec("spec", &spec).into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn mistakes_in_containers_are_found_by_path() {
        let spec = json!({"containers": [
            {"name": "a", "image": "x", "ports": [{"containerPort": 99_999}]},
            {"name": "a", "image": " ", "volumeMounts": [{"name": "none", "mountPath": "rel"}]},
        ]});
        assert_eq!(
            fields(spec),
            [
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[1].name",
                "spec.containers[1].image",
                "spec.containers[1].volumeMounts[0].name",
                "spec.containers[1].volumeMounts[0].mountPath",
            ]
        );
    }

    #[test]
    fn a_host_port_is_a_port_or_zero() {
        let spec = |host_port: Value| {
            let ports = json!([{"containerPort": 1}, {"containerPort": 2, "hostPort": host_port}]);
            let container = |name: &str| json!({"name": name, "image": "x", "ports": ports});
            json!({"containers": [container("a")], "initContainers": [container("b")]})
        };
        for fine in [json!(0), json!(1), json!(65_535), Value::Null] {
            assert_eq!(fields(spec(fine.clone())), [""; 0], "{fine}");
        }
        for wrong in [json!(65_536), json!(70_000), json!(-1), json!(1.5), json!("80")] {
            let both = ["spec.containers[0].ports[1].hostPort", "spec.initContainers[0].ports[1].hostPort"];
            assert_eq!(fields(spec(wrong.clone())), both, "{wrong}");
        }
    }

    #[test]
    fn requests_stay_within_limits() {
        let resources = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}});
        let spec = json!({"containers": [{"name": "a", "image": "x", "resources": resources}]});
        assert_eq!(fields(spec), ["spec.containers[0].resources.requests"]);
    }

    #[test]
    fn a_running_pod_may_get_another_image_only() {
        let pod = |image: &str, policy: &str| {
            Object(json!({"spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": image}]}}))
        };
        assert!(check_update(&pod("x:1", "Always"), &pod("x:2", "Always")).is_empty());
        assert_eq!(check_update(&pod("x:1", "Always"), &pod("x:1", "Never")).len(), 1);
    }
}
