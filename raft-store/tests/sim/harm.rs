//! What is done to a cluster. Each run draws its own mix, so that some are all loss and others all power cuts.

use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raft_store::autopilot::{Candidate, Next};
use raft_store::*;
use rand::Rng;

use crate::world::{Event, Faults, World};

/// Machines of a run. Those that do not vote observe.
pub const SLOTS: u64 = 7;

/// Rates of clocks, in thousandths of the true one's (RELIABILITY section 9).
const RATES: std::ops::RangeInclusive<u64> = 950..=1_050;
/// The longest that a clock stands still or a process is starved.
const STALL_MS: u64 = 5_000;

/// The mix of a run: how often each kind of harm comes, and how bad the network is.
pub struct Mix {
    weights: Vec<(u32, Harm)>,
    pub faults: Faults,
    pub pause_ms: u64,
    /// The production autopilot changes the members, and not chance.
    pub autopilot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Crash,
    Kill,
    CrashAfterOutbox,
    CrashAll,
    DieAtStep,
    ReadError,
    Pause,
    Sleep,
    StandStill,
    Starve,
    Isolate,
    CutOneWay,
    Halve,
    Mend,
    ChangeMembers,
    Transfer,
    Damage,
    Wipe,
    Fill,
    SlowDisk,
    Mute,
    Nothing,
}

impl Mix {
    pub fn draw(world: &mut World) -> Mix {
        let rng = &mut world.rng;
        let mut weight = |harm: Harm, most: u32| (rng.random_range(0..=most), harm);
        let weights = vec![
            weight(Harm::Crash, 3),
            weight(Harm::Kill, 2),
            weight(Harm::CrashAfterOutbox, 2),
            weight(Harm::CrashAll, 1),
            weight(Harm::DieAtStep, 3),
            weight(Harm::ReadError, 1),
            weight(Harm::Pause, 3),
            weight(Harm::Sleep, 1),
            weight(Harm::StandStill, 2),
            weight(Harm::Starve, 1),
            weight(Harm::Isolate, 2),
            weight(Harm::CutOneWay, 2),
            weight(Harm::Halve, 1),
            (3, Harm::Mend),
            weight(Harm::ChangeMembers, 3),
            weight(Harm::Transfer, 1),
            weight(Harm::Damage, 1),
            weight(Harm::Wipe, 1),
            weight(Harm::Fill, 1),
            weight(Harm::SlowDisk, 1),
            weight(Harm::Mute, 2),
            (2, Harm::Nothing),
        ];
        let faults = Faults {
            loss: rng.random_range(0.0..0.3),
            duplicate: rng.random_range(0.0..0.5),
            max_delay_ms: rng.random_range(1..100),
            clog: if rng.random_bool(0.3) { rng.random_range(0.0..0.02) } else { 0.0 },
            garble: if rng.random_bool(0.3) { 0.01 } else { 0.0 },
            between: if rng.random_bool(0.5) { rng.random_range(0.0..0.01) } else { 0.0 },
            broken: if rng.random_bool(0.5) { rng.random_range(0.0..0.5) } else { 0.0 },
            forge: if rng.random_bool(0.3) { 0.003 } else { 0.0 },
        };
        let pause_ms = rng.random_range(100..1_500);
        for id in 1..=SLOTS {
            // One in four at an end of what a clock may be off.
            let rate = match world.rng.random_range(0..8) {
                0 => *RATES.start(),
                1 => *RATES.end(),
                _ => world.rng.random_range(RATES),
            };
            let now = world.now;
            world.nodes.get_mut(&id).unwrap().clock.set_rate(now, rate);
        }
        let autopilot = world.rng.random_bool(0.5);
        world.ticks_together = if world.rng.random_bool(0.5) { 3 } else { 1 };
        Mix { weights, faults, pause_ms, autopilot }
    }

