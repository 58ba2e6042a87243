//! C6 while a run goes on: one change of members at a time, joint states that end, and three voters that stay three.
//!
//! Decides from what leaves a leader, from what has been applied, and from who reaches whom. Must not ask a replica what it thinks of a
//! change, nor hurt anything.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use raft_store::{MemberChange, NodeId, Replica, View};

use crate::world::{ENVELOPE, World};

/// A joint state is left within this, while one leader and a majority of both sets of voters are well and reach each other.
const JOINT_MS: u64 = 3_000;
/// Fewer voters than this survive no death.
const SAFE: usize = 3;
/// The first field of a message, its kind, and the kind that brings entries.
const APPEND: [u8; 2] = [0x08, MessageType::MsgAppend as u8];

#[derive(Default)]
pub struct Changes {
    /// The last entry that is known to be committed.
    committed: u64,
    /// Changes of members in each leader's log that are not known to be committed, by term.
    open: BTreeMap<u64, BTreeSet<u64>>,
    /// Whose leaving the voters somebody asked for.
    asked: BTreeSet<NodeId>,
    /// The voters after the newest entry that anybody has applied, and its index.
    voters: (u64, Vec<NodeId>),
    /// Since when a leader, in a term, and enough voters could have left the joint state that the newest members are in.
    could_leave: Option<(u64, u64, u64)>,
    /// How long it took at most.
    pub longest_joint_ms: u64,
}

impl Changes {
    /// Somebody asks for these, not the autopilot.
    pub fn ask(&mut self, changes: &[MemberChange]) {
        let leaves = |change: &&MemberChange| !matches!(change, MemberChange::AddVoter(_));
        self.asked.extend(changes.iter().filter(leaves).map(MemberChange::node));
    }

    /// At most one change of members is not committed, in the log of each leader.
    pub fn sent(&mut self, bytes: &[u8]) {
        // The version of raft's envelope.
        if bytes[0] != 1 || !bytes[ENVELOPE..].starts_with(&APPEND) {
            return;
        }
        let Ok(message) = Message::decode(&bytes[ENVELOPE..]) else { return };
        self.committed = self.committed.max(message.commit);
        let open = self.open.entry(message.term).or_default();
        let changes =
            message.entries.iter().filter(|entry| entry.entry_type != EntryType::EntryNormal as i32);
        open.extend(changes.map(|entry| entry.index));
        open.retain(|index| *index > self.committed);
        assert!(open.len() <= 1, "C6: changes of members at {open:?}, committed is {}", self.committed);
    }

    /// Three voters become fewer only if somebody asked for that, or fewer than three machines are left in the cluster.
    fn applied(&mut self, view: &View, machines: usize) {
        let ((newest, before), members) = (&self.voters, view.members());
        let (index, _) = view.applied();
        if index <= *newest {
            return;
        }
        let left: Vec<NodeId> = before.iter().copied().filter(|id| !members.voters.contains(id)).collect();
        let is_asked = left.iter().all(|id| self.asked.contains(id));
        let shrinks = before.len() >= SAFE && members.voters.len() < SAFE;
        assert!(
            !shrinks || is_asked || machines < SAFE,
            "C6: of the voters {before:?} are left {:?}, with {machines} machines there, and nobody asked for that",
            members.voters
        );
        self.asked.retain(|id| before.contains(id) || !members.voters.contains(id));
        self.voters = (index, members.voters.clone());
    }
}

/// A replica has applied what this view shows.
pub fn applied(world: &mut World, view: &View) {
    // Who is broken for good was removed by an operator.
    let machines = world.nodes.values().filter(|node| !node.broken).count();
    world.checks.membership.applied(view, machines);
}

/// Whether a joint state lasts longer than it may.
pub fn look(world: &mut World) {
    let since = could_leave(world).map(|(leader, term)| match world.checks.membership.could_leave {
        Some((before, at, since)) if (before, at) == (leader, term) => (leader, term, since),
        _ => (leader, term, world.now),
    });
    let changes = &mut world.checks.membership;
    changes.could_leave = since;
    if let Some((leader, term, since)) = since {
        let lasts = world.now - since;
        changes.longest_joint_ms = changes.longest_joint_ms.max(lasts);
        assert!(
            lasts < JOINT_MS,
            "C6: joint for {lasts} ms, though {leader} leads in term {term} and is heard"
        );
    }
}

/// Who leads, if the members are joint and a majority of both sets could end that.
fn could_leave(world: &World) -> Option<(u64, u64)> {
    let members = &world.checks.members;
    if !members.is_joint() {
        return None;
    }
    let leader = world.leader()?;
    let term = world.nodes[&leader].replica.as_ref().and_then(Replica::leads_since)?;
    let is_well = |id: &u64| {
        let slow = world.nodes.get(id).is_none_or(|node| {
            let until = node.slow_until.max(node.starved_until);
            until > world.now || node.clock.stands_until(world.now).is_some()
        });
        !slow && world.is_awake(*id) && world.status(*id).is_some_and(|status| !status.disk_full)
    };
    let heard = |id: &u64| world.reaches(leader, *id) && world.reaches(*id, leader);
    let wins = |set: &[NodeId]| {
        set.iter().map(|id| id.0).filter(|id| is_well(id) && heard(id)).count() * 2 > set.len()
    };
    (is_well(&leader) && wins(&members.voters) && wins(&members.voters_outgoing)).then_some((leader, term))
}
