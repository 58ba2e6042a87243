//! Ports of the machine that the agent needs and another program has.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::World;

/// A program beside the agent that has one of its ports, until it is dropped.
enum Taker {
    Tcp { _listener: TcpListener },
    Udp { _socket: UdpSocket },
}

fn take(world: &World, host: usize, port: u16) -> Taker {
    let all = SocketAddr::from(([0, 0, 0, 0], port));
    let taken = world.host(host).within(|| match port {
        6443 => TcpListener::bind(all).map(|_listener| Taker::Tcp { _listener }),
        _ => UdpSocket::bind(all).map(|_socket| Taker::Udp { _socket }),
    });
    taken.unwrap().unwrap()
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
