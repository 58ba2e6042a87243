//! Watches whose clients are slow.

use std::net::SocketAddr;

use agent::server::stream::protocol::{Answer, Ask};
use raft_store::{Key, Op, Transaction};
use serde_json::{Value, json};
use testbed::bench::store::ours;
use testbed::bench::store::stream::Client;
use testbed::http::{Api, Events};

use crate::world::World;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Watchers, each opened after the others have fallen behind.
const WATCHERS: u64 = 6;
/// Changes that a watcher sees before the next one comes: more than sockets and buffers hold.
const CHANGES: u64 = 700;
/// Transactions of other keys between two watchers; with 500 keys of 1 KB each they take up two thirds of the history.
const FILLERS: u64 = 40;
/// Resident memory, in KB, that all of them together may cost.
const COST: u64 = 96 << 10;

fn resident(world: &World) -> u64 {
    let path = format!("/proc/{}/status", world.host(0).agent_pid().unwrap().unwrap());
    let text = world.run(0, &["cat", &path]);
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Changes the map, by the number that it holds; 1 KB each.
fn change(api: &Api, from: u64, to: u64) {
    for n in from..to {
        let data = json!({"n": n.to_string(), "pad": "x".repeat(1_000)});
        api.merge(&format!("{MAPS}/m"), &json!({"data": data})).unwrap();
    }
}

/// Writes over and over the same keys, which the watchers do not look at.
fn fill_history(world: &World) {
    let access = ours::access(&world.api(0)).unwrap();
    let address = SocketAddr::new(world.host(0).address().into(), access.port);
    let steps = async {
        let client = Client::connect(&access, address).await.unwrap();
        for round in 0..FILLERS {
            let value = format!("{round:0>1024}");
            let put =
                |n: u64| Op::Put { key: Key::from(format!("stream/{n}")), value: value.as_str().into() };
            let transaction = Transaction { compares: Vec::new(), ops: (0..500).map(put).collect() };
            let answer = client.ask(Ask::Transact(transaction)).await.unwrap();
            assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        }
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    world.bed.outside().within(|| runtime().block_on(steps)).unwrap();
}

/// Reads a watch to the last change or to its end: the number it ends at, and how.
fn read(events: Events, first: u64, last: u64) -> (u64, Vec<Value>) {
    let mut expected = first;
    let mut end = Vec::new();
    for event in events {
        if event["type"] != "MODIFIED" {
            end.push(event);
            continue;
        }
        assert!(end.is_empty(), "a change after {end:?}");
        let number: u64 = event["object"]["data"]["n"].as_str().unwrap().parse().unwrap();
        assert_eq!(number, expected, "no change is left out, none comes twice");
        expected += 1;
        if number == last {
            break;
        }
    }
    (expected, end)
}

#[test]
fn clients_that_do_not_read_cost_no_memory_and_get_every_change_or_are_told_that_they_cannot() {
    let world = World::bare(1, "slow-watch");
    world.run(0, &["skein", "init"]);
    let api = world.api(0);
    api.post(MAPS, &json!({"metadata": {"name": "m"}, "data": {"n": "0"}})).unwrap();
    // The history is full before anything is measured.
    fill_history(&world);
    fill_history(&world);
    let before = resident(&world);
    let mut watchers = Vec::new();
    for turn in 0..WATCHERS {
        if turn > 0 {
            fill_history(&world);
        }
        let first = turn * CHANGES + 1;
        let list = api.get(MAPS).unwrap();
        let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
        let path =
            format!("{MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=600&resourceVersion={revision}");
        watchers.push((first, api.watch(&path).unwrap()));
        change(&api, first, first + CHANGES);
    }
    let after = resident(&world);
    eprintln!("resident {before} KB before, {after} KB after");
    assert!(after < before + COST, "{before} KB before, {after} KB after");
    let last = WATCHERS * CHANGES;
    let (mut whole, mut cut) = (0, 0);
    for (first, events) in watchers {
        let (next, end) = read(events, first, last);
        if next > last {
            whole += 1;
            continue;
        }
        cut += 1;
        assert_eq!(end.len(), 2, "a bookmark, then the error: {end:?}");
        assert_eq!(end[0]["type"], "BOOKMARK");
        let (bookmark, error) = (&end[0]["object"], &end[1]["object"]);
        assert_eq!(
            (&end[1]["type"], &error["code"], &error["reason"]),
            (&json!("ERROR"), &json!(410), &json!("Expired"))
        );
        let seen: u64 = bookmark["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(error["message"].as_str().unwrap().contains(&seen.to_string()), "{error}");
        assert!(next > first, "it got what had been made for it");
    }
    eprintln!("{whole} watchers saw all, {cut} were cut at a bookmark");
    assert!(whole >= 1 && cut >= 1, "{whole} whole, {cut} cut");
}

#[test]
fn a_watch_begins_with_what_there_is_page_by_page_and_no_change_is_lost_between() {
    let world = World::bare(1, "watch-pages");
    world.run(0, &["skein", "init"]);
    let api = world.api(0);
    let count = 150;
    for n in 0..count {
        let body =
            json!({"metadata": {"name": format!("m{n:03}")}, "data": {"n": "0", "pad": "x".repeat(2_000)}});
        api.post(MAPS, &body).unwrap();
    }
    let path = format!(
        "{MAPS}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=600"
    );
    let events = api.watch(&path).unwrap();
    // While the first pages wait to be read: a map of the last page changes, one goes, one comes.
    api.merge(&format!("{MAPS}/m149"), &json!({"data": {"n": "1"}})).unwrap();
    api.delete(&format!("{MAPS}/m148")).unwrap();
    api.post(MAPS, &json!({"metadata": {"name": "new"}})).unwrap();
    let seen: Vec<(String, String)> = events
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
        })
        .take(count + 1 + 3)
        .collect();
    let initial: Vec<&str> = seen[..count].iter().map(|(_, name)| name.as_str()).collect();
    // The root CA's map may be there too in times to come; these are all that there are now.
    assert_eq!(initial, (0..count).map(|n| format!("m{n:03}")).collect::<Vec<_>>());
    assert_eq!(seen[count].0, "BOOKMARK");
    let rest: Vec<(&str, &str)> =
        seen[count + 1..].iter().map(|(kind, name)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(rest, [("MODIFIED", "m149"), ("DELETED", "m148"), ("ADDED", "new")]);
}
