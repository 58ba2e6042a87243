//! The agent's settings, as flags give them.
//!
//! Decides defaults and that they make sense together. It must not read files.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// UDP port of the mesh.
pub const MESH_PORT: u16 = 7443;
/// TCP port of the API, Kubernetes' own.
pub const API_PORT: u16 = 6443;

/// Settings of one agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Durable, on a real file system.
    pub data: PathBuf,
    /// A tmpfs, empty after a boot.
    pub run: PathBuf,
    /// This machine's address towards the others; found by itself where absent.
    pub address: Option<IpAddr>,
    pub mesh_port: u16,
    pub api_port: u16,
    pub cgroup_parent: String,
    /// Name of the node; the host's name where absent.
    pub name: Option<String>,
    /// Servers that names outside the cluster are asked of; those of /etc/resolv.conf where empty.
    pub upstream_dns: Vec<IpAddr>,
    /// How long members' certificates last that this machine signs.
    pub certificate_lifetime: Duration,
    /// How often the replicas' states are compared while this machine leads.
    pub compare_states: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data: "/var/lib/skein".into(),
            run: "/run/skein".into(),
            address: None,
            mesh_port: MESH_PORT,
            api_port: API_PORT,
            cgroup_parent: "/skein".into(),
            name: None,
            upstream_dns: Vec::new(),
            certificate_lifetime: crate::timing::CERTIFICATE_LIFETIME,
            compare_states: crate::timing::COMPARE_STATES,
        }
    }
}

/// A setting cannot be found out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("this machine has no IPv4 address beside loopback: give one with --address")]
    NoAddress,
    #[error(
        "the host name \"{0}\" cannot be a node's name: give one with --name (lower case letters, digits, '-' and '.')"
    )]
    BadName(String),
}

impl Config {
    pub fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The node's name.
    pub fn node_name(&self) -> Result<String, ConfigError> {
        let host =
            nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let name = self.name.clone().unwrap_or_else(|| host.to_lowercase());
        match api::names::problem(api::names::NameForm::Subdomain, &name) {
            None => Ok(name),
            Some(_) => Err(ConfigError::BadName(name)),
        }
    }

    /// The address given, else the first of an interface that is up and not ours.
    pub fn own_address(&self) -> Result<IpAddr, ConfigError> {
        if let Some(address) = self.address {
            return Ok(address);
        }
        let interfaces = nix::ifaddrs::getifaddrs().map_err(|_| ConfigError::NoAddress)?;
        let found = interfaces
            .filter(|i| !i.interface_name.starts_with("skein") && i.interface_name != "lo")
            .find_map(|interface| {
                let address = interface.address?.as_sockaddr_in()?.ip();
                (!address.is_loopback() && !address.is_link_local()).then_some(IpAddr::V4(address))
            });
        found.ok_or(ConfigError::NoAddress)
    }
}
