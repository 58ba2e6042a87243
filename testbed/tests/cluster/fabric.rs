//! The node's network as a user meets it: machines that cannot carry it, firewalls in its way, agents that are not there,
//! and the way out.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::{World, app, pod};

const NODE_PORT: u16 = 30080;

fn members(world: &World, index: usize) -> usize {
    world.status(index).map_or(0, |status| status["members"].as_array().map_or(0, Vec::len))
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]},
    })
}

fn node_port(host: usize) -> String {
    format!("10.77.0.{}:{NODE_PORT}", host + 11)
}

fn answers(world: &World, host: usize) -> bool {
    world.http(&node_port(host)).is_some_and(|text| text.ends_with("hello\n"))
}

/// A cluster with a web server on every host and a node port that leads to them.
fn serving(hosts: usize, name: &str) -> World {
    let world = World::of(hosts, name);
    world.apply(0, &app("web", hosts as u32));
    world.apply(0, &service());
    world.until("the web servers run", || world.running(0, "web").len() == hosts);
    for host in 0..hosts {
        world.until("the node port answers", || answers(&world, host));
    }
    world
}

#[test]
fn a_machine_without_nft_is_told_what_to_install_and_joins_once_it_has_it() {
    let world = World::bare(2, "no-nft");
    world.run(0, &["skein", "init"]);
    let nft = world.run(1, &["sh", "-c", "command -v nft"]);
    let (nft, away) = (nft.trim(), format!("{}.away", nft.trim()));
    world.run(1, &["mv", nft, &away]);
    let join = world.join_words(0);
    let join: Vec<&str> = join.iter().map(String::as_str).collect();
    for words in [vec!["skein", "init"], join.clone()] {
        let text = world.fails(1, &words);
        assert!(text.contains("cannot run nft") && text.contains("apt-get install nftables"), "{text}");
    }
    assert_eq!(members(&world, 0), 1, "nobody has joined");
    world.run(1, &["mv", &away, nft]);
    world.run(1, &join);
    world.until("both are members", || members(&world, 1) == 2);
}

#[test]
fn a_kernel_without_nf_tables_is_named_and_one_that_has_it_is_taken() {
    let world = World::untouched(1, "no-nf-tables");
    let parent = world.host(0).cgroup_parent();
    let agent = ["skein", "agent", "--cgroup-parent", &parent];
    let lacking = ["/usr/local/bin/testbed", "without-netfilter", "--"];
    let words = lacking.iter().chain(&agent).map(|word| (*word).to_owned()).collect();
    world.host(0).start_program_as_agent(words, false).unwrap();
    world.until_told_nothing(0);
    let text = world.fails(0, &["skein", "init"]);
    assert!(text.contains("this kernel cannot take our rules") && text.contains("nf_tables"), "{text}");
    assert!(text.contains("Protocol not supported"), "the kernel's own words: {text}");
    world.host(0).stop_agent(Signal::SIGTERM).unwrap();
    world.host(0).start_agent().unwrap();
    world.until_told_nothing(0);
    world.run(0, &["skein", "init"]);
    assert_eq!(members(&world, 0), 1);
}

#[test]
fn a_kernel_without_vxlan_is_named_and_one_that_has_it_is_taken() {
    let world = World::untouched(2, "no-vxlan");
    world.host(0).start_agent().unwrap();
    let parent = world.host(1).cgroup_parent();
    let words =
        ["/usr/local/bin/testbed", "without-vxlan", "--", "skein", "agent", "--cgroup-parent", &parent];
    world.host(1).start_program_as_agent(words.map(str::to_owned).to_vec(), false).unwrap();
    (0..2).for_each(|index| world.until_told_nothing(index));
    world.run(0, &["skein", "init"]);
    let join = world.join_words(0);
    let join: Vec<&str> = join.iter().map(String::as_str).collect();
    for words in [vec!["skein", "init"], join.clone()] {
        let text = world.fails(1, &words);
        assert!(
            text.contains("this kernel cannot make VXLAN devices") && text.contains("modprobe vxlan"),
            "{text}"
        );
        assert!(text.contains("Operation not supported"), "the kernel's own words: {text}");
    }
    assert_eq!(members(&world, 0), 1, "nobody has joined");
    world.host(1).stop_agent(Signal::SIGTERM).unwrap();
    world.host(1).start_agent().unwrap();
    world.until_told_nothing(1);
    world.run(1, &join);
    world.until("both are members", || members(&world, 1) == 2);
}

