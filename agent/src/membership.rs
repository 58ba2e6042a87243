//! Membership by gossip: SWIM with suspicion and incarnations (`foca`), as a synchronous core.
//!
//! Decides whom this machine suspects. That is a hint and this machine's view only: it must not declare anyone dead
//! ([`crate::liveness`] does) and writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{
    AccumulatingRuntime, Config, Foca, Member as Known, NoCustomBroadcast, PeriodicParams, PostcardCodec,
    State,
};
use raft_store::NodeId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::timing;

/// A member in gossip: the raft id, and which boot of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossiper {
    pub id: u64,
    pub boot: u64,
}

impl foca::Identity for Gossiper {
    type Addr = u64;

    /// A machine that others called down says so with its next number: it is the same boot, and alive.
    fn renew(&self) -> Option<Gossiper> {
        Some(Gossiper { id: self.id, boot: self.boot + 1 })
    }

    fn addr(&self) -> u64 {
        self.id
    }

    fn win_addr_conflict(&self, adversary: &Gossiper) -> bool {
        self.boot > adversary.boot
    }
}

/// A timer that the core wants back after its time; opaque to the driver.
pub type Timer = foca::Timer<Gossiper>;

/// What the core is told.
pub enum Input {
    Datagram(Vec<u8>),
    Timer(Timer),
    /// The member list, which gossip learns new members from; to be repeated each second.
    Members(Vec<u64>),
    /// Everything that another member knows.
    Exchange(Vec<u8>),
}

/// What the core wants done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Send {
        to: NodeId,
        bytes: Vec<u8>,
    },
    Wake {
        after: Duration,
        timer: Timer,
    },
    /// The set of suspected members changed.
    Suspects(BTreeSet<NodeId>),
}

/// The gossip core of one machine.
pub struct Membership {
    foca: Foca<Gossiper, PostcardCodec, StdRng, NoCustomBroadcast>,
    me: u64,
    suspects: BTreeSet<NodeId>,
    /// Members of the list that gossip has not met yet, and how often they were announced to. They may have died before
    /// this boot, or before their first word: gossip alone would never notice.
    unmet: BTreeMap<u64, u32>,
}

impl Membership {
    /// `boot` grows with every start of this machine (persisted); `seed` makes probes repeatable.
    pub fn new(me: NodeId, boot: u64, seed: u64) -> Membership {
        // Room between two boots for the numbers that `renew` takes.
        let identity = Gossiper { id: me.0, boot: boot << 20 };
        let foca = Foca::new(identity, config(), StdRng::seed_from_u64(seed), PostcardCodec);
        Membership { foca, me: me.0, suspects: BTreeSet::new(), unmet: BTreeMap::new() }
    }

    /// Takes one input. Malformed packets change nothing.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        let mut runtime = AccumulatingRuntime::new();
        match input {
            Input::Datagram(bytes) => {
                let _ = self.foca.handle_data(&bytes, &mut runtime);
            }
            Input::Timer(timer) => {
                let _ = self.foca.handle_timer(timer, &mut runtime);
            }
            Input::Members(ids) => self.announce(&ids, &mut runtime),
            Input::Exchange(bytes) => {
                let known: Vec<Known<Gossiper>> = serde_json::from_slice(&bytes).unwrap_or_default();
                let _ = self.foca.apply_many(known.into_iter(), true, &mut runtime);
            }
        }
        self.effects(runtime)
    }

    /// Everything known, for the exchange over a stream.
    pub fn knowledge(&self) -> Vec<u8> {
        let known: Vec<&Known<Gossiper>> = self.foca.iter_membership_state().collect();
        serde_json::to_vec(&known).unwrap_or_default()
    }

    pub fn suspects(&self) -> &BTreeSet<NodeId> {
        &self.suspects
    }

    fn announce(&mut self, ids: &[u64], runtime: &mut AccumulatingRuntime<Gossiper>) {
        let known: BTreeSet<u64> = self.foca.iter_membership_state().map(|known| known.id().id).collect();
        self.unmet.retain(|id, _| ids.contains(id) && !known.contains(id));
        for id in ids.iter().filter(|id| **id != self.me && !known.contains(id)) {
            *self.unmet.entry(*id).or_default() += 1;
            let _ = self.foca.announce(Gossiper { id: *id, boot: 0 }, &mut *runtime);
        }
    }

    /// Who has been announced to several times, and has not said a word since this machine's start.
    fn never_answered(&self) -> impl Iterator<Item = NodeId> {
        let known: BTreeSet<u64> = self.foca.iter_membership_state().map(|known| known.id().id).collect();
        let silent = self.unmet.iter().filter(|(_, times)| **times > timing::GOSSIP_UNANSWERED);
        silent.map(|(id, _)| *id).filter(move |id| !known.contains(id)).map(NodeId)
    }

    fn effects(&mut self, mut runtime: AccumulatingRuntime<Gossiper>) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some((to, bytes)) = runtime.to_send() {
            effects.push(Effect::Send { to: NodeId(to.id), bytes: bytes.to_vec() });
        }
        while let Some((after, timer)) = runtime.to_schedule() {
            effects.push(Effect::Wake { after, timer });
        }
        while runtime.to_notify().is_some() {}
        let suspects: BTreeSet<NodeId> = self
            .foca
            .iter_membership_state()
            // This machine's own earlier boot is remembered as down: it is no member to be suspected.
            .filter(|known| known.state() != State::Alive && known.id().id != self.me)
            .map(|known| NodeId(known.id().id))
            .chain(self.never_answered())
            .collect();
        if suspects != self.suspects {
            self.suspects = suspects.clone();
            effects.push(Effect::Suspects(suspects));
        }
        effects
    }
}

fn config() -> Config {
    let count = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    let every = |frequency, n| Some(PeriodicParams { frequency, num_members: count(n) });
    Config {
        probe_period: timing::GOSSIP_PROBE_PERIOD,
        probe_rtt: timing::GOSSIP_PROBE_RTT,
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(8).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: timing::GOSSIP_SUSPECT_TO_DOWN,
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: count(1150),
        notify_down_members: true,
        periodic_announce: every(Duration::from_secs(10), 1),
        periodic_announce_to_down_members: every(Duration::from_secs(2), 2),
        periodic_gossip: every(Duration::from_millis(250), 2),
    }
}

#[cfg(test)]
mod tests;
