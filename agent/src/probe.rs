//! Direct probes: is that machine's agent there? Pings by datagram, 100 ms apart, for as long as a death takes to decide.
//!
//! Decides only whether an answer came. What follows is [`crate::liveness`]'s.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use raft_store::NodeId;
use tokio::sync::oneshot;

use crate::clock;
use crate::mesh::Mesh;
use crate::mesh::wire::Datagram;
use crate::timing;

/// Pings that wait for their pong.
#[derive(Default)]
pub struct Pings(Mutex<HashMap<u64, (NodeId, oneshot::Sender<()>)>>);

impl Pings {
    /// A pong came; only from the machine that was asked does it count.
    pub fn answered(&self, from: NodeId, number: u64) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.get(&number).is_some_and(|(asked, _)| *asked == from)
            && let Some((_, reply)) = waiting.remove(&number)
        {
            let _ = reply.send(());
        }
    }

    /// Whether `node` answered at least one of the pings of a whole probe.
    pub async fn reach(&self, mesh: &Mesh, node: NodeId) -> bool {
        let number = clock::random_u64();
        let (reply, mut answer) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number, (node, reply));
        let tries = timing::DEATH_SILENCE.as_millis() / timing::DEATH_PROBE_INTERVAL.as_millis();
        let mut reached = false;
        for _ in 0..tries {
            mesh.send_datagram(node, &Datagram::Ping(number));
            if tokio::time::timeout(timing::DEATH_PROBE_INTERVAL, &mut answer)
                .await
                .is_ok_and(|answer| answer.is_ok())
            {
                reached = true;
                break;
            }
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        reached
    }
}
