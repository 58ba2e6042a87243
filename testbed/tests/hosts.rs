//! Hosts made of namespaces, on the real kernel. Needs root, `ip`, `nft` and `ping`.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

#[path = "hosts/common.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use testbed::bed::{cgroups, process_start};
use testbed::wire::End;
use testbed::{Bed, BedError, Host, HostError, Kind};

const SECOND: Duration = Duration::from_secs(1);

fn pings(from: &Host, to: &str) -> bool {
    from.run(["ping", "-c", "1", "-W", "1", to]).unwrap().success()
}

fn echo(host: &Host, port: u16) -> (testbed::host::Process, SocketAddr) {
    let server = host.spawn(["testbed", "echo", &format!("0.0.0.0:{port}")]).unwrap();
    common::eventually(|| server.stdout().contains("listening"));
    (server, SocketAddr::from((host.address(), port)))
}

#[test]
fn three_hosts_reach_each_other_by_address_and_name() {
    let bed = common::bed("ping", 3);
    let [one, two, three] = bed.hosts() else { panic!("three hosts") };
    assert!(pings(one, "10.77.0.12") && pings(two, "host3") && pings(three, "10.77.0.100"));
    assert_eq!(one.ok(["hostname"]).unwrap().trim(), "host1");
    assert!(bed.outside().run(["ping", "-c", "1", "-W", "1", "10.77.0.13"]).unwrap().success());
    // Its own processes only, its own interfaces only, cgroups visible.
    assert_eq!(two.ok(["cat", "/proc/1/comm"]).unwrap().trim(), "testbed");
    let links = two.ok(["ls", "/sys/class/net"]).unwrap();
    assert_eq!(links.split_whitespace().filter(|l| ["lo", "eth0"].contains(l)).count(), 2, "{links}");
    let mounts = two.ok(["cat", "/proc/self/mountinfo"]).unwrap();
    assert!(mounts.contains("/sys/fs/cgroup") && mounts.contains(" /var/lib/skein "), "{mounts}");
    assert!(!mounts.contains(" shared:"), "mounts are private: {mounts}");
}

