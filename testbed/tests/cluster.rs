//! The whole of it on namespace hosts: real agents, real kernel, real containers, real clients.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail as the test does")]

#[path = "cluster/api.rs"]
mod api;
#[path = "cluster/commands.rs"]
mod commands;
#[path = "cluster/copies.rs"]
mod copies;
#[path = "cluster/deaths.rs"]
mod deaths;
#[path = "cluster/disk.rs"]
mod disk;
#[path = "cluster/fabric.rs"]
mod fabric;
#[path = "cluster/failing_disk.rs"]
mod failing_disk;
#[path = "cluster/images.rs"]
mod images;
#[path = "cluster/inside.rs"]
mod inside;
#[path = "cluster/keyring.rs"]
mod keyring;
#[path = "cluster/members.rs"]
mod members;
#[path = "cluster/node.rs"]
mod node;
#[path = "cluster/observers.rs"]
mod observers;
#[path = "cluster/ports.rs"]
mod ports;
#[path = "cluster/probes.rs"]
mod probes;
#[path = "cluster/rebuild.rs"]
mod rebuild;
#[path = "cluster/recovery.rs"]
mod recovery;
#[path = "cluster/returned.rs"]
mod returned;
#[path = "cluster/stream.rs"]
mod stream;
#[path = "cluster/takeover.rs"]
mod takeover;
#[path = "cluster/traces.rs"]
mod traces;
#[path = "cluster/voters.rs"]
mod voters;
#[path = "cluster/watch.rs"]
mod watch;
#[path = "cluster/world.rs"]
mod world;

use std::time::Duration;

use serde_json::json;
use testbed::Kind;
use world::{World, app, pod};

