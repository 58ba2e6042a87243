//! Voters choose themselves: as machines come, die one after another, are drained, and as an operator says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

/// The longest that a leader's death may keep anybody from the API: its silence is noticed, another one is elected, all hear of it.
/// (Seen: 0.4 to 0.9 s. A read that met nobody takes three seconds and is asked again, so a slow machine is allowed one of these.)
const WITHOUT: Duration = Duration::from_secs(6);

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Writes through one host until it works.
fn write(world: &World, index: usize, name: &str) {
    let document = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    world.until("a write succeeds", || {
        let answer = world.api(index).post(MAPS, &document);
        answer.is_ok() || answer.is_err_and(|error| error.to_string().contains("already exists"))
    });
}

/// Asks again and again, with one last time after `done`; the longest that an answer took.
fn longest(done: &AtomicBool, mut ask: impl FnMut()) -> Duration {
    let mut longest = Duration::ZERO;
    loop {
        let last = done.load(Ordering::SeqCst);
        let began = testbed::clock::now();
        ask();
        longest = longest.max(began.elapsed());
        if last {
            return longest;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills a host while all others are asked for the newest state and one of them writes, until another one leads. Answers the longest
/// wait of each, and what was written.
fn kill_under_load(
    world: &World,
    victim: usize,
    left: &[usize],
    round: usize,
) -> (Vec<String>, Vec<Duration>) {
    /// Ends those that ask, also where the killing fails.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let done = AtomicBool::new(false);
    let done = &done;
    let dead = world.host(victim).name();
    testbed::clock::threads(|scope| {
        let reads = left.iter().map(|index| {
            let read = || world.until("a read succeeds", || world.api(*index).get(MAPS).is_ok());
            scope.spawn(move || longest(done, read))
        });
        let reads: Vec<_> = reads.collect();
        let writes = scope.spawn(move || {
            let mut names = Vec::new();
            let took = longest(done, || {
                let name = format!("round-{round}-{}", names.len());
                write(world, left[0], &name);
                names.push(name);
            });
            (names, took)
        });
        let end = End(done);
        world.host(victim).kill(Kind::Silent).unwrap();
        world.until("another one leads", || {
            let leader = world.status(left[0]).unwrap_or_default()["leader"].clone();
            leader.is_string() && leader != dead
        });
        drop(end);
        let (names, took) = writes.join().unwrap();
        let reads = reads.into_iter().map(|read| read.join().unwrap());
        (names, reads.chain([took]).collect())
    })
}

#[test]
fn seven_machines_die_one_after_another_down_to_two_and_the_api_goes_on() {
    let world = World::of(7, "dwindle");
    assert_eq!(voters(&world, 0).len(), 5);
    // The leader dies each time, the hardest case.
    let mut left: Vec<usize> = (0..7).collect();
    let mut written = Vec::new();
    for round in 0..5 {
        let leads = || {
            let leader = world.status(left[0]).unwrap_or_default()["leader"].clone();
            left.iter().copied().find(|index| leader == world.host(*index).name())
        };
        world.until("somebody leads", || leads().is_some());
        let Some(victim) = leads() else { panic!("who led has ceased to at once") };
        let name = world.host(victim).name().to_string();
        left.retain(|index| *index != victim);
        let witness = left[0];
        let (names, took) = kill_under_load(&world, victim, &left, round);
        eprintln!("{} machines left: reads, and last writes: {took:?}", left.len());
        assert!(took.iter().all(|took| *took < WITHOUT), "too long without the API: {took:?}");
        written.extend(names);
        world.until("the dead one is known", || state_of(&world, witness, &name) == "dead");
        world.until("a majority of the voters lives", || {
            let voters = voters(&world, witness);
            let up =
                voters.iter().filter(|name| left.iter().any(|index| world.host(*index).name() == **name));
            let up = up.count();
            // While a dead one is exchanged, the set before counts too: no loss is survived then, and the status says whose.
            let advice = world.status(witness).unwrap_or_default()["advice"].to_string();
            if advice.contains("does not survive") {
                return false;
            }
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
    let late = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}});
    let apply = world.host(left[0]).command(["skein", "apply", "-f", "-"]).stdin(late.to_string());
    let refused = apply.run().unwrap();
    assert!(!refused.success(), "{}", refused.stdout);
    assert!(
        refused
            .stderr
            .contains("no leader answered within 3 s: this machine may be cut off from the majority"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("see 'skein cluster status'"), "{}", refused.stderr);
    let late = world.api(left[0]).get(&format!("{MAPS}/late?resourceVersion=0"));
    assert!(late.is_err_and(|error| error.to_string().contains("404")), "nothing was written");
    for name in written {
        let found = world.api(left[0]).get(&format!("{MAPS}/{name}?resourceVersion=0"));
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
