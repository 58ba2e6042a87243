//! What clients asked and were told while the cluster was hurt; can be kept in a file and judged again.
//!
//! Decides nothing. Times are microseconds since the run began. Values of a key are unique, 0 is "not there".

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct History {
    pub seed: u64,
    pub hosts: usize,
    /// Watching begins after this revision: nobody has touched the keys before.
    pub began: u64,
    pub calls: Vec<Call>,
    pub lists: Vec<List>,
    pub watches: Vec<Watch>,
    pub faults: Vec<(u64, String)>,
}

/// One request about one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub host: usize,
    pub key: u64,
    pub ask: Ask,
    pub told: Told,
    pub called: u64,
    pub returned: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Linearizable.
    Read,
    Create(u64),
    /// Whatever is there.
    Write(u64),
    /// If it still is as it was at the revision at which it had the value `expected`.
    Swap {
        expected: u64,
        new: u64,
    },
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Done, or read, at a revision of the object (0: not told).
    Done {
        value: u64,
        revision: u64,
    },
    /// 404.
    Absent,
    /// 409.
    Conflict,
    /// Told that nothing was done, or never sent.
    Nothing,
    Unknown,
}

/// A list of all keys at one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct List {
    pub host: usize,
    /// Asked for whatever the agent has.
    pub stale: bool,
    pub at: u64,
    /// Key, value, revision.
    pub items: Vec<(u64, u64, u64)>,
    pub called: u64,
    pub returned: u64,
}

/// One watch at one agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Watch {
    pub host: usize,
    pub from: u64,
    pub told: Vec<Event>,
    /// The newest bookmark, if it was the last word.
    pub bookmark: Option<u64>,
    /// Told that the history has moved on.
    pub expired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub revision: u64,
    pub key: u64,
    /// None: deleted.
    pub value: Option<u64>,
    pub time: u64,
}
