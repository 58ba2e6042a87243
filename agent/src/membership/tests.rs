//! A few cores with packets and timers carried by hand, in virtual time.

use super::*;

struct World {
    cores: Vec<Option<Membership>>,
    queue: Vec<(u64, usize, Input)>,
    now: u64,
}

impl World {
    fn new(count: usize) -> World {
        let mut world = World {
            cores: (0..count).map(|n| Some(Membership::new(NodeId(n as u64 + 1), 1, n as u64))).collect(),
            queue: Vec::new(),
            now: 0,
        };
        let ids: Vec<u64> = (1..=count as u64).collect();
        for at in 0..count {
            world.give(at, Input::Members(ids.clone()));
        }
        world
    }

    fn give(&mut self, at: usize, input: Input) {
        let Some(core) = &mut self.cores[at] else { return };
        for effect in core.handle(input) {
            match effect {
                Effect::Send { to, bytes } => {
                    self.queue.push((self.now + 1, to.0 as usize - 1, Input::Datagram(bytes)))
                }
                Effect::Wake { after, timer } => {
                    self.queue.push((self.now + after.as_millis() as u64, at, Input::Timer(timer)))
                }
                Effect::Suspects(_) => {}
            }
        }
    }

    fn run_until(&mut self, end: u64) {
        loop {
            let next = (0..self.queue.len()).min_by_key(|at| self.queue[*at].0);
            match next {
                Some(at) if self.queue[at].0 <= end => {
                    let (time, to, input) = self.queue.remove(at);
                    self.now = time;
                    self.give(to, input);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn suspects(&self, at: usize) -> Vec<u64> {
        self.cores[at]
            .as_ref()
            .map(|core| core.suspects().iter().map(|id| id.0).collect())
            .unwrap_or_default()
    }
}

#[test]
fn a_silent_member_is_suspected_within_a_second_by_all() {
    let mut world = World::new(5);
    world.run_until(3_000);
    for at in 0..5 {
        assert_eq!(world.suspects(at), Vec::<u64>::new(), "nobody is suspected while all answer");
    }
    world.cores[2] = None;
    world.run_until(4_500);
    for at in [0, 1, 3, 4] {
        assert_eq!(world.suspects(at), [3], "seen by member {}", at + 1);
    }
}

#[test]
fn a_member_that_comes_back_with_its_next_boot_is_trusted_again() {
    let mut world = World::new(3);
    world.run_until(2_000);
    world.cores[2] = None;
    world.run_until(8_000);
    assert_eq!(world.suspects(0), [3]);
    world.cores[2] = Some(Membership::new(NodeId(3), 2, 77));
    world.give(2, Input::Members(vec![1, 2, 3]));
    world.run_until(12_000);
    assert_eq!(world.suspects(0), Vec::<u64>::new());
    assert_eq!(world.suspects(1), Vec::<u64>::new());
    assert_eq!(world.suspects(2), Vec::<u64>::new(), "nor does it suspect its own earlier boot");
}

#[test]
fn rubbish_changes_nothing() {
    let mut core = Membership::new(NodeId(1), 1, 1);
    assert_eq!(core.handle(Input::Datagram(vec![0xff; 100])), []);
    assert_eq!(core.handle(Input::Exchange(b"{".to_vec())), []);
}

#[test]
fn an_exchange_repairs_what_gossip_missed() {
    let mut world = World::new(3);
    world.run_until(3_000);
    // Nothing reaches the second one meanwhile, and its own probes stand still: it hears of the death in no other way.
    let mut deaf = world.cores[1].take().unwrap();
    world.cores[2] = None;
    world.run_until(8_000);
    assert!(world.suspects(0).contains(&3));
    assert!(deaf.suspects().is_empty());
    let known = world.cores[0].as_ref().unwrap().knowledge();
    let effects = deaf.handle(Input::Exchange(known));
    let third = BTreeSet::from([NodeId(3)]);
    assert!(effects.contains(&Effect::Suspects(third.clone())), "{effects:?}");
    assert_eq!(deaf.suspects(), &third, "the dead one, and not itself");
}

#[test]
fn a_member_that_was_never_met_is_suspected_and_is_not_once_it_speaks() {
    let mut world = World::new(3);
    world.cores[2] = None;
    world.queue.clear();
    let ids = vec![1, 2, 3];
    for second in 1..=4 {
        world.give(0, Input::Members(ids.clone()));
        world.give(1, Input::Members(ids.clone()));
        world.run_until(second * 1_000);
    }
    assert_eq!(world.suspects(0), [3], "it died before this machine's start, and nobody could gossip of it");
    world.cores[2] = Some(Membership::new(NodeId(3), 2, 9));
    world.give(2, Input::Members(ids));
    world.run_until(6_000);
    assert_eq!(world.suspects(0), Vec::<u64>::new());
}
