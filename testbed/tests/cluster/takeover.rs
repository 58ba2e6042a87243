//! What happens to writes and to controllers' work when the leader's agent dies or is paused in the midst of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::http::{Api, HttpError};

use crate::world::{World, app};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 4;
const KILLS: usize = 3;

/// Index of the host that leads, as another one sees it.
fn leader(world: &World, seen_by: usize) -> Option<usize> {
    let status = world.status(seen_by)?;
    (0..world.bed.hosts().len()).find(|index| status["leader"] == world.host(*index).name())
}

/// Outcome of one write, by what the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Done,
    Refused,
    Unknown,
}

fn told(result: &Result<Value, HttpError>) -> Told {
    match result {
        Ok(_) => Told::Done,
        Err(HttpError::Refused { code: 409 | 503, .. }) => Told::Refused,
        Err(_) => Told::Unknown,
    }
}

/// Creates maps with generated names, one after the other, until `stop`.
fn create(api: &Api, writer: usize, stop: &AtomicBool) -> Vec<(String, Told)> {
    let mut written = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mark = format!("{writer}-{}", written.len());
        let body =
            json!({"metadata": {"generateName": "w-", "labels": {"test": "once"}}, "data": {"mark": mark}});
        match api.post(MAPS, &body) {
            // The agent is being started again: nothing was sent.
            Err(HttpError::Connect { .. }) => std::thread::yield_now(),
            result => written.push((mark, told(&result))),
        }
    }
    written
}

/// Counts in one map, by reading and replacing; answers how many counted surely and how many perhaps.
fn count(api: &Api, stop: &AtomicBool) -> (u64, u64) {
    let (mut sure, mut perhaps) = (0, 0);
    let path = format!("{MAPS}/counter");
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut map) = api.get(&path) else { continue };
        let now: u64 = map["data"]["n"].as_str().and_then(|text| text.parse().ok()).unwrap();
        map["data"]["n"] = json!((now + 1).to_string());
        match told(&api.ask("PUT", &path, "application/json", &map.to_string())) {
            Told::Done => sure += 1,
            Told::Unknown => perhaps += 1,
            Told::Refused => {}
        }
    }
    (sure, perhaps)
}

/// Kills the leader's agent a few times, each time once the writers have got on.
fn kill_leaders(world: &World, through: usize, progress: impl Fn() -> u64) -> Vec<usize> {
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        let before = progress();
        world.until("writes go on", || progress() > before + 20);
        // Whom the writes go through may have come to lead meanwhile: then its clients do not hear what became of theirs.
        let victim = leader(world, through).unwrap();
        let agent = world.host(victim).agent_pid().unwrap();
        world.host(victim).kill_agent(Signal::SIGKILL).unwrap();
        world.host(victim).agent_after(agent, Duration::from_secs(5)).unwrap();
        world.until("a leader again", || leader(world, through).is_some());
        killed.push(victim);
    }
    killed
}

/// Lets the threads end also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn writes_through_another_agent_apply_once_while_leaders_are_killed() {
    let world = World::of(3, "once");
    let through = world.follower();
    let api = world.api(through);
    api.post(MAPS, &json!({"metadata": {"name": "counter"}, "data": {"n": "0"}})).unwrap();
    let stop = AtomicBool::new(false);
    let (written, counted) = testbed::clock::threads(|scope| {
        let creators: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let (api, stop) = (&api, &stop);
                    move || create(api, writer, stop)
                })
            })
            .collect();
        let counters: Vec<_> = (0..2).map(|_| scope.spawn(|| count(&api, &stop))).collect();
        let guard = Stop(&stop);
        let killed = kill_leaders(&world, through, || {
            world.status(through).map_or(0, |status| status["revision"].as_u64().unwrap_or(0))
        });
        drop(guard);
        assert_ne!(killed[0], through, "at least once another one than the agent that is written through");
        let written: Vec<(String, Told)> =
            creators.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let counted: Vec<(u64, u64)> = counters.into_iter().map(|thread| thread.join().unwrap()).collect();
        (written, counted)
    });
    check_maps(&world, &written);
    let (sure, perhaps) = counted.iter().fold((0, 0), |sum, (a, b)| (sum.0 + a, sum.1 + b));
    let map = world.get(0, "configmap", "counter");
    let found: u64 = map["data"]["n"].as_str().unwrap().parse().unwrap();
    let done = written.iter().filter(|(_, told)| *told == Told::Done).count();
    eprintln!("{done} of {} created, counted to {found}, sure {sure}, perhaps {perhaps}", written.len());
    assert!((sure..=sure + perhaps).contains(&found), "{sure} to {} expected, {found} found", sure + perhaps);
}

