//! Messages are checked before raft sees them; fuzzed ones never panic.

use prost::Message as _;
use raft::eraftpb::{ConfState, Snapshot, SnapshotMetadata};

use super::*;
use crate::config::Config;
use crate::effect::{Effect, Fatal, Input, MemberChange};
use crate::ids::{ClusterId, Millis, ProposalId};
use crate::replica::Replica;
use crate::sim_disk::MemDisk;
use proptest::prelude::*;

const CLUSTER: ClusterId = ClusterId([1; 16]);

fn config(id: u64) -> Config {
    Config { segment_bytes: 8 << 10, ..Config::new(NodeId(id), CLUSTER, 3) }
}

fn envelope(message: &Message) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&CLUSTER.0);
    message.encode(&mut bytes).unwrap();
    bytes
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    Message { msg_type: kind as i32, from, to, term, ..Message::default() }
}

/// Node 1 leads, node 2 is its learner.
fn leader() -> Replica<MemDisk> {
    let mut replica = Replica::create_first(MemDisk::new(), config(1)).unwrap();
    replica.advance(Millis(0)).unwrap();
    let changes = vec![MemberChange::AddLearner(NodeId(2))];
    replica.handle(Millis(1), Input::ChangeMembers { id: ProposalId(1), changes });
    replica.advance(Millis(1)).unwrap();
    assert_eq!(replica.status().learners, [NodeId(2)]);
    replica
}

fn joining() -> Replica<MemDisk> {
    Replica::create_joining(MemDisk::new(), config(2)).unwrap()
}

fn give(replica: &mut Replica<MemDisk>, from: u64, message: &Message) -> u64 {
    let before = replica.status().refused_messages;
    replica.handle(Millis(2), Input::Message { from: NodeId(from), bytes: envelope(message) });
    replica.status().refused_messages - before
}

#[test]
fn what_is_local_or_addressed_wrongly_is_refused() {
    let mut replica = leader();
    let term = replica.status().term;
    let local = [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
    ];
    for kind in local {
        assert_eq!(give(&mut replica, 2, &message(kind, 2, 1, term)), 1, "{kind:?}");
    }
    let response = MessageType::MsgHeartbeatResponse;
    assert_eq!(give(&mut replica, 3, &message(response, 2, 1, term)), 1, "claims to be another");
    assert_eq!(give(&mut replica, 2, &message(response, 2, 7, term)), 1, "not to us");
    assert_eq!(give(&mut replica, 9, &message(response, 9, 1, term)), 1, "response of a stranger");
    assert_eq!(give(&mut replica, 1, &message(response, 1, 1, term)), 1, "from ourselves");
    assert_eq!(give(&mut replica, 2, &message(response, 2, 1, term)), 0, "in order");
}

#[test]
fn another_cluster_and_another_version_are_refused() {
    let mut replica = leader();
    let good = envelope(&message(MessageType::MsgHeartbeatResponse, 2, 1, 2));
    for at in 0..17 {
        let mut bytes = good.clone();
        bytes[at] ^= 8;
        replica.handle(Millis(2), Input::Message { from: NodeId(2), bytes });
    }
    assert_eq!(replica.status().refused_messages, 17);
}

#[test]
fn a_stranger_does_not_depose_a_leader() {
    let mut replica = leader();
    let term = replica.status().term;
    let mut vote = message(MessageType::MsgRequestVote, 99, 1, 1_000);
    assert_eq!(give(&mut replica, 99, &vote), 1);
    vote.context = TRANSFER.to_vec();
    assert_eq!(give(&mut replica, 99, &vote), 1);
    assert_eq!(replica.status().term, term);
}

#[test]
fn empty_read_indexes_and_foreign_contexts_are_refused() {
    let mut replica = leader();
    let mut ask = message(MessageType::MsgReadIndex, 2, 1, 0);
    assert_eq!(give(&mut replica, 2, &ask), 1, "raft would panic");
    ask.entries = vec![Entry { data: b"anything".to_vec(), ..Entry::default() }];
    assert_eq!(give(&mut replica, 2, &ask), 1);
    let context = |asker| ReadContext { asker: NodeId(asker), boot: 1, counter: 1 }.encode();
    ask.entries[0].data = context(3);
    assert_eq!(give(&mut replica, 2, &ask), 1, "another's context");
    ask.entries[0].data = context(2);
    assert_eq!(give(&mut replica, 2, &ask), 0);
}

#[test]
fn an_append_that_does_not_fit_together_is_refused() {
    let entry = |index, term| Entry { index, term, data: vec![1], ..Entry::default() };
    let append = |index, log_term, entries: Vec<Entry>| Message {
        index,
        log_term,
        entries,
        ..message(MessageType::MsgAppend, 1, 2, 5)
    };
    let mut replica = joining();
    let wrong = [
        append(7, 0, vec![entry(8, 5)]),
        append(0, 3, vec![entry(1, 5)]),
        append(0, 0, vec![entry(2, 5)]),
        append(0, 0, vec![entry(1, 5), entry(3, 5)]),
        append(0, 0, vec![entry(1, 5), entry(2, 4)]),
        append(0, 0, vec![entry(1, 6)]),
        append(0, 0, vec![entry(1, 0)]),
        append(0, 0, vec![Entry { entry_type: 9, ..entry(1, 5) }]),
        append(u64::MAX - 1, 5, vec![]),
    ];
    for message in &wrong {
        assert_eq!(give(&mut replica, 1, message), 1, "{message:?}");
    }
    assert_eq!(give(&mut replica, 1, &append(4, 5, vec![entry(5, 5)])), 0, "a gap is raft's to reject");
    replica.advance(Millis(3)).unwrap();
}

