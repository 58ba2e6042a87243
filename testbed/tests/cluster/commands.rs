//! Commands as people type them: what goes on being shown, in which form and colour; and changes by every kind of patch.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::wire::End;

use crate::world::{World, app, pod};

const END: Duration = Duration::from_secs(20);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// The pod runs on the second host, the first one is asked.
fn logs_are_followed_across_machines_to_the_pods_end(world: &World) {
    let line = "echo one; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo two; while ! [ -e /tmp/end ]; do sleep 0.05; done";
    let mut talker = pod("talker", line, "Never");
    talker["spec"]["nodeName"] = json!("host2");
    world.apply(0, &talker);
    world.until("the pod runs", || world.phase(0, "talker") == "Running");
    let typed = world.host(0).spawn(["skein", "logs", "-f", "talker"]).unwrap();
    let address = "http://skein/api/v1/namespaces/default/pods/talker/log?follow=true";
    let curl = ["curl", "-sSN", "--unix-socket", "/run/skein/agent.sock", address];
    let asked = world.host(0).spawn(curl).unwrap();
    let both_show = |text: &str| {
        world.until("both show it", || typed.stdout() == text && asked.stdout() == text);
    };
    both_show("one\n");
    world.run(0, &["skein", "exec", "talker", "--", "touch", "/tmp/go"]);
    both_show("one\ntwo\n");
    assert_eq!(world.run(0, &["skein", "logs", "talker"]), "one\ntwo\n", "without -f it does not wait");
    world.run(0, &["skein", "exec", "talker", "--", "touch", "/tmp/end"]);
    for process in [typed, asked] {
        let output = process.wait(END).unwrap();
        assert!(output.success() && output.stdout == "one\ntwo\n", "{output:?}");
    }
}

fn a_watch_shows_what_is_added_changed_and_deleted_until_it_is_interrupted(world: &World) {
    world.apply(0, &map("old", json!({"a": "1"})));
    let watch = world.host(1).spawn(["skein", "get", "configmaps", "-w"]).unwrap();
    let names = world.host(1).spawn(["skein", "get", "configmaps", "-w", "-o", "name"]).unwrap();
    // Name and number of entries; the last column is the age.
    let seen = || -> Vec<(String, String)> {
        let text = watch.stdout();
        let words = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.map(|words| (words[0].to_owned(), words[1].to_owned())).collect()
    };
    let mut expected = vec![("old", "1")];
    let until_seen = |expected: &[(&str, &str)]| {
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, count)| ((*name).to_owned(), (*count).to_owned())).collect();
        let lines: String = expected.iter().map(|(name, _)| format!("configmap/{name}\n")).collect();
        world.until("the watch shows it", || seen() == expected && names.stdout() == lines);
    };
    until_seen(&expected);
    assert!(watch.stdout().starts_with("NAME"), "{}", watch.stdout());
    world.apply(0, &map("new", json!({"a": "1"})));
    expected.push(("new", "1"));
    until_seen(&expected);
    world.apply(0, &map("new", json!({"a": "1", "b": "2"})));
    expected.push(("new", "2"));
    until_seen(&expected);
    world.run(0, &["skein", "delete", "configmap", "new"]);
    expected.push(("new", "2"));
    until_seen(&expected);
    // A shell shows this end as 130.
    for process in [watch, names] {
        process.signal(Signal::SIGINT).unwrap();
        let output = process.wait(END).unwrap();
        assert_eq!((output.end, output.stderr.as_str()), (End::Signal(Signal::SIGINT as i32), ""));
    }
}

fn objects_are_shown_in_every_form(world: &World) {
    let plain = world.run(0, &["skein", "get", "pod", "talker"]);
    let wide = world.run(0, &["skein", "get", "pod", "talker", "-o", "wide"]);
    let address = world.get(0, "pod", "talker")["status"]["podIP"].as_str().unwrap().to_owned();
    for (header, value) in [("NODE", "host2"), ("IP", address.as_str())] {
        let column = |text: &str, row: usize, word: &str| {
            text.lines().nth(row).unwrap().split_whitespace().any(|found| found == word)
        };
        assert!(column(&wide, 0, header) && column(&wide, 1, value), "{wide}");
        assert!(!column(&plain, 0, header) && !column(&plain, 1, value), "{plain}");
    }
    let json = world.get(0, "configmap", "old");
    let yaml = world.run(1, &["skein", "get", "configmap", "old", "-o", "yaml"]);
    for line in ["apiVersion: v1", "kind: ConfigMap", "data:", "  a: '1'", "  name: old"] {
        assert!(yaml.lines().any(|found| found == line), "{line}: {yaml}");
    }
    assert!(yaml.contains(&format!("  uid: {}\n", json["metadata"]["uid"].as_str().unwrap())), "{yaml}");
    assert_eq!(
        world.run(1, &["skein", "get", "configmaps,pods", "-o", "name"]),
        "configmap/old\npod/talker\n"
    );
}

