//! The keyring as a whole: who opens it, what its bytes show.

use super::*;

fn key(byte: u8) -> SealKey {
    SealKey::from_bytes([byte; 32])
}

fn fresh_from(start: u8) -> impl FnMut() -> [u8; 32] {
    let mut next = start;
    move || {
        next += 1;
        [next; 32]
    }
}

fn ring() -> (Ring, Secrets) {
    let secrets = Secrets::new("-----BEGIN PRIVATE KEY-----".into(), [7; 32]);
    let holders = Keys::from([(NodeId(1), key(1).public()), (NodeId(2), key(2).public())]);
    let ring = Ring::seal("c", &secrets, &holders, Some(key(9).public()), fresh_from(100)).unwrap();
    (ring, secrets)
}

#[test]
fn holders_and_the_recovery_key_open_it_and_nobody_else() {
    let (ring, secrets) = ring();
    assert_eq!(ring.open("c", NodeId(1), &key(1)).as_ref(), Ok(&secrets));
    assert_eq!(ring.open("c", NodeId(2), &key(2)).as_ref(), Ok(&secrets));
    assert_eq!(ring.open_by_recovery("c", &key(9)).as_ref(), Ok(&secrets));
    assert_eq!(ring.open("c", NodeId(3), &key(3)), Err(OpenError::NotHeld));
    assert_eq!(ring.open("c", NodeId(1), &key(2)), Err(OpenError::Sealed));
    assert_eq!(ring.open("d", NodeId(1), &key(1)), Err(OpenError::Sealed), "another cluster's");
    assert_eq!(ring.open_by_recovery("c", &key(1)), Err(OpenError::Sealed));
}

#[test]
fn a_wrap_does_not_open_in_anothers_place() {
    let (mut ring, _) = ring();
    ring.wraps[1].sealed = ring.wraps[0].sealed.clone();
    assert_eq!(ring.open("c", NodeId(2), &key(1)), Err(OpenError::Sealed));
}

#[test]
fn its_bytes_are_read_back_and_show_no_secret() {
    let (ring, _) = ring();
    let text = serde_json::to_string(&ring).unwrap();
    assert_eq!(serde_json::from_str::<Ring>(&text).unwrap(), ring);
    assert!(!text.contains("PRIVATE KEY") && !text.contains("7,7,7"));
    assert_eq!(ring.held().keys().copied().collect::<Vec<_>>(), [NodeId(1), NodeId(2)]);
    assert_eq!(ring.recovery(), Some(key(9).public()));
}

#[test]
fn a_newer_keyring_is_named_as_one() {
    let (mut ring, _) = ring();
    ring.version = 2;
    assert_eq!(ring.open("c", NodeId(1), &key(1)), Err(OpenError::Newer(2)));
}

#[test]
fn a_recovery_key_is_read_as_it_was_printed() {
    let text = recovery_text(&key(5));
    assert_eq!(recovery_key(&format!("{}\n", *text)).unwrap().public(), key(5).public());
    for wrong in ["", "skein-recovery1.", "skein-recovery1.00", &text[..text.len() - 1]] {
        assert!(recovery_key(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn a_machine_keeps_its_sealing_key_and_only_root_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = std::env::temp_dir().join(format!("skein-seal-{}", std::process::id()));
    let first = own_key(&directory).unwrap().public();
    assert_eq!(own_key(&directory).unwrap().public(), first);
    let mode = std::fs::metadata(directory.join("member").join(SEAL_KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::remove_dir_all(&directory).unwrap();
}
