//! Decides what a replica whose disk is full or slow still does. Full: a reserve keeps the log going for a while, writes are
//! refused with what to do, entries from a leader are not taken (they come again), and a leader hands over. Slow: a leader hands over.
//! Must not lose anything, nor answer what is not durable.

use super::Replica;
use crate::disk::Disk;
use crate::effect::Fatal;
use crate::ids::{Millis, NodeId};
use crate::timing;

/// How slow the disk was, and when leadership was last handed over because of it.
#[derive(Default)]
pub(super) struct Burden {
    slow_in_a_row: u32,
    handed_over: Option<Millis>,
    looked: Millis,
}

impl Burden {
    /// Whether the last round was not slow.
    pub(super) fn is_light(&self) -> bool {
        self.slow_in_a_row == 0
    }

    /// Takes how long one round took with its sync.
    pub(super) fn synced(&mut self, took_ms: u64) {
        self.slow_in_a_row = match took_ms {
            0..timing::SLOW_SYNC_MS => 0,
            // One so long is as bad as many in a row.
            timing::STALLED_SYNC_MS.. => timing::SLOW_SYNCS,
            _ => self.slow_in_a_row + 1,
        };
    }
}

impl<D: Disk> Replica<D> {
    /// Whether the disk has no room for more than the replica's own marks.
    pub fn is_pressed(&self) -> bool {
        self.log.is_pressed()
    }

    /// Looks whether there is room again, and gives up leading where the disk does not serve it.
    pub(super) fn bear(&mut self) -> Result<(), Fatal> {
        if self.now.since(self.burden.looked) < timing::BURDEN_LOOK_MS {
            return Ok(());
        }
        self.burden.looked = self.now;
        if self.log.is_pressed() {
            self.log.relieve()?;
        }
        let unfit = self.log.is_pressed() || self.burden.slow_in_a_row >= timing::SLOW_SYNCS;
        let rested = self.burden.handed_over.is_none_or(|at| self.now.since(at) >= timing::HAND_OVER_REST_MS);
        if unfit
            && rested
            && self.is_established()
            && !self.state.members.is_joint()
            && let Some(heir) = self.heir()
        {
            self.burden.handed_over = Some(self.now);
            self.burden.slow_in_a_row = 0;
            tracing::warn!(to = %heir, full = self.log.is_pressed(), "the disk of this leader is full or slow: it hands over");
            self.node.transfer_leader(heir.0);
        }
        Ok(())
    }

    /// The voter that answers and holds the most.
    fn heir(&self) -> Option<NodeId> {
        let progress = self.node.raft.prs().iter();
        let fit = progress.filter(|(id, progress)| {
            **id != self.config.id.0
                && progress.recent_active
                && self.state.members.voters.contains(&NodeId(**id))
        });
        fit.max_by_key(|(id, progress)| (progress.matched, **id)).map(|(id, _)| NodeId(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Op, Outcome, Refusal, Transaction};
    use crate::config::Config;
    use crate::effect::{Effect, Input};
    use crate::ids::{ClusterId, ProposalId, SessionId};
    use crate::sim_disk::MemDisk;

    fn config() -> Config {
        let mut config = Config::new(NodeId(1), ClusterId([1; 16]), 1);
        config.segment_bytes = 16 << 10;
        config.snapshot_every_bytes = 1 << 20;
        config
    }

    fn propose(replica: &mut Replica<MemDisk>, now: u64, sequence: u64) -> Outcome {
        let (key, value) = (format!("k{sequence}").as_str().into(), vec![7u8; 500].into());
        let transaction = Transaction { compares: vec![], ops: vec![Op::Put { key, value }] };
        let command = match sequence {
            0 => Command::OpenSession { session: SessionId(1) },
            _ => Command::Transact { session: SessionId(1), sequence, epoch: None, transaction },
        };
        replica.handle(Millis(now), Input::Propose { id: ProposalId(sequence), command });
        let effects = replica.advance(Millis(now)).expect("a full disk is no failure");
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer { outcome, .. } => Some(outcome),
            _ => None,
        });
        answer.expect("an only voter answers at once")
    }

    #[test]
    fn a_full_disk_refuses_writes_loses_nothing_and_goes_on_when_there_is_room() {
        let disk = MemDisk::new();
        disk.set_capacity(Some(128 << 10));
        let mut replica = Replica::create_first(disk.clone(), config()).unwrap();
        replica.advance(Millis(1)).unwrap();
        let (mut now, mut written) = (10, 0);
        let refused = loop {
            now += 25;
            replica.handle(Millis(now), Input::Tick);
            match propose(&mut replica, now, written) {
                Outcome::Applied { .. } => written += 1,
                other => break other,
            }
            assert!(written < 1_000, "the disk never fills");
        };
        assert_eq!(refused, Outcome::Refused(Refusal::DiskFull));
        assert!(written > 50 && replica.is_pressed());
        for _ in 0..400 {
            now += 25;
            replica.handle(Millis(now), Input::Tick);
            replica.advance(Millis(now)).expect("it stays up");
        }
        assert!(replica.is_pressed());
        let mut copy = Replica::open(disk.image(), config()).unwrap();
        copy.advance(Millis(1)).unwrap();
        assert_eq!(copy.view().len() as u64, written - 1, "all that was acknowledged is there");
        disk.set_capacity(None);
        for _ in 0..50 {
            now += 25;
            replica.handle(Millis(now), Input::Tick);
            replica.advance(Millis(now)).unwrap();
        }
        assert!(matches!(propose(&mut replica, now, written), Outcome::Applied { .. }));
    }

    #[test]
    fn one_stall_or_many_slow_syncs_are_too_slow_and_a_fast_one_forgives() {
        let mut burden = Burden::default();
        (0..timing::SLOW_SYNCS - 1).for_each(|_| burden.synced(200));
        assert!(burden.slow_in_a_row < timing::SLOW_SYNCS);
        burden.synced(1);
        assert_eq!(burden.slow_in_a_row, 0);
        burden.synced(1_200);
        assert!(burden.slow_in_a_row >= timing::SLOW_SYNCS);
    }
}
