//! Where an image's bytes lie: what a load waits for, whom a machine without them asks, what is left after `skein image rm`.

use std::path::PathBuf;

use serde_json::{Value, json};
use testbed::Kind;

use crate::images::image_with;
use crate::world::{World, pod};

/// Writes an archive of `NAME:1`, whose own file holds its name, to where the host sees it.
fn archive(world: &World, index: usize, name: &str) {
    let bytes = image_with("www/name", format!("{name}\n").as_bytes(), &format!("{name}:1"));
    std::fs::write(world.host(index).srv_path().join(format!("{name}.tar")), bytes).unwrap();
}

fn load(world: &World, index: usize, name: &str) -> String {
    world.run(index, &["skein", "image", "load", &format!("/srv/{name}.tar")])
}

/// A pod of that image, on that host, that says the image's name.
fn reader(world: &World, asked: usize, name: &str, index: usize) {
    let mut reader = pod(name, "cat /www/name", "Never");
    reader["spec"]["containers"][0]["image"] = json!(format!("{name}:1"));
    reader["spec"]["nodeName"] = json!(world.host(index).name());
    world.apply(asked, &reader);
    world.until("the image runs there", || world.phase(asked, name) == "Succeeded");
    assert_eq!(world.run(asked, &["skein", "logs", name]), format!("{name}\n"));
}

fn record(world: &World, asked: usize, name: &str) -> Option<Value> {
    let reference = format!("docker.io/library/{name}:1");
    world.get_list(asked, "images").into_iter().find(|image| image["spec"]["reference"] == reference)
}

/// Indices of the hosts that keep the image, in the order in which they are asked.
fn holders(world: &World, asked: usize, name: &str) -> Vec<usize> {
    let image = record(world, asked, name).unwrap_or_default();
    let named = image["status"]["holders"].as_array().cloned().unwrap_or_default();
    let index = |name: &Value| (0..world.bed.hosts().len()).find(|index| world.host(*index).name() == name);
    named.iter().filter_map(index).collect()
}

/// The file of the image's largest blob.
fn layer(world: &World, asked: usize, index: usize, name: &str) -> PathBuf {
    let image = record(world, asked, name).unwrap();
    let blobs = image["spec"]["blobs"].as_array().unwrap();
    let largest = blobs.iter().max_by_key(|blob| blob["size"].as_u64()).unwrap();
    let digest = largest["digest"].as_str().unwrap().replace("sha256:", "");
    world.host(index).data_path().join("blobs/sha256").join(digest)
}

fn an_image_goes_by_its_name_and_its_pods_say_so(world: &World) {
    world.run(0, &["skein", "image", "load", "--name", "gone:1", "/srv/small.tar"]);
    let listed = || world.run(1, &["skein", "image", "ls"]);
    assert!(listed().contains("docker.io/library/gone:1"), "{}", listed());
    assert_eq!(world.run(1, &["skein", "image", "rm", "gone:1"]), "image/gone:1 removed\n");
    let left = world.run(0, &["skein", "image", "ls"]);
    assert!(!left.contains("gone:1") && left.contains("docker.io/library/small:1"), "{left}");
    let said = world.fails(0, &["skein", "image", "rm", "gone:1"]);
    assert!(said.starts_with("error: ") && said.contains("\"gone:1\" not found"), "{said}");
    let mut orphan = pod("orphan", "true", "Never");
    orphan["spec"]["containers"][0]["image"] = json!("gone:1");
    world.apply(0, &orphan);
    world.until("its pod says that the image is not there", || {
        let text = world.run(0, &["skein", "describe", "pod", "orphan"]);
        text.contains("image gone:1 is not in this cluster: load it with 'skein image load FILE'")
    });
    world.run(0, &["skein", "delete", "pod", "orphan"]);
}

fn a_load_that_no_other_machine_can_copy_is_not_acknowledged(world: &World) {
    archive(world, 0, "second");
    let staging = "/var/lib/skein/staging";
    for index in [1, 2] {
        world.run(index, &["mount", "-t", "tmpfs", "-o", "ro", "none", staging]);
    }
    let said = world.fails(0, &["skein", "image", "load", "/srv/second.tar"]);
    let words = "docker.io/library/second:1 is on this machine only: no other live machine took a copy, so it is not acknowledged";
    assert!(said.contains(words) && said.contains("load it again"), "{said}");
    assert_eq!(record(world, 0, "second"), None, "nothing is recorded");
    for index in [1, 2] {
        world.run(index, &["umount", staging]);
    }
    let said = load(world, 0, "second");
    assert!(said.contains(" on host1, host"), "{said}");
}

fn a_holder_with_bad_bytes_is_passed_over(world: &World) {
    let kept = holders(world, 0, "second");
    assert_eq!((kept.len(), kept[0]), (2, 0), "the first is asked first");
    let other = (0..3).find(|index| !kept.contains(index)).unwrap();
    let (good, bad) = (layer(world, 0, kept[1], "second"), layer(world, 0, 0, "second"));
    let mut bytes = std::fs::read(&bad).unwrap();
    let whole = bytes.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&bad, &bytes).unwrap();
    reader(world, 0, "second", other);
    let fetched = std::fs::read(layer(world, 0, other, "second")).unwrap();
    assert!(fetched == whole && fetched == std::fs::read(good).unwrap(), "the second holder's bytes");
    std::fs::write(&bad, &whole).unwrap();
}

fn a_dead_holder_is_passed_over(world: &World) {
    let first = world.follower();
    archive(world, first, "third");
    load(world, first, "third");
    let kept = holders(world, 0, "third");
    assert_eq!((kept.len(), kept[0]), (2, first));
    let other = (0..3).find(|index| !kept.contains(index)).unwrap();
    assert!(!layer(world, 0, other, "third").exists());
    world.host(first).kill(Kind::Silent).unwrap();
    reader(world, 0, "third", other);
}

#[test]
fn images_are_kept_twice_fetched_from_any_holder_and_gone_when_removed() {
    let world = World::of(3, "holders");
    an_image_goes_by_its_name_and_its_pods_say_so(&world);
    a_load_that_no_other_machine_can_copy_is_not_acknowledged(&world);
    a_holder_with_bad_bytes_is_passed_over(&world);
    a_dead_holder_is_passed_over(&world);
}

#[test]
fn a_load_while_the_only_other_machine_is_dead_is_copied_when_it_is_back() {
    let world = World::of(2, "only");
    archive(&world, 0, "second");
    archive(&world, 0, "third");
    world.host(1).kill(Kind::Silent).unwrap();
    // Before that it counts as one that should take a copy.
    world.until("it is dead", || {
        let members = world.status(0).unwrap_or_default()["members"].clone();
        members.as_array().is_some_and(|members| members.iter().any(|member| member["state"] == "dead"))
    });
    let said = load(&world, 0, "second");
    assert!(said.trim().ends_with(" on host1"), "it is the only one alive: {said}");
    world.host(1).boot().unwrap();
    world.host(1).start_agent().unwrap();
    world.until("both keep it", || holders(&world, 0, "second") == [0, 1]);
    let copy = std::fs::read(layer(&world, 0, 1, "second")).unwrap();
    assert!(copy == std::fs::read(layer(&world, 0, 0, "second")).unwrap());
    let said = load(&world, 0, "third");
    assert!(said.trim().ends_with(" on host1, host2"), "{said}");
    // Whoever dies now, it runs.
    reader(&world, 0, "third", 1);
}