#[test]
fn one_host_carries_on_through_kills_of_agent_and_host() {
    let world = World::of(1, "one");
    world.apply(0, &pod("p", "sleep 1000", "Always"));
    world.until("the pod runs", || world.phase(0, "p") == "Running");
    let before = world.get(0, "pod", "p");
    let agent = world.host(0).agent_pid().unwrap();
    world.host(0).kill_agent(nix::sys::signal::Signal::SIGKILL).unwrap();
    world.host(0).agent_after(agent, Duration::from_secs(5)).unwrap();
    world.until("the API is back", || world.status(0).is_some_and(|status| status["leader"] == "host1"));
    let after = world.get(0, "pod", "p");
    let container = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0].clone();
    assert_eq!(container(&before)["state"], container(&after)["state"], "the container never noticed");
    world.host(0).kill(Kind::Silent).unwrap();
    world.host(0).boot().unwrap();
    world.host(0).start_agent().unwrap();
    world.until("the pod runs again after the boot", || {
        let pod = world.get(0, "pod", "p");
        pod["status"]["phase"] == "Running" && pod["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    assert_eq!(
        world.get(0, "pod", "p")["metadata"]["uid"],
        before["metadata"]["uid"],
        "same state, same identities"
    );
}

#[test]
fn a_machine_that_was_never_told_joins_nothing_and_errors_say_what_to_do() {
    let world = World::bare(2, "errors");
    let refused = |host: usize, words: &[&str]| world.fails(host, words);
    assert!(refused(0, &["skein", "get", "pods"]).contains("run 'skein init' or 'skein join"));
    assert!(refused(0, &["skein", "join", "10.77.0.12", "--token", "rubbish"]).contains("not a join token"));
    world.run(0, &["skein", "init"]);
    let join = world.join_words(0);
    let other_cluster = format!("skein1.{}.{}", "0".repeat(64), "a".repeat(32));
    assert!(
        refused(1, &["skein", "join", "10.77.0.11", "--token", &other_cluster]).contains("was not accepted")
    );
    let secret_wrong = format!("{}x", &join[4][..join[4].len() - 1]);
    assert!(
        refused(1, &["skein", "join", "10.77.0.11", "--token", &secret_wrong])
            .contains("not known here or has expired")
    );
    assert!(
        refused(1, &["skein", "join", "10.77.0.99", "--token", &join[4]])
            .contains("no answer from 10.77.0.99:7443")
    );
    assert!(
        refused(1, &["skein", "join", "10.77.0.11", "--token", &join[4], "--name", "host1"])
            .contains("is taken by another member")
    );
    let status = world.status(0).unwrap();
    assert_eq!(status["members"].as_array().unwrap().len(), 1, "nobody has joined: {status}");
    world.run(1, &["skein", "join", "10.77.0.11", "--token", &join[4]]);
    world.until("two members", || {
        world.status(1).is_some_and(|status| status["members"].as_array().map_or(0, Vec::len) == 2)
    });
    assert!(refused(0, &["skein", "init"]).contains("is a member of a cluster already"));
}

#[test]
fn three_hosts_keep_state_through_the_loss_of_every_agent_at_once() {
    let world = World::of(3, "three");
    world.apply(
        1,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"}}),
    );
    let before = world.status(0).unwrap();
    assert_eq!(before["voters"].as_array().unwrap().len(), 3);
    let identities = |status: &serde_json::Value| -> Vec<(String, String)> {
        let members = status["members"].as_array().unwrap();
        let text = |member: &serde_json::Value, field: &str| member[field].to_string();
        members.iter().map(|member| (text(member, "name"), text(member, "id"))).collect()
    };
    let ids = identities(&before);
    assert!(ids.len() == 3 && ids.iter().all(|(_, id)| id != "null"), "{ids:?}");
    for host in 0..3 {
        world.host(host).kill_agent(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    world.until("a leader again", || world.status(2).is_some_and(|status| status["leader"].is_string()));
    for host in 0..3 {
        assert_eq!(world.get(host, "configmap", "c")["data"]["k"], "v", "read at host{}", host + 1);
    }
    let after = world.status(0).unwrap();
    assert_eq!(before["cluster"], after["cluster"]);
    assert_eq!(before["voters"], after["voters"]);
    for host in 0..3 {
        assert_eq!(identities(&world.status(host).unwrap()), ids, "as host{} knows them", host + 1);
    }
}

#[test]
fn a_dead_machines_pods_run_elsewhere_and_it_cleans_up_when_it_returns() {
    let world = World::of(3, "death");
    world.load_image(0);
    world.apply(0, &app("web", 6));
    world.until("six pods run", || world.running(0, "web").len() == 6);
    let victim = world.follower();
    let name = world.host(victim).name().to_string();
    assert!(world.running(0, "web").contains(&name), "pods are spread over all hosts");
    world.host(victim).kill(Kind::Silent).unwrap();
    let witness = (0..3).find(|index| *index != victim).unwrap();
    world.until("six pods run on the other two", || {
        let nodes = world.running(witness, "web");
        nodes.len() == 6 && !nodes.contains(&name)
    });
    world.host(victim).boot().unwrap();
    world.host(victim).start_agent().unwrap();
    world.until("the machine is back", || {
        let status = world.status(witness);
        status.is_some_and(|status| {
            status["members"].as_array().unwrap().iter().all(|member| member["state"] == "alive")
        })
    });
    world.until("nothing of the old pods is left on it", || {
        let shims = world.host(victim).run(["sh", "-c", "ls /run/skein/pods 2>/dev/null | wc -l"]).unwrap();
        shims.stdout.trim() == "0"
    });
    assert_eq!(world.running(witness, "web").len(), 6, "no surplus pods");
}

#[test]
fn services_names_and_node_ports_answer_from_everywhere() {
    let world = World::of(3, "net");
    world.load_image(0);
    world.apply(0, &app("web", 3));
    world.apply(0, &json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]},
    }));
    world.until("three pods run", || world.running(0, "web").len() == 3);
    let name = world.pods(0, "web")[0].clone();
    world.until("the service answers by name inside a pod", || {
        let got = world.host(0).run([
            "skein",
            "exec",
            &name,
            "--",
            "wget",
            "-q",
            "-O",
            "-",
            "http://web.default.svc.cluster.local/",
        ]);
        got.is_ok_and(|got| got.stdout == "hello\n")
    });
    for host in 1..=3 {
        let address = format!("10.77.0.1{host}:30080");
        world.until("the node port answers from outside", || {
            world.http(&address).is_some_and(|text| text.ends_with("hello\n"))
        });
    }
    world.run(0, &["skein", "scale", "deployment/web", "--replicas", "0"]);
    world.until("without endpoints the connection is refused at once", || {
        let refused =
            world.bed.outside().connect("10.77.0.11:30080".parse().unwrap(), Duration::from_secs(1));
        refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
}

#[test]
fn jobs_run_to_their_end_and_logs_and_exec_reach_across_hosts() {
    let world = World::of(2, "jobs");
    world.load_image(0);
    world.apply(0, &json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "count"},
        "spec": {"completions": 2, "parallelism": 2, "template": {"spec": {"restartPolicy": "Never", "containers": [
            {"name": "c", "image": "small:1", "command": ["sh", "-c", "echo one; echo two >&2"]}]}}},
    }));
    world.until("the job is complete", || {
        let job = world.get(0, "job", "count");
        job["status"]["succeeded"] == 2 && job["status"]["conditions"].to_string().contains("Complete")
    });
    let text = world.run(1, &["skein", "logs", "job/count"]);
    assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
    let mut sleeper = pod("s", "sleep 1000", "Always");
    sleeper["spec"]["nodeName"] = json!("host2");
    world.apply(0, &sleeper);
    world.until("the pod runs", || world.phase(0, "s") == "Running");
    let echoed = world
        .host(0)
        .command(["skein", "exec", "-i", "s", "--", "cat"])
        .stdin("through two agents")
        .run()
        .unwrap();
    assert_eq!(echoed.stdout, "through two agents");
    assert_eq!(
        world.host(0).run(["skein", "exec", "s", "--", "sh", "-c", "exit 3"]).unwrap().code(),
        Some(3)
    );
}

