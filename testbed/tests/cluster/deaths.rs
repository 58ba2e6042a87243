//! Deaths: the brake over a change of leader, the veto, what a dead machine held, and Nodes that are deleted by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::Kind;

use crate::world::{World, app, pod};

fn state(world: &World, seen_by: usize, name: &str) -> String {
    let members =
        world.status(seen_by).unwrap_or_default()["members"].as_array().cloned().unwrap_or_default();
    let found = members.iter().find(|member| member["name"] == name);
    found.and_then(|member| member["state"].as_str()).unwrap_or("").into()
}

fn leader(world: &World, seen_by: usize) -> Option<String> {
    world.status(seen_by)?["leader"].as_str().map(String::from)
}

/// Every pod of the application with the node that it is bound to.
fn bound(world: &World, app: &str) -> Vec<(String, String)> {
    let list = world.api(0).get(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"));
    let items = list.unwrap_or(Value::Null)["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    items.iter().map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))).collect()
}

#[test]
fn many_deaths_at_once_hold_replacing_back_over_a_change_of_leader_until_they_are_confirmed() {
    let world = World::of(7, "brake");
    world.apply(0, &app("web", 14));
    world.until("fourteen pods run", || world.running(0, "web").len() == 14);
    // The last three die.
    let dead: BTreeSet<String> = (4..7).map(|index| world.host(index).name().to_string()).collect();
    (4..7).for_each(|index| world.host(index).kill(Kind::Silent).unwrap());
    world.until("all three are dead", || dead.iter().all(|name| state(&world, 0, name) == "dead"));
    let on_dead =
        || bound(&world, "web").into_iter().filter(|(_, node)| dead.contains(node)).collect::<BTreeSet<_>>();
    world.until("status says so and names the way out", || {
        let text = world.run(1, &["skein", "cluster", "status"]);
        text.contains("pods are not replaced") && text.contains("skein node confirm-dead")
    });
    let held = on_dead();
    assert!(held.len() >= 2, "the third death's pods are where they were: {held:?}");
    // With seven machines five vote, and which of the later four do is up to their identities: the dead may be two of them. Then
    // the leader's death would be the third, and nobody could lead. Three seconds on, the dead vote no longer.
    world.until("no dead machine votes", || {
        let status = world.status(0).unwrap_or_default();
        let voters = status["voters"].as_array().cloned().unwrap_or_default();
        voters.len() == 3 && voters.iter().all(|name| name.as_str().is_some_and(|name| !dead.contains(name)))
    });
    // Another leader.
    let old = leader(&world, 3).unwrap();
    let index = (0..3).find(|index| world.host(*index).name() == old).unwrap();
    world.host(index).stop_agent(Signal::SIGKILL).unwrap();
    world.until("another one leads", || leader(&world, 3).is_some_and(|now| now != old));
    world.host(index).start_agent().unwrap();
    let mut probe = app("probe", 1);
    probe["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "host4"});
    world.apply(3, &probe);
    world.until("the new leader's controllers work", || world.running(3, "probe").len() == 1);
    world.until("the old leader is back", || state(&world, 3, &old) == "alive" && world.status(0).is_some());
    assert_eq!(world.status(3).unwrap()["brake"], true, "the brake has outlived its leader");
    assert_eq!(on_dead(), held, "and still holds the same pods");
    // Anyone may release it.
    let other = (0..4).find(|index| Some(world.host(*index).name()) != leader(&world, 3).as_deref()).unwrap();
    assert_eq!(world.run(other, &["skein", "node", "confirm-dead"]).trim(), "Replacing goes on.");
    world.until("everything runs on the living", || {
        world.running(3, "web").len() == 14 && on_dead().is_empty()
    });
    assert!(!world.run(3, &["skein", "cluster", "status"]).contains("confirm-dead"));
    assert!(world.run(other, &["skein", "node", "confirm-dead"]).contains("the brake is not on"));
}

#[test]
fn a_machine_that_only_the_leader_cannot_reach_is_not_dead() {
    let world = World::of(4, "veto");
    let led = leader(&world, 0).unwrap();
    let witness = (0..3).find(|index| world.host(*index).name() != led).unwrap();
    world.apply(witness, &app("web", 4));
    world.until("four pods run", || world.running(witness, "web").len() == 4);
    let before = bound(&world, "web");
    world.bed.cut(&led, "host4").unwrap();
    world.bed.cut("host4", &led).unwrap();
    // Gossip has others probe for the leader, so that mostly no suspicion arises; if one does, a voter vetoes.
    let died = testbed::clock::poll(Duration::from_secs(10), Duration::from_millis(50), || {
        (state(&world, witness, "host4") == "dead").then_some(())
    });
    assert!(died.is_none(), "the others reach it");
    assert_eq!(leader(&world, witness).as_deref(), Some(led.as_str()), "the same leader all the time");
    assert_eq!(bound(&world, "web"), before, "no pod was replaced");
    world.bed.heal().unwrap();
    // The other side of it: who nobody reaches is dead.
    world.host(3).kill(Kind::Silent).unwrap();
    world.until("now it is dead", || state(&world, witness, "host4") == "dead");
}

#[test]
fn a_suspected_machine_that_any_voter_reaches_is_not_dead() {
    let world = World::of(4, "reached");
    let led = leader(&world, 0).unwrap();
    let index = (0..4).find(|index| world.host(*index).name() == led).unwrap();
    let silent = (0..4).find(|other| *other != index).unwrap();
    let witness = (0..4).find(|other| ![index, silent].contains(other)).unwrap();
    let name = world.host(silent).name().to_string();
    let pid = world.host(silent).agent_pid().unwrap().unwrap().to_string();
    let vetoes = || {
        let log = world.bed.logs(&led).unwrap();
        log.lines().filter(|line| line.contains("suspected, and reached by a voter: not dead")).count()
    };
    // Silent until it is suspected; from then on only the leader cannot reach it. On a machine that is too busy the inquiry may
    // be over before it speaks again: then it was dead by the rule, and this begins anew.
    let vetoed = (0..5).any(|_| {
        world.until("it is alive", || state(&world, witness, &name) == "alive");
        let before = vetoes();
        world.run(silent, &["kill", "-STOP", &pid]);
        world.until("it is suspected", || {
            matches!(state(&world, index, &name).as_str(), "suspected" | "dead")
        });
        world.bed.cut(&led, &name).unwrap();
        world.bed.cut(&name, &led).unwrap();
        world.run(silent, &["kill", "-CONT", &pid]);
        let died = testbed::clock::poll(Duration::from_secs(4), Duration::from_millis(50), || {
            (state(&world, witness, &name) == "dead").then_some(())
        });
        world.bed.heal().unwrap();
        died.is_none() && vetoes() > before
    });
    assert!(vetoed, "the leader asked the voters, and one that reached it was enough");
    assert_eq!(leader(&world, witness), Some(led), "the same leader all the time");
}

#[test]
fn the_death_of_a_machine_that_held_an_image_makes_a_new_copy() {
    let world = World::of(4, "copies");
    let holders = || {
        let images = world.get_list(0, "images");
        let list = images[0]["status"]["holders"].as_array().cloned().unwrap_or_default();
        list.iter().map(|name| name.as_str().unwrap().to_string()).collect::<BTreeSet<_>>()
    };
    let first = holders();
    assert!(first.len() == 2 && first.contains("host1"), "{first:?}");
    let lost = first.iter().find(|name| *name != "host1").unwrap().clone();
    let index = (0..4).find(|index| world.host(*index).name() == lost).unwrap();
    world.host(index).kill(Kind::Silent).unwrap();
    world.until("two living machines hold it", || {
        world.status(0).is_some() && holders().iter().filter(|name| **name != lost).count() >= 2
    });
    let added = holders().into_iter().find(|name| !first.contains(name)).unwrap();
    assert!(world.run(0, &["skein", "image", "ls", "-o", "wide"]).contains(&added), "image ls says where");
    let digest = world.get_list(0, "images")[0]["spec"]["digest"].as_str().unwrap().replace("sha256:", "");
    let holder = (0..4).find(|index| world.host(*index).name() == added).unwrap();
    let found = world.run(holder, &["find", "/var/lib/skein", "-name", &format!("*{digest}*")]);
    assert!(!found.trim().is_empty(), "{added} has the manifest");
}

#[test]
fn a_node_that_was_deleted_by_hand_comes_back_with_its_machine() {
    let world = World::of(2, "node");
    let before = world.get(0, "node", "host2");
    world.run(0, &["skein", "delete", "node", "host2"]);
    world.until("its agent has written it again", || {
        let node = world.get(0, "node", "host2");
        let ready = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        ready && node["metadata"]["uid"] != before["metadata"]["uid"]
    });
    let after = world.get(0, "node", "host2");
    for field in ["/spec/podCIDR", "/status/capacity", "/status/addresses", "/metadata/labels"] {
        assert_eq!(after.pointer(field), before.pointer(field), "{field}");
    }
    let mut bound = pod("p", "sleep 1000", "Always");
    bound["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "host2"});
    world.apply(0, &bound);
    world.until("pods run on it", || world.phase(0, "p") == "Running");
    // Removal from the cluster is for good.
    world.run(0, &["skein", "node", "rm", "host2", "--force"]);
    assert_eq!(world.get(0, "node", "host2"), Value::Null);
    let back = testbed::clock::poll(Duration::from_secs(3), Duration::from_millis(50), || {
        (world.get(0, "node", "host2") != Value::Null).then_some(())
    });
    assert!(back.is_none(), "who is no member has no Node");
}