#[test]
fn a_heartbeat_beyond_our_log_never_reaches_raft() {
    let beyond = |from, to| Message { commit: 10, ..message(MessageType::MsgHeartbeat, from, to, 5) };
    let mut replica = leader();
    assert_eq!(give(&mut replica, 2, &beyond(2, 1)), 1, "from a learner: refused");
    replica.advance(Millis(3)).unwrap();
    let mut replica = joining();
    give(&mut replica, 1, &beyond(1, 2));
    let fatal = replica.advance(Millis(4)).unwrap_err();
    assert!(matches!(fatal, Fatal::RolledBack { last: 0, promised: 10 }), "somebody counts on what we lost");
    assert!(matches!(replica.advance(Millis(5)), Err(Fatal::Stopped)));
}

#[test]
fn unusable_snapshots_are_refused() {
    let good = State::first(NodeId(2));
    let conf = |voters: &[u64]| ConfState { voters: voters.to_vec(), ..ConfState::default() };
    let snapshot = |data: Vec<u8>, conf_state, index, term| {
        let metadata = SnapshotMetadata { conf_state: Some(conf_state), index, term };
        let snapshot = Some(Snapshot { data, metadata: Some(metadata) });
        Message { snapshot, ..message(MessageType::MsgSnapshot, 1, 2, 5) }
    };
    let data = snapshot::encode(&good);
    let mut flipped = data.clone();
    flipped[10] ^= 1;
    let mut replica = joining();
    let wrong = [
        snapshot(flipped, conf(&[2]), 1, 1),
        snapshot(data.clone(), conf(&[2, 3]), 1, 1),
        snapshot(data.clone(), conf(&[2]), 2, 1),
        snapshot(data.clone(), conf(&[2, 2]), 1, 1),
        snapshot(data.clone(), conf(&[]), 1, 1),
        snapshot(data.clone(), conf(&[2]), 1, 9),
        message(MessageType::MsgSnapshot, 1, 2, 5),
    ];
    for message in &wrong {
        assert_eq!(give(&mut replica, 1, message), 1, "{:?}", message.snapshot);
    }
    assert_eq!(give(&mut replica, 1, &snapshot(data, conf(&[2]), 1, 1)), 0);
    replica.advance(Millis(3)).unwrap();
    assert_eq!(replica.status().voters, [NodeId(2)]);
}

/// The first messages of real replicas, to mutate.
fn real_messages() -> &'static [Vec<u8>] {
    static MESSAGES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    MESSAGES.get_or_init(record_messages)
}

fn record_messages() -> Vec<Vec<u8>> {
    let (mut one, mut two) = (leader(), joining());
    let mut seen = Vec::new();
    for step in 10..60 {
        for (from, replica) in [(1, &mut one), (2, &mut two)] {
            replica.handle(Millis(step * 25), Input::Tick);
            for effect in replica.advance(Millis(step * 25)).unwrap() {
                if let Effect::Send { bytes, .. } = effect {
                    seen.push((from, bytes));
                }
            }
        }
        for (from, bytes) in seen.iter().rev().take(4).cloned().collect::<Vec<_>>() {
            let to = if from == 1 { &mut two } else { &mut one };
            to.handle(Millis(step * 25), Input::Message { from: NodeId(from), bytes });
        }
    }
    seen.into_iter().map(|(_, bytes)| bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn nothing_from_a_peer_makes_a_replica_panic(
        kind in 0..20i32,
        from in 1..4u64,
        numbers in proptest::collection::vec(prop_oneof![0..8u64, Just(u64::MAX), any::<u64>()], 8),
        terms in proptest::collection::vec((0..6u64, 0..6u64, 0..4i32), 0..3),
        reject: bool,
        leads: bool,
    ) {
        let (mut replica, to) = if leads { (leader(), 1) } else { (joining(), 2) };
        let entry = |(index, term, entry_type): (u64, u64, i32)| Entry { index, term, entry_type, ..Entry::default() };
        let message = Message {
            msg_type: kind, from, to, reject,
            term: numbers[0], log_term: numbers[1], index: numbers[2], commit: numbers[3],
            commit_term: numbers[4], reject_hint: numbers[5], request_snapshot: numbers[6] % 2,
            entries: terms.into_iter().map(entry).collect(),
            ..Message::default()
        };
        for _ in 0..2 {
            give(&mut replica, from, &message);
            for time in 0..40 {
                replica.handle(Millis(10 + time * 25), Input::Tick);
            }
            if let Err(fatal) = replica.advance(Millis(2_000)) {
                prop_assert!(matches!(fatal, Fatal::RolledBack { .. } | Fatal::Stopped | Fatal::Command { .. }), "{}", fatal);
            }
        }
    }

    #[test]
    fn no_mutation_of_a_real_message_makes_a_replica_panic(at in any::<prop::sample::Index>(), mask in 1..=255u8, cut in any::<prop::sample::Index>()) {
        let (mut one, mut two) = (leader(), joining());
        for bytes in real_messages() {
            let mut flipped = bytes.clone();
            let place = at.index(bytes.len());
            flipped[place] ^= mask;
            let short = bytes[..cut.index(bytes.len())].to_vec();
            for bytes in [flipped, short] {
                for (replica, from) in [(&mut one, 2), (&mut two, 1)] {
                    replica.handle(Millis(5), Input::Message { from: NodeId(from), bytes: bytes.clone() });
                    let _ = replica.advance(Millis(5));
                }
            }
        }
    }
}