    /// Does one harm, chosen by weight.
    pub fn strike(&self, world: &mut World) {
        let total: u32 = self.weights.iter().map(|(weight, _)| weight).sum();
        let mut draw = world.rng.random_range(0..total);
        let mut harm = Harm::Nothing;
        for (weight, kind) in &self.weights {
            if draw < *weight {
                harm = *kind;
                break;
            }
            draw -= weight;
        }
        let ids: Vec<u64> = world.nodes.keys().copied().filter(|id| !world.nodes[id].broken).collect();
        let id = ids[world.rng.random_range(0..ids.len())];
        if harm != Harm::Nothing {
            world.count(&format!("{harm:?}"));
        }
        match harm {
            Harm::Crash => crash_and_restart(world, id),
            Harm::Kill => {
                world.kill(id);
                restart_soon(world, id);
            }
            Harm::CrashAfterOutbox => {
                world.crash_after_outbox(id);
                crash_and_restart(world, id);
            }
            Harm::CrashAll => ids.into_iter().for_each(|id| crash_and_restart(world, id)),
            Harm::DieAtStep => {
                let after = world.rng.random_range(0..25);
                world.nodes[&id].disk.fail_step(Some(after));
            }
            Harm::ReadError => {
                let after = world.rng.random_range(0..12);
                world.nodes[&id].disk.fail_read(Some(after));
                if world.rng.random_bool(0.5) {
                    world.kill(id);
                    restart_soon(world, id);
                }
            }
            Harm::Pause => {
                let most = if world.rng.random_bool(0.1) { 30_000 } else { 3_000 };
                let until = world.now + world.rng.random_range(100..most);
                world.nodes.get_mut(&id).unwrap().paused_until = until;
            }
            Harm::Sleep => {
                let ahead = world.rng.random_range(1..3_600_000);
                let now = world.now;
                world.nodes.get_mut(&id).unwrap().clock.jump(now, ahead);
            }
            Harm::StandStill => stand_still(world, id),
            Harm::Starve => {
                let until = world.now + world.rng.random_range(500..STALL_MS);
                world.nodes.get_mut(&id).unwrap().starved_until = until;
            }
            Harm::Isolate => world.isolate(id),
            Harm::CutOneWay => {
                let other = ids[world.rng.random_range(0..ids.len())];
                world.cut.insert((id, other));
            }
            Harm::Halve => {
                let (left, right): (Vec<u64>, Vec<u64>) =
                    ids.into_iter().partition(|_| world.rng.random_bool(0.5));
                for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
                    world.cut.extend([(a, b), (b, a)]);
                }
            }
            Harm::Mend => {
                world.cut.clear();
                world.muted.clear();
                world.nodes.values().for_each(|node| node.disk.set_capacity(None));
            }
            Harm::Fill => {
                let disk = &world.nodes[&id].disk;
                let used = disk.used();
                let room = world.rng.random_range(0..16 << 10);
                world.nodes[&id].disk.set_capacity(Some(used + room));
            }
            Harm::Mute => drop(world.muted.insert(id)),
            Harm::SlowDisk => {
                let until = world.now + 5_000;
                let slow_ms =
                    if world.rng.random_bool(0.3) { world.rng.random_range(1_001..30_000) } else { 300 };
                let node = world.nodes.get_mut(&id).unwrap();
                (node.slow_until, node.slow_ms) = (until, slow_ms);
            }
            Harm::ChangeMembers if self.autopilot => {}
            Harm::ChangeMembers => change_members(world),
            Harm::Transfer => {
                let to = NodeId(id);
                ids.into_iter().for_each(|node| world.input(node, Input::TransferLeadership { to }));
            }
            Harm::Damage => damage(world, id),
            Harm::Wipe => wipe(world, id),
            Harm::Nothing => {}
        }
    }
}

/// Its clock does not run: the machine is paused with all that it does, or only the clock stands.
fn stand_still(world: &mut World, id: u64) {
    let (now, ms) = (world.now, world.rng.random_range(100..STALL_MS));
    let is_machine = world.rng.random_bool(0.5);
    let node = world.nodes.get_mut(&id).unwrap();
    node.clock.stand_still(now, ms);
    if is_machine {
        node.paused_until = node.paused_until.max(now + ms);
    }
}

fn crash_and_restart(world: &mut World, id: u64) {
    world.crash(id);
    restart_soon(world, id);
}

fn restart_soon(world: &mut World, id: u64) {
    let back = world.now + world.rng.random_range(1..800);
    world.at(back, Event::Restart(id));
}

/// Whether one more member may be lost for good: never two before the first is replaced, or the loss would be real.
fn may_break(world: &World, id: u64) -> bool {
    let members = world.members();
    // A change that is on its way could make a voter of who breaks now.
    let settled = world.leader().and_then(|leader| world.status(leader)).is_some_and(|status| {
        !status.joint && status.commit == status.last_index && status.voters == members.voters
    });
    if !settled {
        return false;
    }
    let broken =
        world.nodes.iter().filter(|(other, node)| node.broken && members.contains(NodeId(**other))).count();
    broken == 0 && (!members.is_voter(NodeId(id)) || (members.voters.len() >= 3 && !members.is_joint()))
}

