//! Ports of the machine: those that the agent needs and another program has, and those that pods ask for.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::{World, pod};

/// A program beside the agent that has one of its ports, until it is dropped.
enum Taker {
    Tcp { _listener: TcpListener },
    Udp { _socket: UdpSocket },
}

/// Takes it as soon as it is free: a program that the agent began as it ended may have its sockets for a moment.
fn take(world: &World, host: usize, port: u16) -> Taker {
    let all = SocketAddr::from(([0, 0, 0, 0], port));
    let bind = || match port {
        6443 => TcpListener::bind(all).map(|_listener| Taker::Tcp { _listener }),
        _ => UdpSocket::bind(all).map(|_socket| Taker::Udp { _socket }),
    };
    let mut taken = None;
    world.until("the port is free", || {
        taken = world.host(host).within(bind).unwrap().ok();
        taken.is_some()
    });
    taken.unwrap()
}

fn named(text: &str, port: u16) -> bool {
    let (protocol, look) = if port == 6443 { ("TCP", "ss -ltnp") } else { ("UDP", "ss -lunp") };
    text.contains(&format!("cannot listen on 0.0.0.0:{port} ({protocol}): Address already in use"))
        && text.contains("is another agent running, or the port taken?")
        && text.contains(&format!("'{look}' shows who has it"))
}

/// Who is a member, as the first machine says: name, id and state.
fn members(world: &World) -> Vec<[Value; 3]> {
    let status = world.status(0).unwrap_or_default();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    members.iter().map(|member| ["name", "id", "state"].map(|field| member[field].clone())).collect()
}

/// What the machine has written down of itself.
fn written(world: &World, host: usize) -> Vec<String> {
    let found = std::fs::read_dir(world.host(host).data_path()).unwrap().flatten();
    let names = found.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| matches!(name.as_str(), "member" | "store")).collect()
}

#[test]
fn a_taken_port_is_named_before_anything_is_done_and_the_next_try_succeeds() {
    let world = World::bare(2, "port");
    for port in [6443, 7443] {
        let taker = take(&world, 0, port);
        let text = world.fails(0, &["skein", "init"]);
        assert!(named(&text, port), "{text}");
        assert_eq!(written(&world, 0), [""; 0], "port {port}");
        drop(taker);
    }
    world.run(0, &["skein", "init"]);
    let words = world.join_words(0);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let alone = members(&world);
    assert_eq!(alone.len(), 1);
    for port in [6443, 7443] {
        let taker = take(&world, 1, port);
        let text = world.fails(1, &words);
        assert!(named(&text, port), "{text}");
        assert_eq!(members(&world), alone, "nobody was let in: port {port}");
        assert_eq!(written(&world, 1), [""; 0], "port {port}");
        drop(taker);
    }
    world.run(1, &words);
    world.until("it takes part", || world.status(1).is_some_and(|status| status["leader"] == "host1"));
    assert_eq!(members(&world).len(), 2);
}

#[test]
fn a_member_whose_port_is_taken_while_it_is_away_says_so_and_is_back_once_it_is_free() {
    let world = World::of(2, "port-away");
    let before = members(&world);
    for port in [6443, 7443] {
        world.host(1).stop_agent(Signal::SIGTERM).unwrap();
        let taker = take(&world, 1, port);
        let log = || std::fs::read_to_string(world.host(1).log_path()).unwrap();
        let earlier = log().len();
        // As under systemd: started again and again.
        world.host(1).start_agent().unwrap();
        world.until("it has tried twice, and said why it ends", || {
            log()[earlier..].lines().filter(|line| named(line, port)).count() >= 2
        });
        let name = format!("while-{port}");
        world.apply(0, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}));
        drop(taker);
        world.until("it is back, and knows what it missed", || {
            let path = format!("/api/v1/namespaces/default/configmaps/{name}");
            world.api(1).get(&path).is_ok()
        });
        world.until("it is alive for the others", || members(&world) == before);
    }
}

/// A web server with a port of its machine.
fn served(name: &str, host_port: u16, node: &str) -> Value {
    let mut served = pod(name, "httpd -f -p 8080 -h /www", "Always");
    served["spec"]["nodeName"] = json!(node);
    served["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": host_port}]);
    served
}

