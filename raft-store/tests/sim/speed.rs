//! How fast the simulator is: `make sim-speed`. Decides nothing; a figure is printed and judged by whoever reads it.

use raft_store::*;

use crate::world::World;

/// Five voters, no fault, nobody looks, ten operations a second, of which seven are writes.
const OPERATION_MS: u64 = 100;
const WRITES: u64 = 7;
const SESSION: SessionId = SessionId(1);

fn operation(world: &mut World, number: u64, written: &mut u64) {
    let Some(leader) = world.leader() else { return };
    if number % 10 >= WRITES {
        return world.input(leader, Input::Read { id: ReadId(number) });
    }
    *written += 1;
    let op = Op::Put { key: format!("key/{}", number % 1_000).into(), value: vec![7u8; 256].into() };
    let transaction = Transaction { compares: vec![], ops: vec![op] };
    let command = Command::Transact { session: SESSION, sequence: *written, epoch: None, transaction };
    world.input(leader, Input::Propose { id: ProposalId(number), command });
}

/// How fast it is when nothing is looked at.
fn plain(virtual_ms: u64) -> String {
    let mut world = World::new(1, 0);
    (world.roomy, world.ticks_together) = (true, 3);
    (1..=5).for_each(|id| world.add(id));
    world.run_until(2_000, |w| w.leader().is_some());
    world.grow(&[2, 3, 4, 5], &[]);
    world.blind = true;
    let leader = world.leader().unwrap();
    let command = Command::OpenSession { session: SESSION };
    world.input(leader, Input::Propose { id: ProposalId(1 << 40), command });
    world.run_for(1_000);
    world.answers.clear();
    let (began, from) = (Cost::now(), world.now);
    let (mut number, mut written) = (0, 0);
    while world.now < from + virtual_ms {
        operation(&mut world, number, &mut written);
        number += 1;
        world.run_for(OPERATION_MS);
    }
    let times = began.times(world.now - from);
    world.run_for(1_000);
    assert_eq!(world.answers.len() as u64, written, "each write is answered");
    assert_eq!(world.reads.len() as u64, number - written, "and each read");
    times
}

/// Real time and this thread's share of a core, in nanoseconds: on a machine that does other things the second one counts.
struct Cost {
    real: std::time::Instant,
    core: u64,
}

impl Cost {
    #[expect(clippy::disallowed_methods, reason = "how long the real machine took, for the report alone")]
    fn now() -> Cost {
        let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let core = said.split(' ').next().unwrap().parse().unwrap();
        Cost { real: std::time::Instant::now(), core }
    }

    /// How many times faster than real time so much virtual time was, by the clock and by the core.
    fn times(&self, virtual_ms: u64) -> String {
        let now = Cost::now();
        let times = |nanos: f64| virtual_ms as f64 * 1e6 / nanos;
        let (real, core) = ((now.real - self.real).as_nanos() as f64, (now.core - self.core) as f64);
        format!("{:.0} by the clock, {:.0} by the core", times(real), times(core))
    }
}

/// `make sim-speed`.
#[test]
#[ignore = "a measurement: make sim-speed"]
fn how_fast_it_is() {
    println!("times real time, three runs each");
    for _ in 0..3 {
        println!("five voters, 10 operations a second, no faults, no checkers: {}", plain(600_000));
    }
    for round in 0..3 {
        let began = Cost::now();
        let virtual_ms = (0..20).map(|seed| crate::chaos::run(round * 20 + seed, 60_000).now).sum();
        println!("all faults and all checkers, 20 seeds of 60 s and their end: {}", began.times(virtual_ms));
    }
}
