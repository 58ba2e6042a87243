//! Who must hold a wrap of the keyring, and when the Secrets' data key is made anew.
//!
//! Decides from what the leader sees: voters hold, a machine that is to vote holds before, who votes no longer loses its wrap, and then
//! a new data key is due. It must not touch keys.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::{Millis, NodeId};

use super::seal::SealPublic;
use crate::timing;

/// Machines with the public key that the keyring is sealed to.
pub type Keys = BTreeMap<NodeId, SealPublic>;

/// All that one decision looks at.
#[derive(Debug)]
pub struct Look<'a> {
    /// Who votes; in a joint state both sets.
    pub voters: &'a BTreeSet<NodeId>,
    /// Who is to vote next.
    pub coming: &'a BTreeSet<NodeId>,
    /// The members' own keys, as the member list has them.
    pub keys: &'a Keys,
    /// Whom the keyring is sealed to now.
    pub held: &'a Keys,
}

/// What is to be done with the keyring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Seal it to exactly these, with a new data key if somebody lost its wrap.
    Seal {
        to: Keys,
        new_data_key: bool,
    },
}

/// The core's memory: since when who holds a wrap that is not due to it. Begins anew with each leadership.
#[derive(Debug, Default)]
pub struct Holders {
    surplus_since: BTreeMap<NodeId, Millis>,
}

impl Holders {
    pub fn next(&mut self, now: Millis, look: &Look<'_>) -> Step {
        let due = |id: &NodeId| look.voters.contains(id) || look.coming.contains(id);
        // A promotion that is put off for a moment is no demotion: nobody's wrap goes at once.
        self.surplus_since.retain(|id, _| look.held.contains_key(id) && !due(id));
        for id in look.held.keys().filter(|id| !due(id)) {
            self.surplus_since.entry(*id).or_insert(now);
        }
        let wait = timing::WRAP_KEPT.as_millis() as u64;
        let over = |id: &NodeId| self.surplus_since.get(id).is_some_and(|since| now.since(*since) >= wait);
        let mut to: Keys =
            look.held.iter().filter(|(id, _)| !over(id)).map(|(id, key)| (*id, *key)).collect();
        // A voter that is off the member list has no key there: it keeps the wrap that it has until it votes no longer.
        to.extend(look.keys.iter().filter(|(id, _)| due(id)).map(|(id, key)| (*id, *key)));
        let new_data_key = look.held.keys().any(over);
        if to == *look.held { Step::Nothing } else { Step::Seal { to, new_data_key } }
    }
}

/// Whether everybody who is to vote holds the keyring under its own key.
pub fn may_vote(coming: &BTreeSet<NodeId>, keys: &Keys, held: &Keys) -> bool {
    coming.iter().all(|id| keys.get(id).is_some_and(|key| held.get(id) == Some(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[u64]) -> BTreeSet<NodeId> {
        list.iter().map(|id| NodeId(*id)).collect()
    }

    fn keys(list: &[u64]) -> Keys {
        list.iter().map(|id| (NodeId(*id), [*id as u8; 32])).collect()
    }

    fn step(core: &mut Holders, at: u64, voters: &[u64], coming: &[u64], held: &[u64]) -> Step {
        let (voters, coming, all, held) = (ids(voters), ids(coming), keys(&[1, 2, 3, 4]), keys(held));
        core.next(Millis(at), &Look { voters: &voters, coming: &coming, keys: &all, held: &held })
    }

    fn seal(list: &[u64], new_data_key: bool) -> Step {
        Step::Seal { to: keys(list), new_data_key }
    }

    #[test]
    fn who_is_to_vote_gets_its_wrap_before() {
        let mut core = Holders::default();
        assert_eq!(step(&mut core, 0, &[1], &[2, 3], &[1]), seal(&[1, 2, 3], false));
        assert!(!may_vote(&ids(&[2, 3]), &keys(&[1, 2, 3]), &keys(&[1, 2])));
        assert!(may_vote(&ids(&[2, 3]), &keys(&[1, 2, 3]), &keys(&[1, 2, 3])));
        assert!(!may_vote(&ids(&[2]), &keys(&[1]), &keys(&[1, 2])), "a machine without a key of its own");
    }

    #[test]
    fn who_votes_no_longer_loses_its_wrap_and_a_new_data_key_is_due() {
        let mut core = Holders::default();
        let wait = timing::WRAP_KEPT.as_millis() as u64;
        assert_eq!(step(&mut core, 0, &[1, 2, 4], &[], &[1, 2, 3, 4]), Step::Nothing);
        assert_eq!(step(&mut core, wait, &[1, 2, 4], &[], &[1, 2, 3, 4]), seal(&[1, 2, 4], true));
    }

    #[test]
    fn in_one_joint_change_the_new_one_holds_before_and_the_old_one_loses_after() {
        let mut core = Holders::default();
        let wait = timing::WRAP_KEPT.as_millis() as u64;
        assert_eq!(step(&mut core, 0, &[1, 2, 3], &[4], &[1, 2, 3]), seal(&[1, 2, 3, 4], false));
        assert_eq!(step(&mut core, 10, &[1, 2, 3, 4], &[], &[1, 2, 3, 4]), Step::Nothing, "joint");
        assert_eq!(step(&mut core, 20, &[1, 2, 4], &[], &[1, 2, 3, 4]), Step::Nothing);
        assert_eq!(step(&mut core, 20 + wait, &[1, 2, 4], &[], &[1, 2, 3, 4]), seal(&[1, 2, 4], true));
        assert_eq!(step(&mut core, 30 + wait, &[1, 2, 4], &[], &[1, 2, 4]), Step::Nothing, "a second pass");
    }

    #[test]
    fn a_promotion_that_comes_and_goes_makes_no_new_data_key() {
        let mut core = Holders::default();
        for round in 0..10 {
            let at = round * 1_000;
            assert_eq!(step(&mut core, at, &[1], &[], &[1, 2]), Step::Nothing);
            assert_eq!(step(&mut core, at + 500, &[1], &[2], &[1, 2]), Step::Nothing);
        }
    }

    #[test]
    fn a_voter_off_the_member_list_keeps_its_wrap_until_it_votes_no_longer() {
        let mut core = Holders::default();
        let (voters, held, listed) = (ids(&[1, 2]), keys(&[1, 2]), keys(&[1]));
        let look = Look { voters: &voters, coming: &BTreeSet::new(), keys: &listed, held: &held };
        assert_eq!(core.next(Millis(0), &look), Step::Nothing);
        assert_eq!(core.next(Millis(60_000), &look), Step::Nothing);
    }

    #[test]
    fn a_machine_with_a_new_key_gets_a_new_wrap() {
        let mut core = Holders::default();
        let (voters, mut held) = (ids(&[1, 2]), keys(&[1, 2]));
        held.insert(NodeId(2), [99; 32]);
        let look = Look { voters: &voters, coming: &BTreeSet::new(), keys: &keys(&[1, 2]), held: &held };
        assert_eq!(core.next(Millis(0), &look), seal(&[1, 2], false));
    }
}