/// The node's word about its network, as `skein get node` has it.
fn blocked(world: &World, node: &str) -> Option<(String, String)> {
    let node = world.get(0, "node", node);
    let conditions = node["status"]["conditions"].as_array()?.clone();
    let found = conditions.into_iter().find(|condition| condition["type"] == "NetworkBlocked")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("message")))
}

#[test]
fn a_foreign_firewall_is_a_condition_of_the_node_until_its_line_is_taken() {
    let world = serving(2, "firewall");
    assert_eq!(blocked(&world, "host2"), None, "nothing is in the way yet");
    let chain =
        "table inet theirs { chain forwarding { type filter hook forward priority 0; policy drop; }; }";
    world.host(1).command(["nft", "-f", "-"]).stdin(format!("{chain}\n")).ok().unwrap();
    let is = |wanted: &str| blocked(&world, "host2").is_some_and(|(status, _)| status == wanted);
    world.until("the node says that it is blocked", || is("True"));
    let described = world.run(0, &["skein", "describe", "node", "host2"]);
    assert!(
        described.contains("NetworkBlocked") && described.contains("inet theirs forwarding"),
        "{described}"
    );
    let (_, message) = blocked(&world, "host2").unwrap();
    let line = message.split_once("with: ").unwrap_or_else(|| panic!("no line that helps: {message}")).1;
    assert_eq!(blocked(&world, "host1"), None, "the other node is not concerned");
    // One of the two web servers is behind it.
    world.until("a connection is lost", || !answers(&world, 0));
    world.run(1, &["sh", "-c", line]);
    world.until("the condition is taken back", || is("False"));
    for _ in 0..10 {
        assert!(answers(&world, 0), "the line lets everything through");
    }
}

/// All that a machine shows of somebody's presence: interfaces, addresses, routes, rules, processes, mounts, cgroups, files.
fn presence(world: &World, index: usize) -> BTreeSet<String> {
    let parent = world.host(index).cgroup_parent();
    let look = format!(
        "ip -o link | cut -d: -f2 | cut -d@ -f1; ip -4 -o addr | sed 's/^[0-9]*: //'; ip -4 route show table all; \
         ip -4 rule; ip neigh show nud permanent; bridge fdb show | grep -vE '^(33:33|01:00:5e)'; nft -s list ruleset; \
         ps -eo comm= | grep -vxE 'ps|sh|grep'; cut -d' ' -f5 /proc/self/mountinfo; \
         find /sys/fs/cgroup -type d -path '*{parent}/*'; find /var/lib/skein /run -mindepth 1 | grep -vx /run/skein"
    );
    world.run(index, &["sh", "-c", &look]).lines().map(str::to_owned).collect()
}

#[test]
fn reset_removes_every_trace_and_nothing_else_and_the_machine_can_join_again() {
    let world = World::untouched(2, "reset");
    let foreign = "ip link add theirs0 type bridge; ip addr add 10.99.0.1/24 dev theirs0; ip link set theirs0 up; \
                   ip route add 10.98.0.0/16 via 10.77.0.100; mkdir /var/lib/skein/theirs; \
                   nft add table ip theirs; nft add chain ip theirs c '{ type filter hook output priority 0; }'";
    world.run(1, &["sh", "-ec", foreign]);
    let before = presence(&world, 1);
    for index in 0..2 {
        world.host(index).start_agent().unwrap();
        world.until_told_nothing(index);
    }
    world.run(0, &["skein", "init"]);
    world.join(0, 1);
    world.until("both are members", || members(&world, 1) == 2);
    world.load_image(0);
    let mut stays = pod("p", "httpd -f -p 8080 -h /www", "Always");
    stays["metadata"]["labels"] = json!({"app": "web"});
    stays["spec"]["nodeName"] = json!("host2");
    stays["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    stays["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.apply(0, &stays);
    world.apply(0, &service());
    world.until("the pod runs and answers", || world.phase(0, "p") == "Running" && answers(&world, 1));
    assert_ne!(presence(&world, 1), before);

    let parent = world.host(1).cgroup_parent();
    let reset = ["skein", "node", "reset", "--cgroup-parent", &parent];
    assert!(world.fails(1, &reset).contains("add --yes"));
    let reset = [&reset[..], &["--yes"]].concat();
    assert!(world.fails(1, &reset).contains("stop the agent first"));
    assert!(answers(&world, 1), "a refused reset has done nothing");
    world.host(1).stop_agent(Signal::SIGTERM).unwrap();
    world.run(1, &reset);
    let after = presence(&world, 1);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), [] as [&String; 0], "left of ours");
    assert_eq!(before.difference(&after).collect::<Vec<_>>(), [] as [&String; 0], "gone of others");
    let left = world.run(
        1,
        &["sh", "-c", &format!("find /sys/fs/cgroup -type d -path '*{parent}'; ls -d /run/skein || true")],
    );
    assert_eq!(left, "", "nor the places in which it was");

    world.until("the others count it as dead", || {
        let members = world.status(0).unwrap_or_default()["members"].clone();
        members.as_array().is_some_and(|members| members.iter().any(|member| member["state"] == "dead"))
    });
    world.run(0, &["skein", "node", "rm", "host2"]);
    world.run(0, &["skein", "delete", "pod", "p"]);
    world.host(1).start_agent().unwrap();
    world.until_told_nothing(1);
    world.join(0, 1);
    world.until("both are members again", || members(&world, 1) == 2);
    world.until("the old pod is gone", || world.get(0, "pod", "p").is_null());
    world.apply(0, &stays);
    world.until("a pod runs and answers there again", || {
        world.phase(0, "p") == "Running" && answers(&world, 1)
    });
}