#[test]
fn bad_input_is_answered_with_what_to_do() {
    let world = World::of(1, "bad");
    let apply = |document: &serde_json::Value| {
        let output =
            world.host(0).command(["skein", "apply", "-f", "-"]).stdin(document.to_string()).run().unwrap();
        format!("{}{}", output.stdout, output.stderr)
    };
    let mut wrong = pod("w", "true", "Always");
    wrong["spec"]["containers"][0]["ports"] = json!([{"containerPort": "http"}]);
    assert!(apply(&wrong).contains("spec.containers[0].ports[0].containerPort: expected an integer"));
    let mut unknown = pod("u", "true", "Always");
    unknown["spec"]["bogus"] = json!(1);
    assert!(apply(&unknown).contains("unknown field \"spec.bogus\""));
    let mut missing = pod("m", "true", "Always");
    missing["spec"]["containers"][0]["image"] = json!("nowhere:1");
    apply(&missing);
    world.until("the missing image is named", || {
        let text = world.run(0, &["skein", "describe", "pod", "m"]);
        text.contains("image nowhere:1 is not in this cluster")
    });
    let mut huge = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "huge"}, "data": {}});
    huge["data"]["k"] = json!("x".repeat(10 << 20));
    assert!(apply(&huge).contains("too large"), "a body of 10 MB is refused");
    let archive = testbed::small_image::archive().unwrap();
    let cut = world.host(0).srv_path().join("cut.tar");
    std::fs::write(&cut, &archive[..archive.len() / 2]).unwrap();
    assert!(world.fails(0, &["skein", "image", "load", "/srv/cut.tar"]).contains("archive"));
    let mut damaged = archive.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    std::fs::write(&cut, &damaged).unwrap();
    assert!(world.fails(0, &["skein", "image", "load", "/srv/cut.tar"]).contains("digest"));
    assert_eq!(world.get_list(0, "images").len(), 1, "only the whole image is there");
    let duplicate = world.api(0).post("/api/v1/namespaces/default/pods", &missing).unwrap_err().to_string();
    assert!(duplicate.contains("pods \"m\" already exists"), "{duplicate}");
}

#[test]
fn kubectl_works_unmodified() {
    let world = World::of(2, "kubectl");
    world.load_image(0);
    let kubeconfig = world.run(0, &["skein", "kubeconfig"]);
    std::fs::write(world.host(0).srv_path().join("kubeconfig"), kubeconfig).unwrap();
    let kubectl = |words: &[&str]| {
        let line: Vec<&str> = ["kubectl", "--kubeconfig", "/srv/kubeconfig", "--cache-dir", "/tmp/kube"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        world.run(0, &line)
    };
    let manifest = world.host(0).srv_path().join("web.json");
    std::fs::write(&manifest, app("web", 2).to_string()).unwrap();
    assert_eq!(kubectl(&["apply", "-f", "/srv/web.json"]).trim(), "deployment.apps/web created");
    assert_eq!(kubectl(&["apply", "-f", "/srv/web.json"]).trim(), "deployment.apps/web unchanged");
    kubectl(&["rollout", "status", "deployment/web", "--timeout=30s"]);
    assert!(kubectl(&["get", "pods", "-o", "wide"]).contains("Running"));
    assert!(kubectl(&["get", "deployment", "web", "-o", "yaml"]).contains("readyReplicas: 2"));
    std::fs::write(&manifest, app("web", 3).to_string()).unwrap();
    assert_eq!(kubectl(&["apply", "-f", "/srv/web.json"]).trim(), "deployment.apps/web configured");
    kubectl(&["scale", "deployment/web", "--replicas=1"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=30s"]);
    world.until("one pod is left", || world.running(0, "web").len() == 1);
    let name = world.pods(0, "web")[0].clone();
    assert!(kubectl(&["describe", "pod", &name]).contains("Controlled By:  ReplicaSet/web-"));
    assert!(kubectl(&["describe", "deployment", "web"]).contains("NewReplicaSet:"));
    assert!(kubectl(&["describe", "node", "host1"]).contains("PodCIDR:"));
    assert!(kubectl(&["logs", &name]).contains("ready"));
    kubectl(&["delete", "deployment", "web"]);
    world.until("its pods are gone too", || world.pods(0, "web").is_empty());
    let nobody = world.host(0).run(["curl", "-ks", "https://10.77.0.12:6443/api/v1/nodes"]).unwrap();
    assert!(nobody.stdout.contains("Unauthorized"), "{}", nobody.stdout);
}
