//! Rescues from a survivor's disk and from backups.

use super::*;
use crate::command::{Command, Compare, Expect, Op};
use crate::effect::{Effect, Input};
use crate::ids::{Millis, NodeId, ProposalId, SessionId};
use crate::sim_disk::MemDisk;

const OLD: ClusterId = ClusterId([1; 16]);

fn config(id: u64, cluster: ClusterId) -> Config {
    let mut config = Config::new(NodeId(id), cluster, id);
    config.segment_bytes = 4 << 10;
    config
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction { compares: vec![], ops: vec![Op::Put { key: key.into(), value: value.into() }] }
}

fn transact(sequence: u64, transaction: Transaction) -> Command {
    Command::Transact { session: SessionId(9), sequence, epoch: None, transaction }
}

/// Proposes and takes what comes of it.
fn propose(replica: &mut Replica<MemDisk>, now: u64, command: Command) -> Vec<Effect> {
    replica.handle(Millis(now), Input::Propose { id: ProposalId(now), command });
    replica.advance(Millis(now)).unwrap()
}

/// An only voter that wrote a few keys.
fn store() -> (MemDisk, View) {
    let disk = MemDisk::new();
    let mut replica = Replica::create_first(disk.clone(), config(1, OLD)).unwrap();
    replica.advance(Millis(1)).unwrap();
    propose(&mut replica, 2, Command::OpenSession { session: SessionId(9) });
    for n in 1..=20u64 {
        propose(&mut replica, 2 + n, transact(n, put(&format!("k{n}"), "v")));
    }
    (disk, replica.view())
}

#[test]
fn a_rescued_store_has_the_objects_and_nothing_that_binds_it_to_the_old_one() {
    let (mut disk, before) = store();
    let rescued = Rescued::read(&mut disk, &config(1, OLD)).unwrap();
    let (confirmed, (last, _)) = rescued.extent();
    assert!(confirmed <= last);
    let new = epoch_id(OLD, 1);
    assert_ne!(new, OLD);
    let mut replica =
        rescued.begin_anew(MemDisk::new(), config(1, new), &put("s/recovered", "by test")).unwrap();
    replica.advance(Millis(1)).unwrap();
    let view = replica.view();
    for n in 1..=20 {
        assert_eq!(view.get(format!("k{n}").as_bytes()), before.get(format!("k{n}").as_bytes()));
    }
    assert!(view.get(b"s/recovered").is_some());
    assert!(view.revision().0 > before.revision().0 + REVISION_JUMP);
    assert!(view.changes(before.revision()).is_err(), "a watch from before is told to list anew");
    assert!(view.changes(view.revision()).is_ok());
    assert_eq!(view.members().voters, [NodeId(1)]);
    assert_eq!(view.sessions().count(), 0);
    let effects = propose(&mut replica, 5, Command::OpenSession { session: SessionId(4) });
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Answer { outcome: Outcome::Applied { .. }, .. }))
    );
}

#[test]
fn the_tail_that_was_not_confirmed_is_kept() {
    // A voter of three whose entries nobody has acknowledged: an append of the leader's that reached only its disk.
    let mut world = MemDisk::new();
    let mut replica = Replica::create_first(world.clone(), config(1, OLD)).unwrap();
    replica.advance(Millis(1)).unwrap();
    propose(&mut replica, 2, Command::OpenSession { session: SessionId(9) });
    let changes = vec![crate::MemberChange::AddVoter(NodeId(2))];
    replica.handle(Millis(3), Input::ChangeMembers { id: ProposalId(3), changes });
    replica.advance(Millis(3)).unwrap();
    propose(&mut replica, 4, transact(1, put("tail", "v")));
    assert!(replica.view().get(b"tail").is_none(), "nobody has confirmed it");
    drop(replica);
    let rescued = Rescued::read(&mut world, &config(1, OLD)).unwrap();
    let (confirmed, (last, _)) = rescued.extent();
    assert!(confirmed < last, "{confirmed} {last}");
    assert!(rescued.view().get(b"tail").is_some());
}

#[test]
fn files_of_the_old_epoch_are_refused_by_the_new_one_and_the_other_way_round() {
    let (disk, _) = store();
    let new = config(1, epoch_id(OLD, 1));
    assert!(matches!(Replica::open(disk.clone(), new.clone()), Err(OpenError::OtherCluster { .. })));
    let rescued = Rescued::read(&mut disk.clone(), &config(1, OLD)).unwrap();
    let fresh = MemDisk::new();
    rescued.begin_anew(fresh.clone(), new, &Transaction::default()).unwrap();
    assert!(matches!(Replica::open(fresh, config(1, OLD)), Err(OpenError::OtherCluster { .. })));
}

#[test]
fn a_backup_is_the_state_and_any_damage_shows() {
    let (_, view) = store();
    let bytes = backup(&view, OLD);
    let (rescued, cluster) = Rescued::from_backup(&bytes).unwrap();
    assert_eq!(cluster, OLD);
    assert!(rescued.view().prefix(b"", None).eq(view.prefix(b"", None)));
    for length in 0..bytes.len() {
        assert!(Rescued::from_backup(&bytes[..length]).is_err(), "cut to {length}");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        assert!(Rescued::from_backup(&damaged).is_err(), "byte {at}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(Rescued::from_backup(&longer).is_err());
}

#[test]
fn a_joined_machine_without_state_and_changes_that_do_not_fit_are_refused() {
    let mut disk = MemDisk::new();
    Replica::create_joining(disk.clone(), config(2, OLD)).unwrap();
    assert!(matches!(Rescued::read(&mut disk, &config(2, OLD)), Err(RescueError::Nothing)));
    let (mut disk, _) = store();
    let rescued = Rescued::read(&mut disk, &config(1, OLD)).unwrap();
    let mut changes = put("x", "y");
    changes.compares.push(Compare { key: "k1".into(), expect: Expect::Absent });
    let refused = rescued.begin_anew(MemDisk::new(), config(1, epoch_id(OLD, 1)), &changes);
    assert!(matches!(refused, Err(RescueError::Changes(_))));
}
