//! The keyring: sealed to those who vote and nobody else, its secrets on no disk, certificates signed by whoever leads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use agent::keyring::seal::SealKey;
use agent::keyring::{Ring, Secrets, public_of_text, recovery_key};
use agent::pki;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use raft_store::rescue::Rescued;
use raft_store::{ClusterId, Config, FileDisk, Key, NodeId, Op, Transaction};
use serde_json::{Value, json};
use testbed::Kind;

use crate::world::World;

fn names(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// Voters and holders as one state of the store has them.
fn voters_and_holders(world: &World, index: usize) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let status = world.status(index)?;
    Some((names(&status["voters"]), names(&status["keyring"]["holders"])))
}

fn generation(world: &World, index: usize) -> u64 {
    world.status(index).and_then(|status| status["keyring"]["generation"].as_u64()).unwrap_or(0)
}

fn index_of(world: &World, name: &str) -> usize {
    (0..world.bed.hosts().len()).find(|index| world.host(*index).name() == name).unwrap()
}

/// A host's own sealing key, and its raft id.
fn own_key(world: &World, index: usize) -> (SealKey, NodeId) {
    let member = world.host(index).data_path().join("member");
    let text = std::fs::read_to_string(member.join("seal.key")).unwrap();
    let identity: Value =
        serde_json::from_slice(&std::fs::read(member.join("identity.json")).unwrap()).unwrap();
    (
        SealKey::from_bytes(public_of_text(text.trim()).unwrap()),
        NodeId(identity["member"]["id"].as_u64().unwrap()),
    )
}

/// A backup, with the keyring that is in it.
fn backup(world: &World, index: usize) -> (Vec<u8>, Ring, String) {
    world.run(index, &["skein", "cluster", "backup", "/srv/state"]);
    let bytes = std::fs::read(world.host(index).srv_path().join("state")).unwrap();
    let (rescued, cluster) = Rescued::from_backup(&bytes).unwrap();
    (bytes, Ring::in_view(&rescued.view()).unwrap(), cluster.to_string())
}

/// The secrets in every form in which they might slip out.
fn forms(secrets: &Secrets) -> Vec<(String, Vec<u8>)> {
    let lines: Vec<&str> = secrets.ca_key.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(lines.concat()).unwrap();
    let mut forms: Vec<(String, Vec<u8>)> =
        lines.iter().map(|line| ("a PEM line of the CA's key".into(), line.as_bytes().to_vec())).collect();
    // Of SEC 1's ECPrivateKey inside of it: version 1, then an octet string of 32 bytes, the number itself.
    let at = der.windows(5).position(|window| window == [2, 1, 1, 4, 32]).unwrap() + 5;
    forms.push(("the CA's private number".into(), der[at..at + 32].to_vec()));
    forms.push(("the CA's key, DER".into(), der));
    for generation in 1..=secrets.generation() {
        let key = secrets.data_key(generation).unwrap();
        forms.push((format!("data key {generation}"), key.to_vec()));
        forms.push((format!("data key {generation}, hex"), pki::hex(key).into_bytes()));
        forms.push((format!("data key {generation}, base64"), STANDARD.encode(key).into_bytes()));
        forms.push((format!("data key {generation}, JSON"), serde_json::to_vec(key).unwrap()));
    }
    forms
}