#[test]
fn commands_give_code_output_and_take_input() {
    let bed = common::bed("commands", 1);
    let host = bed.host("host1").unwrap();
    let output = host.run(["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap();
    assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (Some(7), "out\n", "err\n"));
    let large = "x".repeat(3_000_000);
    assert_eq!(host.command(["cat"]).stdin(large.clone()).ok().unwrap(), large);
    let slow = host.command(["sleep", "60"]).limit(SECOND / 10).run().unwrap();
    assert!(slow.timed_out && slow.end == End::Signal(9) && slow.took < SECOND);
    let missing = host.run(["/no/such/program"]).unwrap_err().to_string();
    assert!(missing.contains("host1: cannot start `/no/such/program`: No such file"), "{missing}");
    let failed = host.ok(["sh", "-c", "echo why >&2; exit 3"]).unwrap_err().to_string();
    assert_eq!(failed, "host1: `sh -c echo why >&2; exit 3` ended with code 3:\nwhy");
    assert!(matches!(bed.host("host9"), Err(BedError::NoHost(_))));
    let blocked = host.ok(["sh", "-c", "grep SigBlk /proc/self/status"]).unwrap();
    assert!(blocked.trim().ends_with("0000000000000000"), "init's own mask is not handed down: {blocked}");
    let clock = host.run(["date", "-s", "@1"]).unwrap();
    assert!(!clock.success(), "a host must not be able to set the clock");
}

#[test]
fn data_survives_a_kill_and_run_does_not() {
    let bed = common::bed("data", 2);
    let host = bed.host("host1").unwrap();
    host.ok([
        "sh",
        "-c",
        "echo kept > /var/lib/skein/file; echo lost > /run/skein/file; echo lost > /etc/mark",
    ])
    .unwrap();
    host.kill(Kind::Silent).unwrap();
    assert!(matches!(host.run(["true"]), Err(HostError::Down(_))));
    host.boot().unwrap();
    assert_eq!(host.ok(["cat", "/var/lib/skein/file"]).unwrap(), "kept\n");
    assert_eq!(host.ok(["ls", "-A", "/run/skein"]).unwrap(), "");
    assert!(!host.run(["test", "-e", "/etc/mark"]).unwrap().success());
    assert!(pings(host, "host2") && pings(bed.host("host2").unwrap(), "host1"));
    let kind = host.ok(["stat", "-f", "-c", "%T", "/var/lib/skein"]).unwrap();
    assert!(!["overlayfs", "tmpfs"].contains(&kind.trim()), "data is on {kind}");
    assert!(!Path::new("/etc/mark").exists());
}

#[test]
fn peers_of_a_silently_killed_host_hear_nothing() {
    let bed = common::bed("silent", 2);
    let [one, two] = bed.hosts() else { panic!("two hosts") };
    let (_server, at) = echo(two, 7000);
    let mut stream = one.connect(at, SECOND).unwrap().unwrap();
    stream.set_read_timeout(Some(SECOND / 2)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    two.kill(Kind::Silent).unwrap();
    let error = stream.read(&mut heard).expect_err("neither data nor an end");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    let error = one.connect(at, SECOND / 2).unwrap().expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn peers_of_a_host_killed_with_its_link_up_hear_the_kernel() {
    let bed = common::bed("linkup", 2);
    let [one, two] = bed.hosts() else { panic!("two hosts") };
    let (_server, at) = echo(two, 7000);
    let mut stream = one.connect(at, SECOND).unwrap().unwrap();
    stream.set_read_timeout(Some(SECOND)).unwrap();
    two.kill(Kind::LinkUp).unwrap();
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0)), "its kernel sends a FIN");
}

#[test]
fn partitions_cut_and_heal_in_both_or_one_direction() {
    let bed = common::bed("partition", 3);
    let [one, two, three] = bed.hosts() else { panic!("three hosts") };
    bed.partition(&[&["host1"], &["host2", "host3"]]).unwrap();
    assert!(!pings(one, "host2") && pings(two, "host3") && pings(one, "10.77.0.100"));
    bed.heal().unwrap();
    // An address that did not answer is asked for again within a second.
    common::eventually(|| pings(one, "host2"));
    let (_server, at) = echo(three, 7000);
    let received = |host: &Host| -> u64 {
        host.ok(["cat", "/sys/class/net/eth0/statistics/rx_packets"]).unwrap().trim().parse().unwrap()
    };
    bed.cut("host3", "host1").unwrap();
    let before = received(three);
    assert!(one.connect(at, SECOND / 2).unwrap().is_err(), "answers are dropped");
    assert!(received(three) > before, "questions still arrive");
    bed.heal().unwrap();
    let connected: TcpStream = one.connect(at, SECOND).unwrap().unwrap();
    drop(connected);
}

#[test]
fn an_agent_comes_back_unless_it_was_stopped() {
    let bed = common::bed("agent", 1);
    let host = bed.host("host1").unwrap();
    let argv = ["sh", "-c", "echo started $$; trap 'echo asked; exit 0' TERM; while :; do sleep 0.05; done"];
    let first = host.start_program_as_agent(argv.map(str::to_owned).to_vec(), true).unwrap();
    assert_eq!(host.agent_pid().unwrap(), Some(first));
    common::eventually(|| bed.logs("host1").unwrap().contains("started"));
    let begun = testbed::clock::now();
    host.kill_agent(Signal::SIGKILL).unwrap();
    let second = host.agent_after(Some(first), SECOND).unwrap();
    assert!(
        begun.elapsed() >= Duration::from_millis(190),
        "as systemd, after a pause: {:?}",
        begun.elapsed()
    );
    common::eventually(|| bed.logs("host1").unwrap().matches("started").count() == 2);
    assert_eq!(host.stop_agent(Signal::SIGTERM).unwrap(), Some(End::Code(0)));
    std::thread::sleep(SECOND / 2);
    assert_eq!(host.agent_pid().unwrap(), None);
    assert!(bed.logs("host1").unwrap().ends_with("asked\n"));
    assert!(
        host.machine_pid(second).unwrap().is_none() && host.machine_pid(1).unwrap() == host.init_pid().ok()
    );
}

