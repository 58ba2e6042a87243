//! Rules for services.
//!
//! Decides what a service's spec must hold. It must not allocate addresses or ports; the API server does, against the store.

use serde_json::{Value, json};

use super::pod::one_of;
use crate::errors::Cause;
use crate::names;
use crate::object::Object;

/// Ports that NodePort services may have (Kubernetes' default range).
pub const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

pub fn check(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &object.0["spec"];
    one_of("spec", spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut causes);
    one_of("spec", spec, "sessionAffinity", &["ClientIP", "None"], &mut causes);
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or(&[]);
    let headless = spec["clusterIP"] == "None";
    if spec["type"] == "ExternalName" {
        if names::problem(names::NameForm::Subdomain, spec["externalName"].as_str().unwrap_or("")).is_some() {
            causes.push(Cause::invalid("spec.externalName", &spec["externalName"], "must be a DNS name"));
        }
    } else if ports.is_empty() && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (index, port) in ports.iter().enumerate() {
        check_port(index, port, ports, &mut causes);
    }
    causes.extend(super::labels("spec.selector", spec.get("selector")));
    causes
}

fn check_port(index: usize, port: &Value, all: &[Value], causes: &mut Vec<Cause>) {
    let at = format!("spec.ports[{index}]");
    if !(1..=65_535).contains(&port["port"].as_i64().unwrap_or(0)) {
        causes.push(Cause::invalid(
            &format!("{at}.port"),
            &port["port"],
            "must be between 1 and 65535, inclusive",
        ));
    }
    let target = &port["targetPort"];
    let target_fits = target.is_string()
        || target.is_null()
        || target.as_i64().is_some_and(|number| (1..=65_535).contains(&number));
    if !target_fits {
        causes.push(Cause::invalid(
            &format!("{at}.targetPort"),
            target,
            "must be between 1 and 65535, inclusive",
        ));
    }
    one_of(&at, port, "protocol", &["SCTP", "TCP", "UDP"], causes);
    if all.len() > 1 && port["name"].as_str().unwrap_or("").is_empty() {
        causes.push(Cause::required(
            &format!("{at}.name"),
            "a service with several ports needs a name for each",
        ));
    }
    let same = |other: &Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
    if all.iter().take(index).any(same) {
        causes.push(Cause::duplicate(
            &at,
            &format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("")),
        ));
    }
    if let Some(node_port) = port["nodePort"].as_i64().filter(|number| *number != 0)
        && !NODE_PORTS.contains(&node_port)
    {
        let why = format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            NODE_PORTS.start(),
            NODE_PORTS.end()
        );
        causes.push(Cause::invalid(&format!("{at}.nodePort"), &json!(node_port), &why));
    }
}

pub fn check_update(old: &Object, new: &Object) -> Vec<Cause> {
    let (before, after) = (old.text("/spec/clusterIP"), new.text("/spec/clusterIP"));
    if !before.is_empty() && before != after && new.text("/spec/type") != "ExternalName" {
        return vec![Cause::invalid("spec.clusterIP", &json!(after), "field is immutable")];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_checked_one_by_one() {
        let object = Object(json!({"spec": {"type": "NodePort", "ports": [
            {"name": "a", "port": 80, "protocol": "TCP", "nodePort": 80},
            {"port": 80, "protocol": "TCP"},
        ]}}));
        let fields: Vec<String> = check(&object).into_iter().map(|cause| cause.field).collect();
        assert_eq!(fields, ["spec.ports[0].nodePort", "spec.ports[1].name", "spec.ports[1]"]);
    }

    #[test]
    fn a_cluster_address_stays() {
        let with = |ip: &str| Object(json!({"spec": {"clusterIP": ip}}));
        assert!(check_update(&with(""), &with("10.43.0.5")).is_empty());
        assert_eq!(check_update(&with("10.43.0.5"), &with("10.43.0.6")).len(), 1);
    }
}
