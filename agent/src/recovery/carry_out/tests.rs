//! Orders on real files, with a power cut between any two steps.

use raft_store::{Command, Input, Millis, Op, ProposalId, Replica, SessionId};

use super::*;

fn member(name: &str, id: u64) -> Member {
    Member {
        name: name.into(),
        id,
        key: String::new(),
        address: ([10, 0, 0, id as u8], 7443).into(),
        api_port: 6443,
        block: id as u8,
        no_voter: false,
        seal_key: String::new(),
        versions: None,
    }
}

fn identity(data: &Path) -> Identity {
    let identity = Identity {
        cluster: "ab".repeat(16),
        epoch: 0,
        member: member("a", 1),
        key: "k".into(),
        certificate: "c".into(),
        ca_certificate: "ca".into(),
        known: vec![member("a", 1)],
    };
    identity.save(data).unwrap();
    identity
}

/// A store with two members and one object.
fn store(data: &Path, identity: &Identity) {
    let disk = FileDisk::open(&data.join("store").join("log")).unwrap();
    let mut replica = Replica::create_first(disk, config(identity, 0)).unwrap();
    replica.advance(Millis(1)).unwrap();
    let mut ask = |n: u64, command| {
        replica.handle(Millis(n), Input::Propose { id: ProposalId(n), command });
        replica.advance(Millis(n)).unwrap();
    };
    ask(2, Command::OpenSession { session: SessionId(1) });
    let put = |key: &str, value: Vec<u8>| Op::Put { key: key.into(), value: value.into() };
    let ops = vec![
        put("m/a", serde_json::to_vec(&member("a", 1)).unwrap()),
        put("m/b", serde_json::to_vec(&member("b", 2)).unwrap()),
        put("t/token", b"{}".to_vec()),
        put("o/thing", b"kept".to_vec()),
    ];
    let transaction = Transaction { compares: vec![], ops };
    ask(3, Command::Transact { session: SessionId(1), sequence: 1, epoch: None, transaction });
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("skein-epoch-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn lead() -> Order {
    Order::Lead { epoch: 1 << 32, lost: vec!["b".into()], last: (1, 4), commit: 4, at: "now".into() }
}

fn opened(data: &Path, identity: &Identity) -> View {
    let disk = FileDisk::open(&data.join("store").join("log")).unwrap();
    Replica::open(disk, config(identity, identity.epoch)).unwrap().view()
}

#[test]
fn a_new_epoch_begins_from_the_log_without_the_lost_and_keeps_the_old_store() {
    let data = directory("lead");
    let mut identity = identity(&data);
    store(&data, &identity);
    give(&data, &lead()).unwrap();
    carry_out(&data, &mut identity);
    assert_eq!(Identity::load(&data).unwrap().unwrap().epoch, 1 << 32);
    let view = opened(&data, &identity);
    assert_eq!(in_view(&view), [member("a", 1)]);
    assert!(view.get(b"o/thing").is_some() && view.get(b"t/token").is_none());
    assert!(view.get(b"s/recovered/1").is_some());
    assert!(data.join("store.epoch-0").join("log").exists());
    assert!(!order_path(&data).exists(), "it runs once");
    std::fs::remove_dir_all(&data).unwrap();
}

#[test]
fn a_power_cut_between_any_two_steps_changes_nothing_or_all() {
    for cut in 0..3 {
        let data = directory(&format!("cut{cut}"));
        let mut identity = identity(&data);
        store(&data, &identity);
        give(&data, &lead()).unwrap();
        // What an interrupted earlier try has left: a half-made store aside, the store moved, all but the identity.
        match cut {
            0 => std::fs::create_dir_all(data.join("store.new-epoch").join("log")).unwrap(),
            _ => {
                let mut first = identity.clone();
                follow_order(&data, &mut first, &lead()).unwrap();
                identity.save(&data).unwrap();
                if cut == 1 {
                    std::fs::rename(data.join("store"), data.join("store.new-epoch")).unwrap();
                }
            }
        }
        if cut == 2 {
            // The new store stands in place already; only the identity is old.
            identity.epoch = 0;
        }
        carry_out(&data, &mut identity);
        let view = opened(&data, &identity);
        assert_eq!(identity.epoch, 1 << 32, "cut {cut}");
        assert!(view.get(b"o/thing").is_some(), "cut {cut}");
        std::fs::remove_dir_all(&data).unwrap();
    }
}

#[test]
fn a_member_that_follows_keeps_its_store_aside_and_waits_for_another() {
    let data = directory("follow");
    let mut identity = identity(&data);
    store(&data, &identity);
    std::fs::write(data.join("member").join("store-seen"), b"").unwrap();
    let members = vec![member("a", 1), member("c", 3)];
    give(&data, &Order::Follow { epoch: 3 << 32, members: members.clone() }).unwrap();
    carry_out(&data, &mut identity);
    assert_eq!((identity.epoch, &identity.known), (3 << 32, &members));
    assert!(!data.join("store").exists() && data.join("store.epoch-2").exists());
    assert!(!data.join("member").join("store-seen").exists());
    std::fs::remove_dir_all(&data).unwrap();
}

#[test]
fn an_order_that_cannot_be_carried_out_leaves_everything_as_it_was() {
    let data = directory("broken");
    let mut identity = identity(&data);
    std::fs::create_dir_all(data.join("store").join("log")).unwrap();
    give(&data, &lead()).unwrap();
    carry_out(&data, &mut identity);
    assert_eq!(identity.epoch, 0);
    assert!(data.join("store").exists() && !order_path(&data).exists());
    std::fs::remove_dir_all(&data).unwrap();
}
