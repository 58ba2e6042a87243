//! Disks that fail while the store is on them, on real hosts: syncs that answer EIO, a filesystem that the kernel makes read-only, one that is
//! gone. Nothing that was acknowledged is lost, nothing is answered that is not durable, and an operator reads what it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::disk::{MAPS, STORE, has, log, write};
use crate::world::World;

/// Hosts whose stores are on an ext4 each, with what `mkfs` leaves there. Its image is a file of the host's; the kernel lets the loop device go
/// with the host's mounts.
fn on_ext4(hosts: usize, name: &str) -> World {
    let world = World::untouched(hosts, name);
    for index in 0..hosts {
        let devices =
            "mknod /dev/loop-control c 10 237; for n in $(seq 0 63); do mknod /dev/loop$n b 7 $n; done";
        let disk = "truncate -s 128M /srv/disk && mkfs.ext4 -q /srv/disk";
        world.run(index, &["sh", "-c", &format!("{devices}; {disk} && mkdir -p {STORE}")]);
        mount(&world, index);
        world.host(index).start_agent().unwrap();
        world.until_told_nothing(index);
    }
    world.run(0, &["skein", "init"]);
    (1..hosts).for_each(|index| world.join(0, index));
    until_all_vote(&world);
    world
}

fn mount(world: &World, index: usize) {
    world.run(index, &["mount", "-o", "loop,errors=remount-ro", "/srv/disk", STORE]);
}

/// As an operator does it: the agent is stopped, the filesystem is looked at and mounted again.
fn mend(world: &World, index: usize) {
    world.host(index).stop_agent(Signal::SIGTERM).unwrap();
    world.run(index, &["umount", STORE]);
    world.run(index, &["sh", "-c", "e2fsck -p /srv/disk; test $? -le 1"]);
    mount(world, index);
    world.host(index).start_agent().unwrap();
}

/// The store's directory as the machine sees it.
fn store(world: &World, index: usize) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{STORE}", world.host(index).init_pid().unwrap()))
}

fn votes(world: &World, index: usize) -> bool {
    let all = world.bed.hosts().len();
    world.status(index).is_some_and(|status| {
        status["voters"].as_array().map_or(0, Vec::len) == all && status["leader"].is_string()
    })
}

fn until_all_vote(world: &World) {
    let all = world.bed.hosts().len();
    world.until("all vote", || (0..all).all(|index| votes(world, index)));
}

/// Writes at all other hosts before, while and after this one's disk is broken, and answers what was acknowledged. `broken` answers when the
/// host has noticed; the others start no agent anew.
fn written_meanwhile(world: &World, failing: usize, broken: impl FnOnce()) -> Vec<String> {
    const MORE: usize = 100;
    let others: Vec<usize> = (0..world.bed.hosts().len()).filter(|index| *index != failing).collect();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let write_on = |by: usize| {
        for number in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
            let body = json!({"metadata": {"name": format!("m{by}-{number}")}, "data": {"v": "x"}});
            if world.api(by).post(MAPS, &body).is_ok() {
                acknowledged.lock().unwrap().push(format!("m{by}-{number}"));
            }
        }
    };
    let until_more = |what: &str| {
        let before = acknowledged.lock().unwrap().len();
        world.until(what, || acknowledged.lock().unwrap().len() >= before + MORE);
    };
    let starts =
        || -> Vec<u64> { others.iter().map(|index| world.host(*index).agent().unwrap().starts).collect() };
    let before = starts();
    testbed::clock::threads(|scope| {
        others.iter().for_each(|by| drop(scope.spawn(|| write_on(*by))));
        // Writers are told to stop whatever happens, or a failed test would never end.
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until_more("writes succeed");
            assert!(world.host(failing).agent_pid().unwrap().is_some(), "its disk works until now");
            broken();
            until_more("the others go on");
            assert_eq!(starts(), before, "nobody else's agent has ended");
        }));
        stop.store(true, Ordering::Relaxed);
        seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    acknowledged.into_inner().unwrap()
}

fn until_all_have(world: &World, written: &[String]) {
    for index in 0..world.bed.hosts().len() {
        world.until("all that was acknowledged is here", || {
            let list = world.api(index).get(&format!("{MAPS}?resourceVersion=0")).unwrap_or_default();
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let names: BTreeSet<&str> =
                items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
            written.iter().all(|name| names.contains(name.as_str()))
        });
    }
}

