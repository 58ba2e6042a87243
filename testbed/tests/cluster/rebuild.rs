//! Stores that cannot be trusted: damaged logs, and states that differ without a trace in the log.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::{World, pod};

fn log_files(world: &World, index: usize, prefix: &str) -> Vec<PathBuf> {
    let directory = world.host(index).data_path().join("store/log");
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()).collect();
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
fn an_only_voter_whose_log_rots_stops_and_says_what_can_be_done() {
    let world = World::bare(1, "rot-alone");
    world.run(0, &["skein", "init"]);
    (0..5).for_each(|n| write(&world, 0, &format!("m{n}")));
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    rot(&world, 0);
    let kept: Vec<Vec<u8>> =
        log_files(&world, 0, "log-").iter().map(|path| fs::read(path).unwrap()).collect();
    world.host(0).start_agent_with(&[], false).unwrap();
    world.until("it has ended", || world.host(0).agent_pid().unwrap().is_none());
    let text = log(&world, 0);
    assert!(text.contains("no other member is known"), "{text}");
    assert!(text.contains("'skein cluster restore'") || text.contains("`skein cluster restore`"), "{text}");
    assert!(text.contains("skein cluster recover"), "{text}");
    let now: Vec<Vec<u8>> = log_files(&world, 0, "log-").iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(kept == now, "nothing was changed");
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