#[test]
fn a_killed_host_leaves_no_process_zombie_or_cgroup() {
    let bed = common::bed("clean", 1);
    let host = bed.host("host1").unwrap();
    // A frozen process, a daemon whose parent is gone, a nested namespace, a pinned mount.
    let parent = host.cgroup_parent();
    let script = format!(
        "mkdir -p /sys/fs/cgroup/freezer{parent}/pod && (setsid sleep 1000 &) && setsid sleep 1001 & \
         unshare --net --mount sleep 1002 & touch /run/skein/pin; mount --bind /proc/self/ns/net /run/skein/pin; \
         sleep 1003 & echo $! > /sys/fs/cgroup/freezer{parent}/pod/cgroup.procs; \
         echo FROZEN > /sys/fs/cgroup/freezer{parent}/pod/freezer.state; true"
    );
    host.ok(["sh", "-c", &script]).unwrap();
    host.ok(["sh", "-c", "for i in 1 2 3 4 5; do (setsid true &); done"]).unwrap();
    common::eventually(|| !host.ok(["ps", "axo", "stat"]).unwrap().contains('Z'));
    let pids: Vec<i32> = common::pids_inside(host);
    assert!(pids.len() >= 4, "{pids:?}");
    host.kill(Kind::Silent).unwrap();
    assert!(pids.iter().all(|pid| process_start(*pid).is_none()));
    assert!(cgroups::of_run(bed.run_id()).iter().all(|d| !d.join("host1").exists()));
}

#[test]
fn two_beds_at_once_do_not_meet() {
    let [bed, other] = ["twin-a", "twin-b"].map(|name| common::bed(name, 2));
    assert_ne!(bed.run_id(), other.run_id());
    let host = bed.host("host1").unwrap();
    let (_server, at) = echo(host, 7000);
    assert!(bed.hosts()[1].connect(at, SECOND).unwrap().is_ok());
    let refused = other.hosts()[1].connect(at, SECOND).unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "its own 10.77.0.11 answers");
    let busy = Bed::create(common::config(bed.directory(), 1)).unwrap_err();
    assert!(matches!(busy, BedError::InUse(..)), "{busy}");
}

#[test]
fn ten_hosts_start_in_about_a_second() {
    let begun = testbed::clock::now();
    let bed = common::bed("ten", 10);
    let took = begun.elapsed();
    println!("ten hosts: {took:?}");
    assert!(took < 4 * SECOND, "{took:?}");
    assert!(pings(&bed.hosts()[0], "host10"));
}

#[test]
fn a_bed_process_killed_by_force_leaves_nothing() {
    let scratch = common::scratch();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["hold", scratch.path().to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [run, pids @ ..] = words.as_slice() else { panic!("{line:?}") };
    let pids: Vec<i32> = pids.iter().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() == 2 && pids.iter().all(|pid| process_start(*pid).is_some()), "{line}");
    assert!(!cgroups::of_run(run).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    common::eventually(|| pids.iter().all(|pid| process_start(*pid).is_none()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(scratch.path().to_str().unwrap()), "{mounts}");
    let next = Bed::create(common::config(scratch.path(), 1)).unwrap();
    assert!(cgroups::of_run(run).is_empty());
    assert!(next.host("host1").unwrap().run(["true"]).unwrap().success());
    let run = next.run_id().to_owned();
    drop(next);
    assert!(cgroups::of_run(&run).is_empty());
}