fn a_deployment_is_described_with_its_sets_and_events(world: &World) {
    world.apply(0, &app("web", 2));
    world.until("it is rolled out", || world.running(0, "web").len() == 2);
    world.until("the deployment knows", || world.get(0, "deployment", "web")["status"]["readyReplicas"] == 2);
    let set = world.get_list(0, "replicasets")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let text = world.run(1, &["skein", "describe", "deployment", "web"]);
    for words in [
        "Name:                   web\n".to_owned(),
        "Selector:               app=web\n".to_owned(),
        "2 desired | 2 updated | 2 total | 2 available | 0 unavailable\n".to_owned(),
        "Image:        small:1\n".to_owned(),
        "MinimumReplicasAvailable".to_owned(),
        format!("NewReplicaSet:   {set} (2/2 replicas created)\n"),
        format!("Scaled up replica set {set} from 0 to 2"),
    ] {
        assert!(text.contains(&words), "{words}: {text}");
    }
    world.run(0, &["skein", "delete", "deployment", "web"]);
}

/// `script` runs a command on a pseudo-terminal of its own.
fn colours_are_for_terminals_whose_user_wants_them(world: &World) {
    let mut odd = map("odd", json!({}));
    odd["bogus"] = json!(1);
    std::fs::write(world.host(0).srv_path().join("odd.json"), odd.to_string()).unwrap();
    let lines = ["skein get pod nobody", "skein get pod nobody nowhere", "skein apply -f /srv/odd.json"];
    let cases = [(None, true), (Some(""), true), (Some("1"), false)];
    for (line, word) in lines.into_iter().zip(["error:", "error:", "Warning:"]) {
        let colour = if word == "error:" { "31" } else { "33" };
        let coloured = format!("\u{1b}[{colour}m{word}\u{1b}[0m ");
        for (refused, colours) in cases {
            let mut command = world.host(0).command(["script", "-qec", line, "/dev/null"]);
            if let Some(value) = refused {
                command = command.env("NO_COLOR", value);
            }
            let said = command.run().unwrap().stdout;
            let lines = said.lines().filter(|line| line.contains(word));
            let wanted = lines.clone().count() > 0
                && lines.clone().all(|line| match colours {
                    true => line.starts_with(&coloured),
                    false => line.starts_with(word),
                });
            assert!(wanted && colours == said.contains('\u{1b}'), "{line}, NO_COLOR {refused:?}: {said:?}");
        }
        let output = world.host(0).run(line.split(' ')).unwrap();
        assert!(output.stderr.starts_with(word) && !output.stderr.contains('\u{1b}'), "{output:?}");
    }
}

fn patches_of_each_kind_change_what_they_name(world: &World) {
    // Not the host that leads.
    let api = world.api(1);
    api.post(MAPS, &map("p", json!({"a": "1", "b": "2"}))).unwrap();
    let path = format!("{MAPS}/p");
    let data = || api.get(&path).unwrap()["data"].clone();
    let patch =
        |kind: &str, body: Value| api.ask("PATCH", &path, &format!("application/{kind}"), &body.to_string());
    let answer = patch(
        "json-patch+json",
        json!([
            {"op": "test", "path": "/data/a", "value": "1"},
            {"op": "replace", "path": "/data/a", "value": "3"},
            {"op": "remove", "path": "/data/b"},
            {"op": "add", "path": "/metadata/labels", "value": {"x/y": "z"}},
            {"op": "copy", "from": "/data/a", "path": "/data/c"},
        ]),
    );
    let answer = answer.unwrap();
    assert_eq!(answer["data"], json!({"a": "3", "c": "3"}));
    assert_eq!(answer, api.get(&path).unwrap(), "what is answered is what is stored");
    let failed = patch(
        "json-patch+json",
        json!([{"op": "replace", "path": "/data/a", "value": "9"}, {"op": "test", "path": "/data/c", "value": "4"}]),
    );
    assert!(failed.unwrap_err().to_string().starts_with("422"), "its test does not hold");
    assert_eq!(data(), json!({"a": "3", "c": "3"}), "none of it was done");
    let answer = patch(
        "merge-patch+json",
        json!({"data": {"a": null, "d": "5"}, "metadata": {"labels": {"x/y": null, "k": "v"}}}),
    );
    let answer = answer.unwrap();
    assert_eq!(
        (&answer["data"], &answer["metadata"]["labels"]),
        (&json!({"c": "3", "d": "5"}), &json!({"k": "v"}))
    );
    assert_eq!(answer, api.get(&path).unwrap());
}

