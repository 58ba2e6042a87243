//! What a leader sends to a follower that lags: how long a message gets, and how many are on their way.

use super::*;

/// A leader that alone votes, and a peer of which it knows what it has.
fn with_a_follower() -> Replica<MemDisk> {
    let mut replica = leader(MemberChange::AddLearner(PEER));
    acknowledges(&mut replica, 1);
    let last = replica.status().last_index;
    acknowledges(&mut replica, last);
    replica
}

/// The peer has all up to `index`; the appends that it is sent then.
fn acknowledges(replica: &mut Replica<MemDisk>, index: u64) -> Vec<Message> {
    let effects = says(replica, MessageType::MsgAppendResponse, Message { index, ..Message::default() });
    sent(&effects, MessageType::MsgAppend)
}

/// Commands whose values have these lengths, in one round; the appends that leave.
fn writes(replica: &mut Replica<MemDisk>, lengths: &[usize]) -> Vec<Message> {
    for (id, length) in (2_000..).zip(lengths) {
        let command = put("k", *length);
        replica.handle(Millis(2), Input::Propose { id: ProposalId(id), command });
    }
    sent(&replica.advance(Millis(2)).unwrap(), MessageType::MsgAppend)
}

fn bytes(append: &Message) -> u64 {
    append.entries.iter().map(|entry| entry.data.len() as u64).sum()
}

fn entries(appends: &[Message]) -> usize {
    appends.iter().map(|append| append.entries.len()).sum()
}

#[test]
fn an_append_carries_no_more_bytes_of_entries_than_it_may() {
    let mut replica = with_a_follower();
    let before = replica.status().last_index;
    let part = limits::APPEND_BYTES as usize / 4;
    let first = writes(&mut replica, &[part; 12]);
    let rest = acknowledges(&mut replica, first.last().unwrap().entries.last().unwrap().index);
    let all = [first, rest].concat();
    assert_eq!(entries(&all) as u64, replica.status().last_index - before, "all is sent");
    for append in &all {
        assert!(bytes(append) <= limits::APPEND_BYTES, "{} bytes in one append", bytes(append));
        assert!(append.entries.len() > 1, "as many as fit");
    }
    // What is longer than that goes alone.
    let long = writes(&mut replica, &[limits::VALUE_BYTES]);
    let before = replica.status().last_index - 1;
    let rest = acknowledges(&mut replica, before);
    assert_eq!(entries(&[long, rest].concat()), 1);
}

#[test]
fn so_many_appends_are_on_their_way_to_one_follower_and_no_more() {
    let mut replica = with_a_follower();
    let before = replica.status().last_index;
    let rounds = limits::INFLIGHT_APPENDS + 20;
    let appends: Vec<Message> = (0..rounds).flat_map(|_| writes(&mut replica, &[100])).collect();
    let with_entries = appends.iter().filter(|append| !append.entries.is_empty()).count();
    assert_eq!(with_entries, limits::INFLIGHT_APPENDS);
    // The first of them has arrived: there is room for one.
    let next = acknowledges(&mut replica, before + 1);
    assert_eq!(next.iter().filter(|append| !append.entries.is_empty()).count(), 1);
    assert_eq!(entries(&next), 20, "with all that waited");
}
