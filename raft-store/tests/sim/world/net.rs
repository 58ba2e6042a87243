//! The network between the simulated machines: what is lost, doubled, late or spoilt on the way, and what may leave at all.
//!
//! Decides the fate of one message. Must not look into what it means, but for promises (C4, C5).

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::*;

/// One acknowledgement of so many is looked at when it leaves: each look opens a store.
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
        if let Some(message) = self.said(&bytes) {
            self.appends += u64::from(message.msg_type == MessageType::MsgAppend as i32);
            self.look_at_promises(from, to, &message, hash(&bytes).is_multiple_of(ACKS_LOOKED_AT));
        }
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
        self.spoil(from, to, &bytes, bulk);
        if bulk {
            return self.send_bulk(from, to, bytes);
        }
        if self.rng.random_bool(self.faults.duplicate) {
            let time = self.now + self.delay() * 3;
            self.at(time, Event::Deliver { from, to, bytes: bytes.clone(), bulk });
        }
        let time = self.now + self.delay();
        self.at(time, Event::Deliver { from, to, bytes, bulk });
    }

    /// A snapshot has a connection of its own and comes whole or not at all; but its sender may not hear that it came, and send it again.
    fn send_bulk(&mut self, from: u64, to: u64, bytes: Vec<u8>) {
        let (time, peer) = (self.now + self.delay(), to);
        let breaks = self.faults.broken > 0.0 && self.rng.random_bool(self.faults.broken);
        let fate = if breaks { self.rng.random_range(0..3) } else { 3 };
        match fate {
            0 => {
                self.count("snapshot broken on its way");
                self.at(time, Event::Reported { peer, to: from, ok: false });
            }
            1 => {
                self.count("snapshot that came and counts as broken");
                self.at(time, Event::Deliver { from, to, bytes, bulk: false });
                let told = time + self.delay();
                self.at(told, Event::Reported { peer, to: from, ok: false });
            }
            2 => {
                self.count("snapshot that came twice");
                let again = time + self.delay() * 3;
                self.at(again, Event::Deliver { from, to, bytes: bytes.clone(), bulk: false });
                self.at(time, Event::Deliver { from, to, bytes, bulk: true });
            }
            _ => self.at(time, Event::Deliver { from, to, bytes, bulk: true }),
        }
    }

    /// A message of raft's, as far as somebody looks at those of its length.
    fn said(&self, bytes: &[u8]) -> Option<Message> {
        let skipped = self.blind || bytes.len() > 200 || bytes[0] == FEED;
        if skipped { None } else { Message::decode(&bytes[ENVELOPE..]).ok() }
    }

    /// C5: what leaves before the disk is done promises nothing that is not durable at this very moment.
    pub(super) fn leaves_early(&self, from: u64, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Send { bytes, .. } = effect
                && let Some(message) = self.said(bytes)
            {
                self.promises(from, &message, true);
            }
        }
    }

    /// C4: a vote that leaves a node is the only one of its term. C5: it is durable then, as are the entries that are acknowledged.
    fn look_at_promises(&mut self, from: u64, to: u64, message: &Message, acks_too: bool) {
        if message.msg_type == MessageType::MsgRequestVoteResponse as i32 && !message.reject {
            self.checks.voted(NodeId(from), message.term, NodeId(to));
        }
        self.promises(from, message, acks_too);
    }

    fn promises(&self, from: u64, message: &Message, acks_too: bool) {
        match MessageType::from_i32(message.msg_type) {
            _ if message.reject => {}
            Some(MessageType::MsgRequestVoteResponse) => self.is_durable(from, message.term, 0),
            Some(MessageType::MsgAppendResponse) if acks_too => {
                self.is_durable(from, message.term, message.index);
            }
            _ => {}
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
