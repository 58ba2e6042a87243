//! What a document asks for, seen from inside the container; jobs that fail, and pods that fit nowhere.

use serde_json::{Value, json};

use nix::sys::signal::Signal;

use crate::world::{World, app, pod};

/// A job whose pods run on the first host.
fn job(name: &str, line: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 1, "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "restartPolicy": "Never", "nodeSelector": {"kubernetes.io/hostname": "host1"},
            "volumes": [{"name": "v", "hostPath": {"path": "/srv", "type": "Directory"}}],
            "containers": [{"name": "c", "image": "small:1", "command": ["sh", "-c", line],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}}},
    })
}

/// Seconds from a time of one pod's status to the making of another.
fn pause(world: &World, app: &str) -> i64 {
    let pods = world.get_list(0, "pods");
    let mut own: Vec<&Value> = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == app).collect();
    let at = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    own.sort_by_key(|pod| at(&pod["metadata"]["creationTimestamp"]));
    assert_eq!(own.len(), 2, "a first try and a second one: {own:?}");
    assert_eq!(own[0]["status"]["phase"], "Failed");
    let ended = &own[0]["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
    at(&own[1]["metadata"]["creationTimestamp"]) - at(ended)
}

fn condition(world: &World, job: &str) -> Option<(String, String)> {
    let object = world.get(0, "job", job);
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let holds = conditions.iter().find(|one| one["status"] == "True")?;
    Some((holds["type"].as_str()?.to_owned(), holds["reason"].as_str()?.to_owned()))
}

fn jobs_were_tried_again_up_to_their_limit(world: &World) {
    let ended = |kind: &str, reason: &str| Some((kind.to_owned(), reason.to_owned()));
    world.until("the second try succeeds", || {
        condition(world, "again") == ended("Complete", "CompletionsReached")
    });
    world.until("the limit is reached", || {
        condition(world, "hopeless") == ended("Failed", "BackoffLimitExceeded")
    });
    let counts = |job: &str| {
        let status = world.get(0, "job", job)["status"].clone();
        ["succeeded", "failed", "active"].map(|field| status[field].as_i64().unwrap_or(0))
    };
    assert_eq!((counts("again"), counts("hopeless")), ([1, 1, 0], [0, 2, 0]));
    for job in ["again", "hopeless"] {
        assert!((10..60).contains(&pause(world, job)), "{job}: {} s", pause(world, job));
    }
    let pods = world.get_list(0, "pods");
    let of_job = |pod: &&Value| pod["metadata"]["labels"]["app"] == "again";
    let second = pods.iter().filter(of_job).find(|pod| pod["status"]["phase"] == "Succeeded").unwrap();
    let name = second["metadata"]["name"].as_str().unwrap();
    assert_eq!(world.run(1, &["skein", "logs", name]), "done\n");
    let of_the_job = world.host(1).run(["skein", "logs", "job/again"]).unwrap();
    assert_eq!(of_the_job.stdout, "done\n", "the last try's");
    assert_eq!(of_the_job.stderr, format!("Found 2 pods, using pod/{name}\n"));
    let events = |job: &str| world.run(1, &["skein", "events", "--for", &format!("job/{job}")]);
    for (job, reason) in [("again", "Completed"), ("hopeless", "BackoffLimitExceeded")] {
        let text = events(job);
        assert_eq!(text.matches(&format!("Created pod: {job}-")).count(), 2, "{text}");
        assert!(text.lines().any(|line| line.split_whitespace().any(|word| word == reason)), "{text}");
    }
    let text = world.run(0, &["skein", "describe", "job", "hopeless"]);
    assert!(text.contains("0 Active (0 Ready) / 0 Succeeded / 2 Failed\n"), "{text}");
    assert!(text.contains("Job has reached the specified backoff limit"), "{text}");
}

