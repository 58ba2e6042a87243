//! The network between the simulated machines: what is lost, doubled, late or spoilt on the way, and what may leave at all.
//!
//! Decides the fate of one message. Must not look into what it means, but for promises (C4, C5).

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::*;

/// One vote, and one acknowledgement, of so many is looked at: each look opens a store.
const VOTES_LOOKED_AT: u64 = 4;
const ACKS_LOOKED_AT: u64 = 200;

impl World {
    pub fn reaches(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub(super) fn delay(&mut self) -> u64 {
        if self.faults.clog > 0.0 && self.rng.random_bool(self.faults.clog) {
            return self.rng.random_range(1..=5_000);
        }
        self.rng.random_range(1..=self.faults.max_delay_ms.max(1))
    }

    pub(super) fn send(&mut self, from: u64, to: u64, bytes: Vec<u8>, bulk: bool) {
        self.bulk_sent += u64::from(bulk);
        self.look_at_promises(from, to, &bytes);
        let is_feed = bytes[0] == FEED;
        if is_feed {
            let kind = FEED_KINDS.get(bytes[ENVELOPE + 8] as usize).unwrap_or(&"?");
            *self.fed.entry(kind).or_default() += 1;
        }
        let lost = (is_feed && self.muted.contains(&from))
            || !self.nodes.contains_key(&to)
            || !self.reaches(from, to)
            || (!bulk && self.rng.random_bool(self.faults.loss));
        if lost {
            let peer = NodeId(to);
            let report =
                if bulk { Input::SnapshotSent { peer, ok: false } } else { Input::Unreachable { peer } };
            let now = self.clock(from);
            if (bulk || self.rng.random_bool(0.1))
                && let Some(replica) = &mut self.nodes.get_mut(&from).unwrap().replica
            {
                replica.handle(now, report);
            }
            return;
        }
        if !bulk && self.rng.random_bool(self.faults.duplicate) {
            let time = self.now + self.delay() * 3;
            self.at(time, Event::Deliver { from, to, bytes: bytes.clone(), bulk });
        }
        self.spoil(from, to, &bytes, bulk);
        let time = self.now + self.delay();
        self.at(time, Event::Deliver { from, to, bytes, bulk });
    }

    /// C4: a vote that leaves a node is the only one of its term. C5: it is durable then, as are the entries that are acknowledged.
    fn look_at_promises(&mut self, from: u64, to: u64, bytes: &[u8]) {
        if self.blind || bytes.len() > 200 || bytes[0] == FEED {
            return;
        }
        let Ok(message) = Message::decode(&bytes[ENVELOPE..]) else { return };
        self.appends += u64::from(message.msg_type == MessageType::MsgAppend as i32);
        if message.msg_type == MessageType::MsgRequestVoteResponse as i32 && !message.reject {
            self.checks.voted(NodeId(from), message.term, NodeId(to));
            if hash(bytes).is_multiple_of(VOTES_LOOKED_AT) {
                self.is_durable(from, message.term, 0);
            }
        }
        let is_ack = message.msg_type == MessageType::MsgAppendResponse as i32 && !message.reject;
        if is_ack && hash(bytes).is_multiple_of(ACKS_LOOKED_AT) {
            self.is_durable(from, message.term, message.index);
        }
    }

    /// C5: what a node would have after the worst power cut at this moment is not less than it promises.
    fn is_durable(&self, id: u64, term: u64, index: u64) {
        let left = self.nodes[&id].disk.image();
        left.lose_unsynced();
        let status = match Replica::open(left, self.config(id, 9_997)) {
            Ok(replica) => replica.status(),
            Err(error) => {
                panic!("C5: node {id} promises term {term} and entry {index}, and its disk: {error}")
            }
        };
        let (has_term, has_index) = (status.term, status.last_index);
        assert!(has_term >= term, "C5: node {id} promises term {term}, and its disk has {has_term}");
        assert!(has_index >= index, "C5: node {id} promises entry {index}, and its disk ends at {has_index}");
    }

    /// Sends an altered or forged copy beside the true message.
    fn spoil(&mut self, from: u64, to: u64, bytes: &[u8], bulk: bool) {
        if self.faults.garble > 0.0 && !bulk && self.rng.random_bool(self.faults.garble) {
            let mut altered = bytes.to_vec();
            let at = self.rng.random_range(0..altered.len());
            // The envelope, or all of what it holds: a message that still makes sense would be a member's lie, which raft does
            // not withstand.
            if self.rng.random_bool(0.5) {
                altered[at % ENVELOPE] ^= 1 << self.rng.random_range(0..8);
            } else {
                altered.truncate(ENVELOPE);
                altered.extend((0..at).map(|_| self.rng.random::<u8>() | 0x80));
            }
            self.count("message altered");
            self.at(self.now + 1, Event::Deliver { from, to, bytes: altered, bulk: false });
        }
        if self.faults.forge > 0.0 && self.rng.random_bool(self.faults.forge) {
            let term = self.status(to).map_or(1, |status| status.term);
            let forged = crate::harm::forged_proposal(&bytes[..ENVELOPE], from, to, term);
            self.count("proposal forged");
            self.at(self.now + 1, Event::Deliver { from, to, bytes: forged, bulk: false });
        }
    }
}
