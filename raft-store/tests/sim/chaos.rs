//! Many seeds. First anything may fail and nothing wrong may be seen; then only a quorum of the voters is healed, all else stays
//! broken, and progress is demanded; then everything heals and everybody must agree.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft_store::*;
use rand::Rng;

use crate::harm::{Mix, SLOTS, change_members};
use crate::world::{Event, World};

/// Virtual time of the first part, if the environment does not say otherwise.
const CHAOS_MS: u64 = 60_000;
const CORE_MS: u64 = 15_000;
const HEAL_MS: u64 = 20_000;
/// Then keys with a time to live go within this: 3 s, by whoever leads now, looked at every second.
const GONE_MS: u64 = 10_000;

pub fn run(seed: u64, chaos_ms: u64) -> World {
    let mut world = World::of_binaries(seed, SLOTS, older_binaries(seed));
    world.run_until(2_000, |w| w.leader().is_some());
    // The others observe.
    world.grow(&[2, 3], &[]);
    world.at(world.now, Event::Client);
    let mix = Mix::draw(&mut world);
    world.faults = mix.faults;
    world.piloted = mix.autopilot;
    world.at(world.now, Event::Pilot);
    let end = world.now + chaos_ms;
    while world.now < end {
        mix.strike(&mut world);
        let pause = world.rng.random_range(20..mix.pause_ms);
        world.run_for(pause);
    }
    heal_a_core(&mut world);
    heal_all(&mut world);
    world
}

/// In every third run the first machine and some others begin with an older binary; each is upgraded at its second restart.
fn older_binaries(seed: u64) -> BTreeMap<u64, Version> {
    let is_old = |id: &u64| seed.is_multiple_of(3) && (id % 2 == 1 || seed.is_multiple_of(2));
    (1..=SLOTS).filter(is_old).map(|id| (id, version::FIRST)).collect()
}

/// L1: the rest of the cluster is gone for good, as far as a majority of the voters can tell. A change of members that was under
/// way may make that majority too small; then another one is healed.
fn heal_a_core(world: &mut World) {
    for _ in 0..5 {
        let members = world.members();
        let (core, got_on) = try_a_core(world);
        if got_on {
            return;
        }
        assert_ne!(members, world.members(), "L1: the core {core:?} does not get on: {}", states(world));
    }
    panic!("L1: members change and change, and nothing gets on: {}", states(world));
}

