//! The demo's cluster: asked and changed by the `skein` command inside its hosts.
//!
//! Decides how long a user would wait for something, and says what was seen instead when it does not come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::transcript::Transcript;
use super::{DemoError, IMAGES};
use crate::bed::Bed;
use crate::clock;
use crate::host::Host;

const START: Duration = Duration::from_secs(15);
const JOIN: Duration = Duration::from_secs(30);
const LOAD: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

pub struct Cluster<'t> {
    pub bed: Bed,
    pub transcript: &'t Transcript,
    pub stop: Arc<AtomicBool>,
}

/// A pod as `skein get pods` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub address: String,
    pub ready: bool,
    /// Id, start time and restarts of its first container.
    pub container: (String, String, u64),
}

impl Cluster<'_> {
    /// Starts the agents, makes a cluster of them, loads the images on the first.
    pub fn form(&self) -> Result<(), DemoError> {
        let step = |what: &str, act: &dyn Fn() -> Result<String, DemoError>| {
            self.transcript.step(what, || act().map(|said| (said, ())))
        };
        step("an agent on each host", &|| self.start_agents())?;
        step("skein init on host1, skein join on the others", &|| self.join())?;
        step("three members, three voters", &|| self.three_voters())?;
        step("skein image load, on host1 only", &|| self.load_images())
    }

    pub fn host(&self, name: &str) -> Result<&Host, DemoError> {
        Ok(self.bed.host(name)?)
    }

    /// What `skein ARGS` prints on a host; it must succeed.
    pub fn skein(&self, host: &str, args: &[&str]) -> Result<String, DemoError> {
        Ok(self.host(host)?.ok(["skein"].iter().chain(args))?)
    }

    pub fn json(&self, host: &str, args: &[&str]) -> Result<Value, DemoError> {
        let all: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        let text = self.skein(host, &all)?;
        let expected = || format!("JSON from `skein {}`", all.join(" "));
        serde_json::from_str(&text)
            .map_err(|e| DemoError::Expected { expected: expected(), found: e.to_string() })
    }

    pub fn apply(&self, host: &str, manifest: String) -> Result<String, DemoError> {
        Ok(self.host(host)?.command(["skein", "apply", "-f", "-"]).stdin(manifest).ok()?)
    }

    /// Looks until there is an answer; `look` says what it sees meanwhile.
    pub fn wait<T>(
        &self,
        expected: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Result<T, String>, DemoError>,
    ) -> Result<T, DemoError> {
        let mut seen = String::new();
        let mut stopped = false;
        let found = clock::poll(limit, PAUSE, || {
            stopped = self.stop.load(Ordering::Relaxed);
            if stopped {
                return Some(None);
            }
            match look() {
                Ok(Ok(found)) => return Some(Some(found)),
                Ok(Err(other)) => seen = other,
                Err(error) => seen = error.to_string(),
            }
            None
        });
        match found.flatten() {
            Some(found) => Ok(found),
            None if stopped => Err(DemoError::Interrupted),
            None => {
                Err(DemoError::Expected { expected: format!("{expected} within {limit:?}"), found: seen })
            }
        }
    }

    /// The pods of an application, those that are being deleted left out.
    pub fn pods(&self, from: &str, app: &str) -> Result<Vec<Pod>, DemoError> {
        let list = self.json(from, &["get", "pods", "-l", &format!("app={app}")])?;
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(Pod::of).collect())
    }

    /// The node that leads, as another sees it.
    pub fn leader(&self, from: &str) -> Result<Option<String>, DemoError> {
        let status = self.json(from, &["cluster", "status"])?;
        Ok(status["leader"].as_str().filter(|name| !name.is_empty()).map(str::to_owned))
    }

    /// Waits until an agent takes commands.
    pub fn answers(&self, host: &Host) -> Result<(), DemoError> {
        let expected = format!("the agent of {} at its socket", host.name());
        self.wait(&expected, START, || {
            let there = host.run(["test", "-S", "/run/skein/agent.sock"])?;
            Ok(if there.success() { Ok(()) } else { Err("no socket /run/skein/agent.sock".to_owned()) })
        })
    }

    fn start_agents(&self) -> Result<String, DemoError> {
        for host in self.bed.hosts() {
            host.start_agent()?;
        }
        self.bed.hosts().iter().try_for_each(|host| self.answers(host))?;
        Ok(self.skein("host1", &["version"])?.trim().to_owned())
    }

    fn join(&self) -> Result<String, DemoError> {
        let said = self.skein("host1", &["init"])?;
        let line = said.lines().map(str::trim).find(|line| line.starts_with("skein join "));
        let none =
            || DemoError::Expected { expected: "a line `skein join …`".to_owned(), found: said.clone() };
        let words: Vec<&str> = line.ok_or_else(none)?.split_whitespace().collect();
        for host in self.bed.hosts().iter().skip(1) {
            host.command(&words).limit(JOIN).ok()?;
        }
        Ok(words.get(..3).unwrap_or_default().join(" ") + " --token …")
    }

    fn three_voters(&self) -> Result<String, DemoError> {
        let hosts = self.bed.hosts();
        let leaders = hosts.iter().map(|host| {
            self.wait(&format!("three members alive and three voters, seen by {}", host.name()), JOIN, || {
                let status = self.json(host.name(), &["cluster", "status"])?;
                let voters = status["voters"].as_array().map_or(0, Vec::len);
                let members = status["members"].as_array().into_iter().flatten();
                let alive = members.filter(|m| m["state"] == "alive").count();
                let leader = status["leader"].as_str().unwrap_or("").to_owned();
                let formed = voters == hosts.len() && alive == hosts.len() && !leader.is_empty();
                Ok(if formed {
                    Ok(leader)
                } else {
                    Err(format!("{alive} alive, {voters} voters, leader {leader:?}"))
                })
            })
        });
        let leaders: Vec<String> = leaders.collect::<Result<_, _>>()?;
        Ok(format!("{} leads", leaders.first().map_or("nobody", String::as_str)))
    }

    fn load_images(&self) -> Result<String, DemoError> {
        let host = self.host("host1")?;
        let mut holders = String::new();
        for archive in ["web.tar", "redis.tar"] {
            let path = format!("{IMAGES}/{archive}");
            let said = host.command(["skein", "image", "load", &path]).limit(LOAD).ok()?;
            holders = said.trim().rsplit_once(" on ").map_or(said.clone(), |(_, on)| on.to_owned());
        }
        Ok(format!("synced on {holders}"))
    }
}

impl Pod {
    fn of(pod: &Value) -> Pod {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|c| c["type"] == "Ready");
        let status = "/status/containerStatuses/0";
        let restarts = pod.pointer(&format!("{status}/restartCount")).and_then(Value::as_u64);
        let started = text(&format!("{status}/state/running/startedAt"));
        Pod {
            name: text("/metadata/name"),
            node: text("/spec/nodeName"),
            address: text("/status/podIP"),
            ready: ready.any(|c| c["status"] == "True"),
            container: (text(&format!("{status}/containerID")), started, restarts.unwrap_or(0)),
        }
    }
}
