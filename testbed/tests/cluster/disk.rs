//! What a bad disk does to the store on real hosts, and what an operator reads: full, another's, newer, copied. (Failing ones: `failing_disk`.)

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::Kind;

use crate::world::World;

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const STORE: &str = "/var/lib/skein/store";

/// Hosts that keep the store on a small disk of its own, in one cluster.
fn with_small_disks(hosts: usize, name: &str) -> World {
    let world = World::untouched(hosts, name);
    for index in 0..hosts {
        world.run(index, &["mkdir", "-p", STORE]);
        world.run(index, &["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "small", STORE]);
        world.host(index).start_agent().unwrap();
        world.until_told_nothing(index);
    }
    world.run(0, &["skein", "init"]);
    (1..hosts).for_each(|index| world.join(0, index));
    let voters = raft_store::autopilot::wanted_voters(hosts, None);
    world.until("the voters vote", || {
        (0..hosts).all(|index| {
            world.status(index).is_some_and(|status| {
                status["voters"].as_array().map_or(0, Vec::len) == voters && status["leader"].is_string()
            })
        })
    });
    world
}

/// Leaves no byte.
fn fill(world: &World, index: usize) {
    let line = format!("cat /dev/zero > {STORE}/filler 2>/dev/null; true");
    world.run(index, &["sh", "-c", &line]);
}

fn free(world: &World, index: usize) {
    world.run(index, &["rm", &format!("{STORE}/filler")]);
}

/// A big write; the error's words if it is refused.
pub fn write(world: &World, index: usize, name: &str) -> Result<(), String> {
    let body = json!({"metadata": {"name": name}, "data": {"v": "x".repeat(700_000), "name": name}});
    world.api(index).post(MAPS, &body).map(drop).map_err(|error| error.to_string())
}

pub fn has(world: &World, index: usize, name: &str) -> bool {
    let map = world.api(index).get(&format!("{MAPS}/{name}")).unwrap_or(Value::Null);
    map["data"]["name"] == name
}

pub fn leader(world: &World, seen_by: usize) -> Option<usize> {
    let name = world.status(seen_by)?["leader"].as_str()?.to_owned();
    (0..world.bed.hosts().len()).find(|index| world.host(*index).name() == name)
}

pub fn log(world: &World, index: usize) -> String {
    world.bed.logs(world.host(index).name()).unwrap()
}

#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_goes_on_when_there_is_room() {
    let world = with_small_disks(1, "full");
    fill(&world, 0);
    let mut written = Vec::new();
    let refused = loop {
        let name = format!("m{}", written.len());
        match write(&world, 0, &name) {
            Ok(()) => written.push(name),
            Err(why) => break why,
        }
        assert!(written.len() < 100, "the disk never fills");
    };
    assert!(refused.contains("disk is full"), "{refused}");
    assert!(!written.is_empty());
    let all = |world: &World| written.iter().all(|name| has(world, 0, name));
    assert!(all(&world), "reads go on, and all that was acknowledged is there");
    free(&world, 0);
    world.until("writes go on", || write(&world, 0, "between").is_ok() || has(&world, 0, "between"));
    // A start needs room for a segment of its own, and says so.
    fill(&world, 0);
    world.host(0).kill_agent(Signal::SIGKILL).unwrap();
    let told = || log(&world, 0).contains("free some space and start the agent again");
    world.until("it starts, or says what to do", || all(&world) || told());
    free(&world, 0);
    world.until("all that was acknowledged is there after a kill on a full disk", || all(&world));
    world.until("writes go on", || write(&world, 0, "after").is_ok() || has(&world, 0, "after"));
    assert!(all(&world));
}

#[test]
fn a_full_follower_does_not_hurt_and_a_full_leader_hands_over() {
    let world = with_small_disks(3, "full3");
    let full = world.follower();
    fill(&world, full);
    let mut written: Vec<String> = Vec::new();
    let mut write_on = |world: &World, by: usize, count: usize| {
        for _ in 0..count {
            let name = format!("m{}", written.len());
            world.until("a write succeeds", || write(world, by, &name).is_ok() || has(world, by, &name));
            written.push(name);
        }
        written.clone()
    };
    // More than its segment and its reserve take.
    write_on(&world, 0, 26);
    let asked = (full + 1) % 3;
    let says = |what: &str| {
        let text = world.run(asked, &["skein", "cluster", "status"]);
        text.lines().any(|line| line.starts_with(world.host(full).name()) && line.contains(what))
    };
    world.until("everybody is told of the full disk", || says("alive, disk full"));
    free(&world, full);
    world.until("and that there is room again", || !says("disk full"));
    let last = write_on(&world, 0, 1).pop().unwrap();
    world.until("it has caught up", || {
        world.api(full).get(&format!("{MAPS}/{last}?resourceVersion=0")).is_ok()
    });

    let old = leader(&world, 0).unwrap();
    fill(&world, old);
    let witness = (0..3).find(|index| *index != old).unwrap();
    let mut count = 0;
    while leader(&world, witness) == Some(old) {
        count += 1;
        assert!(count < 60, "host{} never hands over", old + 1);
        write_on(&world, witness, 1);
    }
    let all = write_on(&world, witness, 2);
    assert!(log(&world, old).contains("it hands over"));
    free(&world, old);
    world.until("all that was acknowledged is at every agent", || {
        (0..3).all(|index| all.iter().all(|name| has(&world, index, name)))
    });
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn store_of(world: &World, index: usize) -> PathBuf {
    world.host(index).data_path().join("store")
}

#[test]
fn a_store_of_another_cluster_is_refused_by_name() {
    let world = World::bare(2, "foreign");
    for index in 0..2 {
        world.run(index, &["skein", "init"]);
        world.host(index).stop_agent(Signal::SIGTERM).unwrap();
    }
    let aside = store_of(&world, 0).with_file_name("aside");
    fs::rename(store_of(&world, 0), &aside).unwrap();
    copy(&store_of(&world, 1), &store_of(&world, 0));
    world.host(0).start_agent().unwrap();
    world.until("the operator is told", || log(&world, 0).contains("belongs to cluster"));
    assert!(world.fails(0, &["skein", "get", "nodes"]).contains("agent"));
    fs::remove_dir_all(store_of(&world, 0)).unwrap();
    fs::rename(&aside, store_of(&world, 0)).unwrap();
    world.until("its own store is taken", || {
        world.status(0).is_some_and(|status| status["leader"] == "host1")
    });
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    const FIELDS: usize = 116; // docs/formats/raft-store.md, "Segment"
    let world = World::bare(1, "newer");
    world.run(0, &["skein", "init"]);
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    let logs = fs::read_dir(store_of(&world, 0).join("log")).unwrap().flatten();
    let segment =
        logs.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/log-")).max().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    assert_eq!(crc32c(&bytes[..FIELDS]).to_le_bytes(), bytes[FIELDS..FIELDS + 4]);
    bytes[8..12].copy_from_slice(&3u32.to_le_bytes());
    let checksum = crc32c(&bytes[..FIELDS]);
    bytes[FIELDS..FIELDS + 4].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    world.host(0).start_agent().unwrap();
    world.until("the operator is told", || {
        log(&world, 0)
            .contains("has format version 3, which this binary does not know; upgrade skein on this machine")
    });
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    assert!(fs::read(&segment).unwrap() == bytes, "nothing was changed");
}

#[test]
fn one_disk_in_two_machines_is_detected_and_both_are_refused() {
    let world = World::untouched(4, "doubled");
    for index in 0..3 {
        world.host(index).start_agent().unwrap();
        world.until_told_nothing(index);
    }
    world.run(0, &["skein", "init"]);
    world.join(0, 1);
    world.join(0, 2);
    world.until("three vote", || {
        world.status(0).is_some_and(|status| status["voters"].as_array().map_or(0, Vec::len) == 3)
    });
    let doubled = world.follower();
    let name = world.host(doubled).name().to_owned();
    world.host(doubled).kill(Kind::Silent).unwrap();
    copy(&world.host(doubled).data_path().join("member"), &world.host(3).data_path().join("member"));
    copy(&store_of(&world, doubled), &store_of(&world, 3));
    world.host(doubled).boot().unwrap();
    for index in [doubled, 3] {
        world.host(index).start_agent().unwrap();
    }
    // One may be stopped first because the other has acknowledged what it lacks (docs/decisions/0104).
    let told = format!("two machines run as member {name}: ");
    let refused = |index: usize| {
        let text = log(&world, index);
        text.contains(&told) || text.contains("its disk ends at")
    };
    world.until("both are refused", || refused(doubled) && refused(3));
    let texts = [doubled, 3].map(|index| log(&world, index));
    let text = texts.iter().find(|text| text.contains(&told)).expect("somebody is told of two machines");
    let address = world.host(doubled).address();
    assert!(text.contains("host4 (10.77.0.14)") && text.contains(&format!("{name} ({address})")), "{text}");
    world.until("the others go on without either", || {
        write(&world, 0, "after").is_ok() || has(&world, 0, "after")
    });
    // The way back that was told.
    for index in [doubled, 3] {
        world.host(index).stop_agent(Signal::SIGTERM).unwrap();
    }
    world.until("the member is removed", || {
        world.host(0).run(["skein", "node", "rm", &name]).is_ok_and(|output| output.success())
    });
    for index in [doubled, 3] {
        world.run(index, &["skein", "node", "reset", "--yes"]);
        world.host(index).start_agent().unwrap();
        world.until_told_nothing(index);
        world.join(0, index);
    }
    world.until("both are members of their own", || has(&world, doubled, "after") && has(&world, 3, "after"));
}
