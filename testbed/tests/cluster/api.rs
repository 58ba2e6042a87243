//! Bad input over the real API, by kubectl, skein and curl: what a user reads, and that nothing is lost by it.

use serde_json::{Value, json};

use crate::world::{World, pod};

/// Runs on the first host; answers exit code and both outputs.
fn typed(world: &World, words: &[&str], stdin: &str) -> (i32, String) {
    let command = world.host(0).command(words.iter().copied()).stdin(stdin.to_string());
    let output = command.run().unwrap();
    (output.code().unwrap_or(-1), format!("{}{}", output.stdout, output.stderr))
}

fn with_kubeconfig(name: &str) -> World {
    let world = World::of(1, name);
    let kubeconfig = world.run(0, &["skein", "kubeconfig"]);
    std::fs::write(world.host(0).srv_path().join("kubeconfig"), kubeconfig).unwrap();
    world
}

fn kubectl(world: &World, words: &[&str], stdin: &str) -> (i32, String) {
    let start = ["kubectl", "--kubeconfig", "/srv/kubeconfig", "--cache-dir", "/tmp/kube"];
    let line: Vec<&str> = start.iter().chain(words).copied().collect();
    typed(world, &line, stdin)
}

fn curl(world: &World, words: &[&str], stdin: &str) -> String {
    let start =
        ["curl", "-sS", "--unix-socket", "/run/skein/agent.sock", "-H", "content-type: application/json"];
    let line: Vec<&str> = start.iter().chain(words).copied().collect();
    typed(world, &line, stdin).1
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

const MAPS: &str = "http://skein/api/v1/namespaces/default/configmaps";

#[test]
fn unknown_fields_are_warned_of_or_refused_as_asked_and_wrong_types_named() {
    let world = with_kubeconfig("fields");
    let mut odd = pod("odd", "sleep 1000", "Always");
    odd["spec"]["bogus"] = json!(1);
    let text = odd.to_string();
    let (code, said) = kubectl(&world, &["apply", "-f", "-"], &text);
    assert!(code == 1 && said.contains("strict decoding error: unknown field \"spec.bogus\""), "{said}");
    assert_eq!(world.get(0, "pod", "odd"), Value::Null, "nothing was made of it");
    let strict = curl(&world, &["-d", "@-", &format!("{PODS}?fieldValidation=Strict")], &text);
    assert!(strict.contains("strict decoding error: unknown field \\\"spec.bogus\\\""), "{strict}");
    let (code, said) = kubectl(&world, &["apply", "--validate=warn", "-f", "-"], &text);
    assert!(code == 0 && said.contains("Warning: unknown field \"spec.bogus\""), "{said}");
    let (code, said) = typed(&world, &["skein", "apply", "-f", "-"], &text);
    assert!(code == 0 && said.contains("Warning: unknown field \"spec.bogus\""), "{said}");
    assert!(world.get(0, "pod", "odd")["spec"]["bogus"].is_null(), "what is not known is not stored");
    odd["metadata"]["name"] = json!("wrong");
    odd["spec"]["containers"][0]["ports"] = json!([{"containerPort": "http"}]);
    for words in [&["--validate=warn"][..], &[]] {
        let line: Vec<&str> = ["apply", "-f", "-"].iter().chain(words).copied().collect();
        let (code, said) = kubectl(&world, &line, &odd.to_string());
        assert!(code == 1 && said.contains("spec.containers[0].ports[0].containerPort"), "{said}");
    }
    assert_eq!(world.get(0, "pod", "wrong"), Value::Null);
}

const PODS: &str = "http://skein/api/v1/namespaces/default/pods";

#[test]
fn duplicates_conflicts_and_broken_documents_are_named_and_change_nothing() {
    let world = with_kubeconfig("conflicts");
    let first = config_map("c", "first");
    let (code, said) = kubectl(&world, &["create", "-f", "-"], &first.to_string());
    assert_eq!((code, said.trim()), (0, "configmap/c created"));
    let (code, said) = kubectl(&world, &["create", "-f", "-"], &config_map("c", "second").to_string());
    assert_eq!(code, 1);
    assert!(
        said.contains("Error from server (AlreadyExists)")
            && said.contains("configmaps \"c\" already exists"),
        "{said}"
    );
    assert_eq!(world.get(0, "configmap", "c")["data"]["k"], "first");
    // What was read is changed by somebody else before it is written.
    let mut read = world.get(0, "configmap", "c");
    world.apply(0, &config_map("c", "other"));
    read["data"]["k"] = json!("mine");
    let (code, said) = kubectl(&world, &["replace", "-f", "-"], &read.to_string());
    assert_eq!(code, 1);
    assert!(said.contains("(Conflict)") && said.contains("the object has been modified"), "{said}");
    assert_eq!(world.get(0, "configmap", "c")["data"]["k"], "other");
    let cut = curl(&world, &["-w", "%{http_code}", "-d", "@-", MAPS], "{\"kind\": \"ConfigMap\",");
    assert!(cut.ends_with("400") && cut.contains("the body is not valid JSON"), "{cut}");
    let list = curl(&world, &["-w", "%{http_code}", "-d", "@-", MAPS], "[1, 2]");
    assert!(list.ends_with("400") && list.contains("the body must be a JSON object"), "{list}");
    let yaml = ["-w", "%{http_code}", "-H", "content-type: application/yaml", "--data-binary", "@-", MAPS];
    let (_, broken) = typed(
        &world,
        &[&["curl", "-sS", "--unix-socket", "/run/skein/agent.sock"][..], &yaml].concat(),
        "a: [1,\nb: 2",
    );
    assert!(broken.ends_with("400") && broken.contains("flow sequence at line 1"), "{broken}");
    let (code, said) = typed(&world, &["skein", "apply", "-f", "-"], "kind: ConfigMap\n  name: [");
    assert!(code == 1 && said.contains("line"), "{said}");
    assert_eq!(world.get_list(0, "configmaps").len(), 1, "nothing was made of any of it");
}

#[test]
fn a_body_of_ten_megabytes_is_refused_with_a_reason_and_its_connection_goes_on() {
    let world = with_kubeconfig("large");
    let huge = config_map("huge", &"x".repeat(10 << 20));
    let path = world.host(0).srv_path().join("huge.json");
    std::fs::write(path, huge.to_string()).unwrap();
    let (code, said) = kubectl(&world, &["create", "-f", "/srv/huge.json"], "");
    assert_eq!(code, 1);
    assert!(said.contains("too large: limit is 3145728"), "{said}");
    let (code, said) = typed(&world, &["skein", "apply", "-f", "/srv/huge.json"], "");
    assert!(code == 1 && said.contains("too large: limit is 3145728"), "{said}");
    // Sent whole, without asking first; the next request takes the same connection.
    let status = "%{http_code} %{num_connects};";
    let whole = ["-o", "/dev/null", "-w", status, "-H", "expect:", "--data-binary", "@/srv/huge.json", MAPS];
    let next =
        ["--next", "-sS", "--unix-socket", "/run/skein/agent.sock", "-o", "/dev/null", "-w", status, MAPS];
    assert_eq!(curl(&world, &[&whole[..], &next].concat(), ""), "413 1;200 0;");
    // Asked first ("Expect: 100-continue"): refused before a byte of it is sent.
    let asked = ["-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "-H", "expect: 100-continue"];
    let sent = ["--data-binary", "@/srv/huge.json", MAPS];
    assert_eq!(curl(&world, &[&asked[..], &sent].concat(), ""), "413 0");
    // In pieces of unknown number.
    let pieces =
        ["-o", "/dev/null", "-w", "%{http_code}", "-H", "transfer-encoding: chunked", "-H", "expect:"];
    assert_eq!(curl(&world, &[&pieces[..], &sent].concat(), ""), "413");
    assert_eq!(world.get_list(0, "configmaps").len(), 0);
}

#[test]
fn who_shows_no_certificate_of_the_cluster_is_told_unauthorized() {
    let world = with_kubeconfig("nobody");
    let nobody = ["curl", "-ksS", "-w", "%{http_code}", "https://10.77.0.11:6443/api/v1/nodes"];
    let (_, said) = typed(&world, &nobody, "");
    assert!(said.contains("\"reason\":\"Unauthorized\"") && said.ends_with("401"), "{said}");
    let post =
        ["curl", "-ksS", "-w", "%{http_code}", "-d", "{}", "https://10.77.0.11:6443/api/v1/namespaces"];
    let (_, said) = typed(&world, &post, "");
    assert!(said.ends_with("401"), "{said}");
    let stranger = [
        "kubectl",
        "--server",
        "https://10.77.0.11:6443",
        "--insecure-skip-tls-verify",
        "--token",
        "x",
        "get",
        "pods",
    ];
    let (code, said) = typed(&world, &stranger, "");
    assert!(code == 1 && said.contains("You must be logged in to the server"), "{said}");
    // Somebody else's CA says that this is the administrator.
    let make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/k -out /tmp/c \
        -subj /O=system:masters/CN=skein-admin";
    let (code, said) = typed(&world, &["sh", "-c", make], "");
    assert_eq!(code, 0, "{said}");
    let shown = ["--cert", "/tmp/c", "--key", "/tmp/k"];
    for words in [&nobody[..], &post] {
        let (code, said) = typed(&world, &[words, &shown].concat(), "");
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains("\"kind\":\"Status\"") && said.contains("\"reason\":\"Unauthorized\""),
            "{said}"
        );
        assert!(said.ends_with("401") && !said.contains("items"), "{said}");
    }
    let forged = [
        "kubectl",
        "--server",
        "https://10.77.0.11:6443",
        "--insecure-skip-tls-verify",
        "--client-certificate",
        "/tmp/c",
        "--client-key",
        "/tmp/k",
        "get",
        "pods",
    ];
    let (code, said) = typed(&world, &forged, "");
    assert!(code == 1 && said.contains("You must be logged in to the server"), "{said}");
    assert_eq!(kubectl(&world, &["get", "nodes", "-o", "name"], ""), (0, "node/host1\n".to_string()));
}

#[test]
fn the_socket_is_for_root_alone() {
    let world = World::of(1, "socket");
    let nodes = [
        "curl",
        "-sS",
        "-w",
        "%{http_code}",
        "--unix-socket",
        "/run/skein/agent.sock",
        "http://skein/api/v1/nodes",
    ];
    let as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let other: Vec<&str> = as_nobody.iter().chain(&nodes).copied().collect();
    let (code, said) = typed(&world, &other, "");
    assert!(code != 0 && !said.contains("items"), "{said}");
    // Not even where the directory lets others through, and not where somebody has opened the socket itself.
    world.run(0, &["chmod", "0755", "/run/skein"]);
    let (code, said) = typed(&world, &other, "");
    assert!(code != 0 && !said.contains("items"), "{said}");
    world.run(0, &["chmod", "0666", "/run/skein/agent.sock"]);
    let (code, said) = typed(&world, &other, "");
    assert!(code == 0 && said.contains("\"reason\":\"Unauthorized\"") && said.ends_with("401"), "{said}");
    let (code, said) = typed(&world, &nodes, "");
    assert!(code == 0 && said.contains("items") && said.ends_with("200"), "{said}");
}

#[test]
fn pages_of_a_list_show_one_moment_whichever_agent_is_asked() {
    let world = World::of(2, "pages");
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    ["a", "c", "e", "g"].iter().for_each(|name| world.apply(0, &map(name)));
    let maps = "/api/v1/namespaces/default/configmaps";
    let names = |list: &serde_json::Value| -> Vec<String> {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap_or("").to_string()).collect()
    };
    let first = world.api(0).get(&format!("{maps}?limit=2")).unwrap();
    assert_eq!(names(&first), ["a", "c"]);
    ["b", "f"].iter().for_each(|name| world.apply(0, &map(name)));
    world.run(0, &["skein", "delete", "configmap", "e"]);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = world.api(1).get(&format!("{maps}?limit=2&continue={token}")).unwrap();
    assert_eq!(names(&second), ["e", "g"], "as it was when the first page was asked for");
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    assert_eq!(names(&world.api(1).get(maps).unwrap()), ["a", "b", "c", "f", "g"]);
}

