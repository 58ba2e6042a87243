//! Stores that cannot be trusted: damaged logs, and states that differ without a trace in the log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::{World, pod};

fn log_files(world: &World, index: usize, prefix: &str) -> Vec<PathBuf> {
    files_of(&world.host(index).data_path().join("store/log"), prefix)
}

fn files_of(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    files.sort();
    files
}

fn log(world: &World, index: usize) -> String {
    world.bed.logs(world.host(index).name()).unwrap()
}

/// Flips a bit in the body of a batch that others follow.
fn rot(world: &World, index: usize) {
    let segment = log_files(world, index, "log-").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let begins: Vec<usize> =
        (0..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"BAT1")).collect();
    assert!(begins.len() > 4, "{} batches", begins.len());
    bytes[begins[begins.len() / 2] + 70] ^= 4;
    fs::write(&segment, bytes).unwrap();
}

fn member(world: &World, seen_by: usize, name: &str) -> Value {
    let members = world.status(seen_by).unwrap_or_default()["members"].clone();
    members
        .as_array()
        .into_iter()
        .flatten()
        .find(|member| member["name"] == name)
        .cloned()
        .unwrap_or_default()
}

fn write(world: &World, index: usize, name: &str) {
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": name}});
    world.apply(index, &map);
}

#[test]
fn a_voter_whose_log_rots_comes_back_by_itself_with_its_name_and_its_pods() {
    let world = World::of(3, "rot");
    let rotten = world.follower();
    let name = world.host(rotten).name().to_owned();
    let witness = (0..3).find(|index| *index != rotten).unwrap();
    let mut sleeper = pod("s", "sleep 1000", "Always");
    sleeper["spec"]["nodeName"] = json!(name);
    world.apply(0, &sleeper);
    world.until("the pod runs", || world.phase(witness, "s") == "Running");
    (0..5).for_each(|n| write(&world, witness, &format!("before-{n}")));
    let container = |world: &World| world.get(witness, "pod", "s")["status"]["containerStatuses"][0].clone();
    let (started, old) = (container(&world), member(&world, witness, &name));
    world.host(rotten).stop_agent(Signal::SIGTERM).unwrap();
    rot(&world, rotten);
    world.host(rotten).start_agent().unwrap();
    world.until("it is taken back under a new identity", || {
        let now = member(&world, witness, &name);
        now["id"].is_string()
            && now["id"] != old["id"]
            && log(&world, rotten).contains("taken back under a new identity")
    });
    world.until("three vote, this one among them, and the keyring is sealed to them", || {
        world.status(witness).is_some_and(|status| {
            let voters = status["voters"].as_array().map_or(0, Vec::len);
            assert!(voters >= 3, "three do not become fewer while it comes back");
            voters == 3
                && status["voters"].to_string().contains(&name)
                && status["keyring"]["holders"].as_array().map_or(0, Vec::len) == 3
                && status["keyring"]["note"].is_null()
        })
    });
    write(&world, rotten, "after");
    assert_eq!(world.get(rotten, "configmap", "before-4")["data"]["k"], "before-4");
    assert_eq!(member(&world, witness, &name)["podCIDR"], old["podCIDR"]);
    world.until("the pod is known to run", || {
        let pod = world.get(witness, "pod", "s");
        pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    });
    assert_eq!(started["containerID"], container(&world)["containerID"], "the container never noticed");
    assert!(world.run(rotten, &["ls", "/var/lib/skein"]).contains("store.set-aside-"), "nothing is deleted");
    assert!(world.run(witness, &["skein", "events", "-A"]).contains("StoreReplaced"));
    // A restart is an ordinary one.
    let agent = world.host(rotten).agent_pid().unwrap();
    world.host(rotten).kill_agent(Signal::SIGKILL).unwrap();
    world.host(rotten).agent_after(agent, Duration::from_secs(5)).unwrap();
    world.until("it is back", || world.status(rotten).is_some_and(|status| status["leader"].is_string()));
}

#[test]
fn an_only_voter_whose_log_rots_stops_and_what_it_says_brings_the_last_backup_back() {
    let world = World::bare(1, "rot-alone");
    world.run(0, &["skein", "init"]);
    (0..5).for_each(|n| write(&world, 0, &format!("m{n}")));
    // The scheduled backup of the first seconds, made anew with what was written since.
    let backups = || {
        let mut files = files_of(&world.host(0).data_path().join("backups"), "");
        files.retain(|path| path.extension().is_some_and(|ending| ending == "skein-backup"));
        files
    };
    world.until("the first backup", || backups().len() == 1);
    fs::remove_file(&backups()[0]).unwrap();
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    world.host(0).start_agent().unwrap();
    world.until("another backup", || backups().len() == 1);
    let file = backups().remove(0).file_name().unwrap().to_string_lossy().into_owned();
    (5..10).for_each(|n| write(&world, 0, &format!("m{n}")));
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    rot(&world, 0);
    let kept: Vec<Vec<u8>> =
        log_files(&world, 0, "log-").iter().map(|path| fs::read(path).unwrap()).collect();
    world.host(0).start_agent_with(&[], false).unwrap();
    world.until("it has ended", || world.host(0).agent_pid().unwrap().is_none());
    let text = log(&world, 0);
    assert!(text.contains("no other member is known"), "{text}");
    let told = "If there are none: `skein node reset`, start the agent, and `skein cluster restore` the newest backup; \
                a reset leaves those below /var/lib/skein/backups";
    assert!(text.contains(told), "{text}");
    let now: Vec<Vec<u8>> = log_files(&world, 0, "log-").iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(kept == now, "nothing was changed");
    world.run(0, &["skein", "node", "reset", "--yes"]);
    world.host(0).start_agent().unwrap();
    world.until_told_nothing(0);
    world.run(0, &["skein", "cluster", "restore", &format!("/var/lib/skein/backups/{file}")]);
    assert_eq!(world.get(0, "configmap", "m4")["data"]["k"], "m4");
    write(&world, 0, "after");
}