#[test]
fn a_disk_that_fails_to_sync_ends_the_agent_and_nothing_is_answered() {
    let world = World::bare(1, "eio");
    world.run(0, &["skein", "init"]);
    write(&world, 0, "before").unwrap();
    world.host(0).stop_agent(Signal::SIGKILL).unwrap();
    let parent = world.host(0).cgroup_parent();
    let words =
        ["/usr/local/bin/testbed", "without-sync", "--", "skein", "agent", "--cgroup-parent", &parent];
    world
        .host(0)
        .start_program_as_agent(words.iter().map(|word| (*word).to_owned()).collect(), false)
        .unwrap();
    world.until("it has ended by itself", || world.host(0).agent_pid().unwrap().is_none());
    let text = log(&world, 0);
    assert!(text.contains("Input/output error") && text.contains("sync"), "{text}");
    assert!(write(&world, 0, "meanwhile").is_err());
    world.host(0).start_agent().unwrap();
    world.until("with a good disk all is there", || has(&world, 0, "before"));
    assert!(!has(&world, 0, "meanwhile"));
}

#[test]
fn a_voter_whose_syncs_begin_to_fail_ends_alone_and_comes_back_with_all_that_was_acknowledged() {
    let world = World::bare(3, "eio3");
    world.run(0, &["skein", "init"]);
    (1..3).for_each(|index| world.join(0, index));
    until_all_vote(&world);
    let failing = world.follower();
    world.host(failing).stop_agent(Signal::SIGKILL).unwrap();
    let parent = world.host(failing).cgroup_parent();
    let bad_disk = ["/usr/local/bin/testbed", "without-sync", "--once", "/srv/bad-disk", "--"];
    let agent = ["skein", "agent", "--cgroup-parent", &parent];
    let words = bad_disk.iter().chain(&agent).map(|word| (*word).to_owned()).collect();
    world.host(failing).start_program_as_agent(words, false).unwrap();
    world.until("it votes again", || votes(&world, failing));
    let written = written_meanwhile(&world, failing, || {
        fs::write(world.host(failing).srv_path().join("bad-disk"), "").unwrap();
        world.until("it has ended by itself", || world.host(failing).agent_pid().unwrap().is_none());
    });
    let text = log(&world, failing);
    assert!(text.contains("Input/output error") && text.contains("sync"), "{text}");
    world.host(failing).start_agent().unwrap();
    until_all_have(&world, &written);
    world.until("it votes again", || votes(&world, failing));
}

/// A new segment is nothing without its name in the directory.
#[test]
fn a_directory_that_fails_to_sync_ends_the_agent_and_what_was_acknowledged_is_there() {
    ends_with_a_segment("names", "sync of");
}

/// What is left of a segment's room is cut off when the next one begins.
#[test]
fn a_length_that_fails_to_sync_ends_the_agent_and_what_was_acknowledged_is_there() {
    ends_with_a_segment("lengths", "truncation of log-");
}

/// Fills the log's first segment, of 8 MiB, on a disk that can no longer sync this.
fn ends_with_a_segment(of: &str, what: &str) {
    const LONG: usize = 900 << 10;
    let world = World::bare(1, of);
    world.run(0, &["skein", "init"]);
    world.host(0).stop_agent(Signal::SIGKILL).unwrap();
    let parent = world.host(0).cgroup_parent();
    let words = ["/usr/local/bin/testbed", "without-sync", "--of", of, "--once", "/srv/bad-disk", "--"]
        .iter()
        .chain(&["skein", "agent", "--cgroup-parent", &parent])
        .map(|word| (*word).to_owned())
        .collect();
    world.host(0).start_program_as_agent(words, false).unwrap();
    world.until("it leads", || crate::disk::leader(&world, 0).is_some());
    fs::write(world.host(0).srv_path().join("bad-disk"), "").unwrap();
    let body = |number| json!({"metadata": {"name": format!("m{number}")}, "data": {"v": "x".repeat(LONG)}});
    let written: Vec<String> = (0..20)
        .take_while(|number| world.api(0).post(MAPS, &body(*number)).is_ok())
        .map(|number| format!("m{number}"))
        .collect();
    assert!((1..20).contains(&written.len()), "{written:?}");
    world.until("it has ended by itself", || world.host(0).agent_pid().unwrap().is_none());
    let text = log(&world, 0);
    assert!(text.contains(&format!("the store's log failed: {what}")), "{text}");
    assert!(text.contains("Input/output error"), "{text}");
    world.host(0).start_agent().unwrap();
    until_all_have(&world, &written);
}