#[test]
fn requests_are_answered_while_every_agent_is_away() {
    let world = serving(3, "agentless");
    let (over, asked, lost) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    testbed::clock::threads(|scope| {
        for host in 0..3 {
            let (world, over, asked, lost) = (&world, &over, &asked, &lost);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if !answers(world, host) {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for host in world.bed.hosts() {
                host.stop_agent(signal).unwrap();
            }
            let begun = asked.load(Ordering::Relaxed);
            world.until("requests go on", || asked.load(Ordering::Relaxed) > begun + 300);
            for host in world.bed.hosts() {
                host.start_agent().unwrap();
            }
            world.until("a leader again", || {
                world.status(0).is_some_and(|status| status["leader"].is_string())
            });
            let begun = asked.load(Ordering::Relaxed);
            world.until("requests go on", || asked.load(Ordering::Relaxed) > begun + 100);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(lost.load(Ordering::Relaxed), 0, "of {}", asked.load(Ordering::Relaxed));
}

/// Our rules, routes and entries, without packet counts, and without slots' numbers: which endpoint has which is history.
fn carried(world: &World, host: usize) -> Vec<String> {
    let look = "nft -s list table inet skein | sed 's/0x[0-9a-f]*/MARK/g; s/elements = {//; s/[ ,}]*$//; s/^[ \t]*//'; \
                ip -4 route | grep 'proto 83'; ip neigh show nud permanent; bridge fdb show dev skx1";
    let mut lines: Vec<String> = world.run(host, &["sh", "-c", look]).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn an_agent_killed_amid_updates_comes_to_the_same_network_as_one_that_starts_from_nothing() {
    let world = serving(2, "amid");
    let slots = || world.run(1, &["nft", "-s", "list", "map", "inet", "skein", "vip_slots"]);
    for round in 0..4 {
        let before = slots();
        let replicas = if round % 2 == 0 { "6" } else { "1" };
        world.run(0, &["skein", "scale", "deployment/web", "--replicas", replicas]);
        world.until("the change has begun to arrive", || slots() != before);
        let agent = world.host(1).agent_pid().unwrap();
        world.host(1).kill_agent(Signal::SIGKILL).unwrap();
        world.host(1).agent_after(agent, std::time::Duration::from_secs(5)).unwrap();
    }
    world.run(0, &["skein", "scale", "deployment/web", "--replicas", "3"]);
    world.until("three web servers run", || {
        world.pods(0, "web").len() == 3 && world.running(0, "web").len() == 3
    });
    let endpoints = || slots().matches(" . 8080").count();
    world.until("the rules lead to three", || endpoints() == 3 && answers(&world, 1));
    // What the pods that went leave behind goes a little later.
    let mut grown = carried(&world, 1);
    let mut looks = 0;
    world.until("the network is at rest", || {
        let now = carried(&world, 1);
        looks = if now == grown { looks + 1 } else { 0 };
        grown = now;
        looks == 20
    });
    world.run(1, &["nft", "delete", "table", "inet", "skein"]);
    world.until("the table is back", || {
        world.host(1).run(["nft", "list", "table", "inet", "skein"]).unwrap().success()
    });
    let anew = carried(&world, 1);
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    assert_eq!((only(&grown, &anew), only(&anew, &grown), grown.len()), (vec![], vec![], anew.len()));
    for _ in 0..10 {
        assert!(answers(&world, 1));
    }
}
