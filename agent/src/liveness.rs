//! Who is dead: the leader's decision from direct probes by the voters (DESIGN section 5), as a synchronous core.
//!
//! Decides death, return, and the brake on mass replacement. It must not take gossip's word for a death: a suspicion only
//! starts an inquiry, and any voter that reaches the node ends it.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::NodeId;

use crate::timing;

/// What the core is told. Times are milliseconds of the driver's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Whom this machine suspects now.
    Suspects(BTreeSet<NodeId>),
    /// What the store says: the members that count, the voters among them, those already written down as dead with the
    /// time, and the brake: since when it is on, or when it was let go last.
    Members {
        members: BTreeSet<NodeId>,
        voters: BTreeSet<NodeId>,
        dead: BTreeMap<NodeId, u64>,
        braked_since: Option<u64>,
        released: Option<u64>,
    },
    /// A voter's answer to an inquiry: `None` when the voter itself did not answer.
    Report {
        inquiry: u64,
        voter: NodeId,
        reached: Option<bool>,
    },
    Tick,
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a voter (this machine too) to probe `node` directly for `timing::DEATH_SILENCE`.
    Ask { inquiry: u64, voter: NodeId, node: NodeId },
    /// Write down that the node is dead.
    Dead(NodeId),
    /// Write down that replacing of pods stops (`true`; again when that is to be counted from now) or goes on.
    Brake(bool),
}

struct Inquiry {
    number: u64,
    waiting: BTreeSet<NodeId>,
    unreached: BTreeSet<NodeId>,
}

/// The core; it exists while this machine leads. A new leader begins with a new one, probes anew, and takes deaths and brake
/// over from the store.
pub struct Liveness {
    members: BTreeSet<NodeId>,
    voters: BTreeSet<NodeId>,
    /// With the time of their death.
    dead: BTreeMap<NodeId, u64>,
    suspects: BTreeSet<NodeId>,
    open: BTreeMap<NodeId, Inquiry>,
    /// When a node was last reached: it is not asked for again at once, however long gossip goes on suspecting it.
    cleared: BTreeMap<NodeId, u64>,
    braked_since: Option<u64>,
    /// Deaths until then do not pull the brake any more.
    released: Option<u64>,
    next: u64,
}

impl Liveness {
    pub fn new() -> Liveness {
        Liveness {
            members: BTreeSet::new(),
            voters: BTreeSet::new(),
            dead: BTreeMap::new(),
            suspects: BTreeSet::new(),
            open: BTreeMap::new(),
            cleared: BTreeMap::new(),
            braked_since: None,
            released: None,
            next: 1,
        }
    }

