//! The image store: good archives, bad ones, crashes, garbage.

use std::collections::BTreeSet;
use std::time::Duration;

use runtime::ids::Digest;
use runtime::image::{ArchiveError, ImageStore, PutError};
use serde_json::json;
use tar::EntryType;

use crate::harness::on_host;
use crate::images::{self, Archive, add_file, add_raw, busybox_layer};

struct Dir(std::path::PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("skein-store-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn open(&self) -> ImageStore {
        ImageStore::open(&self.0).unwrap()
    }

    fn files(&self, below: &str) -> usize {
        std::fs::read_dir(self.0.join(below)).unwrap().count()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn small() -> Archive {
    let mut tar = tar::Builder::new(Vec::new());
    add_file(&mut tar, "a", b"text", 0o644, 0);
    images::archive(&[tar.into_inner().unwrap()], json!({ "Cmd": ["/a"], "Labels": { "x": "y" } }))
}

#[test]
fn a_loaded_image_is_complete_and_named() {
    let dir = Dir::new("good");
    let store = dir.open();
    let archive = small();
    for _ in 0..2 {
        let loaded = store.load_archive(archive.tar().as_slice(), None).unwrap();
        assert_eq!((loaded[0].name.as_deref(), loaded[0].manifest), (Some("box:1"), archive.manifest));
        assert_eq!(loaded[0].blobs.len(), 3);
    }
    let packed = images::gzip(&archive.tar());
    let named = store.load_archive(packed.as_slice(), Some("mine:2")).unwrap();
    assert_eq!(named[0].name.as_deref(), Some("mine:2"));
    assert_eq!(store.references(&archive.manifest).unwrap().len(), 3);
    assert_eq!(store.missing(&archive.manifest).unwrap(), []);
    store.remove(&archive.layers[0]).unwrap();
    assert_eq!(store.missing(&archive.manifest).unwrap(), archive.layers);
    assert_eq!(dir.files("staging"), 0);
}

#[test]
fn every_cut_of_an_archive_is_refused_and_leaves_nothing() {
    let dir = Dir::new("cut");
    let store = dir.open();
    let tar = small().tar();
    // The last 1024 bytes are tar's end mark, which may lack.
    let blocks = (tar.len() - 1024) / 512;
    for cut in (0..blocks).map(|block| block * 512).chain((0..20).map(|i| i * 397 % tar.len().min(4000))) {
        let refused = store.load_archive(&tar[..cut], None);
        assert!(refused.is_err(), "cut at {cut} of {}", tar.len());
        assert_eq!((dir.files("blobs/sha256"), dir.files("staging")), (0, 0), "cut at {cut}");
    }
}

#[test]
fn wrong_archives_are_refused_with_the_reason() {
    let dir = Dir::new("wrong");
    let store = dir.open();
    let refuse = |change: &dyn Fn(&mut Archive)| {
        let mut archive = small();
        change(&mut archive);
        let error = store.load_archive(archive.tar().as_slice(), None).unwrap_err();
        assert_eq!((dir.files("blobs/sha256"), dir.files("staging")), (0, 0), "{error}");
        error
    };
    let corrupt = refuse(&|archive| {
        let layer = archive.layers[0];
        archive.blob(&layer)[20] ^= 1;
    });
    assert!(matches!(corrupt, ArchiveError::WrongDigest { .. }), "{corrupt}");
    let missing =
        refuse(&|archive| archive.files.retain(|(path, _)| !path.contains(&archive.layers[0].hex())));
    assert!(matches!(missing, ArchiveError::MissingBlob(_)), "{missing}");
    let not_oci = refuse(&|archive| archive.files.retain(|(path, _)| path != "index.json"));
    assert!(matches!(not_oci, ArchiveError::NotAnArchive), "{not_oci}");
    let index = refuse(&|archive| {
        let index = archive.files.iter_mut().find(|(path, _)| path == "index.json").unwrap();
        index.1 = String::from_utf8(index.1.clone()).unwrap().replace("\"size\":", "\"size\":1").into_bytes();
    });
    assert!(matches!(index, ArchiveError::WrongSize { .. }), "{index}");
    let json = refuse(&|archive| {
        archive.files.iter_mut().for_each(|f| {
            if f.0 == "index.json" {
                f.1.pop();
            }
        })
    });
    assert!(matches!(json, ArchiveError::BadIndex(_)), "{json}");
    let mut tar = tar::Builder::new(small().tar()[..small().tar().len() - 1024].to_vec());
    add_raw(&mut tar, EntryType::Regular, "blobs/sha256/../../../evil", "");
    let escape = store.load_archive(tar.into_inner().unwrap().as_slice(), None).unwrap_err();
    assert!(matches!(escape, ArchiveError::Escapes(_)), "{escape}");
    assert_eq!((dir.files("blobs/sha256"), dir.files("staging")), (0, 0));
}

#[test]
fn blobs_from_peers_are_verified() {
    let dir = Dir::new("put");
    let store = dir.open();
    let (bytes, digest) = (b"hello".as_slice(), Digest::of(b"hello"));
    assert!(matches!(store.put(&digest, 5, b"hellO".as_slice()), Err(PutError::WrongDigest { .. })));
    assert!(matches!(store.put(&digest, 4, bytes), Err(PutError::WrongSize { .. })));
    assert!(matches!(store.put(&digest, 6, bytes), Err(PutError::WrongSize { .. })));
    assert!(!store.has(&digest) && dir.files("staging") == 0);
    let mut cut_off = store.ingest(&digest, 5).unwrap();
    cut_off.write(b"hel").unwrap();
    drop(cut_off);
    assert_eq!(dir.files("staging"), 0);
    store.put(&digest, 5, bytes).unwrap();
    assert_eq!(store.list().unwrap(), [(digest, 5)]);
}

#[test]
fn leftovers_of_a_crash_are_cleared_and_garbage_is_collected() {
    let dir = Dir::new("crash");
    drop(dir.open());
    std::fs::write(dir.0.join("staging/0"), "half a blob").unwrap();
    std::fs::create_dir_all(dir.0.join("staging/1/half/a/layer")).unwrap();
    let store = dir.open();
    assert_eq!(dir.files("staging"), 0);
    let archive = small();
    store.load_archive(archive.tar().as_slice(), None).unwrap();
    store.unpacked(&archive.manifest).unwrap();
    store.put(&Digest::of(b"stray"), 5, b"stray".as_slice()).unwrap();
    let live = BTreeSet::from([archive.manifest]);
    let young = store.collect_garbage(&BTreeSet::new(), Duration::from_secs(60)).unwrap();
    assert_eq!(young, Default::default(), "what is young may be about to be used");
    assert_eq!(store.collect_garbage(&live, Duration::ZERO).unwrap().blobs, [Digest::of(b"stray")]);
    let all = store.collect_garbage(&BTreeSet::new(), Duration::ZERO).unwrap();
    assert_eq!((all.blobs.len(), all.layers.len(), dir.files("layers")), (3, 1, 0));
}

#[test]
fn upper_layers_hide_replace_and_link() {
    on_host(async |host| {
        let mut upper = tar::Builder::new(Vec::new());
        let mut empty = |name: &str| {
            upper
                .append_data(&mut images::header(EntryType::Regular, 0o644, 0), name, std::io::empty())
                .unwrap();
        };
        empty("etc/.wh.plain");
        empty("home/.wh..wh..opq");
        add_file(&mut upper, "home/new", b"new\n", 0o4751, 1000);
        let mut link = images::header(EntryType::Link, 0o644, 0);
        upper.append_link(&mut link, "home/hard", "home/new").unwrap();
        let mut third = tar::Builder::new(Vec::new());
        add_file(&mut third, "etc/group", b"replaced\n", 0o644, 0);
        let layers = [busybox_layer(), upper.into_inner().unwrap(), third.into_inner().unwrap()];
        let image = host.load(&images::archive(&layers, json!({})));
        let script =
            "ls /etc/plain; ls /home; cat /etc/group; stat -c '%a %u %h' /home/new; ls -a / | grep wh";
        let (log, _) = host.output("p1", |spec| spec.image = image, script).await;
        let expected = "ls: /etc/plain: No such file or directory\nhard\nnew\nreplaced\n4751 1000 2\n";
        let mut lines: Vec<&str> = log.lines().collect();
        let mut wanted: Vec<&str> = expected.lines().collect();
        lines.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(lines, wanted);
        let layers = host.config.data.join("layers");
        let before: Vec<_> = std::fs::read_dir(&layers).unwrap().flatten().map(|e| e.file_name()).collect();
        host.output("p2", |spec| spec.image = image, "true").await;
        assert_eq!(std::fs::read_dir(&layers).unwrap().count(), before.len(), "unpacked once");
    });
}

/// The archives users have are skopeo's.
#[test]
fn an_archive_written_by_skopeo_loads() {
    let dir = Dir::new("skopeo");
    let (ours, theirs) = (dir.0.join("ours.tar"), dir.0.join("theirs.tar"));
    std::fs::write(&ours, small().tar()).unwrap();
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet"]);
    skopeo.arg(format!("oci-archive:{}", ours.display()));
    skopeo.arg(format!("oci-archive:{}:box:2", theirs.display()));
    match skopeo.status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            eprintln!("skipped: install skopeo to run this test ({error})");
            return;
        }
    }
    let loaded = dir.open().load_archive_file(&theirs, None).unwrap();
    assert_eq!((loaded[0].name.as_deref(), loaded[0].manifest), (Some("box:2"), small().manifest));
}