/// Two containers, each with an image and variables.
fn of_two(first: (&str, Value), second: (&str, Value)) -> Value {
    let mut deployment = app("two", 1);
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["containers"][0]["image"] = json!(first.0);
    spec["containers"][0]["env"] = first.1;
    let container = json!({"name": "d", "image": second.0, "command": ["sleep", "1000"], "env": second.1});
    spec["containers"].as_array_mut().unwrap().push(container);
    deployment
}

fn kubectl_changes_one_of_two_containers(world: &World) {
    world.run(0, &["skein", "image", "load", "--name", "small:2", "/srv/small.tar"]);
    let kubeconfig = world.run(0, &["skein", "kubeconfig"]);
    std::fs::write(world.host(0).srv_path().join("kubeconfig"), kubeconfig).unwrap();
    let apply = |document: &Value| {
        let line =
            ["kubectl", "--kubeconfig", "/srv/kubeconfig", "--cache-dir", "/tmp/kube", "apply", "-f", "-"];
        world.host(0).command(line).stdin(document.to_string()).ok().unwrap()
    };
    let env = |pairs: &[(&str, &str)]| -> Value {
        pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    };
    let (own, kept) = (env(&[("A", "1"), ("B", "2")]), env(&[("A", "one")]));
    assert_eq!(apply(&of_two(("small:1", kept.clone()), ("small:1", own))), "deployment.apps/two created\n");
    // Somebody else's part, which kubectl must leave alone.
    let path = "/apis/apps/v1/namespaces/default/deployments/two";
    let added = json!([{"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": {"name": "THEIRS", "value": "3"}}]);
    world.api(1).ask("PATCH", path, "application/json-patch+json", &added.to_string()).unwrap();
    let second = of_two(("small:1", kept), ("small:2", env(&[("A", "9"), ("C", "4")])));
    assert_eq!(apply(&second), "deployment.apps/two configured\n");
    let containers = world.get(0, "deployment", "two")["spec"]["template"]["spec"]["containers"].clone();
    let of = |index: usize, field: &str| containers[index][field].clone();
    assert_eq!(containers.as_array().unwrap().len(), 2);
    assert_eq!((of(0, "name"), of(0, "image")), (json!("c"), json!("small:1")));
    assert_eq!(of(0, "env"), env(&[("A", "one"), ("THEIRS", "3")]));
    assert_eq!((of(1, "name"), of(1, "image")), (json!("d"), json!("small:2")));
    assert_eq!(of(1, "command"), json!(["sleep", "1000"]));
    assert_eq!(of(1, "env"), env(&[("A", "9"), ("C", "4")]));
    world.until("the new form runs", || {
        let pods = world.get_list(0, "pods");
        let mut pods = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "two");
        pods.next().is_some_and(|pod| {
            pod["status"]["phase"] == "Running" && pod["spec"]["containers"][1]["image"] == "small:2"
        }) && pods.next().is_none()
    });
    let name = world.pods(0, "two")[0].clone();
    let seen = world.run(0, &["skein", "exec", &name, "-c", "d", "--", "sh", "-c", "echo $A$B$C"]);
    assert_eq!(seen, "94\n");
}

#[test]
fn commands_show_follow_and_change_objects_at_any_machine() {
    let world = World::of(2, "commands");
    logs_are_followed_across_machines_to_the_pods_end(&world);
    a_watch_shows_what_is_added_changed_and_deleted_until_it_is_interrupted(&world);
    objects_are_shown_in_every_form(&world);
    a_deployment_is_described_with_its_sets_and_events(&world);
    colours_are_for_terminals_whose_user_wants_them(&world);
    patches_of_each_kind_change_what_they_name(&world);
    kubectl_changes_one_of_two_containers(&world);
}
