//! The open connections: which of a pair's is used, who may dial, and what becomes of a surplus one.
//!
//! Decides by age and dialler, the same way on both ends, so that two machines that dial each other at once agree on one
//! connection. A surplus one takes no new work and is let go once nothing comes in on it; what is under way on it ends in
//! peace. It must not dial or read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::Connection;
use raft_store::NodeId;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard, watch};

use super::{Class, refusals};
use crate::timing;

/// A pair and what they use the connection for.
pub type Pair = (NodeId, Class);

/// Why and when (milliseconds of [`crate::clock::millis`]) the last dial failed, behind the turn to dial.
pub type LastFailure = Option<(u64, String)>;

/// One open connection, as its reader sees it.
pub struct Link {
    pub connection: Connection,
    /// Becomes true when another connection has taken this one's place.
    pub surplus: watch::Receiver<bool>,
}

struct Used {
    connection: Connection,
    dialler: NodeId,
    since: u64,
    surplus: watch::Sender<bool>,
}

#[derive(Default)]
struct Table {
    used: HashMap<Pair, Used>,
    /// Everything that is being read, surplus ones too, by quinn's number of it.
    read: HashMap<usize, (NodeId, Connection)>,
    turns: HashMap<Pair, Arc<Turn<LastFailure>>>,
}

/// The table of open connections.
#[derive(Default)]
pub struct Links(Mutex<Table>);

impl Links {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to use, if one is open.
    pub fn used(&self, pair: Pair) -> Option<Connection> {
        let table = self.table();
        table
            .used
            .get(&pair)
            .filter(|used| used.connection.close_reason().is_none())
            .map(|used| used.connection.clone())
    }

    /// The turn to dial: one at a time for each pair.
    pub fn turn(&self, pair: Pair) -> Arc<Turn<LastFailure>> {
        self.table().turns.entry(pair).or_default().clone()
    }

    /// The turn to dial, if nobody has it.
    pub fn turn_now(&self, pair: Pair) -> Option<OwnedMutexGuard<LastFailure>> {
        self.turn(pair).try_lock_owned().ok()
    }

    /// Takes a new connection of a pair, dialled by `dialler`, and says which of the two is surplus.
    pub fn add(&self, pair: Pair, dialler: NodeId, connection: Connection, now: u64) -> Link {
        let mut table = self.table();
        table.read.insert(connection.stable_id(), (pair.0, connection.clone()));
        let (sender, surplus) = watch::channel(false);
        let open = table.used.get(&pair).filter(|used| used.connection.close_reason().is_none());
        if open.is_some_and(|used| old_one_stays(used.dialler, now.saturating_sub(used.since), dialler)) {
            sender.send_replace(true);
        } else {
            let new = Used { connection: connection.clone(), dialler, since: now, surplus: sender };
            if let Some(old) = table.used.insert(pair, new) {
                old.surplus.send_replace(true);
            }
        }
        Link { connection, surplus }
    }

    /// A connection is no longer read.
    pub fn ended(&self, pair: Pair, connection: &Connection) {
        let mut table = self.table();
        let id = connection.stable_id();
        table.read.remove(&id);
        if table.used.get(&pair).is_some_and(|used| used.connection.stable_id() == id) {
            table.used.remove(&pair);
        }
    }

    /// Closes every connection, surplus ones too, to whoever is not `listed`.
    pub fn close_strangers(&self, listed: impl Fn(NodeId) -> bool) {
        let mut table = self.table();
        for (_, connection) in table.read.values().filter(|(id, _)| !listed(*id)) {
            connection.close(1u32.into(), refusals::REMOVED);
        }
        table.read.retain(|_, (id, _)| listed(*id));
        table.used.retain(|(id, _), _| listed(*id));
        table.turns.retain(|(id, _), _| listed(*id));
    }
}

/// Whether a connection of this dialler and age (milliseconds) stays in use beside a new one.
///
/// Normally the newest is used: whoever dials has lost the old one, perhaps by a restart that the other end has not noticed yet.
/// Only when both ends dialled at the same time the one of the lower id stays.
fn old_one_stays(old_dialler: NodeId, age: u64, new_dialler: NodeId) -> bool {
    old_dialler < new_dialler && age < timing::SIMULTANEOUS_DIALS.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_keep_the_same_one_of_two_that_were_dialled_at_once() {
        let (low, high) = (NodeId(1), NodeId(2));
        // One end sees the low one's first, the other end the high one's.
        assert!(old_one_stays(low, 5, high));
        assert!(!old_one_stays(high, 5, low));
    }

    #[test]
    fn who_dials_again_later_has_lost_the_old_one() {
        assert!(!old_one_stays(NodeId(1), 60_000, NodeId(2)));
        assert!(!old_one_stays(NodeId(1), 5, NodeId(1)));
    }
}
