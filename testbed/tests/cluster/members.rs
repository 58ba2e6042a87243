//! Machines that leave, and joins that break off half-way.

use std::net::SocketAddr;

use agent::mesh::join;
use agent::mesh::wire::{JoinAnswer, JoinRequest};
use agent::pki::{self, Token};
use nix::sys::signal::Signal;
use raft_store::{Supported, Version};
use serde_json::json;
use testbed::Kind;

use crate::world::World;

fn names(world: &World) -> Vec<String> {
    let status = world.status(0).unwrap_or_default();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    members.iter().map(|member| member["name"].as_str().unwrap_or("").to_string()).collect()
}

fn join(world: &World, index: usize) {
    let words = world.join_words(0);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    world.run(index, &words);
}

#[test]
fn a_machine_that_is_gone_for_good_is_removed_and_may_come_back_as_a_new_one() {
    let world = World::of(3, "remove");
    let gone = world.follower();
    let name = world.host(gone).name().to_string();
    let voters = || world.status(0).map(|status| status["voters"].as_array().map_or(0, Vec::len));
    assert!(world.fails(0, &["skein", "node", "rm", &name]).contains("is alive"));
    assert!(world.fails(0, &["skein", "node", "rm", "nobody"]).contains("there is no member"));
    world.host(gone).kill(Kind::Silent).unwrap();
    world.until("it is dead", || {
        let members = world.status(0).unwrap_or_default()["members"].clone();
        members
            .as_array()
            .into_iter()
            .flatten()
            .any(|member| member["name"] == name && member["state"] == "dead")
    });
    let others: Vec<usize> = (0..3).filter(|index| *index != gone).collect();
    for index in others {
        let other = world.host(index).name();
        let refused = world.fails(0, &["skein", "node", "rm", other, "--force"]);
        assert!(refused.contains("nothing could be written any more"), "{refused}");
    }
    assert!(world.run(0, &["skein", "node", "rm", &name]).contains("is no longer a member"));
    world.until("two members have one voter", || voters() == Some(1));
    assert!(!names(&world).contains(&name));
    assert_eq!(world.get(0, "node", &name), serde_json::Value::Null);
    // The machine comes back with its old disk: its key is refused, and it says what to do.
    let log = || std::fs::read_to_string(world.host(gone).log_path()).unwrap_or_default();
    let earlier = log().len();
    world.host(gone).boot().unwrap();
    world.host(gone).start_agent().unwrap();
    world.until("it says that it was removed, and what to do", || {
        let said = log()[earlier..].to_string();
        said.contains("the other members refuse this machine's key: it has been removed from the cluster")
            && said.contains("'skein node reset' makes it a stranger that can join again")
    });
    assert!(world.status(gone).is_some_and(|status| status["leader"].is_null()), "nobody lets it take part");
    assert!(!names(&world).contains(&name));
    assert_eq!(voters(), Some(1));
    world.host(gone).stop_agent(Signal::SIGTERM).unwrap();
    world.run(gone, &["skein", "node", "reset", "--yes"]);
    world.host(gone).start_agent().unwrap();
    world.until("its agent waits to be told", || {
        world
            .api(gone)
            .get("/skein/v1/cluster")
            .is_err_and(|error| error.to_string().contains("not a member of a cluster"))
    });
    join(&world, gone);
    world.until("three voters again", || voters() == Some(3));
    assert!(names(&world).contains(&name));
}

#[test]
fn a_voter_whose_disk_is_lost_joins_again_under_its_name_once_the_old_one_is_removed() {
    let world = World::of(3, "lost-disk");
    let lost = world.follower();
    let name = world.host(lost).name().to_string();
    world.host(lost).stop_agent(Signal::SIGKILL).unwrap();
    world.run(lost, &["skein", "node", "reset", "--yes"]);
    world.host(lost).start_agent().unwrap();
    world.until_told_nothing(lost);
    let words = world.join_words(0);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = world.fails(lost, &words);
    assert!(refused.contains(&format!("the name \"{name}\" is taken by another member")), "{refused}");
    assert!(refused.contains("remove that member first"), "{refused}");
    assert!(names(&world).contains(&name), "whoever asks under a name does not take its place");
    world.run(0, &["skein", "node", "rm", &name, "--force"]);
    world.run(lost, &words);
    // A key that is no member's any more has no name.
    world.until("three vote again, it among them", || {
        let voters = world.status(lost).unwrap_or_default()["voters"].clone();
        let voters: Vec<&str> =
            voters.as_array().into_iter().flatten().filter_map(|one| one.as_str()).collect();
        voters.len() == 3 && (0..3).all(|index| voters.contains(&world.host(index).name()))
    });
}

#[test]
fn a_leader_is_removed_after_handing_over() {
    let world = World::of(3, "remove-leader");
    let leader = world.status(1).unwrap()["leader"].as_str().unwrap().to_string();
    let other = (0..3).find(|index| world.host(*index).name() != leader).unwrap();
    world.run(other, &["skein", "node", "rm", &leader, "--force"]);
    world.until("one voter of two members, another leader", || {
        let status = world.status(other).unwrap_or_default();
        status["voters"].as_array().map_or(0, Vec::len) == 1
            && status["leader"].is_string()
            && status["leader"] != json!(leader)
    });
    world.run(other, &["skein", "cluster", "status"]);
}

