//! One leader, and a peer that says only what a test says for it: what is bounded, shared, given up and refused.

mod appends;

use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};

use super::*;
use crate::command::{Command, Compare, Expect, Op, Outcome, Refusal, Transaction};
use crate::effect::MemberChange;
use crate::feed::Feed;
use crate::ids::{ClusterId, ProposalId, ReadId, SessionId};
use crate::replica::reads::ReadContext;
use crate::sim_disk::MemDisk;
use crate::{limits, timing};

const CLUSTER: ClusterId = ClusterId([1; 16]);
const PEER: NodeId = NodeId(2);

/// Node 1 leads, and this was its first change.
fn leader(change: MemberChange) -> Replica<MemDisk> {
    led(change).0
}

/// And what came of the change.
fn led(change: MemberChange) -> (Replica<MemDisk>, Vec<Effect>) {
    let config = Config::new(NodeId(1), CLUSTER, 3);
    let mut replica = Replica::create_first(MemDisk::new(), config).unwrap();
    replica.advance(Millis(0)).unwrap();
    replica.handle(Millis(1), Input::ChangeMembers { id: ProposalId(1_000), changes: vec![change] });
    let effects = replica.advance(Millis(1)).unwrap();
    (replica, effects)
}

/// Node 2 says something; what is sent to it then, and what else happens.
fn says(replica: &mut Replica<MemDisk>, kind: MessageType, more: Message) -> Vec<Effect> {
    let term = if kind == MessageType::MsgReadIndex { 0 } else { replica.status().term };
    let message = Message { msg_type: kind as i32, from: 2, to: 1, term, ..more };
    let mut bytes = vec![1];
    bytes.extend_from_slice(&CLUSTER.0);
    message.encode(&mut bytes).unwrap();
    let (now, refused) = (replica.now, replica.refused);
    replica.handle(now, Input::Message { from: PEER, bytes });
    assert_eq!(replica.refused, refused, "{message:?} is in order");
    replica.advance(now).unwrap()
}

fn sent(effects: &[Effect], kind: MessageType) -> Vec<Message> {
    let message = |effect: &Effect| match effect {
        Effect::Send { bytes, .. } => Message::decode(&bytes[17..]).ok(),
        _ => None,
    };
    effects.iter().filter_map(message).filter(|message| message.msg_type == kind as i32).collect()
}

fn refused(effects: &[Effect], why: Refusal) -> Vec<u64> {
    let refused = |effect: &Effect| match effect {
        Effect::Answer { id, outcome } => (*outcome == Outcome::Refused(why)).then_some(id.0),
        _ => None,
    };
    effects.iter().filter_map(refused).collect()
}

fn transact(compares: Vec<Compare>, ops: Vec<Op>) -> Command {
    let transaction = Transaction { compares, ops };
    Command::Transact { session: SessionId(1), sequence: 1, epoch: None, transaction }
}

fn put(key: &str, length: usize) -> Command {
    transact(vec![], vec![put_op(key, length)])
}

fn put_op(key: &str, length: usize) -> Op {
    Op::Put { key: key.into(), value: vec![7u8; length].into() }
}

#[test]
fn proposals_that_wait_for_their_commit_are_bounded_in_bytes() {
    let mut replica = leader(MemberChange::AddVoter(PEER));
    let mut propose = |ids: std::ops::RangeInclusive<u64>, length: usize| {
        for id in ids {
            replica.handle(Millis(2), Input::Propose { id: ProposalId(id), command: put("k", length) });
        }
        refused(&replica.advance(Millis(2)).unwrap(), Refusal::Busy)
    };
    // Fifteen and what is around them fit, as many as that in one round.
    let fit = (limits::UNCOMMITTED_BYTES / (limits::VALUE_BYTES as u64 + 1)) as usize;
    assert_eq!(propose(1..=20, limits::VALUE_BYTES), (fit as u64 + 1..=20).collect::<Vec<_>>());
    assert_eq!(propose(21..=21, limits::VALUE_BYTES), [21], "nor in another one");
    assert_eq!(propose(22..=22, 1_000), [], "a small one still fits");
    let last = replica.status().last_index;
    let effects =
        says(&mut replica, MessageType::MsgAppendResponse, Message { index: last, ..Message::default() });
    let answered = effects.iter().filter(|effect| matches!(effect, Effect::Answer { .. })).count();
    assert_eq!(answered, fit + 1, "they are committed");
    replica.handle(Millis(3), Input::Propose { id: ProposalId(23), command: put("k", limits::VALUE_BYTES) });
    assert_eq!(refused(&replica.advance(Millis(3)).unwrap(), Refusal::Busy), [], "there is room again");
}

