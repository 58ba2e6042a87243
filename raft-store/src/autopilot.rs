//! Which members should vote: one, three or five by how many may, spread over failure zones, the dead replaced.
//!
//! Decides the next single change of members, or to whom leadership goes first, from what the leader sees now. A change is
//! asked for only if a majority of the old and of the new voters acknowledges now. Who is to vote learns first (raft's short step
//! between observing and voting), and is given up for another if it does not catch up. Must not decide who is alive nor who belongs to
//! the cluster (both are handed in), and must not let deaths take three voters down to fewer: a majority of one is no majority.

use std::collections::{BTreeMap, BTreeSet};

use crate::effect::{MemberChange, Status};
use crate::ids::{Millis, NodeId};
use crate::timing;

#[cfg(test)]
mod tests;

/// A member of the cluster, as far as voting goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub id: NodeId,
    /// Its failure zone; machines that say nothing share the zone "".
    pub zone: String,
    /// It may vote: nobody said `--no-voter`.
    pub may_vote: bool,
    /// It should not now: it is being drained, its disk is full, or it cannot open the keyring yet. It counts as a machine all the same, and goes on voting while nobody
    /// can take its place.
    pub spared: bool,
    /// It has been confirmed dead.
    pub dead: bool,
}

/// What should happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// All is as it should be, or nothing can be done now.
    Nothing,
    /// This leader is not to vote much longer: it hands over first.
    HandOver(NodeId),
    /// All of these at once.
    Change(Vec<MemberChange>),
}

/// How many members should vote, when `members` may (DESIGN section 4).
pub fn wanted_voters(members: usize, pinned: Option<usize>) -> usize {
    let by_rule = match members {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    };
    pinned.map_or(by_rule, |pinned| pinned.min(members.max(1)))
}

/// The autopilot's memory: since when who is dead or learns, and what the log held a moment ago. Begins anew with each leadership.
#[derive(Clone, Debug, Default)]
pub struct Autopilot {
    dead_since: BTreeMap<NodeId, Millis>,
    learns_since: BTreeMap<NodeId, Millis>,
    /// Who learned and did not catch up, and until when it is left in peace.
    rests_until: BTreeMap<NodeId, Millis>,
    /// The log's end at a look at least `timing::CAUGHT_UP_MS` ago, and the look that will follow it.
    held: Option<(Millis, u64)>,
    next_held: Option<(Millis, u64)>,
}

/// All that one decision looks at.
struct Look<'a> {
    status: &'a Status,
    listed: BTreeMap<NodeId, &'a Candidate>,
    /// Confirmed dead for long enough to be replaced.
    lost: BTreeSet<NodeId>,
    /// Learned in vain a while ago.
    resting: &'a BTreeMap<NodeId, Millis>,
    held: Option<u64>,
}

impl Autopilot {
    /// A new leader's.
    pub fn new() -> Autopilot {
        Autopilot::default()
    }

    /// The next step. `members` are those who joined and were not removed; `pinned` is an operator's count.
    pub fn next(
        &mut self,
        now: Millis,
        members: &[Candidate],
        pinned: Option<usize>,
        status: &Status,
    ) -> Next {
        self.remember(now, members, status);
        if !status.established || status.joint || members.is_empty() {
            return Next::Nothing;
        }
        self.rest(now, status);
        let long_dead = |id: &NodeId| {
            self.dead_since.get(id).is_some_and(|since| now.since(*since) >= timing::REPLACE_VOTER_MS)
        };
        let look = Look {
            status,
            listed: members.iter().map(|member| (member.id, member)).collect(),
            lost: members.iter().map(|member| member.id).filter(long_dead).collect(),
            resting: &self.rests_until,
            held: self.held.map(|(_, index)| index),
        };
        let wanted = look.choose(pinned);
        let step =
            look.voters(&wanted).or_else(|| look.learners(&wanted)).or_else(|| look.spare_the_leader());
        step.unwrap_or(Next::Nothing)
    }

