//! How processes and machines end and come back, and what their disks keep of it.
//!
//! Decides what a death leaves behind. Must not decide when one happens (`harm`).

use super::*;

impl World {
    /// The disk failed where `fail_step` said: the process ends, and sometimes the machine with it.
    pub(super) fn died_at_a_step(&mut self, id: u64) {
        let step = self.nodes[&id].disk.failed_at().unwrap_or_else(|| "anything more on a full disk".into());
        self.count(&format!("death before {step}"));
        self.nodes[&id].disk.fail_step(None);
        self.nodes[&id].disk.fail_read(None);
        match self.rng.random_bool(0.5) {
            true => self.crash(id),
            false => self.kill(id),
        }
        let back = self.now + self.rng.random_range(1..800);
        self.at(back, Event::Restart(id));
    }

    /// The early messages leave, then the power goes: `advance` never happens.
    pub fn crash_after_outbox(&mut self, id: u64) {
        let now = self.clock(id);
        let Some(replica) = &mut self.nodes.get_mut(&id).unwrap().replica else { return };
        let effects = replica.outbox(now);
        effects.into_iter().for_each(|effect| self.effect(id, effect));
        self.crash(id);
    }

    /// Power cut on one node.
    pub fn crash(&mut self, id: u64) {
        let seed = self.rng.random();
        self.nodes[&id].disk.crash(seed);
        self.kill(id);
    }

    /// The process ends. What it wrote is there to be read, durable or not.
    pub fn kill(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().replica = None;
        self.comings += 1;
        self.clients.node_died(id);
    }

    pub fn restart(&mut self, id: u64) {
        if self.nodes[&id].replica.is_some() || self.nodes[&id].broken {
            return;
        }
        if self.nodes[&id].boots >= 2 && self.binaries.remove(&id).is_some() {
            self.count("upgrade");
        }
        let config = self.config(id, self.nodes[&id].boots);
        let node = self.nodes.get_mut(&id).unwrap();
        node.boots += 1;
        node.paused_until = 0;
        // A new process has been told nothing.
        node.told = 0;
        self.comings += 1;
        match Replica::open(node.disk.clone(), config) {
            Ok(replica) => node.replica = Some(replica),
            Err(_) if node.disk.failed_at().is_some() => return self.died_at_a_step(id),
            Err(OpenError::Write(LogError::Disk(error))) if error.is_full() => {
                return self.died_at_a_step(id);
            }
            Err(error) => panic!("node {id} does not open: {error}"),
        }
        self.wake(id);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.muted.clear();
        self.faults = CALM;
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.revive(id);
        }
    }

    /// A node works again, unless it is broken.
    pub fn revive(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.paused_until = 0;
        node.slow_until = 0;
        node.starved_until = 0;
        node.clock.go_on(self.now);
        node.disk.fail_step(None);
        node.disk.fail_read(None);
        node.disk.set_capacity(None);
        // What it was to do after a pause it does now.
        node.advance_due = false;
        self.restart(id);
        self.wake(id);
    }
}
