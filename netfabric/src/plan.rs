//! Desired state and observed state to an ordered list of changes. Pure.
//!
//! Decides what changes and in which order. Must not do anything, and must not name an object that is not ours: all
//! that it removes comes out of those parts of `Observed` that hold our own.

mod links;
mod pods;
mod rules;
mod services;

use crate::action::{Action, Failure, Plan, Step, Subject};
use crate::desired::Desired;
use crate::observed::Observed;

/// What has to be done to get from `observed` to `desired`. Empty when nothing has.
///
/// Interfaces that must go come first, then the rules (so that no pod is attached to a network without guards), then
/// forgotten connections, devices and routes, pods, and last what the rules no longer refer to.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut draft = Draft::new(observed);
    let pods = pods::accepted(desired, &mut draft);
    let peers = links::accepted_peers(desired, &mut draft);
    let frontends = services::frontends(desired, &pods, observed, &mut draft);
    let wanted = links::Wanted::of(desired, &peers, &pods, observed, &mut draft);

    wanted.remove_links(&mut draft);
    let table = rules::Wanted::of(desired, &peers, &pods, &frontends, observed.table.as_ref());
    let changes = table.changes(observed.table.as_ref());
    draft.table(changes.first);
    services::forget(desired, &frontends, observed, &mut draft);
    wanted.settle(&mut draft);
    draft.table(changes.cleanup);
    draft.plan
}

/// The plan so far, and the picture as it will be after it.
struct Draft {
    plan: Plan,
    after: Observed,
}

impl Draft {
    fn new(observed: &Observed) -> Self {
        // The rules are compared apart; a copy of thousands of elements for every pod would be waste.
        let after = Observed {
            underlays: observed.underlays.clone(),
            sysctls: observed.sysctls.clone(),
            links: observed.links.clone(),
            taken_names: observed.taken_names.clone(),
            addresses: observed.addresses.clone(),
            routes: observed.routes.clone(),
            neighbours: observed.neighbours.clone(),
            forwarding: observed.forwarding.clone(),
            pods: observed.pods.clone(),
            ..Observed::default()
        };
        Self { plan: Plan::default(), after }
    }

    fn push(&mut self, subject: Subject, action: Action) {
        self.after.absorb(&action);
        self.plan.steps.push(Step { subject, action });
    }

    fn table(&mut self, transaction: crate::action::Transaction) {
        if !transaction.is_empty() {
            self.plan.steps.push(Step { subject: Subject::Rules, action: Action::Table(transaction) });
        }
    }

    fn refuse(&mut self, subject: Subject, reason: impl Into<String>) {
        self.plan.refused.push(Failure { subject, reason: reason.into() });
    }
}

#[cfg(test)]
mod tests;

/// A small desired state for tests.
#[cfg(test)]
pub(crate) mod samples;
