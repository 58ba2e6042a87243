//! What commands do to the state, and what they refuse.

use super::*;
use crate::ids::NodeId;
use crate::limits;

struct Fixture {
    state: State,
    sequence: u64,
}

const SESSION: SessionId = SessionId(7);

fn fixture() -> Fixture {
    let mut fixture = Fixture { state: State::first(NodeId(1)), sequence: 0 };
    fixture.run(Command::OpenSession { session: SESSION });
    fixture
}

impl Fixture {
    fn run(&mut self, command: Command) -> Outcome {
        let data = crate::codec::encode_command(&command);
        self.state.apply(self.state.applied_index + 1, 2, command, &data)
    }

    fn transact(&mut self, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
        self.sequence += 1;
        self.again(self.sequence, compares, ops)
    }

    fn again(&mut self, sequence: u64, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
        let transaction = Transaction { compares, ops };
        self.run(Command::Transact { session: SESSION, sequence, epoch: None, transaction })
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into() }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn expect(key: &str, expect: Expect) -> Compare {
    Compare { key: key.into(), expect }
}

fn changed(revision: u64) -> Outcome {
    Outcome::Applied { revision: Revision(revision), changed: true }
}

fn unchanged(revision: u64) -> Outcome {
    Outcome::Applied { revision: Revision(revision), changed: false }
}

#[test]
fn one_transaction_makes_one_revision() {
    let mut f = fixture();
    assert_eq!(f.transact(vec![], vec![put("a", "1"), put("b", "1"), delete("c")]), changed(1));
    assert_eq!(f.transact(vec![], vec![delete("a"), put("b", "2")]), changed(2));
    let entry = f.state.get(b"b").unwrap();
    assert_eq!((entry.create_revision(), entry.mod_revision()), (Revision(1), Revision(2)));
    assert!(f.state.get(b"a").is_none());
    let seen: Vec<u64> = f.state.history.all_from(0).map(|change| change.revision.0).collect();
    assert_eq!(seen, [1, 1, 2, 2]);
}

#[test]
fn what_changes_nothing_makes_no_revision() {
    let mut f = fixture();
    f.transact(vec![], vec![put("a", "1")]);
    assert_eq!(f.transact(vec![], vec![put("a", "1"), delete("b")]), unchanged(1));
    assert_eq!(f.state.history.len(), 1);
}

#[test]
fn a_failed_compare_writes_nothing_and_says_which() {
    let mut f = fixture();
    f.transact(vec![], vec![put("a", "1")]);
    let compares = vec![expect("a", Expect::Present), expect("a", Expect::ModRevision(Revision(9)))];
    let failed = Outcome::CompareFailed { index: 1, key: "a".into(), actual: Some(Revision(1)) };
    assert_eq!(f.transact(compares, vec![put("b", "1")]), failed);
    assert!(f.state.get(b"b").is_none());
    assert_eq!(
        f.transact(vec![expect("a", Expect::ModRevision(Revision(1)))], vec![put("a", "2")]),
        changed(2)
    );
    let absent = vec![expect("z", Expect::Absent), expect("a", Expect::CreateRevision(Revision(1)))];
    assert_eq!(f.transact(absent, vec![put("z", "1")]), changed(3));
}

#[test]
fn the_last_of_several_writes_to_one_key_counts() {
    let mut f = fixture();
    assert_eq!(f.transact(vec![], vec![put("a", "1"), delete("a"), put("a", "2")]), changed(1));
    assert_eq!(f.state.history.len(), 1);
}

#[test]
fn a_repeated_request_gets_its_first_answer() {
    let mut f = fixture();
    assert_eq!(f.again(1, vec![expect("a", Expect::Absent)], vec![put("a", "1")]), changed(1));
    assert_eq!(f.again(1, vec![expect("a", Expect::Absent)], vec![put("a", "1")]), changed(1));
    assert_eq!(f.state.revision, Revision(1));
}

#[test]
fn a_repeated_request_that_failed_gets_its_first_answer_from_a_snapshot_too() {
    let mut f = fixture();
    f.transact(vec![], vec![put("a", "1"), put("b", "1")]);
    let compares = || vec![expect("b", Expect::Present), expect("a", Expect::Absent)];
    let failed = f.again(2, compares(), vec![put("c", "1")]);
    assert_eq!(failed, Outcome::CompareFailed { index: 1, key: "a".into(), actual: Some(Revision(1)) });
    assert_eq!(f.again(3, compares()[..1].to_vec(), vec![put("b", "1")]), unchanged(1));
    f.again(4, vec![], vec![delete("a")]);
    for _ in 0..2 {
        assert_eq!(f.again(2, compares(), vec![put("c", "1")]), failed);
        assert_eq!(f.again(3, vec![], vec![put("c", "1")]), unchanged(1));
        assert_eq!(f.state.get(b"c"), None);
        f.state = crate::snapshot::decode(&crate::snapshot::encode(&f.state)).unwrap();
    }
}

#[test]
fn a_request_below_the_window_is_never_applied() {
    let mut f = fixture();
    let last = limits::SESSION_WINDOW as u64 + 10;
    (1..=last).filter(|n| *n != 5).for_each(|n| drop(f.again(n, vec![], vec![put("a", &n.to_string())])));
    let revision = f.state.revision;
    assert_eq!(f.again(3, vec![], vec![put("a", "x")]), Outcome::SequenceBelowWindow);
    assert_eq!(f.again(5, vec![], vec![put("a", "x")]), Outcome::SequenceBelowWindow);
    assert_eq!(f.state.revision, revision);
}

#[test]
fn a_closed_session_is_refused() {
    let mut f = fixture();
    f.run(Command::CloseSession { session: SESSION });
    assert_eq!(f.transact(vec![], vec![put("a", "1")]), Outcome::UnknownSession);
}

#[test]
fn another_epochs_command_is_refused() {
    let mut f = fixture();
    f.run(Command::Epoch { term: 4 });
    let stale = |term| Command::Transact {
        session: SESSION,
        sequence: term,
        epoch: Some(Epoch(term)),
        transaction: Transaction { compares: vec![], ops: vec![put("a", "1")] },
    };
    assert_eq!(f.run(stale(3)), Outcome::StaleEpoch { current: Epoch(4) });
    assert_eq!(f.run(stale(5)), Outcome::StaleEpoch { current: Epoch(4) });
    assert_eq!(f.run(stale(4)), changed(1));
    f.run(Command::Epoch { term: 3 });
    assert_eq!(f.state.epoch, Epoch(4), "epochs never go back");
}

#[test]
fn equal_commands_give_equal_hashes_and_others_do_not() {
    let (mut one, mut two) = (fixture(), fixture());
    one.transact(vec![], vec![put("a", "1")]);
    two.transact(vec![], vec![put("a", "1")]);
    assert_eq!(one.state.hash, two.state.hash);
    one.transact(vec![], vec![put("a", "2")]);
    two.transact(vec![], vec![put("a", "3")]);
    assert_ne!(one.state.hash, two.state.hash);
}