/// A bit rots, a sector is lost or another's bytes are in its place, in what is not the log's last batch (that one cannot be told from a
/// torn one). It must be found, and the store not opened.
fn damage(world: &mut World, id: u64) {
    if !may_break(world, id) {
        return;
    }
    world.crash(id);
    let disk = world.nodes[&id].disk.clone();
    let Ok(mut names) = disk.list() else { return };
    names.sort();
    // The reserve holds nothing, and what is on its way out is not read.
    names.retain(|name| ![".new", ".old"].iter().any(|end| name.ends_with(end)) && name != "reserve");
    let last = names.iter().filter(|name| name.starts_with("log-")).max().cloned();
    let snapshot = names.iter().filter(|name| name.starts_with("snap-")).max().cloned();
    names.retain(|name| !name.starts_with("snap-") || Some(name) == snapshot.as_ref());
    let covered = covered(&disk, &names, snapshot.as_deref());
    names.retain(|name| !covered.contains(name));
    let back = world.now + world.rng.random_range(1..800);
    if names.is_empty() {
        return world.at(back, Event::Restart(id));
    }
    let name = names[world.rng.random_range(0..names.len())].clone();
    let bytes = disk.read(&name).unwrap_or_default();
    let length = if Some(&name) == last.as_ref() { before_the_last_batches(&bytes) } else { bytes.len() };
    let offset = world.rng.random_range(0..length.max(1));
    let (sector, sectors) = (offset / SECTOR, length / SECTOR);
    let changed = length > 0
        && match world.rng.random_range(0..3) {
            1 if sector < sectors => disk.misplace(&name, sector, None),
            2 if sector < sectors => {
                let from = world.rng.random_range(0..sectors);
                disk.misplace(&name, sector, Some(from))
            }
            _ => disk.flip(&name, offset, 1 << world.rng.random_range(0..8)),
        };
    if !changed {
        return world.at(back, Event::Restart(id));
    }
    match Replica::open(disk.image(), world.config(id, 9_999)) {
        Err(
            OpenError::Corrupt { .. }
            | OpenError::NewerVersion { .. }
            | OpenError::OtherCluster { .. }
            | OpenError::OtherNode { .. },
        ) => {}
        Err(other) => panic!("C8: damage in {name} at {offset} is called {other}"),
        Ok(_) => panic!("C8: damage in {name} at {offset} of {length} goes unnoticed"),
    }
    lose(world, id);
}

const SECTOR: usize = 512;
/// Where a segment's header says the index of the last entry before it (docs/formats).
const BASE: usize = 60;

/// Segments that the snapshot covers: the next one begins at or before its index. Nothing reads them again, they only go later.
fn covered(disk: &sim_disk::MemDisk, names: &[String], snapshot: Option<&str>) -> Vec<String> {
    let index =
        snapshot.and_then(|name| u64::from_str_radix(name.strip_prefix("snap-")?, 16).ok()).unwrap_or(0);
    let segments: Vec<&String> = names.iter().filter(|name| name.starts_with("log-")).collect();
    let begins_after = |name: &String| {
        let header = disk.read(name).ok()?;
        Some(u64::from_le_bytes(header.get(BASE..BASE + 8)?.try_into().ok()?))
    };
    let pairs =
        segments.windows(2).take_while(|pair| begins_after(pair[1]).is_some_and(|base| base <= index));
    pairs.map(|pair| pair[0].clone()).collect()
}

/// How much of a segment stands before its last three batches, of which one may be torn.
fn before_the_last_batches(segment: &[u8]) -> usize {
    let begins: Vec<usize> =
        (512..segment.len()).step_by(8).filter(|at| segment[*at..].starts_with(b"BAT1")).collect();
    begins.len().checked_sub(3).map_or(0, |third| begins[third])
}

/// The disk is gone. Its member must not come back under its old name.
fn wipe(world: &mut World, id: u64) {
    if !may_break(world, id) {
        return;
    }
    world.crash(id);
    let opened = Replica::open(sim_disk::MemDisk::new(), world.config(id, 9_998));
    assert!(matches!(opened, Err(OpenError::Empty)), "C10: a node without its disk starts again");
    lose(world, id);
}

/// A member is broken for good; a new machine waits to take its place.
fn lose(world: &mut World, id: u64) {
    let node = world.nodes.get_mut(&id).unwrap();
    node.broken = true;
    node.replica = None;
    let fresh = world.nodes.keys().max().unwrap() + 1;
    world.add(fresh);
    world.count("member lost for good");
}

