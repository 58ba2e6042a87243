//! Clusters whose machines run different binaries.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use raft_store::*;

use crate::world::{Event, World};

/// Three of an older binary, with leaders that raise the version as the agent's do.
fn three_old() -> World {
    let old = (1..=3).map(|id| (id, version::FIRST)).collect::<BTreeMap<u64, Version>>();
    let mut world = World::of_binaries(11, 3, old);
    assert!(world.run_until(2_000, |w| w.leader().is_some()));
    world.grow(&[2, 3], &[]);
    world.piloted = true;
    world.at(world.now + 1, Event::Pilot);
    world
}

/// The node runs our binary from now on.
fn upgrade(world: &mut World, id: u64) {
    world.crash(id);
    world.binaries.remove(&id);
    world.restart(id);
    let back = |w: &World| w.leader().is_some() && w.view(id).applied() == w.view(1).applied();
    assert!(world.run_until(10_000, back), "{id} is back");
    world.run_for(2_000);
}

fn versions(world: &World) -> Vec<u32> {
    (1..=3).map(|id| world.view(id).version().0).collect()
}

#[test]
fn a_cluster_is_raised_when_its_last_member_is_upgraded_and_not_before() {
    let mut world = three_old();
    world.run_for(3_000);
    assert_eq!(versions(&world), [1, 1, 1]);
    for id in [2, 3] {
        upgrade(&mut world, id);
        assert_eq!(versions(&world), [1, 1, 1], "one is still old");
    }
    upgrade(&mut world, 1);
    assert_eq!(versions(&world), [Supported::OURS.newest.0; 3]);
    // What is raised stays so, also through a snapshot and a restart.
    (1..=3).for_each(|id| upgrade(&mut world, id));
    assert_eq!(versions(&world), [Supported::OURS.newest.0; 3]);
}

#[test]
fn a_new_version_is_not_proposed_by_a_leader_whose_own_binary_is_older() {
    let mut world = three_old();
    world.piloted = false;
    let leader = world.leader().unwrap();
    let id = world.clients.fresh_proposal();
    let epoch = world.view(leader).epoch();
    let command = Command::SetVersion { version: Version(2), epoch };
    world.input(leader, Input::Propose { id, command });
    world.run_for(1_000);
    let refused = Outcome::Refused(Refusal::Version);
    assert!(world.answers.iter().any(|(_, of, outcome)| *of == id && *outcome == refused));
    assert_eq!(versions(&world), [1, 1, 1]);
}

#[test]
fn an_old_binary_that_meets_a_newer_version_stops_and_names_it() {
    let mut world = three_old();
    world.piloted = false;
    // Somebody raises it all the same, while one is old.
    (1..=2).for_each(|id| upgrade(&mut world, id));
    world.run_until(5_000, |w| w.leader().is_some());
    let leader = world.leader().unwrap();
    if leader == 3 {
        world.input(leader, Input::TransferLeadership { to: NodeId(1) });
        assert!(world.run_until(5_000, |w| w.leader().is_some_and(|leader| leader != 3)));
    }
    let leader = world.leader().unwrap();
    let id = world.clients.fresh_proposal();
    let epoch = world.view(leader).epoch();
    let command = Command::SetVersion { version: Version(2), epoch };
    world.input(leader, Input::Propose { id, command });
    let said = catch_unwind(AssertUnwindSafe(|| world.run_for(3_000))).unwrap_err();
    let said = said.downcast_ref::<String>().cloned().unwrap_or_default();
    let wanted =
        "it needs cluster version 2, and this binary supports up to 1; upgrade skein on this machine";
    assert!(said.contains("node 3") && said.contains(wanted), "{said}");
    let config = world.config(3, 9);
    // A store that was written at the newer version is not opened at all.
    let view = world.view(leader);
    assert_eq!(view.version(), Version(2));
    let disk = sim_disk::MemDisk::new();
    let backup = rescue::backup(&view, crate::world::CLUSTER);
    let (rescued, _) = rescue::Rescued::from_backup(&backup).unwrap();
    let ours = Config { supported: Supported::OURS, ..config.clone() };
    drop(rescued.begin_anew(disk.clone(), ours, &Transaction::default()).unwrap());
    let error = Replica::open(disk, config).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("is of a cluster at version 2, and this binary supports 1 to 1"), "{error}");
}