fn try_a_core(world: &mut World) -> (Vec<u64>, bool) {
    let members = world.members();
    // What a machine that is down has applied is not known: it comes back now, if it can.
    for id in members.voters.iter().chain(&members.voters_outgoing).map(|id| id.0) {
        if world.nodes.get(&id).is_some_and(|node| !node.broken) {
            world.revive(id);
        }
    }
    let usable = |id: &&NodeId| world.nodes.get(&id.0).is_some_and(|node| !node.broken);
    let among = |sets: &[Vec<NodeId>]| {
        let mut ids: Vec<u64> = sets.iter().flatten().filter(usable).map(|id| id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    // As few as make a majority of all sets: take away while it stays one.
    let is_quorum = |sets: &[Vec<NodeId>], core: &[u64]| {
        let wins = |set: &Vec<NodeId>| set.iter().filter(|id| core.contains(&id.0)).count() * 2 > set.len();
        sets.iter().all(|set| set.is_empty() || wins(set))
    };
    let mut sets = vec![members.voters.clone(), members.voters_outgoing.clone()];
    // raft counts by the members that a replica has applied. Who has not heard yet that a joint state ended still asks both sets, and who holds
    // all that is committed, but does not know that the last change is, asks those before it.
    let views = world.nodes.values().filter_map(|node| node.replica.as_ref()).map(Replica::view);
    let newest = views.map(|view| view.applied().0).max().unwrap_or_default();
    for id in among(&sets) {
        let Some(replica) = &world.nodes[&id].replica else { continue };
        let held = replica.view().members().clone();
        let may_win = replica.status().last_index >= newest;
        let differs = (&held.voters, &held.voters_outgoing) != (&members.voters, &members.voters_outgoing);
        let asks_others = held.is_joint() || (may_win && differs);
        if !asks_others {
            continue;
        }
        let more = [sets.clone(), vec![held.voters, held.voters_outgoing]].concat();
        if is_quorum(&more, &among(&more)) {
            sets = more;
        }
    }
    let mut core = among(&sets);
    assert!(is_quorum(&sets, &core), "too much is broken");
    loop {
        let at = world.rng.random_range(0..core.len());
        let mut smaller = core.clone();
        smaller.remove(at);
        if !is_quorum(&sets, &smaller) {
            break;
        }
        core = smaller;
    }
    world.faults = crate::world::CALM;
    world.cut.clear();
    world.muted.clear();
    let others: Vec<u64> = world.nodes.keys().copied().filter(|id| !core.contains(id)).collect();
    for id in others {
        world.isolate(id);
    }
    core.iter().for_each(|id| world.revive(*id));
    let before = world.clients.acked();
    let progress = |w: &World| {
        let led = w.leader().is_some_and(|leader| core.contains(&leader));
        led && w.clients.acked() > before + 3
    };
    let got_on = world.run_until(CORE_MS, progress);
    (core, got_on)
}

/// Once healed: a leader, all requests answered, nothing joint, all members equal, the lost ones replaced.
fn heal_all(world: &mut World) {
    world.heal();
    world.clients.stopping = true;
    let deadline = world.now + HEAL_MS;
    while world.now < deadline && !converged(world) {
        if !whole(world) && !world.piloted {
            change_members(world);
        }
        world.run_for(50);
    }
    assert!(converged(world), "L1: it did not converge: {}", states(world));
    let deadline = world.now + GONE_MS;
    while world.now < deadline && !(converged(world) && all_times_are_over(world)) {
        world.run_for(50);
    }
    assert!(converged(world), "L1: it did not stay converged: {}", states(world));
    let leader = world.leader().unwrap();
    let view = world.view(leader);
    world.clients.verify(world, &view);
    crate::watchers::verify(world, &view);
    contents_are_equal(world, leader);
}

fn all_times_are_over(world: &World) -> bool {
    world.leader().is_some_and(|leader| crate::times::left(&world.view(leader)).is_empty())
}

/// No member is broken, and every machine that is not is a member.
fn whole(world: &World) -> bool {
    let Some(leader) = world.leader() else { return false };
    let members = world.view(leader).members().clone();
    let broken = |id: &NodeId| world.nodes.get(&id.0).is_none_or(|node| node.broken);
    !members.voters.iter().chain(&members.learners).any(broken)
}

fn converged(world: &World) -> bool {
    let Some(leader) = world.leader() else { return false };
    let first = world.view(leader);
    let members = first.members();
    let equal = world.nodes.values().filter(|node| !node.broken).all(|node| {
        let view = node.replica.as_ref().map(Replica::view);
        view.is_some_and(|view| view.applied() == first.applied() && view.hash() == first.hash())
    });
    let machines = world.nodes.values().filter(|node| !node.broken).count();
    let settled = !world.piloted || members.voters.len() == autopilot::wanted_voters(machines, None);
    world.clients.open() == 0 && equal && settled && !members.is_joint() && whole(world)
}

/// C7: not only the hashes of what was applied, also what came of it, whether by log or by snapshot.
fn contents_are_equal(world: &World, leader: u64) {
    let first = world.view(leader);
    for id in world.nodes.iter().filter(|(_, node)| !node.broken).map(|(id, _)| id) {
        let view = world.view(*id);
        assert!(first.prefix(b"", None).eq(view.prefix(b"", None)), "C7: {id} holds other objects");
        let history =
            |view: &View| view.changes(view.floor()).map(|changes| changes.cloned().collect::<Vec<_>>());
        assert_eq!(history(&first).ok(), history(&view).ok(), "C7: {id} holds another history");
        assert!(first.sessions().eq(view.sessions()), "C7: {id} holds other sessions");
    }
}

fn states(world: &World) -> String {
    let status = |id: &u64| match world.status(*id) {
        Some(status) => format!("{status:?}"),
        None => format!("{id} is down"),
    };
    world.nodes.keys().map(status).collect::<Vec<_>>().join("\n")
}

/// What many runs did.
#[derive(Default)]
struct Report {
    runs: u64,
    virtual_ms: u64,
    writes: usize,
    swaps: u64,
    deletes: u64,
    expired: u64,
    closed: usize,
    reads: u64,
    leaders: usize,
    snapshots: u64,
    watches: u64,
    longest_joint_ms: u64,
    done: BTreeMap<String, u64>,
    fed: BTreeMap<&'static str, u64>,
}

impl Report {
    fn add(&mut self, world: &World) {
        self.runs += 1;
        self.virtual_ms += world.now;
        self.writes += world.clients.acked();
        self.swaps += world.clients.swaps;
        self.deletes += world.clients.deletes;
        self.expired += world.times.expired;
        self.closed += world.clients.closed();
        self.reads += world.clients.reads_served;
        self.leaders += world.checks.leaders();
        self.snapshots += world.bulk_sent;
        self.watches += world.watchers.resumed;
        self.longest_joint_ms = self.longest_joint_ms.max(world.checks.membership.longest_joint_ms);
        for (what, times) in &world.fed {
            *self.fed.entry(what).or_default() += times;
        }
        for (what, times) in &world.done {
            *self.done.entry(what.clone()).or_default() += times;
        }
    }

    fn print(&self, seconds: f64) {
        let hours = self.virtual_ms as f64 / 3_600_000.0;
        println!(
            "{} runs, {hours:.2} simulated hours in {seconds:.1} s ({:.0} times real time)",
            self.runs,
            self.virtual_ms as f64 / 1_000.0 / seconds.max(0.001)
        );
        println!(
            "{} writes, {} swaps, {} reads, {} watches resumed, {} leaders, {} snapshots sent",
            self.writes, self.swaps, self.reads, self.watches, self.leaders, self.snapshots
        );
        println!("{} deletes, {} keys expired, {} sessions closed", self.deletes, self.expired, self.closed);
        println!("joint states that could be left lasted up to {} ms", self.longest_joint_ms);
        println!("feeds: {:?}", self.fed);
        let (points, faults): (Vec<_>, Vec<_>) =
            self.done.iter().partition(|(what, _)| what.starts_with("death before"));
        println!("what was done to them, by kind:");
        faults.iter().for_each(|(what, times)| println!("  {times:>8} {what}"));
        println!("{} failpoints hit, all before a step of the disk:", points.len());
        points.iter().for_each(|(what, times)| println!("  {times:>8} {what}"));
    }
}

#[expect(clippy::disallowed_methods, reason = "how long the real machine took, for the report alone")]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// Runs the seeds on so many threads. Each `twice`-th is run again, and must take the same way.
fn sweep(seeds: Range<u64>, chaos_ms: u64, twice: u64, threads: usize) {
    let began = clock();
    let (next, report) = (AtomicU64::new(seeds.start), Mutex::new(Report::default()));
    let work = || {
        let _stop = StopAll { next: &next, end: seeds.end };
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let world = one(seed, chaos_ms);
            report.lock().unwrap().add(&world);
            if seed.is_multiple_of(twice) {
                assert_eq!(
                    world.trace,
                    one(seed, chaos_ms).trace,
                    "seed {seed} took another way the second time"
                );
            }
        }
    };
    #[expect(clippy::disallowed_methods, reason = "each runs worlds of its own; nothing crosses")]
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let report = report.into_inner().unwrap();
    report.print(began.elapsed().as_secs_f64());
    let runs = report.runs as usize;
    assert!(report.writes > 10 * runs && report.reads as usize > 5 * runs, "the runs do too little");
    assert!(runs < 20 || report.leaders > 2 * runs, "the runs do too little");
    let rare = report.deletes.min(report.expired).min(report.closed as u64);
    assert!(runs < 20 || rare > 2 * report.runs, "the runs do too little");
}

/// A failure on one thread ends the others after their run.
struct StopAll<'a> {
    next: &'a AtomicU64,
    end: u64,
}

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.next.store(self.end, Ordering::Relaxed);
        }
    }
}

