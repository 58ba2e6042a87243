//! The same replica on a real directory.

#![allow(clippy::unwrap_used, reason = "a whole test crate")]

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use raft_store::*;

const CLUSTER: ClusterId = ClusterId([3; 16]);
const SESSION: SessionId = SessionId(1);

fn config(id: u64) -> Config {
    Config {
        segment_bytes: 64 << 10,
        snapshot_every_bytes: 256 << 10,
        ..Config::new(NodeId(id), CLUSTER, id)
    }
}

fn run(replica: &mut Replica<FileDisk>, inputs: impl IntoIterator<Item = Input>) -> Vec<Outcome> {
    inputs.into_iter().for_each(|input| replica.handle(Millis(1), input));
    let effects = replica.advance(Millis(1)).unwrap();
    let outcome = |effect| match effect {
        Effect::Answer { outcome, .. } => Some(outcome),
        _ => None,
    };
    effects.into_iter().filter_map(outcome).collect()
}

fn put(sequence: u64, size: usize) -> Input {
    let op =
        Op::Put { key: format!("key/{}", sequence % 100).into(), value: vec![sequence as u8; size].into() };
    let transaction = Transaction { compares: vec![], ops: vec![op] };
    let command = Command::Transact { session: SESSION, sequence, epoch: None, transaction };
    Input::Propose { id: ProposalId(sequence), command }
}

fn first(directory: &std::path::Path) -> Replica<FileDisk> {
    let mut replica = Replica::create_first(FileDisk::open(directory).unwrap(), config(1)).unwrap();
    run(&mut replica, []);
    run(
        &mut replica,
        [Input::Propose { id: ProposalId(0), command: Command::OpenSession { session: SESSION } }],
    );
    replica
}

#[test]
fn a_store_survives_restarts_snapshots_and_segments() {
    let directory = tempfile::tempdir().unwrap();
    let mut replica = first(directory.path());
    let mut before = replica.view();
    for round in 0..3 {
        for sequence in 1..=600 {
            let outcomes = run(&mut replica, [put(round * 600 + sequence, 700)]);
            assert!(matches!(outcomes[..], [Outcome::Applied { .. }]), "{outcomes:?}");
        }
        before = replica.view();
        drop(replica);
        replica = Replica::open(FileDisk::open(directory.path()).unwrap(), config(1)).unwrap();
        run(&mut replica, []);
        assert_eq!(replica.view().revision(), before.revision());
        assert!(before.prefix(b"key/", None).eq(replica.view().prefix(b"key/", None)));
    }
    assert_eq!(before.len(), 100);
    let files = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(files < 12, "old segments and snapshots are removed, {files} files are left");
}

#[test]
fn files_are_for_the_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    drop(first(&path));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in std::fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn two_agents_cannot_open_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let replica = first(directory.path());
    let error = FileDisk::open(directory.path()).unwrap_err();
    assert!(matches!(error, FileDiskError::InUse { .. }));
    assert!(error.to_string().contains("stop the other agent"));
    drop(replica);
    assert!(FileDisk::open(directory.path()).is_ok());
}

#[test]
fn an_empty_directory_is_not_opened_and_a_full_one_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let open = || FileDisk::open(directory.path()).unwrap();
    assert!(matches!(Replica::open(open(), config(1)), Err(OpenError::Empty)));
    drop(first(directory.path()));
    assert!(matches!(Replica::create_first(open(), config(1)), Err(OpenError::NotEmpty { .. })));
    assert!(matches!(Replica::create_joining(open(), config(1)), Err(OpenError::NotEmpty { .. })));
    assert!(matches!(Replica::open(open(), config(2)), Err(OpenError::OtherNode { .. })));
    let other = Config { cluster: ClusterId([4; 16]), ..config(1) };
    assert!(matches!(Replica::open(open(), other), Err(OpenError::OtherCluster { .. })));
}

/// Figures, not facts: `cargo test --release -p raft-store --test file_disk -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)]
fn measure_writes() {
    for batch in [1u64, 16, 64, 256] {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let settings = Config::new(NodeId(1), CLUSTER, 1);
        let mut replica = Replica::create_first(FileDisk::open(directory.path()).unwrap(), settings).unwrap();
        run(&mut replica, []);
        run(
            &mut replica,
            [Input::Propose { id: ProposalId(0), command: Command::OpenSession { session: SESSION } }],
        );
        let (begin, mut sequence, mut rounds) = (SystemTime::now(), 0, 0);
        while begin.elapsed().unwrap().as_secs() < 3 {
            run(&mut replica, (1..=batch).map(|n| put(sequence + n, 256)));
            sequence += batch;
            rounds += 1;
        }
        let seconds = begin.elapsed().unwrap().as_secs_f64();
        println!(
            "batches of {batch}: {:.0} writes/s, {:.0} syncs/s, {:.3} ms each",
            sequence as f64 / seconds,
            rounds as f64 / seconds,
            seconds * 1000.0 / rounds as f64
        );
    }
}
