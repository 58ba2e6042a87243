//! One pass: observe (when needed), plan, apply.
//!
//! Decides that a failure stops only its own subject. Must not branch on what an action is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::Worker;
use crate::action::{Action, Failure, Plan, Report, Subject, Transaction};
use crate::desired::{Desired, LocalNode, NodeName};
use crate::kernel::apply::{ApplyError, Tools};
use crate::kernel::observe::{ObserveError, observe};
use crate::net::Ipv4Net;
use crate::observed::Observed;
use crate::plan::plan;
use crate::table::{layout, script};

impl Worker {
    /// Brings the kernel to `desired` and says what became of it.
    pub(super) fn reconcile(&mut self, desired: &Desired, full: bool) -> Report {
        let drift = self.monitor.drift(&self.indexes);
        if full || drift.unknown {
            self.observed = None;
        }
        for link in drift.lost_links {
            self.indexes.remove(&link);
            if let Some(observed) = &mut self.observed {
                observed.absorb(&Action::DeleteLink { link });
            }
        }
        let mut observed = match self.known(desired) {
            Ok(observed) => observed,
            Err(error) => return failed(Subject::Node, error.to_string()),
        };
        observed.cut_blocks.retain(|block| desired.dead_blocks.contains(block));
        let plan = plan(desired, &observed);
        let mut report = Report { conditions: self.conditions.clone(), ..Report::default() };
        let trusted = self.carry_out(plan, desired, &mut observed, &mut report);
        self.observed = trusted.then_some(observed);
        if !report.is_quiet() {
            self.monitor.settle();
        }
        report
    }

    /// The picture that we have, else a fresh one.
    fn known(&mut self, desired: &Desired) -> Result<Observed, ObserveError> {
        if let Some(observed) = self.observed.take() {
            return Ok(observed);
        }
        let seen = observe(&self.route, &self.netfilter, desired)?;
        self.indexes = seen.indexes;
        self.conditions = seen.conditions;
        Ok(seen.observed)
    }

    /// Carries out the plan; false when the picture may be wrong afterwards.
    pub(super) fn carry_out(
        &mut self,
        plan: Plan,
        desired: &Desired,
        observed: &mut Observed,
        report: &mut Report,
    ) -> bool {
        report.failures = plan.refused;
        let mut failed: BTreeSet<Subject> = BTreeSet::new();
        let mut trusted = true;
        for step in plan.steps {
            if failed.contains(&step.subject) {
                continue;
            }
            match self.carry_out_one(&step.action, desired) {
                Ok(()) => {
                    tracing::debug!(subject = %step.subject, action = ?step.action, "network changed");
                    observed.absorb(&step.action);
                    report.changes += 1;
                }
                Err(error) => {
                    trusted &= matches!(error, ApplyError::Attach { .. } | ApplyError::Sysctl { .. });
                    tracing::warn!(subject = %step.subject, %error, "network change failed");
                    report
                        .failures
                        .push(Failure { subject: step.subject.clone(), reason: error.to_string() });
                    if step.subject != Subject::Node {
                        failed.insert(step.subject);
                    }
                }
            }
        }
        trusted
    }

    fn carry_out_one(&mut self, action: &Action, desired: &Desired) -> Result<(), ApplyError> {
        let mut tools = Tools {
            route: &self.route,
            netfilter: &self.netfilter,
            nft: &mut self.nft,
            indexes: &mut self.indexes,
            desired,
        };
        tools.apply(action)
    }
}

fn failed(subject: Subject, reason: String) -> Report {
    Report { failures: vec![Failure { subject, reason }], ..Report::default() }
}

/// What a caller learns when nobody is there to answer.
pub(super) fn thread_ended() -> Report {
    failed(Subject::Node, "the fabric's thread ended; restart the agent".to_owned())
}

/// A script that uses everything our rules ever use.
pub(super) fn probe_script() -> String {
    let nowhere = Ipv4Net::host(Ipv4Addr::LOCALHOST);
    let dns = crate::desired::DnsAddresses { local: Ipv4Addr::LOCALHOST, fallback: Ipv4Addr::LOCALHOST };
    let network = |id, cidr| crate::desired::Network {
        id: crate::desired::NetworkId(id),
        name: String::new(),
        cidr,
        vni: 1,
        block: cidr,
        overlay: Ipv4Addr::LOCALHOST,
    };
    let desired = Desired {
        node: LocalNode { name: NodeName::from("probe"), underlay: IpAddr::V4(Ipv4Addr::LOCALHOST) },
        networks: vec![network(0, nowhere), network(1, Ipv4Net::host(Ipv4Addr::BROADCAST))],
        peers: Vec::new(),
        pods: Vec::new(),
        services: Vec::new(),
        service_cidr: nowhere,
        node_port_addresses: BTreeSet::new(),
        dead_blocks: BTreeSet::new(),
        dns: Some(dns),
    };
    let chains = [layout::slot(0), layout::slot(1), layout::draw(1), layout::draw(2)];
    let put_chains = chains.into_iter().chain(layout::chains(&desired)).collect();
    script::render(&Transaction { fresh: true, put_chains, ..Transaction::default() })
}
