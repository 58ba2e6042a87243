//! The machine's side: what is put where, whenever the power goes.

use super::*;

fn identity(id: u64) -> Identity {
    let member = Member {
        name: "host1".into(),
        id,
        key: format!("{id:064x}"),
        address: ([10, 0, 0, 1], 7443).into(),
        api_port: 6443,
        block: 0,
        no_voter: false,
        seal_key: String::new(),
        versions: None,
    };
    Identity {
        cluster: "ab".repeat(16),
        epoch: 0,
        member: member.clone(),
        key: format!("key {id}"),
        certificate: format!("certificate {id}"),
        ca_certificate: "ca".into(),
        known: vec![member],
    }
}

fn machine(name: &str) -> PathBuf {
    let data = std::env::temp_dir().join(format!("skein-rebuild-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&data);
    identity(1).save(&data).unwrap();
    for file in ["member/store-seen", "member/seal.key", "store/log/log-0"] {
        let path = data.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    data
}

fn aside(data: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(data).unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.to_string_lossy().contains("store.set-aside-")).collect()
}

#[test]
fn a_new_identity_takes_the_old_ones_place_and_nothing_of_the_old_store_is_lost() {
    let data = machine("whole");
    finish(&data).unwrap();
    assert_eq!(Identity::load(&data).unwrap().unwrap().member.id, 1, "none lies ready");
    identity(2).save_below(&data.join(NEXT)).unwrap();
    finish(&data).unwrap();
    let loaded = Identity::load(&data).unwrap().unwrap();
    assert_eq!((loaded.member.id, loaded.key.as_str()), (2, "key 2"));
    assert!(!data.join("store").exists() && !data.join("member/store-seen").exists());
    assert!(data.join("member/seal.key").exists(), "the machine's own sealing key stays");
    assert_eq!(fs::read_to_string(aside(&data)[0].join("log/log-0")).unwrap(), "store/log/log-0");
    finish(&data).unwrap();
    assert_eq!(aside(&data).len(), 1);
    fs::remove_dir_all(&data).unwrap();
}

#[test]
fn an_identity_that_is_half_written_does_not_count_and_a_half_done_exchange_is_ended() {
    let data = machine("half");
    let next = data.join(NEXT);
    identity(2).save_below(&next).unwrap();
    fs::remove_file(next.join(identity::RECORD)).unwrap();
    finish(&data).unwrap();
    assert_eq!(Identity::load(&data).unwrap().unwrap().key, "key 1");
    assert!(data.join("store").exists() && !next.exists());
    // The power goes after the store was put aside and the key was written.
    identity(2).save_below(&next).unwrap();
    fs::rename(data.join("store"), data.join("store.set-aside-7")).unwrap();
    fs::write(data.join("member/node.key"), "key 2").unwrap();
    finish(&data).unwrap();
    let loaded = Identity::load(&data).unwrap().unwrap();
    assert_eq!((loaded.member.id, loaded.certificate.as_str()), (2, "certificate 2"));
    assert_eq!(aside(&data).len(), 1);
    fs::remove_dir_all(&data).unwrap();
}

#[test]
fn only_what_proves_the_store_wrong_is_a_reason_to_come_back_as_another() {
    let open = |error| RunError::Store(StoreError::Open(error));
    let corrupt = OpenError::Corrupt { file: "log-0".into(), offset: 7, what: "a batch is damaged" };
    assert!(distrust(&open(corrupt)).is_some_and(|why| why.contains("log-0")));
    assert!(distrust(&RunError::Store(StoreError::Untrusted("rolled back".into()))).is_some());
    assert!(distrust(&open(OpenError::Empty)).is_none(), "a store that is gone may only be unmounted");
    let newer = OpenError::NewerVersion { file: "log-0".into(), version: 9 };
    assert!(distrust(&open(newer)).is_none());
    assert!(distrust(&RunError::NoLeader).is_none());
}
