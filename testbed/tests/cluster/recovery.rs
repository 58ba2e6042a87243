//! The majority is lost for good, and everything is lost but a file.

use serde_json::json;
use testbed::Kind;

use crate::world::{World, app, pod};

fn config_map(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": name}})
}

#[test]
fn after_the_loss_of_two_of_three_voters_the_cluster_goes_on_by_one_command() {
    let world = World::of(4, "recover");
    let status = world.status(0).unwrap();
    let voters: Vec<String> =
        status["voters"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().into()).collect();
    let index = |name: &str| (0..4).find(|index| world.host(*index).name() == name).unwrap();
    let (survivor, lost) = (index(&voters[0]), [index(&voters[1]), index(&voters[2])]);
    let other = (0..4).find(|index| *index != survivor && !lost.contains(index)).unwrap();
    world.apply(survivor, &config_map("before"));
    let mut sleeper = pod("s", "sleep 1000", "Always");
    sleeper["spec"]["nodeName"] = json!(world.host(other).name());
    world.apply(survivor, &sleeper);
    world.until("the pod runs", || world.phase(survivor, "s") == "Running");
    let started = world.get(survivor, "pod", "s")["status"]["containerStatuses"][0].clone();
    let revision = world.status(survivor).unwrap()["revision"].as_u64().unwrap();
    assert!(world.fails(survivor, &["skein", "cluster", "recover"]).contains("nothing to recover"));

    lost.iter().for_each(|index| world.host(*index).kill(Kind::Silent).unwrap());
    world.until("the majority is gone", || {
        world.fails(survivor, &["skein", "cluster", "recover"]).contains("cannot be reached")
    });
    let refused = world.fails(survivor, &["skein", "cluster", "recover"]);
    assert!(refused.contains(&format!("--lost {}", voters[1])), "{refused}");
    let with = |last: &[&str]| {
        let words = ["skein", "cluster", "recover", "--lost", &voters[1], "--lost", &voters[2]];
        words.iter().chain(last).map(|word| (*word).to_string()).collect::<Vec<String>>()
    };
    let words = with(&[]);
    let shown = world.run(survivor, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(shown.contains("this log") && shown.contains("Nothing was done"), "{shown}");
    for words in
        [world.host(survivor).name(), world.host(other).name(), "not known to be confirmed", "May be missing"]
    {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    let words = with(&["--yes"]);
    world.run(survivor, &words.iter().map(String::as_str).collect::<Vec<_>>());
    world.until("a new epoch with a leader and both survivors", || {
        [survivor, other].iter().all(|index| {
            world.status(*index).is_some_and(|status| {
                status["epoch"] == 1
                    && status["leader"].is_string()
                    && status["members"].as_array().is_some_and(|members| members.len() == 2)
            })
        })
    });
    for index in [survivor, other] {
        assert_eq!(world.get(index, "configmap", "before")["data"]["k"], "before");
        world.apply(index, &config_map(&format!("after-{index}")));
    }
    assert!(world.status(survivor).unwrap()["revision"].as_u64().unwrap() > revision + (1 << 30));
    let watch = format!("/api/v1/configmaps?watch=1&resourceVersion={revision}&timeoutSeconds=2");
    let gone = world.host(survivor).run([
        "curl",
        "-s",
        "--unix-socket",
        "/run/skein/agent.sock",
        &format!("http://skein{watch}"),
    ]);
    assert!(gone.unwrap().stdout.contains("410"), "a watch from before begins anew");
    let text = world.run(survivor, &["skein", "cluster", "status"]);
    assert!(text.contains("Recovered:") && text.contains(&voters[1]), "{text}");
    world.until("the pod is known to run", || world.phase(survivor, "s") == "Running");
    let now = world.get(survivor, "pod", "s")["status"]["containerStatuses"][0].clone();
    assert_eq!(started["containerID"], now["containerID"], "the container never noticed");
    assert!(
        world.fails(survivor, &["skein", "cluster", "recover"]).contains("nothing to recover"),
        "it runs once"
    );
    assert!(
        world.run(other, &["ls", "/var/lib/skein"]).contains("store.epoch-0"),
        "the old store is kept aside"
    );

    world.run(survivor, &["skein", "delete", "pod", "s"]);
    world.until("what the new epoch wants gone stops", || {
        world.run(other, &["ls", "/run/skein/pods"]).trim().is_empty()
    });

    // Those that were declared destroyed were not, and are a majority of the voters that they know of. They cannot come back with their
    // old state, whatever they agree on.
    for index in lost {
        world.host(index).boot().unwrap();
        world.host(index).start_agent().unwrap();
    }
    world.until("they agree among themselves", || {
        let old = world.host(lost[0]).command(["skein", "apply", "-f", "-"]);
        old.stdin(config_map("old").to_string()).run().unwrap().success()
    });
    let status = world.status(survivor).unwrap();
    assert_eq!(status["epoch"], 1);
    let names = status["members"].to_string();
    assert!(voters[1..].iter().all(|name| !names.contains(&format!("\"{name}\""))), "{names}");
    for index in [survivor, other] {
        assert!(world.fails(index, &["skein", "get", "configmap", "old"]).contains("not found"));
    }
    world.apply(survivor, &config_map("last"));
    assert_eq!(world.get(other, "configmap", "last")["data"]["k"], "last");
}

#[test]
fn the_newest_log_wins_wherever_the_order_is_given_and_what_nobody_confirmed_is_kept() {
    let world = World::of(4, "newest");
    let status = world.status(0).unwrap();
    let index = |name: &serde_json::Value| (0..4).find(|index| *name == world.host(*index).name()).unwrap();
    let leader = index(&status["leader"]);
    let voters: Vec<usize> = status["voters"].as_array().unwrap().iter().map(index).collect();
    let stale = (0..4).find(|index| !voters.contains(index)).unwrap();
    let lost: Vec<usize> = voters.into_iter().filter(|voter| *voter != leader).collect();
    let name = |index: usize| world.host(index).name();
    world.bed.partition(&[&[name(stale)], &[name(leader), name(lost[0]), name(lost[1])]]).unwrap();
    world.apply(leader, &config_map("late"));
    // Nobody hears of the last write who could confirm it, and the leader has it in its log all the same.
    world.bed.partition(&[&[name(stale)], &[name(leader)], &[name(lost[0]), name(lost[1])]]).unwrap();
    let maps = "/api/v1/namespaces/default/configmaps";
    assert!(world.api(leader).post(maps, &config_map("tail")).is_err());
    lost.iter().for_each(|index| world.host(*index).kill(Kind::Silent).unwrap());
    assert!(world.fails(stale, &["skein", "get", "configmap", "late"]).contains("no leader"));
    world.bed.heal().unwrap();
    let recover = ["skein", "cluster", "recover", "--lost", name(lost[0]), "--lost", name(lost[1])];
    world.until("both survivors are shown", || {
        let shown = world.host(stale).run(recover).unwrap();
        shown.success() && shown.stdout.contains(name(leader)) && shown.stdout.contains(name(stale))
    });
    let shown = world.run(stale, &recover);
    let kept = format!("all of {}'s log, ", name(leader));
    let unconfirmed = shown.split(&kept).nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(unconfirmed.parse::<u64>().unwrap() >= 1, "{shown}");
    world.run(stale, &recover.iter().copied().chain(["--yes"]).collect::<Vec<_>>());
    world.until("a new epoch", || {
        [leader, stale].iter().all(|index| {
            world.status(*index).is_some_and(|status| status["epoch"] == 1 && status["leader"].is_string())
        })
    });
    for index in [leader, stale] {
        for name in ["late", "tail"] {
            assert_eq!(world.get(index, "configmap", name)["data"]["k"], name);
        }
    }
}

#[test]
fn backups_are_made_as_scheduled_and_the_oldest_go() {
    const NAME: &str = ".skein-backup";
    let world = World::bare(1, "scheduled");
    world.run(0, &["skein", "init"]);
    let directory = world.host(0).data_path().join("backups");
    // Their names begin with the second in which they were made.
    let made = || {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(NAME)).collect();
        names.sort();
        names
    };
    world.until("the first one", || made().len() == 1);
    assert!(world.run(0, &["skein", "cluster", "backups", "--every", "6h", "--keep", "2"]).contains("6"));
    let older = |by: u64| {
        let last = made().pop().unwrap();
        let (time, rest) = last.split_once('.').unwrap();
        let earlier = format!("{}.{rest}", time.parse::<u64>().unwrap() - by * 3_600);
        std::fs::rename(directory.join(&last), directory.join(&earlier)).unwrap();
        earlier
    };
    // As if seven hours had gone by, twice.
    let first = older(14);
    world.until("a second one, which is due", || made().len() == 2);
    let second = older(7);
    world.until("a third one, and the oldest is gone", || made().len() == 2 && !made().contains(&first));
    assert!(made().contains(&second));
    world.run(0, &["skein", "cluster", "backup", "/srv/by-hand"]);
    let newest = std::fs::read(directory.join(made().pop().unwrap())).unwrap();
    let (rescued, _) = raft_store::rescue::Rescued::from_backup(&newest).unwrap();
    assert!(!rescued.view().is_empty(), "what is kept is a whole backup");
}

#[test]
fn a_backup_made_while_the_cluster_runs_becomes_a_cluster_elsewhere() {
    let world = World::bare(2, "backup");
    world.run(0, &["skein", "init"]);
    world.load_image(0);
    world.apply(0, &app("web", 2));
    world.apply(0, &config_map("kept"));
    world.until("two pods run", || world.running(0, "web").len() == 2);
    let text = world.run(0, &["skein", "cluster", "backup", "/srv/state"]);
    assert!(text.contains("bytes"), "{text}");
    let bytes = std::fs::read(world.host(0).srv_path().join("state")).unwrap();
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for (name, content, words) in [
        ("damaged", damaged, "checksum"),
        ("cut", bytes[..middle].to_vec(), "length"),
        ("other", b"not a backup".to_vec(), "no backup of skein"),
    ] {
        std::fs::write(world.host(1).srv_path().join(name), content).unwrap();
        let refused = world.fails(1, &["skein", "cluster", "restore", &format!("/srv/{name}")]);
        assert!(refused.contains(words), "{refused}");
    }
    assert!(
        world
            .fails(0, &["skein", "cluster", "restore", "/srv/state"])
            .contains("member of a cluster already")
    );
    std::fs::write(world.host(1).srv_path().join("state"), &bytes).unwrap();
    let text = world.run(1, &["skein", "cluster", "restore", "/srv/state"]);
    assert!(text.contains("restored") && text.contains("skein join"), "{text}");
    let (old, new) = (world.status(0).unwrap(), world.status(1).unwrap());
    assert_ne!(old["cluster"], new["cluster"], "another cluster, which never takes the old one for its own");
    assert_eq!(new["members"].as_array().unwrap().len(), 1);
    assert_eq!(world.get(1, "configmap", "kept")["data"]["k"], "kept");
    // The image's blobs are no part of a state.
    std::fs::copy(world.host(0).srv_path().join("small.tar"), world.host(1).srv_path().join("small.tar"))
        .unwrap();
    world.run(1, &["skein", "image", "load", "/srv/small.tar"]);
    world.until("the deployment runs here", || world.running(1, "web") == ["host2", "host2"]);
    assert_eq!(world.running(0, "web").len(), 2, "and there as before");
}
