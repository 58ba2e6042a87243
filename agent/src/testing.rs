//! What this crate's unit tests share: a store's view without a store. It must not be in anything that runs.

use raft_store::sim_disk::MemDisk;
use raft_store::{ClusterId, Command, Config, Input, Millis, NodeId, Op, ProposalId, Replica, SessionId};
use raft_store::{Transaction, View};

/// The view of a cluster of one (node 1) that holds these keys.
pub fn view(entries: &[(String, Vec<u8>)]) -> View {
    let config = Config::new(NodeId(1), ClusterId([1; 16]), 1);
    let mut replica = Replica::create_first(MemDisk::new(), config).unwrap();
    replica.advance(Millis(1)).unwrap();
    let put = |(key, value): &(String, Vec<u8>)| Op::Put { key: key.into(), value: value.into() };
    let transaction = Transaction { compares: vec![], ops: entries.iter().map(put).collect() };
    let session = SessionId(1);
    let write = Command::Transact { session, sequence: 1, epoch: None, transaction };
    for (id, command) in (1..).map(ProposalId).zip([Command::OpenSession { session }, write]) {
        replica.handle(Millis(2), Input::Propose { id, command });
    }
    replica.advance(Millis(2)).unwrap();
    assert_eq!(replica.view().len(), entries.len(), "they are written");
    replica.view()
}
