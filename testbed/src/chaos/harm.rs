//! What is done to the cluster, by seed: agents killed and paused, hosts killed and booted, links cut and healed; where there are
//! more hosts than voters, also who votes: voters are drained, and their count is pinned anew.
//!
//! Decides what comes next and for how long. At most a minority of the hosts is down at once, so that the run goes on; agents
//! may all be killed together, since their disks stay.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::ChaosError;
use super::clients::Clients;
use super::cluster::Cluster;
use crate::Kind;

pub struct Harm<'a> {
    cluster: &'a Cluster,
    clients: &'a Clients<'a>,
    rng: SmallRng,
    drained: Option<usize>,
    /// The pinned count is not the one that the run began with.
    pinned: bool,
    /// Who voted, at a look before each fault.
    pub voting: BTreeSet<Vec<usize>>,
    pub obeyed: Obeyed,
}

/// What was seen to come of the changes of voters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Obeyed {
    /// A drained host did not vote.
    pub drained: bool,
    /// As many voted as were pinned.
    pub pinned: bool,
}

impl<'a> Harm<'a> {
    pub fn new(cluster: &'a Cluster, clients: &'a Clients<'a>, seed: u64) -> Harm<'a> {
        let rng = SmallRng::seed_from_u64(seed);
        Harm {
            cluster,
            clients,
            rng,
            drained: None,
            pinned: false,
            voting: BTreeSet::new(),
            obeyed: Obeyed::default(),
        }
    }

    /// One fault, and its end.
    pub fn once(&mut self) -> Result<(), ChaosError> {
        let voting = self.cluster.voting();
        // Nobody may have answered.
        if !voting.is_empty() {
            self.voting.insert(voting.clone());
            self.obeyed.drained |= self.drained.is_some_and(|host| !voting.contains(&host));
            self.obeyed.pinned |= self.pinned && voting.len() != self.cluster.voters;
        }
        let victim = self.victim();
        let name = self.cluster.host(victim).name().to_owned();
        let kinds = if self.cluster.len() > self.cluster.voters { 13 } else { 10 };
        match self.rng.random_range(0..kinds) {
            0..2 => {
                self.told(format!("kill -9 of {name}'s agent"));
                self.kill_agent(victim)?;
            }
            2 => {
                self.told("kill -9 of all agents".into());
                (0..self.cluster.len()).try_for_each(|index| self.kill_agent(index))?;
            }
            3..5 => {
                let pause = self.between(300, 4_000);
                self.told(format!("{name}'s agent paused for {pause:?}"));
                self.pause(victim, pause)?;
            }
            5 => {
                let down = self.between(200, 4_000);
                self.told(format!("{name} down for {down:?}"));
                let host = self.cluster.host(victim);
                host.kill(Kind::Silent)?;
                std::thread::sleep(down);
                host.boot()?;
                host.start_agent()?;
            }
            6..8 => self.part(victim)?,
            8 => {
                let other =
                    (victim + 1 + self.rng.random_range(0..self.cluster.len() - 1)) % self.cluster.len();
                let to = self.cluster.host(other).name();
                self.told(format!("nothing passes from {name} to {to}"));
                self.cluster.bed.cut(&name, to)?;
                self.then_heal()?;
            }
            10..12 => self.drain_another(&voting)?,
            12 => self.pin_another()?,
            _ => {
                self.told(format!("{name} cut off, and paused meanwhile"));
                self.isolate(victim)?;
                let pause = self.between(500, 2_500);
                self.pause(victim, pause)?;
                self.then_heal()?;
            }
        }
        let rest = self.between(50, 800);
        std::thread::sleep(rest);
        Ok(())
    }

    /// Nobody is drained any more, as many vote as in the beginning.
    pub fn undo(&mut self) -> Result<(), ChaosError> {
        self.undrain()?;
        if self.pinned { self.pin_another() } else { Ok(()) }
    }

    /// A voter gives up its vote, for whoever observes, and who gave it up before may vote again. The next fault falls into it.
    fn drain_another(&mut self, voting: &[usize]) -> Result<(), ChaosError> {
        self.undrain()?;
        let Some(&voter) = voting.choose(&mut self.rng) else { return Ok(()) };
        let name = self.cluster.host(voter).name();
        self.told(format!("{name} drained"));
        self.cluster.type_somewhere(&["skein", "node", "drain", name])?;
        self.drained = Some(voter);
        Ok(())
    }

    fn undrain(&mut self) -> Result<(), ChaosError> {
        let Some(index) = self.drained.take() else { return Ok(()) };
        let name = self.cluster.host(index).name();
        self.told(format!("{name} no longer drained"));
        self.cluster.type_somewhere(&["skein", "node", "undrain", name])
    }

    /// One votes where several did, and the other way round.
    fn pin_another(&mut self) -> Result<(), ChaosError> {
        let usual = self.cluster.voters;
        let count = match (self.pinned, usual) {
            (true, _) => usual,
            (false, 1) => 3.min(self.cluster.len()),
            (false, _) => 1,
        };
        self.told(format!("{count} to vote"));
        self.pinned = !self.pinned;
        self.cluster.type_somewhere(&["skein", "cluster", "voters", &count.to_string()])
    }

    /// Half of the time whoever leads.
    fn victim(&mut self) -> usize {
        let leader = if self.rng.random_bool(0.5) { self.cluster.leader() } else { None };
        let other = self.rng.random_range(0..self.cluster.len());
        leader.unwrap_or(other)
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(least..most))
    }

    fn told(&self, what: String) {
        self.clients.fault(what);
    }

    fn kill_agent(&self, index: usize) -> Result<(), ChaosError> {
        Ok(self.cluster.host(index).kill_agent(Signal::SIGKILL)?)
    }

    fn pause(&self, index: usize, length: Duration) -> Result<(), ChaosError> {
        let host = self.cluster.host(index);
        let Some(inside) = host.agent_pid()? else { return Ok(()) };
        let Some(pid) = host.machine_pid(inside)? else { return Ok(()) };
        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        std::thread::sleep(length);
        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        Ok(())
    }

    fn isolate(&self, index: usize) -> Result<(), ChaosError> {
        let names: Vec<&str> = self.cluster.bed.hosts().iter().map(|host| host.name()).collect();
        let others: Vec<&str> =
            names.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, name)| *name).collect();
        Ok(self.cluster.bed.partition(&[&[names[index]], &others])?)
    }

    /// One alone, or two halves at random.
    fn part(&mut self, victim: usize) -> Result<(), ChaosError> {
        if self.rng.random_bool(0.5) {
            self.told(format!("{} cut off", self.cluster.host(victim).name()));
            self.isolate(victim)?;
        } else {
            let mut names: Vec<&str> = self.cluster.bed.hosts().iter().map(|host| host.name()).collect();
            names.shuffle(&mut self.rng);
            let at = self.rng.random_range(1..names.len());
            let (left, right) = names.split_at(at);
            self.told(format!("{} cut off from {}", left.join(" "), right.join(" ")));
            self.cluster.bed.partition(&[left, right])?;
        }
        self.then_heal()
    }

    fn then_heal(&mut self) -> Result<(), ChaosError> {
        let length = self.between(300, 5_000);
        std::thread::sleep(length);
        Ok(self.cluster.bed.heal()?)
    }
}
