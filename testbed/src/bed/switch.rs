//! The switch of a bed: a bridge in a network namespace of its own, a port per host and one for the outside.
//!
//! Decides what passes between ports. Who is cut off sees silence: no reset, no unreachable, no lost link.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::BedError;
use crate::namespace::{ToolError, ip, new_network, tool};

pub const OUTSIDE_PORT: &str = "pout";

const RULES: &str = "
table bridge bed {
  set cut { type ifname . ifname; }
  chain forward { type filter hook forward priority 0; policy accept; iifname . oifname @cut drop; }
}
";

/// A bridge and its rules.
#[derive(Debug)]
pub struct Switch {
    namespace: OwnedFd,
    outside: Arc<OwnedFd>,
    /// (from port, to port) that are dropped.
    cuts: Mutex<BTreeSet<(String, String)>>,
}

impl Switch {
    pub fn create(outside_address: Ipv4Addr) -> Result<Switch, BedError> {
        let namespace = new_network().map_err(BedError::Namespace)?;
        let outside = Arc::new(new_network().map_err(BedError::Namespace)?);
        let switch = Switch { namespace, outside, cuts: Mutex::default() };
        let bridge =
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n";
        ip(&switch.namespace, bridge)?;
        switch.plug(OUTSIDE_PORT, &switch.outside)?;
        let address = format!("link set lo up\naddr add {outside_address}/24 dev eth0\nlink set eth0 up\n");
        ip(&switch.outside, &address)?;
        tool(switch.namespace.as_fd(), "nft", &["-f", "-"], RULES)?;
        Ok(switch)
    }

    pub fn outside(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.outside)
    }

    /// Connects `eth0` of a namespace to a new port.
    pub fn plug(&self, port: &str, namespace: &OwnedFd) -> Result<(), ToolError> {
        // A descriptor of ours is a path for `ip`, so the namespace needs no name and no process.
        let peer = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        let lines = format!(
            "link add {port} type veth peer name eth0 netns {peer}\nlink set {port} master br0\nlink set {port} up\n"
        );
        ip(&self.namespace, &lines)
    }

    /// Drops both directions at a port, at once.
    pub fn silence(&self, port: &str) -> Result<(), ToolError> {
        ip(&self.namespace, &format!("link set {port} nomaster\nlink set {port} down\n"))
    }

    /// Takes the cable of a dead host away; it may have gone with the host's namespace already.
    pub fn unplug(&self, port: &str) {
        let _ = ip(&self.namespace, &format!("link del {port}\n"));
    }

    pub fn add_cut(&self, pair: (String, String)) -> Result<(), ToolError> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        cuts.insert(pair);
        self.set_cuts(cuts)
    }

    pub fn set_cuts(&self, cuts: BTreeSet<(String, String)>) -> Result<(), ToolError> {
        let mut script = String::from("flush set bridge bed cut\n");
        if !cuts.is_empty() {
            let elements: Vec<String> =
                cuts.iter().map(|(from, to)| format!("\"{from}\" . \"{to}\"")).collect();
            script += &format!("add element bridge bed cut {{ {} }}\n", elements.join(", "));
        }
        tool(self.namespace.as_fd(), "nft", &["-f", "-"], &script)?;
        *self.cuts.lock().unwrap_or_else(PoisonError::into_inner) = cuts;
        Ok(())
    }
}
