//! What the cluster tests share: a bed with agents, and short words for asking them.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::http::Api;
use testbed::{Bed, BedConfig, Host};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(40);

pub struct World {
    pub bed: Bed,
}

impl World {
    /// Hosts on which nothing of ours runs.
    pub fn untouched(hosts: usize, name: &str) -> World {
        let directory =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        World { bed: Bed::create(BedConfig::new(name, hosts, directory)).unwrap() }
    }

    /// Hosts with agents that were told nothing.
    pub fn bare(hosts: usize, name: &str) -> World {
        let world = World::untouched(hosts, name);
        for host in world.bed.hosts() {
            host.start_agent().unwrap();
        }
        for index in 0..hosts {
            world.until_told_nothing(index);
        }
        world
    }

    /// Waits for an agent that belongs to no cluster.
    pub fn until_told_nothing(&self, index: usize) {
        self.until("the agent answers", || {
            let answer = self.api(index).get("/skein/v1/cluster");
            answer.is_err_and(|error| error.to_string().contains("not a member of a cluster"))
        });
    }

    /// Lets a host join the cluster of another.
    pub fn join(&self, to: usize, index: usize) {
        let words = self.join_words(to);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.run(index, &words);
    }

    /// A cluster, with the small image loaded.
    pub fn of(hosts: usize, name: &str) -> World {
        let world = World::bare(hosts, name);
        world.run(0, &["skein", "init"]);
        for index in 1..hosts {
            let words = world.join_words(0);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            world.run(index, &words);
        }
        let voters = raft_store::autopilot::wanted_voters(hosts, None);
        world.until("the voters vote", || {
            world.status(0).is_some_and(|status| status["voters"].as_array().map_or(0, Vec::len) == voters)
        });
        for index in 0..hosts {
            let wanted = json!(hosts);
            world.until("every host knows all members", || {
                world
                    .status(index)
                    .is_some_and(|status| json!(status["members"].as_array().map_or(0, Vec::len)) == wanted)
            });
        }
        world.load_image(0);
        world
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.bed.hosts()[index]
    }

    pub fn api(&self, index: usize) -> Api {
        Api::at(&PathBuf::from(format!("/proc/{}/root", self.host(index).init_pid().unwrap())))
    }

    /// Standard output of a command that must succeed.
    pub fn run(&self, index: usize, words: &[&str]) -> String {
        match self.host(index).run(words.iter().copied()).unwrap().ok() {
            Ok(text) => text,
            Err(error) => panic!("{error}\n{}", self.log(index)),
        }
    }

    /// What a command says that must fail.
    pub fn fails(&self, index: usize, words: &[&str]) -> String {
        let output = self.host(index).run(words.iter().copied()).unwrap();
        assert!(!output.success(), "{words:?} succeeded: {}", output.stdout);
        format!("{}{}", output.stdout, output.stderr)
    }

    /// The end of an agent's log.
    fn log(&self, index: usize) -> String {
        let text = std::fs::read_to_string(self.host(index).log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub fn until(&self, what: &str, mut test: impl FnMut() -> bool) {
        let found = testbed::clock::poll(LIMIT, Duration::from_millis(30), || test().then_some(()));
        if found.is_none() {
            let logs: Vec<String> = (0..self.bed.hosts().len())
                .map(|index| format!("--- {}\n{}", self.host(index).name(), self.log(index)))
                .collect();
            panic!("{what}: not within {LIMIT:?}\n{}", logs.join("\n"));
        }
    }

    /// `skein join ADDRESS --token TOKEN`, from a fresh token.
    pub fn join_words(&self, index: usize) -> Vec<String> {
        let text = self.run(index, &["skein", "token", "create"]);
        let line = text.lines().find(|line| line.trim().starts_with("skein join")).unwrap();
        line.split_whitespace().map(String::from).collect()
    }

    pub fn status(&self, index: usize) -> Option<Value> {
        self.api(index).get("/skein/v1/cluster").ok()
    }

    pub fn load_image(&self, index: usize) {
        let path = self.host(index).srv_path().join("small.tar");
        if !path.exists() {
            testbed::small_image::write(&path).unwrap();
            self.run(index, &["skein", "image", "load", "/srv/small.tar"]);
        }
    }

    pub fn apply(&self, index: usize, document: &Value) {
        self.host(index).command(["skein", "apply", "-f", "-"]).stdin(document.to_string()).ok().unwrap();
    }

    pub fn get(&self, index: usize, kind: &str, name: &str) -> Value {
        let text = self.host(index).run(["skein", "get", kind, name, "-o", "json"]).unwrap().stdout;
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub fn get_list(&self, index: usize, kind: &str) -> Vec<Value> {
        let text = self.run(index, &["skein", "get", kind, "-o", "json"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    pub fn phase(&self, index: usize, name: &str) -> String {
        self.get(index, "pod", name)["status"]["phase"].as_str().unwrap_or("").into()
    }

    fn of_app(&self, index: usize, app: &str) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}");
        let list = self.api(index).get(&path).unwrap_or(Value::Null);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Nodes of the application's running pods.
    pub fn running(&self, index: usize, app: &str) -> Vec<String> {
        let up = |pod: &Value| {
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let pods = self.of_app(index, app).into_iter().filter(up);
        pods.map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or("").into()).collect()
    }

    /// Names of the application's pods.
    pub fn pods(&self, index: usize, app: &str) -> Vec<String> {
        self.of_app(index, app)
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap_or("").into())
            .collect()
    }

    /// A host that does not lead and is not the first.
    pub fn follower(&self) -> usize {
        let leader = self.status(0).unwrap()["leader"].clone();
        (1..self.bed.hosts().len()).find(|index| leader != self.host(*index).name()).unwrap()
    }

    /// An HTTP answer from outside, by a new connection.
    pub fn http(&self, address: &str) -> Option<String> {
        let mut stream = self.bed.outside().connect(address.parse().unwrap(), Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// A pod with one container that runs a shell line.
pub fn pod(name: &str, line: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "small:1", "command": ["sh", "-c", line]}]},
    })
}

/// A deployment of small web servers that say "hello".
pub fn app(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "small:1",
                "command": ["sh", "-c", "echo ready; httpd -f -p 8080 -h /www"], "ports": [{"containerPort": 8080}]}]},
        }},
    })
}
