//! Machines that do not vote: fed by any other, served from their own state, promoted when a voter dies.

use serde_json::{Value, json};
use testbed::Kind;

use crate::world::World;

fn role(world: &World, index: usize, name: &str) -> String {
    let status = world.status(index).unwrap_or_default();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let found = members.into_iter().find(|member| member["name"] == name).unwrap_or_default();
    found["role"].as_str().unwrap_or("").into()
}

fn votes(world: &World, index: usize, name: &str) -> bool {
    world
        .status(index)
        .is_some_and(|status| status["voters"].as_array().into_iter().flatten().any(|voter| voter == name))
}

/// Who feeds a host.
fn feeder(world: &World, index: usize) -> Option<String> {
    world.status(index)?["feed"]["from"].as_str().map(String::from)
}

fn write(world: &World, index: usize, name: &str) {
    let document = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    world.until("a write succeeds", || {
        let answer = world.api(index).post("/api/v1/namespaces/default/configmaps", &document);
        answer.is_ok() || answer.is_err_and(|error| error.to_string().contains("already exists"))
    });
}

fn shows(world: &World, index: usize, name: &str, query: &str) -> bool {
    world.api(index).get(&format!("/api/v1/namespaces/default/configmaps/{name}{query}")).is_ok()
}

#[test]
fn an_observer_whose_feeder_dies_reads_on_and_one_that_may_vote_takes_the_dead_ones_place() {
    let world = World::bare(5, "observers");
    world.run(0, &["skein", "init"]);
    for index in 1..4 {
        world.join(0, index);
    }
    let text = world.run(0, &["skein", "token", "create", "--no-voter"]);
    let line = text.lines().find(|line| line.trim().starts_with("skein join")).unwrap();
    world.run(4, &line.split_whitespace().collect::<Vec<_>>());
    let name = |index: usize| world.host(index).name().to_string();
    let index_of = |wanted: &str| (0..5).find(|index| name(*index) == wanted).unwrap();
    let voters = || (0..4).filter(|index| votes(&world, 0, &name(*index))).collect::<Vec<_>>();
    world.until("three of four vote", || voters().len() == 3);
    let spare = (0..4).find(|index| !voters().contains(index)).unwrap();
    // The leader fed whoever came before there were other voters: after a few seconds others do. Not always voters: who is one feed away from
    // one does not ask for a place of theirs. The voter that feeds one of both, or both, is to die.
    let mut dead = String::new();
    world.until("no observer is fed by the leader", || {
        let leader = world.status(0).unwrap_or_default()["leader"].clone();
        let (Some(direct), Some(of_spare)) = (feeder(&world, 4), feeder(&world, spare)) else { return false };
        dead = if direct == name(spare) { of_spare.clone() } else { direct.clone() };
        leader != direct && leader != of_spare && votes(&world, 0, &dead)
    });
    assert_eq!([role(&world, 0, &name(spare)), role(&world, 4, &name(4))], ["observer", "observer"]);
    assert!(world.run(0, &["skein", "node", "ls"]).contains("observer"));
    write(&world, 4, "before");
    assert!(shows(&world, 4, "before", ""), "a linearizable read at an observer");
    world.host(index_of(&dead)).kill(Kind::Silent).unwrap();
    let left: Vec<usize> = (0..4).filter(|index| name(*index) != dead).collect();
    assert!(shows(&world, 4, "before", "?resourceVersion=0"), "it reads on");
    write(&world, left[0], "after");
    world.until("its state goes on", || shows(&world, 4, "after", "?resourceVersion=0"));
    assert_ne!(feeder(&world, 4), Some(dead.clone()));
    world.until("the spare votes in the dead one's place", || {
        votes(&world, left[0], &name(spare)) && !votes(&world, left[0], &dead)
    });
    world.until("a voter is not fed", || {
        world
            .status(spare)
            .is_some_and(|status| status["feed"] == Value::Null && votes(&world, spare, &name(spare)))
    });
    assert_eq!(role(&world, 4, &name(4)), "observer");
    assert!(shows(&world, 4, "after", ""));
}
