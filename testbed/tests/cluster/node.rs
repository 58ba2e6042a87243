//! Pods on one node: what they hold while they run, what is left when they have ended.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::traces::{more, traces};
use crate::world::{World, pod};

/// Pods of the test that looks for leaks; by hand 200.
const PODS: &str = "SKEIN_TEST_PODS";

fn until_as_before(world: &World, what: &str, before: &[String]) {
    let same = testbed::clock::poll(Duration::from_secs(60), Duration::from_millis(200), || {
        (traces(world.host(0)) == before).then_some(())
    });
    let now = traces(world.host(0));
    assert!(same.is_some(), "{what}: left\n{}\nmissing\n{}", more(&now, before), more(before, &now));
}

/// The traces of a host that has had a pod, which is gone: layers are unpacked, directories made.
fn rested(world: &World) -> Vec<String> {
    world.apply(0, &pod("warm", "true", "Never"));
    world.until("the first pod has ended", || world.phase(0, "warm") == "Succeeded");
    world.run(0, &["skein", "delete", "pod", "warm"]);
    world.until("it is gone", || world.get_list(0, "pods").is_empty());
    let last = std::cell::RefCell::new(Vec::new());
    // A pod without grace is gone from the API first, from the node a moment later.
    world.until("nothing of it is left", || {
        let now = traces(world.host(0));
        let (quiet, kept) = (now == *last.borrow(), now.iter().any(|line| line.contains("/pods/")));
        last.replace(now);
        quiet && !kept
    });
    last.into_inner()
}

fn container(world: &World, name: &str) -> Value {
    world.get(0, "pod", name)["status"]["containerStatuses"][0].clone()
}

/// The pids, as the host sees them, of all processes that were executed with `word` among their words.
fn pids(world: &World, word: &str) -> Vec<i32> {
    let line = r#"for p in /proc/[0-9]*; do tr '\0' '\n' < $p/cmdline | grep -qx -e "$1" && echo ${p#/proc/}; done; true"#;
    let text = world.host(0).ok(["sh", "-c", line, "look", word]).unwrap();
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| alive(world, *pid, word)).collect()
}

/// Not the shell that looks, which carries the word too and is gone by now.
fn alive(world: &World, pid: i32, word: &str) -> bool {
    let line = format!("tr '\\0' '\\n' < /proc/{pid}/cmdline | grep -qx -e {word}");
    world.host(0).run(["sh", "-c", &line]).unwrap().success()
}

