//! netfabric: the node's network, from desired state to kernel.
//!
//! Observe → plan → apply. `desired` is the input, `observed` is what the kernel has, `plan` is a pure function from
//! both to an ordered list of changes (`action`), `kernel` carries them out, and `fabric` is the driver that the agent
//! holds. `table` is our one nftables table; `dns` answers names. Foreign interfaces, routes and rules are never
//! touched; a second pass is empty; dropping the fabric leaves traffic flowing. The crate knows no Kubernetes.

pub mod action;
pub mod desired;
pub mod dns;
pub mod fabric;
pub mod firewall;
mod kernel;
pub mod net;
pub mod observed;
pub mod plan;
pub mod table;

pub use action::{Condition, Failure, Report, Subject};
pub use desired::{
    Desired, DnsAddresses, Endpoint, HostPort, LocalNode, LocalPod, Network, NetworkId, NodeName, Peer,
    PeerNetwork, PodUid, Protocol, Service, ServiceId, ServicePort,
};
pub use fabric::{Fabric, FabricConfig, OpenError, ResetError};
pub use net::{Ipv4Net, LinkName, Mac, VXLAN_PORT};
