//! Takes everything of ours out of the kernel.
//!
//! Decides nothing about what is ours: that is `observe`'s. Kernel settings stay, others may rely on them by now (docs/decisions/0307).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::Worker;
use crate::action::{Action, Report};
use crate::desired::{Desired, LocalNode, NodeName};
use crate::kernel::nft;
use crate::kernel::observe::{Seen, observe};
use crate::net::Ipv4Net;
use crate::table::NAME;

impl Worker {
    /// Removes all of it and says what is left.
    pub(super) fn reset(&mut self) -> Vec<String> {
        let removed = nft::run_once(&format!("add table inet {NAME}; delete table inet {NAME}\n"));
        let nothing = nothing();
        let observed = observe(&self.route, &self.netfilter, &nothing);
        let mut report = Report::default();
        match observed {
            Err(error) => return vec![error.to_string()],
            Ok(Seen { mut observed, indexes, .. }) => {
                self.indexes = indexes;
                let mut plan = crate::plan::plan(&nothing, &observed);
                plan.refused.clear();
                plan.steps.retain(|step| removes(&step.action));
                self.carry_out(plan, &nothing, &mut observed, &mut report);
            }
        }
        let failures = report.failures.into_iter().map(|failure| failure.reason);
        failures.chain(removed.err().map(|error| error.to_string())).collect()
    }
}

fn removes(action: &Action) -> bool {
    matches!(
        action,
        Action::DeleteLink { .. }
            | Action::DeleteAddress { .. }
            | Action::DeleteRoute { .. }
            | Action::DeleteNeighbour { .. }
            | Action::DeleteForwarding { .. }
    )
}

/// A node without any network.
fn nothing() -> Desired {
    Desired {
        node: LocalNode { name: NodeName::from(""), underlay: IpAddr::V4(Ipv4Addr::UNSPECIFIED) },
        networks: Vec::new(),
        peers: Vec::new(),
        pods: Vec::new(),
        services: Vec::new(),
        service_cidr: Ipv4Net::host(Ipv4Addr::UNSPECIFIED),
        node_port_addresses: BTreeSet::new(),
        dead_blocks: BTreeSet::new(),
        dns: None,
    }
}