#[test]
fn a_join_that_broke_off_half_way_is_repeated_as_the_same_machine_or_removed() {
    let world = World::bare(2, "half-join");
    world.run(0, &["skein", "init"]);
    // The store cannot be made, which shows only once the cluster has let the machine in.
    world.run(1, &["touch", "/var/lib/skein/store"]);
    let words = world.join_words(0);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = world.fails(1, &words);
    assert!(refused.contains("/var/lib/skein/store"), "{refused}");
    let id = |world: &World| {
        let members = world.status(0).unwrap_or_default()["members"].clone();
        let found =
            members.as_array().into_iter().flatten().find(|member| member["name"] == "host2").cloned();
        found.map(|member| member["id"].clone())
    };
    let first = id(&world).expect("it is on the list");
    world.run(1, &["rm", "/var/lib/skein/store"]);
    let other_name: Vec<&str> = words.iter().copied().chain(["--name", "other"]).collect();
    assert!(world.fails(1, &other_name).contains("under the name \"host2\""));
    world.run(1, &words);
    assert_eq!(id(&world), Some(first), "the same machine, not another one of its name");
    world.until("it takes part", || world.status(1).is_some_and(|status| status["leader"] == "host1"));
    // The other way out: the cluster forgets it.
    world.host(1).kill(Kind::Silent).unwrap();
    world.until("a silent machine can be removed", || {
        let output = world.host(0).run(["skein", "node", "rm", "host2"]).unwrap();
        if !output.success() {
            eprintln!("{}", output.stderr);
        }
        output.success()
    });
    assert_eq!(names(&world), ["host1"]);
}

#[test]
fn machines_with_a_binary_too_old_or_too_new_for_the_cluster_are_not_let_in_and_are_told_why() {
    let world = World::bare(2, "skew");
    world.run(0, &["skein", "init"]);
    let words = world.join_words(0);
    let address = SocketAddr::new(world.host(0).address().into(), 7443);
    let request = JoinRequest {
        secret: Token::parse(&words[4]).unwrap().secret,
        name: "other".into(),
        address: "10.77.0.99:7443".parse().unwrap(),
        api_port: 6443,
        signing_request: pki::signing_request(&pki::new_key().unwrap()).unwrap(),
    };
    let ask = |oldest, newest| {
        let supported = Supported { oldest: Version(oldest), newest: Version(newest) };
        let token = Token::parse(&words[4]).unwrap();
        let asked = async { join::ask(address, &token, &request, supported).await };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        world.bed.outside().within(|| runtime().block_on(asked)).unwrap()
    };
    let refused =
        |oldest, newest| ask(oldest, newest).err().map(|error| error.to_string()).unwrap_or_default();
    let newest = Supported::OURS.newest.0;
    let text = refused(1, newest - 1);
    assert!(text.contains("too old: upgrade skein on this machine"), "{text}");
    let text = refused(newest + 1, newest + 1);
    assert!(text.contains("too new: upgrade skein on all members first"), "{text}");
    assert_eq!(names(&world), ["host1"]);
    let status = world.run(0, &["skein", "cluster", "status"]);
    assert!(
        status.contains(&format!("Version:   {newest} (this binary supports 1 to {newest})")),
        "{status}"
    );
    assert!(world.run(0, &["skein", "version"]).contains(&format!("cluster versions 1 to {newest}")));
    assert!(matches!(ask(1, newest + 1), Ok(JoinAnswer::Welcome { .. })), "one that can do more is let in");
    let status = world.status(0).unwrap();
    let members = status["members"].as_array().unwrap();
    let said = members.iter().find(|member| member["name"] == "host1").unwrap();
    assert_eq!(said["versions"], json!([1, newest]));
}

#[test]
fn a_member_that_is_starting_says_so_and_commands_wait_for_it() {
    let world = World::bare(1, "starting");
    world.run(0, &["skein", "init"]);
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    // A start reads this file: from a pipe it gets it when somebody writes.
    let boot = world.host(0).data_path().join("member/boot");
    let number = std::fs::read(&boot).unwrap();
    std::fs::remove_file(&boot).unwrap();
    nix::unistd::mkfifo(&boot, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    testbed::small_image::write(&world.host(0).srv_path().join("small.tar")).unwrap();
    world.host(0).start_agent().unwrap();
    let told = || world.api(0).get("/skein/v1/cluster").map_err(|error| error.to_string());
    world.until("it says that it is starting", || {
        let said = told().err().unwrap_or_default();
        assert!(!said.contains("not a member"), "{said}");
        said == "503: the agent of this machine is starting: try again in a moment"
    });
    let typed = world.host(0).spawn(["skein", "get", "nodes"]).unwrap();
    // What cannot succeed here is refused by an agent that is up.
    let refused = ["skein exec none -- true", "skein cluster restore /srv/small.tar"];
    let others = refused.into_iter().chain(["skein image load /srv/small.tar"]);
    let others: Vec<_> = others.map(|words| world.host(0).spawn(words.split(' ')).unwrap()).collect();
    for typed in others.iter().chain([&typed]) {
        world.until("the command waits", || typed.stderr().contains("is starting: waiting for it"));
    }
    std::fs::write(&boot, number).unwrap();
    for (number, typed) in others.into_iter().enumerate() {
        let output = typed.wait(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(output.success(), number >= refused.len(), "{output:?}");
        assert!(!output.stderr.contains("try again in a moment"), "{output:?}");
    }
    let output = typed.wait(std::time::Duration::from_secs(20)).unwrap();
    assert!(output.success() && output.stdout.contains("host1"), "{output:?}");
}
