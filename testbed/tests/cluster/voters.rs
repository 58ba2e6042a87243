//! Voters choose themselves: as machines come, die one after another, are drained, and as an operator says.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::Kind;

use crate::world::World;

fn voters(world: &World, index: usize) -> Vec<String> {
    let status = world.status(index).unwrap_or_default();
    let voters = status["voters"].as_array().cloned().unwrap_or_default();
    voters.iter().filter_map(Value::as_str).map(String::from).collect()
}

fn state_of(world: &World, index: usize, name: &str) -> String {
    let status = world.status(index).unwrap_or_default();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let found = members.into_iter().find(|member| member["name"] == name).unwrap_or_default();
    found["state"].as_str().unwrap_or("").into()
}

/// Writes through one host until it works; how long that took.
#[expect(clippy::disallowed_methods, reason = "the test measures")]
fn write(world: &World, index: usize, name: &str) -> Duration {
    let began = Instant::now();
    let document = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    world.until("a write succeeds", || {
        let answer = world.api(index).post("/api/v1/namespaces/default/configmaps", &document);
        answer.is_ok() || answer.is_err_and(|error| error.to_string().contains("already exists"))
    });
    began.elapsed()
}

#[test]
fn seven_machines_die_one_after_another_down_to_two_and_the_api_goes_on() {
    let world = World::of(7, "dwindle");
    assert_eq!(voters(&world, 0).len(), 5);
    // The leader dies each time, the hardest case; host1 and one more are left.
    let mut left: Vec<usize> = (0..7).collect();
    for round in 0..5 {
        let witness = left[0];
        let leader = world.status(witness).unwrap()["leader"].as_str().unwrap_or("").to_string();
        let victim = left.iter().copied().skip(1).find(|index| world.host(*index).name() == leader);
        let victim = victim.unwrap_or(left[1]);
        let name = world.host(victim).name().to_string();
        world.host(victim).kill(Kind::Silent).unwrap();
        left.retain(|index| *index != victim);
        let back = write(&world, witness, &format!("after-{round}"));
        assert!(back < Duration::from_secs(15), "writes were back only after {back:?}");
        world.until("the dead one is known", || state_of(&world, witness, &name) == "dead");
        world.until("a majority of the voters lives", || {
            let voters = voters(&world, witness);
            let up =
                voters.iter().filter(|name| left.iter().any(|index| world.host(*index).name() == **name));
            let up = up.count();
            // With two machines left nobody can take a place; before that nobody dead keeps one.
            if left.len() > 2 { up == voters.len() && up >= 3 } else { up * 2 > voters.len() }
        });
    }
    assert_eq!(left.len(), 2);
    let text = world.run(left[0], &["skein", "cluster", "status"]);
    assert!(text.contains("2 of 3 voters answer: one more loss stops writes"), "{text}");
    // The last but one: no majority, and the one that is left says why and what to do.
    world.host(left[1]).kill(Kind::Silent).unwrap();
    world.until("the last one says what to do", || {
        let text = world.host(left[0]).run(["skein", "cluster", "status"]).unwrap();
        text.stdout.contains("1 of 3 voters answer, which is no majority")
            && text.stdout.contains("skein cluster recover")
    });
    let refused = world.fails(left[0], &["skein", "apply", "-f", "/dev/null"]);
    assert!(!refused.is_empty());
    for index in 0..5 {
        let name = format!("after-{index}");
        let found = world
            .api(left[0])
            .get(&format!("/api/v1/namespaces/default/configmaps/{name}?resourceVersion=0"));
        assert!(found.is_ok(), "{name} is readable without a majority: {found:?}");
    }
}

#[test]
fn a_reboot_of_one_of_three_changes_no_voters_and_a_drain_moves_the_vote() {
    let world = World::of(4, "drain");
    let first = voters(&world, 0);
    assert_eq!(first.len(), 3);
    let spare = (0..4).find(|index| !first.contains(&world.host(*index).name().to_string())).unwrap();
    let spare_name = world.host(spare).name().to_string();
    let drained = first.iter().find(|name| **name != "host1").unwrap().clone();
    world.run(0, &["skein", "node", "drain", &drained]);
    world.until("the spare votes instead", || {
        let now = voters(&world, 0);
        now.contains(&spare_name) && !now.contains(&drained) && now.len() == 3
    });
    assert!(world.run(0, &["skein", "get", "nodes"]).contains("SchedulingDisabled"));
    world.run(0, &["skein", "node", "undrain", &drained]);
    world.run(0, &["skein", "cluster", "voters", "1"]);
    world.until("one votes, as pinned", || voters(&world, 0).len() == 1);
    assert!(world.fails(0, &["skein", "cluster", "voters", "2"]).contains("auto, 1, 3, 5 or 7"));
    world.run(0, &["skein", "cluster", "voters", "auto"]);
    world.until("three again", || voters(&world, 0).len() == 3);
}

#[test]
fn a_reboot_within_three_machines_changes_nothing() {
    let world = World::of(3, "reboot");
    let before = voters(&world, 0);
    let victim = world.follower();
    let name = world.host(victim).name().to_string();
    world.host(victim).kill(Kind::Silent).unwrap();
    world.until("it is dead", || state_of(&world, 0, &name) == "dead");
    write(&world, 0, "meanwhile");
    assert_eq!(voters(&world, 0), before);
    world.host(victim).boot().unwrap();
    world.host(victim).start_agent().unwrap();
    world.until("it is back", || state_of(&world, 0, &name) == "alive");
    world.until("it has what was written meanwhile", || {
        world.api(victim).get("/api/v1/namespaces/default/configmaps/meanwhile?resourceVersion=0").is_ok()
    });
    assert_eq!(voters(&world, 0), before);
}

#[test]
fn voters_move_to_the_zones_that_nodes_are_labelled_with() {
    let world = World::of(4, "zones");
    let first = voters(&world, 0);
    let spare = (1..=4).map(|n| format!("host{n}")).find(|name| !first.contains(name)).unwrap();
    let leader = world.status(0).unwrap()["leader"].as_str().unwrap().to_string();
    let others: Vec<&String> = first.iter().filter(|name| **name != leader).collect();
    let label = |name: &str, zone: &str| {
        let patch = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
        world.api(0).merge(&format!("/api/v1/nodes/{name}"), &patch).unwrap();
    };
    // Two voters in one zone, and nobody in that of the spare.
    for (name, zone) in [(&leader, "a"), (others[0], "a"), (others[1], "b"), (&spare, "c")] {
        label(name, zone);
    }
    world.until("one votes in each zone", || {
        let now = voters(&world, 0);
        now.len() == 3 && now.contains(&spare) && now.contains(others[1])
    });
    let shown = world.get(0, "node", &spare);
    assert_eq!(shown["metadata"]["labels"]["topology.kubernetes.io/zone"], "c", "{shown}");
}