    /// A learner is to catch up within a time. One that does not goes back to observing, and another is taken.
    fn rest(&mut self, now: Millis, status: &Status) {
        self.rests_until.retain(|_, until| *until > now);
        self.learns_since.retain(|id, _| status.learners.contains(id));
        for id in &status.learners {
            let since = *self.learns_since.entry(*id).or_insert(now);
            let peer = status.peers.iter().find(|peer| peer.id == *id);
            let limit_ms = match peer {
                Some(peer) if peer.in_snapshot => timing::PROMOTION_BY_SNAPSHOT_MS,
                _ => timing::PROMOTION_MS,
            };
            let holds = peer.is_some_and(|peer| holds(peer, self.held.map(|(_, index)| index)));
            if now.since(since) >= limit_ms && !holds {
                self.rests_until.insert(*id, Millis(now.0 + timing::PROMOTION_REST_MS));
            }
        }
    }

    fn remember(&mut self, now: Millis, members: &[Candidate], status: &Status) {
        let dead: BTreeSet<NodeId> = members.iter().filter(|m| m.dead).map(|m| m.id).collect();
        self.dead_since.retain(|id, _| dead.contains(id));
        for id in dead {
            self.dead_since.entry(id).or_insert(now);
        }
        let look = (now, status.last_index);
        let due =
            |at: &Option<(Millis, u64)>| at.is_some_and(|(at, _)| now.since(at) >= timing::CAUGHT_UP_MS);
        if due(&self.next_held) {
            self.held = self.next_held.replace(look);
        }
        self.next_held.get_or_insert(look);
    }
}