#[test]
fn a_leader_whose_disk_becomes_slow_hands_over_and_stays_a_voter() {
    let world = World::bare(3, "slow");
    world.run(0, &["skein", "init"]);
    (1..3).for_each(|index| world.join(0, index));
    until_all_vote(&world);
    // Each has a disk that may become slow; the leader's does.
    for index in 0..3 {
        world.host(index).stop_agent(Signal::SIGKILL).unwrap();
        let parent = world.host(index).cgroup_parent();
        let slow =
            ["/usr/local/bin/testbed", "slow-sync", "--there", "/srv/slow", "--milliseconds", "400", "--"];
        let agent = ["skein", "agent", "--cgroup-parent", &parent];
        let words = slow.iter().chain(&agent).map(|word| (*word).to_owned()).collect();
        world.host(index).start_program_as_agent(words, false).unwrap();
    }
    until_all_vote(&world);
    let slow = crate::disk::leader(&world, 0).unwrap();
    let written = written_meanwhile(&world, slow, || {
        fs::write(world.host(slow).srv_path().join("slow"), "").unwrap();
        world.until("another one leads", || crate::disk::leader(&world, slow).is_some_and(|one| one != slow));
    });
    world.until("it votes on", || votes(&world, slow));
    fs::remove_file(world.host(slow).srv_path().join("slow")).unwrap();
    until_all_have(&world, &written);
}

#[test]
fn a_read_only_disk_is_named_and_the_store_is_whole_when_it_is_writable_again() {
    let world = on_ext4(1, "read-only");
    write(&world, 0, "before").unwrap();
    world.host(0).stop_agent(Signal::SIGKILL).unwrap();
    world.run(0, &["mount", "-o", "remount,ro", STORE]);
    world.host(0).start_agent().unwrap();
    world.until("the operator is told", || log(&world, 0).contains("Read-only file system"));
    world.run(0, &["mount", "-o", "remount,rw", STORE]);
    world.until("it is back", || has(&world, 0, "before"));
    write(&world, 0, "after").unwrap();
}

/// What ext4 does when it finds itself damaged (`errors=remount-ro`), by its own option for trying it.
#[test]
fn a_disk_that_turns_read_only_under_a_leader_ends_it_alone_and_says_so() {
    let world = on_ext4(3, "remount");
    let failing = crate::disk::leader(&world, 0).unwrap();
    let written = written_meanwhile(&world, failing, || {
        world.run(failing, &["mount", "-o", "remount,abort", STORE]);
        world.until("the operator is told", || log(&world, failing).contains("Read-only file system"));
    });
    assert!(
        log(&world, failing).contains("the store has failed"),
        "while it ran, not only at the next start"
    );
    mend(&world, failing);
    until_all_have(&world, &written);
    world.until("it votes again", || votes(&world, failing));
}

#[test]
fn a_disk_that_is_gone_is_no_damage_of_the_store() {
    let world = on_ext4(3, "gone");
    let failing = world.follower();
    let before = fs::read(world.host(failing).data_path().join("member/identity.json")).unwrap();
    let written = written_meanwhile(&world, failing, || {
        testbed::lacking::pull_out(&store(&world, failing)).unwrap();
        world.until("the operator is told", || log(&world, failing).contains("Input/output error"));
        // It starts again and again, and cannot read.
        world.until("reading fails", || world.host(failing).agent().unwrap().starts > 2);
    });
    let text = log(&world, failing);
    assert!(!text.contains("is damaged"), "an unreadable disk says nothing of what is on it:\n{text}");
    mend(&world, failing);
    until_all_have(&world, &written);
    world.until("it votes again", || votes(&world, failing));
    let after = fs::read(world.host(failing).data_path().join("member/identity.json")).unwrap();
    assert_eq!(before, after, "under its own name");
}