#[test]
fn an_ended_pod_gives_back_all_but_its_logs_and_its_end() {
    let world = World::of(1, "ended");
    let before = rested(&world);
    let mut job = pod("j", "echo from the job; echo x > /dev/shm/x; echo y > /v/y; exit 3", "Never");
    job["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"medium": "Memory"}}]);
    job["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.apply(0, &job);
    world.until("the pod has failed", || world.phase(0, "j") == "Failed");
    let status = world.get(0, "pod", "j")["status"].clone();
    let kept = |line: &String| line.starts_with("/var/lib/skein/pods/");
    let held = || -> Vec<String> {
        let now = traces(world.host(0));
        more(&now, &before).lines().map(String::from).filter(|line| !kept(line)).collect()
    };
    world.until("it holds nothing but files", || held().is_empty());
    assert!(pids(&world, "shim").is_empty(), "no shim");
    let files = more(&traces(world.host(0)), &before);
    assert!(!files.contains("/upper") && !files.contains("/volumes"), "only records and logs: {files}");
    let same = || {
        assert_eq!(world.run(0, &["skein", "logs", "j"]), "from the job\n");
        assert_eq!(world.get(0, "pod", "j")["status"], status);
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
        assert!(held().is_empty(), "not brought back: {:?}", held());
    };
    same();
    let agent = world.host(0).agent_pid().unwrap();
    world.host(0).kill_agent(Signal::SIGKILL).unwrap();
    world.host(0).agent_after(agent, Duration::from_secs(5)).unwrap();
    world.until("the API is back", || world.status(0).is_some_and(|status| status["leader"] == "host1"));
    // A pod made after the restart has run: the agent has looked at all of its pods by then.
    world.apply(0, &pod("after", "true", "Never"));
    world.until("a later pod has ended", || world.phase(0, "after") == "Succeeded");
    world.run(0, &["skein", "delete", "pod", "after"]);
    world.until("it is gone", || world.get_list(0, "pods").len() == 1);
    world.until("nothing of it is left", || held().is_empty());
    same();
    world.run(0, &["skein", "delete", "pod", "j"]);
    until_as_before(&world, "the deleted pod", &before);
}

#[test]
fn a_killed_shim_is_reported_and_the_restart_policy_acts_with_and_without_an_agent() {
    let world = World::of(1, "shim");
    let before = rested(&world);
    world.apply(0, &pod("p", "sleep 4711 & exec sleep 4711", "Always"));
    for (restarts, agent_lives) in [true, false].into_iter().enumerate() {
        world.until("the pod runs", || {
            let pod = container(&world, "p");
            pod["state"].get("running").is_some() && pod["restartCount"] == restarts
        });
        world.until("both its processes run", || pids(&world, "4711").len() == 2);
        let (shim, old) = (pids(&world, "shim"), pids(&world, "4711"));
        assert_eq!((shim.len(), old.len()), (1, 2), "{shim:?} {old:?}");
        if !agent_lives {
            world.host(0).stop_agent(Signal::SIGKILL).unwrap();
        }
        world.run(0, &["sh", "-c", &format!("kill -KILL {}", shim[0])]);
        if !agent_lives {
            world.host(0).start_agent().unwrap();
        }
        world.until("its container was lost with the shim", || {
            container(&world, "p")["lastState"]["terminated"]["reason"] == "ShimLost"
        });
        world.until("the old processes are dead", || {
            let now = pids(&world, "4711");
            old.iter().all(|pid| !now.contains(pid))
        });
        // The second restart waits out its back-off, so only the first one is waited for.
    }
    let lost = container(&world, "p")["lastState"]["terminated"].clone();
    assert_eq!((lost["exitCode"].as_i64(), lost["signal"].as_i64()), (Some(137), Some(9)));
    world.run(0, &["skein", "delete", "pod", "p"]);
    until_as_before(&world, "after two lost shims", &before);
}

#[test]
fn a_lost_shim_ends_a_pod_that_never_restarts() {
    let world = World::of(1, "never");
    world.apply(0, &pod("n", "exec sleep 4711", "Never"));
    world.until("the pod runs", || world.phase(0, "n") == "Running");
    let shim = pids(&world, "shim")[0];
    world.run(0, &["sh", "-c", &format!("kill -KILL {shim}")]);
    world.until("the pod has failed", || world.phase(0, "n") == "Failed");
    assert_eq!(container(&world, "n")["state"]["terminated"]["reason"], "ShimLost");
    world.until("its process is dead", || pids(&world, "4711").is_empty());
}

/// Four kinds of pods in turn: one that serves, one that ends, one that fails and comes back, one with much around it.
fn one_of_many(number: usize) -> Value {
    let name = format!("many-{number}");
    match number % 4 {
        0 => pod(&name, "exec sleep 1000", "Always"),
        1 => pod(&name, "echo done", "Never"),
        2 => pod(&name, "exit 1", "OnFailure"),
        _ => {
            let mut pod = pod(&name, "exec sleep 1000", "Always");
            let spec = &mut pod["spec"];
            spec["volumes"] =
                json!([{"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]);
            let mounts =
                json!([{"name": "m", "mountPath": "/m"}, {"name": "d", "mountPath": "/d", "subPath": "a/b"}]);
            spec["containers"][0]["volumeMounts"] = mounts.clone();
            let second = json!({"name": "two", "image": "small:1", "command": ["sleep", "1000"], "volumeMounts": mounts});
            spec["containers"].as_array_mut().unwrap().push(second);
            spec["initContainers"] = json!([{"name": "first", "image": "small:1", "command": ["true"]}]);
            pod
        }
    }
}

fn has_begun(pod: &Value) -> bool {
    let word = pod["status"]["phase"].as_str().unwrap_or("");
    matches!(word, "Running" | "Succeeded" | "Failed")
}

#[test]
fn many_pods_under_an_agent_leave_nothing() {
    let count: usize = std::env::var(PODS).ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let world = World::of(1, "many");
    let before = rested(&world);
    let began = testbed::clock::now();
    // A node takes 110 pods at a time.
    let numbers: Vec<usize> = (0..count).collect();
    for wave in numbers.chunks(50) {
        let documents: Vec<String> = wave.iter().map(|number| one_of_many(*number).to_string()).collect();
        let file = world.host(0).srv_path().join("many.yaml");
        std::fs::write(&file, documents.join("\n---\n")).unwrap();
        world.run(0, &["skein", "apply", "-f", "/srv/many.yaml"]);
        world.until("all pods of the wave have begun", || {
            let pods = world.get_list(0, "pods");
            pods.len() == wave.len() && pods.iter().all(has_begun)
        });
        if wave[0] > 0 || count <= 50 {
            // Whoever comes after takes over what is running.
            let agent = world.host(0).agent_pid().unwrap();
            world.host(0).kill_agent(Signal::SIGKILL).unwrap();
            world.host(0).agent_after(agent, Duration::from_secs(5)).unwrap();
            world.until("the API is back", || {
                world.status(0).is_some_and(|status| status["leader"] == "host1")
            });
        }
        for number in wave {
            let path = format!("/api/v1/namespaces/default/pods/many-{number}");
            world.api(0).delete(&path).unwrap();
        }
        world.until("the wave is gone", || world.get_list(0, "pods").is_empty());
    }
    until_as_before(&world, "many pods", &before);
    assert!(Path::new(&world.host(0).data_path()).join("pods").read_dir().unwrap().next().is_none());
    println!("{count} pods came and went in {:.1} s", (testbed::clock::now() - began).as_secs_f64());
}

#[test]
fn containers_of_a_pod_stop_together_and_those_that_do_not_listen_are_killed() {
    let world = World::of(1, "stop");
    // Each ends only after it has seen that all others were told to end too: one by one they would wait in vain.
    let line = |own: &str, others: [&str; 2]| {
        let seen: Vec<String> = others.iter().map(|other| format!("test -e /v/{other}")).collect();
        let wait = seen.join(" && ");
        format!(
            "trap 'touch /v/{own}; while ! {{ {wait}; }}; do sleep 0.01; done; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
        )
    };
    let mut together = pod("t", &line("a", ["b", "d"]), "Never");
    let spec = &mut together["spec"];
    spec["terminationGracePeriodSeconds"] = json!(30);
    spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    spec["containers"][0]["volumeMounts"] = mounts.clone();
    for (name, script) in [("b", line("b", ["a", "d"])), ("d", line("d", ["a", "b"]))] {
        let more = json!({"name": name, "image": "small:1", "command": ["sh", "-c", script], "volumeMounts": mounts});
        spec["containers"].as_array_mut().unwrap().push(more);
    }
    world.apply(0, &together);
    world.until("all listen", || {
        ["c", "b", "d"]
            .iter()
            .all(|name| world.host(0).run(["skein", "logs", "t", "-c", name]).unwrap().stdout == "ready\n")
    });
    let api = world.api(0);
    world.api(0).delete("/api/v1/namespaces/default/pods/t").unwrap();
    world.until("it is gone", || {
        let pod = api.get("/api/v1/namespaces/default/pods/t").unwrap_or(Value::Null);
        pod.is_null()
    });
    let events = world.run(0, &["skein", "events"]);
    assert!(events.contains("Stopping container"), "{events}");
    let mut deaf = pod("deaf", "trap '' TERM; echo ready; while :; do sleep 0.01; done", "Never");
    deaf["spec"]["terminationGracePeriodSeconds"] = json!(1);
    world.apply(0, &deaf);
    world.until("it is deaf", || world.host(0).run(["skein", "logs", "deaf"]).unwrap().stdout == "ready\n");
    world.run(0, &["skein", "delete", "pod", "deaf"]);
    world.until("it was killed", || world.get_list(0, "pods").is_empty());
}
