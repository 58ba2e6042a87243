//! How a test gets the members that it wants. Decides in which order they become what they shall be; must not hurt anything.

use super::*;

impl World {
    /// Adds learners and makes voters until the members are as asked.
    pub fn grow(&mut self, voters: &[u64], learners: &[u64]) {
        for id in voters.iter().chain(learners) {
            self.change(vec![MemberChange::AddLearner(NodeId(*id))], |s| s.learners.contains(&NodeId(*id)));
        }
        for id in voters {
            let caught_up = |world: &World| {
                let leader = world.leader().and_then(|leader| world.status(leader));
                leader.is_some_and(|s| s.peers.iter().any(|p| p.id.0 == *id && p.matched + 5 > s.last_index))
            };
            assert!(self.run_until(5_000, caught_up), "{id} catches up");
            self.change(vec![MemberChange::AddVoter(NodeId(*id))], |s| s.voters.contains(&NodeId(*id)));
        }
    }

    pub fn change(&mut self, changes: Vec<MemberChange>, done: impl Fn(&Status) -> bool) {
        for _ in 0..100 {
            let leader = self.leader();
            let finished =
                leader.and_then(|leader| self.status(leader)).is_some_and(|s| done(&s) && !s.joint);
            if finished {
                return;
            }
            if let Some(leader) = leader {
                let id = self.clients.fresh_proposal();
                self.input(leader, Input::ChangeMembers { id, changes: changes.clone() });
            }
            self.run_for(100);
        }
        panic!("the members never became what was asked: {changes:?}");
    }
}
