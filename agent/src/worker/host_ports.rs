//! Host ports: ports of the machine that lead to one of its pods.
//!
//! Decides which of a pod's can be had. What cannot is refused by name, never ignored. It must not open any: netfabric does.

use api::Object;
use runtime::spec::{PortMapping, PortProtocol};
use serde_json::Value;

use super::spec::SpecError;

/// Ports of the machine that the agent itself needs: a pod that took one would cut the machine off.
#[derive(Debug, Clone, Copy)]
pub struct OwnPorts {
    /// TCP.
    pub api: u16,
    /// UDP.
    pub mesh: u16,
}

/// The host ports of a pod's containers. A pod on the host's network listens there itself.
pub fn mappings(pod: &Object, own: OwnPorts) -> Result<Vec<PortMapping>, SpecError> {
    if pod.0.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (list, init) in [("/spec/initContainers", true), ("/spec/containers", false)] {
        for container in pod.list(list) {
            for port in container["ports"].as_array().into_iter().flatten() {
                let Some(host_port) = number("hostPort", &port["hostPort"])? else { continue };
                if init {
                    let name = container["name"].as_str().unwrap_or("");
                    let what = format!("hostPort {host_port} of init container {name}");
                    return Err(SpecError::Unsupported { what });
                }
                found.push(mapping(port, host_port, own)?);
            }
        }
    }
    Ok(found)
}

fn mapping(port: &Value, host_port: u16, own: OwnPorts) -> Result<PortMapping, SpecError> {
    let unsupported = |what: String| Err(SpecError::Unsupported { what });
    let protocol = match port["protocol"].as_str() {
        None | Some("TCP") => PortProtocol::Tcp,
        Some("UDP") => PortProtocol::Udp,
        Some(other) => return unsupported(format!("hostPort {host_port} with protocol {other}")),
    };
    match port["hostIP"].as_str() {
        None | Some("" | "0.0.0.0" | "::") => {}
        Some(address) => return unsupported(format!("hostPort {host_port} with hostIP {address}")),
    }
    let needed = match protocol {
        PortProtocol::Tcp => vec![own.api],
        PortProtocol::Udp => vec![own.mesh, netfabric::VXLAN_PORT],
    };
    if needed.contains(&host_port) {
        let why = format!(
            "hostPort {host_port} is a port that skein itself needs on every machine: choose another one"
        );
        return Err(SpecError::Invalid(why));
    }
    let container_port = number("containerPort", &port["containerPort"])?
        .ok_or_else(|| SpecError::Invalid(format!("hostPort {host_port} without a containerPort")))?;
    Ok(PortMapping { protocol, host_port, container_port })
}

/// Zero is what Kubernetes' clients write for none.
fn number(field: &str, value: &Value) -> Result<Option<u16>, SpecError> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    let number = number.ok_or_else(|| SpecError::Invalid(format!("{field} {value} is not a port")))?;
    Ok(Some(number).filter(|number| *number > 0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OWN: OwnPorts = OwnPorts { api: 6443, mesh: 7443 };

    fn of(ports: Value) -> Result<Vec<PortMapping>, String> {
        let pod = Object(json!({"spec": {"containers": [{"name": "c", "ports": ports}]}}));
        mappings(&pod, OWN).map_err(|error| error.to_string())
    }

    #[test]
    fn host_ports_of_both_protocols_are_had() {
        let found = of(json!([
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 6443, "protocol": "UDP", "hostIP": "0.0.0.0"},
            {"containerPort": 90}, {"containerPort": 91, "hostPort": 0},
        ]));
        let mapping =
            |protocol, host_port, container_port| PortMapping { protocol, host_port, container_port };
        assert_eq!(
            found,
            Ok(vec![mapping(PortProtocol::Tcp, 8080, 80), mapping(PortProtocol::Udp, 6443, 53)])
        );
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        for (port, words) in [
            (
                json!({"containerPort": 1, "hostPort": 2, "protocol": "SCTP"}),
                "hostPort 2 with protocol SCTP is not supported",
            ),
            (
                json!({"containerPort": 1, "hostPort": 2, "hostIP": "10.0.0.1"}),
                "hostPort 2 with hostIP 10.0.0.1 is not supported",
            ),
            (
                json!({"containerPort": 1, "hostPort": 6443}),
                "hostPort 6443 is a port that skein itself needs",
            ),
            (
                json!({"containerPort": 1, "hostPort": 7443, "protocol": "UDP"}),
                "hostPort 7443 is a port that skein itself needs",
            ),
            (
                json!({"containerPort": 1, "hostPort": 4789, "protocol": "UDP"}),
                "hostPort 4789 is a port that skein itself needs",
            ),
            (json!({"containerPort": 1, "hostPort": 70_000}), "hostPort 70000 is not a port"),
            (json!({"containerPort": 1, "hostPort": -1}), "hostPort -1 is not a port"),
            (json!({"containerPort": 70_000, "hostPort": 2}), "containerPort 70000 is not a port"),
        ] {
            let said = of(json!([port])).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_host_port_of_an_init_container_is_refused_by_name() {
        let init = |port: Value| json!({"name": "first", "ports": [port]});
        let of = |port| mappings(&Object(json!({"spec": {"initContainers": [init(port)]}})), OWN);
        assert_eq!(of(json!({"containerPort": 1, "hostPort": 0})).ok(), Some(Vec::new()));
        let said = of(json!({"containerPort": 1, "hostPort": 8080})).unwrap_err().to_string();
        assert!(said.starts_with("hostPort 8080 of init container first is not supported"), "{said}");
    }
}
