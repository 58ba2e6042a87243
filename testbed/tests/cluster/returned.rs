//! A machine that was cut off, declared dead and replaced, while all of its pods ran on: what it does once it hears of the others again.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::traces::traces;
use crate::world::{World, app};

/// Uids of the application's pods, with their nodes.
fn uids(world: &World, asked: usize, app: &str) -> BTreeMap<String, String> {
    let path = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}");
    let list = world.api(asked).get(&path).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let pods = list["items"].as_array().unwrap().iter();
    pods.map(|pod| (text(&pod["metadata"]["uid"]), text(&pod["spec"]["nodeName"]))).collect()
}

/// All that a host holds of a pod: mounts, cgroups, files, and the processes that were started for it.
fn held(world: &World, index: usize, uid: &str) -> Vec<String> {
    let look = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline && echo; done 2>/dev/null; true";
    let processes = world.run(index, &["sh", "-c", look]);
    let processes = processes.lines().map(|line| format!("process {line}"));
    traces(world.host(index)).into_iter().chain(processes).filter(|line| line.contains(uid)).collect()
}

fn state(world: &World, seen_by: usize, name: &str) -> String {
    let status = world.status(seen_by).unwrap_or_default();
    let found = status["members"].as_array().into_iter().flatten().find(|member| member["name"] == name);
    found.and_then(|member| member["state"].as_str()).unwrap_or("").into()
}

#[test]
fn a_machine_that_was_cut_off_ends_its_replaced_pods_once_it_is_back() {
    let world = World::of(3, "returned");
    world.apply(0, &app("web", 6));
    world.until("six pods run", || world.running(0, "web").len() == 6);
    let victim = world.follower();
    let name = world.host(victim).name().to_owned();
    let old: Vec<String> =
        uids(&world, 0, "web").into_iter().filter(|(_, node)| *node == name).map(|(uid, _)| uid).collect();
    assert!(!old.is_empty(), "pods are spread over all hosts");
    let others: Vec<&str> =
        (0..3).filter(|index| *index != victim).map(|index| world.host(index).name()).collect();
    world.bed.partition(&[&[&name], &others]).unwrap();
    world.until("it is dead", || state(&world, 0, &name) == "dead");
    world.until("six pods run on the other two", || {
        let nodes = world.running(0, "web");
        nodes.len() == 6 && !nodes.contains(&name)
    });
    let agent = world.host(victim).agent_pid().unwrap();
    for uid in &old {
        let held = held(&world, victim, uid);
        for what in ["process skein shim", "/sys/fs/cgroup/", "/run/skein/pods/", "/var/lib/skein/pods/"] {
            assert!(
                held.iter().any(|line| line.starts_with(what)),
                "it runs on there: no {what} in {held:?}"
            );
        }
    }
    world.bed.heal().unwrap();
    world.until("it is alive", || state(&world, 0, &name) == "alive");
    for uid in &old {
        world.until("nothing of its old pods is left", || held(&world, victim, uid).is_empty());
    }
    assert_eq!(world.host(victim).agent_pid().unwrap(), agent, "the same agent all the time");
    let now = uids(&world, 0, "web");
    assert!(now.len() == 6 && old.iter().all(|uid| !now.contains_key(uid)), "no surplus pods: {now:?}");
    for (uid, node) in now {
        let index = (0..3).find(|index| world.host(*index).name() == node).unwrap();
        assert!(!held(&world, index, &uid).is_empty(), "the new ones are where they were");
    }
}