/// A run that says how to repeat it when it fails.
fn one(seed: u64, chaos_ms: u64) -> World {
    struct Say(u64, u64);
    impl Drop for Say {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("repeat it: make sim FROM={} SEEDS=1 SECONDS_EACH={}", self.0, self.1 / 1_000);
            }
        }
    }
    let say = Say(seed, chaos_ms);
    let world = run(seed, chaos_ms);
    drop(say);
    world
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let parsed =
        |text: String| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no whole number"));
    std::env::var(variable).map_or(otherwise, parsed)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

const QUARTER: u64 = 75;
/// Of 300 seeds 30 are run twice.
const TWICE: u64 = 10;

#[test]
fn safety_and_progress_hold_under_chaos_first_quarter() {
    sweep(0..QUARTER, CHAOS_MS, TWICE, 1);
}

#[test]
fn safety_and_progress_hold_under_chaos_second_quarter() {
    sweep(QUARTER..2 * QUARTER, CHAOS_MS, TWICE, 1);
}

#[test]
fn safety_and_progress_hold_under_chaos_third_quarter() {
    sweep(2 * QUARTER..3 * QUARTER, CHAOS_MS, TWICE, 1);
}

#[test]
fn safety_and_progress_hold_under_chaos_fourth_quarter() {
    sweep(3 * QUARTER..4 * QUARTER, CHAOS_MS, TWICE, 1);
}

#[test]
fn another_seed_gives_another_run() {
    assert_ne!(run(1, 1_000).trace, run(2, 1_000).trace);
}

/// `make sim FROM=… SEEDS=… SECONDS_EACH=…`.
#[test]
#[ignore = "as long as one likes: make sim"]
fn as_many_seeds_as_asked_for() {
    let from = number("SKEIN_SIM_FROM", 1_000);
    let seeds = from..from + number("SKEIN_SIM_SEEDS", 100);
    sweep(seeds, number("SKEIN_SIM_SECONDS", CHAOS_MS / 1_000) * 1_000, TWICE, cores());
}

/// `make sim-long HOURS=…`: fresh seeds until the time is over or one fails. Begins where no earlier run began.
#[test]
#[ignore = "hours: make sim-long"]
fn for_hours() {
    let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let mut from = number("SKEIN_SIM_FROM", since_1970 * 1_000);
    let time = Duration::from_secs(number("SKEIN_SIM_HOURS", 1) * 3_600);
    let began = clock();
    while began.elapsed() < time {
        println!("seeds from {from}, {:.2} hours so far", began.elapsed().as_secs_f64() / 3_600.0);
        sweep(from..from + 200, CHAOS_MS, TWICE, cores());
        from += 200;
    }
}