/// Every acknowledged map is there, none twice, none that was refused.
fn check_maps(world: &World, written: &[(String, Told)]) {
    let list = world.api(0).get(&format!("{MAPS}?labelSelector=test%3Donce")).unwrap();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for map in list["items"].as_array().unwrap() {
        *found.entry(map["data"]["mark"].as_str().unwrap().into()).or_default() += 1;
    }
    for (mark, told) in written {
        let times = found.remove(mark).unwrap_or(0);
        let right = match told {
            Told::Done => times == 1,
            Told::Refused => times == 0,
            Told::Unknown => times <= 1,
        };
        assert!(right, "{mark}: told {told:?}, found {times} times");
    }
    assert!(found.is_empty(), "nobody wrote {found:?}");
}

/// Pods of the application that count: not on their way out, not ended.
fn active(api: &Api) -> Option<usize> {
    let list = api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb").ok()?;
    let counts =
        |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Failed";
    Some(list["items"].as_array()?.iter().filter(counts).count())
}

/// Pauses the leader's agent as soon as the change shows, lets another one finish, wakes it again. Answers whether there was
/// something left to finish.
fn interrupted(
    world: &World,
    most: usize,
    change: impl Fn(usize),
    begun: impl Fn(&Api) -> bool,
    done: impl Fn(usize) -> bool,
) -> bool {
    let old = leader(world, 0).unwrap();
    let other = (0..3).find(|index| *index != old).unwrap();
    let pid = world.host(old).agent_pid().unwrap().unwrap().to_string();
    let (api, stop) = (world.api(other), AtomicBool::new(false));
    let (highest, midst) = testbed::clock::threads(|scope| {
        let watcher = scope.spawn(|| {
            let mut highest = 0;
            while !stop.load(Ordering::Relaxed) {
                highest = highest.max(active(&api).unwrap_or(0));
            }
            highest
        });
        let guard = Stop(&stop);
        change(other);
        world.until("it has begun", || begun(&api));
        world.run(old, &["kill", "-STOP", &pid]);
        let midst = !done(other);
        world.until("another one leads", || leader(world, other).is_some_and(|now| now != old));
        world.until("the new leader finishes", || done(other));
        world.run(old, &["kill", "-CONT", &pid]);
        world.until("the old leader follows", || {
            let follows = world.status(old).is_some_and(|status| {
                status["leader"].is_string() && status["leader"] != world.host(old).name()
            });
            let members =
                world.status(other).unwrap_or_default()["members"].as_array().cloned().unwrap_or_default();
            follows && members.iter().all(|member| member["state"] == "alive")
        });
        world.until("still finished", || done(other));
        drop(guard);
        (watcher.join().unwrap(), midst)
    });
    assert!(highest <= most, "{highest} pods at once, {most} allowed");
    midst
}

#[test]
fn a_leader_that_was_paused_in_the_midst_of_its_work_makes_no_surplus_pods() {
    let world = World::of(3, "paused");
    world.apply(0, &app("web", 2));
    world.until("two pods run", || world.running(0, "web").len() == 2);
    let finished =
        |host: usize| world.running(host, "web").len() == 12 && world.pods(host, "web").len() == 12;
    let scale =
        |host: usize| drop(world.run(host, &["skein", "scale", "deployment/web", "--replicas", "12"]));
    let begun = |api: &Api| active(api).is_some_and(|count| count > 2);
    // A leader that was faster than the signal is given the work anew.
    let midst = (0..5).any(|_| {
        interrupted(&world, 12, scale, begun, finished) || {
            world.run(0, &["skein", "scale", "deployment/web", "--replicas", "2"]);
            world.until("two pods are left", || world.pods(0, "web").len() == 2);
            false
        }
    });
    assert!(midst, "a leader was paused in the midst of its work");
    let old = world.pods(0, "web");
    let roll = |host: usize| {
        let mut new = app("web", 12);
        new["spec"]["template"]["metadata"]["annotations"] = json!({"round": "2"});
        world.apply(host, &new);
    };
    let replaced =
        |host: usize| finished(host) && world.pods(host, "web").iter().all(|name| !old.contains(name));
    let begun = |api: &Api| active(api).is_some_and(|count| count != 12);
    assert!(interrupted(&world, 15, roll, begun, replaced), "a roll takes its time");
    world.until("each pod has one shim and there is no other", || {
        let shims = (0..3).map(|host| {
            world.run(host, &["sh", "-c", "ls /run/skein/pods | wc -l"]).trim().parse::<usize>().unwrap()
        });
        shims.sum::<usize>() == 12
    });
}