#[test]
fn an_only_voter_whose_log_rots_is_gone_on_without_by_the_member_beside_it() {
    let world = World::of(2, "rot-beside");
    let voters = world.status(0).unwrap()["voters"].clone();
    assert_eq!(voters.as_array().map_or(0, Vec::len), 1, "{voters}");
    let rotten = (0..2).find(|index| voters[0] == world.host(*index).name()).unwrap();
    let (other, name) = (1 - rotten, world.host(rotten).name().to_owned());
    let key = world.run(rotten, &["skein", "cluster", "recovery-key"]);
    let is_key = |line: &&str| agent::keyring::recovery_key(line).is_some();
    let key = key.lines().map(str::trim).find(is_key).unwrap().to_string();
    (0..5).for_each(|n| write(&world, rotten, &format!("m{n}")));
    world.until("the other has it", || {
        let path = "/api/v1/namespaces/default/configmaps/m4?resourceVersion=0";
        world.api(other).get(path).is_ok()
    });
    world.host(rotten).stop_agent(Signal::SIGTERM).unwrap();
    rot(&world, rotten);
    world.host(rotten).start_agent_with(&[], false).unwrap();
    world.until("it has ended", || world.host(rotten).agent_pid().unwrap().is_none());
    let text = log(&world, rotten);
    assert!(text.contains("no leader answered"), "{text}");
    assert!(text.contains("`skein cluster recover` on one of them goes on from what it has"), "{text}");
    world.until("its loss is seen", || {
        world.fails(other, &["skein", "cluster", "recover"]).contains(&format!("--lost {name}"))
    });
    world.run(other, &["skein", "cluster", "recover", "--lost", &name, "--yes"]);
    world.until("it leads a new epoch", || {
        world.status(other).is_some_and(|status| status["epoch"] == 1 && status["leader"].is_string())
    });
    // It never voted, so that it cannot open the keyring by itself ('skein cluster status' says so).
    let unlock = world.host(other).command(["skein", "cluster", "unlock", "--recovery-key", "-"]);
    assert!(unlock.stdin(key).run().unwrap().success());
    world.run(rotten, &["skein", "node", "reset", "--yes"]);
    world.host(rotten).start_agent().unwrap();
    world.until_told_nothing(rotten);
    world.join(other, rotten);
    assert_eq!(world.get(rotten, "configmap", "m4")["data"]["k"], "m4");
    write(&world, rotten, "after");
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_replica_that_holds_another_value_than_the_others_is_named_though_its_log_is_the_same() {
    const HEADER: usize = 48; // docs/formats/raft-store.md, "Snapshot"
    let world = World::bare(3, "differs");
    world.run(0, &["skein", "init"]);
    write(&world, 0, "told");
    world.join(0, 1);
    world.join(0, 2);
    world.until("three vote", || {
        world.status(0).is_some_and(|status| status["voters"].as_array().map_or(0, Vec::len) == 3)
    });
    let odd = world.follower();
    let name = world.host(odd).name().to_owned();
    world.host(odd).stop_agent(Signal::SIGTERM).unwrap();
    // The snapshot that it got when it joined, with one letter changed and its checksum made to fit: nothing that reads it can see that.
    let path = log_files(&world, odd, "snap-").pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let value = b"\"k\":\"told\"";
    let at =
        bytes.windows(value.len()).position(|window| window == value).expect("the map is in the snapshot");
    bytes[at + 5] = b'T';
    let end = bytes.len() - 4;
    let checksum = crc32c(&bytes[HEADER..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
    fs::write(&path, bytes).unwrap();
    // Compared every second by whoever leads then.
    for index in 0..3 {
        world.host(index).stop_agent(Signal::SIGTERM).unwrap();
        world.host(index).start_agent_with(&["--compare-states-s", "1"], true).unwrap();
    }
    let other = (0..3).find(|index| *index != odd).unwrap();
    world.until("the odd one is named", || {
        let events =
            world.host(other).run(["skein", "events", "-A"]).map(|output| output.stdout).unwrap_or_default();
        events.contains("StateDiffers") && events.contains(&format!("the store of {name} differs"))
    });
}