fn answers(world: &World, host: usize, port: u16) -> bool {
    let address = format!("10.77.0.{}:{port}", host + 11);
    world.http(&address).is_some_and(|text| text.ends_with("hello\n"))
}

#[test]
fn a_host_port_leads_to_its_pod_through_restarts_of_the_agent_until_the_pod_goes() {
    let world = World::of(2, "host-port");
    world.apply(0, &served("web", 8081, "host2"));
    world.until("it answers from outside", || answers(&world, 1, 8081));
    assert!(!answers(&world, 0, 8081), "on its own machine only");
    // Nothing that an agent does when it starts takes the port away.
    let agent = world.host(1).agent_pid().unwrap();
    world.host(1).kill_agent(Signal::SIGKILL).unwrap();
    world.host(1).agent_after(agent, std::time::Duration::from_secs(5)).unwrap();
    let name = "after";
    let mut after = pod(name, "true", "Never");
    after["spec"]["nodeName"] = json!("host2");
    world.apply(0, &after);
    // One answer may come late on a busy machine.
    let mut failed = 0;
    world.until("a later pod has ended", || {
        failed = if answers(&world, 1, 8081) { 0 } else { failed + 1 };
        assert!(failed < 2, "while the agent starts");
        world.phase(0, name) == "Succeeded"
    });
    world.run(0, &["skein", "delete", "pod", "web"]);
    world.until("nobody answers any more", || !answers(&world, 1, 8081));
}

#[test]
fn a_pod_whose_host_port_another_pod_has_waits_for_it_through_a_restart_of_the_agent() {
    let world = World::of(1, "host-port-wait");
    world.apply(0, &served("first", 8081, "host1"));
    world.until("it answers from outside", || answers(&world, 0, 8081));
    // Uids are random: with several, one that sorts before the first's is among them.
    let later = ["b", "c", "d", "e"];
    let waits = |name: &str| {
        let text = world.run(0, &["skein", "describe", "pod", name]);
        text.contains("FailedCreatePodSandBox") && text.contains("node port 8081/tcp already belongs to")
    };
    for name in later {
        world.apply(0, &served(name, 8081, "host1"));
        world.until("it is told why it waits", || waits(name));
    }
    let agent = world.host(0).agent_pid().unwrap();
    world.host(0).kill_agent(Signal::SIGKILL).unwrap();
    world.host(0).agent_after(agent, std::time::Duration::from_secs(5)).unwrap();
    world.until("the agent is back", || world.status(0).is_some());
    let mut after = pod("after", "true", "Never");
    after["spec"]["nodeName"] = json!("host1");
    world.apply(0, &after);
    world.until("a later pod has ended", || world.phase(0, "after") == "Succeeded");
    for name in later {
        assert_eq!(world.phase(0, name), "Pending", "{name}");
    }
    assert_eq!(world.phase(0, "first"), "Running");
    world.run(0, &["skein", "delete", "pod", "first"]);
    let running = || later.iter().filter(|name| world.phase(0, name) == "Running").count();
    world.until("one of them has it", || running() == 1 && answers(&world, 0, 8081));
}

#[test]
fn a_host_port_that_cannot_be_had_is_named_and_nothing_is_opened() {
    let world = World::of(1, "host-port-no");
    for (name, port, words) in [
        (
            "own",
            json!({"containerPort": 8080, "hostPort": 6443}),
            "hostPort 6443 is a port that skein itself needs",
        ),
        (
            "sctp",
            json!({"containerPort": 8080, "hostPort": 8082, "protocol": "SCTP"}),
            "hostPort 8082 with protocol SCTP is not supported",
        ),
        (
            "ip",
            json!({"containerPort": 8080, "hostPort": 8083, "hostIP": "10.77.0.11"}),
            "hostPort 8083 with hostIP 10.77.0.11 is not supported",
        ),
    ] {
        let mut asked = served(name, 1, "host1");
        asked["spec"]["containers"][0]["ports"] = json!([port]);
        world.apply(0, &asked);
        world.until("it is named", || {
            let text = world.run(0, &["skein", "describe", "pod", name]);
            text.contains("FailedCreatePodSandBox") && text.contains(words)
        });
        assert_eq!(world.phase(0, name), "Pending");
    }
    assert_eq!(members(&world).len(), 1, "the API is still there");
}