    pub fn handle(&mut self, now: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Suspects(suspects) => self.suspects = suspects,
            Input::Members { members, voters, dead, braked_since, released } => {
                (self.members, self.voters) = (members, voters);
                (self.braked_since, self.released) = (braked_since, released);
                self.take_dead(now, dead, &mut effects);
            }
            Input::Report { inquiry, voter, reached } => {
                self.take_report(now, inquiry, voter, reached, &mut effects)
            }
            Input::Tick => self.check_release(now, &mut effects),
        }
        self.inquire(now, &mut effects);
        effects
    }

    pub fn braked(&self) -> bool {
        self.braked_since.is_some()
    }

    fn take_dead(&mut self, now: u64, dead: BTreeMap<NodeId, u64>, effects: &mut Vec<Effect>) {
        let returned = self.dead.keys().any(|node| !dead.contains_key(node));
        self.dead = dead;
        self.open.retain(|node, _| self.members.contains(node) && !self.dead.contains_key(node));
        if self.braked() && self.dead.len() < self.limit() {
            self.release(now, effects);
        } else if self.braked() && returned {
            self.pull(now, effects);
        }
    }

    fn take_report(
        &mut self,
        now: u64,
        number: u64,
        voter: NodeId,
        reached: Option<bool>,
        effects: &mut Vec<Effect>,
    ) {
        let Some((node, inquiry)) = self.open.iter_mut().find(|(_, inquiry)| inquiry.number == number) else {
            return;
        };
        let node = *node;
        if !inquiry.waiting.remove(&voter) {
            return;
        }
        match reached {
            Some(true) => {
                self.open.remove(&node);
                self.cleared.insert(node, now);
                return;
            }
            Some(false) => {
                inquiry.unreached.insert(voter);
            }
            None => {}
        }
        if !inquiry.waiting.iter().all(|waiting| *waiting == node) {
            return;
        }
        let silent = inquiry.unreached.len();
        self.open.remove(&node);
        if silent * 2 > self.voters.len() {
            self.declare(now, node, effects);
        }
    }

    fn declare(&mut self, now: u64, node: NodeId, effects: &mut Vec<Effect>) {
        self.dead.insert(node, now);
        let window = timing::BRAKE_WINDOW.as_millis() as u64;
        let counts = |at: &u64| {
            now.saturating_sub(*at) <= window && self.released.is_none_or(|released| *at > released)
        };
        let deaths = self.dead.values().filter(|at| counts(at)).count();
        // The brake first: nobody may replace the pods of the death that pulled it.
        if deaths > self.limit() {
            self.pull(now, effects);
        }
        effects.push(Effect::Dead(node));
    }

    fn pull(&mut self, now: u64, effects: &mut Vec<Effect>) {
        self.braked_since = Some(now);
        effects.push(Effect::Brake(true));
    }

    /// How many deaths within the window are ordinary.
    fn limit(&self) -> usize {
        (self.members.len() / 3).max(2)
    }

    fn check_release(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let quiet = timing::BRAKE_RELEASE.as_millis() as u64;
        if self.braked_since.is_some_and(|since| now.saturating_sub(since) >= quiet) {
            self.release(now, effects);
        }
    }

    fn release(&mut self, now: u64, effects: &mut Vec<Effect>) {
        if self.braked_since.take().is_some() {
            self.released = Some(now);
            effects.push(Effect::Brake(false));
        }
    }

    /// Opens an inquiry for every suspect that has none.
    fn inquire(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let rest = timing::DEATH_SILENCE.as_millis() as u64;
        self.cleared.retain(|_, at| now.saturating_sub(*at) < rest);
        let open: Vec<NodeId> = self
            .suspects
            .iter()
            .filter(|node| {
                self.members.contains(node)
                    && !self.dead.contains_key(node)
                    && !self.open.contains_key(node)
                    && !self.cleared.contains_key(node)
            })
            .copied()
            .collect();
        for node in open {
            let number = self.next;
            self.next += 1;
            let waiting: BTreeSet<NodeId> =
                self.voters.iter().filter(|voter| **voter != node).copied().collect();
            effects.extend(waiting.iter().map(|voter| Effect::Ask { inquiry: number, voter: *voter, node }));
            self.open.insert(node, Inquiry { number, waiting, unreached: BTreeSet::new() });
        }
    }
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::RangeInclusive<u64>) -> BTreeSet<NodeId> {
        range.map(NodeId).collect()
    }

    fn cluster(members: u64, voters: u64) -> Liveness {
        let mut core = Liveness::new();
        core.handle(0, stored(members, voters, &[], None, None));
        core
    }

    fn stored(
        members: u64,
        voters: u64,
        dead: &[(u64, u64)],
        braked_since: Option<u64>,
        released: Option<u64>,
    ) -> Input {
        let dead = dead.iter().map(|(node, at)| (NodeId(*node), *at)).collect();
        Input::Members { members: ids(1..=members), voters: ids(1..=voters), dead, braked_since, released }
    }

    fn kill(core: &mut Liveness, now: u64, node: u64) -> Vec<Effect> {
        let inquiry = suspect(core, now, node);
        (1..=3).flat_map(|voter| report(core, now, inquiry, voter, Some(false))).collect()
    }

    fn suspect(core: &mut Liveness, now: u64, node: u64) -> u64 {
        let effects = core.handle(now, Input::Suspects([NodeId(node)].into()));
        effects
            .iter()
            .find_map(|e| if let Effect::Ask { inquiry, .. } = e { Some(*inquiry) } else { None })
            .unwrap()
    }

    fn report(core: &mut Liveness, now: u64, inquiry: u64, voter: u64, reached: Option<bool>) -> Vec<Effect> {
        core.handle(now, Input::Report { inquiry, voter: NodeId(voter), reached })
    }

    #[test]
    fn silence_towards_a_majority_of_voters_is_death() {
        let mut core = cluster(3, 3);
        let inquiry = suspect(&mut core, 10, 3);
        assert_eq!(report(&mut core, 900, inquiry, 1, Some(false)), []);
        assert_eq!(report(&mut core, 901, inquiry, 2, Some(false)), [Effect::Dead(NodeId(3))]);
    }

    #[test]
    fn one_voter_that_reaches_the_node_vetoes() {
        let mut core = cluster(5, 5);
        let inquiry = suspect(&mut core, 10, 5);
        for voter in 1..=3 {
            report(&mut core, 900, inquiry, voter, Some(false));
        }
        assert_eq!(
            report(&mut core, 900, inquiry, 4, Some(true)),
            [],
            "not dead, and not asked again at once"
        );
        let later = core.handle(1_700, Input::Tick);
        assert!(
            later.iter().any(|effect| matches!(effect, Effect::Ask { .. })),
            "asked again while suspected"
        );
    }

    #[test]
    fn voters_that_do_not_answer_are_no_majority() {
        let mut core = cluster(5, 5);
        let inquiry = suspect(&mut core, 10, 5);
        for (voter, reached) in [(1, Some(false)), (2, Some(false)), (3, None)] {
            report(&mut core, 900, inquiry, voter, reached);
        }
        let effects = report(&mut core, 900, inquiry, 4, None);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Dead(_))), "{effects:?}");
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::Ask { .. })),
            "asked again while suspected"
        );
    }

    #[test]
    fn a_late_report_of_an_old_inquiry_counts_for_nothing() {
        let mut core = cluster(3, 3);
        let first = suspect(&mut core, 10, 3);
        report(&mut core, 100, first, 1, Some(true));
        assert_eq!(report(&mut core, 101, first, 2, Some(false)), []);
    }

    #[test]
    fn many_deaths_at_once_pull_the_brake_and_returning_members_release_it() {
        let mut core = cluster(9, 3);
        let effects: Vec<Effect> = (5..=8).flat_map(|node| kill(&mut core, 2_000, node)).collect();
        assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Dead(_))).count(), 4);
        let at = |wanted: &Effect| effects.iter().position(|effect| effect == wanted);
        assert!(
            at(&Effect::Brake(true)) < at(&Effect::Dead(NodeId(8))),
            "the brake is on before the last death is written"
        );
        assert!(core.braked() && effects.contains(&Effect::Brake(true)));
        let three = stored(9, 3, &[(6, 2_000), (7, 2_000), (8, 2_000)], Some(2_000), None);
        assert_eq!(core.handle(2_500, three), [Effect::Brake(true)], "a return starts the quiet time anew");
        let two = stored(9, 3, &[(7, 2_000), (8, 2_000)], Some(2_500), None);
        assert_eq!(core.handle(3_000, two), [Effect::Brake(false)]);
    }

    #[test]
    fn the_brake_lets_go_after_five_quiet_minutes() {
        let mut core = cluster(9, 3);
        (5..=8).for_each(|node| drop(kill(&mut core, 2_000, node)));
        assert!(!core.handle(301_999, Input::Tick).contains(&Effect::Brake(false)));
        assert!(core.handle(302_000, Input::Tick).contains(&Effect::Brake(false)));
    }

    #[test]
    fn a_new_leader_keeps_the_brake_and_its_time() {
        let dead = [(5, 2_000), (6, 2_000), (7, 2_000), (8, 2_000)];
        let mut core = Liveness::new();
        assert_eq!(core.handle(100_000, stored(9, 3, &dead, Some(2_000), None)), []);
        assert!(core.braked());
        assert_eq!(core.handle(301_000, Input::Tick), []);
        assert_eq!(core.handle(302_000, Input::Tick), [Effect::Brake(false)]);
    }

    #[test]
    fn a_new_leader_counts_the_deaths_that_its_predecessor_wrote() {
        let mut core = Liveness::new();
        core.handle(10_000, stored(7, 3, &[(5, 9_000), (6, 9_000)], None, None));
        assert_eq!(kill(&mut core, 11_000, 7), [Effect::Brake(true), Effect::Dead(NodeId(7))]);
        let mut later = Liveness::new();
        later.handle(80_000, stored(7, 3, &[(5, 9_000), (6, 9_000)], None, None));
        assert_eq!(kill(&mut later, 80_000, 7), [Effect::Dead(NodeId(7))], "a minute later it is one death");
    }

    #[test]
    fn deaths_that_an_operator_confirmed_do_not_pull_the_brake_again() {
        let dead = [(4, 9_000), (5, 9_000), (6, 9_000)];
        let mut core = Liveness::new();
        assert_eq!(core.handle(10_000, stored(7, 3, &dead, None, Some(9_500))), []);
        assert_eq!(kill(&mut core, 11_000, 7), [Effect::Dead(NodeId(7))]);
        assert!(!core.braked());
    }
}
