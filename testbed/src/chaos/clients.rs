//! Clients that hop between agents: they write, swap, read, list and watch a few hot keys, and write down what they were told.
//!
//! Decides by seed what is asked of whom, and what an answer means. Must not judge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::history::{Ask, Call, Event, History, List, Told, Watch};
use crate::clock;
use crate::http::{Api, HttpError};

const KEYS: u64 = 6;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longer than the agent's own deadline, so that its word comes first.
const PATIENCE: Duration = Duration::from_secs(5);
/// Kept between two requests of a client: histories are to be judged, not to be long.
const PAUSE: Duration = Duration::from_millis(8);

/// What all clients share.
pub struct Clients<'a> {
    cluster: &'a Cluster,
    began: Instant,
    pub stop: AtomicBool,
    /// Nobody asks on: lists can be compared. Watches go on.
    pub quiet: AtomicBool,
    next_value: AtomicU64,
    /// The newest revision that anybody was told.
    newest: AtomicU64,
    history: Mutex<History>,
}

impl<'a> Clients<'a> {
    pub fn new(cluster: &'a Cluster, history: History) -> Clients<'a> {
        Clients {
            cluster,
            began: clock::now(),
            stop: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            newest: AtomicU64::new(history.began),
            history: Mutex::new(history),
        }
    }

    /// Microseconds since the begin.
    pub fn time(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn fault(&self, what: String) {
        let time = self.time();
        self.note(|history| history.faults.push((time, what)));
    }

    pub fn into_history(self) -> History {
        self.history.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests were answered until now.
    pub fn answered(&self) -> usize {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).calls.len()
    }

    fn note(&self, note: impl FnOnce(&mut History)) {
        note(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn saw(&self, revision: u64) {
        self.newest.fetch_max(revision, Ordering::Relaxed);
    }

    fn api(&self, host: usize) -> Option<Api> {
        self.cluster.api(host).map(|api| api.patient(PATIENCE))
    }

    /// Asks one thing after the other, each at some agent, until it is told to stop.
    pub fn ask_on(&self, number: u64) {
        let mut rng = SmallRng::seed_from_u64(self.seed() ^ (number + 1).wrapping_mul(0x9e37_79b9));
        while !self.stopped() && !self.quiet.load(Ordering::Relaxed) {
            let (host, key) = (rng.random_range(0..self.cluster.len()), rng.random_range(0..KEYS));
            match rng.random_range(0..100) {
                0..30 => self.call(host, key, Ask::Read, None),
                30..48 => self.call(host, key, Ask::Write(self.fresh()), None),
                48..54 => self.call(host, key, Ask::Create(self.fresh()), None),
                54..57 => self.call(host, key, Ask::Delete, None),
                57..80 => self.swap(host, rng.random_range(0..self.cluster.len()), key),
                80..85 => self.list(host, false),
                _ => self.list(host, true),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn seed(&self) -> u64 {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).seed
    }

    fn fresh(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads whatever one agent has, and swaps that at another one.
    fn swap(&self, reader: usize, writer: usize, key: u64) {
        let Some(api) = self.api(reader) else { return };
        let Ok(map) = api.get(&format!("{MAPS}/hot-{key}?resourceVersion=0")) else { return };
        let (Some(expected), Some(revision)) = (value_of(&map), revision_of(&map)) else { return };
        self.call(writer, key, Ask::Swap { expected, new: self.fresh() }, Some(revision));
    }

    fn call(&self, host: usize, key: u64, ask: Ask, revision: Option<u64>) {
        let Some(api) = self.api(host) else { return };
        let called = self.time();
        let answer = send(&api, key, ask, revision);
        let returned = self.time();
        let told = told(ask, answer);
        if let Told::Done { revision, .. } = told {
            self.saw(revision);
        }
        self.note(|history| history.calls.push(Call { host, key, ask, told, called, returned }));
    }

    fn list(&self, host: usize, stale: bool) {
        let Some(api) = self.api(host) else { return };
        let called = self.time();
        let query = if stale { "?resourceVersion=0" } else { "" };
        let Ok(list) = api.get(&format!("{MAPS}{query}")) else { return };
        let (Some(at), Some(items)) = (revision_of(&list), list["items"].as_array()) else { return };
        let items = items.iter().filter_map(|map| Some((key_of(map)?, value_of(map)?, revision_of(map)?)));
        let list = List { host, stale, at, items: items.collect(), called, returned: self.time() };
        self.saw(at);
        self.note(|history| history.lists.push(list));
    }

    /// Follows all changes from the begin, resuming where it was, each time at some agent.
    pub fn follow(&self, number: u64) {
        let mut rng = SmallRng::seed_from_u64(self.seed() ^ (number + 101).wrapping_mul(0x9e37_79b9));
        let mut at = self.note_began();
        while !self.stopped() {
            at = self.watch(rng.random_range(0..self.cluster.len()), at, rng.random_range(1..=3));
        }
        // The last word: with everything healed, all that was written.
        for host in 0..self.cluster.len() {
            at = self.watch(host, at, 1);
        }
    }

    fn note_began(&self) -> u64 {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).began
    }

    /// Resumes at revisions around the newest, past and future.
    pub fn resume(&self, number: u64) {
        let mut rng = SmallRng::seed_from_u64(self.seed() ^ (number + 201).wrapping_mul(0x9e37_79b9));
        while !self.stopped() {
            let newest = self.newest.load(Ordering::Relaxed);
            let from = (newest + rng.random_range(0..=200)).saturating_sub(100).max(self.note_began());
            self.watch(rng.random_range(0..self.cluster.len()), from, rng.random_range(1..=2));
        }
    }

    /// One watch; answers up to where it has heard.
    fn watch(&self, host: usize, from: u64, seconds: u32) -> u64 {
        let path = format!(
            "{MAPS}?watch=1&resourceVersion={from}&timeoutSeconds={seconds}&allowWatchBookmarks=true"
        );
        let events = self.api(host).and_then(|api| api.watch(&path).ok());
        let Some(events) = events else {
            std::thread::sleep(Duration::from_millis(20));
            return from;
        };
        let mut watch = Watch { host, from, ..Watch::default() };
        for event in events {
            let object = &event["object"];
            let Some(revision) = revision_of(object) else {
                watch.expired = event["type"] == "ERROR";
                break;
            };
            if event["type"] == "BOOKMARK" {
                watch.bookmark = Some(revision);
            } else if let Some(key) = key_of(object) {
                watch.bookmark = None;
                self.saw(revision);
                let value = if event["type"] == "DELETED" { None } else { value_of(object) };
                watch.told.push(Event { revision, key, value, time: self.time() });
            }
        }
        let heard = watch.told.last().map(|event| event.revision).max(watch.bookmark).unwrap_or(from);
        self.note(|history| history.watches.push(watch));
        heard
    }

    /// Whether a write succeeds at every agent, and all list the same: the cluster is whole again.
    pub fn is_whole(&self) -> bool {
        let mut shown: Vec<BTreeMap<u64, u64>> = Vec::new();
        for host in 0..self.cluster.len() {
            let before = self.answered();
            self.call(host, 0, Ask::Write(self.fresh()), None);
            self.call(host, 0, Ask::Create(self.fresh()), None);
            let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            let written = history.calls[before.min(history.calls.len())..].iter();
            if !written.into_iter().any(|call| matches!(call.told, Told::Done { .. })) {
                return false;
            }
        }
        for host in 0..self.cluster.len() {
            let before = self.lists();
            self.list(host, false);
            let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(list) = history.lists.get(before) else { return false };
            shown.push(list.items.iter().map(|(key, value, _)| (*key, *value)).collect());
        }
        shown.windows(2).all(|pair| pair[0] == pair[1])
    }

    fn lists(&self) -> usize {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).lists.len()
    }
}

fn send(api: &Api, key: u64, ask: Ask, revision: Option<u64>) -> Result<Value, HttpError> {
    let path = format!("{MAPS}/hot-{key}");
    let map =
        |value: u64| json!({"metadata": {"name": format!("hot-{key}")}, "data": {"v": value.to_string()}});
    match ask {
        Ask::Read => api.get(&path),
        Ask::Create(value) => api.post(MAPS, &map(value)),
        Ask::Write(value) => api.merge(&path, &json!({"data": {"v": value.to_string()}})),
        Ask::Swap { new, .. } => {
            let mut body = map(new);
            body["metadata"]["resourceVersion"] = json!(revision.unwrap_or_default().to_string());
            api.ask("PUT", &path, "application/json", &body.to_string())
        }
        Ask::Delete => api.delete(&path),
    }
}

/// What an answer says about what was asked.
fn told(ask: Ask, answer: Result<Value, HttpError>) -> Told {
    match answer {
        Ok(_) if ask == Ask::Delete => Told::Done { value: 0, revision: 0 },
        Ok(map) => match (value_of(&map), revision_of(&map)) {
            (Some(value), Some(revision)) => Told::Done { value, revision },
            // Cut off within the answer.
            _ => Told::Unknown,
        },
        Err(HttpError::Refused { code: 404, .. }) => Told::Absent,
        Err(HttpError::Refused { code: 409, message }) if message.contains("eight times") => Told::Nothing,
        Err(HttpError::Refused { code: 409, .. }) => Told::Conflict,
        Err(HttpError::Refused { code: 503, .. } | HttpError::Connect { .. }) => Told::Nothing,
        Err(_) => Told::Unknown,
    }
}

fn key_of(map: &Value) -> Option<u64> {
    map["metadata"]["name"].as_str()?.strip_prefix("hot-")?.parse().ok()
}

fn value_of(map: &Value) -> Option<u64> {
    map["data"]["v"].as_str()?.parse().ok()
}

fn revision_of(map: &Value) -> Option<u64> {
    map["metadata"]["resourceVersion"].as_str()?.parse().ok()
}