/// What an autopilot might do, well or badly timed: replaces the broken, adds the new, promotes, demotes.
pub fn change_members(world: &mut World) {
    let Some(leader) = world.leader() else { return };
    let Some(status) = world.status(leader) else { return };
    let members = world.view(leader).members().clone();
    let is_broken = |id: &NodeId| world.nodes.get(&id.0).is_none_or(|node| node.broken);
    let listed: Vec<NodeId> = members.voters.iter().chain(&members.learners).copied().collect();
    let broken: Vec<NodeId> = listed.iter().copied().filter(is_broken).collect();
    let fresh: Vec<NodeId> = world
        .nodes
        .iter()
        .filter(|(_, node)| !node.broken)
        .map(|(id, _)| NodeId(*id))
        .filter(|id| !listed.contains(id))
        .collect();
    let holds =
        |id: &NodeId| status.peers.iter().any(|peer| peer.id == *id && peer.matched + 20 > status.last_index);
    let learner = members.learners.iter().copied().find(|id| holds(id) && !is_broken(id));
    let rng = &mut world.rng;
    let fresh = (!fresh.is_empty()).then(|| fresh[rng.random_range(0..fresh.len())]);
    let voter = members.voters[rng.random_range(0..members.voters.len())];
    let many = members.voters.len() > 3;
    let changes = match (broken.first(), learner, fresh) {
        (Some(broken), Some(learner), _) if members.is_voter(*broken) => {
            vec![MemberChange::Remove(*broken), MemberChange::AddVoter(learner)]
        }
        (Some(broken), None, Some(fresh)) if members.is_voter(*broken) && rng.random_bool(0.7) => {
            vec![MemberChange::AddLearner(fresh)]
        }
        (Some(broken), ..) => vec![MemberChange::Remove(*broken)],
        (None, Some(learner), _) => match rng.random_range(0..6) {
            0 | 1 => vec![MemberChange::AddLearner(voter), MemberChange::AddVoter(learner)],
            2 => vec![MemberChange::Remove(voter), MemberChange::AddVoter(learner)],
            3 => vec![MemberChange::Remove(learner)],
            _ => vec![MemberChange::AddVoter(learner)],
        },
        (None, None, Some(fresh)) if rng.random_bool(0.6) => vec![MemberChange::AddLearner(fresh)],
        (None, None, _) if many && rng.random_bool(0.5) => vec![MemberChange::AddLearner(voter)],
        (None, None, _) if many => vec![MemberChange::Remove(voter)],
        (None, None, _) => vec![MemberChange::Remove(NodeId(leader))],
    };
    let id = world.clients.fresh_proposal();
    world.checks.membership.ask(&changes);
    world.input(leader, Input::ChangeMembers { id, changes });
}

/// One look of the autopilot that the leader runs. Machines that are down count as dead, who is broken for good has been removed.
pub fn pilot(world: &mut World) {
    let Some(leader) = world.leader().filter(|leader| world.is_awake(*leader)) else { return };
    let Some(status) = world.status(leader) else { return };
    let candidates: Vec<Candidate> = world
        .nodes
        .iter()
        .filter(|(_, node)| !node.broken)
        .map(|(id, node)| Candidate {
            id: NodeId(*id),
            zone: ["a", "b"][(*id % 2) as usize].into(),
            may_vote: true,
            spared: false,
            dead: node.replica.is_none() || node.paused_until > world.now,
        })
        .collect();
    let binaries: Vec<Supported> = candidates.iter().map(|member| world.supported(member.id.0)).collect();
    let view = world.view(leader);
    if let Some(version) = version::raise(view.version(), binaries) {
        world.count("raise of the version proposed");
        let id = world.clients.fresh_proposal();
        let command = Command::SetVersion { version, epoch: view.epoch() };
        world.input(leader, Input::Propose { id, command });
    }
    let pilot = world.pilots.entry((leader, status.term)).or_default();
    match pilot.next(Millis(world.now), &candidates, None, &status) {
        Next::Nothing => {}
        Next::HandOver(to) => world.input(leader, Input::TransferLeadership { to }),
        Next::Change(changes) => {
            let id = world.clients.fresh_proposal();
            world.count("change by the autopilot");
            world.input(leader, Input::ChangeMembers { id, changes });
        }
    }
}

/// A proposal in a message of raft's, as no replica sends it: whoever takes it lets any member write what it likes.
pub fn forged_proposal(envelope: &[u8], from: u64, to: u64, term: u64) -> Vec<u8> {
    let entry = Entry { data: b"forged".to_vec(), ..Entry::default() };
    let kind = MessageType::MsgPropose as i32;
    let message = Message { msg_type: kind, from, to, term, entries: vec![entry], ..Message::default() };
    let mut bytes = envelope.to_vec();
    message.encode(&mut bytes).unwrap();
    bytes
}