fn files(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(below).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// A file without its blocks of one byte: a log's end is nothing else, and long values of these tests.
fn read(path: &Path) -> Option<Vec<u8>> {
    // A socket's or a vanished file's error is no find.
    let bytes = std::fs::read(path).ok()?;
    Some(
        bytes
            .chunks(4096)
            .filter(|chunk| chunk[1..] != chunk[..chunk.len() - 1])
            .flatten()
            .copied()
            .collect(),
    )
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == needle[0]) {
        if bytes[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[test]
fn no_bytes_of_a_secret_are_in_any_machines_files() {
    let world = World::of(4, "canary");
    world.until("the voters hold it and nobody else", || {
        voters_and_holders(&world, 0).is_some_and(|(voters, holders)| voters.len() == 3 && voters == holders)
    });
    let (_, holders) = voters_and_holders(&world, 0).unwrap();
    let before = generation(&world, 0);
    world.run(0, &["skein", "kubeconfig"]);
    let recovery = world.run(0, &["skein", "cluster", "recovery-key"]);
    // A demotion makes a new data key; the old one must not show either.
    let drained = holders.iter().find(|name| *name != "host1").unwrap().clone();
    world.run(0, &["skein", "node", "drain", &drained]);
    world.until("a new data key", || {
        let settled = voters_and_holders(&world, 0).is_some_and(|(voters, holders)| voters == holders);
        settled && generation(&world, 0) > before
    });
    let (bytes, ring, cluster) = backup(&world, 0);
    let holder = ring.held().into_keys().next().unwrap();
    let holder = (0..4).map(|index| own_key(&world, index)).find(|(_, id)| *id == holder).unwrap();
    let secrets = ring.open(&cluster, holder.1, &holder.0).unwrap();
    assert!(secrets.generation() > 1);
    let (key, id) = own_key(&world, index_of(&world, &drained));
    assert!(ring.open(&cluster, id, &key).is_err(), "who votes no longer opens the keyring no longer");

    // The leader's process starts anew, so that log and snapshots have been read and written again.
    for index in 0..4 {
        let before = world.host(index).agent_pid().unwrap();
        world.host(index).kill_agent(Signal::SIGKILL).unwrap();
        world.host(index).agent_after(before, std::time::Duration::from_secs(10)).unwrap();
    }
    world.until("a leader", || world.status(0).is_some_and(|status| status["leader"].is_string()));
    let sealed = serde_json::to_value(&ring).unwrap()["wraps"][0]["sealed"].as_str().unwrap().to_string();
    let mut forms = forms(&secrets);
    let recovery = recovery.split_whitespace().max_by_key(|word| word.len()).unwrap();
    assert!(recovery.len() > 40, "{recovery}");
    forms.push(("the recovery key".into(), recovery.as_bytes().to_vec()));
    // What has the sealed keyring in it, too: the search looks where the secrets would be.
    let sealed_in = |kind: &str, index: usize| {
        let mut found = Vec::new();
        files(&world.host(index).data_path().join("store"), &mut found);
        found.iter().any(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(kind) && read(path).is_some_and(|bytes| holds(&bytes, sealed.as_bytes()))
        })
    };
    let look = || {
        let mut looked_at = 0;
        for index in 0..4 {
            let host = world.host(index);
            let run = PathBuf::from(format!("/proc/{}/root/run/skein", host.init_pid().unwrap()));
            let mut found = vec![host.log_path()];
            for directory in [host.data_path(), host.srv_path(), run] {
                files(&directory, &mut found);
            }
            for path in found {
                let Some(bytes) = read(&path) else { continue };
                looked_at += 1;
                for (what, form) in &forms {
                    assert!(!holds(&bytes, form), "{what} is in {}", path.display());
                }
            }
            assert!(!host.data_path().join("member/ca.key").exists());
        }
        looked_at
    };
    assert!((0..4).all(|index| sealed_in("log-", index) || sealed_in("snap-", index)));
    assert!((0..4).any(|index| sealed_in("log-", index)));
    let looked_at = look();
    // A snapshot is made after 32 MiB of log.
    let body =
        |number| json!({"metadata": {"name": format!("m{number}")}, "data": {"v": "x".repeat(900 << 10)}});
    let maps = "/api/v1/namespaces/default/configmaps";
    (0..40).for_each(|number| {
        world.until("a write succeeds", || {
            let answer = world.api(0).post(maps, &body(number));
            answer.is_ok() || answer.is_err_and(|error| error.to_string().contains("already exists"))
        });
    });
    world.until("snapshots have it", || (0..4).all(|index| sealed_in("snap-", index)));
    look();
    assert!(holds(&bytes, sealed.as_bytes()) && looked_at > 40, "{looked_at} files");
}

#[test]
fn who_is_to_vote_holds_the_keyring_before_and_who_votes_no_longer_loses_it() {
    let world = World::bare(4, "wraps");
    world.run(0, &["skein", "init"]);
    // Judged by one state: the next one may be another.
    let three_hold_without = |name: &str| {
        let Some((voters, holders)) = voters_and_holders(&world, 0) else { return false };
        assert!(voters.is_subset(&holders), "voters {voters:?}, holders {holders:?}");
        voters.len() == 3 && voters == holders && !voters.contains(name)
    };
    (1..4).for_each(|index| world.join(0, index));
    world.until("three vote and hold", || three_hold_without(""));
    let before = generation(&world, 0);
    let (voters, _) = voters_and_holders(&world, 0).unwrap();
    let drained = voters.iter().find(|name| *name != "host1").unwrap().clone();
    world.run(0, &["skein", "node", "drain", &drained]);
    world.until("another one votes and holds", || three_hold_without(&drained));
    assert!(generation(&world, 0) > before);
    assert!(world.status(0).unwrap()["keyring"]["note"].is_null());
}

#[test]
fn whoever_leads_signs_and_the_first_machine_is_not_needed() {
    let world = World::bare(4, "signs");
    world.run(0, &["skein", "init"]);
    (1..3).for_each(|index| world.join(0, index));
    // Half-way through the change the first machine, the only voter before it, is still needed.
    world.until("three vote, and the change is through", || {
        let voters = voters_and_holders(&world, 1).map_or(0, |(voters, _)| voters.len());
        voters == 3 && {
            world.run(1, &["skein", "cluster", "backup", "/srv/state"]);
            let bytes = std::fs::read(world.host(1).srv_path().join("state")).unwrap();
            !Rescued::from_backup(&bytes).unwrap().0.view().members().is_joint()
        }
    });
    world.host(0).kill(Kind::Silent).unwrap();
    world.until("another leads", || {
        world.status(1).is_some_and(|status| status["leader"].is_string() && status["leader"] != "host1")
    });
    let leader = index_of(&world, world.status(1).unwrap()["leader"].as_str().unwrap());
    // Through the one that does not lead.
    world.join(if leader == 1 { 2 } else { 1 }, 3);
    assert!(world.run(3, &["skein", "kubeconfig"]).contains("client-key-data"));
    // Over the network an administrator is not root on a member: he gets no second certificate.
    let kubeconfig = world.run(3, &["skein", "kubeconfig"]);
    std::fs::write(world.host(3).srv_path().join("k"), kubeconfig).unwrap();
    let words = ["kubectl", "--kubeconfig", "/srv/k", "get", "--raw", "/skein/v1/kubeconfig"];
    assert!(world.fails(3, &words).contains("root on a member only"));
}

/// When the certificate on a host's disk ends, in Unix seconds.
fn ends(world: &World, index: usize) -> i64 {
    let path = world.host(index).data_path().join("member/node.crt");
    let der = pki::certificate_der(&std::fs::read_to_string(path).unwrap()).unwrap();
    pki::validity(&der).unwrap().1
}

#[test]
fn certificates_are_renewed_without_a_restart_and_an_expired_member_heals() {
    let world = World::untouched(2, "renewal");
    for index in 0..2 {
        let flags = ["--certificate-lifetime-s", "9"];
        world.host(index).start_agent_with(&flags, true).unwrap();
        world.until_told_nothing(index);
    }
    world.run(0, &["skein", "init"]);
    world.join(0, 1);
    let pids = [0, 1].map(|index| world.host(index).agent_pid().unwrap());
    let first = [0, 1].map(|index| ends(&world, index));
    let now = || agent::clock::wall().as_second();
    for (index, end) in first.into_iter().enumerate() {
        world.until("its first certificate has ended and it has another", || {
            now() > end && ends(&world, index) > now()
        });
        let address = format!("https://10.77.0.1{}:6443/healthz", index + 1);
        let words = ["curl", "-sS", "--cacert", "/var/lib/skein/member/ca.crt", &address];
        assert_eq!(world.run(index, &words), "ok", "the running server shows the new one");
    }
    assert_eq!(pids, [0, 1].map(|index| world.host(index).agent_pid().unwrap()));

    world.host(1).stop_agent(Signal::SIGKILL).unwrap();
    let last = ends(&world, 1);
    world.until("its certificate has ended", || now() > last + 1);
    world.host(1).start_agent_with(&["--certificate-lifetime-s", "9"], true).unwrap();
    world.until("it has a new one", || ends(&world, 1) > now());
    world.until("it takes part", || world.status(1).is_some_and(|status| status["leader"] == "host1"));
}

#[test]
fn a_survivor_that_never_voted_opens_the_keyring_with_the_recovery_key() {
    let world = World::bare(5, "unlock");
    let text = world.run(0, &["skein", "init"]);
    let key = text.lines().map(str::trim).find(|line| recovery_key(line).is_some()).unwrap().to_string();
    (1..4).for_each(|index| world.join(0, index));
    world.until("three of four vote", || {
        voters_and_holders(&world, 0).is_some_and(|(voters, _)| voters.len() == 3)
    });
    let (voters, _) = voters_and_holders(&world, 0).unwrap();
    let survivor = (0..4).find(|index| !voters.contains(world.host(*index).name())).unwrap();
    world.until("the survivor has it all", || {
        voters_and_holders(&world, survivor).is_some_and(|(now, _)| now == voters)
    });
    voters.iter().for_each(|name| world.host(index_of(&world, name)).kill(Kind::Silent).unwrap());
    let mut words = vec!["skein", "cluster", "recover", "--yes"];
    voters.iter().for_each(|name| words.extend(["--lost", name]));
    world.until("it goes on alone", || world.host(survivor).run(words.iter().copied()).unwrap().success());
    let note = || world.run(survivor, &["skein", "cluster", "status"]);
    world.until("it says that it cannot open the keyring", || {
        world.status(survivor).is_some_and(|status| status["epoch"] == 1 && status["leader"].is_string())
            && note().contains("cannot open the keyring")
    });
    let join = world.join_words(survivor);
    let join: Vec<&str> = join.iter().map(String::as_str).collect();
    assert!(world.fails(4, &join).contains("CA key cannot be opened"));
    let unlock = ["skein", "cluster", "unlock", "--recovery-key", "-"];
    let wrong = format!("skein-recovery1.{}", "ab".repeat(32));
    assert!(!world.host(survivor).command(unlock).stdin(wrong).run().unwrap().success());
    world.host(survivor).command(unlock).stdin(key).ok().unwrap();
    world.run(4, &join);
    world.until("nothing is wrong any more", || !note().contains("keyring"));
}

#[test]
fn a_restored_cluster_keeps_the_secrets_keys_with_the_recovery_key_and_not_without() {
    let world = World::bare(2, "restored");
    world.run(0, &["skein", "init"]);
    let text = world.run(0, &["skein", "cluster", "recovery-key"]);
    let key = text.lines().map(str::trim).find(|line| recovery_key(line).is_some()).unwrap().to_string();
    let (bytes, old_ring, old) = backup(&world, 0);
    std::fs::write(world.host(1).srv_path().join("state"), &bytes).unwrap();
    let words = ["skein", "cluster", "restore", "/srv/state", "--recovery-key", "-"];
    let wrong = format!("skein-recovery1.{}", "ab".repeat(32));
    let refused = world.host(1).command(words).stdin(wrong).run().unwrap();
    assert!(refused.stderr.contains("does not open with this key"), "{}", refused.stderr);
    world.host(1).command(words).stdin(key.clone()).ok().unwrap();
    let (_, ring, cluster) = backup(&world, 1);
    let (own, id) = own_key(&world, 1);
    let (secrets, before) = (
        ring.open(&cluster, id, &own).unwrap(),
        old_ring.open_by_recovery(&old, &recovery_key(&key).unwrap()).unwrap(),
    );
    assert_ne!(secrets.ca_key, before.ca_key, "the CA is the new cluster's own");
    assert_eq!(secrets.data_key(1), before.data_key(1));
    assert_eq!(secrets.generation(), 2);
}

#[test]
fn the_ca_key_in_the_file_of_an_older_agent_is_taken_over_into_the_keyring_and_the_file_goes() {
    let world = World::bare(2, "old-ca-key");
    world.run(0, &["skein", "init"]);
    let (bytes, ring, cluster) = backup(&world, 0);
    let (key, id) = own_key(&world, 0);
    let secrets = ring.open(&cluster, id, &key).unwrap();
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    // The store as such an agent left it: no keyring, and the key in a file.
    let log = world.host(0).data_path().join("store/log");
    std::fs::remove_dir_all(&log).unwrap();
    let (rescued, _) = Rescued::from_backup(&bytes).unwrap();
    let id_of_cluster: Vec<u8> = pki::from_hex(&cluster).unwrap();
    let config = Config::new(id, ClusterId(id_of_cluster.try_into().unwrap()), 1);
    let ops = vec![Op::Delete { key: Key::from(agent::keyring::KEY) }];
    let changes = Transaction { compares: Vec::new(), ops };
    drop(rescued.begin_anew(FileDisk::open(&log).unwrap(), config, &changes).unwrap());
    let file = world.host(0).data_path().join("member/ca.key");
    std::fs::write(&file, &secrets.ca_key).unwrap();
    world.host(0).start_agent().unwrap();
    world.until("the keyring is held", || {
        voters_and_holders(&world, 0)
            .is_some_and(|(voters, holders)| voters == holders && !holders.is_empty())
    });
    world.until("the file is gone", || !file.exists());
    let (_, ring, _) = backup(&world, 0);
    assert_eq!(ring.open(&cluster, id, &key).unwrap().ca_key, secrets.ca_key);
    world.join(0, 1);
    world.until("the CA signs as before", || {
        world.status(1).is_some_and(|status| status["leader"] == "host1")
    });
}