#[test]
fn a_read_waits_for_the_resource_version_that_it_names_and_not_for_ever() {
    let world = World::of(3, "notolder");
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counts"}});
    let version = |object: &serde_json::Value| -> u64 {
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    let now = version(&world.api(0).post(maps, &map).unwrap());
    // So far ahead that only the writes below reach it.
    let wanted = now + 20;
    for index in 0..3 {
        let shown = version(&world.api(index).get(&format!("{maps}?resourceVersion={now}")).unwrap());
        assert!((now..wanted).contains(&shown), "{shown}, {now} was asked for");
    }
    let begun = &std::sync::Barrier::new(3);
    testbed::clock::threads(|scope| {
        let paths =
            [format!("{maps}/counts?resourceVersion={wanted}"), format!("{maps}?resourceVersion={wanted}")];
        let reads = paths.map(|path| {
            let api = world.api(2);
            scope.spawn(move || {
                begun.wait();
                api.get(&path)
            })
        });
        begun.wait();
        let mut last = now;
        for n in 0..20 {
            let patch = json!({"data": {"n": n.to_string()}});
            last = version(&world.api(0).merge(&format!("{maps}/counts"), &patch).unwrap());
        }
        assert!(last >= wanted);
        let [object, list] = reads.map(|read| read.join().unwrap().unwrap());
        assert!(version(&list) >= wanted, "{list}");
        let n = |object: &serde_json::Value| object["data"]["n"].as_str().unwrap_or("").to_string();
        // Others may write between, and then it is there a little before the last of these.
        assert!(n(&object).parse::<u64>().is_ok_and(|n| n > 3), "{object}");
        assert!(n(&list["items"][0]).parse::<u64>().is_ok_and(|n| n > 3), "{list}");
    });
    for path in [format!("{maps}/counts"), maps.to_string()] {
        let began = testbed::clock::now();
        let future = format!("{path}?resourceVersion={}", wanted + 1_000_000);
        let error = world.api(2).get(&future).unwrap_err().to_string();
        assert!(error.contains("504") && error.contains("Too large resource version"), "{error}");
        assert!(began.elapsed().as_millis() > 2_500, "it waited {:?}", began.elapsed());
    }
}
