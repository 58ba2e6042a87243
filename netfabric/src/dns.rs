//! Names of the cluster, answered on every node from its own state.
//!
//! `records` decides what a name means (pure), `forward` asks other servers for everything outside of the cluster, and
//! `server` speaks the protocol. Must not know where the records come from.

mod forward;
pub mod records;
mod server;

pub use records::{NamedEndpoint, NamedPod, NamedPort, NamedService, Records, ServiceAddresses};
pub use server::{DnsServer, ServeError, Sockets};

/// The cluster's domain.
pub const DOMAIN: &str = "cluster.local";

/// What a pod's resolv.conf says, for a pod of this namespace.
pub fn resolv_conf(namespace: &str, servers: &[std::net::Ipv4Addr]) -> String {
    let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    format!(
        "{servers}search {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\noptions ndots:5 timeout:1 attempts:3\n"
    )
}