fn a_pod_that_fits_nowhere_says_why(world: &World) {
    let mut big = pod("big", "true", "Never");
    big["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    world.apply(0, &big);
    let why = "0/2 nodes are available: 2 Insufficient cpu.";
    for words in [["describe", "pod", "big"].as_slice(), &["events"], &["events", "--for", "pod/big"]] {
        let line: Vec<&str> = ["skein"].iter().chain(words).copied().collect();
        world.until("the scheduler's explanation is shown", || {
            let text = world.run(1, &line);
            text.lines().any(|line| line.contains("FailedScheduling") && line.contains(why))
        });
    }
    assert_eq!(world.phase(0, "big"), "Pending");
    let text = world.run(0, &["skein", "describe", "pod", "big"]);
    assert!(
        text.lines().any(|line| line.contains("PodScheduled") && line.contains("Unschedulable")),
        "{text}"
    );
}

fn inside(world: &World, words: &[&str]) -> String {
    let line: Vec<&str> = ["skein", "exec", "seen", "--"].iter().chain(words).copied().collect();
    world.run(0, &line)
}

fn a_container_has_what_its_document_says_and_no_more(world: &World) {
    // Of the container's own process and of one that came by exec.
    for process in ["1", "self"] {
        let status = inside(world, &["cat", &format!("/proc/{process}/status")]);
        let has = |name: &str, value: &str| {
            assert!(status.contains(&format!("{name}:\t{value}\n")), "{name} {value}: {status}");
        };
        has("Seccomp", "2");
        has("NoNewPrivs", "1");
        // Docker's set without NET_RAW and MKNOD.
        ["CapEff", "CapPrm", "CapBnd"].iter().for_each(|set| has(set, "00000000a00405fb"));
        ["CapInh", "CapAmb"].iter().for_each(|set| has(set, "0000000000000000"));
        assert_eq!(inside(world, &["busybox", "readlink", &format!("/proc/{process}/cwd")]), "/www\n");
    }
    assert_eq!(inside(world, &["cat", "index.html"]), "hello\n");
    let names = inside(world, &["cat", "/etc/resolv.conf"]);
    let servers: Vec<&str> = names.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
    assert_eq!(servers, ["10.43.0.10", "10.43.0.11"], "{names}");
    // On v1 a container sees no cgroup tree; the host does.
    let of = "for tree in /sys/fs/cgroup/memory /sys/fs/cgroup; do find $tree$1 -name memory.limit_in_bytes -o -name memory.max; done 2>/dev/null | xargs cat";
    let limits = world.run(1, &["sh", "-c", of, "look", &world.host(1).cgroup_parent()]);
    assert!(limits.lines().any(|line| line == (48 << 20).to_string()), "{limits}");
}

fn names_are_found_while_the_own_agent_is_away(world: &World) {
    let url = "http://web.default.svc.cluster.local/";
    let asked = ["wget", "-q", "-O", "-", url];
    world.until("the name is found", || {
        let words: Vec<&str> = ["skein", "exec", "seen", "--"].iter().chain(&asked).copied().collect();
        world.host(0).run(words).unwrap().stdout == "hello\n"
    });
    let find = "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' < $p/cmdline)\" = 'sleep 4711 ' ] && echo ${p#/proc/}; done 2>/dev/null; true";
    let pid = world.run(1, &["sh", "-c", find]).trim().to_owned();
    let enter = ["nsenter", "-t", &pid, "-m", "-n", "--"];
    let within: Vec<&str> = enter.iter().chain(&["/bin/busybox"]).chain(&asked).copied().collect();
    assert_eq!(world.run(1, &within), "hello\n");
    let agent = world.host(1).stop_agent(Signal::SIGKILL).unwrap();
    assert!(agent.is_some() && world.host(1).agent_pid().unwrap().is_none());
    for _ in 0..3 {
        assert_eq!(world.run(1, &within), "hello\n", "by the second address, from another machine");
    }
    let own = ["nslookup", "web.default.svc.cluster.local", "10.43.0.10"];
    let own: Vec<&str> = enter.iter().chain(&["/bin/busybox", "timeout", "2"]).chain(&own).copied().collect();
    assert!(!world.host(1).run(own.clone()).unwrap().success(), "the own agent's address is silent");
    let log = || world.bed.logs("host2").unwrap();
    let is_about_dns = |line: &&str| line.contains("hickory") || line.contains("web.default.svc");
    assert_eq!(log().lines().find(is_about_dns), None, "queries leave no line");
    world.host(1).start_agent_with(&["--log", "info,hickory_server=info"], true).unwrap();
    world.until("its agent is back", || world.status(1).is_some());
    world.until("queries are logged if the filter says so", || {
        world.host(1).run(own.clone()).unwrap().success() && log().lines().any(|line| is_about_dns(&line))
    });
}

#[test]
fn containers_are_as_their_documents_say_and_what_fails_or_fits_nowhere_is_explained() {
    let world = World::of(2, "inside");
    // Tries are ten seconds apart: meanwhile the rest.
    world.apply(0, &job("again", "[ -e /v/tried ] && echo done && exit 0; touch /v/tried; exit 1"));
    world.apply(0, &job("hopeless", "exit 3"));
    let mut web = app("web", 1);
    web["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "host1"});
    world.apply(0, &web);
    world.apply(
        0,
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }),
    );
    let mut seen = pod("seen", "exec sleep 4711", "Always");
    seen["spec"]["nodeName"] = json!("host2");
    seen["spec"]["containers"][0]["workingDir"] = json!("/www");
    seen["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "48Mi"}});
    world.apply(0, &seen);
    world.until("the pod runs", || world.phase(0, "seen") == "Running");
    a_pod_that_fits_nowhere_says_why(&world);
    a_container_has_what_its_document_says_and_no_more(&world);
    names_are_found_while_the_own_agent_is_away(&world);
    jobs_were_tried_again_up_to_their_limit(&world);
}