#[test]
fn what_is_too_large_or_not_the_drivers_to_say_does_not_enter_the_log() {
    let mut replica = leader(MemberChange::AddLearner(PEER));
    let before = replica.status().last_index;
    let many = vec![Compare { key: "k".into(), expect: Expect::Present }; limits::TRANSACTION_PARTS + 1];
    let thrice = ["a", "b", "c"].map(|key| put_op(key, limits::VALUE_BYTES - 1_000));
    let refusals = [
        (put("", 1), Refusal::TooLarge),
        (put(&"k".repeat(limits::KEY_BYTES + 1), 1), Refusal::TooLarge),
        (put("k", limits::VALUE_BYTES + 1), Refusal::TooLarge),
        (transact(many, vec![]), Refusal::TooLarge),
        (transact(vec![], thrice.to_vec()), Refusal::TooLarge),
        (Command::Epoch { term: 99 }, Refusal::NotForDrivers),
    ];
    for (n, (command, refusal)) in (0..).zip(refusals) {
        replica.handle(Millis(2), Input::Propose { id: ProposalId(n), command });
        assert_eq!(refused(&replica.advance(Millis(2)).unwrap(), refusal), [n]);
    }
    assert_eq!(replica.status().last_index, before);
    let longest = put(&"k".repeat(limits::KEY_BYTES), limits::VALUE_BYTES);
    replica.handle(Millis(2), Input::Propose { id: ProposalId(9), command: longest });
    replica.advance(Millis(2)).unwrap();
    assert_eq!(replica.status().last_index, before + 1, "the longest that there may be");
}

#[test]
fn a_leader_holds_only_so_many_rounds_of_reads_for_its_peers() {
    let mut replica = leader(MemberChange::AddVoter(PEER));
    let context = |counter: u64| ReadContext { asker: PEER, boot: 1, counter };
    for counter in 0..limits::PENDING_READS as u64 {
        let data = context(counter).encode();
        let entries = vec![Entry { data, ..Entry::default() }];
        says(&mut replica, MessageType::MsgReadIndex, Message { entries, ..Message::default() });
    }
    assert_eq!(replica.node.raft.pending_read_count(), limits::PENDING_READS);
    let entries = vec![Entry { data: context(1 << 40).encode(), ..Entry::default() }];
    let kind = MessageType::MsgReadIndex;
    let message = Message { msg_type: kind as i32, from: 2, to: 1, entries, ..Message::default() };
    let verdict = gate::judge(&replica.node, PEER, &message);
    assert!(matches!(verdict, Verdict::Refuse(_)), "one more of a member");
    replica.take_feed(NodeId(3), 0, Feed::AskIndex { boot: 1, counter: 1 });
    assert_eq!(replica.node.raft.pending_read_count(), limits::PENDING_READS, "one more of an observer");
}

#[test]
fn all_reads_that_wait_share_one_round() {
    let mut replica = leader(MemberChange::AddVoter(PEER));
    let mut ask = |ids: std::ops::Range<u64>| {
        ids.for_each(|id| replica.handle(Millis(2), Input::Read { id: ReadId(id) }));
        let asked = sent(&replica.advance(Millis(2)).unwrap(), MessageType::MsgHeartbeat);
        asked.into_iter().map(|message| message.context).collect::<Vec<_>>()
    };
    let first = ask(0..200);
    assert_eq!(first.len(), 1, "one question for all of them");
    let later = ask(200..300);
    assert_eq!(later.len(), 1);
    assert_ne!(first, later, "who comes later has a round of its own");
    let mut ready = |context: &Vec<u8>| {
        let message = Message { context: context.clone(), ..Message::default() };
        let effects = says(&mut replica, MessageType::MsgHeartbeatResponse, message);
        effects.iter().filter(|effect| matches!(effect, Effect::ReadReady { .. })).count()
    };
    assert_eq!(ready(&first[0]), 200, "one answer serves all that it was asked for, and no other");
    assert_eq!(ready(&later[0]), 100);
}

#[test]
fn a_snapshot_that_nobody_reports_on_is_given_up_after_its_time_and_sent_again() {
    let (mut replica, effects) = led(MemberChange::AddLearner(PEER));
    // It has nothing of what comes before the first entries that it is sent.
    let rejected = sent(&effects, MessageType::MsgAppend)[0].index;
    let nothing = Message { reject: true, index: rejected, ..Message::default() };
    let bulk = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::Send { bulk: true, .. })).count()
    };
    let effects = says(&mut replica, MessageType::MsgAppendResponse, nothing);
    assert_eq!(bulk(&effects), 1, "it is sent a snapshot");
    let in_snapshot = |replica: &Replica<MemDisk>| replica.status().peers[0].in_snapshot;
    let wait = |replica: &mut Replica<MemDisk>, now: u64| {
        replica.handle(Millis(now), Input::Tick);
        replica.advance(Millis(now)).unwrap();
        let effects = says(replica, MessageType::MsgHeartbeatResponse, Message::default());
        bulk(&effects)
    };
    assert_eq!(wait(&mut replica, 1 + timing::SNAPSHOT_REPORT_MS - 1), 0);
    assert!(in_snapshot(&replica), "it may still be on its way");
    assert_eq!(wait(&mut replica, 1 + timing::SNAPSHOT_REPORT_MS), 1, "another one is sent");
    assert_eq!(wait(&mut replica, 20 + timing::SNAPSHOT_REPORT_MS), 0, "and waited for as long");
    assert!(in_snapshot(&replica));
}