impl Look<'_> {
    /// The step that brings the voters in line, if they are not.
    fn voters(&self, wanted: &BTreeSet<NodeId>) -> Option<Next> {
        let now: BTreeSet<NodeId> = self.status.voters.iter().copied().collect();
        if *wanted == now || wanted.is_empty() {
            return None;
        }
        if wanted.contains(&self.status.id) {
            return self.change(&now, wanted);
        }
        // A leader that is not to vote hands over to one that is; if none is a voter yet, they become voters first.
        let heirs = wanted.intersection(&now).filter(|id| self.acknowledges(**id) && !self.lost.contains(id));
        let held = |id: &&NodeId| self.peer(**id).map_or(0, |peer| peer.matched);
        match heirs.max_by_key(held) {
            Some(heir) => Some(Next::HandOver(*heir)),
            None => self.change(&now, &now.union(wanted).copied().collect()),
        }
    }

    /// From one set of voters to another, if both have a majority that acknowledges now. Whoever comes in learns before, one after
    /// the other; who goes observes again.
    fn change(&self, now: &BTreeSet<NodeId>, wanted: &BTreeSet<NodeId>) -> Option<Next> {
        let answers =
            |set: &BTreeSet<NodeId>| set.iter().filter(|id| self.acknowledges(**id)).count() * 2 > set.len();
        if !answers(now) {
            return None;
        }
        let coming: Vec<NodeId> = wanted.difference(now).copied().collect();
        if let Some(first) = coming.iter().find(|id| !self.status.learners.contains(id)) {
            return Some(Next::Change(vec![MemberChange::AddLearner(*first)]));
        }
        if coming.iter().any(|id| !self.could_vote(*id)) || !answers(wanted) {
            return None;
        }
        let leave = now.difference(wanted).map(|id| MemberChange::Remove(*id));
        let join = coming.into_iter().map(MemberChange::AddVoter);
        let changes: Vec<MemberChange> = leave.chain(join).collect();
        (!changes.is_empty()).then_some(Next::Change(changes))
    }

    /// Only who is about to vote learns; all others observe.
    fn learners(&self, wanted: &BTreeSet<NodeId>) -> Option<Next> {
        let idle = self.status.learners.iter().find(|id| !wanted.contains(id))?;
        Some(Next::Change(vec![MemberChange::Remove(*idle)]))
    }

    /// The voters that there should be. Who votes and lives goes on doing so wherever that makes no zone carry more.
    fn choose(&self, pinned: Option<usize>) -> BTreeSet<NodeId> {
        let may = |id: &NodeId| self.listed.get(id).is_some_and(|candidate| candidate.may_vote);
        let spared = |id: &NodeId| self.is_spared(*id);
        let eligible = self.listed.keys().filter(|id| may(id)).count();
        let votes = |id: &NodeId| self.status.voters.contains(id);
        let usable: Vec<NodeId> = self
            .listed
            .keys()
            .copied()
            .filter(|id| may(id) && !spared(id))
            .filter(|id| if votes(id) { !self.lost.contains(id) } else { self.may_come(*id) })
            .collect();
        let size = self.size(wanted_voters(eligible, pinned), usable.len());
        let lost = |id: &NodeId| self.lost.contains(id);
        let voters = || self.status.voters.iter().copied().filter(may);
        let kept = voters().filter(|id| spared(id) && !lost(id)).chain(voters().filter(lost));
        // Nor by a member that was removed, or that came back as another: it leaves when somebody comes.
        let gone = self.status.voters.iter().copied().filter(|id| !self.listed.contains_key(id) && size >= 3);
        let mut chosen = self.spread(usable, size);
        // Three do not become fewer by deaths, nor by drains: these keep their places until somebody can take them.
        for voter in kept.chain(gone) {
            if chosen.len() < size {
                chosen.insert(voter);
            }
        }
        chosen
    }

    fn is_spared(&self, id: NodeId) -> bool {
        self.listed.get(&id).is_some_and(|candidate| candidate.spared)
    }

    /// Who is to be spared, and votes because nobody can take its place, need not lead.
    fn spare_the_leader(&self) -> Option<Next> {
        let others = self.status.voters.iter().copied().filter(|id| *id != self.status.id);
        let fit =
            others.filter(|id| !self.is_spared(*id) && self.acknowledges(*id) && !self.lost.contains(id));
        let held = |id: &NodeId| self.peer(*id).map_or(0, |peer| peer.matched);
        let heir = fit.max_by_key(held).filter(|_| self.is_spared(self.status.id));
        heir.map(Next::HandOver)
    }

    /// The largest odd count that the living can fill; three stay three.
    fn size(&self, wanted: usize, living: usize) -> usize {
        let stays = |size: usize| size == 3 && self.status.voters.len() >= 2 && !planted!(SingleVoterShrink);
        [7, 5, 3].into_iter().find(|size| *size <= wanted && (living >= *size || stays(*size))).unwrap_or(1)
    }

    /// `size` of these: this leader first, then whoever's zone carries the least.
    fn spread(&self, mut usable: Vec<NodeId>, size: usize) -> BTreeSet<NodeId> {
        let mut chosen = BTreeSet::new();
        let mut carried: BTreeMap<&str, usize> = BTreeMap::new();
        while chosen.len() < size {
            let rank = |id: &NodeId| {
                let carries = carried.get(self.zone(*id)).copied().unwrap_or(0);
                let votes = self.status.voters.contains(id);
                (*id != self.status.id, carries, !votes, !self.could_vote(*id), !self.learns(*id), *id)
            };
            let Some(at) = (0..usable.len()).min_by_key(|at| rank(&usable[*at])) else { break };
            let id = usable.swap_remove(at);
            *carried.entry(self.zone(id)).or_default() += 1;
            chosen.insert(id);
        }
        chosen
    }

    fn zone(&self, id: NodeId) -> &str {
        self.listed.get(&id).map_or("", |candidate| candidate.zone.as_str())
    }

    fn peer(&self, id: NodeId) -> Option<&crate::effect::PeerStatus> {
        self.status.peers.iter().find(|peer| peer.id == id)
    }

    fn acknowledges(&self, id: NodeId) -> bool {
        id == self.status.id || self.peer(id).is_some_and(|peer| peer.recent_active)
    }

    fn learns(&self, id: NodeId) -> bool {
        self.status.learners.contains(&id)
    }

    /// A member that does not vote and could: it is ready, or it may try.
    fn may_come(&self, id: NodeId) -> bool {
        let dead = self.listed.get(&id).is_none_or(|candidate| candidate.dead);
        self.could_vote(id) || (!dead && !self.resting.contains_key(&id))
    }

    /// A learner that lives and holds what the log held a moment ago. (raft counts a newcomer as active before it has said
    /// anything: only what it holds shows that it is there.)
    fn could_vote(&self, id: NodeId) -> bool {
        let dead = self.listed.get(&id).is_none_or(|candidate| candidate.dead);
        let ready = self.peer(id).is_some_and(|peer| holds(peer, self.held));
        !dead && self.learns(id) && self.acknowledges(id) && ready
    }
}

fn holds(peer: &crate::effect::PeerStatus, held: Option<u64>) -> bool {
    peer.matched > 0 && held.is_some_and(|held| peer.matched >= held) && !peer.in_snapshot
}
