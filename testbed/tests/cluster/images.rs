//! Images through the real command: archives that are no good, removal, copies on other machines and where they come from.

use std::io::Read;

use serde_json::json;
use testbed::small_image;

use crate::world::{World, pod};

/// An archive of an image whose blobs no machine has yet: the small one with a file of its own.
pub fn image_with(path: &str, bytes: &[u8], name: &str) -> Vec<u8> {
    let mut layer = small_image::layer().unwrap();
    layer.truncate(layer.len() - 1024);
    let mut tar = tar::Builder::new(layer);
    add(&mut tar, path, bytes);
    small_image::archive_of(&tar.into_inner().unwrap(), name).unwrap()
}

/// Names and contents of a tar's files.
fn files(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(archive);
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_string(), bytes)
    });
    entries.collect()
}

fn packed(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        add(&mut tar, path, bytes);
    }
    tar.into_inner().unwrap()
}

/// With the path as it is: the crate's own way refuses those that lead out.
fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

/// The archive with one file changed, or left out.
fn changed(archive: &[u8], path: &str, change: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let files = files(archive).into_iter().filter_map(|(name, bytes)| match name == path {
        true => Some((name, change(bytes)?)),
        false => Some((name, bytes)),
    });
    packed(&files.collect::<Vec<_>>())
}

fn bad_archives(good: &[u8]) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let all = files(good);
    let largest = all.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let (layer, size) = (largest.0.clone(), largest.1.len());
    let in_layer = good.windows(64).position(|window| window == &largest.1[512 * 20..512 * 20 + 64]).unwrap();
    let mut flipped = good.to_vec();
    flipped[in_layer] ^= 1;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let other = format!("sha256:{}", "0".repeat(64));
    let wrong_digest = changed(good, "index.json", |bytes| {
        let mut index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        index["manifests"][0]["digest"] = json!(other);
        Some(index.to_string().into_bytes())
    });
    let mut escape = tar::Builder::new(Vec::new());
    add(&mut escape, "../../etc/evil", b"x");
    let docker = packed(&[
        (
            "manifest.json".into(),
            br#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l/layer.tar"]}]"#.to_vec(),
        ),
        ("c.json".into(), b"{}".to_vec()),
        ("l/layer.tar".into(), largest.1.clone()),
    ]);
    vec![
        ("empty", Vec::new(), "no index.json: not an OCI archive"),
        ("cut in the first header", good[..100].to_vec(), "damaged or cut off"),
        ("cut in the layer", good[..size / 2].to_vec(), "damaged or cut off"),
        ("cut near the end", good[..good.len() - 2048].to_vec(), "make it again"),
        ("a flipped byte in the layer", flipped, "has the digest"),
        ("a wrong digest in the index", wrong_digest, "lacks the blob sha256:0000"),
        ("no layer", changed(good, &layer, |_| None), "lacks the blob"),
        ("no index", changed(good, "index.json", |_| None), "no index.json: not an OCI archive"),
        (
            "half an index",
            changed(good, "index.json", |b| Some(text(&b)[..20].into())),
            "index.json is not valid",
        ),
        ("of docker", docker, "no index.json: not an OCI archive; write one with `skopeo copy"),
        ("no tar at all", "this is a text\n".repeat(200).into_bytes(), "damaged or cut off"),
        ("a gzip that ends", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2], "damaged or cut off"),
        ("a path that leads out", escape.into_inner().unwrap(), "leads out of the archive"),
    ]
}

#[test]
fn bad_archives_are_refused_with_the_reason_and_the_store_keeps_what_it_had() {
    let world = World::of(1, "archive");
    let held = || {
        let line = "cd /var/lib/skein && find blobs staging | sort";
        (world.get_list(0, "images"), world.run(0, &["sh", "-c", line]))
    };
    let before = held();
    // Blobs that the store does not have: what it has need not come again.
    let fresh = image_with("www/other", b"other\n", "other:1");
    let file = world.host(0).srv_path().join("bad.tar");
    for (what, bytes, words) in bad_archives(&fresh) {
        std::fs::write(&file, bytes).unwrap();
        let said = world.fails(0, &["skein", "image", "load", "/srv/bad.tar"]);
        assert!(said.starts_with("error: ") && said.contains(words), "{what}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{what}: {said}");
        assert_eq!(held(), before, "{what}");
    }
    std::fs::write(&file, &fresh).unwrap();
    world.run(0, &["skein", "image", "load", "/srv/bad.tar"]);
    let mut other = pod("o", "cat /www/other", "Never");
    other["spec"]["containers"][0]["image"] = json!("other:1");
    world.apply(0, &other);
    world.until("the whole archive is an image that runs", || world.phase(0, "o") == "Succeeded");
    assert_eq!(world.run(0, &["skein", "logs", "o"]), "other\n");
}

#[test]
fn layers_that_lead_out_of_their_image_are_named_and_write_nothing() {
    let world = World::of(1, "escape");
    let archive = image_with("../../../../../../srv/evil", b"x", "evil:1");
    std::fs::write(world.host(0).srv_path().join("evil.tar"), archive).unwrap();
    world.run(0, &["skein", "image", "load", "/srv/evil.tar"]);
    let mut evil = pod("e", "true", "Never");
    evil["spec"]["containers"][0]["image"] = json!("evil:1");
    world.apply(0, &evil);
    world.until("the entry is named", || {
        world.run(0, &["skein", "describe", "pod", "e"]).contains("srv/evil")
    });
    assert!(!world.host(0).srv_path().join("evil").exists(), "nothing was written");
    world.apply(0, &pod("g", "true", "Never"));
    world.until("other images run", || world.phase(0, "g") == "Succeeded");
}

#[test]
fn a_missing_image_is_a_reason_that_kubernetes_users_know_and_its_arrival_starts_the_pod() {
    let world = World::of(1, "missing");
    let mut missing = pod("m", "true", "Never");
    missing["spec"]["containers"][0]["image"] = json!("late:1");
    world.apply(0, &missing);
    world.until("the pod waits for its image", || {
        world.run(0, &["skein", "get", "pods"]).contains("ImagePullBackOff")
    });
    let text = world.run(0, &["skein", "describe", "pod", "m"]);
    for words in [
        "ImagePullBackOff",
        "Back-off pulling image \"late:1\"",
        "image late:1 is not in this cluster: load it with",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(world.run(0, &["skein", "events"]).contains("image late:1 is not in this cluster"));
    world.run(0, &["skein", "image", "load", "--name", "late:1", "/srv/small.tar"]);
    world.until("the pod has run", || world.phase(0, "m") == "Succeeded");
}
